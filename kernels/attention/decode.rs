//! Attention where every sequence brings one query and its keys and values lie in a cache: a decoder's next token.

use std::mem::offset_of;

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Element, Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Swizzle, TensorMap, Work};

use super::super::abi;
use super::{CompiledSize, Heads, KvCache, PAGE_TOKENS, product, unsupported};

/// Query heads of one tile, `DECODE_HEADS` in decode.cuh.
const HEADS_PER_TILE: u32 = 8;

/// Chunks that keep every SM of a large GPU busy.
const ENOUGH_CHUNKS: u64 = 256;

/// Below this, what a chunk costs besides its pages outweighs what more blocks gain.
const FEWEST_PAGES_PER_CHUNK: u32 = 8;

// Half of it, and so on: each a power of two, as the kernels take for granted.
const _: () = assert!(abi::DECODE_MOST_PAGES_PER_CHUNK.is_power_of_two());

/// Beyond this, a tile is several chunks.
const MOST_TILES: u64 = 8192;

/// Of any heads: by rising head size; threads and launch bounds as `Decode::THREADS` and `Decode::BLOCKS_PER_SM` in decode.cuh.
const SIZES: [CompiledSize; 6] = {
    const fn size(head_dim: u32, symbol: &'static str, shared_bytes: u32, blocks_by_registers: u32) -> CompiledSize {
        CompiledSize { head_dim, symbol, threads: 160, shared_bytes, blocks_by_registers }
    }
    [
        size(32, "attention_decode_d32", abi::ATTENTION_DECODE_D32_SHARED_BYTES, 3),
        size(64, "attention_decode_d64", abi::ATTENTION_DECODE_D64_SHARED_BYTES, 3),
        size(80, "attention_decode_d80", abi::ATTENTION_DECODE_D80_SHARED_BYTES, 3),
        size(96, "attention_decode_d96", abi::ATTENTION_DECODE_D96_SHARED_BYTES, 2),
        size(128, "attention_decode_d128", abi::ATTENTION_DECODE_D128_SHARED_BYTES, 2),
        size(256, "attention_decode_d256", abi::ATTENTION_DECODE_D256_SHARED_BYTES, 1),
    ]
};

/// Of heads of exactly these sizes, on Hopper; as `DecodeBulk::THREADS` and `DecodeBulk::BLOCKS_PER_SM` in decode_bulk.cuh.
const BULK_SIZES: [CompiledSize; 6] = {
    const fn size(head_dim: u32, symbol: &'static str, shared_bytes: u32, blocks_by_registers: u32) -> CompiledSize {
        CompiledSize { head_dim, symbol, threads: 192, shared_bytes, blocks_by_registers }
    }
    [
        size(32, "attention_decode_bulk_d32", abi::ATTENTION_DECODE_BULK_D32_SHARED_BYTES, 4),
        size(64, "attention_decode_bulk_d64", abi::ATTENTION_DECODE_BULK_D64_SHARED_BYTES, 4),
        size(80, "attention_decode_bulk_d80", abi::ATTENTION_DECODE_BULK_D80_SHARED_BYTES, 3),
        size(96, "attention_decode_bulk_d96", abi::ATTENTION_DECODE_BULK_D96_SHARED_BYTES, 2),
        size(128, "attention_decode_bulk_d128", abi::ATTENTION_DECODE_BULK_D128_SHARED_BYTES, 2),
        size(256, "attention_decode_bulk_d256", abi::ATTENTION_DECODE_BULK_D256_SHARED_BYTES, 1),
    ]
};

