// Attention where every sequence brings many queries: encoders (bidirectional) and the first pass of decoders (causal).
//   out[i] = sum over keys j that i sees of softmax_j(scale * q[i] . k[j]) * v[j],   for each query head, its key head = head / (heads / kv_heads)
//   qkv: [rows, qkv_stride] fp16, out: [rows, output_stride] fp16; scores, softmax and sums fp32
//
// Elastic, and persistent: a tile is 64 queries of one head of one sequence. The host knows only the greatest length, so it counts tiles as
// if all sequences had it; a tile past its sequence's end is over at once, which makes padding cost nothing. Tiles with the most keys before
// them come first when causal: the last tiles to be taken are then short ones, and no SM waits long for another.
//
// Four warps of 16 queries share each block of keys and values, which two stages of asynchronous copies bring from L2: one is computed on
// while the other fills. 64 flops for each byte from L2: tensor cores and shared memory are the limit.
#pragma once
#include "attention/flash.cuh"
#include "elastic.cuh"

namespace attention {

template <int D>
struct Prefill {
    static constexpr int WARPS = 4;
    static constexpr int THREADS = WARPS * 32;
    static constexpr int QUERIES = WARPS * QUERY_ROWS;
    static constexpr int KEYS = D <= 128 ? 64 : 32;
    // Blocks that must fit on an SM: bounds the registers, and prefill.rs counts on it.
    static constexpr int BLOCKS_PER_SM = D <= 32 ? 4 : D <= 80 ? 3 : 2;

    struct Stage {
        __half keys[KEYS * PITCH<D>];
        __half values[KEYS * PITCH<D>];
    };
    struct Shared {
        Stage stages[2];
        // Queries that go to registers borrow the second stage before its first use.
        __half queries[Queries<D>::IN_REGISTERS ? 8 : QUERIES * PITCH<D>];
    };

    // What a tile is of: query blocks from the last to the first, and for each of them every head of every sequence.
    struct Place {
        int head, length, first_query;
        size_t start; // the sequence's first row

        __device__ Place(const AttentionPrefillArgs &args, uint32_t tile) {
            const uint32_t sequence = tile / args.heads % args.sequences;
            head = tile % args.heads;
            length = reinterpret_cast<const uint32_t *>(args.lengths)[sequence];
            start = reinterpret_cast<const uint32_t *>(args.starts)[sequence];
            first_query = (div_ceil(args.max_length, QUERIES) - 1 - tile / args.heads / args.sequences) * QUERIES;
        }
    };

    __device__ static void tile(const AttentionPrefillArgs &args, uint32_t tile, Shared &shared) {
        const Place place(args, tile);
        const int length = place.length, first_query = place.first_query;
        if (first_query >= length) return;

        const Mask mask(length, args.window, args.causal);
        const float scale_log2 = args.scale * 1.4426950408889634f;
        // The warp's number is broadcast, so that the compiler knows that a warp does not part ways over it.
        const int thread = threadIdx.x, warp = __shfl_sync(0xffffffff, thread / 32, 0), first_row = first_query + warp * QUERY_ROWS;

        const uint32_t kv_head = place.head / (args.heads / args.kv_heads);
        const __half *const sequence_rows = reinterpret_cast<const __half *>(args.qkv) + place.start * args.qkv_stride;
        const __half *const key_rows = sequence_rows + (args.heads + kv_head) * args.head_dim;
        const bool aligned = on_16_bytes(args.qkv, args.qkv_stride, args.head_dim);
        const auto rows_from = [&](const __half *column, int row) {
            return Rows{column + row * size_t(args.qkv_stride), args.qkv_stride, length - row, int(args.head_dim)};
        };
        const auto copy_block = [&](int block) {
            Stage &stage = shared.stages[block % 2];
            copy_rows<D, KEYS, THREADS>(stage.keys, rows_from(key_rows, block * KEYS), aligned, thread);
            copy_rows<D, KEYS, THREADS>(stage.values, rows_from(key_rows + args.kv_heads * args.head_dim, block * KEYS), aligned, thread);
            cp_async_commit();
        };

        // All keys that any of the tile's queries sees, in blocks that start at multiples of KEYS wherever the tile is.
        const int first_block = mask.first(first_query) / KEYS;
        const int end_block = div_ceil(mask.end(min(first_query + QUERIES, length) - 1), KEYS);

        __half *const shared_queries = Queries<D>::IN_REGISTERS ? shared.stages[(first_block + 1) % 2].keys : shared.queries;
        copy_rows<D, QUERIES, THREADS>(shared_queries, rows_from(sequence_rows + place.head * args.head_dim, first_query), aligned, thread);
        copy_block(first_block);
        cp_async_wait<0>();
        __syncthreads();
        const Queries<D> queries(shared_queries + warp * QUERY_ROWS * PITCH<D>);

        Partial<D> partial;
        for (int block = first_block; block < end_block; ++block) {
            cp_async_wait<0>();
            // This block has arrived for all threads, and none still reads the stage that the next one is copied to.
            __syncthreads();
            if (block + 1 < end_block) copy_block(block + 1);
            const Stage &stage = shared.stages[block % 2];
            partial.template attend<KEYS>(queries, stage.keys, stage.values, block * KEYS, first_row, mask, scale_log2);
        }

        partial.finish();
        __half *const output = reinterpret_cast<__half *>(args.output);
        const bool in_pairs = ((args.output | 2 * (args.output_stride | args.head_dim)) & 3) == 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + thread % 32 / 4 + half * 8;
            if (row >= length) continue;
            const float factor = 1.0f / partial.sum[half];
            __half *const columns = output + (place.start + row) * args.output_stride + place.head * args.head_dim;
#pragma unroll
            for (int i = 0; i < D / 8; ++i) {
                const int column = i * 8 + thread % 4 * 2;
                const float left = partial.output[i][half * 2] * factor, right = partial.output[i][half * 2 + 1] * factor;
                if (in_pairs) {
                    if (column < args.head_dim) *reinterpret_cast<uint32_t *>(columns + column) = pack_halves(left, right);
                } else {
                    if (column < args.head_dim) columns[column] = __float2half_rn(left);
                    if (column + 1 < args.head_dim) columns[column + 1] = __float2half_rn(right);
                }
            }
        }
    }
};

} // namespace attention

// The kernel for heads of up to D columns. A macro, since the host finds kernels by their C names.
#define ATTENTION_PREFILL(D)                                                                                                              \
    static_assert(sizeof(attention::Prefill<D>::Shared) == ATTENTION_PREFILL_D##D##_SHARED_BYTES);                                        \
    extern "C" __global__ void __launch_bounds__(attention::Prefill<D>::THREADS, attention::Prefill<D>::BLOCKS_PER_SM)                    \
        attention_prefill_d##D(const __grid_constant__ AttentionPrefillArgs args, const __grid_constant__ Tiles tiles) {                  \
        extern __shared__ uint4 dynamic_shared[];                                                                                         \
        ElasticTiles queue(tiles);                                                                                                        \
        for (uint32_t tile; queue.next(tile);) {                                                                                          \
            attention::Prefill<D>::tile(args, tile, *reinterpret_cast<attention::Prefill<D>::Shared *>(dynamic_shared));                  \
        }                                                                                                                                 \
    }
