// GEMM for few rows of A (decoding: one row per sequence):  C[m, n] = epilogue(A[m, k] * B[n, k]^T), for Hopper
//
// Bound by reading B once, n * k * 2 bytes: what counts is bytes under way, at every moment, on every SM. B goes from memory to shared memory to the tensor
// cores, and no register ever holds any of it: 64 of its rows are wgmma's left operand, and the rows of A, padded to 8, 16, 32 or 64, its columns.
//
//    B [64 * GROUPS rows][k]  ─┐  one producer warp: a ring of STAGES, each 64 * K_BLOCKS columns of k of both, 128-byte swizzled
//    A [ROWS rows][k]         ─┴─> full[s], empty[s] ─> consumers, one warpgroup for each 64 rows of B: sums in registers
//                                                       ─> shared memory, transposed ─> epilogue, four columns of C at a time
//    one more warp takes tiles, where the launch is elastic
//
// A stage's hand-over costs about 300 cycles in the producer and as many in a consumer, whatever its size (docs/kernels/skinny-gemm.md), so stages are large.
// The rows of A beyond m read as zeros and cost nothing; its m rows are read again for every tile, from L2. B is read once, and must not push out of L2
// what other tenants' kernels read again.
//
// Beside other tenants no more bytes are under way than memory needs to be busy: more would only wait there, and whatever else misses L2 would wait behind
// them (docs/kernels/skinny-gemm.md).
//
// A problem with fewer tiles than SMs shares k between the two blocks of a pair: the second sends its sums to the first, which adds them to its own.
//
// With at most 8 rows of A and a k whose halves are those of a pair, one block can do both, for 32 rows of B: these rows at the first half of k and, below
// them, at the second are wgmma's left operand, A's rows at both halves its columns. Of the product only the two quarters count whose halves agree; the others
// cost nothing, since bytes are the bound. Nobody meets a partner, sends to it or waits for it.
//
// Rows of A may be normed on the way, as a decoder does before it projects: with the norm's weight in B already, rms_norm(a) * b^T is (a * b^T) divided by the
// root of the mean of a's squares. A passes through shared memory anyway; while the tensor cores multiply a stage, the consumers add up its squares, in
// a worker's first tile alone, since A is the same in all. Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4.
//
// The columns of a product may be heads of queries, keys and values, which the epilogue rotates and writes to where attention reads them (heads.cuh). Those
// kernels are compiled apart, and differ in which rows of B are a tile, and in what is done to the sums.
//
// Bits: a sum is added up in the order of k, in two halves where k is shared, which follows from the problem alone; STAGES, the grid, who takes which tile,
// and whether two blocks do the halves or one have no influence. The same holds for the squares, each thread's in the order of k.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "abi.h"
#include "elastic.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/heads.cuh"
#include "gemm/tile_board.cuh"
#include "ptx/cluster.cuh"
#include "ptx/elect.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

// kernels/gemm/skinny.rs holds the same figures for the host.
template <int ROWS_, int PAIR_, int GROUPS_, int K_BLOCKS_, int STAGES_, int BLOCKS_PER_SM_, int PARTS_ = 1>
struct SkinnyShape {
    static constexpr int ROWS = ROWS_;          // of A
    static constexpr int PAIR = PAIR_;          // blocks that share k: 1 or 2
    static constexpr int GROUPS = GROUPS_;      // consumers, each with 64 rows of B
    static constexpr int K_BLOCKS = K_BLOCKS_;  // of 64 columns of k in a stage
    static constexpr int PARTS = PARTS_;        // of k in one multiplication: 1, or 2 halves
    static constexpr int STAGES = STAGES_, BLOCKS_PER_SM = BLOCKS_PER_SM_;
    static_assert(PARTS == 1 || (PARTS == 2 && ROWS == 8 && PAIR == 1 && GROUPS == 1));
    static constexpr int SHARES = PAIR * PARTS;  // of k, added up apart
    static constexpr int COLUMNS = 64 / PARTS * GROUPS;  // of C in a tile
    static constexpr int THREADS = 128 * GROUPS + 64;
    static constexpr int B_BYTES = 64 * GROUPS * 128, A_BYTES = PARTS * ROWS * 128, STAGE_BYTES = K_BLOCKS * (A_BYTES + B_BYTES);
    // Of one row of A, in floats: eight rows' quads then lie in different banks.
    static constexpr int SUMS_PITCH = 64 + 4, GROUP_SUMS_BYTES = ROWS * SUMS_PITCH * 4;
    // A consumer's sums of squares of a share of k, each of eight threads: sum i is of row i % ROWS of A.
    static constexpr int SQUARES = ROWS > 16 ? ROWS : 16, GROUP_SQUARES_BYTES = SHARES * SQUARES * 4;
    static constexpr int BARRIERS = 2 * STAGES + 2;
    // The first 1024 align the rest: swizzle patterns begin at multiples of it.
    static constexpr int SHARED_BYTES =
        1024 + STAGES * STAGE_BYTES + GROUPS * (GROUP_SUMS_BYTES + GROUP_SQUARES_BYTES) + BARRIERS * 8 + TILE_BOARD_BYTES + ACQUAINTANCE_BYTES;
    static_assert(SHARED_BYTES <= 228 * 1024 / BLOCKS_PER_SM - 1024);
};

