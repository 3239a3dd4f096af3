//! DeBERTa on the GPU: its attention against sums in f64 on the CPU, its convolution's rows, and whole models against the CPU reference, with the
//! same bits at every SM count.

use std::sync::Arc;

use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rayon::prelude::*;

use smidgen::batch::RaggedBatch;
use smidgen::config::{EncoderConfig, ModelConfig};
use smidgen::kernels::attention::AttentionDisentangled;
use smidgen::kernels::unfold::UnfoldTokens;
use smidgen::presets;
use smidgen::reference::Reference;
use smidgen::weights::Weights;
use smidgen_runtime::Runtime;
use smidgen_runtime::device::{Buffer, DevicePtr};
use smidgen_runtime::policy::Exclusive;
use smidgen_runtime::profile::ProfileStore;

use crate::attention::{f64s, valid_rows};
use crate::draws::{extent, for_draws, gap};
use crate::ieee754::assert_as_ieee_754_says;
use crate::support::{Gpu, Random, assert_close, device, is_sanitized};
use crate::tenant::{OnTheFirst, Tenant};
use crate::tiny_models::relative_error;

/// What distinguishes one attention from another. `gaps` are elements between the rows of `qkv`, of the position matrices, and of the output.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) lengths: Vec<u32>,
    /// Rows that each sequence has in a padded batch; `None` for a packed one.
    pub(crate) padded_to: Option<u32>,
    pub(crate) reach: u32,
    pub(crate) content_to_position: bool,
    pub(crate) position_to_content: bool,
    pub(crate) gaps: [u32; 3],
    pub(crate) spread: f32,
}

/// An attention with its operands on the host and on the GPU. Padding and gaps are NaN.
pub(crate) struct Attention {
    batch: Batch,
    pub(crate) kernel: AttentionDisentangled,
    starts: Vec<u32>,
    qkv: Vec<f64>,
    positions: [Vec<f64>; 2],
    pub(crate) output: Buffer,
    _operands: [Buffer; 5],
}

impl Attention {
    pub(crate) fn new(gpu: &Gpu, random: &mut Random, batch: Batch) -> Self {
        let mut rows = 0;
        let mut starts = Vec::new();
        for length in &batch.lengths {
            starts.push(rows);
            rows += batch.padded_to.unwrap_or(*length);
        }
        let width = batch.heads * batch.head_dim;
        let [qkv_stride, position_stride, output_stride] = [3 * width + batch.gaps[0], width + batch.gaps[1], width + batch.gaps[2]];
        let mut fill = |rows: &mut dyn Iterator<Item = u32>, all: u32, stride: u32, columns: u32| {
            let mut values = vec![f16::NAN; (all * stride) as usize];
            for row in rows {
                values[(row * stride) as usize..][..columns as usize].copy_from_slice(&random.f16s(columns as usize, batch.spread));
            }
            values
        };
        let tokens = starts.iter().zip(&batch.lengths).flat_map(|(&start, &length)| start..start + length).collect::<Vec<_>>();
        let qkv = fill(&mut tokens.into_iter(), rows, qkv_stride, 3 * width);
        let distances = 2 * batch.reach + 1;
        let positions = [(); 2].map(|()| fill(&mut (0..distances), distances, position_stride, width));
        let operands = [
            gpu.upload_f16(&qkv),
            gpu.upload_f16(&positions[0]),
            gpu.upload_f16(&positions[1]),
            gpu.upload_u32(&starts),
            gpu.upload_u32(&batch.lengths),
        ];
        let output = gpu.poisoned_f16((rows * output_stride) as usize);
        let given = |there: bool, operand: &Buffer| if there { operand.ptr() } else { DevicePtr::NULL };
        let terms = 1 + u32::from(batch.content_to_position) + u32::from(batch.position_to_content);
        let kernel = AttentionDisentangled {
            heads: batch.heads,
            head_dim: batch.head_dim,
            sequences: batch.lengths.len() as u32,
            max_length: batch.lengths.iter().copied().max().unwrap_or(1),
            tokens: batch.lengths.iter().sum(),
            scale: 1.0 / ((batch.head_dim * terms) as f32).sqrt(),
            qkv: operands[0].ptr(),
            qkv_stride,
            position_keys: given(batch.content_to_position, &operands[1]),
            position_queries: given(batch.position_to_content, &operands[2]),
            position_stride,
            reach: batch.reach,
            output: output.ptr(),
            output_stride,
            starts: operands[3].ptr(),
            lengths: operands[4].ptr(),
        };
        Self { kernel, starts, qkv: f64s(&qkv), positions: positions.map(|values| f64s(&values)), output, _operands: operands, batch }
    }

