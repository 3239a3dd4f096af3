//! Norms and embeddings on the GPU against f64 (or exact) references on the CPU: any width, operands in place, the same bits at every SM count.

use half::f16;
use proptest::prelude::*;
use proptest::sample::select;
use smidgen::kernels::embedding::{Embed, EmbedNorm, PositionTable};
use smidgen::kernels::norm::{Norm, NormKind};
use smidgen_runtime::device::{Buffer, DevicePtr};

use crate::draws::{extent, for_draws};
use crate::support::{Gpu, Random, cases};

/// One element, the vector width and its neighbours, primes, model widths, and both sides of every change of row shape.
const WIDTHS: [u32; 23] =
    [1, 2, 7, 8, 9, 64, 127, 384, 768, 769, 776, 1000, 1023, 1024, 1025, 1031, 2048, 4096, 8191, 8192, 8193, 16_381, 32_768];

/// Bytes behind each output that must stay as they are.
pub(crate) const GUARD: usize = 64;

/// A poisoned output of `bytes` bytes, with a guard behind it.
pub(crate) fn guarded(gpu: &Gpu, bytes: usize) -> Buffer {
    gpu.poisoned(bytes + GUARD)
}

/// The halves of a guarded output, whose guard must be whole.
pub(crate) fn halves(bytes: &[u8]) -> Vec<f16> {
    let (output, guard) = bytes.split_at(bytes.len() - GUARD);
    assert!(guard.iter().all(|&byte| byte == 0xff), "the kernel wrote beyond its output");
    output.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect()
}

pub(crate) fn assert_same_bits(what: impl std::fmt::Display, output: &[f16], expected: &[f16]) {
    assert_eq!(output.len(), expected.len(), "{what}");
    // Zeros of either sign are equal: a reference that adds 0 for an absent residual turns -0 into 0.
    let same = |(a, b): (&f16, &f16)| a == b || (a.is_nan() && b.is_nan());
    let wrong = output.iter().zip(expected).position(|pair| !same(pair));
    assert_eq!(wrong, None, "{what}: the first wrong element; {} is {}", output[wrong.unwrap_or(0)], expected[wrong.unwrap_or(0)]);
}

/// Any width, of each shape of a row about as often.
pub(crate) fn widths() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![extent(40), extent(1100), extent(9000), extent(32_768), select(&WIDTHS[..])]
}

/// The parameters of a norm.
#[derive(Debug, Clone)]
struct Scaling {
    kind: NormKind,
    epsilon: f32,
    weight: Vec<f16>,
    bias: Vec<f16>,
}

impl Scaling {
    fn random(random: &mut Random, kind: NormKind, width: u32) -> Self {
        let epsilon = *random.pick(&[1e-12, 1e-6, 1e-5, 1e-3]);
        Self { kind, epsilon, weight: random.f16s(width as usize, 2.0), bias: random.f16s(width as usize, 1.0) }
    }

    /// Fails unless `y` is the norm of the row `v` but for rounding: of `y` to fp16, and of fp32 sums, which counts for more the further the
    /// row's mean is from 0.
    fn assert_row(&self, what: &str, v: &[f32], y: &[f16]) {
        let width = v.len() as f64;
        let mean = if self.kind == NormKind::Layer { v.iter().map(|&v| f64::from(v)).sum::<f64>() / width } else { 0.0 };
        let variance = v.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width;
        let deviation = (variance + f64::from(self.epsilon)).sqrt();
        for (i, (&v, &y)) in v.iter().zip(y).enumerate() {
            let (weight, bias) = (f64::from(self.weight[i]), if self.kind == NormKind::Layer { f64::from(self.bias[i]) } else { 0.0 });
            let expected = (f64::from(v) - mean) / deviation * weight + bias;
            let tolerance = 6e-4 * expected.abs() + 1e-5 * weight.abs() * (1.0 + mean.abs() / deviation) + 1e-7;
            assert!(
                (f64::from(y) - expected).abs() <= tolerance,
                "{what}: element {i} is {y}, not {expected} (tolerated: {tolerance:.1e})"
            );
        }
    }
}

/// A norm's operands on the host.
#[derive(Debug, Clone)]
struct NormCase {
    rows: u32,
    width: u32,
    scaling: Scaling,
    x: Vec<f16>,
    residual: Option<Vec<f16>>,
}

