//! Attention over whole sequences on the GPU against softmax in f64 on the CPU: ragged batches, any head size, and the same bits at every SM
//! count. What it shares with the tests of other attention is here too.

use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use proptest::prelude::*;
use proptest::sample::select;
use rayon::prelude::*;
use smidgen::kernels::attention::{AttentionPrefill, Heads};
use smidgen_runtime::device::{Buffer, DevicePtr, PartitionId, Priority};
use smidgen_runtime::launch::{Kernel, TilesArg};

use crate::draws::{HEAD_DIMS, extent, for_draws, gap, head_dims, heads};
use crate::ieee754::assert_as_ieee_754_says;
use crate::support::{Gpu, Random, assert_close, is_sanitized, rounds};

/// `softmax(scale * q . k) v` for one query.
pub(crate) fn attend(q: &[f64], keys: &[&[f64]], values: &[&[f64]], scale: f32) -> Vec<f64> {
    let dot = |key: &&[f64]| q.iter().zip(*key).map(|(q, k)| q * k).sum::<f64>() * f64::from(scale);
    let scores: Vec<f64> = keys.iter().map(dot).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let column = |column: usize| weights.iter().zip(values).map(|(weight, value)| weight * value[column]).sum::<f64>() / sum;
    (0..q.len()).map(column).collect()
}

pub(crate) fn f64s(values: &[f16]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// Compares what was computed with the reference: as a whole, and each element, since the norm would hide a single wrong one.
pub(crate) fn check(what: &str, output: &[f16], reference: &[f64]) {
    assert_close(what, output.iter().map(|value| value.to_f64()), reference, 2e-3);
    let wrong = output.iter().zip(reference).position(|(value, expected)| (value.to_f64() - expected).abs() > 4e-3 + 2e-3 * expected.abs());
    if let Some(at) = wrong {
        panic!("{what}: element {at} is {} and should be {}", output[at], reference[at]);
    }
}

/// The first `width` elements of each row of sequences, given by their first rows and their lengths, in an `output` of rows `stride` elements apart; the
/// rest must still be NaN.
pub(crate) fn valid_rows<'a>(
    what: &str,
    output: &[f16],
    sequences: impl Iterator<Item = (&'a u32, &'a u32)>,
    width: usize,
    stride: usize,
) -> Vec<f16> {
    let mut written = vec![false; output.len()];
    let mut valid = Vec::new();
    for (&start, &length) in sequences {
        for row in start as usize..(start + length) as usize {
            written[row * stride..][..width].fill(true);
            valid.extend_from_slice(&output[row * stride..][..width]);
        }
    }
    let stray = output.iter().zip(&written).position(|(value, written)| !written && !value.is_nan());
    assert_eq!(stray, None, "{what}: an element of the padding was written");
    valid
}

/// What distinguishes one prefill from another. `gaps` are elements between the rows of `qkv` and of the output.
#[derive(Debug, Clone)]
struct Batch {
    heads: Heads,
    lengths: Vec<u32>,
    /// Rows that each sequence has in a padded batch; `None` for a packed one.
    padded_to: Option<u32>,
    causal: bool,
    window: u32,
    gaps: [u32; 2],
}

/// A prefill with its operands on the host and on the GPU. Padding and gaps are NaN.
struct Prefill {
    batch: Batch,
    kernel: AttentionPrefill,
    starts: Vec<u32>,
    qkv: Vec<f16>,
    output: Buffer,
    _operands: [Buffer; 3],
}

