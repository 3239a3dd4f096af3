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

// Where one chain of launches counts its tiles; see elastic.cuh for who writes what. All zero before the first launch.
typedef struct TileProgress {
    unsigned long long taken;
    uint32_t finished;
    uint32_t departed;
} TileProgress;

// Every kernel's second parameter. The runtime crate's TilesArg is the same struct.
typedef struct Tiles {
    uint64_t progress; // TileProgress*; 0 for a launch that is not elastic
    uint64_t grant;    // one bit per SM in %smid order; 0 where every SM is granted
    uint32_t count;    // tiles to be done
    uint32_t joins;    // 0 for the owner; 1 + epoch for a joiner
} Tiles;

// ---- elastic_probe.cu ----

// What the tests of elastic.cuh observe: how often each tile was done, and where.
typedef struct ElasticProbeArgs {
    uint64_t executions; // uint32_t[tiles], counted up
    uint64_t sms;        // uint32_t[tiles], the %smid that did the tile last
    uint32_t cycles;     // how long a tile takes
} ElasticProbeArgs;

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

// A GEMM of few rows, cut into units: `tile_columns` columns of C, and of k one of `splits` shares. See gemm/skinny.cuh.
typedef struct SkinnyGemmArgs {
    TensorMap b_map;       // of B, in tiles of a warp's rows (an eighth to all of tile_columns) by 64
    GemmArgs gemm;
    uint64_t partials;     // float[units][m][tile_columns]; not used where splits is 1
    uint64_t arrivals;     // uint32_t[tiles], all zero before and after; not used where splits is 1
    uint32_t tile_columns; // a multiple of 8 for each warp that shares them out
    uint32_t splits;
    uint32_t steps;        // of one unit, each as many columns of k as a block takes at once
} SkinnyGemmArgs;

// Dynamic shared memory of the skinny GEMMs, bytes; the device code asserts that it is what they use.
#define SKINNY_GEMM_8X16_SHARED_BYTES 102912
#define SKINNY_GEMM_8X32_SHARED_BYTES 104960
#define SKINNY_GEMM_16X64_SHARED_BYTES 201728
#define SKINNY_GEMM_32X128_SHARED_BYTES 221184

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

// One query row per sequence, against the keys and values of the sequence's cache.
typedef struct AttentionDecodeArgs {
    uint64_t qkv;     // f16 [sequences, qkv_stride], of which only the query heads are read
    uint64_t k_cache; // f16 [sequences, kv_heads, capacity, head_dim]
    uint64_t v_cache; // the same
    uint64_t output;  // f16 [sequences, output_stride]
    uint64_t lengths; // u32 [sequences], valid positions of each cache, the query's own included
    uint32_t sequences;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t capacity;
    uint32_t qkv_stride;
    uint32_t output_stride;
    uint32_t window; // as in AttentionPrefillArgs
    float scale;     // as in AttentionPrefillArgs
} AttentionDecodeArgs;

// Dynamic shared memory of the attention kernels, bytes; the device code asserts that it is what they use.
#define ATTENTION_PREFILL_D32_SHARED_BYTES 20496
#define ATTENTION_PREFILL_D64_SHARED_BYTES 36880
#define ATTENTION_PREFILL_D80_SHARED_BYTES 45072
#define ATTENTION_PREFILL_D96_SHARED_BYTES 53264
#define ATTENTION_PREFILL_D128_SHARED_BYTES 69648
#define ATTENTION_PREFILL_D256_SHARED_BYTES 101376
#define ATTENTION_DECODE_D32_SHARED_BYTES 42240
#define ATTENTION_DECODE_D64_SHARED_BYTES 76032
#define ATTENTION_DECODE_D80_SHARED_BYTES 92928
#define ATTENTION_DECODE_D96_SHARED_BYTES 109824
#define ATTENTION_DECODE_D128_SHARED_BYTES 143616
#define ATTENTION_DECODE_D256_SHARED_BYTES 143616

// Rotates query and key heads in place, and copies the rotated keys and the values to the cache where there is one.
typedef struct RotaryArgs {
    uint64_t qkv;                 // f16 [rows, qkv_stride]
    uint64_t positions;           // u32 [rows]
    uint64_t inverse_frequencies; // f32 [head_dim / 2]
    uint64_t k_cache;             // f16 [sequences, kv_heads, capacity, head_dim], or 0
    uint64_t v_cache;             // the same
    uint64_t sequence_of;         // u32 [rows]: the cache that a row belongs to; not read without a cache
    uint32_t rows;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t capacity;
    uint32_t qkv_stride;
} RotaryArgs;

// ---- norm/ ----

// Layer norm and RMS norm, see norm/norm.cu.
typedef struct NormArgs {
    uint64_t x;        // half [rows, width]
    uint64_t residual; // half [rows, width], or 0
    uint64_t sum;      // half [rows, width]: receives x + residual, or 0
    uint64_t weight;   // half [width]
    uint64_t bias;     // half [width]; RMS norm has none
    uint64_t y;        // half [rows, width]
    uint32_t rows;
    uint32_t width;
    float epsilon;
} NormArgs;

// ---- embedding/ ----

// Token embeddings, see embedding/embedding.cu.
typedef struct EmbedArgs {
    uint64_t ids;            // uint32 [rows]
    uint64_t words;          // half [vocabulary, width]
    uint64_t positions;      // uint32 [rows]; BERT only, as all below to epsilon
    uint64_t position_table; // half [max_positions, width]
    uint64_t type_table;     // half [*, width], whose row 0 is added; or 0
    uint64_t weight;         // half [width]
    uint64_t bias;           // half [width]
    uint64_t y;              // half [rows, width]
    uint32_t rows;
    uint32_t width;
    uint32_t vocabulary;
    uint32_t max_positions;
    float epsilon;
} EmbedArgs;

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

typedef struct SampleArgs {
    uint64_t logits;  // float [rows, vocabulary]
    uint64_t params;  // SampleParams [rows]
    uint64_t tokens;  // uint32 [rows]: receives the token drawn
    uint64_t positions; // uint32 [rows]: each gains 1, or 0 for none
    uint64_t lengths;   // uint32 [rows]: each gains 1, or 0 for none
    uint32_t rows;
    uint32_t vocabulary;
} SampleArgs;

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

