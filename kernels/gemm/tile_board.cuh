// Where kernels whose warps have different roles learn which tile comes next. One warp takes tiles from the launch's counter, which answers in one or two
// microseconds, and writes them on the board: a ring of slots in shared memory, one copy in each block of a pair. Every reader sees every tile, in order,
// and gives its slot back. The next tile is taken only when a producer asks for it: sooner would only keep SMs longer that are wanted back.
#pragma once
#include <cstdint>

#include "elastic.cuh"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"

constexpr int TILE_BOARD_SLOTS = 4, TILE_BOARD_BYTES = TILE_BOARD_SLOTS * (8 + 8 + 4) + 2 * 8;

#if __CUDA_ARCH__ >= 900

template <int PAIR>
class TileBoard {
    static constexpr int SLOTS = TILE_BOARD_SLOTS;

  public:
    using Position = RingPosition<SLOTS>;

    // At `place` in shared memory, a multiple of 8: TILE_BOARD_BYTES.
    __device__ explicit TileBoard(uint32_t place)
        : full_(place), empty_(place + SLOTS * 8), asked_(place + SLOTS * 16), finished_(asked_ + 8), tiles_(finished_ + 8) {}

    // By one thread. `readers` of one slot, without the second block's follow(), and `finishers` of the launch, in both blocks of a pair.
    __device__ void initialise(uint32_t readers, uint32_t finishers) const {
        for (int i = 0; i < SLOTS; ++i) {
            mbarrier_init(full_ + i * 8, 1);
            mbarrier_init(empty_ + i * 8, readers + PAIR - 1);
        }
        mbarrier_init(asked_, 1);
        mbarrier_init(finished_, finishers);
    }

    // One thread of the first block: takes tiles until there are none, for one of `workers`. The end is told `ends` times, a tile's number then being the
    // count of tiles.
    __device__ void take_tiles(TileQueue &queue, uint32_t workers, uint32_t count, uint32_t ends) const {
        Position at;
        queue.poll();
        for (uint32_t i = 0, told = 0; told < ends; ++i) {
            uint32_t tile = count;
            if (told == 0) {
                if (i > 0) mbarrier_wait(asked_, (i - 1) & 1);
                if (!queue.take_early(tile)) tile = count;
            }
            if (tile >= count) ++told;
            write(at, tile);
            at.advance();
            if (i == 0) wait_for_earlier_launches();
            if (is_of_last_wave(tile, workers, count)) let_next_launch_come();
        }
        mbarrier_wait(finished_, 0);
        queue.leave();
    }

    // One thread of the second block of a pair, a reader of its own: lets the next launch come when the first block does.
    __device__ void follow(uint32_t workers, uint32_t count) const {
        Position at;
        wait_for_earlier_launches();
        for (uint32_t tile = 0; tile < count; at.advance()) {
            tile = read(at);
            release(at);
            if (is_of_last_wave(tile, workers, count)) let_next_launch_come();
        }
    }

    // One thread of the first block, once for every tile that it read.
    __device__ void ask() const { mbarrier_arrive(asked_); }

    __device__ uint32_t read(const Position &at) const {
        mbarrier_wait(full_ + at.stage * 8, at.parity);
        uint32_t tile;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(tile) : "r"(tiles_ + at.stage * 4) : "memory");
        return tile;
    }

    // One thread of each reader, when all of the reader's threads have read.
    __device__ void release(const Position &at) const { mbarrier_arrive_in_cluster(in_block(empty_ + at.stage * 8, 0)); }

    // For a warp that stays together.
    __device__ uint32_t next(Position &at) const {
        const uint32_t tile = read(at);
        __syncwarp();
        if (threadIdx.x % 32 == 0) release(at);
        at.advance();
        return tile;
    }

    // One thread of each finisher, when all stores of all its tiles are ordered before this thread.
    __device__ void finish() const { mbarrier_arrive_in_cluster(in_block(finished_, 0)); }

  private:
    // The next launch's blocks take a while to start. They may come when every worker does what will be its last tile: they will not wait for long.
    static __device__ bool is_of_last_wave(uint32_t tile, uint32_t workers, uint32_t count) { return tile + workers >= count; }

    __device__ void write(const Position &at, uint32_t tile) const {
        mbarrier_wait(empty_ + at.stage * 8, at.parity ^ 1);
        if constexpr (PAIR == 1) {
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(tiles_ + at.stage * 4), "r"(tile) : "memory");
            mbarrier_arrive(full_ + at.stage * 8);
        } else {
            for (uint32_t block = 0; block < PAIR; ++block) {
                const uint32_t barrier = in_block(full_ + at.stage * 8, block);
                mbarrier_arrive_expect_in_cluster(barrier, 4);
                store_async(in_block(tiles_ + at.stage * 4, block), tile, barrier);
            }
        }
    }

    uint32_t full_, empty_, asked_, finished_, tiles_;
};

#endif