impl Prefill {
    fn new(gpu: &Gpu, random: &mut Random, batch: Batch) -> Self {
        let mut rows = 0;
        let mut starts = Vec::new();
        for length in &batch.lengths {
            starts.push(rows);
            rows += batch.padded_to.unwrap_or(*length);
        }
        let (width, output_width) = (batch.heads.qkv_width(), batch.heads.output_width());
        let [stride, output_stride] = [width + batch.gaps[0], output_width + batch.gaps[1]];
        let mut qkv = vec![f16::NAN; (rows * stride) as usize];
        for (start, length) in starts.iter().zip(&batch.lengths) {
            for row in *start..start + length {
                qkv[(row * stride) as usize..][..width as usize].copy_from_slice(&random.f16s(width as usize, 2.0));
            }
        }
        let operands = [gpu.upload_f16(&qkv), gpu.upload_u32(&starts), gpu.upload_u32(&batch.lengths)];
        let output = gpu.poisoned_f16((rows * output_stride) as usize);
        let kernel = AttentionPrefill {
            heads: batch.heads,
            sequences: batch.lengths.len() as u32,
            max_length: batch.lengths.iter().copied().max().unwrap_or(1),
            tokens: batch.lengths.iter().sum(),
            rows,
            causal: batch.causal,
            window: batch.window,
            scale: 1.0 / (batch.heads.head_dim as f32).sqrt(),
            qkv: operands[0].ptr(),
            qkv_stride: stride,
            output: output.ptr(),
            output_stride,
            starts: operands[1].ptr(),
            lengths: operands[2].ptr(),
        };
        Self { batch, kernel, starts, qkv, output, _operands: operands }
    }

    /// Columns of one head in one row of `qkv`.
    fn head<'a, T>(&self, qkv: &'a [T], row: u32, head: u32) -> &'a [T] {
        let columns = self.batch.heads.head_dim;
        &qkv[(row * self.kernel.qkv_stride + head * columns) as usize..][..columns as usize]
    }

    /// The valid rows of the output, one sequence after another.
    fn reference(&self) -> Vec<f64> {
        let Heads { heads, kv_heads, .. } = self.batch.heads;
        let qkv = &f64s(&self.qkv);
        let rows =
            self.starts.iter().zip(&self.batch.lengths).flat_map(|(&start, &length)| (0..length).map(move |row| (start, length, row)));
        let of_row = |(start, length, row): (u32, u32, u32)| {
            let window = if self.batch.window == 0 { u32::MAX } else { self.batch.window };
            let first = (row + 1).saturating_sub(window);
            let end = if self.batch.causal { row + 1 } else { length.min(row.saturating_add(window)) };
            let of_head = move |head: u32| {
                let kv_head = head / (heads / kv_heads);
                let seen = |group: u32| (first..end).map(|key| self.head(qkv, start + key, group + kv_head)).collect::<Vec<_>>();
                attend(self.head(qkv, start + row, head), &seen(heads), &seen(heads + kv_heads), self.kernel.scale)
            };
            (0..heads).flat_map(of_head).collect::<Vec<_>>()
        };
        rows.collect::<Vec<_>>().into_par_iter().flat_map_iter(of_row).collect()
    }

    /// The valid rows of a finished output, after checking that nothing else was written.
    fn valid(&self, output: &[f16]) -> Vec<f16> {
        let (width, stride) = (self.batch.heads.output_width() as usize, self.kernel.output_stride as usize);
        valid_rows(&format!("{:?}", self.batch), output, self.starts.iter().zip(&self.batch.lengths), width, stride)
    }

    fn run_and_check(&self, gpu: &Gpu, sms: u16) {
        gpu.run(&self.kernel, sms);
        check(&format!("{:?}", self.batch), &self.valid(&gpu.download_f16(&self.output)), &self.reference());
    }
}

/// Halves as the bytes that [`Gpu::assert_same_bits_at_every_sm_count`] returns.
pub(crate) fn halves(bytes: &[u8]) -> Vec<f16> {
    bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect()
}

