//! The rounding error of each kernel against a reference in FP64, on inputs with a realistic spread: normal, normal with outliers, and magnitudes near
//! the end of FP16's range. And what NaN and infinity do.
//!
//! The reference takes the rounded FP16 inputs and rounds nothing after. With `SMIDGEN_ERRORS` naming a file, the table goes there as JSON: the source of
//! the one in docs/kernels.md. Outputs too large to be computed on the CPU in time are compared on some of their rows.

use std::{env, fs};

use half::f16;
use rayon::prelude::*;
use smidgen::fatbin::BUILD_HASH;
use smidgen::kernels::attention::{AttentionDecode, AttentionPrefill, Heads, KvCache, PAGE_TOKENS, Rotary};
use smidgen::kernels::gemm::{Epilogue, Gemm};
use smidgen::kernels::norm::{Norm, NormKind};
use smidgen::kernels::pooling::MeanPool;
use smidgen_profiler::today;
use smidgen_runtime::device::DevicePtr;
use smidgen_runtime::launch::Kernel;

use crate::attention::f64s;
use crate::support::{Gpu, Random};
use results::{ErrorProvenance, Errors, KernelError};

#[path = "../../xtask/src/docs/results.rs"]
#[allow(dead_code)] // The forms of other results are in it too.
mod results;

/// Names the file that receives the table.
const FILE: &str = "SMIDGEN_ERRORS";

/// Rows that are compared, spread over the output.
const ROWS: usize = 48;

/// How inputs are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spread {
    /// Normal, standard deviation 1.
    Normal,
    /// The same with one of 256 a hundred times as large, as activations of transformers have.
    Outliers,
    /// Activations up to FP16's largest, 65504, and weights that keep the outputs just below it.
    Large,
}

const SPREADS: [Spread; 3] = [Spread::Normal, Spread::Outliers, Spread::Large];

impl Spread {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Outliers => "normal, 1 of 256 times 100",
            Self::Large => "magnitudes up to 65504",
        }
    }

    fn activations(self, random: &mut Random, len: usize) -> Vec<f16> {
        let value = |random: &mut Random| match self {
            Self::Normal => normal(random),
            Self::Outliers if random.between(0, 255) == 0 => 100.0 * normal(random),
            Self::Outliers => normal(random),
            Self::Large => (16_000.0 * normal(random)).clamp(-65_504.0, 65_504.0),
        };
        (0..len).map(|_| f16::from_f64(value(random))).collect()
    }

    /// Weights of a product over `k`: its outputs have about the standard deviation of the activations.
    fn weights(self, random: &mut Random, len: usize, k: usize) -> Vec<f16> {
        // Outputs of large activations must stay within FP16: four standard deviations below its end.
        let gain = if self == Self::Large { 0.7 } else { 1.0 };
        (0..len).map(|_| f16::from_f64(gain * normal(random) / (k as f64).sqrt())).collect()
    }
}

/// Box and Muller, "A note on the generation of random normal deviates", 1958.
fn normal(random: &mut Random) -> f64 {
    let radius = (f64::from(random.unit()) * 0.5 + 0.5).max(1e-9);
    (-2.0 * radius.ln()).sqrt() * (f64::from(random.unit()) * std::f64::consts::PI).cos()
}

/// Rows that are compared of `rows`: the first and last among them.
fn sampled(rows: usize) -> Vec<usize> {
    let count = ROWS.min(rows);
    (0..count).map(|at| if count == 1 { 0 } else { at * (rows - 1) / (count - 1) }).collect()
}

/// Output and reference of one kernel, compared.
fn compare(kernel: &dyn Kernel, spread: Spread, output: &[f64], reference: &[f64]) -> KernelError {
    assert_eq!(output.len(), reference.len(), "{}", kernel.key());
    let mean_square = reference.iter().map(|value| value * value).sum::<f64>() / reference.len() as f64;
    let mut worst = 0.0_f64;
    let mut squares = 0.0;
    for (output, reference) in output.iter().zip(reference) {
        let difference = (output - reference).abs();
        // A NaN or an infinity that the reference lacks is an infinite error; `max` would pass over a NaN.
        let relative = difference / reference.abs().max(mean_square.sqrt());
        worst = if relative.is_finite() { worst.max(relative) } else { f64::INFINITY };
        squares += difference * difference;
    }
    KernelError {
        kernel: kernel.key().to_string(),
        inputs: spread.name().to_owned(),
        elements: output.len() as u64,
        largest: reference.iter().fold(0.0, |largest, value| value.abs().max(largest)),
        rms: (squares / reference.len() as f64 / mean_square).sqrt(),
        max: worst,
    }
}

