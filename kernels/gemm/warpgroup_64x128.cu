#include "gemm/warpgroup.cuh"

using Tile64x128 = WarpgroupShape<1, 64, 128, 1, 8, 1>;
GEMM_WARPGROUP_ENTRIES(64x128, Tile64x128)
