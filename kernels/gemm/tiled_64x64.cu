// Tiles of 64 x 64 for problems with few tiles: four warps of 32 x 32, four blocks on an SM.
#include "gemm/tiled.cuh"

using Tile64x64 = TileShape<64, 64, 2, 2, 3, 4>;
GEMM_TILED_ENTRIES(64x64, Tile64x64)
