// Attention of many queries on Hopper, by the copy engine (TMA), mbarriers and warpgroup multiplies (wgmma): the loop that prefill_wgmma.cuh (keys and
// values among the rows of qkv) and chunk_wgmma.cuh (keys and values in the pages of a cache) share.
//
// A tile is 64 * GROUPS queries of one head of one sequence, and a block has GROUPS + 1 warpgroups:
//
//   * Of the first, one thread takes tiles and has the copy engine bring queries, keys and values to shared memory, as far ahead as there are free
//     stages. It takes the next tile while the last blocks of keys of this one are computed on.
//   * Each of the others has 64 queries. Scores come from shared memory to registers, become weights there, and go into the second product from
//     there, so that no score is ever stored.
//
// The tensor cores are kept busy during the softmax: within a warpgroup, the scores of the next block of keys and the output of this one are
// multiplied in one go, and the softmax of the next block runs while the output is still being multiplied:
//
//     s = q k[0]^T, weights p
//     for each further block:   s' = q k[next]^T  and  o += p v[this]   in flight
//                               wait for s'; p', and the correction c of what was summed under the old maximum
//                               wait for o;  o = c o;  p = p'
//     o += p v[last]
//
// And there are two warpgroups on an SM, whether of one block or of two, each of which multiplies while the other waits.
//
// The copy engine knows nothing of sequences: a box may hold rows of the next one, or rows of a page that were never written, which may hold NaN. Scores
// of such keys are overwritten, rows of such queries not stored; such values are zeroed in shared memory before they are multiplied by their weights
// of 0.
//
// Where things lie is said by a Source, which has
//
//     Args         the kernel's first parameter: the map `rows` of qkv, from which queries come, and `plain`, all else
//     KNOWN_EARLY  whether the launch before this one may still run while it is read what a tile is of
//     STEADY       see WarpgroupRows
//     Tile         what a tile is of: `head`; `length`, the positions of its sequence; `start`, the row of its position 0 (modulo 2^32, where queries
//                  begin at a later one); `first_query`, the position of the tile's first query, and no tile where it is past the last; `first_key` and
//                  `end_key`, between which lie the positions that any of its queries sees; `mask`. One that ends at key 0 ends the block.
//     Keys         for the loading thread, where keys and values of a tile are, one block and one box at a time
//     prefetch     asks for the maps
//
// Sources: Shah et al., "FlashAttention-3", 2024, sections 3.1 and 3.2 (without its ping-pong, which made no difference here); those of flash.cuh.
#pragma once
#include "attention/warpgroup_rows.cuh"
#include "elastic.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_rows.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

namespace attention {

// How work on heads of up to D columns is divided.
template <int D>
struct WarpgroupShape {
    // Up to 64 columns two blocks fit on an SM and fill each other's waits; beyond, two warpgroups share the keys that a block loads.
    static constexpr int GROUPS = D <= 64 ? 1 : 2;
    static constexpr int BLOCKS_PER_SM = D <= 64 ? 2 : 1;
    static constexpr int THREADS = 128 * (GROUPS + 1);
    static constexpr int QUERIES = 64 * GROUPS;
    static constexpr int KEYS = D <= 128 ? 128 : 64; // of a block
    static constexpr int STAGES = 2;
    // The registers of an SM: few for the warpgroup that only asks for copies, the others' for scores, weights and output.
    static constexpr int LOADER_REGISTERS = 56;
    static constexpr int WORKER_REGISTERS = GROUPS == 1 ? 200 : 224;
};

template <int D, class Source>
struct WarpgroupLoop : WarpgroupShape<D> {
    using Shape = WarpgroupShape<D>;
    using Shape::GROUPS, Shape::KEYS, Shape::QUERIES, Shape::STAGES;
    using Rows = WarpgroupRows<D, KEYS, Source::STEADY>;
    using Args = typename Source::Args;
    using Tile = typename Source::Tile;
    using Keys = typename Source::Keys;
    static constexpr int PIECES = Rows::PIECES; // of a row
    static constexpr int PIECE_BYTES = Rows::PIECE_BYTES;

    struct Shared {
        __half queries[GROUPS][PIECES][BOX_ROWS * BOX_COLUMNS];
        __half keys[STAGES][PIECES][KEYS * BOX_COLUMNS];
        __half values[STAGES][PIECES][KEYS * BOX_COLUMNS];
        uint64_t queries_full, queries_empty;
        uint64_t keys_full[STAGES], keys_empty[STAGES];
        uint64_t values_full[STAGES], values_empty[STAGES];
        Tile tile; // comes and goes with the queries
    };

