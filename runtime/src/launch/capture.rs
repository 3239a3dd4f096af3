//! Captured graphs: a forward pass as one launch.

use std::sync::Arc;

use crate::device::{Graph, Sms};
use crate::partition::PartitionRef;

use super::joiner::Owner;
use super::session::PROGRESSES;
use super::{Fingerprint, TenantPlan};

/// A graph and the tenant's part of the plan under which it was captured. Its nodes keep the partitions, SM counts and priorities of that plan;
/// its grant is read on the device, and is always the present one.
pub struct CapturedGraph {
    pub(super) graph: Graph,
    pub(super) layout: Arc<Layout>,
    pub(super) body: Arc<GraphBody>,
}

/// What a graph launches.
pub(crate) struct GraphBody {
    /// Kernels launched in it.
    pub(crate) launches: u64,
    /// By kernel, those that went through the session.
    pub(crate) kernels: Box<[GraphKernel]>,
    /// How many of them count tiles on each counter.
    pub(super) elastic: [u32; PROGRESSES],
    /// Those that are worth growing, each with the number of its tile counter.
    pub(super) long: Box<[(usize, Owner)]>,
}

/// The launches of one kernel in a graph.
pub(crate) struct GraphKernel {
    pub(crate) kernel: Fingerprint,
    /// SMs that they were sized for.
    pub(crate) sms: Sms,
    pub(crate) launches: u32,
}

/// Where a session's kernels are placed: shared by all plans that place them alike, and compared by its address.
pub(super) struct Layout {
    pub(super) plan: TenantPlan,
    /// Keeps the partitions that placements name.
    pub(super) partitions: Vec<PartitionRef>,
}
