//! Layer norm and RMS norm, each with an optional fused residual, of all rows or of those picked by index.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::NormArgs;
use super::{is_aligned, outlasts_a_reaction};

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(v - mean) / sqrt(variance + epsilon) * weight + bias`
    Layer,
    /// `v / sqrt(mean(v^2) + epsilon) * weight`
    Rms,
}

/// `sum = x + residual; y = norm(sum)`. Shapes: `x`, `residual`, `sum`, `y` are `[rows, width]`, `weight` and `bias` `[width]`; fp16, row-major, no
/// gaps. `residual` and `sum` may be null; `y` and `sum` may be `x` or `residual`, unless rows are picked.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// Which norm.
    pub kind: NormKind,
    /// Rows to normalise.
    pub rows: u32,
    /// Elements in a row, at most 32768.
    pub width: u32,
    /// Added to the variance.
    pub epsilon: f32,
    /// Input.
    pub x: DevicePtr,
    /// Which row of `x` and `residual` each row of `sum` and `y` comes from, `[rows]` u32; null for its own. `x` and `residual` then have as many
    /// rows as the indices need.
    pub index: DevicePtr,
    /// Added to the input; null for none.
    pub residual: DevicePtr,
    /// Receives the sum; null for none.
    pub sum: DevicePtr,
    /// Scale.
    pub weight: DevicePtr,
    /// Shift; layer norm only.
    pub bias: DevicePtr,
    /// Output.
    pub y: DevicePtr,
}

/// How rows are dealt to threads, by width: `FOR_EACH_ROW_SHAPE` in norm/row.cuh. Named after the widest row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowShape {
    /// A warp a row, 3 chunks of 8 elements a thread.
    Upto768,
    /// A warp a row, 4 chunks.
    Upto1024,
    /// A block a row, 4 chunks, 256 threads at most.
    Upto8192,
    /// A block a row, 4 chunks, 1024 threads at most.
    Upto32768,
}

/// Where the weights of a norm wait: norm/row.cuh. The bits are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WeightsIn {
    Registers,
    L1,
    /// In L1, and rows are read element by element.
    L1Unaligned,
}

impl RowShape {
    pub(super) fn of(width: u32) -> Option<Self> {
        match width {
            1..=768 => Some(Self::Upto768),
            769..=1024 => Some(Self::Upto1024),
            1025..=8192 => Some(Self::Upto8192),
            8193..=32768 => Some(Self::Upto32768),
            _ => None,
        }
    }

    const fn rows_per_tile(self) -> u32 {
        match self {
            Self::Upto768 | Self::Upto1024 => 8,
            Self::Upto8192 | Self::Upto32768 => 1,
        }
    }

    /// Threads in a block for rows of `width`: whole warps, no more than have a chunk.
    fn block(self, width: u32) -> u32 {
        const CHUNKS_OF_A_WARP: u32 = 32 * 4 * 8;
        match self {
            Self::Upto768 | Self::Upto1024 => 256,
            Self::Upto8192 | Self::Upto32768 => width.div_ceil(CHUNKS_OF_A_WARP) * 32,
        }
    }

    /// Blocks of `block` threads that an SM has registers for, given how many of the largest block that it was compiled for.
    fn resident(self, block: u32, compiled_for: u32) -> u32 {
        const BLOCKS: u32 = 32; // that an SM holds at once
        let largest = if self == Self::Upto32768 { 1024 } else { 256 };
        (compiled_for * largest / block).min(BLOCKS)
    }

    /// The launch of a kernel that deals `rows` rows in this shape and was compiled for two blocks on an SM.
    pub(super) fn launch(self, symbol: &'static str, rows: u32, width: u32, sms: Sms, work: Work, params: Params) -> Launch {
        let compiled_for = if self == Self::Upto32768 { 1 } else { 2 };
        self.launch_resident(symbol, rows, width, compiled_for, sms, work, params)
    }

    #[expect(clippy::too_many_arguments, reason = "they are the launch")]
    fn launch_resident(
        self,
        symbol: &'static str,
        rows: u32,
        width: u32,
        compiled_for: u32,
        sms: Sms,
        work: Work,
        params: Params,
    ) -> Launch {
        let tiles = rows.div_ceil(self.rows_per_tile());
        let block = self.block(width);
        let blocks_per_sm = self.resident(block, compiled_for);
        Launch {
            symbol,
            grid: Launch::persistent_grid(tiles, sms, blocks_per_sm),
            block,
            shared_bytes: 0,
            blocks_per_sm,
            tiles,
            blocks_per_tile: 1,
            elastic: outlasts_a_reaction(work, sms),
            programmatic: true,
            begins_by_number: false,
            params,
        }
    }
}

/// The shape for `rows` rows of `width`, or why there is none.
pub(super) fn row_shape(key: &KernelKey, rows: u32, width: u32) -> Result<RowShape, LaunchError> {
    let unsupported = |reason: String| LaunchError::Unsupported { kernel: key.to_string(), reason };
    if rows == 0 {
        return Err(unsupported("there are no rows".into()));
    }
    RowShape::of(width).ok_or_else(|| unsupported(format!("a row has 1 to 32768 elements, not {width}")))
}

impl Norm {
    /// Weights in registers, where they arrive before the rows do, as long as no block has more than one tile; beyond, more rows at once are worth more.
    fn weights_in(&self, shape: RowShape, sms: Sms) -> WeightsIn {
        let pointers = [self.x, self.residual, self.sum, self.weight, self.bias, self.y];
        if !self.width.is_multiple_of(8) || !is_aligned(&pointers) {
            return WeightsIn::L1Unaligned;
        }
        let blocks = u32::from(sms.0) * shape.resident(shape.block(self.width), 2);
        let one_tile_each = self.rows.div_ceil(shape.rows_per_tile()) <= blocks;
        if one_tile_each && shape != RowShape::Upto32768 { WeightsIn::Registers } else { WeightsIn::L1 }
    }
}

// SAFETY: the symbols below take `NormArgs` and `Tiles` (norm/norm.cu).
unsafe impl Kernel for Norm {
    fn key(&self) -> KernelKey {
        const LAYER: KernelName = KernelName::new("layer_norm");
        const RMS: KernelName = KernelName::new("rms_norm");
        let name = match self.kind {
            NormKind::Layer => LAYER,
            NormKind::Rms => RMS,
        };
        KernelKey::new(name, [self.rows, self.width])
    }

    fn work(&self) -> Work {
        let elements = u64::from(self.rows) * u64::from(self.width);
        let passes = 2 + u64::from(!self.residual.is_null()) + u64::from(!self.sum.is_null());
        Work { flops: 6 * elements, bytes: passes * 2 * elements + 4 * u64::from(self.width) }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        use NormKind::{Layer, Rms};
        use RowShape::{Upto768, Upto1024, Upto8192, Upto32768};
        use WeightsIn::{L1, L1Unaligned, Registers};
        let shape = row_shape(&self.key(), self.rows, self.width)?;
        let weights_in = self.weights_in(shape, sms);
        let symbol = match (self.kind, shape, weights_in) {
            (Layer, Upto768, Registers) => "layer_norm_768_kept",
            (Layer, Upto768, L1) => "layer_norm_768_streamed",
            (Layer, Upto768, L1Unaligned) => "layer_norm_768_unaligned",
            (Layer, Upto1024, Registers) => "layer_norm_1024_kept",
            (Layer, Upto1024, L1) => "layer_norm_1024_streamed",
            (Layer, Upto1024, L1Unaligned) => "layer_norm_1024_unaligned",
            (Layer, Upto8192, Registers) => "layer_norm_8192_kept",
            (Layer, Upto8192, L1) => "layer_norm_8192_streamed",
            (Layer, Upto8192, L1Unaligned) => "layer_norm_8192_unaligned",
            (Layer, Upto32768, Registers | L1) => "layer_norm_32768_streamed",
            (Layer, Upto32768, L1Unaligned) => "layer_norm_32768_unaligned",
            (Rms, Upto768, Registers) => "rms_norm_768_kept",
            (Rms, Upto768, L1) => "rms_norm_768_streamed",
            (Rms, Upto768, L1Unaligned) => "rms_norm_768_unaligned",
            (Rms, Upto1024, Registers) => "rms_norm_1024_kept",
            (Rms, Upto1024, L1) => "rms_norm_1024_streamed",
            (Rms, Upto1024, L1Unaligned) => "rms_norm_1024_unaligned",
            (Rms, Upto8192, Registers) => "rms_norm_8192_kept",
            (Rms, Upto8192, L1) => "rms_norm_8192_streamed",
            (Rms, Upto8192, L1Unaligned) => "rms_norm_8192_unaligned",
            (Rms, Upto32768, Registers | L1) => "rms_norm_32768_streamed",
            (Rms, Upto32768, L1Unaligned) => "rms_norm_32768_unaligned",
        };
        let compiled_for = match (shape, weights_in) {
            (Upto768, L1) => 5,
            (Upto1024 | Upto8192, L1) => 4,
            (Upto768 | Upto1024 | Upto8192, _) => 2,
            (Upto32768, _) => 1,
        };
        let args = NormArgs {
            x: self.x.0,
            residual: self.residual.0,
            sum: self.sum.0,
            weight: self.weight.0,
            bias: self.bias.0,
            y: self.y.0,
            index: self.index.0,
            rows: self.rows,
            width: self.width,
            epsilon: self.epsilon,
        };
        Ok(shape.launch_resident(symbol, self.rows, self.width, compiled_for, sms, self.work(), Params::new(args)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_stays_within_its_sms, assert_unsupported, h200};
    use super::*;

    fn norm(rows: u32, width: u32) -> Norm {
        Norm {
            kind: NormKind::Layer,
            rows,
            width,
            epsilon: 1e-5,
            x: DevicePtr(256),
            index: DevicePtr::NULL,
            residual: DevicePtr(512),
            sum: DevicePtr(768),
            weight: DevicePtr(1024),
            bias: DevicePtr(1280),
            y: DevicePtr(1536),
        }
    }

    fn symbol(norm: Norm) -> &'static str {
        norm.configure(Sms(132), &h200()).expect("a supported shape").symbol
    }

    #[test]
    fn a_norm_stays_within_its_sms_at_any_shape() {
        for rows in [1, 7, 8, 9, 1000, u32::MAX] {
            for width in [1, 768, 769, 1024, 1025, 2048, 8192, 8193, 32_768] {
                assert_stays_within_its_sms(&norm(rows, width));
            }
        }
    }

    #[test]
    fn a_norm_without_rows_or_of_rows_too_long_is_refused() {
        assert_unsupported(&norm(0, 768), "no rows");
        assert_unsupported(&norm(4, 0), "not 0");
        assert_unsupported(&norm(4, 32_769), "not 32769");
    }

    #[test]
    fn the_shape_follows_the_width_and_wide_loads_need_aligned_rows() {
        assert_eq!(
            [768, 1024, 1032, 8192, 8200].map(|width| symbol(norm(1, width))),
            ["layer_norm_768_kept", "layer_norm_1024_kept", "layer_norm_8192_kept", "layer_norm_8192_kept", "layer_norm_32768_streamed"]
        );
        assert_eq!(symbol(norm(1, 1023)), "layer_norm_1024_unaligned");
        assert_eq!(symbol(Norm { y: DevicePtr(1538), ..norm(1, 1024) }), "layer_norm_1024_unaligned");
        let rms = Norm { kind: NormKind::Rms, bias: DevicePtr::NULL, residual: DevicePtr::NULL, sum: DevicePtr::NULL, ..norm(1, 4096) };
        assert_eq!(symbol(rms), "rms_norm_8192_kept");
    }

    #[test]
    fn weights_stay_in_registers_while_a_block_has_one_tile() {
        let at = |rows, sms| norm(rows, 768).configure(Sms(sms), &h200()).expect("a supported shape").symbol;
        assert_eq!(at(1024, 132), "layer_norm_768_kept");
        assert_eq!(at(1024, 8), "layer_norm_768_streamed");
        assert_eq!(at(8192, 132), "layer_norm_768_streamed");
    }

    #[test]
    fn a_norm_polls_its_grant_where_it_is_long() {
        let elastic = |rows, sms| norm(rows, 4096).configure(Sms(sms), &h200()).expect("a supported shape").elastic;
        assert_eq!([(8, 2), (1024, 132), (1024, 8), (8192, 132)].map(|(rows, sms)| elastic(rows, sms)), [false, false, true, true]);
        // Without a residual, measured: 25.8 us on 32 SMs and 14.3 on 64.
        let of_bert_large = |sms| {
            let norm = Norm { residual: DevicePtr::NULL, sum: DevicePtr::NULL, ..norm(8192, 1024) };
            norm.configure(Sms(sms), &h200()).expect("a supported shape").elastic
        };
        assert_eq!([26, 32, 64, 132].map(of_bert_large), [true, true, false, false]);
    }

    #[test]
    fn absent_operands_are_no_bytes() {
        let all = norm(10, 100).work().bytes;
        assert_eq!(all, 4 * 2 * 1000 + 4 * 100);
        assert_eq!(Norm { residual: DevicePtr::NULL, sum: DevicePtr::NULL, ..norm(10, 100) }.work().bytes, 2 * 2 * 1000 + 4 * 100);
    }
}
