//! Lending through the runtime, on the simulator: a tenant's TPCs are others' between its requests and its own from their first moment on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use smidgen_runtime::device::{Priority, Sms, Topology};
use smidgen_runtime::launch::lending::{DEFAULT_HYSTERESIS, Holdings};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Session, Walls, Work, WorkId};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Draft, DraftPlacement, Policy, TenantDemand, TenantDraft};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime};

mod support;

use support::Gpu;

/// How long a tile of [`LONG`] takes.
const TILE: Duration = Duration::from_micros(15);
/// From the host's call to what it does: the copies and launches of the simulated H200, with room.
const REACTION: Duration = Duration::from_micros(12);
/// TPCs of each latency tenant.
const OWNED: u16 = 11;

/// Arithmetic that takes so many microseconds on the whole GPU, in so many tiles for each SM.
#[derive(Debug, Clone, Copy)]
struct Busy {
    name: &'static str,
    us: u64,
    tiles_per_sm: u32,
}

/// 4.7 ms, elastic.
const LONG: Busy = Busy { name: "long", us: 15 * 316, tiles_per_sm: 316 };
/// A latency tenant's kernel: one block on each SM that it is placed on, 60 us on 22 SMs.
const SHORT: Busy = Busy { name: "short", us: 10, tiles_per_sm: 1 };

// SAFETY: the simulator runs no device code.
unsafe impl Kernel for Busy {
    fn key(&self) -> KernelKey {
        KernelKey::new(KernelName::new(self.name), [])
    }

    fn work(&self) -> Work {
        Work { flops: self.us * 640_000_000, bytes: 0 }
    }

    fn configure(&self, sms: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        let elastic = self.tiles_per_sm > 1;
        let tiles = if elastic { 132 * self.tiles_per_sm } else { sms.get() };
        Ok(Launch {
            symbol: self.name,
            grid: Launch::persistent_grid(tiles, sms, 1),
            block: 128,
            shared_bytes: 0,
            blocks_per_sm: 1,
            tiles,
            blocks_per_tile: 1,
            elastic,
            programmatic: false,
            params: Params::new(0_u32),
        })
    }
}

/// Latency tenants own [`OWNED`] TPCs each, from the first on; throughput tenants share what is left equally and may borrow everything.
struct Borrowing;

impl Policy for Borrowing {
    fn name(&self) -> &'static str {
        "borrowing"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let all = topology.all_tpcs();
        let walls = Walls { grid: true, grant: true, partition: true };
        let (latency, throughput): (Vec<_>, Vec<_>) = tenants.iter().partition(|tenant| tenant.class == Class::Latency);
        let mut next = 0;
        let mut take = |tpcs: u16| {
            next += tpcs;
            TpcSet::range(next - tpcs, next)
        };
        let draft = |owned: TpcSet, grant: TpcSet, priority| {
            let default = DraftPlacement { sms: topology.sms_of(grant), tpcs: grant, priority };
            TenantDraft { owned, grant, default, kernels: BTreeMap::new(), walls }
        };
        let mut drafts = Draft::new();
        for tenant in &latency {
            let owned = take(OWNED);
            drafts.insert(tenant.id, draft(owned, owned, Priority::High));
        }
        let mut left = all.len() - OWNED * latency.len() as u16;
        for (tenant, shares) in throughput.iter().zip((1..=throughput.len() as u16).rev()) {
            drafts.insert(tenant.id, draft(take(left / shares), all, Priority::Normal));
            left -= left / shares;
        }
        drafts
    }
}

struct House {
    gpu: Gpu,
    runtime: Arc<Runtime>,
}

impl House {
    fn new() -> Self {
        let gpu = Gpu::h200();
        let runtime = Runtime::new(Arc::clone(&gpu.device), Box::new(Borrowing), Arc::new(ProfileStore::default()));
        Self { gpu, runtime: Arc::new(runtime) }
    }

    fn admit(&self, class: Class) -> (TenantId, Session) {
        let id = self.runtime.admit(TenantSpec { name: String::new(), class, slo: None, memory_bytes: 0 }).unwrap();
        (id, self.runtime.session(id).unwrap())
    }

    /// A latency tenant that has said that it is idle, and whose TPCs are lent by now if anybody may borrow them.
    fn idle_owner(&self) -> (TenantId, Session) {
        let (id, mut session) = self.admit(Class::Latency);
        session.end_request().unwrap();
        self.lend();
        (id, session)
    }

