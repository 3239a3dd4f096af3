// GEMM for few rows of A (decoding: one row per sequence):  C[m, n] = epilogue(A[m, k] * B[n, k]^T), for Hopper
//
// Bound by reading B once, n * k * 2 bytes: what counts is bytes under way, at every moment, on every SM. B goes from memory to shared memory to the tensor
// cores, and no register ever holds any of it: 64 of its rows are wgmma's left operand, and the rows of A, padded to 8, 16 or 32, its columns.
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
// A problem with fewer tiles than SMs shares k between the two blocks of a pair: the second sends its sums to the first, which adds them to its own.
//
// Bits: a sum is added up in the order of k, in two halves where blocks work in pairs, which follows from the problem alone; STAGES, the grid and who takes
// which tile have no influence.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "abi.h"
#include "elastic.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/tile_board.cuh"
#include "ptx/cluster.cuh"
#include "ptx/elect.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

// kernels/gemm/skinny.rs holds the same figures for the host.
template <int ROWS_, int PAIR_, int GROUPS_, int K_BLOCKS_, int STAGES_, int BLOCKS_PER_SM_>
struct SkinnyShape {
    static constexpr int ROWS = ROWS_;          // of A
    static constexpr int PAIR = PAIR_;          // blocks that share k: 1 or 2
    static constexpr int GROUPS = GROUPS_;      // consumers, each with 64 rows of B
    static constexpr int K_BLOCKS = K_BLOCKS_;  // of 64 columns of k in a stage
    static constexpr int STAGES = STAGES_, BLOCKS_PER_SM = BLOCKS_PER_SM_;
    static constexpr int COLUMNS = 64 * GROUPS;  // of C in a tile
    static constexpr int THREADS = 128 * GROUPS + 64;
    static constexpr int B_BYTES = COLUMNS * 128, A_BYTES = ROWS * 128, STAGE_BYTES = K_BLOCKS * (A_BYTES + B_BYTES);
    // Of one row of A, in floats: eight rows' quads then lie in different banks.
    static constexpr int SUMS_PITCH = 64 + 4, GROUP_SUMS_BYTES = ROWS * SUMS_PITCH * 4;
    static constexpr int BARRIERS = 2 * STAGES + 2;
    // The first 1024 align the rest: swizzle patterns begin at multiples of it.
    static constexpr int SHARED_BYTES = 1024 + STAGES * STAGE_BYTES + GROUPS * GROUP_SUMS_BYTES + BARRIERS * 8 + TILE_BOARD_BYTES + 8;
    static_assert(SHARED_BYTES <= 228 * 1024 / BLOCKS_PER_SM - 1024);
};

#if __CUDA_ARCH_FEAT_SM90_ALL

template <typename Shape>
struct SkinnyGemm {
    static constexpr int REGISTERS = Shape::ROWS / 2;  // of a thread's sums
    static constexpr uint32_t STAGE_K = 64 * Shape::K_BLOCKS;
    // Pairs cut k at a multiple of this, whatever their stages.
    static constexpr uint32_t SHARE_K = 256;
    static_assert(Shape::PAIR == 1 || SHARE_K % STAGE_K == 0);

    const GemmArgs &args;
    const SkinnyGemmArgs &all;
    const Tiles &tiles;
    const uint32_t rank;  // in the pair
    uint32_t first_k, steps;
    uint32_t stages, sums_place, full, empty, landed, landing_free, my_sm;
    TileBoard<Shape::PAIR> board;

