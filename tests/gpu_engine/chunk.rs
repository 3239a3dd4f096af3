//! Chunks of prompts attending to a paged KV cache on the GPU against softmax in f64 on the CPU: any length before and in the chunk, any head size,
//! and the same bits at every SM count and however a prompt is cut.

use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rayon::prelude::*;
use smidgen::kernels::attention::{AttentionChunk, Heads};
use smidgen_runtime::device::Buffer;
use smidgen_runtime::launch::Kernel;

use crate::attention::{assert_same_bits_while_the_grant_changes, attend, check, f64s, halves};
use crate::decode::{PagedCache, slices};
use crate::draws::{HEAD_DIMS, extent, for_draws, gap, head_dims, heads};
use crate::ieee754::assert_as_ieee_754_says;
use crate::support::{Gpu, Random, is_sanitized};

/// One chunk: rows of `qkv`, and the sequence that they are the newest of.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: u32,
    length: u32,
    context: u32,
    sequence: u32,
}

/// Sequences in a cache, and the rows of some chunks of them.
struct Chunks {
    heads: Heads,
    cache: PagedCache,
    stride: u32,
    qkv: Vec<f16>,
    qkv_on_gpu: Buffer,
    output: Buffer,
    output_stride: u32,
    window: u32,
}

impl Chunks {
    /// `contexts` tokens of each sequence are in the cache, and there are `rows` rows of `qkv`, `gaps` elements apart.
    fn new(gpu: &Gpu, random: &mut Random, heads: Heads, contexts: &[u32], rows: u32, window: u32, gaps: [u32; 2]) -> Self {
        let capacity = contexts.iter().copied().max().unwrap_or(1).max(1);
        let cache = PagedCache::new(gpu, random, heads, contexts, capacity);
        let [stride, output_stride] = [heads.qkv_width() + gaps[0], heads.output_width() + gaps[1]];
        let qkv = random.f16s((rows * stride) as usize, 2.0);
        let qkv_on_gpu = gpu.upload_f16(&qkv);
        let output = gpu.poisoned_f16((rows * output_stride) as usize);
        Self { heads, cache, stride, qkv, qkv_on_gpu, output, output_stride, window }
    }

    /// The kernel over `pieces`, and the arrays that it reads.
    fn kernel(&self, gpu: &Gpu, pieces: &[Piece]) -> (AttentionChunk, [Buffer; 4]) {
        let fields: [fn(&Piece) -> u32; 4] = [|piece| piece.start, |piece| piece.length, |piece| piece.context, |piece| piece.sequence];
        let arrays = fields.map(|field| gpu.upload_u32(&pieces.iter().map(field).collect::<Vec<_>>()));
        let kernel = AttentionChunk {
            heads: self.heads,
            chunks: pieces.len() as u32,
            max_length: pieces.iter().map(|piece| piece.length).max().unwrap_or(1).max(1),
            tokens: pieces.iter().map(|piece| piece.length).sum(),
            rows: self.qkv.len() as u32 / self.stride,
            context: 100,
            window: self.window,
            scale: 1.0 / (self.heads.head_dim as f32).sqrt(),
            qkv: self.qkv_on_gpu.ptr(),
            qkv_stride: self.stride,
            cache: self.cache.on_gpu(),
            output: self.output.ptr(),
            output_stride: self.output_stride,
            starts: arrays[0].ptr(),
            lengths: arrays[1].ptr(),
            contexts: arrays[2].ptr(),
            sequence_of: arrays[3].ptr(),
        };
        (kernel, arrays)
    }

