//! `exclusive`: the whole GPU for one tenant at a time.

use crate::device::Topology;

use super::{Draft, Policy, TenantDemand, unconfined};

/// Each tenant on the whole GPU, at normal priority, with no walls: what it gets alone, and so the figure that slowdowns are measured against.
///
/// A plan says where kernels run, not when, so the draft equals that of [`DefaultSharing`](super::DefaultSharing). With several tenants it is
/// for the engine to have one request at a time in flight; smidgen's own does.
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
