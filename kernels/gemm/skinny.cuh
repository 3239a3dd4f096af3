// GEMM for few rows of A (decoding: one row per sequence):  C[m, n] = epilogue(A[m, k] * B[n, k]^T), for Hopper
//
// Bound by reading B once, n * k * 2 bytes: what counts is bytes under way, at every moment, on every SM. So B never rests: each warp has a ring of slots in
// shared memory, which the copy engine fills with the next 64 columns of the warp's rows of B as soon as a slot has been multiplied, be they of
// the same tile or of the next. The sums of one tile are finished while the next tile's rows arrive. B holds weights, which no kernel writes, so
// the first slots are asked for even before the launches before this one have ended.
//
//                    one step = STEP_K columns of k, shared by WARPS_K warps
//                  +-----------+-----------+-- ... --+
//   B, COLUMNS rows|  warp 0   |  warp 1   |         |  ... next step ...        WARPS_N warps share out the rows
//                  +-----------+-----------+-- ... --+
//   A, m rows      |  part of a stage of a ring in shared memory, read by all warps
//
// Copies by the threads themselves (cp.async, or loads to registers) do as well on 132 SMs; on 32, where each SM must take in 100 GB/s, they did worse,
// perhaps because reads of shared memory wait behind them in the load unit. The copy engine has a path of its own.
//
// Which column of k an operand's register holds does not matter as long as both operands agree: lane (g, t) reads 8 adjacent columns 8t..8t+7 of row g,
// 16 bytes at once, and these serve as columns 2t, 2t+1, 2t+8, 2t+9 of two multiplications. Nor does it matter which row of B is which column of a
// product: g stands for row 4 * (g % 2) + g / 2 of eight, so that the 16-byte pieces that eight lanes read at once, swizzled by their row's number
// in 128 bytes, lie in different banks.
//
// Bits: the order of additions follows from k, from the kernel's shape (its warps' shares of k) and from `splits`; tile_columns, the grid and who
// takes which tile have no influence. Sums of the WARPS_K warps are added in the order of the warps, those of splits in the order of the splits.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "abi.h"
#include "elastic.cuh"
#include "gemm/epilogue.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma.cuh"
#include "ptx/tma.cuh"

// ROWS of A come in sixteens (the lower half alone where m is at most 8), COLUMNS of C in eights for each warp. A slot holds 64 columns of k of a warp's
// rows of B; a stage of the ring of A serves STAGE_STEPS steps, each of which multiplies one slot of each warp.
template <int ROWS_, int N_GROUPS_, int WARPS_N_, int WARPS_K_, int SLOTS_, int STAGE_STEPS_, int STAGES_, int BLOCKS_PER_SM_>
struct SkinnyShape {
    static constexpr int ROWS = ROWS_, M_GROUPS = (ROWS + 15) / 16, N_GROUPS = N_GROUPS_, SLOTS = SLOTS_;
    static constexpr int WARPS_N = WARPS_N_, WARPS_K = WARPS_K_, WARPS = WARPS_N * WARPS_K, THREADS = 32 * WARPS;
    static constexpr int WARP_COLUMNS = 8 * N_GROUPS, COLUMNS = WARP_COLUMNS * WARPS_N;
    static constexpr int SLOT_K = 64, STEP_K = SLOT_K * WARPS_K, STAGE_STEPS = STAGE_STEPS_, STAGE_K = STEP_K * STAGE_STEPS;
    static constexpr int STAGES = STAGES_;
    static constexpr int BLOCKS_PER_SM = BLOCKS_PER_SM_;
    // Rows of A lie 64 bytes off a multiple of 128, so that two rows read at once meet no bank conflict.
    static constexpr int A_PITCH = 2 * STAGE_K + 64, A_STAGE_BYTES = ROWS * A_PITCH;
    static constexpr int PARTIAL_PITCH = COLUMNS + 4;
    static constexpr int PARTIAL_BYTES = WARPS_K * ROWS * PARTIAL_PITCH * 4;
    static constexpr int SLOT_BYTES = WARP_COLUMNS * SLOT_K * 2;
    static constexpr int B_BYTES = WARPS * SLOTS * SLOT_BYTES;
    // Slots begin on 1024 bytes, where the swizzle's pattern does; dynamic shared memory need not.
    static constexpr int SHARED_BYTES = 1024 + B_BYTES + STAGES * A_STAGE_BYTES + PARTIAL_BYTES;
};

