//! Queries, keys and values in one launch, norm, bias, rotation and cache write included, on the GPU against f64 on the CPU.

use half::f16;
use proptest::prelude::*;
use proptest::sample::select;
use smidgen::kernels::attention::{Heads, KvCache, PAGE_TOKENS, Rotary};
use smidgen::kernels::gemm::{Epilogue, Gemm, QkvProduct, RowNorm};
use smidgen_runtime::device::Buffer;
use smidgen_runtime::launch::Kernel;

use crate::draws::{aligned_gap, extent, for_draws, heads};
use crate::gemm::{multiply, norm_of};
use crate::ieee754::POISON;
use crate::support::{Gpu, Random};

const EPSILON: f32 = 1e-4;
const PAGES_PER_SEQUENCE: u32 = 3;

/// A product with its operands on the host and on the GPU.
pub(crate) struct Problem {
    pub(crate) kernel: QkvProduct,
    a: Vec<f16>,
    b: Vec<f16>,
    bias: Option<Vec<f16>>,
    frequencies: Vec<f32>,
    positions: Vec<u32>,
    page_table: Vec<u32>,
    pub(crate) c: Buffer,
    pub(crate) keys: Buffer,
    pub(crate) values: Buffer,
    _operands: Vec<Buffer>,
}

impl Problem {
    /// Each row has a sequence of its own, with pages from the last to the first. One in seven stands beyond its cache.
    pub(crate) fn new(gpu: &Gpu, random: &mut Random, heads: Heads, [rows, hidden]: [u32; 2], has_bias: bool, is_normed: bool) -> Self {
        Self::with_gaps(gpu, random, heads, [rows, hidden], [0; 2], has_bias, is_normed)
    }

