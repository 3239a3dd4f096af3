//! Copies to the device as tenants see them: whole, in order with their launches, and not behind a neighbour's. On the simulator, whose link carries 55 GB/s
//! and serves copies in the order in which they reach it; where the driver does not answer, on a device that does nothing.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use smidgen_runtime::device::sim::Fault;
use smidgen_runtime::device::{Buffer, Device, DeviceError, PartitionId, PinnedBuffer, Priority, Stream};
use smidgen_runtime::launch::{LaunchError, Session};
use smidgen_runtime::policy::DefaultSharing;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::transfer::{After, Source, TransferConfig, Uploader};
use smidgen_runtime::{AdmitError, Runtime};

mod support;

use support::idle::Idle;
use support::{Fake, Gpu};

const KERNEL: Fake = Fake::new("kernel");
const MIB: usize = 1 << 20;
const CLASSES: [Class; 2] = [Class::Throughput, Class::Latency];

fn runtime(gpu: &Gpu) -> Runtime {
    Runtime::new(Arc::clone(&gpu.device), Box::new(DefaultSharing), Arc::new(ProfileStore::default()))
}

struct Tenant {
    id: TenantId,
    session: Session,
    uploader: Uploader,
    target: Buffer,
}

impl Tenant {
    fn new(runtime: &Runtime, class: Class, bytes: usize) -> Self {
        let id = runtime.admit(TenantSpec { name: "a".into(), class, slo: None, memory_bytes: 1 << 30 }).unwrap();
        let (session, uploader) = (runtime.session(id).unwrap(), runtime.uploader(id).unwrap());
        let target = Buffer::new(session.device(), bytes as u64).unwrap();
        Self { id, session, uploader, target }
    }

    fn upload(&mut self, bytes: &[u8], after: After) -> Result<(), LaunchError> {
        self.uploader.upload(&mut self.session, self.target.ptr(), bytes, after)
    }

    /// Time until everything enqueued is done.
    fn time(&mut self, gpu: &Gpu, enqueue: impl FnOnce(&mut Self)) -> Duration {
        let start = gpu.device.now();
        enqueue(self);
        gpu.device.synchronize(self.session.stream()).unwrap();
        gpu.device.now() - start
    }
}

fn wire(bytes: usize) -> Duration {
    Duration::from_nanos((bytes as f64 / 55.0) as u64)
}

fn numbered(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 % 251) as u8).collect()
}

#[test]
fn every_byte_arrives_whatever_the_chunks_and_wherever_the_source_is() {
    // The simulator keeps writes of 4 KiB at most.
    for (chunk_bytes, in_flight) in [(1, 1), (1000, 1), (1000, 3), (4096, 2), (0, 0)] {
        let gpu = Gpu::h200();
        let runtime = runtime(&gpu).with_transfers(TransferConfig { chunk_bytes, in_flight });
        let sizes = [0, 1, 999, 1000, 1001, 3000];
        for (class, bytes) in CLASSES.into_iter().flat_map(|class| sizes.map(|bytes| (class, bytes))) {
            let mut tenant = Tenant::new(&runtime, class, 4096);
            let source = numbered(bytes);
            tenant.upload(&source, After::Launches).unwrap();
            let mut read = vec![0; bytes];
            gpu.device.download(tenant.session.stream(), tenant.target.ptr(), &mut read).unwrap();
            assert_eq!(read, source, "{bytes} bytes in chunks of {chunk_bytes}");

            let mut pinned = Arc::new(PinnedBuffer::new(&gpu.device, bytes).unwrap());
            let reversed: Vec<u8> = source.iter().rev().copied().collect();
            Arc::get_mut(&mut pinned).unwrap().as_mut_slice().copy_from_slice(&reversed);
            tenant.uploader.upload(&mut tenant.session, tenant.target.ptr(), &pinned, After::Nothing).unwrap();
            gpu.device.download(tenant.session.stream(), tenant.target.ptr(), &mut read).unwrap();
            assert_eq!(read, reversed, "{bytes} page-locked bytes in chunks of {chunk_bytes}");
        }
    }
}

