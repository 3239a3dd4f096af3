//! Our own time on the launch path, host only: `cargo bench --bench launch_path`. No GPU is needed.
//!
//! The device of this benchmark does nothing but what the `cuda` back end does on the host before it calls the driver: it puts the encoded
//! tensor maps into the parameters. Everything else that is timed is `Session::launch`: reading the plan, finding the placement, and the kernel's own
//! `configure_as`. The launches are a BERT-base forward pass of 12 layers, each with weights of its own, so that maps are not always the same.
//!
//! Criterion reports means. Percentiles are of a histogram: each entry is the mean of [`BATCH`] consecutive launches, timed together because the clock
//! takes a fifth as long as a launch; a launch that is slow by itself therefore shows with an eighth of its excess. `SMIDGEN_RESULTS` names a folder
//! for `launch_path.json`.
#![allow(missing_docs)]

#[path = "../runtime/tests/support/idle.rs"]
#[allow(dead_code)] // The counters are for tests.
mod idle;
#[path = "runtime/rows.rs"]
mod rows;

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use criterion::Criterion;
use hdrhistogram::Histogram;
use smidgen::kernels::attention::{AttentionPrefill, Heads};
use smidgen::kernels::gemm::{Epilogue, Gemm, Residual};
use smidgen::kernels::norm::{Norm, NormKind};
use smidgen_runtime::device::{Device, DevicePtr, LaunchRequest};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::{
    EncodedMaps, Kernel, LaunchError, ParamBytes, Params, Placement, Plan, PlanCell, Session, TenantPlan, TensorMap, Walls, WorkId,
};
use smidgen_runtime::tenant::TenantId;

use idle::Idle;
use rows::Row;

/// Launches timed together.
const BATCH: usize = 8;

/// Forward passes timed.
const PASSES: usize = 20_000;

fn main() -> Result<()> {
    let device: Arc<dyn Device> = Idle::that_does(prepare_parameters);
    let mut session = session(&device)?;
    let kernels = bert_base();
    let pass = |session: &mut Session| kernels.iter().try_for_each(|kernel| session.launch_dyn(kernel.as_ref()));
    for _ in 0..100 {
        pass(&mut session)?;
    }
    session.capture_kept(WorkId(0), pass)?;

    let mut criterion =
        Criterion::default().configure_from_args().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let mut group = criterion.benchmark_group("launch path");
    let names = ["gemm", "attention", "gemm with residual", "norm"];
    for (name, kernel) in names.iter().zip(&kernels) {
        group.bench_function(*name, |bencher| bencher.iter(|| session.launch_dyn(black_box(kernel.as_ref())).is_ok()));
    }
    group.bench_function("replay", |bencher| bencher.iter(|| session.replay_kept(black_box(WorkId(0))).is_ok()));
    group.finish();

    let launches = percentiles(PASSES, &kernels, |kernel| session.launch_dyn(kernel.as_ref()))?;
    let replays = percentiles(PASSES, &[WorkId(0); 10 * BATCH], |&work| session.replay_kept(work).map(drop))?;
    let row = |what: &str, [median, p99]: [f64; 2]| {
        [
            Row::at_most(1, format!("{what}, own time, median of batches of {BATCH}"), median, "ns", 150.0),
            Row::at_most(1, format!("{what}, own time, p99 of batches of {BATCH}"), p99, "ns", 300.0),
        ]
    };
    let rows: Vec<Row> = row("eager launch, BERT-base", launches).into_iter().chain(row("replay of a kept graph", replays)).collect();
    rows.iter().for_each(|row| println!("{row}"));
    rows::write("launch_path", None, &rows)
}

/// Median and 99th percentile of what `launch` takes, nanoseconds.
fn percentiles<T>(passes: usize, work: &[T], mut launch: impl FnMut(&T) -> Result<(), LaunchError>) -> Result<[f64; 2]> {
    // In picoseconds, up to 0.1 ms: what is longer is the operating system's.
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 100_000_000, 3)?;
    for _ in 0..passes {
        for batch in work.chunks_exact(BATCH) {
            let start = Instant::now();
            batch.iter().try_for_each(&mut launch)?;
            histogram.saturating_record(start.elapsed().as_nanos() as u64 * 1000 / BATCH as u64);
        }
    }
    Ok([0.5, 0.99].map(|quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0))
}

