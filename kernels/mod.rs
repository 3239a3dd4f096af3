//! The kernels, one room per operator: the device code (`.cu`, `.cuh`) and its host side (`.rs`: descriptor, shapes, launch at any SM count)
//! side by side. A descriptor implements [`Kernel`](smidgen_runtime::launch::Kernel) and says nothing of SMs; the runtime decides those.

#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks, non_camel_case_types)]
pub mod abi;
pub mod attention;
pub mod bandwidth;
pub mod embedding;
pub mod gemm;
pub mod norm;
pub mod pooling;
pub mod random;
pub mod sampling;

#[cfg(test)]
mod testing;

/// Whether 16-byte loads are allowed at every one of `pointers`. Null counts as aligned: absent operands are not loaded.
pub(crate) fn is_aligned(pointers: &[smidgen_runtime::device::DevicePtr]) -> bool {
    pointers.iter().all(|pointer| pointer.0.is_multiple_of(16))
}
