//! Lending: what a tenant does not use, others may, until its next request begins.
//!
//! A plan says what each tenant owns and what it may use beyond that (`TenantPlan::owned`, `TenantPlan::grant`). A tenant whose engine announces its
//! requests ([`Session::begin_request`](super::Session::begin_request), [`Session::end_request`](super::Session::end_request)) lends its TPCs
//! between them: to the tenants whose grant names them, each TPC to one of those. A tenant that never announced anything is taken to be always
//! at work and lends nothing.
//!
//! | what happens | the ledger | grants written |
//! |---|---|---|
//! | a request begins, the tenant's first under way | what it lent is reclaimed | one write for each tenant that borrowed from it |
//! | the last request under way ends | nothing yet | none |
//! | and the hysteresis has passed | what it owns is lent | one write for each tenant that may borrow from it |
//! | another plan | TPCs change owners; loans that it does not allow end | what widens before it is published, what narrows after |
//! | a tenant is paused | as by another plan: others own what it owned | its own, at most: work in flight ends on what it had by right |
//! | a tenant is dismissed | what it borrowed is given back, what it lent is orphaned until the next plan | its own, at most |
//!
//! A grant is always computed from the ledger at the moment of writing: what the tenant owns, what it borrows, and what the plan leaves to several
//! tenants at once. An owner's own grant is as wide as ever while it lends, so that beginning a request waits for nothing of its own.
//!
//! **Who lends.** No thread is kept for it. What is due is lent at the next call of any session's `begin_request`, `end_request` or `replay`, or of
//! `settle`, which tells when to call again; a hysteresis of zero lends within `end_request`. A thread would wake on cores that serving loops
//! spin on, would make simulated runs depend on the host's scheduler, and would gain little: a borrower that goes on launching passes here anyway,
//! and an engine that waits for its next request has nothing better to do. While nothing is due, a call costs one load.
//!
//! **What beginning a request costs**: one load for each TPC of the GPU, a compare-and-swap for each one lent, and one write of 32 bytes for each borrower.
//! No lock, no allocation, no waiting: neither for the copy nor for the borrowers' blocks, which leave within one tile of seeing it.

mod activity;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::device::{Device, DeviceError};
use crate::partition::TpcSet;
use crate::partition::ledger::{Borrowers, Holder, Ledger};

use super::TenantPlan;
use super::grant::Grant;
use activity::Activity;

/// How long a tenant must have been idle before it lends, unless told otherwise. Shorter pauses, as between two steps of one stream of
/// requests, are not worth two copies and the borrower's lost waves.
pub const DEFAULT_HYSTERESIS: Duration = Duration::from_micros(200);

/// An instant that never comes.
const NEVER: u64 = u64::MAX;

/// What a tenant has at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holdings {
    /// What it has by right, and nobody else.
    pub owned: TpcSet,
    /// What of that others use now.
    pub lent: TpcSet,
    /// What it uses of others.
    pub borrowed: TpcSet,
    /// What its elastic kernels may use: owned, borrowed, and what the plan leaves to several tenants at once.
    pub granted: TpcSet,
}

/// The ledger with the tenants that are in it, their grants, and the loans that the plan allows.
pub(crate) struct Lending {
    device: Arc<dyn Device>,
    ledger: Ledger,
    /// The SMs of each TPC, once a plan needed them.
    masks: OnceLock<Vec<[u32; 8]>>,
    /// By the number of the holder. Replaced whole, so that a request may look a borrower up without a lock.
    members: ArcSwap<Vec<Option<Member>>>,
    /// Held by whoever lends or changes owners, never by whoever takes back.
    loans: Mutex<Loans>,
    /// When the next tenant has been idle for long enough, nanoseconds of the device's clock.
    due: AtomicU64,
    hysteresis: AtomicU64,
}

/// A tenant as the plan in force has it.
#[derive(Clone)]
struct Member {
    membership: Arc<Membership>,
    /// What it may use beyond the ledger: TPCs that several tenants share and, while the plan changes, both those it had and those it will have.
    beyond: TpcSet,
    /// What it was given by hand, instead of all else.
    by_hand: Option<TpcSet>,
}

/// A tenant's place in the ledger, from its admission to the end of its last session.
pub(crate) struct Membership {
    holder: Holder,
    grant: Arc<Grant>,
    activity: Activity,
    /// Whether it ever ended a request: before, nobody knows when it is idle.
    announces: AtomicBool,
    /// When its last request ended, until what it owns was lent.
    idle_since: AtomicU64,
    /// Whether it was idle for long enough to lend, since somebody last asked.
    rested: AtomicBool,
}

