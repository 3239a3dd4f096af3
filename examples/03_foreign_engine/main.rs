//! An engine that is not ours links the runtime: its memory comes from cudarc, its matrix products from cuBLASLt, its own kernel from PTX. Its
//! launches go through a session, cuBLASLt's as opaque launches; what it measures of them tells the policy how many SMs each is worth.
//!
//! ```sh
//! cargo run --release --example 03_foreign_engine
//! ```
//!
//! Needs libcublasLt of CUDA 13 on a GPU (`LD_LIBRARY_PATH`; PyTorch brings one). Without a GPU it runs on the simulator, which cannot call
//! cuBLASLt: products are then announced to the runtime, and neither run nor take time.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use smidgen_profiler::{Options, Origin, Sweep, knee, roofline, today};
use smidgen_runtime::Runtime;
use smidgen_runtime::device::cuda::CudaDevice;
use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::device::{Device, Priority, Sms, Stream};
use smidgen_runtime::launch::{CapturedGraph, Kernel, Session};
use smidgen_runtime::partition::{Ladder, TpcSet};
use smidgen_runtime::policy;
use smidgen_runtime::profile::{KernelProfile, Machine, Profile, ProfileStore};
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};

#[path = "../../benches/reach/cublaslt.rs"]
#[allow(missing_docs)]
mod cublaslt;
mod engine;

use engine::{DOWN, Engine, UP};

/// SM counts to measure on, besides the whole GPU.
const RUNGS: [Sms; 6] = [Sms(8), Sms(16), Sms(32), Sms(64), Sms(96), Sms(120)];

fn main() -> Result<()> {
    let device = open()?;
    let mut engine = Engine::new(&device)?;
    let simulated = if device.is_simulated() { " (SIMULATED)" } else { "" };
    if device.is_simulated() {
        println!("SIMULATED: cuBLASLt is not called, so its products take no time and have no profile; only bias_relu is placed by one");
    }

    // Offline, and kept in a file by an engine that starts more than once: how fast each kernel is on how many SMs.
    let profile = measure(&device, &mut engine)?;
    let mut profiles = ProfileStore::default();
    profiles.add(Path::new("the profile just measured"), profile, &Machine::of(&*device, ""))?;

    // Online: every kernel gets the fewest SMs on which it keeps its speed, inside the part of the GPU that is this tenant's.
    let runtime = Runtime::new(Arc::clone(&device), policy::by_name("krisp-i")?, Arc::new(profiles));
    let tenant = admit(&runtime, "ours")?;
    let mut session = runtime.session(tenant)?;
    engine.forward(&mut session)?;
    runtime.learn(tenant, session.seen())?;

    for neighbour in [None, Some("neighbour")] {
        neighbour.map(|name| admit(&runtime, name)).transpose()?;
        let graph = capture(&mut engine, &mut session)?;
        let us = replay(&device, &mut session, &graph)?;
        let plan = runtime.plan();
        let mine = plan.tenant(tenant)?;
        let sms = [UP.kernel().key, engine.bias_relu().key(), DOWN.kernel().key].map(|key| mine.placement(key.fingerprint()).sms);
        let whom = neighbour.map_or("alone", |_| "beside a neighbour");
        println!("{whom}: {us:.1} us a block; SMs of its launches: up {}, bias_relu {}, down {}{simulated}", sms[0], sms[1], sms[2]);
    }

    if let Some(error) = engine.error()? {
        ensure!(error < 0.01, "the result differs from the CPU's by {:.2}% of its largest element", 100.0 * error);
        println!("the result is the CPU's within {:.3}% of its largest element", 100.0 * error);
    }
    Ok(())
}

/// The GPU with the engine's kernel on it, or the simulator.
fn open() -> Result<Arc<dyn Device>> {
    match CudaDevice::open(0) {
        Ok(gpu) => {
            gpu.load(include_bytes!("bias_relu.ptx"))?;
            Ok(gpu)
        }
        Err(reason) => {
            eprintln!("{reason}");
            Ok(SimDevice::new(SimConfig::h200()))
        }
    }
}

fn admit(runtime: &Runtime, name: &str) -> Result<TenantId> {
    // The engine has its memory already, from an allocator that the runtime does not see.
    let spec = TenantSpec { name: name.to_owned(), class: Class::Throughput, slo: None, memory_bytes: 0 };
    Ok(runtime.admit(spec)?)
}

/// A profile of the engine's three kernels: the profiler sweeps what implements `Kernel`; a library's launches the engine times itself.
fn measure(device: &Arc<dyn Device>, engine: &mut Engine) -> Result<Profile> {
    let options = Options { rungs: RUNGS.to_vec(), samples: 11, ..Options::default() };
    let origin = Origin {
        model: "feed-forward-block".to_owned(),
        kernel_build: String::new(),
        command: "cargo run --release --example 03_foreign_engine".to_owned(),
        commit: String::new(),
        date: today(),
    };
    let ladder = Ladder::new(Arc::clone(device), RUNGS.len());
    let own: [Box<dyn Kernel + Send>; 1] = [Box::new(engine.bias_relu())];
    let sweep = Sweep { device, ladder: &ladder, recording: &own, origin: &origin, options: &options, meter: None };
    let mut profile = sweep.run(None, &mut (), &mut |_| Ok(()))?;

    for product in [UP, DOWN] {
        let mut points = Vec::new();
        for sms in RUNGS.into_iter().filter(|sms| *sms < device.topology().sms).chain([device.topology().sms]) {
            let partition = ladder.partition(TpcSet::range(0, device.topology().tpcs_for(sms)))?;
            let stream = Stream::new(device, partition.id(), Priority::Normal)?;
            let samples = engine.measure(product, stream.id(), sms, options.samples)?;
            points.extend(samples.and_then(|samples| knee::summarize(sms, samples)));
        }
        // None where there is nothing to measure on.
        let Some((minimum_sms, whole)) = knee::minimum_sms(&points, options.tolerance).zip(points.last()) else { continue };
        let opaque = product.kernel();
        let bound = roofline::bound(opaque.work, whole.median_us, &profile.peaks);
        let measured = KernelProfile { work: opaque.work, launches: 1, blocks_per_sm: 1, bound, minimum_sms, points };
        profile.kernels.insert(opaque.key.to_string(), measured);
    }
    Ok(profile)
}

/// The forward pass as a graph. Eagerly once before: the plan may have led to partitions that the engine has no cuBLASLt handle for yet, and
/// nothing may be allocated or loaded during a capture.
fn capture(engine: &mut Engine, session: &mut Session) -> Result<CapturedGraph> {
    engine.forward(session)?;
    session.capture(|session| engine.forward(session))
}

/// Microseconds of one replay, the mean of 100.
fn replay(device: &Arc<dyn Device>, session: &mut Session, graph: &CapturedGraph) -> Result<f64> {
    const REPLAYS: u32 = 100;
    session.replay(graph)?;
    device.synchronize(session.stream())?;
    let start = device.now();
    (0..REPLAYS).try_for_each(|_| session.replay(graph))?;
    device.synchronize(session.stream())?;
    Ok((device.now() - start).as_secs_f64() * 1e6 / f64::from(REPLAYS))
}
