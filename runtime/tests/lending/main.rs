//! Lending through the runtime, on the simulator: a tenant's TPCs are others' between its requests and its own from their first moment on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use smidgen_runtime::device::{Priority, Sms, Topology};
use smidgen_runtime::launch::lending::{DEFAULT_HYSTERESIS, Holdings};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Session, Walls, Work, WorkId};
use smidgen_runtime::partition::{PARTITION_BYTES, TpcSet};
use smidgen_runtime::policy::{Draft, DraftPlacement, Policy, Slo, TenantDemand, TenantDraft};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::telemetry::Recording;
use smidgen_runtime::telemetry::trace::Happening;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime, RuntimeOptions};

mod growth;
mod promises;
#[path = "../support/mod.rs"]
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
            begins_by_number: false,
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
        Self::with(Box::new(Borrowing))
    }

    fn with(policy: Box<dyn Policy>) -> Self {
        Self::recorded(policy, RuntimeOptions::default())
    }

    fn recorded(policy: Box<dyn Policy>, options: RuntimeOptions) -> Self {
        let gpu = Gpu::h200();
        let runtime = Runtime::with_options(Arc::clone(&gpu.device), policy, Arc::new(ProfileStore::default()), options);
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
fn the_timeline_shows_who_lends_and_who_borrows() {
    let recording = Recording { events: 1 << 8, sampling: false };
    let house = House::recorded(Box::new(Borrowing), RuntimeOptions { recording, ..RuntimeOptions::default() });
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (owner, mut latency) = house.idle_owner();
    let shown = || {
        let trace = house.runtime.telemetry().trace();
        [owner, borrower].map(|tenant| {
            let grants = trace.tenants[&tenant].events.iter().rev().map(|event| event.what);
            grants
                .filter_map(|what| if let Happening::Grant { owned, held, borrowed } = what { Some([owned, held, borrowed]) } else { None })
                .next()
        })
    };
    let [all, first, rest] = [ALL, FIRST, ALL - FIRST].map(|tpcs| house.gpu.device.topology().sms_of(tpcs));
    assert_eq!(shown(), [Some([first, Sms(0), Sms(0)]), Some([rest, all, first])]);
    latency.begin_request().unwrap();
    assert_eq!(shown(), [Some([first, first, Sms(0)]), Some([rest, rest, Sms(0)])]);
    house.runtime.dismiss(owner).unwrap();
    assert_eq!(shown(), [Some([Sms(0); 3]), Some([all, all, Sms(0)])]);
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
    assert!(!batch.grow().unwrap(), "whoever polls meanwhile is told of no error");
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
fn slo_plans_nobody_onto_the_tpcs_of_a_tenant_that_never_pauses_until_it_does() {
    let house = House::with(Box::new(Slo::default()));
    let (borrower, _batch) = house.admit(Class::Throughput);
    let (owner, mut latency) = house.idle_owner();
    let owned = house.has(owner).owned;
    assert_eq!(house.has(borrower).borrowed, owned);
    let windows_until_a_plan = |most| (1..=most).find(|_| house.runtime.adapt().unwrap());
    assert_eq!(windows_until_a_plan(100), None, "it rests all the time");

    latency.begin_request().unwrap();
    assert_eq!(windows_until_a_plan(100), Some(6), "in the first window it rested");
    assert_eq!(house.runtime.plan().tenants[&borrower].grant & owned, TpcSet::EMPTY);

    latency.end_request().unwrap();
    house.pass(DEFAULT_HYSTERESIS / 2);
    house.runtime.settle().unwrap();
    assert_eq!(windows_until_a_plan(3), None, "a pause too short to lend in");
    house.lend();
    assert_eq!(windows_until_a_plan(3), Some(1));
    assert_eq!(house.has(borrower).borrowed, owned);
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
fn nobody_is_told_of_the_holdings_of_a_tenant_that_is_gone() {
    let house = House::new();
    let (id, _session) = house.admit(Class::Latency);
    house.runtime.dismiss(id).unwrap();
    assert!(matches!(house.runtime.holdings(id), Err(AdmitError::Unknown(_))));
}
