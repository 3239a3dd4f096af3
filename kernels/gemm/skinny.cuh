// GEMM for few rows of A (decoding: one row per sequence):  C[m, n] = epilogue(A[m, k] * B[n, k]^T), m <= 64
//
// Bound by reading B once, n * k * 2 bytes: what counts is bytes under way, at every moment, on every SM. So B never rests: each warp keeps two
// slots of 4 KiB of B on their way from DRAM into its registers, and asks for the next 4 KiB as soon as it has multiplied a slot, be that of the
// same tile or of the next. The sums of one tile are finished while the next tile's rows of B arrive. B holds weights, which no kernel writes, so the
// first slots are asked for even before the launches before this one have ended.
//
//                    one step = BLOCK_K columns of k, shared by WARPS_K warps
//                  +-----------+-----------+-- ... --+
//   B, COLUMNS rows|  warp 0   |  warp 1   |         |  ... next step ...        WARPS_N warps share out the rows, 16 at a time
//                  +-----------+-----------+-- ... --+
//   A, m rows      |  a stage of the ring in shared memory, read by all warps
//
// The tensor cores take B as the left operand (16 rows of B by 8 rows of A), so that 8 rows of A are not padded to 16. Which column of k an operand's
// register holds does not matter as long as both operands agree: lane (g, t) loads 8 adjacent columns 8t..8t+7 of row g, 16 bytes at once, and
// these serve as columns 2t, 2t+1, 2t+8, 2t+9 of two multiplications. So B goes from memory to the multiplication without being rearranged.
//
// Bits: the order of additions follows from k, from the kernel's shape (its warps' shares of k) and from `splits`; tile_columns, the grid and who
// takes which tile have no influence. Sums of the WARPS_K warps are added in the order of the warps, those of splits in the order of the splits.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "abi.h"
#include "elastic.cuh"
#include "gemm/epilogue.cuh"
#include "ptx/mma.cuh"

// ROWS of A in eights; COLUMNS of C in sixteens for each warp; K_STEPS: how many times 32 columns of k a slot holds.
template <int M_GROUPS_, int N_GROUPS_, int K_STEPS_, int WARPS_N_, int WARPS_K_, int STAGES_, int BLOCKS_PER_SM_>
struct SkinnyShape {
    static constexpr int M_GROUPS = M_GROUPS_, N_GROUPS = N_GROUPS_, K_STEPS = K_STEPS_;
    static constexpr int WARPS_N = WARPS_N_, WARPS_K = WARPS_K_, THREADS = 32 * WARPS_N * WARPS_K;
    static constexpr int ROWS = 8 * M_GROUPS, COLUMNS = 16 * N_GROUPS * WARPS_N;
    static constexpr int WARP_K = 32 * K_STEPS, BLOCK_K = WARP_K * WARPS_K;
    static constexpr int STAGES = STAGES_;
    static constexpr int BLOCKS_PER_SM = BLOCKS_PER_SM_;
    // Rows of A lie 64 bytes off a multiple of 128, so that two rows read at once meet no bank conflict.
    static constexpr int A_PITCH = 2 * BLOCK_K + 64, A_STAGE_BYTES = ROWS * A_PITCH;
    // 4 floats off a multiple of 16, for the same reason: lanes write 8 columns of 4 rows that are 2 apart.
    static constexpr int PARTIAL_PITCH = COLUMNS + 4;
    static constexpr int SHARED_BYTES = STAGES * A_STAGE_BYTES + WARPS_K * ROWS * PARTIAL_PITCH * 4;
};

// 16 bytes of a weight, which are read once by one warp; `target` keeps its value unless `wanted`.
__device__ __forceinline__ void load_weights(uint4 &target, const __half *source, bool wanted) {
    asm volatile(
        "{\n"
        ".reg .pred wanted;\n"
        "setp.ne.u32 wanted, %5, 0;\n"
        "@wanted ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        "}\n"
        : "+r"(target.x), "+r"(target.y), "+r"(target.z), "+r"(target.w)
        : "l"(source), "r"(static_cast<uint32_t>(wanted)));
}

