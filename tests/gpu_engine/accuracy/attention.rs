//! Attention over whole sequences, over a paged cache for one token and for chunks, and DeBERTa's: for heads of every compiled size.

use half::f16;
use rayon::prelude::*;
use smidgen::kernels::attention::{AttentionChunk, AttentionDecode, AttentionDisentangled, AttentionPrefill, Heads, KvCache, PAGE_TOKENS};
use smidgen_runtime::device::Buffer;

use super::results::KernelError;
use super::{Spread, compare, rows_of, sampled};
use crate::attention::f64s;
use crate::support::{Gpu, Random};

/// All of them.
pub(super) fn errors(gpu: &Gpu, random: &mut Random, spread: Spread) -> Vec<KernelError> {
    let mut errors = Vec::new();
    for (head_dim, length, causal) in
        [(32, 128, false), (64, 128, false), (80, 512, true), (96, 512, true), (128, 1024, true), (256, 512, true)]
    {
        errors.push(prefill(gpu, random, spread, Heads { heads: 4, kv_heads: 2, head_dim }, length, causal));
    }
    for head_dim in [32, 64, 80, 96, 128, 256] {
        errors.push(decode(gpu, random, spread, Heads { heads: 8, kv_heads: 2, head_dim }));
        errors.push(chunk(gpu, random, spread, Heads { heads: 4, kv_heads: 2, head_dim }));
    }
    errors.extend([32, 64].map(|head_dim| disentangled(gpu, random, spread, head_dim)));
    errors
}

/// Queries and keys. Where values are as large as FP16 goes, scores are some hundreds: an FP32 difference of larger ones carries their rounding.
fn scored(random: &mut Random, spread: Spread, len: usize) -> Vec<f16> {
    if spread == Spread::Large { Spread::Normal.activations(random, len, 8.0) } else { spread.activations(random, len, 1.0) }
}

/// Rows of queries, keys and values.
fn rows_of_heads(random: &mut Random, spread: Spread, rows: usize, heads: Heads) -> Vec<f16> {
    let before_values = ((heads.heads + heads.kv_heads) * heads.head_dim) as usize;
    let row = |random: &mut Random| {
        let mut row = scored(random, spread, before_values);
        row.extend(spread.activations(random, heads.qkv_width() as usize - before_values, 1.0));
        row
    };
    (0..rows).flat_map(|_| row(random)).collect()
}

/// `sum over keys of softmax(score) * value` for one query over the first `keys` keys.
fn attend<'a>(columns: usize, keys: usize, score: impl Fn(usize) -> f64, value: impl Fn(usize) -> &'a [f64]) -> Vec<f64> {
    let scores: Vec<f64> = (0..keys).map(score).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut output = vec![0.0; columns];
    for (key, weight) in weights.iter().enumerate() {
        output.iter_mut().zip(value(key)).for_each(|(output, value)| *output += weight / sum * value);
    }
    output
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// One sequence.
fn prefill(gpu: &Gpu, random: &mut Random, spread: Spread, heads: Heads, length: usize, causal: bool) -> KernelError {
    let (width, output_width, head_dim) = (heads.qkv_width() as usize, heads.output_width() as usize, heads.head_dim as usize);
    let qkv = rows_of_heads(random, spread, length, heads);
    let on_gpu = gpu.upload_f16(&qkv);
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
        scale: 1.0 / (heads.head_dim as f32).sqrt(),
        qkv: on_gpu.ptr(),
        qkv_stride: width as u32,
        output: output.ptr(),
        output_stride: output_width as u32,
        starts: starts.ptr(),
        lengths: lengths.ptr(),
    };
    gpu.run(&kernel, gpu.sms());
    let rows = sampled(length);
    let qkv = f64s(&qkv);
    let head = |row: usize, head: u32| &qkv[row * width + head as usize * head_dim..][..head_dim];
    let reference: Vec<f64> = rows
        .par_iter()
        .flat_map_iter(|&row| {
            let keys = if causal { row + 1 } else { length };
            (0..heads.heads)
                .flat_map(|query| {
                    let key_head = heads.heads + query / (heads.heads / heads.kv_heads);
                    let score = |key: usize| f64::from(kernel.scale) * dot(head(row, query), head(key, key_head));
                    attend(head_dim, keys, score, |key| head(key, key_head + heads.kv_heads))
                })
                .collect::<Vec<_>>()
        })
        .collect();
    compare(&kernel, spread, &rows_of(&gpu.download_f16(&output), &rows, output_width), &reference)
}

