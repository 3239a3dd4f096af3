//! The next token of each row: greedy, or drawn at a temperature from the top k and the top p.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi::SampleArgs;
pub use super::abi::SampleParams;

/// Draws a token for each row; the definition stands in sampling/sample.cu. Shapes: `logits` `[rows, vocabulary]` fp32; `params` `[rows]` of
/// [`SampleParams`]; `tokens`, `positions`, `lengths` `[rows]` u32.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Sequences.
    pub rows: u32,
    /// Tokens to choose from.
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
        if self.rows == 0 || self.vocabulary == 0 {
            let reason = "there are no rows, or no tokens to choose from".to_owned();
            return Err(LaunchError::Unsupported { kernel: self.key().to_string(), reason });
        }
        let args = SampleArgs {
            logits: self.logits.0,
            params: self.params.0,
            tokens: self.tokens.0,
            positions: self.positions.0,
            lengths: self.lengths.0,
            rows: self.rows,
            vocabulary: self.vocabulary,
        };
        Ok(Launch {
            symbol: "sample_tokens",
            grid: Launch::persistent_grid(self.rows, sms, 2),
            block: 1024,
            shared_bytes: 0,
            blocks_per_sm: 2,
            tiles: self.rows,
            elastic: false,
            programmatic: true,
            params: Params::new(args),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_stays_within_its_sms, assert_unsupported};
    use super::*;

    fn sample(rows: u32, vocabulary: u32) -> Sample {
        let [logits, params, tokens] = [256, 512, 768].map(DevicePtr);
        Sample { rows, vocabulary, logits, params, tokens, positions: DevicePtr::NULL, lengths: DevicePtr::NULL }
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
    }
}
