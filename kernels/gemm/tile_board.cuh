// Where kernels whose warps have different roles learn which tile comes next. One warp takes tiles from the launch's counter, which answers in one or two
// microseconds, and writes them on the board: a ring of slots in shared memory, one copy in each block of a pair. Every reader sees every tile, in order
// (of consumers that take turns, each every other one), and gives its slot back. The next tile is taken only when a producer asks for it: sooner would only
// keep SMs longer that are wanted back.
//
// Where a worker begins by number, its first tile is not on the board: whether its SMs are held is known when its blocks have met (Acquaintance), and with it
// that tile, so nobody waits for who takes tiles.
//
// Where tiles take long, one may be broken off when the worker's SMs are wanted back. The thread that takes tiles sees it and says so; a producer then
// decides after how many of the tile's steps all stop, so far ahead that nobody can have passed that one, tells everyone, and asks for the next tile:
//
//   taker:     wanted  ->  producer:  stops_at = (tile, step), in each block; asked  ->  taker: give_back(tile), take the next or leave
//                              \->  producers and consumers, at every STOP_GRAINth step: is this where to stop?
#pragma once
#include <cstdint>

#include "elastic.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"

constexpr int TILE_BOARD_SLOTS = 4, TILE_BOARD_BYTES = TILE_BOARD_SLOTS * (8 + 8 + 4) + 4 * 8 + 4;
constexpr int ACQUAINTANCE_BYTES = 4;

// A tile may be broken off after a multiple of so many steps.
constexpr uint32_t STOP_GRAIN = 2;

// How long who takes tiles sleeps before it looks at the grant again.
constexpr uint32_t POLL_NANOSECONDS = 500;

// Tiles and steps below this may be broken off: a number of each shares a word.
constexpr uint32_t STOPPABLE = 1 << 16;

#if __CUDA_ARCH__ >= 900

// What a worker's blocks tell each other of their SMs when they meet: a word in the shared memory of each.
template <int PAIR>
class Acquaintance {
  public:
    // At `place` in shared memory, a multiple of 4: ACQUAINTANCE_BYTES.
    __device__ explicit Acquaintance(uint32_t place) : place_(place) {}

    // Before the meeting, by one warp of each block: leaves word of this block's SM, and whether the grant holds it. The grant is no earlier launch's output.
    __device__ void introduce(const Tiles &tiles) const {
        const bool held = holds_sm(grant_word(tiles), sm_id());
        if (threadIdx.x % 32 == 0) asm volatile("st.shared.u32 [%0], %1;" ::"r"(place_), "r"(sm_id() | (held ? HELD : 0)) : "memory");
    }

    // After it: whether the SMs of all of the worker's blocks were held.
    __device__ bool holds_its_sms() const {
        uint32_t mine;
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(mine) : "r"(place_) : "memory");
        return (mine & (PAIR > 1 ? partner() : mine) & HELD) != 0;
    }

    // After it: the other block's SM; this one's, if there is no other.
    __device__ uint32_t other_sm() const { return PAIR > 1 ? partner() & ~HELD : sm_id(); }

  private:
    static constexpr uint32_t HELD = 1u << 31;

    __device__ uint32_t partner() const { return load_in_cluster(in_block(place_, PAIR - 1 - cluster_rank())); }

    uint32_t place_;
};

template <int PAIR>
class TileBoard {
    static constexpr int SLOTS = TILE_BOARD_SLOTS;

  public:
    using Position = RingPosition<SLOTS>;

    // At `place` in shared memory, a multiple of 8: TILE_BOARD_BYTES.
    __device__ explicit TileBoard(uint32_t place)
        : full_(place), empty_(place + SLOTS * 8), asked_(place + SLOTS * 16), finished_(asked_ + 8), wanted_(finished_ + 8), stopping_(wanted_ + 8),
          tiles_(stopping_ + 8), stops_at_(tiles_ + SLOTS * 4) {}

    // By one thread. `readers` of one slot (warps), without the second block's follow(), and `finishers` of a joiner, in both blocks of a pair.
    __device__ void initialise(uint32_t readers, uint32_t finishers) const {
        for (int i = 0; i < SLOTS; ++i) {
            mbarrier_init(full_ + i * 8, 1);
            mbarrier_init(empty_ + i * 8, readers + PAIR - 1);
        }
        mbarrier_init(asked_, 1);
        mbarrier_init(finished_, finishers);
        mbarrier_init(wanted_, 1);
        mbarrier_init(stopping_, 1);
    }

    // One thread of the first block: takes tiles until there are none, for one of `workers` whose queue has polled. The end is told `ends` times, a tile's number
    // then being the count of tiles. `knows_first`: whether all know the first tile. `breaks_off`: whether producers look for is_wanted().
    __device__ void take_tiles(TileQueue &queue, uint32_t workers, uint32_t count, uint32_t ends, bool knows_first, bool breaks_off) const {
        Position at;
        uint32_t tile = count;
        for (uint32_t i = 0, told = 0; told < ends; ++i) {
            if (told == 0) {
                if (i > 0) {
                    if (breaks_off) watch(queue, (i - 1) & 1);
                    mbarrier_wait(asked_, (i - 1) & 1);
                    if (breaks_off && is_stopping() && stops_at() >> 16 == i - 1) queue.give_back(tile);
                }
                if (!queue.take_early(tile)) tile = count;
            }
            if (tile >= count) ++told;
            if (i > 0 || !knows_first) {
                write(at, tile);
                at.advance();
            }
            if (i == 0) wait_for_earlier_launches();
            // Where SMs were taken, its blocks would settle on those and keep them from their owner until this launch has ended: they come when it has.
            if (is_of_last_wave(tile, workers, count) && !queue.has_lost_workers()) let_next_launch_come();
        }
        if (queue.is_joiner()) mbarrier_wait(finished_, 0);
        queue.leave();
    }

