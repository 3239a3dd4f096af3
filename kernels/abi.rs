//! The structs that cross from Rust to the kernels. Generated from `abi.h` by `cargo xtask abi`: change that file, not this one.
#![allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all, rustdoc::all)]

pub const GIVEN_BACK_TILES: u32 = 512;
pub const KV_PAGE_TOKENS: u32 = 64;
pub const ROTARY_PIECES_PER_TILE: u32 = 256;
pub const ATTENTION_DISENTANGLED_D32_SHARED_BYTES: u32 = 73728;
pub const ATTENTION_DISENTANGLED_D64_SHARED_BYTES: u32 = 114688;
pub const ATTENTION_DISENTANGLED_WGMMA_SHARED_BYTES: u32 = 112640;
pub const DECODE_MOST_PAGES_PER_CHUNK: u32 = 32;
pub const DECODE_MAX_COUNTERS: u32 = 32768;
pub const ATTENTION_PREFILL_D32_SHARED_BYTES: u32 = 20496;
pub const ATTENTION_PREFILL_D64_SHARED_BYTES: u32 = 36880;
pub const ATTENTION_PREFILL_D80_SHARED_BYTES: u32 = 45072;
pub const ATTENTION_PREFILL_D96_SHARED_BYTES: u32 = 53264;
pub const ATTENTION_PREFILL_D128_SHARED_BYTES: u32 = 69648;
pub const ATTENTION_PREFILL_D256_SHARED_BYTES: u32 = 101376;
pub const ATTENTION_PREFILL_WGMMA_D32_SHARED_BYTES: u32 = 73832;
pub const ATTENTION_PREFILL_WGMMA_D64_SHARED_BYTES: u32 = 73832;
pub const ATTENTION_PREFILL_WGMMA_D80_SHARED_BYTES: u32 = 163944;
pub const ATTENTION_PREFILL_WGMMA_D96_SHARED_BYTES: u32 = 163944;
pub const ATTENTION_PREFILL_WGMMA_D128_SHARED_BYTES: u32 = 163944;
pub const ATTENTION_PREFILL_WGMMA_D256_SHARED_BYTES: u32 = 196712;
pub const ATTENTION_PREFILL_SHORT_D32_SHARED_BYTES: u32 = 49152;
pub const ATTENTION_PREFILL_SHORT_D64_SHARED_BYTES: u32 = 49152;
pub const ATTENTION_DECODE_D32_SHARED_BYTES: u32 = 32112;
pub const ATTENTION_DECODE_D64_SHARED_BYTES: u32 = 56688;
pub const ATTENTION_DECODE_D80_SHARED_BYTES: u32 = 68976;
pub const ATTENTION_DECODE_D96_SHARED_BYTES: u32 = 107888;
pub const ATTENTION_DECODE_D128_SHARED_BYTES: u32 = 105840;
pub const ATTENTION_DECODE_D256_SHARED_BYTES: u32 = 204144;
pub const ATTENTION_DECODE_BULK_D32_SHARED_BYTES: u32 = 37360;
pub const ATTENTION_DECODE_BULK_D64_SHARED_BYTES: u32 = 54432;
pub const ATTENTION_DECODE_BULK_D80_SHARED_BYTES: u32 = 67488;
pub const ATTENTION_DECODE_BULK_D96_SHARED_BYTES: u32 = 106992;
pub const ATTENTION_DECODE_BULK_D128_SHARED_BYTES: u32 = 106656;
pub const ATTENTION_DECODE_BULK_D256_SHARED_BYTES: u32 = 211104;
pub const ATTENTION_CHUNK_D32_SHARED_BYTES: u32 = 20496;
pub const ATTENTION_CHUNK_D64_SHARED_BYTES: u32 = 36880;
pub const ATTENTION_CHUNK_D80_SHARED_BYTES: u32 = 45072;
pub const ATTENTION_CHUNK_D96_SHARED_BYTES: u32 = 53264;
pub const ATTENTION_CHUNK_D128_SHARED_BYTES: u32 = 69648;
pub const ATTENTION_CHUNK_D256_SHARED_BYTES: u32 = 101376;
pub const ATTENTION_CHUNK_WGMMA_D32_SHARED_BYTES: u32 = 73840;
pub const ATTENTION_CHUNK_WGMMA_D64_SHARED_BYTES: u32 = 73840;
pub const ATTENTION_CHUNK_WGMMA_D80_SHARED_BYTES: u32 = 163952;
pub const ATTENTION_CHUNK_WGMMA_D96_SHARED_BYTES: u32 = 163952;
pub const ATTENTION_CHUNK_WGMMA_D128_SHARED_BYTES: u32 = 163952;
pub const ATTENTION_CHUNK_WGMMA_D256_SHARED_BYTES: u32 = 196720;
pub const SAMPLE_SEGMENT: u32 = 256;
pub const SAMPLE_BINS: u32 = 1024;
pub const SAMPLE_SHARED_BYTES: u32 = 71680;
pub const READ_BANDWIDTH_SHARED_BYTES: u32 = 196608;
#[doc = " What the copy engine must know of a matrix, in the driver's own form; the runtime's launch::TensorMap says what it is made from."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct TensorMap {
    pub opaque: [u64; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TensorMap"][::std::mem::size_of::<TensorMap>() - 128usize];
    ["Alignment of TensorMap"][::std::mem::align_of::<TensorMap>() - 64usize];
    ["Offset of field: TensorMap::opaque"][::std::mem::offset_of!(TensorMap, opaque) - 0usize];
};
#[doc = " Where one chain of launches counts its tiles; see elastic.cuh for who writes what. All zero before the first launch."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct TileProgress {
    pub taken: ::std::os::raw::c_ulonglong,
    pub finished: u32,
    pub departed: u32,
    #[doc = " workers of joiners that take tiles"]
    pub joined: u32,
    #[doc = " tiles ever taken out of the ring"]
    pub ring_begin: u32,
    #[doc = " and put into it"]
    pub ring_end: u32,
    #[doc = " 1 + the number of a tile that was given back, or 0"]
    pub ring: [u32; 512usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TileProgress"][::std::mem::size_of::<TileProgress>() - 2080usize];
    ["Alignment of TileProgress"][::std::mem::align_of::<TileProgress>() - 8usize];
    ["Offset of field: TileProgress::taken"][::std::mem::offset_of!(TileProgress, taken) - 0usize];
    ["Offset of field: TileProgress::finished"][::std::mem::offset_of!(TileProgress, finished) - 8usize];
    ["Offset of field: TileProgress::departed"][::std::mem::offset_of!(TileProgress, departed) - 12usize];
    ["Offset of field: TileProgress::joined"][::std::mem::offset_of!(TileProgress, joined) - 16usize];
    ["Offset of field: TileProgress::ring_begin"][::std::mem::offset_of!(TileProgress, ring_begin) - 20usize];
    ["Offset of field: TileProgress::ring_end"][::std::mem::offset_of!(TileProgress, ring_end) - 24usize];
    ["Offset of field: TileProgress::ring"][::std::mem::offset_of!(TileProgress, ring) - 28usize];
};
#[doc = " Every kernel's second parameter. The runtime crate's TilesArg is the same struct."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Tiles {
    #[doc = " TileProgress*; 0 for a launch that is not elastic"]
    pub progress: u64,
    #[doc = " one bit per SM in %smid order; 0 where every SM is granted"]
    pub grant: u64,
    #[doc = " tiles to be done"]
    pub count: u32,
    #[doc = " 0 for the owner; 1 + epoch for a joiner"]
    pub joins: u32,
    #[doc = " tiles that the counter leaves out: the owner's workers begin with those of their own numbers; 0 or its workers"]
    pub numbered: u32,
    pub unused: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Tiles"][::std::mem::size_of::<Tiles>() - 32usize];
    ["Alignment of Tiles"][::std::mem::align_of::<Tiles>() - 8usize];
    ["Offset of field: Tiles::progress"][::std::mem::offset_of!(Tiles, progress) - 0usize];
    ["Offset of field: Tiles::grant"][::std::mem::offset_of!(Tiles, grant) - 8usize];
    ["Offset of field: Tiles::count"][::std::mem::offset_of!(Tiles, count) - 16usize];
    ["Offset of field: Tiles::joins"][::std::mem::offset_of!(Tiles, joins) - 20usize];
    ["Offset of field: Tiles::numbered"][::std::mem::offset_of!(Tiles, numbered) - 24usize];
    ["Offset of field: Tiles::unused"][::std::mem::offset_of!(Tiles, unused) - 28usize];
};
#[doc = " What the tests of elastic.cuh observe: how often each tile was done, and where."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ElasticProbeArgs {
    #[doc = " uint32_t[tiles], counted up"]
    pub executions: u64,
    #[doc = " uint32_t[tiles], the %smid that did the tile last"]
    pub sms: u64,
    #[doc = " how long a tile takes"]
    pub cycles: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ElasticProbeArgs"][::std::mem::size_of::<ElasticProbeArgs>() - 24usize];
    ["Alignment of ElasticProbeArgs"][::std::mem::align_of::<ElasticProbeArgs>() - 8usize];
    ["Offset of field: ElasticProbeArgs::executions"][::std::mem::offset_of!(ElasticProbeArgs, executions) - 0usize];
    ["Offset of field: ElasticProbeArgs::sms"][::std::mem::offset_of!(ElasticProbeArgs, sms) - 8usize];
    ["Offset of field: ElasticProbeArgs::cycles"][::std::mem::offset_of!(ElasticProbeArgs, cycles) - 16usize];
};
#[doc = " One layer's keys and values of past tokens. Position p of sequence b lies in page page_table[b][p / KV_PAGE_TOKENS], at p % KV_PAGE_TOKENS."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct KvPages {
    #[doc = " f16 [pages, kv_heads, KV_PAGE_TOKENS, head_dim], or 0 where there is no cache"]
    pub keys: u64,
    #[doc = " the same"]
    pub values: u64,
    #[doc = " u32 [sequences, pages_per_sequence]"]
    pub page_table: u64,
    pub pages_per_sequence: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of KvPages"][::std::mem::size_of::<KvPages>() - 40usize];
    ["Alignment of KvPages"][::std::mem::align_of::<KvPages>() - 8usize];
    ["Offset of field: KvPages::keys"][::std::mem::offset_of!(KvPages, keys) - 0usize];
    ["Offset of field: KvPages::values"][::std::mem::offset_of!(KvPages, values) - 8usize];
    ["Offset of field: KvPages::page_table"][::std::mem::offset_of!(KvPages, page_table) - 16usize];
    ["Offset of field: KvPages::pages_per_sequence"][::std::mem::offset_of!(KvPages, pages_per_sequence) - 24usize];
    ["Offset of field: KvPages::kv_heads"][::std::mem::offset_of!(KvPages, kv_heads) - 28usize];
    ["Offset of field: KvPages::head_dim"][::std::mem::offset_of!(KvPages, head_dim) - 32usize];
};
#[doc = " Rotates query and key heads in place, and copies the rotated keys and the values to the cache where there is one."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RotaryArgs {
    pub cache: KvPages,
    #[doc = " f16 [rows, qkv_stride]"]
    pub qkv: u64,
    #[doc = " u32 [rows]"]
    pub positions: u64,
    #[doc = " f32 [head_dim / 2], or 0 where nothing is rotated"]
    pub inverse_frequencies: u64,
    #[doc = " u32 [rows]: the sequence in the page table that a row belongs to; not read without a cache"]
    pub sequence_of: u64,
    pub rows: u32,
    pub heads: u32,
    pub qkv_stride: u32,
    pub tiles_per_row: u32,
    #[doc = " whether half heads may be accessed eight elements at a time"]
    pub vectorised: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RotaryArgs"][::std::mem::size_of::<RotaryArgs>() - 96usize];
    ["Alignment of RotaryArgs"][::std::mem::align_of::<RotaryArgs>() - 8usize];
    ["Offset of field: RotaryArgs::cache"][::std::mem::offset_of!(RotaryArgs, cache) - 0usize];
    ["Offset of field: RotaryArgs::qkv"][::std::mem::offset_of!(RotaryArgs, qkv) - 40usize];
    ["Offset of field: RotaryArgs::positions"][::std::mem::offset_of!(RotaryArgs, positions) - 48usize];
    ["Offset of field: RotaryArgs::inverse_frequencies"][::std::mem::offset_of!(RotaryArgs, inverse_frequencies) - 56usize];
    ["Offset of field: RotaryArgs::sequence_of"][::std::mem::offset_of!(RotaryArgs, sequence_of) - 64usize];
    ["Offset of field: RotaryArgs::rows"][::std::mem::offset_of!(RotaryArgs, rows) - 72usize];
    ["Offset of field: RotaryArgs::heads"][::std::mem::offset_of!(RotaryArgs, heads) - 76usize];
    ["Offset of field: RotaryArgs::qkv_stride"][::std::mem::offset_of!(RotaryArgs, qkv_stride) - 80usize];
    ["Offset of field: RotaryArgs::tiles_per_row"][::std::mem::offset_of!(RotaryArgs, tiles_per_row) - 84usize];
    ["Offset of field: RotaryArgs::vectorised"][::std::mem::offset_of!(RotaryArgs, vectorised) - 88usize];
};
#[doc = " C = epilogue(A * B^T), see gemm/epilogue.cuh. A: [m, k], B: [n, k], both FP16 and row-major; C: [m, n], FP16 or FP32."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GemmArgs {
    #[doc = " [m, k]"]
    pub a: u64,
    #[doc = " [n, k]: a weight as model files store it"]
    pub b: u64,
    #[doc = " [m, n]; [m, n / 2] for the SiLU gate"]
    pub c: u64,
    #[doc = " [n], or 0"]
    pub bias: u64,
    #[doc = " [m, n], or 0"]
    pub residual: u64,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    #[doc = " elements from one row to the next"]
    pub lda: u32,
    pub ldb: u32,
    pub ldc: u32,
    pub ld_residual: u32,
    #[doc = " GemmEpilogue, for kernels that were not compiled for one"]
    pub epilogue: u32,
    #[doc = " factor of the sums"]
    pub scale: f32,
    #[doc = " whether C, bias and residual may be accessed four elements at a time"]
    pub vectorised: u32,
    #[doc = " whether no earlier launch still in flight may be writing B: a weight"]
    pub constant_b: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GemmArgs"][::std::mem::size_of::<GemmArgs>() - 88usize];
    ["Alignment of GemmArgs"][::std::mem::align_of::<GemmArgs>() - 8usize];
    ["Offset of field: GemmArgs::a"][::std::mem::offset_of!(GemmArgs, a) - 0usize];
    ["Offset of field: GemmArgs::b"][::std::mem::offset_of!(GemmArgs, b) - 8usize];
    ["Offset of field: GemmArgs::c"][::std::mem::offset_of!(GemmArgs, c) - 16usize];
    ["Offset of field: GemmArgs::bias"][::std::mem::offset_of!(GemmArgs, bias) - 24usize];
    ["Offset of field: GemmArgs::residual"][::std::mem::offset_of!(GemmArgs, residual) - 32usize];
    ["Offset of field: GemmArgs::m"][::std::mem::offset_of!(GemmArgs, m) - 40usize];
    ["Offset of field: GemmArgs::n"][::std::mem::offset_of!(GemmArgs, n) - 44usize];
    ["Offset of field: GemmArgs::k"][::std::mem::offset_of!(GemmArgs, k) - 48usize];
    ["Offset of field: GemmArgs::lda"][::std::mem::offset_of!(GemmArgs, lda) - 52usize];
    ["Offset of field: GemmArgs::ldb"][::std::mem::offset_of!(GemmArgs, ldb) - 56usize];
    ["Offset of field: GemmArgs::ldc"][::std::mem::offset_of!(GemmArgs, ldc) - 60usize];
    ["Offset of field: GemmArgs::ld_residual"][::std::mem::offset_of!(GemmArgs, ld_residual) - 64usize];
    ["Offset of field: GemmArgs::epilogue"][::std::mem::offset_of!(GemmArgs, epilogue) - 68usize];
    ["Offset of field: GemmArgs::scale"][::std::mem::offset_of!(GemmArgs, scale) - 72usize];
    ["Offset of field: GemmArgs::vectorised"][::std::mem::offset_of!(GemmArgs, vectorised) - 76usize];
    ["Offset of field: GemmArgs::constant_b"][::std::mem::offset_of!(GemmArgs, constant_b) - 80usize];
};
#[doc = " A GEMM of few rows, see gemm/skinny.cuh."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct SkinnyGemmArgs {
    #[doc = " all rows by 64 columns"]
    pub a: TensorMap,
    #[doc = " a tile's rows by 64 columns"]
    pub b: TensorMap,
    pub gemm: GemmArgs,
    #[doc = " 1: each row of A counts divided by the root of epsilon and the mean of its squares"]
    pub norms_rows: u32,
    pub epsilon: f32,
    #[doc = " of B, that a block has asked for and not got, at most"]
    pub stages_under_way: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SkinnyGemmArgs"][::std::mem::size_of::<SkinnyGemmArgs>() - 384usize];
    ["Alignment of SkinnyGemmArgs"][::std::mem::align_of::<SkinnyGemmArgs>() - 64usize];
    ["Offset of field: SkinnyGemmArgs::a"][::std::mem::offset_of!(SkinnyGemmArgs, a) - 0usize];
    ["Offset of field: SkinnyGemmArgs::b"][::std::mem::offset_of!(SkinnyGemmArgs, b) - 128usize];
    ["Offset of field: SkinnyGemmArgs::gemm"][::std::mem::offset_of!(SkinnyGemmArgs, gemm) - 256usize];
    ["Offset of field: SkinnyGemmArgs::norms_rows"][::std::mem::offset_of!(SkinnyGemmArgs, norms_rows) - 344usize];
    ["Offset of field: SkinnyGemmArgs::epsilon"][::std::mem::offset_of!(SkinnyGemmArgs, epsilon) - 348usize];
    ["Offset of field: SkinnyGemmArgs::stages_under_way"][::std::mem::offset_of!(SkinnyGemmArgs, stages_under_way) - 352usize];
};
#[doc = " The same where columns are heads, see gemm/heads.cuh."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct SkinnyQkvArgs {
    #[doc = " its b is [halves of a head, rows, k], in boxes of 2 halves, 32 rows and 64 columns"]
    pub product: SkinnyGemmArgs,
    pub rotary: RotaryArgs,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SkinnyQkvArgs"][::std::mem::size_of::<SkinnyQkvArgs>() - 512usize];
    ["Alignment of SkinnyQkvArgs"][::std::mem::align_of::<SkinnyQkvArgs>() - 64usize];
    ["Offset of field: SkinnyQkvArgs::product"][::std::mem::offset_of!(SkinnyQkvArgs, product) - 0usize];
    ["Offset of field: SkinnyQkvArgs::rotary"][::std::mem::offset_of!(SkinnyQkvArgs, rotary) - 384usize];
};
#[doc = " The same for kernels that leave copying to Hopper's copy engine. Blocks work in pairs, whose two tiles share the rows of A or of B."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct WarpgroupGemmArgs {
    #[doc = " a tile's rows, or half of them if they are shared, by 64 columns"]
    pub a: TensorMap,
    #[doc = " the same"]
    pub b: TensorMap,
    #[doc = " tiles of 64 rows by one slice"]
    pub c: TensorMap,
    #[doc = " as c; unused without a residual"]
    pub residual: TensorMap,
    pub gemm: GemmArgs,
    #[doc = " 1: the pair's tiles lie side by side along n; 0: one below the other along m, and share B"]
    pub shares_a: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of WarpgroupGemmArgs"][::std::mem::size_of::<WarpgroupGemmArgs>() - 640usize];
    ["Alignment of WarpgroupGemmArgs"][::std::mem::align_of::<WarpgroupGemmArgs>() - 64usize];
    ["Offset of field: WarpgroupGemmArgs::a"][::std::mem::offset_of!(WarpgroupGemmArgs, a) - 0usize];
    ["Offset of field: WarpgroupGemmArgs::b"][::std::mem::offset_of!(WarpgroupGemmArgs, b) - 128usize];
    ["Offset of field: WarpgroupGemmArgs::c"][::std::mem::offset_of!(WarpgroupGemmArgs, c) - 256usize];
    ["Offset of field: WarpgroupGemmArgs::residual"][::std::mem::offset_of!(WarpgroupGemmArgs, residual) - 384usize];
    ["Offset of field: WarpgroupGemmArgs::gemm"][::std::mem::offset_of!(WarpgroupGemmArgs, gemm) - 512usize];
    ["Offset of field: WarpgroupGemmArgs::shares_a"][::std::mem::offset_of!(WarpgroupGemmArgs, shares_a) - 600usize];
};
#[doc = " x"]
pub const GemmEpilogue_GEMM_PLAIN: GemmEpilogue = 0;
#[doc = " x, stored as FP32"]
pub const GemmEpilogue_GEMM_PLAIN_F32: GemmEpilogue = 1;
#[doc = " x + bias"]
pub const GemmEpilogue_GEMM_BIAS: GemmEpilogue = 2;
#[doc = " gelu(x + bias) with the error function"]
pub const GemmEpilogue_GEMM_BIAS_GELU: GemmEpilogue = 3;
#[doc = " gelu(x + bias) in its tanh approximation"]
pub const GemmEpilogue_GEMM_BIAS_GELU_TANH: GemmEpilogue = 4;
#[doc = " max(x + bias, 0)"]
pub const GemmEpilogue_GEMM_BIAS_RELU: GemmEpilogue = 5;
#[doc = " x + residual"]
pub const GemmEpilogue_GEMM_RESIDUAL: GemmEpilogue = 6;
#[doc = " x + bias + residual"]
pub const GemmEpilogue_GEMM_BIAS_RESIDUAL: GemmEpilogue = 7;
#[doc = " columns 2i and 2i + 1 of x, plus the bias if there is one, are gate and up: C[., i] = silu(gate) * up"]
pub const GemmEpilogue_GEMM_SILU_GATE: GemmEpilogue = 8;
#[doc = " What is done to a sum before it is stored; x = scale * sum."]
pub type GemmEpilogue = ::std::os::raw::c_uint;
#[doc = " Tokens of all sequences are rows of one matrix. Sequence b has rows starts[b] .. starts[b] + lengths[b], so packed batches (starts are\n prefix sums) and padded ones (starts are multiples of the longest length) are the same to the kernel. A row of qkv holds the query heads,\n then the key heads, then the value heads."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttentionPrefillArgs {
    #[doc = " f16 [rows, qkv_stride]"]
    pub qkv: u64,
    #[doc = " f16 [rows, output_stride]"]
    pub output: u64,
    #[doc = " u32 [sequences]"]
    pub starts: u64,
    #[doc = " u32 [sequences]"]
    pub lengths: u64,
    pub sequences: u32,
    #[doc = " no length is greater"]
    pub max_length: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub qkv_stride: u32,
    pub output_stride: u32,
    #[doc = " a query sees the keys less than this far away; 0 where it sees all"]
    pub window: u32,
    #[doc = " whether a query sees no key after its own position"]
    pub causal: u32,
    #[doc = " of the scores, before the softmax; positive"]
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionPrefillArgs"][::std::mem::size_of::<AttentionPrefillArgs>() - 72usize];
    ["Alignment of AttentionPrefillArgs"][::std::mem::align_of::<AttentionPrefillArgs>() - 8usize];
    ["Offset of field: AttentionPrefillArgs::qkv"][::std::mem::offset_of!(AttentionPrefillArgs, qkv) - 0usize];
    ["Offset of field: AttentionPrefillArgs::output"][::std::mem::offset_of!(AttentionPrefillArgs, output) - 8usize];
    ["Offset of field: AttentionPrefillArgs::starts"][::std::mem::offset_of!(AttentionPrefillArgs, starts) - 16usize];
    ["Offset of field: AttentionPrefillArgs::lengths"][::std::mem::offset_of!(AttentionPrefillArgs, lengths) - 24usize];
    ["Offset of field: AttentionPrefillArgs::sequences"][::std::mem::offset_of!(AttentionPrefillArgs, sequences) - 32usize];
    ["Offset of field: AttentionPrefillArgs::max_length"][::std::mem::offset_of!(AttentionPrefillArgs, max_length) - 36usize];
    ["Offset of field: AttentionPrefillArgs::heads"][::std::mem::offset_of!(AttentionPrefillArgs, heads) - 40usize];
    ["Offset of field: AttentionPrefillArgs::kv_heads"][::std::mem::offset_of!(AttentionPrefillArgs, kv_heads) - 44usize];
    ["Offset of field: AttentionPrefillArgs::head_dim"][::std::mem::offset_of!(AttentionPrefillArgs, head_dim) - 48usize];
    ["Offset of field: AttentionPrefillArgs::qkv_stride"][::std::mem::offset_of!(AttentionPrefillArgs, qkv_stride) - 52usize];
    ["Offset of field: AttentionPrefillArgs::output_stride"][::std::mem::offset_of!(AttentionPrefillArgs, output_stride) - 56usize];
    ["Offset of field: AttentionPrefillArgs::window"][::std::mem::offset_of!(AttentionPrefillArgs, window) - 60usize];
    ["Offset of field: AttentionPrefillArgs::causal"][::std::mem::offset_of!(AttentionPrefillArgs, causal) - 64usize];
    ["Offset of field: AttentionPrefillArgs::scale"][::std::mem::offset_of!(AttentionPrefillArgs, scale) - 68usize];
};
#[doc = " The same where the copy engine fetches the rows."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct AttentionPrefillTmaArgs {
    #[doc = " of qkv: f16 [heads + 2 * kv_heads, rows, head_dim], in boxes of 1 head, 64 rows and 64 columns, swizzled by 128 bytes"]
    pub rows: TensorMap,
    pub plain: AttentionPrefillArgs,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionPrefillTmaArgs"][::std::mem::size_of::<AttentionPrefillTmaArgs>() - 256usize];
    ["Alignment of AttentionPrefillTmaArgs"][::std::mem::align_of::<AttentionPrefillTmaArgs>() - 64usize];
    ["Offset of field: AttentionPrefillTmaArgs::rows"][::std::mem::offset_of!(AttentionPrefillTmaArgs, rows) - 0usize];
    ["Offset of field: AttentionPrefillTmaArgs::plain"][::std::mem::offset_of!(AttentionPrefillTmaArgs, plain) - 128usize];
};
#[doc = " As AttentionPrefillArgs, without masks, and with as many key heads as query heads; and two matrices that scores have terms of, see\n attention/disentangled_rows.cuh."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttentionDisentangledArgs {
    #[doc = " f16 [rows, qkv_stride]"]
    pub qkv: u64,
    #[doc = " f16 [2 * reach + 1, position_stride], or 0 for none; queries are multiplied by it"]
    pub position_keys: u64,
    #[doc = " the same; keys are multiplied by it"]
    pub position_queries: u64,
    #[doc = " f16 [rows, output_stride]"]
    pub output: u64,
    #[doc = " u32 [sequences]"]
    pub starts: u64,
    #[doc = " u32 [sequences]"]
    pub lengths: u64,
    pub sequences: u32,
    #[doc = " no length is greater"]
    pub max_length: u32,
    pub heads: u32,
    pub head_dim: u32,
    pub qkv_stride: u32,
    pub position_stride: u32,
    #[doc = " the farthest distance of two tokens; row `reach` of the position matrices is for distance 0"]
    pub reach: u32,
    pub output_stride: u32,
    #[doc = " of the scores, before the softmax; positive"]
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionDisentangledArgs"][::std::mem::size_of::<AttentionDisentangledArgs>() - 88usize];
    ["Alignment of AttentionDisentangledArgs"][::std::mem::align_of::<AttentionDisentangledArgs>() - 8usize];
    ["Offset of field: AttentionDisentangledArgs::qkv"][::std::mem::offset_of!(AttentionDisentangledArgs, qkv) - 0usize];
    ["Offset of field: AttentionDisentangledArgs::position_keys"]
        [::std::mem::offset_of!(AttentionDisentangledArgs, position_keys) - 8usize];
    ["Offset of field: AttentionDisentangledArgs::position_queries"]
        [::std::mem::offset_of!(AttentionDisentangledArgs, position_queries) - 16usize];
    ["Offset of field: AttentionDisentangledArgs::output"][::std::mem::offset_of!(AttentionDisentangledArgs, output) - 24usize];
    ["Offset of field: AttentionDisentangledArgs::starts"][::std::mem::offset_of!(AttentionDisentangledArgs, starts) - 32usize];
    ["Offset of field: AttentionDisentangledArgs::lengths"][::std::mem::offset_of!(AttentionDisentangledArgs, lengths) - 40usize];
    ["Offset of field: AttentionDisentangledArgs::sequences"][::std::mem::offset_of!(AttentionDisentangledArgs, sequences) - 48usize];
    ["Offset of field: AttentionDisentangledArgs::max_length"][::std::mem::offset_of!(AttentionDisentangledArgs, max_length) - 52usize];
    ["Offset of field: AttentionDisentangledArgs::heads"][::std::mem::offset_of!(AttentionDisentangledArgs, heads) - 56usize];
    ["Offset of field: AttentionDisentangledArgs::head_dim"][::std::mem::offset_of!(AttentionDisentangledArgs, head_dim) - 60usize];
    ["Offset of field: AttentionDisentangledArgs::qkv_stride"][::std::mem::offset_of!(AttentionDisentangledArgs, qkv_stride) - 64usize];
    ["Offset of field: AttentionDisentangledArgs::position_stride"]
        [::std::mem::offset_of!(AttentionDisentangledArgs, position_stride) - 68usize];
    ["Offset of field: AttentionDisentangledArgs::reach"][::std::mem::offset_of!(AttentionDisentangledArgs, reach) - 72usize];
    ["Offset of field: AttentionDisentangledArgs::output_stride"]
        [::std::mem::offset_of!(AttentionDisentangledArgs, output_stride) - 76usize];
    ["Offset of field: AttentionDisentangledArgs::scale"][::std::mem::offset_of!(AttentionDisentangledArgs, scale) - 80usize];
};
#[doc = " One query row per sequence, against the keys and values of the sequence's cache."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct AttentionDecodeArgs {
    pub cache: KvPages,
    #[doc = " f16 [sequences, qkv_stride], of which only the query heads are read"]
    pub qkv: u64,
    #[doc = " f16 [sequences, output_stride]"]
    pub output: u64,
    #[doc = " u32 [sequences], valid positions of each cache, the query's own included"]
    pub lengths: u64,
    #[doc = " DECODE_MAX_COUNTERS u32, zero between launches; then partial results"]
    pub workspace: u64,
    #[doc = " whose keys are one block's share: part of the arithmetic; a power of two"]
    pub pages_per_chunk: u32,
    pub sequences: u32,
    pub heads: u32,
    pub qkv_stride: u32,
    pub output_stride: u32,
    #[doc = " as in AttentionPrefillArgs"]
    pub window: u32,
    #[doc = " as in AttentionPrefillArgs"]
    pub scale: f32,
    #[doc = " the pools of pages; for attention_decode_bulk alone"]
    pub key_map: TensorMap,
    pub value_map: TensorMap,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionDecodeArgs"][::std::mem::size_of::<AttentionDecodeArgs>() - 384usize];
    ["Alignment of AttentionDecodeArgs"][::std::mem::align_of::<AttentionDecodeArgs>() - 64usize];
    ["Offset of field: AttentionDecodeArgs::cache"][::std::mem::offset_of!(AttentionDecodeArgs, cache) - 0usize];
    ["Offset of field: AttentionDecodeArgs::qkv"][::std::mem::offset_of!(AttentionDecodeArgs, qkv) - 40usize];
    ["Offset of field: AttentionDecodeArgs::output"][::std::mem::offset_of!(AttentionDecodeArgs, output) - 48usize];
    ["Offset of field: AttentionDecodeArgs::lengths"][::std::mem::offset_of!(AttentionDecodeArgs, lengths) - 56usize];
    ["Offset of field: AttentionDecodeArgs::workspace"][::std::mem::offset_of!(AttentionDecodeArgs, workspace) - 64usize];
    ["Offset of field: AttentionDecodeArgs::pages_per_chunk"][::std::mem::offset_of!(AttentionDecodeArgs, pages_per_chunk) - 72usize];
    ["Offset of field: AttentionDecodeArgs::sequences"][::std::mem::offset_of!(AttentionDecodeArgs, sequences) - 76usize];
    ["Offset of field: AttentionDecodeArgs::heads"][::std::mem::offset_of!(AttentionDecodeArgs, heads) - 80usize];
    ["Offset of field: AttentionDecodeArgs::qkv_stride"][::std::mem::offset_of!(AttentionDecodeArgs, qkv_stride) - 84usize];
    ["Offset of field: AttentionDecodeArgs::output_stride"][::std::mem::offset_of!(AttentionDecodeArgs, output_stride) - 88usize];
    ["Offset of field: AttentionDecodeArgs::window"][::std::mem::offset_of!(AttentionDecodeArgs, window) - 92usize];
    ["Offset of field: AttentionDecodeArgs::scale"][::std::mem::offset_of!(AttentionDecodeArgs, scale) - 96usize];
    ["Offset of field: AttentionDecodeArgs::key_map"][::std::mem::offset_of!(AttentionDecodeArgs, key_map) - 128usize];
    ["Offset of field: AttentionDecodeArgs::value_map"][::std::mem::offset_of!(AttentionDecodeArgs, value_map) - 256usize];
};
#[doc = " Some new rows of each of several sequences, against their caches, which hold the new keys and values already."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttentionChunkArgs {
    pub cache: KvPages,
    #[doc = " f16 [rows, qkv_stride], of which only the query heads are read"]
    pub qkv: u64,
    #[doc = " f16 [rows, output_stride]"]
    pub output: u64,
    #[doc = " u32 [chunks]: a chunk's first row"]
    pub starts: u64,
    #[doc = " u32 [chunks]: its rows"]
    pub lengths: u64,
    #[doc = " u32 [chunks]: valid positions of its sequence's cache, its own included"]
    pub contexts: u64,
    #[doc = " u32 [chunks]: the row of the page table"]
    pub sequence_of: u64,
    pub chunks: u32,
    #[doc = " no length is greater"]
    pub max_length: u32,
    pub heads: u32,
    pub qkv_stride: u32,
    pub output_stride: u32,
    #[doc = " as in AttentionPrefillArgs"]
    pub window: u32,
    #[doc = " as in AttentionPrefillArgs"]
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionChunkArgs"][::std::mem::size_of::<AttentionChunkArgs>() - 120usize];
    ["Alignment of AttentionChunkArgs"][::std::mem::align_of::<AttentionChunkArgs>() - 8usize];
    ["Offset of field: AttentionChunkArgs::cache"][::std::mem::offset_of!(AttentionChunkArgs, cache) - 0usize];
    ["Offset of field: AttentionChunkArgs::qkv"][::std::mem::offset_of!(AttentionChunkArgs, qkv) - 40usize];
    ["Offset of field: AttentionChunkArgs::output"][::std::mem::offset_of!(AttentionChunkArgs, output) - 48usize];
    ["Offset of field: AttentionChunkArgs::starts"][::std::mem::offset_of!(AttentionChunkArgs, starts) - 56usize];
    ["Offset of field: AttentionChunkArgs::lengths"][::std::mem::offset_of!(AttentionChunkArgs, lengths) - 64usize];
    ["Offset of field: AttentionChunkArgs::contexts"][::std::mem::offset_of!(AttentionChunkArgs, contexts) - 72usize];
    ["Offset of field: AttentionChunkArgs::sequence_of"][::std::mem::offset_of!(AttentionChunkArgs, sequence_of) - 80usize];
    ["Offset of field: AttentionChunkArgs::chunks"][::std::mem::offset_of!(AttentionChunkArgs, chunks) - 88usize];
    ["Offset of field: AttentionChunkArgs::max_length"][::std::mem::offset_of!(AttentionChunkArgs, max_length) - 92usize];
    ["Offset of field: AttentionChunkArgs::heads"][::std::mem::offset_of!(AttentionChunkArgs, heads) - 96usize];
    ["Offset of field: AttentionChunkArgs::qkv_stride"][::std::mem::offset_of!(AttentionChunkArgs, qkv_stride) - 100usize];
    ["Offset of field: AttentionChunkArgs::output_stride"][::std::mem::offset_of!(AttentionChunkArgs, output_stride) - 104usize];
    ["Offset of field: AttentionChunkArgs::window"][::std::mem::offset_of!(AttentionChunkArgs, window) - 108usize];
    ["Offset of field: AttentionChunkArgs::scale"][::std::mem::offset_of!(AttentionChunkArgs, scale) - 112usize];
};
#[doc = " The same where the copy engine fetches the rows and the pages."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct AttentionChunkTmaArgs {
    #[doc = " of qkv: as in AttentionPrefillTmaArgs"]
    pub rows: TensorMap,
    #[doc = " f16 [pages * kv_heads, KV_PAGE_TOKENS, head_dim], in boxes of 1 head of a page, 64 rows and 64 columns, swizzled by 128 bytes"]
    pub keys: TensorMap,
    #[doc = " the same"]
    pub values: TensorMap,
    pub plain: AttentionChunkArgs,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionChunkTmaArgs"][::std::mem::size_of::<AttentionChunkTmaArgs>() - 512usize];
    ["Alignment of AttentionChunkTmaArgs"][::std::mem::align_of::<AttentionChunkTmaArgs>() - 64usize];
    ["Offset of field: AttentionChunkTmaArgs::rows"][::std::mem::offset_of!(AttentionChunkTmaArgs, rows) - 0usize];
    ["Offset of field: AttentionChunkTmaArgs::keys"][::std::mem::offset_of!(AttentionChunkTmaArgs, keys) - 128usize];
    ["Offset of field: AttentionChunkTmaArgs::values"][::std::mem::offset_of!(AttentionChunkTmaArgs, values) - 256usize];
    ["Offset of field: AttentionChunkTmaArgs::plain"][::std::mem::offset_of!(AttentionChunkTmaArgs, plain) - 384usize];
};
#[doc = " Layer norm and RMS norm, see norm/norm.cu."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct NormArgs {
    #[doc = " half [rows, width]; [*, width] with an index"]
    pub x: u64,
    #[doc = " half [rows, width], or 0"]
    pub residual: u64,
    #[doc = " half [rows, width]: receives x + residual, or 0"]
    pub sum: u64,
    #[doc = " half [width]"]
    pub weight: u64,
    #[doc = " half [width]; RMS norm has none"]
    pub bias: u64,
    #[doc = " half [rows, width]"]
    pub y: u64,
    #[doc = " uint32 [rows]: the row of x and of residual that each row of y comes from, or 0 for its own"]
    pub index: u64,
    pub rows: u32,
    pub width: u32,
    pub epsilon: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of NormArgs"][::std::mem::size_of::<NormArgs>() - 72usize];
    ["Alignment of NormArgs"][::std::mem::align_of::<NormArgs>() - 8usize];
    ["Offset of field: NormArgs::x"][::std::mem::offset_of!(NormArgs, x) - 0usize];
    ["Offset of field: NormArgs::residual"][::std::mem::offset_of!(NormArgs, residual) - 8usize];
    ["Offset of field: NormArgs::sum"][::std::mem::offset_of!(NormArgs, sum) - 16usize];
    ["Offset of field: NormArgs::weight"][::std::mem::offset_of!(NormArgs, weight) - 24usize];
    ["Offset of field: NormArgs::bias"][::std::mem::offset_of!(NormArgs, bias) - 32usize];
    ["Offset of field: NormArgs::y"][::std::mem::offset_of!(NormArgs, y) - 40usize];
    ["Offset of field: NormArgs::index"][::std::mem::offset_of!(NormArgs, index) - 48usize];
    ["Offset of field: NormArgs::rows"][::std::mem::offset_of!(NormArgs, rows) - 56usize];
    ["Offset of field: NormArgs::width"][::std::mem::offset_of!(NormArgs, width) - 60usize];
    ["Offset of field: NormArgs::epsilon"][::std::mem::offset_of!(NormArgs, epsilon) - 64usize];
};
#[doc = " Token embeddings, see embedding/embedding.cu."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct EmbedArgs {
    #[doc = " uint32 [rows]"]
    pub ids: u64,
    #[doc = " half [vocabulary, width]"]
    pub words: u64,
    #[doc = " uint32 [rows], or 0"]
    pub positions: u64,
    #[doc = " half [max_positions, width]; not read without positions"]
    pub position_table: u64,
    #[doc = " half [*, width], whose row 0 is added; or 0"]
    pub type_table: u64,
    #[doc = " half [rows, width]: receives the sum of the tables, or 0"]
    pub sum: u64,
    #[doc = " half [width] of the norm, if there is one"]
    pub weight: u64,
    #[doc = " half [width]; RMS norm has none"]
    pub bias: u64,
    #[doc = " half [rows, width]"]
    pub y: u64,
    pub rows: u32,
    pub width: u32,
    pub vocabulary: u32,
    pub max_positions: u32,
    pub epsilon: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of EmbedArgs"][::std::mem::size_of::<EmbedArgs>() - 96usize];
    ["Alignment of EmbedArgs"][::std::mem::align_of::<EmbedArgs>() - 8usize];
    ["Offset of field: EmbedArgs::ids"][::std::mem::offset_of!(EmbedArgs, ids) - 0usize];
    ["Offset of field: EmbedArgs::words"][::std::mem::offset_of!(EmbedArgs, words) - 8usize];
    ["Offset of field: EmbedArgs::positions"][::std::mem::offset_of!(EmbedArgs, positions) - 16usize];
    ["Offset of field: EmbedArgs::position_table"][::std::mem::offset_of!(EmbedArgs, position_table) - 24usize];
    ["Offset of field: EmbedArgs::type_table"][::std::mem::offset_of!(EmbedArgs, type_table) - 32usize];
    ["Offset of field: EmbedArgs::sum"][::std::mem::offset_of!(EmbedArgs, sum) - 40usize];
    ["Offset of field: EmbedArgs::weight"][::std::mem::offset_of!(EmbedArgs, weight) - 48usize];
    ["Offset of field: EmbedArgs::bias"][::std::mem::offset_of!(EmbedArgs, bias) - 56usize];
    ["Offset of field: EmbedArgs::y"][::std::mem::offset_of!(EmbedArgs, y) - 64usize];
    ["Offset of field: EmbedArgs::rows"][::std::mem::offset_of!(EmbedArgs, rows) - 72usize];
    ["Offset of field: EmbedArgs::width"][::std::mem::offset_of!(EmbedArgs, width) - 76usize];
    ["Offset of field: EmbedArgs::vocabulary"][::std::mem::offset_of!(EmbedArgs, vocabulary) - 80usize];
    ["Offset of field: EmbedArgs::max_positions"][::std::mem::offset_of!(EmbedArgs, max_positions) - 84usize];
    ["Offset of field: EmbedArgs::epsilon"][::std::mem::offset_of!(EmbedArgs, epsilon) - 88usize];
};
#[doc = " Patches of images as rows, see unfold/unfold.cu."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct UnfoldPatchesArgs {
    #[doc = " half [images, channels, image_size, image_size]"]
    pub pixels: u64,
    #[doc = " half [images * (1 + patches), stride]"]
    pub y: u64,
    pub channels: u32,
    pub image_size: u32,
    pub patch_size: u32,
    pub stride: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of UnfoldPatchesArgs"][::std::mem::size_of::<UnfoldPatchesArgs>() - 32usize];
    ["Alignment of UnfoldPatchesArgs"][::std::mem::align_of::<UnfoldPatchesArgs>() - 8usize];
    ["Offset of field: UnfoldPatchesArgs::pixels"][::std::mem::offset_of!(UnfoldPatchesArgs, pixels) - 0usize];
    ["Offset of field: UnfoldPatchesArgs::y"][::std::mem::offset_of!(UnfoldPatchesArgs, y) - 8usize];
    ["Offset of field: UnfoldPatchesArgs::channels"][::std::mem::offset_of!(UnfoldPatchesArgs, channels) - 16usize];
    ["Offset of field: UnfoldPatchesArgs::image_size"][::std::mem::offset_of!(UnfoldPatchesArgs, image_size) - 20usize];
    ["Offset of field: UnfoldPatchesArgs::patch_size"][::std::mem::offset_of!(UnfoldPatchesArgs, patch_size) - 24usize];
    ["Offset of field: UnfoldPatchesArgs::stride"][::std::mem::offset_of!(UnfoldPatchesArgs, stride) - 28usize];
};
#[doc = " Neighbouring tokens as rows."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct UnfoldTokensArgs {
    #[doc = " half [rows, hidden]"]
    pub x: u64,
    #[doc = " uint32 [sequences]"]
    pub starts: u64,
    #[doc = " uint32 [sequences]"]
    pub lengths: u64,
    #[doc = " half [rows, width * hidden]"]
    pub y: u64,
    pub max_length: u32,
    pub hidden: u32,
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of UnfoldTokensArgs"][::std::mem::size_of::<UnfoldTokensArgs>() - 48usize];
    ["Alignment of UnfoldTokensArgs"][::std::mem::align_of::<UnfoldTokensArgs>() - 8usize];
    ["Offset of field: UnfoldTokensArgs::x"][::std::mem::offset_of!(UnfoldTokensArgs, x) - 0usize];
    ["Offset of field: UnfoldTokensArgs::starts"][::std::mem::offset_of!(UnfoldTokensArgs, starts) - 8usize];
    ["Offset of field: UnfoldTokensArgs::lengths"][::std::mem::offset_of!(UnfoldTokensArgs, lengths) - 16usize];
    ["Offset of field: UnfoldTokensArgs::y"][::std::mem::offset_of!(UnfoldTokensArgs, y) - 24usize];
    ["Offset of field: UnfoldTokensArgs::max_length"][::std::mem::offset_of!(UnfoldTokensArgs, max_length) - 32usize];
    ["Offset of field: UnfoldTokensArgs::hidden"][::std::mem::offset_of!(UnfoldTokensArgs, hidden) - 36usize];
    ["Offset of field: UnfoldTokensArgs::width"][::std::mem::offset_of!(UnfoldTokensArgs, width) - 40usize];
};
#[doc = " Rows picked or averaged, see pooling/pooling.cu."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct PoolArgs {
    #[doc = " half [*, width]"]
    pub x: u64,
    #[doc = " uint32 [rows]: the row to pick, or the first to average"]
    pub starts: u64,
    #[doc = " uint32 [rows]: how many to average"]
    pub lengths: u64,
    #[doc = " [rows, width], half if picked, float if averaged"]
    pub y: u64,
    pub rows: u32,
    pub width: u32,
    #[doc = " 1: divide each average by its Euclidean length"]
    pub normalise: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PoolArgs"][::std::mem::size_of::<PoolArgs>() - 48usize];
    ["Alignment of PoolArgs"][::std::mem::align_of::<PoolArgs>() - 8usize];
    ["Offset of field: PoolArgs::x"][::std::mem::offset_of!(PoolArgs, x) - 0usize];
    ["Offset of field: PoolArgs::starts"][::std::mem::offset_of!(PoolArgs, starts) - 8usize];
    ["Offset of field: PoolArgs::lengths"][::std::mem::offset_of!(PoolArgs, lengths) - 16usize];
    ["Offset of field: PoolArgs::y"][::std::mem::offset_of!(PoolArgs, y) - 24usize];
    ["Offset of field: PoolArgs::rows"][::std::mem::offset_of!(PoolArgs, rows) - 32usize];
    ["Offset of field: PoolArgs::width"][::std::mem::offset_of!(PoolArgs, width) - 36usize];
    ["Offset of field: PoolArgs::normalise"][::std::mem::offset_of!(PoolArgs, normalise) - 40usize];
};
#[doc = " How one row's next token is drawn, see sampling/sample.cu."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SampleParams {
    #[doc = " 0: the most likely token"]
    pub temperature: f32,
    #[doc = " in (0, 1]; 1 keeps all"]
    pub top_p: f32,
    #[doc = " 0 keeps all"]
    pub top_k: u32,
    #[doc = " uniform in [0, 1)"]
    pub draw: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SampleParams"][::std::mem::size_of::<SampleParams>() - 16usize];
    ["Alignment of SampleParams"][::std::mem::align_of::<SampleParams>() - 4usize];
    ["Offset of field: SampleParams::temperature"][::std::mem::offset_of!(SampleParams, temperature) - 0usize];
    ["Offset of field: SampleParams::top_p"][::std::mem::offset_of!(SampleParams, top_p) - 4usize];
    ["Offset of field: SampleParams::top_k"][::std::mem::offset_of!(SampleParams, top_k) - 8usize];
    ["Offset of field: SampleParams::draw"][::std::mem::offset_of!(SampleParams, draw) - 12usize];
};
#[doc = " What one thread block found in its part of a row: the largest logit, the lowest id that has it, and the histogram's length."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SamplePart {
    #[doc = " the logit, as an integer of the same order"]
    pub order: u32,
    pub id: u32,
    #[doc = " bins from the largest logit's down to the lowest that is not empty"]
    pub bins: u32,
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SamplePart"][::std::mem::size_of::<SamplePart>() - 16usize];
    ["Alignment of SamplePart"][::std::mem::align_of::<SamplePart>() - 4usize];
    ["Offset of field: SamplePart::order"][::std::mem::offset_of!(SamplePart, order) - 0usize];
    ["Offset of field: SamplePart::id"][::std::mem::offset_of!(SamplePart, id) - 4usize];
    ["Offset of field: SamplePart::bins"][::std::mem::offset_of!(SamplePart, bins) - 8usize];
    ["Offset of field: SamplePart::reserved"][::std::mem::offset_of!(SamplePart, reserved) - 12usize];
};
#[doc = " A bin of a part's histogram."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SampleBin {
    #[doc = " tokens"]
    pub count: u32,
    #[doc = " what their masses lack"]
    pub deficit: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SampleBin"][::std::mem::size_of::<SampleBin>() - 8usize];
    ["Alignment of SampleBin"][::std::mem::align_of::<SampleBin>() - 4usize];
    ["Offset of field: SampleBin::count"][::std::mem::offset_of!(SampleBin, count) - 0usize];
    ["Offset of field: SampleBin::deficit"][::std::mem::offset_of!(SampleBin, deficit) - 4usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SampleArgs {
    #[doc = " float [rows, vocabulary]"]
    pub logits: u64,
    #[doc = " SampleParams [rows]"]
    pub params: u64,
    #[doc = " uint32 [rows]: receives the token drawn"]
    pub tokens: u64,
    #[doc = " uint32 [rows]: each gains 1, or 0 for none"]
    pub positions: u64,
    #[doc = " uint32 [rows]: each gains 1, or 0 for none"]
    pub lengths: u64,
    #[doc = " uint32 [rows]: 0 before and after"]
    pub arrivals: u64,
    #[doc = " SamplePart [rows, parts_per_row]"]
    pub parts: u64,
    #[doc = " uint32 [rows, segments]: the order of each segment's largest logit"]
    pub segments: u64,
    #[doc = " SampleBin [rows, parts_per_row, SAMPLE_BINS]"]
    pub histograms: u64,
    pub rows: u32,
    pub vocabulary: u32,
    pub parts_per_row: u32,
    pub segments_per_part: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SampleArgs"][::std::mem::size_of::<SampleArgs>() - 88usize];
    ["Alignment of SampleArgs"][::std::mem::align_of::<SampleArgs>() - 8usize];
    ["Offset of field: SampleArgs::logits"][::std::mem::offset_of!(SampleArgs, logits) - 0usize];
    ["Offset of field: SampleArgs::params"][::std::mem::offset_of!(SampleArgs, params) - 8usize];
    ["Offset of field: SampleArgs::tokens"][::std::mem::offset_of!(SampleArgs, tokens) - 16usize];
    ["Offset of field: SampleArgs::positions"][::std::mem::offset_of!(SampleArgs, positions) - 24usize];
    ["Offset of field: SampleArgs::lengths"][::std::mem::offset_of!(SampleArgs, lengths) - 32usize];
    ["Offset of field: SampleArgs::arrivals"][::std::mem::offset_of!(SampleArgs, arrivals) - 40usize];
    ["Offset of field: SampleArgs::parts"][::std::mem::offset_of!(SampleArgs, parts) - 48usize];
    ["Offset of field: SampleArgs::segments"][::std::mem::offset_of!(SampleArgs, segments) - 56usize];
    ["Offset of field: SampleArgs::histograms"][::std::mem::offset_of!(SampleArgs, histograms) - 64usize];
    ["Offset of field: SampleArgs::rows"][::std::mem::offset_of!(SampleArgs, rows) - 72usize];
    ["Offset of field: SampleArgs::vocabulary"][::std::mem::offset_of!(SampleArgs, vocabulary) - 76usize];
    ["Offset of field: SampleArgs::parts_per_row"][::std::mem::offset_of!(SampleArgs, parts_per_row) - 80usize];
    ["Offset of field: SampleArgs::segments_per_part"][::std::mem::offset_of!(SampleArgs, segments_per_part) - 84usize];
};
#[doc = " Reads device memory and does nothing with it, see bandwidth/read.cu."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ReadBandwidthArgs {
    #[doc = " whole tiles"]
    pub source: u64,
    #[doc = " uint32_t: written if one word read, or all folded to one, is `never`"]
    pub sink: u64,
    pub never: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ReadBandwidthArgs"][::std::mem::size_of::<ReadBandwidthArgs>() - 24usize];
    ["Alignment of ReadBandwidthArgs"][::std::mem::align_of::<ReadBandwidthArgs>() - 8usize];
    ["Offset of field: ReadBandwidthArgs::source"][::std::mem::offset_of!(ReadBandwidthArgs, source) - 0usize];
    ["Offset of field: ReadBandwidthArgs::sink"][::std::mem::offset_of!(ReadBandwidthArgs, sink) - 8usize];
    ["Offset of field: ReadBandwidthArgs::never"][::std::mem::offset_of!(ReadBandwidthArgs, never) - 16usize];
};
#[doc = " Random weights, see random/random.cu."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RandomArgs {
    #[doc = " half"]
    pub y: u64,
    pub count: u64,
    pub columns: u64,
    #[doc = " elements from row to row"]
    pub stride: u64,
    pub key: u64,
    #[doc = " 0 for a constant"]
    pub half_width: f32,
    pub constant: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RandomArgs"][::std::mem::size_of::<RandomArgs>() - 48usize];
    ["Alignment of RandomArgs"][::std::mem::align_of::<RandomArgs>() - 8usize];
    ["Offset of field: RandomArgs::y"][::std::mem::offset_of!(RandomArgs, y) - 0usize];
    ["Offset of field: RandomArgs::count"][::std::mem::offset_of!(RandomArgs, count) - 8usize];
    ["Offset of field: RandomArgs::columns"][::std::mem::offset_of!(RandomArgs, columns) - 16usize];
    ["Offset of field: RandomArgs::stride"][::std::mem::offset_of!(RandomArgs, stride) - 24usize];
    ["Offset of field: RandomArgs::key"][::std::mem::offset_of!(RandomArgs, key) - 32usize];
    ["Offset of field: RandomArgs::half_width"][::std::mem::offset_of!(RandomArgs, half_width) - 40usize];
    ["Offset of field: RandomArgs::constant"][::std::mem::offset_of!(RandomArgs, constant) - 44usize];
};
