//! What the profiler measured, and where it is kept.
//!
//! A [`Profile`] holds, for each kernel key, every latency sample at every rung of the ladder, the [`Curve`] of their medians, the minimum SM
//! count at a stated tolerance, the board's power at a few of the rungs, and the provenance without which none of it means anything. It is one JSON file, read and written whole
//! ([`Profile::read`], [`Profile::write`]); nothing that fails validation gets in or out. A [`ProfileStore`] is what policies see: the
//! kernels of all profiles that were admitted for one machine, by fingerprint. docs/profiling.md explains the file field by field.
//! [`Corrections`] are what kernel times seen while serving say against a profile.

mod check;
mod commands;
mod correction;
mod curve;
mod energy;
mod error;
mod file;
mod layout;
mod schema;
mod store;

pub use commands::quoted;
pub(crate) use correction::WINDOW;
pub use correction::{Corrections, DRIFT_BOUND, DriftReport, KernelDrift, PlanDrift, SHORTEST_JUDGED_REPLAY_US, SHORTEST_JUDGED_US};
pub use curve::Curve;

pub(crate) use energy::ENERGY_BY_CLOCK;
pub use energy::{Board, Energy};
pub use error::{ProfileError, ProfileWarning};
pub use schema::{
    BoardPower, Bound, KernelProfile, MeasuredConfiguration, PeakSource, Peaks, PowerSample, Profile, Provenance, SCHEMA_VERSION,
    SamplePoint,
};
pub use store::{Machine, ProfileStore};
