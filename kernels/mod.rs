//! The kernels, one room per operator: the device code (`.cu`, `.cuh`) and its host side (`.rs`: descriptor, shapes, launch at any SM count)
//! side by side. A descriptor implements [`Kernel`](smidgen_runtime::launch::Kernel) and says nothing of SMs; the runtime decides those.

#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks, non_camel_case_types)]
pub mod abi;
pub mod attention;
pub mod bandwidth;
mod choices;
pub mod embedding;
pub mod gemm;
pub mod norm;
pub mod pooling;
pub mod random;
pub mod sampling;
pub mod unfold;

#[cfg(test)]
mod testing;

use smidgen_runtime::device::{DevicePtr, Sms};
use smidgen_runtime::launch::Work;

/// Whether 16-byte loads are allowed at every one of `pointers`. Null counts as aligned: absent operands are not loaded.
pub(crate) fn is_aligned(pointers: &[DevicePtr]) -> bool {
    pointers.iter().all(|pointer| pointer.0.is_multiple_of(16))
}

/// Whether a launch that is bound by memory is predicted to take so long on `sms` SMs that its blocks should poll the grant: more than the 20 us
/// that taking SMs back takes anyway. Norms of 8192 rows move 42 GB/s on an SM of an H200.
pub(crate) fn outlasts_a_reaction(work: Work, sms: Sms) -> bool {
    outlasts_a_reaction_at(42_000, work, sms)
}

/// The same of a kernel that moves `bytes_per_microsecond` on each SM, and on all together no more than the 3400 GB/s that those norms reach.
pub(crate) fn outlasts_a_reaction_at(bytes_per_microsecond: u64, work: Work, sms: Sms) -> bool {
    const BYTES_PER_MICROSECOND_OF_ALL: u64 = 3_400_000;
    const REACTION_MICROSECONDS: u64 = 20;
    work.bytes > REACTION_MICROSECONDS * BYTES_PER_MICROSECOND_OF_ALL.min(u64::from(sms.0) * bytes_per_microsecond)
}
