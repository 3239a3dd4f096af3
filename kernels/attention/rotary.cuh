// What rotary.cu and the GEMM that rotates its columns have in common: the angle of a pair, its rotation, and where a row's keys and values go.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "abi.h"

// Cosine and sine of the angle by which a position turns a pair.
__device__ __forceinline__ float2 angle_of(uint32_t position, float inverse_frequency) {
    float2 angle;
    sincosf(float(position) * inverse_frequency, &angle.y, &angle.x);
    return angle;
}

// The pair's elements: of the lower half of a head, and of the upper half.
__device__ __forceinline__ float2 rotated(float2 pair, float2 angle) {
    return make_float2(pair.x * angle.x - pair.y * angle.y, pair.y * angle.x + pair.x * angle.y);
}

// The row of both pools that a row's first key head and value head go to; beyond them, a head is KV_PAGE_TOKENS rows further.
struct CacheRow {
    size_t first = 0;
    bool exists = false;

    CacheRow() = default;

    // A position past the capacity has no place in the cache; writing it would damage another sequence's pages. Reads past L1: it may be done before earlier
    // launches have ended, and what an SM kept in L1 from before may be older than what the last launch to write them left.
    __device__ CacheRow(const RotaryArgs &args, uint32_t row, uint32_t position) {
        const KvPages &pages = args.cache;
        const uint32_t page = position / KV_PAGE_TOKENS;
        if (pages.keys == 0 || page >= pages.pages_per_sequence) return;
        const size_t sequence = __ldcg(reinterpret_cast<const uint32_t *>(args.sequence_of) + row);
        const size_t number = __ldcg(reinterpret_cast<const uint32_t *>(pages.page_table) + sequence * pages.pages_per_sequence + page);
        first = number * pages.kv_heads * KV_PAGE_TOKENS + position % KV_PAGE_TOKENS;
        exists = true;
    }
};
