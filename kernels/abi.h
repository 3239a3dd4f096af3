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

// ---- norm/ ----

// ---- embedding/ ----

// ---- activation/ ----

// ---- sampling/ ----