    // One thread of the second block of a pair, a reader of its own: lets the next launch come when the first block does. The first tile is `first` where
    // all know it.
    __device__ void follow(uint32_t workers, uint32_t count, bool knows_first, uint32_t first) const {
        Position at;
        wait_for_earlier_launches();
        if (knows_first && is_of_last_wave(first, workers, count)) let_next_launch_come();
        for (uint32_t tile = 0; tile < count; at.advance()) {
            tile = read(at);
            if (is_of_last_wave(tile, workers, count)) let_next_launch_come();
        }
    }

    // One thread of the first block, once for every tile that it has.
    __device__ void ask() const { mbarrier_arrive(asked_); }

    // The producer that asks for tiles, all lanes of it: whether the tile under way should be broken off.
    __device__ bool is_wanted() const { return __any_sync(0xffffffff, mbarrier_is_complete(wanted_, 0)); }

    // One thread of the first block, in place of ask(), once: the `tile`-th of this worker's tiles is broken off after `steps` of its steps, a multiple of
    // STOP_GRAIN. Nobody may come that far before this returns.
    __device__ void stop(uint32_t tile, uint32_t steps) const {
        tell(stops_at_, tile << 16 | steps, stopping_);
        mbarrier_wait(stopping_, 0);
        ask();
    }

    // Producers and consumers, whole warps, after each multiple of STOP_GRAIN steps: whether the `tile`-th tile is broken off here. The vote lets the compiler
    // know that the lanes agree.
    __device__ bool stops_after(uint32_t tile, uint32_t steps) const {
        return __any_sync(0xffffffff, is_stopping()) && __any_sync(0xffffffff, stops_at() == (tile << 16 | steps));
    }

    // The next tile, for a warp that stays together: one reader. Its first lane reads, so that whoever gives the slot back is who read it.
    __device__ uint32_t next(Position &at) const {
        uint32_t tile = 0;
        if (threadIdx.x % 32 == 0) tile = read(at);
        at.advance();
        return __shfl_sync(0xffffffff, tile, 0);
    }

    // One thread of each finisher, where the launch is a joiner and all stores of all its tiles are ordered before this thread.
    __device__ void finish() const { tell_first_block(finished_); }

  private:
    // One thread: reads a slot and gives it back.
    __device__ uint32_t read(const Position &at) const {
        mbarrier_wait(full_ + at.stage * 8, at.parity);
        uint32_t tile;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(tile) : "r"(tiles_ + at.stage * 4) : "memory");
        tell_first_block(empty_ + at.stage * 8);
        return tile;
    }

    // Arrives at a barrier of the block that takes tiles.
    static __device__ void tell_first_block(uint32_t barrier) {
        if constexpr (PAIR == 1) mbarrier_arrive(barrier);
        if constexpr (PAIR > 1) mbarrier_arrive_in_cluster(in_block(barrier, 0));
    }

    __device__ bool is_stopping() const { return mbarrier_is_complete(stopping_, 0); }

    __device__ uint32_t stops_at() const {
        uint32_t word;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(stops_at_) : "memory");
        return word;
    }

    // Looks after the grant until the next tile is asked for, or this one is wanted back.
    __device__ void watch(TileQueue &queue, uint32_t parity) const {
        while (!mbarrier_is_complete(asked_, parity)) {
            if (queue.should_give_back()) {
                mbarrier_arrive(wanted_);
                return;
            }
            __nanosleep(POLL_NANOSECONDS);
        }
    }

    // The next launch's blocks take a while to start. They may come when every worker does what will be its last tile: they will not wait for long.
    static __device__ bool is_of_last_wave(uint32_t tile, uint32_t workers, uint32_t count) { return tile + workers >= count; }

    __device__ void write(const Position &at, uint32_t tile) const {
        mbarrier_wait(empty_ + at.stage * 8, at.parity ^ 1);
        tell(tiles_ + at.stage * 4, tile, full_ + at.stage * 8);
    }

    // Stores a word in each block and completes a phase of a barrier there. A block that is not of a pair is no cluster, and has no asynchronous stores.
    static __device__ void tell(uint32_t place, uint32_t word, uint32_t barrier) {
        if constexpr (PAIR == 1) {
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(place), "r"(word) : "memory");
            mbarrier_arrive(barrier);
        } else {
            for (uint32_t block = PAIR; block-- > 0;) {
                const uint32_t there = in_block(barrier, block);
                mbarrier_arrive_expect_in_cluster(there, 4);
                store_async(in_block(place, block), word, there);
            }
        }
    }

    uint32_t full_, empty_, asked_, finished_, wanted_, stopping_, tiles_, stops_at_;
};

#endif
