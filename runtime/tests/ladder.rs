//! The ladder over a long run: partitions come and go, and none goes that somebody may still launch into.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use smidgen_runtime::device::{CoscheduledGroups, Priority, Sms, Topology};
use smidgen_runtime::launch::{GraphLimits, Kernel, LaunchError, Session, Walls, WorkId};
use smidgen_runtime::partition::{Ladder, LadderError, PARTITION_BYTES, TpcSet, rungs};
use smidgen_runtime::policy::{Adjustments, Draft, DraftPlacement, Policy, TenantDemand, TenantDraft};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::{Runtime, RuntimeOptions};

mod support;

use support::{Fake, Gpu};

const KERNELS: [Fake; 3] =
    [Fake { bytes: 1000, ..Fake::new("a") }, Fake { bytes: 1000, ..Fake::new("b") }, Fake { bytes: 1000, ..Fake::new("c") }];
const TENANTS: usize = 3;

#[test]
fn a_partition_is_made_once_and_given_back_only_when_nobody_refers_to_it() {
    let gpu = Gpu::h200();
    let ladder = Ladder::new(Arc::clone(&gpu.device), 3);
    let set = |end| TpcSet::range(0, end);
    let free = gpu.free_bytes();
    let mut kept: Vec<_> = (1..=3).map(|end| ladder.partition(set(end)).unwrap()).collect();
    assert_eq!(ladder.partition(set(1)).unwrap().id(), kept[0].id());
    assert!(matches!(ladder.partition(set(4)), Err(LadderError::Full { limit: 3 })));
    assert!(ladder.partition(gpu.device.topology().all_tpcs()).is_ok(), "the whole GPU takes no room");
    assert_eq!((ladder.len(), free - gpu.free_bytes()), (3, 3 * PARTITION_BYTES));
    // Of the two that nobody refers to, the one asked for longer ago goes.
    let (second, third) = (kept.remove(1).id(), kept.remove(1).id());
    ladder.partition(set(2)).unwrap();
    ladder.partition(set(4)).unwrap();
    assert!(gpu.device.partition_sms(third).is_err());
    assert_eq!(ladder.partition(set(2)).unwrap().id(), second);
    let again = ladder.partition(set(3)).unwrap();
    assert_ne!(again.id(), third, "a number is not used twice");
    assert_eq!((ladder.len(), free - gpu.free_bytes()), (3, 3 * PARTITION_BYTES));
}

#[test]
fn a_partition_that_the_device_does_not_give_up_stands_in_nobodys_way() {
    let gpu = Gpu::h200();
    let ladder = Ladder::new(Arc::clone(&gpu.device), 2);
    let set = |end| TpcSet::range(0, end);
    let in_use = ladder.partition(set(1)).unwrap().id();
    let stream = gpu.device.create_stream(in_use, Priority::Normal).unwrap();
    let free = ladder.partition(set(2)).unwrap().id();
    let kept = ladder.partition(set(3)).unwrap();
    assert!(gpu.device.partition_sms(free).is_err(), "it made room");
    assert!(
        matches!(ladder.partition(set(4)), Err(LadderError::Device(_))),
        "of the other two, one is referred to and the device keeps the other"
    );
    assert_eq!(ladder.partition(set(1)).unwrap().id(), in_use);
    gpu.device.destroy_stream(stream);
    drop(kept);
    ladder.partition(set(4)).unwrap();
}

#[test]
fn the_simulator_refuses_to_destroy_what_is_in_use() {
    let gpu = Gpu::h200();
    let partition = gpu.device.create_partition(TpcSet::range(0, 2)).unwrap();
    let stream = gpu.device.create_stream(partition, Priority::Normal).unwrap();
    assert!(gpu.device.destroy_partition(partition).is_err());
    gpu.device.destroy_stream(stream);
    gpu.device.destroy_partition(partition).unwrap();
    assert!(gpu.device.destroy_partition(partition).is_err());
    assert!(gpu.device.create_stream(partition, Priority::Normal).is_err());
}

