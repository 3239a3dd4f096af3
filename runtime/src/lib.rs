//! Kernel-level spatial partitioning of one GPU between transformer tenants.
//!
//! An inference engine links this crate and nothing else of smidgen. It describes each kernel it launches as a
//! [`Kernel`](launch::Kernel), sends every launch through [`Session::launch`](launch::Session::launch), and the runtime decides how many
//! SMs the launch gets, which ones, and with what stream priority. The decisions come from a [`Plan`](launch::Plan), which a
//! [`Policy`](policy::Policy) computes from measured [profiles](profile) and which is swapped whole.
//!
//! | room | what is in it |
//! |---|---|
//! | [`device`] | the contract with a GPU and its two back ends: `cuda`, and `sim`, a discrete-event model |
//! | [`partition`] | TPC sets, the ladder of partitions, kept while there is room, the ledger of who holds which TPCs, KRISP's mask allocation |
//! | [`launch`] | kernels, plans, grants, [`lending`](launch::lending) of what is not used, and the one interception point |
//! | [`policy`] | one file per policy: pure functions from tenants and profiles to a plan |
//! | [`profile`] | what the profiler measured: schema, provenance, store |
//! | [`runtime`] | tenants come, go and change; each change makes a plan |
//! | [`tenant`] | who shares the GPU |
//! | [`transfer`] | host-to-device copies: latency tenants' at once, others' in chunks |
//! | [`telemetry`] | timeline, metrics, sampled kernel times, latency recorders |
//!
//! The crate knows nothing of transformers, and it builds and tests with no GPU, no CUDA and no kernels.

mod atomics;
mod bytes;
pub mod device;
pub mod launch;
pub mod partition;
pub mod policy;
pub mod profile;
pub mod runtime;
pub mod telemetry;
pub mod tenant;
pub mod transfer;

pub use runtime::{AdmitError, Runtime, RuntimeOptions, Tenancy, Unprofiled};