#if __CUDA_ARCH_FEAT_SM90_ALL

// ROTATES: columns are heads.
template <typename Shape, bool ROTATES>
struct SkinnyGemm {
    static constexpr int REGISTERS = Shape::ROWS / 2;  // of a thread's sums
    static constexpr uint32_t STAGE_K = 64 * Shape::K_BLOCKS;
    // Pairs cut k at a multiple of this, whatever their stages.
    static constexpr uint32_t SHARE_K = 256;
    static_assert(Shape::PAIR == 1 || SHARE_K % STAGE_K == 0);
    // Of a stage's rows of A, in units of 16 bytes, a thread squares every 128th: one row's, or two rows' in turn. With halves of k these two are one row at
    // even and at odd blocks of k, which a pair's threads add up apart.
    static constexpr int CHUNKS = Shape::K_BLOCKS * Shape::PARTS * Shape::ROWS / 16, SQUARED_ROWS = Shape::PARTS * Shape::SQUARES / 16;
    using Squares = float2[SQUARED_ROWS];
    // A consumer's columns of C, in quads, and how many rows of these its threads do at a time.
    static constexpr uint32_t GROUP_COLUMNS = 64 / Shape::PARTS, QUADS = GROUP_COLUMNS / 4, QUAD_ROWS = 128 / QUADS;
    // Whether a thread has its residual beforehand: it does one quad of a tile at most, and no other block makes use of the SM while it would wait.
    static constexpr bool KNOWS_RESIDUAL = !ROTATES && Shape::ROWS <= QUAD_ROWS && Shape::BLOCKS_PER_SM == 1;
    // Whether a thread asks for the residuals of all its quads of a tile before it wants the first: of 64 rows it has eight, and would wait for each in turn.
    static constexpr bool COLLECTS_RESIDUALS = !ROTATES && Shape::ROWS > 32;
    static constexpr int COLLECTED = COLLECTS_RESIDUALS ? Shape::ROWS / QUAD_ROWS : 1;
    // Whether consumers rehearse: before their first round they go through a tile of whatever shared memory holds, while the launch before still runs, and drop the
    // result. An SM that ran other kernels since must fetch the instructions first, each when it is wanted. Not where columns are heads: in a decoder some of those
    // blocks find room only when the launch before has ended, and would rehearse instead of working.
    static constexpr bool REHEARSES = Shape::ROWS == 8 && !ROTATES;
    static constexpr int32_t REHEARSAL = -1;
    // Cycles in which what was asked for arrives while memory is busy.
    static constexpr uint32_t LATENCY = 2600;
    // Where the rows of B of a tile begin, for each copy that brings some of them: a head's lower and upper halves are two places for the copy engine, but one
    // copy.
    static constexpr int COPIES = ROTATES ? Shape::GROUPS : 1;
    // Halves of heads, and halves of k, are dimensions of B's after these two, each from 0.
    static constexpr int B_HALVED = (ROTATES ? 1 : 0) + (Shape::PARTS > 1 ? 1 : 0);
    static constexpr int TILE_PAIRS = 32 / Shape::PARTS;  // of a head
    struct TileRows {
        uint32_t first[COPIES];
    };
    using HeadsIfAny = std::conditional_t<ROTATES, Heads<Shape::ROWS, TILE_PAIRS>, NoHeads>;
    // Whatever the stages, a thread's chunks must be the same.
    static_assert(CHUNKS % SQUARED_ROWS == 0 && Shape::A_BYTES * Shape::K_BLOCKS % (128 * 16) == 0);