#[test]
fn rungs_are_whole_tpcs_and_groups_and_end_with_the_whole_gpu() {
    let h200 = Gpu::h200().device.topology().clone();
    let counts = |topology: &Topology| rungs(topology).iter().map(|rung| rung.0).collect::<Vec<_>>();
    assert_eq!(counts(&h200), [2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 120, 132]);
    // Another GPU's groups are other rungs.
    let groups = |sms_per_group, groups| CoscheduledGroups { sms_per_group, groups };
    let a100 = Topology { sms: Sms(108), coscheduled: groups(4, 27), ..h200.clone() };
    assert_eq!(counts(&a100), [2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 88, 96, 104, 108]);
    for (sms, sms_per_tpc) in [(1, 1), (2, 2), (16, 2), (46, 2), (78, 2), (108, 2), (114, 2), (144, 2)] {
        for coscheduled in [groups(8, 0), groups(8, 15), groups(0, 9), groups(2, sms / 2), groups(7, u16::MAX)] {
            let rungs = counts(&Topology { sms: Sms(sms), sms_per_tpc, coscheduled, ..h200.clone() });
            assert!(rungs.is_sorted_by(|one, next| one < next) && rungs.last() == Some(&sms), "{rungs:?}");
            assert!(rungs.iter().all(|rung| rung % sms_per_tpc == 0), "{rungs:?}");
        }
    }
}

/// Drafts what the test says next.
struct Dictated(Arc<Mutex<Vec<TpcSet>>>);

impl Policy for Dictated {
    fn name(&self) -> &'static str {
        "dictated"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    /// For each tenant one set by default and one for each kernel.
    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let sets = self.0.lock().unwrap();
        let mut sets = sets.iter().copied().cycle();
        let mut place = || {
            let tpcs = sets.next().unwrap_or(topology.all_tpcs());
            DraftPlacement { sms: topology.sms_of(tpcs), tpcs, priority: Priority::Normal }
        };
        let mut draft = |_: &TenantDemand| {
            let kernels: BTreeMap<_, _> = KERNELS.iter().map(|kernel| (kernel.key().fingerprint(), place())).collect();
            TenantDraft { owned: topology.all_tpcs(), grant: topology.all_tpcs(), default: place(), kernels, walls: Walls::default() }
        };
        tenants.iter().map(|tenant| (tenant.id, draft(tenant))).collect()
    }
}

/// A runtime with a limit of 64 partitions, of which a plan names 12 at most: half is for what sessions keep, the rest for two plans and for what
/// a session has just left.
struct House {
    gpu: Gpu,
    runtime: Runtime,
    sets: Arc<Mutex<Vec<TpcSet>>>,
    tenants: Vec<(TenantId, Session)>,
    free: u64,
}

const LIMIT: u64 = 64;

impl House {
    fn new() -> Self {
        let gpu = Gpu::h200();
        let sets = Arc::new(Mutex::new(vec![gpu.device.topology().all_tpcs()]));
        let options = RuntimeOptions { partition_bytes: Some(LIMIT * PARTITION_BYTES), ..RuntimeOptions::default() };
        let policy = Box::new(Dictated(Arc::clone(&sets)));
        let runtime = Runtime::with_options(Arc::clone(&gpu.device), policy, Arc::new(ProfileStore::default()), options);
        let spec = || TenantSpec { name: "a".to_owned(), class: Class::Throughput, slo: None, memory_bytes: 0 };
        let tenants = (0..TENANTS).map(|_| runtime.admit(spec()).unwrap()).map(|id| (id, runtime.session(id).unwrap())).collect();
        let free = gpu.free_bytes();
        Self { gpu, runtime, sets, tenants, free }
    }

    fn replan(&self, sets: Vec<TpcSet>) {
        *self.sets.lock().unwrap() = sets;
        self.runtime.set_policy(Box::new(Dictated(Arc::clone(&self.sets)))).unwrap();
    }

