//! Layer norm and RMS norm, each with an optional fused residual.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::NormArgs;
use super::is_aligned;

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(v - mean) / sqrt(variance + epsilon) * weight + bias`
    Layer,
    /// `v / sqrt(mean(v^2) + epsilon) * weight`
    Rms,
}

/// `sum = x + residual; y = norm(sum)`. Shapes: `x`, `residual`, `sum`, `y` are `[rows, width]`, `weight` and `bias` `[width]`; fp16, row-major, no
/// gaps. `residual` and `sum` may be null; `y` and `sum` may be `x` or `residual`.
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

/// How rows are dealt to threads, by width: `FOR_EACH_ROW_SHAPE` in norm/row.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowShape {
    Narrow,
    Middle,
    Wide,
}

impl RowShape {
    pub(super) fn of(width: u32) -> Option<Self> {
        match width {
            1..=1024 => Some(Self::Narrow),
            1025..=8192 => Some(Self::Middle),
            8193..=32768 => Some(Self::Wide),
            _ => None,
        }
    }

    pub(super) fn rows_per_tile(self) -> u32 {
        if self == Self::Narrow { 8 } else { 1 }
    }

    fn block(self) -> u32 {
        if self == Self::Wide { 1024 } else { 256 }
    }

    /// By registers: at most 101 a thread in blocks of 256, 64 in blocks of 1024.
    fn blocks_per_sm(self) -> u32 {
        if self == Self::Wide { 1 } else { 2 }
    }

    /// The launch of a kernel that deals `rows` rows in this shape.
    pub(super) fn launch(self, symbol: &'static str, rows: u32, sms: Sms, params: Params) -> Launch {
        let tiles = rows.div_ceil(self.rows_per_tile());
        Launch {
            symbol,
            grid: Launch::persistent_grid(tiles, sms, self.blocks_per_sm()),
            block: self.block(),
            shared_bytes: 0,
            blocks_per_sm: self.blocks_per_sm(),
            tiles,
            elastic: false,
            programmatic: true,
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
        let shape = row_shape(&self.key(), self.rows, self.width)?;
        let aligned = self.width.is_multiple_of(8) && is_aligned(&[self.x, self.residual, self.sum, self.weight, self.bias, self.y]);
        let symbol = match (self.kind, shape, aligned) {
            (NormKind::Layer, RowShape::Narrow, true) => "layer_norm_narrow",
            (NormKind::Layer, RowShape::Narrow, false) => "layer_norm_narrow_unaligned",
            (NormKind::Layer, RowShape::Middle, true) => "layer_norm_middle",
            (NormKind::Layer, RowShape::Middle, false) => "layer_norm_middle_unaligned",
            (NormKind::Layer, RowShape::Wide, true) => "layer_norm_wide",
            (NormKind::Layer, RowShape::Wide, false) => "layer_norm_wide_unaligned",
            (NormKind::Rms, RowShape::Narrow, true) => "rms_norm_narrow",
            (NormKind::Rms, RowShape::Narrow, false) => "rms_norm_narrow_unaligned",
            (NormKind::Rms, RowShape::Middle, true) => "rms_norm_middle",
            (NormKind::Rms, RowShape::Middle, false) => "rms_norm_middle_unaligned",
            (NormKind::Rms, RowShape::Wide, true) => "rms_norm_wide",
            (NormKind::Rms, RowShape::Wide, false) => "rms_norm_wide_unaligned",
        };
        let args = NormArgs {
            x: self.x.0,
            residual: self.residual.0,
            sum: self.sum.0,
            weight: self.weight.0,
            bias: self.bias.0,
            y: self.y.0,
            rows: self.rows,
            width: self.width,
            epsilon: self.epsilon,
        };
        Ok(shape.launch(symbol, self.rows, sms, Params::new(args)))
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
            for width in [1, 768, 1024, 1025, 8192, 8193, 32_768] {
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
            [1024, 1032, 8192, 8200].map(|width| symbol(norm(1, width))),
            ["layer_norm_narrow", "layer_norm_middle", "layer_norm_middle", "layer_norm_wide"]
        );
        assert_eq!(symbol(norm(1, 1023)), "layer_norm_narrow_unaligned");
        assert_eq!(symbol(Norm { y: DevicePtr(1538), ..norm(1, 1024) }), "layer_norm_narrow_unaligned");
        let rms = Norm { kind: NormKind::Rms, bias: DevicePtr::NULL, residual: DevicePtr::NULL, sum: DevicePtr::NULL, ..norm(1, 4096) };
        assert_eq!(symbol(rms), "rms_norm_middle");
    }

    #[test]
    fn absent_operands_are_no_bytes() {
        let all = norm(10, 100).work().bytes;
        assert_eq!(all, 4 * 2 * 1000 + 4 * 100);
        assert_eq!(Norm { residual: DevicePtr::NULL, sum: DevicePtr::NULL, ..norm(10, 100) }.work().bytes, 2 * 2 * 1000 + 4 * 100);
    }
}
