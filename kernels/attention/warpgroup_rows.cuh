// What the Hopper kernels of prefill attention share: one warpgroup's part, 64 query rows of one head that meet keys in blocks of KEYS.
//
// Queries, keys and values lie in shared memory as the copy engine lays them down and wgmma reads them: a row of D halves is cut into pieces of 64
// (128 bytes, swizzled by 128 bytes), and the rows of a piece follow each other; the last piece is filled up with zeros. Scores come from shared
// memory to registers, become weights there, and are an operand of the second product from there, so no score is ever stored.
//
// A thread holds two rows, lane / 4 and lane / 4 + 8 of its warp's 16, and of every eight columns two, 2 * (lane % 4) and the next.
#pragma once
#include "abi.h"
#include "attention/flash.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_rows.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

namespace attention {

// Rows and columns of a box that the copy engine brings: 64 columns of halves are the 128 bytes of the swizzle.
constexpr int BOX_ROWS = 64, BOX_COLUMNS = 64, BOX_BYTES = BOX_ROWS * BOX_COLUMNS * 2;

// Columns of a head.
__device__ __forceinline__ uint32_t head_dim(const AttentionPrefillArgs &args) { return args.head_dim; }
__device__ __forceinline__ uint32_t head_dim(const AttentionChunkArgs &args) { return args.cache.head_dim; }

// STEADY: a block of keys that a row does not see leaves its sums as they are, to the last bit. For kernels where a row may share its tile with any
// others, so that it depends on them how many such blocks it meets.
template <int D, int KEYS, bool STEADY = false>
struct WarpgroupRows {
    static constexpr int PIECES = div_ceil(D, BOX_COLUMNS);
    static constexpr int PIECE_BYTES = KEYS * BOX_COLUMNS * 2; // of keys, or of values
    static constexpr int STEPS = KEYS / 16;                    // of the second product

    float scores[KEYS / 2];
    uint32_t weights[STEPS][4];
    float output[D / 2];
    float highest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.0f, 0.0f}; // of this thread's columns

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < D / 2; ++i) output[i] = 0.0f;
    }

    // scores = queries * keys^T, in flight.
    __device__ __forceinline__ void multiply_keys(uint32_t queries, uint32_t keys) {
        const uint64_t a = wgmma_descriptor(queries), b = wgmma_descriptor(keys);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            wgmma_m64k16<KEYS>(scores, a + step / 4 * (BOX_BYTES / 16) + step % 4 * 2, b + step / 4 * (PIECE_BYTES / 16) + step % 4 * 2, step > 0);
        }
        wgmma_commit();
    }

    // output += weights * values, in flight; of the keys of steps FIRST to END alone.
    template <int FIRST = 0, int END = STEPS>
    __device__ __forceinline__ void multiply_values(uint32_t values) {
        const uint64_t b = wgmma_rows_descriptor(values, PIECE_BYTES);
        wgmma_fence();
#pragma unroll
        for (int step = FIRST; step < END; ++step) wgmma_m64k16_rows<D>(output, weights[step], b + step * (16 * 128 / 16));
        wgmma_commit();
    }

    // Scores of keys that a query does not see become -inf; `first_row` is the thread's first row.
    __device__ __forceinline__ void hide(const Mask &mask, int first_key, int first_row) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + half * 8;
            const int column = first_key + threadIdx.x % 4 * 2;
            const int first = mask.first(row) - column, end = mask.end(row) - column;
