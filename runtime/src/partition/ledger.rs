//! The ledger: who owns each TPC and who borrows it. Every grant is computed from it, so that it always tells the truth about them.
//!
//! Its readers and writers are threads of different tenants, and it has no lock: one word for each TPC, each transition one
//! compare-and-swap. What a sequence of transitions is for (a plan change, a request's beginning) is in [`crate::launch::lending`]; who calls
//! in here can at most be refused.

use crate::atomics::{AtomicU32, Ordering};

use super::TpcSet;

/// A tenant's number in the ledger, given to another tenant after it was dismissed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Holder(u16);

impl Holder {
    /// The holder of that number; none for the last one of 16 bits, which means nobody.
    pub const fn new(number: u16) -> Option<Self> {
        if number == NONE { None } else { Some(Self(number)) }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

const NONE: u16 = 0xffff;

/// Who has one TPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holding {
    /// Who has it by right.
    pub owner: Option<Holder>,
    /// Who uses it while its owner does not.
    pub borrower: Option<Holder>,
}

impl Holding {
    fn word(self) -> u32 {
        let half = |holder: Option<Holder>| holder.map_or(u32::from(NONE), |Holder(number)| number.into());
        half(self.owner) << 16 | half(self.borrower)
    }

    fn of(word: u32) -> Self {
        Self { owner: Holder::new((word >> 16) as u16), borrower: Holder::new(word as u16) }
    }
}

/// Who holds every TPC. One `AtomicU32` for each: owner in the high half, borrower in the low half, `NONE` = 0xffff.
///
/// | state    | owner | borrower | leaves by |
/// |----------|-------|----------|-----------|
/// | free     | NONE  | NONE     | `own` to owned. Nobody has it to himself: no plan names it, or several tenants share it |
/// | owned    | t     | NONE     | `release` to free, `lend` to lent |
/// | lent     | t     | b        | `reclaim` to owned (b leaves at its next tile), `give_back` to owned, `release` to orphaned |
/// | orphaned | NONE  | b        | `give_back` to free, `own` to lent. The owner was dismissed, or lost it to a plan, while b borrowed |
///
/// Any other transition is refused and changes nothing. So no TPC has two borrowers, nobody borrows from himself, and an owner stays
/// one until it releases.
#[derive(Debug)]
pub struct Ledger {
    words: Box<[AtomicU32]>,
}

impl Ledger {
    /// A ledger of so many TPCs, all of them free.
    pub fn new(tpcs: u16) -> Self {
        let free = Holding::default().word();
        Self { words: (0..tpcs.min(TpcSet::CAPACITY)).map(|_| AtomicU32::new(free)).collect() }
    }

    /// Who has the TPC; nobody where the GPU lacks it.
    pub fn holding(&self, tpc: u16) -> Holding {
        self.words.get(usize::from(tpc)).map_or_else(Holding::default, |word| Holding::of(word.load(Ordering::Acquire)))
    }

    /// What `holder` may use: all that it owns, lent or not, and all that it borrows. An owner needs no narrowing while it lends: whoever lends
    /// is idle, and gets back what it lent before it launches.
    pub fn usable_by(&self, holder: Holder) -> TpcSet {
        self.all(|holding| holding.owner == Some(holder) || holding.borrower == Some(holder))
    }

    /// What `holder` has by right.
    pub fn owned_by(&self, holder: Holder) -> TpcSet {
        self.all(|holding| holding.owner == Some(holder))
    }

    /// What `holder` uses while its owners do not.
    pub fn borrowed_by(&self, holder: Holder) -> TpcSet {
        self.all(|holding| holding.borrower == Some(holder))
    }

    /// What `holder` has by right and others use.
    pub fn lent_by(&self, holder: Holder) -> TpcSet {
        self.all(|holding| holding.owner == Some(holder) && holding.borrower.is_some())
    }

    fn all(&self, holds: impl Fn(Holding) -> bool) -> TpcSet {
        (0..self.words.len() as u16).filter(|&tpc| holds(self.holding(tpc))).collect()
    }

    /// Gives a TPC that nobody owns to `holder`: from free to owned, from orphaned to lent. Refused if it is `holder` who borrows it: that ends first.
    pub fn own(&self, tpc: u16, holder: Holder) -> bool {
        let owns =
            |found: Holding| (found.owner.is_none() && found.borrower != Some(holder)).then_some(Holding { owner: Some(holder), ..found });
        self.change(tpc, owns).is_some()
    }

    /// Takes a TPC from its owner for good: from owned to free, from lent to orphaned.
    pub fn release(&self, tpc: u16, holder: Holder) -> bool {
        self.change(tpc, |found| (found.owner == Some(holder)).then_some(Holding { owner: None, ..found })).is_some()
    }

