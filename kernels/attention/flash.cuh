// What prefill and decode share: one warp's part of attention. A warp holds 16 query rows of one head and meets keys and values in blocks,
// never the whole score matrix:
//
//     for each block of keys:   s = scale * q k^T         tensor cores
//                               m' = max(m, rowmax(s))    the highest score so far
//                               p = 2^(s - m')            scale carries log2(e), so powers of two do for e's
//                               c = 2^(m - m')            corrects what was summed under the old maximum
//                               l = c l + rowsum(p)
//                               o = c o + p v             tensor cores, p rounded to halves
//     at the end:               output = o / l
//
// Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3; Dao, "FlashAttention-2", 2023, algorithm 1.
// Scores, maxima and sums are FP32. A row's arithmetic depends on its own sequence alone, so a result is the same whoever computes it.
//
// Rows in shared memory are D halves and 16 bytes of padding: ldmatrix reads eight rows at once, their distance is an odd number of
// 16-byte units, and so the eight touch each bank once.
#pragma once
#include "ptx/mma.cuh"

namespace attention {

constexpr int QUERY_ROWS = 16; // of one warp: the m of m16n8k16

template <int D>
constexpr int PITCH = D + 8; // halves from one row in shared memory to the next

__device__ constexpr int div_ceil(int a, int b) { return (a + b - 1) / b; }

// Rows of `width` halves in device memory, `stride` halves apart.
struct Rows {
    const __half *first;
    uint32_t stride;
    int count;
    int width;
};

// Whether rows that start at multiples of `stride` and of `width` halves from `base` are all on 16 bytes.
__device__ __forceinline__ bool on_16_bytes(uint64_t base, uint32_t stride, uint32_t width) { return ((base | 2 * (stride | width)) & 15) == 0; }

// Brings ROWS rows to shared memory, rows past the count and columns past the width as zeros: a padded key must add 0 * 0 to the output,
// and what lies past the end could be NaN. Rows on 16 bytes are copied asynchronously; the caller commits and waits.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void copy_rows(__half *shared, const Rows &source, bool aligned, int thread) {
    if (aligned) {
        // A row's 16-byte chunks are dealt to as many threads as divide them evenly, so that all of a thread's addresses are its first one
        // and a constant: nothing else to keep in registers.
        constexpr int CHUNKS = D / 8;
        constexpr int SIDE = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
        constexpr int DOWN = THREADS / SIDE < ROWS ? THREADS / SIDE : ROWS;
        static_assert(CHUNKS % SIDE == 0 && ROWS % DOWN == 0 && DOWN * SIDE == THREADS);
        const int row = thread / SIDE, column = thread % SIDE * 8;
        const __half *const from = source.first + row * source.stride + column;
        const uint32_t to = shared_address(shared + row * PITCH<D> + column);
#pragma unroll
        for (int down = 0; down < ROWS; down += DOWN) {
#pragma unroll
            for (int side = 0; side < D; side += SIDE * 8) {
                const bool valid = row + down < source.count && column + side < source.width;
                cp_async_16(to + 2 * (down * PITCH<D> + side), from + down * source.stride + side, valid ? 16 : 0);
            }
        }
    } else {
#pragma unroll 1
        for (int i = thread; i < ROWS * D; i += THREADS) {
            const int row = i / D, column = i % D;
            const bool valid = row < source.count && column < source.width;
            shared[row * PITCH<D> + column] = valid ? source.first[row * source.stride + column] : __half(0.0f);
        }
    }
}

// 2^x with a relative error of 2^-22; denormal results are 0, infinities and NaN as in IEEE 754.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A row of the score tile lies in the four lanes of a quad.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// The keys that the query at position `row` sees: [first(row), end(row)). Both only grow with `row`.
struct Mask {
    int length;
    int window; // 1 to length
    bool causal;

    __device__ Mask(uint32_t length, uint32_t window, bool causal)
        : length(length), window(window == 0 || window > length ? length : window), causal(causal) {}

    __device__ int first(int row) const { return max(0, row - window + 1); }
    __device__ int end(int row) const { return min(length, causal ? row + 1 : row + window); }
};

// A warp's 16 query rows, as the A operands of D / 16 multiply steps. Above 128 columns they would crowd the output out of the registers
// and are read from shared memory again for every block of keys.
template <int D>
class Queries {
  public:
    static constexpr bool IN_REGISTERS = D <= 128;

    // `shared` holds the 16 rows; it may be overwritten afterwards only if they are kept in registers.
    __device__ explicit Queries(const __half *shared) {
        const int lane = threadIdx.x % 32;
        address_ = shared_address(shared + lane % 16 * PITCH<D> + lane / 16 * 8);
        if constexpr (IN_REGISTERS) {
#pragma unroll
            for (int step = 0; step < D / 16; ++step) ldmatrix_x4(kept_[step], address_ + step * 32);
        }
    }

