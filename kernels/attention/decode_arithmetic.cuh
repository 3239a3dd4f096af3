// Attention where every sequence brings one query and its keys and values lie in a paged cache: a decoder's next token.
//   out[h] = sum over cached positions j of softmax_j(scale * q[h] . k[j]) * v[j],   for each query head h
//   q: the first heads * head_dim columns of qkv [sequences, qkv_stride]; cache: pages, see KvPages in abi.h; all fp16
//
// Memory bound: 4 * length * head_dim bytes for each key head and next to no arithmetic, so all that matters is how many bytes are under way.
//
// Work. A sequence's keys are cut into chunks of args.pages_per_chunk pages, counted from position 0. An item is one chunk of one column: one
// key head and up to 8 of the query heads that share it, so that each key is read once for all of them. Items are numbered through the sequences
// by their true lengths, chunk by chunk and in each chunk column by column. The launch has as many tiles as there would be items were every sequence
// as long as its row of the page table; tiles beyond the last item are empty, and so a captured launch stays right while sequences grow.
//
// A block. Pages of all its items pass through one ring of asynchronous copies, which runs on into the next item while one is finished. Each of
// four warps has a quarter of every page, and its own part of the ring, with no barrier between warps before the item's end; then their
// partial results are added in the order of the warps. A fifth warp does what waits for other SMs, so that the ring never stands still for it.
//
// Chunks. The only chunk of a column writes its output. Of several, each leaves (output, maximum, sum) in the workspace, and the fifth warp of the
// block that is the last to arrive adds up all of them in the order of the chunks. So the arithmetic of a sequence depends on its own length, the
// window and the chunk's pages alone, and these follow from the launch's shape: not on who computes it, nor on the SM count.
//
// Arithmetic. As products of transposes, so that keys are the 16 rows of m16n8k16 and query heads its 8 columns: s = k q^T and o = v^T p^T.
// The running maximum and sum are those of flash.cuh.
// Sources: flash.cuh; splitting the keys: Dao et al., "Flash-Decoding for long-context inference", 2023; pages: Kwon et al., "Efficient Memory
// Management for Large Language Model Serving with PagedAttention", 2023.
#pragma once
#include "attention/flash.cuh"
#include "elastic.cuh"

namespace attention {

constexpr int DECODE_HEADS = 8; // query heads of an item: the n of m16n8k16
constexpr uint32_t EVERY_LANE = 0xffffffff;
constexpr uint32_t NO_ITEM = 0xffffffff;

// One chunk of one column of one sequence.
struct DecodeItem {
    uint32_t sequence, column;
    uint32_t key_head, first_head, heads; // of the column: a key head, and the query heads that share it, up to DECODE_HEADS
    int begin, length;    // positions that the query sees
    int chunk, chunks;    // this one, and how many the sequence has from the first that it sees
    int page, end_page;   // still to be read
    uint32_t page_number; // lane i: the table's entry of the chunk's page i
};

// Columns of a sequence that have the same key head: groups of up to DECODE_HEADS of the query heads that share it.
__device__ __forceinline__ uint32_t columns_per_key_head(const AttentionDecodeArgs &args) {
    return div_ceil(args.heads / args.cache.kv_heads, DECODE_HEADS);
}

// A warp's way through the batch, from item to item; quick where their numbers grow. Reads lengths and pages past L1: it may do so before earlier launches
// have ended, and what an SM kept in L1 from before may be older than what the last launch to write them left.
class DecodeItems {
  public:
    __device__ explicit DecodeItems(const AttentionDecodeArgs &args)
        : args_(args), heads_per_key_(args.heads / args.cache.kv_heads), columns_per_key_(columns_per_key_head(args)),
          columns_(args.cache.kv_heads * columns_per_key_) {
        read(0);
    }

    // Items in the whole batch, the same in every lane. To be called before the first at().
    __device__ uint32_t count() {
        uint32_t items = __shfl_sync(EVERY_LANE, last_, 31);
        for (uint32_t first = 32; first < args_.sequences; first += 32) {
            read(first);
            items += __shfl_sync(EVERY_LANE, last_, 31);
        }
        if (args_.sequences > 32) read(0);
        return items;
    }

