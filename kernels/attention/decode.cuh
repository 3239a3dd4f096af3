// Attention where every sequence brings one query and its keys and values lie in a paged cache: a decoder's next token.
//   out[h] = sum over cached positions j of softmax_j(scale * q[h] . k[j]) * v[j],   for each query head h
//   q: the first heads * head_dim columns of qkv [sequences, qkv_stride]; cache: pages, see KvPages in abi.h; all fp16
//
// Memory bound: 4 * length * head_dim bytes for each key head and next to no arithmetic, so all that matters is how many bytes are under way.
//
// Work. A sequence's keys are cut into chunks of DECODE_PAGES_PER_CHUNK pages, counted from position 0. An item is one chunk of one column: one
// key head and up to 8 of the query heads that share it, so that each key is read once for all of them. Items are numbered through the sequences
// by their true lengths, chunk by chunk and in each chunk column by column. The launch has as many tiles as there would be items were every sequence
// as long as its row of the page table; tiles beyond the last item are empty, and so a captured launch stays right while sequences grow.
//
// A block. Pages of all its items pass through one ring of asynchronous copies, which runs on into the next item while one is finished. Each of
// four warps has a quarter of every page, and its own part of the ring, with no barrier between warps before the item's end; then their
// partial results are added in the order of the warps. A fifth warp does what waits for other SMs, so that the ring never stands still for it.
//
// Chunks. The only chunk of a column writes its output. Of several, each leaves (output, maximum, sum) in the workspace, and the fifth warp of the
// block that is the last to arrive adds up all of them in the order of the chunks. So the arithmetic of a sequence depends on its own length and
// the window alone: not on who computes it, nor on the batch, the capacity, or the SM count.
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

// One chunk of one column of one sequence.
struct DecodeItem {
    uint32_t sequence, column;
    int begin, length;    // positions that the query sees
    int chunk, chunks;    // this one, and how many the sequence has from the first that it sees
    int page, end_page;   // still to be read
    uint32_t page_number; // lane i: the table's entry of the chunk's page i
};

// A warp's way through the batch, from item to item. Their numbers only grow.
class DecodeItems {
  public:
    __device__ explicit DecodeItems(const AttentionDecodeArgs &args)
        : args_(args), group_(div_ceil(args.heads / args.cache.kv_heads, DECODE_HEADS)), columns_(args.cache.kv_heads * group_) {
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
        item.chunk = item.begin / CHUNK + nth / columns_;
        const int first_page = item.chunk * DECODE_PAGES_PER_CHUNK;
        item.page = max(first_page, item.begin / KV_PAGE_TOKENS);
        item.end_page = min(first_page + DECODE_PAGES_PER_CHUNK, div_ceil(item.length, KV_PAGE_TOKENS));
        const uint32_t *const table =
            reinterpret_cast<const uint32_t *>(args_.cache.page_table) + size_t(item.sequence) * args_.cache.pages_per_sequence;
        const int mine = first_page + threadIdx.x % 32;
        item.page_number = mine < item.end_page ? table[mine] : 0;
        return item;
    }

    __device__ uint32_t columns() const { return columns_; }
    // Parts of 8 query heads or fewer that share a key head.
    __device__ uint32_t group() const { return group_; }

  private:
    static constexpr int CHUNK = DECODE_PAGES_PER_CHUNK * KV_PAGE_TOKENS;

    __device__ int begin(int length) const { return args_.window == 0 || args_.window >= length ? 0 : length - args_.window; }
    __device__ int chunks(int length) const { return div_ceil(length, CHUNK) - begin(length) / CHUNK; }

    // Lane i has sequence first + i, and in last_ the number of its last item plus one, counted from the first of the 32 sequences.
    __device__ void read(uint32_t first) {
        const uint32_t lane = threadIdx.x % 32;
        first_ = first;
        length_ = 0;
        if (first + lane < args_.sequences) {
            length_ = min(reinterpret_cast<const uint32_t *>(args_.lengths)[first + lane], args_.cache.pages_per_sequence * KV_PAGE_TOKENS);
        }
        last_ = chunks(length_) * columns_;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const uint32_t left = __shfl_up_sync(EVERY_LANE, last_, distance);
            if (lane >= distance) last_ += left;
        }
    }

    const AttentionDecodeArgs &args_;
    const uint32_t group_, columns_;
    uint32_t first_, before_ = 0, last_;
    int length_;
};

