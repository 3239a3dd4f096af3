#include "gemm/warpgroup.cuh"

using Tile128x192 = WarpgroupShape<1, 128, 192, 1, 4, 2>;
GEMM_WARPGROUP_ENTRIES(128x192, Tile128x192)
