// Decode attention whose pages are brought whole by Hopper's copy engine: the fast variant, for heads of a compiled size whose rows lie on 16
// bytes. Copies of 16 bytes each (decode.cuh) keep a warp waiting while it issues them; here one thread asks for a page's keys of one head in one
// instruction, and the ring is as deep as shared memory allows. The sums, bit for bit, are those of decode_arithmetic.cuh, to be read first.
//
// Warps 0 to 3 attend, each to its quarter of every page; warp 4, the producer, takes items and fills the ring with their pages and queries;
// warp 5, the keeper, counts finished chunks and adds up columns that are complete. Who waits for whom, all barriers in shared memory:
//
//   | barrier     | one for each | arrivals                     | waited for by         |
//   |-------------|--------------|------------------------------|-----------------------|
//   | full        | stage        | producer, and bytes          | attending warps       |
//   | empty       | stage        | every attending thread       | producer              |
//   | finished    | of two items | every attending thread       | keeper                |
//   | kept        | of two items | every lane of the keeper     | one attending thread  |
//   | ended       | the block    | all of these five warps      | a joiner's producer   |
//
// Every thread that reads speaks for itself. One lane could speak for its warp after __syncwarp(), but compute-sanitizer's racecheck does not follow that, and a
// real race would drown in what it reports.
//
// The launch before writes the queries and each sequence's newest row; all else was there before it (AttentionDecode in decode.rs says what that asks of
// the launches before). So the producer finds its first item and fills the ring while that launch still runs, all but queries and newest page, and then
// waits for it. That changes when bytes arrive, and no bit of what comes out. Where chunks are short, the attending warps meanwhile rehearse: they go through a
// page of whatever shared memory holds, to the end of an item and to its handing over, and drop the result. An SM that ran other kernels since must fetch the
// instructions first, each when it is wanted, which takes longer than what a short context needs of them. So code that runs after that wait stands where it also
// runs before. The rehearsal's place in the ring is the first, and everyone goes on from the second.
//
// A stage: the page's keys and values as boxes of BOX columns, each box 64 rows of at most 128 bytes that the copy engine swizzles so that ldmatrix
// meets no bank conflict. When an item ends, a warp leaves its partial result where its keys of the last page were: 16 rows of BOX halves
// are 8 heads by BOX floats.
#pragma once
#include "attention/decode_arithmetic.cuh"
#include "ptx/elect.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"

#if __CUDA_ARCH__ >= 900

namespace attention {

template <int D>
struct DecodeBulk : DecodeArithmetic<D, true> {
    using Arithmetic = DecodeArithmetic<D, true>;
    using typename Arithmetic::Partial;
    using typename Arithmetic::Queries;
    using typename Arithmetic::WarpSums;
    using Arithmetic::args, Arithmetic::warp, Arithmetic::lane, Arithmetic::WARPS, Arithmetic::KEYS;
    static constexpr int PRODUCER = WARPS, KEEPER = WARPS + 1;
    static constexpr int THREADS = (WARPS + 2) * 32;
    // Blocks that must fit on an SM: bounds the registers, and decode.rs counts on it. Together with the stages they fill an SM's shared memory.
    static constexpr int BLOCKS_PER_SM = D <= 64 ? 4 : D <= 80 ? 3 : D <= 128 ? 2 : 1;
    static constexpr int STAGES = D <= 32 || D == 96 ? 4 : 3;
    static constexpr int BOX = D % 64 == 0 ? 64 : D % 32 == 0 ? 32 : 16; // columns; decode.rs describes the pools in these boxes
    static constexpr int BOX_BYTES = KV_PAGE_TOKENS * BOX * 2;
    static constexpr uint32_t PAGE_BYTES = KV_PAGE_TOKENS * D * 2;

    // What the ring's page is of; one access.
    struct alignas(16) Note {
        int page;
        int begin, length;
        uint32_t heads; // of the item if this is its first page, or 0; with LAST_PAGE
    };
    static constexpr uint32_t LAST_PAGE = 1u << 31;
    // All of an item in a page, some keys masked; it has no chunks, so nothing of it is written to global memory.
    static constexpr Note REHEARSAL = {0, 0, KV_PAGE_TOKENS - 1, DECODE_HEADS | LAST_PAGE};
    // That there are no more: the last page of an item that has no heads.
    static constexpr Note END = {0, 0, 0, LAST_PAGE};
    // Long chunks are worth more than what it saves.
    static constexpr uint32_t MOST_REHEARSED_PAGES = 8;
    struct Shared {
        uint8_t keys[STAGES][PAGE_BYTES]; // from here on 1024 bytes, where the swizzle's pattern begins
        uint8_t values[STAGES][PAGE_BYTES];
        __half queries[STAGES][DECODE_HEADS * D]; // of an item whose first page this is
        WarpSums sums[STAGES][WARPS];
        Note notes[STAGES];
        DecodeItem items[STAGES]; // whose last page this is
        DecodeItem finished_items[2];
        typename Arithmetic::CombineRoom room;
        uint64_t full[STAGES], empty[STAGES], finished[2], kept[2], ended;
    };

