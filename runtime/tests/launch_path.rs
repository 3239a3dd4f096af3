//! The launch path allocates nothing once warm. Counted on a device that does nothing, so that every allocation is the runtime's own.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use smidgen_runtime::device::{Device, DeviceError, DevicePtr, PartitionId, Priority, Sms, Topology};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::lending::DEFAULT_HYSTERESIS;
use smidgen_runtime::launch::{
    Element, EncodedMaps, Fingerprint, Kernel, LaunchError, OpaqueKernel, ParamBytes, Params, Placement, Plan, PlanCell, Session, Swizzle,
    TenantPlan, TensorMap, Walls, WorkId,
};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Draft, DraftPlacement, Policy, StaticEqual, TenantDemand, TenantDraft};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::telemetry::Recording;
use smidgen_runtime::telemetry::trace::Happening;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime, RuntimeOptions};

mod support;

use support::counting::{Counting, allocations};
use support::idle::Idle;
use support::{Fake, Tiled};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KERNELS: [Fake; 4] = [Fake::new("gemm").elastic(), Fake::new("attention").elastic(), Fake::new("norm"), Fake::new("unplanned")];

/// The first three kernels on partitions of their own.
fn plan() -> Plan {
    let placed = |(at, kernel): (u32, &Fake)| {
        let placement = Placement { sms: Sms(8), partition: PartitionId(at), priority: Priority::Normal, borrows: false };
        (kernel.key().fingerprint(), placement)
    };
    let kernels: HashMap<Fingerprint, Placement> = (1..).zip(&KERNELS[..3]).map(placed).collect();
    let all = TpcSet::range(0, 66);
    let tenant = TenantPlan { owned: all, grant: all, default: Placement::whole(Sms(132)), kernels, walls: Walls::default() };
    Plan { policy: "test", tenants: HashMap::from([(TenantId(0), tenant)]), ..Plan::default() }
}

/// A session under [`plan`] that has launched every kernel.
fn warm(idle: &Arc<Idle>) -> Result<(PlanCell, Session), LaunchError> {
    let device: Arc<dyn Device> = Arc::clone(idle) as Arc<dyn Device>;
    let plans = PlanCell::new(plan());
    let mut session = Session::new(&device, &plans, TenantId(0), Arc::new(Grant::new(&device)?))?;
    assert!(allocations(|| request(&mut session).unwrap()) > 0, "the counter counts");
    Ok((plans, session))
}

fn request(session: &mut Session) -> Result<(), LaunchError> {
    KERNELS.iter().try_for_each(|kernel| session.launch(kernel))
}

#[test]
fn launching_a_known_kernel_allocates_nothing() -> Result<(), LaunchError> {
    let idle = Idle::new();
    let (plans, mut session) = warm(&idle)?;
    let opaque = OpaqueKernel { key: KERNELS[0].key(), work: KERNELS[0].work() };
    let mut rounds = || {
        for _ in 0..1000 {
            request(&mut session).unwrap();
            session.launch_opaque(&opaque, |stream, sms| black_box((stream, sms))).unwrap();
        }
    };
    assert_eq!(allocations(&mut rounds), 0);
    assert_eq!(idle.launched(), 4 * (1 + 1000));
    assert!(session.stats().hops >= 4000);

    // A new plan may allocate, at the first launch under it and then no more.
    plans.publish(Plan {
        tenants: plan()
            .tenants
            .into_iter()
            .map(|(id, tenant)| (id, TenantPlan { default: tenant.default, kernels: HashMap::new(), ..tenant }))
            .collect(),
        ..plan()
    });
    request(&mut session)?;
    let mut rounds = || (0..1000).for_each(|_| request(&mut session).unwrap());
    assert_eq!(allocations(&mut rounds), 0);
    Ok(())
}