    __device__ static int first_block(const Tile &tile) { return tile.first_key / KEYS; }
    __device__ static int end_block(const Tile &tile) { return div_ceil(tile.end_key, KEYS); }

    __device__ static void prepare(Shared &shared) {
        constexpr int WARPS = 4 * GROUPS; // that tell when they are done with a stage
        mbarrier_init(shared_address(&shared.queries_full), 1);
        // Every thread reads the tile, and says so itself.
        mbarrier_init(shared_address(&shared.queries_empty), 32 * WARPS);
        for (int stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(shared_address(&shared.keys_full[stage]), 1);
            mbarrier_init(shared_address(&shared.keys_empty[stage]), WARPS);
            mbarrier_init(shared_address(&shared.values_full[stage]), 1);
            mbarrier_init(shared_address(&shared.values_empty[stage]), WARPS);
        }
        mbarrier_init_fence();
    }

    // Brings `rows` rows, as many boxes of 64 as that takes: `load_box` one piece of one box. The copy engine delivers whole boxes, zeros where there is
    // nothing to read.
    template <class LoadBox>
    __device__ static __forceinline__ void load_rows(uint32_t target, uint32_t full, int rows, const LoadBox &load_box) {
        const int boxes = div_ceil(rows, BOX_ROWS);
        mbarrier_arrive_expect(full, boxes * PIECES * BOX_BYTES);
#pragma unroll 1
        for (int box = 0; box < boxes; ++box) {
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) load_box(target + piece * PIECE_BYTES + box * BOX_BYTES, full, piece * BOX_COLUMNS, box);
        }
    }