    /// Lets the hysteresis pass, and what is due be lent.
    fn lend(&self) {
        self.pass(DEFAULT_HYSTERESIS);
        assert_eq!(self.runtime.settle().unwrap(), None, "everything due was lent");
        self.pass(REACTION);
    }

    fn pass(&self, time: Duration) {
        let until = self.gpu.device.now() + time;
        while self.gpu.device.now() < until {
            self.gpu.device.pass_time(until);
        }
    }

    fn has(&self, tenant: TenantId) -> Holdings {
        self.runtime.holdings(tenant).unwrap()
    }

    fn wait(&self, session: &Session) {
        self.gpu.device.synchronize(session.stream()).unwrap();
    }
}

const FIRST: TpcSet = TpcSet::range(0, OWNED);
const SECOND: TpcSet = TpcSet::range(OWNED, 2 * OWNED);
const ALL: TpcSet = TpcSet::range(0, 66);

#[test]
fn a_borrower_gives_sms_back_when_their_owner_begins_a_request_and_gets_them_again_after_it_ended() {
    let house = House::new();
    let (borrower, mut batch) = house.admit(Class::Throughput);
    let (owner, mut latency) = house.idle_owner();
    let lent = Holdings { owned: FIRST, lent: FIRST, borrowed: TpcSet::EMPTY, granted: FIRST };
    assert_eq!(house.has(owner), lent);
    assert_eq!(house.has(borrower), Holdings { owned: ALL - FIRST, lent: TpcSet::EMPTY, borrowed: FIRST, granted: ALL });

    batch.launch(&LONG).unwrap();
    house.pass(Duration::from_micros(500));
    let arrival = house.gpu.device.now();
    latency.begin_request().unwrap();
    assert_eq!(house.has(borrower).granted, ALL - FIRST);
    latency.launch(&SHORT).unwrap();
    house.wait(&latency);
    latency.end_request().unwrap();
    let served = house.gpu.sim.take_trace().pop().unwrap();
    assert_eq!((served.symbol, served.tpcs), ("short", FIRST));
    assert!(served.started - arrival <= TILE + REACTION, "it waited for {:?}", served.started - arrival);

    assert_eq!(house.has(borrower).borrowed, TpcSet::EMPTY, "not before the hysteresis has passed");
    house.lend();
    assert_eq!(house.has(borrower).granted, ALL);
    house.wait(&batch);
    batch.launch(&LONG).unwrap();
    let trace = house.gpu.trace(&batch);
    assert_eq!(trace.last().unwrap().tpcs, ALL, "the next kernel is on the whole GPU again");
}

#[test]
fn replays_of_one_graph_follow_what_is_lent_and_lend_what_is_due_themselves() {
    let house = House::new();
    let (_, mut batch) = house.admit(Class::Throughput);
    let (_, mut latency) = house.idle_owner();
    batch.launch(&LONG).unwrap();
    house.wait(&batch);
    let graph = batch.capture(|session| session.launch(&LONG)).unwrap();
    house.gpu.sim.take_trace();
    let mut replay = || {
        batch.replay(&graph).unwrap();
        house.gpu.trace(&batch).pop().unwrap().tpcs
    };
    assert_eq!(replay(), ALL);
    latency.begin_request().unwrap();
    house.pass(REACTION);
    assert_eq!(replay(), ALL - FIRST);
    latency.end_request().unwrap();
    house.pass(DEFAULT_HYSTERESIS);
    // Nobody settles: this replay notices, and the copy overtakes it.
    assert_eq!(replay(), ALL);
}

#[test]
fn a_tenant_that_never_announces_requests_lends_nothing() {
    let house = House::new();
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (owner, mut latency) = house.admit(Class::Latency);
    latency.launch(&SHORT).unwrap();
    house.wait(&latency);
    house.lend();
    assert_eq!((house.has(owner).lent, house.has(borrower).granted), (TpcSet::EMPTY, ALL - FIRST));
}

