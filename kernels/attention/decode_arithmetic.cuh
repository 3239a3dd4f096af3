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
    uint32_t sequence, column;            // the column's number among those of all sequences
    uint32_t key_head, first_head, heads; // of the column: a key head, and the query heads that share it, up to DECODE_HEADS
    int begin, length;    // positions that the query sees
    int chunk, chunks;    // this one, and how many the sequence has from the first that it sees
    int page, end_page;   // still to be read
    uint32_t page_number; // lane i: the table's entry of the chunk's page i
};

// Divides by a chunk's pages, or its tokens, which are powers of two: a division by any other number is 20 instructions, one waiting for the other, at every
// place where it stands.
class ChunkSize {
  public:
    __device__ __forceinline__ explicit ChunkSize(uint32_t power_of_two) : shift_(31 - __clz(power_of_two)) {}
    __device__ __forceinline__ int whole(int amount) const { return amount >> shift_; }
    __device__ __forceinline__ int with_part(int amount) const { return (amount + (1 << shift_) - 1) >> shift_; }

  private:
    const int shift_;
};
__device__ __forceinline__ ChunkSize chunk_pages(const AttentionDecodeArgs &args) { return ChunkSize(args.pages_per_chunk); }
__device__ __forceinline__ ChunkSize chunk_tokens(const AttentionDecodeArgs &args) { return ChunkSize(args.pages_per_chunk * KV_PAGE_TOKENS); }

// A warp's way through the batch, from item to item; quick where their numbers grow. Reads lengths and pages past L1: it may do so before earlier launches
// have ended, and what an SM kept in L1 from before may be older than what the last launch to write them left.
class DecodeItems {
  public:
    __device__ explicit DecodeItems(const AttentionDecodeArgs &args)
        : args_(args), heads_per_key_(args.heads / args.cache.kv_heads), columns_per_key_(div_ceil(heads_per_key_, DECODE_HEADS)),
          columns_(args.cache.kv_heads * columns_per_key_) {}

    // Items in the whole batch, the same in every lane. To be called before the first at().
    __device__ uint32_t count() {
        uint32_t items = 0, first = 0;
#pragma unroll 1
        do {
            before_ = items;
            read(first);
            items += __shfl_sync(EVERY_LANE, last_, 31);
            first += 32;
        } while (first < args_.sequences);
        return items;
    }

