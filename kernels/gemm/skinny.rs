//! GEMM of few rows, the decode step's: how a problem is cut for the kernels of `skinny.cuh`, and their launches.
//!
//! The time is that of reading `B` once, so the cut follows from bytes: tiles as wide as lets all granted SMs end together, and, where a
//! problem has too few columns for tiles that read `B` much more than `A`, shares of k that are summed through a [`Workspace`]. Widths depend on the SM
//! count, since they have no influence on the bits; the kernel and the shares of k, which have, follow from the problem alone.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Launch, LaunchError, Params};

use super::Gemm;
use super::abi;

/// Device memory in which blocks that share a tile's columns of k add up their sums.
///
/// It must be all zeros before its first use; every launch leaves it fit for the next. Launches that may overlap in time, other than a stream's own, need one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workspace {
    /// Where it begins; a multiple of 16.
    pub ptr: DevicePtr,
    /// How large it is.
    pub bytes: u32,
}

impl Workspace {
    /// What is enough for every problem of at most 64 rows that gains from it, bytes.
    pub const BYTES: u32 = ARRIVAL_BYTES + (8 << 20);
}

/// Counters of arrivals, at the workspace's beginning: one for each tile.
const ARRIVAL_BYTES: u32 = 4 * MOST_SHARED_TILES;
const MOST_SHARED_TILES: u32 = 1024;

/// The kernels of `skinny.cu`, named by the rows of `A` that they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Skinny {
    /// Up to 8 rows.
    Rows8,
    /// Up to 16 rows.
    Rows16,
    /// Up to 32 rows.
    Rows32,
    /// Up to 64 rows.
    Rows64,
}

/// What the host must know of a `SkinnyShape` in `skinny.cu`.
struct Shape {
    rows: u32,
    /// Most columns of a tile.
    columns: u32,
    /// Columns of k that a block multiplies in one step.
    step_k: u32,
    /// Steps of a unit come in multiples of this.
    slots: u32,
    threads: u32,
    shared_bytes: u32,
    blocks_per_sm: u32,
}

impl Skinny {
    /// From the fewest rows on.
    pub(super) const ALL: [Self; 4] = [Self::Rows8, Self::Rows16, Self::Rows32, Self::Rows64];

    /// The kernel for `gemm`; `None` if it has too many rows, or rows that are not made of 16-byte pieces.
    pub(super) fn choose(gemm: &Gemm) -> Option<Self> {
        Self::ALL.into_iter().find(|skinny| skinny.can_do(gemm))
    }

    pub(super) fn can_do(self, gemm: &Gemm) -> bool {
        gemm.is_aligned() && gemm.k.is_multiple_of(8) && gemm.m <= self.shape().rows
    }

    const fn shape(self) -> Shape {
        match self {
            Self::Rows8 => {
                Shape { rows: 8, columns: 32, step_k: 256, slots: 4, threads: 256, shared_bytes: abi::SKINNY_GEMM_8_SHARED_BYTES, blocks_per_sm: 2 }
            }
            Self::Rows16 => {
                Shape { rows: 16, columns: 32, step_k: 256, slots: 4, threads: 256, shared_bytes: abi::SKINNY_GEMM_16_SHARED_BYTES, blocks_per_sm: 2 }
            }
            Self::Rows32 => {
                Shape { rows: 32, columns: 128, step_k: 64, slots: 4, threads: 256, shared_bytes: abi::SKINNY_GEMM_32_SHARED_BYTES, blocks_per_sm: 2 }
            }
            Self::Rows64 => {
                Shape { rows: 64, columns: 128, step_k: 32, slots: 8, threads: 256, shared_bytes: abi::SKINNY_GEMM_64_SHARED_BYTES, blocks_per_sm: 2 }
            }
        }
    }
}
