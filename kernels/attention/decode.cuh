// Attention where every sequence brings one query and its keys and values lie in a cache: a decoder's next token.
//   out[h] = sum over cached positions j of softmax_j(scale * q[h] . k[j]) * v[j],   for each query head h
//   q: the first heads * head_dim columns of qkv [sequences, qkv_stride]; cache: pages, see KvPages in abi.h; all fp16
//
// Memory bound: 4 * length * head_dim bytes for each key head and next to no arithmetic, so all that matters is how many bytes are under
// way. A tile is one key head of one sequence; the up to 16 query heads that share it are the 16 rows of one multiply, so that each key is
// read once. The block's warps take turns at blocks of 16 keys, each with a ring of its own in shared memory and no barrier between them;
// then their partial results are summed in the order of the warps. A tile sees the key range [first, end) only: a range split over several
// blocks would need no more than a second such sum.
#pragma once
#include "attention/flash.cuh"
#include "elastic.cuh"

namespace attention {

template <int D>
struct Decode {
    static constexpr int WARPS = D <= 128 ? 8 : 4;
    static constexpr int THREADS = WARPS * 32;
    static constexpr int KEYS = 16;
    static constexpr int STAGES = 2;
    // Blocks that must fit on an SM: bounds the registers, and decode.rs counts on it.
    static constexpr int BLOCKS_PER_SM = D <= 32 ? 3 : D <= 96 ? 2 : 1;

    struct Stage {
        __half keys[KEYS * PITCH<D>];
        __half values[KEYS * PITCH<D>];
    };
    // A warp's partial result. Rows are 32 bytes longer than they must be: the four rows that half a warp stores at once lie in different banks.
    struct Result {
        float output[QUERY_ROWS][D + 8];
        float highest[QUERY_ROWS];
        float sum[QUERY_ROWS];
    };
    struct Shared {
        __half queries[QUERY_ROWS * PITCH<D>];
        union {
            Stage stages[WARPS][STAGES];
            Result results[WARPS];
        };
    };

    // The one query of a sequence sees a range of keys, whichever head it is of.
    struct Range {
        int begin, past;
        __device__ int first(int) const { return begin; }
        __device__ int end(int) const { return past; }
    };

    __device__ static void tile(const AttentionDecodeArgs &args, uint32_t tile, Shared &shared) {
        const KvPages &cache = args.cache;
        const uint32_t group = args.heads / cache.kv_heads; // query heads that share a key head
        const uint32_t parts = div_ceil(group, QUERY_ROWS);
        const uint32_t part = tile % parts, kv_head = tile / parts % cache.kv_heads, sequence = tile / parts / cache.kv_heads;
        const uint32_t first_head = kv_head * group + part * QUERY_ROWS;
        const int rows = min(int(group - part * QUERY_ROWS), QUERY_ROWS);

        const int length = min(reinterpret_cast<const uint32_t *>(args.lengths)[sequence], cache.pages_per_sequence * KV_PAGE_TOKENS);
        if (length == 0) return;
        const Mask mask(length, args.window, true);
        const Range range{mask.first(length - 1), length};

        // Broadcast, so that the compiler knows that a warp does not part ways over its number.
        const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), lane = threadIdx.x % 32, head_dim = cache.head_dim;
        const float scale_log2 = args.scale * 1.4426950408889634f;

        const uint32_t *const pages = reinterpret_cast<const uint32_t *>(cache.page_table) + size_t(sequence) * cache.pages_per_sequence;
        const bool cache_aligned = on_16_bytes(cache.keys | cache.values, head_dim, head_dim);
        const int end_block = div_ceil(range.past, KEYS);
        const auto copy_block = [&](int stage, int block) {
            const int position = block * KEYS, page = position / KV_PAGE_TOKENS;
            // Table entries past the length are not followed.
            const size_t first_row = (position < length ? size_t(pages[page]) : 0) * cache.kv_heads * KV_PAGE_TOKENS + kv_head * KV_PAGE_TOKENS +
                                     position % KV_PAGE_TOKENS;
            const auto rows_from = [&](uint64_t pool) {
                return Rows{reinterpret_cast<const __half *>(pool) + first_row * head_dim, uint32_t(head_dim), length - position, head_dim};
            };
            copy_rows<D, KEYS, 32>(shared.stages[warp][stage].keys, rows_from(cache.keys), cache_aligned, lane);
            copy_rows<D, KEYS, 32>(shared.stages[warp][stage].values, rows_from(cache.values), cache_aligned, lane);
            cp_async_commit();
        };

