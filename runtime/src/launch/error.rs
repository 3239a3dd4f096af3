//! What can go wrong at the interception point.

use crate::device::{DeviceError, PartitionId, Priority};

/// Why a launch did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LaunchError {
    /// The kernel cannot do this shape.
    #[error("{kernel} cannot do this shape: {reason}")]
    Unsupported {
        /// The kernel's key.
        kernel: String,
        /// What does not fit, and what would.
        reason: String,
    },
    /// The tenant was dismissed, or is not in the plan.
    #[error("this tenant was dismissed; admit it again to launch")]
    Dismissed,
    /// A placement names a stream that the plan did not say it would use. Launching elsewhere would break the wall.
    #[error("the plan places a kernel in partition {} at {priority:?} priority, where this session has no stream; plan again", partition.0)]
    NoStream {
        /// The partition.
        partition: PartitionId,
        /// The priority.
        priority: Priority,
    },
    /// There is no capture to finish.
    #[error("no capture is in progress; begin one first")]
    NotCapturing,
    /// Something that acts once was asked for in a capture, whose launches run at every replay: requests, growing, copies from the host, events, other graphs.
    #[error("a capture is in progress, and holds launches alone; do all else before or after it")]
    InCapture,
    /// A capture ends on the thread that began it.
    #[error("this capture was begun on another thread; end it there")]
    WrongThread,
    /// A graph counts tiles in its session's memory.
    #[error("this graph was captured by another session, whose memory it uses; capture it with this one")]
    WrongSession,
    /// An uploader copies in its own tenant's turn.
    #[error("this uploader is another tenant's than the session; get one for this tenant")]
    WrongTenant,
    /// The tenant is paused. Its weights and graphs are where they were.
    #[error("this tenant is paused; resume it to launch")]
    Paused,
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
