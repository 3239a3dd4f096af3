// The structs that cross from Rust to the kernels, by value. Device addresses are 64-bit integers, so that both sides agree on their size;
// shapes are counted in elements unless a name says bytes. The Rust side, kernels/abi.rs, is generated from this file (`cargo xtask abi`).
#pragma once
#include <stdint.h>

#ifdef __cplusplus
#define ALIGNED(BYTES) alignas(BYTES)
#else
#define ALIGNED(BYTES) _Alignas(BYTES)
#endif

// What the copy engine must know of a matrix, in the driver's own form; the runtime's launch::TensorMap says what it is made from.
typedef struct TensorMap {
    ALIGNED(64) uint64_t opaque[16];
} TensorMap;

// Places for tiles given back: more than workers can be.
#define GIVEN_BACK_TILES 512

// Where one chain of launches counts its tiles; see elastic.cuh for who writes what. All zero before the first launch.
typedef struct TileProgress {
    unsigned long long taken;
    uint32_t finished;
    uint32_t departed;
    uint32_t joined;     // workers of joiners that take tiles
    uint32_t ring_begin; // tiles ever taken out of the ring
    uint32_t ring_end;   // and put into it
    uint32_t ring[GIVEN_BACK_TILES]; // 1 + the number of a tile that was given back, or 0
} TileProgress;

// Every kernel's second parameter. The runtime crate's TilesArg is the same struct.
typedef struct Tiles {
    uint64_t progress; // TileProgress*; 0 for a launch that is not elastic
    uint64_t grant;    // one bit per SM in %smid order; 0 where every SM is granted
    uint32_t count;    // tiles to be done
    uint32_t joins;    // 0 for the owner; 1 + epoch for a joiner
    uint32_t numbered; // tiles that the counter leaves out: the owner's workers begin with those of their own numbers; 0 or its workers
    uint32_t unused;
} Tiles;

// ---- elastic_probe.cu ----

// What the tests of elastic.cuh observe: how often each tile was done, and where.
typedef struct ElasticProbeArgs {
    uint64_t executions; // uint32_t[tiles], counted up
    uint64_t sms;        // uint32_t[tiles], the %smid that did the tile last
    uint32_t cycles;     // how long a tile takes
} ElasticProbeArgs;

// ---- attention/: the KV cache, and rotary positions ----

// Tokens of one page of the KV cache.
#define KV_PAGE_TOKENS 64

// One layer's keys and values of past tokens. Position p of sequence b lies in page page_table[b][p / KV_PAGE_TOKENS], at p % KV_PAGE_TOKENS.
typedef struct KvPages {
    uint64_t keys;       // f16 [pages, kv_heads, KV_PAGE_TOKENS, head_dim], or 0 where there is no cache
    uint64_t values;     // the same
    uint64_t page_table; // u32 [sequences, pages_per_sequence]
    uint32_t pages_per_sequence;
    uint32_t kv_heads;
    uint32_t head_dim;
} KvPages;

// Pieces of a row, of one or eight pairs each, that a block of the rotary kernel does at a time.
#define ROTARY_PIECES_PER_TILE 256

// Rotates query and key heads in place, and copies the rotated keys and the values to the cache where there is one.
typedef struct RotaryArgs {
    KvPages cache;
    uint64_t qkv;                 // f16 [rows, qkv_stride]
    uint64_t positions;           // u32 [rows]
    uint64_t inverse_frequencies; // f32 [head_dim / 2], or 0 where nothing is rotated
    uint64_t sequence_of;         // u32 [rows]: the sequence in the page table that a row belongs to; not read without a cache
    uint32_t rows;
    uint32_t heads;
    uint32_t qkv_stride;
    uint32_t tiles_per_row;
    uint32_t vectorised; // whether half heads may be accessed eight elements at a time
} RotaryArgs;

// ---- gemm/ ----