        if (warp == 0) {
            const __half *const qkv = reinterpret_cast<const __half *>(args.qkv);
            const Rows queries{qkv + sequence * size_t(args.qkv_stride) + first_head * head_dim, uint32_t(head_dim), rows, head_dim};
            copy_rows<D, QUERY_ROWS, 32>(shared.queries, queries, on_16_bytes(args.qkv, args.qkv_stride, head_dim), lane);
            cp_async_commit();
        }
        int block = range.begin / KEYS + warp;
#pragma unroll
        for (int stage = 0; stage < STAGES; ++stage) copy_block(stage, block + stage * WARPS);
        cp_async_wait<STAGES>(); // the queries, which are warp 0's oldest group
        __syncthreads();
        const Queries<D> queries(shared.queries);

        Partial<D> partial;
        int stage = 0;
        do { // once even for a warp without keys: it attends to zeros, which are masked
            cp_async_wait<STAGES - 1>();
            __syncwarp(); // what the other lanes copied is there too
            const Stage &now = shared.stages[warp][stage];
            partial.template attend<KEYS>(queries, now.keys, now.values, block * KEYS, 0, range, scale_log2);
            __syncwarp(); // no lane still reads what is now overwritten
            copy_block(stage, block + STAGES * WARPS);
            stage = (stage + 1) % STAGES;
            block += WARPS;
        } while (block < end_block);

        partial.finish();
        cp_async_wait<0>();
        __syncthreads(); // results lie where the stages were
        Result &mine = shared.results[warp];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = lane / 4 + half * 8;
            if (row >= rows) continue;
            mine.highest[row] = partial.highest[half] * scale_log2;
            mine.sum[row] = partial.sum[half];
#pragma unroll
            for (int i = 0; i < D / 8; ++i) {
                *reinterpret_cast<float2 *>(&mine.output[row][i * 8 + lane % 4 * 2]) =
                    make_float2(partial.output[i][half * 2], partial.output[i][half * 2 + 1]);
            }
        }
        __syncthreads();

        __half *const output = reinterpret_cast<__half *>(args.output) + sequence * size_t(args.output_stride) + first_head * head_dim;
        for (int i = threadIdx.x; i < rows * head_dim; i += THREADS) {
            const int row = i / head_dim, column = i % head_dim;
            float highest = -INFINITY;
            for (const Result &result : shared.results) highest = fmaxf(highest, result.highest[row]);
            float weighted = 0.0f, sum = 0.0f;
            for (const Result &result : shared.results) {
                const float weight = exp2_approx(result.highest[row] - highest); // 0 for a warp that had no keys
                weighted += weight * result.output[row][column];
                sum += weight * result.sum[row];
            }
            output[i] = __float2half_rn(weighted / sum);
        }
    }
};

} // namespace attention

// The kernel for heads of up to D columns. A macro, since the host finds kernels by their C names.
#define ATTENTION_DECODE(D)                                                                                                               \
    static_assert(sizeof(attention::Decode<D>::Shared) == ATTENTION_DECODE_D##D##_SHARED_BYTES);                                          \
    extern "C" __global__ void __launch_bounds__(attention::Decode<D>::THREADS, attention::Decode<D>::BLOCKS_PER_SM)                      \
        attention_decode_d##D(const __grid_constant__ AttentionDecodeArgs args, const __grid_constant__ Tiles tiles) {                    \
        extern __shared__ uint4 dynamic_shared[];                                                                                         \
        ElasticTiles queue(tiles);                                                                                                        \
        for (uint32_t tile; queue.next(tile);) {                                                                                          \
            attention::Decode<D>::tile(args, tile, *reinterpret_cast<attention::Decode<D>::Shared *>(dynamic_shared));                    \
        }                                                                                                                                 \
    }
