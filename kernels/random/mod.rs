//! Normally distributed weights for models that have none, the same bits for the same seed on any number of SMs.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::RandomArgs;

/// `y[i] = mean + deviation * z(seed, i)` for `count` fp16 elements, `z` standard normal. A deviation of 0 fills with the mean.
#[derive(Debug, Clone, Copy)]
pub struct RandomNormal {
    /// Elements.
    pub count: u64,
    /// Names the sequence.
    pub seed: u64,
    /// Mean.
    pub mean: f32,
    /// Standard deviation.
    pub deviation: f32,
    /// Output.
    pub y: DevicePtr,
}

impl RandomNormal {
    /// Elements in a tile; random/random.cu.
    const TILE: u64 = 256 * 4 * 8;
    const BLOCKS_PER_SM: u32 = 4;
}

// SAFETY: `random_normal` takes `RandomArgs` and `Tiles` (random/random.cu).
unsafe impl Kernel for RandomNormal {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("random_normal");
        KernelKey::new(NAME, [(self.count >> 32) as u32, self.count as u32])
    }

    fn work(&self) -> Work {
        Work { flops: 20 * self.count, bytes: 2 * self.count }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        let unsupported = |reason| LaunchError::Unsupported { kernel: self.key().to_string(), reason };
        let tiles = u32::try_from(self.count.div_ceil(Self::TILE)).map_err(|_| unsupported("it has more than 2^45 elements".to_owned()))?;
        if tiles == 0 {
            return Err(unsupported("there are no elements".to_owned()));
        }
        let args = RandomArgs { y: self.y.0, count: self.count, seed: self.seed, mean: self.mean, deviation: self.deviation };
        Ok(Launch {
            symbol: "random_normal",
            grid: Launch::persistent_grid(tiles, sms, Self::BLOCKS_PER_SM),
            block: 256,
            shared_bytes: 0,
            blocks_per_sm: Self::BLOCKS_PER_SM,
            tiles,
            elastic: false,
            params: Params::new(args),
        })
    }
}
