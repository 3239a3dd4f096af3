//! What a session promises at the interception point: every launch goes where the plan in force places it, in the order of the calls.

use std::collections::HashMap;
use std::sync::Arc;

use smidgen_runtime::device::sim::KernelTrace;
use smidgen_runtime::device::{Event, PartitionId, Priority, Sms, Topology};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::{
    Grids, Kernel, KernelKey, Launch, LaunchError, OpaqueKernel, Placement, Plan, PlanCell, Session, TenantPlan, Walls, Work, WorkId,
};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::tenant::TenantId;

mod support;

use support::{Fake, Gpu, Impossible};

const TENANT: TenantId = TenantId(0);
const OTHER: TenantId = TenantId(1);
const GEMM: Fake = Fake::new("gemm");
const NORM: Fake = Fake::new("norm");
const LOOKUP: Fake = Fake::new("lookup");

/// A GPU with two partitions, and the plans over them.
struct House {
    gpu: Gpu,
    plans: PlanCell,
    /// TPCs 0 to 7, and TPCs 8 to 23.
    small: (PartitionId, TpcSet),
    large: (PartitionId, TpcSet),
}

impl House {
    fn new() -> Self {
        let gpu = Gpu::h200();
        let partition = |tpcs| (gpu.device.create_partition(tpcs).unwrap(), tpcs);
        let (small, large) = (partition(TpcSet::range(0, 8)), partition(TpcSet::range(8, 24)));
        Self { gpu, plans: PlanCell::new(Plan::default()), small, large }
    }

    fn placement(&self, (partition, tpcs): (PartitionId, TpcSet)) -> Placement {
        Placement { sms: self.gpu.device.topology().sms_of(tpcs), partition, priority: Priority::Normal, borrows: false }
    }

    /// A tenant whose kernels are placed as listed, and on the whole GPU where not.
    fn tenant(&self, kernels: &[(Fake, (PartitionId, TpcSet))]) -> TenantPlan {
        TenantPlan {
            owned: self.gpu.device.topology().all_tpcs(),
            grant: self.gpu.device.topology().all_tpcs(),
            default: Placement::whole(Sms(132)),
            kernels: kernels.iter().map(|&(kernel, part)| (kernel.key().fingerprint(), self.placement(part))).collect(),
            walls: Walls::default(),
        }
    }

    fn publish(&self, tenants: impl IntoIterator<Item = (TenantId, TenantPlan)>) {
        self.plans.publish(Plan { policy: "test", tenants: tenants.into_iter().collect::<HashMap<_, _>>(), ..Plan::default() });
    }

    /// A session of [`TENANT`] under a plan of it alone.
    fn session(&self, kernels: &[(Fake, (PartitionId, TpcSet))]) -> Session {
        self.publish([(TENANT, self.tenant(kernels))]);
        self.session_of(TENANT).unwrap()
    }

    fn session_of(&self, tenant: TenantId) -> Result<Session, LaunchError> {
        let grant = Arc::new(Grant::new(&self.gpu.device).unwrap());
        Session::new(&self.gpu.device, &self.plans, tenant, grant)
    }

    fn all(&self) -> TpcSet {
        self.gpu.device.topology().all_tpcs()
    }
}

/// Names and TPCs of kernels, which must have run one after another.
#[track_caller]
fn ran(trace: &[KernelTrace]) -> Vec<(&'static str, TpcSet)> {
    for pair in trace.windows(2) {
        assert!(pair[0].ended <= pair[1].started, "{} began before {} had ended", pair[1].symbol, pair[0].symbol);
    }
    trace.iter().map(|kernel| (kernel.symbol, kernel.tpcs)).collect()
}

#[test]
fn each_kernel_runs_on_the_sms_that_the_plan_gives_it_and_unknown_ones_on_the_default() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large), (NORM, house.small)]);
    for kernel in [GEMM, NORM, LOOKUP, NORM] {
        session.launch(&kernel).unwrap();
    }
    let expected = [("gemm", house.large.1), ("norm", house.small.1), ("lookup", house.all()), ("norm", house.small.1)];
    assert_eq!(ran(&house.gpu.trace(&session)), expected);
}