#pragma unroll
            for (int i = 0; i < KEYS / 4; ++i) {
                const int key = i / 2 * 8 + i % 2;
                if (key < first || key >= end) scores[i / 2 * 4 + half * 2 + i % 2] = -INFINITY;
            }
        }
    }

    // Scores become powers of two; returns by what earlier sums must be multiplied.
    __device__ __forceinline__ void exponentiate(float scale_log2, float (&correction)[2]) {
        float reference[2], added[2] = {0.0f, 0.0f};
        raise(scale_log2, reference, correction);
        exponentiate<0, STEPS>(scale_log2, reference, added);
#pragma unroll
        for (int half = 0; half < 2; ++half) sum[half] = fmaf(sum[half], correction[half], added[half]);
    }

    // Takes the scores into the highest so far; returns what exponents are relative to, and the correction.
    __device__ __forceinline__ void raise(float scale_log2, float (&reference)[2], float (&correction)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // Two chains of comparisons, since each waits for the one before.
            float even = highest[half], odd = -INFINITY;
#pragma unroll
            for (int i = half * 2; i < KEYS / 2; i += 4) {
                even = fmaxf(even, scores[i]);
                odd = fmaxf(odd, scores[i + 1]);
            }
            const float now = quad_max(fmaxf(even, odd));
            // While a row has seen hidden keys only, its maximum is -inf and -inf - -inf would be NaN.
            if constexpr (STEADY) {
                // Products rounded before they are subtracted: while the maximum stays, the correction is 2^0.
                reference[half] = now == -INFINITY ? 0.0f : __fmul_rn(now, scale_log2);
                correction[half] = exp2_approx(__fmul_rn(highest[half], scale_log2) - reference[half]);
            } else {
                reference[half] = now == -INFINITY ? 0.0f : now * scale_log2;
                correction[half] = exp2_approx(fmaf(highest[half], scale_log2, -reference[half]));
            }
            highest[half] = now;
        }
    }

    // The scores of steps FIRST to END alone, added to `added` one by one.
    template <int FIRST, int END>
    __device__ __forceinline__ void exponentiate(float scale_log2, const float (&reference)[2], float (&added)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = FIRST * 4; i < END * 4; ++i) {
                float &p = scores[i / 2 * 4 + half * 2 + i % 2];
                p = exp2_approx(fmaf(p, scale_log2, -reference[half]));
                added[half] += p;
            }
        }
    }

    // Rounded, two neighbouring column groups of scores are an A operand as they stand.
    template <int FIRST = 0, int END = STEPS>
    __device__ __forceinline__ void round() {
#pragma unroll
        for (int step = FIRST; step < END; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) weights[step][i] = pack_halves(scores[step * 8 + i * 2], scores[step * 8 + i * 2 + 1]);
        }
    }

    // Stores output / sum as rows of halves.
    template <class Args>
    __device__ __forceinline__ void store(const Args &args, uint32_t head, uint32_t start, int length, int first_row) {
        const int lane = threadIdx.x % 4;
        __half *const columns = reinterpret_cast<__half *>(args.output) + size_t(head) * head_dim(args);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + half * 8;
            const float factor = 1.0f / quad_sum(sum[half]);
            __half *const to = columns + size_t(start + row) * args.output_stride;
            // Four lanes hold eight columns, two each: they exchange what they have of 32 columns, so that each stores eight.
#pragma unroll
            for (int group = 0; group < D / 8; group += 4) {
                uint32_t words[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int at = min(group + i, D / 8 - 1) * 4 + half * 2;
                    words[i] = pack_halves(output[at] * factor, output[at + 1] * factor);
                }
                quad_transpose(words, lane);
                const int column = (group + lane) * 8;
                if (row < length && column < head_dim(args)) store_global_16(to + column, words);
            }
        }
    }

    // Lane i of a quad gets word i of each of its lanes, in the order of lanes.
    __device__ static __forceinline__ void quad_transpose(uint32_t (&words)[4], int lane) {
#pragma unroll
        for (int distance = 1; distance <= 2; distance *= 2) {
            const bool upper = lane & distance;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (i & distance) continue;
                const uint32_t received = __shfl_xor_sync(0xffffffff, upper ? words[i] : words[i + distance], distance);
                (upper ? words[i] : words[i + distance]) = received;
            }
        }
    }
};

} // namespace attention

#endif
