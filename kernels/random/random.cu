// Weights for models that have none: y[i] = mean + deviation * z(seed, i), z standard normal.
// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3) numbers the draws, so element i has the
// same value on any grid; Box and Muller (1958) turn two uniform numbers into two normal ones.
#include <cuda_fp16.h>

#include "elastic.cuh"

__device__ __forceinline__ uint4 philox(uint64_t counter, uint64_t seed) {
    uint4 x = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0u, 0u};
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t left = static_cast<uint64_t>(x.x) * 0xD2511F53u;
        const uint64_t right = static_cast<uint64_t>(x.z) * 0xCD9E8D57u;
        x = {static_cast<uint32_t>(right >> 32) ^ x.y ^ key0, static_cast<uint32_t>(right), static_cast<uint32_t>(left >> 32) ^ x.w ^ key1,
             static_cast<uint32_t>(left)};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return x;
}

__device__ __forceinline__ float2 normal_pair(uint32_t a, uint32_t b) {
    const float u = (static_cast<float>(a >> 8) + 0.5f) * 0x1p-24f; // in (0, 1): its logarithm is finite
    const float v = static_cast<float>(b >> 8) * 0x1p-23f;          // in [0, 2), in half turns
    const float radius = sqrtf(-2.0f * logf(u));
    float sine, cosine;
    sincospif(v, &sine, &cosine);
    return {radius * cosine, radius * sine};
}

constexpr uint32_t TILE = 256 * 4 * 8; // elements a block makes before it looks for more; RandomNormal::TILE

extern "C" __global__ void __launch_bounds__(256) random_normal(RandomArgs args, Tiles tiles) {
    __half *y = reinterpret_cast<__half *>(args.y);
    StridedTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint64_t first = static_cast<uint64_t>(tile) * TILE;
        for (uint64_t i = first + threadIdx.x * 4; i < first + TILE && i < args.count; i += 256 * 4) {
            const uint4 bits = philox(i / 4, args.seed);
            const float2 low = normal_pair(bits.x, bits.y), high = normal_pair(bits.z, bits.w);
            const float z[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (i + j < args.count) y[i + j] = __float2half_rn(args.mean + args.deviation * z[j]);
        }
    }
}
