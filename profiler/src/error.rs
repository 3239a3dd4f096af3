//! Why a sweep stopped.

use std::path::PathBuf;

use smidgen_runtime::device::{DeviceError, Sms};
use smidgen_runtime::launch::LaunchError;
use smidgen_runtime::partition::LadderError;
use smidgen_runtime::profile::ProfileError;

/// Why a sweep stopped. Every kernel key finished before was saved.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// There is nothing to measure.
    #[error("the recorded request launched no kernel; record one whole request, then profile it")]
    NothingRecorded,
    /// An option holds what cannot be.
    #[error("{name}: {reason}")]
    Option {
        /// The field of [`Options`](crate::Options).
        name: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A rung of the ladder cannot be had. There is no fallback to the whole GPU.
    #[error("no partition of {sms} SMs: {source}")]
    Partition {
        /// The rung.
        sms: Sms,
        /// Why not.
        source: LadderError,
    },
    /// A kernel cannot be configured or launched, or the device failed under it.
    #[error("{key} on {sms} SMs: {source}")]
    Kernel {
        /// The kernel's key.
        key: String,
        /// SMs it was to run on.
        sms: Sms,
        /// What happened.
        source: LaunchError,
    },
    /// The device timed a kernel at nothing.
    #[error("{key} on {sms} SMs: the device says that it takes no time at all, so its clock or its model of this kernel is broken")]
    NoTime {
        /// The kernel's key.
        key: String,
        /// SMs it ran on.
        sms: Sms,
    },
    /// The device failed between kernels.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The profile to go on with was measured under other conditions.
    #[error("{field}: the profile to go on with has `{found}`, this run `{here}`; one file holds one condition: name another with `-o`")]
    OtherConditions {
        /// The field of the profile.
        field: &'static str,
        /// Its value there.
        found: String,
        /// Its value here.
        here: String,
    },
    /// What is measured and what is simulated would be in one file.
    #[error(
        "{}; name another file with `-o`",
        if *simulated { "it holds measured figures, and this run is SIMULATED" } else { "it is SIMULATED, and this run measures" }
    )]
    MeasuredAndSimulated {
        /// Whether it is this run that is simulated.
        simulated: bool,
    },
    /// Something is wrong with going on with this file.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What.
        source: Box<SweepError>,
    },
    /// The profile cannot be read or saved.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}