    Shared &shared;

    __device__ DecodeBulk(const AttentionDecodeArgs &args, Shared &shared) : Arithmetic(args), shared(shared) {}

    __device__ static void prepare(const AttentionDecodeArgs &args, Shared &shared) {
        // By one thread: the copy engine's barriers are set up by one thread at a time in any case.
        if (threadIdx.x == 0) {
#pragma unroll
            for (int i = 0; i < STAGES; ++i) {
                mbarrier_init(shared_address(&shared.full[i]), 1);
                mbarrier_init(shared_address(&shared.empty[i]), WARPS * 32);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                mbarrier_init(shared_address(&shared.finished[i]), WARPS * 32);
                mbarrier_init(shared_address(&shared.kept[i]), 32);
            }
            mbarrier_init(shared_address(&shared.ended), (WARPS + 1) * 32);
        } else if (threadIdx.x == 32) {
            tma_prefetch(args.key_map);
            tma_prefetch(args.value_map);
        }
        mbarrier_init_fence();
        __syncthreads();
    }

    __device__ void run(const Tiles &tiles) {
        if (warp == PRODUCER) {
            produce(tiles);
        } else {
            if (warp == KEEPER) {
                keep();
            } else {
                attend_to_all();
            }
            mbarrier_arrive(shared_address(&shared.ended));
        }
    }

    __device__ bool rehearses() const { return args.pages_per_chunk <= MOST_REHEARSED_PAGES; }

    // Keeps the ring full. Lanes stay together. One loop for all items, whether or not earlier launches are waited for yet: what is asked for right after that
    // wait is asked for by instructions that brought the pages before, so that none of them is still to be fetched.
    __device__ void produce(const Tiles &tiles) {
        RingPosition<STAGES> at;
        if (rehearses()) { // while the lengths are read
            if (lane == 0) put(REHEARSAL, DecodeItem{.heads = DECODE_HEADS}, at.stage);
            at.advance();
        }
        DecodeItems items(args);
        DecodeNumbers numbers(tiles, items.count());
        bool has_waited = false;
        while (true) {
            uint32_t number = 0;
            if (lane == 0) number = numbers.next(has_waited);
            number = __shfl_sync(EVERY_LANE, number, 0);
            if (number == NO_ITEM) break;
            const DecodeItem item = items.at(number);
            const int first_stage = at.stage;
            bool has_queries = false;
#pragma unroll 1
            for (int page = item.page; page < item.end_page; ++page) {
                if (!has_waited && page == item.page + STAGES) { // the ring is full, and nobody reads it without the queries
                    wait_for_earlier_launches();
                    if (elect_one()) load_queries(item, first_stage);
                    __syncwarp();
                    has_waited = has_queries = true;
                }
                const uint32_t row = row_of(item, page); // so early that nothing waits for it after earlier launches
                mbarrier_wait(shared_address(&shared.empty[at.stage]), at.parity ^ 1);
                announce(item, page, at.stage);
                if (!has_waited && page + 1 == item.end_page) { // what earlier launches write to lies in the last page of an item
                    wait_for_earlier_launches();
                    has_waited = true;
                }
                if (elect_one()) {
                    if (has_waited && !has_queries) load_queries(item, first_stage);
                    load_rows(row, at.stage);
                }
                __syncwarp();
                has_queries = has_waited;
                at.advance();
            }
        }
        if (!has_waited) {
            wait_for_earlier_launches();
            let_next_launch_come();
        }
        mbarrier_wait(shared_address(&shared.empty[at.stage]), at.parity ^ 1);
        if (lane == 0) put(END, DecodeItem{}, at.stage);
        __syncwarp();
        if (numbers.is_joiner()) mbarrier_wait(shared_address(&shared.ended), 0); // everything that was taken is finished
        if (lane == 0) numbers.leave();
    }

    // An item in one stage, with nothing to be copied. By one thread.
    __device__ __forceinline__ void put(Note note, const DecodeItem &item, int stage) const {
        shared.notes[stage] = note;
        shared.items[stage] = item;
        mbarrier_arrive(shared_address(&shared.full[stage]));
    }

