//! Token embeddings: the sum of up to three tables' rows for each token, normalised or not.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::EmbedArgs;
use super::is_aligned;
use super::norm::{NormKind, RowShape, row_shape};

/// `v = words[id] + positions.table[position] + type_table[0]; sum = v; y = norm(v)`. Shapes: `ids` `[rows]` u32, `words` `[vocabulary, width]`, `sum`
/// and `y` `[rows, width]`; fp16, row-major, no gaps. Sum and norm are of unrounded numbers.
///
/// The caller checks that every id is below `vocabulary` and every position below its table's; rows of which one is not become NaN.
#[derive(Debug, Clone, Copy)]
pub struct Embed {
    /// Tokens.
    pub rows: u32,
    /// Elements in a row, at most 32768.
    pub width: u32,
    /// Rows of `words`.
    pub vocabulary: u32,
    /// Token ids.
    pub ids: DevicePtr,
    /// The table.
    pub words: DevicePtr,
    /// Learned positions (BERT, GPT-2).
    pub positions: Option<PositionTable>,
    /// `[*, width]`, of which row 0 is added (BERT's token types); null for none.
    pub type_table: DevicePtr,
    /// Receives the sum where `y` receives the norm of it; null for none.
    pub sum: DevicePtr,
    /// None: `y` receives the sum.
    pub norm: Option<EmbedNorm>,
    /// Output.
    pub y: DevicePtr,
}

/// Learned positions.
#[derive(Debug, Clone, Copy)]
pub struct PositionTable {
    /// The position of each row, `[rows]` u32, each below `entries`.
    pub positions: DevicePtr,
    /// `[entries, width]`.
    pub table: DevicePtr,
    /// Rows of the table.
    pub entries: u32,
}

/// The norm of an embedding: BERT's own, or that of a decoder's first layer.
#[derive(Debug, Clone, Copy)]
pub struct EmbedNorm {
    /// Which norm.
    pub kind: NormKind,
    /// `[width]`.
    pub weight: DevicePtr,
    /// `[width]`; layer norm only.
    pub bias: DevicePtr,
    /// Added to the variance.
    pub epsilon: f32,
}

impl Embed {
    fn kind(&self) -> Option<NormKind> {
        self.norm.map(|norm| norm.kind)
    }
}

// SAFETY: the symbols below take `EmbedArgs` and `Tiles` (embedding/embedding.cu).
unsafe impl Kernel for Embed {
    fn key(&self) -> KernelKey {
        const PLAIN: KernelName = KernelName::new("embed");
        const LAYER: KernelName = KernelName::new("embed_layer_norm");
        const RMS: KernelName = KernelName::new("embed_rms_norm");
        let name = match self.kind() {
            None => PLAIN,
            Some(NormKind::Layer) => LAYER,
            Some(NormKind::Rms) => RMS,
        };
        KernelKey::new(name, [self.rows, self.width])
    }