// C = epilogue(A * B^T), see gemm/epilogue.cuh. A: [m, k], B: [n, k], both FP16 and row-major; C: [m, n], FP16 or FP32.
typedef struct GemmArgs {
    uint64_t a;           // [m, k]
    uint64_t b;           // [n, k]: a weight as model files store it
    uint64_t c;           // [m, n]; [m, n / 2] for the SiLU gate
    uint64_t bias;        // [n], or 0
    uint64_t residual;    // [m, n], or 0
    uint32_t m;
    uint32_t n;
    uint32_t k;
    uint32_t lda;         // elements from one row to the next
    uint32_t ldb;
    uint32_t ldc;
    uint32_t ld_residual;
    uint32_t epilogue;    // GemmEpilogue, for kernels that were not compiled for one
    float scale;          // factor of the sums
    uint32_t vectorised;  // whether C, bias and residual may be accessed four elements at a time
    uint32_t constant_b;  // whether no earlier launch still in flight may be writing B: a weight
} GemmArgs;

// A GEMM of few rows, see gemm/skinny.cuh.
typedef struct SkinnyGemmArgs {
    TensorMap a; // all rows by 64 columns
    TensorMap b; // a tile's rows by 64 columns
    GemmArgs gemm;
    uint32_t norms_rows; // 1: each row of A counts divided by the root of epsilon and the mean of its squares
    float epsilon;
    uint32_t stages_under_way; // of B, that a block has asked for and not got, at most
} SkinnyGemmArgs;

// The same where columns are heads, see gemm/heads.cuh.
typedef struct SkinnyQkvArgs {
    SkinnyGemmArgs product; // its b is [halves of a head, rows, k], in boxes of 2 halves, 32 rows and 64 columns
    RotaryArgs rotary;
} SkinnyQkvArgs;

// The same for kernels that leave copying to Hopper's copy engine. Blocks work in pairs, whose two tiles share the rows of A or of B.
typedef struct WarpgroupGemmArgs {
    TensorMap a;        // a tile's rows, or half of them if they are shared, by 64 columns
    TensorMap b;        // the same
    TensorMap c;        // tiles of 64 rows by one slice
    TensorMap residual; // as c; unused without a residual
    GemmArgs gemm;
    uint32_t shares_a;  // 1: the pair's tiles lie side by side along n; 0: one below the other along m, and share B
} WarpgroupGemmArgs;

// What is done to a sum before it is stored; x = scale * sum.
typedef enum GemmEpilogue {
    GEMM_PLAIN = 0,          // x
    GEMM_PLAIN_F32 = 1,      // x, stored as FP32
    GEMM_BIAS = 2,           // x + bias
    GEMM_BIAS_GELU = 3,      // gelu(x + bias) with the error function
    GEMM_BIAS_GELU_TANH = 4, // gelu(x + bias) in its tanh approximation
    GEMM_BIAS_RELU = 5,      // max(x + bias, 0)
    GEMM_RESIDUAL = 6,       // x + residual
    GEMM_BIAS_RESIDUAL = 7,  // x + bias + residual
    GEMM_SILU_GATE = 8       // columns 2i and 2i + 1 of x, plus the bias if there is one, are gate and up: C[., i] = silu(gate) * up
} GemmEpilogue;

// ---- attention/ ----

// Tokens of all sequences are rows of one matrix. Sequence b has rows starts[b] .. starts[b] + lengths[b], so packed batches (starts are
// prefix sums) and padded ones (starts are multiples of the longest length) are the same to the kernel. A row of qkv holds the query heads,
// then the key heads, then the value heads.
typedef struct AttentionPrefillArgs {
    uint64_t qkv;        // f16 [rows, qkv_stride]
    uint64_t output;     // f16 [rows, output_stride]
    uint64_t starts;     // u32 [sequences]
    uint64_t lengths;    // u32 [sequences]
    uint32_t sequences;
    uint32_t max_length; // no length is greater
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t qkv_stride;
    uint32_t output_stride;
    uint32_t window;     // a query sees the keys less than this far away; 0 where it sees all
    uint32_t causal;     // whether a query sees no key after its own position
    float scale;         // of the scores, before the softmax; positive
} AttentionPrefillArgs;

// The same where the copy engine fetches the rows.
typedef struct AttentionPrefillTmaArgs {
    TensorMap rows; // of qkv: f16 [heads + 2 * kv_heads, rows, head_dim], in boxes of 1 head, 64 rows and 64 columns, swizzled by 128 bytes
    AttentionPrefillArgs plain;
} AttentionPrefillTmaArgs;