    __device__ DecodeItem at(uint32_t number) {
#pragma unroll 1
        for (uint32_t here; number < before_ || number - before_ >= (here = __shfl_sync(EVERY_LANE, last_, 31));) {
            // Back to the first, if what was last looked at lies behind.
            const bool back = number < before_;
            before_ = back ? 0 : before_ + here;
            read(back ? 0 : first_ + 32);
        }
        const int owner = __ffs(__ballot_sync(EVERY_LANE, number - before_ < last_)) - 1;
        DecodeItem item;
        item.sequence = first_ + owner;
        item.length = __shfl_sync(EVERY_LANE, length_, owner);
        item.begin = begin(item.length);
        item.chunks = chunks(item.length);
        const uint32_t nth = number - before_ - __shfl_sync(EVERY_LANE, last_, owner) + item.chunks * columns_;
        const uint32_t column = nth % columns_;
        item.column = item.sequence * columns_ + column;
        item.key_head = column / columns_per_key_;
        const uint32_t before = column % columns_per_key_ * DECODE_HEADS; // heads of the same key head
        item.first_head = item.key_head * heads_per_key_ + before;
        item.heads = min(heads_per_key_ - before, uint32_t(DECODE_HEADS));
        item.chunk = chunk_tokens(args_).whole(item.begin) + nth / columns_;
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
    __device__ int begin(int length) const { return args_.window == 0 || args_.window >= length ? 0 : length - args_.window; }
    __device__ int chunks(int length) const {
        const ChunkSize tokens = chunk_tokens(args_);
        return tokens.with_part(length) - tokens.whole(begin(length));
    }

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

    // Whoever got none before waiting for earlier launches must wait all the same, then let the next launch come.
    __device__ uint32_t next(bool has_waited = true) {
        if (tiles_.progress == 0) {
            last_ = last_ == NO_ITEM ? blockIdx.x : last_ + gridDim.x;
            return last_ < items_ ? last_ : NO_ITEM;
        }
        if (last_ < items_ && items_ - last_ > tiles_.count) return last_ += tiles_.count;
        while (queue_.take_early(last_)) {
            if (last_ < items_) return last_;
        }
        if (has_waited) let_next_launch_come();
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

    // Where the other warps find it: result(head, column) is the place of the outputs from a column on that is a multiple of 8. Eight lie side by side.
    template <typename Result>
    __device__ __forceinline__ void leave_partial(Partial &partial, WarpSums &sums, const Result &result) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2) partial.sum[half] += __shfl_xor_sync(EVERY_LANE, partial.sum[half], distance);
            const uint32_t head = lane % 4 * 2 + half;
            if (lane / 4 == 0) {
                sums.highest[head] = partial.highest[half];
                sums.sum[head] = partial.sum[half];
            }
#pragma unroll
            for (int i = 0; i < D / 16; ++i) {
                result(head, i * 16)[lane / 4] = partial.output[i][half];
                result(head, i * 16 + 8)[lane / 4] = partial.output[i][half + 2];
            }
        }
    }

    // The workspace: counters at a fixed place, then for each chunk of each query head (maximum, sum), then its output.
    __device__ size_t chunk_rows() const { return chunk_pages(args).with_part(args.cache.pages_per_sequence); }
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

    // Four columns of a finished row; for an item of no chunks all but the store itself, which is therefore not left to the compiler: it would branch around
    // all that leads to it.
    __device__ void write_output(const DecodeItem &item, int head, int column, float4 value) const {
        __half *const to = reinterpret_cast<__half *>(args.output) + item.sequence * size_t(args.output_stride) + head * head_dim + column;
        if (((args.output | 2 * (args.output_stride | head_dim)) & 7) == 0) {
            asm volatile("{\n"
                         ".reg .pred wanted;\n"
                         "setp.ne.s32 wanted, %0, 0;\n"
                         "@wanted st.global.v2.b32 [%1], {%2, %3};\n"
                         "}\n" ::"r"(item.chunks), "l"(__cvta_generic_to_global(to)), "r"(pack_halves(value.x, value.y)), "r"(pack_halves(value.z, value.w))
                         : "memory");
        } else if (item.chunks != 0) {
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
        const uint32_t first = item.first_head, pieces = pitch();
        for (uint32_t i = threadIdx.x; i < item.heads * pieces; i += WARPS * 32) {
            const uint32_t row = i / pieces, piece = i % pieces;
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
            if (item.chunks <= 1) {
                write_output(item, first + row, piece * 4, scaled(output, 1.0f / sum));
            } else {
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
            uint32_t *const arrivals = reinterpret_cast<uint32_t *>(args.workspace) + item.column;
            fence(); // releases every thread's part, which is ordered before this thread
            last = atomicAdd(arrivals, 1u) == item.chunks - 1;
            if (last) {
                *arrivals = 0;
                fence(); // acquires the others'
            }
        }
        if (__shfl_sync(EVERY_LANE, last, 0)) combine(item, room);
    }

    // What all lanes together have of each row, in lane i of row i % DECODE_HEADS. Values meet as they would if every row were added up by itself, from
    // neighbours on, but at each step a lane passes on half of its rows and keeps the other half: 9 shuffles instead of 40.
    template <typename Operation>
    __device__ __forceinline__ float over_lanes(float (&rows)[DECODE_HEADS], const Operation &of_two) const {
#pragma unroll
        for (int distance = 1; distance < DECODE_HEADS; distance *= 2) {
            const bool keeps_second = lane & distance;
#pragma unroll
            for (int row = 0; row < DECODE_HEADS; row += 2 * distance) {
                const float first = rows[row], second = rows[row + distance];
                const float passed = __shfl_xor_sync(EVERY_LANE, keeps_second ? first : second, distance);
                rows[row] = of_two(keeps_second ? second : first, passed);
            }
        }
#pragma unroll
        for (int distance = DECODE_HEADS; distance < 32; distance *= 2) rows[0] = of_two(rows[0], __shfl_xor_sync(EVERY_LANE, rows[0], distance));
        return rows[0];
    }

    // Reads past L1, which does not see what other SMs write. For the weights every lane is a chunk's, for the output it has some pieces of it; the
    // first loads of both are under way together.
    __device__ void combine(const DecodeItem &item, CombineRoom &room) const {
        constexpr int EACH = D <= 80 ? 1 : D < 32 * 4 ? D / 32 : 4, AHEAD = D <= 80 ? 2 : 4;
        const int first = item.first_head, rows = item.heads, pieces = pitch(), chunks = item.chunks;
        const int first_chunk = chunk_tokens(args).whole(item.begin);
        const size_t first_row = workspace_row(item, first) + first_chunk, next_head = chunk_rows();
        const auto known = [&](int row, int chunk) {
            return row < rows && chunk < chunks ? __ldcg(statistics() + first_row + row * next_head + chunk) : make_float2(-INFINITY, 0.0f);
        };

        float highest[DECODE_HEADS];
#pragma unroll
        for (int row = 0; row < DECODE_HEADS; ++row) highest[row] = -INFINITY;
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
            float4 output[EACH] = {};
#pragma unroll 1
            for (int chunk = 0; chunk < chunks; chunk += AHEAD) {
                float4 ahead[AHEAD][EACH];
#pragma unroll
                for (int next = 0; next < AHEAD; ++next) {
#pragma unroll
                    for (int j = 0; j < EACH; ++j) {
                        ahead[next][j] = chunk + next < chunks ? __ldcg(of[j] + size_t(chunk + next) * pieces) : float4();
                    }
                }
                // Up to 32 chunks' weights stay from one base to the next.
                if (chunk % 32 == 0 && (base == 0 || chunks > 32)) {
                    const bool first = base == 0 && chunk == 0;
                    float2 mine[DECODE_HEADS]; // of this lane's chunk among 32
                    // The first time from the last ones on, which tells the highest of all.
#pragma unroll 1
                    for (int from = first ? (chunks - 1) / 32 * 32 : chunk; from >= chunk; from -= 32) {
#pragma unroll
                        for (int row = 0; row < DECODE_HEADS; ++row) {
                            mine[row] = known(row, from + lane);
                            highest[row] = fmaxf(highest[row], mine[row].x);
                        }
                    }
                    if (first) {
                        const float of_row = over_lanes(highest, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
                        for (int row = 0; row < DECODE_HEADS; ++row) highest[row] = __shfl_sync(EVERY_LANE, of_row, row);
                    }
                    // A lane's statistics become its chunk's weights, for all lanes to read.
                    __syncwarp();
                    float sums[DECODE_HEADS];
#pragma unroll
                    for (int row = 0; row < DECODE_HEADS; ++row) {
                        const float weight = chunk + lane < chunks ? exp2_approx(mine[row].x - highest[row]) : 0.0f;
                        room.weights[row][lane] = weight;
                        sums[row] = weight * mine[row].y;
                    }
                    const float sum = over_lanes(sums, [](float a, float b) { return a + b; });
                    if (base == 0 && lane < DECODE_HEADS) room.sums[lane] = chunk == 0 ? sum : room.sums[lane] + sum;
                    __syncwarp();
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
