// Rotary position embedding, in place on the query and key heads, and the write to the KV cache:
//   for each head and i < d/2:   x'[i]       = x[i] cos(a) - x[i + d/2] sin(a)
//                                x'[i + d/2] = x[i + d/2] cos(a) + x[i] sin(a),   a = position * inverse_frequency[i]
//   cache: the page and place of positions[row] in sequence_of[row] receive the rotated keys, and the values as they are
//   qkv: [rows, qkv_stride] fp16; angles and products fp32
// Without inverse frequencies nothing is rotated, and keys and values are copied as they are: models with absolute positions.
// The pairs are (i, i + d/2), as in Hugging Face's rotate_half, and not the paper's (2i, 2i + 1).
// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, eq. 34.
//
// A tile is one row: its d/2 angles are computed once, in shared memory, for all its heads. Memory bound: each query and key is read and
// written once, each value read once where there is a cache. Where every half head lies on 16 bytes, a thread moves 8 halves at a time.
#include <cuda_fp16.h>

#include "elastic.cuh"

namespace {

constexpr int MAX_PAIRS = 128; // heads of up to 256 columns

struct CosSin {
    float cos, sin;
};

__device__ void rotate(__half &low, __half &high, CosSin angle) {
    const float x = __half2float(low), y = __half2float(high);
    low = __float2half_rn(x * angle.cos - y * angle.sin);
    high = __float2half_rn(y * angle.cos + x * angle.sin);
}

// WIDTH halves that one access moves.
template <int WIDTH>
struct alignas(WIDTH * sizeof(__half)) Halves {
    __half of[WIDTH];
};

// Where a row's keys and values go: a head's columns begin at row(pool, kv_head).
struct CacheRow {
    const KvPages &pages;
    bool exists;
    size_t first_row;

    // A position past the capacity has no place in the cache; writing it would damage another sequence's pages.
    __device__ CacheRow(const RotaryArgs &args, uint32_t row, uint32_t position) : pages(args.cache), exists(false), first_row(0) {
        const uint32_t page = position / KV_PAGE_TOKENS;
        if (pages.keys == 0 || page >= pages.pages_per_sequence) return;
        const size_t sequence = reinterpret_cast<const uint32_t *>(args.sequence_of)[row];
        const size_t number = reinterpret_cast<const uint32_t *>(pages.page_table)[sequence * pages.pages_per_sequence + page];
        first_row = number * pages.kv_heads * KV_PAGE_TOKENS + position % KV_PAGE_TOKENS;
        exists = true;
    }

    __device__ __half *row(uint64_t pool, int kv_head) const {
        return reinterpret_cast<__half *>(pool) + (first_row + kv_head * KV_PAGE_TOKENS) * pages.head_dim;
    }
};

template <int WIDTH>
__device__ void rotate_and_store(const RotaryArgs &args, __half *heads, const CosSin *angles, const CacheRow &cache) {
    using Piece = Halves<WIDTH>;
    const int kv_heads = args.cache.kv_heads, head_dim = args.cache.head_dim, pairs = head_dim / 2;
    if (args.inverse_frequencies != 0) {
        const int pieces = pairs / WIDTH;
        for (int i = threadIdx.x; i < (int(args.heads) + kv_heads) * pieces; i += blockDim.x) {
            const int head = i / pieces, pair = i % pieces * WIDTH;
            Piece *const low = reinterpret_cast<Piece *>(heads + head * head_dim + pair);
            Piece *const high = reinterpret_cast<Piece *>(heads + head * head_dim + pair + pairs);
            Piece x = *low, y = *high;
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) rotate(x.of[j], y.of[j], angles[pair + j]);
            *low = x;
            *high = y;
            if (cache.exists && head >= args.heads) {
                __half *const key = cache.row(args.cache.keys, head - args.heads) + pair;
                *reinterpret_cast<Piece *>(key) = x;
                *reinterpret_cast<Piece *>(key + pairs) = y;
            }
        }
    }
    if (!cache.exists) return;
    const auto copy = [&](uint64_t pool, const __half *from) {
        for (int i = threadIdx.x; i < kv_heads * head_dim / WIDTH; i += blockDim.x) {
            const int kv_head = i * WIDTH / head_dim, column = i * WIDTH % head_dim;
            *reinterpret_cast<Piece *>(cache.row(pool, kv_head) + column) = reinterpret_cast<const Piece *>(from)[i];
        }
    };
    if (args.inverse_frequencies == 0) copy(args.cache.keys, heads + args.heads * head_dim);
    copy(args.cache.values, heads + (args.heads + kv_heads) * head_dim);
}

} // namespace

extern "C" __global__ void __launch_bounds__(256, 4) rotary(const __grid_constant__ RotaryArgs args, const __grid_constant__ Tiles tiles) {
    __shared__ CosSin angles[MAX_PAIRS];
    const float *const inverse_frequencies = reinterpret_cast<const float *>(args.inverse_frequencies);
    const int pairs = inverse_frequencies == nullptr ? 0 : args.cache.head_dim / 2;
    const bool aligned = ((args.qkv | 2 * args.qkv_stride | args.cache.head_dim) & 15) == 0;

    StridedTiles queue(tiles);
    for (uint32_t row; queue.next(row);) {
        const uint32_t position = reinterpret_cast<const uint32_t *>(args.positions)[row];
        const CacheRow cache(args, row, position);
        for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
            sincosf(float(position) * inverse_frequencies[i], &angles[i].sin, &angles[i].cos);
        }
        __syncthreads();
        __half *const heads = reinterpret_cast<__half *>(args.qkv) + row * size_t(args.qkv_stride);
        if (aligned) {
            rotate_and_store<8>(args, heads, angles, cache);
        } else {
            rotate_and_store<1>(args, heads, angles, cache);
        }
        __syncthreads(); // the next row's angles take this one's place
    }
}
