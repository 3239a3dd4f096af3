// Elastic kernels: thread blocks that take tiles from a counter and leave SMs that their tenant no longer holds.
//
// A kernel is written as a loop over tiles whose arithmetic knows only the tile's number:
//
//     extern "C" __global__ void my_kernel(MyArgs args, Tiles tiles) {
//         ElasticTiles queue(tiles);
//         for (uint32_t tile; queue.next(tile);) { ... the tile ... }
//     }
//
// next() synchronises the block, so shared memory of the previous tile may be overwritten after it returns. All threads of the block
// must call it. It returns false once for every block, and the block must then return. A kernel whose warps have different roles takes its tiles
// from a TileQueue instead, by one thread, and says itself when it leaves.
//
// A launch much shorter than the time a resize takes need not be elastic: without a TileProgress, block b does tiles b, b + gridDim.x, ...
//
// The constructors wait for the launch before this one (programmatic dependent launch): what a block does before may overlap that launch's
// end, and must not touch anything that earlier launches write. The next launch's blocks, which then wait likewise, may come at once where a launch is
// short. Where it is elastic they may come when there is no tile left to take, or with the last wave of tiles where no SM was taken back: they would otherwise
// settle on such SMs, and wait there.
//
// What a launch promises, whatever happens to the grant while it runs:
//   * Every tile is done exactly once.
//   * The owner (the launch whose completion stream order waits for) completes only when every tile is *finished*, by whomever it was
//     taken: the last block of the owner to leave waits for tiles that joiners still hold. Those that blocks of the owner hold need no waiting for, since
//     it does not complete before its blocks have ended; so these leave when there is no tile for them, while they are still at their last.
//   * Whichever block of the owner would be the last to be sent away stays, so that a grant of zero SMs cannot hang a stream. While another one
//     holds its SM, none stays where the grant does not hold: what an owner takes back is its own to the last SM.
//   * A joiner (a second launch on the same counter, to grow again) takes tiles of its own epoch only and never touches a later launch's.
//   * The counter is back at zero, one epoch on, when the owner completes: replayed graphs need no reset node.
//
// A worker whose tiles take long need not finish the one that it is at when its SM is taken back: while there are tiles that nobody has taken, it may give
// its own back (TileQueue::give_back), and whoever next finds no fresh tile begins that one anew. Half a tile's work is lost for each SM, which is free
// again within microseconds.
//
// A worker learns from the counter 1 or 2 us after it began which tile is its. Where its SM is most likely its tenant's, its first tile is that of its own number
// instead, and the counter gives out those behind (Tiles::numbered). If the SM is not its tenant's, the worker gives that tile back and leaves. If it is, each
// warp can know the first tile without asking who takes tiles (begins_by_number).
//
// TileProgress, two for each chain of launches that run one after another, used in turn: a launch may take tiles while the one before it is still
// counting its own. It lets the next one come only after all launches before itself have ended, so two are enough.
//
//   | step                  | taken (epoch:32, given       | finished          | departed (sent away:16, left:16) |
//   |                       | back:9, count:23)            |                   |                                  |
//   |-----------------------|------------------------------|-------------------|----------------------------------|
//   | owner takes a tile    | count +1                     |                   |                                  |
//   | joiner takes a tile   | count +1, while it is in     |                   |                                  |
//   | a tile is given back, | given back +1, once its      |                   |                                  |
//   | begun or not          | number is in the ring        |                   |                                  |
//   | one that was given    | given back -1 by compare-and-|                   |                                  |
//   | back is taken: there  | swap, then the number is     |                   |                                  |
//   | is no fresh one       | taken out of the ring        |                   |                                  |
//   | a block of the owner  |                              |                   | sent away +1; -1 again if all    |
//   | finds its SM not held |                              |                   | others were, and it stays        |
//   | a block leaves        |                              | + tiles it took   | left +1 (owner only)             |
//   | last owner block,     | epoch + 1, count 0           | 0                 | 0                                |
//   | finished == count     |                              |                   |                                  |
//
// A joiner counts itself in (`joined`) before it looks whether the launch is still its own and has tiles to take, and out when it leaves. Who ends the launch
// does so when nobody is in, and has all tiles taken before it looks; so whoever is in may add to the count without asking for the epoch each time. (By
// compare-and-swap it would hardly ever come through: the count changes several times within the way to L2 and back.)
//
// The ring of tiles given back keeps nothing from launch to launch: when the counter is reset, every tile is counted and none given back. A tile is given
// back only while the count says that fresh ones are left, by the same word that counts it; so a worker of the owner, and be it the one that stays, has yet
// to find none, and then sees it. If the last fresh tile went in that very moment, who gave a tile back takes one back itself.
//
// A launch has fewer than 65536 workers: persistent grids are no larger than what the GPU holds at once. Elastic launches have fewer than
// 2^22 tiles (MAX_ELASTIC_TILES).
#pragma once
#include <cstdint>