#[test]
fn a_borrower_has_its_grant_without_what_active_owners_have() {
    let house = House::new();
    let (borrower, _batch) = house.admit(Class::Throughput);
    let mut owners = [house.idle_owner(), house.idle_owner()].map(|(_, session)| session);
    let owned = [FIRST, SECOND];
    for active in [[false, false], [true, false], [true, true], [false, true], [false, false]] {
        for (owner, active) in owners.iter_mut().zip(active) {
            if active { owner.begin_request().unwrap() } else { owner.end_request().unwrap() }
        }
        house.lend();
        let taken = owned.into_iter().zip(active).filter(|(_, active)| *active).fold(TpcSet::EMPTY, |taken, (owned, _)| taken | owned);
        assert_eq!(house.has(borrower).granted, ALL - taken, "{active:?}");
        owners.iter_mut().zip(active).filter(|(_, active)| *active).for_each(|(owner, _)| owner.end_request().unwrap());
    }
}

#[test]
fn two_borrowers_share_what_is_lent_and_no_tpc_is_both_ones() {
    let house = House::new();
    let (first, _one) = house.admit(Class::Throughput);
    let (second, _other) = house.admit(Class::Throughput);
    let (owner, mut latency) = house.idle_owner();
    let (one, other) = (house.has(first), house.has(second));
    assert!(one.granted.is_disjoint(other.granted));
    assert_eq!(one.borrowed | other.borrowed, FIRST);
    assert!(one.borrowed.len().abs_diff(other.borrowed.len()) <= 1, "{one:?} {other:?}");
    latency.begin_request().unwrap();
    assert_eq!(house.has(owner).lent, TpcSet::EMPTY);
    assert!([first, second].iter().all(|&tenant| house.has(tenant).granted.is_disjoint(FIRST)));
}

#[test]
fn overlapping_requests_of_two_sessions_keep_the_tpcs_until_the_last_has_ended() {
    let house = House::new();
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (owner, mut one) = house.idle_owner();
    let mut other = house.runtime.session(owner).unwrap();
    one.begin_request().unwrap();
    other.begin_request().unwrap();
    other.begin_request().unwrap();
    one.end_request().unwrap();
    house.lend();
    assert_eq!(house.has(borrower).borrowed, TpcSet::EMPTY);
    // Dropped with two requests under way.
    drop(other);
    house.lend();
    assert_eq!(house.has(borrower).borrowed, FIRST);
}

#[test]
fn requests_that_end_too_often_or_begin_in_a_capture_do_no_harm() {
    let house = House::new();
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (owner, mut latency) = house.idle_owner();
    latency.end_request().unwrap();
    latency.end_request().unwrap();
    latency.begin_request().unwrap();
    latency.launch(&SHORT).unwrap();
    house.lend();
    assert_eq!(house.has(owner).lent, TpcSet::EMPTY, "what ended too often does not count against the next");
    let refused = latency.capture(|session| session.end_request().and_then(|()| session.begin_request()));
    assert!(matches!(refused, Err(LaunchError::InCapture)));
    let graph = latency.capture(|session| session.launch(&SHORT)).unwrap();
    latency.replay(&graph).unwrap();
    latency.end_request().unwrap();
    house.lend();
    assert_eq!(house.has(borrower).borrowed, FIRST);

    house.runtime.dismiss(owner).unwrap();
    assert!(matches!(latency.begin_request(), Err(LaunchError::Dismissed)));
    latency.end_request().unwrap();
}

#[test]
fn without_hysteresis_tpcs_are_lent_as_the_request_ends() {
    let house = House::new();
    house.runtime.set_hysteresis(Duration::ZERO);
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (_, mut latency) = house.admit(Class::Latency);
    latency.begin_request().unwrap();
    latency.end_request().unwrap();
    assert_eq!(house.has(borrower).borrowed, FIRST);
}

#[test]
fn settle_says_when_to_call_again() {
    let house = House::new();
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (_, mut latency) = house.admit(Class::Latency);
    assert_eq!(house.runtime.settle().unwrap(), None);
    latency.begin_request().unwrap();
    house.pass(Duration::from_micros(70));
    latency.end_request().unwrap();
    let due = house.runtime.settle().unwrap().unwrap();
    assert_eq!(due, house.gpu.device.now() + DEFAULT_HYSTERESIS);
    house.pass(due - house.gpu.device.now() - Duration::from_nanos(1));
    assert_eq!((house.runtime.settle().unwrap(), house.has(borrower).borrowed), (Some(due), TpcSet::EMPTY));
    house.pass(Duration::from_nanos(1));
    assert_eq!((house.runtime.settle().unwrap(), house.has(borrower).borrowed), (None, FIRST));
}