__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
    uint4 words;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w) : "r"(address) : "memory");
    return words;
}

// mma_m16n8k16 of which rows 8 to 15 do not matter: their part of A is whatever registers hold.
__device__ __forceinline__ void mma_m8n8k16(float (&sum)[4], uint32_t a0, uint32_t a2, uint32_t b0, uint32_t b1) {
    asm volatile(
        "{\n"
        ".reg .b32 any;\n"
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, any, %5, any}, {%6, %7}, {%0, %1, %2, %3};\n"
        "}\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a2), "r"(b0), "r"(b1));
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
#if __CUDA_ARCH__ >= 900
    extern __shared__ uint8_t dynamic[];
    __shared__ uint32_t broadcast;
    __shared__ __align__(8) uint64_t arrivals[Shape::WARPS][Shape::SLOTS];
    constexpr uint32_t STAGES = Shape::STAGES, SLOTS = Shape::SLOTS, STAGE_STEPS = Shape::STAGE_STEPS;
    const GemmArgs &gemm = args.gemm;
    uint8_t *const shared = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t warp_n = warp % Shape::WARPS_N, warp_k = warp / Shape::WARPS_N;
    const uint32_t warp_columns = args.tile_columns / Shape::WARPS_N;
    const uint32_t steps = args.steps, unit_k = steps * Shape::STEP_K;
    const uint32_t no_unit = tiles.count;

    // ---- B: a ring of slots for each warp, filled by the copy engine on behalf of lane 0 ----
    const uint32_t slots = shared_address(shared) + warp * SLOTS * Shape::SLOT_BYTES;
    const uint32_t slot_barriers = shared_address(arrivals[warp]);
    if (lane == 0) {
        tma_prefetch(args.b_map);
#pragma unroll
        for (uint32_t slot = 0; slot < SLOTS; ++slot) mbarrier_init(slot_barriers + slot * 8, 1);
        mbarrier_init_fence();
    }
    __syncwarp();
    uint32_t asked_unit = 0, asked_row = 0, asked_k = 0;  // what is asked for next
    const auto seek = [&](uint32_t unit) {
        asked_unit = unit;
        asked_row = unit / args.splits * args.tile_columns + warp_n * warp_columns;
        asked_k = unit % args.splits * unit_k + warp_k * Shape::SLOT_K;
    };
    const auto ask = [&](uint32_t slot) {
        if (lane == 0 && asked_unit < no_unit) {
            const uint32_t barrier = slot_barriers + slot * 8;
            // Rows and columns beyond B arrive as zeros, and count.
            mbarrier_arrive_expect(barrier, warp_columns * Shape::SLOT_K * 2);
            tma_load(slots + slot * Shape::SLOT_BYTES, args.b_map, barrier, asked_k, asked_row);
        }
        asked_k += Shape::STEP_K;
    };
    // This lane's row of eight, and its two pieces of the row's 128 bytes.
    const uint32_t b_row = g % 2 * 4 + g / 2;
    const uint32_t b_pieces[2] = {b_row * 128 + (t ^ b_row) * 16, b_row * 128 + ((t + 4) ^ b_row) * 16};

    // ---- A: a ring in shared memory, which keeps all of A if it fits ----
    const uint32_t a_ring = shared_address(shared) + Shape::B_BYTES;
    const uint32_t unit_stages = (steps + STAGE_STEPS - 1) / STAGE_STEPS;
    const bool resident = args.splits == 1 && unit_stages <= STAGES;
    const uint32_t ring_stages = resident ? unit_stages : STAGES;
    // How far copies run ahead, in stages of A and in steps of B: no further than into the next unit.
    const uint32_t stage_lead = resident ? STAGES - 1 : min(STAGES - 1, unit_stages), step_lead = min(SLOTS, steps);
    const auto copy_a = [&](uint32_t unit, uint32_t unit_stage, uint32_t stage) {
        constexpr uint32_t PIECES = Shape::STAGE_K / 8;
        const uint32_t first_k = unit % args.splits * unit_k + unit_stage * Shape::STAGE_K;
        for (uint32_t piece = threadIdx.x; piece < gemm.m * PIECES; piece += Shape::THREADS) {
            const uint32_t row = piece / PIECES, column = piece % PIECES * 8, at = first_k + column;
            const __half *source = reinterpret_cast<const __half *>(gemm.a) + static_cast<uint64_t>(row) * gemm.lda + at;
            cp_async_16(a_ring + stage * Shape::A_STAGE_BYTES + row * Shape::A_PITCH + column * 2, source, at < gemm.k ? min(gemm.k - at, 8u) * 2 : 0);
        }
    };
    // Rows beyond m hold whatever shared memory held before: they meet only sums that are not stored.
    const uint32_t a_fragments = a_ring + g * Shape::A_PITCH + (warp_k * Shape::SLOT_K + t * 8) * 2;

    float *const partials = reinterpret_cast<float *>(shared + Shape::B_BYTES + STAGES * Shape::A_STAGE_BYTES);

    // ---- units ----
    TileQueue queue(tiles);
    const bool strided = tiles.progress == 0;
    uint32_t unit = blockIdx.x;
    // The next launch's blocks may come at once: their weights can be under way while this launch finishes.
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const bool asks_early = strided && gemm.constant_b;
    if (!asks_early) wait_for_earlier_launches();
    if (!strided) {
        if (threadIdx.x == 0 && !queue.take(broadcast)) broadcast = no_unit;
        __syncthreads();
        unit = broadcast;
        __syncthreads();
    }
    seek(unit);
    for (uint32_t step = 0; step < step_lead; ++step) ask(step);
    if (asks_early) wait_for_earlier_launches();

    uint32_t asked = step_lead, slot = 0, parity = 0, stage = 0;
    if (unit < no_unit) {
        for (uint32_t ahead = 0; ahead < stage_lead; ++ahead) {
            if (ahead < unit_stages) copy_a(unit, ahead, ahead);
            cp_async_commit();
        }
    }
    bool first_unit = true;
    while (unit < no_unit) {
        uint32_t next = unit + gridDim.x;
        if (!strided && threadIdx.x == 0 && !queue.take(broadcast)) broadcast = no_unit;

        float sums[Shape::M_GROUPS][Shape::N_GROUPS][4] = {};
        uint32_t stage_step = 0, unit_stage = 0, fragments = 0;
#pragma unroll 1
        for (uint32_t step = 0; step < steps; ++step) {
            if (stage_step == 0) {
                if (stage_lead == STAGES - 1) {
                    cp_async_wait<STAGES - 2>();
                } else {
                    cp_async_wait<0>();
                }
                // All threads' copies to this stage of A have arrived, and all have read the stage that is filled next.
                __syncthreads();
                if (!strided && step == 0) next = broadcast;
                const uint32_t ahead = unit_stage + stage_lead;
                const uint32_t target = stage + stage_lead < STAGES ? stage + stage_lead : stage + stage_lead - STAGES;
                if (resident) {
                    if (first_unit && ahead < unit_stages) copy_a(unit, ahead, ahead);
                } else if (ahead < unit_stages) {
                    copy_a(unit, ahead, target);
                } else if (next < no_unit) {
                    copy_a(next, ahead - unit_stages, target);
                }
                cp_async_commit();
                fragments = a_fragments + stage * Shape::A_STAGE_BYTES;
                if (++stage == ring_stages) stage = 0;
                ++unit_stage;
            }

            mbarrier_wait(slot_barriers + slot * 8, parity);
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                uint4 b[Shape::N_GROUPS];
#pragma unroll
                for (int j = 0; j < Shape::N_GROUPS; ++j) b[j] = load_shared_16(slots + slot * Shape::SLOT_BYTES + j * 1024 + b_pieces[k]);
#pragma unroll
                for (int i = 0; i < Shape::M_GROUPS; ++i) {
                    const uint4 low = load_shared_16(fragments + i * 16 * Shape::A_PITCH + k * 64);
                    if (Shape::ROWS <= 8) {
#pragma unroll
                        for (int j = 0; j < Shape::N_GROUPS; ++j) mma_m8n8k16(sums[i][j], low.x, low.y, b[j].x, b[j].y);
#pragma unroll
                        for (int j = 0; j < Shape::N_GROUPS; ++j) mma_m8n8k16(sums[i][j], low.z, low.w, b[j].z, b[j].w);
                    } else {
                        const uint4 high = load_shared_16(fragments + (i * 16 + 8) * Shape::A_PITCH + k * 64);
                        const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
                        for (int j = 0; j < Shape::N_GROUPS; ++j) mma_m16n8k16(sums[i][j], first, b[j].x, b[j].y);
#pragma unroll
                        for (int j = 0; j < Shape::N_GROUPS; ++j) mma_m16n8k16(sums[i][j], second, b[j].z, b[j].w);
                    }
                }
            }
            fragments += Shape::STEP_K * 2;

            // Every lane has read the slot.
            __syncwarp();
            if (asked == steps) {
                seek(next);
                asked = 0;
            }
            ask(slot);
            ++asked;
            if (++slot == step_lead) {
                slot = 0;
                parity ^= 1;
            }
            if (++stage_step == STAGE_STEPS) stage_step = 0;
        }

        // The warps' partial sums meet in shared memory.
#pragma unroll
        for (int i = 0; i < Shape::M_GROUPS; ++i) {
#pragma unroll
            for (int j = 0; j < Shape::N_GROUPS; ++j) {
                float *target = partials + (warp_k * Shape::ROWS + i * 16 + g) * Shape::PARTIAL_PITCH + warp_n * warp_columns + j * 8 + t;
                // Columns 2t and 2t + 1 of the product are rows t and t + 4 of B.
                if (j * 8 < warp_columns) {
                    target[0] = sums[i][j][0];
                    target[4] = sums[i][j][1];
                    if (Shape::ROWS > 8) {
                        target[8 * Shape::PARTIAL_PITCH] = sums[i][j][2];
                        target[8 * Shape::PARTIAL_PITCH + 4] = sums[i][j][3];
                    }
                }
            }
        }
        __syncthreads();
        const uint32_t tile = unit / args.splits;
        const float *part = partials;
        uint32_t parts = Shape::WARPS_K, pitch = Shape::PARTIAL_PITCH, next_part = Shape::ROWS * Shape::PARTIAL_PITCH;
        bool finishes = true;
        if (args.splits > 1) {
            // So do those of the splits in global memory. Whoever comes last finishes the tile, and leaves the count of arrivals at zero: atomicInc wraps.
            float *const unit_partials = reinterpret_cast<float *>(args.partials) + static_cast<uint64_t>(unit) * gemm.m * args.tile_columns;
            for_each_quad<Shape>(args, [&](uint32_t row, uint32_t column) {
                const float4 total = sum_of_parts(part + row * pitch + column, parts, next_part);
                *reinterpret_cast<float4 *>(unit_partials + row * args.tile_columns + column) = total;
            });
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0) broadcast = atomicInc(reinterpret_cast<uint32_t *>(args.arrivals) + tile, args.splits - 1);
            __syncthreads();
            finishes = broadcast == args.splits - 1;
            __threadfence();
            parts = args.splits, pitch = args.tile_columns, next_part = gemm.m * args.tile_columns;
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
#endif
}

// Entry point gemm_skinny_<name>(SkinnyGemmArgs, Tiles) of one shape, for all epilogues: an epilogue is a few instructions once a tile.
#define GEMM_SKINNY_ENTRY(NAME, SHAPE)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(SHAPE::THREADS, SHAPE::BLOCKS_PER_SM)                                                       \
        gemm_skinny_##NAME(const __grid_constant__ SkinnyGemmArgs args, const __grid_constant__ Tiles tiles) {                                \
        gemm_skinny<SHAPE>(args, tiles);                                                                                                     \
    }
