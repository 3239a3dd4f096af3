//! The one place that atomics shared between threads come from, so that loom can put its own in their place and run every interleaving:
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test -p smidgen-runtime --no-default-features --lib --target-dir target/loom loom_
//! ```
//!
//! Only what those tests model is imported from here. Under `cfg(loom)` the types work inside `loom::model` alone, so that no other test runs.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, Ordering, fence};
