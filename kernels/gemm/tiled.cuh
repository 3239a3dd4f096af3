// Tiled GEMM for tensor cores:  C[m, n] = epilogue(A[m, k] * B[n, k]^T)
//   A, B: FP16, row-major, so that both are read along k; sums in FP32; C: FP16 or FP32, row-major.
//
// One block computes one BLOCK_M x BLOCK_N tile of C at a time. It walks along k in steps of 64: a ring of STAGES buffers in shared memory is
// filled by asynchronous copies two and more steps ahead, and each warp multiplies its WARP_M x WARP_N part of the tile from it.
//
//            k ->                        shared memory, one stage                registers of one warp
//   A  [#####....]  BLOCK_M rows  --->  [BLOCK_M][64] halves, swizzled  --->   M_TILES fragments of 16 x 16
//   B  [#####....]  BLOCK_N rows  --->  [BLOCK_N][64] halves, swizzled  --->   N_TILES fragments of 16 x 8   --->   sums
//
// Bits: every element of C is the sum of its k / 16 m16n8k16 products in the order of k, starting from 0, whatever the tile's shape. Ends of k are
// filled with zeros up to a multiple of 64 by every shape. So the choice of the shape, and with it the SM count, never changes a bit.
//
// Bound: tensor cores where a block's tile is large; below that shared-memory reads, (WARP_M + WARP_N) * 32 bytes for WARP_M * WARP_N * 16
// multiply-adds: 64 x 64 warp tiles need half of the 128 bytes per cycle that an SM has, 32 x 32 all of it.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "abi.h"
#include "elastic.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/tile_order.cuh"
#include "ptx/mma.cuh"

constexpr int BLOCK_K = 64;  // halves: 128 bytes, the swizzle's row and the L2's line

// A tile's shape and what follows from it. kernels/gemm/variant.rs holds the same figures for the host.
template <int BLOCK_M_, int BLOCK_N_, int WARPS_M_, int WARPS_N_, int STAGES_, int BLOCKS_PER_SM_>
struct TileShape {
    static constexpr int BLOCK_M = BLOCK_M_, BLOCK_N = BLOCK_N_;
    static constexpr int WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
    static constexpr int STAGES = STAGES_;
    static constexpr int BLOCKS_PER_SM = BLOCKS_PER_SM_;
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int WARP_M = BLOCK_M / WARPS_M, WARP_N = BLOCK_N / WARPS_N;
    static constexpr int M_TILES = WARP_M / 16, N_TILES = WARP_N / 8;
    static constexpr int A_BYTES = BLOCK_M * 128, B_BYTES = BLOCK_N * 128, STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;
    // Rows of the staging area that turns accumulator fragments into rows of C, in floats; 8 more than needed, against bank conflicts.
    static constexpr int STAGING_PITCH = WARP_N + 8;
    static_assert(WARPS_M * WARPS_N * WARP_M * STAGING_PITCH * 4 <= SHARED_BYTES, "staging reuses the pipeline's memory");
};

// One operand's way from global to shared memory: ROWS rows of 64 halves a stage, 16 bytes a copy, eight threads a row.
template <int ROWS, int THREADS, bool ALIGNED>
class OperandCopy {
  public:
    static constexpr int ROWS_PER_PASS = THREADS / 8;
    static constexpr int PASSES = ROWS / ROWS_PER_PASS;
    static_assert(PASSES % 4 == 0, "a stage's copies are issued in four equal parts");

    // Rows `first_row` and on of a matrix of `rows` rows.
    __device__ OperandCopy(uint64_t matrix, uint32_t rows, uint32_t stride, uint32_t first_row) : stride_(stride) {
        const uint32_t row = first_row + threadIdx.x / 8;
        rows_left_ = row < rows ? rows - row : 0;
        source_ = reinterpret_cast<const __half *>(matrix) + static_cast<uint64_t>(row) * stride + threadIdx.x % 8 * 8;
        target_ = swizzled_128(threadIdx.x / 8, threadIdx.x % 8);
    }

