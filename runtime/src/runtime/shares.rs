//! Shares: tenants that were promised a number of SMs, and the policy for everybody else on what is left.
//!
//! A share is a wall around any policy. A tenant with a share has a *region*, TPCs of its own; the policy plans for it as if the region were the whole
//! GPU and the tenant alone on it, and for all tenants without a share as if the other TPCs were the whole GPU. So no policy knows of shares, and every
//! policy keeps them. Regions do not move while other tenants come, go or resize.

use std::collections::{BTreeMap, BTreeSet};

use crate::device::{CoscheduledGroups, Topology};
use crate::partition::TpcSet;
use crate::policy::{Draft, DraftPlacement, Policy, TenantDemand, TenantDraft};
use crate::tenant::TenantId;

/// What `policy` drafts for `tenants` that share `region` of the GPU.
pub(super) fn draft_in(policy: &dyn Policy, topology: &Topology, region: TpcSet, tenants: &[TenantDemand]) -> Draft {
    if region == topology.all_tpcs() {
        return policy.plan(topology, tenants);
    }
    let inside = Region { topology, tpcs: region.iter().collect() };
    policy.plan(&inside.as_topology(), tenants).into_iter().map(|(id, draft)| (id, inside.outward(draft))).collect()
}

/// What `policy` predicts neighbours to cost `tenants` that share `region` of the GPU.
pub(super) fn slowdowns_in(policy: &dyn Policy, topology: &Topology, region: TpcSet, tenants: &[TenantDemand]) -> BTreeMap<TenantId, f64> {
    policy.slowdowns(&Region { topology, tpcs: region.iter().collect() }.as_topology(), tenants)
}

/// Those of `tenants` that share `region` of the GPU to whom `policy` gives more of it than their margins ask for.
pub(super) fn ample_in(policy: &dyn Policy, topology: &Topology, region: TpcSet, tenants: &[TenantDemand]) -> BTreeSet<TenantId> {
    policy.ample(&Region { topology, tpcs: region.iter().collect() }.as_topology(), tenants)
}

/// `region` with `tpcs` TPCs: the last of its own, or grown by the last of those that are `free`, so that regions gather at the GPU's end; none if there are not enough.
pub(super) fn resized(region: TpcSet, free: TpcSet, tpcs: u16) -> Option<TpcSet> {
    let more = tpcs.saturating_sub(region.len());
    let spare = (free - region).len().checked_sub(more)?;
    let kept = region - region.first(region.len().saturating_sub(tpcs));
    Some(kept | (free - region).iter().skip(spare as usize).collect())
}

/// Part of the GPU, whose TPCs a policy sees numbered from 0.
struct Region<'a> {
    topology: &'a Topology,
    tpcs: Vec<u16>,
}

impl Region<'_> {
    fn as_topology(&self) -> Topology {
        let mut first = 0;
        let gpcs = self.topology.tpcs_per_gpc.iter().map(|&tpcs| {
            let gpc = first..first + tpcs;
            first = gpc.end;
            self.tpcs.iter().filter(|tpc| gpc.contains(tpc)).count() as u16
        });
        let tpcs_per_gpc = gpcs.filter(|&tpcs| tpcs > 0).collect();
        let count = self.tpcs.len() as u16;
        let sms = self.topology.sms_of(TpcSet::range(0, count));
        let coscheduled = CoscheduledGroups::filling(self.topology.coscheduled.sms_per_group, sms);
        Topology { sms, tpcs_per_gpc, coscheduled, ..self.topology.clone() }
    }

    fn outward(&self, draft: TenantDraft) -> TenantDraft {
        let tpcs = |inside: TpcSet| inside.iter().filter_map(|tpc| self.tpcs.get(tpc as usize).copied()).collect();
        let place = |placement: DraftPlacement| DraftPlacement { tpcs: tpcs(placement.tpcs), ..placement };
        // Taken apart in full, so that a field that names TPCs cannot be forgotten here.
        let TenantDraft { owned, grant, default, kernels, mut walls } = draft;
        // The region is held by a partition even where the policy asked for none, and elastic kernels by the grant.
        walls.partition = true;
        walls.grant = true;
        let kernels = kernels.into_iter().map(|(kernel, placement)| (kernel, place(placement))).collect();
        TenantDraft { owned: tpcs(owned), grant: tpcs(grant), default: place(default), kernels, walls }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_resized_region_keeps_what_it_can_and_takes_only_what_is_free(
            region in any::<u128>(),
            free in any::<u128>(),
            tpcs in 0_u16..140,
        ) {
            let set = |bits: u128| (0..TpcSet::CAPACITY).filter(|&tpc| bits >> tpc & 1 == 1).collect::<TpcSet>();
            let (region, free) = (set(region), set(free));
            match resized(region, free, tpcs) {
                Some(new) => {
                    prop_assert_eq!(new.len(), tpcs);
                    prop_assert!((region | free).includes(new));
                    prop_assert!(new.includes(region) || region.includes(new));
                }
                None => prop_assert!((region | free).len() < tpcs),
            }
        }
    }
}