#include "abi.h"

__device__ __forceinline__ uint32_t sm_id() {
    uint32_t id;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
    return id;
}

// Returns when all earlier launches on the stream have ended and what they wrote can be read.
__device__ __forceinline__ void wait_for_earlier_launches() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next launch's blocks may start where there is room for them, once every block of this launch has called this or ended.
__device__ __forceinline__ void let_next_launch_come() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// For kernels that take their first tile after it.
__device__ __forceinline__ void wait_for_earlier_launches(const Tiles &tiles) {
    wait_for_earlier_launches();
    if (tiles.progress == 0) let_next_launch_come();
}

// Words of a grant, each of 32 SMs.
constexpr uint32_t GRANT_WORDS = 8;

// The grant's word of SMs 32 * index to 32 * index + 31. It changes while the kernel runs, so neither a register nor L1 may answer for it. L2 may: a grant is this
// GPU's own memory, and the host's words are written there. A load that asked the system (volatile) cost a product on the same SM 25 cycles each time
// (docs/kernels/gemm.md).
__device__ __forceinline__ uint32_t load_grant_word(const Tiles &tiles, uint32_t index) {
    uint32_t word;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(tiles.grant + index * 4) : "memory");
    return word;
}

// The grant as a warp reads it together: lane i has the word of SMs 32 * i to 32 * i + 31. So it can be under way before it is known which SMs to look for.
__device__ __forceinline__ uint32_t grant_word(const Tiles &tiles) {
    const uint32_t lane = threadIdx.x % 32;
    if (tiles.grant == 0) return 0xffffffff;
    return lane < GRANT_WORDS ? load_grant_word(tiles, lane) : 0;
}

// Whether the grant of which each lane of this warp has a word holds an SM.
__device__ __forceinline__ bool holds_sm(uint32_t grant_word, uint32_t sm) { return __shfl_sync(0xffffffff, grant_word, sm / 32) >> (sm % 32) & 1; }

// Whether a worker that holds its SMs, or does not, has the tile of its own number first. Its TileQueue, polled with the same answer, takes that one.
__device__ __forceinline__ bool begins_by_number(const Tiles &tiles, bool held) { return held && tiles.numbered != 0 && tiles.joins == 0; }

// Takes tiles for one worker: a block, or a pair of blocks that work as one. One thread of the worker holds it and calls it.
class TileQueue {
  public:
    // Of a block.
    __device__ explicit TileQueue(const Tiles &tiles) : TileQueue(tiles, blockIdx.x, gridDim.x, sm_id()) {}

    // Of worker `worker` of `workers`, whose blocks run on this SM and on `other_sm`.
    __device__ TileQueue(const Tiles &tiles, uint32_t worker, uint32_t workers, uint32_t other_sm)
        : tiles_(tiles), worker_(worker), workers_(workers), other_sm_(other_sm), fresh_(tiles.count - tiles.numbered), taken_(0),
          taken_back_(tiles.count), begins_by_number_(tiles.numbered != 0 && tiles.joins == 0) {}

    // Reads the grant for the first tile already. The grant is no earlier launch's output, so this may be done before waiting for those.
    __device__ void poll() { poll(holds_its_sms()); }

    // The same where that is known.
    __device__ void poll(bool held) {
        polled_ = true;
        held_ = held;
    }

    // The next tile; false when the worker must leave(), which says when. To be called after waiting for earlier launches.
    __device__ bool take(uint32_t &tile) {
        const bool taken = take_early(tile);
        if (!taken) let_next_launch_come();
        return taken;
    }

    // The same, and may be called before waiting for earlier launches. A worker that got no tile must wait all the same, then let the next launch come.
    __device__ bool take_early(uint32_t &tile) {
        if (tiles_.progress == 0) {
            tile = worker_ + taken_ * workers_;
        } else {
            const bool owner = !is_joiner();
            const bool held = polled_ ? held_ : holds_its_sms();
            polled_ = stays_ = false;
            const bool may_run = !sent_away_ && (held || (owner && is_last_to_stay()));
            sent_away_ = !may_run;
            if (begins_by_number_) {
                begins_by_number_ = false;
                tile = may_run ? worker_ : leave_to_others(worker_);
            } else {
                tile = may_run && (owner || is_in()) ? take_fresh() : taken_back_;
                taken_back_ = tiles_.count;
            }
        }
        if (tile >= tiles_.count) return false;
        ++taken_;
        return true;
    }

