// One row of a matrix, normalised by a group of threads that keeps it in registers.
//
// A row of `width` halves is cut into chunks of 8; thread t of the group owns chunks t, t + GROUP, t + 2 GROUP, ... (CHUNKS of them at most), so
// that neighbouring threads read neighbouring 16 bytes. Every sum runs in the same order whatever the grid, and so on every SM count.
#pragma once
#include <cuda_fp16.h>

#include "elastic.cuh"

constexpr int CHUNK = 8;

// 8 halves at `index` as floats; elements from `width` on read as 0. VECTOR: one 16-byte load, for aligned rows whose width is a multiple of 8.
template <bool VECTOR>
__device__ __forceinline__ void load_chunk(const __half *row, uint32_t index, uint32_t width, float (&v)[CHUNK]) {
    if constexpr (VECTOR) {
        const uint4 bits = *reinterpret_cast<const uint4 *>(row + index);
        const __half2 *pairs = reinterpret_cast<const __half2 *>(&bits);
#pragma unroll
        for (int i = 0; i < CHUNK / 2; ++i) {
            const float2 pair = __half22float2(pairs[i]);
            v[2 * i] = pair.x;
            v[2 * i + 1] = pair.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) v[i] = index + i < width ? __half2float(row[index + i]) : 0.0f;
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

// The sum of `v` over the GROUP threads of a row, the same bits in each of them. Groups wider than a warp are whole blocks.
template <int GROUP>
__device__ __forceinline__ float group_sum(float v) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
    if constexpr (GROUP > 32) {
        __shared__ float partial[GROUP / 32];
        __syncthreads();
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
        __syncthreads();
        v = 0.0f;
#pragma unroll
        for (int warp = 0; warp < GROUP / 32; ++warp) v += partial[warp];
    }
    return v;
}

// A row held by its group. `CENTRED` is layer norm (Ba, Kiros and Hinton 2016), otherwise RMS norm (Zhang and Sennrich 2019, eq. 4).
template <int GROUP, int CHUNKS, bool VECTOR, bool CENTRED>
struct Row {
    float v[CHUNKS][CHUNK];

    __device__ static uint32_t index(int chunk) { return (chunk * GROUP + threadIdx.x % GROUP) * CHUNK; }

    __device__ void load(const __half *row, uint32_t width) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            if (index(c) < width) {
                load_chunk<VECTOR>(row, index(c), width, v[c]);
            } else {
#pragma unroll
                for (int i = 0; i < CHUNK; ++i) v[c][i] = 0.0f;
            }
        }
    }

    __device__ void add(const __half *row, uint32_t width) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            if (index(c) >= width) continue;
            float other[CHUNK];
            load_chunk<VECTOR>(row, index(c), width, other);
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) v[c][i] += other[i];
        }
    }

    __device__ void store(__half *row, uint32_t width) const {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
            if (index(c) < width) store_chunk<VECTOR>(row, index(c), width, v[c]);
    }

    // v = (v - mean) / sqrt(variance + epsilon) * weight + bias, in two passes over the registers: the variance of numbers far from 0 stays
    // exact. Without CENTRED the mean counts as 0 and there is no bias.
    __device__ void normalise(uint32_t width, float epsilon, const __half *weight, const __half *bias) {
        float mean = 0.0f;
        if constexpr (CENTRED) {
            float sum = 0.0f;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
                for (int i = 0; i < CHUNK; ++i) sum += v[c][i];
            mean = group_sum<GROUP>(sum) / static_cast<float>(width);
        }
        float squares = 0.0f;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) {
                const float centred = index(c) + i < width ? v[c][i] - mean : 0.0f;
                squares += centred * centred;
            }
        const float scale = 1.0f / sqrtf(group_sum<GROUP>(squares) / static_cast<float>(width) + epsilon);
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
            if (index(c) >= width) continue;
            float w[CHUNK];
            load_chunk<VECTOR>(weight, index(c), width, w);
            float b[CHUNK] = {};
            if constexpr (CENTRED) load_chunk<VECTOR>(bias, index(c), width, b);
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) v[c][i] = (v[c][i] - mean) * scale * w[i] + b[i];
        }
    }
};

// How rows are dealt to threads, by width. Kept in step with `RowShape` in norm/mod.rs.
//   narrow: a warp a row,   8 rows a block, width <= 1024
//   middle: a block a row, 256 threads,     width <= 8192
//   wide:   a block a row, 1024 threads,    width <= 32768
#define FOR_EACH_ROW_SHAPE(DEFINE)   \
    DEFINE(narrow, 32, 256)          \
    DEFINE(middle, 256, 256)         \
    DEFINE(wide, 1024, 1024)