// As AttentionPrefillArgs, without masks, and with as many key heads as query heads; and two matrices that scores have terms of, see
// attention/disentangled_rows.cuh.
typedef struct AttentionDisentangledArgs {
    uint64_t qkv;              // f16 [rows, qkv_stride]
    uint64_t position_keys;    // f16 [2 * reach + 1, position_stride], or 0 for none; queries are multiplied by it
    uint64_t position_queries; // the same; keys are multiplied by it
    uint64_t output;           // f16 [rows, output_stride]
    uint64_t starts;           // u32 [sequences]
    uint64_t lengths;          // u32 [sequences]
    uint32_t sequences;
    uint32_t max_length;       // no length is greater
    uint32_t heads;
    uint32_t head_dim;
    uint32_t qkv_stride;
    uint32_t position_stride;
    uint32_t reach;            // the farthest distance of two tokens; row `reach` of the position matrices is for distance 0
    uint32_t output_stride;
    float scale;               // of the scores, before the softmax; positive
} AttentionDisentangledArgs;

#define ATTENTION_DISENTANGLED_D32_SHARED_BYTES 73728
#define ATTENTION_DISENTANGLED_D64_SHARED_BYTES 114688
#define ATTENTION_DISENTANGLED_WGMMA_SHARED_BYTES 112640

// The most pages whose keys are summed by one block of decode attention.
#define DECODE_MOST_PAGES_PER_CHUNK 32
// Columns (a sequence's key heads, for up to 8 query heads each) that one decode launch may have.
#define DECODE_MAX_COUNTERS 32768

// One query row per sequence, against the keys and values of the sequence's cache.
typedef struct AttentionDecodeArgs {
    KvPages cache;
    uint64_t qkv;       // f16 [sequences, qkv_stride], of which only the query heads are read
    uint64_t output;    // f16 [sequences, output_stride]
    uint64_t lengths;   // u32 [sequences], valid positions of each cache, the query's own included
    uint64_t workspace; // DECODE_MAX_COUNTERS u32, zero between launches; then partial results
    uint32_t pages_per_chunk; // whose keys are one block's share: part of the arithmetic; a power of two
    uint32_t sequences;
    uint32_t heads;
    uint32_t qkv_stride;
    uint32_t output_stride;
    uint32_t window; // as in AttentionPrefillArgs
    float scale;     // as in AttentionPrefillArgs
    TensorMap key_map;   // the pools of pages; for attention_decode_bulk alone
    TensorMap value_map;
} AttentionDecodeArgs;

// Some new rows of each of several sequences, against their caches, which hold the new keys and values already.
typedef struct AttentionChunkArgs {
    KvPages cache;
    uint64_t qkv;         // f16 [rows, qkv_stride], of which only the query heads are read
    uint64_t output;      // f16 [rows, output_stride]
    uint64_t starts;      // u32 [chunks]: a chunk's first row
    uint64_t lengths;     // u32 [chunks]: its rows
    uint64_t contexts;    // u32 [chunks]: valid positions of its sequence's cache, its own included
    uint64_t sequence_of; // u32 [chunks]: the row of the page table
    uint32_t chunks;
    uint32_t max_length; // no length is greater
    uint32_t heads;
    uint32_t qkv_stride;
    uint32_t output_stride;
    uint32_t window; // as in AttentionPrefillArgs
    float scale;     // as in AttentionPrefillArgs
} AttentionChunkArgs;

// The same where the copy engine fetches the rows and the pages.
typedef struct AttentionChunkTmaArgs {
    TensorMap rows;   // of qkv: as in AttentionPrefillTmaArgs
    TensorMap keys;   // f16 [pages * kv_heads, KV_PAGE_TOKENS, head_dim], in boxes of 1 head of a page, 64 rows and 64 columns, swizzled by 128 bytes
    TensorMap values; // the same
    AttentionChunkArgs plain;
} AttentionChunkTmaArgs;

