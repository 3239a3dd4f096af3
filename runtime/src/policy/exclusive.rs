//! `exclusive`: the whole GPU for a tenant that is alone on it.

use crate::device::Topology;

use super::{Draft, Policy, TenantDemand, unconfined};

/// Each tenant on the whole GPU, at normal priority, with no walls: what it gets alone, and so the figure that slowdowns are measured against.
///
/// A plan says where kernels run, not when, so the draft equals that of [`DefaultSharing`](super::DefaultSharing). Exclusive it is where the
/// engine admits one tenant only; with several at once it is default sharing.
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