    /// Lets `borrower` use a TPC of `owner`: from owned to lent.
    pub fn lend(&self, tpc: u16, owner: Holder, borrower: Holder) -> bool {
        let owned = Holding { owner: Some(owner), borrower: None };
        let lends = |found: Holding| (found == owned && owner != borrower).then_some(Holding { borrower: Some(borrower), ..found });
        self.change(tpc, lends).is_some()
    }

    /// Takes back a TPC that `owner` lent: from lent to owned. Says who must leave it now; none where it was not lent.
    pub fn reclaim(&self, tpc: u16, owner: Holder) -> Option<Holder> {
        let takes =
            |found: Holding| (found.owner == Some(owner) && found.borrower.is_some()).then_some(Holding { borrower: None, ..found });
        self.change(tpc, takes)?.borrower
    }

    /// Ends a loan from the borrower's side: from lent to owned, from orphaned to free.
    pub fn give_back(&self, tpc: u16, borrower: Holder) -> bool {
        self.change(tpc, |found| (found.borrower == Some(borrower)).then_some(Holding { borrower: None, ..found })).is_some()
    }

    /// Takes back all that `owner` lent. Says who must leave; nobody twice.
    pub fn reclaim_all(&self, owner: Holder) -> Borrowers {
        let mut borrowers = Borrowers::default();
        (0..self.words.len() as u16).filter_map(|tpc| self.reclaim(tpc, owner)).for_each(|borrower| borrowers.add(borrower));
        borrowers
    }

    /// Ends every loan to `borrower`.
    pub fn give_back_all(&self, borrower: Holder) {
        for tpc in self.borrowed_by(borrower).iter() {
            self.give_back(tpc, borrower);
        }
    }

    /// Takes from `owner` all that it owns. Who borrows of it stays.
    pub fn release_all(&self, owner: Holder) {
        for tpc in self.owned_by(owner).iter() {
            self.release(tpc, owner);
        }
    }

    /// Moves a TPC to another state if `next` allows it, and hands back the state it was in.
    fn change(&self, tpc: u16, next: impl Fn(Holding) -> Option<Holding>) -> Option<Holding> {
        let word = self.words.get(usize::from(tpc))?;
        let mut found = word.load(Ordering::Acquire);
        loop {
            let changed = next(Holding::of(found))?.word();
            match word.compare_exchange(found, changed, Ordering::AcqRel, Ordering::Acquire) {
                Ok(before) => return Some(Holding::of(before)),
                Err(other) => found = other,
            }
        }
    }
}

/// A set of borrowers in a fixed place, so that collecting them allocates nothing: each borrows one TPC at least, so that there are no more than TPCs.
#[derive(Debug, Clone, Copy)]
pub struct Borrowers {
    holders: [Holder; TpcSet::CAPACITY as usize],
    len: usize,
}

impl Default for Borrowers {
    fn default() -> Self {
        Self { holders: [Holder(NONE); TpcSet::CAPACITY as usize], len: 0 }
    }
}

impl Borrowers {
    /// Adds a borrower, unless it is there already.
    pub fn add(&mut self, borrower: Holder) {
        if !self.as_slice().contains(&borrower)
            && let Some(place) = self.holders.get_mut(self.len)
        {
            *place = borrower;
            self.len += 1;
        }
    }

    /// The borrowers, in the order in which they were added.
    pub fn as_slice(&self) -> &[Holder] {
        &self.holders[..self.len]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TPCS: u16 = 4;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Own,
        Release,
        Lend(Holder),
        Reclaim,
        GiveBack,
    }

    fn holder() -> impl Strategy<Value = Holder> {
        (0_u16..3).prop_map(Holder)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![Just(Step::Own), Just(Step::Release), holder().prop_map(Step::Lend), Just(Step::Reclaim), Just(Step::GiveBack),]
    }

