//! `static-equal`: the same number of TPCs to everybody, whatever they run.

use crate::device::Topology;
use crate::partition::TpcSet;

use super::division::{contiguous, equal};
use super::family::Family;
use super::{Draft, Policy, TenantDemand, TenantDraft, WALLED, in_order};

/// Disjoint runs of TPCs, equal in size; TPCs that do not divide evenly go to the first tenants, one each. Every kernel is sized to its
/// tenant's part and held there by all three walls.
#[derive(Debug, Clone, Copy, Default)]
pub struct StaticEqual;

impl Policy for StaticEqual {
    fn name(&self) -> &'static str {
        "static-equal"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    /// Equal parts of the GPU, and of what a tenant with a share leaves.
    fn family(&self, topology: &Topology) -> Vec<TpcSet> {
        Family::new(topology).equal_parts(2..=8).edges().halves_of_first().sets()
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let tenants = in_order(tenants);
        let parts = contiguous(topology, &equal(topology.all_tpcs().len(), tenants.len()));
        tenants.iter().zip(parts).map(|(tenant, part)| (tenant.id, TenantDraft::over(topology, part, WALLED))).collect()
    }
}