    __device__ DecodeItem at(uint32_t number) {
        if (number < before_) { // of a tile with several items, the last was far ahead
            before_ = 0;
            read(0);
        }
        for (uint32_t here; number - before_ >= (here = __shfl_sync(EVERY_LANE, last_, 31));) {
            before_ += here;
            read(first_ + 32);
        }
        const int owner = __ffs(__ballot_sync(EVERY_LANE, number - before_ < last_)) - 1;
        DecodeItem item;
        item.sequence = first_ + owner;
        item.length = __shfl_sync(EVERY_LANE, length_, owner);
        item.begin = begin(item.length);
        item.chunks = chunks(item.length);
        const uint32_t nth = number - before_ - __shfl_sync(EVERY_LANE, last_, owner) + item.chunks * columns_;
        item.column = nth % columns_;
        item.key_head = item.column / columns_per_key_;
        const uint32_t before = item.column % columns_per_key_ * DECODE_HEADS; // heads of the same key head
        item.first_head = item.key_head * heads_per_key_ + before;
        item.heads = min(heads_per_key_ - before, uint32_t(DECODE_HEADS));
        item.chunk = item.begin / chunk_tokens() + nth / columns_;
        const int first_page = item.chunk * args_.pages_per_chunk;
        item.page = max(first_page, item.begin / KV_PAGE_TOKENS);
        item.end_page = min(first_page + int(args_.pages_per_chunk), div_ceil(item.length, KV_PAGE_TOKENS));
        const uint32_t *const table =
            reinterpret_cast<const uint32_t *>(args_.cache.page_table) + size_t(item.sequence) * args_.cache.pages_per_sequence;
        const int mine = first_page + threadIdx.x % 32;
        item.page_number = mine < item.end_page ? __ldcg(table + mine) : 0;
        return item;
    }

  private:
    __device__ int chunk_tokens() const { return args_.pages_per_chunk * KV_PAGE_TOKENS; }

    __device__ int begin(int length) const { return args_.window == 0 || args_.window >= length ? 0 : length - args_.window; }
    __device__ int chunks(int length) const { return div_ceil(length, chunk_tokens()) - begin(length) / chunk_tokens(); }

    // Lane i has sequence first + i, and in last_ the number of its last item plus one, counted from the first of the 32 sequences.
    __device__ void read(uint32_t first) {
        const uint32_t lane = threadIdx.x % 32;
        first_ = first;
        length_ = 0;
        if (first + lane < args_.sequences) {
            const uint32_t length = __ldcg(reinterpret_cast<const uint32_t *>(args_.lengths) + first + lane);
            length_ = min(length, args_.cache.pages_per_sequence * KV_PAGE_TOKENS);
        }
        last_ = chunks(length_) * columns_;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const uint32_t left = __shfl_up_sync(EVERY_LANE, last_, distance);
            if (lane >= distance) last_ += left;
        }
    }

    const AttentionDecodeArgs &args_;
    const uint32_t heads_per_key_, columns_per_key_, columns_;
    uint32_t first_, before_ = 0, last_;
    int length_;
};

// The numbers of this block's items. A tile is one item, or several that lie a launch's tiles apart. By one thread.
class DecodeNumbers {
  public:
    __device__ DecodeNumbers(const Tiles &tiles, uint32_t items) : tiles_(tiles), queue_(tiles), items_(items), last_(NO_ITEM) {}

    // The first, before earlier launches are waited for. If there is none, the caller must wait all the same, then let the next launch come.
    __device__ uint32_t first() {
        if (tiles_.progress == 0) return next();
        while (queue_.take_early(last_)) {
            if (last_ < items_) return last_;
        }
        return last_ = NO_ITEM;
    }

    __device__ uint32_t next() {
        if (tiles_.progress == 0) {
            last_ = last_ == NO_ITEM ? blockIdx.x : last_ + gridDim.x;
            return last_ < items_ ? last_ : NO_ITEM;
        }
        if (last_ < items_ && items_ - last_ > tiles_.count) return last_ += tiles_.count;
        while (queue_.take(last_)) {
            if (last_ < items_) return last_;
        }
        return last_ = NO_ITEM;
    }
    __device__ bool is_joiner() const { return queue_.is_joiner(); }
    __device__ void leave() { queue_.leave(); }

  private:
    const Tiles &tiles_;
    TileQueue queue_;
    const uint32_t items_;
    uint32_t last_;
};

// The arithmetic of one block, wherever its keys and values lie in shared memory. FILLED: heads have all of the D columns, and none fewer.
template <int D, bool FILLED>
struct DecodeArithmetic {
    static constexpr int WARPS = 4;                     // that attend
    static constexpr int KEYS = KV_PAGE_TOKENS / WARPS; // of one warp in one page
    static_assert(KEYS == 16, "the m of m16n8k16");