#[test]
fn a_grid_is_no_wider_than_the_placement_even_on_the_whole_gpu() {
    let house = House::new();
    let narrow = TenantPlan { default: Placement::whole(Sms(10)), ..house.tenant(&[]) };
    house.publish([(TENANT, narrow)]);
    let mut session = house.session_of(TENANT).unwrap();
    session.launch(&GEMM).unwrap();
    let trace = house.gpu.trace(&session);
    assert!(trace[0].tpcs.len() <= 10, "{:?}", trace[0].tpcs);
}

#[test]
fn a_published_plan_counts_from_the_next_launch_on_for_new_and_for_known_kernels() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large)]);
    session.launch(&GEMM).unwrap();
    house.publish([(TENANT, house.tenant(&[(GEMM, house.small), (NORM, house.large)]))]);
    session.launch(&GEMM).unwrap();
    session.launch(&NORM).unwrap();
    let expected = [("gemm", house.large.1), ("gemm", house.small.1), ("norm", house.large.1)];
    assert_eq!(ran(&house.gpu.trace(&session)), expected);
}

#[test]
fn a_session_hops_only_when_the_stream_changes() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large), (NORM, house.small)]);
    // A session begins on its default lane.
    session.launch(&LOOKUP).unwrap();
    assert_eq!(session.stats().hops, 0);
    for (kernel, hops) in [(GEMM, 1), (GEMM, 1), (NORM, 2), (NORM, 2), (NORM, 2), (GEMM, 3), (LOOKUP, 4)] {
        session.launch(&kernel).unwrap();
        assert_eq!(session.stats().hops, hops, "after {}", kernel.name);
    }
    let names: Vec<_> = ran(&house.gpu.trace(&session)).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["lookup", "gemm", "gemm", "norm", "norm", "norm", "gemm", "lookup"]);
    assert_eq!(session.stats().launches, 8);
}

#[test]
fn a_replay_keeps_the_partitions_and_the_order_of_its_capture() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large), (NORM, house.small)]);
    let body = |session: &mut Session| [GEMM, NORM, LOOKUP, GEMM].iter().try_for_each(|kernel| session.launch(kernel));
    let graph = session.capture(body).unwrap();
    assert!(house.gpu.trace(&session).is_empty(), "a capture runs nothing");
    session.launch(&NORM).unwrap();
    session.replay(&graph).unwrap();
    session.replay(&graph).unwrap();
    session.launch(&LOOKUP).unwrap();
    let once = [("gemm", house.large.1), ("norm", house.small.1), ("lookup", house.all()), ("gemm", house.large.1)];
    let expected = [&[("norm", house.small.1)][..], &once, &once, &[("lookup", house.all())]].concat();
    assert_eq!(ran(&house.gpu.trace(&session)), expected);
    assert_eq!(session.stats().replays, 2);
}

#[test]
fn a_capture_in_two_calls_makes_the_graph_that_a_closure_makes() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large), (NORM, house.small)]);
    assert!(matches!(session.finish_capture(), Err(LaunchError::NotCapturing)));
    session.begin_capture().unwrap();
    // It ends on another lane than it began on.
    [LOOKUP, GEMM, NORM].iter().try_for_each(|kernel| session.launch(kernel)).unwrap();
    let graph = session.finish_capture().unwrap();
    assert!(house.gpu.trace(&session).is_empty(), "a capture runs nothing");
    assert!(session.is_current(&graph).unwrap());
    session.replay(&graph).unwrap();
    session.launch(&GEMM).unwrap();
    let expected = [("lookup", house.all()), ("gemm", house.large.1), ("norm", house.small.1), ("gemm", house.large.1)];
    assert_eq!(ran(&house.gpu.trace(&session)), expected);
    assert!(matches!(session.finish_capture(), Err(LaunchError::NotCapturing)), "it has ended");
}

