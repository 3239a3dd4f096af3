// What the kernels of DeBERTa's attention share: one warp's part, 16 queries of one head that meet keys in blocks of 64.
//   score[i, j] = scale * (q[i] . k[j] + q[i] . position_keys[i - j] + k[j] . position_queries[i - j])
//   out[i]      = sum over j of softmax_j(score[i, j]) * v[j],   for each head of each sequence
//   qkv: [rows, qkv_stride] fp16, head h of position_keys and position_queries: columns h * head_dim of [2 * reach + 1, position_stride] fp16, whose
//   row `reach` is for distance 0; out: [rows, output_stride] fp16; scores, softmax and sums fp32
//
// A block of 64 queries and 64 keys has 127 distances, whatever the length: rows of the position matrices that lie side by side. So the products with
// positions are matrix products of the tile itself, [16 queries of a warp] x [79 distances] and [16 keys of a warp] x [79 distances], and no matrix of
// tokens by distances ever exists. What makes them scores is a skew, column i - j of row i (or j) to column j of row i: they pass through shared memory,
// scaled and rounded to halves, and are read along the diagonals.
//
// Chunk c of distances begins at 64 c. Block b of keys needs chunks n - b and n - b - 1, the upper and the lower, where n is the number of the query
// block. So from one block of keys to the next the distances shift by one chunk, and each block brings 64 rows of keys, of values, and of each
// position matrix, the last two into a ring of three chunks: two in use, one arriving.
//
// Source: He et al., "DeBERTa", 2020, eq. 4; and those of flash.cuh.
#pragma once
#include "abi.h"
#include "attention/flash.cuh"

namespace attention {

// Queries of a tile, keys of a block, distances of a chunk.
constexpr int DISENTANGLED_BLOCK = 64;

// What a tile is of: every head of every sequence for each query block.
struct DisentangledPlace {
    int head, length, first_query;
    size_t start; // the sequence's first row

    __device__ DisentangledPlace(const AttentionDisentangledArgs &args, uint32_t tile) {
        const uint32_t sequence = tile / args.heads % args.sequences;
        head = tile % args.heads;
        length = reinterpret_cast<const uint32_t *>(args.lengths)[sequence];
        start = reinterpret_cast<const uint32_t *>(args.starts)[sequence];
        first_query = tile / args.heads / args.sequences * DISENTANGLED_BLOCK;
    }
};

// The terms of one block's scores, scaled; for four warps. Row i % 16 of each warp has its terms of query i and key j in column 64 + i % 16 - j % 64; row
// j % 64 has those of key j and query i in column 16 + i % 64 - j % 16.
struct DisentangledTerms {
    // Distances that the 16 rows of a warp have to the 64 of the other side: 79, and one to make it whole tiles.
    static constexpr int DISTANCES = 80;
    // Rows read along a diagonal and rows written side by side both spread over the banks. Nothing is read from the last eight columns.
    static constexpr int PITCH = DISTANCES + 8;

    __half of_queries[4][QUERY_ROWS * PITCH];
    __half of_keys[DISENTANGLED_BLOCK * PITCH];

    // The first row of the two chunks that a warp's queries need, and its keys: multiples of 16.
    __device__ static constexpr int first_of_queries(int warp) { return warp * 16; }
    __device__ static constexpr int first_of_keys(int warp) { return 48 - warp * 16; }

    // Where a lane stores what it has of the first eight columns of a warp's 16 rows, as m16n8k16 holds them.
    __device__ static __forceinline__ uint32_t first_columns(const __half *rows) {
        const int lane = threadIdx.x % 32;
        return shared_address(rows + lane / 4 * PITCH + lane % 4 * 2);
    }

