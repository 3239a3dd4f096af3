//! Streams and events: queues of operations, and the marks by which they wait for each other.

use std::collections::VecDeque;
use std::sync::Arc;

use super::graph::GraphDef;
use super::kernel::KernelSpec;
use super::memory::Write;
use super::sm_set::SmSet;

/// What waits on a stream.
#[derive(Debug)]
pub(super) enum Op {
    Kernel(Arc<KernelSpec>),
    Write(Arc<Write>),
    /// A copy to the host, which takes its time.
    Read {
        bytes: u64,
    },
    Record {
        event: u64,
        mark: u64,
    },
    Wait {
        event: u64,
        mark: u64,
    },
    Replay(Arc<GraphDef>),
}

#[derive(Debug)]
pub(super) struct Queued {
    /// When the GPU sees it.
    pub(super) visible: u64,
    pub(super) op: Op,
}

/// A stream: operations in order, one at a time.
pub(super) struct Stream {
    pub(super) partition: u32,
    pub(super) sms: SmSet,
    /// Which process it belongs to.
    pub(super) space: usize,
    pub(super) queue: VecDeque<Queued>,
    /// Whether an operation is in progress.
    pub(super) busy: bool,
    /// When the next kernel may start: a gap after the one before.
    pub(super) not_before: u64,
    /// The number kept for a launch that overlaps the one that has just ended.
    pub(super) kept_seq: Option<u64>,
    /// When the host has issued what it was told so far.
    pub(super) host: u64,
    /// The capture that the stream takes part in.
    pub(super) capture: Option<usize>,
    /// Given back: it takes nothing more, but its number stays taken, since graphs captured on it refer to it.
    pub(super) destroyed: bool,
}

impl Stream {
    pub(super) fn new(partition: u32, sms: SmSet, space: usize) -> Self {
        Self {
            partition,
            sms,
            space,
            queue: VecDeque::new(),
            busy: false,
            not_before: 0,
            kept_seq: None,
            host: 0,
            capture: None,
            destroyed: false,
        }
    }

    /// Whether a launch that overlaps was issued to follow what runs now.
    pub(super) fn is_followed(&self, now: u64) -> bool {
        self.queue.front().is_some_and(|next| next.visible <= now && matches!(&next.op, Op::Kernel(spec) if spec.overlaps))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.busy
    }
}

/// Marks are numbered by the calls to record, so that a wait knows which call it was for.
#[derive(Debug, Default)]
pub(super) struct EventState {
    /// Whether it may be asked for the time.
    pub(super) timed: bool,
    /// The last mark asked for; 0 before the first.
    pub(super) asked: u64,
    /// The last mark reached.
    pub(super) reached: u64,
    pub(super) reached_at: u64,
    /// Host timeline of the stream at the last record.
    pub(super) host: u64,
    /// Capture and nodes, where the last record was captured.
    pub(super) captured: Option<(usize, Vec<u32>)>,
    pub(super) waiters: Vec<usize>,
    /// Marks asked for and not reached.
    pub(super) outstanding: u32,
    pub(super) destroyed: bool,
}
