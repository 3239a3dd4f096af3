//! What can be done with a tenant at run time, and what its failures do to others: nothing, unless CUDA itself leaves no way.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use smidgen_runtime::device::sim::Fault;
use smidgen_runtime::device::{Buffer, DeviceError, Event, Sms, Topology};
use smidgen_runtime::launch::{CapturedGraph, GraphLimits, Kernel, LaunchError, SeenKernel, Session, WorkId};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Adjustments, DefaultSharing, Draft, Exclusive, Krisp, Policy, Slo, StaticEqual, TenantDemand, by_name};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::telemetry::RequestLog;
use smidgen_runtime::tenant::{Class, Share, TenantId, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime, Tenancy};

mod adapting;
#[path = "../support/mod.rs"]
mod support;

use support::idle::{GRAPH_BYTES, Idle};
use support::{Fake, Gpu};

const GEMM: Fake = Fake::new("gemm").elastic();
const LAST: Fake = Fake::new("last");
const BAD: Fake = Fake::new("bad");

fn spec(name: &str) -> TenantSpec {
    TenantSpec { name: name.into(), class: Class::Throughput, slo: None, memory_bytes: 1 << 30 }
}

fn runtime(gpu: &Gpu, policy: impl Policy + 'static) -> Runtime {
    Runtime::new(Arc::clone(&gpu.device), Box::new(policy), Arc::new(ProfileStore::default()))
}

fn request(session: &mut Session) -> Result<(), LaunchError> {
    [GEMM, LAST].iter().try_for_each(|kernel| session.launch(kernel))
}

/// A tenant in a closed loop of one request.
struct Served {
    id: TenantId,
    session: Session,
    done: Event,
    /// When requests ended.
    ends: Vec<Duration>,
    in_flight: bool,
}

impl Served {
    fn new(runtime: &Runtime, name: &str) -> Self {
        let id = runtime.admit(spec(name)).unwrap();
        let session = runtime.session(id).unwrap();
        let done = Event::new(session.device()).unwrap();
        Self { id, session, done, ends: Vec::new(), in_flight: false }
    }

    fn step(&mut self) -> Result<(), LaunchError> {
        if self.in_flight {
            if !self.session.device().query(self.done.id())? {
                return Ok(());
            }
            self.in_flight = false;
            self.ends.push(self.session.device().now());
        }
        request(&mut self.session)?;
        self.session.device().record(self.done.id(), self.session.stream())?;
        self.in_flight = true;
        Ok(())
    }

    /// The longest time between two ends from `from` on.
    fn longest_gap(&self, from: Duration) -> Duration {
        let ends: Vec<_> = self.ends.iter().filter(|&&end| end >= from).collect();
        assert!(ends.len() > 2, "only {} requests ended", ends.len());
        ends.windows(2).map(|pair| *pair[1] - *pair[0]).max().unwrap()
    }
}