    /// The outputs of the pieces' rows, one after another.
    fn reference(&self, pieces: &[Piece]) -> Vec<f64> {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let of_head = |(piece, row, head): (Piece, u32, u32)| {
            let end = piece.context - piece.length + row + 1;
            let first = if self.window == 0 { 0 } else { end.saturating_sub(self.window) };
            let q = f64s(&self.qkv[((piece.start + row) * self.stride + head * head_dim) as usize..][..head_dim as usize]);
            let [keys, values] = [0, 1].map(|pool: usize| {
                (first..end).map(|at| f64s(self.cache.row(pool, piece.sequence, head / (heads / kv_heads), at))).collect::<Vec<_>>()
            });
            attend(&q, &slices(&keys), &slices(&values), 1.0 / (head_dim as f32).sqrt())
        };
        let rows = pieces.iter().flat_map(|&piece| (0..piece.length).flat_map(move |row| (0..heads).map(move |head| (piece, row, head))));
        rows.collect::<Vec<_>>().into_par_iter().flat_map_iter(of_head).collect()
    }

    /// Compares an output with the reference, and fails where anything but the pieces' rows was written.
    fn check(&self, pieces: &[Piece], output: &[f16]) {
        let (width, stride) = (self.heads.output_width() as usize, self.output_stride as usize);
        let mut rest = output.to_vec();
        let mut valid = Vec::new();
        for row in pieces.iter().flat_map(|piece| piece.start..piece.start + piece.length) {
            valid.extend_from_slice(&output[row as usize * stride..][..width]);
            rest[row as usize * stride..][..width].fill(f16::NAN);
        }
        let what = format!("{:?}, window {}: {pieces:?}", self.heads, self.window);
        assert!(rest.iter().all(|value| value.is_nan()), "{what}: an element that belongs to no chunk was written");
        check(&what, &valid, &self.reference(pieces));
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn chunks_are_right_at_every_head_size_and_group_ratio() {
    let gpu = Gpu::open();
    let mut random = Random::new(20);
    for head_dim in HEAD_DIMS.into_iter().chain([24, 40, 56, 200]) {
        for (kv_heads, group) in [(2, 1), (1, 4), (1, 7)] {
            let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
            let chunks = Chunks::new(&gpu, &mut random, heads, &[200, 70], 150, 0, [0, 0]);
            let pieces = [
                Piece { start: 0, length: 70, context: 70, sequence: 1 },
                Piece { start: 0, length: 0, context: 0, sequence: 0 },
                Piece { start: 80, length: 66, context: 200, sequence: 0 },
            ];
            let (kernel, _arrays) = chunks.kernel(&gpu, &pieces);
            gpu.run(&kernel, gpu.sms());
            chunks.check(&pieces, &gpu.download_f16(&chunks.output));
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn rows_on_16_bytes_and_off_them_are_right() {
    let gpu = Gpu::open();
    let mut random = Random::new(25);
    for (head_dim, window) in [(32, 0), (40, 70), (64, 0), (72, 0), (96, 200), (128, 0), (128, 130), (256, 90)] {
        let heads = Heads { heads: 6, kv_heads: 2, head_dim };
        let pieces = [
            Piece { start: 1, length: 129, context: 129, sequence: 1 },
            Piece { start: 131, length: 65, context: 700, sequence: 2 },
            Piece { start: 200, length: 200, context: 450, sequence: 0 },
        ];
        for gaps in [[0, 0], [8, 16], [1, 0], [0, 1], [4, 2]] {
            let chunks = Chunks::new(&gpu, &mut random, heads, &[450, 129, 700], 400, window, gaps);
            let (kernel, _arrays) = chunks.kernel(&gpu, &pieces);
            gpu.run(&kernel, gpu.sms());
            chunks.check(&pieces, &gpu.download_f16(&chunks.output));
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn chunks_that_are_empty_or_longer_than_their_context_get_no_output() {
    let gpu = Gpu::open();
    for (head_dim, gaps) in [(64, [0, 0]), (128, [0, 0]), (128, [1, 1])] {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim };
        let chunks = Chunks::new(&gpu, &mut Random::new(26), heads, &[300, 40, 0, 90], 600, 0, gaps);
        let right = [
            Piece { start: 0, length: 200, context: 300, sequence: 0 },
            Piece { start: 200, length: 0, context: 40, sequence: 1 },
            Piece { start: 500, length: 90, context: 90, sequence: 3 },
        ];
        let wrong =
            [Piece { start: 200, length: 41, context: 40, sequence: 1 }, Piece { start: 250, length: 200, context: 0, sequence: 2 }];
        let (kernel, _arrays) = chunks.kernel(&gpu, &[right[0], wrong[0], right[1], wrong[1], right[2]]);
        gpu.run(&kernel, gpu.sms());
        chunks.check(&right, &gpu.download_f16(&chunks.output));
    }
}

/// What distinguishes one batch of chunks from another.
#[derive(Debug, Clone)]
struct Batch {
    heads: Heads,
    /// Tokens of each sequence in the cache.
    contexts: Vec<u32>,
    /// In any order of their sequences.
    pieces: Vec<Piece>,
    rows: u32,
    window: u32,
    gaps: [u32; 2],
}

fn batches() -> impl Strategy<Value = Batch> {
    // Of each sequence: its context, the tokens of its chunk, and rows of nobody behind them.
    let sequences = vec((extent(400), 0_u32..=150, 0_u32..=2), 1..=5);
    let window = prop_oneof![Just(0), select(vec![1_u32, 7, 64, 100, 1000])];
    // As often as not on 16 bytes, where the copy engine can reach them.
    let columns = prop_oneof![head_dims(), (1..=32_u32).prop_map(|eighths| 8 * eighths)];
    let gaps = prop_oneof![[gap(9), gap(9)], [select(vec![0, 8]), select(vec![0, 16])]];
    (heads(3, &[1, 2, 4], columns), sequences, 0_usize..5, window, gaps).prop_map(|(heads, sequences, first, window, gaps)| {
        let mut rows = 0;
        let mut pieces = Vec::new();
        for (sequence, &(context, length, unused)) in (0..).zip(&sequences) {
            let length = length.min(context);
            pieces.push(Piece { start: rows, length, context, sequence });
            rows += length + unused;
        }
        pieces.rotate_left(first % sequences.len());
        let contexts = sequences.into_iter().map(|(context, ..)| context).collect();
        Batch { heads, contexts, pieces, rows: rows.max(1), window, gaps }
    })
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn random_chunks_windows_and_strides_are_right() {
    let gpu = Gpu::open();
    for_draws(80, &(batches(), any::<u64>(), select(gpu.sm_counts())), |(batch, seed, sms)| {
        let Batch { heads, contexts, pieces, rows, window, gaps } = batch;
        let chunks = Chunks::new(&gpu, &mut Random::new(seed), heads, &contexts, rows, window, gaps);
        let (kernel, _arrays) = chunks.kernel(&gpu, &pieces);
        gpu.run(&kernel, sms);
        chunks.check(&pieces, &gpu.download_f16(&chunks.output));
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn what_is_no_number_reaches_the_rows_of_a_chunk_that_see_it() {
    let gpu = Gpu::open();
    for (head_dim, window) in [(20, 0), (32, 0), (40, 90), (64, 0), (72, 0), (80, 0), (96, 0), (128, 0), (128, 90), (256, 0)] {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim };
        let contexts = [200, 150, 90, 100, 120, 70];
        let mut chunks = Chunks::new(&gpu, &mut Random::new(24), heads, &contexts, 450, window, [0, 0]);
        // Keys are in pool 0, values in pool 1. A value lies before its chunk and within the window, so that all rows see it.
        for (pool, place, value) in [
            (0, [0, 0, 140, 3], f16::NAN),
            (0, [1, 1, 100, 3], f16::NAN),
            (0, [2, 0, 60, 7], f16::INFINITY),
            (0, [3, 1, 0, 2], f16::NEG_INFINITY),
            (1, [4, 0, 79, 4], f16::NAN),
            (1, [4, 1, 79, 5], f16::INFINITY),
        ] {
            chunks.cache.set(&gpu, pool, place, value);
        }
        let pieces = [
            Piece { start: 0, length: 66, context: 200, sequence: 0 },
            Piece { start: 66, length: 150, context: 150, sequence: 1 },
            Piece { start: 216, length: 40, context: 90, sequence: 2 },
            Piece { start: 256, length: 100, context: 100, sequence: 3 },
            Piece { start: 356, length: 40, context: 120, sequence: 4 },
            Piece { start: 396, length: 54, context: 70, sequence: 5 },
        ];
        // One head's query in one row of the last.
        chunks.qkv[(420 * chunks.stride + head_dim + 1) as usize] = f16::NAN;
        chunks.qkv_on_gpu = gpu.upload_f16(&chunks.qkv);
        let (kernel, _arrays) = chunks.kernel(&gpu, &pieces);
        let reference = chunks.reference(&pieces);
        // On few SMs, so that one block does chunk after chunk, too: what one leaves in shared memory must not reach the next.
        for sms in [gpu.sms(), gpu.sm_counts()[0]] {
            gpu.poison(&chunks.output);
            gpu.run(&kernel, sms);
            let what = format!("{}, window {window}, {sms} SMs", kernel.key());
            assert_as_ieee_754_says(&what, &gpu.download_f16(&chunks.output), &reference);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_prompt_has_the_same_bits_however_it_is_cut() {
    let gpu = Gpu::open();
    // Scores are large where the scale is, and then a sum that is corrected by not quite 1 shows.
    let cases = [
        (32, 0, 3.0),
        (64, 0, 0.125),
        (64, 90, 2.0),
        (72, 90, 2.0),
        (96, 0, 2.0),
        (128, 0, 0.1),
        (128, 90, 1.0),
        (256, 0, 1.0),
        (20, 0, 0.2),
    ];
    for (head_dim, window, scale) in cases {
        let mut random = Random::new(22);
        let heads = Heads { heads: 4, kv_heads: 2, head_dim };
        let chunks = Chunks::new(&gpu, &mut random, heads, &[333], 333, window, [0, 0]);
        let run = |cuts: &[u32]| {
            gpu.poison(&chunks.output);
            let mut start = 0;
            for &cut in cuts.iter().chain([&333]) {
                let (kernel, _arrays) = chunks.kernel(&gpu, &[Piece { start, length: cut - start, context: cut, sequence: 0 }]);
                gpu.run(&AttentionChunk { scale, ..kernel }, gpu.sms());
                start = cut;
            }
            gpu.download_f16(&chunks.output)
        };
        let whole = run(&[]);
        assert!(whole.iter().all(|value| value.is_finite()));
        for cuts in [&[1_u32][..], &[64, 128, 192], &[192], &[17, 18, 100, 301]] {
            assert_eq!(whole, run(cuts), "heads of {head_dim} columns, window {window}, scale {scale}, cut at {cuts:?}");
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn chunks_have_the_same_bits_at_every_sm_count_and_while_their_grant_changes() {
    let gpu = Gpu::open();
    let mut random = Random::new(23);
    for (heads, kv_heads, head_dim) in [(8, 8, 32), (32, 8, 64), (8, 2, 72), (32, 8, 128), (4, 2, 256)] {
        let fewer = if is_sanitized() { kv_heads } else { 1 };
        let heads = Heads { heads: heads / fewer, kv_heads: kv_heads / fewer, head_dim };
        let contexts = [500, 130, 257];
        let pieces = [
            Piece { start: 0, length: 128, context: 500, sequence: 0 },
            Piece { start: 128, length: 130, context: 130, sequence: 1 },
            Piece { start: 258, length: 1, context: 257, sequence: 2 },
        ];
        let chunks = Chunks::new(&gpu, &mut random, heads, &contexts, 259, 0, [0, 0]);
        let (kernel, _arrays) = chunks.kernel(&gpu, &pieces);
        let outputs = gpu.assert_same_bits_at_every_sm_count(&kernel, &[&chunks.output]);
        chunks.check(&pieces, &halves(&outputs[0]));
        assert_same_bits_while_the_grant_changes(&gpu, &kernel, &chunks.output, &outputs[0], 5);
    }
}
