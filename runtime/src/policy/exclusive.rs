//! `exclusive`: one tenant at a time has the whole GPU.

use crate::device::Topology;

use super::{Draft, Policy, TenantDemand, unconfined};

/// Each tenant on the whole GPU, at normal priority, with no walls: what it gets alone, and so the figure that slowdowns are measured against.
///
/// A plan says where kernels run, not when, so the draft equals that of [`DefaultSharing`](super::DefaultSharing). What makes it exclusive is
/// kept by the engine: it serves one tenant at a time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exclusive;

impl Policy for Exclusive {
    fn name(&self) -> &'static str {
        "exclusive"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        unconfined(topology, tenants)
    }
}
