// The shapes of skinny GEMM, by rows of A. More rows take wider blocks: each block reads all of A, from L2, once for its BLOCK_N columns.
#include "gemm/skinny.cuh"

using Skinny16 = SkinnyShape<1, 16, 4, 3>;
using Skinny32 = SkinnyShape<2, 32, 3, 2>;
using Skinny64 = SkinnyShape<4, 32, 3, 1>;

GEMM_SKINNY_ENTRIES(16, Skinny16)
GEMM_SKINNY_ENTRIES(32, Skinny32)
GEMM_SKINNY_ENTRIES(64, Skinny64)
