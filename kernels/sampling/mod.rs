//! The next token of each row: greedy, or drawn at a temperature from the top k and the top p.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

pub use super::abi::SampleParams;
use super::abi::{SAMPLE_BINS, SAMPLE_SEGMENT, SAMPLE_SHARED_BYTES, SampleArgs, SampleBin, SamplePart};
use super::outlasts_a_reaction_at;

/// Draws a token for each row; the definition stands in sampling/sample.cu. Shapes: `logits` `[rows, vocabulary]` fp32; `params` `[rows]` of
/// [`SampleParams`]; `tokens`, `positions`, `lengths`, `arrivals` `[rows]` u32.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Sequences.
    pub rows: u32,
    /// Tokens to choose from, at most 2^24.
    pub vocabulary: u32,
    /// Input.
    pub logits: DevicePtr,
    /// Input.
    pub params: DevicePtr,
    /// Output.
    pub tokens: DevicePtr,
    /// Each gains 1, so that the next step is one further on; null for none.
    pub positions: DevicePtr,
    /// Each gains 1; null for none.
    pub lengths: DevicePtr,
    /// All 0 before a launch, and again after it.
    pub arrivals: DevicePtr,
    /// [`Sample::scratch_bytes`] bytes of any content, at a multiple of 16, of no other launch at the same time.
    pub scratch: DevicePtr,
}

/// How rows are cut into parts of whole segments, one tile each. It follows from the shape alone, and tokens do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parts {
    segments: u32,
    segments_per_part: u32,
    parts_per_row: u32,
}

impl Parts {
    /// Where there are so many parts already, larger ones save work; about an H200's SMs.
    const ENOUGH: u64 = 128;
    /// One segment for each of a block's 32 warps.
    const LEAST_SEGMENTS: u64 = 32;
    /// 2^16 tokens, whose masses still fit a histogram's counters.
    const MOST_SEGMENTS: u64 = 256;

    fn of(rows: u32, vocabulary: u32) -> Self {
        let segments = vocabulary.div_ceil(SAMPLE_SEGMENT);
        let wanted = (u64::from(segments) * u64::from(rows)).div_ceil(Self::ENOUGH);
        let segments_per_part = wanted.clamp(Self::LEAST_SEGMENTS, Self::MOST_SEGMENTS) as u32;
        Self { segments, segments_per_part, parts_per_row: segments.div_ceil(segments_per_part) }
    }
}

impl Sample {
    /// What an SM reads in a microsecond, between 10 000 for greedy draws and 2000 for such that sort (docs/kernels/rowwise.md): how a row is drawn stands in device memory.
    const BYTES_PER_MICROSECOND: u64 = 5_000;

    /// Bytes of [`scratch`](Sample::scratch) for `rows` rows, enough for fewer as well.
    pub fn scratch_bytes(rows: u32, vocabulary: u32) -> u64 {
        let segments = u64::from(vocabulary.div_ceil(SAMPLE_SEGMENT));
        let rows = u64::from(rows);
        // Rows in parts of the largest size; or at most one part short of its size in each row, and the full ones not more than enough.
        let most_parts = (rows * segments.div_ceil(Parts::MOST_SEGMENTS)).max(Parts::ENOUGH + rows);
        most_parts * Layout::PART + 4 * rows * segments
    }
}

/// Where everything lies in the scratch, bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    parts: u64,
    segments: u64,
    bytes: u64,
}

impl Layout {
    const HISTOGRAM: u64 = SAMPLE_BINS as u64 * size_of::<SampleBin>() as u64;
    const PART: u64 = Self::HISTOGRAM + size_of::<SamplePart>() as u64;

    /// Histograms come first.
    fn of(rows: u32, vocabulary: u32) -> Self {
        let parts = Parts::of(rows, vocabulary);
        let tiles = u64::from(rows) * u64::from(parts.parts_per_row);
        let segments = tiles * Self::PART;
        Self { parts: tiles * Self::HISTOGRAM, segments, bytes: segments + 4 * u64::from(rows) * u64::from(parts.segments) }
    }
}

