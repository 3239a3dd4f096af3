//! Convolutions as matrix products: what each output sees, laid side by side as a row of a matrix ("im2col"). The patches of ViT, whose windows do
//! not overlap, and the neighbouring tokens of DeBERTa v2.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::{UnfoldPatchesArgs, UnfoldTokensArgs};
use super::outlasts_a_reaction_at;

/// `y[image, 1 + patch] = the patch's pixels`, for each colour row by row, and `y[image, 0] = 0`, where the class token goes. Shapes: `pixels`
/// `[images, channels, image_size, image_size]`, `y` `[images * (1 + patches), stride]`; fp16, row-major. Columns past a patch's elements become 0.
#[derive(Debug, Clone, Copy)]
pub struct UnfoldPatches {
    /// Images in the batch.
    pub images: u32,
    /// Colours of a pixel.
    pub channels: u32,
    /// Height and width of an image, a multiple of `patch_size`.
    pub image_size: u32,
    /// Height and width of a patch.
    pub patch_size: u32,
    /// Elements from one row of `y` to the next, at least those of a patch.
    pub stride: u32,
    /// Input.
    pub pixels: DevicePtr,
    /// Output.
    pub y: DevicePtr,
}

/// `y[t] = x[t - width / 2] ... x[t + width / 2]`, tokens past either end of `t`'s sequence as zeros. Shapes: `x` `[rows, hidden]`, `y` `[rows,
/// width * hidden]`, `starts` and `lengths` `[sequences]` u32; fp16, row-major, no gaps.
#[derive(Debug, Clone, Copy)]
pub struct UnfoldTokens {
    /// Sequences in the batch.
    pub sequences: u32,
    /// No length is greater.
    pub max_length: u32,
    /// The sum of the lengths. Only the [`Work`] depends on it.
    pub tokens: u32,
    /// Elements of a token.
    pub hidden: u32,
    /// Tokens that a row of `y` holds; odd.
    pub width: u32,
    /// Input.
    pub x: DevicePtr,
    /// First row of each sequence.
    pub starts: DevicePtr,
    /// Rows of each sequence.
    pub lengths: DevicePtr,
    /// Output.
    pub y: DevicePtr,
}

const BLOCKS_PER_SM: u32 = 8;

/// What an SM moves in a microsecond, reckoned and not measured: each of its 2048 threads has four elements on their way, for about 0.8 us.
const BYTES_PER_MICROSECOND: u64 = 20_000;

/// A launch of one row a block, or why there is none.
fn launch(symbol: &'static str, key: &KernelKey, rows: Option<u32>, work: Work, sms: Sms, params: Params) -> Result<Launch, LaunchError> {
    let unsupported = |reason: &str| LaunchError::Unsupported { kernel: key.to_string(), reason: reason.into() };
    let tiles = rows.ok_or_else(|| unsupported("more than 2^32 rows"))?;
    if tiles == 0 {
        return Err(unsupported("there are no rows"));
    }
    Ok(Launch {
        symbol,
        grid: Launch::persistent_grid(tiles, sms, BLOCKS_PER_SM),
        block: 256,
        shared_bytes: 0,
        blocks_per_sm: BLOCKS_PER_SM,
        tiles,
        blocks_per_tile: 1,
        elastic: outlasts_a_reaction_at(BYTES_PER_MICROSECOND, work, sms),
        programmatic: true,
        begins_by_number: false,
        params,
    })
}

impl UnfoldPatches {
    fn side(&self) -> u32 {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }

    /// Rows of `y`, if they can be counted.
    fn rows(&self) -> Option<u32> {
        self.side().checked_mul(self.side())?.checked_add(1)?.checked_mul(self.images)
    }
}

// SAFETY: `unfold_patches` takes `UnfoldPatchesArgs` and `Tiles` (unfold/unfold.cu).
unsafe impl Kernel for UnfoldPatches {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("unfold_patches");
        KernelKey::new(NAME, [self.images, self.channels, self.image_size, self.patch_size])
    }

    fn work(&self) -> Work {
        let pixels = [self.channels, self.image_size, self.image_size]
            .into_iter()
            .fold(u64::from(self.images), |all, extent| all.saturating_mul(extent.into()));
        let written = u64::from(self.rows().unwrap_or(u32::MAX)).saturating_mul(u64::from(self.stride));
        Work { flops: 0, bytes: pixels.saturating_add(written).saturating_mul(2) }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        let key = self.key();
        let elements = self.patch_size.checked_mul(self.patch_size).and_then(|area| area.checked_mul(self.channels));
        let reason = if self.channels == 0 || self.side() == 0 || !self.image_size.is_multiple_of(self.patch_size) {
            "an image must have colours and be a whole number of patches wide"
        } else if elements.is_none_or(|elements| self.stride < elements) {
            "rows overlap: the stride must be at least the elements of a patch"
        } else {
            let args = UnfoldPatchesArgs {
                pixels: self.pixels.0,
                y: self.y.0,
                channels: self.channels,
                image_size: self.image_size,
                patch_size: self.patch_size,
                stride: self.stride,
            };
            return launch("unfold_patches", &key, self.rows(), self.work(), sms, Params::new(args));
        };
        Err(LaunchError::Unsupported { kernel: key.to_string(), reason: reason.into() })
    }
}

