//! Lines 1 to 3: products against cuBLASLt's best, on the whole GPU and in partitions.

use anyhow::{Result, anyhow, ensure};
use half::f16;
use smidgen::kernels::gemm::{Epilogue, Gemm, Residual};
use smidgen_runtime::device::{Buffer, DevicePtr, Sms};
use smidgen_runtime::launch::{Kernel, LaunchError, OpaqueKernel};

use crate::bench::{Bench, Case, Lane, Replay, significant};
use crate::cublaslt::{CublasLt, Operands, Product};
use crate::results::{Beside, Curve, Point, Row, TargetOf, Unit};

/// Those of line 1.
const LARGE: [[u32; 3]; 3] = [[8192, 14336, 4096], [2048, 4096, 4096], [4096, 4096, 4096]];
/// QKV, attention output, up and down projections of BERT-base at batch 8, sequence 128.
const BERT_BASE: [[u32; 3]; 4] = [[1024, 2304, 768], [1024, 768, 768], [1024, 3072, 768], [1024, 768, 3072]];
/// The same of BERT-large.
const BERT_LARGE: [[u32; 3]; 4] = [[1024, 3072, 1024], [1024, 1024, 1024], [1024, 4096, 1024], [1024, 1024, 4096]];
/// Partitions, in groups of 8 SMs, where cuBLAS's clusters run.
const PARTITIONS: [u16; 6] = [16, 32, 64, 72, 96, 120];

/// Line 3's judged peer.
const AS_CALLED: &str = "cuBLASLt as a call gets it: its heuristic's first choice";
/// The stronger peer of line 3, which no program gets without saying so and measuring.
const TOLD_AND_TRIED: &str = "cuBLASLt told the SM count, the fastest of all its proposals";

/// Elements of the outputs that are compared: enough to tell a wrong product.
const COMPARED: usize = 1 << 16;

/// A lane with cuBLASLt's handle of its partition.
struct Duel {
    lane: Lane,
    library: CublasLt,
}

/// Operands of one shape, enough to leave nothing in L2 between two uses of a set.
struct Sets {
    products: Vec<Gemm>,
    _buffers: Vec<[Buffer; 3]>,
}

pub fn run(bench: &mut Bench) -> Result<()> {
    let whole = bench.all_sms();
    if bench.wants(1) || bench.wants(2) {
        let mut duel = Duel::new(bench, whole)?;
        let large = LARGE.map(|shape| (1, shape, "", 0.95));
        let base = BERT_BASE.map(|shape| (2, shape, "BERT-base, ", 1.0));
        let bert_large = BERT_LARGE.map(|shape| (2, shape, "BERT-large, ", 1.0));
        for (row, shape, model, target) in large.into_iter().chain(base).chain(bert_large) {
            if bench.wants(row) {
                let sets = Sets::new(bench, &mut duel.lane, shape)?;
                duel.run(bench, row, &sets, model, target)?;
            }
        }
    }
    if bench.wants(3) {
        let mut duels = PARTITIONS.into_iter().map(|sms| Duel::new(bench, sms)).collect::<Result<Vec<_>>>()?;
        for shape in LARGE.into_iter().chain(BERT_BASE) {
            let sets = Sets::new(bench, &mut duels[0].lane, shape)?;
            for duel in &mut duels {
                duel.run(bench, 3, &sets, "", 0.95)?;
            }
        }
        geometric_mean(bench);
    }
    curves(bench);
    Ok(())
}

impl Duel {
    fn new(bench: &Bench, sms: u16) -> Result<Self> {
        Ok(Self { lane: bench.lane(sms)?, library: CublasLt::new(&bench.device)? })
    }

    fn run(&mut self, bench: &mut Bench, row: u8, sets: &Sets, model: &str, target: f64) -> Result<()> {
        let Self { lane, library } = self;
        let gemm = sets.products[0];
        let Candidates { first, fastest, tried } = candidates(lane, library, sets)?;
        let ours = lane.replay_kernels(&sets.products)?;
        agree(lane, library, gemm, &fastest.1)?;
        let flops = gemm.work().flops as f64 / 1e12;
        let work = format!("GEMM {model}{}x{}x{}", gemm.m, gemm.n, gemm.k);
        let id = format!("{work}, {} SMs", lane.sms);
        let in_a_partition = row == 3;
        let note = if in_a_partition || model.is_empty() { None } else { Some(fused(bench, lane, sets)?) };
        // The judged peer's sample follows ours.
        let peers = if in_a_partition { [&first.0, &fastest.0] } else { [&fastest.0, &first.0] };
        let turn = || Ok(vec![ours.time(lane)?, peers[0].time(lane)?, peers[1].time(lane)?]);
        let Some(compared) = bench.compare(row, &id, turn)? else { return Ok(()) };
        let tried_all =
            format!("cuBLASLt, the fastest of {tried} algorithms that its heuristic proposes for the whole GPU and for these SMs");
        let (peer_is, beside) = if in_a_partition { (AS_CALLED.to_owned(), TOLD_AND_TRIED) } else { (tried_all, AS_CALLED) };
        let case = Case {
            row,
            work,
            sms: lane.sms,
            unit: Unit::Tflops,
            amounts: [flops; 2],
            target,
            target_of: TargetOf::Ratio,
            peer_is,
            beside: vec![beside],
            note,
            peak_of: None,
        };
        bench.judge(case, &compared);
        Ok(())
    }
}

