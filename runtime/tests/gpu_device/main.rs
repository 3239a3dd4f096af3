//! The CUDA back end as the runtime's other rooms see it. Most tests need a GPU; those that do not show what a machine without one gets.
#![cfg(feature = "cuda-13000")]

mod driver;
mod gpu;
mod lost_context;
mod memory;
mod partitions;
mod streams;
