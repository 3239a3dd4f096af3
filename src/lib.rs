//! Placeholder.
#[path = "../kernels/mod.rs"]
pub mod kernels;