    __device__ SkinnyGemm(const SkinnyGemmArgs &args, const Tiles &tiles, uint8_t *shared)
        : args(args.gemm),
          all(args),
          tiles(tiles),
          rank(Shape::PAIR > 1 ? cluster_rank() : 0),
          stages(swizzle_aligned(shared)),
          board(stages + Shape::STAGES * Shape::STAGE_BYTES + Shape::GROUPS * Shape::GROUP_SUMS_BYTES + Shape::BARRIERS * 8) {
        const uint32_t k = args.gemm.k;
        const uint32_t share = Shape::PAIR == 1 ? k : (k + Shape::PAIR * SHARE_K - 1) / (Shape::PAIR * SHARE_K) * SHARE_K;
        first_k = rank * share;
        steps = first_k < k ? (min(share, k - first_k) + STAGE_K - 1) / STAGE_K : 0;
        sums_place = stages + Shape::STAGES * Shape::STAGE_BYTES;
        full = sums_place + Shape::GROUPS * Shape::GROUP_SUMS_BYTES;
        empty = full + Shape::STAGES * 8;
        landed = empty + Shape::STAGES * 8;
        landing_free = landed + 8;
        my_sm = landing_free + 8 + TILE_BOARD_BYTES;
    }

    __device__ void initialise_barriers() const {
        for (int i = 0; i < Shape::STAGES; ++i) {
            mbarrier_init(full + i * 8, 1);
            mbarrier_init(empty + i * 8, Shape::GROUPS);
        }
        // Consumers and producers read, consumers finish.
        board.initialise(Shape::PAIR * (Shape::GROUPS + 1), Shape::PAIR * Shape::GROUPS);
        mbarrier_init(landed, 1);
        mbarrier_init(landing_free, 128 * Shape::GROUPS);
        mbarrier_init_fence();
    }

    // Waits until both blocks have come this far.
    __device__ void meet() const {
        if (Shape::PAIR == 1) {
            __syncthreads();
            return;
        }
        if (threadIdx.x == 0) asm volatile("st.shared.u32 [%0], %1;" ::"r"(my_sm), "r"(sm_id()) : "memory");
        cluster_barrier();
    }

    __device__ uint32_t partner_sm() const { return Shape::PAIR == 1 ? sm_id() : load_in_cluster(in_block(my_sm, 1 - rank)); }

    __device__ bool is_elastic() const { return tiles.progress != 0; }

    // The worker's i-th tile where everyone can count.
    __device__ uint32_t counted_tile(uint32_t i) const { return blockIdx.x / Shape::PAIR + i * (gridDim.x / Shape::PAIR); }

    // One thread.
    __device__ void take_tiles() const {
        const uint32_t workers = gridDim.x / Shape::PAIR;
        if (rank == 0) {
            TileQueue queue(tiles, blockIdx.x / Shape::PAIR, workers, partner_sm());
            board.take_tiles(queue, workers, tiles.count, 1);
        } else {
            board.follow(workers, tiles.count);
        }
    }

    // One warp, whose lanes stay together: keeps the ring full.
    __device__ void produce() const {
        RingPosition<Shape::STAGES> at;
        typename TileBoard<Shape::PAIR>::Position slot;
        // The tile that this worker would have if all started at one time: somebody will want it soon.
        if (is_elastic() && args.constant_b) prefetch(counted_tile(0));
        uint32_t done = 0, tile = next_tile(slot, done);
        // Weights do not come from an earlier launch, so they need not wait for one.
        const uint32_t ahead = args.constant_b && tile < tiles.count ? min(steps, static_cast<uint32_t>(Shape::STAGES)) : 0;
        if (elect_one()) {
            for (uint32_t step = 0; step < ahead; ++step) {
                mbarrier_expect(full + step * 8, Shape::K_BLOCKS * Shape::B_BYTES);
                fetch_b(step, step, tile);
            }
        }
        __syncwarp();
        wait_for_earlier_launches();
        const uint32_t ask_at = steps > 2 * Shape::STAGES ? steps - 2 * Shape::STAGES : 0;
        while (tile < tiles.count) {
            const uint32_t fetched = done == 0 ? ahead : 0;
            // The second block of a pair has no steps where k is short; the first always has some.
            for (uint32_t step = 0; step < steps; ++step) {
                if (step == ask_at && is_elastic() && rank == 0 && threadIdx.x % 32 == 0) board.ask();
                if (step >= fetched) mbarrier_wait(empty + at.stage * 8, at.parity ^ 1);
                if (elect_one()) {
                    const bool both = step >= fetched;
                    mbarrier_arrive_expect(full + at.stage * 8, both ? Shape::STAGE_BYTES : Shape::K_BLOCKS * Shape::A_BYTES);
                    if (both) fetch_b(at.stage, step, tile);
                    fetch_a(at.stage, step);
                }
                __syncwarp();
                at.advance();
            }
            tile = next_tile(slot, ++done);
        }
    }

