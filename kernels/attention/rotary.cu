// Rotary position embedding, in place on the query and key heads, and the write to the KV cache:
//   for each head and i < d/2:   x'[i]       = x[i] cos(a) - x[i + d/2] sin(a)
//                                x'[i + d/2] = x[i + d/2] cos(a) + x[i] sin(a),   a = position * inverse_frequency[i]
//   cache_k[sequence_of[row], head, positions[row]] = rotated k,  cache_v[...] = v
//   qkv: [rows, qkv_stride] fp16; angles and products fp32
// The pairs are (i, i + d/2), as in Hugging Face's rotate_half, and not the paper's (2i, 2i + 1).
// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, eq. 34.
//
// A tile is one row: its d/2 angles are computed once, in shared memory, for all its heads. Memory bound: each query and key is read and
// written once, each value read once where there is a cache.
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

} // namespace

extern "C" __global__ void __launch_bounds__(256, 4) rotary(const __grid_constant__ RotaryArgs args, const __grid_constant__ Tiles tiles) {
    __shared__ CosSin angles[MAX_PAIRS];
    const float *const inverse_frequencies = reinterpret_cast<const float *>(args.inverse_frequencies);
    const int head_dim = args.head_dim, pairs = head_dim / 2;
    const int rotated_heads = args.heads + args.kv_heads;

    StridedTiles queue(tiles);
    for (uint32_t row; queue.next(row);) {
        const uint32_t position = reinterpret_cast<const uint32_t *>(args.positions)[row];
        for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
            sincosf(float(position) * inverse_frequencies[i], &angles[i].sin, &angles[i].cos);
        }
        __syncthreads();

        __half *const heads = reinterpret_cast<__half *>(args.qkv) + row * size_t(args.qkv_stride);
        // A position past the capacity has no place in the cache; writing it would damage the next head's.
        const bool cached = args.k_cache != 0 && position < args.capacity;
        const size_t sequence = cached ? reinterpret_cast<const uint32_t *>(args.sequence_of)[row] : 0;
        const auto cache_row = [&](uint64_t cache, int kv_head) {
            return reinterpret_cast<__half *>(cache) + ((sequence * args.kv_heads + kv_head) * args.capacity + position) * head_dim;
        };

        for (int i = threadIdx.x; i < rotated_heads * pairs; i += blockDim.x) {
            const int head = i / pairs, pair = i % pairs;
            __half *const low = heads + head * head_dim + pair, *const high = low + pairs;
            __half x = *low, y = *high;
            rotate(x, y, angles[pair]);
            *low = x;
            *high = y;
            if (cached && head >= args.heads) {
                __half *const k = cache_row(args.k_cache, head - args.heads) + pair;
                k[0] = x;
                k[pairs] = y;
            }
        }
        if (cached) {
            const __half *const values = heads + rotated_heads * head_dim;
            for (int i = threadIdx.x; i < args.kv_heads * head_dim; i += blockDim.x) {
                cache_row(args.v_cache, i / head_dim)[i % head_dim] = values[i];
            }
        }
        __syncthreads(); // the next row's angles take this one's place
    }
}
