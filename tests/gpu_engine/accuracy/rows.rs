//! What works row by row: norms, embeddings, rotation, averages.

use half::f16;
use smidgen::kernels::attention::{Heads, Rotary};
use smidgen::kernels::embedding::{Embed, EmbedNorm, PositionTable};
use smidgen::kernels::norm::{Norm, NormKind};
use smidgen::kernels::pooling::MeanPool;
use smidgen_runtime::device::DevicePtr;

use super::results::KernelError;
use super::{Spread, compare, rotate};
use crate::attention::f64s;
use crate::support::{Gpu, Random};

const EPSILON: f32 = 1e-5;

/// All of them.
pub(super) fn errors(gpu: &Gpu, random: &mut Random, spread: Spread) -> Vec<KernelError> {
    let mut errors = vec![rotary(gpu, random, spread), mean_pool(gpu, random, spread)];
    errors.extend([(NormKind::Layer, 768), (NormKind::Rms, 4096)].map(|(kind, width)| norm(gpu, random, spread, kind, width)));
    errors.extend(
        [(None, 768), (Some(NormKind::Layer), 768), (Some(NormKind::Rms), 4096)]
            .map(|(kind, width)| embed(gpu, random, spread, kind, width)),
    );
    errors
}

/// The norm of one row.
fn normed(kind: NormKind, row: &[f64], weight: &[f16], bias: &[f16]) -> Vec<f64> {
    let is_layer = kind == NormKind::Layer;
    let mean = if is_layer { row.iter().sum::<f64>() / row.len() as f64 } else { 0.0 };
    let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (variance + f64::from(EPSILON)).sqrt();
    let shift = |at: usize| if is_layer { bias[at].to_f64() } else { 0.0 };
    row.iter().enumerate().map(|(at, value)| (value - mean) * scale * weight[at].to_f64() + shift(at)).collect()
}

/// With a residual.
fn norm(gpu: &Gpu, random: &mut Random, spread: Spread, kind: NormKind, width: usize) -> KernelError {
    let rows = 256;
    let x = spread.activations(random, rows * width, 1.0);
    // Sums of two large magnitudes are beyond FP16, in which they are kept.
    let [residual, weight, bias] = [rows * width, width, width].map(|len| Spread::Normal.activations(random, len, 1.0));
    let operands = [&x, &residual, &weight, &bias].map(|values| gpu.upload_f16(values));
    let y = gpu.poisoned_f16(rows * width);
    let kernel = Norm {
        kind,
        rows: rows as u32,
        width: width as u32,
        epsilon: EPSILON,
        x: operands[0].ptr(),
        index: DevicePtr::NULL,
        residual: operands[1].ptr(),
        sum: DevicePtr::NULL,
        weight: operands[2].ptr(),
        bias: operands[3].ptr(),
        y: y.ptr(),
    };
    gpu.run(&kernel, gpu.sms());
    let sums: Vec<f64> = x.iter().zip(&residual).map(|(x, residual)| x.to_f64() + residual.to_f64()).collect();
    let reference: Vec<f64> = sums.chunks_exact(width).flat_map(|row| normed(kind, row, &weight, &bias)).collect();
    compare(&kernel, spread, &f64s(&gpu.download_f16(&y)), &reference)
}