    __device__ __forceinline__ void operand(int step, uint32_t (&a)[4]) const {
        if constexpr (IN_REGISTERS) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = kept_[step][i];
        } else {
            ldmatrix_x4(a, address_ + step * 32);
        }
    }

  private:
    uint32_t address_;
    uint32_t kept_[IN_REGISTERS ? D / 16 : 1][4];
};

// What a warp knows of its 16 rows so far. A lane holds two of them: rows lane / 4 and lane / 4 + 8, columns 2 * (lane % 4) and the next of
// every eight.
template <int D>
struct Partial {
    float output[D / 8][4] = {}; // not yet divided by sum; [.][0..1] of the first row, [.][2..3] of the second
    float highest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {}; // of this lane's columns only, until finish()

    // Makes `sum` the row's. Every lane of the warp calls it, before the lanes part ways over which rows they write.
    __device__ __forceinline__ void finish() {
        sum[0] = quad_sum(sum[0]);
        sum[1] = quad_sum(sum[1]);
    }

    // Takes in KEYS keys and values, the first of them at position `first_key`. The warp's first query is at position `first_row`.
    template <int KEYS, class Visible>
    __device__ __forceinline__ void attend(const Queries<D> &queries, const __half *keys, const __half *values, int first_key, int first_row,
                                           const Visible &mask, float scale_log2) {
        const int lane = threadIdx.x % 32;

        // As B operands, keys are read as they lie (8 keys by 8 columns, a key's columns side by side) ...
        const uint32_t key_address = shared_address(keys + (lane / 16 * 8 + lane % 8) * PITCH<D> + lane / 8 % 2 * 8);
        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            uint32_t a[4];
            queries.operand(step, a);
#pragma unroll
            for (int key = 0; key < KEYS; key += 16) {
                uint32_t b[4];
                ldmatrix_x4(b, key_address + key * PITCH<D> * 2 + step * 32);
                mma_m16n8k16(scores[key / 8], a, b[0], b[1]);
                mma_m16n8k16(scores[key / 8 + 1], a, b[2], b[3]);
            }
        }

        if (first_key < mask.first(first_row + QUERY_ROWS - 1) || first_key + KEYS > mask.end(first_row)) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = first_row + lane / 4 + half * 8;
                // Counted from this lane's first column, so that each column's number is a constant.
                const int first = mask.first(row) - first_key - lane % 4 * 2, end = mask.end(row) - first_key - lane % 4 * 2;
#pragma unroll
                for (int i = 0; i < KEYS / 4; ++i) {
                    const int key = i / 2 * 8 + i % 2;
                    if (key < first || key >= end) scores[i / 2][half * 2 + i % 2] = -INFINITY;
                }
            }
        }

#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float now = highest[half];
#pragma unroll
            for (int i = 0; i < KEYS / 4; ++i) now = fmaxf(now, scores[i / 2][half * 2 + i % 2]);
            now = quad_max(now);
            // While a row has seen masked keys only, its maximum is -inf and -inf - -inf would be NaN.
            // The products are rounded before they are subtracted: while the maximum stays, the correction is 1 and nothing changes.
            const float reference = now == -INFINITY ? 0.0f : __fmul_rn(now, scale_log2);
            const float correction = exp2_approx(__fmul_rn(highest[half], scale_log2) - reference);
            highest[half] = now;
            sum[half] *= correction;
#pragma unroll
            for (int i = 0; i < D / 4; ++i) output[i / 2][half * 2 + i % 2] *= correction;
#pragma unroll
            for (int i = 0; i < KEYS / 4; ++i) {
                float &p = scores[i / 2][half * 2 + i % 2];
                p = exp2_approx(p * scale_log2 - reference);
                sum[half] += p;
            }
        }

        // ... and values transposed. Two neighbouring tiles of p, rounded, are an A operand as they stand.
        const uint32_t value_address = shared_address(values + lane % 16 * PITCH<D> + lane / 16 * 8);
#pragma unroll
        for (int key = 0; key < KEYS; key += 16) {
            const auto &left = scores[key / 8], &right = scores[key / 8 + 1];
            const uint32_t p[4] = {pack_halves(left[0], left[1]), pack_halves(left[2], left[3]), pack_halves(right[0], right[1]),
                                   pack_halves(right[2], right[3])};
#pragma unroll
            for (int column = 0; column < D; column += 16) {
                uint32_t b[4];
                ldmatrix_x4_transposed(b, value_address + key * PITCH<D> * 2 + column * 2);
                mma_m16n8k16(output[column / 8], p, b[0], b[1]);
                mma_m16n8k16(output[column / 8 + 1], p, b[2], b[3]);
            }
        }
    }
};

} // namespace attention
