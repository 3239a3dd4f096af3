#include "gemm/warpgroup.cuh"

using Tile128x96 = WarpgroupShape<1, 128, 96, 1, 6, 2>;
GEMM_WARPGROUP_ENTRIES(128x96, Tile128x96)