    const GemmArgs &args;
    const SkinnyGemmArgs &all;
    const RotaryArgs *const rotary;  // none unless columns are heads
    const Tiles &tiles;
    const uint32_t rank;  // in the pair
    const float inverse_k;
    uint32_t first_k, steps;
    uint32_t stages, sums_place, squares_place, full, empty, landed, landing_free;
    TileBoard<Shape::PAIR> board;
    Acquaintance<Shape::PAIR> acquaintance;

    __device__ SkinnyGemm(const SkinnyGemmArgs &args, const RotaryArgs *rotary, const Tiles &tiles, uint8_t *shared)
        : args(args.gemm),
          all(args),
          rotary(rotary),
          tiles(tiles),
          rank(Shape::PAIR > 1 ? cluster_rank() : 0),
          inverse_k(1.0f / static_cast<float>(args.gemm.k)),
          stages(swizzle_aligned(shared)),
          board(stages + Shape::STAGES * Shape::STAGE_BYTES + Shape::GROUPS * (Shape::GROUP_SUMS_BYTES + Shape::GROUP_SQUARES_BYTES) +
                Shape::BARRIERS * 8),
          acquaintance(stages + Shape::SHARED_BYTES - 1024 - ACQUAINTANCE_BYTES) {
        // That the copy engine counts: with halves, within each.
        const uint32_t k = args.gemm.k / Shape::PARTS;
        const uint32_t share = Shape::PAIR == 1 ? k : (k + Shape::PAIR * SHARE_K - 1) / (Shape::PAIR * SHARE_K) * SHARE_K;
        first_k = rank * share;
        steps = first_k < k ? (min(share, k - first_k) + STAGE_K - 1) / STAGE_K : 0;
        sums_place = stages + Shape::STAGES * Shape::STAGE_BYTES;
        squares_place = sums_place + Shape::GROUPS * Shape::GROUP_SUMS_BYTES;
        full = squares_place + Shape::GROUPS * Shape::GROUP_SQUARES_BYTES;
        empty = full + Shape::STAGES * 8;
        landed = empty + Shape::STAGES * 8;
        landing_free = landed + 8;
    }

