//! DeBERTa's attention: bidirectional, with terms of the scores for the distance of query and key.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::super::{abi, is_aligned};
use super::{CompiledSize, Heads, product, unsupported};

/// Queries of one tile: `DISENTANGLED_BLOCK` in disentangled_rows.cuh.
const QUERIES_PER_TILE: u32 = 64;

/// Floating-point operations that an SM does in 20 us, about: a longer launch is elastic (elastic.cuh). Long sequences run at 1.5 TFLOP/s an SM.
const FLOPS_OF_A_SHORT_LAUNCH: u64 = 30_000_000;

/// Heads of 33 to 64 columns on Hopper, with launch bounds as `DisentangledWgmma::BLOCKS_PER_SM` in disentangled_wgmma.cuh.
const WGMMA: CompiledSize = CompiledSize {
    head_dim: 64,
    symbol: "attention_disentangled_wgmma_d64",
    threads: 128,
    shared_bytes: abi::ATTENTION_DISENTANGLED_WGMMA_SHARED_BYTES,
    blocks_by_registers: 2,
};

/// By rising head size; launch bounds as `Disentangled::BLOCKS_PER_SM` in disentangled.cuh.
const SIZES: [CompiledSize; 2] = {
    const fn size(head_dim: u32, symbol: &'static str, shared_bytes: u32, blocks_by_registers: u32) -> CompiledSize {
        CompiledSize { head_dim, symbol, threads: 128, shared_bytes, blocks_by_registers }
    }
    [
        size(32, "attention_disentangled_d32", abi::ATTENTION_DISENTANGLED_D32_SHARED_BYTES, 3),
        size(64, "attention_disentangled_d64", abi::ATTENTION_DISENTANGLED_D64_SHARED_BYTES, 2),
    ]
};

/// `output[i] = sum over the keys j of softmax_j(scale * (q[i] . k[j] + q[i] . position_keys[i - j] + k[j] . position_queries[i - j])) * v[j]`, for each
/// head of each sequence.
///
/// Rows are those of `qkv` (see the [room's page](super)), with as many key heads as query heads; rows past a sequence's length are neither read
/// nor written, and a sequence of length 0 has none. Row `reach + d` of a position matrix is for queries that stand `d` tokens after their key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionDisentangled {
    /// Heads of queries, of keys, and of values.
    pub heads: u32,
    /// Columns of a head, at most 64.
    pub head_dim: u32,
    /// Sequences in the batch.
    pub sequences: u32,
    /// No length is greater; at most `reach + 1`. Tiles are counted by it.
    pub max_length: u32,
    /// The sum of the lengths. Only the [`Work`] depends on it.
    pub tokens: u32,
    /// Factor of the scores; positive.
    pub scale: f32,
    /// `[rows, 3 * heads * head_dim]`, FP16.
    pub qkv: DevicePtr,
    /// Elements from one row of `qkv` to the next.
    pub qkv_stride: u32,
    /// `[2 * reach + 1, heads * head_dim]`, FP16: what queries are multiplied by; null where scores have no such term.
    pub position_keys: DevicePtr,
    /// The same: what keys are multiplied by.
    pub position_queries: DevicePtr,
    /// Elements from one row of the position matrices to the next.
    pub position_stride: u32,
    /// The farthest distance that the position matrices have a row for.
    pub reach: u32,
    /// `[rows, heads * head_dim]`, FP16.
    pub output: DevicePtr,
    /// Elements from one row of `output` to the next.
    pub output_stride: u32,
    /// First row of each sequence: `[sequences]`, u32.
    pub starts: DevicePtr,
    /// Rows of each sequence: `[sequences]`, u32.
    pub lengths: DevicePtr,
}

impl AttentionDisentangled {
    fn tiles(&self) -> u64 {
        product([self.sequences, self.heads, self.max_length.div_ceil(QUERIES_PER_TILE)].map(u64::from))
    }

    fn terms(&self) -> u64 {
        1 + u64::from(!self.position_keys.is_null()) + u64::from(!self.position_queries.is_null())
    }

