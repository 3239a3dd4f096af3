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
//! | the device refuses to write a grant | as if it had been written | that one, when the next request of any tenant begins |
//!
//! A grant is always computed from the ledger at the moment of writing: what the tenant owns, what it borrows, and what the plan leaves to several
//! tenants at once. An owner's own grant is as wide as ever while it lends, so that beginning a request waits for nothing of its own.
//!
//! **Who lends.** No thread is kept for it. What is due is lent at the next call of any session's `begin_request`, `end_request` or `replay`, or of
//! `settle`, which tells when to call again; a hysteresis of zero lends within `end_request`. A thread would wake on cores that serving loops
//! spin on, would make simulated runs depend on the host's scheduler, and would gain little: a borrower that goes on launching passes here anyway,
//! and an engine that waits for its next request has nothing better to do. While nothing is due, a call costs one load.
//!
//! **What beginning a request costs**: one load for each TPC of the GPU, one for grants that the device refused, a compare-and-swap for each TPC lent, and one
//! write of 32 bytes for each borrower.
//! No lock, no allocation, no waiting: neither for the copy nor for the borrowers' blocks, which leave within one tile of seeing it.

mod activity;
mod members;
mod requests;
mod terms;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, Sms};
use crate::partition::TpcSet;
use crate::partition::ledger::{Borrowers, Holder, Ledger};
use crate::telemetry::Telemetry;
use crate::tenant::TenantId;

use super::grant::Grant;
use members::{Member, Members};
use terms::borrowers;

pub(crate) use members::Membership;
pub(crate) use requests::Requests;
pub(crate) use terms::Terms;

/// How long a tenant must have been idle before it lends, unless told otherwise: about what a loan costs, two copies and the borrower's lost tiles, so that
/// whatever the pause turns out to be, no more than twice that is lost (ski rental: Karlin, Manasse, Rudolph and Sleator, Competitive snoopy caching, 1988).
pub const DEFAULT_HYSTERESIS: Duration = Duration::from_micros(60);

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
    telemetry: Arc<Telemetry>,
    ledger: Ledger,
    /// The SMs of each TPC, once a plan needed them.
    masks: OnceLock<Vec<[u32; 8]>>,
    members: Members,
    /// Held by whoever lends or changes owners, never by whoever takes back.
    loans: Mutex<Loans>,
    /// When the next tenant has been idle for long enough, nanoseconds of the device's clock.
    due: AtomicU64,
    hysteresis: AtomicU64,
    /// Whether the device refused to write a grant, which the ledger knows nothing of: who begins a request finds nothing more to take back.
    untold: AtomicBool,
}

#[derive(Default)]
struct Loans {
    /// Who may borrow each TPC.
    borrower_of: Vec<Option<Holder>>,
}