/// What `cuda` does with a launch's parameters; the driver's encoding itself is done once for a map and not counted.
fn prepare_parameters(request: &LaunchRequest<'_>) {
    thread_local! {
        static MAPS: RefCell<EncodedMaps> = const { RefCell::new(EncodedMaps::new()) };
    }
    let params: &Params = &request.launch.params;
    let mut encoded = ParamBytes::uninit();
    let prepared = match params.plain() {
        Some(plain) => plain,
        None => {
            let encode = |map: &TensorMap| Ok::<_, Infallible>([map.ptr.0; 16]);
            let Ok(()) = MAPS.with_borrow_mut(|maps| params.encode_into(&mut encoded, maps, encode));
            &encoded
        }
    };
    black_box(prepared.as_ptr());
}

fn session(device: &Arc<dyn Device>) -> Result<Session, LaunchError> {
    let default = Placement::whole(device.topology().sms);
    let all = device.topology().all_tpcs();
    let tenant = TenantPlan { owned: all, grant: all, default, kernels: HashMap::new(), walls: Walls::default() };
    let plans = PlanCell::new(Plan { policy: "whole", tenants: HashMap::from([(TenantId(0), tenant)]), ..Plan::default() });
    Session::new(device, &plans, TenantId(0), Arc::new(Grant::new(device)?))
}

/// The launches of BERT-base's layers, batch 8, sequence 128.
fn bert_base() -> Vec<Box<dyn Kernel>> {
    const ROWS: u32 = 1024;
    const HIDDEN: u32 = 768;
    const NULL: DevicePtr = DevicePtr::NULL;
    let mut last = 1 << 32;
    let mut buffer = || {
        last += 16 << 20;
        DevicePtr(last)
    };
    let [x, y, qkv, attention, inner, starts, lengths] = [(); 7].map(|()| buffer());
    let heads = Heads { heads: 12, kv_heads: 12, head_dim: 64 };
    let (sequences, max_length) = (8, 128);
    let attend = AttentionPrefill {
        heads,
        sequences,
        max_length,
        tokens: ROWS,
        rows: ROWS,
        causal: false,
        window: 0,
        scale: 0.125,
        qkv,
        qkv_stride: 3 * HIDDEN,
        output: attention,
        output_stride: HIDDEN,
        starts,
        lengths,
    };
    let residual = Residual { ptr: x, stride: HIDDEN };
    let mut kernels: Vec<Box<dyn Kernel>> = Vec::new();
    for _ in 0..12 {
        let [qkv_weight, output_weight, up_weight, down_weight] = [(); 4].map(|()| buffer());
        let [qkv_bias, output_bias, up_bias, down_bias] = [(); 4].map(|()| buffer());
        let mut norm = || Norm {
            kind: NormKind::Layer,
            rows: ROWS,
            width: HIDDEN,
            epsilon: 1e-12,
            x: y,
            index: NULL,
            residual: NULL,
            sum: NULL,
            weight: buffer(),
            bias: buffer(),
            y: x,
        };
        let added = |bias| Epilogue::BiasResidual(bias, residual);
        kernels.push(Box::new(Gemm::new([ROWS, 3 * HIDDEN, HIDDEN], x, qkv_weight, qkv, Epilogue::Bias(qkv_bias))));
        kernels.push(Box::new(attend));
        kernels.push(Box::new(Gemm::new([ROWS, HIDDEN, HIDDEN], attention, output_weight, y, added(output_bias))));
        kernels.push(Box::new(norm()));
        kernels.push(Box::new(Gemm::new([ROWS, 4 * HIDDEN, HIDDEN], x, up_weight, inner, Epilogue::BiasGelu(up_bias))));
        kernels.push(Box::new(Gemm::new([ROWS, HIDDEN, 4 * HIDDEN], inner, down_weight, y, added(down_bias))));
        kernels.push(Box::new(norm()));
    }
    kernels
}