// Dynamic shared memory of the attention kernels, bytes; the device code asserts that it is what they use.
#define ATTENTION_PREFILL_D32_SHARED_BYTES 20496
#define ATTENTION_PREFILL_D64_SHARED_BYTES 36880
#define ATTENTION_PREFILL_D80_SHARED_BYTES 45072
#define ATTENTION_PREFILL_D96_SHARED_BYTES 53264
#define ATTENTION_PREFILL_D128_SHARED_BYTES 69648
#define ATTENTION_PREFILL_D256_SHARED_BYTES 101376
#define ATTENTION_PREFILL_WGMMA_D32_SHARED_BYTES 73832
#define ATTENTION_PREFILL_WGMMA_D64_SHARED_BYTES 73832
#define ATTENTION_PREFILL_WGMMA_D80_SHARED_BYTES 163944
#define ATTENTION_PREFILL_WGMMA_D96_SHARED_BYTES 163944
#define ATTENTION_PREFILL_WGMMA_D128_SHARED_BYTES 163944
#define ATTENTION_PREFILL_WGMMA_D256_SHARED_BYTES 196712
#define ATTENTION_PREFILL_SHORT_D32_SHARED_BYTES 49152
#define ATTENTION_PREFILL_SHORT_D64_SHARED_BYTES 49152
#define ATTENTION_DECODE_D32_SHARED_BYTES 32112
#define ATTENTION_DECODE_D64_SHARED_BYTES 56688
#define ATTENTION_DECODE_D80_SHARED_BYTES 68976
#define ATTENTION_DECODE_D96_SHARED_BYTES 107888
#define ATTENTION_DECODE_D128_SHARED_BYTES 105840
#define ATTENTION_DECODE_D256_SHARED_BYTES 204144
#define ATTENTION_DECODE_BULK_D32_SHARED_BYTES 37360
#define ATTENTION_DECODE_BULK_D64_SHARED_BYTES 54432
#define ATTENTION_DECODE_BULK_D80_SHARED_BYTES 67488
#define ATTENTION_DECODE_BULK_D96_SHARED_BYTES 106992
#define ATTENTION_DECODE_BULK_D128_SHARED_BYTES 106656
#define ATTENTION_DECODE_BULK_D256_SHARED_BYTES 211104
#define ATTENTION_CHUNK_D32_SHARED_BYTES 20496
#define ATTENTION_CHUNK_D64_SHARED_BYTES 36880
#define ATTENTION_CHUNK_D80_SHARED_BYTES 45072
#define ATTENTION_CHUNK_D96_SHARED_BYTES 53264
#define ATTENTION_CHUNK_D128_SHARED_BYTES 69648
#define ATTENTION_CHUNK_D256_SHARED_BYTES 101376
#define ATTENTION_CHUNK_WGMMA_D32_SHARED_BYTES 73840
#define ATTENTION_CHUNK_WGMMA_D64_SHARED_BYTES 73840
#define ATTENTION_CHUNK_WGMMA_D80_SHARED_BYTES 163952
#define ATTENTION_CHUNK_WGMMA_D96_SHARED_BYTES 163952
#define ATTENTION_CHUNK_WGMMA_D128_SHARED_BYTES 163952
#define ATTENTION_CHUNK_WGMMA_D256_SHARED_BYTES 196720

// ---- norm/ ----

// Layer norm and RMS norm, see norm/norm.cu.
typedef struct NormArgs {
    uint64_t x;        // half [rows, width]; [*, width] with an index
    uint64_t residual; // half [rows, width], or 0
    uint64_t sum;      // half [rows, width]: receives x + residual, or 0
    uint64_t weight;   // half [width]
    uint64_t bias;     // half [width]; RMS norm has none
    uint64_t y;        // half [rows, width]
    uint64_t index;    // uint32 [rows]: the row of x and of residual that each row of y comes from, or 0 for its own
    uint32_t rows;
    uint32_t width;
    float epsilon;
} NormArgs;

// ---- embedding/ ----

// Token embeddings, see embedding/embedding.cu.
typedef struct EmbedArgs {
    uint64_t ids;            // uint32 [rows]
    uint64_t words;          // half [vocabulary, width]
    uint64_t positions;      // uint32 [rows], or 0
    uint64_t position_table; // half [max_positions, width]; not read without positions
    uint64_t type_table;     // half [*, width], whose row 0 is added; or 0
    uint64_t sum;            // half [rows, width]: receives the sum of the tables, or 0
    uint64_t weight;         // half [width] of the norm, if there is one
    uint64_t bias;           // half [width]; RMS norm has none
    uint64_t y;              // half [rows, width]
    uint32_t rows;
    uint32_t width;
    uint32_t vocabulary;
    uint32_t max_positions;
    float epsilon;
} EmbedArgs;