/// Serves `tenants` for `time`; a paused tenant waits.
fn serve(gpu: &Gpu, tenants: &mut [&mut Served], time: Duration) {
    let end = gpu.device.now() + time;
    while gpu.device.now() < end {
        for tenant in tenants.iter_mut() {
            tenant.step().unwrap_or_else(|error| assert!(matches!(error, LaunchError::Paused), "{error}"));
        }
        gpu.device.pass_time(end);
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn a_tenant_that_is_changed_in_any_way_leaves_no_gap_in_its_neighbour_s_throughput() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let (mut steady, mut changed) = (Served::new(&runtime, "steady"), Served::new(&runtime, "changed"));
    runtime.resize(steady.id, Share::Sms(Sms(40))).unwrap();
    serve(&gpu, &mut [&mut steady, &mut changed], 5 * MILLISECOND);
    let usual = steady.longest_gap(MILLISECOND);
    let from = gpu.device.now();
    for round in 0..20 {
        match round % 5 {
            0 => runtime.pause(changed.id),
            1 => runtime.resume(changed.id),
            2 => runtime.resize(changed.id, Share::Percent(if round % 2 == 0 { 60 } else { 30 })),
            3 => runtime.set_objective(changed.id, Class::Latency, Some(Duration::from_secs(1))),
            _ => runtime.resize(changed.id, Share::Planned),
        }
        .unwrap();
        assert_eq!(runtime.plan().tenants[&steady.id].default.sms, Sms(40));
        serve(&gpu, &mut [&mut steady, &mut changed], MILLISECOND);
    }
    let gap = steady.longest_gap(from);
    // Its SMs are its own; what is left to share is the memory's bandwidth.
    assert!(gap.as_secs_f64() < 1.5 * usual.as_secs_f64(), "{gap:?} against {usual:?}");
    assert!(steady.ends.len() > 100, "{}", steady.ends.len());
}

#[test]
fn a_tenant_resized_from_60_to_80_percent_goes_on_without_a_gap_and_runs_on_its_new_sms_at_once() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let (mut resized, mut other) = (Served::new(&runtime, "resized"), Served::new(&runtime, "other"));
    let weights = Buffer::new(resized.session.device(), 1 << 20).unwrap();
    runtime.resize(resized.id, Share::Percent(60)).unwrap();
    assert_eq!(runtime.plan().tenants[&resized.id].default.sms, Sms(80), "80 of 132 SMs are the least that are 60%");
    serve(&gpu, &mut [&mut resized, &mut other], 5 * MILLISECOND);
    let (usual, from) = (resized.longest_gap(MILLISECOND), gpu.device.now());
    runtime.resize(resized.id, Share::Percent(80)).unwrap();
    let plan = runtime.plan();
    assert_eq!(plan.tenants[&resized.id].default.sms, Sms(106));
    assert_eq!(plan.tenants[&other.id].default.sms, Sms(26), "the policy plans for the others on what is left");
    assert!(plan.tenants[&resized.id].grant.is_disjoint(plan.tenants[&other.id].grant));
    gpu.sim.take_trace();
    serve(&gpu, &mut [&mut resized, &mut other], 5 * MILLISECOND);
    assert!(resized.longest_gap(from) <= usual + Duration::from_micros(20));
    let widest = gpu.sim.take_trace().iter().map(|kernel| kernel.tpcs.len()).max();
    assert_eq!(widest, Some(53));
    assert_eq!(weights.bytes(), 1 << 20);
}

#[test]
fn shares_hold_under_every_policy_and_do_not_move_when_others_change() {
    for policy in [Box::new(DefaultSharing) as Box<dyn Policy>, Box::new(Exclusive), Box::new(StaticEqual), Box::new(Krisp::overlapping())]
    {
        let gpu = Gpu::h200();
        let runtime = Runtime::new(Arc::clone(&gpu.device), policy, Arc::new(ProfileStore::default()));
        let [a, b, c] = ["a", "b", "c"].map(|name| runtime.admit(spec(name)).unwrap());
        runtime.resize(a, Share::Sms(Sms(31))).unwrap();
        runtime.resize(b, Share::Sms(Sms(20))).unwrap();
        let (of_a, of_b) = (runtime.plan().tenants[&a].grant, runtime.plan().tenants[&b].grant);
        assert_eq!((of_a.len(), of_b.len()), (16, 10), "whole TPCs");
        runtime.resize(a, Share::Sms(Sms(8))).unwrap();
        let plan = runtime.plan();
        assert_eq!(plan.tenants[&b].grant, of_b);
        assert!(of_a.includes(plan.tenants[&a].grant), "a smaller share is part of the larger one");
        let together = plan.tenants[&a].grant | of_b | plan.tenants[&c].grant;
        assert_eq!(together, gpu.device.topology().all_tpcs(), "what nobody was promised is the policy's");
        assert!(plan.tenants[&c].grant.is_disjoint(plan.tenants[&a].grant | of_b));
        assert!(plan.tenants[&c].walls.partition && plan.tenants[&c].walls.grant);
        let d = runtime.admit(spec("d")).unwrap();
        runtime.dismiss(c).unwrap();
        assert_eq!(runtime.plan().tenants[&b].grant, of_b);
        runtime.dismiss(d).unwrap();
        runtime.resize(b, Share::Planned).unwrap();
        assert_eq!(runtime.tenants().iter().map(|tenant| tenant.share).collect::<Vec<_>>(), [Some(Sms(8)), None]);
    }
}

