#include "gemm/warpgroup.cuh"

using Tile128x160 = WarpgroupShape<1, 128, 160, 1, 5, 2>;
GEMM_WARPGROUP_ENTRIES(128x160, Tile128x160)
