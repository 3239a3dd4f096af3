// GEMM for few rows of A (decoding: one row per sequence):  C[m, n] = epilogue(A[m, k] * B[n, k]^T), m <= 64
//
// Bound by reading B once, n * k * 2 bytes: what counts is bytes under way. One block computes BLOCK_N columns of C for all m rows. Its four warps
// share out k in chunks of 64, warp w taking chunks w, w + 4, ..., and each runs a pipeline of its own with no barrier between warps:
//
//          k ->   warp 0  1  2  3  0  1  2  3 ...
//   B  BLOCK_N  [  64 | 64 | 64 | 64 | 64 ...  ]  --->  each warp: STAGES buffers of its chunks of A and B
//   A  m        [  64 | 64 | 64 | 64 | 64 ...  ]
//
// In the end the warps' partial sums meet in shared memory and are added in the order of the warps. The order of all additions follows from k
// alone, not from the SM count; it differs from the tiled kernels', so which kernel does a problem is decided by the problem's shape alone.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "abi.h"
#include "elastic.cuh"
#include "gemm/epilogue.cuh"
#include "ptx/mma.cuh"

template <int M_TILES_, int BLOCK_N_, int STAGES_, int BLOCKS_PER_SM_>
struct SkinnyShape {
    static constexpr int M_TILES = M_TILES_;  // of 16 rows of A
    static constexpr int BLOCK_M = 16 * M_TILES, BLOCK_N = BLOCK_N_;
    static constexpr int STAGES = STAGES_;
    static constexpr int BLOCKS_PER_SM = BLOCKS_PER_SM_;
    static constexpr int WARPS = 4, THREADS = 32 * WARPS;
    static constexpr int A_BYTES = BLOCK_M * 128, B_BYTES = BLOCK_N * 128, STAGE_BYTES = A_BYTES + B_BYTES;
    static constexpr int WARP_BYTES = STAGES * STAGE_BYTES;
    static constexpr int SHARED_BYTES = WARPS * WARP_BYTES;
    static constexpr int PARTIAL_PITCH = BLOCK_N + 8;  // floats; 8 more than needed, against bank conflicts
    static_assert(BLOCK_M * PARTIAL_PITCH * 4 <= WARP_BYTES, "partial sums reuse the pipeline's memory");
};