template <int D>
struct Decode {
    static constexpr int WARPS = 4; // that attend
    static constexpr int KEEPER = WARPS;
    static constexpr int THREADS = (WARPS + 1) * 32;
    static constexpr int KEYS = KV_PAGE_TOKENS / WARPS; // of one warp in one page
    static_assert(KEYS == 16, "the m of m16n8k16");
    // Blocks that must fit on an SM: bounds the registers, and decode.rs counts on it. Together with the stages they fill an SM's shared memory.
    static constexpr int BLOCKS_PER_SM = D <= 32 ? 5 : D <= 80 ? 3 : D <= 128 ? 2 : 1;
    static constexpr int STAGES = D == 96 ? 4 : 3;
    static constexpr int RESULT_PITCH = D + 4; // two rows apart is 8 banks apart: what a warp stores at once lies in different banks
    static constexpr uint32_t NONE = 0xffffffff;

    // A warp's quarter of a page, and after an item's last page its partial result.
    union alignas(16) Slot {
        struct {
            __half keys[KEYS * PITCH<D>];
            __half values[KEYS * PITCH<D>];
        };
        float output[DECODE_HEADS * RESULT_PITCH];
    };
    struct Shared {
        Slot slots[STAGES][WARPS];
        float highest[WARPS][DECODE_HEADS];
        float sum[WARPS][DECODE_HEADS];
        DecodeItem finished;
        bool more; // whether there is an item after it
        uint32_t first, next; // numbers of items, by the keeper
    };

    // What a warp knows of an item so far. A lane holds query heads 2 (lane % 4) and the next, and of every 16 columns lane / 4 and lane / 4 + 8.
    struct Partial {
        float output[D / 16][4] = {}; // not yet divided by sum; [.][0], [.][2] of the first head, [.][1], [.][3] of the second
        float highest[2] = {-INFINITY, -INFINITY};
        float sum[2] = {}; // of this lane's keys
    };
    // The item's queries as B operands.
    struct Queries {
        uint32_t of[D / 16][2];
    };

    const AttentionDecodeArgs &args;
    Shared &shared;
    const int warp, lane, head_dim, heads_per_key;
    const float scale_log2;

    __device__ Decode(const AttentionDecodeArgs &args, Shared &shared)
        : args(args), shared(shared),
          // Broadcast, so that the compiler knows that a warp does not part ways over its number.
          warp(__shfl_sync(EVERY_LANE, threadIdx.x / 32, 0)), lane(threadIdx.x % 32), head_dim(args.cache.head_dim),
          heads_per_key(args.heads / args.cache.kv_heads), scale_log2(args.scale * 1.4426950408889634f) {}

    __device__ void run(const Tiles &tiles) {
        DecodeItems items(args);
        Numbers numbers(tiles, items.count());
        uint32_t first, next;
        if (tiles.progress == 0) {
            first = numbers.next();
            next = numbers.next();
        } else {
            if (threadIdx.x == KEEPER * 32) {
                shared.first = numbers.next();
                shared.next = numbers.next();
            }
            __syncthreads();
            first = shared.first;
            next = shared.next;
            __syncthreads(); // before the keeper writes the next one
        }
        if (warp == KEEPER) {
            keep(items, numbers, first != NONE);
        } else if (first != NONE) {
            work(items, first, next);
        }
    }

    // The numbers of this block's items, in rising order. A tile is one item, or several that lie a launch's tiles apart.
    class Numbers {
      public:
        __device__ Numbers(const Tiles &tiles, uint32_t items) : tiles_(tiles), queue_(tiles), items_(items), last_(NONE) {}

        __device__ uint32_t next() {
            if (tiles_.progress == 0) {
                last_ = last_ == NONE ? blockIdx.x : last_ + gridDim.x;
                return last_ < items_ ? last_ : NONE;
            }
            if (last_ < items_ && items_ - last_ > tiles_.count) return last_ += tiles_.count;
            while (queue_.take(last_)) {
                if (last_ < items_) return last_;
            }
            return last_ = NONE;
        }
        __device__ void leave() { queue_.leave(); }

