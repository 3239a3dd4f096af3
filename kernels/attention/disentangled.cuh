// DeBERTa's attention: scores with terms for the distance of query and key (He et al., "DeBERTa", 2020, eq. 4).
//   score[i, j] = scale * (q[i] . k[j] + q[i] . position_keys[i - j] + k[j] . position_queries[i - j])
//   out[i]      = sum over j of softmax_j(score[i, j]) * v[j],   for each head of each sequence
//   qkv: [rows, qkv_stride] fp16, head h of position_keys and position_queries: columns h * head_dim of [2 * reach + 1, position_stride] fp16, whose
//   row `reach` is for distance 0; out: [rows, output_stride] fp16; scores, softmax and sums fp32
//
// Elastic, and persistent: a tile is 64 queries of one head of one sequence, four warps of 16. It meets keys in blocks of 64, and a block of 64
// queries and 64 keys has 127 distances, whatever the length: rows of the position matrices that lie side by side. So the products with positions
// are matrix products of the tile itself, [16 queries of a warp] x [79 distances] and [16 keys of a warp] x [79 distances], and no matrix of
// tokens by distances ever exists. What makes them scores is a skew, column i - j of row i (or j) to column j of row i: they pass through
// shared memory, scaled and rounded to halves, and are read along the diagonals.
//
// From one block of keys to the next the distances shift by 64, half of them: each block brings 64 rows of keys, of values, and of each position
// matrix, the last two into a ring of three chunks (two in use, one arriving).
//
// Multiplies by tensor cores for each block of keys: 4 x 2^12 D for the content, 2 x 5 x 2^11 D for the positions, so 2.25 times those of attention
// without positions. What bounds it are the operands' reads from shared memory, since 16 rows a warp share each of them.
#pragma once
#include "attention/flash.cuh"
#include "elastic.cuh"

namespace attention {

template <int D>
struct Disentangled {
    static constexpr int WARPS = 4;
    static constexpr int THREADS = WARPS * 32;
    static constexpr int QUERIES = WARPS * QUERY_ROWS;
    static constexpr int KEYS = 64;
    // Blocks that must fit on an SM: bounds the registers, and disentangled.rs counts on it.
    static constexpr int BLOCKS_PER_SM = D <= 32 ? 3 : 2;

    // Distances that the 16 rows of a warp have to the 64 of the other side: 79, and one to make it whole tiles.
    static constexpr int DISTANCES = 80;
    // Their pitch: rows read along a diagonal and rows written side by side both spread over the banks.
    static constexpr int TERM_PITCH = DISTANCES + 8;

    struct Stage {
        __half keys[KEYS * PITCH<D>];
        __half values[KEYS * PITCH<D>];
    };
    struct Shared {
        Stage stages[2];
        // Rings of 64 distances each.
        __half position_keys[3][KEYS * PITCH<D>];
        __half position_queries[3][KEYS * PITCH<D>];
        // Scaled terms: row i % 16 of each warp, column 64 + i % 16 - j % 64; and row j % 64, column 16 + i % 64 - j % 16.
        __half content_to_position[WARPS][QUERY_ROWS * TERM_PITCH];
        __half position_to_content[KEYS * TERM_PITCH];
    };

    // What a tile is of: every head of every sequence for each query block.
    struct Place {
        int head, length, first_query;
        size_t start; // the sequence's first row

        __device__ Place(const AttentionDisentangledArgs &args, uint32_t tile) {
            const uint32_t sequence = tile / args.heads % args.sequences;
            head = tile % args.heads;
            length = reinterpret_cast<const uint32_t *>(args.lengths)[sequence];
            start = reinterpret_cast<const uint32_t *>(args.starts)[sequence];
            first_query = tile / args.heads / args.sequences * QUERIES;
        }
    };

