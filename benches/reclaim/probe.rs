//! A kernel that counts how often each tile was done: kernels/elastic_probe.cu.

use std::sync::Arc;

use anyhow::{Result, ensure};
use smidgen::kernels::abi::ElasticProbeArgs;
use smidgen_runtime::device::{Buffer, Device, DevicePtr, Sms, StreamId, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

/// Where the tiles are counted.
pub struct Counts {
    executions: Buffer,
    sms: Buffer,
    tiles: u32,
}

/// A launch of it. It says that it has work for seconds, so that sessions take it for one worth growing.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    pub tiles: u32,
    /// How long a tile takes.
    pub cycles: u32,
    executions: DevicePtr,
    sms: DevicePtr,
}

impl Counts {
    pub fn new(device: &Arc<dyn Device>, stream: StreamId, tiles: u32) -> Result<Self> {
        let [executions, sms] = [Buffer::new(device, 4 * u64::from(tiles))?, Buffer::new(device, 4 * u64::from(tiles))?];
        device.fill(stream, executions.ptr(), 0, executions.bytes())?;
        Ok(Self { executions, sms, tiles })
    }

    pub fn probe(&self, cycles: u32) -> Probe {
        Probe { tiles: self.tiles, cycles, executions: self.executions.ptr(), sms: self.sms.ptr() }
    }

    /// How many tiles were not done `times` times.
    pub fn wrong(&self, device: &dyn Device, stream: StreamId, times: u32) -> Result<u64> {
        let mut bytes = vec![0; self.executions.bytes() as usize];
        device.download(stream, self.executions.ptr(), &mut bytes)?;
        let counts = bytes.as_chunks().0;
        ensure!(counts.len() == self.tiles as usize, "{} counts of {} tiles", counts.len(), self.tiles);
        Ok(counts.iter().filter(|&&count| u32::from_le_bytes(count) != times).count() as u64)
    }
}

// SAFETY: `elastic_probe` takes `ElasticProbeArgs` first, and every caller keeps the counts until it has synchronised.
unsafe impl Kernel for Probe {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("elastic_probe");
        KernelKey::new(NAME, [self.tiles, self.cycles])
    }

    fn work(&self) -> Work {
        Work { flops: u64::MAX, bytes: 0 }
    }

    fn configure(&self, sms: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        let blocks_per_sm = 1;
        Ok(Launch {
            symbol: "elastic_probe",
            grid: Launch::persistent_grid(self.tiles, sms, blocks_per_sm),
            block: 128,
            // So that no SM takes two blocks.
            shared_bytes: 160 << 10,
            blocks_per_sm,
            tiles: self.tiles,
            blocks_per_tile: 1,
            elastic: true,
            programmatic: true,
            begins_by_number: false,
            params: Params::new(ElasticProbeArgs { executions: self.executions.0, sms: self.sms.0, cycles: self.cycles }),
        })
    }
}
