//! Queries, keys and values as Hopper's copy engine sees them, for the kernels of `warpgroup_loop.cuh`.

use smidgen_runtime::device::DevicePtr;
use smidgen_runtime::launch::{Element, Swizzle, TensorMap};

use super::super::is_aligned;
use super::{Heads, PAGE_TOKENS};

/// Rows and columns of a box: `BOX_ROWS` and `BOX_COLUMNS` in warpgroup_rows.cuh.
const BOX: [u32; 2] = [64, 64];

/// Bytes of addresses that a pool's map spans: more than a GPU has, and well within what a map can say.
const POOL_BYTES: u64 = 1 << 39;

/// Rows of `qkv`, and those of the output that belong to them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsOfHeads {
    pub(super) heads: Heads,
    pub(super) rows: u32,
    pub(super) qkv: DevicePtr,
    pub(super) qkv_stride: u32,
    pub(super) output: DevicePtr,
    pub(super) output_stride: u32,
}

impl RowsOfHeads {
    /// Whether all heads of all rows begin on 16 bytes, as copies and stores of the loop demand.
    pub(super) fn on_16_bytes(&self) -> bool {
        let lengths = [self.qkv_stride, self.output_stride, self.heads.head_dim];
        is_aligned(&[self.qkv, self.output]) && lengths.iter().all(|halves| halves.is_multiple_of(8))
    }

    /// `qkv` as columns of rows of heads. Columns past a head's own read as zeros, and so do rows past the last.
    pub(super) fn map(&self) -> TensorMap {
        let heads = self.heads;
        TensorMap {
            ptr: self.qkv,
            element: Element::F16,
            dimensions: 3,
            sizes: [heads.head_dim, self.rows, heads.heads + 2 * heads.kv_heads, 1].map(u64::from),
            strides: [bytes(self.qkv_stride), bytes(heads.head_dim), 0],
            tile: [BOX[1], BOX[0], 1, 1],
            swizzle: Swizzle::Bytes128,
        }
    }
}

/// A pool of pages as columns of rows of heads of pages: a box is one head's part of a page, or 64 columns of it. Columns past a head's own read as zeros.
///
/// How many pages there are is known to whoever made the pool, and not to us. It need not be: the kernel asks only for pages that the table names for
/// positions that a sequence has, and those are in the pool. So the map ends where no pool does.
pub(super) fn pool(pool: DevicePtr, heads: Heads) -> TensorMap {
    let part = u64::from(PAGE_TOKENS) * bytes(heads.head_dim);
    TensorMap {
        ptr: pool,
        element: Element::F16,
        dimensions: 3,
        sizes: [u64::from(heads.head_dim), u64::from(PAGE_TOKENS), POOL_BYTES / part, 1],
        strides: [bytes(heads.head_dim), part, 0],
        tile: [BOX[1], BOX[0], 1, 1],
        swizzle: Swizzle::Bytes128,
    }
}

fn bytes(elements: u32) -> u64 {
    u64::from(elements) * Element::F16.bytes()
}
