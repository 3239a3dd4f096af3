//! Products by each kernel family and with each epilogue, with rows normed or not, and with queries, keys and values on their way to the cache.

use half::f16;
use smidgen::kernels::attention::{Heads, KvCache, PAGE_TOKENS, Rotary};
use smidgen::kernels::gemm::{Epilogue, Gemm, QkvProduct, Residual, RowNorm};
use smidgen_runtime::device::Buffer;

use super::results::KernelError;
use super::{Spread, compare, rotate, sampled};
use crate::attention::f64s;
use crate::gemm::{Finish, multiply, norm_of};
use crate::support::{Gpu, Random};

const NORM: RowNorm = RowNorm { epsilon: 1e-5 };

/// The operands of products that differ in their epilogues, and in how many of the rows they have.
struct Matrices {
    spread: Spread,
    shape: [usize; 3],
    a: Vec<f16>,
    bias: Vec<f16>,
    residual: Vec<f16>,
    /// Those that are compared, and what the product alone makes of them.
    rows: Vec<usize>,
    sums: Vec<f64>,
    on_gpu: [Buffer; 4],
}

impl Matrices {
    fn new(gpu: &Gpu, random: &mut Random, spread: Spread, [m, n, k]: [usize; 3], is_gated: bool) -> Self {
        // What large activations make must stay within FP16: five standard deviations below its end, and with gates, which multiply two sums, 40 times 40.
        let (gain, added) = match (spread, is_gated) {
            (Spread::Large, true) => (0.0025, 0.0025),
            (Spread::Large, false) => (0.65, 0.2),
            (Spread::Outliers, true) => (1.0, 0.1),
            _ => (1.0, 1.0),
        };
        let a = spread.activations(random, m * k, 1.0);
        let b = Spread::Normal.activations(random, n * k, gain / (k as f64).sqrt());
        let [bias, residual] = [n, m * n].map(|len| spread.activations(random, len, added));
        let on_gpu = [&a, &b, &bias, &residual].map(|operand| gpu.upload_f16(operand));
        let rows = sampled(m);
        let compared: Vec<f16> = rows.iter().flat_map(|row| &a[row * k..][..k]).copied().collect();
        let sums = multiply(&compared, k, &b, k, [rows.len(), n, k]);
        Self { spread, shape: [m, n, k], a, bias, residual, rows, sums, on_gpu }
    }

    /// Of the first `m` rows; none where a norm of the rows is asked for and no kernel does it.
    fn error(&self, gpu: &Gpu, m: usize, finish: Finish, row_norm: Option<RowNorm>) -> Option<KernelError> {
        let [_, n, k] = self.shape;
        let columns = finish.columns(n as u32) as usize;
        let c = gpu.poisoned(m * columns * finish.element_bytes() as usize);
        let [a, b, bias, residual] = [0, 1, 2, 3].map(|operand: usize| self.on_gpu[operand].ptr());
        let epilogue = finish.epilogue(1.0, bias, Residual { ptr: residual, stride: n as u32 });
        let gemm = Gemm { row_norm, ..Gemm::new([m, n, k].map(|extent| extent as u32), a, b, c.ptr(), epilogue) };
        if row_norm.is_some() && !gemm.can_norm_rows(gpu.device().topology()) {
            return None;
        }
        gpu.run(&gemm, gpu.sms());
        let output: Vec<f64> = match finish {
            Finish::PlainF32 => gpu.download_f32(&c).into_iter().map(f64::from).collect(),
            _ => f64s(&gpu.download_f16(&c)),
        };
        let (mut found, mut reference) = (Vec::new(), Vec::new());
        for (&row, sums) in self.rows.iter().zip(self.sums.chunks(n)).filter(|(row, _)| **row < m) {
            let factor = row_norm.map_or(1.0, |norm| norm_of(&self.a[row * k..][..k], norm));
            let sums: Vec<f64> = sums.iter().map(|sum| factor * sum).collect();
            reference.extend(finish.of_row(&sums, &self.bias, &self.residual[row * n..]));
            found.extend_from_slice(&output[row * columns..][..columns]);
        }
        Some(compare(&gemm, self.spread, &found, &reference))
    }
}