#[test]
fn what_is_launched_after_an_upload_waits_for_it_and_the_upload_for_what_was_launched_before() {
    CLASSES.into_iter().for_each(launches_and_uploads_keep_their_order);
}

fn launches_and_uploads_keep_their_order(class: Class) {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu);
    let bytes = 64 * MIB;
    let mut tenant = Tenant::new(&runtime, class, bytes);
    let source = vec![1; bytes];
    let kernel = tenant.time(&gpu, |tenant| (0..40).for_each(|_| tenant.session.launch(&KERNEL).unwrap()));
    let copy = tenant.time(&gpu, |tenant| tenant.upload(&source, After::Launches).unwrap());
    assert!(copy >= wire(bytes) && copy < wire(bytes) * 12 / 10, "{copy:?} for {:?} on the link", wire(bytes));
    let both = |after| {
        move |tenant: &mut Tenant| {
            (0..40).for_each(|_| tenant.session.launch(&KERNEL).unwrap());
            tenant.upload(&vec![1; 64 * MIB], after).unwrap();
        }
    };
    let ordered = tenant.time(&gpu, both(After::Launches));
    assert!(ordered >= kernel + wire(bytes), "{ordered:?} for {kernel:?} and {copy:?} one after the other");
    let ahead = tenant.time(&gpu, both(After::Nothing));
    assert!(ahead < kernel.max(copy) * 12 / 10, "{ahead:?} for {kernel:?} and {copy:?} at once");

    gpu.sim.take_trace();
    let start = gpu.device.now();
    tenant.upload(&source, After::Nothing).unwrap();
    tenant.session.launch(&KERNEL).unwrap();
    let trace = gpu.trace(&tenant.session);
    assert!(trace[0].started - start >= wire(bytes), "the kernel began {:?} after a copy of {:?}", trace[0].started - start, wire(bytes));
}

#[test]
fn a_latency_tenant_s_upload_returns_before_what_it_comes_after_is_done() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu);
    let mut tenant = Tenant::new(&runtime, Class::Latency, 4096);
    let kernels = tenant.time(&gpu, |tenant| (0..40).for_each(|_| tenant.session.launch(&KERNEL).unwrap()));
    let start = gpu.device.now();
    (0..40).for_each(|_| tenant.session.launch(&KERNEL).unwrap());
    tenant.upload(&[1; 8], After::Launches).unwrap();
    assert!(gpu.device.now() - start < kernels / 2, "the host waited {:?} for kernels of {kernels:?}", gpu.device.now() - start);
    // One copy that follows the launches and one that need not, to the same target, in any order: the later one stays.
    for (round, after) in (2..).zip([After::Nothing, After::Launches, After::Nothing, After::Nothing, After::Launches]) {
        tenant.session.launch(&KERNEL).unwrap();
        tenant.upload(&[round - 1; 8], After::Launches).unwrap();
        tenant.upload(&[round; 8], after).unwrap();
        let mut read = [0; 8];
        gpu.device.download(tenant.session.stream(), tenant.target.ptr(), &mut read).unwrap();
        assert_eq!(read, [round; 8]);
    }
}

#[test]
fn page_locked_sources_can_be_written_again_once_their_copy_has_arrived() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu);
    for class in CLASSES {
        let mut tenant = Tenant::new(&runtime, class, 4096);
        let mut source = Arc::new(PinnedBuffer::new(&gpu.device, 4096).unwrap());
        tenant.session.launch(&KERNEL).unwrap();
        tenant.uploader.upload(&mut tenant.session, tenant.target.ptr(), &source, After::Launches).unwrap();
        tenant.uploader.collect();
        assert!(Arc::get_mut(&mut source).is_none(), "the copy reads it");
        gpu.device.synchronize(tenant.session.stream()).unwrap();
        tenant.uploader.collect();
        assert!(Arc::get_mut(&mut source).is_some());
    }
}

