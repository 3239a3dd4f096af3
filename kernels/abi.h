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
} GemmArgs;

// What is done to a sum before it is stored. x = scale * sum + bias where there is a bias.
typedef enum GemmEpilogue {
    GEMM_PLAIN = 0,         // scale * sum
    GEMM_PLAIN_F32 = 1,     // scale * sum, stored as FP32
    GEMM_BIAS = 2,          // x
    GEMM_BIAS_GELU = 3,     // gelu(x) with the error function
    GEMM_BIAS_GELU_TANH = 4, // gelu(x) in its tanh approximation
    GEMM_BIAS_RELU = 5,     // max(x, 0)
    GEMM_RESIDUAL = 6,      // sum + residual
    GEMM_BIAS_RESIDUAL = 7, // x + residual
    GEMM_SILU_GATE = 8      // columns 2i and 2i + 1 are gate and up: C[., i] = silu(gate) * up
} GemmEpilogue;

// ---- attention/ ----

// ---- norm/ ----

// ---- embedding/ ----

// ---- activation/ ----

// ---- sampling/ ----

