// Layer norm and RMS norm with fused residual:  h = x + r;  y = norm(h) * weight (+ bias)
//   x, r, h, y: [rows, width] fp16, row-major, no gaps; weight, bias: [width] fp16; sums in fp32.
//   r and h may be absent (0). h may be x or r: a row is read whole before it is written.
// Memory bound: x and r read once, h and y written once, nothing else. A row stays in the registers of its group from first to last.
#include "norm/row.cuh"

template <int GROUP, int BLOCK, bool VECTOR, bool CENTRED>
__device__ __forceinline__ void norm_rows(const NormArgs &args, const Tiles &tiles) {
    constexpr uint32_t ROWS = BLOCK / GROUP; // rows in a tile
    StridedTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint32_t number = tile * ROWS + threadIdx.x / GROUP;
        if (number >= args.rows) continue; // whole groups leave together
        const uint64_t start = static_cast<uint64_t>(number) * args.width;
        Row<GROUP, 4, VECTOR, CENTRED> row;
        row.load(reinterpret_cast<const __half *>(args.x) + start, args.width);
        if (args.residual) row.add(reinterpret_cast<const __half *>(args.residual) + start, args.width);
        if (args.sum) row.store(reinterpret_cast<__half *>(args.sum) + start, args.width);
        row.normalise(args.width, args.epsilon, reinterpret_cast<const __half *>(args.weight), reinterpret_cast<const __half *>(args.bias));
        row.store(reinterpret_cast<__half *>(args.y) + start, args.width);
    }
}

#define DEFINE_NORMS(shape, group, block)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(block) layer_norm_##shape(NormArgs args, Tiles tiles) {                                   \
        norm_rows<group, block, true, true>(args, tiles);                                                                                  \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(block) layer_norm_##shape##_unaligned(NormArgs args, Tiles tiles) {                       \
        norm_rows<group, block, false, true>(args, tiles);                                                                                 \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(block) rms_norm_##shape(NormArgs args, Tiles tiles) {                                     \
        norm_rows<group, block, true, false>(args, tiles);                                                                                 \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(block) rms_norm_##shape##_unaligned(NormArgs args, Tiles tiles) {                         \
        norm_rows<group, block, false, false>(args, tiles);                                                                                \
    }

FOR_EACH_ROW_SHAPE(DEFINE_NORMS)