#[test]
fn launching_a_kernel_as_its_profile_says_allocates_nothing() -> Result<(), AdmitError> {
    let idle = Idle::that_does(|request| assert_eq!(request.launch.symbol, "narrow"));
    let device: Arc<dyn Device> = Arc::clone(&idle) as Arc<dyn Device>;
    let kernel = Tiled(KERNELS[0]);
    let profile = support::quickest_as("narrow", Sms(132), support::profile(&*device, &[(kernel.0, 100.0, 64)]));
    let runtime = Runtime::new(Arc::clone(&device), Box::new(StaticEqual), support::store(&*device, profile));
    let tenant = runtime.admit(TenantSpec { name: "tuned".into(), class: Class::Throughput, slo: None, memory_bytes: 1 })?;
    let mut session = runtime.session(tenant)?;
    session.launch(&kernel)?;
    let mut rounds = || (0..1000).for_each(|_| session.launch(&kernel).unwrap());
    assert_eq!(allocations(&mut rounds), 0);
    assert_eq!(idle.launched(), 1 + 1000);
    Ok(())
}

#[test]
fn replaying_a_graph_allocates_nothing() -> Result<(), LaunchError> {
    let idle = Idle::new();
    let (plans, mut session) = warm(&idle)?;
    let graph = session.capture(request)?;
    for work in 0..40 {
        session.capture_kept(WorkId(work), request)?;
    }
    let mut rounds = || {
        for work in (0..40).cycle().take(1000) {
            assert!(session.is_current(&graph).unwrap());
            session.replay(&graph).unwrap();
            assert!(session.replay_kept(WorkId(work)).unwrap());
            session.replay_or_capture::<LaunchError>(WorkId(work), |_| unreachable!("it is kept")).unwrap();
        }
    };
    assert_eq!(allocations(&mut rounds), 0);
    // One that places this tenant alike costs a comparison at the next replay, and no capture.
    plans.publish(plan());
    assert!(session.replay_kept(WorkId(39))?);
    let mut rounds = || (0..1000).for_each(|_| assert!(session.replay_kept(WorkId(7)).unwrap()));
    assert_eq!(allocations(&mut rounds), 0);
    assert_eq!(session.stats().replays, 3 * 1000 + 1 + 1000);
    Ok(())
}

#[test]
fn encoding_the_maps_of_known_matrices_allocates_nothing() {
    let map = |at: u64| TensorMap::matrix(DevicePtr(at << 20), Element::F16, [64, 64], 64, [64, 64], Swizzle::Bytes128);
    let params = |at: u64| Params::new([0_u64; 64]).with_tensor_maps([(0, map(4 * at)), (128, map(4 * at + 1)), (256, map(4 * at + 2))]);
    let mut maps = EncodedMaps::new();
    let mut round = || {
        for at in 0..60 {
            let mut encoded = ParamBytes::uninit();
            params(at).encode_into(&mut encoded, &mut maps, |map| Ok::<_, ()>([map.ptr.0; 16])).unwrap();
            black_box(&encoded);
        }
    };
    round();
    assert_eq!(allocations(round), 0);
}

#[test]
fn a_launch_path_that_is_traced_and_sampled_allocates_nothing_once_warm() -> Result<(), AdmitError> {
    let device = Idle::new() as Arc<dyn Device>;
    let recording = Recording { events: 1024, sampling: true };
    let runtime = Runtime::with_options(
        Arc::clone(&device),
        Box::new(StaticEqual),
        Arc::new(ProfileStore::default()),
        RuntimeOptions { recording, ..RuntimeOptions::default() },
    );
    let spec = TenantSpec { name: "seen".into(), class: Class::Throughput, slo: None, memory_bytes: 1 };
    let tenant = runtime.admit(spec)?;
    let mut session = runtime.session(tenant)?;
    let request = |session: &mut Session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel));
    request(&mut session)?;
    let graph = session.capture(request)?;
    let mut rounds = || {
        for _ in 0..1000 {
            request(&mut session).unwrap();
            session.replay(&graph).unwrap();
        }
    };
    assert_eq!(allocations(&mut rounds), 0);
    let seen = &runtime.telemetry().trace().tenants[&tenant].events;
    assert!(seen.iter().any(|event| matches!(event.what, Happening::Launch { .. })), "it was traced");
    // Collecting does allocate; the slots are free again, and filled without.
    runtime.correct()?;
    assert_eq!(allocations(&mut rounds), 0);
    Ok(())
}

/// Predicts that nothing disturbs anybody.
struct Undisturbed;

