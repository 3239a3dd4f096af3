// Rotary position embedding, in place on the query and key heads, and the write to the KV cache:
//   for each head and i < d/2:   x'[i]       = x[i] cos(a) - x[i + d/2] sin(a)
//                                x'[i + d/2] = x[i + d/2] cos(a) + x[i] sin(a),   a = position * inverse_frequency[i]
//   cache: the page and place of positions[row] in sequence_of[row] receive the rotated keys, and the values as they are
//   qkv: [rows, qkv_stride] fp16; angles and products fp32
// Without inverse frequencies nothing is rotated, and keys and values are copied as they are: models with absolute positions.
// The pairs are (i, i + d/2), as in Hugging Face's rotate_half, and not the paper's (2i, 2i + 1).
// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, eq. 34.
//
// Memory bound: each query and key is read and written once, each value read once where there is a cache. A tile is ROTARY_PIECES_PER_TILE pieces of
// one row: a piece is WIDTH halves of a head's first half and WIDTH of its second. A lane has two of them under way before it needs an angle.
// Each warp computes the row's d/2 angles for itself, so warps never wait for each other.
#include "attention/rotary.cuh"
#include "elastic.cuh"

namespace {

constexpr int WARPS = 4, EACH = 2; // pieces of a lane
static_assert(WARPS * 32 * EACH == ROTARY_PIECES_PER_TILE);
constexpr int MAX_PAIRS = 128; // heads of up to 256 columns

// A head of 80 columns has 40 pairs, which a warp computes in two rounds.
__device__ void compute_angles(float2 *angles, const RotaryArgs &args, uint32_t position) {
    const float *const inverse_frequencies = reinterpret_cast<const float *>(args.inverse_frequencies);
    for (int i = threadIdx.x % 32; i < args.cache.head_dim / 2; i += 32) angles[i] = angle_of(position, inverse_frequencies[i]);
}

__device__ void rotate(__half &low, __half &high, float2 angle) {
    const float2 turned = rotated(make_float2(__half2float(low), __half2float(high)), angle);
    low = __float2half_rn(turned.x);
    high = __float2half_rn(turned.y);
}

// WIDTH halves that one access moves.
template <int WIDTH>
struct alignas(WIDTH * sizeof(__half)) Halves {
    __half of[WIDTH];
};

// Pieces of heads of an odd size end with a single column, which is its own second half; rotation does not know such heads.
template <int WIDTH>
__device__ void tile(const RotaryArgs &args, uint32_t row, int first_piece, float2 *angles) {
    using Piece = Halves<WIDTH>;
    const int heads = args.heads, kv_heads = args.cache.kv_heads, head_dim = args.cache.head_dim;
    const int half = (head_dim + 1) / 2, pieces = half / WIDTH; // of a head
    const bool rotates = args.inverse_frequencies != 0;
    // Heads that nothing is done to: queries that are not rotated, values that are not kept.
    const int first_head = rotates ? 0 : heads, end_head = heads + (args.cache.keys != 0 ? 2 : 1) * kv_heads;

    Piece low[EACH], high[EACH];
    __half *at[EACH];
    int head[EACH], pair[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int piece = first_piece + i * 32;
        head[i] = first_head + piece / pieces;
        pair[i] = piece % pieces * WIDTH;
        if (head[i] >= end_head) continue;
        at[i] = reinterpret_cast<__half *>(args.qkv) + row * size_t(args.qkv_stride) + head[i] * head_dim + pair[i];
        low[i] = *reinterpret_cast<const Piece *>(at[i]);
        high[i] = *reinterpret_cast<const Piece *>(at[i] + head_dim / 2);
    }

    const uint32_t position = reinterpret_cast<const uint32_t *>(args.positions)[row];
    const CacheRow cache(args, row, position);
    if (rotates) {
        __syncwarp(); // the previous tile's angles are read
        compute_angles(angles, args, position);
        __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        if (head[i] >= end_head) continue;
        const int kept = head[i] - heads; // number among keys, then values
        if (rotates && kept < kv_heads) {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) rotate(low[i].of[j], high[i].of[j], angles[pair[i] + j]);
            *reinterpret_cast<Piece *>(at[i]) = low[i];
            *reinterpret_cast<Piece *>(at[i] + head_dim / 2) = high[i];
        }
        if (kept >= 0 && cache.exists) {
            const bool is_value = kept >= kv_heads;
            __half *const pool = reinterpret_cast<__half *>(is_value ? args.cache.values : args.cache.keys);
            __half *const to = pool + (cache.first + (is_value ? kept - kv_heads : kept) * KV_PAGE_TOKENS) * head_dim + pair[i];
            *reinterpret_cast<Piece *>(to) = low[i];
            *reinterpret_cast<Piece *>(to + head_dim / 2) = high[i];
        }
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(WARPS * 32, 8) rotary(const __grid_constant__ RotaryArgs args, const __grid_constant__ Tiles tiles) {
    __shared__ float2 angles[WARPS][MAX_PAIRS];
    const int warp = threadIdx.x / 32, in_tile = warp * 32 * EACH + threadIdx.x % 32;
    ElasticTiles queue(tiles);
    for (uint32_t number; queue.next_for_each_warp(number);) {
        const uint32_t row = number / args.tiles_per_row;
        const int first_piece = number % args.tiles_per_row * ROTARY_PIECES_PER_TILE + in_tile;
        if (args.vectorised) {
            tile<8>(args, row, first_piece, angles[warp]);
        } else {
            tile<1>(args, row, first_piece, angles[warp]);
        }
    }
}