    __device__ void initialise_barriers() const {
        for (int i = 0; i < Shape::STAGES; ++i) {
            mbarrier_init(full + i * 8, 1);
            mbarrier_init(empty + i * 8, Shape::GROUPS * 4);
        }
        // The consumers' warps and the producer read, consumers finish.
        board.initialise(Shape::PAIR * (4 * Shape::GROUPS + 1), Shape::PAIR * Shape::GROUPS);
        mbarrier_init(landed, 1);
        mbarrier_init(landing_free, 128 * Shape::GROUPS);
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

    // The worker's i-th tile where everyone can count.
    __device__ uint32_t counted_tile(uint32_t i) const { return blockIdx.x / Shape::PAIR + i * (gridDim.x / Shape::PAIR); }

    // One thread.
    __device__ void take_tiles() const {
        const uint32_t workers = gridDim.x / Shape::PAIR;
        if (rank == 0) {
            TileQueue queue(tiles, blockIdx.x / Shape::PAIR, workers, acquaintance.other_sm());
            queue.poll(acquaintance.holds_its_sms());
            board.take_tiles(queue, workers, tiles.count, 1, knows_first(), false);
        } else {
            board.follow(workers, tiles.count, knows_first(), counted_tile(0));
        }
    }

    // One warp, whose lanes stay together: keeps the ring full, or as much of it under way as may be.
    __device__ void produce() const {
        RingPosition<Shape::STAGES> at, oldest;
        typename TileBoard<Shape::PAIR>::Position slot;
        const bool knows_first = this->knows_first();
        // The tile that this worker would have if all started at one time: somebody will want it soon, and most likely this one.
        if (is_elastic() && !knows_first && args.constant_b) prefetch(counted_tile(0));
        uint32_t done = 0, tile = knows_first ? counted_tile(0) : next_tile(slot, done);
        TileRows rows = rows_of(tile);
        // Weights do not come from an earlier launch, so they need not wait for one.
        const uint32_t ahead = args.constant_b && tile < tiles.count ? min(steps, static_cast<uint32_t>(Shape::STAGES)) : 0;
        if (elect_one()) {
            const uint32_t begun = cycles();
            for (uint32_t step = 0; step < ahead; ++step) {
                // No barrier tells of B alone, so here its arrival is a matter of time.
                if (step >= all.stages_under_way) {
                    const uint32_t due = (step - all.stages_under_way + 1) * (LATENCY / all.stages_under_way);
                    while (cycles() - begun < due) continue;
                }
                mbarrier_expect(full + step * 8, Shape::K_BLOCKS * Shape::B_BYTES);
                fetch_b(step, step, rows);
            }
        }
        __syncwarp();
        wait_for_earlier_launches();
        const uint32_t ask_at = steps > 2 * Shape::STAGES ? steps - 2 * Shape::STAGES : 0;
        uint32_t under_way = 0;
        while (tile < tiles.count) {
            const uint32_t fetched = done == 0 ? ahead : 0;
            // The second block of a pair has no steps where k is short; the first always has some.
            // Few instructions: each is fetched when it is first wanted. Of this loop unrolled, a decoder's step was 1% longer.
#pragma unroll 1
            for (uint32_t step = 0; step < steps; ++step) {
                if (step == ask_at && is_elastic() && rank == 0 && threadIdx.x % 32 == 0) board.ask();
                const bool both = step >= fetched;
                if (both) mbarrier_wait(empty + at.stage * 8, at.parity ^ 1);
                if (all.stages_under_way < Shape::STAGES) make_way(oldest, under_way, both);
                if (elect_one()) {
                    mbarrier_arrive_expect(full + at.stage * 8, both ? Shape::STAGE_BYTES : Shape::K_BLOCKS * Shape::A_BYTES);
                    if (both) fetch_b(at.stage, step, rows);
                    fetch_a(at.stage, step);
                }
                __syncwarp();
                at.advance();
            }
            tile = next_tile(slot, ++done);
            rows = rows_of(tile);
        }
    }

    // Before a stage is asked for: of those before it only the last few are under way, the oldest of them being `oldest`.
    __device__ __forceinline__ void make_way(RingPosition<Shape::STAGES> &oldest, uint32_t &under_way, bool waits) const {
        if (under_way < all.stages_under_way) {
            ++under_way;
            return;
        }
        if (waits) mbarrier_wait(full + oldest.stage * 8, oldest.parity);
        oldest.advance();
    }

    static __device__ __forceinline__ uint32_t cycles() {
        uint32_t now;
        asm volatile("mov.u32 %0, %%clock;" : "=r"(now));
        return now;
    }

    // The i-th tile, for a warp that stays together.
    __device__ __forceinline__ uint32_t next_tile(typename TileBoard<Shape::PAIR>::Position &slot, uint32_t i) const {
        return is_elastic() ? board.next(slot) : counted_tile(i);
    }

    __device__ void prefetch(uint32_t tile) const {
        if (tile < tiles.count && elect_one()) {
            const TileRows rows = rows_of(tile);
            for (uint32_t block = 0; block < min(steps, all.stages_under_way) * Shape::K_BLOCKS; ++block) {
                const uint32_t k = first_k + block * 64;
#pragma unroll
                for (int copy = 0; copy < COPIES; ++copy) {
                    if constexpr (B_HALVED == 0) tma_prefetch_to_l2(all.b, k, rows.first[copy]);
                    if constexpr (B_HALVED == 1) tma_prefetch_to_l2(all.b, k, rows.first[copy], 0);
                    if constexpr (B_HALVED == 2) tma_prefetch_to_l2(all.b, k, rows.first[copy], 0, 0);
                }
            }
        }
        __syncwarp();
    }

    __device__ __forceinline__ void fetch_b(uint32_t stage, uint32_t step, const TileRows &rows) const {
#pragma unroll
        for (int block = 0; block < Shape::K_BLOCKS; ++block) {
            const uint32_t k = first_k + step * STAGE_K + block * 64;
#pragma unroll
            for (int copy = 0; copy < COPIES; ++copy) {
                const uint32_t target = b_place(stage, block) + copy * (Shape::B_BYTES / COPIES);
                if constexpr (B_HALVED == 0) tma_load_once(target, all.b, full + stage * 8, k, rows.first[copy]);
                if constexpr (B_HALVED == 1) tma_load_once(target, all.b, full + stage * 8, k, rows.first[copy], 0);
                if constexpr (B_HALVED == 2) tma_load_once(target, all.b, full + stage * 8, k, rows.first[copy], 0, 0);
            }
        }
    }

    __device__ __forceinline__ TileRows rows_of(uint32_t tile) const {
        TileRows rows;
#pragma unroll
        for (int copy = 0; copy < COPIES; ++copy) {
            rows.first[copy] = ROTATES ? HeadTile<TILE_PAIRS>(*rotary, tile * COPIES + copy).first_row(*rotary) : tile * Shape::COLUMNS;
        }
        return rows;
    }

    // Where k is halved, its blocks are the last dimension, and one copy brings those of a stage.
    __device__ __forceinline__ void fetch_a(uint32_t stage, uint32_t step) const {
        const uint32_t barrier = full + stage * 8, first = first_k + step * STAGE_K;
        if constexpr (Shape::PARTS > 1) {
            tma_load(a_place(stage, 0), all.a, barrier, 0, 0, 0, first / 64);
        } else {
#pragma unroll
            for (int block = 0; block < Shape::K_BLOCKS; ++block) tma_load(a_place(stage, block), all.a, barrier, first + block * 64, 0);
        }
    }

    __device__ __forceinline__ uint32_t b_place(uint32_t stage, int block) const {
        return stages + stage * Shape::STAGE_BYTES + block * Shape::B_BYTES;
    }

    __device__ __forceinline__ uint32_t a_place(uint32_t stage, int block) const {
        return stages + stage * Shape::STAGE_BYTES + Shape::K_BLOCKS * Shape::B_BYTES + block * Shape::A_BYTES;
    }

    // One warpgroup: its 64 rows of B of every tile.
    __device__ void consume(uint32_t group) const {
        const uint32_t thread = threadIdx.x % 128;
        RingPosition<Shape::STAGES> at;
        typename TileBoard<Shape::PAIR>::Position slot;
        HeadsIfAny heads(rotary, args.bias, thread);
        const bool knows_first = this->knows_first();
        if (rank == 0) heads.begin();
        for (int32_t round = REHEARSES ? REHEARSAL : 0;; ++round) {
            const bool rehearses = REHEARSES && round == REHEARSAL;
            const uint32_t tile = rehearses || (knows_first && round == 0) ? counted_tile(0) : next_tile(slot, round);
            if (!rehearses && tile >= tiles.count) break;
            if (rank == 0) heads.expect(tile * Shape::GROUPS + group);
            if (round == 0) {
                // All have read the rehearsal's squares.
                if (REHEARSES) named_barrier(group);
                // The producer waits in any case.
                wait_for_earlier_launches();
            }
            float sums[REGISTERS];
            FourHalves residual = {};
            if (KNOWS_RESIDUAL && !rehearses) know_residual(residual, tile, group, thread);
            // Where tiles are counted, nobody wants room for another one: neither in the ring nor for a partner's sums, and the partner may be gone.
            const bool is_last = !is_elastic() && counted_tile(round + 1) >= tiles.count;
            const bool squares_a = all.norms_rows && round <= 0;
            if (squares_a) {
                Squares squares = {};
                multiply(sums, at, rehearses, is_last, group, thread, [&](uint32_t stage) { add_squares(squares, stage, thread); });
                if (!rehearses || rank == 0) put_squares(squares, group, thread);
            } else {
                multiply(sums, at, rehearses, is_last, group, thread, [](uint32_t) {});
            }
            if (Shape::PAIR > 1 && rank == 1) {
                if (!rehearses) send(sums, round);
            } else {
                if (Shape::PAIR > 1 && !rehearses) receive(sums, round, squares_a);
                finish_tile(sums, residual, tile, rehearses, group, thread, heads);
                if (Shape::PAIR > 1 && !is_last) mbarrier_arrive_in_cluster(in_block(landing_free, 1));
            }
        }
        // A joiner's tiles are waited for by another launch, an owner's by its own end.
        if (tiles.joins != 0) {
            // The queue's fence then stands for the stores of all.
            named_barrier(group);
            if (thread == 0) board.finish();
        }
    }

    // `meanwhile(stage)` is done while the tensor cores multiply the stage, by warps that stay together. A rehearsal is of the first stage, which need not be full.
    template <typename Meanwhile>
    __device__ __forceinline__ void multiply(
        float (&sums)[REGISTERS], RingPosition<Shape::STAGES> &at, bool rehearses, bool is_last, uint32_t group, uint32_t thread, Meanwhile meanwhile) const {
        float products[Shape::PARTS * REGISTERS] = {};
        const uint32_t steps = rehearses ? 1 : this->steps;
        // Stages that nobody wants back are multiplied without a pause.
        const uint32_t kept = rehearses || is_last ? Shape::STAGES : 0;
#pragma unroll 1
        for (uint32_t step = 0; step < steps; ++step) {
            // Where the stage lies is known before it is full.
            const uint32_t stage = uniform(stages + at.stage * Shape::STAGE_BYTES);
            const uint64_t first_b = wgmma_descriptor(stage + (Shape::GROUPS == 1 ? 0 : group) * 64 * 128);
            const uint64_t first_a = wgmma_descriptor(stage + Shape::K_BLOCKS * Shape::B_BYTES);
            if (!rehearses) mbarrier_wait(full + at.stage * 8, at.parity);
            wgmma_fence();
#pragma unroll
            for (int block = 0; block < Shape::K_BLOCKS; ++block) {
#pragma unroll
                for (int slice = 0; slice < 4; ++slice) {
                    const uint64_t b = wgmma_descriptor_at(first_b, block * Shape::B_BYTES + slice * 32);
                    wgmma_m64k16<Shape::PARTS * Shape::ROWS>(products, b, wgmma_descriptor_at(first_a, block * Shape::A_BYTES + slice * 32), true);
                }
            }
            wgmma_commit();
            meanwhile(at.stage);
            // At once, not a step later as where arithmetic is the bound: the stage is wanted for bytes.
            if (step + kept < steps) {
                wgmma_wait<0>();
                if (thread % 32 == 0) mbarrier_arrive(empty + at.stage * 8);
            }
            if (!rehearses) at.advance();
        }
        wgmma_wait<0>();
        // Warps 2 and 3 have the second half's rows of B, and so want its columns.
        const bool second = Shape::PARTS > 1 && thread >= 64;
#pragma unroll
        for (int i = 0; i < REGISTERS; ++i) sums[i] = second ? products[(Shape::PARTS - 1) * REGISTERS + i] : products[i];
    }

    // The swizzle moves elements within their row only, so whose squares a thread adds up follows from the place alone.
    __device__ __forceinline__ void add_squares(Squares &squares, uint32_t stage, uint32_t thread) const {
#pragma unroll
        for (int i = 0; i < CHUNKS; ++i) {
            const uint4 chunk = load_chunk(a_place(stage, 0) + (i * 128 + thread) * 16);
            const __half2 *pairs = reinterpret_cast<const __half2 *>(&chunk);
            float2 &mine = squares[i % SQUARED_ROWS];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 pair = __half22float2(pairs[j]);
                mine.x = __fmaf_rn(pair.x, pair.x, mine.x);
                mine.y = __fmaf_rn(pair.y, pair.y, mine.y);
            }
        }
        // The stage may then be given back by one lane.
        __syncwarp();
    }