impl Policy for Undisturbed {
    fn name(&self) -> &'static str {
        "undisturbed"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        StaticEqual.plan(topology, tenants)
    }

    fn slowdowns(&self, _: &Topology, tenants: &[TenantDemand]) -> BTreeMap<TenantId, f64> {
        tenants.iter().map(|tenant| (tenant.id, 1.0)).collect()
    }
}

#[test]
fn replays_of_a_tenant_that_is_asked_to_launch_allocate_nothing_nor_do_launches_in_their_place() -> Result<(), AdmitError> {
    let idle = Idle::new();
    let device: Arc<dyn Device> = Arc::clone(&idle) as Arc<dyn Device>;
    let profile = support::profile(&*device, &KERNELS.map(|kernel| (kernel, 100.0, 64)));
    let runtime = Runtime::new(Arc::clone(&device), Box::new(Undisturbed), support::store(&*device, profile));
    let slo = Some(Duration::from_millis(1));
    let tenant = runtime.admit(TenantSpec { name: "asked".into(), class: Class::Latency, slo, memory_bytes: 1 })?;
    let mut session = runtime.session(tenant)?;
    request(&mut session)?;
    runtime.learn(tenant, session.seen())?;
    let rounds = |session: &mut Session| {
        let launched = idle.launched();
        let replay = || (0..3003).for_each(|_| session.replay_or_capture(WorkId(0), request).unwrap());
        (allocations(replay), idle.launched() - launched)
    };
    // The first of them captures.
    rounds(&mut session);
    idle.set_elapsed(Duration::from_millis(1));
    for _ in 0..20 {
        assert_eq!(rounds(&mut session).0, 0);
        runtime.correct()?;
    }
    let mut log = runtime.request_log(tenant)?;
    assert_eq!(rounds(&mut session), (0, 0), "nobody tells of requests");
    log.answered(Duration::ZERO, Duration::ZERO, 2.0);
    assert_eq!(rounds(&mut session), (0, 0), "requests are late");
    log.answered(Duration::ZERO, Duration::ZERO, 0.1);
    assert_eq!(rounds(&mut session), (0, 3 * 4));
    Ok(())
}

/// The first tenant owns a third of the GPU, which the second, who owns the rest, may borrow.
struct Borrowing;

impl Policy for Borrowing {
    fn name(&self) -> &'static str {
        "borrowing"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let walls = Walls { grant: true, ..Walls::default() };
        let draft = |(owned, grant)| {
            let default = DraftPlacement { sms: topology.sms, tpcs: topology.all_tpcs(), priority: Priority::Normal };
            TenantDraft { owned, grant, default, kernels: BTreeMap::new(), walls }
        };
        let (first, second) = (TpcSet::range(0, 22), TpcSet::range(22, 66));
        let grants = [(first, first), (second, topology.all_tpcs())].map(draft);
        tenants.iter().map(|tenant| tenant.id).zip(grants).collect()
    }
}

/// A tenant that has lent what it owns and lends again as each request ends, a session of it, and who borrows; with a timeline of so many events.
fn lending(idle: &Arc<Idle>, events: usize) -> (Runtime, Session, [TenantId; 2]) {
    let device: Arc<dyn Device> = Arc::clone(idle) as Arc<dyn Device>;
    let recording = Recording { events, ..Recording::default() };
    let options = RuntimeOptions { recording, ..RuntimeOptions::default() };
    let runtime = Runtime::with_options(device, Box::new(Borrowing), Arc::new(ProfileStore::default()), options);
    runtime.set_hysteresis(Duration::ZERO);
    let ids = [Class::Latency, Class::Throughput].map(|class| {
        let spec = TenantSpec { name: String::new(), class, slo: None, memory_bytes: 0 };
        runtime.admit(spec).unwrap()
    });
    let mut session = runtime.session(ids[0]).unwrap();
    session.end_request().unwrap();
    (runtime, session, ids)
}

