// Reads device memory once, with nothing else to do: the rate that memory-bound kernels are measured against.
//   source: uint4 [tiles * THREADS * LOADS]
// Two blocks of 1024 threads an SM, each thread with four independent 16-byte loads in flight: 128 KiB an SM, where an SM's share of the DRAM rate
// (35 GB/s of 132, 120 GB/s of few) times its latency (under 1 us) is at most 120 KB. What was read is folded into one word, so that the compiler
// must keep the loads; nothing is written unless that word is one that the host chose.
#include "elastic.cuh"

constexpr uint32_t THREADS = 1024;
constexpr uint32_t LOADS = 4; // by each thread and tile; ReadBandwidth::TILE is their product, in bytes

extern "C" __global__ void __launch_bounds__(THREADS, 2) read_bandwidth(ReadBandwidthArgs args, Tiles tiles) {
    StridedTiles queue(tiles);
    uint32_t folded = 0;
    for (uint32_t tile; queue.next(tile);) {
        const uint4 *source = reinterpret_cast<const uint4 *>(args.source) + static_cast<uint64_t>(tile) * THREADS * LOADS + threadIdx.x;
        uint4 read[LOADS];
#pragma unroll
        for (uint32_t load = 0; load < LOADS; ++load) {
            // Streamed: what is read once should not push anything else out of L1.
            read[load] = __ldcs(source + load * THREADS);
        }
#pragma unroll
        for (uint32_t load = 0; load < LOADS; ++load) {
            folded ^= read[load].x ^ read[load].y ^ read[load].z ^ read[load].w;
        }
    }
    if (folded == args.never) *reinterpret_cast<uint32_t *>(args.sink) = folded;
}
