//! How fast device memory can be read: the yardstick for memory-bound kernels, at any SM count.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::{READ_BANDWIDTH_SHARED_BYTES, ReadBandwidthArgs};

/// Reads `bytes` bytes from `source` once and computes nothing.
#[derive(Debug, Clone, Copy)]
pub struct ReadBandwidth {
    /// What is read, on 16 bytes.
    pub source: DevicePtr,
    /// How much, a multiple of [`ReadBandwidth::TILE`].
    pub bytes: u64,
    /// Four bytes that may be written, which keeps the compiler from leaving out the reads.
    pub sink: DevicePtr,
}

impl ReadBandwidth {
    /// Bytes that a block reads at a time; bandwidth/read.cu.
    pub const TILE: u64 = 32768;
}

// SAFETY: `read_bandwidth` and `read_bandwidth_bulk` take `ReadBandwidthArgs` and `Tiles` (bandwidth/read.cu).
unsafe impl Kernel for ReadBandwidth {
    /// `[mebibytes]`.
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("read_bandwidth");
        KernelKey::new(NAME, [u32::try_from(self.bytes >> 20).unwrap_or(u32::MAX)])
    }

    fn work(&self) -> Work {
        Work { flops: 0, bytes: self.bytes }
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        let unsupported = |reason: &str| LaunchError::Unsupported { kernel: self.key().to_string(), reason: reason.to_owned() };
        if self.bytes == 0 || !self.bytes.is_multiple_of(Self::TILE) || !self.source.0.is_multiple_of(16) {
            return Err(unsupported("it reads whole tiles of 32768 bytes from an address that is a multiple of 16"));
        }
        let tiles = u32::try_from(self.bytes / Self::TILE).map_err(|_| unsupported("there are more than 2^32 tiles"))?;
        // The copy engine came with compute capability 9.0.
        let bulk = gpu.compute_capability >= (9, 0) && gpu.shared_bytes_per_sm > READ_BANDWIDTH_SHARED_BYTES;
        let (symbol, block, blocks_per_sm) = if bulk { ("read_bandwidth_bulk", 32, 1) } else { ("read_bandwidth", 512, 4) };
        Ok(Launch {
            symbol,
            grid: Launch::persistent_grid(tiles, sms, blocks_per_sm),
            block,
            shared_bytes: if bulk { READ_BANDWIDTH_SHARED_BYTES } else { 0 },
            blocks_per_sm,
            tiles,
            blocks_per_tile: 1,
            elastic: false,
            programmatic: true,
            begins_by_number: false,
            params: Params::new(ReadBandwidthArgs { source: self.source.0, sink: self.sink.0, never: 0x9e37_79b9 }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_stays_within_its_sms, assert_unsupported};
    use super::*;

    fn read(source: u64, bytes: u64) -> ReadBandwidth {
        ReadBandwidth { source: DevicePtr(source), bytes, sink: DevicePtr(256) }
    }

    #[test]
    fn reads_of_any_size_stay_within_their_sms() {
        for tiles in [1, 131, 1 << 16] {
            assert_stays_within_its_sms(&read(4096, tiles * ReadBandwidth::TILE));
        }
    }

    #[test]
    fn parts_of_a_tile_and_odd_addresses_are_refused() {
        assert_unsupported(&read(4096, 0), "whole tiles");
        assert_unsupported(&read(4096, ReadBandwidth::TILE + 16), "whole tiles");
        assert_unsupported(&read(4104, ReadBandwidth::TILE), "multiple of 16");
    }
}
