// DeBERTa's attention by mma.sync, for every GPU and for rows wherever they lie; disentangled_rows.cuh says what it computes and how.
//
// Elastic, and persistent: a tile is 64 queries of one head of one sequence, four warps of 16. Multiplies for each block of 64 keys: 64 m16n8k16 at 64
// columns for the content, 80 for the positions. What bounds it are the operands' reads from shared memory, since 16 rows a warp share each of them.
#pragma once
#include "attention/disentangled_rows.cuh"
#include "elastic.cuh"

namespace attention {

template <int D>
struct Disentangled {
    static constexpr int WARPS = 4;
    static constexpr int THREADS = WARPS * 32;
    static constexpr int KEYS = DISENTANGLED_BLOCK;
    // Blocks that must fit on an SM: bounds the registers, and disentangled.rs counts on it.
    static constexpr int BLOCKS_PER_SM = D <= 32 ? 3 : 2;

    struct Stage {
        __half keys[KEYS * PITCH<D>];
        __half values[KEYS * PITCH<D>];
    };
    struct Shared {
        Stage stages[2];
        __half position_keys[3][KEYS * PITCH<D>];
        __half position_queries[3][KEYS * PITCH<D>];
        DisentangledTerms terms;
    };

    // Brings the 64 rows for distances from `first_distance` on, zeros where the matrix has none: no score reads them.
    __device__ static __forceinline__ void copy_distances(__half *shared, uint64_t matrix, const AttentionDisentangledArgs &args, int head,
                                                          int first_distance) {
        if (matrix == 0) return;
        const int reach = args.reach, width = args.head_dim;
        const __half *const columns = reinterpret_cast<const __half *>(matrix) + head * width;
        const auto there = [&](int row) { return first_distance + row >= -reach && first_distance + row <= reach; };
        const auto at = [&](int row) { return columns + (first_distance + row + reach) * int64_t(args.position_stride); };
        if (on_16_bytes(matrix, args.position_stride, width)) {
            constexpr int CHUNKS = D / 8, DOWN = THREADS / CHUNKS;
            const int row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * 8;
            const __half *const from = at(row) + column;
            const uint32_t to = shared_address(shared + row * PITCH<D> + column);
#pragma unroll
            for (int down = 0; down < KEYS; down += DOWN) {
                cp_async_16(to + 2 * down * PITCH<D>, from + down * int64_t(args.position_stride), there(row + down) && column < width ? 16 : 0);
            }
        } else {
#pragma unroll 1
            for (int i = threadIdx.x; i < KEYS * D; i += THREADS) {
                const int row = i / D, column = i % D;
                shared[row * PITCH<D> + column] = there(row) && column < width ? at(row)[column] : __half(0.0f);
            }
        }
    }