    // Whether workers of this launch were sent away, so that their tenant holds fewer SMs than it was launched for.
    __device__ bool has_lost_workers() const { return tiles_.progress != 0 && *static_cast<volatile uint32_t *>(&progress()->departed) >> 16 != 0; }

    // Whether the worker should give the tile that it is at back: its SMs are wanted, and others will do the tile. To be asked while a tile is under way. If so,
    // the worker counts as sent away from now on, whether or not it gives its tile back.
    __device__ bool should_give_back() {
        if (stays_ || sent_away_ || holds_its_sms()) return false;
        const uint32_t seen = static_cast<uint32_t>(*static_cast<volatile unsigned long long *>(&progress()->taken));
        if (seen % GIVEN_BACK >= fresh_ || seen / GIVEN_BACK >= GIVEN_BACK_ENOUGH) return false;
        stays_ = !is_joiner() && is_last_to_stay();
        sent_away_ = !stays_;
        return sent_away_;
    }

    // Gives back the tile that was taken last: nothing of it is done, and whoever takes it begins anew. Then take() tells how to go on: by leaving, but for the
    // case that nobody else would come for the tile.
    __device__ void give_back(uint32_t tile) {
        --taken_;
        taken_back_ = leave_to_others(tile);
    }

    __device__ bool is_joiner() const { return tiles_.joins != 0; }

    // To be called once: by an owner's worker as soon as take() gave it none, by a joiner's when its tiles are finished and their stores ordered before this
    // thread (a barrier). An owner's worker needs no fence: what it did to the counter before gave it values that it has used.
    __device__ void leave() {
        if (tiles_.progress == 0) return;
        const bool owner = !is_joiner();
        if (!owner) __threadfence();
        const unsigned long long before = atomicAdd(counts(), taken_ | (owner ? LEFT : 0ull));
        if (joined_) {
            __threadfence();
            atomicSub(&progress()->joined, 1u);
        }
        if (!owner || (before / LEFT) % (SENT_AWAY / LEFT) != workers_ - 1) return;
        // Last worker of the owner. Tiles not counted yet are held by joiners, each for no longer than one tile.
        volatile uint32_t *finished = &progress()->finished, *joined = &progress()->joined;
        while (*finished < tiles_.count) __nanosleep(64);
        __threadfence();
        while (*joined != 0) __nanosleep(64);
        __threadfence();
        const unsigned long long epoch = progress()->taken >> 32;
        progress()->finished = 0;
        progress()->departed = 0;
        __threadfence();
        *reinterpret_cast<volatile unsigned long long *>(&progress()->taken) = ((epoch + 1) & 0xffffffffull) << 32;
    }

  private:
    // One tile that was given back, in the lower half of `taken`; and as many as are let wait. All workers of a GPU may find that there are fewer at
    // the same time, and the ring has room for those too.
    static constexpr uint32_t GIVEN_BACK = 1u << 23, GIVEN_BACK_ENOUGH = 128;
    // One worker in each part of `departed`, which is the upper half of `finished` and itself.
    static constexpr unsigned long long LEFT = 1ull << 32, SENT_AWAY = 1ull << 48;

    __device__ TileProgress *progress() const { return reinterpret_cast<TileProgress *>(tiles_.progress); }

    __device__ unsigned long long *counts() const { return reinterpret_cast<unsigned long long *>(&progress()->finished); }

    // Counts this worker of the owner as sent away, unless all others are: then nobody else can come here, and it takes that back.
    __device__ bool is_last_to_stay() {
        if (atomicAdd(counts(), SENT_AWAY) / SENT_AWAY + 1 < workers_) return false;
        atomicAdd(counts(), 0ull - SENT_AWAY);
        return true;
    }

    __device__ bool holds_its_sms() const {
        if (tiles_.grant == 0) return true;
        const uint32_t sm = sm_id();
        return (load_grant_word(tiles_, sm / 32) >> (sm % 32)) & (load_grant_word(tiles_, other_sm_ / 32) >> (other_sm_ % 32)) & 1u;
    }

    // Puts a tile into the ring. Where nobody else may come any more to take it out, another one is taken out at once; else none, the count of tiles.
    __device__ uint32_t leave_to_others(uint32_t tile) {
        uint32_t *place = &progress()->ring[atomicAdd(&progress()->ring_end, 1u) % GIVEN_BACK_TILES];
        atomicExch(place, tile + 1);
        __threadfence();
        const uint32_t seen = static_cast<uint32_t>(atomicAdd(&progress()->taken, static_cast<unsigned long long>(GIVEN_BACK)));
        return seen % GIVEN_BACK < fresh_ ? tiles_.count : take_given_back();
    }