#[test]
fn taking_tpcs_back_for_a_request_and_lending_them_again_allocates_nothing() {
    for events in [0, 1024] {
        let idle = Idle::new();
        let (runtime, mut session, ids) = lending(&idle, events);
        let copies = idle.copies();
        let mut rounds = || {
            for _ in 0..1000 {
                session.begin_request().unwrap();
                session.end_request().unwrap();
            }
        };
        assert_eq!(allocations(&mut rounds), 0, "with {events} events");
        assert_eq!(idle.copies() - copies, 2000, "one copy for the one borrower, each time");
        assert_eq!(runtime.holdings(ids[1]).unwrap().borrowed, TpcSet::range(0, 22));
    }
}

#[test]
fn a_request_begins_and_ends_while_somebody_looks_at_the_timeline_and_is_on_it() {
    let idle = Idle::new();
    let (runtime, mut session, ids) = lending(&idle, 16);
    let last = |tenant| {
        let trace = runtime.telemetry().trace();
        trace.tenants[&tenant].events.iter().rev().find_map(|event| match event.what {
            Happening::Grant { owned, held, borrowed } => Some([owned, held, borrowed]),
            _ => None,
        })
    };
    let asked = idle.asked();
    let held = idle.hold_answers();
    thread::scope(|scope| {
        let looker = scope.spawn(|| runtime.telemetry().trace());
        // In the middle of that the device is asked, and does not answer yet.
        while idle.asked() == asked {
            thread::yield_now();
        }
        let (tell, told) = mpsc::channel();
        let server = scope.spawn(move || {
            session.begin_request().unwrap();
            session.end_request().unwrap();
            session.begin_request().unwrap();
            tell.send(()).unwrap();
            session
        });
        let served = told.recv_timeout(Duration::from_secs(10));
        drop(held);
        looker.join().unwrap();
        let _session = server.join().unwrap();
        assert_eq!(served, Ok(()), "the request waited for who looks");
        assert_eq!(ids.map(last), [Some([Sms(44), Sms(44), Sms(0)]), Some([Sms(88), Sms(88), Sms(0)])]);
    });
}

#[test]
fn a_request_whose_borrowers_cannot_be_told_has_not_begun() {
    let idle = Idle::new();
    let (runtime, mut session, ids) = lending(&idle, 0);
    let lent = runtime.holdings(ids[0]).unwrap();
    assert_eq!(lent.lent, TpcSet::range(0, 22));

    idle.refuse_copies(true);
    let refused = session.begin_request();
    assert!(matches!(refused, Err(LaunchError::Device(DeviceError::Driver { .. }))), "{refused:?}");
    idle.refuse_copies(false);
    // Nobody ends what has not begun, and what is lent is lent again.
    assert_eq!(runtime.holdings(ids[0]).unwrap(), lent);
    session.begin_request().unwrap();
    assert_eq!(runtime.holdings(ids[0]).unwrap().lent, TpcSet::EMPTY);
    session.end_request().unwrap();
    assert_eq!(runtime.holdings(ids[0]).unwrap(), lent);
}

#[test]
fn a_request_begins_only_once_those_are_told_whom_the_one_before_could_not_tell() {
    let idle = Idle::new();
    let (runtime, mut session, ids) = lending(&idle, 0);
    let mut of_borrower = runtime.session(ids[1]).unwrap();
    // What the first one takes back is not lent again before the next.
    runtime.set_hysteresis(DEFAULT_HYSTERESIS);
    let granted = || runtime.holdings(ids[1]).unwrap().granted;
    idle.refuse_copies(true);
    for _ in 0..2 {
        let refused = session.begin_request();
        assert!(matches!(refused, Err(LaunchError::Device(DeviceError::Driver { .. }))), "{refused:?}");
        assert_eq!((runtime.holdings(ids[0]).unwrap().lent, granted()), (TpcSet::EMPTY, TpcSet::range(0, 66)));
    }
    of_borrower.begin_request().unwrap();
    of_borrower.end_request().unwrap();
    idle.refuse_copies(false);
    let copies = idle.copies();
    session.begin_request().unwrap();
    assert_eq!((granted(), idle.copies() - copies), (TpcSet::range(22, 66), 1));
    session.end_request().unwrap();
    session.begin_request().unwrap();
    assert_eq!(idle.copies() - copies, 1, "once is enough");
}