#[test]
fn more_sms_than_are_free_are_refused_with_figures_and_nobody_is_left_without() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let [a, b] = ["a", "b"].map(|name| runtime.admit(spec(name)).unwrap());
    runtime.resize(a, Share::Percent(75)).unwrap();
    let plan = runtime.plan();
    let error = runtime.resize(b, Share::Percent(26)).unwrap_err();
    let AdmitError::NoSms { asked, free, unshared, .. } = error else { panic!("{error}") };
    assert_eq!((asked, free, unshared), (Sms(36), Sms(32), 0));
    assert!(error.to_string().contains("`b` cannot have 36 SMs: 32 are free"), "{error}");
    assert!(matches!(runtime.resize(a, Share::Percent(100)), Err(AdmitError::NoSms { unshared: 1, .. })), "`b` needs an SM too");
    assert!(Arc::ptr_eq(&plan, &runtime.plan()));
    runtime.resize(b, Share::Percent(24)).unwrap();
    assert!(matches!(runtime.resize(a, Share::Percent(200)), Err(AdmitError::NoSms { .. })));
    // All of the GPU is promised now.
    runtime.resize(b, Share::Sms(Sms(32))).unwrap();
    assert!(matches!(runtime.admit(spec("c")), Err(AdmitError::NoSms { .. })));
    assert_eq!(runtime.tenants().len(), 2);
}

#[test]
fn a_paused_tenant_is_refused_keeps_its_memory_and_graphs_and_its_sms_go_to_the_others() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let (mut paused, mut other) = (Served::new(&runtime, "paused"), Served::new(&runtime, "other"));
    let held = Buffer::new(paused.session.device(), 1 << 20).unwrap();
    request(&mut paused.session).unwrap();
    let graph = paused.session.capture(request).unwrap();
    paused.session.replay(&graph).unwrap();
    runtime.pause(paused.id).unwrap();
    assert_eq!(runtime.plan().tenants[&other.id].default.sms, Sms(132));
    let refused = [
        paused.session.launch(&GEMM).err(),
        paused.session.replay(&graph).err(),
        paused.session.is_current(&graph).err(),
        paused.session.capture(request).err(),
    ];
    for (at, error) in refused.into_iter().enumerate() {
        assert!(matches!(error, Some(LaunchError::Paused)), "{at}: {error:?}");
    }
    assert!(matches!(runtime.session(paused.id), Err(AdmitError::Launch(LaunchError::Paused))));
    gpu.device.synchronize(paused.session.stream()).unwrap();
    let lasts = gpu.sim.take_trace().iter().filter(|kernel| kernel.symbol == LAST.name).count();
    assert_eq!(lasts, 2, "what was launched before runs to its end");
    other.step().unwrap();
    let status = &runtime.tenants()[0];
    assert!(status.paused && status.grant.is_empty() && status.allocated_bytes >= held.bytes());

    runtime.resume(paused.id).unwrap();
    let resumed = runtime.plan();
    runtime.resume(paused.id).unwrap();
    assert!(Arc::ptr_eq(&runtime.plan(), &resumed), "a tenant that runs is planned for anew");
    assert_eq!(runtime.plan().tenants[&other.id].default.sms, Sms(66));
    // The plan is another one, which the graph still runs beside.
    paused.session.replay(&graph).unwrap();
    request(&mut paused.session).unwrap();
}

#[test]
fn a_paused_tenant_is_not_promised_more_than_there_is() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let a = runtime.admit(spec("a")).unwrap();
    runtime.pause(a).unwrap();
    let error = runtime.resize(a, Share::Sms(Sms(134))).unwrap_err();
    assert!(matches!(error, AdmitError::NoSms { asked: Sms(134), free: Sms(132), .. }), "{error}");
    assert_eq!(runtime.tenants()[0].share, None);
    runtime.resize(a, Share::Percent(100)).unwrap();
    runtime.resume(a).unwrap();
}

#[test]
fn a_paused_tenant_gets_its_share_back_unless_it_was_promised_to_others() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let [a, b] = ["a", "b"].map(|name| runtime.admit(spec(name)).unwrap());
    runtime.resize(a, Share::Percent(60)).unwrap();
    runtime.pause(a).unwrap();
    runtime.resize(b, Share::Percent(100)).unwrap();
    let plan = runtime.plan();
    assert!(matches!(runtime.resume(a), Err(AdmitError::NoSms { .. })));
    assert!(Arc::ptr_eq(&plan, &runtime.plan()) && runtime.tenants()[0].paused);
    runtime.resize(b, Share::Planned).unwrap();
    runtime.resume(a).unwrap();
    assert_eq!(runtime.plan().tenants[&a].default.sms, Sms(80));
}