#[test]
fn dismissing_an_owner_whose_tpcs_are_lent_gives_them_to_the_borrower_for_good() {
    let house = House::new();
    let (borrower, mut batch) = house.admit(Class::Throughput);
    let (owner, latency) = house.idle_owner();
    batch.launch(&LONG).unwrap();
    house.pass(Duration::from_micros(500));
    house.runtime.dismiss(owner).unwrap();
    assert_eq!(house.has(borrower), Holdings { owned: ALL, lent: TpcSet::EMPTY, borrowed: TpcSet::EMPTY, granted: ALL });
    assert_eq!(house.gpu.trace(&batch).pop().unwrap().tpcs, ALL);
    drop(latency);
    assert_eq!(house.has(borrower).owned, ALL, "the end of the dismissed tenant's session changes nothing");
}

#[test]
fn a_paused_owner_s_tpcs_are_the_others_own_and_are_lent_again_after_it_was_resumed() {
    let house = House::new();
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (owner, mut latency) = house.idle_owner();
    house.runtime.pause(owner).unwrap();
    let paused = house.has(owner);
    assert_eq!((paused.owned, paused.lent, paused.borrowed), (TpcSet::EMPTY, TpcSet::EMPTY, TpcSet::EMPTY));
    assert_eq!(house.has(borrower), Holdings { owned: ALL, granted: ALL, ..Holdings::default() });
    assert!(matches!(latency.begin_request(), Err(LaunchError::Paused)));
    latency.end_request().unwrap();

    house.runtime.resume(owner).unwrap();
    house.lend();
    assert_eq!(house.has(owner), Holdings { owned: FIRST, lent: FIRST, borrowed: TpcSet::EMPTY, granted: FIRST });
    assert_eq!(house.has(borrower).borrowed, FIRST);
    latency.begin_request().unwrap();
    assert_eq!(house.has(borrower).granted, ALL - FIRST);
}

#[test]
fn what_a_paused_tenant_has_launched_ends_on_the_tpcs_that_it_had() {
    let house = House::new();
    let (_owner, _latency) = house.admit(Class::Latency);
    let (id, mut batch) = house.admit(Class::Throughput);
    batch.launch(&LONG).unwrap();
    house.pass(Duration::from_micros(500));
    house.runtime.pause(id).unwrap();
    let kernel = house.gpu.trace(&batch).pop().unwrap();
    assert!(kernel.ended - kernel.started < Duration::from_micros(LONG.us) * 66 / 50, "{:?}", kernel.ended - kernel.started);
}

#[test]
fn dismissing_a_borrower_returns_what_it_borrowed_within_a_tile() {
    let house = House::new();
    let (borrower, mut batch) = house.admit(Class::Throughput);
    let (owner, mut latency) = house.idle_owner();
    batch.launch(&LONG).unwrap();
    house.pass(Duration::from_micros(500));
    house.runtime.dismiss(borrower).unwrap();
    assert_eq!(house.has(owner).lent, TpcSet::EMPTY);
    house.pass(TILE + REACTION);
    let arrival = house.gpu.device.now();
    latency.begin_request().unwrap();
    latency.launch(&SHORT).unwrap();
    house.wait(&latency);
    let served = house.gpu.sim.take_trace().pop().unwrap();
    assert!(served.started - arrival <= REACTION, "it waited for {:?}", served.started - arrival);
    house.wait(&batch);
}

#[test]
fn a_plan_without_borrowing_ends_all_loans() {
    let house = House::new();
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (owner, _latency) = house.idle_owner();
    house.runtime.set_policy(Box::new(smidgen_runtime::policy::StaticEqual)).unwrap();
    let half =
        |first| Holdings { owned: TpcSet::range(first, first + 33), granted: TpcSet::range(first, first + 33), ..Holdings::default() };
    assert_eq!((house.has(borrower), house.has(owner)), (half(0), half(33)));
    house.runtime.set_policy(Box::new(Borrowing)).unwrap();
    assert_eq!(house.has(borrower).borrowed, FIRST, "the owner is still idle");
}