// ---- unfold/ ----

// Patches of images as rows, see unfold/unfold.cu.
typedef struct UnfoldPatchesArgs {
    uint64_t pixels; // half [images, channels, image_size, image_size]
    uint64_t y;      // half [images * (1 + patches), stride]
    uint32_t channels;
    uint32_t image_size;
    uint32_t patch_size;
    uint32_t stride;
} UnfoldPatchesArgs;

// Neighbouring tokens as rows.
typedef struct UnfoldTokensArgs {
    uint64_t x;       // half [rows, hidden]
    uint64_t starts;  // uint32 [sequences]
    uint64_t lengths; // uint32 [sequences]
    uint64_t y;       // half [rows, width * hidden]
    uint32_t max_length;
    uint32_t hidden;
    uint32_t width;
} UnfoldTokensArgs;

// ---- pooling/ ----

// Rows picked or averaged, see pooling/pooling.cu.
typedef struct PoolArgs {
    uint64_t x;       // half [*, width]
    uint64_t starts;  // uint32 [rows]: the row to pick, or the first to average
    uint64_t lengths; // uint32 [rows]: how many to average
    uint64_t y;       // [rows, width], half if picked, float if averaged
    uint32_t rows;
    uint32_t width;
    uint32_t normalise; // 1: divide each average by its Euclidean length
} PoolArgs;

// ---- sampling/ ----

// How one row's next token is drawn, see sampling/sample.cu.
typedef struct SampleParams {
    float temperature; // 0: the most likely token
    float top_p;       // in (0, 1]; 1 keeps all
    uint32_t top_k;    // 0 keeps all
    float draw;        // uniform in [0, 1)
} SampleParams;

// What one thread block found in its part of a row: the largest logit, the lowest id that has it, and the histogram's length.
typedef struct SamplePart {
    uint32_t order; // the logit, as an integer of the same order
    uint32_t id;
    uint32_t bins;  // bins from the largest logit's down to the lowest that is not empty
    uint32_t reserved;
} SamplePart;

// A bin of a part's histogram.
typedef struct SampleBin {
    uint32_t count;   // tokens
    uint32_t deficit; // what their masses lack
} SampleBin;

#define SAMPLE_SEGMENT 256 // tokens that a warp reads at once
#define SAMPLE_BINS 1024   // of a histogram: one for each thread of a block
#define SAMPLE_SHARED_BYTES 71680 // dynamic shared memory of a block

typedef struct SampleArgs {
    uint64_t logits;     // float [rows, vocabulary]
    uint64_t params;     // SampleParams [rows]
    uint64_t tokens;     // uint32 [rows]: receives the token drawn
    uint64_t positions;  // uint32 [rows]: each gains 1, or 0 for none
    uint64_t lengths;    // uint32 [rows]: each gains 1, or 0 for none
    uint64_t arrivals;   // uint32 [rows]: 0 before and after
    uint64_t parts;      // SamplePart [rows, parts_per_row]
    uint64_t segments;   // uint32 [rows, segments]: the order of each segment's largest logit
    uint64_t histograms; // SampleBin [rows, parts_per_row, SAMPLE_BINS]
    uint32_t rows;
    uint32_t vocabulary;
    uint32_t parts_per_row;
    uint32_t segments_per_part;
} SampleArgs;

// ---- bandwidth/ ----

// Reads device memory and does nothing with it, see bandwidth/read.cu.
typedef struct ReadBandwidthArgs {
    uint64_t source; // whole tiles
    uint64_t sink;   // uint32_t: written if one word read, or all folded to one, is `never`
    uint32_t never;
} ReadBandwidthArgs;

// The ring of read_bandwidth_bulk, bytes.
#define READ_BANDWIDTH_SHARED_BYTES 196608

// ---- random/ ----

// Random weights, see random/random.cu.
typedef struct RandomArgs {
    uint64_t y; // half
    uint64_t count;
    uint64_t columns;
    uint64_t stride; // elements from row to row
    uint64_t key;
    float half_width; // 0 for a constant
    float constant;
} RandomArgs;