#[test]
fn memory_is_counted_for_the_tenant_whose_session_allocates_it_and_admission_names_the_holders() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let [small, large] = ["small", "large"].map(|name| Served::new(&runtime, name));
    let allocated = |id: TenantId| runtime.tenants().iter().find(|tenant| tenant.id == id).unwrap().allocated_bytes;
    let before = allocated(large.id);
    // More than it was promised.
    let buffer = Buffer::new(large.session.device(), 100 << 30).unwrap();
    assert_eq!((allocated(large.id) - before, allocated(small.id)), (100 << 30, before));
    let needed = 40_000_000_000;
    let error = runtime.admit(TenantSpec { memory_bytes: needed, ..spec("third") }).unwrap_err();
    let text = error.to_string();
    let AdmitError::NoMemory { ref holders, .. } = error else { panic!("{error}") };
    assert!(holders.iter().any(|holder| holder.name == "large" && holder.allocated == allocated(large.id)), "{holders:?}");
    assert!(text.contains("`large` was promised 1.07 GB and holds 107.") && text.contains("`small` was promised 1.07 GB"), "{text}");
    drop(buffer);
    assert_eq!(allocated(large.id), before);
    runtime.admit(TenantSpec { memory_bytes: needed, ..spec("third") }).unwrap();
    assert!(matches!(Buffer::new(small.session.device(), u64::MAX / 2), Err(DeviceError::OutOfMemory { .. })));
    assert_eq!(allocated(small.id), before);
}

#[test]
fn what_captured_graphs_take_counts_as_their_tenant_s_until_they_are_given_back() {
    let runtime = Runtime::new(Idle::new(), Box::new(DefaultSharing), Arc::new(ProfileStore::default()));
    let [mut serving, other] = ["serving", "other"].map(|name| Served::new(&runtime, name));
    let memory = |id: TenantId| {
        let tenant = runtime.tenants().into_iter().find(|tenant| tenant.id == id).unwrap();
        (tenant.graph_bytes, tenant.allocated_bytes)
    };
    request(&mut serving.session).unwrap();
    let (before, others) = (memory(serving.id).1, memory(other.id));
    assert_eq!(memory(serving.id).0, 0);
    let graph = serving.session.capture(request).unwrap();
    (0..3).for_each(|work| serving.session.capture_kept(WorkId(work), request).unwrap());
    assert_eq!(memory(serving.id), (4 * GRAPH_BYTES, before + 4 * GRAPH_BYTES));
    assert_eq!(memory(other.id), others);
    let refused = runtime.admit(TenantSpec { memory_bytes: u64::MAX, ..spec("third") }).unwrap_err();
    let AdmitError::NoMemory { holders, .. } = refused else { panic!("{refused}") };
    assert!(holders.iter().any(|holder| holder.name == "serving" && holder.allocated == before + 4 * GRAPH_BYTES), "{holders:?}");

    drop(graph);
    serving.session.limit_graphs(GraphLimits { graphs: 2, ..GraphLimits::default() });
    assert_eq!(memory(serving.id), (2 * GRAPH_BYTES, before + 2 * GRAPH_BYTES));
    drop(serving.session);
    assert_eq!(memory(serving.id).0, 0);
}

#[test]
fn a_tenant_whose_thread_panics_is_dismissed_and_the_others_lose_no_request() {
    let gpu = Gpu::h200();
    let (runtime, start) = (runtime(&gpu, StaticEqual), gpu.sim.counts());
    let mut steady = Served::new(&runtime, "steady");
    let panicking = Served::new(&runtime, "panicking");
    let joined = thread::scope(|scope| {
        let tenancy = Tenancy::new(&runtime, panicking.id);
        let thread = scope.spawn(move || {
            let (mut served, _tenancy) = (panicking, tenancy);
            served.step().unwrap();
            panic!("a bug of tenant {}", served.id.0);
        });
        for _ in 0..50 {
            steady.step().unwrap();
            gpu.device.pass_time(gpu.device.now() + Duration::from_micros(50));
        }
        thread.join()
    });
    assert!(joined.is_err());
    assert_eq!(runtime.tenants().iter().map(|tenant| &*tenant.spec.name).collect::<Vec<_>>(), ["steady"]);
    assert_eq!(runtime.plan().tenants[&steady.id].default.sms, Sms(132), "its SMs went to the other");
    serve(&gpu, &mut [&mut steady], MILLISECOND);
    assert!(steady.ends.len() > 5);
    runtime.dismiss(steady.id).unwrap();
    drop(steady);
    assert_eq!(gpu.sim.counts().streams + gpu.sim.counts().events, start.streams + start.events);
    assert_eq!(gpu.sim.counts().memory_bytes, start.memory_bytes);
}