    // Stores eight columns.
    __device__ static __forceinline__ void store(uint32_t address, const float *sums, float scale_log2) {
        const uint32_t upper = pack_halves(sums[0] * scale_log2, sums[1] * scale_log2), lower = pack_halves(sums[2] * scale_log2, sums[3] * scale_log2);
        asm volatile("st.shared.b32 [%0], %1;\nst.shared.b32 [%0 + %3], %2;" ::"r"(address), "r"(upper), "r"(lower), "n"(8 * PITCH * 2) : "memory");
    }
};

// A warp's 16 rows: a lane holds rows lane / 4 and lane / 4 + 8, and of every eight columns 2 * (lane % 4) and the next.
template <int D>
struct DisentangledRows {
    static constexpr int KEYS = DISENTANGLED_BLOCK;
    static constexpr int PITCH = DisentangledTerms::PITCH;

    float scores[KEYS / 8][4];
    float output[D / 8][4] = {}; // not yet divided by sum
    float highest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {}; // of this lane's columns

    // Scores become weights: powers of two of what they are above the highest so far, to which sums and output are brought. Of the keys `left` are the
    // sequence's.
    template <bool BY_QUERY, bool BY_KEY>
    __device__ __forceinline__ void weigh(const DisentangledTerms &terms, int warp, int left, float scale_log2) {
        const int lane = threadIdx.x % 32, column = lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = lane / 4 + half * 8;
            const __half *const of_query = terms.of_queries[warp] + row * PITCH + 64 + row - column;
            const __half *const of_keys = terms.of_keys + column * (PITCH - 1) + 16 + warp * 16 + row;
            float now = highest[half];
#pragma unroll
            for (int i = 0; i < KEYS / 4; ++i) {
                // The key's number is the lane's first column and a constant.
                const int key = i / 2 * 8 + i % 2;
                float term = 0.0f;
                if constexpr (BY_QUERY) term += __half2float(of_query[-key]);
                if constexpr (BY_KEY) term += __half2float(of_keys[key * PITCH - key % 16]);
                float &score = scores[i / 2][half * 2 + i % 2];
                score = score * scale_log2 + term;
            }
            if (left < KEYS) {
#pragma unroll
                for (int i = 0; i < KEYS / 4; ++i) {
                    if (i / 2 * 8 + i % 2 + column >= left) scores[i / 2][half * 2 + i % 2] = -INFINITY;
                }
            }
#pragma unroll
            for (int i = 0; i < KEYS / 4; ++i) now = fmaxf(now, scores[i / 2][half * 2 + i % 2]);
            now = quad_max(now);
            // Of a row that has met nothing but scores of minus infinity, all weights are 0.
            const float reference = now == -INFINITY ? 0.0f : now;
            const float correction = exp2_approx(highest[half] - reference);
            highest[half] = now;
            sum[half] *= correction;
#pragma unroll
            for (int i = 0; i < D / 4; ++i) output[i / 2][half * 2 + i % 2] *= correction;
#pragma unroll
            for (int i = 0; i < KEYS / 4; ++i) {
                float &p = scores[i / 2][half * 2 + i % 2];
                p = exp2_approx(p - reference);
                sum[half] += p;
            }
        }
    }

    // Two neighbouring tiles of weights, rounded, are an A operand as they stand.
    __device__ __forceinline__ void operand(int step, uint32_t (&a)[4]) const {
        const auto &left = scores[2 * step], &right = scores[2 * step + 1];
        a[0] = pack_halves(left[0], left[1]);
        a[1] = pack_halves(left[2], left[3]);
        a[2] = pack_halves(right[0], right[1]);
        a[3] = pack_halves(right[2], right[3]);
    }

    // Stores output / sum as rows of halves.
    __device__ __forceinline__ void store(const AttentionDisentangledArgs &args, const DisentangledPlace &place, int warp) const {
        const int lane = threadIdx.x % 32;
        __half *const rows = reinterpret_cast<__half *>(args.output);
        const bool in_pairs = ((args.output | 2 * (args.output_stride | args.head_dim)) & 3) == 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = place.first_query + warp * QUERY_ROWS + lane / 4 + half * 8;
            const float factor = 1.0f / quad_sum(sum[half]);
            if (row >= place.length) continue;
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