    // Adds up the squares of eight threads, which all have the same rows, and leaves them in the first block's shared memory.
    __device__ __forceinline__ void put_squares(const Squares &squares, uint32_t group, uint32_t thread) const {
#pragma unroll
        for (int i = 0; i < SQUARED_ROWS; ++i) {
            float sum = squares[i].x + squares[i].y;
#pragma unroll
            for (int distance = 1; distance < 8; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
            if (thread % 8 != 0) continue;
            constexpr uint32_t AT_ONCE = 16 / Shape::PARTS;
            const uint32_t share = Shape::PARTS > 1 ? thread / 64 : rank, sum_of_share = i * AT_ONCE + thread / 8 % AT_ONCE;
            const uint32_t target = squares_place + group * Shape::GROUP_SQUARES_BYTES + (share * Shape::SQUARES + sum_of_share) * 4;
            if (rank == 0) {
                asm volatile("st.shared.f32 [%0], %1;" ::"r"(target), "f"(sum) : "memory");
            } else {
                store_async(in_block(target, 0), __float_as_uint(sum), in_block(landed, 0));
            }
        }
    }

    // What norms row `row` of A, when all shares' squares are there: 1 over the root of their mean.
    __device__ __forceinline__ float norm_of_row(uint32_t group, uint32_t row) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < Shape::SHARES * Shape::SQUARES; i += Shape::ROWS) {
            float squares;
            const uint32_t place = squares_place + group * Shape::GROUP_SQUARES_BYTES + (row + i) * 4;
            asm volatile("ld.shared.f32 %0, [%1];" : "=f"(squares) : "r"(place) : "memory");
            sum += squares;
        }
        return rsqrtf(__fmaf_rn(sum, inverse_k, all.epsilon));
    }

    // Where four of a thread's sums go from the second block to the first: to the same thread there.
    static __device__ __forceinline__ uint32_t landing_offset(int i) {
        return threadIdx.x / 128 * Shape::GROUP_SUMS_BYTES + (i / 4 * 128 + threadIdx.x % 128) * 16;
    }

    __device__ __forceinline__ void send(const float (&sums)[REGISTERS], uint32_t round) const {
        // A rehearsal frees it as a round does.
        mbarrier_wait(landing_free, (round & 1) ^ (REHEARSES ? 0 : 1));
        const uint32_t target = in_block(sums_place, 0), barrier = in_block(landed, 0);
#pragma unroll
        for (int i = 0; i < REGISTERS; i += 4) {
            store_async(target + landing_offset(i), make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]), barrier);
        }
    }

    __device__ __forceinline__ void receive(float (&sums)[REGISTERS], uint32_t round, bool with_squares) const {
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect(landed, Shape::COLUMNS * Shape::ROWS * 4 + (with_squares ? Shape::GROUPS * Shape::SQUARES * 4 : 0));
        }
        mbarrier_wait(landed, round & 1);
