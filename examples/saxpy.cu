// y = a * x + y, the kernel of 02_link_the_runtime.rs. It takes what the runtime hands to every kernel: its own parameters, then `Tiles`.
//
// saxpy.ptx is made from this file, so that the example needs no compiler:
//     nvcc -ptx -O3 -arch=compute_80 -Ikernels -o examples/saxpy.ptx examples/saxpy.cu
#include "elastic.cuh"

struct SaxpyArgs {
    uint64_t x;  // float[count]
    uint64_t y;  // float[count]
    uint32_t count;
    float a;
};

constexpr uint32_t TILE = 4096;  // elements; Saxpy::TILE in the example

extern "C" __global__ void __launch_bounds__(256) saxpy(SaxpyArgs args, Tiles tiles) {
    const float *x = reinterpret_cast<const float *>(args.x);
    float *y = reinterpret_cast<float *>(args.y);
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint32_t first = tile * TILE;
        for (uint32_t i = first + threadIdx.x; i < first + TILE && i < args.count; i += 256) y[i] += args.a * x[i];
    }
}
