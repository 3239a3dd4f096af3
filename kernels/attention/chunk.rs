//! Attention of some new rows of each sequence over its cache: prompts prefilled in chunks.

use std::mem::offset_of;

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::super::abi;
use super::maps::{self, RowsOfHeads};
use super::{CompiledSize, Heads, KvCache, product, unsupported};

/// Rows of one tile of the kernels for any GPU: `Chunk::QUERIES` in chunk.cuh.
const QUERIES_PER_TILE: u32 = 64;

/// For any GPU and rows wherever they lie (chunk.cuh), by rising head size; launch bounds as `Chunk::BLOCKS_PER_SM` in chunk.cuh.
const SIZES: [CompiledSize; 6] = {
    const fn size(head_dim: u32, symbol: &'static str, shared_bytes: u32, blocks_by_registers: u32) -> CompiledSize {
        CompiledSize { head_dim, symbol, threads: 128, shared_bytes, blocks_by_registers }
    }
    [
        size(32, "attention_chunk_d32", abi::ATTENTION_CHUNK_D32_SHARED_BYTES, 4),
        size(64, "attention_chunk_d64", abi::ATTENTION_CHUNK_D64_SHARED_BYTES, 3),
        size(80, "attention_chunk_d80", abi::ATTENTION_CHUNK_D80_SHARED_BYTES, 3),
        size(96, "attention_chunk_d96", abi::ATTENTION_CHUNK_D96_SHARED_BYTES, 2),
        size(128, "attention_chunk_d128", abi::ATTENTION_CHUNK_D128_SHARED_BYTES, 2),
        size(256, "attention_chunk_d256", abi::ATTENTION_CHUNK_D256_SHARED_BYTES, 2),
    ]
};