#pragma unroll
        for (int i = 0; i < REGISTERS; i += 4) {
            const float4 other = load_sums(sums_place + landing_offset(i));
            sums[i] += other.x;
            sums[i + 1] += other.y;
            sums[i + 2] += other.z;
            sums[i + 3] += other.w;
        }
    }

    // Earlier launches wrote the residual, so it is as far away as memory, and is wanted the moment the sums are there.
    __device__ __forceinline__ void know_residual(FourHalves &residual, uint32_t tile, uint32_t group, uint32_t thread) const {
        const uint32_t row = thread / QUADS, column = first_column(tile, group, thread);
        if (has_residual(args.epilogue) && rank == 0 && row < args.m && column < args.n) residual = load_residual(args, row, column);
    }

    // Of whole quads. All are asked for before the first is put into local memory, from where a loop that is not unrolled can take them: straight on, without a
    // branch between two, at the end of which the one would be waited for. Rows that A does not have stand for its last.
    __device__ __forceinline__ void collect_residuals(uint2 (&collected)[COLLECTED], uint32_t column, uint32_t thread) const {
        uint2 arriving[COLLECTED];
#pragma unroll
        for (int i = 0; i < COLLECTED; ++i) {
            const uint32_t row = min(thread / QUADS + i * QUAD_ROWS, args.m - 1);
            const __half *source = reinterpret_cast<const __half *>(args.residual) + static_cast<uint64_t>(row) * args.ld_residual + column;
            arriving[i] = *reinterpret_cast<const uint2 *>(source);
        }
#pragma unroll
        for (int i = 0; i < COLLECTED; ++i) collected[i] = arriving[i];
    }

    // Of the quads of C that a consumer's thread does.
    static __device__ __forceinline__ uint32_t first_column(uint32_t tile, uint32_t group, uint32_t thread) {
        return tile * Shape::COLUMNS + group * GROUP_COLUMNS + thread % QUADS * 4;
    }

    // Sums lie as the product does, 64 rows of B by ROWS of A; C wants the converse.
    __device__ __forceinline__ void finish_tile(
        const float (&sums)[REGISTERS], const FourHalves &residual, uint32_t tile, bool rehearses, uint32_t group, uint32_t thread,
        const HeadsIfAny &heads) const {
        const uint32_t lane = thread % 32, column = thread / 32 * 16 + lane / 4, row = lane % 4 * 2;
        const uint32_t place = sums_place + group * Shape::GROUP_SUMS_BYTES;
        const uint32_t quad = thread % QUADS * 4, c_column = first_column(tile, group, thread);
        const bool collects = COLLECTS_RESIDUALS && has_residual(args.epilogue) && args.vectorised && c_column + 4 <= args.n;
        uint2 collected[COLLECTED];
        if (collects) collect_residuals(collected, c_column, thread);
        // The last tile's sums, and those that landed, have been read.
        named_barrier(group);
#pragma unroll
        for (int i = 0; i < REGISTERS; ++i) {
            const uint32_t target = place + ((i / 4 * 8 + row + i % 2) * Shape::SUMS_PITCH + column + i / 2 % 2 * 8) * 4;
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(target), "f"(sums[i]) : "memory");
        }
        named_barrier(group);
        if constexpr (ROTATES) {
#pragma unroll HeadsIfAny::UNROLLED
            for (int pass = 0; pass < HeadsIfAny::PASSES; ++pass) {
                const uint32_t a_row = heads.row(pass), pair = place + (a_row * Shape::SUMS_PITCH + heads.pair()) * 4;
                if (a_row >= args.m) break;
                const float norm = all.norms_rows ? norm_of_row(group, a_row) : 1.0f;
                float2 low = load_pair(pair), high = load_pair(pair + TILE_PAIRS * 4);
                if constexpr (Shape::PARTS > 1) {
                    const float2 other_low = load_pair(pair + 2 * TILE_PAIRS * 4), other_high = load_pair(pair + 3 * TILE_PAIRS * 4);
                    low = make_float2(low.x + other_low.x, low.y + other_low.y);
                    high = make_float2(high.x + other_high.x, high.y + other_high.y);
                }
                heads.finish(pass, make_float2(low.x * norm, low.y * norm), make_float2(high.x * norm, high.y * norm));
            }
        } else {
#pragma unroll 1
            for (uint32_t a_row = thread / QUADS; a_row < args.m; a_row += QUAD_ROWS) {
                float4 total = load_sums(place + (a_row * Shape::SUMS_PITCH + quad) * 4);
                if constexpr (Shape::PARTS > 1) {
                    const float4 other = load_sums(place + (a_row * Shape::SUMS_PITCH + GROUP_COLUMNS + quad) * 4);
                    total = make_float4(total.x + other.x, total.y + other.y, total.z + other.z, total.w + other.w);
                }
                if (all.norms_rows) {
                    const float norm = norm_of_row(group, a_row);
                    total = make_float4(total.x * norm, total.y * norm, total.z * norm, total.w * norm);
                }
                const auto residual_of = [&] {
                    if (KNOWS_RESIDUAL || rehearses) return residual;
                    if (collects) return reinterpret_cast<const FourHalves &>(collected[a_row / QUAD_ROWS % COLLECTED]);
                    return load_residual(args, a_row, c_column);
                };
                finish<ANY_EPILOGUE>(args, a_row, c_column, total, residual_of, rehearses);
            }
        }
    }

    static __device__ __forceinline__ float2 load_pair(uint32_t place) {
        float2 pair;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(place) : "memory");
        return pair;
    }

    static __device__ __forceinline__ float4 load_sums(uint32_t place) {
        float4 sums;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(sums.x), "=f"(sums.y), "=f"(sums.z), "=f"(sums.w) : "r"(place) : "memory");
        return sums;
    }

    static __device__ __forceinline__ uint4 load_chunk(uint32_t place) {
        uint4 chunk;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(chunk.x), "=r"(chunk.y), "=r"(chunk.z), "=r"(chunk.w) : "r"(place) : "memory");
        return chunk;
    }

    // All threads of one consumer meet. Barrier 0 is the block's.
    static __device__ __forceinline__ void named_barrier(uint32_t group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }
};

