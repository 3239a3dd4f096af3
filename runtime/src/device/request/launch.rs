//! A configured launch: its grid, what it costs at least, and how its tiles are counted.

use crate::device::{DevicePtr, Sms};

use super::Params;

/// The least that a launch must do, whatever the implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Work {
    /// Floating-point operations; a multiply-add counts two.
    pub flops: u64,
    /// Bytes through device memory, each input read once and each output written once.
    pub bytes: u64,
}

/// Which grid elastic kernels are launched with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grids {
    /// No more blocks than fit at once: they take tile after tile, and a grant may take their SMs from them.
    #[default]
    Persistent,
    /// One block for each tile (or as many as do a tile together), which ends with it: the hardware hands out SMs anew at every tile, by priority.
    /// Nothing is counted and no grant is polled, so that grants do not confine such launches.
    TilePerBlock,
    /// As many blocks as fit at once, which stride over the tiles: what elastic kernels are without their elasticity. Nothing is counted and no grant is
    /// polled.
    Fixed,
}

/// A configured launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Name of the `extern "C" __global__` function.
    pub symbol: &'static str,
    /// Thread blocks. Persistent kernels ask for no more than fit on their SMs at once.
    pub grid: u32,
    /// Threads in a block.
    pub block: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Thread blocks of this kernel that fit on one SM at once.
    pub blocks_per_sm: u32,
    /// Tiles to be done. An elastic kernel's blocks take them from a counter; others stride over them.
    pub tiles: u32,
    /// Blocks that do a tile together, side by side in the grid: 2 for kernels whose blocks work in pairs (clusters), else 1.
    pub blocks_per_tile: u32,
    /// Whether blocks take tiles from a counter and poll the grant before each. Launches much shorter than a reaction would take need not.
    pub elastic: bool,
    /// Whether every thread waits (`griddepcontrol.wait`) before it touches what earlier launches write, so that this launch's blocks
    /// may start while the last ones of the launch before it still run (programmatic dependent launch).
    pub programmatic: bool,
    /// Whether an elastic launch's workers can begin with the tiles of their own numbers, [`TilesArg::numbered`]: those of a `TileQueue` in
    /// kernels/elastic.cuh can.
    pub begins_by_number: bool,
    /// The kernel's first parameter.
    pub params: Params,
}

impl Launch {
    /// The grid of a persistent kernel: as many blocks as `sms` SMs hold at once, never more than there are tiles.
    pub const fn persistent_grid(tiles: u32, sms: Sms, blocks_per_sm: u32) -> u32 {
        let resident = sms.get().saturating_mul(blocks_per_sm);
        let grid = if tiles < resident { tiles } else { resident };
        if grid == 0 { 1 } else { grid }
    }

    /// Tiles that an elastic launch may have: the counter keeps other things in the same word. One of more tiles is not elastic.
    pub const MAX_ELASTIC_TILES: u32 = 1 << 22;

    /// Most workers that may begin with tiles of their own numbers: as many give theirs back at most, and others may wait to be taken again besides.
    const MOST_NUMBERED: u32 = 320;

    /// [`TilesArg::numbered`] of a launch whose blocks begin on SMs that the grant most likely holds. None where workers have fewer than one and a half tiles each:
    /// nobody would be left to do the one of a worker that begins elsewhere.
    #[inline]
    pub const fn numbered(&self) -> u32 {
        let workers = self.grid / if self.blocks_per_tile == 0 { 1 } else { self.blocks_per_tile };
        let may = self.elastic && self.begins_by_number && workers <= Self::MOST_NUMBERED && workers <= self.tiles / 3 * 2;
        if may { workers } else { 0 }
    }

    /// Gives an elastic launch the form of `grids`; others have none to choose. A launch that is not elastic is given no `TileProgress`.
    #[inline]
    pub fn take_form(&mut self, grids: Grids) {
        self.elastic &= self.tiles <= Self::MAX_ELASTIC_TILES;
        if !self.elastic || grids == Grids::Persistent {
            return;
        }
        if grids == Grids::TilePerBlock {
            self.grid = self.tiles.saturating_mul(self.blocks_per_tile).max(self.grid);
        }
        self.elastic = false;
    }
}

/// Every kernel's second parameter, `Tiles` in kernels/elastic.cuh: where tiles are counted and which SMs may take them.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct TilesArg {
    /// The `TileProgress` of this launch, zero before the first use; it resets itself. Null for a launch that is not elastic.
    pub progress: DevicePtr,
    /// The tenant's grant, one bit per SM in `%smid` order; null where every SM is granted.
    pub grant: DevicePtr,
    /// Tiles to be done.
    pub count: u32,
    /// 0 for the launch that owns the counter; for a joining launch, 1 + the epoch that it may take tiles of: epoch 2^32 - 1 gets none.
    pub joins: u32,
    /// Tiles that the counter leaves out, since the owner's workers begin with those of their own numbers: [`Launch::numbered`]; or 0.
    pub numbered: u32,
    /// 0.
    pub unused: u32,
}

impl TilesArg {
    /// The argument of a launch that owns the counter at `progress`, on SMs that it was granted; with a null `progress`, of one that is not elastic.
    #[inline]
    pub const fn owner(launch: &Launch, progress: DevicePtr, grant: DevicePtr) -> Self {
        let numbered = if progress.0 == 0 { 0 } else { launch.numbered() };
        Self { progress, grant, count: launch.tiles, joins: 0, numbered, unused: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_of_any_number_of_blocks_an_sm_has_no_more_blocks_than_tiles() {
        assert_eq!(Launch::persistent_grid(1000, Sms(132), u32::MAX), 1000);
    }
}
