//! Queries, keys and values of a few rows in one launch: the product, the rotation of its heads, and the write to the KV cache.
//!
//! The device code is `heads.cuh`, the epilogue of the `gemm_skinny_*_rotary` kernels. Where they cannot do it, a [`Gemm`] and a
//! [`Rotary`](super::super::attention::Rotary) after it do the same, but for one thing: there the rotation is of sums that were rounded to FP16 before.

use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Work};

use super::super::attention::Rotary;
use super::super::choices::print_choice;
use super::skinny::{PAIRS_OF_TILE, Skinny};
use super::{Epilogue, Gemm};

/// `product`, and then `rotary` of it; but only the queries are stored in `C`: keys and values are in the cache alone.
///
/// Positions, sequences and the page table are read as soon as the launch runs, as attention reads them
/// ([`AttentionDecode`](super::super::attention::AttentionDecode)): nothing may have written them since the last launch before this one that waits for those before
/// it with its first instruction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkvProduct {
    /// Its epilogue is [`Epilogue::NONE`] or [`Epilogue::Bias`]; its rows may be normed.
    pub product: Gemm,
    /// Of the rows of the product, with a cache.
    pub rotary: Rotary,
}

impl QkvProduct {
    /// Whether one launch can do both, at any SM count.
    pub fn can_be_one_launch(&self, gpu: &Topology) -> bool {
        self.problem(gpu).is_none()
    }

    /// Why not.
    fn problem(&self, gpu: &Topology) -> Option<&'static str> {
        let Self { product, rotary } = self;
        if !matches!(product.epilogue, Epilogue::Bias(_)) && product.epilogue != Epilogue::NONE {
            Some("the product has another epilogue than a bias")
        } else if (rotary.qkv, rotary.qkv_stride, rotary.rows) != (product.c, product.ldc, product.m) {
            Some("what is rotated is not the product")
        } else if product.n != rotary.heads.qkv_width() {
            Some("the product's columns are not the heads")
        } else if rotary.cache.is_none() {
            Some("there is no cache")
        } else if !rotary.heads.head_dim.is_multiple_of(2 * PAIRS_OF_TILE) {
            Some("tiles hold 32 pairs of one head, so a head's size must be a multiple of 64")
        } else if !(product.c.0.is_multiple_of(4) && product.ldc.is_multiple_of(2)) {
            Some("queries are stored in twos: rows of C must begin on 4 bytes")
        } else if !Skinny::is_chosen_at_any_sms(product, gpu) {
            Some("no skinny kernel takes the product")
        } else {
            None
        }
    }
}

// SAFETY: symbols that end in `_rotary` take `SkinnyQkvArgs` as their first parameter (GEMM_SKINNY); that the pointers stay valid is for whoever makes the
// descriptor to see to.
unsafe impl Kernel for QkvProduct {
    /// `[m x n x k x kv_heads x head_dim]`, named by the norm of the rows and the bias.
    fn key(&self) -> KernelKey {
        const NAMES: [[KernelName; 2]; 2] = [
            [KernelName::new("gemm_rotary_cached"), KernelName::new("gemm_bias_rotary_cached")],
            [KernelName::new("rms_norm_gemm_rotary_cached"), KernelName::new("rms_norm_gemm_bias_rotary_cached")],
        ];
        let Gemm { m, n, k, row_norm, epilogue, .. } = self.product;
        let name = NAMES[usize::from(row_norm.is_some())][usize::from(matches!(epilogue, Epilogue::Bias(_)))];
        KernelKey::new(name, [m, n, k, self.rotary.heads.kv_heads, self.rotary.heads.head_dim])
    }

    /// Each element is stored once, whether in `C` or in the cache.
    fn work(&self) -> Work {
        let Work { flops, bytes } = self.product.work();
        Work { flops: flops.saturating_add(self.rotary.work().flops), bytes }
    }

    // No configurations are on offer: what comes next in a request, and not a chain of the same launches, is what `choose_rotary` looks to.

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        let unsupported = |reason: &str| LaunchError::Unsupported { kernel: self.key().to_string(), reason: reason.to_owned() };
        self.product.check()?;
        self.rotary.check()?;
        if let Some(problem) = self.problem(gpu) {
            return Err(unsupported(problem));
        }
        let skinny = Skinny::choose_rotary(&self.product, sms, gpu).ok_or_else(|| unsupported("no skinny kernel takes the product"))?;
        print_choice(sms, || (self.key(), format!("{skinny} with rotation"), u64::from(skinny.tiles(&self.product))));
        Ok(skinny.launch_rotary(&self.product, &self.rotary, sms, gpu))
    }
}

#[cfg(test)]
mod tests {
    use smidgen_runtime::device::DevicePtr;