/// Keys and values of sequences, in pages from the last to the first.
struct Pages {
    heads: Heads,
    sequences: usize,
    pages_per_sequence: u32,
    /// Keys and values.
    pools: [Vec<f64>; 2],
    on_gpu: [Buffer; 3],
}

impl Pages {
    fn new(gpu: &Gpu, random: &mut Random, spread: Spread, heads: Heads, sequences: usize, capacity: u32) -> Self {
        let pages_per_sequence = KvCache::pages_for(capacity);
        let pages = sequences as u32 * pages_per_sequence;
        let elements = pages as usize * (KvCache::page_bytes(heads) / 2) as usize;
        let pools = [scored(random, spread, elements), spread.activations(random, elements, 1.0)];
        let table: Vec<u32> = (0..pages).rev().collect();
        let on_gpu = [gpu.upload_f16(&pools[0]), gpu.upload_f16(&pools[1]), gpu.upload_u32(&table)];
        Self { heads, sequences, pages_per_sequence, pools: pools.map(|pool| f64s(&pool)), on_gpu }
    }

    fn cache(&self) -> KvCache {
        let [keys, values, page_table] = [0, 1, 2].map(|buffer: usize| self.on_gpu[buffer].ptr());
        KvCache { keys, values, page_table, pages_per_sequence: self.pages_per_sequence }
    }

    /// What `query`, a head of so many, is answered by the first `keys` positions.
    fn attend(&self, sequence: usize, head: u32, query: &[f64], keys: usize, scale: f32) -> Vec<f64> {
        let (columns, page_tokens) = (self.heads.head_dim as usize, PAGE_TOKENS as usize);
        let kv_head = (head / (self.heads.heads / self.heads.kv_heads)) as usize;
        let place = |token: usize| {
            let page =
                self.sequences * self.pages_per_sequence as usize - 1 - sequence * self.pages_per_sequence as usize - token / page_tokens;
            ((page * self.heads.kv_heads as usize + kv_head) * page_tokens + token % page_tokens) * columns
        };
        let [key, value] = [0, 1].map(|pool: usize| move |token: usize| &self.pools[pool][place(token)..][..columns]);
        attend(columns, keys, |token| f64::from(scale) * dot(query, key(token)), value)
    }
}

/// One query each against caches of three lengths.
fn decode(gpu: &Gpu, random: &mut Random, spread: Spread, heads: Heads) -> KernelError {
    let lengths = [1_u32, 100, 1000];
    let (sequences, head_dim, width) = (lengths.len(), heads.head_dim as usize, heads.qkv_width() as usize);
    let pages = Pages::new(gpu, random, spread, heads, sequences, 1000);
    // Rows of queries, keys and values; only the queries of these are read.
    let qkv = rows_of_heads(random, spread, sequences, heads);
    let (on_gpu, lengths_on_gpu) = (gpu.upload_f16(&qkv), gpu.upload_u32(&lengths));
    let workspace = gpu.zeroed(AttentionDecode::workspace_bytes(heads, sequences as u32, pages.pages_per_sequence) as usize);
    let output = gpu.poisoned_f16(sequences * heads.output_width() as usize);
    let kernel = AttentionDecode {
        heads,
        sequences: sequences as u32,
        context: 1000,
        window: 0,
        scale: 1.0 / (heads.head_dim as f32).sqrt(),
        qkv: on_gpu.ptr(),
        qkv_stride: heads.qkv_width(),
        cache: pages.cache(),
        output: output.ptr(),
        output_stride: heads.output_width(),
        lengths: lengths_on_gpu.ptr(),
        workspace: workspace.ptr(),
    };
    gpu.run(&kernel, gpu.sms());
    let qkv = f64s(&qkv);
    let mut reference = Vec::new();
    for (sequence, &length) in lengths.iter().enumerate() {
        for head in 0..heads.heads {
            let query = &qkv[sequence * width + head as usize * head_dim..][..head_dim];
            reference.extend(pages.attend(sequence, head, query, length as usize, kernel.scale));
        }
    }
    compare(&kernel, spread, &f64s(&gpu.download_f16(&output)), &reference)
}

