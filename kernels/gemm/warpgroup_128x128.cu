#include "gemm/warpgroup.cuh"

using Tile128x128 = WarpgroupShape<1, 128, 128, 1, 6, 2, true>;
GEMM_WARPGROUP_ENTRIES(128x128, Tile128x128)