/// For Hopper and rows on 16 bytes (chunk_wgmma.cuh), by rising head size.
const WGMMA_SIZES: [CompiledSize; 6] = [
    CompiledSize::of_warpgroup_loop(32, "attention_chunk_wgmma_d32", abi::ATTENTION_CHUNK_WGMMA_D32_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(64, "attention_chunk_wgmma_d64", abi::ATTENTION_CHUNK_WGMMA_D64_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(80, "attention_chunk_wgmma_d80", abi::ATTENTION_CHUNK_WGMMA_D80_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(96, "attention_chunk_wgmma_d96", abi::ATTENTION_CHUNK_WGMMA_D96_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(128, "attention_chunk_wgmma_d128", abi::ATTENTION_CHUNK_WGMMA_D128_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(256, "attention_chunk_wgmma_d256", abi::ATTENTION_CHUNK_WGMMA_D256_SHARED_BYTES),
];

/// Causal attention of chunks, each of which is the newest `length` rows of one sequence, over everything in its cache. The chunk's own keys and
/// values are there already ([`Rotary`](super::Rotary) or [`CacheWrite`](super::CacheWrite) wrote them): row `i` of a chunk of `length` rows
/// sees the positions up to `context - length + i`.
///
/// A row has the same bits however its prompt is cut into chunks, and whatever else is in the batch: which kernel does it is decided by the GPU, the
/// head size and whether rows lie on 16 bytes. A chunk of length 0, or of a length beyond its
/// context, gets no output. A key that a row does not see may still be multiplied by a weight of 0, so a NaN or an infinity in the value of
/// another token of the sequence can reach it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionChunk {
    /// How a row is divided.
    pub heads: Heads,
    /// Chunks in the batch; no two of one sequence.
    pub chunks: u32,
    /// No length is greater. Tiles are counted by it.
    pub max_length: u32,
    /// The sum of the lengths. Only the [`Work`] depends on it.
    pub tokens: u32,
    /// Rows of `qkv`: every chunk lies within them, and they can be read.
    pub rows: u32,
    /// About how long the contexts are: only the key (which rounds it up to a power of two) and the [`Work`] depend on it.
    pub context: u32,
    /// A row sees only the last `window` positions, its own included; 0 where it sees all.
    pub window: u32,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`; positive.
    pub scale: f32,
    /// `[rows, (heads + 2 * kv_heads) * head_dim]`, FP16, of which only the query heads are read.
    pub qkv: DevicePtr,
    /// Elements from one row of `qkv` to the next.
    pub qkv_stride: u32,
    /// Keys and values.
    pub cache: KvCache,
    /// `[rows, heads * head_dim]`, FP16.
    pub output: DevicePtr,
    /// Elements from one row of `output` to the next.
    pub output_stride: u32,
    /// First row of each chunk in `qkv` and `output`: `[chunks]`, u32.
    pub starts: DevicePtr,
    /// Rows of each chunk: `[chunks]`, u32.
    pub lengths: DevicePtr,
    /// Valid positions of each chunk's sequence, the chunk's own included: `[chunks]`, u32, at most the cache's capacity.
    pub contexts: DevicePtr,
    /// The row of the page table that a chunk belongs to: `[chunks]`, u32.
    pub sequence_of: DevicePtr,
}

impl AttentionChunk {
    /// The kernel's size where `gpu` has the instructions and rows lie right for it. Not by how long chunks are, though a tile of the short ones is mostly
    /// empty: the two kernels round differently, and a row would have other bits where its prompt is cut otherwise.
    fn wgmma_size(&self, gpu: &Topology) -> Option<&'static CompiledSize> {
        // The machine code is sm_90a's, which no other compute capability runs.
        let runs = gpu.compute_capability == (9, 0) && self.rows_of_heads().on_16_bytes();
        CompiledSize::of(self.heads.head_dim, &WGMMA_SIZES).filter(|_| runs)
    }

    fn rows_of_heads(&self) -> RowsOfHeads {
        let &Self { heads, rows, qkv, qkv_stride, output, output_stride, .. } = self;
        RowsOfHeads { heads, rows, qkv, qkv_stride, output, output_stride }
    }

    /// The parameters of a kernel of [`WGMMA_SIZES`].
    fn tma_params(&self) -> Params {
        let unencoded = abi::TensorMap { opaque: [0; 16] };
        let args = abi::AttentionChunkTmaArgs { rows: unencoded, keys: unencoded, values: unencoded, plain: self.args() };
        Params::new(args).with_tensor_maps([
            (offset_of!(abi::AttentionChunkTmaArgs, rows), self.rows_of_heads().map()),
            (offset_of!(abi::AttentionChunkTmaArgs, keys), maps::pool(self.cache.keys, self.heads)),
            (offset_of!(abi::AttentionChunkTmaArgs, values), maps::pool(self.cache.values, self.heads)),
        ])
    }

    /// Positions that a row sees on average.
    fn seen(&self) -> u64 {
        let length = u64::from(self.tokens / self.chunks.max(1));
        let seen = u64::from(self.context).saturating_sub(length / 2);
        if self.window == 0 { seen } else { seen.min(u64::from(self.window)) }
    }

    fn check(&self) -> Result<&'static CompiledSize, LaunchError> {
        let key = self.key();
        let reason = self.heads.problem(self.qkv_stride).or_else(|| self.heads.output_problem(self.output_stride));
        if let Some(reason) = reason.or_else(|| self.cache.problem()) {
            return Err(unsupported(&key, reason));
        }
        if self.chunks == 0 || self.max_length == 0 || self.max_length > 1 << 30 {
            return Err(unsupported(&key, "there must be a chunk, and a longest length of 1 to 2^30".to_owned()));
        }
        if self.rows == 0 {
            return Err(unsupported(&key, "qkv must have rows".to_owned()));
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return Err(unsupported(&key, format!("the scale must be positive and finite, not {}", self.scale)));
        }
        CompiledSize::of(self.heads.head_dim, &SIZES)
            .ok_or_else(|| unsupported(&key, "no kernel was compiled for heads this wide".to_owned()))
    }

    fn args(&self) -> abi::AttentionChunkArgs {
        abi::AttentionChunkArgs {
            cache: self.cache.args(self.heads),
            qkv: self.qkv.0,
            output: self.output.0,
            starts: self.starts.0,
            lengths: self.lengths.0,
            contexts: self.contexts.0,
            sequence_of: self.sequence_of.0,
            chunks: self.chunks,
            max_length: self.max_length,
            heads: self.heads.heads,
            qkv_stride: self.qkv_stride,
            output_stride: self.output_stride,
            window: self.window,
            scale: self.scale,
        }
    }
}

// SAFETY: every symbol of `SIZES` is defined by ATTENTION_CHUNK with `AttentionChunkArgs` as its first parameter, and of `WGMMA_SIZES` by
// ATTENTION_CHUNK_WGMMA with `AttentionChunkTmaArgs`; that the pointers stay valid is for whoever makes the descriptor to see to.
unsafe impl Kernel for AttentionChunk {
    /// `[chunks x max_length x heads x kv_heads x head_dim x context]`, the last rounded up to a power of two.
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("attention_chunk");
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let context = self.context.checked_next_power_of_two().unwrap_or(u32::MAX);
        KernelKey::new(NAME, [self.chunks, self.max_length, heads, kv_heads, head_dim, context])
    }

    fn work(&self) -> Work {
        let [heads, kv_heads, head_dim, tokens] = [self.heads.heads, self.heads.kv_heads, self.heads.head_dim, self.tokens].map(u64::from);
        let [chunks, context] = [self.chunks, self.context].map(u64::from);
        let cached = product([4, chunks, context, kv_heads, head_dim]);
        Work {
            flops: product([4, heads, head_dim, tokens, self.seen()]),
            bytes: cached.saturating_add(product([4, tokens, heads, head_dim])),
        }
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        let any_size = self.check()?;
        let (size, queries, params) = match self.wgmma_size(gpu) {
            Some(size) => (size, size.queries_of_warpgroup_loop(), self.tma_params()),
            None => (any_size, QUERIES_PER_TILE, Params::new(self.args())),
        };
        let tiles = product([self.chunks, self.heads.heads, self.max_length.div_ceil(queries)].map(u64::from));
        size.launch(&self.key(), tiles, params, sms, gpu)
    }
}
