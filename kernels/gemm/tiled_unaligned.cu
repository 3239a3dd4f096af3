// For rows of A or B that do not begin on 16 bytes (odd k, odd strides, views): the same tile and the same order of sums, with plain loads
// in place of asynchronous copies. Correct before fast, so one kernel serves every epilogue.
#include "gemm/tiled.cuh"

using TileUnaligned = TileShape<64, 64, 2, 2, 2, 4>;

extern "C" __global__ void __launch_bounds__(TileUnaligned::THREADS, TileUnaligned::BLOCKS_PER_SM)
    gemm_unaligned(const __grid_constant__ GemmArgs args, const __grid_constant__ Tiles tiles) {
    gemm_tiled<TileUnaligned, ANY_EPILOGUE, false>(args, tiles);
}