impl NormCase {
    fn random(random: &mut Random, kind: NormKind, rows: u32, width: u32, residual: bool) -> Self {
        let len = (rows * width) as usize;
        // Some rows far from zero, where one-pass variances fail, and some whose squares exceed fp16.
        let (scale, offset) = *random.pick(&[(1.0, 0.0), (1e-3, 0.0), (30_000.0, 0.0), (1.0, 100.0), (0.25, -30.0)]);
        let x = (0..len).map(|_| f16::from_f32(random.unit() * scale + offset)).collect();
        let residual = residual.then(|| random.f16s(len, scale));
        Self { rows, width, scaling: Scaling::random(random, kind, width), x, residual }
    }

    /// `x + residual` as the kernel holds it.
    fn sums(&self) -> Vec<f32> {
        let sum = |(i, x): (usize, &f16)| self.residual.as_ref().map_or(x.to_f32(), |residual| x.to_f32() + residual[i].to_f32());
        self.x.iter().enumerate().map(sum).collect()
    }

    fn name(&self) -> String {
        let residual = if self.residual.is_some() { " + residual" } else { "" };
        format!("{:?} norm of {} x {}{residual}", self.scaling.kind, self.rows, self.width)
    }

    fn bytes(&self) -> usize {
        2 * self.x.len()
    }

    fn assert(&self, y: &[f16]) {
        let width = self.width as usize;
        for (row, (v, y)) in self.sums().chunks(width).zip(y.chunks(width)).enumerate() {
            self.scaling.assert_row(&format!("{}, row {row}", self.name()), v, y);
        }
    }
}

/// Its operands on the GPU.
struct NormOperands {
    x: Buffer,
    residual: Option<Buffer>,
    weight: Buffer,
    bias: Buffer,
}

impl NormOperands {
    fn new(gpu: &Gpu, case: &NormCase) -> Self {
        Self {
            x: gpu.upload_f16(&case.x),
            residual: case.residual.as_ref().map(|residual| gpu.upload_f16(residual)),
            weight: gpu.upload_f16(&case.scaling.weight),
            bias: gpu.upload_f16(&case.scaling.bias),
        }
    }

    fn residual(&self) -> DevicePtr {
        self.residual.as_ref().map_or(DevicePtr::NULL, Buffer::ptr)
    }

