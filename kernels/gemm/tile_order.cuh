// Which tile of C a tile number means. About 2048 rows of tiles are walked column by column, so that the blocks that run at one time share both rows
// of A and rows of B in L2: 132 tiles of 128 x 256 are then a part of C of about 2048 x 2048, which needs the least of both.
#pragma once
#include <cstdint>

#include "abi.h"

struct TileOrigin {
    uint32_t row, col;

    static __device__ __forceinline__ TileOrigin of(uint32_t tile, const GemmArgs &args, uint32_t tile_rows, uint32_t tile_cols) {
        const uint32_t in_group = 2048 / tile_rows;
        const uint32_t tiles_m = (args.m + tile_rows - 1) / tile_rows;
        const uint32_t tiles_n = (args.n + tile_cols - 1) / tile_cols;
        const uint32_t group = tile / (in_group * tiles_n);
        const uint32_t within = tile % (in_group * tiles_n);
        const uint32_t rows = min(in_group, tiles_m - group * in_group);
        return {(group * in_group + within % rows) * tile_rows, within / rows * tile_cols};
    }
};
