// Reads device memory once, with nothing else to do: the rate that memory-bound kernels are measured against.
//   source: tiles of TILE bytes
// What matters is how many bytes are in flight: an SM's largest rate (160 GB/s where few SMs read) times the latency of DRAM under load (about 1 us) is
// 160 KB. The runtime gives all kernels the largest shared memory, so L1 has room for 28 KB only, and loads into registers wait for it; copies into shared
// memory do not. Measured on an H200, 16 SMs: 1000 GB/s by registers, 2540 by bulk copies.
#include "elastic.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"

constexpr uint32_t TILE = 32768; // ReadBandwidth::TILE

// Nothing that was read is looked at but one word, which the host knows not to be there: that keeps the compiler from leaving out the rest.
extern "C" __global__ void __launch_bounds__(512, 4) read_bandwidth(ReadBandwidthArgs args, Tiles tiles) {
    constexpr uint32_t LOADS = TILE / 512 / sizeof(uint4);
    StridedTiles queue(tiles);
    uint32_t folded = 0;
    for (uint32_t tile; queue.next(tile);) {
        const uint4 *source = reinterpret_cast<const uint4 *>(args.source + static_cast<uint64_t>(tile) * TILE) + threadIdx.x;
        uint4 read[LOADS];
#pragma unroll
        for (uint32_t load = 0; load < LOADS; ++load) {
            read[load] = __ldcs(source + load * 512);
        }
#pragma unroll
        for (uint32_t load = 0; load < LOADS; ++load) {
            folded ^= read[load].x ^ read[load].y ^ read[load].z ^ read[load].w;
        }
    }
    if (folded == args.never) *reinterpret_cast<uint32_t *>(args.sink) = folded;
}

#if __CUDA_ARCH__ >= 900
// One thread keeps a ring of copies in flight; a stage is asked for again as soon as it has arrived.
extern "C" __global__ void __launch_bounds__(32, 1) read_bandwidth_bulk(ReadBandwidthArgs args, Tiles tiles) {
    constexpr uint32_t STAGES = READ_BANDWIDTH_SHARED_BYTES / TILE;
    extern __shared__ __align__(128) unsigned char ring[];
    __shared__ uint64_t arrived[STAGES];
    if (threadIdx.x != 0) return;
    const uint32_t ring_at = static_cast<uint32_t>(__cvta_generic_to_shared(ring));
    const uint32_t barriers = static_cast<uint32_t>(__cvta_generic_to_shared(arrived));
    for (uint32_t stage = 0; stage < STAGES; ++stage) mbarrier_init(barriers + 8 * stage, 1);
    mbarrier_init_fence();
    StridedTiles queue(tiles);
    RingPosition<STAGES> ask, wait;
    uint32_t pending = 0;
    for (uint32_t tile; queue.next(tile);) {
        if (pending == STAGES) {
            mbarrier_wait(barriers + 8 * wait.stage, wait.parity);
            wait.advance();
            --pending;
        }
        mbarrier_arrive_expect(barriers + 8 * ask.stage, TILE);
        bulk_load(ring_at + ask.stage * TILE, args.source + static_cast<uint64_t>(tile) * TILE, TILE, barriers + 8 * ask.stage);
        ask.advance();
        ++pending;
    }
    for (; pending > 0; --pending) {
        mbarrier_wait(barriers + 8 * wait.stage, wait.parity);
        wait.advance();
    }
    if (*reinterpret_cast<volatile uint32_t *>(ring) == args.never) *reinterpret_cast<uint32_t *>(args.sink) = args.never;
}
#endif