    proptest! {
        #[test]
        fn rights_are_lost_only_by_release_and_a_loan_ends_before_the_next(steps in prop::collection::vec((0..TPCS, holder(), step()), 0..200)) {
            let ledger = Ledger::new(TPCS);
            for (tpc, who, step) in steps {
                let before = ledger.holding(tpc);
                let happened = match step {
                    Step::Own => ledger.own(tpc, who),
                    Step::Release => ledger.release(tpc, who),
                    Step::Lend(borrower) => ledger.lend(tpc, who, borrower),
                    Step::Reclaim => {
                        let left = ledger.reclaim(tpc, who);
                        prop_assert!(left.is_none() || left == before.borrower);
                        left.is_some()
                    }
                    Step::GiveBack => ledger.give_back(tpc, who),
                };
                let after = ledger.holding(tpc);
                prop_assert_eq!(happened, before != after);
                prop_assert!(after.owner.is_none() || after.owner != after.borrower, "{:?} borrows from itself", after.owner);
                if before.owner.is_some() && before.owner != after.owner {
                    prop_assert!(matches!(step, Step::Release) && before.owner == Some(who) && after.owner.is_none());
                }
                if before.borrower.is_some() && before.borrower != after.borrower {
                    prop_assert!(after.borrower.is_none(), "from one borrower to the next in one step");
                }
                if after.borrower.is_some() && after.borrower != before.borrower {
                    prop_assert!(before.owner == Some(who) && matches!(step, Step::Lend(_)), "lent by somebody else than the owner");
                }
            }
            for holder in (0..3).map(Holder) {
                prop_assert_eq!(ledger.usable_by(holder), ledger.owned_by(holder) | ledger.borrowed_by(holder));
            }
        }
    }

    #[test]
    fn a_tenant_dismissed_while_it_lends_leaves_its_borrower_there_until_the_next_owner_comes() {
        let ledger = Ledger::new(TPCS);
        let [gone, borrower, next] = [0, 1, 2].map(Holder);
        assert!(ledger.own(0, gone) && ledger.lend(0, gone, borrower) && ledger.release(0, gone));
        assert_eq!(ledger.holding(0), Holding { owner: None, borrower: Some(borrower) });
        assert!(!ledger.own(0, borrower), "the loan ends first");
        assert!(ledger.own(0, next));
        assert_eq!(ledger.reclaim(0, gone), None, "it owns nothing any more");
        assert_eq!(ledger.reclaim(0, next), Some(borrower));
    }

    #[test]
    fn a_tpc_that_is_not_there_can_be_neither_owned_nor_lent() {
        let ledger = Ledger::new(TPCS);
        assert!(!ledger.own(TPCS, Holder(0)));
        assert_eq!(ledger.holding(TPCS), Holding::default());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// A TPC that `OWNER` has lent to `FIRST`, or not.
    fn ledger(lent: bool) -> Arc<Ledger> {
        let ledger = Ledger::new(1);
        assert!(ledger.own(0, OWNER) && (!lent || ledger.lend(0, OWNER, FIRST)));
        Arc::new(ledger)
    }

    const OWNER: Holder = Holder(0);
    const FIRST: Holder = Holder(1);
    const SECOND: Holder = Holder(2);

    #[test]
    fn loom_a_tpc_is_lent_to_one_of_two_borrowers() {
        loom::model(|| {
            let ledger = ledger(false);
            let other = Arc::clone(&ledger);
            let second = thread::spawn(move || other.lend(0, OWNER, SECOND));
            let first = ledger.lend(0, OWNER, FIRST);
            let second = second.join().unwrap();
            assert!(first != second);
            assert_eq!(ledger.holding(0).borrower, Some(if first { FIRST } else { SECOND }));
        });
    }

    #[test]
    fn loom_a_loan_is_ended_once_by_its_owner_or_its_borrower() {
        loom::model(|| {
            let ledger = ledger(true);
            let other = Arc::clone(&ledger);
            let given = thread::spawn(move || other.give_back(0, FIRST));
            let reclaimed = ledger.reclaim(0, OWNER) == Some(FIRST);
            assert!(reclaimed != given.join().unwrap());
            assert_eq!(ledger.holding(0), Holding { owner: Some(OWNER), borrower: None });
        });
    }

    #[test]
    fn loom_a_dismissal_and_a_return_leave_the_tpc_free_in_either_order() {
        loom::model(|| {
            let ledger = ledger(true);
            let other = Arc::clone(&ledger);
            let given = thread::spawn(move || other.give_back(0, FIRST));
            assert!(ledger.release(0, OWNER));
            assert!(given.join().unwrap());
            assert_eq!(ledger.holding(0), Holding::default());
        });
    }

    #[test]
    fn loom_a_dismissal_is_not_undone_by_a_reclaim_or_a_loan() {
        loom::model(|| {
            let ledger = ledger(false);
            let (lender, owner) = (Arc::clone(&ledger), Arc::clone(&ledger));
            let lent = thread::spawn(move || lender.lend(0, OWNER, FIRST));
            let reclaimed = thread::spawn(move || owner.reclaim(0, OWNER).is_some());
            assert!(ledger.release(0, OWNER));
            let (lent, reclaimed) = (lent.join().unwrap(), reclaimed.join().unwrap());
            let borrower = (lent && !reclaimed).then_some(FIRST);
            assert_eq!(ledger.holding(0), Holding { owner: None, borrower });
        });
    }
}
