//! What holds whatever happens, in whatever order and on however many threads.

use super::*;

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