#[test]
fn a_grant_set_by_hand_is_neither_widened_by_loans_nor_kept_by_the_next_plan() {
    let house = House::new();
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (owner, mut latency) = house.idle_owner();
    house.runtime.set_grant(borrower, TpcSet::range(30, 40)).unwrap();
    latency.begin_request().unwrap();
    latency.end_request().unwrap();
    house.lend();
    assert_eq!((house.has(owner).lent, house.has(borrower).granted), (TpcSet::EMPTY, TpcSet::range(30, 40)));
    house.runtime.set_policy(Box::new(Borrowing)).unwrap();
    assert_eq!(house.has(borrower).granted, ALL);
}

#[test]
fn a_long_launch_grows_onto_tpcs_that_came_back_while_it_ran() {
    let house = House::new();
    let (borrower, mut batch) = house.admit(Class::Throughput);
    let (_, mut latency) = house.idle_owner();
    // The counter is in a later epoch then, also for what a replay adds to it.
    batch.launch(&LONG).unwrap();
    let graph = batch.capture(|session| session.launch(&LONG)).unwrap();
    batch.replay(&graph).unwrap();
    house.wait(&batch);

    let mut timed = |grows: bool| {
        latency.begin_request().unwrap();
        house.pass(REACTION);
        house.gpu.sim.take_trace();
        let start = house.gpu.device.now();
        batch.launch(&LONG).unwrap();
        assert!(!batch.grow().unwrap(), "nothing came back yet");
        house.pass(Duration::from_micros(500));
        latency.end_request().unwrap();
        house.lend();
        assert_eq!(house.has(borrower).granted, ALL);
        assert_eq!(grows && batch.grow().unwrap(), grows);
        assert!(!grows || !batch.grow().unwrap(), "once for each time that TPCs come back");
        house.wait(&batch);
        (house.gpu.device.now() - start, house.gpu.sim.take_trace())
    };
    let (without, trace) = timed(false);
    assert_eq!(trace.iter().map(|kernel| kernel.tpcs).collect::<Vec<_>>(), [ALL - FIRST]);
    let (with, trace) = timed(true);
    assert_eq!(trace.iter().map(|kernel| kernel.tpcs).collect::<Vec<_>>(), [ALL - FIRST, FIRST]);
    // 0.7 ms on 110 SMs, the rest on 132.
    let expected = (without.as_secs_f64() - 0.7e-3) * 110.0 / 132.0 + 0.7e-3;
    assert!((with.as_secs_f64() / expected - 1.0).abs() < 0.02, "{with:?}, {without:?} without");
}

#[test]
fn a_long_launch_grows_onto_what_a_new_plan_gives_its_tenant() {
    let house = House::new();
    house.runtime.set_policy(Box::new(smidgen_runtime::policy::StaticEqual)).unwrap();
    let (_, mut stays) = house.admit(Class::Throughput);
    let (leaves, _session) = house.admit(Class::Throughput);
    stays.launch(&LONG).unwrap();
    house.pass(Duration::from_micros(500));
    house.runtime.dismiss(leaves).unwrap();
    assert!(stays.grow().unwrap());
    let trace = house.gpu.trace(&stays);
    assert_eq!(trace.iter().map(|kernel| kernel.tpcs).collect::<Vec<_>>(), [TpcSet::range(0, 33), TpcSet::range(33, 66)]);
}

