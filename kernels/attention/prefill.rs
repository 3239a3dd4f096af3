//! Attention where every sequence brings many queries: encoders, and the first pass of decoders.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Work};

use super::super::abi;
use super::prefill_variant::Variant;
use super::{CompiledSize, Heads, product, unsupported};

/// Floating-point operations that an SM does in 20 us, about: a longer launch is elastic (elastic.cuh). Long sequences run at 3 to 4 TFLOP/s an SM.
const FLOPS_OF_A_SHORT_LAUNCH: u64 = 64_000_000;

/// `output[i] = sum over the keys j that query i sees of softmax_j(scale * q[i] . k[j]) * v[j]`, for each head of each sequence.
///
/// Rows are those of `qkv` (see the [room's page](super)); rows past a sequence's length are neither read nor written, and a sequence of
/// length 0 has none. A key that a query does not see may still be multiplied by a weight of 0, so a NaN or an infinity in the value of a
/// later token can reach earlier ones of the same sequence, and no other sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionPrefill {
    /// How a row is divided.
    pub heads: Heads,
    /// Sequences in the batch.
    pub sequences: u32,
    /// No length is greater. Tiles are counted by it.
    pub max_length: u32,
    /// The sum of the lengths. Only the [`Work`] depends on it.
    pub tokens: u32,
    /// Rows of `qkv`: every sequence lies within them, and they can be read.
    pub rows: u32,
    /// Whether a query sees no key after its own position.
    pub causal: bool,
    /// A query sees only keys less than this many positions away (on both sides, unless `causal`); 0 where there is no such limit.
    pub window: u32,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`; positive.
    pub scale: f32,
    /// `[rows, (heads + 2 * kv_heads) * head_dim]`, FP16.
    pub qkv: DevicePtr,
    /// Elements from one row of `qkv` to the next.
    pub qkv_stride: u32,
    /// `[rows, heads * head_dim]`, FP16.
    pub output: DevicePtr,
    /// Elements from one row of `output` to the next.
    pub output_stride: u32,
    /// First row of each sequence: `[sequences]`, u32. Like `lengths`, read while the launch before this one may still run, which must not
    /// write it; launches before that one may.
    pub starts: DevicePtr,
    /// Rows of each sequence: `[sequences]`, u32, each at most `max_length`.
    pub lengths: DevicePtr,
}

impl AttentionPrefill {
    fn has_window(&self) -> bool {
        self.window != 0 && self.window < self.max_length
    }

    /// The fewest query-key pairs that `tokens` tokens in `sequences` sequences can have: a sum of squares is least where all lengths are equal.
    fn pairs(&self) -> u64 {
        let tokens = u64::from(self.tokens);
        let length = tokens / u64::from(self.sequences.max(1));
        let seen = match (self.causal, u64::from(self.window)) {
            (false, 0) => length,
            (true, 0) => length.div_ceil(2),
            (false, window) => length.min(2 * window - 1),
            // The first queries see fewer than a window.
            (true, window) if window < length => window - window * (window - 1) / (2 * length),
            (true, _) => length.div_ceil(2),
        };
        product([tokens, seen])
    }

    /// The kernel that does it, if it can be done.
    fn choose(&self, gpu: &Topology) -> Result<(Variant, &'static CompiledSize), LaunchError> {
        let key = self.key();
        if let Some(reason) = self.heads.problem(self.qkv_stride).or_else(|| self.heads.output_problem(self.output_stride)) {
            return Err(unsupported(&key, reason));
        }
        if self.sequences == 0 || self.max_length == 0 || self.max_length > 1 << 30 {
            return Err(unsupported(&key, "there must be a sequence, and a longest length of 1 to 2^30".to_owned()));
        }
        if self.rows == 0 {
            return Err(unsupported(&key, "qkv must have rows".to_owned()));
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return Err(unsupported(&key, format!("the scale must be positive and finite, not {}", self.scale)));
        }
        let variant = Variant::choose(self, gpu);
        match variant.size(self.heads.head_dim) {
            Some(size) => Ok((variant, size)),
            None => Err(unsupported(&key, "no kernel was compiled for heads this wide".to_owned())),
        }
    }

    fn args(&self) -> abi::AttentionPrefillArgs {
        abi::AttentionPrefillArgs {
            qkv: self.qkv.0,
            output: self.output.0,
            starts: self.starts.0,
            lengths: self.lengths.0,
            sequences: self.sequences,
            max_length: self.max_length,
            heads: self.heads.heads,
            kv_heads: self.heads.kv_heads,
            head_dim: self.heads.head_dim,
            qkv_stride: self.qkv_stride,
            output_stride: self.output_stride,
            window: self.window,
            causal: u32::from(self.causal),
            scale: self.scale,
        }
    }
}

// SAFETY: the symbols of every `Variant` are defined with the first parameter that its `params` returns; that the pointers stay valid is for whoever
// makes the descriptor to see to.
unsafe impl Kernel for AttentionPrefill {
    /// `[sequences x max_length x heads x kv_heads x head_dim]`, and the window where there is one.
    fn key(&self) -> KernelKey {
        const CAUSAL: KernelName = KernelName::new("attention_causal");
        const BIDIRECTIONAL: KernelName = KernelName::new("attention_bidirectional");
        let name = if self.causal { CAUSAL } else { BIDIRECTIONAL };
        let Heads { heads, kv_heads, head_dim } = self.heads;
        if self.has_window() {
            KernelKey::new(name, [self.sequences, self.max_length, heads, kv_heads, head_dim, self.window])
        } else {
            KernelKey::new(name, [self.sequences, self.max_length, heads, kv_heads, head_dim])
        }
    }

    fn work(&self) -> Work {
        let [heads, kv_heads, head_dim, tokens] = [self.heads.heads, self.heads.kv_heads, self.heads.head_dim, self.tokens].map(u64::from);
        Work { flops: product([4, heads, head_dim, self.pairs()]), bytes: product([4, heads + kv_heads, head_dim, tokens]) }
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        let (variant, size) = self.choose(gpu)?;
        let tiles = product([self.sequences, self.heads.heads, self.max_length.div_ceil(variant.queries(size))].map(u64::from));
        let launch = size.launch(&self.key(), tiles, variant.params(self, self.args()), sms, gpu)?;
        let elastic = self.work().flops > u64::from(sms.get()) * FLOPS_OF_A_SHORT_LAUNCH;
        Ok(Launch { elastic, ..launch })
    }
}
