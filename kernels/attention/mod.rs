//! Attention: prefill (many queries a sequence), disentangled (the same with terms for distances), decode (one query a sequence, over a KV
//! cache), and rotary positions.
//!
//! Tokens of all sequences are rows of one matrix `qkv`, `[rows, (heads + 2 * kv_heads) * head_dim]`: query heads, then key heads, then value
//! heads. Where a sequence's rows lie is said by two arrays in device memory, `starts` and `lengths`. So packed batches (starts are prefix
//! sums of lengths) and padded ones (starts are multiples of the longest length) are the same to the kernels, and padding costs nothing.
//!
//! Any head of 1 to 256 columns works: it runs on the next larger compiled size, whose remaining columns are zeros in shared memory. Rows that
//! do not lie on 16 bytes (an odd stride, a head of 20 columns) are read element by element, which is several times slower.

use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::{KernelKey, Launch, LaunchError, Params};

use super::choices::print_choice;

mod cache;
mod chunk;
mod decode;
mod disentangled;
mod maps;
mod prefill;
mod prefill_variant;
mod rotary;

pub use cache::{KvCache, PAGE_TOKENS};
pub use chunk::AttentionChunk;
pub use decode::AttentionDecode;
pub use disentangled::AttentionDisentangled;
pub use prefill::AttentionPrefill;
pub use rotary::{CacheWrite, Rotary};

/// The most columns a head may have.
pub const MAX_HEAD_DIM: u32 = 256;

/// Shared memory that the driver keeps for itself in each block, and the kernel's own static part, bytes.
const RESERVED_SHARED_BYTES: u32 = 1024 + 128;

/// How a row of `qkv` is divided: `heads` query heads, `kv_heads` key heads and as many value heads, each of `head_dim` columns. Query heads
/// `i * heads / kv_heads` and following share key head `i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: u32,
    /// Key heads, and value heads.
    pub kv_heads: u32,
    /// Columns of a head, at most [`MAX_HEAD_DIM`].
    pub head_dim: u32,
}

impl Heads {
    /// Columns of a row of `qkv`; `u32::MAX` where they cannot be counted, which no kernel takes.
    pub const fn qkv_width(&self) -> u32 {
        self.heads.saturating_add(self.kv_heads).saturating_add(self.kv_heads).saturating_mul(self.head_dim)
    }

    /// Columns of a row of the output, counted in the same way.
    pub const fn output_width(&self) -> u32 {
        self.heads.saturating_mul(self.head_dim)
    }

    /// What does not fit, if anything does not.
    fn problem(&self, qkv_stride: u32) -> Option<String> {
        let Self { heads, kv_heads, head_dim } = *self;
        let width = self.qkv_width();
        if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
            Some(format!("a head has 1 to {MAX_HEAD_DIM} columns, not {head_dim}"))
        } else if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            Some(format!("{heads} query heads cannot share {kv_heads} key heads evenly"))
        } else if width > 1 << 24 {
            Some(format!("a row of {width} columns is longer than {}", 1 << 24))
        } else if !(width..=1 << 24).contains(&qkv_stride) {
            Some(format!("the rows of qkv are {width} columns wide: a stride is at least that and at most {}, not {qkv_stride}", 1 << 24))
        } else {
            None
        }
    }

    /// Whether the rows of the output overlap, or a stride is out of range.
    fn output_problem(&self, output_stride: u32) -> Option<String> {
        let width = self.output_width();
        let fits = (width..=1 << 24).contains(&output_stride);
        (!fits).then(|| {
            format!(
                "the rows of the output are {width} columns wide: a stride is at least that and at most {}, not {output_stride}",
                1 << 24
            )
        })
    }
}

/// One compiled size of a kernel.
#[derive(Debug, Clone, Copy)]
struct CompiledSize {
    /// The most columns a head may have.
    head_dim: u32,
    symbol: &'static str,
    threads: u32,
    shared_bytes: u32,
    /// Blocks for which an SM has registers: the kernel's launch bounds.
    blocks_by_registers: u32,
}

impl CompiledSize {
    /// A kernel of warpgroup_loop.cuh: threads and launch bounds as in its `WarpgroupShape`.
    const fn of_warpgroup_loop(head_dim: u32, symbol: &'static str, shared_bytes: u32) -> Self {
        let (threads, blocks_by_registers) = if head_dim <= 64 { (256, 2) } else { (384, 1) };
        Self { head_dim, symbol, threads, shared_bytes, blocks_by_registers }
    }

    /// Queries of a tile of such a kernel: 64 for each warpgroup but the one that loads.
    const fn queries_of_warpgroup_loop(&self) -> u32 {
        (self.threads / 128 - 1) * 64
    }

    /// The smallest of `sizes`, which are in rising order, that has room for `head_dim` columns.
    fn of(head_dim: u32, sizes: &[Self]) -> Option<&Self> {
        sizes.iter().find(|size| head_dim <= size.head_dim)
    }

    /// Blocks that fit on one SM of `gpu` at once.
    fn blocks_per_sm(&self, gpu: &Topology) -> u32 {
        self.blocks_by_registers.min(gpu.shared_bytes_per_sm / (self.shared_bytes + RESERVED_SHARED_BYTES))
    }

    /// The elastic launch of `tiles` tiles in this size.
    fn launch(&self, key: &KernelKey, tiles: u64, params: Params, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        let tiles = u32::try_from(tiles).map_err(|_| unsupported(key, "more than 2^32 tiles".to_owned()))?;
        let blocks_per_sm = self.blocks_per_sm(gpu);
        if blocks_per_sm == 0 {
            return Err(too_little_shared_memory(key, self, gpu));
        }
        print_choice(sms, || (*key, self.symbol, u64::from(tiles)));
        Ok(Launch {
            symbol: self.symbol,
            grid: Launch::persistent_grid(tiles, sms, blocks_per_sm),
            block: self.threads,
            shared_bytes: self.shared_bytes,
            blocks_per_sm,
            tiles,
            blocks_per_tile: 1,
            elastic: true,
            programmatic: true,
            begins_by_number: false,
            params,
        })
    }
}

/// A product of counts for [`Work`](smidgen_runtime::launch::Work), whose extents nobody has checked yet.
fn product<const FACTORS: usize>(factors: [u64; FACTORS]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

fn unsupported(key: &KernelKey, reason: String) -> LaunchError {
    LaunchError::Unsupported { kernel: key.to_string(), reason }
}

/// The error of a GPU on whose SMs not even one block of `size` fits.
fn too_little_shared_memory(key: &KernelKey, size: &CompiledSize, gpu: &Topology) -> LaunchError {
    let CompiledSize { head_dim, shared_bytes, .. } = size;
    let available = gpu.shared_bytes_per_sm;
    unsupported(
        key,
        format!("heads of up to {head_dim} columns need {shared_bytes} bytes of shared memory, and an SM of this GPU has {available}"),
    )
}

#[cfg(test)]
mod tests;