    // What a warp knows of an item so far. A lane holds query heads 2 (lane % 4) and the next, and of every 16 columns lane / 4 and lane / 4 + 8.
    struct Partial {
        float output[D / 16][4] = {}; // not yet divided by sum; [.][0], [.][2] of the first head, [.][1], [.][3] of the second
        float highest[2] = {-INFINITY, -INFINITY}; // times scale_log2
        float sum[2] = {}; // of this lane's keys
    };
    // The item's queries as B operands.
    struct Queries {
        uint32_t of[D / 16][2];
    };

    // A warp's share of the softmax, for the others.
    struct WarpSums {
        float highest[DECODE_HEADS];
        float sum[DECODE_HEADS];
    };

    const AttentionDecodeArgs &args;
    const int warp, lane, head_dim;
    const float scale_log2;

    __device__ explicit DecodeArithmetic(const AttentionDecodeArgs &args)
        : args(args),
          // Broadcast, so that the compiler knows that a warp does not part ways over its number.
          warp(__shfl_sync(EVERY_LANE, threadIdx.x / 32, 0)), lane(threadIdx.x % 32), head_dim(FILLED ? D : args.cache.head_dim),
          scale_log2(args.scale * 1.4426950408889634f) {}

    // The warp's 16 keys from `position` on, which may lie partly outside what the query sees. In shared memory, the lane's chunk of 8 columns for
    // ldmatrix lies at key_address(step) for the 16 columns from 16 * step, and at value_address(step), transposed.
    template <typename KeyAddress, typename ValueAddress>
    __device__ __forceinline__ void attend(Partial &partial, const Queries &queries, int position, int begin, int length, const KeyAddress &key_address,
                                           const ValueAddress &value_address) const {
        // Keys by columns as they lie; two sums, since each product waits for the one before it in its sum.
        float even[4] = {}, odd[4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            uint32_t a[4];
            ldmatrix_x4(a, key_address(step));
            mma_m16n8k16(step % 2 == 0 ? even : odd, a, queries.of[step][0], queries.of[step][1]);
        }
        float scores[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[i] = even[i] + odd[i];

        if (position < begin || position + KEYS > length) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = position + lane / 4 + i / 2 * 8;
                if (key < begin || key >= length) scores[i] = -INFINITY;
            }
        }

        float correction[2];
#pragma unroll
        for (int head = 0; head < 2; ++head) {
            // A head's scores lie in the eight lanes with the same lane % 4.
            float highest = fmaxf(scores[head], scores[head + 2]);
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2) highest = fmaxf(highest, __shfl_xor_sync(EVERY_LANE, highest, distance));
            highest = fmaxf(__fmul_rn(highest, scale_log2), partial.highest[head]);
            // While only masked keys were seen, the maximum is -inf, and -inf - -inf would be NaN.
            const float reference = highest == -INFINITY ? 0.0f : highest;
            correction[head] = exp2_approx(partial.highest[head] - reference);
            partial.highest[head] = highest;
            scores[head] = exp2_approx(scores[head] * scale_log2 - reference);
            scores[head + 2] = exp2_approx(scores[head + 2] * scale_log2 - reference);
            partial.sum[head] = partial.sum[head] * correction[head] + (scores[head] + scores[head + 2]);
        }
        // The maximum seldom changes after the first pages.
        if (__any_sync(EVERY_LANE, correction[0] != 1.0f || correction[1] != 1.0f)) {
#pragma unroll
            for (int i = 0; i < D / 4; ++i) partial.output[i / 4][i % 4] *= correction[i % 2];
        }

        // As a B operand, p is keys by heads with two keys in a register, while scores have two heads in one.
        const uint32_t b0 = transposed_8x8(pack_halves(scores[0], scores[1])), b1 = transposed_8x8(pack_halves(scores[2], scores[3]));
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            uint32_t a[4];
            ldmatrix_x4_transposed(a, value_address(step));
            mma_m16n8k16(partial.output[step], a, b0, b1);
        }
    }

    // Where the other warps find it: result(head, column) is the place of one output.
    template <typename Result>
    __device__ __forceinline__ void leave_partial(Partial &partial, WarpSums &sums, const Result &result) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2) partial.sum[half] += __shfl_xor_sync(EVERY_LANE, partial.sum[half], distance);
            const int head = lane % 4 * 2 + half;
            if (lane / 4 == 0) {
                sums.highest[head] = partial.highest[half];
                sums.sum[head] = partial.sum[half];
            }