#[test]
fn a_long_launch_of_a_replay_grows_and_what_the_replay_has_left_behind_does_not() {
    let house = House::new();
    let (borrower, mut batch) = house.admit(Class::Throughput);
    let (_, mut latency) = house.idle_owner();
    let brief = Busy { name: "brief", us: 20, tiles_per_sm: 10 };
    batch.launch(&LONG).unwrap();
    // Two of them on each counter, with another kernel between.
    let pass = |session: &mut Session| -> Result<(), LaunchError> {
        for kernel in [LONG, LONG, brief, LONG, LONG] {
            session.launch(&kernel)?;
        }
        Ok(())
    };
    batch.launch(&brief).unwrap();
    batch.capture_kept(WorkId(1), pass).unwrap();
    batch.replay_or_capture(WorkId(1), pass).unwrap();
    house.wait(&batch);

    house.gpu.sim.take_trace();
    batch.replay_or_capture(WorkId(1), pass).unwrap();
    let mut grown = 0;
    for _ in 0..20 {
        house.pass(Duration::from_micros(150));
        latency.begin_request().unwrap();
        house.pass(REACTION);
        assert!(!batch.grow().unwrap(), "nothing came back yet");
        house.pass(Duration::from_micros(100));
        latency.end_request().unwrap();
        house.lend();
        assert_eq!(house.has(borrower).granted, ALL);
        grown += u32::from(batch.grow().unwrap());
    }
    house.wait(&batch);
    let trace = house.gpu.sim.take_trace();
    let joined = trace.iter().filter(|kernel| kernel.tpcs == FIRST).count() as u32;
    assert!(grown > 4 && joined == grown, "{grown} joiners launched, {joined} ran");
    let owners: Vec<_> = trace.iter().filter(|kernel| kernel.tpcs != FIRST).collect();
    assert_eq!(owners.iter().map(|kernel| kernel.symbol).collect::<Vec<_>>(), ["long", "long", "brief", "long", "long"]);
    assert!(owners.windows(2).all(|pair| pair[0].ended <= pair[1].started));
}