    // The producer's i-th tile.
    __device__ __forceinline__ uint32_t next_tile(typename TileBoard<Shape::PAIR>::Position &slot, uint32_t i) const {
        return is_elastic() ? board.next(slot) : counted_tile(i);
    }

    __device__ void prefetch(uint32_t tile) const {
        if (tile < tiles.count && elect_one()) {
            for (uint32_t block = 0; block < min(steps, static_cast<uint32_t>(Shape::STAGES)) * Shape::K_BLOCKS; ++block) {
                tma_prefetch_to_l2(all.b, first_k + block * 64, tile * Shape::COLUMNS);
            }
        }
        __syncwarp();
    }

    __device__ __forceinline__ void fetch_b(uint32_t stage, uint32_t step, uint32_t tile) const {
#pragma unroll
        for (int block = 0; block < Shape::K_BLOCKS; ++block) {
            tma_load_once(b_place(stage, block), all.b, full + stage * 8, first_k + step * STAGE_K + block * 64, tile * Shape::COLUMNS);
        }
    }

    __device__ __forceinline__ void fetch_a(uint32_t stage, uint32_t step) const {
#pragma unroll
        for (int block = 0; block < Shape::K_BLOCKS; ++block) {
            tma_load(a_place(stage, block), all.a, full + stage * 8, first_k + step * STAGE_K + block * 64, 0);
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
        wait_for_earlier_launches();
        for (uint32_t round = 0;; ++round) {
            uint32_t tile = counted_tile(round);
            if (is_elastic()) {
                tile = board.read(slot);
                named_barrier(group);
                if (thread == 0) board.release(slot);
                slot.advance();
            }
            if (tile >= tiles.count) break;
            float sums[REGISTERS] = {};
            multiply(sums, at, group, thread);
            if (Shape::PAIR > 1 && rank == 1) {
                send(sums, round);
            } else {
                if (Shape::PAIR > 1) receive(sums, round);
                finish_tile(sums, tile, group, thread);
            }
        }
        if (is_elastic()) {
            // The queue's fence then stands for the stores of all.
            named_barrier(group);
            if (thread == 0) board.finish();
        }
    }

    __device__ __forceinline__ void multiply(float (&sums)[REGISTERS], RingPosition<Shape::STAGES> &at, uint32_t group, uint32_t thread) const {
#pragma unroll 1
        for (uint32_t step = 0; step < steps; ++step) {
            mbarrier_wait(full + at.stage * 8, at.parity);
            wgmma_fence();
#pragma unroll
            for (int block = 0; block < Shape::K_BLOCKS; ++block) {
                const uint64_t b = wgmma_descriptor(b_place(at.stage, block) + group * 64 * 128), a = wgmma_descriptor(a_place(at.stage, block));
#pragma unroll
                for (int slice = 0; slice < 4; ++slice) wgmma_m64k16<Shape::ROWS>(sums, b + slice * 2, a + slice * 2, true);
            }
            wgmma_commit();
            // At once, not a step later as where arithmetic is the bound: the stage is wanted for bytes.
            wgmma_wait<0>();
            if (thread == 0) mbarrier_arrive(empty + at.stage * 8);
            at.advance();
        }
    }

    // Where four of a thread's sums go from the second block to the first: to the same thread there.
    static __device__ __forceinline__ uint32_t landing_offset(int i) {
        return threadIdx.x / 128 * Shape::GROUP_SUMS_BYTES + (i / 4 * 128 + threadIdx.x % 128) * 16;
    }

    __device__ __forceinline__ void send(const float (&sums)[REGISTERS], uint32_t round) const {
        mbarrier_wait(landing_free, (round & 1) ^ 1);
        const uint32_t target = in_block(sums_place, 0), barrier = in_block(landed, 0);
#pragma unroll
        for (int i = 0; i < REGISTERS; i += 4) {
            store_async(target + landing_offset(i), make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]), barrier);
        }
    }

    __device__ __forceinline__ void receive(float (&sums)[REGISTERS], uint32_t round) const {
        if (threadIdx.x == 0) mbarrier_arrive_expect(landed, Shape::COLUMNS * Shape::ROWS * 4);
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

    // Sums lie as the product does, 64 rows of B by ROWS of A; C wants the converse.
    __device__ __forceinline__ void finish_tile(const float (&sums)[REGISTERS], uint32_t tile, uint32_t group, uint32_t thread) const {
        const uint32_t lane = thread % 32, column = thread / 32 * 16 + lane / 4, row = lane % 4 * 2;
        const uint32_t place = sums_place + group * Shape::GROUP_SUMS_BYTES;
        // The last tile's sums, and those that landed, have been read.
        named_barrier(group);
#pragma unroll
        for (int i = 0; i < REGISTERS; ++i) {
            const uint32_t target = place + ((i / 4 * 8 + row + i % 2) * Shape::SUMS_PITCH + column + i / 2 % 2 * 8) * 4;
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(target), "f"(sums[i]) : "memory");
        }
        named_barrier(group);
        const uint32_t quad = thread % 16 * 4;
#pragma unroll 1
        for (uint32_t a_row = thread / 16; a_row < args.m; a_row += 8) {
            const float4 total = load_sums(place + (a_row * Shape::SUMS_PITCH + quad) * 4);
            finish<ANY_EPILOGUE>(args, a_row, tile * Shape::COLUMNS + group * 64 + quad, total);
        }
        if (Shape::PAIR > 1) mbarrier_arrive_in_cluster(in_block(landing_free, 1));
    }

    static __device__ __forceinline__ float4 load_sums(uint32_t place) {
        float4 sums;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(sums.x), "=f"(sums.y), "=f"(sums.z), "=f"(sums.w) : "r"(place) : "memory");
        return sums;
    }

    // All threads of one consumer meet. Barrier 0 is the block's.
    static __device__ __forceinline__ void named_barrier(uint32_t group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }
};

template <typename Shape>
__device__ __forceinline__ void gemm_skinny(const SkinnyGemmArgs &args, const Tiles &tiles) {
    extern __shared__ __align__(128) uint8_t shared[];
    const SkinnyGemm<Shape> gemm(args, tiles, shared);
    // The next launch's weights can be under way while this one finishes.
    if (!gemm.is_elastic()) let_next_launch_come();
    if (threadIdx.x == 0) {
        tma_prefetch(args.a);
        tma_prefetch(args.b);
        gemm.initialise_barriers();
    }
    gemm.meet();
    const uint32_t warp = threadIdx.x / 32;
    if (warp < 4 * Shape::GROUPS) {
        gemm.consume(warp / 4);
    } else if (warp == 4 * Shape::GROUPS) {
        gemm.produce();
    } else if (gemm.is_elastic() && threadIdx.x % 32 == 0) {
        gemm.take_tiles();
    }
    // Neither block may end while the other still writes to its memory.
    if (Shape::PAIR > 1) cluster_barrier();
}

#else

// Other architectures have neither wgmma nor pairs of blocks; the host never launches these kernels there.
template <typename Shape>
__device__ __forceinline__ void gemm_skinny(const SkinnyGemmArgs &, const Tiles &) {}

#endif