#[test]
fn a_launch_that_the_driver_refuses_ends_that_request_and_nothing_else() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let [mut steady, mut failing] = ["steady", "failing"].map(|name| Served::new(&runtime, name));
    gpu.sim.inject(BAD.name, Fault::Refuse);
    let error = failing.session.launch(&BAD).unwrap_err();
    assert!(matches!(&error, LaunchError::Device(error @ DeviceError::Driver { .. }) if !error.is_sticky()), "{error}");
    assert!(runtime.loss().is_none());
    serve(&gpu, &mut [&mut steady, &mut failing], 2 * MILLISECOND);
    assert!(steady.ends.len() > 5 && failing.ends.len() > 5);
    failing.session.launch(&BAD).unwrap();
}

#[test]
fn a_lost_context_is_met_once_and_then_refused_to_everybody_by_name_without_a_wait() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let [mut first, mut second] = ["first", "second"].map(|name| Served::new(&runtime, name));
    request(&mut second.session).unwrap();
    let graph: CapturedGraph = second.session.capture(request).unwrap();
    gpu.sim.inject(BAD.name, Fault::Crash);
    first.session.launch(&BAD).unwrap();
    // The launch itself went well: CUDA tells of the kernel at some later call.
    let met = first.session.device().synchronize(first.session.stream()).unwrap_err();
    assert!(matches!(met, DeviceError::Driver { sticky: true, .. }), "{met}");
    let event = Event::new(&gpu.device).err();
    assert!(event.is_some_and(|error| error.is_sticky()), "the simulated driver answers nobody any more");
    let device = Arc::clone(second.session.device());
    let refused: Vec<DeviceError> = [
        second.session.launch(&GEMM).err(),
        second.session.replay(&graph).err(),
        second.session.capture(request).err(),
        first.session.launch(&GEMM).err(),
        device.synchronize(second.session.stream()).err().map(LaunchError::from),
        device.query(second.done.id()).err().map(LaunchError::from),
        device.allocate(1).err().map(LaunchError::from),
        runtime.device().free_bytes().err().map(LaunchError::from),
    ]
    .into_iter()
    .enumerate()
    .map(|(at, error)| match error {
        Some(LaunchError::Device(error)) => error,
        other => panic!("{at}: {other:?}"),
    })
    .collect();
    for error in refused {
        let DeviceError::Lost { first, cause } = &error else { panic!("{error}") };
        assert_eq!(&**first, "tenant `first`");
        assert!(cause.contains("illegal address") && error.is_sticky());
        assert!(error.to_string().contains("restart the process"), "{error}");
    }
    assert!(matches!(runtime.loss(), Some(DeviceError::Lost { .. })));
    assert!(matches!(runtime.admit(spec("late")), Err(AdmitError::Device(DeviceError::Lost { .. }))));
    assert!(matches!(runtime.pause(second.id), Err(AdmitError::Device(DeviceError::Lost { .. }))));
    // Nothing that is given up now waits for what will never come.
    drop(Tenancy::new(&runtime, first.id));
    drop((first, second));
    assert_eq!(runtime.tenants().len(), 1);
}

#[test]
fn a_tenant_that_waits_in_another_thread_is_told_that_the_context_is_lost() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let [mut crashing, mut waiting] = ["crashing", "waiting"].map(|name| Served::new(&runtime, name));
    let error = thread::scope(|scope| {
        let thread = scope.spawn(move || {
            loop {
                if let Err(error) = waiting.step() {
                    return error;
                }
                waiting.session.device().pass_time(Duration::MAX);
            }
        });
        gpu.sim.inject(BAD.name, Fault::Crash);
        crashing.session.launch(&BAD).unwrap();
        // Whichever thread lets time pass, it ends for both.
        while crashing.session.device().synchronize(crashing.session.stream()).is_ok() {}
        thread.join().unwrap()
    });
    assert!(matches!(&error, LaunchError::Device(error) if error.is_sticky()), "{error}");
    assert!(runtime.loss().is_some());
}

#[test]
fn a_grant_is_set_and_a_share_is_a_whole_number_of_tpcs() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let tenant = Served::new(&runtime, "a");
    for (share, sms) in [(Share::Sms(Sms(0)), 2), (Share::Sms(Sms(3)), 4), (Share::Percent(1), 2), (Share::Percent(100), 132)] {
        runtime.resize(tenant.id, share).unwrap();
        assert_eq!(runtime.tenants()[0].share, Some(Sms(sms)), "{share:?}");
    }
    runtime.set_grant(tenant.id, TpcSet::range(0, 4)).unwrap();
    assert!(matches!(runtime.resize(TenantId(9), Share::Planned), Err(AdmitError::Unknown(_))));
}
