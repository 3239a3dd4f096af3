//! What the profiler measured, and where it is kept.
//!
//! A [`Profile`] holds, for each kernel key, every latency sample at every rung of the ladder, the [`Curve`] of their medians, the minimum SM
//! count at a stated tolerance, and the provenance without which none of it means anything.

mod curve;
mod schema;

pub use curve::Curve;
pub use schema::{Bound, KernelProfile, Profile, Provenance, SCHEMA_VERSION, SamplePoint};
mod store; pub use store::ProfileStore;
