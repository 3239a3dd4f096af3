// Rows of a ragged batch, picked or averaged.
//   gather_rows: y[i] = x[index[i]]
//   mean_pool:   y[b] = mean over t < lengths[b] of x[starts[b] + t], divided by its Euclidean length if asked for
//   x: [*, width] fp16 row-major; gather y: [rows, width] fp16; pooled y: [rows, width] fp32.
#include "norm/row.cuh"

// A block a row. VECTOR: 16 bytes at a time, for aligned rows whose width is a multiple of 8.
template <bool VECTOR>
__device__ __forceinline__ void gather(const PoolArgs &args, const Tiles &tiles) {
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint64_t source = reinterpret_cast<const uint32_t *>(args.starts)[tile];
        const __half *x = reinterpret_cast<const __half *>(args.x) + source * args.width;
        __half *y = reinterpret_cast<__half *>(args.y) + static_cast<uint64_t>(tile) * args.width;
        if constexpr (VECTOR) {
            for (uint32_t i = threadIdx.x * CHUNK; i < args.width; i += blockDim.x * CHUNK)
                *reinterpret_cast<uint4 *>(y + i) = *reinterpret_cast<const uint4 *>(x + i);
        } else {
            for (uint32_t i = threadIdx.x; i < args.width; i += blockDim.x) y[i] = x[i];
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) gather_rows(PoolArgs args, Tiles tiles) { gather<true>(args, tiles); }
extern "C" __global__ void __launch_bounds__(256) gather_rows_unaligned(PoolArgs args, Tiles tiles) { gather<false>(args, tiles); }

// A block a sequence. Each warp adds up every eighth token, 256 columns at a time; the warps' sums are then added in their order.
template <bool VECTOR>
__device__ __forceinline__ void pool(const PoolArgs &args, const Tiles &tiles) {
    constexpr uint32_t WARPS = 8, COLUMNS = 32 * CHUNK;
    __shared__ float sums[WARPS][COLUMNS];
    GroupSum<Holder::BLOCK> sum_of_block;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint64_t start = reinterpret_cast<const uint32_t *>(args.starts)[tile];
        const uint32_t length = reinterpret_cast<const uint32_t *>(args.lengths)[tile];
        const __half *x = reinterpret_cast<const __half *>(args.x) + start * args.width;
        float *y = reinterpret_cast<float *>(args.y) + static_cast<uint64_t>(tile) * args.width;
        float squares = 0.0f;
        for (uint32_t first = 0; first < args.width; first += COLUMNS) {
            float sum[CHUNK] = {};
#pragma unroll 4
            for (uint32_t token = warp; token < length; token += WARPS) {
                float v[CHUNK];
                unpack(load_packed<VECTOR>(x + static_cast<uint64_t>(token) * args.width, first + lane * CHUNK, args.width), v);
#pragma unroll
                for (int i = 0; i < CHUNK; ++i) sum[i] += v[i];
            }
#pragma unroll
            for (int i = 0; i < CHUNK; ++i) sums[warp][lane * CHUNK + i] = sum[i];
            __syncthreads();
            if (first + threadIdx.x < args.width) {
                float mean = 0.0f;
#pragma unroll
                for (uint32_t other = 0; other < WARPS; ++other) mean += sums[other][threadIdx.x];
                mean /= static_cast<float>(length);
                y[first + threadIdx.x] = mean;
                squares += mean * mean;
            }
            __syncthreads();
        }
        if (!args.normalise) continue;
        // The floor keeps a zero vector at zero.
        const float scale = 1.0f / fmaxf(sqrtf(sum_of_block(squares)), 1e-12f);
        for (uint32_t i = threadIdx.x; i < args.width; i += blockDim.x) y[i] *= scale; // what this thread wrote
    }
}

extern "C" __global__ void __launch_bounds__(256) mean_pool(PoolArgs args, Tiles tiles) { pool<true>(args, tiles); }
extern "C" __global__ void __launch_bounds__(256) mean_pool_unaligned(PoolArgs args, Tiles tiles) { pool<false>(args, tiles); }
