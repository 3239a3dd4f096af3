//! A `TileProgress` of kernels/elastic.cuh as the host reads it back: how far a launch is that counts its tiles.

/// Bytes of a tile counter, [`TilesArg::progress`](super::TilesArg::progress): seven words and an empty one, and a ring of tiles given back.
pub const TILE_PROGRESS_BYTES: u64 = 4 * (8 + 512);

/// What the host wants to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TileProgress {
    /// Which launch on this counter takes tiles now, or will be the next to.
    pub(crate) epoch: u32,
    /// Blocks of that launch that have counted themselves out; they may still be at their last tile. They do so only after everything before the launch has
    /// ended.
    pub(crate) left: u16,
}

impl TileProgress {
    /// `taken`, with the epoch in its upper half; `finished`; `departed`, with those that left in its lower half.
    const HEAD: usize = 16;

    pub(crate) const BYTES: usize = TILE_PROGRESS_BYTES as usize;

    pub(crate) fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let [epoch, departed] = [4, 12].map(|at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        Self { epoch, left: departed as u16 }
    }

    /// For the simulator, which keeps no counters of tiles.
    pub(crate) fn to_bytes(self) -> [u8; Self::HEAD] {
        let mut bytes = [0; Self::HEAD];
        bytes[4..8].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.left.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_lie_where_the_kernels_keep_them() {
        let taken = 7_u64 << 32 | 19;
        let (finished, departed) = (3_u32, 2_u32 << 16 | 5);
        let mut bytes = [0; TileProgress::BYTES];
        bytes[..8].copy_from_slice(&taken.to_le_bytes());
        bytes[8..12].copy_from_slice(&finished.to_le_bytes());
        bytes[12..16].copy_from_slice(&departed.to_le_bytes());
        let progress = TileProgress { epoch: 7, left: 5 };
        assert_eq!(TileProgress::from_bytes(&bytes), progress);
        bytes = [0; TileProgress::BYTES];
        bytes[..TileProgress::HEAD].copy_from_slice(&progress.to_bytes());
        assert_eq!(TileProgress::from_bytes(&bytes), progress);
    }
}