/// Some rows of a `[rows, width]` output.
fn rows_of(output: &[f16], rows: &[usize], width: usize) -> Vec<f64> {
    rows.iter().flat_map(|row| f64s(&output[row * width..][..width])).collect()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2))
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// A product by each kernel family, with the epilogues that are no mere addition.
fn products(gpu: &Gpu, random: &mut Random, spread: Spread) -> Vec<KernelError> {
    type Finish = fn(f64, f64) -> f64;
    let gelu_of: Finish = |sum, bias| gelu(sum + bias);
    let none: Finish = |sum, _| sum;
    let mut errors = Vec::new();
    for ([m, n, k], finish) in [
        ([1024, 768, 768], none),
        ([1024, 768, 3072], none),
        ([1024, 3072, 768], gelu_of),
        ([8, 2048, 2048], none),
        ([1, 4096, 4096], none),
    ] {
        let a = spread.activations(random, m * k);
        let b = spread.weights(random, n * k, k);
        let bias = spread.activations(random, n);
        let [device_a, device_b, device_bias] = [&a, &b, &bias].map(|values| gpu.upload_f16(values));
        let c = gpu.poisoned_f16(m * n);
        let fused = std::ptr::fn_addr_eq(finish, gelu_of);
        // A bias as large as the sums could push them beyond FP16.
        if fused && spread == Spread::Large {
            continue;
        }
        let epilogue = if fused { Epilogue::BiasGelu(device_bias.ptr()) } else { Epilogue::NONE };
        let gemm = Gemm::new([m, n, k].map(|extent| extent as u32), device_a.ptr(), device_b.ptr(), c.ptr(), epilogue);
        gpu.run(&gemm, gpu.sms());
        let rows = sampled(m);
        let reference = multiply(&a, &b, &rows, [n, k]).into_iter().enumerate().map(|(at, sum)| finish(sum, bias[at % n].to_f64()));
        errors.push(compare(&gemm, spread, &rows_of(&gpu.download_f16(&c), &rows, n), &reference.collect::<Vec<_>>()));
    }
    errors.extend(gate(gpu, random, spread));
    errors
}

/// The gated product: rows of the weight are gate and up in turn.
fn gate(gpu: &Gpu, random: &mut Random, spread: Spread) -> Option<KernelError> {
    // Gate times up of large activations is beyond FP16 by design.
    if spread == Spread::Large {
        return None;
    }
    let [m, n, k] = [1024, 2048, 2048];
    let (a, b) = (spread.activations(random, m * k), spread.weights(random, n * k, k));
    let (device_a, device_b) = (gpu.upload_f16(&a), gpu.upload_f16(&b));
    let c = gpu.poisoned_f16(m * n / 2);
    let gemm = Gemm::new([m, n, k].map(|extent| extent as u32), device_a.ptr(), device_b.ptr(), c.ptr(), Epilogue::SiluGate);
    gpu.run(&gemm, gpu.sms());
    let rows = sampled(m);
    let sums = multiply(&a, &b, &rows, [n, k]);
    let reference: Vec<f64> = sums.as_chunks::<2>().0.iter().map(|&[gate, up]| silu(gate) * up).collect();
    Some(compare(&gemm, spread, &rows_of(&gpu.download_f16(&c), &rows, n / 2), &reference))
}

/// Some rows of `A * B^T`.
fn multiply(a: &[f16], b: &[f16], rows: &[usize], [n, k]: [usize; 2]) -> Vec<f64> {
    let b = f64s(b);
    rows.par_iter()
        .flat_map_iter(|row| {
            let a = f64s(&a[row * k..][..k]);
            (0..n).map(|column| a.iter().zip(&b[column * k..][..k]).map(|(a, b)| a * b).sum()).collect::<Vec<f64>>()
        })
        .collect()
}