#[test]
fn a_capture_is_refused_what_is_no_launch_and_ends_where_it_began() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large)]);
    let graph = session.capture(|session| session.launch(&GEMM)).unwrap();
    session.begin_capture().unwrap();
    assert!(matches!(session.begin_capture(), Err(LaunchError::InCapture)));
    assert!(matches!(session.replay(&graph), Err(LaunchError::InCapture)));
    assert!(matches!(session.replay_kept(WorkId(0)), Err(LaunchError::InCapture)));
    session.launch(&GEMM).unwrap();
    let elsewhere = std::thread::scope(|scope| scope.spawn(|| session.finish_capture().err()).join().unwrap());
    assert!(matches!(elsewhere, Some(LaunchError::WrongThread)));
    let graph = session.finish_capture().unwrap();
    session.replay(&graph).unwrap();
    assert_eq!(ran(&house.gpu.trace(&session)), [("gemm", house.large.1)]);
}

#[test]
fn a_graph_is_replayed_by_the_session_that_captured_it_alone() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large)]);
    let graph = session.capture(|session| session.launch(&GEMM)).unwrap();
    drop(session);
    let mut other = house.session_of(TENANT).unwrap();
    assert!(matches!(other.replay(&graph), Err(LaunchError::WrongSession)));
    assert!(matches!(other.is_current(&graph), Err(LaunchError::WrongSession)));
}

#[test]
fn a_graph_belongs_to_the_plan_that_it_was_captured_under() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large)]);
    let graph = session.capture(|session| session.launch(&GEMM)).unwrap();
    assert!(session.is_current(&graph).unwrap());
    house.publish([(TENANT, house.tenant(&[(GEMM, house.small)]))]);
    assert!(!session.is_current(&graph).unwrap());
    session.replay(&graph).unwrap();
    assert_eq!(ran(&house.gpu.trace(&session)), [("gemm", house.large.1)], "nodes keep their partitions");
    let graph = session.capture(|session| session.launch(&GEMM)).unwrap();
    assert!(session.is_current(&graph).unwrap());
    session.replay(&graph).unwrap();
    assert_eq!(ran(&house.gpu.trace(&session)), [("gemm", house.small.1)]);
}

#[test]
fn a_plan_that_changes_a_grant_or_a_neighbour_leaves_a_graph_current() {
    let house = House::new();
    let mine = || house.tenant(&[(GEMM, house.large)]);
    house.publish([(TENANT, mine())]);
    let mut session = house.session_of(TENANT).unwrap();
    let graph = session.capture(|session| session.launch(&GEMM)).unwrap();
    let named = TenantPlan { kernels: [(NORM.key().fingerprint(), mine().default)].into_iter().chain(mine().kernels).collect(), ..mine() };
    for alike in [mine(), TenantPlan { grant: house.small.1, ..mine() }, named] {
        house.publish([(TENANT, alike), (OTHER, house.tenant(&[(NORM, house.small)]))]);
        assert!(session.is_current(&graph).unwrap());
    }
    let urgent = Placement { priority: Priority::High, ..house.placement(house.large) };
    let narrow = Placement { sms: Sms(8), ..house.placement(house.large) };
    for other in [urgent, narrow, house.placement(house.small)] {
        house.publish([(TENANT, TenantPlan { kernels: [(GEMM.key().fingerprint(), other)].into_iter().collect(), ..mine() })]);
        assert!(!session.is_current(&graph).unwrap());
    }
    house.publish([(TENANT, mine())]);
    assert!(session.is_current(&graph).unwrap(), "the plan came back");
}

#[test]
fn streams_that_no_plan_and_no_graph_needs_are_given_back_but_for_the_last_few() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large)]);
    session.launch(&GEMM).unwrap();
    let stream = session.stream();
    let mut follow = |tpcs, priority| {
        let placement = Placement { priority, ..house.placement(tpcs) };
        house.publish([(
            TENANT,
            TenantPlan { kernels: [(GEMM.key().fingerprint(), placement)].into_iter().collect(), ..house.tenant(&[]) },
        )]);
        session.launch(&GEMM).unwrap();
        house.gpu.trace(&session);
        session.stream()
    };
    for priority in [Priority::Normal, Priority::High, Priority::Normal] {
        follow(house.small, priority);
    }
    assert_eq!(follow(house.large, Priority::Normal), stream, "a plan that comes back soon finds its streams");
    for first in 0..8 {
        let tpcs = TpcSet::range(4 * first, 4 * first + 4);
        follow((house.gpu.device.create_partition(tpcs).unwrap(), tpcs), Priority::Normal);
    }
    assert!(house.gpu.device.synchronize(stream).is_err(), "the stream is gone");
}

