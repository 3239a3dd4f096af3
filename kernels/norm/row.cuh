// One row of a matrix, normalised by a group of threads that keeps it in registers.
//
// A row of `width` halves is cut into chunks of 8; thread t of a group of n owns chunks t, t + n, t + 2n, ... (CHUNKS of them at most), so that
// neighbouring threads read neighbouring 16 bytes. Every sum runs in an order that width and group alone decide, so on every SM count alike.
#pragma once
#include <cuda_fp16.h>

#include "elastic.cuh"

constexpr int CHUNK = 8;

// Who holds a row: a warp, with other warps of its block beside it on other rows, or all threads of the block.
enum class Holder { WARP, BLOCK };

template <Holder HOLDER>
struct Group {
    __device__ static uint32_t size() { return HOLDER == Holder::WARP ? 32 : blockDim.x; }
    __device__ static uint32_t rank() { return HOLDER == Holder::WARP ? threadIdx.x % 32 : threadIdx.x; }
    // The row of a tile that this thread works on.
    __device__ static uint32_t row(uint32_t tile) {
        return HOLDER == Holder::WARP ? tile * (blockDim.x / 32) + threadIdx.x / 32 : tile;
    }
};

// 8 halves at `index`; elements from `width` on read as 0. VECTOR: one 16-byte load, for aligned rows whose width is a multiple of 8.
template <bool VECTOR>
__device__ __forceinline__ uint4 load_packed(const __half *row, uint32_t index, uint32_t width) {
    uint4 bits = {0, 0, 0, 0};
    if (index >= width) return bits;
    if constexpr (VECTOR) {
        bits = *reinterpret_cast<const uint4 *>(row + index);
    } else {
        __half *halves = reinterpret_cast<__half *>(&bits);
#pragma unroll
        for (int i = 0; i < CHUNK; ++i)
            if (index + i < width) halves[i] = row[index + i];
    }
    return bits;
}

__device__ __forceinline__ void unpack(const uint4 &bits, float (&v)[CHUNK]) {
    const __half2 *pairs = reinterpret_cast<const __half2 *>(&bits);
#pragma unroll
    for (int i = 0; i < CHUNK / 2; ++i) {
        const float2 pair = __half22float2(pairs[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
    }
}

template <bool VECTOR>
__device__ __forceinline__ void store_chunk(__half *row, uint32_t index, uint32_t width, const float (&v)[CHUNK]) {
    if constexpr (VECTOR) {
        uint4 bits;
        __half2 *pairs = reinterpret_cast<__half2 *>(&bits);
#pragma unroll
        for (int i = 0; i < CHUNK / 2; ++i) pairs[i] = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
        *reinterpret_cast<uint4 *>(row + index) = bits;
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; ++i)
            if (index + i < width) row[index + i] = __float2half_rn(v[i]);
    }
}

// Sums over a group, the same bits in each of its threads.
template <Holder HOLDER>
class GroupSum {
  public:
    __device__ float operator()(float v) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
        if constexpr (HOLDER == Holder::BLOCK) {
            // Two arrays in turn, so that one barrier a sum is enough: who still reads the one cannot meet who writes it again.
            __shared__ float4 partial[2][8];
            float *mine = reinterpret_cast<float *>(partial[turn_]);
            if (threadIdx.x % 32 == 0) mine[threadIdx.x / 32] = v;
            __syncthreads();
            v = 0.0f;
            for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) v += mine[warp];
            turn_ ^= 1;
        }
        return v;
    }

  private:
    uint32_t turn_ = 0;
};

// A row held by its group.
template <Holder HOLDER, int CHUNKS, bool VECTOR>
struct Row {
    float v[CHUNKS][CHUNK];

    __device__ static uint32_t index(int chunk) { return (chunk * Group<HOLDER>::size() + Group<HOLDER>::rank()) * CHUNK; }

    __device__ void load(const __half *row, uint32_t width) {
        uint4 bits[CHUNKS];
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) bits[c] = load_packed<VECTOR>(row, index(c), width);
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) unpack(bits[c], v[c]);
    }

    __device__ void add(const __half *row, uint32_t width) {
        uint4 bits[CHUNKS];
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) bits[c] = load_packed<VECTOR>(row, index(c), width);
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            float other[CHUNK];
            unpack(bits[c], other);
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) v[c][i] += other[i];
        }
    }

    __device__ void store(__half *row, uint32_t width) const {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
            if (index(c) < width) store_chunk<VECTOR>(row, index(c), width, v[c]);
    }

    __device__ void fill(float value) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) v[c][i] = value;
    }
};