impl Lending {
    /// Loans are shown to `telemetry`.
    pub(crate) fn new(device: &Arc<dyn Device>, telemetry: &Arc<Telemetry>) -> Self {
        Self {
            device: Arc::clone(device),
            telemetry: Arc::clone(telemetry),
            ledger: Ledger::new(device.topology().tpcs()),
            masks: OnceLock::new(),
            members: Members::default(),
            loans: Mutex::default(),
            due: AtomicU64::new(NEVER),
            hysteresis: AtomicU64::new(nanos(DEFAULT_HYSTERESIS)),
            untold: AtomicBool::new(false),
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
    pub(crate) fn admit(&self, tenant: TenantId) -> Result<Option<Arc<Membership>>, DeviceError> {
        let grant = || Ok((Grant::new(&self.device)?, self.telemetry.grant_log(tenant)));
        self.members.admit(self.device.topology().all_tpcs(), grant)
    }

    /// Takes a tenant out of the ledger. Work of its that is in flight leaves at once what it borrowed, and ends on what it owned.
    pub(crate) fn dismiss(&self, membership: &Arc<Membership>) {
        let mut loans = self.loans.lock();
        let holder = membership.holder;
        let kept = self.ledger.owned_by(holder);
        self.members.change(holder, |member| member.by_hand = Some(member.by_hand.unwrap_or(member.beyond | kept)));
        if let Err(error) = self.refresh(membership) {
            tracing::warn!("a dismissed tenant keeps what it borrowed until its work ends: {error}");
        }
        self.ledger.give_back_all(holder);
        self.ledger.release_all(holder);
        loans.borrower_of.iter_mut().filter(|borrower| **borrower == Some(holder)).for_each(|borrower| *borrower = None);
        self.members.dismiss(holder);
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

    /// SMs that the plan gives a tenant, that its elastic kernels may use now, without its own that others use, and that it uses beyond its own. None of
    /// a tenant that is not in the plan: what its last launches end on is others' already.
    pub(crate) fn sms(&self, membership: &Membership) -> [Sms; 3] {
        // Its number may be another tenant's by now.
        let planned = |member: &Member| std::ptr::eq(&*member.membership, membership).then_some(member.planned)?;
        let owned = self.members.with(membership.holder, planned).flatten();
        let held = owned.map_or(TpcSet::EMPTY, |_| membership.grant.held() - self.ledger.lent_by(membership.holder));
        let owned = owned.unwrap_or_default();
        [owned, held, held - owned].map(|tpcs| self.device.topology().sms_of(tpcs))
    }

    /// Puts on the timeline what a tenant has now; nothing of one that is gone.
    pub(crate) fn note(&self, membership: &Membership) {
        if let Some(log) = &membership.log {
            log.changed(&*self.device, || self.sms(membership));
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
        let before = self.members.snapshot();
        self.change_each(terms, |member, terms| {
            member.beyond = member.by_hand.take().unwrap_or(member.beyond) | terms.by_right();
        });
        let widened = terms.iter().filter_map(|terms| self.membership(terms.holder).map(|membership| (membership, terms))).try_for_each(
            |(membership, terms)| {
                let wide_enough = membership.grant.held().includes(terms.by_right());
                self.refresh(&membership)?;
                if wide_enough { Ok(()) } else { membership.grant.synchronize() }
            },
        );
        widened.inspect_err(|_| {
            self.members.restore(before);
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
        self.change_each(terms, |member, terms| {
            member.planned = Some(terms.planned);
            member.beyond = terms.shared;
            member.by_hand = None;
        });
        let (now, members) = (nanos(self.device.now()), self.members.snapshot());
        for member in members.iter().flatten() {
            member.membership.activity.keep(&self.ledger, member.membership.holder);
            self.lend_if_idle(&loans, &member.membership, now, true);
        }
        self.refresh_all()
    }

    /// Who is not in the plan, because it is paused, ends what it has launched on what it had by right. It lends and borrows nothing.
    fn retire_absent(&self, terms: &[Terms]) {
        self.members.change_all(|member| {
            let holder = member.membership.holder;
            if !terms.iter().any(|terms| terms.holder == holder) {
                member.beyond = member.by_hand.take().unwrap_or(member.beyond | self.ledger.owned_by(holder));
                member.planned = None;
            }
        });
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
        self.members.change(membership.holder, |member| member.by_hand = Some(tpcs));
        self.ledger.give_back_all(membership.holder);
        self.refresh(membership)
    }

    // ---- requests ----

    fn begin(&self, membership: &Membership) -> Result<(), DeviceError> {
        self.tell(membership, membership.activity.begin(&self.ledger, membership.holder))?;
        if self.untold.load(Ordering::Acquire) { self.tell_again(membership) } else { Ok(()) }
    }

    /// `began` says whether a request ends here that began. Without one, the tenant only says that it is idle, if it is.
    fn end(&self, membership: &Membership, began: bool) {
        let now = nanos(self.device.now());
        // Before others see that it is idle: they would go by when the request before this one ended.
        membership.idle_since.store(now, Ordering::Release);
        let idle = if began { membership.activity.end() } else { !membership.activity.is_busy() };
        if idle {
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
                for member in self.members.snapshot().iter().flatten() {
                    let changed = self.lend_if_idle(&loans, &member.membership, now, false);
                    outcome = outcome.and(self.tell(&member.membership, changed));
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
        let takes = |borrower: &Holder| self.members.with(*borrower, |member| member.by_hand.is_none()).unwrap_or(false);
        let borrower_of = |tpc: u16| loans.borrower_of.get(usize::from(tpc)).copied().flatten().filter(takes);
        membership.activity.lend(&self.ledger, membership.holder, borrower_of)
    }

    // ---- grants ----

    /// Writes the grants of those whose loans from `owner` began or ended.
    fn tell(&self, owner: &Membership, borrowers: Borrowers) -> Result<(), DeviceError> {
        let members = || borrowers.as_slice().iter().filter_map(|&holder| self.membership(holder));
        // One that fails must not keep the others from being told.
        let told = members().map(|borrower| self.refresh(&borrower)).fold(Ok(()), Result::and);
        // Not before all are told: until then somebody's blocks are on SMs that are not his any more.
        members().for_each(|borrower| self.note(&borrower));
        if !borrowers.as_slice().is_empty() {
            self.note(owner);
        }
        told
    }

    /// Writes the grants that the device refused before. What it refuses again is an error where that keeps somebody on what `owner` has; else it is another
    /// tenant's affair.
    #[cold]
    fn tell_again(&self, owner: &Membership) -> Result<(), DeviceError> {
        // First, so that whoever is refused meanwhile is not forgotten.
        self.untold.swap(false, Ordering::AcqRel);
        let (owned, members) = (self.ledger.owned_by(owner.holder), self.members.snapshot());
        let others = |membership: &Arc<Membership>| !std::ptr::eq(&**membership, owner);
        let in_the_way = |membership: &Arc<Membership>| others(membership) && !membership.grant.held().is_disjoint(owned);
        let tell = |member: &Member| {
            self.refresh(&member.membership).or_else(|error| if in_the_way(&member.membership) { Err(error) } else { Ok(()) })
        };
        members.iter().flatten().map(tell).fold(Ok(()), Result::and)
    }

    fn refresh_all(&self) -> Result<(), DeviceError> {
        let members = self.members.snapshot();
        members.iter().flatten().map(|member| self.refresh(&member.membership)).fold(Ok(()), Result::and)
    }

    /// Writes a tenant's grant as the ledger has it.
    fn refresh(&self, membership: &Arc<Membership>) -> Result<(), DeviceError> {
        let wanted = || {
            let wanted = |member: &Member| member.by_hand.unwrap_or_else(|| self.ledger.usable_by(membership.holder) | member.beyond);
            // Its number may be another tenant's by now.
            self.members.with(membership.holder, |member| Arc::ptr_eq(&member.membership, membership).then(|| wanted(member)))?
        };
        membership.grant.refresh(wanted, |tpcs| self.mask(tpcs)).inspect_err(|_| self.untold.store(true, Ordering::Release))
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

    fn membership(&self, holder: Holder) -> Option<Arc<Membership>> {
        self.members.with(holder, |member| Arc::clone(&member.membership))
    }

    fn change_each(&self, terms: &[Terms], change: impl Fn(&mut Member, &Terms)) {
        self.members.change_all(|member| {
            if let Some(terms) = terms.iter().find(|terms| terms.holder == member.membership.holder) {
                change(member, terms);
            }
        });
    }
}

/// Nanoseconds of the device's clock.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(NEVER)
}