/// The newest 200 of 500 tokens, and all of 100.
fn chunk(gpu: &Gpu, random: &mut Random, spread: Spread, heads: Heads) -> KernelError {
    let (lengths, contexts, starts) = ([200_u32, 100], [500_u32, 100], [0_u32, 200]);
    let (rows, head_dim, width, output_width) = (300, heads.head_dim as usize, heads.qkv_width() as usize, heads.output_width() as usize);
    let pages = Pages::new(gpu, random, spread, heads, 2, 500);
    let qkv = rows_of_heads(random, spread, rows, heads);
    let on_gpu = gpu.upload_f16(&qkv);
    let arrays = [starts, lengths, contexts, [0, 1]].map(|words| gpu.upload_u32(&words));
    let output = gpu.poisoned_f16(rows * output_width);
    let kernel = AttentionChunk {
        heads,
        chunks: 2,
        max_length: 200,
        tokens: 300,
        rows: 300,
        context: 500,
        window: 0,
        scale: 1.0 / (heads.head_dim as f32).sqrt(),
        qkv: on_gpu.ptr(),
        qkv_stride: heads.qkv_width(),
        cache: pages.cache(),
        output: output.ptr(),
        output_stride: heads.output_width(),
        starts: arrays[0].ptr(),
        lengths: arrays[1].ptr(),
        contexts: arrays[2].ptr(),
        sequence_of: arrays[3].ptr(),
    };
    gpu.run(&kernel, gpu.sms());
    let (compared, qkv) = (sampled(rows), f64s(&qkv));
    let reference: Vec<f64> = compared
        .par_iter()
        .flat_map_iter(|&row| {
            let sequence = usize::from(row >= 200);
            let seen = row + 1 - starts[sequence] as usize + (contexts[sequence] - lengths[sequence]) as usize;
            (0..heads.heads)
                .flat_map(|head| {
                    let query = &qkv[row * width + head as usize * head_dim..][..head_dim];
                    pages.attend(sequence, head, query, seen, kernel.scale)
                })
                .collect::<Vec<_>>()
        })
        .collect();
    compare(&kernel, spread, &rows_of(&gpu.download_f16(&output), &compared, output_width), &reference)
}

/// One sequence, with both terms for positions. Those are normal, as products of weights are, whatever the activations.
fn disentangled(gpu: &Gpu, random: &mut Random, spread: Spread, head_dim: u32) -> KernelError {
    let (heads, length) = (4, 300);
    let (width, columns, reach) = ((heads * head_dim) as usize, head_dim as usize, length - 1);
    let qkv = rows_of_heads(random, spread, length, Heads { heads, kv_heads: heads, head_dim });
    let positions = [(); 2].map(|()| Spread::Normal.activations(random, (2 * reach + 1) * width, 1.0));
    let operands = [&qkv, &positions[0], &positions[1]].map(|operand| gpu.upload_f16(operand));
    let (starts, lengths) = (gpu.upload_u32(&[0]), gpu.upload_u32(&[length as u32]));
    let output = gpu.poisoned_f16(length * width);
    let kernel = AttentionDisentangled {
        heads,
        head_dim,
        sequences: 1,
        max_length: length as u32,
        tokens: length as u32,
        scale: 1.0 / (3.0 * head_dim as f32).sqrt(),
        qkv: operands[0].ptr(),
        qkv_stride: 3 * width as u32,
        position_keys: operands[1].ptr(),
        position_queries: operands[2].ptr(),
        position_stride: width as u32,
        reach: reach as u32,
        output: output.ptr(),
        output_stride: width as u32,
        starts: starts.ptr(),
        lengths: lengths.ptr(),
    };
    gpu.run(&kernel, gpu.sms());
    let rows = sampled(length);
    let (qkv, positions) = (f64s(&qkv), positions.map(|matrix| f64s(&matrix)));
    let of = |part: usize, row: usize, head: usize| &qkv[row * 3 * width + part * width + head * columns..][..columns];
    let reference: Vec<f64> = rows
        .par_iter()
        .flat_map_iter(|&row| {
            (0..heads as usize)
                .flat_map(|head| {
                    let score = |key: usize| {
                        let [to, from] =
                            [0, 1].map(|which: usize| &positions[which][(reach + row - key) * width + head * columns..][..columns]);
                        let (q, k) = (of(0, row, head), of(1, key, head));
                        f64::from(kernel.scale) * (dot(q, k) + dot(q, to) + dot(k, from))
                    };
                    attend(columns, length, score, |key| of(2, key, head))
                })
                .collect::<Vec<_>>()
        })
        .collect();
    compare(&kernel, spread, &rows_of(&gpu.download_f16(&output), &rows, width), &reference)
}
