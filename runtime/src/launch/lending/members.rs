//! The tenants that are in the ledger, by the number of the holder. A request looks a borrower up without a lock, so the table is replaced whole; whoever
//! changes it sees to it that changes come one at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::launch::grant::Grant;
use crate::partition::TpcSet;
use crate::partition::ledger::Holder;
use crate::telemetry::GrantLog;

use super::NEVER;
use super::activity::Activity;

/// A tenant's place in the ledger, from its admission to the end of its last session.
pub(crate) struct Membership {
    pub(super) holder: Holder,
    pub(super) grant: Arc<Grant>,
    /// Where its grants are told of, if there is a timeline.
    pub(super) log: Option<Arc<GrantLog>>,
    pub(super) activity: Activity,
    /// Whether it ever ended a request: before, nobody knows when it is idle.
    pub(super) announces: AtomicBool,
    /// When its last request ended, until what it owns was lent.
    pub(super) idle_since: AtomicU64,
    /// Whether it was idle for long enough to lend, since somebody last asked.
    pub(super) rested: AtomicBool,
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

/// A tenant as the plan in force has it.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) membership: Arc<Membership>,
    /// What it owns by the plan in force; none where it is not in that.
    pub(super) planned: Option<TpcSet>,
    /// What it may use beyond the ledger: TPCs that several tenants share and, while the plan changes, both those it had and those it will have.
    pub(super) beyond: TpcSet,
    /// What it was given by hand, instead of all else.
    pub(super) by_hand: Option<TpcSet>,
}

/// The table at one moment.
pub(super) type Snapshot = Arc<Vec<Option<Member>>>;

#[derive(Default)]
pub(super) struct Members(ArcSwap<Vec<Option<Member>>>);

impl Members {
    /// Takes in a tenant under the least number that is free, with `beyond` to use. None where there are as many as the ledger can tell apart.
    ///
    /// # Errors
    /// What `grant` returns, which makes the tenant's grant and what that is told of to.
    pub(super) fn admit<E>(
        &self,
        beyond: TpcSet,
        grant: impl FnOnce() -> Result<(Grant, Option<Arc<GrantLog>>), E>,
    ) -> Result<Option<Arc<Membership>>, E> {
        let members = self.0.load();
        let place = members.iter().position(Option::is_none).unwrap_or(members.len());
        let Some(holder) = u16::try_from(place).ok().and_then(Holder::new) else { return Ok(None) };
        let (grant, log) = grant()?;
        let membership = Arc::new(Membership {
            holder,
            grant: Arc::new(grant),
            log,
            activity: Activity::new(),
            announces: AtomicBool::new(false),
            idle_since: AtomicU64::new(NEVER),
            rested: AtomicBool::new(false),
        });
        self.replace(|members| {
            members.resize(members.len().max(place + 1), None);
            members[place] = Some(Member { membership: Arc::clone(&membership), planned: None, beyond, by_hand: None });
        });
        Ok(Some(membership))
    }

    pub(super) fn dismiss(&self, holder: Holder) {
        self.replace(|members| members[usize::from(holder.number())] = None);
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.0.load_full()
    }

    /// Puts everything back as it was when `snapshot` was taken.
    pub(super) fn restore(&self, snapshot: Snapshot) {
        self.0.store(snapshot);
    }

    /// What `look` finds in the member with this number, if there is one.
    pub(super) fn with<R>(&self, holder: Holder, look: impl FnOnce(&Member) -> R) -> Option<R> {
        self.0.load().get(usize::from(holder.number()))?.as_ref().map(look)
    }

    pub(super) fn change(&self, holder: Holder, change: impl FnOnce(&mut Member)) {
        self.replace(|members| {
            if let Some(Some(member)) = members.get_mut(usize::from(holder.number())) {
                change(member);
            }
        });
    }

    pub(super) fn change_all(&self, mut change: impl FnMut(&mut Member)) {
        self.replace(|members| members.iter_mut().flatten().for_each(&mut change));
    }

    fn replace(&self, change: impl FnOnce(&mut Vec<Option<Member>>)) {
        let mut members = Vec::clone(&self.0.load());
        change(&mut members);
        self.0.store(Arc::new(members));
    }
}
