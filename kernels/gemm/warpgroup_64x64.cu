#include "gemm/warpgroup.cuh"

using Tile64x64 = WarpgroupShape<1, 64, 64, 2, 6, 1>;
GEMM_WARPGROUP_ENTRIES(64x64, Tile64x64)
