// Tiles of 64 x 128: four warps of 32 x 64, three blocks on an SM: between the large tiles and the smallest where those leave SMs idle.
#include "gemm/tiled.cuh"

using Tile64x128 = TileShape<64, 128, 2, 2, 3, 3>;
GEMM_TILED_ENTRIES(64x128, Tile64x128)