/// `output[b, h] = sum over cached positions j of softmax_j(scale * q[b, h] . k[j]) * v[j]`, one query row for each sequence `b`.
///
/// Row `b` of `qkv` and of `output` belongs to row `b` of the page table. The cache holds the present token's key and value already
/// ([`Rotary`](super::Rotary) or [`CacheWrite`](super::CacheWrite) wrote them). A sequence of length 0 gets no output, and costs next to nothing.
///
/// The launch depends on the capacity of the page table and not on the lengths, so a captured graph stays valid while the sequences grow.
///
/// **What launches before it may write.** On Hopper it reads `lengths`, the page table and the cached keys and values before earlier launches have ended,
/// all but the queries and each sequence's page with its last position, which it reads after waiting for them. It may start as soon as the launch before it
/// lets it, and that one may have been let by the one before, and so on back to the nearest launch that itself waits for all earlier ones before it lets
/// the next one come. From that launch on, that one included, none may write `lengths`, the page table, or a cached row but the last of each sequence.
/// Launches before that one may have written anything, and so may copies, which no launch overlaps.
/// All kernels of this crate wait first, but for products of few rows (`kernels/gemm/skinny.cuh`) and this one, where they are not elastic. The models
/// here keep to it since each step begins with an [`Embed`](super::super::embedding::Embed), which waits first and writes none of it.
///
/// **Elastic** is a launch that is long and has more chunks than blocks run at once. With one chunk for each block there is nothing left to leave to
/// others, and counting would cost 4 us of 39.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionDecode {
    /// How a row is divided.
    pub heads: Heads,
    /// Sequences in the batch, each with one row.
    pub sequences: u32,
    /// About how long the sequences are. The key rounds it up to a power of two, so that a growing sequence keeps its profile, and by the key the keys
    /// are split over blocks: sums are added in an order that follows from it.
    pub context: u32,
    /// A query sees only the last `window` positions, its own included; 0 where it sees all.
    pub window: u32,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`; positive.
    pub scale: f32,
    /// `[sequences, (heads + 2 * kv_heads) * head_dim]`, FP16, of which only the query heads are read.
    pub qkv: DevicePtr,
    /// Elements from one row of `qkv` to the next.
    pub qkv_stride: u32,
    /// Keys and values.
    pub cache: KvCache,
    /// `[sequences, heads * head_dim]`, FP16.
    pub output: DevicePtr,
    /// Elements from one row of `output` to the next.
    pub output_stride: u32,
    /// Valid positions of each sequence's cache, the present token's included: `[sequences]`, u32, at most the cache's capacity.
    pub lengths: DevicePtr,
    /// Room for partial results, [`AttentionDecode::workspace_bytes`], on 16 bytes. Zero before its first use; a launch leaves it fit for the next
    /// one on the same stream, whatever its shape, so that all layers may share it.
    pub workspace: DevicePtr,
}

impl AttentionDecode {
    /// Bytes of workspace that a launch over `sequences` sequences of up to `pages_per_sequence` pages needs, whatever its context.
    pub fn workspace_bytes(heads: Heads, sequences: u32, pages_per_sequence: u32) -> u64 {
        let chunks = pages_per_sequence.div_ceil(FEWEST_PAGES_PER_CHUNK);
        let [chunks, sequences, query_heads] = [chunks, sequences, heads.heads].map(u64::from);
        // For each chunk of each query head a maximum and a sum, and a row of outputs; both begin on 16 bytes.
        let rows = product([sequences, query_heads, chunks]).saturating_add(1) / 2 * 2;
        let row_bytes = 8 + 16 * u64::from(heads.head_dim.div_ceil(4));
        product([rows, row_bytes]).saturating_add(4 * u64::from(abi::DECODE_MAX_COUNTERS))
    }

    /// Sequences times the groups of up to 8 query heads that share a key head: each has its own sum over all keys.
    fn columns(&self) -> u64 {
        let Heads { heads, kv_heads, .. } = self.heads;
        product([self.sequences, kv_heads, (heads / kv_heads.max(1)).div_ceil(HEADS_PER_TILE)].map(u64::from))
    }

    /// As many as there are chunks when every sequence fills its row of the page table, up to a limit: each of those that turn out to be empty
    /// still has to be taken from the counter.
    fn tiles(&self) -> u64 {
        product([self.columns(), u64::from(self.cache.pages_per_sequence.div_ceil(self.pages_per_chunk()))]).min(MOST_TILES)
    }

    /// The most pages, as a power of two, that still make [`ENOUGH_CHUNKS`] at the context that the key names: long chunks leave few partial results,
    /// and short ones give every SM some. Part of the arithmetic, so it must not depend on the SM count.
    fn pages_per_chunk(&self) -> u32 {
        let mut chosen = abi::DECODE_MOST_PAGES_PER_CHUNK;
        while chosen > FEWEST_PAGES_PER_CHUNK && self.chunks_of(chosen) < ENOUGH_CHUNKS {
            chosen /= 2;
        }
        chosen
    }

    /// Chunks of `pages` pages in all sequences at the context that the key names; at least 1.
    fn chunks_of(&self, pages: u32) -> u64 {
        let context = KvCache::pages_for(self.context_class().min(self.cache.capacity()));
        product([self.columns(), u64::from(context.div_ceil(pages))]).max(1)
    }

    fn expected_chunks(&self) -> u64 {
        self.chunks_of(self.pages_per_chunk())
    }

    /// Positions that a query sees, rounded up to a power of two.
    fn context_class(&self) -> u32 {
        self.seen().checked_next_power_of_two().unwrap_or(u32::MAX)
    }

    /// Positions that a query sees.
    fn seen(&self) -> u32 {
        if self.window == 0 { self.context } else { self.context.min(self.window) }
    }

    /// The size whose pages the copy engine brings, where it can. Both variants give the same bits.
    fn bulk_size(&self, gpu: &Topology) -> Option<&'static CompiledSize> {
        let on_16_bytes = self.qkv.0.is_multiple_of(16) && self.qkv_stride.is_multiple_of(8);
        let size = BULK_SIZES.iter().find(|size| size.head_dim == self.heads.head_dim);
        size.filter(|_| gpu.compute_capability == (9, 0) && on_16_bytes)
    }

    /// A pool of pages as the copy engine sees it: the 64 rows of one head in one page at once, in boxes of as many columns as its swizzle spans
    /// (`DecodeBulk::BOX`). How many pages there are does not matter to it.
    fn pool_map(&self, pool: DevicePtr) -> TensorMap {
        let columns = self.heads.head_dim;
        let (width, swizzle) = match columns {
            _ if columns.is_multiple_of(64) => (64, Swizzle::Bytes128),
            _ if columns.is_multiple_of(32) => (32, Swizzle::Bytes64),
            _ => (16, Swizzle::Bytes32),
        };
        let boxes = columns / width;
        TensorMap {
            ptr: pool,
            element: Element::F16,
            dimensions: 3,
            sizes: [u64::from(width), 1 << 31, u64::from(boxes), 1],
            strides: [2 * u64::from(columns), 2 * u64::from(width), 0],
            tile: [width, PAGE_TOKENS, boxes, 1],
            swizzle,
        }
    }

    fn check(&self) -> Result<&'static CompiledSize, LaunchError> {
        let key = self.key();
        if let Some(reason) = self.heads.problem(self.qkv_stride).or_else(|| self.heads.output_problem(self.output_stride)) {
            return Err(unsupported(&key, reason));
        }
        if let Some(reason) = self.cache.problem() {
            return Err(unsupported(&key, reason));
        }
        if self.sequences == 0 {
            return Err(unsupported(&key, "there must be a sequence".to_owned()));
        }
        if self.columns() > u64::from(abi::DECODE_MAX_COUNTERS) {
            let (columns, most) = (self.columns(), abi::DECODE_MAX_COUNTERS);
            return Err(unsupported(&key, format!("{columns} groups of query heads in all sequences are more than {most}")));
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return Err(unsupported(&key, format!("the scale must be positive and finite, not {}", self.scale)));
        }
        CompiledSize::of(self.heads.head_dim, &SIZES)
            .ok_or_else(|| unsupported(&key, "no kernel was compiled for heads this wide".to_owned()))
    }

    fn args(&self) -> abi::AttentionDecodeArgs {
        abi::AttentionDecodeArgs {
            cache: self.cache.args(self.heads),
            qkv: self.qkv.0,
            output: self.output.0,
            lengths: self.lengths.0,
            workspace: self.workspace.0,
            pages_per_chunk: self.pages_per_chunk(),
            sequences: self.sequences,
            heads: self.heads.heads,
            qkv_stride: self.qkv_stride,
            output_stride: self.output_stride,
            window: self.window,
            scale: self.scale,
            // Encoded at launch, where the variant has them.
            key_map: abi::TensorMap { opaque: [0; 16] },
            value_map: abi::TensorMap { opaque: [0; 16] },
        }
    }
}

// SAFETY: every symbol of `SIZES` is defined by ATTENTION_DECODE, and of `BULK_SIZES` by ATTENTION_DECODE_BULK, with `AttentionDecodeArgs` as its first
// parameter; that the pointers stay valid is for whoever makes the descriptor to see to.
unsafe impl Kernel for AttentionDecode {
    /// `[sequences x heads x kv_heads x head_dim x positions seen]`, the last rounded up to a power of two.
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("attention_decode");
        let Heads { heads, kv_heads, head_dim } = self.heads;
        KernelKey::new(NAME, [self.sequences, heads, kv_heads, head_dim, self.context_class()])
    }

    fn work(&self) -> Work {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let [heads, kv_heads, head_dim, sequences, seen] = [heads, kv_heads, head_dim, self.sequences, self.seen()].map(u64::from);
        let rows = product([kv_heads, seen]).saturating_add(heads);
        Work { flops: product([4, sequences, head_dim, heads, seen]), bytes: product([4, sequences, head_dim, rows]) }
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        let any_size = self.check()?;
        let params = Params::new(self.args());
        let (size, params) = match self.bulk_size(gpu) {
            Some(size) => {
                let maps = [
                    (offset_of!(abi::AttentionDecodeArgs, key_map), self.pool_map(self.cache.keys)),
                    (offset_of!(abi::AttentionDecodeArgs, value_map), self.pool_map(self.cache.values)),
                ];
                (size, params.with_tensor_maps(maps))
            }
            None => (any_size, params),
        };
        let launch = size.launch(&self.key(), self.tiles(), params, sms, gpu)?;
        // Blocks that find no chunk cost time, too. Where sequences are longer than was said, the others do more.
        let expected = self.expected_chunks();
        let grid = launch.grid.min(u32::try_from(expected).unwrap_or(u32::MAX));
        Ok(Launch { grid, elastic: is_long(self.work().bytes, sms) && has_more_than_one_wave(expected, &launch), ..launch })
    }
}

/// Whether some block has a second chunk that it could leave to others. One without keeps its SM to the end of its chunk in any case: the blocks of an SM
/// have at most 32 pages each, together 2 MiB at every compiled size, which are 21 us of an SM that reads alone and 60 us where 132 share an H200's memory.
fn has_more_than_one_wave(chunks: u64, launch: &Launch) -> bool {
    chunks > u64::from(launch.grid)
}

/// Whether reading `bytes` takes more than the 20 us from which a launch should give SMs back while it runs. An SM reads about 100 bytes a
/// nanosecond, and an H200 4600; elsewhere it takes longer, and a launch may be called short that is up to three times as long.
fn is_long(bytes: u64, sms: Sms) -> bool {
    const NANOSECONDS: u64 = 20_000;
    bytes > NANOSECONDS * (100 * u64::from(sms.0)).min(4600)
}
