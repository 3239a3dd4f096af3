// Rows of a ragged batch, picked or averaged.
//   gather_rows: y[i] = x[index[i]]                    the last token of each sequence, before the language-model head
//   mean_pool:   y[b] = mean over t < lengths[b] of x[starts[b] + t], divided by its Euclidean length if asked for
//   x: [*, width] fp16 row-major; gather y: [rows, width] fp16; pooled y: [rows, width] fp32.
#include <cuda_fp16.h>

#include "norm/row.cuh"

extern "C" __global__ void __launch_bounds__(256) gather_rows(PoolArgs args, Tiles tiles) {
    StridedTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint64_t source = reinterpret_cast<const uint32_t *>(args.starts)[tile];
        const __half *x = reinterpret_cast<const __half *>(args.x) + source * args.width;
        __half *y = reinterpret_cast<__half *>(args.y) + static_cast<uint64_t>(tile) * args.width;
        for (uint32_t i = threadIdx.x; i < args.width; i += blockDim.x) y[i] = x[i];
    }
}

extern "C" __global__ void __launch_bounds__(256) mean_pool(PoolArgs args, Tiles tiles) {
    StridedTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint64_t start = reinterpret_cast<const uint32_t *>(args.starts)[tile];
        const uint32_t length = reinterpret_cast<const uint32_t *>(args.lengths)[tile];
        const __half *x = reinterpret_cast<const __half *>(args.x) + start * args.width;
        float *y = reinterpret_cast<float *>(args.y) + static_cast<uint64_t>(tile) * args.width;
        float squares = 0.0f;
        for (uint32_t i = threadIdx.x; i < args.width; i += blockDim.x) {
            float sum = 0.0f;
            for (uint32_t t = 0; t < length; ++t) sum += __half2float(x[static_cast<uint64_t>(t) * args.width + i]);
            y[i] = sum / static_cast<float>(length);
            squares += y[i] * y[i];
        }
        if (!args.normalise) continue;
        // The floor keeps a zero vector at zero.
        const float scale = 1.0f / fmaxf(sqrtf(group_sum<256>(squares)), 1e-12f);
        for (uint32_t i = threadIdx.x; i < args.width; i += blockDim.x) y[i] *= scale;
    }
}
