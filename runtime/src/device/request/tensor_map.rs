//! What the GPU's copy engine must know of a matrix (Hopper's TMA): a kernel that copies whole tiles names its matrices here, and the back end
//! writes the driver's description of each into the kernel's parameters at launch. Encoding is the back end's, since only the driver may
//! know the format; the simulator computes nothing and leaves those bytes alone.

use crate::device::DevicePtr;

/// The most dimensions a map of ours has.
pub const MAX_DIMENSIONS: usize = 4;

/// Type of a matrix's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 16-bit floating point.
    F16,
    /// 32-bit floating point.
    F32,
}

impl Element {
    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// How 16-byte chunks of a tile's rows are permuted in shared memory, so that matrix instructions meet no bank conflicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Within 32 bytes.
    Bytes32,
    /// Within 64 bytes.
    Bytes64,
    /// Within 128 bytes.
    Bytes128,
}

/// A dense array in device memory and the tile of it that one copy moves. Dimension 0 is the one whose elements lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap {
    /// First element; a multiple of 16 bytes.
    pub ptr: DevicePtr,
    /// Type of the elements.
    pub element: Element,
    /// Number of dimensions in use, from 1.
    pub dimensions: u8,
    /// Elements in each dimension. What a tile has beyond them reads as zero, and is not written.
    pub sizes: [u64; MAX_DIMENSIONS],
    /// Bytes from one element to the next in dimensions 1 and on; multiples of 16.
    pub strides: [u64; MAX_DIMENSIONS - 1],
    /// Elements of a tile in each dimension, at most 256.
    pub tile: [u32; MAX_DIMENSIONS],
    /// Layout of a tile in shared memory; a row of a swizzled tile is at most as long as the swizzle.
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// A row-major matrix of `rows` rows, each `stride` elements after the last, copied in tiles of `tile_rows` by `tile_columns`.
    pub const fn matrix(
        ptr: DevicePtr,
        element: Element,
        [rows, columns]: [u32; 2],
        stride: u32,
        tile: [u32; 2],
        swizzle: Swizzle,
    ) -> Self {
        Self {
            ptr,
            element,
            dimensions: 2,
            sizes: [columns as u64, rows as u64, 1, 1],
            strides: [stride as u64 * element.bytes(), 0, 0],
            tile: [tile[1], tile[0], 1, 1],
            swizzle,
        }
    }
}