/// Bidirectional and causal prefill.
fn prefills(gpu: &Gpu, random: &mut Random, spread: Spread) -> Vec<KernelError> {
    let mut errors = Vec::new();
    for (head_dim, length, causal) in [(64, 128, false), (128, 1024, true)] {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim };
        let (width, output_width) = (heads.qkv_width() as usize, heads.output_width() as usize);
        let qkv = rows_of_heads(random, spread, length, heads);
        let device_qkv = gpu.upload_f16(&qkv);
        let (starts, lengths) = (gpu.upload_u32(&[0]), gpu.upload_u32(&[length as u32]));
        let output = gpu.poisoned_f16(length * output_width);
        let kernel = AttentionPrefill {
            heads,
            sequences: 1,
            max_length: length as u32,
            tokens: length as u32,
            rows: length as u32,
            causal,
            window: 0,
            scale: 1.0 / (head_dim as f32).sqrt(),
            qkv: device_qkv.ptr(),
            qkv_stride: width as u32,
            output: output.ptr(),
            output_stride: output_width as u32,
            starts: starts.ptr(),
            lengths: lengths.ptr(),
        };
        gpu.run(&kernel, gpu.sms());
        let rows = sampled(length);
        let qkv = f64s(&qkv);
        let head = |row: usize, head: u32| &qkv[row * width + (head * head_dim) as usize..][..head_dim as usize];
        let reference: Vec<f64> = rows
            .par_iter()
            .flat_map_iter(|&row| {
                let keys = if causal { row + 1 } else { length };
                (0..heads.heads)
                    .flat_map(|query| {
                        let group = query / (heads.heads / heads.kv_heads);
                        attend(head(row, query), keys, f64::from(kernel.scale), |key| {
                            [head(key, heads.heads + group), head(key, heads.heads + heads.kv_heads + group)]
                        })
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        errors.push(compare(&kernel, spread, &rows_of(&gpu.download_f16(&output), &rows, output_width), &reference));
    }
    errors
}

/// One query each against caches of three lengths.
fn decode(gpu: &Gpu, random: &mut Random, spread: Spread) -> KernelError {
    let heads = Heads { heads: 8, kv_heads: 2, head_dim: 128 };
    let lengths = [1_u32, 100, 1000];
    let (sequences, head_dim) = (lengths.len(), heads.head_dim as usize);
    let pages_per_sequence = KvCache::pages_for(1000);
    let pages = sequences as u32 * pages_per_sequence;
    let page_elements = (KvCache::page_bytes(heads) / 2) as usize;
    // Rows of queries, keys and values; only the queries of these are read.
    let qkv = rows_of_heads(random, spread, sequences, heads);
    let keys: Vec<f16> = match spread {
        // As the queries: see rows_of_heads.
        Spread::Large => (0..pages as usize * page_elements).map(|_| f16::from_f64(8.0 * normal(random))).collect(),
        _ => spread.activations(random, pages as usize * page_elements),
    };
    let values = spread.activations(random, pages as usize * page_elements);
    let [device_qkv, device_keys, device_values] = [&qkv, &keys, &values].map(|halves| gpu.upload_f16(halves));
    let (page_table, device_lengths) = (gpu.upload_u32(&(0..pages).rev().collect::<Vec<_>>()), gpu.upload_u32(&lengths));
    let workspace = gpu.zeroed(AttentionDecode::workspace_bytes(heads, sequences as u32, pages_per_sequence) as usize);
    let output = gpu.poisoned_f16(sequences * heads.output_width() as usize);
    let kernel = AttentionDecode {
        heads,
        sequences: sequences as u32,
        context: 1000,
        window: 0,
        scale: 1.0 / (head_dim as f32).sqrt(),
        qkv: device_qkv.ptr(),
        qkv_stride: heads.qkv_width(),
        cache: KvCache { keys: device_keys.ptr(), values: device_values.ptr(), page_table: page_table.ptr(), pages_per_sequence },
        output: output.ptr(),
        output_stride: heads.output_width(),
        lengths: device_lengths.ptr(),
        workspace: workspace.ptr(),
    };
    gpu.run(&kernel, gpu.sms());
    let [qkv, keys, values] = [&qkv, &keys, &values].map(|halves| f64s(halves));
    let cached = |sequence: usize, group: usize, token: usize| {
        let page = pages as usize - 1 - (sequence * pages_per_sequence as usize + token / PAGE_TOKENS as usize);
        let row = (page * heads.kv_heads as usize + group) * PAGE_TOKENS as usize + token % PAGE_TOKENS as usize;
        row * head_dim..(row + 1) * head_dim
    };
    let reference: Vec<f64> = (0..sequences)
        .flat_map(|sequence| {
            let (keys, values, qkv) = (&keys, &values, &qkv);
            (0..heads.heads as usize).flat_map(move |head| {
                let query = &qkv[sequence * heads.qkv_width() as usize + head * head_dim..][..head_dim];
                let group = head / (heads.heads / heads.kv_heads) as usize;
                attend(query, lengths[sequence] as usize, f64::from(kernel.scale), |token| {
                    [&keys[cached(sequence, group, token)], &values[cached(sequence, group, token)]]
                })
            })
        })
        .collect();
    compare(&kernel, spread, &f64s(&gpu.download_f16(&output)), &reference)
}

/// Queries, keys and values. Where values are as large as FP16 goes, scores are some hundreds: an FP32 difference of larger ones carries their rounding.
fn rows_of_heads(random: &mut Random, spread: Spread, rows: usize, heads: Heads) -> Vec<f16> {
    if spread != Spread::Large {
        return spread.activations(random, rows * heads.qkv_width() as usize);
    }
    let (scored, values) = ((heads.heads + heads.kv_heads) * heads.head_dim, heads.kv_heads * heads.head_dim);
    let row = |random: &mut Random| {
        let mut row: Vec<f16> = (0..scored).map(|_| f16::from_f64(8.0 * normal(random))).collect();
        row.extend(spread.activations(random, values as usize));
        row
    };
    (0..rows).flat_map(|_| row(random)).collect()
}

/// `softmax(scale * q . k) v` for one query over the first `keys` keys.
fn attend<'a>(query: &[f64], keys: usize, scale: f64, key_and_value: impl Fn(usize) -> [&'a [f64]; 2]) -> Vec<f64> {
    let dot = |key: usize| scale * query.iter().zip(key_and_value(key)[0]).map(|(q, k)| q * k).sum::<f64>();
    let scores: Vec<f64> = (0..keys).map(dot).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut output = vec![0.0; query.len()];
    for (key, weight) in weights.iter().enumerate() {
        output.iter_mut().zip(key_and_value(key)[1]).for_each(|(output, value)| *output += weight / sum * value);
    }
    output
}

/// Layer norm and RMS norm, with a residual.
fn norms(gpu: &Gpu, random: &mut Random, spread: Spread) -> Vec<KernelError> {
    let mut errors = Vec::new();
    for (kind, width) in [(NormKind::Layer, 768), (NormKind::Rms, 4096)] {
        let rows = 256;
        let x = spread.activations(random, rows * width);
        // Sums of two large magnitudes are beyond FP16, in which they are kept.
        let residual = Spread::Normal.activations(random, rows * width);
        let (weight, bias) = (Spread::Normal.activations(random, width), Spread::Normal.activations(random, width));
        let [device_x, device_residual, device_weight, device_bias] = [&x, &residual, &weight, &bias].map(|values| gpu.upload_f16(values));
        let y = gpu.poisoned_f16(rows * width);
        let epsilon = 1e-5;
        let kernel = Norm {
            kind,
            rows: rows as u32,
            width: width as u32,
            epsilon,
            x: device_x.ptr(),
            index: DevicePtr::NULL,
            residual: device_residual.ptr(),
            sum: DevicePtr::NULL,
            weight: device_weight.ptr(),
            bias: device_bias.ptr(),
            y: y.ptr(),
        };
        gpu.run(&kernel, gpu.sms());
        let reference: Vec<f64> = (0..rows)
            .flat_map(|row| {
                let sums: Vec<f64> = (0..width).map(|at| x[row * width + at].to_f64() + residual[row * width + at].to_f64()).collect();
                let mean = if kind == NormKind::Layer { sums.iter().sum::<f64>() / width as f64 } else { 0.0 };
                let variance = sums.iter().map(|sum| (sum - mean).powi(2)).sum::<f64>() / width as f64;
                let scale = 1.0 / (variance + f64::from(epsilon)).sqrt();
                let shift = |at: usize| if kind == NormKind::Layer { bias[at].to_f64() } else { 0.0 };
                sums.iter().enumerate().map(|(at, sum)| (sum - mean) * scale * weight[at].to_f64() + shift(at)).collect::<Vec<_>>()
            })
            .collect();
        errors.push(compare(&kernel, spread, &f64s(&gpu.download_f16(&y)), &reference));
    }
    errors
}

/// Rotation in place at positions up to 8191.
fn rotary(gpu: &Gpu, random: &mut Random, spread: Spread) -> KernelError {
    let heads = Heads { heads: 8, kv_heads: 2, head_dim: 128 };
    let (rows, width, half) = (256, heads.qkv_width() as usize, 64);
    // A rotated pair may be longer than its parts by the square root of 2.
    let qkv: Vec<f16> = spread.activations(random, rows * width).iter().map(|value| f16::from_f64(value.to_f64() * 0.7)).collect();
    let positions: Vec<u32> = (0..rows).map(|_| random.between(0, 8191)).collect();
    let frequencies: Vec<f32> = (0..half).map(|pair| 10_000_f32.powf(-(pair as f32) / half as f32)).collect();
    let device_qkv = gpu.upload_f16(&qkv);
    let (device_positions, device_frequencies) = (gpu.upload_u32(&positions), gpu.upload_f32(&frequencies));
    let kernel = Rotary {
        heads,
        rows: rows as u32,
        qkv: device_qkv.ptr(),
        qkv_stride: width as u32,
        positions: device_positions.ptr(),
        inverse_frequencies: device_frequencies.ptr(),
        cache: None,
        sequence_of: DevicePtr::NULL,
    };
    gpu.run(&kernel, gpu.sms());
    let mut reference = f64s(&qkv);
    for (row, position) in reference.chunks_exact_mut(width).zip(&positions) {
        for head in row[..(heads.heads + heads.kv_heads) as usize * 2 * half].chunks_exact_mut(2 * half) {
            for pair in 0..half {
                // The product is rounded to FP32 in every implementation: part of the definition, not of the error.
                let angle = f64::from(*position as f32 * frequencies[pair]);
                let (first, second) = (head[pair], head[pair + half]);
                head[pair] = first * angle.cos() - second * angle.sin();
                head[pair + half] = second * angle.cos() + first * angle.sin();
            }
        }
    }
    compare(&kernel, spread, &f64s(&gpu.download_f16(&device_qkv)), &reference)
}

/// Averages over sequences, stored in FP32.
fn mean_pool(gpu: &Gpu, random: &mut Random, spread: Spread) -> KernelError {
    let (lengths, width) = ([1_u32, 128, 77, 512], 768);
    let starts: Vec<u32> = lengths.iter().scan(0, |next, length| Some(std::mem::replace(next, *next + length))).collect();
    let tokens: u32 = lengths.iter().sum();
    let x = spread.activations(random, tokens as usize * width);
    let (device_x, device_starts, device_lengths) = (gpu.upload_f16(&x), gpu.upload_u32(&starts), gpu.upload_u32(&lengths));
    let y = gpu.poisoned_f32(lengths.len() * width);
    let kernel = MeanPool {
        rows: lengths.len() as u32,
        width: width as u32,
        tokens,
        x: device_x.ptr(),
        starts: device_starts.ptr(),
        lengths: device_lengths.ptr(),
        normalise: false,
        y: y.ptr(),
    };
    gpu.run(&kernel, gpu.sms());
    let mean = |(start, length): (&u32, &u32), column: usize| {
        (*start..start + length).map(|row| x[row as usize * width + column].to_f64()).sum::<f64>() / f64::from(*length)
    };
    let reference: Vec<f64> =
        starts.iter().zip(&lengths).flat_map(|sequence| (0..width).map(move |column| mean(sequence, column))).collect();
    compare(&kernel, spread, &gpu.download_f32(&y).into_iter().map(f64::from).collect::<Vec<_>>(), &reference)
}

/// FP16's rounding alone is up to 2^-11 = 4.9e-4 of an element, 2.8e-4 in the root mean square at most. Attention rounds its probabilities too.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn errors_against_fp64_stay_within_fp16s_rounding_for_every_spread_of_inputs() {
    let gpu = Gpu::open();
    let mut random = Random::new(17);
    let mut kernels = Vec::new();
    for spread in SPREADS {
        kernels.extend(products(&gpu, &mut random, spread));
        kernels.extend(prefills(&gpu, &mut random, spread));
        kernels.push(decode(&gpu, &mut random, spread));
        kernels.extend(norms(&gpu, &mut random, spread));
        kernels.push(rotary(&gpu, &mut random, spread));
        kernels.push(mean_pool(&gpu, &mut random, spread));
    }
    kernels.sort_by(|one, other| one.kernel.cmp(&other.kernel));
    for error in &kernels {
        println!("{:44} {:28} rms {:.1e} max {:.1e} largest {:.1e}", error.kernel, error.inputs, error.rms, error.max, error.largest);
    }
    if let Some(file) = env::var_os(FILE) {
        let provenance = ErrorProvenance {
            command: env::var("SMIDGEN_COMMAND").unwrap_or_else(|_| env::args().collect::<Vec<_>>().join(" ")),
            commit: env!("SMIDGEN_COMMIT").to_owned(),
            kernel_build: BUILD_HASH.to_owned(),
            machine: gpu.device().topology().name.clone(),
            date: today(),
        };
        let table = serde_json::to_string_pretty(&Errors { provenance, kernels: kernels.clone() }).expect("plain figures") + "\n";
        fs::write(file, table).expect("the file can be written");
    }
    for error in kernels {
        let (rms, max) = if error.kernel.starts_with("attention") { (1e-3, 8e-3) } else { (3e-4, 1.5e-3) };
        assert!(error.rms <= rms && error.max <= max, "{error:?}: rms {rms:.0e} and max {max:.0e} are tolerated");
    }
}

