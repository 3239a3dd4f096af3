//! The compiled kernels, as `build.rs` left them.
//!
//! One fatbin holds every kernel of `kernels/` for sm_80 and sm_90a. It is embedded in the binary, so that a binary copied to another machine
//! needs no file beside it.

/// The kernels' image, to be handed to the driver whole; `None` if this build had no CUDA compiler (`cargo xtask toolchain` installs one).
#[cfg(kernels_built)]
pub const FATBIN: Option<&[u8]> = Some(&IMAGE.0);
/// The kernels' image, to be handed to the driver whole; `None` if this build had no CUDA compiler (`cargo xtask toolchain` installs one).
#[cfg(not(kernels_built))]
pub const FATBIN: Option<&[u8]> = None;

/// Names the state of all kernel sources and of their compiler at this build, in 16 hexadecimal digits. A profile records it: kernels that
/// changed since make its latencies doubtful.
pub const BUILD_HASH: &str = env!("SMIDGEN_KERNELS_HASH");

/// The driver reads the image's header as 64-bit words; `include_bytes!` alone promises no alignment.
#[cfg(kernels_built)]
#[repr(C, align(16))]
struct Aligned<Bytes: ?Sized>(Bytes);

#[cfg(kernels_built)]
static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));
