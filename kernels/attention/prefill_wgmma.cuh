// Prefill attention for Hopper: what prefill.cuh computes, by the loop of warpgroup_loop.cuh. Queries, keys and values are rows of qkv, which one map
// describes: columns of a head, rows, heads.
#pragma once
#include "attention/warpgroup_loop.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

namespace attention {

template <int D>
struct PackedRows {
    using Args = AttentionPrefillTmaArgs;
    using Shape = WarpgroupShape<D>;
    // The launch before this one must not write where sequences lie (prefill.rs).
    static constexpr bool KNOWN_EARLY = true;
    // A sequence is always cut into tiles at the same places.
    static constexpr bool STEADY = false;

    // Query blocks come from the last to the first (the most keys first, where causal), and for each of them every head of every sequence.
    struct Tile {
        uint32_t head;
        uint32_t start;
        int length;
        int first_query;
        int first_key, end_key;

        Tile() = default;
        __device__ Tile(const AttentionPrefillArgs &args, uint32_t tile) {
            const uint32_t sequence = tile / args.heads % args.sequences;
            head = tile % args.heads;
            length = reinterpret_cast<const uint32_t *>(args.lengths)[sequence];
            start = reinterpret_cast<const uint32_t *>(args.starts)[sequence];
            first_query = (div_ceil(args.max_length, Shape::QUERIES) - 1 - tile / args.heads / args.sequences) * Shape::QUERIES;
            const Mask visible = mask(args);
            first_key = visible.first(first_query);
            end_key = visible.end(min(first_query + Shape::QUERIES, length) - 1);
        }

        __device__ __forceinline__ Mask mask(const AttentionPrefillArgs &args) const { return Mask(length, args.window, args.causal); }
    };

    class Keys {
      public:
        __device__ Keys(const AttentionPrefillArgs &args, const Tile &tile)
            : start_(tile.start), head_(args.heads + tile.head / (args.heads / args.kv_heads)), value_head_(head_ + args.kv_heads) {}

        // The first row of a block.
        __device__ uint32_t place(int block) const { return start_ + block * Shape::KEYS; }

        __device__ __forceinline__ void load_keys(const Args &args, uint32_t target, uint32_t full, uint32_t column, uint32_t row, int box) const {
            tma_load(target, args.rows, full, column, row + box * BOX_ROWS, head_);
        }
        __device__ __forceinline__ void load_values(const Args &args, uint32_t target, uint32_t full, uint32_t column, uint32_t row, int box) const {
            tma_load(target, args.rows, full, column, row + box * BOX_ROWS, value_head_);
        }

      private:
        uint32_t start_, head_, value_head_;
    };

    __device__ static void prefetch(const Args &args) { tma_prefetch(args.rows); }
};

template <int D>
using PrefillWgmma = WarpgroupLoop<D, PackedRows<D>>;

} // namespace attention

// The kernel for heads of up to D columns. A macro, since the host finds kernels by their C names.
#define ATTENTION_PREFILL_WGMMA(D)                                                                                                        \
    static_assert(sizeof(attention::PrefillWgmma<D>::Shared) == ATTENTION_PREFILL_WGMMA_D##D##_SHARED_BYTES);                             \
    extern "C" __global__ void __launch_bounds__(attention::PrefillWgmma<D>::THREADS, attention::PrefillWgmma<D>::BLOCKS_PER_SM)          \
        attention_prefill_wgmma_d##D(const __grid_constant__ AttentionPrefillTmaArgs args, const __grid_constant__ Tiles tiles) {         \
        extern __shared__ __align__(1024) uint4 dynamic_shared[];                                                                         \
        attention::PrefillWgmma<D>::run(args, tiles, *reinterpret_cast<attention::PrefillWgmma<D>::Shared *>(dynamic_shared));            \
    }

#else

#define ATTENTION_PREFILL_WGMMA(D)

#endif