#[test]
fn only_long_launches_grow_and_never_within_a_capture() {
    let house = House::new();
    let (_, mut batch) = house.admit(Class::Throughput);
    let (_, mut latency) = house.idle_owner();
    let brief = Busy { name: "brief", us: 150, tiles_per_sm: 10 };
    for kernel in [brief, LONG] {
        latency.begin_request().unwrap();
        house.pass(REACTION);
        batch.launch(&kernel).unwrap();
        latency.end_request().unwrap();
        house.lend();
        assert_eq!(batch.grow().unwrap(), kernel.name == LONG.name, "{}", kernel.name);
        house.wait(&batch);
    }
    assert!(matches!(batch.capture(|session| session.grow().map(drop)), Err(LaunchError::InCapture)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_owner_never_waits_longer_than_a_tile_for_what_it_lent(arrival_us in 0_u64..4000, pauses_us in prop::collection::vec(0_u64..600, 1..6)) {
        let house = House::new();
        let (_, mut batch) = house.admit(Class::Throughput);
        let (_, mut latency) = house.idle_owner();
        batch.launch(&LONG).unwrap();
        house.pass(Duration::from_micros(arrival_us));
        for pause in pauses_us {
            batch.launch(&LONG).unwrap();
            let arrival = house.gpu.device.now();
            latency.begin_request().unwrap();
            latency.launch(&SHORT).unwrap();
            house.wait(&latency);
            latency.end_request().unwrap();
            let trace = house.gpu.sim.take_trace();
            let served = trace.iter().rfind(|kernel| kernel.symbol == SHORT.name).unwrap();
            prop_assert!(served.started - arrival <= TILE + REACTION, "it waited for {:?}", served.started - arrival);
            prop_assert_eq!(served.tpcs, FIRST);
            // No block of the borrower stays on an SM of the owner's, where its kernel would need a second wave.
            let alone = Duration::from_micros(60);
            prop_assert!(served.ended - arrival <= alone + TILE + REACTION, "served after {:?}", served.ended - arrival);
            house.pass(Duration::from_micros(pause));
            house.runtime.settle().unwrap();
        }
        house.wait(&batch);
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Begin,
    End,
    Settle,
    Dismiss,
    Admit,
    Replan,
    ByHand,
}

fn event() -> impl Strategy<Value = Event> {
    use Event::{Admit, Begin, ByHand, Dismiss, End, Replan, Settle};
    prop_oneof![4 => Just(Begin), 4 => Just(End), 3 => Just(Settle), 1 => Just(Dismiss), 1 => Just(Admit), 1 => Just(Replan), 1 => Just(ByHand)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_no_tpc_has_two_users_and_a_request_under_way_has_all_that_is_its_own(
        events in prop::collection::vec((event(), 0_usize..5), 1..80),
    ) {
        let house = House::new();
        // With the requests that are under way.
        let mut tenants: Vec<(TenantId, Session, u32)> = Vec::new();
        for class in [Class::Throughput, Class::Latency, Class::Latency, Class::Throughput] {
            let (id, session) = house.admit(class);
            tenants.push((id, session, 0));
        }
        for (event, which) in events {
            let count = tenants.len();
            let at = which % count;
            let (id, session, open) = &mut tenants[at];
            match event {
                Event::Begin => {
                    session.begin_request().unwrap();
                    *open += 1;
                }
                Event::End => {
                    session.end_request().unwrap();
                    *open = open.saturating_sub(1);
                }
                Event::Settle => house.lend(),
                Event::Dismiss if count > 2 => {
                    let (id, ..) = tenants.remove(at);
                    house.runtime.dismiss(id).unwrap();
                }
                Event::Admit if count < 5 => {
                    let class = if which % 2 == 0 { Class::Latency } else { Class::Throughput };
                    let (id, session) = house.admit(class);
                    tenants.push((id, session, 0));
                }
                Event::ByHand => {
                    house.runtime.set_grant(*id, TpcSet::range(40, 50)).unwrap();
                    let has = house.has(*id);
                    prop_assert_eq!((has.borrowed, has.granted), (TpcSet::EMPTY, TpcSet::range(40, 50)));
                    house.runtime.set_policy(Box::new(Borrowing)).unwrap();
                }
                Event::Dismiss | Event::Admit | Event::Replan => house.runtime.set_policy(Box::new(Borrowing)).unwrap(),
            }
            let plan = house.runtime.plan();
            let (mut owned, mut borrowed, mut lent) = (TpcSet::EMPTY, TpcSet::EMPTY, TpcSet::EMPTY);
            for (id, _, open) in &tenants {
                let has = house.has(*id);
                prop_assert_eq!(has.owned, plan.tenants[id].owned);
                prop_assert!(has.owned.is_disjoint(owned) && has.borrowed.is_disjoint(borrowed) && has.owned.includes(has.lent));
                prop_assert!(*open == 0 || has.lent.is_empty(), "a request under way lacks {:?}", has.lent);
                let unowned = tenants.iter().fold(ALL, |left, (id, ..)| left - plan.tenants[id].owned);
                let mine = has.owned | has.borrowed;
                prop_assert!(has.granted.includes(mine) && (mine | unowned).includes(has.granted), "{has:?}");
                (owned, borrowed, lent) = (owned | has.owned, borrowed | has.borrowed, lent | has.lent);
            }
            prop_assert_eq!(borrowed, lent, "what is lent and what is borrowed");
        }
    }
}

#[test]
fn threads_that_begin_end_and_plan_at_once_leave_every_owner_what_is_its_own() {
    const ROUNDS: u32 = 3000;
    let house = House::new();
    house.runtime.set_hysteresis(Duration::ZERO);
    let (borrower, _batch) = house.admit(Class::Throughput);
    let owners = [house.idle_owner(), house.idle_owner(), house.idle_owner()];
    let ids = owners.each_ref().map(|(id, _)| *id);
    let mut sessions = owners.map(|(_, session)| session);
    thread::scope(|scope| {
        for (&id, session) in ids.iter().zip(&mut sessions) {
            let runtime = Arc::clone(&house.runtime);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    session.begin_request().unwrap();
                    // Who lends at the very moment takes it back himself, as soon as he runs again.
                    let noticed = Instant::now() + Duration::from_secs(10);
                    while !runtime.holdings(id).unwrap().lent.is_empty() {
                        assert!(Instant::now() < noticed, "lent during a request");
                        thread::yield_now();
                    }
                    assert_eq!(runtime.holdings(id).unwrap().owned.len(), OWNED);
                    session.end_request().unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..ROUNDS / 30 {
                house.runtime.set_policy(Box::new(Borrowing)).unwrap();
            }
        });
        scope.spawn(|| (0..ROUNDS).for_each(|_| house.runtime.settle().map(|_| ()).unwrap()));
    });
    // The last word of each grant is what the ledger says, whoever wrote it.
    house.runtime.settle().unwrap();
    assert_eq!(house.has(borrower).granted, ALL);
    sessions.iter_mut().for_each(|session| session.begin_request().unwrap());
    assert_eq!(house.has(borrower).granted, TpcSet::range(3 * OWNED, 66));
}

#[test]
fn nobody_is_told_of_the_holdings_of_a_tenant_that_is_gone() {
    let house = House::new();
    let (id, _session) = house.admit(Class::Latency);
    house.runtime.dismiss(id).unwrap();
    assert!(matches!(house.runtime.holdings(id), Err(AdmitError::Unknown(_))));
}
