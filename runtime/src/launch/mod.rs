//! Where every kernel launch passes: from a description of the work to a launch on the right SMs.
//!
//! An engine implements [`Kernel`] for its descriptors and calls [`Session::launch`]. The session reads the current [`Plan`] (one atomic
//! load), finds the [`Placement`] of the kernel's [`KernelKey`], asks the kernel for its launch at that SM count, hops to the placement's
//! stream if it differs from the last one, attaches the tenant's grant, and launches. Nothing in this room allocates, waits for a lock or
//! makes a system call on that path, once a kernel key has been seen.

pub(crate) mod capture;
mod error;
pub mod grant;
mod graph_cache;
mod joiner;
mod kernel;
pub mod lending;
mod plan;
mod session;
pub(crate) mod turn;

pub use capture::CapturedGraph;
pub use error::LaunchError;
pub use graph_cache::{GraphLimits, WorkId};
pub use kernel::{Choice, Configuration, Kernel};
pub use plan::{Placement, Plan, PlanCell, TenantPlan, Walls};
pub use session::{OpaqueKernel, SeenKernel, Session, SessionStats};

// What descriptors are made of, beside the trait that they implement.
pub use crate::device::{
    Element, EncodedMap, EncodedMaps, Fingerprint, Grids, KernelKey, KernelName, Launch, MAX_DIMENSIONS, MAX_PARAM_BYTES, MAX_TENSOR_MAPS,
    ParamBytes, Params, ParseKeyError, Precision, Swizzle, TILE_PROGRESS_BYTES, TensorMap, TilesArg, Work,
};
