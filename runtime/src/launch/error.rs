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
    /// Something that acts once was asked for in a capture, whose launches run at every replay.
    #[error("a capture is in progress; begin and end requests, and grow launches, before or after it")]
    InCapture,
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
