//! `static-equal`: the same number of TPCs to everybody, whatever they run.

use crate::device::Topology;

use super::division::{contiguous, equal};
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

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let tenants = in_order(tenants);
        let parts = contiguous(topology, &equal(topology.all_tpcs().len(), tenants.len()));
        tenants.iter().zip(parts).map(|(tenant, part)| (tenant.id, TenantDraft::over(topology, part, WALLED))).collect()
    }
}
