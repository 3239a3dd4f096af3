#include "gemm/warpgroup.cuh"

using Tile128x256 = WarpgroupShape<2, 128, 256, 1, 4, 2>;
GEMM_WARPGROUP_PAIR_ENTRIES(128x256, Tile128x256)
