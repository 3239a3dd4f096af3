//! What CUDA cannot isolate: one tenant's illegal address ends every tenant of the process, each by a typed error and none by a wait.
//!
//! The context is lost afterwards, so the test runs itself again as a child, and loses that one's.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use smidgen_runtime::device::{Buffer, DeviceError, DevicePtr, Event, Sms, Topology};
use smidgen_runtime::launch::{CapturedGraph, Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Session, Work};
use smidgen_runtime::policy::StaticEqual;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime, Tenancy};

use crate::gpu::{Args, Gpu, is_sanitized};

/// Tells the test that it is the child.
const CHILD: &str = "SMIDGEN_TEST_LOSES_ITS_CONTEXT";
const THIS_TEST: &str = "lost_context::an_illegal_address_is_a_typed_error_for_every_tenant_and_a_wait_for_none";
/// What the child says last.
const ALL_IS_WELL: &str = "the context was lost, and nobody waited";

/// The child starts CUDA, compiles the PTX, makes partitions and tears a dead context down.
const MOST_FOR_THE_CHILD: Duration = Duration::from_secs(120);
/// From the launch of the kernel to the error that a tenant gets for it.
const MOST_UNTIL_TOLD: Duration = Duration::from_secs(10);

/// An address in the first page, where CUDA maps nothing.
const WILD: DevicePtr = DevicePtr(0x40);
/// Half a second or more on any GPU, since none clocks above 4 GHz: that is in flight when the kernel beside it goes wrong.
const LONG: u64 = 2_000_000_000;

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn an_illegal_address_is_a_typed_error_for_every_tenant_and_a_wait_for_none() {
    if std::env::var_os(CHILD).is_some() {
        return lose_the_context();
    }
    if is_sanitized() {
        println!("skipped: compute-sanitizer reports the very error that this is about");
        return;
    }
    let said = tempfile::tempfile().expect("a file for what the child says");
    let mut child = Command::new(std::env::current_exe().expect("the path of this test"))
        .args(["--exact", THIS_TEST, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdout(channel(&said).expect("a channel"))
        .stderr(channel(&said).expect("a channel"))
        .spawn()
        .expect("this test runs again as a child");
    let deadline = Instant::now() + MOST_FOR_THE_CHILD;
    let status = loop {
        match child.try_wait().expect("the child can be asked") {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.is_none() {
        child.kill().expect("the child can be ended");
        child.wait().expect("the child ends");
    }
    let said = all_of(said).expect("what the child said");
    println!("{said}");
    assert!(status.is_some_and(|status| status.success()), "{status:?} within {MOST_FOR_THE_CHILD:?}: {said}");
    assert!(said.contains(ALL_IS_WELL), "{said}");
}

fn channel(said: &File) -> io::Result<Stdio> {
    said.try_clone().map(Stdio::from)
}

fn all_of(mut said: File) -> io::Result<String> {
    let mut text = String::new();
    said.rewind()?;
    said.read_to_string(&mut text)?;
    Ok(text)
}

/// A kernel of the fixture's PTX, of one block.
#[derive(Debug, Clone, Copy)]
struct Job {
    symbol: &'static str,
    out: DevicePtr,
    number: u64,
}

impl Job {
    fn short(out: DevicePtr) -> Self {
        Self { symbol: "echo", out, number: 0 }
    }

    fn long(out: DevicePtr) -> Self {
        Self { symbol: "record_sms", out, number: LONG }
    }
}

// SAFETY: both kernels take [`Args`] and write 12 bytes or fewer at `out`: a buffer that lives while they run, or an address that is there to be refused.
unsafe impl Kernel for Job {
    fn key(&self) -> KernelKey {
        KernelKey::new(KernelName::new(self.symbol), [])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn configure(&self, _: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch {
            symbol: self.symbol,
            grid: 1,
            block: 32,
            shared_bytes: 0,
            blocks_per_sm: 1,
            tiles: 1,
            blocks_per_tile: 1,
            elastic: false,
            programmatic: false,
            begins_by_number: false,
            params: Params::new(Args { out: self.out, number: self.number, unused: [0; 6] }),
        })
    }
}

struct Served {
    name: &'static str,
    session: Session,
    out: Buffer,
    done: Event,
}

impl Served {
    /// A tenant that has launched both kernels, so that nothing is left to load.
    fn new(runtime: &Runtime, name: &'static str) -> Self {
        let tenant = runtime.admit(spec(name)).expect("room for a tenant");
        let session = runtime.session(tenant).expect("a session");
        let out = Buffer::new(session.device(), 256).expect("device memory");
        let done = Event::new(session.device()).expect("an event");
        let mut served = Self { name, session, out, done };
        let brief = Job { number: 1, ..Job::long(served.out.ptr()) };
        [Job::short(served.out.ptr()), brief].iter().try_for_each(|job| served.session.launch(job)).expect("launches");
        served.synchronize().expect("the launches end");
        served
    }

    fn launch(&mut self, job: Job) -> Result<(), DeviceError> {
        self.session.launch(&job).map_err(device_error)
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.session.device().synchronize(self.session.stream())
    }

    /// Launches something long, and polls for its end as an engine does that does not block.
    fn poll(&mut self, in_flight: &Barrier) -> Result<(), DeviceError> {
        self.launch(Job::long(self.out.ptr()))?;
        self.session.mark(&self.done).map_err(device_error)?;
        in_flight.wait();
        while !self.session.device().query(self.done.id())? {
            self.session.device().pass_time(Duration::MAX);
        }
        Ok(())
    }

    fn wait(&mut self, in_flight: &Barrier) -> Result<(), DeviceError> {
        self.launch(Job::long(self.out.ptr()))?;
        in_flight.wait();
        self.synchronize()
    }

    fn crash(&mut self, in_flight: &Barrier) -> Result<(), DeviceError> {
        in_flight.wait();
        self.launch(Job::short(WILD))?;
        self.synchronize()
    }
}

fn spec(name: &str) -> TenantSpec {
    TenantSpec { name: name.into(), class: Class::Throughput, slo: None, memory_bytes: 1 << 20 }
}

fn device_error(error: LaunchError) -> DeviceError {
    match error {
        LaunchError::Device(error) => error,
        other => panic!("not the device's: {other}"),
    }
}

/// The child's part: three tenants with work in flight, one of which goes wrong.
fn lose_the_context() {
    let gpu = Gpu::open();
    let runtime = Runtime::new(Arc::clone(&gpu.device), Box::new(StaticEqual), Arc::new(ProfileStore::default()));
    let [mut crashing, mut waiting, mut polling] = ["crashing", "waiting", "polling"].map(|name| Served::new(&runtime, name));
    let short = Job::short(waiting.out.ptr());
    let graph: CapturedGraph = waiting.session.capture(|session| session.launch(&short)).expect("a graph");
    assert!(runtime.loss().is_none());

    let (in_flight, begun) = (Barrier::new(3), Instant::now());
    let told: Vec<(&str, DeviceError)> = thread::scope(|scope| {
        let threads = [
            scope.spawn(|| (crashing.name, crashing.crash(&in_flight), begun.elapsed())),
            scope.spawn(|| (waiting.name, waiting.wait(&in_flight), begun.elapsed())),
            scope.spawn(|| (polling.name, polling.poll(&in_flight), begun.elapsed())),
        ];
        let told = threads.map(|thread| {
            let (name, outcome, took) = thread.join().expect("no tenant panics");
            let error = outcome.expect_err("nobody's work ends well in a context that is lost");
            println!("{name} after {took:?}: {error}");
            assert!(took < MOST_UNTIL_TOLD, "{name} waited {took:?}");
            (name, error)
        });
        told.into()
    });

    // CUDA tells whoever asks first, who need not be whose kernel it was; all others are told by the runtime.
    let met: Vec<_> = told.iter().filter(|(_, error)| matches!(error, DeviceError::Driver { sticky: true, .. })).collect();
    let [(first, by_the_driver)] = met[..] else { panic!("one tenant meets it: {told:?}") };
    assert!(by_the_driver.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{by_the_driver}");
    for (_, error) in told.iter().filter(|(name, _)| name != first) {
        assert_lost(error, first);
    }

    let (begun, device) = (Instant::now(), Arc::clone(waiting.session.device()));
    let out = waiting.out.ptr();
    let refused = [
        waiting.launch(Job::short(out)).err(),
        waiting.session.replay(&graph).err().map(device_error),
        waiting.session.capture(|session| session.launch(&short)).err().map(device_error),
        waiting.synchronize().err(),
        polling.launch(Job::short(out)).err(),
        device.query(polling.done.id()).err(),
        device.allocate(1).err(),
        crashing.launch(Job::short(out)).err(),
        runtime.device().free_bytes().err(),
    ];
    for (at, error) in refused.into_iter().enumerate() {
        assert_lost(&error.unwrap_or_else(|| panic!("{at} is not refused")), first);
    }
    let late = runtime.admit(spec("late")).expect_err("nobody is admitted to a context that is lost");
    let AdmitError::Device(late) = late else { panic!("{late}") };
    assert_lost(&late, first);
    assert_lost(runtime.loss().expect("the loss is known"), first);

    // Nothing that is given up waits for what will never come.
    drop(Tenancy::new(&runtime, crashing.session.tenant()));
    drop(graph);
    drop((crashing, waiting, polling));
    drop(runtime);
    drop(gpu);
    let took = begun.elapsed();
    assert!(took < MOST_UNTIL_TOLD, "refusing and giving up took {took:?}");
    println!("{ALL_IS_WELL}");
}

fn assert_lost(error: &DeviceError, met_by: &str) {
    let DeviceError::Lost { first, cause } = error else { panic!("not told what it is: {error}") };
    assert_eq!(**first, format!("tenant `{met_by}`"));
    assert!(cause.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && error.is_sticky(), "{error}");
}
