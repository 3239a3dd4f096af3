// DeBERTa's attention by warpgroup multiplies (wgmma), for Hopper and rows on 16 bytes; disentangled_rows.cuh says what it computes and how.
//
// Elastic, and persistent: a tile is 64 queries of one head of one sequence, one warpgroup. Everything that a block of keys is multiplied with comes
// straight from shared memory, in rows of 64 halves swizzled by 128 bytes: queries and keys by two chunks of distances each, 64 x 64 x 64 a product, and
// queries by keys, all in flight at once; the terms of the first products are stored, and the next block of keys is asked for, while the later ones still
// run. Of the 128 columns of two chunks a warp's rows need 80, so three eighths of the positions' products are for nothing. What bounds the kernel is
// shared memory: the operands of the products, the copies, and the terms on their way through it.
#pragma once
#include "attention/disentangled_rows.cuh"
#include "elastic.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_rows.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

namespace attention {

struct DisentangledWgmma {
    static constexpr int D = 64;
    static constexpr int THREADS = 128;
    static constexpr int KEYS = DISENTANGLED_BLOCK;
    static constexpr int ROW_BYTES = D * 2;
    // Blocks that must fit on an SM: bounds the registers, and disentangled.rs counts on it. While one weighs, the other multiplies.
    static constexpr int BLOCKS_PER_SM = 2;

    // 64 rows as wgmma reads them: a multiple of 1024 bytes, beginning at one.
    struct Rows64 {
        __half elements[KEYS * D];
    };
    struct Shared {
        Rows64 queries;
        Rows64 keys[2], values[2];
        Rows64 position_keys[3], position_queries[3];
        DisentangledTerms terms;
    };

    // What a thread copies of 64 rows: 16 bytes, `chunk`, of rows `row`, `row` + 16, `row` + 32 and `row` + 48, whose swizzle is the same.
    struct Share {
        int row, chunk;

        __device__ Share() : row(threadIdx.x / (D / 8)), chunk(threadIdx.x % (D / 8)) {}

        // Copies its share of 64 rows to each target from its own source: those rows for which `wanted` says so, the others as zeros. `from` are the
        // sources of `row`, and rows are `stride` halves apart.
        template <int COUNT, class Wanted>
        __device__ __forceinline__ void copy(Rows64 *const (&targets)[COUNT], const __half *(&&from)[COUNT], uint32_t stride,
                                             const Wanted &wanted) const {
            constexpr int DOWN = THREADS / (D / 8);
#pragma unroll
            for (int down = 0; down < KEYS; down += DOWN) {
                const int bytes = wanted(row + down) ? 16 : 0;
#pragma unroll
                for (int i = 0; i < COUNT; ++i) {
                    cp_async_16(shared_address(targets[i]->elements) + swizzled_128(row, chunk) + down * ROW_BYTES, from[i], bytes);
                    from[i] += DOWN * stride;
                }
            }
        }
    };

    // sums = a b^T, in flight.
    __device__ static __forceinline__ void multiply(float (&sums)[KEYS / 2], const Rows64 &a, const Rows64 &b) {
        const uint64_t from_a = wgmma_descriptor(shared_address(a.elements)), from_b = wgmma_descriptor(shared_address(b.elements));
#pragma unroll
        for (int step = 0; step < D / 16; ++step) wgmma_m64k16<KEYS>(sums, from_a + 2 * step, from_b + 2 * step, step > 0);
    }

    // Stores the 80 of the two chunks' columns that begin at `first`, a multiple of 16.
    __device__ static __forceinline__ void store_terms(__half *terms, const float (&lower)[KEYS / 2], const float (&upper)[KEYS / 2], int first,
                                                       float scale_log2) {
        // What is not wanted goes to the columns that nobody reads: branches around stores would cost more than the stores.
        const uint32_t to = DisentangledTerms::first_columns(terms), nowhere = to + DisentangledTerms::DISTANCES * 2;
#pragma unroll
        for (int i = 0; i < KEYS / 8; ++i) {
            const int below = i * 8 - first, above = KEYS + below;
            DisentangledTerms::store(below >= 0 ? to + below * 2 : nowhere, &lower[i * 4], scale_log2);
            DisentangledTerms::store(above < DisentangledTerms::DISTANCES ? to + above * 2 : nowhere, &upper[i * 4], scale_log2);
        }
    }

    __device__ static void tile(const AttentionDisentangledArgs &args, uint32_t number, Shared &shared) {
        const DisentangledPlace place(args, number);
        const int length = place.length, first_query = place.first_query;
        if (first_query >= length) return;
        const float scale_log2 = args.scale * 1.4426950408889634f;
        // The warp's number is broadcast, so that the compiler knows that a warp does not part ways over it.
        const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);

