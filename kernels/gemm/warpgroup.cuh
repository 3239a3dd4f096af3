// GEMM for Hopper:  C[m, n] = epilogue(A[m, k] * B[n, k]^T)
//   A, B: FP16, row-major, so that both are read along k; sums in FP32; C: FP16 or FP32, row-major.
//
// Three roles share a block, and hand each other buffers through mbarriers instead of stopping together:
//
//   producers (two warps)      take tiles, and ask the copy engine for 64 columns of A and of B at a time, STAGES ahead
//        | ring of STAGES:  A [BLOCK_M][64], B [BLOCK_N][64] halves, 128-byte swizzled; full[s] when it has arrived, empty[s] when it is read
//        v
//   consumers (warpgroups)     multiply stages with wgmma; sums stay in registers
//        | two buffers each of 64 rows by SLICE columns: the residual comes in, what C becomes goes out (warpgroup_epilogue.cuh)
//        v
//   copy engine                writes whole lines of C, while the producer has long begun to fetch the next tile
//
// warpgroup_shape.cuh says how large a tile is and where its things lie in shared memory.
//
// Either both consumers share a tile, each with half of its rows, or each has tiles of its own and they take turns (PING_PONG): one multiplies while
// the other finishes its tile, so that the tensor cores never wait for an epilogue. The first asks less of L2, the second wins where k is short.
//
// Two blocks make a pair (a cluster) and do neighbouring tiles, whose rows of B (or of A) are the same: each block fetches half of those and the copy
// engine delivers it to both. That pays for the largest tile on the whole GPU; smaller ones gained nothing from it, and lost the time it takes two
// blocks to meet (docs/kernels/gemm.md).
// A pair runs in the two SMs of a TPC or in two of one GPC, takes tiles by its first block, and leaves together.
//
// A tile of long k is broken off when its SMs are wanted back (tile_board.cuh): the worker is gone after a few steps instead of up to a tile's time, and another
// begins the tile anew. Its sums were in registers only, so nothing has to be undone but the first slices of the residual, which are on their way already.
//
// Bits: every element of C is the sum of its k / 16 products of 16 in the order of k, starting from 0, whatever the tile's shape, so the choice of the
// shape, and with it the SM count, never changes a bit.
//
// Bound: 64 x N x 16 multiply-adds take N / 2 cycles; a tile brings (BLOCK_M + BLOCK_N) * 128 bytes from L2 for every BLOCK_M * BLOCK_N / 32 cycles.
#pragma once
#include <cstdint>

#include "abi.h"
#include "elastic.cuh"
#include "gemm/tile_board.cuh"
#include "gemm/tile_order.cuh"
#include "gemm/warpgroup_epilogue.cuh"
#include "gemm/warpgroup_shape.cuh"
#include "ptx/cluster.cuh"
#include "ptx/elect.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

template <typename Shape, int EPILOGUE>
struct WarpgroupGemm {
    const GemmArgs &args;
    const WarpgroupGemmArgs &all;
    const Tiles &tiles;
    const uint32_t rank;  // in the pair
    const uint32_t steps;
    const uint32_t stages, full, empty, turn;  // in shared memory
    const WarpgroupEpilogue<Shape, EPILOGUE> epilogue;
    const TileBoard<Shape::PAIR> board;
    const Acquaintance<Shape::PAIR> acquaintance;

    __device__ WarpgroupGemm(const WarpgroupGemmArgs &args, const Tiles &tiles, uint8_t *shared)
        : args(args.gemm), all(args), tiles(tiles), rank(cluster_rank()), steps((args.gemm.k + 64 * Shape::K_BLOCKS - 1) / (64 * Shape::K_BLOCKS)),
          stages(swizzle_aligned(shared)), full(stages + Shape::FULL), empty(stages + Shape::EMPTY), turn(stages + Shape::TURN),
          epilogue{args, stages + Shape::STAGING, stages + Shape::BIASES, stages + Shape::RESIDUAL_FULL}, board(stages + Shape::BOARD),
          acquaintance(stages + Shape::ACQUAINTANCE) {}

