//! Captured graphs: a forward pass as one launch.

use std::sync::Arc;

use crate::device::Graph;

use super::Plan;
use super::session::PROGRESSES;

/// A graph and the plan under which it was captured. Its nodes keep the partitions and priorities of that plan.
pub struct CapturedGraph {
    pub(super) graph: Graph,
    pub(super) plan: Option<Arc<Plan>>,
    /// How many of its nodes count tiles on each counter.
    pub(super) elastic: [u32; PROGRESSES],
}