    fn work(&self) -> Work {
        let elements = u64::from(self.rows) * u64::from(self.width);
        let flops = if self.norm.is_some() { 8 } else { u64::from(self.positions.is_some()) };
        let passes = 2 + u64::from(self.positions.is_some()) + u64::from(!self.sum.is_null());
        Work { flops: flops * elements, bytes: passes * 2 * elements + 4 * u64::from(self.rows) }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        use NormKind::{Layer, Rms};
        use RowShape::{Upto768, Upto1024, Upto8192, Upto32768};
        let shape = row_shape(&self.key(), self.rows, self.width)?;
        // The kernel reads row 0 in place of a row that does not exist.
        if self.vocabulary == 0 || self.positions.is_some_and(|positions| positions.entries == 0) {
            return Err(LaunchError::Unsupported { kernel: self.key().to_string(), reason: "a table has no rows".into() });
        }
        let mut args = EmbedArgs {
            ids: self.ids.0,
            words: self.words.0,
            positions: 0,
            position_table: 0,
            type_table: self.type_table.0,
            sum: self.sum.0,
            weight: 0,
            bias: 0,
            y: self.y.0,
            rows: self.rows,
            width: self.width,
            vocabulary: self.vocabulary,
            max_positions: 0,
            epsilon: 0.0,
        };
        let mut aligned = self.width.is_multiple_of(8) && is_aligned(&[self.words, self.type_table, self.sum, self.y]);
        if let Some(positions) = &self.positions {
            aligned = aligned && is_aligned(&[positions.table]);
            args.positions = positions.positions.0;
            args.position_table = positions.table.0;
            args.max_positions = positions.entries;
        }
        if let Some(norm) = &self.norm {
            aligned = aligned && is_aligned(&[norm.weight, norm.bias]);
            args.weight = norm.weight.0;
            args.bias = norm.bias.0;
            args.epsilon = norm.epsilon;
        }
        let symbol = match (self.kind(), shape, aligned) {
            (None, Upto768, true) => "embed_768",
            (None, Upto768, false) => "embed_768_unaligned",
            (None, Upto1024, true) => "embed_1024",
            (None, Upto1024, false) => "embed_1024_unaligned",
            (None, Upto8192, true) => "embed_8192",
            (None, Upto8192, false) => "embed_8192_unaligned",
            (None, Upto32768, true) => "embed_32768",
            (None, Upto32768, false) => "embed_32768_unaligned",
            (Some(Layer), Upto768, true) => "embed_layer_norm_768",
            (Some(Layer), Upto768, false) => "embed_layer_norm_768_unaligned",
            (Some(Layer), Upto1024, true) => "embed_layer_norm_1024",
            (Some(Layer), Upto1024, false) => "embed_layer_norm_1024_unaligned",
            (Some(Layer), Upto8192, true) => "embed_layer_norm_8192",
            (Some(Layer), Upto8192, false) => "embed_layer_norm_8192_unaligned",
            (Some(Layer), Upto32768, true) => "embed_layer_norm_32768",
            (Some(Layer), Upto32768, false) => "embed_layer_norm_32768_unaligned",
            (Some(Rms), Upto768, true) => "embed_rms_norm_768",
            (Some(Rms), Upto768, false) => "embed_rms_norm_768_unaligned",
            (Some(Rms), Upto1024, true) => "embed_rms_norm_1024",
            (Some(Rms), Upto1024, false) => "embed_rms_norm_1024_unaligned",
            (Some(Rms), Upto8192, true) => "embed_rms_norm_8192",
            (Some(Rms), Upto8192, false) => "embed_rms_norm_8192_unaligned",
            (Some(Rms), Upto32768, true) => "embed_rms_norm_32768",
            (Some(Rms), Upto32768, false) => "embed_rms_norm_32768_unaligned",
        };
        Ok(shape.launch(symbol, self.rows, self.width, sms, self.work(), Params::new(args)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_stays_within_its_sms, assert_unsupported, h200};
    use super::*;

    const POSITIONS: PositionTable = PositionTable { positions: DevicePtr(256), table: DevicePtr(512), entries: 512 };
    const LAYER: EmbedNorm = EmbedNorm { kind: NormKind::Layer, weight: DevicePtr(768), bias: DevicePtr(1024), epsilon: 1e-12 };
    const RMS: EmbedNorm = EmbedNorm { kind: NormKind::Rms, bias: DevicePtr::NULL, ..LAYER };

    fn embed(rows: u32, width: u32, norm: Option<EmbedNorm>) -> Embed {
        Embed {
            rows,
            width,
            vocabulary: 1000,
            ids: DevicePtr(4),
            words: DevicePtr(256),
            positions: Some(POSITIONS),
            type_table: DevicePtr::NULL,
            sum: DevicePtr::NULL,
            norm,
            y: DevicePtr(512),
        }
    }

    #[test]
    fn an_embedding_stays_within_its_sms_at_any_shape() {
        for norm in [None, Some(LAYER), Some(RMS)] {
            for (rows, width) in [(1, 1), (9, 768), (1000, 1025), (3, 8193), (u32::MAX, 32_768)] {
                assert_stays_within_its_sms(&embed(rows, width, norm));
            }
        }
    }

    #[test]
    fn an_embedding_without_rows_or_from_an_empty_table_is_refused() {
        for norm in [None, Some(LAYER), Some(RMS)] {
            assert_unsupported(&embed(0, 768, norm), "no rows");
            assert_unsupported(&embed(4, 32_769, norm), "not 32769");
            assert_unsupported(&Embed { vocabulary: 0, ..embed(4, 768, norm) }, "a table has no rows");
            let positions = Some(PositionTable { entries: 0, ..POSITIONS });
            assert_unsupported(&Embed { positions, ..embed(4, 768, norm) }, "a table has no rows");
        }
    }

    #[test]
    fn wide_loads_need_every_operand_aligned() {
        let symbol = |embed: Embed| embed.configure(Sms(132), &h200()).expect("a supported shape").symbol;
        assert_eq!(symbol(embed(4, 768, Some(LAYER))), "embed_layer_norm_768");
        assert_eq!(symbol(embed(4, 768, Some(EmbedNorm { bias: DevicePtr(1026), ..LAYER }))), "embed_layer_norm_768_unaligned");
        assert_eq!(symbol(Embed { sum: DevicePtr(1026), ..embed(4, 1024, Some(RMS)) }), "embed_rms_norm_1024_unaligned");
        assert_eq!(symbol(embed(4, 4096, None)), "embed_8192");
        assert_eq!(symbol(embed(4, 4095, None)), "embed_8192_unaligned");
    }

    #[test]
    fn each_table_and_each_output_counts_its_bytes() {
        let all = Embed { sum: DevicePtr(2048), ..embed(10, 100, Some(RMS)) }.work().bytes;
        assert_eq!(all, 4 * 2 * 1000 + 4 * 10);
        assert_eq!(Embed { positions: None, ..embed(10, 100, None) }.work().bytes, 2 * 2 * 1000 + 4 * 10);
    }
}
