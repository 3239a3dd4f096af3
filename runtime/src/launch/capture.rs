//! Captured graphs: a forward pass as one launch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;

use crate::device::{Graph, Sms};
use crate::partition::PartitionRef;

use super::joiner::Owner;
use super::session::PROGRESSES;
use super::{Fingerprint, TenantPlan};

/// A graph and the tenant's part of the plan under which it was captured. Its nodes keep the partitions, SM counts and priorities of that plan;
/// its grant is read on the device, and is always the present one.
pub struct CapturedGraph {
    /// Who captured it, and alone may replay it.
    pub(super) session: SessionNumber,
    pub(super) graph: Graph,
    pub(super) layout: Arc<Layout>,
    pub(super) body: Arc<GraphBody>,
}

/// Tells the sessions of a process apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionNumber(u64);

impl SessionNumber {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A capture in progress.
#[derive(Clone, Copy)]
pub(super) struct Capture {
    /// The lane on which it began.
    pub(super) origin: usize,
    /// That on which it must end.
    pub(super) thread: ThreadId,
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
