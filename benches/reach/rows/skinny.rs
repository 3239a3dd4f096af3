//! Line 4: products of few rows, bound by reading the weight, against the rate at which memory can be read on the same SMs.

use anyhow::Result;
use smidgen::kernels::gemm::{Epilogue, Gemm};
use smidgen_runtime::launch::Kernel;

use super::Bandwidth;
use crate::bench::{Bench, Case, Lane};
use crate::results::{Curve, Point, Row, TargetOf, Unit};

/// What a weight is, and its `[n, k]`.
type Weight = (&'static str, [u32; 2]);

/// The weights of a layer as the engine lays them out, and the head.
const MODELS: [(&str, [Weight; 5]); 2] = [
    (
        "Llama-1B",
        [
            ("QKV", [3072, 2048]),
            ("attention output", [2048, 2048]),
            ("gate and up", [16384, 2048]),
            ("down", [2048, 8192]),
            ("head", [128_256, 2048]),
        ],
    ),
    (
        "Mistral-7B",
        [
            ("QKV", [6144, 4096]),
            ("attention output", [4096, 4096]),
            ("gate and up", [28672, 4096]),
            ("down", [4096, 14336]),
            ("head", [32000, 4096]),
        ],
    ),
];
const ROW_COUNTS: [u32; 3] = [1, 8, 32];
/// Share of the read rate that must be reached, on the whole GPU and in a partition.
const TARGETS: [f64; 2] = [0.88, 0.85];
const PARTITION: u16 = 32;
/// For the plot.
const CURVE_SMS: [u16; 6] = [16, 32, 64, 72, 96, 120];
const CURVE_SHAPE: [u32; 3] = [8, 28672, 4096];

pub fn run(bench: &mut Bench) -> Result<()> {
    for (sms, target) in [bench.all_sms(), PARTITION].into_iter().zip(TARGETS) {
        let mut lane = bench.lane(sms)?;
        let bandwidth = Bandwidth::new(bench, &mut lane)?;
        for (model, weights) in MODELS {
            for rows in ROW_COUNTS {
                for (name, [n, k]) in weights {
                    let row = measure(bench, &mut lane, &bandwidth, [rows, n, k], &format!("{model}, {name}, "), target)?;
                    if let Some(row) = row {
                        bench.keep(row);
                    }
                }
            }
        }
    }
    curve(bench)
}

fn measure(bench: &mut Bench, lane: &mut Lane, bandwidth: &Bandwidth, [m, n, k]: [u32; 3], what: &str, target: f64) -> Result<Option<Row>> {
    let area = |rows: u32, columns: u32| u64::from(rows) * u64::from(columns);
    let sets = bench.sets(2 * area(n, k));
    let buffers = (0..sets as u64)
        .map(|set| {
            let mut random = |elements, half_width, operand| bench.random(lane, elements, half_width, 3 * set + operand);
            Ok([random(area(m, k), 1.0, 0)?, random(area(n, k), 0.05, 1)?, random(2 * area(m, n), 1.0, 2)?])
        })
        .collect::<Result<Vec<_>>>()?;
    let products: Vec<Gemm> = buffers.iter().map(|[a, b, c]| Gemm::new([m, n, k], a.ptr(), b.ptr(), c.ptr(), Epilogue::NONE)).collect();
    let ours = lane.replay_kernels(&products)?;
    let work = format!("skinny GEMM {what}{m}x{n}x{k}");
    let id = format!("{work}, {} SMs", lane.sms);
    let Some(compared) = bench.compare(4, &id, || Ok(vec![ours.time(lane)?, bandwidth.replay.time(lane)?]))? else { return Ok(None) };
    let case = Case {
        row: 4,
        work,
        sms: lane.sms,
        unit: Unit::Gbytes,
        amounts: [products[0].work().bytes as f64 / 1e9, Bandwidth::AMOUNT],
        target,
        target_of: TargetOf::Ratio,
        peer_is: Bandwidth::NAME.to_owned(),
        beside: Vec::new(),
        note: None,
        peak_of: None,
    };
    Ok(Some(bench.row(case, &compared)))
}

/// GB/s against SM count.
fn curve(bench: &mut Bench) -> Result<()> {
    let mut points = Vec::new();
    for sms in CURVE_SMS.into_iter().chain([bench.all_sms()]) {
        let mut lane = bench.lane(sms)?;
        let bandwidth = Bandwidth::new(bench, &mut lane)?;
        let row = measure(bench, &mut lane, &bandwidth, CURVE_SHAPE, "", 0.0)?;
        points.extend(row.and_then(|row| Some(Point { sms, ours: row.ours, peer: row.peer?, stronger: None })));
    }
    let [m, n, k] = CURVE_SHAPE;
    bench.curves.push(Curve {
        work: format!("skinny GEMM {m}x{n}x{k}"),
        peer_is: "reading memory with nothing else to do".to_owned(),
        stronger_is: None,
        unit: Unit::Gbytes,
        points,
    });
    Ok(())
}