/// A bulk copy that one neighbour after another begins, and one of 64 KiB by a latency tenant, again and again; how long the latter took at most.
fn small_beside_bulk(gpu: &Gpu, runtime: &Runtime, neighbours: usize, raw: bool) -> Duration {
    const SMALL: usize = 64 << 10;
    const BULK: usize = 16 * MIB;
    let mut latency = Tenant::new(runtime, Class::Latency, SMALL);
    let mut bulk: Vec<Tenant> = (0..neighbours).map(|_| Tenant::new(runtime, Class::Throughput, BULK)).collect();
    let (small, large) = (vec![1; SMALL], vec![2; BULK]);
    let streams: Vec<Stream> = bulk.iter().map(|_| Stream::new(&gpu.device, PartitionId::WHOLE, Priority::Normal).unwrap()).collect();
    let mut worst = Duration::ZERO;
    for round in 0..20 {
        let pause = Duration::from_micros(13 * round);
        if raw {
            for (tenant, stream) in bulk.iter().zip(&streams) {
                gpu.device.upload(stream.id(), tenant.target.ptr(), &large).unwrap();
            }
            gpu.device.pass_time(gpu.device.now() + pause);
            worst = worst.max(latency.time(gpu, |tenant| tenant.upload(&small, After::Launches).unwrap()));
            streams.iter().for_each(|stream| gpu.device.synchronize(stream.id()).unwrap());
            continue;
        }
        // One thread steps all, as threads of their own would.
        let mut uploads: Vec<_> = bulk
            .iter_mut()
            .map(|Tenant { session, uploader, target, .. }| {
                uploader.begin(session, target.ptr(), large.as_slice(), After::Launches).unwrap()
            })
            .collect();
        let until = gpu.device.now() + pause;
        while gpu.device.now() < until {
            uploads.iter_mut().for_each(|upload| _ = upload.poll().unwrap());
            gpu.device.pass_time(until);
        }
        let start = gpu.device.now();
        {
            let Tenant { session, uploader, target, .. } = &mut latency;
            let mut upload = uploader.begin(session, target.ptr(), small.as_slice(), After::Launches).unwrap();
            while !upload.poll().unwrap() {
                uploads.iter_mut().for_each(|upload| _ = upload.poll().unwrap());
                gpu.device.pass_time(Duration::MAX);
            }
        }
        gpu.device.synchronize(latency.session.stream()).unwrap();
        worst = worst.max(gpu.device.now() - start);
        while uploads.iter_mut().map(|upload| upload.poll().unwrap()).filter(|sent| !sent).count() > 0 {
            gpu.device.pass_time(Duration::MAX);
        }
    }
    worst
}

#[test]
fn even_on_a_link_that_keeps_the_order_a_latency_tenant_s_inputs_wait_for_two_chunks_of_others_at_most() {
    let gpu = Gpu::h200();
    let alone = small_beside_bulk(&gpu, &runtime(&gpu), 0, false);
    let raw = small_beside_bulk(&gpu, &runtime(&gpu), 4, true);
    let through = small_beside_bulk(&gpu, &runtime(&gpu), 4, false);
    assert!(raw > wire(48 * MIB), "{raw:?} behind copies outside of the runtime");
    let most = alone + wire(8 * MIB) + Duration::from_micros(20);
    assert!(through < most, "{through:?} beside copies through the runtime, {most:?} at most, {alone:?} alone");
}