        // All that a thread's copies start from, computed once: in the loop they compete with the products' operands for registers and for time.
        const Share share;
        const bool inside = share.chunk * 8 < args.head_dim;
        const uint32_t width = args.heads * args.head_dim, column = place.head * args.head_dim + share.chunk * 8;
        const __half *const query_rows = reinterpret_cast<const __half *>(args.qkv) + (place.start + share.row) * args.qkv_stride + column;
        const int64_t position = int64_t(share.row) * args.position_stride + column;
        const auto of_sequence = [&](int from) { return [=](int row) { return inside && from + row < length; }; };
        // The chunk that is the upper one of this block of keys, and the lower one of the block before it.
        const auto copy_chunk = [&](int block) {
            const int first_row = first_query - block * KEYS + int(args.reach);
            const int64_t offset = first_row * int64_t(args.position_stride) + position;
            share.copy<2>({&shared.position_keys[block % 3], &shared.position_queries[block % 3]},
                          {reinterpret_cast<const __half *>(args.position_keys) + offset, reinterpret_cast<const __half *>(args.position_queries) + offset},
                          args.position_stride, [&](int row) { return inside && uint32_t(first_row + row) <= 2 * args.reach; });
        };
        const auto copy_block = [&](int block) {
            const __half *const keys = query_rows + size_t(block * KEYS) * args.qkv_stride + width;
            share.copy<2>({&shared.keys[block % 2], &shared.values[block % 2]}, {keys, keys + width}, args.qkv_stride, of_sequence(block * KEYS));
            copy_chunk(block + 1);
            cp_async_commit();
        };

        share.copy<1>({&shared.queries}, {query_rows + size_t(first_query) * args.qkv_stride}, args.qkv_stride, of_sequence(first_query));
        copy_chunk(0);
        copy_block(0);

        DisentangledRows<D> rows;
        auto &scores = reinterpret_cast<float(&)[KEYS / 2]>(rows.scores);
        auto &output = reinterpret_cast<float(&)[D / 2]>(rows.output);
        const int blocks = div_ceil(length, KEYS);
        for (int block = 0; block < blocks; ++block) {
            cp_async_wait<0>();
            fence_shared_for_async();
            // This block has arrived for all threads, and none still reads what the next one or this one's terms are written to.
            __syncthreads();

            const Rows64 &keys = shared.keys[block % 2];
            const int upper = block % 3, lower = (block + 1) % 3;
            float of_queries[2][KEYS / 2], of_keys[2][KEYS / 2];
            wgmma_fence();
            multiply(of_queries[0], shared.queries, shared.position_keys[lower]);
            multiply(of_queries[1], shared.queries, shared.position_keys[upper]);
            wgmma_commit();
            multiply(of_keys[0], keys, shared.position_queries[lower]);
            multiply(of_keys[1], keys, shared.position_queries[upper]);
            wgmma_commit();
            multiply(scores, shared.queries, keys);
            wgmma_commit();

            wgmma_wait<2>();
            wgmma_settle(of_queries[0]);
            wgmma_settle(of_queries[1]);
            store_terms(shared.terms.of_queries[warp], of_queries[0], of_queries[1], DisentangledTerms::first_of_queries(warp), scale_log2);
            if (block + 1 < blocks) copy_block(block + 1);
            wgmma_wait<1>();
            wgmma_settle(of_keys[0]);
            wgmma_settle(of_keys[1]);
            store_terms(shared.terms.of_keys + warp * 16 * DisentangledTerms::PITCH, of_keys[0], of_keys[1],
                        DisentangledTerms::first_of_keys(warp), scale_log2);
            wgmma_wait<0>();
            wgmma_settle(scores);
            __syncthreads(); // the terms of all warps are written

            rows.template weigh<true, true>(shared.terms, warp, length - block * KEYS, scale_log2);

            uint32_t weights[KEYS / 16][4];
#pragma unroll
            for (int step = 0; step < KEYS / 16; ++step) rows.operand(step, weights[step]);
            const uint64_t values = wgmma_rows_descriptor(shared_address(shared.values[block % 2].elements), sizeof(Rows64));
            wgmma_settle(output);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < KEYS / 16; ++step) wgmma_m64k16_rows<D>(output, weights[step], values + step * (16 * ROW_BYTES / 16));
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_settle(output);
        }
        rows.store(args, place, warp);
    }
};

} // namespace attention

#endif
