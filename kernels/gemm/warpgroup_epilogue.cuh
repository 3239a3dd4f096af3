// What a consumer of the Hopper GEMM (warpgroup.cuh) does with a tile's sums: they become C, slice by slice through shared memory, so that what meets
// memory is whole lines. A consumer has two buffers, each of 64 rows by SLICE columns. The residual comes into one while the other's slice is finished, and
// what C becomes goes out from where the residual was:
//
//   copy engine ─> buffer (residual) ─> registers: scale * sum + bias + residual, activation ─> buffer ─> copy engine
#pragma once
#include <cuda_fp16.h>

#include <cstdint>
#include <utility>

#include "abi.h"
#include "gemm/epilogue.cuh"
#include "gemm/tile_order.cuh"
#include "gemm/warpgroup_shape.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma.cuh"
#include "ptx/tma.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

// Where a byte of a staged slice lies: rows of ROW_BYTES, as the copy engine swizzles them.
template <int ROW_BYTES>
__device__ __forceinline__ uint32_t staged(uint32_t row, uint32_t byte) {
    const uint32_t offset = row * ROW_BYTES + byte;
    if (ROW_BYTES == 128) return offset ^ (row % 8) << 4;
    if (ROW_BYTES == 64) return offset ^ (row / 2 % 4) << 4;
    return offset ^ (row / 4 % 2) << 4;
}

// A consumer's part of a tile.
struct WarpgroupPart {
    TileOrigin tile;
    uint32_t first_row;   // within the tile
    uint32_t consumer;
    uint32_t round;       // tiles that this consumer did before
    uint32_t broken_off;  // and that it broke off: 0 or 1
    uint32_t thread;      // within the consumer
};

// All threads of one consumer meet. Barrier 0 is the block's.
__device__ __forceinline__ void consumer_barrier(uint32_t consumer) { asm volatile("bar.sync %0, 128;" ::"r"(consumer + 1) : "memory"); }

template <typename Shape, int EPILOGUE>
struct WarpgroupEpilogue {
    static constexpr bool HAS_RESIDUAL = EPILOGUE == GEMM_RESIDUAL || EPILOGUE == GEMM_BIAS_RESIDUAL;
    static constexpr bool HAS_BIAS = EPILOGUE == GEMM_BIAS || EPILOGUE == GEMM_BIAS_GELU || EPILOGUE == GEMM_BIAS_GELU_TANH ||
                                     EPILOGUE == GEMM_BIAS_RELU || EPILOGUE == GEMM_BIAS_RESIDUAL || EPILOGUE == GEMM_SILU_GATE;
    static constexpr bool IS_F32 = EPILOGUE == GEMM_PLAIN_F32, IS_GATE = EPILOGUE == GEMM_SILU_GATE;
    static constexpr int SLICE = IS_F32 ? 32 : Shape::SLICE;
    static constexpr int SLICES = Shape::M_ATOMS * (Shape::BLOCK_N / SLICE);
    static constexpr int PER_ATOM = Shape::BLOCK_N / SLICE;
    static constexpr int ROW_BYTES = IS_F32 ? SLICE * 4 : IS_GATE ? SLICE : SLICE * 2;

    const WarpgroupGemmArgs &args;
    uint32_t staging, biases;  // in shared memory
    uint32_t residual_full;    // barriers, one for each buffer

    // One thread.
    __device__ void initialise_barriers() const {
        for (int i = 0; i < 2 * Shape::CONSUMERS; ++i) mbarrier_init(residual_full + i * 8, 1);
    }

    // Before the launch before has ended, or while the first stages are on their way: finish() would wait for each load.
    __device__ __forceinline__ void read_bias(const WarpgroupPart &part) const {
        if (HAS_BIAS) {
            for (uint32_t col = part.thread; col < Shape::BLOCK_N; col += 128) {
                store_shared(bias_place(part, col), bias_of(args.gemm, part.tile.col + col));
            }
        }
    }

    // The residual's first slices, once the buffers' last ones have left.
    __device__ __forceinline__ void begin(const WarpgroupPart &part) const {
        if (HAS_RESIDUAL && part.thread == 0) {
            tma_store_wait_read<0>();
            for (int slice = 0; slice < min(2, SLICES); ++slice) fetch_residual(slice, part);
        }
    }

    // Instead of finish(), of a tile that is broken off: the slices that are on their way arrive in this block's memory, which must not end before.
    __device__ __forceinline__ void abandon(const WarpgroupPart &part) const {
        if (HAS_RESIDUAL && part.thread == 0) {
            for (int slice = 0; slice < min(2, SLICES); ++slice) {
                const uint32_t uses = part.round * (slice == 0 ? (SLICES + 1) / 2 : SLICES / 2);
                mbarrier_wait(residual_full + (part.consumer * 2 + slice) * 8, uses & 1);
            }
        }
    }

    // All threads of the consumer: the tile's sums become C, or are on their way there.
    __device__ __forceinline__ void finish(const float (&sums)[Shape::M_ATOMS][Shape::BLOCK_N / 2], const WarpgroupPart &part) const {
        if (HAS_BIAS) consumer_barrier(part.consumer);
        finish_slices(sums, part, std::make_integer_sequence<int, SLICES>());
    }

  private:
    // Buffer `slice % 2` of this consumer, as the copy engine sees it.
    __device__ __forceinline__ uint32_t buffer(uint32_t consumer, uint32_t slice) const {
        return staging + (consumer * 2 + slice % 2) * Shape::SLICE_BYTES;
    }

