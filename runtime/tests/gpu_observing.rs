//! Sampled times of kernels and replays on a GPU: what stands between two events is the kernel or the graph, and nothing else.
#![cfg(feature = "cuda-13000")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use smidgen_runtime::device::cuda::CudaDevice;
use smidgen_runtime::device::{Device, Event, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Session, Work};
use smidgen_runtime::policy::DefaultSharing;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::telemetry::trace::Happening;
use smidgen_runtime::telemetry::{Recording, SAMPLE_STRIDE};
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::{Runtime, RuntimeOptions};

/// `spin` keeps one SM for as many cycles as its parameter says.
const PTX: &str = r".version 7.0
.target sm_80
.address_size 64

.visible .entry spin(.param .align 8 .b8 args[64], .param .align 8 .b8 tiles[24])
{
    .reg .pred %p;
    .reg .b64 %cycles, %start, %now, %spent;
    ld.param.u64 %cycles, [args];
    mov.u64 %start, %clock64;
stay:
    mov.u64 %now, %clock64;
    sub.u64 %spent, %now, %start;
    setp.lt.u64 %p, %spent, %cycles;
    @%p bra stay;
    ret;
}
";

/// About 100 us at the clocks of an H200.
const CYCLES: u64 = 180_000;

#[derive(Debug, Clone, Copy)]
struct Spin;