__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
    uint4 words;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w) : "r"(address));
    return words;
}

// The sum of `parts` quads that lie `next` floats apart, in their order.
__device__ __forceinline__ float4 sum_of_parts(const float *part, uint32_t parts, uint32_t next) {
    float4 total = *reinterpret_cast<const float4 *>(part);
#pragma unroll 2
    while (--parts) {
        part += next;
        const float4 other = *reinterpret_cast<const float4 *>(part);
        total.x += other.x;
        total.y += other.y;
        total.z += other.z;
        total.w += other.w;
    }
    return total;
}

// Calls work(row, column) for each four columns of the tile, shared among the threads of the block.
template <typename Shape, typename Work>
__device__ __forceinline__ void for_each_quad(const SkinnyGemmArgs &args, Work work) {
    constexpr uint32_t QUADS = Shape::COLUMNS / 4;  // of a row
#pragma unroll 1
    for (uint32_t quad = threadIdx.x; quad < args.gemm.m * QUADS; quad += Shape::THREADS) {
        const uint32_t column = quad % QUADS * 4;
        if (column < args.tile_columns) work(quad / QUADS, column);
    }
}

template <typename Shape>
__device__ __forceinline__ void gemm_skinny(const SkinnyGemmArgs &args, const Tiles &tiles) {
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ uint32_t broadcast;
    constexpr uint32_t STAGES = Shape::STAGES, SLOTS = 2;
    const GemmArgs &gemm = args.gemm;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t warp_n = threadIdx.x / 32 % Shape::WARPS_N, warp_k = threadIdx.x / 32 / Shape::WARPS_N;
    const uint32_t steps = args.steps, unit_k = steps * Shape::BLOCK_K;
    const uint32_t no_unit = tiles.count;

    // ---- B: slots in registers ----
    uint4 weights[SLOTS][Shape::K_STEPS][Shape::N_GROUPS][2] = {};
    const __half *weights_source = nullptr;  // this lane's piece of the step that is asked for next
    uint32_t weights_k = 0;                  // its first column of k
    int32_t weights_rows = 0;                // rows from this lane's first to the end of the tile; none left below 1
    const auto seek = [&](uint32_t unit) {
        if (unit >= no_unit) {
            weights_rows = 0;
            return;
        }
        const uint32_t first = unit / args.splits * args.tile_columns, row = first + warp_n * 16 + g;
        weights_rows = static_cast<int32_t>(min(first + args.tile_columns, gemm.n)) - static_cast<int32_t>(row);
        weights_k = unit % args.splits * unit_k + warp_k * Shape::WARP_K + t * 8;
        weights_source = reinterpret_cast<const __half *>(gemm.b) + static_cast<uint64_t>(row) * gemm.ldb + weights_k;
    };
    const auto ask = [&](uint4(&slot)[Shape::K_STEPS][Shape::N_GROUPS][2]) {
        // Beyond k a product with what a slot held before could be NaN.
        if (weights_k + Shape::WARP_K > gemm.k) {
#pragma unroll
            for (int step = 0; step < Shape::K_STEPS; ++step) {
#pragma unroll
                for (int group = 0; group < Shape::N_GROUPS; ++group) slot[step][group][0] = slot[step][group][1] = make_uint4(0, 0, 0, 0);
            }
        }
#pragma unroll
        for (int group = 0; group < Shape::N_GROUPS; ++group) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = group * Shape::WARPS_N * 16 + half * 8;
                const __half *source = weights_source + static_cast<uint64_t>(row) * gemm.ldb;
#pragma unroll
                for (int step = 0; step < Shape::K_STEPS; ++step) {
                    load_weights(slot[step][group][half], source + step * 32, row < weights_rows && weights_k + step * 32 < gemm.k);
                }
            }
        }
        weights_k += Shape::BLOCK_K;
        weights_source += Shape::BLOCK_K;
    };

    // ---- A: a ring in shared memory, which keeps all of this unit's share of k if it fits ----
    const uint32_t a_ring = shared_address(shared);
    const bool resident = args.splits == 1 && steps <= STAGES;
    const uint32_t ring_stages = resident ? steps : STAGES;
    // How many steps copies run ahead: no further than into the next unit.
    const uint32_t lead = resident ? STAGES - 1 : min(STAGES - 1, steps);
    const auto copy_a = [&](uint32_t first_k, uint32_t stage) {
        constexpr uint32_t PIECES = Shape::BLOCK_K / 8;
        for (uint32_t piece = threadIdx.x; piece < gemm.m * PIECES; piece += Shape::THREADS) {
            const uint32_t row = piece / PIECES, column = piece % PIECES * 8, at = first_k + column;
            const __half *source = reinterpret_cast<const __half *>(gemm.a) + static_cast<uint64_t>(row) * gemm.lda + at;
            cp_async_16(a_ring + stage * Shape::A_STAGE_BYTES + row * Shape::A_PITCH + column * 2, source, at < gemm.k ? 16 : 0);
        }
    };
    // Rows beyond m hold whatever shared memory held before: they meet only sums that are not stored.
    const uint32_t a_fragments = a_ring + g * Shape::A_PITCH + (warp_k * Shape::WARP_K + t * 8) * 2;

    float *const partials = reinterpret_cast<float *>(shared + STAGES * Shape::A_STAGE_BYTES);

    // ---- units ----
    TileQueue queue(tiles);
    const bool strided = tiles.progress == 0;
    uint32_t unit = blockIdx.x;
    if (strided) {
        seek(unit);
        ask(weights[0]);
        ask(weights[1]);
        wait_for_earlier_launches();
    } else {
        wait_for_earlier_launches();
        if (threadIdx.x == 0 && !queue.take(broadcast)) broadcast = no_unit;
        __syncthreads();
        unit = broadcast;
        __syncthreads();
        seek(unit);
        ask(weights[0]);
        ask(weights[1]);
    }

    uint32_t stage = 0;
    if (unit < no_unit) {
        for (uint32_t ahead = 0; ahead < lead; ++ahead) {
            if (ahead < steps) copy_a(unit % args.splits * unit_k + ahead * Shape::BLOCK_K, ahead);
            cp_async_commit();
        }
    }
    bool first_unit = true;
    while (unit < no_unit) {
        uint32_t next = unit + gridDim.x;
        if (!strided && threadIdx.x == 0 && !queue.take(broadcast)) broadcast = no_unit;

        float sums[Shape::N_GROUPS][Shape::M_GROUPS][4] = {};
#pragma unroll 1
        for (uint32_t step = 0; step < steps; step += SLOTS) {
#pragma unroll
            for (uint32_t slot = 0; slot < SLOTS; ++slot) {
                if (lead == STAGES - 1) {
                    cp_async_wait<STAGES - 2>();
                } else {
                    cp_async_wait<0>();
                }
                // All threads' copies of this step have arrived, and all have read the stage that is filled next.
                __syncthreads();
                if (slot == 0) {
                    if (!strided && step == 0) next = broadcast;
                    if (step + SLOTS == steps) seek(next);
                }
                const uint32_t ahead = step + slot + lead;
                if (resident) {
                    if (first_unit && ahead < steps) copy_a(ahead * Shape::BLOCK_K, ahead);
                } else {
                    const uint32_t target = stage + lead < STAGES ? stage + lead : stage + lead - STAGES;
                    if (ahead < steps) {
                        copy_a(unit % args.splits * unit_k + ahead * Shape::BLOCK_K, target);
                    } else if (next < no_unit) {
                        copy_a(next % args.splits * unit_k + (ahead - steps) * Shape::BLOCK_K, target);
                    }
                }
                cp_async_commit();

                const uint32_t at = a_fragments + stage * Shape::A_STAGE_BYTES;
#pragma unroll
                for (int k = 0; k < Shape::K_STEPS; ++k) {
#pragma unroll
                    for (int i = 0; i < Shape::M_GROUPS; ++i) {
                        const uint4 a = load_shared_16(at + i * 8 * Shape::A_PITCH + k * 64);
#pragma unroll
                        for (int j = 0; j < Shape::N_GROUPS; ++j) {
                            const uint4 &low = weights[slot][k][j][0], &high = weights[slot][k][j][1];
                            const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
                            mma_m16n8k16(sums[j][i], first, a.x, a.y);
                            mma_m16n8k16(sums[j][i], second, a.z, a.w);
                        }
                    }
                }
                ask(weights[slot]);
                if (++stage == ring_stages) stage = 0;
            }
        }

        // The warps' partial sums meet in shared memory.
#pragma unroll
        for (int j = 0; j < Shape::N_GROUPS; ++j) {
#pragma unroll
            for (int i = 0; i < Shape::M_GROUPS; ++i) {
                float *target = partials + (warp_k * Shape::ROWS + i * 8 + t * 2) * Shape::PARTIAL_PITCH + (j * Shape::WARPS_N + warp_n) * 16 + g;
                target[0] = sums[j][i][0];
                target[Shape::PARTIAL_PITCH] = sums[j][i][1];
                target[8] = sums[j][i][2];
                target[Shape::PARTIAL_PITCH + 8] = sums[j][i][3];
            }
        }
        __syncthreads();
        const uint32_t tile = unit / args.splits;
        const float *part = partials;
        uint32_t parts = Shape::WARPS_K, pitch = Shape::PARTIAL_PITCH, next_part = Shape::ROWS * Shape::PARTIAL_PITCH;
        bool finishes = true;
        if (args.splits > 1) {
            // So do those of the splits in global memory. Whoever comes last finishes the tile, and leaves the count of arrivals at zero: atomicInc wraps.
            float *const unit_partials = reinterpret_cast<float *>(args.partials) + static_cast<uint64_t>(unit) * gemm.m * Shape::COLUMNS;
            for_each_quad<Shape>(args, [&](uint32_t row, uint32_t column) {
                const float4 total = sum_of_parts(part + row * pitch + column, parts, next_part);
                *reinterpret_cast<float4 *>(unit_partials + row * Shape::COLUMNS + column) = total;
            });
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0) broadcast = atomicInc(reinterpret_cast<uint32_t *>(args.arrivals) + tile, args.splits - 1);
            __syncthreads();
            finishes = broadcast == args.splits - 1;
            __threadfence();
            parts = args.splits, pitch = Shape::COLUMNS, next_part = gemm.m * Shape::COLUMNS;
            part = reinterpret_cast<const float *>(args.partials) + static_cast<uint64_t>(tile) * args.splits * next_part;
        }
        if (finishes) {
            for_each_quad<Shape>(args, [&](uint32_t row, uint32_t column) {
                const float4 total = sum_of_parts(part + row * pitch + column, parts, next_part);
                finish<ANY_EPILOGUE>(gemm, row, tile * args.tile_columns + column, total);
            });
        }
        if (args.splits > 1) __syncthreads();
        unit = next;
        first_unit = false;
    }
    if (!strided) {
        __syncthreads();
        if (threadIdx.x == 0) queue.leave();
    }
}

// Entry point gemm_skinny_<name>(SkinnyGemmArgs, Tiles) of one shape, for all epilogues: an epilogue is a few instructions once a tile.
#define GEMM_SKINNY_ENTRY(NAME, SHAPE)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(SHAPE::THREADS, SHAPE::BLOCKS_PER_SM)                                                       \
        gemm_skinny_##NAME(const __grid_constant__ SkinnyGemmArgs args, const __grid_constant__ Tiles tiles) {                                \
        gemm_skinny<SHAPE>(args, tiles);                                                                                                     \
    }
