//! Rows of a ragged batch, picked (the last token of each sequence) or averaged (sentence embeddings).

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::PoolArgs;
use super::{is_aligned, outlasts_a_reaction};

/// `y[i] = x[index[i]]`. Shapes: `x` `[*, width]`, `index` `[rows]` u32, `y` `[rows, width]`; fp16, row-major, no gaps.
#[derive(Debug, Clone, Copy)]
pub struct GatherRows {
    /// Rows to pick.
    pub rows: u32,
    /// Elements in a row.
    pub width: u32,
    /// Input.
    pub x: DevicePtr,
    /// Which rows.
    pub index: DevicePtr,
    /// Output.
    pub y: DevicePtr,
}

/// `y[b] = mean of x[starts[b] .. starts[b] + lengths[b]]`. Shapes: `x` `[*, width]` fp16; `starts`, `lengths` `[rows]` u32; `y` `[rows, width]` fp32.
#[derive(Debug, Clone, Copy)]
pub struct MeanPool {
    /// Sequences.
    pub rows: u32,
    /// Elements in a row.
    pub width: u32,
    /// Rows of all sequences together, for the byte count.
    pub tokens: u32,
    /// Input.
    pub x: DevicePtr,
    /// First row of each sequence.
    pub starts: DevicePtr,
    /// Rows of each sequence, at least 1.
    pub lengths: DevicePtr,
    /// Whether each average is divided by its Euclidean length.
    pub normalise: bool,
    /// Output.
    pub y: DevicePtr,
}

const BLOCKS_PER_SM: u32 = 4;

/// `symbols`: for rows on 16 bytes, and for others.
fn launch(symbols: [&'static str; 2], key: &KernelKey, work: Work, sms: Sms, args: PoolArgs) -> Result<Launch, LaunchError> {
    if args.rows == 0 || args.width == 0 {
        return Err(LaunchError::Unsupported { kernel: key.to_string(), reason: "there are no rows, or rows of no elements".into() });
    }
    let aligned = args.width.is_multiple_of(8) && is_aligned(&[DevicePtr(args.x), DevicePtr(args.y)]);
    Ok(Launch {
        symbol: symbols[usize::from(!aligned)],
        grid: Launch::persistent_grid(args.rows, sms, BLOCKS_PER_SM),
        block: 256,
        shared_bytes: 0,
        blocks_per_sm: BLOCKS_PER_SM,
        tiles: args.rows,
        blocks_per_tile: 1,
        elastic: outlasts_a_reaction(work, sms),
        programmatic: true,
        begins_by_number: false,
        params: Params::new(args),
    })
}

// SAFETY: the symbols below take `PoolArgs` and `Tiles` (pooling/pooling.cu).
unsafe impl Kernel for GatherRows {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("gather_rows");
        KernelKey::new(NAME, [self.rows, self.width])
    }

    fn work(&self) -> Work {
        Work { flops: 0, bytes: u64::from(self.rows) * (4 * u64::from(self.width) + 4) }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        let args =
            PoolArgs { x: self.x.0, starts: self.index.0, lengths: 0, y: self.y.0, rows: self.rows, width: self.width, normalise: 0 };
        launch(["gather_rows", "gather_rows_unaligned"], &self.key(), self.work(), sms, args)
    }
}

// SAFETY: the symbols below take `PoolArgs` and `Tiles` (pooling/pooling.cu).
unsafe impl Kernel for MeanPool {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("mean_pool");
        KernelKey::new(NAME, [self.rows, self.tokens, self.width])
    }

    fn work(&self) -> Work {
        let (read, written) = (u64::from(self.tokens) * u64::from(self.width), u64::from(self.rows) * u64::from(self.width));
        Work { flops: read, bytes: 2 * read + 4 * written }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        let args = PoolArgs {
            x: self.x.0,
            starts: self.starts.0,
            lengths: self.lengths.0,
            y: self.y.0,
            rows: self.rows,
            width: self.width,
            normalise: self.normalise.into(),
        };
        launch(["mean_pool", "mean_pool_unaligned"], &self.key(), self.work(), sms, args)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_stays_within_its_sms, assert_unsupported};
    use super::*;

    fn gather(rows: u32, width: u32) -> GatherRows {
        GatherRows { rows, width, x: DevicePtr(256), index: DevicePtr(512), y: DevicePtr(768) }
    }

    fn pool(rows: u32, width: u32) -> MeanPool {
        let [x, starts, lengths, y] = [256, 512, 768, 1024].map(DevicePtr);
        MeanPool { rows, width, tokens: 8 * rows, x, starts, lengths, normalise: true, y }
    }

    #[test]
    fn picking_and_averaging_stay_within_their_sms() {
        for (rows, width) in [(1, 1), (8, 768), (1000, 40_000)] {
            assert_stays_within_its_sms(&gather(rows, width));
            assert_stays_within_its_sms(&pool(rows, width));
        }
    }

    #[test]
    fn no_rows_and_empty_rows_are_refused() {
        for (rows, width) in [(0, 768), (8, 0)] {
            assert_unsupported(&gather(rows, width), "no rows");
            assert_unsupported(&pool(rows, width), "no rows");
        }
    }

    #[test]
    fn an_average_reads_every_token_once_in_fp16_and_writes_fp32() {
        assert_eq!(pool(2, 10).work().bytes, 16 * 10 * 2 + 2 * 10 * 4);
    }
}