/// All of them.
pub(super) fn errors(gpu: &Gpu, random: &mut Random, spread: Spread) -> Vec<KernelError> {
    use Finish::{
        Bias, BiasGelu, BiasGeluTanh, BiasRelu, BiasResidual, BiasSiluGate, Plain, PlainF32, Residual as PlainResidual, SiluGate,
    };
    let mut errors = Vec::new();
    for (shape, finishes) in [
        ([1024, 768, 768], &[Plain, PlainResidual][..]),
        ([1024, 768, 3072], &[Plain, BiasResidual]),
        ([1024, 3072, 768], &[Bias, BiasGelu, BiasGeluTanh, BiasRelu, PlainF32]),
        ([1024, 2048, 2048], &[SiluGate, BiasSiluGate]),
        ([1, 4096, 4096], &[Plain]),
    ] {
        let matrices = Matrices::new(gpu, random, spread, shape, finishes[0] == SiluGate);
        errors.extend(finishes.iter().filter_map(|&finish| matrices.error(gpu, shape[0], finish, None)));
    }
    // Few rows, around the sizes that kernels for them are made for.
    let few = Matrices::new(gpu, random, spread, [64, 2048, 2048], false);
    for rows in [8, 16, 32, 48, 64] {
        errors.extend([None, Some(NORM)].into_iter().filter_map(|norm| few.error(gpu, rows, Plain, norm)));
    }
    for (finish, norm) in [(PlainF32, None), (BiasResidual, None), (Bias, Some(NORM)), (SiluGate, Some(NORM))] {
        errors.extend(few.error(gpu, 8, finish, norm));
    }
    let heads = [Heads { heads: 16, kv_heads: 4, head_dim: 64 }, Heads { heads: 8, kv_heads: 2, head_dim: 128 }];
    for (heads, rows, norm) in [(heads[0], 8, Some(NORM)), (heads[1], 8, None), (heads[1], 32, Some(NORM))] {
        errors.extend(queries_keys_and_values(gpu, random, spread, heads, rows, norm));
    }
    errors
}

/// Queries where the product stores them, keys and values in the cache. None where no kernel does all of it.
fn queries_keys_and_values(
    gpu: &Gpu,
    random: &mut Random,
    spread: Spread,
    heads: Heads,
    rows: usize,
    row_norm: Option<RowNorm>,
) -> Option<KernelError> {
    let [n, k, head_dim] = [heads.qkv_width() as usize, 1024, heads.head_dim as usize];
    let matrices = Matrices::new(gpu, random, spread, [rows, n, k], false);
    let [a, b, bias] = [0, 1, 2].map(|operand: usize| matrices.on_gpu[operand].ptr());
    let c = gpu.poisoned_f16(rows * n);
    // Each row is a sequence of one page.
    let positions: Vec<u32> = (0..rows).map(|_| random.between(0, PAGE_TOKENS - 1)).collect();
    let numbers: Vec<u32> = (0..rows as u32).collect();
    let frequencies: Vec<f32> = (0..head_dim / 2).map(|pair| 10_000_f32.powf(-(pair as f32) / (head_dim / 2) as f32)).collect();
    let pools = [(); 2].map(|()| gpu.poisoned_f16(rows * (KvCache::page_bytes(heads) / 2) as usize));
    let words = [&positions, &numbers].map(|words| gpu.upload_u32(words));
    let inverse_frequencies = gpu.upload_f32(&frequencies);
    let cache = KvCache { keys: pools[0].ptr(), values: pools[1].ptr(), page_table: words[1].ptr(), pages_per_sequence: 1 };
    let kernel = QkvProduct {
        product: Gemm { row_norm, ..Gemm::new([rows, n, k].map(|extent| extent as u32), a, b, c.ptr(), Epilogue::Bias(bias)) },
        rotary: Rotary {
            heads,
            rows: rows as u32,
            qkv: c.ptr(),
            qkv_stride: n as u32,
            positions: words[0].ptr(),
            inverse_frequencies: inverse_frequencies.ptr(),
            cache: Some(cache),
            sequence_of: words[1].ptr(),
        },
    };
    if !kernel.can_be_one_launch(gpu.device().topology()) {
        return None;
    }
    gpu.run(&kernel, gpu.sms());
    let (queries, pools) = (gpu.download_f16(&c), pools.map(|pool| gpu.download_f16(&pool)));
    let (mut found, mut reference) = (Vec::new(), Vec::new());
    for (&row, sums) in matrices.rows.iter().zip(matrices.sums.chunks(n)) {
        let factor = row_norm.map_or(1.0, |norm| norm_of(&matrices.a[row * k..][..k], norm));
        let mut expected: Vec<f64> = sums.iter().zip(&matrices.bias).map(|(sum, bias)| factor * sum + bias.to_f64()).collect();
        let rotated = (heads.heads + heads.kv_heads) as usize * head_dim;
        expected[..rotated].chunks_exact_mut(head_dim).for_each(|head| rotate(head, positions[row], &frequencies));
        reference.extend(expected);
        found.extend(f64s(&queries[row * n..][..heads.output_width() as usize]));
        for pool in &pools {
            for kv_head in 0..heads.kv_heads as usize {
                let place = (row * heads.kv_heads as usize + kv_head) * PAGE_TOKENS as usize + positions[row] as usize;
                found.extend(f64s(&pool[place * head_dim..][..head_dim]));
            }
        }
    }
    Some(compare(&kernel, spread, &found, &reference))
}
