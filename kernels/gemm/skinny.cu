// The shapes of skinny GEMM, by rows of A and columns of a tile; skinny.rs says which problem takes which. On many SMs, each of which gets little of the
// memory's rate, a block that shares k has an SM to itself ("deep"); on few, two blocks on an SM hide each other's hand-overs, but for 64 rows, where tiles of 128
// columns take A's rows, which are as many bytes as 64 rows of B, half as often.
#include "gemm/skinny.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL
#define SHARING_K(SHAPE) __cluster_dims__(SHAPE::PAIR)
#else
#define SHARING_K(SHAPE)
#endif

// Entry points of one shape: gemm_skinny_<name>(SkinnyGemmArgs, Tiles), for all epilogues, since an epilogue is a few instructions once a tile; and
// gemm_skinny_<name>_rotary(SkinnyQkvArgs, Tiles), for products whose columns are heads.
#define GEMM_SKINNY(NAME, ...)                                                                                                               \
    using Skinny##NAME = SkinnyShape<__VA_ARGS__>;                                                                                           \
    extern "C" __global__ void SHARING_K(Skinny##NAME) __launch_bounds__(Skinny##NAME::THREADS, Skinny##NAME::BLOCKS_PER_SM)                 \
        gemm_skinny_##NAME(const __grid_constant__ SkinnyGemmArgs args, const __grid_constant__ Tiles tiles) {                               \
        gemm_skinny<Skinny##NAME, false>(args, nullptr, tiles);                                                                              \
    }                                                                                                                                        \
    extern "C" __global__ void SHARING_K(Skinny##NAME) __launch_bounds__(Skinny##NAME::THREADS, Skinny##NAME::BLOCKS_PER_SM)                 \
        gemm_skinny_##NAME##_rotary(const __grid_constant__ SkinnyQkvArgs args, const __grid_constant__ Tiles tiles) {                       \
        gemm_skinny<Skinny##NAME, true>(args.product, &args.rotary, tiles);                                                                  \
    }

// rows, pair, groups, k blocks, stages, blocks per SM, parts
GEMM_SKINNY(8x64, 8, 1, 1, 4, 3, 2)
GEMM_SKINNY(8x64_pair, 8, 2, 1, 4, 3, 2)
GEMM_SKINNY(8x64_deep_pair, 8, 2, 1, 4, 6, 1)
GEMM_SKINNY(8x32_halves, 8, 1, 1, 2, 5, 2, 2)
GEMM_SKINNY(8x32_deep_halves, 8, 1, 1, 4, 5, 1, 2)
GEMM_SKINNY(16x64, 16, 1, 1, 2, 5, 2)
GEMM_SKINNY(16x64_pair, 16, 2, 1, 2, 5, 2)
GEMM_SKINNY(16x64_deep_pair, 16, 2, 1, 4, 5, 1)
GEMM_SKINNY(32x128, 32, 1, 2, 2, 5, 1)
GEMM_SKINNY(32x64_pair, 32, 2, 1, 2, 4, 2)
GEMM_SKINNY(32x64_deep_pair, 32, 2, 1, 4, 4, 1)
GEMM_SKINNY(64x128, 64, 1, 2, 2, 3, 1)
GEMM_SKINNY(64x128_pair, 64, 2, 2, 2, 3, 1)
GEMM_SKINNY(64x64_deep_pair, 64, 2, 1, 2, 6, 1)