#[test]
fn a_plan_published_during_a_capture_does_not_split_the_graph() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large)]);
    let graph = session
        .capture(|session| {
            session.launch(&GEMM)?;
            house.publish([(TENANT, house.tenant(&[(GEMM, house.small)]))]);
            session.launch(&GEMM)
        })
        .unwrap();
    assert!(!session.is_current(&graph).unwrap());
    session.replay(&graph).unwrap();
    assert_eq!(ran(&house.gpu.trace(&session)), [("gemm", house.large.1); 2]);
}

#[test]
fn a_capture_whose_body_fails_leaves_the_session_as_it_was() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large), (NORM, house.small)]);
    session.launch(&GEMM).unwrap();
    // The error falls on a lane other than the one on which the capture began.
    let failed = session.capture(|session| {
        session.launch(&NORM)?;
        session.launch(&Impossible)
    });
    assert!(matches!(failed.err(), Some(LaunchError::Unsupported { .. })));
    for kernel in [GEMM, NORM] {
        session.launch(&kernel).unwrap();
    }
    let graph = session.capture(|session| session.launch(&NORM)).unwrap();
    session.replay(&graph).unwrap();
    let expected = [("gemm", house.large.1), ("gemm", house.large.1), ("norm", house.small.1), ("norm", house.small.1)];
    assert_eq!(ran(&house.gpu.trace(&session)), expected);
}

#[test]
fn a_session_is_as_before_after_a_capture_that_panicked_and_can_be_given_up_within_one() {
    let house = House::new();
    let free = house.gpu.free_bytes();
    let mut session = house.session(&[(GEMM, house.large)]);
    let body = std::panic::AssertUnwindSafe(|| session.capture::<LaunchError>(|_| panic!("in the body of a capture")));
    assert!(std::panic::catch_unwind(body).is_err());
    session.launch(&GEMM).unwrap();
    assert_eq!(ran(&house.gpu.trace(&session)), [("gemm", house.large.1)]);
    session.begin_capture().unwrap();
    drop(session);
    assert_eq!(house.gpu.free_bytes(), free);
    let mut next = house.session(&[(GEMM, house.large)]);
    next.launch(&GEMM).unwrap();
    assert_eq!(ran(&house.gpu.trace(&next)), [("gemm", house.large.1)]);
}

#[test]
fn a_dismissed_tenant_launches_nothing_and_its_neighbour_goes_on() {
    let house = House::new();
    house.publish([(TENANT, house.tenant(&[(GEMM, house.large)])), (OTHER, house.tenant(&[(NORM, house.small)]))]);
    let mut session = house.session_of(TENANT).unwrap();
    let mut other = house.session_of(OTHER).unwrap();
    let graph = session.capture(|session| session.launch(&GEMM)).unwrap();
    let others = other.capture(|session| session.launch(&NORM)).unwrap();
    session.launch(&GEMM).unwrap();
    house.publish([(OTHER, house.tenant(&[(NORM, house.small)]))]);
    let opaque = OpaqueKernel { key: GEMM.key(), work: GEMM.work() };
    let refused = [
        session.launch(&GEMM).err(),
        session.replay(&graph).err(),
        session.is_current(&graph).err(),
        session.launch_opaque(&opaque, |_, _| ()).err(),
        session.capture(|session| session.launch(&GEMM)).err(),
        house.session_of(TENANT).err(),
    ];
    for (at, error) in refused.into_iter().enumerate() {
        assert!(matches!(error, Some(LaunchError::Dismissed)), "{at}: {error:?}");
    }
    other.launch(&NORM).unwrap();
    other.replay(&others).unwrap();
    house.gpu.device.synchronize(session.stream()).unwrap();
    let mut names: Vec<_> = house.gpu.trace(&other).iter().map(|kernel| kernel.symbol).collect();
    names.sort_unstable();
    assert_eq!(names, ["gemm", "norm", "norm"], "what was launched before the dismissal still runs, nothing else of that tenant");
}