    /// One request, replayed or eager; it must run where the plan says.
    fn request(&mut self, tenant: usize, replays: bool) {
        let (id, session) = &mut self.tenants[tenant];
        let body = |session: &mut Session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel));
        if replays { session.replay_or_capture::<LaunchError>(WorkId(0), body) } else { body(session) }.unwrap();
        let plan = &self.runtime.plan().tenants[id];
        for kernel in self.gpu.trace(session) {
            let planned = KERNELS.iter().find(|known| known.name == kernel.symbol).map(|known| plan.placement(known.key().fingerprint()));
            assert_eq!(planned.map(|placement| placement.sms), Some(Sms(2 * kernel.tpcs.len())), "{}", kernel.symbol);
        }
    }

    fn assert_within_the_limit(&self) {
        assert!(self.free - self.gpu.free_bytes() <= LIMIT * PARTITION_BYTES);
    }
}

/// Four TPCs or more, so that a kernel's 528 tiles reach every SM.
fn random_set() -> impl Strategy<Value = TpcSet> {
    (0_u16..60, 4_u16..30).prop_map(|(from, tpcs)| TpcSet::range(from, (from + tpcs).min(66)))
}

proptest! {
    // A failure of a run this long is not made much clearer by shrinking, and a seed file of it is long.
    #![proptest_config(ProptestConfig { cases: 10, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Ten runs of a thousand plans.
    #[test]
    fn ten_thousand_random_plans_never_exceed_the_limit_and_never_lose_a_partition_in_use(
        plans in prop::collection::vec((prop::collection::vec(random_set(), 1..=12), 0_usize..TENANTS, any::<bool>()), 1000),
    ) {
        let mut house = House::new();
        for (sets, busy, replays) in plans {
            house.replan(sets);
            house.assert_within_the_limit();
            // The others stay behind, on partitions of an earlier plan.
            house.request(busy, replays);
            house.assert_within_the_limit();
        }
        for tenant in 0..TENANTS {
            house.request(tenant, true);
        }
    }
}

#[test]
fn plans_that_take_turns_capture_once_each_and_one_that_changes_only_a_neighbour_not_at_all() {
    let mut house = House::new();
    let [left, right, narrow] = [TpcSet::range(0, 20), TpcSet::range(20, 60), TpcSet::range(30, 40)];
    let plan = |first, others| [[first; 4], [others; 4], [others; 4]].concat();
    let captured = |house: &House| house.tenants[0].1.stats().launches;
    for (sets, captures) in [
        (plan(left, right), 1),
        (plan(left, narrow), 1),
        (plan(right, narrow), 2),
        (plan(left, right), 2),
        (plan(right, right), 2),
        (plan(narrow, left), 3),
        (plan(left, narrow), 3),
    ] {
        house.replan(sets);
        house.request(0, true);
        house.request(0, true);
        assert_eq!(captured(&house), captures * KERNELS.len() as u64);
    }
    assert_eq!(house.tenants[0].1.stats().replays, 14);
    assert_eq!(house.tenants[0].1.kept_graphs(), 3);
}

#[test]
fn a_plan_that_comes_into_force_during_a_request_is_prepared_for_while_the_request_runs() {
    let mut house = House::new();
    let [left, right] = [TpcSet::range(0, 20), TpcSet::range(20, 60)];
    let body = |session: &mut Session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel));
    house.replan(vec![left]);
    house.request(0, true);
    assert!(house.tenants[0].1.replay_kept(WorkId(0)).unwrap());
    assert!(!house.tenants[0].1.prepare::<LaunchError>(WorkId(0), body).unwrap(), "the plan is the same");
    house.replan(vec![right]);
    let session = &mut house.tenants[0].1;
    assert!(session.prepare::<LaunchError>(WorkId(0), body).unwrap());
    assert!(!session.prepare::<LaunchError>(WorkId(0), body).unwrap(), "once is enough");
    session.replay_or_capture::<LaunchError>(WorkId(0), |_| unreachable!("it is kept")).unwrap();
    house.gpu.trace(&house.tenants[0].1);
    house.request(0, true);
}

/// Gives the first tenant a set of its own for each margin, all of different sizes.
#[derive(Default)]
struct ByMargin(Adjustments);