    /// Whether Hopper's own kernel can do it: both terms, and all rows on 16 bytes.
    fn suits_wgmma(&self) -> bool {
        let pointers = [self.qkv, self.position_keys, self.position_queries, self.output];
        let strides = [self.qkv_stride, self.position_stride, self.output_stride, self.head_dim];
        (33..=64).contains(&self.head_dim)
            && self.terms() == 3
            && is_aligned(&pointers)
            && strides.iter().all(|halves| halves.is_multiple_of(8))
    }

    /// The kernel that does it, if it can be done: decided by the GPU and the shape, never by the SM count, since its bits differ from the others'.
    fn choose(&self, gpu: &Topology) -> Result<&'static CompiledSize, LaunchError> {
        let key = self.key();
        let heads = Heads { heads: self.heads, kv_heads: self.heads, head_dim: self.head_dim };
        if let Some(reason) = heads.problem(self.qkv_stride).or_else(|| heads.output_problem(self.output_stride)) {
            return Err(unsupported(&key, reason));
        }
        if self.sequences == 0 || self.max_length == 0 {
            return Err(unsupported(&key, "there must be a sequence, and a longest length of at least 1".to_owned()));
        }
        if self.reach > 1 << 24 || self.max_length - 1 > self.reach {
            let reason = format!("the position matrices reach {} tokens far, and must reach {} to 2^24", self.reach, self.max_length - 1);
            return Err(unsupported(&key, reason));
        }
        if self.terms() > 1 && self.position_stride < heads.output_width() {
            return Err(unsupported(&key, "rows of the position matrices overlap".to_owned()));
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return Err(unsupported(&key, format!("the scale must be positive and finite, not {}", self.scale)));
        }
        // The machine code is sm_90a's, which no other compute capability runs.
        if gpu.compute_capability == (9, 0) && self.suits_wgmma() {
            return Ok(&WGMMA);
        }
        CompiledSize::of(self.head_dim, &SIZES)
            .ok_or_else(|| unsupported(&key, format!("heads have at most 64 columns here, not {}", self.head_dim)))
    }
}