#[test]
fn an_opaque_launch_gets_its_partition_s_stream_and_sm_count_in_order() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large), (NORM, house.small)]);
    let opaque = OpaqueKernel { key: GEMM.key(), work: GEMM.work() };
    session.launch(&NORM).unwrap();
    let mark = Event::new(&house.gpu.device).unwrap();
    let (stream, sms) = session
        .launch_opaque(&opaque, |stream, sms| {
            house.gpu.device.record(mark.id(), stream).unwrap();
            (stream, sms)
        })
        .unwrap();
    assert_eq!((sms, stream), (Sms(32), session.stream()));
    assert_eq!(session.stats().hops, 2, "from the default lane to the kernel's, and on to the opaque launch's");
    // Foreign work on that stream waits for the launches before it.
    assert!(!house.gpu.device.query(mark.id()).unwrap());
    house.gpu.device.synchronize(stream).unwrap();
    assert_eq!(house.gpu.sim.take_trace().len(), 1);
    assert!(house.gpu.device.query(mark.id()).unwrap());
    let unknown = OpaqueKernel { key: LOOKUP.key(), work: LOOKUP.work() };
    assert_eq!(session.launch_opaque(&unknown, |_, sms| sms).unwrap(), Sms(132));
}

#[test]
fn only_elastic_kernels_are_held_by_the_grant() {
    let house = House::new();
    house.publish([(TENANT, house.tenant(&[]))]);
    let grant = Arc::new(Grant::new(&house.gpu.device).unwrap());
    let mut session = Session::new(&house.gpu.device, &house.plans, TENANT, Arc::clone(&grant)).unwrap();
    grant.set(house.small.1).unwrap();
    // The copy overtakes nothing here: it is done before the launches.
    house.gpu.device.pass_time(house.gpu.device.now() + std::time::Duration::from_millis(1));
    session.launch(&GEMM.elastic()).unwrap();
    session.launch(&NORM).unwrap();
    let trace = house.gpu.trace(&session);
    assert_eq!(trace[1].tpcs, house.all());
    assert!(trace[0].ended - trace[0].started > 2 * (trace[1].ended - trace[1].started), "8 TPCs do the work of 66");
}

#[test]
fn with_a_block_for_each_tile_neither_the_grant_nor_the_placement_confines_an_elastic_kernel() {
    let house = House::new();
    let narrow = TenantPlan { default: Placement::whole(Sms(10)), ..house.tenant(&[]) };
    house.publish([(TENANT, narrow)]);
    let grant = Arc::new(Grant::new(&house.gpu.device).unwrap());
    let mut session = Session::new(&house.gpu.device, &house.plans, TENANT, Arc::clone(&grant)).unwrap();
    grant.set(house.small.1).unwrap();
    house.gpu.device.pass_time(house.gpu.device.now() + std::time::Duration::from_millis(1));
    session.set_grids(Grids::TilePerBlock);
    // A kernel too short to be elastic keeps its grid.
    for kernel in [GEMM.elastic(), NORM] {
        session.launch(&kernel).unwrap();
    }
    session.set_grids(Grids::Persistent);
    session.launch(&GEMM.elastic()).unwrap();
    let trace = house.gpu.trace(&session);
    assert_eq!(trace[0].tpcs, house.all());
    assert!(trace[1].tpcs.len() <= 10 && trace[2].tpcs.len() <= 10, "{trace:?}");
}

