//! `default-sharing`: what the GPU does if nobody intervenes.

use crate::device::Topology;

use super::{Draft, Policy, TenantDemand, unconfined};

/// All tenants on the whole GPU at once, at normal priority, with no walls: their thread blocks take SMs as the hardware hands them out.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultSharing;

impl Policy for DefaultSharing {
    fn name(&self) -> &'static str {
        "default-sharing"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        unconfined(topology, tenants)
    }
}
