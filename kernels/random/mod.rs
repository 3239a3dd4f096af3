//! Random weights for models that have none, the same bits for the same key on any number of SMs, and constants.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::RandomArgs;
use super::outlasts_a_reaction_at;

/// What the elements are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Uniform in `[-half_width, half_width)`, a pure function of the key and the element's index.
    Uniform {
        /// Names the sequence.
        key: u64,
        /// Greater than 0.
        half_width: f32,
    },
    /// All the same.
    Constant(f32),
}

/// Fills `rows` rows of `columns` fp16 elements, `stride` elements apart in `y`.
#[derive(Debug, Clone, Copy)]
pub struct RandomWeights {
    /// Rows.
    pub rows: u64,
    /// Elements in a row.
    pub columns: u64,
    /// Elements from the start of one row to the next.
    pub stride: u64,
    /// What they are.
    pub distribution: Distribution,
    /// Output.
    pub y: DevicePtr,
}

impl RandomWeights {
    /// Elements in a tile; random/random.cu.
    const TILE: u64 = 256 * 32;
    const BLOCKS_PER_SM: u32 = 4;
    /// What an SM writes in a microsecond, reckoned and not measured: an element takes some 150 instructions, most of them to divide by its row.
    const BYTES_PER_MICROSECOND: u64 = 3_000;

    fn count(&self) -> u64 {
        self.rows.saturating_mul(self.columns)
    }
}

// SAFETY: `random_weights` takes `RandomArgs` and `Tiles` (random/random.cu).
unsafe impl Kernel for RandomWeights {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("random_weights");
        KernelKey::new(NAME, [self.rows as u32, self.columns as u32])
    }

    fn work(&self) -> Work {
        Work { flops: 10 * self.count(), bytes: 2 * self.count() }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        let unsupported = |reason| LaunchError::Unsupported { kernel: self.key().to_string(), reason };
        let tiles =
            u32::try_from(self.count().div_ceil(Self::TILE)).map_err(|_| unsupported("it has more than 2^45 elements".to_owned()))?;
        if tiles == 0 {
            return Err(unsupported("there are no elements".to_owned()));
        }
        let (key, half_width, constant) = match self.distribution {
            Distribution::Uniform { key, half_width } => (key, half_width, 0.0),
            Distribution::Constant(value) => (0, 0.0, value),
        };
        let args = RandomArgs { y: self.y.0, count: self.count(), columns: self.columns, stride: self.stride, key, half_width, constant };
        Ok(Launch {
            symbol: "random_weights",
            grid: Launch::persistent_grid(tiles, sms, Self::BLOCKS_PER_SM),
            block: 256,
            shared_bytes: 0,
            blocks_per_sm: Self::BLOCKS_PER_SM,
            tiles,
            blocks_per_tile: 1,
            elastic: outlasts_a_reaction_at(Self::BYTES_PER_MICROSECOND, self.work(), sms),
            programmatic: true,
            begins_by_number: false,
            params: Params::new(args),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_stays_within_its_sms, assert_unsupported, h200};
    use super::*;

    fn weights(rows: u64, columns: u64) -> RandomWeights {
        RandomWeights { rows, columns, stride: columns, distribution: Distribution::Constant(1.0), y: DevicePtr(256) }
    }

    #[test]
    fn weights_of_any_size_stay_within_their_sms() {
        for (rows, columns) in [(1, 1), (1, 8192), (3, 8191), (128_256, 4096), (1 << 20, 1 << 24)] {
            assert_stays_within_its_sms(&weights(rows, columns));
        }
    }

    #[test]
    fn a_large_matrix_is_made_by_blocks_that_poll_their_grant() {
        let elastic = |rows, sms| weights(rows, 4096).configure(Sms(sms), &h200()).expect("a supported shape").elastic;
        assert_eq!([(1, 8), (4096, 132), (64, 132)].map(|(rows, sms)| elastic(rows, sms)), [false, true, false]);
    }

    #[test]
    fn no_elements_and_more_than_can_be_counted_are_refused() {
        assert_unsupported(&weights(0, 10), "no elements");
        assert_unsupported(&weights(1 << 23, 1 << 23), "more than 2^45");
        assert_unsupported(&weights(u64::MAX, u64::MAX), "more than 2^45");
    }
}