    __device__ void initialise_barriers() const {
        for (int i = 0; i < Shape::STAGES; ++i) {
            mbarrier_init(full + i * 8, 2);  // one producer for each operand
            mbarrier_init(empty + i * 8, Shape::PAIR * Shape::SHARERS);
        }
        // The warps of a tile's consumers and both producers read, consumers finish.
        board.initialise(Shape::PAIR * (4 * Shape::SHARERS + 2), Shape::PAIR * Shape::CONSUMERS);
        epilogue.initialise_barriers();
        for (int i = 0; i < Shape::CONSUMERS; ++i) mbarrier_init(turn + i * 8, 1);
        mbarrier_init_fence();
    }

    // Waits until both blocks have come this far.
    __device__ void meet() const {
        if (Shape::PAIR == 1) __syncthreads();
        if (Shape::PAIR > 1) cluster_barrier();
    }

    __device__ bool is_elastic() const { return tiles.progress != 0; }

    // After the blocks have met: whether the first tile is that of the worker's number, so that nobody waits for the board to know it.
    __device__ bool knows_first() const { return is_elastic() && begins_by_number(tiles, acquaintance.holds_its_sms()); }

    // Whether a tile takes so long that it is worth breaking off.
    __device__ bool breaks_off() const {
        return !Shape::PING_PONG && is_elastic() && steps > 4 * Shape::STAGES && steps < STOPPABLE && tiles.count < STOPPABLE;
    }

    // The i-th pair of tiles of this pair of blocks where everyone can count; tiles.count or more where there is none.
    __device__ uint32_t counted_tile(uint32_t i) const { return blockIdx.x / Shape::PAIR + i * (gridDim.x / Shape::PAIR); }

    // This block's tile of a pair of tiles.
    __device__ TileOrigin origin_of(uint32_t tile) const {
        const uint32_t rows = all.shares_a ? Shape::BLOCK_M : Shape::PAIR * Shape::BLOCK_M;
        const uint32_t cols = all.shares_a ? Shape::PAIR * Shape::BLOCK_N : Shape::BLOCK_N;
        const TileOrigin pair = TileOrigin::of(tile, args, rows, cols);
        return {pair.row + (all.shares_a ? 0 : rank * Shape::BLOCK_M), pair.col + (all.shares_a ? rank * Shape::BLOCK_N : 0)};
    }

    // One thread.
    __device__ void take_tiles() const {
        const uint32_t workers = gridDim.x / Shape::PAIR;
        if (rank == 0) {
            TileQueue queue(tiles, blockIdx.x / Shape::PAIR, workers, acquaintance.other_sm());
            queue.poll(acquaintance.holds_its_sms());
            // Consumers that take turns each want to hear of the end.
            board.take_tiles(queue, workers, tiles.count, Shape::PING_PONG ? 2 : 1, knows_first(), breaks_off());
        } else {
            board.follow(workers, tiles.count, knows_first(), counted_tile(0));
        }
    }

    // One warp for each operand, whose lanes stay together: keeps its part of the ring full. A single warp for both could not issue copies as fast as small
    // tiles need them.
    template <bool IS_A>
    __device__ void produce() const {
        RingPosition<Shape::STAGES> at;
        typename TileBoard<Shape::PAIR>::Position slot;
        uint32_t done = 0, tile = knows_first() ? counted_tile(0) : next_tile(slot, done);
        // Weights do not come from an earlier launch, so they need not wait for one.
        uint32_t ahead = 0;
        if (!IS_A && args.constant_b && tile < tiles.count) {
            const TileOrigin origin = origin_of(tile);
            for (; ahead < min(steps, static_cast<uint32_t>(Shape::STAGES)); ++ahead) fetch<IS_A>(ahead, ahead, origin);
        }
        wait_for_earlier_launches(tiles);
        uint32_t broken_off = ~0u;  // the tile's number among this worker's
        for (; tile < tiles.count; tile = next_tile(slot, ++done)) {
            const TileOrigin origin = origin_of(tile);
            const uint32_t fetched = done == 0 ? ahead : 0;
            for (uint32_t step = 0; step < fetched; ++step) at.advance();
            if (breaks_off()) {
                fetch_until_broken_off<IS_A>(at, fetched, done, broken_off, origin);
            } else {
                const uint32_t before_asking = max(fetched, min(ask_at(), steps));
                fetch_steps<IS_A>(at, fetched, before_asking, origin);
                if (IS_A && asks()) board.ask();
                fetch_steps<IS_A>(at, before_asking, steps, origin);
            }
        }
    }

    // The next tile is asked for so many steps before the end that it is known when they have been fetched.
    __device__ uint32_t ask_at() const { return steps > 2 * Shape::STAGES ? steps - 2 * Shape::STAGES : 0; }
    __device__ bool asks() const { return is_elastic() && rank == 0 && threadIdx.x == 0; }

