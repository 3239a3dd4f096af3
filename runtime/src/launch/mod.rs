//! Where every kernel launch passes: from a description of the work to a launch on the right SMs.
//!
//! An engine implements [`Kernel`] for its descriptors and calls [`Session::launch`]. The session reads the current [`Plan`] (one atomic
//! load), finds the [`Placement`] of the kernel's [`KernelKey`], asks the kernel for its launch at that SM count, hops to the placement's
//! stream if it differs from the last one, attaches the tenant's grant, and launches. Nothing in this room allocates, waits for a lock or
//! makes a system call on that path, once a kernel key has been seen.

pub(crate) mod capture;
mod encoded_maps;
mod error;
pub mod grant;
mod graph_cache;
mod joiner;
mod kernel;
mod key;
pub mod lending;
mod plan;
pub(crate) mod progress;
mod session;
mod tensor_map;
pub(crate) mod turn;

pub use capture::CapturedGraph;
pub use encoded_maps::{EncodedMap, EncodedMaps};
pub use error::LaunchError;
pub use graph_cache::{GraphLimits, WorkId};
pub use kernel::{Choice, Configuration, Grids, Kernel, Launch, MAX_PARAM_BYTES, MAX_TENSOR_MAPS, ParamBytes, Params, TilesArg, Work};
pub use key::{Fingerprint, KernelKey, KernelName, ParseKeyError, Precision};
pub use plan::{Placement, Plan, PlanCell, TenantPlan, Walls};
pub use progress::TILE_PROGRESS_BYTES;
pub use session::{OpaqueKernel, SeenKernel, Session, SessionStats};
pub use tensor_map::{Element, MAX_DIMENSIONS, Swizzle, TensorMap};