#[derive(Default)]
struct Loans {
    /// Who may borrow each TPC.
    borrower_of: Vec<Option<Holder>>,
}

/// What a plan gives one tenant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    holder: Holder,
    /// What it alone owns.
    owned: TpcSet,
    /// What it may use along with others.
    shared: TpcSet,
    /// What it may borrow.
    borrowable: TpcSet,
}

impl Terms {
    /// What a plan gives each of its tenants. TPCs that several own are nobody's in the ledger, and a grant that is no wall is not cut.
    pub(crate) fn of<'a>(plan: impl Iterator<Item = (&'a Arc<Membership>, &'a TenantPlan)>) -> Vec<Self> {
        let mut parts: Vec<_> = plan.map(|(membership, plan)| (membership.holder, plan)).collect();
        parts.sort_by_key(|(holder, _)| *holder);
        let (mut owned, mut by_several) = (TpcSet::EMPTY, TpcSet::EMPTY);
        for (_, plan) in parts.iter().filter(|(_, plan)| plan.walls.grant) {
            by_several = by_several | (owned & plan.owned);
            owned = owned | plan.owned;
        }
        let terms = |&(holder, plan): &(Holder, &TenantPlan)| {
            if !plan.walls.grant {
                return Self { holder, owned: TpcSet::EMPTY, shared: plan.grant, borrowable: TpcSet::EMPTY };
            }
            let shared = (plan.owned & by_several) | (plan.grant - owned);
            Self { holder, owned: plan.owned - by_several, shared, borrowable: (plan.grant & owned) - by_several - plan.owned }
        };
        parts.iter().map(terms).collect()
    }

    /// What it may use without borrowing.
    fn by_right(&self) -> TpcSet {
        self.owned | self.shared
    }
}

/// For each of `tpcs` TPCs the tenant that may borrow it: of several, the one with the fewest so far.
fn borrowers(terms: &[Terms], tpcs: u16) -> Vec<Option<Holder>> {
    let mut counts = vec![0_u16; terms.len()];
    let mut borrower = |tpc| {
        let candidates = (0..terms.len()).filter(|&at| terms[at].borrowable.contains(tpc));
        let chosen = candidates.min_by_key(|&at| counts[at])?;
        counts[chosen] += 1;
        Some(terms[chosen].holder)
    };
    (0..tpcs).map(&mut borrower).collect()
}

impl Lending {
    pub(crate) fn new(device: &Arc<dyn Device>) -> Self {
        Self {
            device: Arc::clone(device),
            ledger: Ledger::new(device.topology().tpcs()),
            masks: OnceLock::new(),
            members: ArcSwap::default(),
            loans: Mutex::default(),
            due: AtomicU64::new(NEVER),
            hysteresis: AtomicU64::new(nanos(DEFAULT_HYSTERESIS)),
        }
    }

    /// From here on tenants lend after having been idle for so long.
    pub(crate) fn set_hysteresis(&self, hysteresis: Duration) {
        self.hysteresis.store(nanos(hysteresis), Ordering::Relaxed);
    }

    // ---- who is there; the caller sees to it that these and plans come one at a time ----