    // Issues quarter `part` of the copies of step `step` into the stage at `stage`. Of this thread's 8 columns `columns` lie before k.
    __device__ __forceinline__ void issue(int part, uint32_t step, uint32_t columns, uint32_t stage) const {
        const __half *source = source_ + static_cast<uint64_t>(step) * BLOCK_K;
#pragma unroll
        for (int i = 0; i < PASSES / 4; ++i) {
            const uint32_t row = (part * (PASSES / 4) + i) * ROWS_PER_PASS;
            // Rows beyond the matrix become zeros: they are multiplied like the others and never stored.
            const uint32_t valid = row < rows_left_ ? columns : 0;
            if (ALIGNED) {
                cp_async_16(stage + target_ + row * 128, source + static_cast<uint64_t>(row) * stride_, valid * 2);
            } else {
                copy_by_halves(stage + target_ + row * 128, source + static_cast<uint64_t>(row) * stride_, valid);
            }
        }
    }

  private:
    // For rows that do not begin on 16 bytes: plain loads, each as wide as a half.
    static __device__ __forceinline__ void copy_by_halves(uint32_t target, const __half *source, uint32_t valid) {
        uint32_t pairs[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t low = 2 * i < valid ? __half_as_ushort(source[2 * i]) : 0;
            const uint32_t high = 2 * i + 1 < valid ? __half_as_ushort(source[2 * i + 1]) : 0;
            pairs[i] = low | high << 16;
        }
        store_shared_16(target, pairs);
    }

    const __half *source_;  // this thread's first 8 halves of step 0
    uint32_t stride_;
    uint32_t rows_left_;    // rows of the matrix from this thread's first one on
    uint32_t target_;       // where its first 8 halves go within a stage, bytes
};