    use super::super::super::attention::{Heads, KvCache};
    use super::super::super::testing::{assert_unsupported, h200};
    use super::super::RowNorm;
    use super::*;

    fn qkv(rows: u32, hidden: u32, heads: Heads) -> QkvProduct {
        let c = DevicePtr(4096);
        QkvProduct {
            product: Gemm::new([rows, heads.qkv_width(), hidden], DevicePtr(256), DevicePtr(512), c, Epilogue::NONE),
            rotary: Rotary {
                heads,
                rows,
                qkv: c,
                qkv_stride: heads.qkv_width(),
                positions: DevicePtr(8),
                inverse_frequencies: DevicePtr(16),
                cache: Some(KvCache { keys: DevicePtr(1024), values: DevicePtr(2048), page_table: DevicePtr(4), pages_per_sequence: 3 }),
                sequence_of: DevicePtr(24),
            },
        }
    }

    const LLAMA: Heads = Heads { heads: 32, kv_heads: 8, head_dim: 64 };

    #[test]
    fn heads_of_whole_tiles_are_rotated_by_the_product_and_others_are_not() {
        let can = |rows, head_dim| qkv(rows, 2048, Heads { head_dim, ..LLAMA }).can_be_one_launch(&h200());
        assert_eq!([64, 128, 192, 256].map(|head_dim| can(8, head_dim)), [true; 4]);
        assert_eq!([32, 80, 96, 100].map(|head_dim| can(8, head_dim)), [false; 4]);
        assert_eq!([1, 32, 64, 65].map(|rows| can(rows, 64)), [true, true, true, false]);
        let ampere = Topology { compute_capability: (8, 0), ..h200() };
        assert!(!qkv(8, 2048, LLAMA).can_be_one_launch(&ampere));
    }

    #[test]
    fn what_is_no_product_with_its_rotation_is_refused() {
        let fine = qkv(8, 2048, LLAMA);
        let elsewhere = QkvProduct { rotary: Rotary { qkv: DevicePtr(8192), ..fine.rotary }, ..fine };
        let uncached = QkvProduct { rotary: Rotary { cache: None, ..fine.rotary }, ..fine };
        let gated = QkvProduct { product: Gemm { epilogue: Epilogue::BiasRelu(DevicePtr(64)), ..fine.product }, ..fine };
        for (problem, reason) in [
            (elsewhere, "not the product"),
            (uncached, "no cache"),
            (gated, "another epilogue"),
            (qkv(8, 2048, Heads { head_dim: 96, ..LLAMA }), "multiple of 64"),
            (qkv(65, 2048, LLAMA), "no skinny kernel"),
            (qkv(0, 2048, LLAMA), "at least 1"),
        ] {
            assert_unsupported(&problem, reason);
        }
    }

    const MISTRAL: Heads = Heads { heads: 32, kv_heads: 8, head_dim: 128 };

    #[test]
    fn the_launch_is_that_of_the_product_with_another_symbol() {
        let bias = Epilogue::Bias(DevicePtr(64));
        for sms in [1, 2, 59] {
            let plain = qkv(8, 4096, MISTRAL);
            let normed = Gemm { row_norm: Some(RowNorm { epsilon: 1e-5 }), epilogue: bias, ..plain.product };
            let fused = QkvProduct { product: normed, ..plain };
            let [alone, both] = [
                normed.configure(Sms(sms), &h200()).expect("a supported shape"),
                fused.configure(Sms(sms), &h200()).expect("a supported shape"),
            ];
            assert_eq!(both.symbol, format!("{}_rotary", alone.symbol));
            let facts = |launch: &Launch| (launch.grid, launch.tiles, launch.shared_bytes, launch.elastic, launch.blocks_per_tile);
            assert_eq!(facts(&both), facts(&alone));
            assert_eq!(fused.key().to_string(), "rms_norm_gemm_bias_rotary_cached[8x6144x4096x8x128]f16");
        }
    }

    #[test]
    fn blocks_that_share_k_have_sms_to_themselves_unless_that_takes_a_second_round_of_few() {
        let launch = |hidden, heads, sms| {
            let launch = qkv(1, hidden, heads).configure(Sms(sms), &h200()).expect("a supported shape");
            (launch.symbol, launch.grid)
        };
        assert_eq!(launch(2048, LLAMA, 132), ("gemm_skinny_8x32_deep_halves_rotary", 96));
        assert_eq!(launch(4096, MISTRAL, 132), ("gemm_skinny_8x64_pair_rotary", 192));
        assert_eq!(launch(4096, MISTRAL, 60), ("gemm_skinny_8x32_deep_halves_rotary", 60));
    }
}