template <typename Shape, bool ROTATES>
__device__ __forceinline__ void gemm_skinny(const SkinnyGemmArgs &args, const RotaryArgs *rotary, const Tiles &tiles) {
    extern __shared__ __align__(128) uint8_t shared[];
    const SkinnyGemm<Shape, ROTATES> gemm(args, rotary, tiles, shared);
    // The next launch's weights can be under way while this one finishes.
    if (!gemm.is_elastic()) let_next_launch_come();
    if (threadIdx.x == 0) {
        tma_prefetch(args.a);
        tma_prefetch(args.b);
        gemm.initialise_barriers();
    }
    const uint32_t warp = threadIdx.x / 32;
    const bool takes_tiles = warp == 4 * Shape::GROUPS + 1 && gemm.is_elastic();
    if (takes_tiles) gemm.acquaintance.introduce(tiles);
    gemm.meet();
    if (warp < 4 * Shape::GROUPS) {
        gemm.consume(warp / 4);
    } else if (warp == 4 * Shape::GROUPS) {
        gemm.produce();
    } else if (takes_tiles && threadIdx.x % 32 == 0) {
        gemm.take_tiles();
    }
    // Neither block may end while the other still writes to its memory. Where tiles are counted, neither does: the first waits for all that is sent to it, and
    // the second is sent nothing in the last round. Their meeting would be a fence after the last stores, 0.6 us.
    if (Shape::PAIR > 1 && gemm.is_elastic()) cluster_barrier();
}

#else

// Other architectures have neither wgmma nor pairs of blocks; the host never launches these kernels there.
template <typename Shape, bool ROTATES>
__device__ __forceinline__ void gemm_skinny(const SkinnyGemmArgs &, const RotaryArgs *, const Tiles &) {}

#endif
