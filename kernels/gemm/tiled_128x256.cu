// Tiles of 128 x 256 for large problems: eight warps of 64 x 64, one block on an SM, the fewest bytes from L2 for each multiplication.
#include "gemm/tiled.cuh"

using Tile128x256 = TileShape<128, 256, 2, 4, 3, 1>;
GEMM_TILED_ENTRIES(128x256, Tile128x256)
