// Columns of a product that are heads: queries, keys and values, rotated and on their way to where attention reads them (attention/rotary.cu says what the
// rotation is). Queries go to C; keys and values to the cache alone.
//
// A tile's columns are 32 of a head's pairs (i, i + head_dim / 2), or 16 where it halves k: first the lower halves and then the upper ones, so that no pair is in
// two tiles. Half a head is a multiple of 32 columns.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "abi.h"
#include "attention/rotary.cuh"

// Where a tile of so many pairs lies in the rows of B: the first of its lower halves.
template <int PAIRS>
struct HeadTile {
    uint32_t head = 0, pair = 0;

    HeadTile() = default;

    __device__ HeadTile(const RotaryArgs &args, uint32_t tile) {
        const uint32_t tiles_per_head = args.cache.head_dim / (2 * PAIRS);
        head = tile / tiles_per_head;
        pair = tile % tiles_per_head * PAIRS;
    }

    __device__ uint32_t first_row(const RotaryArgs &args) const { return head * args.cache.head_dim + pair; }
};

// One thread's part of every tile: two of its pairs, and of A a row in each pass.
template <int ROWS, int PAIRS>
class Heads {
    static constexpr uint32_t THREADS_OF_ROW = PAIRS / 2, ROWS_AT_ONCE = 128 / THREADS_OF_ROW;

  public:
    static constexpr int PASSES = (ROWS + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    // Passes that have instructions, and registers, of their own. Of 64 rows none has: sixteen sines each would be as much code as all the rest of the kernel, and each
    // instruction is fetched when it is first wanted; what a thread knows of its rows is then in local memory.
    static constexpr int UNROLLED = ROWS > 32 ? 1 : PASSES;

    // `bias`: [rows of B] fp16, or 0.
    __device__ Heads(const RotaryArgs *args, uint64_t bias, uint32_t thread)
        : args_(*args), bias_(reinterpret_cast<const __half *>(bias)), thread_(thread) {}

    // Reads the rows' positions and places, before earlier launches have ended: past L1, as CacheRow does. gemm/qkv.rs says who may have written them.
    __device__ void begin() {
#pragma unroll UNROLLED
        for (int pass = 0; pass < PASSES; ++pass) {
            if (row(pass) >= args_.rows) break;
            positions_[pass] = __ldcg(reinterpret_cast<const uint32_t *>(args_.positions) + row(pass));
            places_[pass] = CacheRow(args_, row(pass), positions_[pass]);
        }
    }

    __device__ uint32_t row(int pass) const { return thread_ / THREADS_OF_ROW + pass * ROWS_AT_ONCE; }

    // Of two pairs, the first.
    __device__ uint32_t pair() const { return thread_ % THREADS_OF_ROW * 2; }

    // Computes what does not need the sums, while they are not there yet.
    __device__ void expect(uint32_t tile) {
        tile_ = HeadTile<PAIRS>(args_, tile);
        const uint32_t first = tile_.first_row(args_) + pair(), half = args_.cache.head_dim / 2;
        const bool exists = tile_.head < args_.heads + 2 * args_.cache.kv_heads;
        bias_low_ = bias_high_ = make_float2(0.0f, 0.0f);
        if (bias_ != nullptr && exists) {
            bias_low_ = make_float2(__half2float(bias_[first]), __half2float(bias_[first + 1]));
            bias_high_ = make_float2(__half2float(bias_[first + half]), __half2float(bias_[first + half + 1]));
        }
#pragma unroll UNROLLED
        for (int pass = 0; pass < PASSES; ++pass) targets_[pass] = exists ? target(pass) : nullptr;
        // Most workers meet the same pairs in all of their tiles.
        if (tile_.pair == turned_pair_ || !is_turned()) return;
        turned_pair_ = tile_.pair;
        const float *inverse_frequencies = reinterpret_cast<const float *>(args_.inverse_frequencies) + tile_.pair + pair();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float inverse_frequency = inverse_frequencies[i];
#pragma unroll UNROLLED
            for (int pass = 0; pass < PASSES; ++pass) angles_[pass][i] = angle_of(positions_[pass], inverse_frequency);
        }
    }

    // Two sums of the lower halves, and those of the upper ones.
    __device__ void finish(int pass, float2 low, float2 high) const {
        __half *const to = targets_[pass];
        if (to == nullptr) return;
        float2 first = make_float2(low.x + bias_low_.x, high.x + bias_high_.x), second = make_float2(low.y + bias_low_.y, high.y + bias_high_.y);
        if (is_turned()) {
            first = rotated(first, angles_[pass][0]);
            second = rotated(second, angles_[pass][1]);
        }
        *reinterpret_cast<__half2 *>(to) = __floats2half2_rn(first.x, second.x);
        *reinterpret_cast<__half2 *>(to + args_.cache.head_dim / 2) = __floats2half2_rn(first.y, second.y);
    }

  private:
    __device__ bool is_turned() const { return tile_.head < args_.heads + args_.cache.kv_heads; }

    // Of the lower halves; nowhere where the cache has no place for the row.
    __device__ __half *target(int pass) const {
        if (tile_.head < args_.heads) {
            return reinterpret_cast<__half *>(args_.qkv) + row(pass) * size_t(args_.qkv_stride) + tile_.first_row(args_) + pair();
        }
        const uint32_t kv_heads = args_.cache.kv_heads, kept = tile_.head - args_.heads;  // number among keys, then values
        if (!places_[pass].exists) return nullptr;
        const uint64_t pool = kept < kv_heads ? args_.cache.keys : args_.cache.values;
        return reinterpret_cast<__half *>(pool) + (places_[pass].first + kept % kv_heads * KV_PAGE_TOKENS) * args_.cache.head_dim + tile_.pair + pair();
    }

    const RotaryArgs &args_;
    const __half *const bias_;
    const uint32_t thread_;
    uint32_t turned_pair_ = ~0u;
    HeadTile<PAIRS> tile_;
    uint32_t positions_[PASSES] = {};
    CacheRow places_[PASSES];
    __half *targets_[PASSES];
    float2 angles_[PASSES][2];
    float2 bias_low_, bias_high_;
};

// Of a product whose columns are no heads.
struct NoHeads {
    __device__ NoHeads(const RotaryArgs *, uint64_t, uint32_t) {}
    __device__ void begin() {}
    __device__ void expect(uint32_t) {}
};