// SAFETY: `sample_tokens` takes `SampleArgs` and `Tiles` (sampling/sample.cu).
unsafe impl Kernel for Sample {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("sample_tokens");
        KernelKey::new(NAME, [self.rows, self.vocabulary])
    }

    fn work(&self) -> Work {
        let logits = u64::from(self.rows) * u64::from(self.vocabulary);
        Work { flops: logits, bytes: 4 * logits }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        const MOST_TOKENS: u32 = 1 << 24; // whose masses still fit 64 bits
        let unsupported = |reason: String| LaunchError::Unsupported { kernel: self.key().to_string(), reason };
        if self.rows == 0 || self.vocabulary == 0 {
            return Err(unsupported("there are no rows, or no tokens to choose from".to_owned()));
        }
        if self.vocabulary > MOST_TOKENS {
            return Err(unsupported(format!("at most {MOST_TOKENS} tokens can be chosen from")));
        }
        let parts = Parts::of(self.rows, self.vocabulary);
        let tiles = self.rows.checked_mul(parts.parts_per_row).ok_or_else(|| unsupported("there are too many rows".to_owned()))?;
        let layout = Layout::of(self.rows, self.vocabulary);
        let args = SampleArgs {
            logits: self.logits.0,
            params: self.params.0,
            tokens: self.tokens.0,
            positions: self.positions.0,
            lengths: self.lengths.0,
            arrivals: self.arrivals.0,
            parts: self.scratch.0 + layout.parts,
            segments: self.scratch.0 + layout.segments,
            histograms: self.scratch.0,
            rows: self.rows,
            vocabulary: self.vocabulary,
            parts_per_row: parts.parts_per_row,
            segments_per_part: parts.segments_per_part,
        };
        let grid = Launch::persistent_grid(tiles, sms, 1);
        Ok(Launch {
            symbol: "sample_tokens",
            grid,
            block: 1024,
            shared_bytes: SAMPLE_SHARED_BYTES,
            blocks_per_sm: 1,
            tiles,
            blocks_per_tile: 1,
            // Of a tile to each block none is left to give away.
            elastic: tiles > grid && outlasts_a_reaction_at(Self::BYTES_PER_MICROSECOND, self.work(), sms),
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

    fn sample(rows: u32, vocabulary: u32) -> Sample {
        let [logits, params, tokens, arrivals, scratch] = [256, 512, 768, 1024, 1280].map(DevicePtr);
        Sample { rows, vocabulary, logits, params, tokens, positions: DevicePtr::NULL, lengths: DevicePtr::NULL, arrivals, scratch }
    }

    #[test]
    fn sampling_stays_within_its_sms() {
        for (rows, vocabulary) in [(1, 1), (8, 32_000), (1000, 128_256)] {
            assert_stays_within_its_sms(&sample(rows, vocabulary));
        }
    }

    #[test]
    fn nothing_to_choose_from_is_refused() {
        assert_unsupported(&sample(0, 32_000), "no rows");
        assert_unsupported(&sample(8, 0), "no tokens");
        assert_unsupported(&sample(8, (1 << 24) + 1), "at most 16777216 tokens");
        assert_unsupported(&sample(u32::MAX, 1 << 24), "too many rows");
    }

    #[test]
    fn parts_cover_every_row_and_fill_a_gpu_where_a_few_rows_can() {
        for rows in [1, 7, 8, 64, 256, 100_000] {
            for vocabulary in [1, 256, 257, 32_000, 128_256, 1 << 24] {
                let Parts { segments, segments_per_part, parts_per_row } = Parts::of(rows, vocabulary);
                assert!(u64::from(segments) * 256 >= u64::from(vocabulary), "{rows} rows of {vocabulary}");
                assert!((segments_per_part * (parts_per_row - 1) + 1..=segments_per_part * parts_per_row).contains(&segments));
            }
        }
        assert_eq!(sample(8, 128_256).configure(Sms(132), &h200()).expect("a supported shape").tiles, 128);
    }

    #[test]
    fn blocks_with_many_parts_poll_their_grant_and_those_with_one_do_not() {
        let elastic = |rows, sms| sample(rows, 128_256).configure(Sms(sms), &h200()).expect("a supported shape").elastic;
        assert_eq!([(8, 132), (8, 32), (8, 8), (1, 8), (256, 132)].map(|(rows, sms)| elastic(rows, sms)), [false, true, true, false, true]);
    }

    #[test]
    fn scratch_for_many_rows_is_enough_for_fewer() {
        for vocabulary in [1, 300, 32_000, 128_256, 1_000_000] {
            let bytes: Vec<u64> = (1..=300).map(|rows| Sample::scratch_bytes(rows, vocabulary)).collect();
            assert!(bytes.is_sorted());
            assert!((1..=300).all(|rows| Layout::of(rows, vocabulary).bytes <= bytes[rows as usize - 1]), "of {vocabulary} tokens");
        }
    }
}
