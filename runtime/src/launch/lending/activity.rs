//! Whether a tenant is at work, and the two moves that must not miss each other: its requests take back what it lent, and somebody else
//! lends what it does not use.

use crate::atomics::{AtomicU32, Ordering, fence};
use crate::partition::ledger::{Borrowers, Holder, Ledger};

/// The requests of one tenant that have begun and not ended, over all of its sessions.
#[derive(Debug)]
pub(super) struct Activity {
    requests: AtomicU32,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { requests: AtomicU32::new(0) }
    }

    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Acquire) > 0
    }

    /// A request begins. The first one takes back all that `owner` lent; says who must leave.
    pub(super) fn begin(&self, ledger: &Ledger, owner: Holder) -> Borrowers {
        if self.requests.fetch_add(1, Ordering::AcqRel) > 0 {
            return Borrowers::default();
        }
        // Pairs with the fence in `lend`: either it sees this request, or this sees what it lent.
        fence(Ordering::SeqCst);
        ledger.reclaim_all(owner)
    }

    /// A request that began has ended. Whether it was the last.
    pub(super) fn end(&self) -> bool {
        self.requests.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Lends what `owner` has to whom `borrower_of` names for each TPC, and takes it back if a request began meanwhile. Says whose grants change.
    /// A request that begins at that very moment may find TPCs lent for as long as this takes from lending to noticing; no grant is written in between
    /// by this thread.
    ///
    /// Lenders come one at a time: one that noticed a request late would else take back what another has lent since that request ended.
    pub(super) fn lend(&self, ledger: &Ledger, owner: Holder, borrower_of: impl Fn(u16) -> Option<Holder>) -> Borrowers {
        let mut changed = Borrowers::default();
        if self.is_busy() {
            return changed;
        }
        for tpc in ledger.owned_by(owner).iter() {
            if let Some(borrower) = borrower_of(tpc)
                && ledger.lend(tpc, owner, borrower)
            {
                changed.add(borrower);
            }
        }
        for &borrower in self.keep(ledger, owner).as_slice() {
            changed.add(borrower);
        }
        changed
    }

    /// Takes back what is lent if a request is under way: after whatever may have lent, or changed the owner of what is lent.
    pub(super) fn keep(&self, ledger: &Ledger, owner: Holder) -> Borrowers {
        fence(Ordering::SeqCst);
        if self.is_busy() { ledger.reclaim_all(owner) } else { Borrowers::default() }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::convert::Infallible;

    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;
    use crate::launch::turn::Turn;

    /// A TPC, its owner, a borrower, and the borrower's grant as the device would see it.
    struct House {
        ledger: Ledger,
        activity: Activity,
        turn: Turn,
        grant: AtomicU32,
        lenders: Mutex<()>,
    }

    impl House {
        fn new() -> Arc<Self> {
            let ledger = Ledger::new(1);
            assert!(ledger.own(0, owner()));
            Arc::new(Self { ledger, activity: Activity::new(), turn: Turn::new(), grant: AtomicU32::new(0), lenders: Mutex::new(()) })
        }

        fn refresh(&self, changed: Borrowers) {
            for &holder in changed.as_slice() {
                assert_eq!(holder, borrower());
                let written: Result<(), Infallible> = self.turn.run(|| {
                    self.grant.store(self.ledger.usable_by(holder).len().into(), Ordering::Relaxed);
                    Ok(())
                });
                written.unwrap();
            }
        }

        fn begin(&self) {
            self.refresh(self.activity.begin(&self.ledger, owner()));
        }

        fn lend(&self) {
            let _one_at_a_time = self.lenders.lock().unwrap();
            self.refresh(self.activity.lend(&self.ledger, owner(), |_| Some(borrower())));
        }

        /// What the grant would be if it were written now.
        fn truth(&self) -> u32 {
            self.ledger.usable_by(borrower()).len().into()
        }
    }

    fn owner() -> Holder {
        Holder::new(0).unwrap()
    }

    fn borrower() -> Holder {
        Holder::new(1).unwrap()
    }

    #[test]
    fn loom_a_request_that_begins_while_its_tpcs_are_lent_has_them_in_the_end() {
        loom::model(|| {
            let house = House::new();
            let other = Arc::clone(&house);
            let lender = thread::spawn(move || other.lend());
            house.begin();
            lender.join().unwrap();
            assert_eq!((house.truth(), house.grant.load(Ordering::Relaxed)), (0, 0));
        });
    }

    #[test]
    fn loom_the_grant_written_last_is_what_the_ledger_says() {
        loom::model(|| {
            let house = House::new();
            house.lend();
            let other = Arc::clone(&house);
            let lender = thread::spawn(move || other.lend());
            house.begin();
            house.activity.end();
            house.lend();
            lender.join().unwrap();
            assert_eq!((house.truth(), house.grant.load(Ordering::Relaxed)), (1, 1));
        });
    }

    #[test]
    fn loom_of_two_sessions_requests_the_first_takes_back_and_the_last_lets_go() {
        loom::model(|| {
            let house = House::new();
            house.lend();
            let other = Arc::clone(&house);
            let second = thread::spawn(move || {
                other.begin();
                other.activity.end()
            });
            house.begin();
            let mine_was_last = house.activity.end();
            assert!(second.join().unwrap() || mine_was_last);
            assert!(!house.activity.is_busy());
            assert_eq!((house.truth(), house.grant.load(Ordering::Relaxed)), (0, 0));
        });
    }

    #[test]
    fn loom_a_dismissal_while_lent_leaves_the_borrower_alone_with_the_tpc() {
        loom::model(|| {
            let house = House::new();
            let other = Arc::clone(&house);
            let lender = thread::spawn(move || other.lend());
            assert!(house.ledger.release(0, owner()));
            lender.join().unwrap();
            let holding = house.ledger.holding(0);
            assert_eq!(holding.owner, None);
            assert_eq!(house.grant.load(Ordering::Relaxed), u32::from(holding.borrower == Some(borrower())));
        });
    }
}
