//! Token embeddings: a row of a table for each token ([`Embed`]), with a row of a second table for its position ([`EmbedWithPositions`], GPT-2), and
//! for BERT the sum of three tables, normalised.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::EmbedArgs;
use super::is_aligned;
use super::norm::{RowShape, row_shape};

mod positions;

pub use positions::EmbedWithPositions;

/// `y[row] = words[ids[row]]`. Shapes: `ids` `[rows]` u32, `words` `[vocabulary, width]`, `y` `[rows, width]`; fp16, row-major, no gaps.
///
/// The caller checks that every id is below `vocabulary`; a row whose id is not becomes NaN.
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
    /// What BERT adds; none for decoders.
    pub bert: Option<BertEmbedding>,
    /// Output.
    pub y: DevicePtr,
}

/// `y = layer_norm(words[id] + position_table[position] + type_table[0]) * weight + bias`.
#[derive(Debug, Clone, Copy)]
pub struct BertEmbedding {
    /// Positions, `[rows]` u32, each below `max_positions`.
    pub positions: DevicePtr,
    /// `[max_positions, width]`; null for none (DeBERTa), and then `positions` are not read.
    pub position_table: DevicePtr,
    /// Rows of `position_table`.
    pub max_positions: u32,
    /// `[*, width]`, of which row 0 is added; null for none (DistilBERT).
    pub type_table: DevicePtr,
    /// `[width]`.
    pub weight: DevicePtr,
    /// `[width]`.
    pub bias: DevicePtr,
    /// Added to the variance.
    pub epsilon: f32,
}

// SAFETY: the symbols below take `EmbedArgs` and `Tiles` (embedding/embedding.cu).
unsafe impl Kernel for Embed {
    fn key(&self) -> KernelKey {
        const TOKENS: KernelName = KernelName::new("embed_tokens");
        const BERT: KernelName = KernelName::new("embed_bert");
        KernelKey::new(if self.bert.is_some() { BERT } else { TOKENS }, [self.rows, self.width])
    }

    fn work(&self) -> Work {
        let elements = u64::from(self.rows) * u64::from(self.width);
        let (flops, passes) = if self.bert.is_some() { (8, 3) } else { (0, 2) };
        Work { flops: flops * elements, bytes: passes * 2 * elements + 4 * u64::from(self.rows) }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        let shape = row_shape(&self.key(), self.rows, self.width)?;
        // The kernel reads row 0 in place of a row that does not exist.
        if self.vocabulary == 0 || self.bert.is_some_and(|bert| !bert.position_table.is_null() && bert.max_positions == 0) {
            return Err(LaunchError::Unsupported { kernel: self.key().to_string(), reason: "a table has no rows".into() });
        }
        let mut args = EmbedArgs {
            ids: self.ids.0,
            words: self.words.0,
            positions: 0,
            position_table: 0,
            type_table: 0,
            weight: 0,
            bias: 0,
            y: self.y.0,
            rows: self.rows,
            width: self.width,
            vocabulary: self.vocabulary,
            max_positions: 0,
            epsilon: 0.0,
        };
        let mut aligned = self.width.is_multiple_of(8) && is_aligned(&[self.words, self.y]);
        if let Some(bert) = &self.bert {
            aligned = aligned && is_aligned(&[bert.position_table, bert.type_table, bert.weight, bert.bias]);
            args.positions = bert.positions.0;
            args.position_table = bert.position_table.0;
            args.type_table = bert.type_table.0;
            args.weight = bert.weight.0;
            args.bias = bert.bias.0;
            args.max_positions = bert.max_positions;
            args.epsilon = bert.epsilon;
        }
        let symbol = symbol(self.bert.is_some(), shape, aligned);
        Ok(shape.launch(symbol, self.rows, sms, Params::new(args)))
    }
}

/// The entry point for rows of this shape.
fn symbol(bert: bool, shape: RowShape, aligned: bool) -> &'static str {
    match (bert, shape, aligned) {
        (false, RowShape::Narrow, true) => "embed_tokens_narrow",
        (false, RowShape::Narrow, false) => "embed_tokens_narrow_unaligned",
        (false, RowShape::Middle, true) => "embed_tokens_middle",
        (false, RowShape::Middle, false) => "embed_tokens_middle_unaligned",
        (false, RowShape::Wide, true) => "embed_tokens_wide",
        (false, RowShape::Wide, false) => "embed_tokens_wide_unaligned",
        (true, RowShape::Narrow, true) => "embed_bert_narrow",
        (true, RowShape::Narrow, false) => "embed_bert_narrow_unaligned",
        (true, RowShape::Middle, true) => "embed_bert_middle",
        (true, RowShape::Middle, false) => "embed_bert_middle_unaligned",
        (true, RowShape::Wide, true) => "embed_bert_wide",
        (true, RowShape::Wide, false) => "embed_bert_wide_unaligned",
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_stays_within_its_sms, assert_unsupported, h200};
    use super::*;

    const BERT: BertEmbedding = BertEmbedding {
        positions: DevicePtr(256),
        position_table: DevicePtr(512),
        max_positions: 512,
        type_table: DevicePtr::NULL,
        weight: DevicePtr(768),
        bias: DevicePtr(1024),
        epsilon: 1e-12,
    };

    fn embed(rows: u32, width: u32, bert: Option<BertEmbedding>) -> Embed {
        Embed { rows, width, vocabulary: 1000, ids: DevicePtr(4), words: DevicePtr(256), bert, y: DevicePtr(512) }
    }

    #[test]
    fn an_embedding_stays_within_its_sms_at_any_shape() {
        for bert in [None, Some(BERT)] {
            for (rows, width) in [(1, 1), (9, 768), (1000, 1025), (3, 8193), (u32::MAX, 32_768)] {
                assert_stays_within_its_sms(&embed(rows, width, bert));
            }
        }
    }

    #[test]
    fn an_embedding_without_rows_or_from_an_empty_table_is_refused() {
        for bert in [None, Some(BERT)] {
            assert_unsupported(&embed(0, 768, bert), "no rows");
            assert_unsupported(&embed(4, 32_769, bert), "not 32769");
            assert_unsupported(&Embed { vocabulary: 0, ..embed(4, 768, bert) }, "a table has no rows");
        }
        assert_unsupported(&embed(4, 768, Some(BertEmbedding { max_positions: 0, ..BERT })), "a table has no rows");
        assert_stays_within_its_sms(&embed(4, 768, Some(BertEmbedding { max_positions: 0, position_table: DevicePtr::NULL, ..BERT })));
    }

    #[test]
    fn wide_loads_need_every_table_aligned() {
        let symbol = |embed: Embed| embed.configure(Sms(132), &h200()).expect("a supported shape").symbol;
        assert_eq!(symbol(embed(4, 768, Some(BERT))), "embed_bert_narrow");
        assert_eq!(symbol(embed(4, 768, Some(BertEmbedding { bias: DevicePtr(1026), ..BERT }))), "embed_bert_narrow_unaligned");
        assert_eq!(symbol(embed(4, 4096, None)), "embed_tokens_middle");
        assert_eq!(symbol(embed(4, 4095, None)), "embed_tokens_middle_unaligned");
    }
}
