// Embeddings:  v = words[id[row]] (+ positions[position[row]]) (+ types[0]);  sum = v;  y = v, or norm(v) * weight (+ bias)
//   tables: [entries, width] fp16; id, position: [rows] u32; sum, y: [rows, width] fp16, row-major, no gaps.
// BERT's are all three tables under a layer norm (Devlin et al. 2019, section 3); GPT-2's are words and positions, Llama's words alone, each with
// the first layer's norm in the same pass: the residual stream goes to `sum`, the normalised rows to `y`.
// The host checks ids and positions against the tables. One beyond a table gives rows of NaN, never a read out of bounds.
#include "norm/row.cuh"

enum class Normalise { NOT, LAYER, RMS };

template <Holder HOLDER, int CHUNKS, bool VECTOR, Normalise NORMALISE, Weights WEIGHTS>
__device__ __forceinline__ void embed_rows(const EmbedArgs &args, const Tiles &tiles) {
    RowNorm<HOLDER, CHUNKS, VECTOR, NORMALISE == Normalise::LAYER, WEIGHTS> norm(args.weight, args.bias, args.width, args.epsilon);
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint32_t number = Group<HOLDER>::row(tile);
        if (number >= args.rows) continue;
        const uint64_t width = args.width;
        const uint32_t id = reinterpret_cast<const uint32_t *>(args.ids)[number];
        const uint32_t position = args.positions ? reinterpret_cast<const uint32_t *>(args.positions)[number] : 0;
        const bool known = id < args.vocabulary && (!args.positions || position < args.max_positions);
        Row<HOLDER, CHUNKS, VECTOR> row;
        row.load(reinterpret_cast<const __half *>(args.words) + (known ? id : 0) * width, args.width);
        if (args.positions) row.add(reinterpret_cast<const __half *>(args.position_table) + (known ? position : 0) * width, args.width);
        if (args.type_table) row.add(reinterpret_cast<const __half *>(args.type_table), args.width);
        if (!known) row.fill(__int_as_float(0x7fc00000));
        if (args.sum) row.store(reinterpret_cast<__half *>(args.sum) + number * width, args.width);
        if constexpr (NORMALISE != Normalise::NOT) {
            if (known) norm.apply(row);
        }
        row.store(reinterpret_cast<__half *>(args.y) + number * width, args.width);
    }
}

#define DEFINE_EMBEDDING(name, holder, chunks, block, blocks, vector, normalise, weights)                                                  \
    extern "C" __global__ void __launch_bounds__(block, blocks) name(EmbedArgs args, Tiles tiles) {                                        \
        embed_rows<holder, chunks, vector, normalise, weights>(args, tiles);                                                               \
    }

// An embedding starts a step of few rows, or a pass whose length it hardly matters for: weights are kept where there are registers for them.
#define DEFINE_EMBEDDINGS(widest, holder, chunks, block, few, weights)                                                                     \
    DEFINE_EMBEDDING(embed_##widest, holder, chunks, block, few, true, Normalise::NOT, Weights::STREAMED)                                  \
    DEFINE_EMBEDDING(embed_##widest##_unaligned, holder, chunks, block, few, false, Normalise::NOT, Weights::STREAMED)                     \
    DEFINE_EMBEDDING(embed_layer_norm_##widest, holder, chunks, block, few, true, Normalise::LAYER, weights)                               \
    DEFINE_EMBEDDING(embed_layer_norm_##widest##_unaligned, holder, chunks, block, few, false, Normalise::LAYER, Weights::STREAMED)        \
    DEFINE_EMBEDDING(embed_rms_norm_##widest, holder, chunks, block, few, true, Normalise::RMS, weights)                                   \
    DEFINE_EMBEDDING(embed_rms_norm_##widest##_unaligned, holder, chunks, block, few, false, Normalise::RMS, Weights::STREAMED)
#define DEFINE_EMBEDDINGS_KEPT(widest, holder, chunks, block, few, many) DEFINE_EMBEDDINGS(widest, holder, chunks, block, few, Weights::KEPT)

FOR_EACH_ROW_SHAPE_BUT_WIDEST(DEFINE_EMBEDDINGS_KEPT)
DEFINE_EMBEDDINGS(32768, Holder::BLOCK, 4, 1024, 1, Weights::STREAMED)
