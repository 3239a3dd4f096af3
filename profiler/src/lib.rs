//! Finds the fewest SMs on which each kernel keeps its speed.
//!
//! The profiler takes the launches of one request, as a [`Session`](smidgen_runtime::launch) recorded them, and runs each kernel key alone on
//! every rung of the ladder: 2 SMs, 4 SMs, and so on to the whole GPU. It knows nothing of transformers: whatever implements
//! [`Kernel`](smidgen_runtime::launch::Kernel) can be profiled, on whatever implements [`Device`](smidgen_runtime::device::Device), the
//! simulator included. What comes out is a [`Profile`](smidgen_runtime::profile::Profile), saved after every kernel key, so that an
//! interrupted sweep goes on where it stopped.
//!
//! | module | what is in it |
//! |---|---|
//! | [`sweep`] | which points are measured, in which order, and what is done with an earlier, unfinished profile |
//! | `queue` | the kernels that a runtime has met and no profile holds |
//! | `shared` | one file that several sweeps save into at once |
//! | `measure` | one point: a kernel key on one SM count |
//! | `trial` | which configuration of a kernel is quickest there, where it offers several |
//! | [`knee`] | from samples to a median, and from medians to the minimum SM count |
//! | [`roofline`] | what limits a kernel |
//! | [`power`] | what a launch takes in energy |
//! | [`report`] | a profile as a table |
//! | [`clocks`] | the GPU's clock and power while something is measured |
//!
//! It launches on the device directly and not through a session: plans of a running system must not disturb a measurement.

pub mod clocks;
mod error;
pub mod knee;
mod measure;
mod origin;
pub mod power;
mod queue;
pub mod report;
pub mod roofline;
mod shared;
pub mod sweep;
mod trial;

pub use error::SweepError;
pub use origin::{Origin, today};
pub use power::PowerMeter;
pub use queue::profile_queued;
pub use sweep::{Options, Progress, Size, Sweep};
