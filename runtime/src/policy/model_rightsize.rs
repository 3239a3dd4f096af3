//! `model-rightsize`: one partition per tenant, sized to its whole request.

use crate::device::Topology;
use crate::partition::{TpcSet, rungs};
use crate::profile::Curve;

use super::division::{Claim, contiguous, proportional};
use super::family::Family;
use super::{DEFAULT_TOLERANCE, Draft, Policy, TenantDemand, TenantDraft, WALLED, in_order};

/// Model-wise right-sizing, as GSLICE (SoCC 2020) and gpulets (ATC 2022) do it: each tenant gets the fewest TPCs on which its whole request
/// is within the tolerance of its latency on the whole GPU, in one partition that all its kernels share, held by all three walls.
///
/// Partitions are disjoint runs of TPCs. If the sizes do not fit together they shrink in proportion, to no less than one TPC. If TPCs are
/// left over they are handed out in proportion too: nobody else could use them before the next plan, a kernel is never the worse for them,
/// and `static-equal` uses the whole GPU as well, so idle TPCs here would make the comparison one of GPU sizes.
#[derive(Debug, Clone, Copy)]
pub struct ModelRightsize {
    tolerance: f64,
}

impl Default for ModelRightsize {
    fn default() -> Self {
        Self { tolerance: DEFAULT_TOLERANCE }
    }
}

impl ModelRightsize {
    /// With requests allowed to be slower by `tolerance` (0.02 is 2%) than on the whole GPU.
    #[must_use]
    pub const fn with_tolerance(self, tolerance: f64) -> Self {
        Self { tolerance }
    }

    /// The knee of the tenant's request in TPCs; none if no kernel of it was profiled.
    fn knee(&self, topology: &Topology, tenant: &TenantDemand) -> Option<u16> {
        let request_us = |sms| {
            let profiled = tenant.kernels.iter().filter_map(|kernel| Some((kernel.launches, kernel.curve.as_ref()?)));
            profiled.map(|(launches, curve)| f64::from(launches) * curve.at(sms)).sum()
        };
        let request = Curve::new(rungs(topology).into_iter().map(|sms| (sms, request_us(sms))).collect())?;
        Some(topology.tpcs_for(request.minimum_sms(self.tolerance)))
    }
}

impl Policy for ModelRightsize {
    fn name(&self) -> &'static str {
        "model-rightsize"
    }

    fn needs_profiles(&self) -> bool {
        true
    }

    /// Equal parts while nothing is known of the tenants; then two divide the GPU anywhere.
    fn family(&self, topology: &Topology) -> Vec<TpcSet> {
        Family::new(topology).equal_parts(2..=8).edges().sets()
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let tenants = in_order(tenants);
        let claim = |knee: u16| Claim { weight: knee.into(), enough: u16::MAX };
        let claims: Vec<_> = tenants.iter().map(|tenant| self.knee(topology, tenant).map(claim)).collect();
        let parts = contiguous(topology, &proportional(topology.all_tpcs().len(), &claims));
        tenants.iter().zip(parts).map(|(tenant, part)| (tenant.id, TenantDraft::over(topology, part, WALLED))).collect()
    }
}