#[test]
fn a_kernel_of_high_priority_comes_in_between_the_tiles_of_another_tenant() {
    let waits = |grids| {
        let house = House::new();
        let whole = |priority| TenantPlan { default: Placement { priority, ..Placement::whole(Sms(132)) }, ..house.tenant(&[]) };
        house.publish([(TENANT, whole(Priority::Low)), (OTHER, whole(Priority::High))]);
        let [mut long, mut short] = [TENANT, OTHER].map(|tenant| house.session_of(tenant).unwrap());
        long.set_grids(grids);
        long.launch(&Fake { bytes: 4_000_000_000, ..GEMM }.elastic()).unwrap();
        house.gpu.device.pass_time(house.gpu.device.now() + std::time::Duration::from_micros(50));
        let asked = house.gpu.device.now();
        short.launch(&NORM).unwrap();
        house.gpu.device.synchronize(short.stream()).unwrap();
        house.gpu.device.now() - asked
    };
    let [persistent, tiles] = [Grids::Persistent, Grids::TilePerBlock].map(waits);
    // Four tiles on each SM: a quarter of the long kernel's time is the most that one waits for the next.
    assert!(2 * tiles < persistent, "{tiles:?} between tiles, {persistent:?} beside persistent blocks");
}

#[test]
fn a_recording_holds_every_launch_that_happened_in_order() {
    let house = House::new();
    let mut session = house.session(&[(GEMM, house.large)]);
    session.launch(&LOOKUP).unwrap();
    session.start_recording();
    let graph = session.capture(|session| session.launch(&NORM)).unwrap();
    for kernel in [GEMM, NORM, GEMM] {
        session.launch(&kernel).unwrap();
    }
    assert!(session.launch(&Impossible).is_err());
    session.replay(&graph).unwrap();
    let keys = |kernels: Vec<Box<dyn Kernel + Send>>| kernels.iter().map(|kernel| kernel.key().to_string()).collect::<Vec<_>>();
    assert_eq!(keys(session.finish_recording()), [NORM, GEMM, NORM, GEMM].map(|kernel| kernel.key().to_string()));
    session.launch(&GEMM).unwrap();
    assert!(session.finish_recording().is_empty());
}

#[test]
fn what_a_request_launches_is_counted_by_kernel() {
    let house = House::new();
    let mut session = house.session(&[]);
    session.launch(&LOOKUP).unwrap();
    session.forget_counts();
    for kernel in [GEMM, NORM, GEMM] {
        session.launch(&kernel).unwrap();
    }
    assert!(session.launch(&Impossible).is_err());
    let counts: Vec<_> = session.seen().iter().map(|seen| (seen.key.name(), seen.launches)).collect();
    assert_eq!(counts, [("lookup", 0), ("gemm", 2), ("norm", 1), ("impossible", 0)]);
}

#[test]
fn a_session_tells_a_thousand_kernels_apart() {
    let house = House::new();
    let names: Vec<&'static str> = (0..1000).map(|at| &*format!("kernel_{at}").leak()).collect();
    let kernels: Vec<_> = names.iter().map(|&name| Fake { bytes: 1000, ..Fake::new(name) }).collect();
    let placed: Vec<_> = kernels.iter().step_by(2).map(|&kernel| (kernel, house.small)).collect();
    let mut session = house.session(&placed);
    for kernel in &kernels {
        session.launch(kernel).unwrap();
    }
    for (at, (name, tpcs)) in ran(&house.gpu.trace(&session)).into_iter().enumerate() {
        assert_eq!((name, tpcs), (names[at], if at % 2 == 0 { house.small.1 } else { house.all() }));
    }
}

#[test]
fn a_session_that_is_given_up_finishes_its_launches_and_returns_all_it_had() {
    let house = House::new();
    let free = house.gpu.free_bytes();
    let mut session = house.session(&[(GEMM, house.large), (NORM, house.small)]);
    for kernel in [GEMM, NORM, GEMM.elastic()] {
        session.launch(&kernel).unwrap();
    }
    let stream = session.stream();
    drop(session);
    assert_eq!(house.gpu.sim.take_trace().len(), 3);
    assert_eq!(house.gpu.free_bytes(), free);
    assert!(house.gpu.device.synchronize(stream).is_err(), "the stream is gone");
}

