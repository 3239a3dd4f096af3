// Decode attention whose pages are brought by asynchronous copies of 16 bytes: for GPUs before Hopper, and on it for heads that the copy engine
// cannot bring (decode_bulk.cuh). Each of four warps has a ring of its own. The sums are those of decode_arithmetic.cuh, to be read first.
#pragma once
#include "attention/decode_arithmetic.cuh"
#include "ptx/mbarrier.cuh"

namespace attention {

template <int D>
struct Decode : DecodeArithmetic<D, false> {
    using Arithmetic = DecodeArithmetic<D, false>;
    using typename Arithmetic::Partial;
    using typename Arithmetic::Queries;
    using typename Arithmetic::WarpSums;
    using Arithmetic::args, Arithmetic::warp, Arithmetic::lane, Arithmetic::head_dim, Arithmetic::WARPS, Arithmetic::KEYS;
    static constexpr int KEEPER = WARPS; // a fifth warp
    static constexpr int THREADS = (WARPS + 1) * 32;
    // Blocks that must fit on an SM: bounds the registers, and decode.rs counts on it. Together with the stages they fill an SM's shared memory.
    static constexpr int BLOCKS_PER_SM = D <= 80 ? 3 : D <= 128 ? 2 : 1;
    static constexpr int STAGES = D == 96 ? 4 : 3;
    static constexpr int RESULT_PITCH = D + 4; // two rows apart is 8 banks apart: what a warp stores at once lies in different banks

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
        WarpSums sums[WARPS];
        typename Arithmetic::CombineRoom room;
        DecodeItem finished;
        bool more; // whether there is an item after it
        uint32_t first, next; // numbers of items, by the keeper
        uint64_t meeting; // a barrier
    };

    Shared &shared;

    __device__ Decode(const AttentionDecodeArgs &args, Shared &shared) : Arithmetic(args), shared(shared) {}

    __device__ void run(const Tiles &tiles) {
        DecodeItems items(args);
        DecodeNumbers numbers(tiles, items.count());
        uint32_t first, next;
        if (threadIdx.x == 0) mbarrier_init(shared_address(&shared.meeting), THREADS);
        if (tiles.progress == 0) {
            first = numbers.next();
            next = numbers.next();
            __syncthreads(); // the barrier is there
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
            keep(numbers, first != NO_ITEM);
        } else if (first != NO_ITEM) {
            work(items, first, next);
        }
    }

    // All threads of the block meet, each where it is: __syncthreads() would want all of them at one place in the code. They meet twice for each item, so the
    // barrier's phases are those of the first and of the second meeting in turn.
    __device__ void meet(uint32_t parity) const {
        const uint32_t barrier = shared_address(&shared.meeting);
        mbarrier_arrive(barrier);
        mbarrier_wait(barrier, parity);
    }

    // The fifth warp: takes the numbers of items two ahead, counts finished ones, and adds up the chunks of a column that is complete. All that waits
    // for other SMs, so that the four others wait for their pages only.
    __device__ void keep(DecodeNumbers &numbers, bool more) {
        while (more) {
            if (lane == 0) shared.next = numbers.next();
            meet(0); // partial results are there
            meet(1); // they are in the workspace, and shared.finished says what they are of
            const DecodeItem item = shared.finished;
            more = shared.more;
            if (item.chunks > 1) this->combine_if_last(item, shared.room);
        }
        __syncwarp();
        if (lane == 0) numbers.leave();
    }