/// Ours with what an encoder's layer does next, which the library's product leaves to other kernels: not judged.
fn fused(bench: &Bench, lane: &mut Lane, sets: &Sets) -> Result<String> {
    let gemm = sets.products[0];
    let bias = bench.random(lane, u64::from(gemm.n), 1.0, 91)?;
    let residual = bench.random(lane, u64::from(gemm.m) * u64::from(gemm.n), 1.0, 92)?;
    // The up projection is the one that widens most; those that keep or restore the width add to the residual stream.
    let (epilogue, name) = match (gemm.n / gemm.k, gemm.n % gemm.k) {
        (4, 0) => (Epilogue::BiasGelu(bias.ptr()), "bias and GELU"),
        (3, 0) => (Epilogue::Bias(bias.ptr()), "bias"),
        _ => (Epilogue::BiasResidual(bias.ptr(), Residual { ptr: residual.ptr(), stride: gemm.n }), "bias and residual"),
    };
    let products: Vec<Gemm> = sets.products.iter().map(|plain| Gemm { epilogue, ..*plain }).collect();
    let replay = lane.replay_kernels(&products)?;
    let mut times = (0..5).map(|_| replay.time(lane)).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(format!("ours with {name} fused: {} TFLOP/s", significant(gemm.work().flops as f64 / 1e12 / times[2].as_secs_f64())))
}

impl Sets {
    fn new(bench: &Bench, lane: &mut Lane, [m, n, k]: [u32; 3]) -> Result<Self> {
        let area = |rows: u32, columns: u32| u64::from(rows) * u64::from(columns);
        let sizes = [area(m, k), area(n, k), area(m, n)];
        let buffers = (0..bench.sets(2 * sizes.iter().sum::<u64>()) as u64)
            .map(|set| {
                let mut random = |operand: usize, half_width| bench.random(lane, sizes[operand], half_width, 3 * set + operand as u64);
                Ok([random(0, 1.0)?, random(1, 0.05)?, random(2, 1.0)?])
            })
            .collect::<Result<Vec<_>>>()?;
        let products = buffers.iter().map(|[a, b, c]| Gemm::new([m, n, k], a.ptr(), b.ptr(), c.ptr(), Epilogue::NONE)).collect();
        Ok(Self { products, _buffers: buffers })
    }
}

/// One library product as an opaque launch.
fn enqueue(session: &mut smidgen_runtime::launch::Session, library: &CublasLt, gemm: &Gemm, product: &Product) -> Result<(), Failure> {
    let opaque = OpaqueKernel { key: gemm.key(), work: gemm.work() };
    let operands = Operands { a: gemm.a, b: gemm.b, c: gemm.c };
    session.launch_opaque(&opaque, |stream, _sms| library.enqueue(product, operands, stream))?.map_err(Failure)
}

/// What ends a capture of library calls.
struct Failure(anyhow::Error);

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self(error.into())
    }
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

/// A product by one of the library's algorithms, captured.
type Candidate = (Replay, Product);

/// What the library can do for one shape.
struct Candidates {
    /// What a call gets that leaves the choice to the library.
    first: Candidate,
    fastest: Candidate,
    /// How many ran.
    tried: usize,
}

