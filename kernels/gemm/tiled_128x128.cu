// Tiles of 128 x 128: four warps of 64 x 64, two blocks on an SM, so that one block's epilogue runs under the other's multiplications.
#include "gemm/tiled.cuh"

using Tile128x128 = TileShape<128, 128, 2, 2, 3, 2>;
GEMM_TILED_ENTRIES(128x128, Tile128x128)