    fn norm(&self, case: &NormCase, sum: DevicePtr, y: DevicePtr) -> Norm {
        Norm {
            kind: case.scaling.kind,
            rows: case.rows,
            width: case.width,
            epsilon: case.scaling.epsilon,
            x: self.x.ptr(),
            index: DevicePtr::NULL,
            residual: self.residual(),
            sum,
            weight: self.weight.ptr(),
            bias: if case.scaling.kind == NormKind::Layer { self.bias.ptr() } else { DevicePtr::NULL },
            y,
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn norms_match_the_reference_at_any_width_on_any_number_of_sms() {
    let gpu = Gpu::open();
    let mut random = Random::new(1);
    for (at, width) in cases(&WIDTHS).enumerate() {
        for (kind, residual, keep_sum) in [
            (NormKind::Layer, true, true),
            (NormKind::Layer, false, at % 2 == 0),
            (NormKind::Rms, true, at % 2 == 1),
            (NormKind::Rms, false, false),
        ] {
            let rows = random.between(1, (200_000 / width).clamp(3, 700));
            let case = NormCase::random(&mut random, kind, rows, width, residual);
            let operands = NormOperands::new(&gpu, &case);
            let (sum, y) = (guarded(&gpu, case.bytes()), guarded(&gpu, case.bytes()));
            let norm = operands.norm(&case, if keep_sum { sum.ptr() } else { DevicePtr::NULL }, y.ptr());
            let outputs = gpu.assert_same_bits_at_every_sm_count(&norm, &[&y, &sum]);
            case.assert(&halves(&outputs[0]));
            if keep_sum {
                let expected: Vec<f16> = case.sums().into_iter().map(f16::from_f32).collect();
                assert_same_bits(format!("{}, the sum", case.name()), &halves(&outputs[1]), &expected);
            } else {
                assert!(outputs[1].iter().all(|&byte| byte == 0xff), "{}: a sum was written that nobody asked for", case.name());
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn norms_match_the_reference_at_random_shapes() {
    let gpu = Gpu::open();
    let kind = select(vec![NormKind::Layer, NormKind::Rms]);
    let draws = (kind, widths(), 0..=u32::MAX, [any::<bool>(), any::<bool>()], any::<u64>(), select(gpu.sm_counts()));
    for_draws(80, &draws, |(kind, width, rows, [has_residual, keeps_sum], seed, sms)| {
        let rows = 1 + rows % (100_000 / width).max(2);
        let case = NormCase::random(&mut Random::new(seed), kind, rows, width, has_residual);
        let operands = NormOperands::new(&gpu, &case);
        let (sum, y) = (guarded(&gpu, case.bytes()), guarded(&gpu, case.bytes()));
        gpu.run(&operands.norm(&case, if keeps_sum { sum.ptr() } else { DevicePtr::NULL }, y.ptr()), sms);
        case.assert(&halves(&gpu.download(&y)));
        if keeps_sum {
            let expected: Vec<f16> = case.sums().into_iter().map(f16::from_f32).collect();
            assert_same_bits(format!("{}, the sum", case.name()), &halves(&gpu.download(&sum)), &expected);
        }
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_norm_may_write_over_its_operands() {
    let gpu = Gpu::open();
    let mut random = Random::new(3);
    for width in [33, 768, 2048, 8200] {
        let case = NormCase::random(&mut random, NormKind::Layer, 50, width, true);
        let operands = NormOperands::new(&gpu, &case);
        let (sum, y) = (gpu.poisoned(case.bytes()), gpu.poisoned(case.bytes()));
        gpu.run(&operands.norm(&case, sum.ptr(), y.ptr()), gpu.sms());
        let (expected_sum, expected_y) = (gpu.download_f16(&sum), gpu.download_f16(&y));
        case.assert(&expected_y);
        // Where the sum and y are to go: to a buffer of their own, to x, or to the residual.
        for (sum_to, y_to) in [(0, 1), (0, 2), (1, 0), (2, 0), (1, 2), (2, 1), (1, 1), (2, 2)] {
            for sms in gpu.sm_counts() {
                let operands = NormOperands::new(&gpu, &case);
                let own = [gpu.poisoned(case.bytes()), gpu.poisoned(case.bytes())];
                let place = |to: usize, own: &Buffer| [own.ptr(), operands.x.ptr(), operands.residual()][to];
                gpu.run(&operands.norm(&case, place(sum_to, &own[0]), place(y_to, &own[1])), sms);
                let found = |to: usize, own: &Buffer| {
                    let buffer = [Some(own), Some(&operands.x), operands.residual.as_ref()][to];
                    gpu.download_f16(buffer.expect("the case has a residual"))
                };
                let what = format!("width {width}, sum to {sum_to}, y to {y_to}, {sms} SMs");
                assert_same_bits(&what, &found(y_to, &own[1]), &expected_y);
                if sum_to != y_to {
                    assert_same_bits(&what, &found(sum_to, &own[0]), &expected_sum);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_norm_takes_operands_at_any_address() {
    let gpu = Gpu::open();
    let mut random = Random::new(4);
    for width in [64, 768, 4096, 16_384] {
        let case = NormCase::random(&mut random, NormKind::Layer, 9, width, false);
        let operands = NormOperands::new(&gpu, &case);
        let shifted = gpu.upload_f16(&[&[f16::ZERO], &*case.x].concat());
        let y = gpu.poisoned(2 + case.bytes() + GUARD);
        let norm = Norm { x: shifted.ptr().offset(2), ..operands.norm(&case, DevicePtr::NULL, y.ptr().offset(2)) };
        let outputs = gpu.assert_same_bits_at_every_sm_count(&norm, &[&y]);
        assert_eq!(outputs[0][..2], [0xff, 0xff], "the kernel wrote before its output");
        case.assert(&halves(&outputs[0][2..]));
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn what_is_no_number_stays_in_its_row() {
    let gpu = Gpu::open();
    let mut random = Random::new(5);
    for kind in [NormKind::Layer, NormKind::Rms] {
        for width in [5, 768, 1031, 8192, 10_000] {
            let mut case = NormCase::random(&mut random, kind, 20, width, true);
            for (row, value) in [(3, f16::NAN), (8, f16::INFINITY), (11, f16::NEG_INFINITY), (19, f16::NAN)] {
                case.x[(row * width + random.between(0, width - 1)) as usize] = value;
            }
            let operands = NormOperands::new(&gpu, &case);
            let y = guarded(&gpu, case.bytes());
            let outputs = gpu.assert_same_bits_at_every_sm_count(&operands.norm(&case, DevicePtr::NULL, y.ptr()), &[&y]);
            let y = halves(&outputs[0]);
            let width = width as usize;
            for (row, (v, y)) in case.sums().chunks(width).zip(y.chunks(width)).enumerate() {
                match row {
                    3 | 19 => assert!(y.iter().all(|y| y.is_nan()), "{}: row {row} hides its NaN", case.name()),
                    8 | 11 => assert!(y.iter().any(|y| y.is_nan()), "{}: row {row} hides its infinity", case.name()),
                    _ => case.scaling.assert_row(&format!("{}, row {row}", case.name()), v, y),
                }
            }
        }
    }
}

/// `rows` ids below `entries`, with one beyond and one far beyond where there is room.
fn ids(random: &mut Random, rows: u32, entries: u32) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..rows).map(|_| random.between(0, entries - 1)).collect();
    if rows > 4 {
        ids[1] = entries;
        ids[3] = u32::MAX;
    }
    ids
}

/// The tables and choices of one embedding.
struct EmbedCase {
    rows: u32,
    width: u32,
    words: Vec<f16>,
    ids: Vec<u32>,
    /// A table, and a position for each row.
    positions: Option<(Vec<f16>, Vec<u32>)>,
    types: Option<Vec<f16>>,
}

impl EmbedCase {
    fn random(random: &mut Random, width: u32, positions: bool, types: bool) -> Self {
        let (rows, vocabulary, max_positions) = (random.between(1, 60), random.between(1, 100), random.between(1, 20));
        let mut table = |entries: u32| random.f16s((entries * width) as usize, 3.0);
        let [words, position_table, type_table] = [vocabulary, max_positions, 2].map(&mut table);
        let ids_of_rows = ids(random, rows, vocabulary);
        let mut positions_of_rows = ids(random, rows, max_positions);
        // Elsewhere than the unknown ids, where there is room.
        positions_of_rows.rotate_right(1);
        let positions = positions.then_some((position_table, positions_of_rows));
        Self { rows, width, words, ids: ids_of_rows, positions, types: types.then_some(type_table) }
    }

    fn entries(&self, table: &[f16]) -> u32 {
        table.len() as u32 / self.width
    }

    /// The sum of the tables' entries for a row, as the kernel adds them; none where an entry is beyond its table.
    fn sum(&self, row: usize) -> Option<Vec<f32>> {
        let width = self.width as usize;
        let entry = |table: &[f16], entry: u32| -> Option<Vec<f32>> {
            table.chunks(width).nth(entry as usize).map(|entry| entry.iter().map(|v| v.to_f32()).collect())
        };
        let mut sum = entry(&self.words, self.ids[row])?;
        let mut add = |other: Vec<f32>| sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
        if let Some((table, positions)) = &self.positions {
            add(entry(table, positions[row])?);
        }
        if let Some(table) = &self.types {
            add(entry(table, 0)?);
        }
        Some(sum)
    }

    /// Fails unless `sum` is what [`EmbedCase::sum`] says, rounded, and NaN in rows that are not known.
    fn assert_sums(&self, what: &str, sums: &[f16]) {
        for (row, found) in sums.chunks(self.width as usize).enumerate() {
            match self.sum(row) {
                None => assert!(found.iter().all(|v| v.is_nan()), "{what}: row {row} is not known"),
                Some(sum) => assert_same_bits(format!("{what}, row {row}"), found, &sum.into_iter().map(f16::from_f32).collect::<Vec<_>>()),
            }
        }
    }
}

/// An embedding with its operands on the GPU.
struct Embedding {
    case: EmbedCase,
    scaling: Option<Scaling>,
    embed: Embed,
    sum: Buffer,
    y: Buffer,
    _operands: Vec<Buffer>,
}

impl Embedding {
    fn new(gpu: &Gpu, random: &mut Random, case: EmbedCase, kind: Option<NormKind>, keeps_sum: bool) -> Self {
        let scaling = kind.map(|kind| Scaling::random(random, kind, case.width));
        let mut operands = Vec::new();
        let mut keep = |buffer: Buffer| {
            operands.push(buffer);
            operands[operands.len() - 1].ptr()
        };
        let bytes = 2 * (case.rows * case.width) as usize;
        let (sum, y) = (guarded(gpu, bytes), guarded(gpu, bytes));
        let embed = Embed {
            rows: case.rows,
            width: case.width,
            vocabulary: case.entries(&case.words),
            ids: keep(gpu.upload_u32(&case.ids)),
            words: keep(gpu.upload_f16(&case.words)),
            positions: case.positions.as_ref().map(|(table, positions)| PositionTable {
                positions: keep(gpu.upload_u32(positions)),
                table: keep(gpu.upload_f16(table)),
                entries: case.entries(table),
            }),
            type_table: case.types.as_ref().map_or(DevicePtr::NULL, |table| keep(gpu.upload_f16(table))),
            sum: if keeps_sum && kind.is_some() { sum.ptr() } else { DevicePtr::NULL },
            norm: scaling.as_ref().map(|scaling| EmbedNorm {
                kind: scaling.kind,
                weight: keep(gpu.upload_f16(&scaling.weight)),
                bias: keep(gpu.upload_f16(&scaling.bias)),
                epsilon: scaling.epsilon,
            }),
            y: y.ptr(),
        };
        Self { case, scaling, embed, sum, y, _operands: operands }
    }

    /// Compares the bytes of `y` and of the sum, where it was asked for, with the case.
    fn check(&self, y: &[u8], sum: &[u8]) {
        let Self { case, scaling, embed, .. } = self;
        let kind = scaling.as_ref().map(|scaling| scaling.kind);
        let what = format!("width {}, norm {kind:?}, positions {}, types {}", case.width, case.positions.is_some(), case.types.is_some());
        let y = halves(y);
        if !embed.sum.is_null() {
            case.assert_sums(&what, &halves(sum));
        }
        let Some(scaling) = scaling else {
            case.assert_sums(&what, &y);
            return;
        };
        for (row, y) in y.chunks(case.width as usize).enumerate() {
            match case.sum(row) {
                None => assert!(y.iter().all(|y| y.is_nan()), "{what}: row {row} is not known"),
                Some(sum) => scaling.assert_row(&format!("{what}, row {row}"), &sum, y),
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn embed_adds_up_its_tables_normalises_and_answers_what_it_does_not_know_with_nan() {
    let gpu = Gpu::open();
    let mut random = Random::new(6);
    for (at, width) in cases(&WIDTHS).enumerate() {
        for kind in [None, Some(NormKind::Layer), Some(NormKind::Rms)] {
            for (positions, types) in [(false, false), (true, false), (true, true)] {
                let case = EmbedCase::random(&mut random, width, positions, types);
                let embedding = Embedding::new(&gpu, &mut random, case, kind, at % 2 == 0);
                let outputs = gpu.assert_same_bits_at_every_sm_count(&embedding.embed, &[&embedding.y, &embedding.sum]);
                embedding.check(&outputs[0], &outputs[1]);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn embed_is_right_at_random_shapes() {
    let gpu = Gpu::open();
    let kind = select(vec![None, Some(NormKind::Layer), Some(NormKind::Rms)]);
    let tables = select(vec![(false, false), (true, false), (false, true), (true, true)]);
    let draws = (widths(), kind, tables, any::<bool>(), any::<u64>(), select(gpu.sm_counts()));
    for_draws(60, &draws, |(width, kind, (positions, types), keeps_sum, seed, sms)| {
        let mut random = Random::new(seed);
        let case = EmbedCase::random(&mut random, width, positions, types);
        let embedding = Embedding::new(&gpu, &mut random, case, kind, keeps_sum);
        gpu.run(&embedding.embed, sms);
        embedding.check(&gpu.download(&embedding.y), &gpu.download(&embedding.sum));
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_norm_of_picked_rows_is_the_norm_of_those_rows() {
    let gpu = Gpu::open();
    let mut random = Random::new(11);
    for width in cases(&WIDTHS) {
        for residual in [false, true] {
            let rows = random.between(1, 50);
            let case = NormCase::random(&mut random, NormKind::Rms, rows, width, residual);
            let operands = NormOperands::new(&gpu, &case);
            let index: Vec<u32> = (0..random.between(1, 70)).map(|_| random.between(0, case.rows - 1)).collect();
            let index_on_gpu = gpu.upload_u32(&index);
            let all = gpu.poisoned(case.bytes());
            gpu.run(&operands.norm(&case, DevicePtr::NULL, all.ptr()), gpu.sms());
            let all = gpu.download_f16(&all);
            let bytes = 2 * index.len() * width as usize;
            let (sum, y) = (guarded(&gpu, bytes), guarded(&gpu, bytes));
            let norm = Norm { rows: index.len() as u32, index: index_on_gpu.ptr(), ..operands.norm(&case, sum.ptr(), y.ptr()) };
            let outputs = gpu.assert_same_bits_at_every_sm_count(&norm, &[&y, &sum]);
            let picked = |values: &[f16]| -> Vec<f16> {
                index.iter().flat_map(|&row| &values[(row * width) as usize..][..width as usize]).copied().collect()
            };
            assert_same_bits(format!("width {width}"), &halves(&outputs[0]), &picked(&all));
            let sums: Vec<f16> = case.sums().into_iter().map(f16::from_f32).collect();
            assert_same_bits(format!("sums of width {width}"), &halves(&outputs[1]), &picked(&sums));
        }
    }
}
