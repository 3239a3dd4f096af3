// Prefill attention for Hopper where no sequence is longer than one block of keys: what prefill.cuh computes, in one step a tile.
//
// A tile is one head of one sequence: up to 128 queries, 64 for each of two warpgroups, and all of its keys. Nothing is worth a pipeline: a launch is
// a chain of latencies (lengths, rows, two products, stores), so every thread copies its part of the rows itself, which saves the fetch of a
// tensor map and the hand-over from a loading warp. Rows past the sequence's end arrive as zeros. Two blocks on an SM fill each other's waits.
#pragma once
#include "attention/warpgroup_rows.cuh"
#include "elastic.cuh"
#include "ptx/tma.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

namespace attention {

template <int D>
struct PrefillShort {
    static constexpr int ROWS = 128; // the longest sequence
    static constexpr int THREADS = 256;
    static constexpr int BLOCKS_PER_SM = 2;
    using Rows = WarpgroupRows<D, ROWS>;
    static constexpr int PIECES = Rows::PIECES;
    static constexpr int STEPS_AT_ONCE = 4; // of the second product

    struct Shared {
        __half queries[2][PIECES][BOX_ROWS * BOX_COLUMNS];
        __half keys[PIECES][ROWS * BOX_COLUMNS];
        __half values[PIECES][ROWS * BOX_COLUMNS];
    };

    // Asks for rows 0 to ROWS of one head. `shared_row(row)` is where a row of the first piece goes, `piece_bytes` the distance of pieces.
    template <int BOX>
    __device__ static __forceinline__ void copy(uint32_t target, const __half *source, uint32_t stride, int length, int width) {
        const int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const int column = piece * BOX_COLUMNS + chunk * 8;
#pragma unroll
            for (int down = 0; down < ROWS; down += THREADS / 8) {
                const uint32_t at = (row + down) / BOX * (PIECES * BOX * 128) + piece * (BOX * 128) + swizzled_128((row + down) % BOX, chunk);
                const bool valid = row + down < length && column < width;
                cp_async_16(target + at, source + (valid ? size_t(row + down) * stride + column : 0), valid ? 16 : 0);
            }
        }
    }

    // What a tile is of.
    struct Place {
        uint32_t head;
        uint32_t start; // the sequence's first row
        int length;

        __device__ Place(const AttentionPrefillArgs &args, uint32_t tile) {
            head = tile % args.heads;
            length = reinterpret_cast<const uint32_t *>(args.lengths)[tile / args.heads];
            start = reinterpret_cast<const uint32_t *>(args.starts)[tile / args.heads];
        }
    };

    // output = weights * values from step FIRST on, in flight: the first keys' product while the next ones' weights are made.
    template <int FIRST>
    __device__ static __forceinline__ void multiply_weighed(Rows &rows, uint32_t values, float scale_log2, const float (&reference)[2]) {
        constexpr int END = FIRST + STEPS_AT_ONCE;
        rows.template exponentiate<FIRST, END>(scale_log2, reference, rows.sum);
        rows.template round<FIRST, END>();
        rows.template multiply_values<FIRST, END>(values);
        if constexpr (END < Rows::STEPS) multiply_weighed<END>(rows, values, scale_log2, reference);
    }

    __device__ static void tile(const AttentionPrefillArgs &args, const Place &place, Shared &shared) {
        const int length = place.length;
        if (length == 0) return;
        const uint32_t kv_head = place.head / (args.heads / args.kv_heads);
        const __half *const first = reinterpret_cast<const __half *>(args.qkv) + size_t(place.start) * args.qkv_stride;
        const __half *const keys = first + (args.heads + kv_head) * args.head_dim;
        copy<BOX_ROWS>(shared_address(shared.queries), first + place.head * args.head_dim, args.qkv_stride, length, args.head_dim);
        copy<ROWS>(shared_address(shared.keys), keys, args.qkv_stride, length, args.head_dim);
        cp_async_commit();
        copy<ROWS>(shared_address(shared.values), keys + args.kv_heads * args.head_dim, args.qkv_stride, length, args.head_dim);
        cp_async_commit();

        const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), group = warp / 4, first_row = warp * 16 + threadIdx.x % 32 / 4;
        const Mask mask(length, args.window, args.causal);
        Rows rows;
        float correction[2];
        cp_async_wait<1>();
        fence_shared_for_async();
        __syncthreads();
        rows.multiply_keys(shared_address(shared.queries[group]), shared_address(shared.keys));
        wgmma_wait<0>();
        wgmma_settle(rows.scores);
        if (mask.first(group * 64 + 63) > 0 || mask.end(group * 64) < ROWS) rows.hide(mask, 0, first_row);
        const float scale_log2 = args.scale * 1.4426950408889634f;
        float reference[2];
        rows.raise(scale_log2, reference, correction);
        rows.clear();
        cp_async_wait<0>();
        fence_shared_for_async();
        __syncthreads();
        multiply_weighed<0>(rows, shared_address(shared.values), scale_log2, reference);
        wgmma_wait<0>();
        wgmma_settle(rows.output);
        rows.store(args, place.head, place.start, length, first_row);
    }
};

} // namespace attention

// The kernel for heads of up to D columns. A macro, since the host finds kernels by their C names. Where the block's first sequence lies is read
// while the launch before this one may still run, which must not write it.
#define ATTENTION_PREFILL_SHORT(D)                                                                                                        \
    static_assert(sizeof(attention::PrefillShort<D>::Shared) == ATTENTION_PREFILL_SHORT_D##D##_SHARED_BYTES);                             \
    extern "C" __global__ void __launch_bounds__(attention::PrefillShort<D>::THREADS, attention::PrefillShort<D>::BLOCKS_PER_SM)          \
        attention_prefill_short_d##D(const __grid_constant__ AttentionPrefillArgs args, const __grid_constant__ Tiles tiles) {            \
        using Kernel = attention::PrefillShort<D>;                                                                                        \
        extern __shared__ __align__(1024) uint4 dynamic_shared[];                                                                         \
        const Kernel::Place first(args, blockIdx.x);                                                                                      \
        ElasticTiles queue(tiles);                                                                                                        \
        for (uint32_t tile; queue.next(tile);) {                                                                                          \
            const Kernel::Place place = tile == blockIdx.x ? first : Kernel::Place(args, tile);                                           \
            Kernel::tile(args, place, *reinterpret_cast<Kernel::Shared *>(dynamic_shared));                                               \
        }                                                                                                                                 \
    }

#else

#define ATTENTION_PREFILL_SHORT(D)

#endif