template <typename Shape, int EPILOGUE>
__device__ __forceinline__ void gemm_skinny(const GemmArgs &args, const Tiles &tiles) {
    extern __shared__ __align__(128) uint8_t pipelines[];
    constexpr int STAGES = Shape::STAGES, M_TILES = Shape::M_TILES, N_TILES = Shape::BLOCK_N / 8;
    constexpr uint32_t CHUNK_K = 64;

    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t ring = shared_address(pipelines) + warp * Shape::WARP_BYTES;
    const uint32_t chunks = (args.k + CHUNK_K - 1) / CHUNK_K;
    const uint32_t steps = (chunks + Shape::WARPS - 1 - warp) / Shape::WARPS;  // this warp's chunks

    // Copies: eight lanes a row of 128 bytes, four rows at once.
    const uint32_t copy_row = lane / 8, copy_col = lane % 8 * 8;
    // Fragments: as in tiled.cuh.
    const uint32_t a_rows = lane % 16 * 128;
    const uint32_t a_chunk = (lane / 16 ^ lane % 8) << 4;
    const uint32_t b_rows = Shape::A_BYTES + (lane % 8 + lane / 16 * 8) * 128;
    const uint32_t b_chunk = (lane / 8 % 2 ^ lane % 8) << 4;

    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint32_t first_col = tile * Shape::BLOCK_N;

        const __half *a_source = reinterpret_cast<const __half *>(args.a) + static_cast<uint64_t>(copy_row) * args.lda + copy_col;
        const __half *b_source = reinterpret_cast<const __half *>(args.b) + static_cast<uint64_t>(first_col + copy_row) * args.ldb + copy_col;

        const auto fill = [&](uint32_t step) {
            if (step < steps) {
                const uint32_t stage = ring + step % STAGES * Shape::STAGE_BYTES;
                const uint32_t at = (step * Shape::WARPS + warp) * CHUNK_K;
                const uint32_t valid_bytes = at + copy_col < args.k ? min(args.k - at - copy_col, 8u) * 2 : 0;
                // Four rows at a time: fully unrolled, the addresses of all rows would be kept in registers, and spilled.
                const __half *source = b_source + at;
#pragma unroll 4
                for (uint32_t row = copy_row; row < Shape::BLOCK_N + copy_row; row += 4, source += 4 * static_cast<uint64_t>(args.ldb)) {
                    cp_async_16(stage + Shape::A_BYTES + swizzled_128(row, lane % 8), source, first_col + row < args.n ? valid_bytes : 0);
                }
                source = a_source + at;
#pragma unroll 4
                for (uint32_t row = copy_row; row < Shape::BLOCK_M + copy_row; row += 4, source += 4 * static_cast<uint64_t>(args.lda)) {
                    cp_async_16(stage + swizzled_128(row, lane % 8), source, row < args.m ? valid_bytes : 0);
                }
            }
            // A group for each step, also for those beyond k, so that counting groups counts steps.
            cp_async_commit();
        };

        float sums[M_TILES][N_TILES][4] = {};
#pragma unroll 1
        for (uint32_t step = 0; step < STAGES - 1; ++step) fill(step);
#pragma unroll 1
        for (uint32_t step = 0; step < steps; ++step) {
            cp_async_wait<STAGES - 2>();
            // All lanes' copies of this step have arrived, and all lanes have read the stage that is filled next.
            __syncwarp();
            fill(step + STAGES - 1);
            const uint32_t stage = ring + step % STAGES * Shape::STAGE_BYTES;
#pragma unroll
            for (uint32_t slice = 0; slice < CHUNK_K / 16; ++slice) {
                uint32_t a[M_TILES][4], b[N_TILES / 2][4];
#pragma unroll
                for (int i = 0; i < M_TILES; ++i) ldmatrix_x4(a[i], stage + a_rows + i * 16 * 128 + (a_chunk ^ slice << 5));
#pragma unroll
                for (int j = 0; j < N_TILES / 2; ++j) ldmatrix_x4(b[j], stage + b_rows + j * 16 * 128 + (b_chunk ^ slice << 5));
#pragma unroll
                for (int i = 0; i < M_TILES; ++i) {
#pragma unroll
                    for (int j = 0; j < N_TILES; ++j) mma_m16n8k16(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }

        // Each warp's partial sums replace its own pipeline.
        __syncwarp();
        float *partial = reinterpret_cast<float *>(pipelines + warp * Shape::WARP_BYTES);
#pragma unroll
        for (int i = 0; i < M_TILES; ++i) {
#pragma unroll
            for (int j = 0; j < N_TILES; ++j) {
                float *target = partial + (i * 16 + lane / 4) * Shape::PARTIAL_PITCH + j * 8 + lane % 4 * 2;
                *reinterpret_cast<float2 *>(target) = make_float2(sums[i][j][0], sums[i][j][1]);
                *reinterpret_cast<float2 *>(target + 8 * Shape::PARTIAL_PITCH) = make_float2(sums[i][j][2], sums[i][j][3]);
            }
        }
        __syncthreads();
        constexpr uint32_t QUADS_PER_ROW = Shape::BLOCK_N / 4;
        for (uint32_t quad = threadIdx.x; quad < Shape::BLOCK_M * QUADS_PER_ROW; quad += Shape::THREADS) {
            const uint32_t row = quad / QUADS_PER_ROW, col = quad % QUADS_PER_ROW * 4;
            const uint8_t *part = pipelines + (row * Shape::PARTIAL_PITCH + col) * sizeof(float);
            float4 total = *reinterpret_cast<const float4 *>(part);
#pragma unroll
            for (int other = 1; other < Shape::WARPS; ++other) {
                const float4 four = *reinterpret_cast<const float4 *>(part + other * Shape::WARP_BYTES);
                total.x += four.x;
                total.y += four.y;
                total.z += four.z;
                total.w += four.w;
            }
            finish<EPILOGUE>(args, row, first_col + col, total);
        }
    }
}

// Entry points gemm_skinny_<rows>_<epilogue>(GemmArgs, Tiles) of one shape.
#define GEMM_SKINNY_ENTRY(ROWS, SHAPE, NAME, EPILOGUE)                                                                                       \
    extern "C" __global__ void __launch_bounds__(SHAPE::THREADS, SHAPE::BLOCKS_PER_SM)                                                       \
        gemm_skinny_##ROWS##_##NAME(const __grid_constant__ GemmArgs args, const __grid_constant__ Tiles tiles) {                             \
        gemm_skinny<SHAPE, EPILOGUE>(args, tiles);                                                                                           \
    }

#define GEMM_SKINNY_ENTRIES(ROWS, SHAPE)                                                                                                     \
    GEMM_SKINNY_ENTRY(ROWS, SHAPE, none, GEMM_NONE)                                                                                         \
    GEMM_SKINNY_ENTRY(ROWS, SHAPE, f32, GEMM_F32)                                                                                      \
    GEMM_SKINNY_ENTRY(ROWS, SHAPE, bias, GEMM_BIAS)                                                                                          \
    GEMM_SKINNY_ENTRY(ROWS, SHAPE, bias_gelu, GEMM_BIAS_GELU)                                                                                \
    GEMM_SKINNY_ENTRY(ROWS, SHAPE, bias_gelu_tanh, GEMM_BIAS_GELU_TANH)                                                                      \
    GEMM_SKINNY_ENTRY(ROWS, SHAPE, bias_relu, GEMM_BIAS_RELU)                                                                                \
    GEMM_SKINNY_ENTRY(ROWS, SHAPE, residual, GEMM_RESIDUAL)                                                                                  \
    GEMM_SKINNY_ENTRY(ROWS, SHAPE, bias_residual, GEMM_BIAS_RESIDUAL)                                                                        \
    GEMM_SKINNY_ENTRY(ROWS, SHAPE, silu_gate, GEMM_SILU_GATE)