impl Policy for ByMargin {
    fn name(&self) -> &'static str {
        "by-margin"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn adapts(&self) -> bool {
        true
    }

    fn adjust(&mut self, adjustments: Adjustments) {
        self.0 = adjustments;
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let draft = |tenant: &TenantDemand| {
            let margin = self.0.margins.get(&tenant.id).copied().unwrap_or(0.9);
            let tpcs = TpcSet::range(0, (40.0 * margin) as u16);
            let default = DraftPlacement { sms: topology.sms_of(tpcs), tpcs, priority: Priority::Normal };
            TenantDraft { owned: tpcs, grant: tpcs, default, kernels: BTreeMap::new(), walls: Walls::default() }
        };
        tenants.iter().map(|tenant| (tenant.id, draft(tenant))).collect()
    }
}

#[test]
fn plans_that_may_come_have_half_of_the_ladder_and_the_likeliest_of_them_need_no_partition_when_they_do() {
    const LIMIT: u64 = 8;
    let (gpu, slo) = (Gpu::h200(), Duration::from_millis(1));
    let options = RuntimeOptions { partition_bytes: Some(LIMIT * PARTITION_BYTES), ..RuntimeOptions::default() };
    let policy = Box::new(ByMargin::default());
    let runtime = Runtime::with_options(Arc::clone(&gpu.device), policy, Arc::new(ProfileStore::default()), options);
    let spec = TenantSpec { name: "a".to_owned(), class: Class::Latency, slo: Some(slo), memory_bytes: 0 };
    let id = runtime.admit(spec).unwrap();
    let mut session = runtime.session(id).unwrap();
    let mut log = runtime.request_log(id).unwrap();
    KERNELS.iter().for_each(|kernel| session.launch(kernel).unwrap());
    // There are more margins than partitions may exist.
    runtime.learn(id, session.seen()).unwrap();
    assert_eq!(gpu.sim.counts().partitions, LIMIT / 2);

    let later = gpu.device.create_partition(TpcSet::range(60, 61)).unwrap();
    let before = runtime.plan().tenant(id).unwrap().default.sms;
    let mut adapted = || {
        (0..1000).for_each(|_| log.answered(Duration::ZERO, 2 * slo, 2.0));
        runtime.adapt().unwrap()
    };
    assert!((0..10).any(|_| adapted()), "every request misses");
    let placement = runtime.plan().tenant(id).unwrap().default;
    assert_ne!(placement.sms, before);
    assert!(placement.partition < later, "{:?} was made when its plan came", placement.partition);
}

#[test]
fn the_graph_replayed_longest_ago_makes_room_and_its_partition_can_go() {
    let mut house = House::new();
    house.tenants[0].1.limit_graphs(GraphLimits { graphs: 2, launches: u64::MAX });
    let sets: Vec<_> = (0..5).map(|at| TpcSet::range(4 * at, 4 * at + 4)).collect();
    for &set in &sets {
        house.replan(vec![set]);
        house.request(0, true);
    }
    let session = &house.tenants[0].1;
    assert_eq!((session.kept_graphs(), session.stats().launches), (2, 15));
    house.replan(vec![sets[3]]);
    house.request(0, true);
    assert_eq!(house.tenants[0].1.stats().launches, 15, "kept");
    house.replan(vec![sets[0]]);
    house.request(0, true);
    assert_eq!(house.tenants[0].1.stats().launches, 18, "captured again");
    let session = &mut house.tenants[0].1;
    session.limit_graphs(GraphLimits { graphs: 9, launches: 3 });
    assert_eq!(session.kept_graphs(), 1);
    assert!(session.replay_kept(WorkId(0)).unwrap());
    assert!(!session.replay_kept(WorkId(1)).unwrap());
    house.gpu.device.pass_time(Duration::MAX);
}

#[test]
fn a_ladder_without_room_names_the_option_that_gives_it_some() {
    let error = Ladder::new(Gpu::h200().device, 0).partition(TpcSet::range(0, 1)).unwrap_err().to_string();
    assert!(error.contains("RuntimeOptions::partition_bytes") && !error.contains(" 0 partitions"), "{error}");
}