      private:
        const Tiles &tiles_;
        TileQueue queue_;
        const uint32_t items_;
        uint32_t last_;
    };

    // The fifth warp: takes the numbers of items two ahead, counts finished ones, and adds up the chunks of a column that is complete. All that waits
    // for other SMs, so that the four others wait for their pages only.
    __device__ void keep(const DecodeItems &items, Numbers &numbers, bool more) {
        while (more) {
            if (lane == 0) shared.next = numbers.next();
            __syncthreads(); // partial results are there
            __syncthreads(); // they are in the workspace, and shared.finished says what they are of
            const DecodeItem item = shared.finished;
            more = shared.more;
            if (item.chunks > 1) combine_if_last(item, items);
        }
        __syncwarp();
        if (lane == 0) numbers.leave();
    }

    // The other four: attend to the pages of one item after another.
    __device__ void work(DecodeItems &items, uint32_t first, uint32_t next) {
        DecodeItem item = items.at(first), ahead = item;
        bool ahead_is_next = false, more = true;
        int filled = 0, slot = 0, load_slot = 0;
        Queries queries = read_queries(item, items.group());
        Partial partial;
        while (more) {
            while (filled < STAGES) {
                if (ahead.page == ahead.end_page) {
                    if (ahead_is_next || next == NONE) break;
                    ahead = items.at(next);
                    ahead_is_next = true;
                }
                copy_page(ahead, items.group(), load_slot);
                ++ahead.page;
                ++filled;
                load_slot = load_slot + 1 == STAGES ? 0 : load_slot + 1;
            }

            wait_for_oldest<STAGES>(filled);
            __syncwarp(); // what the other lanes copied is there too
            const int position = item.page * KV_PAGE_TOKENS + warp * KEYS;
            if (position < item.length) attend(partial, queries, shared.slots[slot][warp], position, item);
            __syncwarp(); // no lane still reads what is overwritten next
            --filled;

            if (++item.page == item.end_page) {
                leave_partial(partial, shared.slots[slot][warp]);
                more = ahead_is_next;
                if (more) queries = read_queries(ahead, items.group());
                __syncthreads(); // all four partial results are there, and the number of the item after the next
                next = shared.next;
                if (threadIdx.x == 0) {
                    shared.finished = item;
                    shared.more = more;
                }
                store(item, items, slot);
                partial = Partial();
                if (more) {
                    item = ahead;
                    item.page = max(item.chunk * DECODE_PAGES_PER_CHUNK, item.begin / KV_PAGE_TOKENS); // what is copied is still to be attended to
                    ahead_is_next = false;
                }
                __syncthreads(); // the slot may be filled again
            }
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
    }

    // With `copies` pages under way.
    template <int MOST>
    __device__ static void wait_for_oldest(int copies) {
        if constexpr (MOST == 1) {
            cp_async_wait<0>();
        } else if (copies >= MOST) {
            cp_async_wait<MOST - 1>();
        } else {
            wait_for_oldest<MOST - 1>(copies);
        }
    }

    __device__ int first_head(const DecodeItem &item, uint32_t group) const {
        return item.column / group * heads_per_key + item.column % group * DECODE_HEADS;
    }
    __device__ int heads_of(const DecodeItem &item, uint32_t group) const {
        return min(heads_per_key - int(item.column % group) * DECODE_HEADS, DECODE_HEADS);
    }

    // One group of copies: this warp's quarter of the page.
    __device__ __forceinline__ void copy_page(const DecodeItem &item, uint32_t group, int slot) {
        const size_t page = __shfl_sync(EVERY_LANE, item.page_number, item.page % DECODE_PAGES_PER_CHUNK);
        const size_t first_row = (page * args.cache.kv_heads + item.column / group) * KV_PAGE_TOKENS + warp * KEYS;
        const int rows = item.length - item.page * KV_PAGE_TOKENS - warp * KEYS;
        const bool aligned = head_dim % 8 == 0;
        const auto rows_from = [&](uint64_t pool) {
            return Rows{reinterpret_cast<const __half *>(pool) + first_row * head_dim, uint32_t(head_dim), rows, head_dim};
        };
        copy_rows<D, KEYS, 32>(shared.slots[slot][warp].keys, rows_from(args.cache.keys), aligned, lane);
        copy_rows<D, KEYS, 32>(shared.slots[slot][warp].values, rows_from(args.cache.values), aligned, lane);
        cp_async_commit();
    }

    // Heads that the item does not have, and columns beyond the head's, are zeros.
    __device__ __forceinline__ Queries read_queries(const DecodeItem &item, uint32_t group) const {
        Queries queries;
        const __half *const qkv = reinterpret_cast<const __half *>(args.qkv) + item.sequence * size_t(args.qkv_stride);
        const int head = lane / 4, first = lane % 4 * 2;
        const __half *const row = qkv + (first_head(item, group) + head) * head_dim + first;
        const int columns = head < heads_of(item, group) ? head_dim - first : 0;
        const bool in_pairs = ((args.qkv | 2 * (args.qkv_stride | head_dim)) & 3) == 0;
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
            uint32_t &pair = queries.of[i / 2][i % 2];
            pair = 0;
            if (in_pairs) {
                if (i * 8 < columns) pair = *reinterpret_cast<const uint32_t *>(row + i * 8);
            } else {
                const uint16_t *const halves = reinterpret_cast<const uint16_t *>(row) + i * 8;
                if (i * 8 < columns) pair = halves[0];
                if (i * 8 + 1 < columns) pair |= uint32_t(halves[1]) << 16;
            }
        }
        return queries;
    }

