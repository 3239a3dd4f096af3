// DeBERTa's attention by warpgroup multiplies (wgmma), for Hopper and rows on 16 bytes; disentangled_rows.cuh says what it computes and how.
//
// Elastic, and persistent: a tile is 64 queries of one head of one sequence, one warpgroup. Everything that a block of keys is multiplied with comes
// straight from shared memory, in rows of 64 halves swizzled by 128 bytes: queries and keys by two chunks of distances each, 64 x 64 x 64 a product, and
// queries by keys, all in flight at once; the terms of the first products are stored while the later ones still run. Of the 128 columns of two chunks a
// warp's rows need 80, so that a third of the positions' products is for nothing: still less than half the time of the exact ones by mma.sync.
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

    // Brings rows low to high of the 64 that begin at `first`, `stride` halves apart, the others as zeros.
    __device__ static __forceinline__ void copy(Rows64 &target, const __half *first, uint32_t stride, uint32_t width, int low, int high) {
        constexpr int CHUNKS = D / 8, DOWN = THREADS / CHUNKS;
        const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const __half *const from = first + row * int64_t(stride) + chunk * 8;
        // Rows of a thread are 16 apart, so that their swizzle is the same.
        const uint32_t to = shared_address(target.elements) + swizzled_128(row, chunk);
        const bool inside = chunk * 8 < width;
#pragma unroll
        for (int down = 0; down < KEYS; down += DOWN) {
            const bool valid = inside && row + down >= low && row + down < high;
            cp_async_16(to + down * ROW_BYTES, from + down * int64_t(stride), valid ? 16 : 0);
        }
    }

    // sums = a b^T, in flight.
    __device__ static __forceinline__ void multiply(float (&sums)[KEYS / 2], const Rows64 &a, const Rows64 &b) {
        const uint64_t from_a = wgmma_descriptor(shared_address(a.elements)), from_b = wgmma_descriptor(shared_address(b.elements));
#pragma unroll
        for (int step = 0; step < D / 16; ++step) wgmma_m64k16<KEYS>(sums, from_a + 2 * step, from_b + 2 * step, step > 0);
    }

    // Stores the 80 of the two chunks' columns that begin at `first`, a multiple of 16.
    __device__ static __forceinline__ void store_terms(__half *terms, const float (&lower)[KEYS / 2], const float (&upper)[KEYS / 2], int first,
                                                       float scale_log2) {
        const uint32_t to = DisentangledTerms::first_columns(terms) - first * 2;
#pragma unroll
        for (int i = 0; i < KEYS / 8; ++i) {
            DisentangledTerms::store(to + i * 16, &lower[i * 4], scale_log2, i * 8 >= first);
            DisentangledTerms::store(to + KEYS * 2 + i * 16, &upper[i * 4], scale_log2, KEYS + i * 8 < first + DisentangledTerms::DISTANCES);
        }
    }

    __device__ static void tile(const AttentionDisentangledArgs &args, uint32_t number, Shared &shared) {
        const DisentangledPlace place(args, number);
        const int length = place.length, first_query = place.first_query;
        if (first_query >= length) return;
        const float scale_log2 = args.scale * 1.4426950408889634f;
        // The warp's number is broadcast, so that the compiler knows that a warp does not part ways over it.
        const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);

        const uint32_t width = args.heads * args.head_dim;
        const __half *const sequence_rows = reinterpret_cast<const __half *>(args.qkv) + place.start * args.qkv_stride + place.head * args.head_dim;
        const auto copy_rows = [&](Rows64 &target, uint32_t column, int row) {
            copy(target, sequence_rows + column + row * size_t(args.qkv_stride), args.qkv_stride, args.head_dim, 0, length - row);
        };
        // The chunk that is the upper one of this block of keys, and the lower one of the block before it.
        const auto copy_chunk = [&](int block) {
            const int reach = args.reach, first_row = first_query - block * KEYS + reach;
            const int64_t offset = first_row * int64_t(args.position_stride) + place.head * args.head_dim;
            const auto copy_matrix = [&](Rows64 &target, uint64_t matrix) {
                copy(target, reinterpret_cast<const __half *>(matrix) + offset, args.position_stride, args.head_dim, -first_row, 2 * reach + 1 - first_row);
            };
            copy_matrix(shared.position_keys[block % 3], args.position_keys);
            copy_matrix(shared.position_queries[block % 3], args.position_queries);
        };
        const auto copy_block = [&](int block) {
            copy_rows(shared.keys[block % 2], width, block * KEYS);
            copy_rows(shared.values[block % 2], 2 * width, block * KEYS);
            copy_chunk(block + 1);
            cp_async_commit();
        };

        copy_rows(shared.queries, 0, first_query);
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
            if (block + 1 < blocks) copy_block(block + 1);

            wgmma_wait<2>();
            wgmma_settle(of_queries[0]);
            wgmma_settle(of_queries[1]);
            store_terms(shared.terms.of_queries[warp], of_queries[0], of_queries[1], DisentangledTerms::first_of_queries(warp), scale_log2);
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
