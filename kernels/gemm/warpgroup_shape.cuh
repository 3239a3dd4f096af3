// The tiles of the Hopper GEMM (warpgroup.cuh): their shapes, and the shared memory and threads that follow from them.
#pragma once
#include "gemm/tile_board.cuh"

// A tile's shape and what follows from it. kernels/gemm/warpgroup.rs holds the same figures for the host.
template <int PAIR_, int BLOCK_M_, int BLOCK_N_, int K_BLOCKS_, int STAGES_, int CONSUMERS_, bool PING_PONG_ = false>
struct WarpgroupShape {
    static constexpr int PAIR = PAIR_;  // blocks that work together: 1 or 2
    static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = BLOCK_N_, STAGES = STAGES_, CONSUMERS = CONSUMERS_;
    static constexpr int K_BLOCKS = K_BLOCKS_;  // of 64 columns in a stage
    static constexpr bool PING_PONG = PING_PONG_;
    static constexpr int THREADS = 128 * (CONSUMERS + 1);
    static constexpr int SHARERS = PING_PONG ? 1 : CONSUMERS;    // consumers of one tile
    static constexpr int CONSUMER_M = BLOCK_M / SHARERS;         // rows of it that one of them has
    static constexpr int M_ATOMS = CONSUMER_M / 64;
    static constexpr int A_BYTES = BLOCK_M * 128, B_BYTES = BLOCK_N * 128, STAGE_BYTES = K_BLOCKS * (A_BYTES + B_BYTES);
    static constexpr int SLICE = BLOCK_N % 64 == 0 ? 64 : 32;  // columns of the product that leave together
    static constexpr int SLICE_BYTES = 64 * 128;               // room for 64 rows of at most 128 bytes
    static constexpr int STAGING_BYTES = CONSUMERS * 2 * SLICE_BYTES;
    static constexpr int BIAS_BYTES = CONSUMERS * BLOCK_N * 2;
    // Where things lie in shared memory, behind the stages: buffers of slices, biases, barriers, the board, word of this block's SM.
    static constexpr int STAGING = STAGES * STAGE_BYTES, BIASES = STAGING + STAGING_BYTES;
    static constexpr int FULL = BIASES + BIAS_BYTES, EMPTY = FULL + STAGES * 8;
    static constexpr int RESIDUAL_FULL = EMPTY + STAGES * 8, TURN = RESIDUAL_FULL + 2 * CONSUMERS * 8;
    static constexpr int BOARD = TURN + CONSUMERS * 8, ACQUAINTANCE = BOARD + TILE_BOARD_BYTES;
    // The first 1024 align the rest: swizzle patterns begin at multiples of it.
    static constexpr int SHARED_BYTES = 1024 + ACQUAINTANCE + ACQUAINTANCE_BYTES;
    // Registers move from the producer to the consumers where three warpgroups share an SM's 65536.
    static constexpr bool MOVES_REGISTERS = CONSUMERS == 2;
    static constexpr int BLOCKS_PER_SM = SHARED_BYTES > 113 * 1024 ? 1 : 2;
    static_assert(SHARED_BYTES <= 227 * 1024);
    static_assert(CONSUMER_M % 64 == 0 && BLOCK_N % 32 == 0 && BLOCK_N <= 256 && M_ATOMS * BLOCK_N <= 256);
};