    // The other four: attend to the pages of one item after another.
    __device__ void work(DecodeItems &items, uint32_t first, uint32_t next) {
        DecodeItem item = items.at(first), ahead = item;
        bool ahead_is_next = false, more = true;
        int filled = 0, slot = 0, load_slot = 0;
        Queries queries = read_queries(item);
        Partial partial;
        while (more) {
            while (filled < STAGES) {
                if (ahead.page == ahead.end_page) {
                    if (ahead_is_next || next == NO_ITEM) break;
                    ahead = items.at(next);
                    ahead_is_next = true;
                }
                copy_page(ahead, load_slot);
                ++ahead.page;
                ++filled;
                load_slot = load_slot + 1 == STAGES ? 0 : load_slot + 1;
            }

            wait_for_oldest<STAGES>(filled);
            __syncwarp(); // what the other lanes copied is there too
            const int position = item.page * KV_PAGE_TOKENS + warp * KEYS;
            if (position < item.length) {
                const Slot &mine = shared.slots[slot][warp];
                const uint32_t keys = shared_address(mine.keys + lane % 16 * PITCH<D> + lane / 16 * 8);
                const uint32_t values = shared_address(mine.values + (lane / 16 * 8 + lane % 8) * PITCH<D> + lane / 8 % 2 * 8);
                const auto key_address = [&](int step) { return keys + step * 32; };
                const auto value_address = [&](int step) { return values + step * 32; };
                this->attend(partial, queries, position, item.begin, item.length, key_address, value_address);
            }
            __syncwarp(); // no lane still reads what is overwritten next
            --filled;

            if (++item.page == item.end_page) {
                Slot(&slots)[WARPS] = shared.slots[slot];
                this->leave_partial(partial, shared.sums[warp],
                                    [&](uint32_t head, uint32_t column) { return &slots[warp].output[head * RESULT_PITCH + column]; });
                more = ahead_is_next;
                if (more) queries = read_queries(ahead);
                meet(0); // all four partial results are there, and the number of the item after the next
                next = shared.next;
                if (threadIdx.x == 0) {
                    shared.finished = item;
                    shared.more = more;
                }
                this->store(item, shared.sums, [&](uint32_t of_warp, uint32_t head, uint32_t column) {
                    return reinterpret_cast<const float4 *>(&slots[of_warp].output[head * RESULT_PITCH + column]);
                });
                partial = Partial();
                if (more) {
                    item = ahead;
                    item.page = max(item.chunk * int(args.pages_per_chunk), item.begin / KV_PAGE_TOKENS); // what is copied is still to be attended to
                    ahead_is_next = false;
                }
                meet(1); // the slot may be filled again
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

    // One group of copies: this warp's quarter of the page.
    __device__ __forceinline__ void copy_page(const DecodeItem &item, int slot) {
        const size_t page = __shfl_sync(EVERY_LANE, item.page_number, item.page & (args.pages_per_chunk - 1));
        const size_t first_row = (page * args.cache.kv_heads + item.key_head) * KV_PAGE_TOKENS + warp * KEYS;
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
    __device__ __forceinline__ Queries read_queries(const DecodeItem &item) const {
        Queries queries;
        const __half *const qkv = reinterpret_cast<const __half *>(args.qkv) + item.sequence * size_t(args.qkv_stride);
        const int head = lane / 4, first = lane % 4 * 2;
        const __half *const row = qkv + (item.first_head + head) * head_dim + first;
        const int columns = head < int(item.heads) ? head_dim - first : 0;
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
};

} // namespace attention

// The kernel for heads of up to D columns. A macro, since the host finds kernels by their C names.
#define ATTENTION_DECODE(D)                                                                                                               \
    static_assert(sizeof(attention::Decode<D>::Shared) == ATTENTION_DECODE_D##D##_SHARED_BYTES);                                          \
    extern "C" __global__ void __launch_bounds__(attention::Decode<D>::THREADS, attention::Decode<D>::BLOCKS_PER_SM)                      \
        attention_decode_d##D(const __grid_constant__ AttentionDecodeArgs args, const __grid_constant__ Tiles tiles) {                    \
        extern __shared__ uint4 dynamic_shared[];                                                                                         \
        wait_for_earlier_launches(tiles);                                                                                                 \
        attention::Decode<D>(args, *reinterpret_cast<attention::Decode<D>::Shared *>(dynamic_shared)).run(tiles);                         \
    }