// SAFETY: `unfold_tokens` takes `UnfoldTokensArgs` and `Tiles` (unfold/unfold.cu).
unsafe impl Kernel for UnfoldTokens {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("unfold_tokens");
        KernelKey::new(NAME, [self.sequences, self.max_length, self.hidden, self.width])
    }

    fn work(&self) -> Work {
        let row = u64::from(self.hidden).saturating_mul(u64::from(self.width).saturating_add(1));
        Work { flops: 0, bytes: row.saturating_mul(u64::from(self.tokens)).saturating_mul(2) }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        let key = self.key();
        if self.hidden == 0 || self.width.is_multiple_of(2) || self.hidden.checked_mul(self.width).is_none() {
            let reason = "tokens must have elements, and a row an odd number of tokens".into();
            return Err(LaunchError::Unsupported { kernel: key.to_string(), reason });
        }
        let args = UnfoldTokensArgs {
            x: self.x.0,
            starts: self.starts.0,
            lengths: self.lengths.0,
            y: self.y.0,
            max_length: self.max_length,
            hidden: self.hidden,
            width: self.width,
        };
        launch("unfold_tokens", &key, self.sequences.checked_mul(self.max_length), self.work(), sms, Params::new(args))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_stays_within_its_sms, assert_unsupported, h200};
    use super::*;

    fn patches(images: u32, image_size: u32, patch_size: u32) -> UnfoldPatches {
        let stride = 3 * patch_size * patch_size;
        UnfoldPatches { images, channels: 3, image_size, patch_size, stride, pixels: DevicePtr(256), y: DevicePtr(512) }
    }

    fn tokens(sequences: u32, max_length: u32, width: u32) -> UnfoldTokens {
        let [x, starts, lengths, y] = [256, 512, 768, 1024].map(DevicePtr);
        UnfoldTokens { sequences, max_length, tokens: sequences, hidden: 1536, width, x, starts, lengths, y }
    }

    #[test]
    fn unfolding_stays_within_its_sms_at_any_shape() {
        for kernel in [patches(1, 16, 16), patches(8, 224, 16), patches(3, 224, 14)] {
            assert_stays_within_its_sms(&kernel);
        }
        for kernel in [tokens(1, 1, 1), tokens(8, 128, 3), tokens(7, 511, 5)] {
            assert_stays_within_its_sms(&kernel);
        }
    }

    #[test]
    fn unfolding_polls_its_grant_where_it_is_long() {
        let elastic = |kernel: &dyn Kernel, sms| kernel.configure(Sms(sms), &h200()).expect("a supported shape").elastic;
        assert_eq!(
            [(1, 132), (8, 132), (8, 8), (256, 132)].map(|(images, sms)| elastic(&patches(images, 224, 16), sms)),
            [false, false, true, true]
        );
        let batch = |sequences| UnfoldTokens { tokens: sequences * 512, ..tokens(sequences, 512, 3) };
        assert_eq!([(8, 132), (8, 32), (64, 132)].map(|(sequences, sms)| elastic(&batch(sequences), sms)), [false, true, true]);
    }

    #[test]
    fn shapes_that_have_no_rows_or_whose_rows_overlap_are_refused() {
        assert_unsupported(&patches(0, 224, 16), "no rows");
        assert_unsupported(&UnfoldPatches { stride: 767, ..patches(1, 224, 16) }, "rows overlap");
        assert_unsupported(&UnfoldPatches { patch_size: 15, ..patches(1, 224, 16) }, "whole number of patches");
        assert_unsupported(&UnfoldPatches { patch_size: 0, ..patches(1, 224, 16) }, "whole number of patches");
        assert_unsupported(&patches(u32::MAX, 224, 16), "2^32");
        assert_unsupported(&tokens(0, 8, 3), "no rows");
        assert_unsupported(&tokens(8, 8, 4), "odd number");
    }
}