/// BERT's three tables, or a decoder's one where the norm is RMS norm.
fn embed(gpu: &Gpu, random: &mut Random, spread: Spread, kind: Option<NormKind>, width: usize) -> KernelError {
    let (rows, vocabulary, positions) = (256, 1000, 512);
    let words = spread.activations(random, vocabulary * width, 1.0);
    // Sums of two large magnitudes are beyond FP16.
    let [table, types, weight, bias] = [positions * width, width, width, width].map(|len| Spread::Normal.activations(random, len, 1.0));
    let [ids, positions_of] =
        [vocabulary, positions].map(|entries| (0..rows).map(|_| random.between(0, entries as u32 - 1)).collect::<Vec<_>>());
    let operands = [&words, &table, &types, &weight, &bias].map(|values| gpu.upload_f16(values));
    let [ids_on_gpu, positions_on_gpu] = [&ids, &positions_of].map(|words| gpu.upload_u32(words));
    let y = gpu.poisoned_f16(rows * width);
    let has_positions = kind != Some(NormKind::Rms);
    let table_on_gpu = PositionTable { positions: positions_on_gpu.ptr(), table: operands[1].ptr(), entries: positions as u32 };
    let kernel = Embed {
        rows: rows as u32,
        width: width as u32,
        vocabulary: vocabulary as u32,
        ids: ids_on_gpu.ptr(),
        words: operands[0].ptr(),
        positions: has_positions.then_some(table_on_gpu),
        type_table: if has_positions { operands[2].ptr() } else { DevicePtr::NULL },
        sum: DevicePtr::NULL,
        norm: kind.map(|kind| EmbedNorm { kind, weight: operands[3].ptr(), bias: operands[4].ptr(), epsilon: EPSILON }),
        y: y.ptr(),
    };
    gpu.run(&kernel, gpu.sms());
    let entry = |table: &[f16], at: u32, column: usize| table[at as usize * width + column].to_f64();
    let sum = |row: usize, column: usize| {
        let added = if has_positions { entry(&table, positions_of[row], column) + entry(&types, 0, column) } else { 0.0 };
        entry(&words, ids[row], column) + added
    };
    let reference: Vec<f64> = (0..rows)
        .flat_map(|row| {
            let sums: Vec<f64> = (0..width).map(|column| sum(row, column)).collect();
            kind.map_or(sums.clone(), |kind| normed(kind, &sums, &weight, &bias))
        })
        .collect();
    compare(&kernel, spread, &f64s(&gpu.download_f16(&y)), &reference)
}

/// In place, at positions up to 8191.
fn rotary(gpu: &Gpu, random: &mut Random, spread: Spread) -> KernelError {
    let heads = Heads { heads: 8, kv_heads: 2, head_dim: 128 };
    let (rows, width, head_dim) = (256, heads.qkv_width() as usize, heads.head_dim as usize);
    // A rotated pair may be longer than its parts by the square root of 2.
    let qkv = spread.activations(random, rows * width, 0.7);
    let positions: Vec<u32> = (0..rows).map(|_| random.between(0, 8191)).collect();
    let frequencies: Vec<f32> = (0..head_dim / 2).map(|pair| 10_000_f32.powf(-(pair as f32) / (head_dim / 2) as f32)).collect();
    let on_gpu = gpu.upload_f16(&qkv);
    let (positions_on_gpu, frequencies_on_gpu) = (gpu.upload_u32(&positions), gpu.upload_f32(&frequencies));
    let kernel = Rotary {
        heads,
        rows: rows as u32,
        qkv: on_gpu.ptr(),
        qkv_stride: width as u32,
        positions: positions_on_gpu.ptr(),
        inverse_frequencies: frequencies_on_gpu.ptr(),
        cache: None,
        sequence_of: DevicePtr::NULL,
    };
    gpu.run(&kernel, gpu.sms());
    let mut reference = f64s(&qkv);
    for (row, position) in reference.chunks_exact_mut(width).zip(&positions) {
        let rotated = (heads.heads + heads.kv_heads) as usize * head_dim;
        row[..rotated].chunks_exact_mut(head_dim).for_each(|head| rotate(head, *position, &frequencies));
    }
    compare(&kernel, spread, &f64s(&gpu.download_f16(&on_gpu)), &reference)
}

/// Over sequences, stored in FP32.
fn mean_pool(gpu: &Gpu, random: &mut Random, spread: Spread) -> KernelError {
    let (lengths, width) = ([1_u32, 128, 77, 512], 768);
    let starts: Vec<u32> = lengths.iter().scan(0, |next, length| Some(std::mem::replace(next, *next + length))).collect();
    let tokens: u32 = lengths.iter().sum();
    let x = spread.activations(random, tokens as usize * width, 1.0);
    let (x_on_gpu, starts_on_gpu, lengths_on_gpu) = (gpu.upload_f16(&x), gpu.upload_u32(&starts), gpu.upload_u32(&lengths));
    let y = gpu.poisoned_f32(lengths.len() * width);
    let kernel = MeanPool {
        rows: lengths.len() as u32,
        width: width as u32,
        tokens,
        x: x_on_gpu.ptr(),
        starts: starts_on_gpu.ptr(),
        lengths: lengths_on_gpu.ptr(),
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
