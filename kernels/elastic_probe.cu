// A kernel that does nothing but record who did which tile: the tests of elastic.cuh count with it.
#include "abi.h"
#include "elastic.cuh"

extern "C" __global__ void __launch_bounds__(128) elastic_probe(const __grid_constant__ ElasticProbeArgs args, const __grid_constant__ Tiles tiles) {
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        if (threadIdx.x == 0) {
            atomicAdd(reinterpret_cast<uint32_t *>(args.executions) + tile, 1u);
            reinterpret_cast<uint32_t *>(args.sms)[tile] = sm_id();
        }
        // Each round takes several cycles, so as many rounds are enough whatever a tool that looks on does to the clock.
        uint32_t round = 0;
        for (const long long start = clock64(); clock64() - start < args.cycles && round < args.cycles;) ++round;
    }
}
