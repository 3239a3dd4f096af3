//! What a simulated GPU remembers of each kernel, when asked to.

use std::time::Duration;

use crate::device::{Fingerprint, StreamId};
use crate::partition::TpcSet;

/// One kernel, from the end of its predecessors to its own end, in virtual time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelTrace {
    /// The function.
    pub symbol: &'static str,
    /// The kernel's key.
    pub key: Fingerprint,
    /// The stream that it was enqueued on, or captured on.
    pub stream: StreamId,
    /// When its blocks began to wait for room.
    pub ready: Duration,
    /// When the first of them was placed.
    pub started: Duration,
    /// When the last of them had ended.
    pub ended: Duration,
    /// Every TPC that it had a block on.
    pub tpcs: TpcSet,
}