    /// A place for a new tenant, whose grant is the whole GPU until the next plan. `None` where there are as many as the ledger can tell apart.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) fn admit(&self) -> Result<Option<Arc<Membership>>, DeviceError> {
        let mut members = Vec::clone(&self.members.load());
        let place = members.iter().position(Option::is_none).unwrap_or(members.len());
        let Some(holder) = u16::try_from(place).ok().and_then(Holder::new) else { return Ok(None) };
        let membership = Arc::new(Membership {
            holder,
            grant: Arc::new(Grant::new(&self.device)?),
            activity: Activity::new(),
            announces: AtomicBool::new(false),
            idle_since: AtomicU64::new(NEVER),
            rested: AtomicBool::new(false),
        });
        members.resize(members.len().max(place + 1), None);
        members[place] = Some(Member { membership: Arc::clone(&membership), beyond: self.device.topology().all_tpcs(), by_hand: None });
        self.members.store(Arc::new(members));
        Ok(Some(membership))
    }

    /// Takes a tenant out of the ledger. Work of its that is in flight leaves at once what it borrowed, and ends on what it owned.
    pub(crate) fn dismiss(&self, membership: &Arc<Membership>) {
        let mut loans = self.loans.lock();
        let holder = membership.holder;
        let kept = self.ledger.owned_by(holder);
        self.change_member(membership, |member| member.by_hand = Some(member.by_hand.unwrap_or(member.beyond | kept)));
        if let Err(error) = self.refresh(membership) {
            tracing::warn!("a dismissed tenant keeps what it borrowed until its work ends: {error}");
        }
        self.ledger.give_back_all(holder);
        self.ledger.release_all(holder);
        loans.borrower_of.iter_mut().filter(|borrower| **borrower == Some(holder)).for_each(|borrower| *borrower = None);
        let mut members = Vec::clone(&self.members.load());
        members[usize::from(holder.number())] = None;
        self.members.store(Arc::new(members));
    }

    /// What a tenant has now.
    pub(crate) fn holdings(&self, membership: &Arc<Membership>) -> Holdings {
        Holdings {
            owned: self.ledger.owned_by(membership.holder),
            lent: self.ledger.lent_by(membership.holder),
            borrowed: self.ledger.borrowed_by(membership.holder),
            granted: membership.grant.held(),
        }
    }

    // ---- plans ----

    /// Before a plan is in force: every tenant's grant has also what the plan gives it by right, and its kernels see that. What is borrowed needs
    /// no such care, since a kernel must expect to lose it at any time.
    ///
    /// # Errors
    /// What the device says; grants are as they were then, unless the device refuses that too.
    pub(crate) fn widen(&self, terms: &[Terms]) -> Result<(), DeviceError> {
        let _loans = self.loans.lock();
        let all = self.device.topology().all_tpcs();
        if terms.iter().any(|terms| terms.by_right() != all) {
            self.measure()?;
        }
        let before = self.members.load_full();
        self.change_members(terms, |member, terms| {
            member.beyond = member.by_hand.take().unwrap_or(member.beyond) | terms.by_right();
        });
        let widened = terms.iter().filter_map(|terms| self.member(terms.holder).map(|membership| (membership, terms))).try_for_each(
            |(membership, terms)| {
                let wide_enough = membership.grant.held().includes(terms.by_right());
                self.refresh(&membership)?;
                if wide_enough { Ok(()) } else { membership.grant.synchronize() }
            },
        );
        widened.inspect_err(|_| {
            self.members.store(before);
            self.refresh_all().unwrap_or_else(|error| tracing::warn!("a grant is wider than its tenant's plan: {error}"));
        })
    }

    /// Once a plan is in force: TPCs go to their new owners, loans that the plan does not allow end, those that it allows begin, and grants
    /// narrow to that.
    ///
    /// # Errors
    /// What the device says of a grant. The ledger is the plan's all the same.
    pub(crate) fn adopt(&self, terms: &[Terms]) -> Result<(), DeviceError> {
        let mut loans = self.loans.lock();
        let tpcs = self.device.topology().tpcs();
        loans.borrower_of = borrowers(terms, tpcs);
        self.retire_absent(terms);
        for tpc in 0..tpcs {
            let owner = terms.iter().find(|terms| terms.owned.contains(tpc)).map(|terms| terms.holder);
            self.hand_over(tpc, owner, loans.borrower_of[usize::from(tpc)]);
        }
        self.change_members(terms, |member, terms| {
            member.beyond = terms.shared;
            member.by_hand = None;
        });
        let (now, members) = (nanos(self.device.now()), self.members.load_full());
        for member in members.iter().flatten() {
            member.membership.activity.keep(&self.ledger, member.membership.holder);
            self.lend_if_idle(&loans, &member.membership, now, true);
        }
        self.refresh_all()
    }

    /// Who is not in the plan, because it is paused, ends what it has launched on what it had by right. It lends and borrows nothing.
    fn retire_absent(&self, terms: &[Terms]) {
        let mut members = Vec::clone(&self.members.load());
        for member in members.iter_mut().flatten() {
            let holder = member.membership.holder;
            if !terms.iter().any(|terms| terms.holder == holder) {
                member.beyond = member.by_hand.take().unwrap_or(member.beyond | self.ledger.owned_by(holder));
            }
        }
        self.members.store(Arc::new(members));
    }

    fn hand_over(&self, tpc: u16, owner: Option<Holder>, may_borrow: Option<Holder>) {
        let found = self.ledger.holding(tpc);
        if let Some(before) = found.owner.filter(|_| found.owner != owner) {
            self.ledger.release(tpc, before);
        }
        // Whether the new owner lends is asked afterwards.
        if let Some(borrower) = found.borrower.filter(|_| found.borrower != may_borrow || found.owner != owner) {
            self.ledger.give_back(tpc, borrower);
        }
        if let Some(owner) = owner {
            // Refused where it has it already.
            self.ledger.own(tpc, owner);
        }
    }

    /// Grants a tenant exactly `tpcs` until the next plan. Until then it borrows nothing besides.
    ///
    /// # Errors
    /// [`DeviceError::BadPartition`] for TPCs that the GPU lacks; what the device says.
    pub(crate) fn grant_by_hand(&self, membership: &Arc<Membership>, tpcs: TpcSet) -> Result<(), DeviceError> {
        self.device.sm_mask(tpcs)?;
        let _loans = self.loans.lock();
        self.measure()?;
        self.change_member(membership, |member| member.by_hand = Some(tpcs));
        self.ledger.give_back_all(membership.holder);
        self.refresh(membership)
    }

    // ---- requests ----

    fn begin(&self, membership: &Membership) -> Result<(), DeviceError> {
        self.refresh_each(membership.activity.begin(&self.ledger, membership.holder))
    }

    /// `began` says whether a request ends here that began. Without one, the tenant only says that it is idle, if it is.
    fn end(&self, membership: &Membership, began: bool) {
        let idle = if began { membership.activity.end() } else { !membership.activity.is_busy() };
        if idle {
            let now = nanos(self.device.now());
            membership.idle_since.store(now, Ordering::Release);
            membership.announces.store(true, Ordering::Release);
            self.due_by(now);
        }
    }

    /// That something will be due `hysteresis` after `since`.
    fn due_by(&self, since: u64) {
        self.due.fetch_min(since.saturating_add(self.hysteresis.load(Ordering::Relaxed)), Ordering::AcqRel);
    }

    /// Lends what is due. Says when something will be due next; `None` where nothing will before another request ends.
    ///
    /// # Errors
    /// What the device says of a borrower's grant.
    pub(crate) fn settle(&self) -> Result<Option<Duration>, DeviceError> {
        let due = self.due.load(Ordering::Acquire);
        if due != NEVER {
            let now = nanos(self.device.now());
            // Where another thread lends or plans, this stays due until the next call.
            if due <= now
                && let Some(loans) = self.loans.try_lock()
            {
                self.due.swap(NEVER, Ordering::AcqRel);
                let mut outcome = Ok(());
                for member in self.members.load().iter().flatten() {
                    let changed = self.lend_if_idle(&loans, &member.membership, now, false);
                    outcome = outcome.and(self.refresh_each(changed));
                }
                outcome?;
            }
        }
        let due = self.due.load(Ordering::Acquire);
        Ok((due != NEVER).then(|| Duration::from_nanos(due)))
    }

    /// Lends what a tenant owns if it has been idle for long enough, or notes when it will have been. What was lent before is lent `again` only
    /// where a plan may have changed it.
    fn lend_if_idle(&self, loans: &Loans, membership: &Membership, now: u64, again: bool) -> Borrowers {
        let since = membership.idle_since.load(Ordering::Acquire);
        let announced = membership.announces.load(Ordering::Acquire) && !membership.activity.is_busy();
        if !announced || (since == NEVER && !again) {
            return Borrowers::default();
        }
        if since != NEVER {
            if since.saturating_add(self.hysteresis.load(Ordering::Relaxed)) > now {
                self.due_by(since);
                return Borrowers::default();
            }
            // Where another request has ended meanwhile, it is due later, and has said so.
            if membership.idle_since.compare_exchange(since, NEVER, Ordering::AcqRel, Ordering::Acquire).is_err() {
                return Borrowers::default();
            }
        }
        membership.rested.store(true, Ordering::Relaxed);
        let members = self.members.load();
        let takes = |borrower: &Holder| member(&members, *borrower).is_some_and(|member| member.by_hand.is_none());
        let borrower_of = |tpc: u16| loans.borrower_of.get(usize::from(tpc)).copied().flatten().filter(takes);
        membership.activity.lend(&self.ledger, membership.holder, borrower_of)
    }

    // ---- grants ----

    fn refresh_each(&self, holders: Borrowers) -> Result<(), DeviceError> {
        let refresh = |&holder: &Holder| self.member(holder).map_or(Ok(()), |membership| self.refresh(&membership));
        // One that fails must not keep the others from being told.
        holders.as_slice().iter().map(refresh).fold(Ok(()), Result::and)
    }

    fn refresh_all(&self) -> Result<(), DeviceError> {
        let members = self.members.load_full();
        members.iter().flatten().map(|member| self.refresh(&member.membership)).fold(Ok(()), Result::and)
    }

    /// Writes a tenant's grant as the ledger has it.
    fn refresh(&self, membership: &Arc<Membership>) -> Result<(), DeviceError> {
        let wanted = || {
            let members = self.members.load();
            // Its number may be another tenant's by now.
            let member = member(&members, membership.holder).filter(|member| Arc::ptr_eq(&member.membership, membership))?;
            Some(member.by_hand.unwrap_or_else(|| self.ledger.usable_by(membership.holder) | member.beyond))
        };
        membership.grant.refresh(wanted, |tpcs| self.mask(tpcs))
    }

    /// The SMs of `tpcs`, from what was measured before.
    fn mask(&self, tpcs: TpcSet) -> Result<[u32; 8], DeviceError> {
        match self.masks.get() {
            Some(masks) if tpcs != self.device.topology().all_tpcs() => {
                let of_tpc = |tpc: u16| masks.get(usize::from(tpc)).copied().unwrap_or_default();
                Ok(tpcs.iter().map(of_tpc).fold([0; 8], |all, mask| std::array::from_fn(|word| all[word] | mask[word])))
            }
            _ => self.device.sm_mask(tpcs),
        }
    }

    /// Asks the device once for the SMs of each TPC.
    fn measure(&self) -> Result<(), DeviceError> {
        if self.masks.get().is_none() {
            let all = self.device.topology().all_tpcs();
            let masks: Vec<_> = all.iter().map(|tpc| self.device.sm_mask(TpcSet::EMPTY.with(tpc))).collect::<Result<_, _>>()?;
            self.masks.get_or_init(|| masks);
        }
        Ok(())
    }

    // ---- members ----

    fn member(&self, holder: Holder) -> Option<Arc<Membership>> {
        member(&self.members.load(), holder).map(|member| Arc::clone(&member.membership))
    }

    fn change_member(&self, membership: &Arc<Membership>, change: impl FnOnce(&mut Member)) {
        let mut members = Vec::clone(&self.members.load());
        if let Some(Some(member)) = members.get_mut(usize::from(membership.holder.number())) {
            change(member);
        }
        self.members.store(Arc::new(members));
    }

    fn change_members(&self, terms: &[Terms], change: impl Fn(&mut Member, &Terms)) {
        let mut members = Vec::clone(&self.members.load());
        for terms in terms {
            if let Some(Some(member)) = members.get_mut(usize::from(terms.holder.number())) {
                change(member, terms);
            }
        }
        self.members.store(Arc::new(members));
    }
}

