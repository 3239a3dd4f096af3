// Attention of some new rows of each sequence over its paged cache, which holds their own keys and values already: the prefill of a prompt in
// pieces, so that it can share its steps with the decoding of other sequences.
//   out[i] = sum over positions j that row i sees of softmax_j(scale * q[i] . k[j]) * v[j],   row i of n at position context - n + i, causal
//   q: the first heads * head_dim columns of qkv [rows, qkv_stride]; cache: pages, see KvPages in abi.h; all fp16
//
// The loop of prefill.cuh, with keys and values out of pages instead of out of qkv: a tile is 64 rows of one head, four warps of 16 rows share each
// block of keys, which two stages of asynchronous copies bring from L2. Blocks of keys start at multiples of their size from position 0, and a
// block that a row does not see leaves its sums as they are: a row has the same bits however its prompt is cut.
#pragma once
#include "attention/flash.cuh"
#include "elastic.cuh"

namespace attention {

template <int D>
struct Chunk {
    static constexpr int WARPS = 4;
    static constexpr int THREADS = WARPS * 32;
    static constexpr int QUERIES = WARPS * QUERY_ROWS;
    static constexpr int KEYS = D <= 128 ? KV_PAGE_TOKENS : KV_PAGE_TOKENS / 2; // of one page
    // Blocks that must fit on an SM: bounds the registers, and chunk.rs counts on it.
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

    __device__ static void tile(const AttentionChunkArgs &args, uint32_t tile, Shared &shared) {
        const KvPages &cache = args.cache;
        // Rows from the last to the first: those that see most keys are begun first. For each 64 of them, every head of every chunk.
        const uint32_t head = tile % args.heads, chunk = tile / args.heads % args.chunks;
        const int first_query = (div_ceil(args.max_length, QUERIES) - 1 - int(tile / args.heads / args.chunks)) * QUERIES;
        const auto of_chunk = [&](uint64_t array) { return reinterpret_cast<const uint32_t *>(array)[chunk]; };
        const int length = of_chunk(args.lengths);
        if (first_query >= length) return;
        const int context = min(of_chunk(args.contexts), cache.pages_per_sequence * KV_PAGE_TOKENS);
        const int past = context - length; // positions before the chunk's first row
        if (past < 0) return;

        const Mask mask(context, args.window, true);
        const float scale_log2 = args.scale * 1.4426950408889634f;
        // The warp's number is broadcast, so that the compiler knows that a warp does not part ways over it.
        const int thread = threadIdx.x, warp = __shfl_sync(0xffffffff, thread / 32, 0), first_row = first_query + warp * QUERY_ROWS;

        const int head_dim = cache.head_dim;
        const uint32_t kv_head = head / (args.heads / cache.kv_heads);
        const uint32_t *const pages = reinterpret_cast<const uint32_t *>(cache.page_table) + of_chunk(args.sequence_of) * size_t(cache.pages_per_sequence);
        const bool cache_aligned = head_dim % 8 == 0;

        // All keys that any of the tile's rows sees.
        const int first_block = mask.first(past + first_query) / KEYS;
        const int end_block = div_ceil(mask.end(past + min(first_query + QUERIES, length) - 1), KEYS);
        const auto page_of = [&](int block) { return block < end_block ? pages[block * KEYS / KV_PAGE_TOKENS] : 0; };
        const auto copy_block = [&](int block, size_t page) {
            const size_t row = (page * cache.kv_heads + kv_head) * KV_PAGE_TOKENS + block * KEYS % KV_PAGE_TOKENS;
            const auto rows_from = [&](uint64_t pool) {
                return Rows{reinterpret_cast<const __half *>(pool) + row * head_dim, uint32_t(head_dim), context - block * KEYS, head_dim};
            };
            Stage &stage = shared.stages[block % 2];
            copy_rows<D, KEYS, THREADS>(stage.keys, rows_from(cache.keys), cache_aligned, thread);
            copy_rows<D, KEYS, THREADS>(stage.values, rows_from(cache.values), cache_aligned, thread);
            cp_async_commit();
        };

        const size_t start = of_chunk(args.starts);
        __half *const shared_queries = Queries<D>::IN_REGISTERS ? shared.stages[(first_block + 1) % 2].keys : shared.queries;
        const __half *const query_rows = reinterpret_cast<const __half *>(args.qkv) + (start + first_query) * args.qkv_stride + head * head_dim;
        copy_rows<D, QUERIES, THREADS>(shared_queries, Rows{query_rows, args.qkv_stride, length - first_query, head_dim},
                                       on_16_bytes(args.qkv, args.qkv_stride, head_dim), thread);
        copy_block(first_block, page_of(first_block));
        // The table is read one block ahead of the copies.
        size_t next_page = page_of(first_block + 1);
        cp_async_wait<0>();
        __syncthreads();
        const Queries<D> queries(shared_queries + warp * QUERY_ROWS * PITCH<D>);

        Partial<D> partial;
        for (int block = first_block; block < end_block; ++block) {
            cp_async_wait<0>();
            // This block has arrived for all threads, and none still reads the stage that the next one is copied to.
            __syncthreads();
            if (block + 1 < end_block) copy_block(block + 1, next_page);
            next_page = page_of(block + 2);
            const Stage &stage = shared.stages[block % 2];
            partial.template attend<KEYS>(queries, stage.keys, stage.values, block * KEYS, past + first_row, mask, scale_log2);
        }

        partial.finish();
        __half *const output = reinterpret_cast<__half *>(args.output);
        const bool in_pairs = ((args.output | 2 * (args.output_stride | head_dim)) & 3) == 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + thread % 32 / 4 + half * 8;
            if (row >= length) continue;
            const float factor = 1.0f / partial.sum[half];
            __half *const columns = output + (start + row) * args.output_stride + head * head_dim;
#pragma unroll
            for (int i = 0; i < D / 8; ++i) {
                const int column = i * 8 + thread % 4 * 2;
                const float left = partial.output[i][half * 2] * factor, right = partial.output[i][half * 2 + 1] * factor;
                if (in_pairs) {
                    if (column < head_dim) *reinterpret_cast<uint32_t *>(columns + column) = pack_halves(left, right);
                } else {
                    if (column < head_dim) columns[column] = __float2half_rn(left);
                    if (column + 1 < head_dim) columns[column + 1] = __float2half_rn(right);
                }
            }
        }
    }
};

} // namespace attention

// The kernel for heads of up to D columns. A macro, since the host finds kernels by their C names.
#define ATTENTION_CHUNK(D)                                                                                                                \
    static_assert(sizeof(attention::Chunk<D>::Shared) == ATTENTION_CHUNK_D##D##_SHARED_BYTES);                                            \
    extern "C" __global__ void __launch_bounds__(attention::Chunk<D>::THREADS, attention::Chunk<D>::BLOCKS_PER_SM)                        \
        attention_chunk_d##D(const __grid_constant__ AttentionChunkArgs args, const __grid_constant__ Tiles tiles) {                      \
        extern __shared__ uint4 dynamic_shared[];                                                                                         \
        ElasticTiles queue(tiles);                                                                                                        \
        for (uint32_t tile; queue.next(tile);) {                                                                                          \
            attention::Chunk<D>::tile(args, tile, *reinterpret_cast<attention::Chunk<D>::Shared *>(dynamic_shared));                      \
        }                                                                                                                                 \
    }