    /// The same with elements between the rows of `A` and of `B`.
    fn with_gaps(
        gpu: &Gpu,
        random: &mut Random,
        heads: Heads,
        [rows, hidden]: [u32; 2],
        gaps: [u32; 2],
        has_bias: bool,
        is_normed: bool,
    ) -> Self {
        let n = heads.qkv_width();
        let [lda, ldb] = gaps.map(|gap| hidden + gap);
        let mut a = random.f16s((rows * lda) as usize, 1.0);
        if is_normed {
            for (row, factor) in a.chunks_mut(lda as usize).zip([1.0, 8.0, 1.0 / 16.0, 2.0].iter().cycle()) {
                row.iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32() * factor));
            }
        }
        let b = random.f16s((n * ldb) as usize, 1.0);
        let bias = has_bias.then(|| random.f16s(n as usize, 4.0));
        let half = heads.head_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| 500_000_f64.powf(-f64::from(i) / f64::from(half)) as f32).collect();
        let capacity = PAGES_PER_SEQUENCE * PAGE_TOKENS;
        let position = |row: u32| if row % 7 == 5 { 131_000 + row } else { random.between(0, capacity - 1) };
        let positions: Vec<u32> = (0..rows).map(position).collect();
        let page_table: Vec<u32> = (0..rows * PAGES_PER_SEQUENCE).rev().collect();
        // Rows belong to sequences in the reverse order.
        let sequence_of: Vec<u32> = (0..rows).rev().collect();

        let stride = n + 2 * random.between(0, 4);
        let c = gpu.poisoned_f16((rows * stride) as usize);
        let cache_len = (rows * PAGES_PER_SEQUENCE * PAGE_TOKENS * heads.kv_heads * heads.head_dim) as usize;
        let [keys, values] = [(); 2].map(|()| gpu.poisoned_f16(cache_len));
        let [a_gpu, b_gpu] = [&a, &b].map(|operand| gpu.upload_f16(operand));
        let bias_gpu = gpu.upload_f16(bias.as_deref().unwrap_or(&[f16::NAN]));
        let [positions_gpu, table_gpu, sequences_gpu] = [&positions, &page_table, &sequence_of].map(|words| gpu.upload_u32(words));
        let frequencies_gpu = gpu.upload_f32(&frequencies);
        let epilogue = if has_bias { Epilogue::Bias(bias_gpu.ptr()) } else { Epilogue::NONE };
        let kernel = QkvProduct {
            product: Gemm {
                lda,
                ldb,
                ldc: stride,
                row_norm: is_normed.then_some(RowNorm { epsilon: EPSILON }),
                ..Gemm::new([rows, n, hidden], a_gpu.ptr(), b_gpu.ptr(), c.ptr(), epilogue)
            },
            rotary: Rotary {
                heads,
                rows,
                qkv: c.ptr(),
                qkv_stride: stride,
                positions: positions_gpu.ptr(),
                inverse_frequencies: frequencies_gpu.ptr(),
                cache: Some(KvCache {
                    keys: keys.ptr(),
                    values: values.ptr(),
                    page_table: table_gpu.ptr(),
                    pages_per_sequence: PAGES_PER_SEQUENCE,
                }),
                sequence_of: sequences_gpu.ptr(),
            },
        };
        let operands = vec![a_gpu, b_gpu, bias_gpu, positions_gpu, table_gpu, sequences_gpu, frequencies_gpu];
        Self { kernel, a, b, bias, frequencies, positions, page_table, c, keys, values, _operands: operands }
    }

    /// The rows by their definition: queries, keys and values, the first two rotated.
    fn reference(&self) -> Vec<Vec<f64>> {
        let product = self.kernel.product;
        let [m, n, k, lda, ldb] = [product.m, product.n, product.k, product.lda, product.ldb].map(|extent| extent as usize);
        let heads = self.kernel.rotary.heads;
        let (head_dim, half) = (heads.head_dim as usize, heads.head_dim as usize / 2);
        let products = multiply(&self.a, lda, &self.b, ldb, [m, n, k]);
        let row_of = |(row, &position): (usize, &u32)| {
            let norm = product.row_norm.map_or(1.0, |norm| norm_of(&self.a[row * lda..][..k], norm));
            let bias = |column: usize| self.bias.as_ref().map_or(0.0, |bias| bias[column].to_f64());
            let mut sums: Vec<f64> = (0..n).map(|column| norm * products[row * n + column] + bias(column)).collect();
            for head in sums.chunks_mut(head_dim).take((heads.heads + heads.kv_heads) as usize) {
                for i in 0..half {
                    // The product is rounded to FP32 in every implementation.
                    let (sin, cos) = f64::from(position as f32 * self.frequencies[i]).sin_cos();
                    (head[i], head[i + half]) = (head[i] * cos - head[i + half] * sin, head[i + half] * cos + head[i] * sin);
                }
            }
            sums
        };
        self.positions.iter().enumerate().map(row_of).collect()
    }

    /// Compares queries in C, keys and values in the cache, and the poison everywhere else.
    fn check(&self, gpu: &Gpu) {
        let reference = self.reference();
        let what = self.kernel.key();
        let heads = self.kernel.rotary.heads;
        let (head_dim, kv_heads, queries) = (heads.head_dim as usize, heads.kv_heads as usize, (heads.heads * heads.head_dim) as usize);
        let finite = || reference.iter().flatten().filter(|value| value.is_finite());
        let mean_square = finite().map(|value| value * value).sum::<f64>() / finite().count() as f64;
        let is_close = |value: f16, expected: f64| {
            if expected.is_nan() {
                value.is_nan() && value.to_bits() != POISON.to_bits()
            } else if f16::from_f64(expected).is_infinite() {
                value == f16::from_f64(expected)
            } else {
                (value.to_f64() - expected).abs() <= 2e-3 * (expected.abs() + mean_square.sqrt())
            }
        };

        let stride = self.kernel.product.ldc as usize;
        for (row, (output, expected)) in gpu.download_f16(&self.c).chunks(stride).zip(&reference).enumerate() {
            let wrong = output[..queries].iter().zip(expected).position(|(&value, &expected)| !is_close(value, expected));
            assert!(wrong.is_none(), "{what}: row {row}, query element {wrong:?}");
            assert!(output[queries..].iter().all(|value| value.is_nan()), "{what}: more than queries was written to row {row}");
        }
        for (cache, first) in [(&self.keys, queries), (&self.values, queries + kv_heads * head_dim)] {
            let mut cache = gpu.download_f16(cache);
            for (row, (&position, expected)) in self.positions.iter().zip(&reference).enumerate() {
                if position >= PAGES_PER_SEQUENCE * PAGE_TOKENS {
                    continue;
                }
                let sequence = reference.len() - 1 - row;
                let page = self.page_table[sequence * PAGES_PER_SEQUENCE as usize + (position / PAGE_TOKENS) as usize] as usize;
                for head in 0..kv_heads {
                    let at = ((page * kv_heads + head) * PAGE_TOKENS as usize + (position % PAGE_TOKENS) as usize) * head_dim;
                    let expected = &expected[first + head * head_dim..][..head_dim];
                    let wrong = cache[at..][..head_dim].iter().zip(expected).position(|(&value, &expected)| !is_close(value, expected));
                    assert!(wrong.is_none(), "{what}: row {row}, element {wrong:?} of kept head {head} from column {first} on");
                    cache[at..][..head_dim].fill(f16::NAN);
                }
            }
            assert!(cache.iter().all(|value| value.is_nan()), "{what}: the cache was written where no row has its place");
        }
    }
}