#[test]
fn throughput_tenants_keep_the_rate_that_they_are_shaped_to_and_latency_tenants_are_not_shaped() {
    const BYTES: usize = 64 * MIB;
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu);
    let mut throughput = Tenant::new(&runtime, Class::Throughput, BYTES);
    let mut latency = Tenant::new(&runtime, Class::Latency, BYTES);
    let source = vec![1; BYTES];
    let time = |tenant: &mut Tenant| tenant.time(&gpu, |tenant| tenant.upload(&source, After::Launches).unwrap()).as_secs_f64();
    let least = |rate: f64| (BYTES - 8 * MIB) as f64 / rate;
    let rate = |rate: f64| NonZeroU64::new(rate as u64);
    runtime.transfers().set_throughput_rate(rate(10e9));
    let took = time(&mut throughput);
    assert!(took >= least(10e9) && took < least(10e9) * 1.1, "{took} s");
    assert!(time(&mut latency) < least(40e9));
    // A rate of its own holds for a latency tenant too.
    runtime.limit_transfers(latency.id, rate(10e9)).unwrap();
    assert!(time(&mut latency) >= least(10e9));
    runtime.limit_transfers(latency.id, None).unwrap();
    assert!(time(&mut latency) < least(40e9));
    // The lower of two rates holds.
    runtime.limit_transfers(throughput.id, rate(5e9)).unwrap();
    assert!(time(&mut throughput) >= least(5e9));
    runtime.limit_transfers(throughput.id, None).unwrap();
    runtime.set_objective(throughput.id, Class::Latency, None).unwrap();
    assert!(time(&mut throughput) < least(40e9), "its class is another now");
    runtime.set_objective(throughput.id, Class::Throughput, None).unwrap();
    runtime.transfers().set_throughput_rate(None);
    assert!(time(&mut throughput) < least(40e9));
}

#[test]
fn nothing_is_copied_for_a_tenant_that_is_paused_gone_or_capturing() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu);
    let mut tenant = Tenant::new(&runtime, Class::Throughput, 4096);
    tenant.session.launch(&KERNEL).unwrap();
    let Tenant { session, uploader, target, .. } = &mut tenant;
    let copied = session.capture(|session| uploader.upload(session, target.ptr(), [1; 8].as_slice(), After::Launches));
    assert!(matches!(copied.err(), Some(LaunchError::InCapture)));
    let mut other = Tenant::new(&runtime, Class::Latency, 4096);
    let jumped = other.uploader.upload(&mut tenant.session, tenant.target.ptr(), [1; 8].as_slice(), After::Nothing);
    assert!(matches!(jumped, Err(LaunchError::WrongTenant)), "an uploader copies in its own tenant's turn");
    runtime.pause(tenant.id).unwrap();
    assert!(matches!(tenant.upload(&[1; 8], After::Nothing), Err(LaunchError::Paused)));
    runtime.resume(tenant.id).unwrap();
    tenant.upload(&[1; 8], After::Nothing).unwrap();
    runtime.dismiss(tenant.id).unwrap();
    assert!(matches!(tenant.upload(&[2; 8], After::Launches), Err(LaunchError::Dismissed)));
    assert!(matches!(runtime.uploader(tenant.id), Err(AdmitError::Unknown(_))));
    assert!(matches!(runtime.limit_transfers(tenant.id, None), Err(AdmitError::Unknown(_))));
    let mut read = [0; 8];
    gpu.device.download(tenant.session.stream(), tenant.target.ptr(), &mut read).unwrap();
    assert_eq!(read, [1; 8]);
}

#[test]
fn an_upload_that_is_given_up_is_in_nobody_s_way_and_nothing_leaks() {
    let gpu = Gpu::h200();
    let start = gpu.sim.counts();
    let runtime = runtime(&gpu);
    let source = vec![1; 8 * MIB];
    {
        let [mut first, mut second] = [(); 2].map(|()| Tenant::new(&runtime, Class::Throughput, source.len()));
        let Tenant { session, uploader, target, .. } = &mut first;
        let mut upload = uploader.begin(session, target.ptr(), source.as_slice(), After::Launches).unwrap();
        upload.poll().unwrap();
        drop(upload);
        let took = second.time(&gpu, |tenant| tenant.upload(&source, After::Launches).unwrap());
        assert!(took < wire(source.len()) * 12 / 10, "{took:?}");
        first.upload(&source, After::Launches).unwrap();
        for tenant in [first.id, second.id] {
            runtime.dismiss(tenant).unwrap();
        }
    }
    drop(runtime);
    assert_eq!(gpu.sim.counts(), start);
}