    // Small tiles wait for this loop, so there is nothing else in it.
    template <bool IS_A>
    __device__ __forceinline__ void fetch_steps(RingPosition<Shape::STAGES> &at, uint32_t step, uint32_t end, const TileOrigin &origin) const {
        constexpr int UNROLLED = Shape::MOVES_REGISTERS ? 1 : 4;
#pragma unroll UNROLLED
        for (; step < end; ++step) {
            mbarrier_wait(empty + at.stage * 8, at.parity ^ 1);
            fetch<IS_A>(at.stage, step, origin);
            at.advance();
        }
    }

    // The steps of the `done`-th tile from `step` on, to its end or to where it is broken off. `broken_off` becomes its number if this warp decides so.
    template <bool IS_A>
    __device__ __forceinline__ void fetch_until_broken_off(RingPosition<Shape::STAGES> &at, uint32_t step, uint32_t done, uint32_t &broken_off,
                                                           const TileOrigin &origin) const {
        bool asked = false;
        while (step < steps) {
            if (IS_A && step >= ask_at() && !asked && broken_off != done) {
                if (asks()) board.ask();
                asked = true;
            }
            if (step % STOP_GRAIN == 0) {
                // Neither the other warps of this block nor those of the other can be further than STAGES ahead, and whoever comes as far as the end has seen
                // stages whose copies were asked for after all had been told.
                const uint32_t end = step + (Shape::STAGES + STOP_GRAIN) / STOP_GRAIN * STOP_GRAIN;
                if (IS_A && rank == 0 && !asked && end < steps && broken_off == ~0u && board.is_wanted()) {
                    broken_off = done;
                    if (threadIdx.x == 0) board.stop(done, end);
                    __syncwarp();
                }
                if (board.stops_after(done, step)) return;
            }
            const uint32_t end = min((step / STOP_GRAIN + 1) * STOP_GRAIN, steps);
            fetch_steps<IS_A>(at, step, end, origin);
            step = end;
        }
    }

    // A producer's i-th tile.
    __device__ __forceinline__ uint32_t next_tile(typename TileBoard<Shape::PAIR>::Position &slot, uint32_t i) const {
        return is_elastic() ? board.next(slot) : counted_tile(i);
    }

    // A stage of one operand: all of this block's rows for this block alone, or this block's half of the shared rows for both.
    template <bool IS_A>
    __device__ __forceinline__ void fetch(uint32_t stage, uint32_t step, const TileOrigin &origin) const {
        constexpr uint32_t ROWS = IS_A ? Shape::BLOCK_M : Shape::BLOCK_N, HALF = ROWS / Shape::PAIR;
        const uint32_t barrier = full + stage * 8;
        const TensorMap &map = IS_A ? all.a : all.b;
        const uint32_t row = IS_A ? origin.row : origin.col;
        if (elect_one()) {
            mbarrier_arrive_expect(barrier, Shape::K_BLOCKS * ROWS * 128);
#pragma unroll
            for (uint32_t block = 0; block < Shape::K_BLOCKS; ++block) {
                const uint32_t target = stages + stage * Shape::STAGE_BYTES + (IS_A ? 0 : Shape::K_BLOCKS * Shape::A_BYTES) + block * ROWS * 128;
                const uint32_t column = (step * Shape::K_BLOCKS + block) * 64;
                if (Shape::PAIR > 1 && IS_A == (all.shares_a != 0)) {
                    tma_load_multicast(target + rank * HALF * 128, map, barrier, column, row + rank * HALF, (1 << Shape::PAIR) - 1);
                } else {
                    tma_load(target, map, barrier, column, row);
                }
            }
        }
        __syncwarp();
    }