/// Tries every proposal.
fn candidates(lane: &mut Lane, library: &CublasLt, sets: &Sets) -> Result<Candidates> {
    let gemm = sets.products[0];
    let capture = |lane: &mut Lane, product: Product| -> Result<Candidate> {
        Ok((lane.replay(sets.products.len(), |session, at| enqueue(session, library, &sets.products[at], &product))?, product))
    };
    let (mut ran, mut first) = (Vec::new(), None);
    for product in library.proposals([gemm.m, gemm.n, gemm.k], Sms(lane.sms))? {
        match capture(lane, product).and_then(|candidate| Ok((candidate.0.time(lane)?, candidate))) {
            Ok(timed) => {
                ran.push(timed);
                first = first.or(Some(product));
            }
            Err(reason) => eprintln!("an algorithm of cuBLASLt for {} at {} SMs does not run: {reason:#}", gemm.key(), lane.sms),
        }
    }
    let tried = ran.len();
    let fastest = ran.into_iter().min_by_key(|(time, _)| *time).map(|(_, candidate)| candidate);
    let none = || anyhow!("no algorithm of cuBLASLt runs {} at {} SMs", gemm.key(), lane.sms);
    let (fastest, first) = (fastest.ok_or_else(none)?, first.ok_or_else(none)?);
    Ok(Candidates { first: capture(lane, first)?, fastest, tried })
}

/// Fails unless both sides compute the same: a comparison of times means nothing otherwise.
fn agree(lane: &mut Lane, library: &CublasLt, gemm: Gemm, product: &Product) -> Result<()> {
    lane.session.launch(&gemm)?;
    let ours = read(lane, gemm.c, gemm.m * gemm.n)?;
    enqueue(&mut lane.session, library, &gemm, product)?;
    let peer = read(lane, gemm.c, gemm.m * gemm.n)?;
    let (mut difference, mut norm) = (0.0, 0.0);
    for (ours, peer) in ours.into_iter().zip(peer) {
        difference += (ours - peer).powi(2);
        norm += peer.powi(2);
    }
    let error = (difference / norm).sqrt();
    ensure!(error < 2e-3, "{}: ours and cuBLASLt's differ by {error:.1e} in the Euclidean norm", gemm.key());
    Ok(())
}

fn read(lane: &Lane, source: DevicePtr, elements: u32) -> Result<Vec<f64>> {
    let mut bytes = vec![0; 2 * COMPARED.min(elements as usize)];
    lane.session.device().download(lane.session.stream(), source, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|&half| f16::from_le_bytes(half).to_f64()).collect())
}

/// Line 3's other judgement: all partitions together.
fn geometric_mean(bench: &mut Bench) {
    const TARGET: f64 = 1.15;
    let rows: Vec<&Row> = bench.rows.iter().filter(|row| row.row == 3).collect();
    let mean = |ratios: &mut dyn Iterator<Item = f64>| {
        let logarithms: Vec<f64> = ratios.map(f64::ln).collect();
        significant((logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp())
    };
    let ratio = mean(&mut rows.iter().filter_map(|row| row.ratio));
    let strongest = mean(&mut rows.iter().flat_map(|row| &row.beside).map(|beside| beside.ratio));
    if !ratio.is_finite() {
        return;
    }
    bench.keep(Row {
        row: 3,
        work: format!("geometric mean of the {} above", rows.len()),
        sms: 0,
        ours: ratio,
        peer: Some(1.0),
        unit: Unit::Ratio,
        ratio: Some(ratio),
        target: TARGET,
        target_of: TargetOf::Ratio,
        reached: ratio >= TARGET,
        peer_is: "cuBLASLt in the same partitions".to_owned(),
        beside: vec![Beside { peer_is: TOLD_AND_TRIED.to_owned(), peer: significant(ratio / strongest), ratio: strongest }],
        percent_of_peak: None,
        spread: 0.0,
        clock_mhz: None,
        power_w: None,
        throttled: false,
        note: None,
    });
}

/// TFLOP/s against SM count, of the shapes that were measured at several.
fn curves(bench: &mut Bench) {
    for [m, n, k] in LARGE.into_iter().chain(BERT_BASE) {
        let shape = format!("{m}x{n}x{k}");
        let rows = bench.rows.iter().filter(|row| row.row <= 3 && row.work.ends_with(&format!(" {shape}")));
        let mut points: Vec<Point> = rows
            .filter_map(|row| {
                let (peer, beside) = (row.peer?, row.beside.first()?.peer);
                let (peer, stronger) = if row.row == 3 { (peer, beside) } else { (beside, peer) };
                Some(Point { sms: row.sms, ours: row.ours, peer, stronger: Some(stronger) })
            })
            .collect();
        points.sort_by_key(|point| point.sms);
        if points.len() > 1 {
            bench.curves.push(Curve {
                work: format!("GEMM {shape}"),
                peer_is: AS_CALLED.to_owned(),
                stronger_is: Some(TOLD_AND_TRIED.to_owned()),
                unit: Unit::Tflops,
                points,
            });
        }
    }
}
