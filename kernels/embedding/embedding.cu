// Embeddings.
//   embed_tokens:  y[row] = word[id[row]], + position[pos[row]] where there is such a table
//   embed_bert:    y[row] = layer_norm(word[id[row]] + position[pos[row]] + type[0]) * weight + bias   (Devlin et al. 2019, section 3)
//     without position[.] or type[.] where there is no such table
//   tables: [entries, width] fp16; id, pos: [rows] u32; y: [rows, width] fp16, row-major, no gaps.
// The host checks ids and positions against the tables. One beyond a table gives a row of NaN, never a read out of bounds.
#include "norm/row.cuh"

template <int GROUP, int BLOCK, bool VECTOR, bool BERT>
__device__ __forceinline__ void embed_rows(const EmbedArgs &args, const Tiles &tiles) {
    constexpr uint32_t ROWS = BLOCK / GROUP;
    StridedTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint32_t number = tile * ROWS + threadIdx.x / GROUP;
        if (number >= args.rows) continue;
        const uint64_t width = args.width;
        const uint32_t id = reinterpret_cast<const uint32_t *>(args.ids)[number];
        bool known = id < args.vocabulary;
        Row<GROUP, 4, VECTOR, true> row;
        row.load(reinterpret_cast<const __half *>(args.words) + (known ? id : 0) * width, args.width);
        if (args.position_table) {
            const uint32_t position = reinterpret_cast<const uint32_t *>(args.positions)[number];
            known = known && position < args.max_positions;
            row.add(reinterpret_cast<const __half *>(args.position_table) + (known ? position : 0) * width, args.width);
        }
        if constexpr (BERT) {
            if (args.type_table) row.add(reinterpret_cast<const __half *>(args.type_table), args.width);
            row.normalise(args.width, args.epsilon, reinterpret_cast<const __half *>(args.weight), reinterpret_cast<const __half *>(args.bias));
        }
        if (!known) {
#pragma unroll
            for (int c = 0; c < 4; ++c)
#pragma unroll
                for (int i = 0; i < CHUNK; ++i) row.v[c][i] = __int_as_float(0x7fc00000);
        }
        row.store(reinterpret_cast<__half *>(args.y) + number * width, args.width);
    }
}

#define DEFINE_EMBEDDINGS(shape, group, block)                                                                                             \
    extern "C" __global__ void __launch_bounds__(block) embed_tokens_##shape(EmbedArgs args, Tiles tiles) {                                \
        embed_rows<group, block, true, false>(args, tiles);                                                                                \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(block) embed_tokens_##shape##_unaligned(EmbedArgs args, Tiles tiles) {                    \
        embed_rows<group, block, false, false>(args, tiles);                                                                               \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(block) embed_bert_##shape(EmbedArgs args, Tiles tiles) {                                  \
        embed_rows<group, block, true, true>(args, tiles);                                                                                 \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(block) embed_bert_##shape##_unaligned(EmbedArgs args, Tiles tiles) {                      \
        embed_rows<group, block, false, true>(args, tiles);                                                                                \
    }

FOR_EACH_ROW_SHAPE(DEFINE_EMBEDDINGS)