    // A stage's note, and what it will have of bytes.
    __device__ __forceinline__ void announce(const DecodeItem &item, int page, int stage) const {
        if (elect_one()) {
            const bool first = page == item.page, last = page + 1 == item.end_page;
            shared.notes[stage] = Note{page, item.begin, item.length, (first ? item.heads : 0) | (last ? LAST_PAGE : 0)};
            if (last) shared.items[stage] = item;
            mbarrier_arrive_expect(shared_address(&shared.full[stage]), 2 * PAGE_BYTES + (first ? item.heads * D * 2 : 0));
        }
        __syncwarp();
    }

    // By one thread.
    __device__ __forceinline__ void load_queries(const DecodeItem &item, int stage) const {
        const __half *const queries =
            reinterpret_cast<const __half *>(args.qkv) + item.sequence * size_t(args.qkv_stride) + item.first_head * D;
        bulk_load(shared_address(shared.queries[stage]), queries, item.heads * D * 2, shared_address(&shared.full[stage]));
    }

    // The page's first row in the pools, of the item's key head. All lanes.
    __device__ __forceinline__ uint32_t row_of(const DecodeItem &item, int page) const {
        const uint32_t page_number = __shfl_sync(EVERY_LANE, item.page_number, page & (args.pages_per_chunk - 1));
        return (page_number * args.cache.kv_heads + item.key_head) * KV_PAGE_TOKENS;
    }

    // By one thread.
    __device__ __forceinline__ void load_rows(uint32_t row, int stage) const {
        const uint32_t full = shared_address(&shared.full[stage]);
        load_boxes(shared_address(shared.keys[stage]), args.key_map, full, row);
        load_boxes(shared_address(shared.values[stage]), args.value_map, full, row);
    }