    // The warp's 16 keys from `position` on, which may lie partly outside what the query sees.
    __device__ __forceinline__ void attend(Partial &partial, const Queries &queries, const Slot &slot, int position, const DecodeItem &item) const {
        // Keys by columns as they lie; two sums, since each product waits for the one before it in its sum.
        float even[4] = {}, odd[4] = {};
        const uint32_t keys = shared_address(slot.keys + lane % 16 * PITCH<D> + lane / 16 * 8);
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            uint32_t a[4];
            ldmatrix_x4(a, keys + step * 32);
            mma_m16n8k16(step % 2 == 0 ? even : odd, a, queries.of[step][0], queries.of[step][1]);
        }
        float scores[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[i] = even[i] + odd[i];

        if (position < item.begin || position + KEYS > item.length) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = position + lane / 4 + i / 2 * 8;
                if (key < item.begin || key >= item.length) scores[i] = -INFINITY;
            }
        }

        float correction[2];
#pragma unroll
        for (int head = 0; head < 2; ++head) {
            // A head's scores lie in the eight lanes with the same lane % 4.
            float highest = fmaxf(scores[head], scores[head + 2]);
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2) highest = fmaxf(highest, __shfl_xor_sync(EVERY_LANE, highest, distance));
            highest = fmaxf(highest, partial.highest[head]);
            // While only masked keys were seen, the maximum is -inf, and -inf - -inf would be NaN.
            const float reference = highest == -INFINITY ? 0.0f : highest * scale_log2;
            correction[head] = exp2_approx(partial.highest[head] * scale_log2 - reference);
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
        const uint32_t values = shared_address(slot.values + (lane / 16 * 8 + lane % 8) * PITCH<D> + lane / 8 % 2 * 8);
#pragma unroll
        for (int column = 0; column < D; column += 16) {
            uint32_t a[4];
            ldmatrix_x4_transposed(a, values + column * 2);
            mma_m16n8k16(partial.output[column / 16], a, b0, b1);
        }
    }

    // Where the other warps find it after a barrier.
    __device__ __forceinline__ void leave_partial(Partial &partial, Slot &slot) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2) partial.sum[half] += __shfl_xor_sync(EVERY_LANE, partial.sum[half], distance);
            const int head = lane % 4 * 2 + half;
            if (lane / 4 == 0) {
                shared.highest[warp][head] = partial.highest[half] * scale_log2;
                shared.sum[warp][head] = partial.sum[half];
            }