    // One thread's part: takes tiles and has them loaded. `first` is tile blockIdx.x, which is the first one where tiles are not counted.
    __device__ static void load(const Args &args, const Tile &first, TileQueue &queue, Shared &shared) {
        RingPosition<STAGES> keys, values;
        uint32_t queries_parity = 0;
        for (uint32_t number; queue.take(number);) {
            const Tile tile = Source::KNOWN_EARLY && number == blockIdx.x ? first : Tile(args.plain, number);
            if (tile.first_query >= tile.length) continue;

            const Keys source(args.plain, tile);
            const auto load_block = [&](RingPosition<STAGES> &position, uint64_t *full, uint64_t *empty, __half *stages, int block, const auto &load_box) {
                mbarrier_wait(shared_address(&empty[position.stage]), position.parity ^ 1);
                load_rows(shared_address(stages) + position.stage * PIECES * PIECE_BYTES, shared_address(&full[position.stage]),
                          min(KEYS, tile.end_key - block * KEYS), load_box);
                position.advance();
            };
            const auto load_keys = [&](int block) {
                const auto place = source.place(block);
                load_block(keys, shared.keys_full, shared.keys_empty, &shared.keys[0][0][0], block,
                           [&](uint32_t target, uint32_t full, int column, int box) { source.load_keys(args, target, full, column, place, box); });
            };
            const auto load_values = [&](int block) {
                const auto place = source.place(block);
                load_block(values, shared.values_full, shared.values_empty, &shared.values[0][0][0], block,
                           [&](uint32_t target, uint32_t full, int column, int box) { source.load_values(args, target, full, column, place, box); });
            };

            load_keys(first_block(tile));
            mbarrier_wait(shared_address(&shared.queries_empty), queries_parity ^ 1);
            queries_parity ^= 1;
            shared.tile = tile;
            // The queries of one warpgroup lie together, all their pieces: one box after another.
            const int groups = min(GROUPS, div_ceil(tile.length - tile.first_query, BOX_ROWS));
            const uint32_t full = shared_address(&shared.queries_full);
            mbarrier_arrive_expect(full, groups * PIECES * BOX_BYTES);
#pragma unroll 1
            for (int group = 0; group < groups; ++group) {
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece) {
                    tma_load(shared_address(&shared.queries[group][piece]), args.rows, full, uint32_t(piece * BOX_COLUMNS),
                             tile.start + tile.first_query + group * BOX_ROWS, tile.head);
                }
            }
#pragma unroll 1
            for (int block = first_block(tile); block < end_block(tile); ++block) {
                if (block + 1 < end_block(tile)) load_keys(block + 1);
                load_values(block);
            }
        }
        if (!queue.is_joiner()) queue.leave();
        mbarrier_wait(shared_address(&shared.queries_empty), queries_parity ^ 1);
        shared.tile.end_key = 0;
        mbarrier_arrive(shared_address(&shared.queries_full));
    }

    // Zeroes the rows from `valid` on of a block of values, which all workers hold. Every one of their threads calls it.
    __device__ static void zero_rows(uint32_t values, int valid) {
        constexpr int CHUNKS = 8 * PIECES; // of 16 bytes, of a row
        for (int i = threadIdx.x - 128; i < (KEYS - valid) * CHUNKS; i += 128 * GROUPS) {
            const int row = valid + i / CHUNKS, chunk = i % CHUNKS;
            const uint32_t zeros[4] = {};
            store_shared_16(values + chunk / 8 * PIECE_BYTES + row * 128 + chunk % 8 * 16, zeros);
        }
        fence_shared_for_async();
        asm volatile("bar.sync %0, %1;" ::"n"(1), "n"(128 * GROUPS) : "memory");
    }

    // A worker warpgroup's part.
    __device__ static void work(const Args &args, Shared &shared) {
        // Broadcast, so that the compiler knows that a warp does not part ways over them.
        const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0) - 4, group = warp / 4, lane = threadIdx.x % 32;
        const float scale_log2 = args.plain.scale * 1.4426950408889634f;
        const auto release = [&](uint64_t &empty) {
            __syncwarp();
            if (lane == 0) mbarrier_arrive(shared_address(&empty));
        };

        RingPosition<STAGES> keys, values;
        for (uint32_t parity = 0;; parity ^= 1) {
            mbarrier_wait(shared_address(&shared.queries_full), parity);
            const Tile tile = shared.tile;
            if (tile.end_key == 0) break;
            const Mask mask = tile.mask(args.plain);
            const uint32_t queries = shared_address(&shared.queries[group]);
            const int first_of_group = tile.first_query + group * 64, first_row = first_of_group + warp % 4 * 16 + lane / 4;

            Rows rows;
            float correction[2];
            rows.clear();

            const auto take_scores = [&](int block) {
                wgmma_settle(rows.scores);
                release(shared.keys_empty[keys.stage]);
                keys.advance();
                const int first_key = block * KEYS;
                if (first_key < mask.first(first_of_group + 63) || first_key + KEYS > mask.end(first_of_group)) rows.hide(mask, first_key, first_row);
                rows.exponentiate(scale_log2, correction);
            };

            mbarrier_wait(shared_address(&shared.keys_full[keys.stage]), keys.parity);
            rows.multiply_keys(queries, shared_address(&shared.keys[keys.stage]));
            wgmma_wait<0>();
            take_scores(first_block(tile));
            rows.round();

            for (int block = first_block(tile) + 1; block < end_block(tile); ++block) {
                mbarrier_wait(shared_address(&shared.keys_full[keys.stage]), keys.parity);
                rows.multiply_keys(queries, shared_address(&shared.keys[keys.stage]));
                mbarrier_wait(shared_address(&shared.values_full[values.stage]), values.parity);
                rows.multiply_values(shared_address(&shared.values[values.stage]));
                wgmma_wait<1>();
                take_scores(block);
                // Before the wait, or there would be nothing to do while the output is multiplied.
                wgmma_settle(rows.scores);
                wgmma_wait<0>();
                wgmma_settle(rows.output);
                release(shared.values_empty[values.stage]);
                values.advance();
#pragma unroll
                for (int i = 0; i < D / 2; ++i) rows.output[i] *= correction[i / 2 % 2];
                rows.round();
            }
            mbarrier_arrive(shared_address(&shared.queries_empty));

            mbarrier_wait(shared_address(&shared.values_full[values.stage]), values.parity);
            const int valid = tile.end_key - (end_block(tile) - 1) * KEYS;
            if (valid < KEYS) zero_rows(shared_address(&shared.values[values.stage]), valid);
            rows.multiply_values(shared_address(&shared.values[values.stage]));
            wgmma_wait<0>();
            wgmma_settle(rows.output);
            release(shared.values_empty[values.stage]);
            values.advance();
            rows.store(args.plain, tile.head, tile.start, tile.length, first_row);
        }
    }

    __device__ static void run(const Args &args, const Tiles &tiles, Shared &shared) {
        Tile first;
        if (threadIdx.x == 0) {
            Source::prefetch(args);
            if (Source::KNOWN_EARLY) first = Tile(args.plain, blockIdx.x);
            prepare(shared);
        }
        wait_for_earlier_launches(tiles);
        __syncthreads();
        TileQueue queue(tiles);
        if (threadIdx.x < 128) {
            registers_shrink<Shape::LOADER_REGISTERS>();
            if (threadIdx.x == 0) load(args, first, queue, shared);
            __syncwarp();
        } else {
            registers_grow<Shape::WORKER_REGISTERS>();
            work(args, shared);
        }
        if (!queue.is_joiner()) return; // it has left
        // Every tile's stores are ordered before the queue learns of them.
        __syncthreads();
        if (threadIdx.x == 0) queue.leave();
    }
};

} // namespace attention

#endif