    // All boxes of 64 rows. Keys and values are read once a step: they must not push out of L2 what is read again, the partial results first of all.
    __device__ static void load_boxes(uint32_t target, const TensorMap &map, uint32_t barrier, uint32_t row) {
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %3}], [%2], %5;" ::"r"(
                target),
            "l"(&map), "r"(barrier), "r"(0), "r"(row), "l"(L2_EVICT_FIRST)
            : "memory");
    }

    // `bytes` bytes, a multiple of 16, from an address on 16 bytes.
    __device__ static void bulk_load(uint32_t target, const void *source, uint32_t bytes, uint32_t barrier) {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target), "l"(source), "r"(bytes),
                     "r"(barrier)
                     : "memory");
    }

    __device__ void keep() {
        for (uint32_t nth = 0;; ++nth) {
            const uint32_t place = nth % 2, parity = nth / 2 % 2;
            mbarrier_wait(shared_address(&shared.finished[place]), parity);
            const DecodeItem item = shared.finished_items[place];
            mbarrier_arrive(shared_address(&shared.kept[place]));
            if (item.heads == 0) break;
            if (item.chunks > 1) {
                wait_for_earlier_launches();
                this->combine_if_last(item, shared.room);
            }
        }
    }

    // Byte of 16-byte chunk `chunk` of row `row` in a page of boxes. A box's chunks are XORed with its row as the copy engine does.
    __device__ static uint32_t chunk_at(uint32_t row, uint32_t chunk) {
        constexpr uint32_t CHUNKS = BOX / 8;
        const uint32_t swizzle = BOX == 64 ? row % 8 : BOX == 32 ? row / 2 % 4 : row / 4 % 2;
        return chunk / CHUNKS * BOX_BYTES + row * BOX * 2 + ((chunk % CHUNKS ^ swizzle) << 4);
    }

    // Where a warp leaves an output: in its own 16 rows of keys, box by box. Columns are XORed with the head's pair, so that the lanes of a store lie
    // in different banks; eight columns stay side by side.
    __device__ static float *result(uint8_t *keys, uint32_t of_warp, uint32_t head, uint32_t column) {
        const uint32_t swizzle = head / 2 * 8 % BOX;
        return reinterpret_cast<float *>(keys + column / BOX * BOX_BYTES + of_warp * KEYS * BOX * 2) + head * BOX + (column % BOX ^ swizzle);
    }

    __device__ void attend_to_all() {
        RingPosition<STAGES> at;
        uint32_t handed = 0; // items to the keeper
        Queries queries = {};
        Partial partial;
        bool has_waited = !rehearses();
        if (has_waited) wait_for_earlier_launches();
        while (true) {
            mbarrier_wait(shared_address(&shared.full[at.stage]), at.parity);
            const Note note = shared.notes[at.stage];
            uint8_t *const keys = shared.keys[at.stage], *const values = shared.values[at.stage];
            const uint32_t empty = shared_address(&shared.empty[at.stage]);
            if (const uint32_t heads = note.heads & ~LAST_PAGE) read_queries(queries, shared.queries[at.stage], heads);

            const int position = note.page * KV_PAGE_TOKENS + warp * KEYS;
            if (position < note.length) {
                // The cache holds anything past the length; a weight of 0 must meet numbers.
                if (position + KEYS > note.length) clear_values(values, note.length - position);
                const uint32_t key_base = shared_address(keys), value_base = shared_address(values);
                const int key_row = warp * KEYS + lane % 16, value_row = warp * KEYS + lane / 16 * 8 + lane % 8;
                const auto key_address = [&](int step) { return key_base + chunk_at(key_row, step * 2 + lane / 16); };
                const auto value_address = [&](int step) { return value_base + chunk_at(value_row, step * 2 + lane / 8 % 2); };
                this->attend(partial, queries, position, note.begin, note.length, key_address, value_address);
            }

            if (note.heads & LAST_PAGE) {
                const DecodeItem item = shared.items[at.stage];
                if (item.heads != 0) {
                    __syncwarp(); // no lane still reads the keys
                    WarpSums(&sums)[WARPS] = shared.sums[at.stage];
                    this->leave_partial(partial, sums[warp], [&](uint32_t head, uint32_t column) { return result(keys, warp, head, column); });
                    asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory");
                    this->store(item, sums, [&](uint32_t of_warp, uint32_t head, uint32_t column) {
                        return reinterpret_cast<const float4 *>(result(keys, of_warp, head, column));
                    });
                    fence_shared_for_async(); // the copy engine writes there next
                    partial = Partial();
                }
                if (item.chunks != 1) hand_over(item, handed);
                if (item.heads == 0) break;
            }
            mbarrier_arrive(empty);
            at.advance();
            if (!has_waited) wait_for_earlier_launches();
            has_waited = true;
        }
    }

    // Items with chunks to be added up; and the rehearsal's, which is none, and the end, which then goes the way that the rehearsal went.
    __device__ __forceinline__ void hand_over(const DecodeItem &item, uint32_t &handed) {
        const uint32_t place = handed % 2, parity = handed / 2 % 2;
        if (threadIdx.x == 0) {
            mbarrier_wait(shared_address(&shared.kept[place]), parity ^ 1);
            shared.finished_items[place] = item;
        }
        mbarrier_arrive(shared_address(&shared.finished[place]));
        ++handed;
    }

    // Heads that the item does not have are zeros.
    __device__ __forceinline__ void read_queries(Queries &queries, const __half *shared_queries, int heads) const {
        const uint32_t address = shared_address(shared_queries + lane % 8 * D + lane / 8 % 2 * 8);
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            ldmatrix_x2(queries.of[step], address + step * 32);
            if (lane / 4 >= heads) queries.of[step][0] = queries.of[step][1] = 0;
        }
    }

    // Zeros in this warp's rows from the `valid`th on. The page is its item's last, whose end tells the copy engine.
    __device__ __forceinline__ void clear_values(uint8_t *values, uint32_t valid) const {
#pragma unroll 1 // an item has one such page, for which four copies of the code would be fetched
        for (uint32_t i = lane; i < (KEYS - valid) * D / 8; i += 32) {
            const uint32_t row = warp * KEYS + valid + i / (D / 8);
            *reinterpret_cast<uint4 *>(values + chunk_at(row, i % (D / 8))) = make_uint4(0, 0, 0, 0);
        }
        __syncwarp();
    }
};

} // namespace attention

// The kernel for heads of D columns. A macro, since the host finds kernels by their C names.
#define ATTENTION_DECODE_BULK(D)                                                                                                          \
    static_assert(sizeof(attention::DecodeBulk<D>::Shared) == ATTENTION_DECODE_BULK_D##D##_SHARED_BYTES);                                 \
    extern "C" __global__ void __launch_bounds__(attention::DecodeBulk<D>::THREADS, attention::DecodeBulk<D>::BLOCKS_PER_SM)              \
        attention_decode_bulk_d##D(const __grid_constant__ AttentionDecodeArgs args, const __grid_constant__ Tiles tiles) {               \
        extern __shared__ __align__(1024) uint8_t bulk_shared[];                                                                          \
        auto &shared = *reinterpret_cast<attention::DecodeBulk<D>::Shared *>(bulk_shared);                                                \
        if (tiles.progress == 0) let_next_launch_come();                                                                                  \
        attention::DecodeBulk<D>::prepare(args, shared);                                                                                  \
        attention::DecodeBulk<D>(args, shared).run(tiles);                                                                                \
    }

#else

#define ATTENTION_DECODE_BULK(D)

#endif
