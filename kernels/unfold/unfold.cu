// Convolutions as matrix products: what each output sees, laid side by side as a row ("im2col"; Chellapilla et al. 2006).
//   unfold_patches: y[image, 0] = 0; y[image, 1 + p, (c, u, v)] = pixels[image, c, u + top(p), v + left(p)]     a stride as wide as the window
//   unfold_tokens:  y[t, (w, i)] = x[t + w - width / 2, i], 0 past either end of t's sequence                   a stride of one token
//   all fp16, row-major; the rows of y of unfold_patches are `stride` elements apart, zeros from the patch's end on
// Row 0 of an image is where the class token goes: its product is 0, and what is added to it later is the token.
#include <cuda_fp16.h>

#include "elastic.cuh"

extern "C" __global__ void __launch_bounds__(256) unfold_patches(UnfoldPatchesArgs args, Tiles tiles) {
    ElasticTiles queue(tiles);
    const uint32_t patch = args.patch_size, side = args.image_size / patch, tokens = 1 + side * side;
    for (uint32_t tile; queue.next_for_each_warp(tile);) {
        const uint32_t image = tile / tokens, token = tile % tokens;
        const uint32_t top = token == 0 ? 0 : (token - 1) / side * patch, left = token == 0 ? 0 : (token - 1) % side * patch;
        const uint32_t elements = token == 0 ? 0 : args.channels * patch * patch;
        const __half *pixels = reinterpret_cast<const __half *>(args.pixels) + uint64_t(image) * args.channels * args.image_size * args.image_size;
        __half *y = reinterpret_cast<__half *>(args.y) + uint64_t(tile) * args.stride;
        for (uint32_t i = threadIdx.x; i < args.stride; i += blockDim.x) {
            // Rows of the patch: all of the first colour, then of the next.
            const uint32_t row = i / patch, channel = row / patch;
            const uint64_t from = (uint64_t(channel) * args.image_size + top + row % patch) * args.image_size + left + i % patch;
            y[i] = i < elements ? pixels[from] : __half(0.0f);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) unfold_tokens(UnfoldTokensArgs args, Tiles tiles) {
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next_for_each_warp(tile);) {
        const uint32_t sequence = tile / args.max_length, position = tile % args.max_length;
        const uint32_t length = reinterpret_cast<const uint32_t *>(args.lengths)[sequence];
        if (position >= length) continue;
        const uint64_t row = reinterpret_cast<const uint32_t *>(args.starts)[sequence] + uint64_t(position);
        const __half *x = reinterpret_cast<const __half *>(args.x);
        __half *y = reinterpret_cast<__half *>(args.y) + row * args.width * args.hidden;
        for (uint32_t tap = 0; tap < args.width; ++tap) {
            // Before the sequence's start it wraps around to a number beyond every length.
            const uint32_t neighbour = position + tap - args.width / 2;
            const bool there = neighbour < length;
            const uint64_t from = (row + tap - args.width / 2) * args.hidden;
            for (uint32_t i = threadIdx.x; i < args.hidden; i += blockDim.x) y[tap * args.hidden + i] = there ? x[from + i] : __half(0.0f);
        }
    }
}
