// Attention of new rows over the paged cache for Hopper: what chunk.cuh computes, by the loop of warpgroup_loop.cuh. Queries are rows of qkv; keys and
// values are rows of pages, and the 64 of one head in one page are one box. So all that differs from prefill_wgmma.cuh is that the loading thread looks
// up where each 64 keys are, and that a chunk's first row is at a position of its own.
//
// The page table is asked before the thread waits for a free stage, so that nobody waits for the answer: a block's pages are known when there is room
// for them. Keys of pages are far apart, but a box is contiguous (head_dim * 128 bytes), which is all that the copy engine wants.
//
// Blocks of keys start at multiples of their size from position 0, and one that a row does not see leaves its sums as they are: a row has the same bits
// however its prompt is cut.
#pragma once
#include "attention/warpgroup_loop.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

namespace attention {

template <int D>
struct PagedRows {
    using Args = AttentionChunkTmaArgs;
    using Shape = WarpgroupShape<D>;
    static constexpr bool KNOWN_EARLY = false;
    // Which rows share a tile depends on where the prompt was cut.
    static constexpr bool STEADY = true;
    static constexpr int PAGES = Shape::KEYS / KV_PAGE_TOKENS; // of a block
    static_assert(BOX_ROWS == KV_PAGE_TOKENS && (PAGES == 1 || PAGES == 2));

    // Rows from the last to the first: those that see most keys are begun first. For each QUERIES of them, every head of every chunk.
    struct Tile {
        uint32_t head;
        uint32_t sequence; // its row of the page table
        uint32_t start;
        int length;
        int first_query;
        int first_key, end_key;

        Tile() = default;
        __device__ Tile(const AttentionChunkArgs &args, uint32_t tile) {
            const uint32_t chunk = tile / args.heads % args.chunks;
            const auto of_chunk = [&](uint64_t array) { return reinterpret_cast<const uint32_t *>(array)[chunk]; };
            const int context = min(of_chunk(args.contexts), args.cache.pages_per_sequence * KV_PAGE_TOKENS);
            const int past = context - int(of_chunk(args.lengths)); // positions before the chunk's first row
            head = tile % args.heads;
            sequence = of_chunk(args.sequence_of);
            start = of_chunk(args.starts) - past;
            first_query = past + (div_ceil(args.max_length, Shape::QUERIES) - 1 - int(tile / args.heads / args.chunks)) * Shape::QUERIES;
            length = past < 0 ? first_query : context; // a chunk longer than its context has no tiles
            const Mask visible = mask(args);
            first_key = visible.first(first_query);
            end_key = visible.end(min(first_query + Shape::QUERIES, length) - 1);
        }

        __device__ Mask mask(const AttentionChunkArgs &args) const { return Mask(length, args.window, true); }
    };

    class Keys {
      public:
        // As the table has them. What they are multiplied by comes later, or the thread would wait for them here.
        struct Place {
            uint32_t first, second;
        };

        __device__ Keys(const AttentionChunkArgs &args, const Tile &tile)
            : pages_(reinterpret_cast<const uint32_t *>(args.cache.page_table) + tile.sequence * size_t(args.cache.pages_per_sequence)),
              last_page_((tile.end_key - 1) / KV_PAGE_TOKENS), head_(tile.head / (args.heads / args.cache.kv_heads)) {}

        // The pages of a block. Entries past the last key's may be anything, and the last of them end the table: they are not read.
        __device__ Place place(int block) const {
            return {pages_[block * PAGES], PAGES == 1 ? 0 : pages_[min(block * PAGES + 1, last_page_)]};
        }

        __device__ __forceinline__ void load_keys(const Args &args, uint32_t target, uint32_t full, uint32_t column, const Place &place, int box) const {
            tma_load(target, args.keys, full, column, 0, slab(args, place, box));
        }
        __device__ __forceinline__ void load_values(const Args &args, uint32_t target, uint32_t full, uint32_t column, const Place &place, int box) const {
            tma_load(target, args.values, full, column, 0, slab(args, place, box));
        }

      private:
        // A head's part of a page: box `box` of a block.
        __device__ __forceinline__ uint32_t slab(const Args &args, const Place &place, int box) const {
            return (PAGES == 1 || box == 0 ? place.first : place.second) * args.plain.cache.kv_heads + head_;
        }

        const uint32_t *pages_;
        int last_page_;
        uint32_t head_;
    };

    __device__ static void prefetch(const Args &args) {
        tma_prefetch(args.rows);
        tma_prefetch(args.keys);
        tma_prefetch(args.values);
    }
};

template <int D>
using ChunkWgmma = WarpgroupLoop<D, PagedRows<D>>;

} // namespace attention

// The kernel for heads of up to D columns. A macro, since the host finds kernels by their C names.
#define ATTENTION_CHUNK_WGMMA(D)                                                                                                          \
    static_assert(sizeof(attention::ChunkWgmma<D>::Shared) == ATTENTION_CHUNK_WGMMA_D##D##_SHARED_BYTES);                                 \
    extern "C" __global__ void __launch_bounds__(attention::ChunkWgmma<D>::THREADS, attention::ChunkWgmma<D>::BLOCKS_PER_SM)              \
        attention_chunk_wgmma_d##D(const __grid_constant__ AttentionChunkTmaArgs args, const __grid_constant__ Tiles tiles) {             \
        extern __shared__ __align__(1024) uint4 dynamic_shared[];                                                                         \
        attention::ChunkWgmma<D>::run(args, tiles, *reinterpret_cast<attention::ChunkWgmma<D>::Shared *>(dynamic_shared));                \
    }

#else

#define ATTENTION_CHUNK_WGMMA(D)

#endif