/// What an output row holds.
fn kind(row: &[f16]) -> [usize; 3] {
    let count = |is: fn(f16) -> bool| row.iter().filter(|value| is(**value)).count();
    [count(f16::is_nan), count(|value| value == f16::INFINITY), count(|value| value == f16::NEG_INFINITY)]
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn nan_infinity_and_overflow_stay_in_their_row_of_a_product_and_come_out_as_ieee_754_says() {
    let gpu = Gpu::open();
    let mut random = Random::new(18);
    for m in [8, 200] {
        let [n, k] = [192, 256];
        let mut a = random.f16s(m * k, 1.0);
        // Positive weights, so that the sign of an infinity is known; the last is zero, and infinity times zero is NaN.
        let mut b: Vec<f16> = random.f16s(n * k, 1.0).into_iter().map(|value| f16::from_f32(value.to_f32().abs() + 0.25)).collect();
        a[k + 3] = f16::NAN;
        a[2 * k + 3] = f16::INFINITY;
        a[3 * k + 3] = f16::NEG_INFINITY;
        (a[4 * k + 3], a[4 * k + 5]) = (f16::INFINITY, f16::NEG_INFINITY);
        a[5 * k..6 * k].fill(f16::MAX);
        b[(n - 1) * k + 3] = f16::ZERO;
        let (device_a, device_b) = (gpu.upload_f16(&a), gpu.upload_f16(&b));
        let c = gpu.poisoned_f16(m * n);
        let gemm = Gemm::new([m, n, k].map(|extent| extent as u32), device_a.ptr(), device_b.ptr(), c.ptr(), Epilogue::NONE);
        gpu.run(&gemm, gpu.sms());
        let c = gpu.download_f16(&c);
        let kinds: Vec<[usize; 3]> = c.chunks_exact(n).map(kind).collect();
        let expected = [[0; 3], [n, 0, 0], [1, n - 1, 0], [1, 0, n - 1], [n, 0, 0], [0, n, 0]];
        assert_eq!(kinds[..6], expected, "{}: NaN, inf and -inf in the first six rows", gemm.key());
        assert!(kinds[6..].iter().all(|row| *row == [0; 3]), "{}: a row without NaN or infinity got one", gemm.key());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_nan_stays_in_its_row_of_a_norm_and_an_infinity_makes_its_row_nan_or_zero() {
    let gpu = Gpu::open();
    let mut random = Random::new(19);
    for (kind_of_norm, width) in [(NormKind::Layer, 768), (NormKind::Rms, 768), (NormKind::Layer, 5000), (NormKind::Rms, 5000)] {
        let mut x = random.f16s(3 * width, 1.0);
        x[width + 1] = f16::NAN;
        x[2 * width + 1] = f16::INFINITY;
        let weight = vec![f16::ONE; width];
        let (device_x, device_weight, device_bias) = (gpu.upload_f16(&x), gpu.upload_f16(&weight), gpu.upload_f16(&vec![f16::ZERO; width]));
        let y = gpu.poisoned_f16(3 * width);
        let norm = Norm {
            kind: kind_of_norm,
            rows: 3,
            width: width as u32,
            epsilon: 1e-5,
            x: device_x.ptr(),
            index: DevicePtr::NULL,
            residual: DevicePtr::NULL,
            sum: DevicePtr::NULL,
            weight: device_weight.ptr(),
            bias: device_bias.ptr(),
            y: y.ptr(),
        };
        gpu.run(&norm, gpu.sms());
        let y = gpu.download_f16(&y);
        let rows: Vec<&[f16]> = y.chunks_exact(width).collect();
        assert_eq!(kind(rows[0]), [0; 3], "{}: a row without NaN got one", norm.key());
        assert_eq!(kind(rows[1]), [width, 0, 0], "{}: the row with a NaN", norm.key());
        // Layer norm subtracts an infinite mean from an infinity; RMS norm divides by an infinite root: x / inf is 0, inf / inf is NaN.
        let expected = if kind_of_norm == NormKind::Layer { [width, 0, 0] } else { [1, 0, 0] };
        assert_eq!(kind(rows[2]), expected, "{}: the row with an infinity", norm.key());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_nan_in_a_query_reaches_its_own_row_and_head_alone() {
    let gpu = Gpu::open();
    let mut random = Random::new(20);
    for (head_dim, causal) in [(64, false), (128, true)] {
        let heads = Heads { heads: 2, kv_heads: 2, head_dim };
        let (width, output_width, length) = (heads.qkv_width() as usize, heads.output_width() as usize, 150);
        let mut qkv = random.f16s(length * width, 1.0);
        qkv[70 * width + 3] = f16::NAN;
        let device_qkv = gpu.upload_f16(&qkv);
        let (starts, lengths) = (gpu.upload_u32(&[0]), gpu.upload_u32(&[length as u32]));
        let output = gpu.poisoned_f16(length * output_width);
        let kernel = AttentionPrefill {
            heads,
            sequences: 1,
            max_length: length as u32,
            tokens: length as u32,
            rows: length as u32,
            causal,
            window: 0,
            scale: 0.1,
            qkv: device_qkv.ptr(),
            qkv_stride: width as u32,
            output: output.ptr(),
            output_stride: output_width as u32,
            starts: starts.ptr(),
            lengths: lengths.ptr(),
        };
        gpu.run(&kernel, gpu.sms());
        let output = gpu.download_f16(&output);
        for (at, head) in output.chunks_exact(head_dim as usize).enumerate() {
            let expected = if at == 70 * 2 { [head.len(), 0, 0] } else { [0; 3] };
            assert_eq!(kind(head), expected, "{}: row {}, head {}", kernel.key(), at / 2, at % 2);
        }
    }
}