// SAFETY: `WGMMA`'s symbol and every one of `SIZES` is defined with `AttentionDisentangledArgs` as its first parameter; that the pointers stay valid
// is for whoever makes the descriptor to see to.
unsafe impl Kernel for AttentionDisentangled {
    /// `[sequences x max_length x heads x head_dim x terms of a score]`.
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("attention_disentangled");
        KernelKey::new(NAME, [self.sequences, self.max_length, self.heads, self.head_dim, self.terms() as u32])
    }

    /// The least whatever the kernel: each score's terms and its share of the output, and the rows of the position matrices that are read.
    fn work(&self) -> Work {
        let [heads, head_dim, tokens] = [self.heads, self.head_dim, self.tokens].map(u64::from);
        let length = tokens / u64::from(self.sequences.max(1));
        let distances = (2 * u64::from(self.max_length)).saturating_sub(1);
        Work {
            flops: product([2 * (1 + self.terms()), heads, head_dim, tokens, length]),
            bytes: product([2, heads, head_dim, 4 * tokens + distances * (self.terms() - 1)]),
        }
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        let size = self.choose(gpu)?;
        let args = abi::AttentionDisentangledArgs {
            qkv: self.qkv.0,
            position_keys: self.position_keys.0,
            position_queries: self.position_queries.0,
            output: self.output.0,
            starts: self.starts.0,
            lengths: self.lengths.0,
            sequences: self.sequences,
            max_length: self.max_length,
            heads: self.heads,
            head_dim: self.head_dim,
            qkv_stride: self.qkv_stride,
            position_stride: self.position_stride,
            reach: self.reach,
            output_stride: self.output_stride,
            scale: self.scale,
        };
        let launch = size.launch(&self.key(), self.tiles(), Params::new(args), sms, gpu)?;
        Ok(Launch { elastic: self.work().flops > u64::from(sms.get()) * FLOPS_OF_A_SHORT_LAUNCH, ..launch })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{assert_stays_within_its_sms, assert_unsupported, h200};
    use super::*;

    fn attention(heads: u32, head_dim: u32, max_length: u32) -> AttentionDisentangled {
        let [qkv, position_keys, position_queries, output, starts, lengths] = [256, 512, 768, 1024, 1280, 1536].map(DevicePtr);
        let width = heads * head_dim;
        AttentionDisentangled {
            heads,
            head_dim,
            sequences: 8,
            max_length,
            tokens: 8 * max_length,
            scale: 0.07,
            qkv,
            qkv_stride: 3 * width,
            position_keys,
            position_queries,
            position_stride: width,
            reach: 511,
            output,
            output_stride: width,
            starts,
            lengths,
        }
    }

    #[test]
    fn attention_with_distances_stays_within_its_sms_at_any_shape() {
        for (heads, head_dim, max_length) in [(1, 1, 1), (12, 64, 128), (24, 64, 512), (3, 20, 65)] {
            assert_stays_within_its_sms(&attention(heads, head_dim, max_length));
        }
    }

    #[test]
    fn the_kernel_follows_from_the_gpu_and_the_shape() {
        let ampere = Topology { compute_capability: (8, 0), ..h200() };
        let symbol = |kernel: AttentionDisentangled, gpu: &Topology| kernel.configure(Sms(132), gpu).expect("a supported shape").symbol;
        let narrow = |head_dim| symbol(attention(2, head_dim, 64), &ampere);
        assert_eq!([1, 32, 33, 64].map(narrow), [32, 32, 64, 64].map(|size| format!("attention_disentangled_d{size}")));
        let fits = attention(12, 64, 128);
        assert_eq!(symbol(fits, &h200()), "attention_disentangled_wgmma_d64");
        for other in [
            AttentionDisentangled { qkv: DevicePtr(258), ..fits },
            AttentionDisentangled { output_stride: 770, ..fits },
            AttentionDisentangled { position_keys: DevicePtr::NULL, ..fits },
        ] {
            assert_eq!(symbol(other, &h200()), "attention_disentangled_d64");
        }
        assert_eq!(symbol(attention(12, 32, 128), &h200()), "attention_disentangled_d32");
    }

    #[test]
    fn a_launch_is_elastic_where_its_sms_are_busy_for_long() {
        let elastic = |length, sms| attention(12, 64, length).configure(Sms(sms), &h200()).expect("a supported shape").elastic;
        assert!(!elastic(128, 132));
        assert!(elastic(512, 132));
        assert!(elastic(128, 16));
    }

    #[test]
    fn the_key_tells_scores_of_fewer_terms_apart() {
        let full = attention(12, 64, 128);
        assert_eq!(full.key().to_string(), "attention_disentangled[8x128x12x64x3]f16");
        let half = AttentionDisentangled { position_queries: DevicePtr::NULL, ..full };
        assert_eq!(half.key().to_string(), "attention_disentangled[8x128x12x64x2]f16");
        assert!(half.work().flops < full.work().flops && half.work().bytes < full.work().bytes);
    }

    #[test]
    fn work_counts_each_term_of_a_score_and_each_row_of_the_positions_once() {
        let work = attention(12, 64, 128).work();
        assert_eq!(work, Work { flops: 8 * 8 * 12 * 64 * 128 * 128, bytes: 2 * 12 * 64 * (4 * 8 * 128 + 2 * 255) });
    }

    #[test]
    fn shapes_that_no_kernel_can_do_are_refused() {
        let fits = attention(12, 64, 128);
        assert_unsupported(&attention(12, 65, 128), "at most 64");
        assert_unsupported(&attention(12, 64, 513), "must reach 512");
        assert_unsupported(&attention(12, 64, 0), "at least 1");
        assert_unsupported(&AttentionDisentangled { sequences: 0, ..fits }, "must be a sequence");
        assert_unsupported(&AttentionDisentangled { position_stride: 767, ..fits }, "overlap");
        assert_unsupported(&AttentionDisentangled { qkv_stride: 2303, ..fits }, "2304 columns");
        assert_unsupported(&AttentionDisentangled { output_stride: 767, ..fits }, "768 columns");
        assert_unsupported(&AttentionDisentangled { scale: 0.0, ..fits }, "positive");
        assert_unsupported(&AttentionDisentangled { reach: u32::MAX, max_length: u32::MAX, ..fits }, "2^24");
    }

    #[test]
    fn no_shape_however_absurd_panics() {
        let huge =
            AttentionDisentangled { heads: u32::MAX, head_dim: u32::MAX, tokens: u32::MAX, max_length: u32::MAX, ..attention(1, 1, 1) };
        huge.work();
        assert!(huge.configure(Sms(132), &h200()).is_err());
    }
}