    // One warpgroup: all of its tiles.
    __device__ void consume(uint32_t consumer) const {
        const uint32_t thread = threadIdx.x % 128;
        RingPosition<Shape::STAGES> at;
        typename TileBoard<Shape::PAIR>::Position slot;
        const bool knows_first = this->knows_first();
        if (Shape::PING_PONG && consumer == 1) {
            skip(at);
            if (!knows_first) slot.advance();
        }
        uint32_t broken_off = 0;
        for (uint32_t round = 0;; ++round) {
            const uint32_t nth = Shape::PING_PONG ? 2 * round + consumer : round;
            const bool from_board = is_elastic() && (nth > 0 || !knows_first);
            const uint32_t tile = from_board ? board.next(slot) : counted_tile(nth);
            if (Shape::PING_PONG) slot.advance();
            if (tile >= tiles.count) break;
            const uint32_t first_row = Shape::SHARERS > 1 ? consumer * Shape::CONSUMER_M : 0;
            const WarpgroupPart part = {origin_of(tile), first_row, consumer, round, broken_off, thread};
            epilogue.read_bias(part);
            if (round == 0) wait_for_earlier_launches();
            epilogue.begin(part);
            // Consumers that take turns: this one's multiplications begin when all of the other's are issued.
            if (Shape::PING_PONG && (round > 0 || consumer > 0)) mbarrier_wait(turn + consumer * 8, (consumer == 0 ? round - 1 : round) & 1);
            float sums[Shape::M_ATOMS][Shape::BLOCK_N / 2];
            // Two loops, so that tiles which are never broken off do not pay for the question.
            if (breaks_off() ? !multiply<true>(sums, at, part) : !multiply<false>(sums, at, part)) {
                epilogue.abandon(part);
                broken_off = 1;
                continue;
            }
            if (Shape::PING_PONG) skip(at);
            epilogue.finish(sums, part);
        }
        if (thread == 0) end();
    }

    // One thread, that issued the stores of its consumer. Whoever reads C next waits for the whole launch, whose end makes its writes visible
    // (griddepcontrol.wait), so it is enough that the copy engine has read the block's memory. Waiting for the writes themselves takes 0.3 to 0.5 us. Only
    // a joiner must: the launch that is waited for is another.
    __device__ __forceinline__ void end() const {
        if (tiles.joins == 0) {
            tma_store_wait_read<0>();
            return;
        }
        tma_store_wait_all();
        __threadfence();
        board.finish();
    }

    // Passes over the stages of a tile that is the other consumer's.
    __device__ __forceinline__ void skip(RingPosition<Shape::STAGES> &at) const {
        const uint32_t stage = at.stage + steps;
        at.parity ^= stage / Shape::STAGES & 1;
        at.stage = stage % Shape::STAGES;
    }

    // Whether the tile was multiplied to its end. BREAKS_OFF: whether it may be broken off.
    template <bool BREAKS_OFF>
    __device__ __forceinline__ bool multiply(float (&sums)[Shape::M_ATOMS][Shape::BLOCK_N / 2], RingPosition<Shape::STAGES> &at,
                                             const WarpgroupPart &part) const {
        RingPosition<Shape::STAGES> done = at;
        uint32_t step = 0;
#pragma unroll 1
        while (step < steps) {
            // Where the stage lies is known before it is full.
            const uint32_t stage = stages + at.stage * Shape::STAGE_BYTES;
            const uint64_t first_a = wgmma_descriptor(uniform(stage + part.first_row * 128));
            const uint64_t first_b = wgmma_descriptor(uniform(stage + Shape::K_BLOCKS * Shape::A_BYTES));
            mbarrier_wait(full + at.stage * 8, at.parity);
            wgmma_fence();
#pragma unroll
            for (int block = 0; block < Shape::K_BLOCKS; ++block) {
#pragma unroll
                for (int slice = 0; slice < 4; ++slice) {
#pragma unroll
                    for (int atom = 0; atom < Shape::M_ATOMS; ++atom) {
                        wgmma_m64k16<Shape::BLOCK_N>(sums[atom], wgmma_descriptor_at(first_a, block * Shape::A_BYTES + atom * 64 * 128 + slice * 32),
                                                     wgmma_descriptor_at(first_b, block * Shape::B_BYTES + slice * 32), block + slice > 0 || step > 0);
                    }
                }
            }
            wgmma_commit();
            at.advance();
            ++step;
            // Asked while the multiplications run, so that none waits for the answer.
            const bool stops = BREAKS_OFF && step % STOP_GRAIN == 0 && board.stops_after(part.round, step);
            // One step's multiplications are under way while the next are issued. Two, for small tiles, would keep a stage that the copy engine could fill. Sooner
            // than this, where the next stage has not come yet, would be better still, but the four warps would have to agree on it (docs/kernels/gemm.md).
            if (step > 1) {
                wgmma_wait<1>();
                release(done, part.thread);
            }
            if (stops) break;
        }
        if (Shape::PING_PONG && part.thread == 0) mbarrier_arrive(turn + (part.consumer ^ 1) * 8);
        wgmma_wait<0>();
        while (done.stage != at.stage || done.parity != at.parity) release(done, part.thread);
        return !BREAKS_OFF || step == steps;
    }