/// Of Llama 1B, Mistral, Qwen2 0.5B, Gemma, and one that no model has, with an odd number of tiles, too many for pairs.
const HEADS: [Heads; 6] = [
    Heads { heads: 32, kv_heads: 8, head_dim: 64 },
    Heads { heads: 8, kv_heads: 2, head_dim: 128 },
    Heads { heads: 14, kv_heads: 2, head_dim: 64 },
    Heads { heads: 4, kv_heads: 1, head_dim: 256 },
    Heads { heads: 2, kv_heads: 2, head_dim: 192 },
    Heads { heads: 129, kv_heads: 1, head_dim: 64 },
];

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn queries_keys_and_values_of_few_rows_are_normed_rotated_and_cached_in_one_launch() {
    let gpu = Gpu::open();
    let is_hopper = gpu.device().topology().compute_capability == (9, 0);
    let heads = prop_oneof![2 => select(&HEADS[..]), 1 => heads(4, &[1, 2, 3, 7, 8], (1..=4_u32).prop_map(|tiles| 64 * tiles))];
    let rows = prop_oneof![2 => select(vec![1_u32, 3, 8, 9, 16, 17, 32, 33, 64]), 1 => 1..=64_u32];
    let hidden = prop_oneof![1 => extent(2048), 2 => select(vec![64_u32, 264, 512, 896, 2048])];
    let shapes = (heads, rows, hidden).prop_flat_map(|(heads, rows, hidden)| {
        let gaps = [aligned_gap(hidden), aligned_gap(hidden)];
        (Just((heads, [rows, hidden])), gaps, any::<bool>(), any::<bool>(), any::<u64>())
    });
    for_draws(160, &(shapes, select(gpu.sm_counts())), |(((heads, [rows, hidden]), gaps, has_bias, is_normed, seed), sms)| {
        let problem = Problem::with_gaps(&gpu, &mut Random::new(seed), heads, [rows, hidden], gaps, has_bias, is_normed);
        if !problem.kernel.can_be_one_launch(gpu.device().topology()) {
            assert!(!is_hopper || rows > 64, "{} cannot be done", problem.kernel.key());
            return;
        }
        gpu.run(&problem.kernel, sms);
        problem.check(&gpu);
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn what_is_no_number_stays_in_its_row_of_queries_keys_and_values() {
    let gpu = Gpu::open();
    let mut random = Random::new(44);
    for (heads, rows) in [(HEADS[0], 8), (HEADS[1], 13), (HEADS[3], 32)] {
        for is_normed in [false, true] {
            let mut problem = Problem::new(&gpu, &mut random, heads, [rows, 512], true, is_normed);
            for (row, value) in [(1, f16::NAN), (2, f16::INFINITY), (6, f16::NEG_INFINITY)] {
                problem.a[row * 512 + 17] = value;
            }
            // Between numbers, at the ends of rows of the bias: turned with what they are paired with, in every row.
            let bias = problem.bias.as_mut().expect("it was asked for");
            let last = bias.len() - 1;
            (bias[0], bias[last]) = (f16::INFINITY, f16::NAN);
            let (a, bias) = (gpu.upload_f16(&problem.a), gpu.upload_f16(bias));
            problem.kernel.product = Gemm { a: a.ptr(), epilogue: Epilogue::Bias(bias.ptr()), ..problem.kernel.product };
            if !problem.kernel.can_be_one_launch(gpu.device().topology()) {
                return;
            }
            gpu.run(&problem.kernel, gpu.sms());
            problem.check(&gpu);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn queries_keys_and_values_have_the_same_bits_at_every_sm_count() {
    let gpu = Gpu::open();
    let mut random = Random::new(42);
    for (heads, [rows, hidden]) in [
        (HEADS[0], [8, 2048]),
        (Heads { heads: 32, kv_heads: 8, head_dim: 128 }, [1, 4096]),
        (HEADS[1], [13, 1024]),
        (HEADS[5], [5, 512]),
        (HEADS[5], [30, 512]),
        (HEADS[3], [32, 2048]),
        (HEADS[0], [64, 2048]),
        (HEADS[5], [50, 512]),
    ] {
        let problem = Problem::new(&gpu, &mut random, heads, [rows, hidden], true, true);
        if !problem.kernel.can_be_one_launch(gpu.device().topology()) {
            return;
        }
        gpu.assert_same_bits_at_every_sm_count(&problem.kernel, &[&problem.c, &problem.keys, &problem.values]);
        problem.check(&gpu);
    }
}

/// What the launches apart compute from the same operands differs by one rounding to FP16 before the rotation.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_product_and_its_rotation_apart_give_the_same_up_to_their_rounding() {
    let gpu = Gpu::open();
    let mut random = Random::new(43);
    let problem = Problem::new(&gpu, &mut random, HEADS[1], [8, 1024], true, true);
    if !problem.kernel.can_be_one_launch(gpu.device().topology()) {
        return;
    }
    gpu.run(&problem.kernel, gpu.sms());
    let together = [&problem.c, &problem.keys, &problem.values].map(|buffer| gpu.download_f16(buffer));
    gpu.run(&problem.kernel.product, gpu.sms());
    gpu.run(&problem.kernel.rotary, gpu.sms());
    let apart = [&problem.c, &problem.keys, &problem.values].map(|buffer| gpu.download_f16(buffer));
    for (together, apart) in together.iter().flatten().zip(apart.iter().flatten()) {
        let (a, b) = (together.to_f32(), apart.to_f32());
        // Together keeps keys and values out of C.
        assert!(a.is_nan() || (a - b).abs() <= 2e-3 * (b.abs() + 32.0), "{a} together, {b} apart");
    }
}