// SAFETY: the PTX's first parameter is 64 bytes, of which it reads the first 8; there are no pointers.
unsafe impl Kernel for Spin {
    fn key(&self) -> KernelKey {
        KernelKey::new(KernelName::new("spin"), [])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn configure(&self, _: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        let params = Params::new([CYCLES, 0, 0, 0, 0, 0, 0, 0]);
        Ok(Launch {
            symbol: "spin",
            grid: 1,
            block: 32,
            shared_bytes: 0,
            blocks_per_sm: 1,
            tiles: 1,
            blocks_per_tile: 1,
            elastic: false,
            programmatic: false,
            begins_by_number: false,
            params,
        })
    }
}

/// A runtime on the GPU with one tenant, whose every sample stands on the timeline.
fn sampled() -> (Arc<dyn Device>, Runtime, TenantId, Session) {
    let device: Arc<dyn Device> = CudaDevice::open(0).expect("these tests run on a machine with a GPU");
    device.bind_thread().expect("the context can be made current");
    device.load(PTX.as_bytes()).expect("the PTX loads");
    let recording = Recording { events: 1 << 16, sampling: true };
    let runtime = Runtime::with_options(
        Arc::clone(&device),
        Box::new(DefaultSharing),
        Arc::new(ProfileStore::default()),
        RuntimeOptions { recording, ..RuntimeOptions::default() },
    );
    let spec = TenantSpec { name: "spin".into(), class: Class::Throughput, slo: None, memory_bytes: 1 << 20 };
    let tenant = runtime.admit(spec).expect("room for a tenant");
    let mut session = runtime.session(tenant).expect("a session");
    session.launch(&Spin).expect("a launch");
    device.synchronize(session.stream()).expect("the launch ends");
    (device, runtime, tenant, session)
}

fn samples(runtime: &Runtime, tenant: TenantId) -> Vec<Duration> {
    runtime.correct().expect("the events can be read");
    let events = runtime.telemetry().trace().tenants.remove(&tenant).expect("the tenant is on the timeline").events;
    let took = events.into_iter().filter_map(|event| match event.what {
        Happening::Kernel { took, .. } => Some(took),
        _ => None,
    });
    took.collect()
}

#[test]
#[ignore = "needs a GPU"]
fn a_sampled_kernel_takes_as_long_as_its_neighbours_in_the_queue() {
    let (device, runtime, tenant, mut session) = sampled();
    let marks = [Event::timed(&device).expect("an event"), Event::timed(&device).expect("an event")];
    // As many at once as fit into the pool of events, three times.
    let launches = 6 * SAMPLE_STRIDE as u32;
    let mut mean = Duration::ZERO;
    for _ in 0..3 {
        device.record(marks[0].id(), session.stream()).expect("a record");
        (0..launches).for_each(|_| session.launch(&Spin).expect("a launch"));
        device.record(marks[1].id(), session.stream()).expect("a record");
        device.synchronize(session.stream()).expect("the launches end");
        mean = device.elapsed(marks[0].id(), marks[1].id()).expect("both are done") / launches;
        runtime.correct().expect("the events can be read");
    }
    let samples = samples(&runtime, tenant);
    println!("{} samples, mean of the chain {mean:?}: {samples:?}", samples.len());
    assert!(samples.len() >= 12, "{samples:?}");
    let is_sanitized = std::env::var_os("SMIDGEN_SANITIZED").is_some(); // which takes its own time between launches
    for took in samples {
        assert!(
            is_sanitized || took > mean.mul_f64(0.95) && took < mean.mul_f64(1.05) + Duration::from_micros(2),
            "{took:?} beside {mean:?}"
        );
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_launch_that_the_device_was_waiting_for_gives_no_sample() {
    let (device, runtime, tenant, mut session) = sampled();
    for _ in 0..4 * SAMPLE_STRIDE {
        session.launch(&Spin).expect("a launch");
        device.synchronize(session.stream()).expect("the launch ends");
        std::thread::sleep(Duration::from_micros(20));
    }
    // The device may be slower than the host once in a while; then the sample is a good one.
    let samples = samples(&runtime, tenant);
    println!("{samples:?}");
    let fastest = samples.iter().min().copied().unwrap_or_default();
    assert!(samples.iter().all(|&took| took < fastest.mul_f64(1.1) + Duration::from_micros(2)), "{samples:?}");
}

#[test]
#[ignore = "needs a GPU"]
fn a_replay_stands_on_the_timeline_for_as_long_as_its_kernels_take_and_no_longer_than_the_host_waits() {
    let (device, runtime, tenant, mut session) = sampled();
    let kernels = 10;
    let graph = session.capture(|session| (0..kernels).try_for_each(|_| session.launch(&Spin))).expect("a graph");
    session.replay(&graph).expect("a replay");
    device.synchronize(session.stream()).expect("the replay ends");
    runtime.correct().expect("the events can be read");
    // No GPU clocks above 4 GHz.
    let least = Duration::from_nanos(CYCLES / 4) * kernels;
    let before = replays(&runtime, tenant).len();
    let mut waited = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        session.replay(&graph).expect("a replay");
        device.synchronize(session.stream()).expect("the replay ends");
        waited.push(begun.elapsed());
    }
    // The same graph after itself: the device waits for no host.
    let begun = Instant::now();
    (0..20).for_each(|_| session.replay(&graph).expect("a replay"));
    device.synchronize(session.stream()).expect("the replays end");
    let all = begun.elapsed();
    runtime.correct().expect("the events can be read");
    let replays = replays(&runtime, tenant).split_off(before);
    println!("waited {waited:?}, {all:?} for the last 20; {replays:?}");
    assert_eq!(replays.len(), 40);
    // Events tell of half a microsecond.
    let rounding = Duration::from_micros(1);
    for (&(_, launches, took), waited) in replays.iter().zip(waited.iter().chain([&all; 20])) {
        assert_eq!(launches, u64::from(kernels));
        assert!(
            took > least && took < *waited + rounding,
            "{took:?}, of which kernels take {least:?} at least; the host waited {waited:?}"
        );
    }
    let together: Duration = replays[20..].iter().map(|(_, _, took)| *took).sum();
    assert!(together < all + 20 * rounding, "{together:?} in {all:?}");
    // Times since the session began are 32-bit floats of milliseconds.
    let unsure = Duration::from_micros(20);
    assert!(replays.windows(2).all(|pair| pair[1].0 + unsure > pair[0].0 + pair[0].2), "replays of one stream follow each other");
}

/// When the replays on the timeline began, how many kernels they have, and how long they took.
fn replays(runtime: &Runtime, tenant: TenantId) -> Vec<(Duration, u64, Duration)> {
    let events = runtime.telemetry().trace().tenants.remove(&tenant).expect("the tenant is on the timeline").events;
    let replays = events.into_iter().filter_map(|event| match event.what {
        Happening::Replayed { launches, took, .. } => Some((event.at, launches, took)),
        _ => None,
    });
    replays.collect()
}
