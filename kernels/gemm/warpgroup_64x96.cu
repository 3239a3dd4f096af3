#include "gemm/warpgroup.cuh"

using Tile64x96 = WarpgroupShape<1, 64, 96, 2, 5, 1>;
GEMM_WARPGROUP_ENTRIES(64x96, Tile64x96)