    // Nobody who may call this sees the epoch change: it does so only after the last of the owner's workers has left, and no joiner is in.
    __device__ uint32_t take_fresh() {
        const uint32_t count = static_cast<uint32_t>(atomicAdd(&progress()->taken, 1ull)) % GIVEN_BACK;
        return count < fresh_ ? tiles_.numbered + count : take_given_back();
    }

    // Whether this worker of a joiner is counted in; it is so from the first time that there is a tile for it.
    __device__ bool is_in() {
        if (joined_) return true;
        atomicAdd(&progress()->joined, 1u);
        __threadfence();
        const unsigned long long seen = *static_cast<volatile unsigned long long *>(&progress()->taken);
        const uint32_t count = static_cast<uint32_t>(seen);
        joined_ = static_cast<uint32_t>(seen >> 32) == tiles_.joins - 1 && (count % GIVEN_BACK < fresh_ || count >= GIVEN_BACK);
        if (!joined_) atomicSub(&progress()->joined, 1u);
        return joined_;
    }

    // A tile that was given back; the count of tiles where there is none.
    __device__ uint32_t take_given_back() {
        volatile unsigned long long *word = &progress()->taken;
        for (unsigned long long seen = *word; static_cast<uint32_t>(seen) >= GIVEN_BACK;) {
            const unsigned long long before = atomicCAS(&progress()->taken, seen, seen - GIVEN_BACK);
            if (before == seen) return out_of_ring();
            seen = before;
        }
        return tiles_.count;
    }

    // For whoever has counted one down: at least as many numbers are in the ring or on their way into it.
    __device__ uint32_t out_of_ring() {
        uint32_t *place = &progress()->ring[atomicAdd(&progress()->ring_begin, 1u) % GIVEN_BACK_TILES];
        uint32_t number;
        while ((number = atomicExch(place, 0u)) == 0) {
        }
        return number - 1;
    }

    const Tiles &tiles_;
    uint32_t worker_, workers_, other_sm_;
    uint32_t fresh_; // tiles that the counter gives out
    uint32_t taken_, taken_back_;
    bool begins_by_number_;
    bool polled_ = false, held_ = false, sent_away_ = false, stays_ = false, joined_ = false;
};

// The same for kernels whose threads all work on one tile at a time.
class ElasticTiles {
  public:
    __device__ explicit ElasticTiles(const Tiles &tiles) : tiles_(tiles), queue_(tiles), next_(blockIdx.x) {
        if (threadIdx.x == 0 && tiles.progress != 0) queue_.poll();
        wait_for_earlier_launches(tiles);
    }

    // The next tile for this block, the same in every thread; false when the block must leave.
    __device__ bool next(uint32_t &tile) {
        // The previous tile is finished in every thread, and its stores are ordered before what thread 0 of a joiner publishes when it leaves.
        __syncthreads();
        return tiles_.progress == 0 ? next_by_stride(tile) : next_counted(tile);
    }

    // The same for kernels whose warps share no memory: where tiles are not counted, no warp waits for another.
    __device__ bool next_for_each_warp(uint32_t &tile) {
        if (tiles_.progress == 0) return next_by_stride(tile);
        __syncthreads();
        return next_counted(tile);
    }

  private:
    __device__ bool next_by_stride(uint32_t &tile) {
        tile = next_;
        next_ += gridDim.x;
        return tile < tiles_.count;
    }

    // After a barrier.
    __device__ bool next_counted(uint32_t &tile) {
        __shared__ uint32_t taken;
        if (threadIdx.x == 0) {
            uint32_t mine;
            if (!queue_.take(mine)) {
                queue_.leave();
                mine = tiles_.count;
            }
            taken = mine;
        }
        __syncthreads();
        tile = taken;
        return tile < tiles_.count;
    }

    const Tiles &tiles_;
    TileQueue queue_;
    uint32_t next_;
};

// For measurements, which no tenant runs: blocks stride over the tiles they were launched for.
class StridedTiles {
  public:
    __device__ explicit StridedTiles(const Tiles &tiles) : count_(tiles.count), next_(blockIdx.x) {
        wait_for_earlier_launches();
        let_next_launch_come();
    }

    __device__ bool next(uint32_t &tile) {
        tile = next_;
        next_ += gridDim.x;
        return tile < count_;
    }

  private:
    uint32_t count_;
    uint32_t next_;
};