    /// The valid rows of the output, one sequence after another.
    fn reference(&self) -> Vec<f64> {
        let Batch { heads, head_dim, reach, .. } = self.batch;
        let rows =
            self.starts.iter().zip(&self.batch.lengths).flat_map(|(&start, &length)| (0..length).map(move |row| (start, length, row)));
        let columns =
            |matrix: &[f64], row: u32, stride: u32, column: u32| matrix[(row * stride + column) as usize..][..head_dim as usize].to_vec();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let of_row = |(start, length, row): (u32, u32, u32)| {
            let of_head = move |head: u32| {
                let content =
                    |part: u32, row: u32| columns(&self.qkv, start + row, self.kernel.qkv_stride, (part * heads + head) * head_dim);
                let position = |which: usize, row: u32| columns(&self.positions[which], row, self.kernel.position_stride, head * head_dim);
                let q = content(0, row);
                let score = |key: u32| {
                    let (k, distance) = (content(1, key), reach + row - key);
                    let mut score = dot(&q, &k);
                    if self.batch.content_to_position {
                        score += dot(&q, &position(0, distance));
                    }
                    if self.batch.position_to_content {
                        score += dot(&k, &position(1, distance));
                    }
                    score * f64::from(self.kernel.scale)
                };
                let scores: Vec<f64> = (0..length).map(score).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let values: Vec<Vec<f64>> = (0..length).map(|key| content(2, key)).collect();
                (0..head_dim as usize)
                    .map(|column| weights.iter().zip(&values).map(|(weight, value)| weight * value[column]).sum::<f64>() / sum)
                    .collect::<Vec<_>>()
            };
            (0..heads).flat_map(of_head).collect::<Vec<_>>()
        };
        rows.collect::<Vec<_>>().into_par_iter().flat_map_iter(of_row).collect()
    }

    /// The valid rows of a finished output, after checking that nothing else was written.
    fn valid(&self, output: &[f16]) -> Vec<f16> {
        let (width, stride) = ((self.batch.heads * self.batch.head_dim) as usize, self.kernel.output_stride as usize);
        valid_rows(&format!("{:?}", self.batch), output, self.starts.iter().zip(&self.batch.lengths), width, stride)
    }

    fn check(&self, output: &[f16]) {
        let (valid, reference) = (self.valid(output), self.reference());
        let what = format!("{:?}", self.batch);
        assert_close(&what, valid.iter().map(|value| value.to_f64()), &reference, 2e-3);
        // The norm would hide a single wrong element. Position terms are rounded to halves before the softmax.
        let tolerance = |expected: f64| 6e-3 * f64::from(self.batch.spread) + 4e-3 * expected.abs();
        let wrong = valid.iter().zip(&reference).position(|(value, expected)| (value.to_f64() - expected).abs() > tolerance(*expected));
        if let Some(at) = wrong {
            panic!("{what}: element {at} is {} and should be {}", valid[at], reference[at]);
        }
    }
}