fn member(members: &[Option<Member>], holder: Holder) -> Option<&Member> {
    members.get(usize::from(holder.number()))?.as_ref()
}

impl Membership {
    /// The tenant's grant.
    pub(crate) fn grant(&self) -> &Arc<Grant> {
        &self.grant
    }

    /// Whether the tenant was idle for long enough to lend what it owns, at any time since the last call or now.
    pub(crate) fn take_rest(&self) -> bool {
        let lends = self.announces.load(Ordering::Acquire) && !self.activity.is_busy() && self.idle_since.load(Ordering::Acquire) == NEVER;
        self.rested.swap(lends, Ordering::Relaxed) || lends
    }
}

/// What one session announces. A session that is dropped in the middle of a request ends it.
pub(crate) struct Requests {
    lending: Arc<Lending>,
    membership: Arc<Membership>,
    /// Requests of this session that are under way.
    open: u32,
}

impl Requests {
    pub(crate) fn new(lending: &Arc<Lending>, membership: &Arc<Membership>) -> Self {
        Self { lending: Arc::clone(lending), membership: Arc::clone(membership), open: 0 }
    }

    /// Takes back what the tenant lent. The request counts as begun also after an error.
    ///
    /// # Errors
    /// What the device says of a borrower's grant: that borrower may stay where it is.
    pub(super) fn begin(&mut self) -> Result<(), DeviceError> {
        self.open += 1;
        let begun = self.lending.begin(&self.membership);
        self.settle();
        begun
    }

    pub(super) fn end(&mut self) {
        let began = self.open > 0;
        self.open = self.open.saturating_sub(1);
        self.lending.end(&self.membership, began);
        self.settle();
    }

    /// Lends what is due, of whichever tenant. What fails there is another tenant's affair.
    #[inline]
    pub(super) fn settle(&self) {
        if self.lending.due.load(Ordering::Relaxed) != NEVER {
            self.settle_due();
        }
    }

    #[cold]
    fn settle_due(&self) {
        if let Err(error) = self.lending.settle() {
            tracing::warn!("a grant was not widened: {error}");
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        while self.open > 0 {
            self.end();
        }
    }
}

/// Nanoseconds of the device's clock.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER)
}
