// The structs that cross from Rust to the kernels, by value. Device addresses are 64-bit integers, so that both sides agree on their size;
// shapes are counted in elements unless a name says bytes. The Rust side, kernels/abi.rs, is generated from this file (`cargo xtask abi`).
#pragma once
#include <stdint.h>

// Where one chain of launches counts its tiles; see elastic.cuh for who writes what. All zero before the first launch.
typedef struct TileProgress {
    unsigned long long taken;
    uint32_t finished;
    uint32_t departed;
} TileProgress;

// Every kernel's second parameter. The runtime crate's TilesArg is the same struct.
typedef struct Tiles {
    uint64_t progress; // TileProgress*
    uint64_t grant;    // one bit per SM in %smid order; 0 where every SM is granted
    uint32_t count;    // tiles to be done
    uint32_t joins;    // 0 for the owner; 1 + epoch for a joiner
} Tiles;

// ---- gemm/ ----

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

// ---- embedding/ ----

// ---- activation/ ----

// ---- sampling/ ----