#[test]
fn uploaders_that_come_and_go_leave_nothing_behind_while_others_stay() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu);
    let mut tenant = Tenant::new(&runtime, Class::Latency, MIB);
    let mut serve = || {
        tenant.upload(&vec![1; MIB], After::Nothing).unwrap();
        // The copy is still on its way when its uploader goes.
        tenant.uploader = runtime.uploader(tenant.id).unwrap();
        gpu.device.synchronize(tenant.session.stream()).unwrap();
        gpu.sim.counts()
    };
    let first = serve();
    assert_eq!((0..10).map(|_| serve()).last(), Some(first));
}

#[test]
fn an_upload_to_a_lost_device_is_an_error_and_no_wait() {
    const BAD: Fake = Fake::new("bad");
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu);
    let [mut first, mut second] = [(); 2].map(|()| Tenant::new(&runtime, Class::Throughput, 8 * MIB));
    gpu.sim.inject(BAD.name, Fault::Crash);
    first.session.launch(&BAD).unwrap();
    let error = first.upload(&vec![1; 8 * MIB], After::Launches).unwrap_err();
    assert!(matches!(&error, LaunchError::Device(error) if error.is_sticky()), "{error}");
    let error = second.upload(&vec![1; 8 * MIB], After::Launches).unwrap_err();
    assert!(matches!(error, LaunchError::Device(DeviceError::Lost { .. })), "{error}");
}

#[test]
fn tenants_upload_from_threads_of_their_own_and_every_byte_is_the_right_tenant_s() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu).with_transfers(TransferConfig { chunk_bytes: 512, in_flight: 2 });
    thread::scope(|scope| {
        for number in 0..4_u8 {
            let (runtime, device) = (&runtime, &gpu.device);
            scope.spawn(move || {
                let class = if number == 0 { Class::Latency } else { Class::Throughput };
                let mut tenant = Tenant::new(runtime, class, 4096);
                for round in 0..20_u8 {
                    let source = vec![number * 32 + round; 4000];
                    tenant.upload(&source, After::Launches).unwrap();
                    tenant.session.launch(&KERNEL).unwrap();
                    let mut read = vec![0; 4000];
                    device.download(tenant.session.stream(), tenant.target.ptr(), &mut read).unwrap();
                    assert_eq!(read, source);
                }
            });
        }
    });
}

/// An idle device, and a runtime on it that lets one chunk of 4 KiB on the link at a time.
fn idle_runtime() -> (Arc<Idle>, Runtime) {
    let idle = Idle::new();
    let device = Arc::clone(&idle) as Arc<dyn Device>;
    let runtime = Runtime::new(device, Box::new(DefaultSharing), Arc::new(ProfileStore::default()));
    (idle, runtime.with_transfers(TransferConfig { chunk_bytes: 4096, in_flight: 1 }))
}

impl Tenant {
    /// Whether an upload is through after many polls.
    fn poll_upload<'a>(&'a mut self, source: impl Into<Source<'a>>, after: After) -> Result<bool, LaunchError> {
        let mut upload = self.uploader.begin(&mut self.session, self.target.ptr(), source, after)?;
        (0..100).map(|_| upload.poll()).find(|polled| !matches!(polled, Ok(false))).unwrap_or(Ok(false))
    }
}

fn no_answer() -> Option<DeviceError> {
    Some(DeviceError::Driver { call: "idleQuery", status: "told to fail".to_owned(), sticky: false })
}

fn no_answer_in_a_capture() -> Option<DeviceError> {
    Some(DeviceError::DuringCapture { call: "idleQuery", status: "told to fail".to_owned() })
}

fn is_no_answer<T>(result: &Result<T, LaunchError>) -> bool {
    matches!(result, Err(LaunchError::Device(DeviceError::Driver { call: "idleQuery", .. })))
}