    // Lets either block's producer write the stage again, since either writes to both.
    __device__ __forceinline__ void release(RingPosition<Shape::STAGES> &stage, uint32_t thread) const {
        if (Shape::PAIR == 1 && thread == 0) mbarrier_arrive(empty + stage.stage * 8);
        if (Shape::PAIR > 1 && thread < Shape::PAIR) mbarrier_arrive_in_cluster(in_block(empty + stage.stage * 8, thread));
        stage.advance();
    }

};

template <typename Shape, int EPILOGUE>
__device__ __forceinline__ void gemm_warpgroup(const WarpgroupGemmArgs &args, const Tiles &tiles) {
    extern __shared__ __align__(128) uint8_t shared[];
    const WarpgroupGemm<Shape, EPILOGUE> gemm(args, tiles, shared);
    if (threadIdx.x == 0) {
        tma_prefetch(args.a);
        tma_prefetch(args.b);
        tma_prefetch(args.c);
        gemm.initialise_barriers();
    }
    const uint32_t warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32;
    const bool takes_tiles = warp == 2 && gemm.is_elastic();
    if (takes_tiles) gemm.acquaintance.introduce(tiles);
    gemm.meet();
    if (warpgroup == 0) {
        if (Shape::MOVES_REGISTERS) registers_shrink<40>();
        if (warp == 0) gemm.template produce<true>();
        if (warp == 1) gemm.template produce<false>();
        if (takes_tiles && threadIdx.x % 32 == 0) gemm.take_tiles();
    } else {
        if (Shape::MOVES_REGISTERS) registers_grow<232>();
        gemm.consume(warpgroup - 1);
    }
    // Neither block may end while the other still writes to its memory.
    if (Shape::PAIR > 1) cluster_barrier();
}

#else

// Other architectures have neither wgmma nor pairs of blocks; the host never launches these kernels there.
template <typename Shape, int EPILOGUE>
__device__ __forceinline__ void gemm_warpgroup(const WarpgroupGemmArgs &, const Tiles &) {}

#endif

// Entry points gemm_warpgroup_<tile>_<epilogue>(WarpgroupGemmArgs, Tiles) of one shape. Only blocks that work in pairs are launched as clusters: a cluster of
// one is a cluster to whoever places it, and has nothing to gain from that.
#if __CUDA_ARCH_FEAT_SM90_ALL
#define IN_PAIRS __cluster_dims__(2)
#else
#define IN_PAIRS
#endif

#define GEMM_WARPGROUP_KERNEL(LAUNCHED, TILE, SHAPE, NAME, EPILOGUE)                                                                          \
    extern "C" __global__ void LAUNCHED __launch_bounds__(SHAPE::THREADS, SHAPE::BLOCKS_PER_SM)                                               \
        gemm_warpgroup_##TILE##_##NAME(const __grid_constant__ WarpgroupGemmArgs args, const __grid_constant__ Tiles tiles) {                 \
        gemm_warpgroup<SHAPE, EPILOGUE>(args, tiles);                                                                                        \
    }
#define GEMM_WARPGROUP_ENTRY(TILE, SHAPE, NAME, EPILOGUE)                                                                                    \
    static_assert(SHAPE::PAIR == 1, "its entries are GEMM_WARPGROUP_PAIR_ENTRIES");                                                           \
    GEMM_WARPGROUP_KERNEL(, TILE, SHAPE, NAME, EPILOGUE)
#define GEMM_WARPGROUP_PAIR_ENTRY(TILE, SHAPE, NAME, EPILOGUE) GEMM_WARPGROUP_KERNEL(IN_PAIRS, TILE, SHAPE, NAME, EPILOGUE)

#define GEMM_WARPGROUP_ENTRIES(TILE, SHAPE) GEMM_WITH_EACH_EPILOGUE(GEMM_WARPGROUP_ENTRY, TILE, SHAPE)
#define GEMM_WARPGROUP_PAIR_ENTRIES(TILE, SHAPE) GEMM_WITH_EACH_EPILOGUE(GEMM_WARPGROUP_PAIR_ENTRY, TILE, SHAPE)
