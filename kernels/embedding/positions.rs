//! Token embeddings with learned positions.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::super::abi::EmbedArgs;
use super::super::is_aligned;
use super::super::norm::row_shape;
use super::symbol;

/// `y[row] = words[ids[row]] + position_table[positions[row]]`. Shapes: `ids`, `positions` `[rows]` u32, `words` `[vocabulary, width]`, `position_table`
/// `[max_positions, width]`, `y` `[rows, width]`; fp16, row-major, no gaps; the sum is rounded once.
///
/// The caller checks ids and positions against the tables; a row with one beyond them becomes NaN.
///
/// Source: Radford et al., "Improving Language Understanding by Generative Pre-Training", 2018, eq. 2.
#[derive(Debug, Clone, Copy)]
pub struct EmbedWithPositions {
    /// Tokens.
    pub rows: u32,
    /// Elements in a row, at most 32768.
    pub width: u32,
    /// Rows of `words`.
    pub vocabulary: u32,
    /// Rows of `position_table`.
    pub max_positions: u32,
    /// Token ids.
    pub ids: DevicePtr,
    /// The tokens' table.
    pub words: DevicePtr,
    /// Positions.
    pub positions: DevicePtr,
    /// The positions' table.
    pub position_table: DevicePtr,
    /// Output.
    pub y: DevicePtr,
}

// SAFETY: the symbols of `symbol` take `EmbedArgs` and `Tiles` (embedding/embedding.cu).
unsafe impl Kernel for EmbedWithPositions {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("embed_positions");
        KernelKey::new(NAME, [self.rows, self.width])
    }

    fn work(&self) -> Work {
        let elements = u64::from(self.rows) * u64::from(self.width);
        Work { flops: elements, bytes: 3 * 2 * elements + 8 * u64::from(self.rows) }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        let unsupported = |reason: &str| LaunchError::Unsupported { kernel: self.key().to_string(), reason: reason.into() };
        let shape = row_shape(&self.key(), self.rows, self.width)?;
        // The kernel reads row 0 in place of a row that does not exist.
        if self.vocabulary == 0 || self.max_positions == 0 {
            return Err(unsupported("a table has no rows"));
        }
        // To the kernel, no table means no positions.
        if self.position_table.is_null() {
            return Err(unsupported("the table of the positions is null"));
        }
        let args = EmbedArgs {
            ids: self.ids.0,
            words: self.words.0,
            positions: self.positions.0,
            position_table: self.position_table.0,
            type_table: 0,
            weight: 0,
            bias: 0,
            y: self.y.0,
            rows: self.rows,
            width: self.width,
            vocabulary: self.vocabulary,
            max_positions: self.max_positions,
            epsilon: 0.0,
        };
        let aligned = self.width.is_multiple_of(8) && is_aligned(&[self.words, self.position_table, self.y]);
        Ok(shape.launch(symbol(false, shape, aligned), self.rows, sms, Params::new(args)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{assert_stays_within_its_sms, assert_unsupported, h200};
    use super::*;

    fn embed(rows: u32, width: u32) -> EmbedWithPositions {
        EmbedWithPositions {
            rows,
            width,
            vocabulary: 50_257,
            max_positions: 1024,
            ids: DevicePtr(4),
            words: DevicePtr(256),
            positions: DevicePtr(8),
            position_table: DevicePtr(512),
            y: DevicePtr(1024),
        }
    }

    #[test]
    fn an_embedding_with_positions_stays_within_its_sms_at_any_shape() {
        for (rows, width) in [(1, 1), (9, 768), (1000, 1025), (3, 8193), (u32::MAX, 32_768)] {
            assert_stays_within_its_sms(&embed(rows, width));
        }
    }

    #[test]
    fn an_embedding_with_positions_without_rows_or_tables_is_refused() {
        assert_unsupported(&embed(0, 768), "no rows");
        assert_unsupported(&EmbedWithPositions { vocabulary: 0, ..embed(4, 768) }, "a table has no rows");
        assert_unsupported(&EmbedWithPositions { max_positions: 0, ..embed(4, 768) }, "a table has no rows");
        assert_unsupported(&EmbedWithPositions { position_table: DevicePtr::NULL, ..embed(4, 768) }, "is null");
    }

    #[test]
    fn wide_loads_need_both_tables_aligned() {
        let symbol = |embed: EmbedWithPositions| embed.configure(Sms(132), &h200()).expect("a supported shape").symbol;
        assert_eq!(symbol(embed(4, 768)), "embed_tokens_narrow");
        assert_eq!(symbol(EmbedWithPositions { position_table: DevicePtr(514), ..embed(4, 768) }), "embed_tokens_narrow_unaligned");
    }
}