#[test]
fn only_launches_that_poll_the_grant_run_where_the_plan_would_have_them_borrow() {
    let house = House::new();
    const ELASTIC: Fake = GEMM.elastic();
    let opaque = OpaqueKernel { key: LOOKUP.key(), work: LOOKUP.work() };
    let borrowed = Placement { borrows: true, ..house.placement(house.large) };
    let plan = TenantPlan {
        owned: house.small.1,
        default: house.placement(house.small),
        kernels: [ELASTIC.key(), NORM.key(), LOOKUP.key()].map(|key| (key.fingerprint(), borrowed)).into(),
        ..house.tenant(&[])
    };
    house.publish([(TENANT, plan)]);
    let mut session = house.session_of(TENANT).unwrap();
    session.launch(&ELASTIC).unwrap();
    session.launch(&NORM).unwrap();
    session.launch_opaque(&opaque, |_, sms| assert_eq!(sms, Sms(16))).unwrap();
    assert_eq!(ran(&house.gpu.trace(&session)), [("gemm", house.large.1), ("norm", house.small.1)]);

    // Without elasticity nothing can be taken back from anybody, nor from a launch of more tiles than a counter counts.
    session.set_grids(Grids::Fixed);
    session.launch(&ELASTIC).unwrap();
    assert_eq!(ran(&house.gpu.trace(&session)), [("gemm", house.small.1)]);
    let mut session = house.session_of(TENANT).unwrap();
    session.launch(&Vast(ELASTIC)).unwrap();
    assert_eq!(ran(&house.gpu.trace(&session)), [("gemm", house.small.1)]);
}

#[test]
fn a_launch_too_short_to_poll_does_so_where_it_borrows_if_its_entry_point_can() {
    let house = House::new();
    let borrowed = Placement { borrows: true, ..house.placement(house.large) };
    let kernels = [(GEMM.key().fingerprint(), borrowed)].into();
    let plan = TenantPlan { owned: house.small.1, default: house.placement(house.small), kernels, ..house.tenant(&[]) };
    house.publish([(TENANT, plan)]);
    let grant = Arc::new(Grant::new(&house.gpu.device).unwrap());
    let mut session = Session::new(&house.gpu.device, &house.plans, TENANT, Arc::clone(&grant)).unwrap();
    session.launch(&LongOnATpc(GEMM)).unwrap();
    let undisturbed = house.gpu.trace(&session).remove(0);
    assert_eq!(undisturbed.tpcs, house.large.1);
    grant.set(house.small.1).unwrap();
    house.gpu.device.pass_time(house.gpu.device.now() + std::time::Duration::from_millis(1));
    session.launch(&LongOnATpc(GEMM)).unwrap();
    let confined = house.gpu.trace(&session).remove(0);
    assert!(confined.ended - confined.started > 2 * (undisturbed.ended - undisturbed.started), "it left what it may not use any more");
}

/// A kernel that is too short to poll its grant on more SMs than a TPC has.
#[derive(Clone)]
struct LongOnATpc(Fake);

// SAFETY: the simulator reads no parameters.
unsafe impl Kernel for LongOnATpc {
    fn key(&self) -> KernelKey {
        self.0.key()
    }

    fn work(&self) -> Work {
        self.0.work()
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch { elastic: sms.0 <= gpu.sms_per_tpc, ..self.0.configure(sms, gpu)? })
    }
}

/// A kernel of more tiles than an elastic launch may have.
#[derive(Clone)]
struct Vast(Fake);

// SAFETY: the simulator reads no parameters.
unsafe impl Kernel for Vast {
    fn key(&self) -> KernelKey {
        self.0.key()
    }

    fn work(&self) -> Work {
        self.0.work()
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch { tiles: Launch::MAX_ELASTIC_TILES + 1, ..self.0.configure(sms, gpu)? })
    }
}

#[test]
fn an_eager_session_launches_its_requests_kernel_by_kernel() {
    let house = House::new();
    let mut session = house.session(&[]);
    session.launch_eagerly();
    let request = |session: &mut Session| -> Result<(), LaunchError> { session.launch(&GEMM) };
    session.capture_kept(WorkId(0), request).unwrap();
    assert!(!session.prepare(WorkId(0), request).unwrap());
    assert_eq!((session.stats().launches, session.kept_graphs()), (0, 0));
    for _ in 0..2 {
        session.replay_or_capture(WorkId(0), request).unwrap();
    }
    assert_eq!((session.stats().launches, session.stats().replays, session.kept_graphs()), (2, 0, 0));
}