    // Brings the 64 rows for distances from `first_distance` on, zeros where the matrix has none: no score reads them.
    __device__ static void copy_distances(__half *shared, uint64_t matrix, const AttentionDisentangledArgs &args, int head, int first_distance) {
        if (matrix == 0) return;
        const __half *const columns = reinterpret_cast<const __half *>(matrix) + head * args.head_dim;
        const bool aligned = on_16_bytes(matrix, args.position_stride, args.head_dim);
        const int reach = args.reach;
        constexpr int CHUNKS = D / 8;
        for (int i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, column = i % CHUNKS * 8, distance = first_distance + row;
            const bool there = distance >= -reach && distance <= reach;
            const __half *const from = columns + (there ? distance + reach : 0) * size_t(args.position_stride);
            __half *const to = shared + row * PITCH<D> + column;
            if (aligned) {
                const bool valid = there && column < args.head_dim;
                cp_async_16(shared_address(to), valid ? from + column : columns, valid ? 16 : 0);
            } else {
                for (int c = 0; c < 8; ++c) to[c] = there && column + c < args.head_dim ? from[column + c] : __half(0.0f);
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

    // The warp's 16 rows `a` times 80 distances, scaled, to `terms`. The first distance is row `first` (a multiple of 16) of the two chunks.
    template <class Operand>
    __device__ static __forceinline__ void position_product(__half *terms, const Operand &a, const __half *lower, const __half *upper, int first,
                                                            float scale_log2) {
        float sums[DISTANCES / 8][4] = {};
        const uint32_t below = first_columns(lower), above = first_columns(upper - KEYS * PITCH<D>);
        multiply<DISTANCES / 16>(sums, a, [&](int group) {
            const int row = first + group * 16;
            return (row < KEYS ? below : above) + row * PITCH<D> * 2;
        });
        const int lane = threadIdx.x % 32;
        __half *const to = terms + lane / 4 * TERM_PITCH + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < DISTANCES / 8; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint32_t pair = pack_halves(sums[i][half * 2] * scale_log2, sums[i][half * 2 + 1] * scale_log2);
                *reinterpret_cast<uint32_t *>(to + half * 8 * TERM_PITCH + i * 8) = pair;
            }
        }
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

    __device__ static void tile(const AttentionDisentangledArgs &args, uint32_t tile, Shared &shared) {
        const Place place(args, tile);
        const int length = place.length, first_query = place.first_query;
        if (first_query >= length) return;

        const float scale_log2 = args.scale * 1.4426950408889634f;
        const int thread = threadIdx.x, lane = thread % 32;
        // The warp's number is broadcast, so that the compiler knows that a warp does not part ways over it.
        const int warp = __shfl_sync(0xffffffff, thread / 32, 0), first_row = first_query + warp * QUERY_ROWS;
        const bool by_query = args.position_keys != 0, by_key = args.position_queries != 0;

        const uint32_t width = args.heads * args.head_dim;
        const __half *const sequence_rows = reinterpret_cast<const __half *>(args.qkv) + place.start * args.qkv_stride + place.head * args.head_dim;
        const bool aligned = on_16_bytes(args.qkv, args.qkv_stride, args.head_dim);
        const auto rows_from = [&](uint32_t column, int row) {
            return Rows{sequence_rows + column + row * size_t(args.qkv_stride), args.qkv_stride, length - row, int(args.head_dim)};
        };
        // Chunk c of distances begins at 64 c. Block b of keys needs chunks n - b and n - b - 1, where n is the number of the query block; the
        // second of them is the first of the next block, and arrives with this one.
        const auto copy_chunk = [&](int block) {
            const int first_distance = first_query - block * KEYS;
            copy_distances(shared.position_keys[block % 3], args.position_keys, args, place.head, first_distance);
            copy_distances(shared.position_queries[block % 3], args.position_queries, args, place.head, first_distance);
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
        copy_rows<D, QUERIES, THREADS>(shared_queries, rows_from(0, first_query), aligned, thread);
        copy_chunk(0);
        copy_block(0);
        cp_async_wait<0>();
        __syncthreads();
        const Queries<D> queries(shared_queries + warp * QUERY_ROWS * PITCH<D>);

        float output[D / 8][4] = {}; // not yet divided by sum
        float highest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
        const int blocks = div_ceil(length, KEYS);
        for (int block = 0; block < blocks; ++block) {
            cp_async_wait<0>();
            // This block has arrived for all threads, and none still reads what the next one or this one's terms are written to.
            __syncthreads();
            if (block + 1 < blocks) copy_block(block + 1);
            const Stage &stage = shared.stages[block % 2];

            if (by_key) {
                position_product(shared.position_to_content + warp * 16 * TERM_PITCH, SharedRows(stage.keys + warp * 16 * PITCH<D>),
                                 shared.position_queries[(block + 1) % 3], shared.position_queries[block % 3], 48 - warp * 16, scale_log2);
            }
            if (by_query) {
                position_product(shared.content_to_position[warp], queries, shared.position_keys[(block + 1) % 3],
                                 shared.position_keys[block % 3], warp * 16, scale_log2);
            }

            float scores[KEYS / 8][4] = {};
            const uint32_t first_key = first_columns(stage.keys);
            multiply<KEYS / 16>(scores, queries, [&](int group) { return first_key + group * 16 * PITCH<D> * 2; });
            __syncthreads(); // the terms of all warps are written

            const int keys_left = length - block * KEYS;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = lane / 4 + half * 8, column = lane % 4 * 2;
                const __half *const of_query = shared.content_to_position[warp] + row * TERM_PITCH + 64 + row - column;
                const __half *const of_keys = shared.position_to_content + column * (TERM_PITCH - 1) + 16 + warp * 16 + row;
                float now = highest[half];
#pragma unroll
                for (int i = 0; i < KEYS / 4; ++i) {
                    // The key's number is the lane's first column and a constant.
                    const int key = i / 2 * 8 + i % 2;
                    float term = 0.0f;
                    if (by_query) term += __half2float(of_query[-key]);
                    if (by_key) term += __half2float(of_keys[key * TERM_PITCH - key % 16]);
                    float &score = scores[i / 2][half * 2 + i % 2];
                    score = key + column < keys_left ? score * scale_log2 + term : -INFINITY;
                    now = fmaxf(now, score);
                }
                now = quad_max(now);
                // Every block has a key that all rows see, so the maximum is finite but for NaN and infinite inputs.
                const float correction = exp2_approx(highest[half] - now);
                highest[half] = now;
                sum[half] *= correction;
#pragma unroll
                for (int i = 0; i < D / 4; ++i) output[i / 2][half * 2 + i % 2] *= correction;
#pragma unroll
                for (int i = 0; i < KEYS / 4; ++i) {
                    float &p = scores[i / 2][half * 2 + i % 2];
                    p = exp2_approx(p - now);
                    sum[half] += p;
                }
            }

            // Two neighbouring tiles of p, rounded, are an A operand as they stand; values are read transposed.
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
                const auto &left = scores[2 * step], &right = scores[2 * step + 1];
                const uint32_t p[4] = {pack_halves(left[0], left[1]), pack_halves(left[2], left[3]), pack_halves(right[0], right[1]),
                                       pack_halves(right[2], right[3])};
#pragma unroll
                for (int group = 0; group < D / 16; ++group) {
                    const auto &columns = values[step % 2][group];
                    mma_m16n8k16(output[2 * group], p, columns[0], columns[1]);
                    mma_m16n8k16(output[2 * group + 1], p, columns[2], columns[3]);
                }
            }
        }

        __half *const rows = reinterpret_cast<__half *>(args.output);
        const bool in_pairs = ((args.output | 2 * (args.output_stride | args.head_dim)) & 3) == 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + lane / 4 + half * 8;
            const float factor = 1.0f / quad_sum(sum[half]);
            if (row >= length) continue;
            __half *const columns = rows + (place.start + row) * args.output_stride + place.head * args.head_dim;
#pragma unroll
            for (int i = 0; i < D / 8; ++i) {
                const int column = i * 8 + lane % 4 * 2;
                const float left = output[i][half * 2] * factor, right = output[i][half * 2 + 1] * factor;
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