#pragma unroll
            for (int i = 0; i < D / 16; ++i) {
                slot.output[head * RESULT_PITCH + i * 16 + lane / 4] = partial.output[i][half];
                slot.output[head * RESULT_PITCH + i * 16 + lane / 4 + 8] = partial.output[i][half + 2];
            }
        }
    }

    // The workspace: counters at a fixed place, then for each chunk of each query head (maximum, sum), then its output.
    __device__ uint32_t *counter(const DecodeItem &item, uint32_t columns) const {
        return reinterpret_cast<uint32_t *>(args.workspace) + size_t(item.sequence) * columns + item.column;
    }
    __device__ size_t chunk_rows() const { return div_ceil(args.cache.pages_per_sequence, DECODE_PAGES_PER_CHUNK); }
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

    // Adds up the warps' results, into the output or the workspace.
    __device__ void store(const DecodeItem &item, const DecodeItems &items, int slot) const {
        const int first = first_head(item, items.group()), pieces = pitch();
        for (int i = threadIdx.x; i < heads_of(item, items.group()) * pieces; i += WARPS * 32) {
            const int row = i / pieces, piece = i % pieces;
            float highest = shared.highest[0][row];
#pragma unroll
            for (int other = 1; other < WARPS; ++other) highest = fmaxf(highest, shared.highest[other][row]);
            float4 output = {};
            float sum = 0.0f;
#pragma unroll
            for (int other = 0; other < WARPS; ++other) {
                const float weight = exp2_approx(shared.highest[other][row] - highest); // 0 for a warp that had no keys
                add_weighted(output, weight,
                             *reinterpret_cast<const float4 *>(&shared.slots[slot][other].output[row * RESULT_PITCH + piece * 4]));
                sum += weight * shared.sum[other][row];
            }
            if (item.chunks == 1) {
                write_output(item, first + row, piece * 4, scaled(output, 1.0f / sum));
            } else {
                const size_t at = workspace_row(item, first + row) + item.chunk;
                outputs()[at * pieces + piece] = output;
                if (piece == 0) statistics()[at] = make_float2(highest, sum);
            }
        }
    }

    // Counts the item; whoever counts the last of a column adds up its chunks, and leaves the counter as it was. One warp.
    __device__ void combine_if_last(const DecodeItem &item, const DecodeItems &items) {
        bool last = false;
        if (lane == 0) {
            uint32_t *const arrivals = counter(item, items.columns());
            __threadfence(); // every thread's part, ordered before this thread by the barrier after store()
            last = atomicAdd(arrivals, 1u) == item.chunks - 1;
            if (last) *arrivals = 0;
            __threadfence();
        }
        if (!__shfl_sync(EVERY_LANE, last, 0)) return;

        const int first = first_head(item, items.group()), pieces = pitch(), first_chunk = item.begin / (DECODE_PAGES_PER_CHUNK * KV_PAGE_TOKENS);
        for (int i = lane; i < heads_of(item, items.group()) * pieces; i += 32) {
            const int row = i / pieces, piece = i % pieces;
            const size_t at = workspace_row(item, first + row) + first_chunk;
            // Read past L1, which does not see what other SMs write.
            const float2 *const chunk_statistics = statistics() + at;
            const float4 *const chunk_output = outputs() + at * pieces + piece;
            float highest = -INFINITY;
#pragma unroll 8
            for (int chunk = 0; chunk < item.chunks; ++chunk) highest = fmaxf(highest, __ldcg(chunk_statistics + chunk).x);
            float4 output = {};
            float sum = 0.0f;
#pragma unroll 8
            for (int chunk = 0; chunk < item.chunks; ++chunk) {
                const float2 known = __ldcg(chunk_statistics + chunk);
                const float weight = exp2_approx(known.x - highest);
                add_weighted(output, weight, __ldcg(chunk_output + size_t(chunk) * pieces));
                sum += weight * known.y;
            }
            write_output(item, first + row, piece * 4, scaled(output, 1.0f / sum));
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
        wait_for_earlier_launches();                                                                                                      \
        attention::Decode<D>(args, *reinterpret_cast<attention::Decode<D>::Shared *>(dynamic_shared)).run(tiles);                         \
    }
