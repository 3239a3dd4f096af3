//! Captured graphs: a forward pass as one launch.

use std::sync::Arc;

use crate::device::Graph;
use crate::partition::PartitionRef;

use super::TenantPlan;
use super::joiner::LongLaunches;
use super::session::PROGRESSES;

/// A graph and the tenant's part of the plan under which it was captured. Its nodes keep the partitions, SM counts and priorities of that plan;
/// its grant is read on the device, and is always the present one.
pub struct CapturedGraph {
    pub(super) graph: Graph,
    pub(super) layout: Arc<Layout>,
    /// Kernels launched in it.
    pub(super) launches: u64,
    /// How many of them count tiles on each counter.
    pub(super) elastic: [u32; PROGRESSES],
    /// Those that are worth growing.
    pub(super) long: LongLaunches,
}

/// Where a session's kernels are placed: shared by all plans that place them alike, and compared by its address.
pub(super) struct Layout {
    pub(super) plan: TenantPlan,
    /// Keeps the partitions that placements name.
    pub(super) partitions: Vec<PartitionRef>,
}