#[test]
fn an_upload_after_launches_that_cannot_be_asked_about_ends_with_the_error_and_copies_nothing() {
    let (idle, runtime) = idle_runtime();
    let mut tenant = Tenant::new(&runtime, Class::Throughput, 4096);
    tenant.session.launch(&KERNEL).unwrap();
    let copies = idle.copies();
    idle.refuse_queries(no_answer());
    let polled = tenant.poll_upload([1; 8].as_slice(), After::Launches);
    assert!(is_no_answer(&polled), "{polled:?}");
    let waited = tenant.upload(&[1; 8], After::Launches);
    assert!(is_no_answer(&waited), "{waited:?}");
    idle.refuse_queries(None);
    tenant.uploader.collect();
    assert_eq!(idle.copies(), copies, "copied ahead of what it comes after, or after its upload was over");
    tenant.upload(&[1; 8], After::Launches).unwrap();
    assert_eq!(idle.copies(), copies + 1);
}

#[test]
fn an_upload_whose_staging_memory_cannot_be_asked_about_ends_with_the_error() {
    for (class, other) in CLASSES.into_iter().zip(CLASSES.into_iter().rev()) {
        let (idle, runtime) = idle_runtime();
        let mut tenant = Tenant::new(&runtime, class, 5 * 4096);
        let source = vec![1; 5 * 4096];
        idle.refuse_queries(no_answer());
        // The second and the third one wait for what the first one has sent.
        for class in [class, class, other] {
            runtime.set_objective(tenant.id, class, None).unwrap();
            let polled = tenant.poll_upload(source.as_slice(), After::Nothing);
            assert!(is_no_answer(&polled), "{class:?}: {polled:?}");
        }
        idle.refuse_queries(None);
        tenant.upload(&source, After::Nothing).unwrap();
    }
}

#[test]
fn a_source_stays_as_it_is_until_its_copy_is_known_to_have_arrived() {
    for class in CLASSES {
        let (idle, runtime) = idle_runtime();
        let mut tenant = Tenant::new(&runtime, class, 4096);
        let device = Arc::clone(&idle) as Arc<dyn Device>;
        let mut source = Arc::new(PinnedBuffer::new(&device, 4096).unwrap());
        idle.refuse_queries(no_answer());
        assert!(tenant.poll_upload(&source, After::Nothing).unwrap(), "{class:?}: all of it is sent");
        for answer in [no_answer(), no_answer_in_a_capture()] {
            idle.refuse_queries(answer);
            tenant.uploader.collect();
            assert!(Arc::get_mut(&mut source).is_none(), "{class:?}: the copy may read it");
        }
        idle.refuse_queries(None);
        tenant.uploader.collect();
        assert!(Arc::get_mut(&mut source).is_some(), "{class:?}");
    }
}

#[test]
fn a_copy_that_cannot_be_asked_about_holds_up_no_other_tenant() {
    let (idle, runtime) = idle_runtime();
    let [mut first, mut second] = [(); 2].map(|()| Tenant::new(&runtime, Class::Throughput, 4096));
    idle.refuse_queries(no_answer());
    assert!(first.poll_upload([1; 8].as_slice(), After::Nothing).unwrap());
    assert!(second.poll_upload([2; 8].as_slice(), After::Nothing).unwrap(), "the only place on the link is still the first one's");
}

#[test]
fn an_upload_waits_where_a_capture_keeps_the_driver_from_answering() {
    for class in CLASSES {
        let (idle, runtime) = idle_runtime();
        let mut tenant = Tenant::new(&runtime, class, 5 * 4096);
        tenant.session.launch(&KERNEL).unwrap();
        let source = vec![1; 5 * 4096];
        let copies = idle.copies();
        idle.refuse_queries(no_answer_in_a_capture());
        let mut upload = tenant.uploader.begin(&mut tenant.session, tenant.target.ptr(), source.as_slice(), After::Launches).unwrap();
        for _ in 0..100 {
            assert!(!upload.poll().unwrap(), "{class:?}");
        }
        idle.refuse_queries(None);
        while !upload.poll().unwrap() {}
        assert_eq!(idle.copies() - copies, 5, "{class:?}: each chunk once");
    }
}
