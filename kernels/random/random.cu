// Weights for models that have none: element i = (u(key, i) - 1) * half_width, u uniform in [0, 2); or a constant. Rows of `columns` elements
// begin `stride` elements apart, so that two matrices can be laid row by row in turn.
// src/weights/random.rs defines the same numbers for the CPU, bit for bit before rounding to fp16: element i is a pure function of (key, i), so
// it is the same on any grid. Source of mix: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
#include <cuda_fp16.h>

#include "elastic.cuh"

__device__ __forceinline__ uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

constexpr uint32_t TILE = 256 * 32; // elements a block makes before it looks for more; RandomWeights::TILE

extern "C" __global__ void __launch_bounds__(256) random_weights(RandomArgs args, Tiles tiles) {
    __half *y = reinterpret_cast<__half *>(args.y);
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next_for_each_warp(tile);) {
        const uint64_t first = static_cast<uint64_t>(tile) * TILE;
        for (uint64_t i = first + threadIdx.x; i < first + TILE && i < args.count; i += 256) {
            const float u = static_cast<float>(mix(args.key + i) >> 40) * 0x1p-23f;
            y[i / args.columns * args.stride + i % args.columns] =
                __float2half_rn(args.half_width == 0.0f ? args.constant : __fmul_rn(u - 1.0f, args.half_width));
        }
    }
}
