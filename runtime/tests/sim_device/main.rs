//! The simulated GPU as its callers see it: through the `Device` trait, in virtual time.

mod bad_use;
mod bandwidth;
mod blocks;
mod determinism;
mod grants;
mod graphs;
mod sharing;
mod slices;
mod streams;
mod support;