template <typename Shape, int EPILOGUE, bool ALIGNED>
__device__ __forceinline__ void gemm_tiled(const GemmArgs &args, const Tiles &tiles) {
    extern __shared__ __align__(128) uint8_t pipeline[];
    constexpr int STAGES = Shape::STAGES, M_TILES = Shape::M_TILES, N_TILES = Shape::N_TILES;

    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t warp_row = warp / Shape::WARPS_N * Shape::WARP_M;
    const uint32_t warp_col = warp % Shape::WARPS_N * Shape::WARP_N;

    // Where this lane's ldmatrix rows begin within a stage: A's four matrices are (rows 0-7, rows 8-15) x (k 0-7, k 8-15) with rows first,
    // B's are two neighbours along n with k first. Both rows are a multiple of 8 plus lane % 8, so one swizzle serves all fragments.
    const uint32_t a_rows = (warp_row + lane % 16) * 128;
    const uint32_t a_chunk = (lane / 16 ^ lane % 8) << 4;
    const uint32_t b_rows = Shape::A_BYTES + (warp_col + lane % 8 + lane / 16 * 8) * 128;
    const uint32_t b_chunk = (lane / 8 % 2 ^ lane % 8) << 4;

    const uint32_t ring = shared_address(pipeline);
    const uint32_t steps = (args.k + BLOCK_K - 1) / BLOCK_K;

    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const TileOrigin origin = TileOrigin::of(tile, args, Shape::BLOCK_M, Shape::BLOCK_N);
        const OperandCopy<Shape::BLOCK_M, Shape::THREADS, ALIGNED> copy_a(args.a, args.m, args.lda, origin.row);
        const OperandCopy<Shape::BLOCK_N, Shape::THREADS, ALIGNED> copy_b(args.b, args.n, args.ldb, origin.col);
        const auto fill = [&](int part, uint32_t step, uint32_t stage) {
            if (step >= steps) return;
            const uint32_t column = step * BLOCK_K + threadIdx.x % 8 * 8;
            const uint32_t columns = column < args.k ? min(args.k - column, 8u) : 0;
            copy_a.issue(part, step, columns, stage);
            copy_b.issue(part, step, columns, stage + Shape::A_BYTES);
        };

        // Fill all stages but one, and begin with the last. A group is committed for each stage, also for those beyond k, so that counting
        // groups counts stages.
#pragma unroll
        for (uint32_t step = 0; step < STAGES - 1; ++step) {
#pragma unroll
            for (int part = 0; part < 4; ++part) fill(part, step, ring + step * Shape::STAGE_BYTES);
            cp_async_commit();
        }
        fill(0, STAGES - 1, ring + (STAGES - 1) * Shape::STAGE_BYTES);
        cp_async_wait<STAGES - 2>();
        __syncthreads();

        // Two sets of fragments: while one is multiplied, the next k16 slice is read into the other.
        uint32_t a[2][M_TILES][4], b[2][N_TILES / 2][4];
        const auto read_fragments = [&](int set, uint32_t stage, uint32_t slice) {
#pragma unroll
            for (int i = 0; i < M_TILES; ++i) ldmatrix_x4(a[set][i], stage + a_rows + i * 16 * 128 + (a_chunk ^ slice << 5));
#pragma unroll
            for (int j = 0; j < N_TILES / 2; ++j) ldmatrix_x4(b[set][j], stage + b_rows + j * 16 * 128 + (b_chunk ^ slice << 5));
        };

        float sums[M_TILES][N_TILES][4] = {};
        uint32_t reading = ring;                                       // stage being multiplied
        uint32_t filling = ring + (STAGES - 1) * Shape::STAGE_BYTES;   // stage being filled: the one multiplied a step ago
        read_fragments(0, reading, 0);
        for (uint32_t step = 0; step < steps; ++step) {
#pragma unroll
            for (int slice = 0; slice < BLOCK_K / 16; ++slice) {
                constexpr int LAST = BLOCK_K / 16 - 1;
                if (slice == LAST) {
                    // The last slice is in registers: after this barrier the stage is free, and the next one has arrived for every thread.
                    cp_async_commit();
                    cp_async_wait<STAGES - 2>();
                    __syncthreads();
                    filling = reading;
                    reading = reading == ring + (STAGES - 1) * Shape::STAGE_BYTES ? ring : reading + Shape::STAGE_BYTES;
                }
                // After the last step this reads a slice that nobody multiplies, from memory that is there all the same.
                read_fragments((slice + 1) % 2, reading, (slice + 1) % (LAST + 1));
                // A quarter of the copies in each slice, beginning where the stage becomes free.
                fill((slice + 1) % (LAST + 1), step + STAGES - 1 + slice / LAST, filling);
#pragma unroll
                for (int i = 0; i < M_TILES; ++i) {
#pragma unroll
                    for (int j = 0; j < N_TILES; ++j) {
                        mma_m16n8k16(sums[i][j], a[slice % 2][i], b[slice % 2][j / 2][j % 2 * 2], b[slice % 2][j / 2][j % 2 * 2 + 1]);
                    }
                }
            }
        }

        // The slice read last, which nobody multiplies, was still the pipeline's: its memory is free after this barrier. Each warp passes its
        // sums through a part of its own, so that memory sees whole rows instead of fragments, and so that the sums leave their registers
        // before the epilogue needs some.
        __syncthreads();
        float *staging = reinterpret_cast<float *>(pipeline) + warp * Shape::WARP_M * Shape::STAGING_PITCH;
#pragma unroll
        for (int i = 0; i < M_TILES; ++i) {
#pragma unroll
            for (int j = 0; j < N_TILES; ++j) {
                float *target = staging + (i * 16 + lane / 4) * Shape::STAGING_PITCH + j * 8 + lane % 4 * 2;
                *reinterpret_cast<float2 *>(target) = make_float2(sums[i][j][0], sums[i][j][1]);
                *reinterpret_cast<float2 *>(target + 8 * Shape::STAGING_PITCH) = make_float2(sums[i][j][2], sums[i][j][3]);
            }
        }
        __syncwarp();
        constexpr uint32_t QUADS_PER_ROW = Shape::WARP_N / 4;
#pragma unroll 4
        for (uint32_t pass = 0; pass < Shape::WARP_M * QUADS_PER_ROW / 32; ++pass) {
            const uint32_t quad = pass * 32 + lane;
            const uint32_t row = quad / QUADS_PER_ROW, col = quad % QUADS_PER_ROW * 4;
            const float4 four = *reinterpret_cast<const float4 *>(staging + row * Shape::STAGING_PITCH + col);
            finish<EPILOGUE>(args, origin.row + warp_row + row, origin.col + warp_col + col, four);
        }
    }
}

// Entry points gemm_<TILE>_<epilogue>(GemmArgs, Tiles) of one tile shape.
#define GEMM_TILED_ENTRY(TILE, SHAPE, NAME, EPILOGUE)                                                                                        \
    extern "C" __global__ void __launch_bounds__(SHAPE::THREADS, SHAPE::BLOCKS_PER_SM)                                                       \
        gemm_##TILE##_##NAME(const __grid_constant__ GemmArgs args, const __grid_constant__ Tiles tiles) {                                    \
        gemm_tiled<SHAPE, EPILOGUE, true>(args, tiles);                                                                                      \
    }

#define GEMM_TILED_ENTRIES(TILE, SHAPE) GEMM_WITH_EACH_EPILOGUE(GEMM_TILED_ENTRY, TILE, SHAPE)