    // sums += a b^T: the warp's 16 rows `a` times 16 * GROUPS rows `b`; `first_of(group)` is where this lane reads the first columns of a group of b.
    // Operands of the next 16 columns are read before those at hand are multiplied, and no product waits for the one before it.
    template <int GROUPS, class Operand, class Address>
    __device__ static __forceinline__ void multiply(float (&sums)[2 * GROUPS][4], const Operand &a, const Address &first_of) {
        uint32_t operand[2][4], b[2][GROUPS][4];
        const auto read = [&](int step) {
            a.operand(step, operand[step % 2]);
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) ldmatrix_x4(b[step % 2][group], first_of(group) + step * 32);
        };
        read(0);
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            if (step + 1 < D / 16) read(step + 1);
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                const auto &columns = b[step % 2][group];
                mma_m16n8k16(sums[2 * group], operand[step % 2], columns[0], columns[1]);
                mma_m16n8k16(sums[2 * group + 1], operand[step % 2], columns[2], columns[3]);
            }
        }
    }

    // Where a lane reads the rows that begin at `rows` as B operands: 8 rows by 8 columns, a row's columns side by side.
    __device__ static __forceinline__ uint32_t first_columns(const __half *rows) {
        const int lane = threadIdx.x % 32;
        return shared_address(rows + (lane / 16 * 8 + lane % 8) * PITCH<D> + lane / 8 % 2 * 8);
    }

    // The warp's 16 rows `a` times 80 distances, from row `first` of the two chunks, to `terms`.
    template <class Operand>
    __device__ static __forceinline__ void position_product(__half *terms, const Operand &a, const __half *lower, const __half *upper, int first,
                                                            float scale_log2) {
        float sums[DisentangledTerms::DISTANCES / 8][4] = {};
        const uint32_t below = first_columns(lower), above = first_columns(upper) - KEYS * PITCH<D> * 2;
        multiply<DisentangledTerms::DISTANCES / 16>(sums, a, [&](int group) {
            const int row = first + group * 16;
            return (row < KEYS ? below : above) + row * PITCH<D> * 2;
        });
        const uint32_t to = DisentangledTerms::first_columns(terms);
#pragma unroll
        for (int i = 0; i < DisentangledTerms::DISTANCES / 8; ++i) DisentangledTerms::store(to + i * 16, sums[i], scale_log2);
    }

    // 16 rows of shared memory as A operands, read when needed.
    struct SharedRows {
        uint32_t address;
        __device__ explicit SharedRows(const __half *rows) {
            const int lane = threadIdx.x % 32;
            address = shared_address(rows + lane % 16 * PITCH<D> + lane / 16 * 8);
        }
        __device__ __forceinline__ void operand(int step, uint32_t (&a)[4]) const { ldmatrix_x4(a, address + step * 32); }
    };

    template <bool BY_QUERY, bool BY_KEY>
    __device__ static void tile(const AttentionDisentangledArgs &args, const DisentangledPlace &place, Shared &shared) {
        const int length = place.length, first_query = place.first_query;
        const float scale_log2 = args.scale * 1.4426950408889634f;
        const int thread = threadIdx.x, lane = thread % 32;
        // The warp's number is broadcast, so that the compiler knows that a warp does not part ways over it.
        const int warp = __shfl_sync(0xffffffff, thread / 32, 0);

        const uint32_t width = args.heads * args.head_dim;
        const __half *const sequence_rows = reinterpret_cast<const __half *>(args.qkv) + place.start * args.qkv_stride + place.head * args.head_dim;
        const bool aligned = on_16_bytes(args.qkv, args.qkv_stride, args.head_dim);
        const auto rows_from = [&](uint32_t column, int row) {
            return Rows{sequence_rows + column + row * size_t(args.qkv_stride), args.qkv_stride, length - row, int(args.head_dim)};
        };
        // The chunk that is the upper one of this block of keys, and the lower one of the block before it.
        const auto copy_chunk = [&](int block) {
            const int first_distance = first_query - block * KEYS;
            if constexpr (BY_QUERY) copy_distances(shared.position_keys[block % 3], args.position_keys, args, place.head, first_distance);
            if constexpr (BY_KEY) copy_distances(shared.position_queries[block % 3], args.position_queries, args, place.head, first_distance);
        };
        const auto copy_block = [&](int block) {
            Stage &stage = shared.stages[block % 2];
            copy_rows<D, KEYS, THREADS>(stage.keys, rows_from(width, block * KEYS), aligned, thread);
            copy_rows<D, KEYS, THREADS>(stage.values, rows_from(2 * width, block * KEYS), aligned, thread);
            copy_chunk(block + 1);
            cp_async_commit();
        };

        // Queries go to registers and borrow the second stage before its first use.
        __half *const shared_queries = shared.stages[1].keys;
        copy_rows<D, KEYS, THREADS>(shared_queries, rows_from(0, first_query), aligned, thread);
        copy_chunk(0);
        copy_block(0);
        cp_async_wait<0>();
        __syncthreads();
        const Queries<D> queries(shared_queries + warp * QUERY_ROWS * PITCH<D>);

        DisentangledRows<D> rows;
        const int blocks = div_ceil(length, KEYS);
        for (int block = 0; block < blocks; ++block) {
            cp_async_wait<0>();
            // This block has arrived for all threads, and none still reads what the next one or this one's terms are written to.
            __syncthreads();
            if (block + 1 < blocks) copy_block(block + 1);
            const Stage &stage = shared.stages[block % 2];

            const int upper = block % 3, lower = (block + 1) % 3;
            if constexpr (BY_KEY) {
                position_product(shared.terms.of_keys + warp * 16 * DisentangledTerms::PITCH, SharedRows(stage.keys + warp * 16 * PITCH<D>),
                                 shared.position_queries[lower], shared.position_queries[upper], DisentangledTerms::first_of_keys(warp), scale_log2);
            }
            if constexpr (BY_QUERY) {
                position_product(shared.terms.of_queries[warp], queries, shared.position_keys[lower], shared.position_keys[upper],
                                 DisentangledTerms::first_of_queries(warp), scale_log2);
            }
#pragma unroll
            for (auto &columns : rows.scores) columns[0] = columns[1] = columns[2] = columns[3] = 0.0f;
            const uint32_t first_key = first_columns(stage.keys);
            multiply<KEYS / 16>(rows.scores, queries, [&](int group) { return first_key + group * 16 * PITCH<D> * 2; });
            __syncthreads(); // the terms of all warps are written

            rows.template weigh<BY_QUERY, BY_KEY>(shared.terms, warp, length - block * KEYS, scale_log2);

            // Values are read transposed.
            const uint32_t value_address = shared_address(stage.values + lane % 16 * PITCH<D> + lane / 16 * 8);
            uint32_t values[2][D / 16][4];
            const auto read = [&](int step) {
#pragma unroll
                for (int group = 0; group < D / 16; ++group) {
                    ldmatrix_x4_transposed(values[step % 2][group], value_address + step * 16 * PITCH<D> * 2 + group * 32);
                }
            };
            read(0);
#pragma unroll
            for (int step = 0; step < KEYS / 16; ++step) {
                if (step + 1 < KEYS / 16) read(step + 1);
                uint32_t weights[4];
                rows.operand(step, weights);
#pragma unroll
                for (int group = 0; group < D / 16; ++group) {
                    const auto &columns = values[step % 2][group];
                    mma_m16n8k16(rows.output[2 * group], weights, columns[0], columns[1]);
                    mma_m16n8k16(rows.output[2 * group + 1], weights, columns[2], columns[3]);
                }
            }
        }
        rows.store(args, place, warp);
    }

    __device__ static void tile(const AttentionDisentangledArgs &args, uint32_t number, Shared &shared) {
        const DisentangledPlace place(args, number);
        if (place.first_query >= place.length) return;
        const bool by_query = args.position_keys != 0, by_key = args.position_queries != 0;
        if (by_query && by_key) {
            tile<true, true>(args, place, shared);
        } else if (by_query) {
            tile<true, false>(args, place, shared);
        } else if (by_key) {
            tile<false, true>(args, place, shared);
        } else {
            tile<false, false>(args, place, shared);
        }
    }
};

} // namespace attention

// The kernel for heads of up to D columns. A macro, since the host finds kernels by their C names.
#define ATTENTION_DISENTANGLED(D)                                                                                                         \
    static_assert(sizeof(attention::Disentangled<D>::Shared) == ATTENTION_DISENTANGLED_D##D##_SHARED_BYTES);                              \
    extern "C" __global__ void __launch_bounds__(attention::Disentangled<D>::THREADS, attention::Disentangled<D>::BLOCKS_PER_SM)          \
        attention_disentangled_d##D(const __grid_constant__ AttentionDisentangledArgs args, const __grid_constant__ Tiles tiles) {        \
        extern __shared__ uint4 dynamic_shared[];                                                                                         \
        ElasticTiles queue(tiles);                                                                                                        \
        for (uint32_t tile; queue.next(tile);) {                                                                                          \
            attention::Disentangled<D>::tile(args, tile, *reinterpret_cast<attention::Disentangled<D>::Shared *>(dynamic_shared));        \
        }                                                                                                                                 \
    }