fn batches() -> impl Strategy<Value = Batch> {
    let head_dim = prop_oneof![1 => 1..=64_u32, 1 => select(vec![8_u32, 16, 24, 31, 32, 33, 48]), 1 => Just(64)];
    let length = prop_oneof![2 => extent(300), 1 => select(vec![63_u32, 64, 65, 127, 128, 129])];
    let padding = prop::option::of(0_u32..=3);
    // Of the two terms with positions each is there more often than not.
    let terms = [prop::bool::weighted(0.75), prop::bool::weighted(0.75)];
    let gaps = prop_oneof![Just([0, 8, 16]), [gap(9), gap(9), gap(9)]];
    let spread = select(vec![0.5_f32, 1.0, 2.0]);
    ((1..=4_u32, head_dim), vec(length, 1..=4), padding, 0..=70_u32, terms, gaps, spread).prop_map(
        |((heads, head_dim), lengths, padding, beyond, terms, gaps, spread)| {
            let longest = lengths.iter().copied().max().unwrap_or(1);
            let [content_to_position, position_to_content] = terms;
            let (padded_to, reach) = (padding.map(|padding| longest + padding), longest - 1 + beyond);
            Batch { heads, head_dim, lengths, padded_to, reach, content_to_position, position_to_content, gaps, spread }
        },
    )
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn attention_with_distances_is_right_at_random_shapes_and_strides() {
    let gpu = Gpu::open();
    for_draws(60, &(batches(), any::<u64>(), select(gpu.sm_counts())), |(batch, seed, sms)| {
        let attention = Attention::new(&gpu, &mut Random::new(seed), batch);
        gpu.run(&attention.kernel, sms);
        attention.check(&gpu.download_f16(&attention.output));
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn attention_with_distances_has_the_same_bits_at_every_sm_count() {
    let gpu = Gpu::open();
    let mut random = Random::new(22);
    let longest = if is_sanitized() { 130 } else { 512 };
    for (heads, head_dim, lengths) in [(12, 64, vec![longest, 1, 333, 64]), (3, 20, vec![65, 130, 7])] {
        let batch = Batch {
            heads,
            head_dim,
            lengths,
            padded_to: None,
            reach: 511,
            content_to_position: true,
            position_to_content: true,
            gaps: [0; 3],
            spread: 1.0,
        };
        let attention = Attention::new(&gpu, &mut random, batch);
        let outputs = gpu.assert_same_bits_at_every_sm_count(&attention.kernel, &[&attention.output]);
        attention.check(&outputs[0].as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect::<Vec<_>>());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn what_is_no_number_reaches_the_rows_that_see_it_in_attention_with_distances() {
    let gpu = Gpu::open();
    // Heads of 32 and of 64 columns have kernels of their own, and rows that do not begin on 16 bytes another.
    for (head_dim, gaps) in [(32, [0; 3]), (64, [0; 3]), (64, [1; 3])] {
        let batch = Batch {
            heads: 2,
            head_dim,
            lengths: vec![100, 77, 130, 64, 90, 70],
            padded_to: None,
            reach: 129,
            content_to_position: true,
            position_to_content: true,
            gaps,
            spread: 1.0,
        };
        let mut attention = Attention::new(&gpu, &mut Random::new(27), batch);
        let (stride, starts) = (attention.kernel.qkv_stride, attention.starts.clone());
        let mut spoil = |sequence: usize, row: u32, part: u32, head: u32, value: f64| {
            attention.qkv[((starts[sequence] + row) * stride + (part * 2 + head) * head_dim + 3) as usize] = value;
        };
        // Parts are queries, keys and values.
        spoil(1, 30, 1, 0, f64::NAN);
        spoil(2, 50, 2, 1, f64::NAN);
        spoil(2, 120, 2, 0, f64::INFINITY);
        spoil(3, 10, 0, 1, f64::NAN);
        spoil(4, 70, 1, 1, f64::INFINITY);
        spoil(5, 5, 1, 0, f64::NEG_INFINITY);
        let halves = |values: &[f64]| values.iter().map(|&value| f16::from_f64(value)).collect::<Vec<_>>();
        let qkv = gpu.upload_f16(&halves(&attention.qkv));
        attention.kernel.qkv = qkv.ptr();
        gpu.run(&attention.kernel, gpu.sms());
        let what = format!("{:?}", attention.batch);
        assert_as_ieee_754_says(&what, &attention.valid(&gpu.download_f16(&attention.output)), &attention.reference());

        // For keys that stand five tokens before their query: reaches every row that has one, in one head.
        attention.positions[0][((129 + 5) * attention.kernel.position_stride + 2) as usize] = f64::NAN;
        let position_keys = gpu.upload_f16(&halves(&attention.positions[0]));
        gpu.poison(&attention.output);
        gpu.run(&AttentionDisentangled { position_keys: position_keys.ptr(), ..attention.kernel }, gpu.sms());
        assert_as_ieee_754_says(&what, &attention.valid(&gpu.download_f16(&attention.output)), &attention.reference());
    }
}

/// Minus infinity is a score like another: rows whose first block of keys all have it are the sums of what comes after.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn keys_of_minus_infinity_weigh_nothing_in_attention_with_distances_even_a_whole_block_of_them() {
    let gpu = Gpu::open();
    for (head_dim, gaps) in [(32, [0; 3]), (64, [0; 3]), (64, [1; 3])] {
        let batch = Batch {
            heads: 2,
            head_dim,
            lengths: vec![100, 60],
            padded_to: None,
            reach: 99,
            content_to_position: true,
            position_to_content: true,
            gaps,
            spread: 1.0,
        };
        let mut attention = Attention::new(&gpu, &mut Random::new(28), batch);
        let (qkv_stride, position_stride) = (attention.kernel.qkv_stride as usize, attention.kernel.position_stride as usize);
        // One column of the first head: so many keys of each sequence, and positions with which those are not plus infinity.
        let of_keys = 2 * head_dim as usize + 3;
        for row in (0..64).chain(100..160) {
            attention.qkv[row * qkv_stride + of_keys] = f64::NEG_INFINITY;
        }
        attention.positions[1].iter_mut().skip(3).step_by(position_stride).for_each(|value| *value = value.abs());
        let halves = |values: &[f64]| values.iter().map(|&value| f16::from_f64(value)).collect::<Vec<_>>();
        let [qkv, position_queries] = [&attention.qkv, &attention.positions[1]].map(|values| gpu.upload_f16(&halves(values)));
        (attention.kernel.qkv, attention.kernel.position_queries) = (qkv.ptr(), position_queries.ptr());
        gpu.run(&attention.kernel, gpu.sms());
        let reference = attention.reference();
        let first_head = reference.chunks_exact(head_dim as usize).step_by(2);
        let finite = first_head.map(|head| head.iter().all(|value| value.is_finite())).collect::<Vec<_>>();
        assert!(finite[..100].contains(&true) && finite[..100].contains(&false) && !finite[100..].contains(&true), "{finite:?}");
        assert_as_ieee_754_says(&format!("{:?}", attention.batch), &attention.valid(&gpu.download_f16(&attention.output)), &reference);
    }
}

/// With no position matrix, and with matrices of zeros, the terms are nothing.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn attention_with_distances_that_count_nothing_is_plain_attention() {
    let gpu = Gpu::open();
    let mut random = Random::new(23);
    let batch = Batch {
        heads: 2,
        head_dim: 64,
        lengths: vec![100, 64, 3],
        padded_to: None,
        reach: 99,
        content_to_position: false,
        position_to_content: false,
        gaps: [0; 3],
        spread: 1.0,
    };
    let attention = Attention::new(&gpu, &mut random, batch);
    gpu.run(&attention.kernel, gpu.sms());
    let plain = gpu.download(&attention.output);
    let zeros = gpu.zeroed((2 * 99 + 1) * 128 * 2);
    gpu.poison(&attention.output);
    gpu.run(&AttentionDisentangled { position_keys: zeros.ptr(), position_queries: zeros.ptr(), ..attention.kernel }, gpu.sms());
    assert!(plain == gpu.download(&attention.output));
    attention.check(&gpu.download_f16(&attention.output));
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_convolution_sees_the_neighbours_of_its_own_sequence_and_zeros_past_its_ends() {
    let gpu = Gpu::open();
    let draws = (extent(700), select(vec![1_usize, 3, 5, 7]), vec(extent(40), 1..=5), any::<u64>(), select(gpu.sm_counts()));
    for_draws(20, &draws, |(hidden, width, lengths, seed, sms)| {
        let starts: Vec<u32> = lengths.iter().scan(0, |end, length| Some(std::mem::replace(end, *end + length))).collect();
        let tokens = lengths.iter().sum::<u32>();
        let x = Random::new(seed).f16s((tokens * hidden) as usize, 1.0);
        let operands = [gpu.upload_f16(&x), gpu.upload_u32(&starts), gpu.upload_u32(&lengths)];
        let y = gpu.poisoned_f16((tokens * hidden) as usize * width);
        let kernel = UnfoldTokens {
            sequences: lengths.len() as u32,
            max_length: lengths.iter().copied().max().unwrap_or(1),
            tokens,
            hidden,
            width: width as u32,
            x: operands[0].ptr(),
            starts: operands[1].ptr(),
            lengths: operands[2].ptr(),
            y: y.ptr(),
        };
        gpu.run(&kernel, sms);
        let hidden = hidden as usize;
        let mut expected = Vec::new();
        for (&start, &length) in starts.iter().zip(&lengths) {
            for position in 0..length as usize {
                for tap in 0..width {
                    match (position + tap).checked_sub(width / 2).filter(|&neighbour| neighbour < length as usize) {
                        Some(neighbour) => expected.extend_from_slice(&x[(start as usize + neighbour) * hidden..][..hidden]),
                        None => expected.resize(expected.len() + hidden, f16::ZERO),
                    }
                }
            }
        }
        assert!(gpu.download_f16(&y) == expected, "{lengths:?} tokens of {hidden} elements, {width} side by side");
    });
}

/// Two layers of a preset with a small vocabulary, and random weights that the GPU makes itself.
fn two_layers(preset: ModelConfig) -> Weights {
    let ModelConfig::Encoder(config) = preset else { panic!("DeBERTa is an encoder") };
    Weights::random(ModelConfig::Encoder(EncoderConfig { layers: 2, vocab: 4001, ..config }), 6)
}

fn sequences(random: &mut Random) -> Vec<Vec<u32>> {
    let longest = if is_sanitized() { 129 } else { 512 };
    [130, 1, 64, longest, 33].map(|length| (0..length).map(|_| random.between(0, 4000)).collect()).into()
}

fn runtime(policy: impl smidgen_runtime::policy::Policy + 'static) -> Runtime {
    Runtime::new(device(), Box::new(policy), Arc::new(ProfileStore::default()))
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn every_version_of_deberta_computes_what_the_reference_does() {
    let mut random = Random::new(25);
    for (name, preset) in [("v1", presets::DEBERTA_BASE), ("v2", presets::DEBERTA_V2_XLARGE), ("v3", presets::DEBERTA_V3_LARGE)] {
        let (weights, sequences) = (two_layers(preset), sequences(&mut random));
        let bytes = Tenant::new(&runtime(Exclusive), &weights, &sequences).run().expect("a request");
        let output: Vec<f32> = bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect();
        let batch = RaggedBatch::new(&sequences, weights.config()).expect("a batch");
        let reference = Reference::load(&weights).expect("random weights").forward(&batch);
        let error = relative_error(&output, reference.values());
        assert!(error < 2e-2, "{name}: relative error {error:.2e}");
        for row in 0..reference.rows() {
            let error = relative_error(&output[row * reference.width()..][..reference.width()], reference.row(row));
            assert!(error < 2e-2, "{name}: relative error {error:.2e} in row {row}");
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn deberta_has_the_same_bits_in_partitions_of_every_size() {
    let mut random = Random::new(26);
    let (weights, sequences) = (two_layers(presets::DEBERTA_V2_XLARGE), sequences(&mut random));
    let expected = Tenant::new(&runtime(Exclusive), &weights, &sequences).run().expect("a request");
    let gpu = Gpu::open();
    for sms in gpu.sm_counts() {
        let topology = gpu.device().topology();
        let tpcs = smidgen_runtime::partition::TpcSet::range(0, topology.tpcs_for(smidgen_runtime::device::Sms(sms)));
        let output = Tenant::new(&runtime(OnTheFirst(tpcs)), &weights, &sequences).run().expect("a request");
        assert!(output == expected, "other bits on {sms} SMs");
    }
}