    // Where slice `slice` of the consumer's part lies in C: its first column there, and its first row.
    static __device__ __forceinline__ TileOrigin slice_origin(uint32_t slice, const WarpgroupPart &part) {
        const uint32_t col = part.tile.col + slice % PER_ATOM * SLICE;
        return {part.tile.row + part.first_row + slice / PER_ATOM * 64, IS_GATE ? col / 2 : col};
    }

    __device__ __forceinline__ void fetch_residual(uint32_t slice, const WarpgroupPart &part) const {
        const TileOrigin origin = slice_origin(slice, part);
        const uint32_t barrier = residual_full + (part.consumer * 2 + slice % 2) * 8;
        mbarrier_arrive_expect(barrier, 64 * ROW_BYTES);
        tma_load(buffer(part.consumer, slice), args.residual, barrier, origin.col, origin.row);
    }

    // The slices' numbers are known to the compiler, since registers cannot be indexed.
    template <int... SLICE_NUMBERS>
    __device__ __forceinline__ void finish_slices(const float (&sums)[Shape::M_ATOMS][Shape::BLOCK_N / 2], const WarpgroupPart &part,
                                                std::integer_sequence<int, SLICE_NUMBERS...>) const {
        (finish_slice<SLICE_NUMBERS>(sums[SLICE_NUMBERS / PER_ATOM], part), ...);
    }

    template <int NUMBER>
    __device__ __forceinline__ void finish_slice(const float (&sums)[Shape::BLOCK_N / 2], const WarpgroupPart &part) const {
        const uint32_t lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
        const uint32_t target = buffer(part.consumer, NUMBER);
        if (HAS_RESIDUAL) {
            // Of each tile's slices, (SLICES + 1) / 2 pass through the first buffer and SLICES / 2 through the second.
            const uint32_t uses = (part.round - part.broken_off) * (NUMBER % 2 == 0 ? (SLICES + 1) / 2 : SLICES / 2) + part.broken_off + NUMBER / 2;
            mbarrier_wait(residual_full + (part.consumer * 2 + NUMBER % 2) * 8, uses & 1);
        } else {
            if (part.thread == 0) tma_store_wait_read<1>();
            consumer_barrier(part.consumer);
        }
        // All loads first, all stores last: the compiler keeps accesses to shared memory in order, and between them hides one element's arithmetic
        // behind another's.
        constexpr int GROUPS = SLICE / 8;  // of eight columns, two of them this thread's
        const uint32_t first_byte = lane % 4 * (IS_F32 ? 8 : IS_GATE ? 2 : 4);
        float2 bias[GROUPS] = {}, residual[GROUPS][2] = {}, x[GROUPS][2];
        uint32_t places[2] = {target + staged<ROW_BYTES>(row, first_byte), target + staged<ROW_BYTES>(row + 8, first_byte)};
        const auto place = [&](int group, int half) { return places[half] ^ group * (ROW_BYTES * 8 / SLICE); };
#pragma unroll
        for (int j = 0; j < GROUPS; ++j) {
            if (HAS_BIAS) bias[j] = load_shared_pair(bias_place(part, NUMBER % PER_ATOM * SLICE + j * 8 + lane % 4 * 2));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (HAS_RESIDUAL) residual[j][half] = load_shared_pair(place(j, half));
            }
        }
#pragma unroll
        for (int j = 0; j < GROUPS; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float *two = &sums[(NUMBER % PER_ATOM * GROUPS + j) * 4 + half * 2];
                x[j][half] = make_float2(two[0] * args.gemm.scale + bias[j].x, two[1] * args.gemm.scale + bias[j].y);
                if (HAS_RESIDUAL) x[j][half] = make_float2(x[j][half].x + residual[j][half].x, x[j][half].y + residual[j][half].y);
                x[j][half] = make_float2(activation<EPILOGUE>(x[j][half].x), activation<EPILOGUE>(x[j][half].y));
                if (IS_GATE) x[j][half].x = silu(x[j][half].x) * x[j][half].y;
            }
        }
#pragma unroll
        for (int j = 0; j < GROUPS; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) store_staged(place(j, half), x[j][half]);
        }
        fence_shared_for_async();
        consumer_barrier(part.consumer);
        if (part.thread == 0) {
            const TileOrigin origin = slice_origin(NUMBER, part);
            tma_store(args.c, target, origin.col, origin.row);
            tma_store_commit();
            // The other buffer is free once the store before this one has read it.
            if (HAS_RESIDUAL && NUMBER > 0 && NUMBER + 1 < SLICES) {
                tma_store_wait_read<1>();
                fetch_residual(NUMBER + 1, part);
            }
        }
    }

    // Two adjacent columns, or the one that they make, rounded as C wants them.
    static __device__ __forceinline__ void store_staged(uint32_t place, const float2 &x) {
        if (IS_F32) {
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(place), "f"(x.x), "f"(x.y) : "memory");
        } else if (IS_GATE) {
            store_shared(place, __float2half(x.x));
        } else {
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(place), "r"(pack_halves(x.x, x.y)) : "memory");
        }
    }

    // Where a consumer keeps the bias of a column of its part.
    __device__ __forceinline__ uint32_t bias_place(const WarpgroupPart &part, uint32_t col) const {
        return biases + (part.consumer * Shape::BLOCK_N + col) * 2;
    }

    static __device__ __forceinline__ void store_shared(uint32_t place, __half value) {
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(place), "h"(__half_as_ushort(value)) : "memory");
    }

    static __device__ __forceinline__ float2 load_shared_pair(uint32_t place) {
        const uint32_t word = load_shared(place);
        return __half22float2(*reinterpret_cast<const __half2 *>(&word));
    }

    static __device__ __forceinline__ uint32_t load_shared(uint32_t place) {
        uint32_t word;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(place) : "memory");
        return word;
    }
};

#endif