/// Runs `kernel` once for each of `rounds` while its grant changes at random, every fourth grant empty; its output must be `expected`.
pub(crate) fn assert_same_bits_while_the_grant_changes(gpu: &Gpu, kernel: &dyn Kernel, output: &Buffer, expected: &[u8], times: u32) {
    let grant = gpu.upload_u32(&[u32::MAX; 8]);
    let stream = gpu.create_stream(PartitionId::WHOLE, Priority::High);
    let mut launch = kernel.configure(gpu.device().topology().sms, gpu.device().topology()).expect("a supported shape");
    // Some are too short here to be so by themselves.
    launch.elastic = true;
    for round in 0..rounds(times) {
        gpu.poison(output);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                gpu.device().bind_thread().expect("the GPU's context can be made current");
                let mut random = Random::new(round.into());
                while !done.load(Ordering::Relaxed) {
                    let density = random.between(0, 3);
                    let words = [0_u32; 8].map(|_| (0..density).fold(0, |word, _| word | random.bits() as u32));
                    gpu.device().upload(stream, grant.ptr(), &words.map(u32::to_le_bytes).concat()).expect("an upload");
                    gpu.device().synchronize(stream).expect("an upload");
                }
            });
            for _ in 0..rounds(20) {
                gpu.enqueue(kernel, &launch, gpu.stream(), TilesArg { grant: grant.ptr(), ..gpu.tiles(&launch) });
            }
            gpu.device().synchronize(gpu.stream()).expect("the kernel runs");
            done.store(true, Ordering::Relaxed);
        });
        assert!(gpu.download(output) == expected, "round {round}: {} differs", kernel.key());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn prefill_is_right_at_every_head_size_and_group_ratio() {
    let gpu = Gpu::open();
    let mut random = Random::new(1);
    for head_dim in HEAD_DIMS {
        for (kv_heads, group, causal) in [(2, 1, false), (1, 2, true), (2, 4, true), (1, 8, false)] {
            let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
            let batch = Batch { heads, lengths: vec![65, 1, 130], padded_to: None, causal, window: 0, gaps: [0, 0] };
            Prefill::new(&gpu, &mut random, batch).run_and_check(&gpu, gpu.sms());
        }
    }
}