// Where the weights of a norm wait while blocks go from row to row. KEPT holds them in registers, loaded before the wait for earlier launches
// (none of which writes weights): where a block has few rows that takes a memory latency off the critical path. STREAMED reads them again for
// each row, from L1, and leaves the registers to more rows at once. The bits are the same.
enum class Weights { KEPT, STREAMED };

// Normalises rows. CENTRED is layer norm (Ba, Kiros and Hinton 2016), otherwise RMS norm (Zhang and Sennrich 2019, eq. 4).
template <Holder HOLDER, int CHUNKS, bool VECTOR, bool CENTRED, Weights WEIGHTS>
class RowNorm {
  public:
    __device__ RowNorm(uint64_t weight, uint64_t bias, uint32_t width, float epsilon)
        : weight_(reinterpret_cast<const __half *>(weight)), bias_(reinterpret_cast<const __half *>(bias)), width_(width),
          inverse_width_(1.0f / static_cast<float>(width)), epsilon_(epsilon) {
        if constexpr (KEPT) {
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                kept_weight_[c] = load_packed<VECTOR>(weight_, index(c), width);
                if constexpr (CENTRED) kept_bias_[c] = load_packed<VECTOR>(bias_, index(c), width);
            }
        }
    }

    // row = (row - mean) / sqrt(variance + epsilon) * weight + bias, in two passes over the registers: the variance of numbers far from 0
    // stays exact. Without CENTRED the mean counts as 0 and there is no bias. What may be fused is fused as written, so that every variant rounds
    // alike.
    __device__ void apply(Row<HOLDER, CHUNKS, VECTOR> &row) {
        float(&v)[CHUNKS][CHUNK] = row.v;
        if constexpr (CENTRED) {
            float sum = 0.0f;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
                for (int i = 0; i < CHUNK; ++i) sum += v[c][i];
            const float mean = __fmul_rn(sum_(sum), inverse_width_);
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                const int inside = static_cast<int>(width_) - static_cast<int>(index(c)); // elements; beyond them all stays 0
#pragma unroll
                for (int i = 0; i < CHUNK; ++i)
                    if (inside >= CHUNK || (!VECTOR && i < inside)) v[c][i] -= mean;
            }
        }
        float squares = 0.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) squares = __fmaf_rn(v[c][i], v[c][i], squares);
        const float scale = rsqrtf(__fmaf_rn(sum_(squares), inverse_width_, epsilon_)); // to 2 units in the last place
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            if (index(c) >= width_) continue;
            float w[CHUNK], b[CHUNK] = {};
            unpack(KEPT ? stay_packed(kept_weight_[c]) : load_packed<VECTOR>(weight_, index(c), width_), w);
            if constexpr (CENTRED) unpack(KEPT ? stay_packed(kept_bias_[c]) : load_packed<VECTOR>(bias_, index(c), width_), b);
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) v[c][i] = __fmaf_rn(v[c][i], scale * w[i], b[i]);
        }
    }

  private:
    static constexpr bool KEPT = WEIGHTS == Weights::KEPT;

    __device__ static uint32_t index(int chunk) { return Row<HOLDER, CHUNKS, VECTOR>::index(chunk); }

    // Keeps the compiler from unpacking weights once for all rows, into twice the registers.
    __device__ static uint4 stay_packed(uint4 bits) {
        asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
        return bits;
    }

    const __half *weight_;
    const __half *bias_;
    uint32_t width_;
    float inverse_width_;
    float epsilon_;
    uint4 kept_weight_[KEPT ? CHUNKS : 1];
    uint4 kept_bias_[KEPT && CENTRED ? CHUNKS : 1];
    GroupSum<HOLDER> sum_;
};

// How rows are dealt to threads, by the widest row: DEFINE(widest, holder, chunks a thread, most threads in a block, blocks of so many that an
// SM must have registers for, the same for kernels that need fewer registers, as Hopper's do). Kept in step with `RowShape` in norm/mod.rs.
#if __CUDA_ARCH__ >= 900
#define RESIDENT(few, many) many
#else
#define RESIDENT(few, many) few
#endif
#define FOR_EACH_ROW_SHAPE(DEFINE)        \
    FOR_EACH_ROW_SHAPE_BUT_WIDEST(DEFINE) \
    DEFINE(32768, Holder::BLOCK, 4, 1024, 1, 1)
#define FOR_EACH_ROW_SHAPE_BUT_WIDEST(DEFINE) \
    DEFINE(768, Holder::WARP, 3, 256, 2, 5)   \
    DEFINE(1024, Holder::WARP, 4, 256, RESIDENT(1, 2), 4) \
    DEFINE(8192, Holder::BLOCK, 4, 256, 2, 4)