#pragma unroll
            for (int i = 0; i < D / 16; ++i) {
                *result(head, i * 16 + lane / 4) = partial.output[i][half];
                *result(head, i * 16 + lane / 4 + 8) = partial.output[i][half + 2];
            }
        }
    }

    // The workspace: counters at a fixed place, then for each chunk of each query head (maximum, sum), then its output.
    __device__ size_t chunk_rows() const { return div_ceil(args.cache.pages_per_sequence, args.pages_per_chunk); }
    __device__ size_t workspace_row(const DecodeItem &item, int head) const {
        return (item.sequence * size_t(args.heads) + head) * chunk_rows();
    }
    __device__ float2 *statistics() const {
        return reinterpret_cast<float2 *>(args.workspace + DECODE_MAX_COUNTERS * sizeof(uint32_t));
    }
    __device__ float4 *outputs() const {
        // On 16 bytes.
        const size_t rows = (args.sequences * size_t(args.heads) * chunk_rows() + 1) / 2 * 2;
        return reinterpret_cast<float4 *>(statistics() + rows);
    }
    __device__ int pitch() const { return div_ceil(head_dim, 4); } // of a row of outputs, in float4

    // Four columns of a finished row.
    __device__ void write_output(const DecodeItem &item, int head, int column, float4 value) const {
        __half *const to = reinterpret_cast<__half *>(args.output) + item.sequence * size_t(args.output_stride) + head * head_dim + column;
        if (((args.output | 2 * (args.output_stride | head_dim)) & 7) == 0) {
            *reinterpret_cast<uint2 *>(to) = make_uint2(pack_halves(value.x, value.y), pack_halves(value.z, value.w));
        } else {
            const float values[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (column + i < head_dim) to[i] = __float2half_rn(values[i]);
            }
        }
    }

    __device__ static void add_weighted(float4 &sum, float weight, float4 value) {
        sum.x += weight * value.x;
        sum.y += weight * value.y;
        sum.z += weight * value.z;
        sum.w += weight * value.w;
    }
    __device__ static float4 scaled(float4 value, float factor) {
        return make_float4(value.x * factor, value.y * factor, value.z * factor, value.w * factor);
    }

    // Adds up the warps' results, into the output or, of several chunks, the workspace, or nowhere for an item of none; result(warp, head, column) is the
    // place of four of them.
    template <typename Result>
    __device__ __forceinline__ void store(const DecodeItem &item, const WarpSums (&sums)[WARPS], const Result &result) const {
        const int first = item.first_head, pieces = pitch();
        for (int i = threadIdx.x; i < int(item.heads) * pieces; i += WARPS * 32) {
            const int row = i / pieces, piece = i % pieces;
            float highest = sums[0].highest[row];
#pragma unroll
            for (int other = 1; other < WARPS; ++other) highest = fmaxf(highest, sums[other].highest[row]);
            float4 output = {};
            float sum = 0.0f;
#pragma unroll
            for (int other = 0; other < WARPS; ++other) {
                const float weight = exp2_approx(sums[other].highest[row] - highest); // 0 for a warp that had no keys
                add_weighted(output, weight, *result(other, row, piece * 4));
                sum += weight * sums[other].sum[row];
            }
            if (item.chunks == 1) {
                write_output(item, first + row, piece * 4, scaled(output, 1.0f / sum));
            } else if (item.chunks > 1) {
                const size_t at = workspace_row(item, first + row) + item.chunk;
                outputs()[at * pieces + piece] = output;
                if (piece == 0) statistics()[at] = make_float2(highest, sum);
            }
        }
    }

    __device__ static void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

    // What adding up chunks needs of shared memory. Aligned as it is read: the compiler would also read what lies before it, which others write.
    struct alignas(16) CombineRoom {
        float weights[DECODE_HEADS][32];
        float sums[DECODE_HEADS];
    };

    // Counts the item; whoever counts the last of a column adds up its chunks, and leaves the counter as it was. One warp.
    __device__ void combine_if_last(const DecodeItem &item, CombineRoom &room) const {
        bool last = false;
        if (lane == 0) {
            const uint32_t columns = args.cache.kv_heads * columns_per_key_head(args);
            uint32_t *const arrivals = reinterpret_cast<uint32_t *>(args.workspace) + size_t(item.sequence) * columns + item.column;
            fence(); // releases every thread's part, which is ordered before this thread
            last = atomicAdd(arrivals, 1u) == item.chunks - 1;
            if (last) {
                *arrivals = 0;
                fence(); // acquires the others'
            }
        }
        if (__shfl_sync(EVERY_LANE, last, 0)) combine(item, room);
    }

    // Reads past L1, which does not see what other SMs write. For the weights every lane is a chunk's, for the output it has some pieces of it; the
    // first loads of both are under way together.
    __device__ void combine(const DecodeItem &item, CombineRoom &room) const {
        constexpr int EACH = D <= 80 ? 1 : D < 32 * 4 ? D / 32 : 4, AHEAD = D <= 80 ? 2 : 4;
        const int first = item.first_head, rows = item.heads, pieces = pitch(), chunks = item.chunks;
        const int first_chunk = item.begin / int(args.pages_per_chunk * KV_PAGE_TOKENS);
        const size_t first_row = workspace_row(item, first) + first_chunk, next_head = chunk_rows();
        const auto known = [&](int row, int chunk) {
            return row < rows && chunk < chunks ? __ldcg(statistics() + first_row + row * next_head + chunk) : make_float2(-INFINITY, 0.0f);
        };

        float2 mine[DECODE_HEADS]; // of this lane's chunk among 32
#pragma unroll
        for (int row = 0; row < DECODE_HEADS; ++row) mine[row] = known(row, lane);
        float highest[DECODE_HEADS];
        // A lane's statistics become its chunk's weights, for all lanes to read.
        const auto publish = [&](int from, bool add) {
            __syncwarp();
#pragma unroll
            for (int row = 0; row < DECODE_HEADS; ++row) {
                const float weight = from + lane < chunks ? exp2_approx(mine[row].x - highest[row]) : 0.0f;
                room.weights[row][lane] = weight;
                float sum = weight * mine[row].y;
#pragma unroll
                for (int distance = 1; distance < 32; distance *= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, distance);
                if (add && lane == 0) room.sums[row] = from == 0 ? sum : room.sums[row] + sum;
            }
            __syncwarp();
        };

        for (int base = 0; base < rows * pieces; base += 32 * EACH) {
            const float4 *of[EACH]; // of the first chunk
            int row_of[EACH], column_of[EACH];
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                const int i = min(base + j * 32 + lane, rows * pieces - 1);
                row_of[j] = i / pieces;
                column_of[j] = i % pieces * 4;
                of[j] = outputs() + (first_row + row_of[j] * next_head) * pieces + i % pieces;
            }
            float4 ahead[AHEAD][EACH];
#pragma unroll
            for (int chunk = 0; chunk < AHEAD; ++chunk) {
#pragma unroll
                for (int j = 0; j < EACH; ++j) ahead[chunk][j] = chunk < chunks ? __ldcg(of[j] + chunk * pieces) : float4();
            }
            if (base == 0) {
#pragma unroll
                for (int row = 0; row < DECODE_HEADS; ++row) highest[row] = mine[row].x;
                for (int chunk = 32; chunk < chunks; chunk += 32) {
#pragma unroll
                    for (int row = 0; row < DECODE_HEADS; ++row) highest[row] = fmaxf(highest[row], known(row, chunk + lane).x);
                }
#pragma unroll
                for (int row = 0; row < DECODE_HEADS; ++row) {
#pragma unroll
                    for (int distance = 1; distance < 32; distance *= 2) {
                        highest[row] = fmaxf(highest[row], __shfl_xor_sync(EVERY_LANE, highest[row], distance));
                    }
                }
                publish(0, true);
            } else if (chunks > 32) {
#pragma unroll
                for (int row = 0; row < DECODE_HEADS; ++row) mine[row] = known(row, lane);
                publish(0, false);
            }

            float4 output[EACH] = {};
#pragma unroll
            for (int chunk = 0; chunk < AHEAD; ++chunk) {
#pragma unroll
                for (int j = 0; j < EACH; ++j) add_weighted(output[j], room.weights[row_of[j]][chunk], ahead[chunk][j]);
            }
            for (int chunk = AHEAD; chunk < chunks; chunk += AHEAD) {
                if (chunk % 32 == 0) {
#pragma unroll
                    for (int row = 0; row < DECODE_HEADS; ++row) mine[row] = known(row, chunk + lane);
                    publish(chunk, base == 0);
                }
#pragma unroll
                for (int next = 0; next < AHEAD; ++next) {
#pragma unroll
                    for (int j = 0; j < EACH; ++j) {
                        ahead[next][j] = chunk + next < chunks ? __ldcg(of[j] + size_t(chunk + next) * pieces) : float4();
                    }
                }
#pragma unroll
                for (int next = 0; next < AHEAD; ++next) {
#pragma unroll
                    for (int j = 0; j < EACH; ++j) add_weighted(output[j], room.weights[row_of[j]][(chunk + next) % 32], ahead[next][j]);
                }
            }
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                if (base + j * 32 + lane >= rows * pieces) continue;
                write_output(item, first + row_of[j], column_of[j], scaled(output[j], 1.0f / room.sums[row_of[j]]));
            }
        }
    }
};

} // namespace attention