/// Batches of any shape, whose rows lie anywhere or on 16 bytes.
fn any_batches() -> impl Strategy<Value = Batch> {
    let padding = prop::option::of(0_u32..=3);
    let window = prop_oneof![Just(0), select(vec![1_u32, 7, 63, 64, 65, 200, 1000])];
    let gaps = prop::option::of([gap(9), gap(9)]);
    (heads(3, &[1, 2, 4, 8], head_dims()), prop::collection::vec(extent(300), 1..=4), padding, any::<bool>(), window, gaps).prop_map(
        |(heads, lengths, padding, causal, window, gaps)| {
            let padded_to = padding.map(|padding| lengths.iter().max().map_or(1, |longest| longest + padding));
            let aligned = heads.qkv_width().next_multiple_of(8) - heads.qkv_width();
            Batch { heads, lengths, padded_to, causal, window, gaps: gaps.unwrap_or([aligned, 8]) }
        },
    )
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn random_batches_windows_and_strides_are_right() {
    let gpu = Gpu::open();
    for_draws(100, &(any_batches(), any::<u64>(), select(gpu.sm_counts())), |(batch, seed, sms)| {
        Prefill::new(&gpu, &mut Random::new(seed), batch).run_and_check(&gpu, sms);
    });
}

/// Batches whose rows lie on 16 bytes, as models' do, with lengths on both sides of every block and tile.
fn aligned_batches() -> impl Strategy<Value = Batch> {
    let head_dim = (1_u32..=32).prop_map(|eighth| 8 * eighth);
    let length = prop_oneof![Just(1_u32), 1..=130_u32, 120..=400_u32, Just(257), Just(521)];
    let lengths = prop::collection::vec(length, 1..5);
    let window = prop_oneof![3 => Just(0_u32), 1 => 1..=200_u32];
    let groups = prop_oneof![Just(1_u32), Just(2), Just(3), Just(4)];
    let padding = prop::option::of(0_u32..70);
    let gaps = (0_u32..3, 0_u32..3).prop_map(|(qkv, output)| [8 * qkv, 8 * output]);
    (head_dim, 1_u32..=3, groups, lengths, padding, any::<bool>(), window, gaps).prop_map(
        |(head_dim, kv_heads, group, lengths, padding, causal, window, gaps)| {
            let padded_to = padding.map(|padding| lengths.iter().max().map_or(1, |longest| longest + padding));
            Batch { heads: Heads { heads: kv_heads * group, kv_heads, head_dim }, lengths, padded_to, causal, window, gaps }
        },
    )
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn prefill_of_aligned_rows_is_right_for_any_batch() {
    let gpu = Gpu::open();
    for_draws(96, &(aligned_batches(), any::<u64>(), select(gpu.sm_counts())), |(batch, seed, sms)| {
        Prefill::new(&gpu, &mut Random::new(seed), batch).run_and_check(&gpu, sms);
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn long_sequences_go_round_every_ring_many_times() {
    let gpu = Gpu::open();
    let mut random = Random::new(13);
    for (head_dim, causal, window) in [(64, true, 0), (64, false, 0), (80, true, 300), (128, true, 0), (128, false, 700), (256, true, 0)] {
        let heads = Heads { heads: 2, kv_heads: 1, head_dim };
        let batch = Batch { heads, lengths: vec![1500, 3, 1111], padded_to: None, causal, window, gaps: [0, 0] };
        Prefill::new(&gpu, &mut random, batch).run_and_check(&gpu, gpu.sms());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_sequence_of_nan_reaches_no_other() {
    let gpu = Gpu::open();
    for (head_dim, lengths) in [(64, vec![100, 77, 128]), (64, vec![200, 77, 300]), (128, vec![130, 200, 129]), (256, vec![65, 70, 200])] {
        let heads = Heads { heads: 2, kv_heads: 2, head_dim };
        let [start, end] = [lengths[0], lengths[0] + lengths[1]].map(|row| (row * heads.qkv_width()) as usize);
        let batch = Batch { heads, lengths, padded_to: None, causal: false, window: 0, gaps: [0, 0] };
        let prefill = Prefill::new(&gpu, &mut Random::new(14), batch);
        let outputs = [f16::ONE, f16::NAN, f16::INFINITY].map(|value| {
            let mut qkv = prefill.qkv.clone();
            qkv[start..end].fill(value);
            let operand = gpu.upload_f16(&qkv);
            gpu.run(&AttentionPrefill { qkv: operand.ptr(), ..prefill.kernel }, gpu.sms());
            let output = gpu.download_f16(&prefill.output);
            let width = heads.output_width() as usize;
            let middle = prefill.starts[1] as usize * width..prefill.starts[2] as usize * width;
            [&output[..middle.start], &output[middle.end..]].concat()
        });
        assert!(outputs[0].iter().all(|value| value.is_finite()));
        assert!(outputs[1..].iter().all(|output| *output == outputs[0]), "{}", prefill.kernel.key());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn prefill_has_the_same_bits_with_and_without_a_tile_counter() {
    let gpu = Gpu::open();
    for (head_dim, length) in [(64, 128), (64, 500), (128, 500)] {
        let heads = Heads { heads: 12, kv_heads: 4, head_dim };
        let batch = Batch { heads, lengths: vec![length; 8], padded_to: None, causal: true, window: 0, gaps: [0, 0] };
        let prefill = Prefill::new(&gpu, &mut Random::new(15), batch);
        gpu.run(&prefill.kernel, gpu.sms());
        let counted = gpu.download(&prefill.output);
        gpu.poison(&prefill.output);
        let launch = prefill.kernel.configure(gpu.device().topology().sms, gpu.device().topology()).expect("a supported shape");
        gpu.enqueue(&prefill.kernel, &launch, gpu.stream(), TilesArg { progress: DevicePtr::NULL, ..gpu.tiles(&launch) });
        gpu.device().synchronize(gpu.stream()).expect("the kernel runs");
        assert!(counted == gpu.download(&prefill.output), "{}", prefill.kernel.key());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_sequence_of_one_token_gets_its_own_value() {
    let gpu = Gpu::open();
    let mut random = Random::new(3);
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 64 };
    for causal in [true, false] {
        let batch = Batch { heads, lengths: vec![1; 3], padded_to: Some(5), causal, window: 0, gaps: [0, 0] };
        let prefill = Prefill::new(&gpu, &mut random, batch);
        gpu.run(&prefill.kernel, gpu.sms());
        let values: Vec<f16> = prefill
            .starts
            .iter()
            .flat_map(|&row| [6, 6, 7, 7].map(|head| prefill.head(&prefill.qkv, row, head)))
            .flatten()
            .copied()
            .collect();
        assert_eq!(prefill.valid(&gpu.download_f16(&prefill.output)), values);
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn sequences_without_tokens_are_left_alone() {
    let gpu = Gpu::open();
    let mut random = Random::new(4);
    let heads = Heads { heads: 2, kv_heads: 1, head_dim: 32 };
    let batch = Batch { heads, lengths: vec![0, 70, 0], padded_to: Some(80), causal: true, window: 0, gaps: [0, 0] };
    Prefill::new(&gpu, &mut random, batch).run_and_check(&gpu, gpu.sms());
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_sequence_gets_the_same_bits_packed_or_padded() {
    let gpu = Gpu::open();
    let heads = Heads { heads: 6, kv_heads: 3, head_dim: 80 };
    let valid = |padded_to| {
        let batch = Batch { heads, lengths: vec![33, 190, 7], padded_to, causal: true, window: 0, gaps: [0, 0] };
        let prefill = Prefill::new(&gpu, &mut Random::new(5), batch);
        gpu.run(&prefill.kernel, gpu.sms());
        prefill.valid(&gpu.download_f16(&prefill.output))
    };
    let packed = valid(None);
    assert!(packed.iter().all(|value| value.is_finite()));
    assert_eq!(packed, valid(Some(200)));
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_nan_in_a_query_stays_in_its_row() {
    let gpu = Gpu::open();
    let heads = Heads { heads: 1, kv_heads: 1, head_dim: 64 };
    let batch = Batch { heads, lengths: vec![100], padded_to: None, causal: true, window: 0, gaps: [0, 0] };
    let prefill = Prefill::new(&gpu, &mut Random::new(6), batch);
    let mut qkv = prefill.qkv.clone();
    qkv[(40 * prefill.kernel.qkv_stride + 3) as usize] = f16::NAN;
    let poisoned = gpu.upload_f16(&qkv);
    gpu.run(&AttentionPrefill { qkv: poisoned.ptr(), ..prefill.kernel }, gpu.sms());
    for (row, columns) in gpu.download_f16(&prefill.output).chunks(64).enumerate() {
        assert!(columns.iter().all(|value| value.is_nan() == (row == 40)), "row {row}");
    }
}

/// Which rows see a key is for the mask to say; what they get of it is for IEEE 754.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_key_that_is_no_number_reaches_the_rows_that_see_it() {
    let gpu = Gpu::open();
    for head_dim in [20, 64, 80, 128, 256] {
        for (causal, window, first) in [(true, 0, 200), (true, 60, 200), (false, 0, 200), (true, 0, 100), (false, 0, 100)] {
            let heads = Heads { heads: 4, kv_heads: 2, head_dim };
            let batch = Batch { heads, lengths: vec![first, 70, 100], padded_to: None, causal, window, gaps: [0, 0] };
            let mut prefill = Prefill::new(&gpu, &mut Random::new(16), batch);
            let width = prefill.kernel.qkv_stride;
            // The first key head in the middle of a sequence, and the second of two others: by the signs of the queries an infinity makes NaN or nothing.
            for (row, key_head, value) in [(90, 0, f16::NAN), (first + 30, 1, f16::INFINITY), (first + 70 + 50, 1, f16::NEG_INFINITY)] {
                prefill.qkv[(row * width + (heads.heads + key_head) * head_dim + 3) as usize] = value;
            }
            let operand = gpu.upload_f16(&prefill.qkv);
            gpu.run(&AttentionPrefill { qkv: operand.ptr(), ..prefill.kernel }, gpu.sms());
            let output = prefill.valid(&gpu.download_f16(&prefill.output));
            assert_as_ieee_754_says(&format!("{:?}", prefill.batch), &output, &prefill.reference());
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn prefill_has_the_same_bits_at_every_sm_count_and_while_its_grant_changes() {
    let gpu = Gpu::open();
    let mut random = Random::new(7);
    for (heads, kv_heads, head_dim, causal, window) in
        [(12, 12, 64, false, 0), (8, 2, 128, true, 0), (8, 2, 128, true, 100), (4, 4, 256, true, 0), (4, 2, 20, false, 0)]
    {
        let heads = Heads { heads, kv_heads, head_dim };
        let sequences = if is_sanitized() { 3 } else { 16 };
        let lengths = (0..sequences).map(|_| random.between(1, 400)).collect();
        let batch = Batch { heads, lengths, padded_to: Some(400), causal, window, gaps: [0, 0] };
        let prefill = Prefill::new(&gpu, &mut random, batch);
        let outputs = gpu.assert_same_bits_at_every_sm_count(&prefill.kernel, &[&prefill.output]);
        check(&format!("{:?}", prefill.batch), &prefill.valid(&halves(&outputs[0])), &prefill.reference());
        assert_same_bits_while_the_grant_changes(&gpu, &prefill.kernel, &prefill.output, &outputs[0], 5);
    }
}
