// Layer norm and RMS norm with fused residual:  h = x + r;  y = norm(h) * weight (+ bias)
//   x, r, h, y: [rows, width] fp16, row-major, no gaps; weight, bias: [width] fp16; sums in fp32.
//   r and h may be absent (0). h may be x or r: a row is read whole before it is written. The norm of rows picked by index reads x[index[i]]
//   for row i of y.
// Memory bound: x and r read once, h and y written once, nothing else. A row stays in the registers of its group from first to last.
#include "norm/row.cuh"

template <Holder HOLDER, int CHUNKS, bool VECTOR, bool CENTRED, Weights WEIGHTS>
__device__ __forceinline__ void norm_rows(const NormArgs &args, const Tiles &tiles) {
    RowNorm<HOLDER, CHUNKS, VECTOR, CENTRED, WEIGHTS> norm(args.weight, args.bias, args.width, args.epsilon);
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint32_t number = Group<HOLDER>::row(tile);
        if (number >= args.rows) continue; // whole groups leave together
        const uint64_t source = args.index ? reinterpret_cast<const uint32_t *>(args.index)[number] : number;
        const uint64_t from = source * args.width, to = static_cast<uint64_t>(number) * args.width;
        Row<HOLDER, CHUNKS, VECTOR> row;
        row.load(reinterpret_cast<const __half *>(args.x) + from, args.width);
        if (args.residual) row.add(reinterpret_cast<const __half *>(args.residual) + from, args.width);
        if (args.sum) row.store(reinterpret_cast<__half *>(args.sum) + to, args.width);
        norm.apply(row);
        row.store(reinterpret_cast<__half *>(args.y) + to, args.width);
    }
}

#define DEFINE_NORM(name, holder, chunks, block, blocks, vector, centred, weights)                                                         \
    extern "C" __global__ void __launch_bounds__(block, blocks) name(NormArgs args, Tiles tiles) {                                         \
        norm_rows<holder, chunks, vector, centred, weights>(args, tiles);                                                                  \
    }

#define DEFINE_NORMS(widest, holder, chunks, block, few, many)                                                                             \
    DEFINE_NORM(layer_norm_##widest##_streamed, holder, chunks, block, RESIDENT(few, many), true, true, Weights::STREAMED)                 \
    DEFINE_NORM(layer_norm_##widest##_unaligned, holder, chunks, block, few, false, true, Weights::STREAMED)                               \
    DEFINE_NORM(rms_norm_##widest##_streamed, holder, chunks, block, RESIDENT(few, many), true, false, Weights::STREAMED)                  \
    DEFINE_NORM(rms_norm_##widest##_unaligned, holder, chunks, block, few, false, false, Weights::STREAMED)

FOR_EACH_ROW_SHAPE(DEFINE_NORMS)

// The widest rows leave no registers for weights.
#define DEFINE_NORMS_KEPT(widest, holder, chunks, block, few, many)                                                                        \
    DEFINE_NORM(layer_norm_##widest##_kept, holder, chunks, block, few, true, true, Weights::KEPT)                                         \
    DEFINE_NORM(rms_norm_##widest##_kept, holder, chunks, block, few, true, false, Weights::KEPT)

FOR_EACH_ROW_SHAPE_BUT_WIDEST(DEFINE_NORMS_KEPT)
