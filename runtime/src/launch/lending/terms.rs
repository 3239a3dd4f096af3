//! What a plan means for the ledger: who owns each TPC alone, who may borrow it, and what several share.

use std::sync::Arc;

use crate::launch::TenantPlan;
use crate::partition::TpcSet;
use crate::partition::ledger::Holder;

use super::members::Membership;

/// What a plan gives one tenant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(super) holder: Holder,
    /// What the plan says that it owns, maybe along with others.
    pub(super) planned: TpcSet,
    /// What it alone owns.
    pub(super) owned: TpcSet,
    /// What it may use along with others.
    pub(super) shared: TpcSet,
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
            let planned = plan.owned;
            if !plan.walls.grant {
                return Self { holder, planned, owned: TpcSet::EMPTY, shared: plan.grant, borrowable: TpcSet::EMPTY };
            }
            let shared = (plan.owned & by_several) | (plan.grant - owned);
            Self { holder, planned, owned: plan.owned - by_several, shared, borrowable: (plan.grant & owned) - by_several - plan.owned }
        };
        parts.iter().map(terms).collect()
    }

    /// What it may use without borrowing.
    pub(super) fn by_right(&self) -> TpcSet {
        self.owned | self.shared
    }
}

/// For each of `tpcs` TPCs the tenant that may borrow it: of several, the one with the fewest so far.
pub(super) fn borrowers(terms: &[Terms], tpcs: u16) -> Vec<Option<Holder>> {
    let mut counts = vec![0_u16; terms.len()];
    let mut borrower = |tpc| {
        let candidates = (0..terms.len()).filter(|&at| terms[at].borrowable.contains(tpc));
        let chosen = candidates.min_by_key(|&at| counts[at])?;
        counts[chosen] += 1;
        Some(terms[chosen].holder)
    };
    (0..tpcs).map(&mut borrower).collect()
}
