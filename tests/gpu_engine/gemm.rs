//! GEMM on the GPU against sums in f64 on the CPU: every epilogue, any shape and stride, and the same bits at every SM count.

use std::collections::HashMap;

use half::f16;
use rayon::prelude::*;
use smidgen::kernels::gemm::{Epilogue, Gemm, Residual, RowNorm, Skinny, Variant, Warpgroup};
use smidgen_runtime::device::{Buffer, Sms};
use smidgen_runtime::launch::Kernel;

use crate::support::{Gpu, Random, assert_close, cases, rounds};

/// What to do with the sums; the operands come with the [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Finish {
    Plain,
    PlainF32,
    Bias,
    BiasGelu,
    BiasGeluTanh,
    BiasRelu,
    Residual,
    BiasResidual,
    SiluGate,
    BiasSiluGate,
}

impl Finish {
    const ALL: [Self; 10] = [
        Self::Plain,
        Self::PlainF32,
        Self::Bias,
        Self::BiasGelu,
        Self::BiasGeluTanh,
        Self::BiasRelu,
        Self::Residual,
        Self::BiasResidual,
        Self::SiluGate,
        Self::BiasSiluGate,
    ];

    fn is_gate(self) -> bool {
        matches!(self, Self::SiluGate | Self::BiasSiluGate)
    }

    fn columns(self, n: u32) -> u32 {
        if self.is_gate() { n / 2 } else { n }
    }

    fn values(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Self::PlainF32 => bytes.as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect(),
            _ => bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f64()).collect(),
        }
    }

    fn element_bytes(self) -> u32 {
        if self == Self::PlainF32 { 4 } else { 2 }
    }
}

/// A product with its operands on the host and on the GPU.
struct Problem {
    gemm: Gemm,
    finish: Finish,
    a: Vec<f16>,
    b: Vec<f16>,
    bias: Vec<f16>,
    residual: Vec<f16>,
    residual_stride: u32,
    scale: f32,
    c: Buffer,
    _operands: [Buffer; 4],
}

impl Problem {
    /// Random operands. `gaps` are what `lda - k`, `ldb - k`, `ldc` minus the columns of `C`, and the residual's stride minus `n` are.
    fn new(gpu: &Gpu, random: &mut Random, [m, n, k]: [u32; 3], gaps: [u32; 4], finish: Finish) -> Self {
        let [lda, ldb, ldc, residual_stride] = [k + gaps[0], k + gaps[1], finish.columns(n) + gaps[2], n + gaps[3]];
        let a = random.f16s((m * lda) as usize, 1.0);
        let b = random.f16s((n * ldb) as usize, 1.0);
        let bias = random.f16s(n as usize, 1.0);
        let residual = random.f16s((m * residual_stride) as usize, 4.0);
        let operands = [&a, &b, &bias, &residual].map(|operand| gpu.upload_f16(operand));
        let c = gpu.poisoned((m * ldc * finish.element_bytes()) as usize);
        let scale = if matches!(finish, Finish::Plain | Finish::PlainF32) { *random.pick(&[1.0, 0.125]) } else { 1.0 };
        let bias_ptr = operands[2].ptr();
        let added = Residual { ptr: operands[3].ptr(), stride: residual_stride };
        let epilogue = match finish {
            Finish::Plain => Epilogue::Plain { scale },
            Finish::PlainF32 => Epilogue::PlainF32 { scale },
            Finish::Bias => Epilogue::Bias(bias_ptr),
            Finish::BiasGelu => Epilogue::BiasGelu(bias_ptr),
            Finish::BiasGeluTanh => Epilogue::BiasGeluTanh(bias_ptr),
            Finish::BiasRelu => Epilogue::BiasRelu(bias_ptr),
            Finish::Residual => Epilogue::Residual(added),
            Finish::BiasResidual => Epilogue::BiasResidual(bias_ptr, added),
            Finish::SiluGate => Epilogue::SiluGate,
            Finish::BiasSiluGate => Epilogue::BiasSiluGate(bias_ptr),
        };
        let gemm = Gemm { lda, ldb, ldc, ..Gemm::new([m, n, k], operands[0].ptr(), operands[1].ptr(), c.ptr(), epilogue) };
        Self { gemm, finish, a, b, bias, residual, residual_stride, scale, c, _operands: operands }
    }

    /// With rows of `A` that are normed, and of very different size, so that a row normed by another's squares is wrong. The smallest ones' squares are of
    /// the size of epsilon.
    fn with_normed_rows(mut self, gpu: &Gpu) -> Self {
        for (row, factor) in self.a.chunks_mut(self.gemm.lda as usize).zip([1.0, 32.0, 1.0 / 64.0, 8.0, 0.25].iter().cycle()) {
            row.iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32() * factor));
        }
        self._operands[0] = gpu.upload_f16(&self.a);
        self.gemm = Gemm { a: self._operands[0].ptr(), row_norm: Some(RowNorm { epsilon: 1e-4 }), ..self.gemm };
        self
    }

    /// `C` by its definition, row by row, without the gaps.
    fn reference(&self) -> Vec<f64> {
        let Gemm { m, n, k, lda, ldb, .. } = self.gemm;
        let row_of = |row: usize| {
            let a = &self.a[row * lda as usize..][..k as usize];
            let norm = self.gemm.row_norm.map_or(1.0, |norm| {
                let mean = a.iter().map(|a| a.to_f64() * a.to_f64()).sum::<f64>() / f64::from(k);
                1.0 / (mean + f64::from(norm.epsilon)).sqrt()
            });
            let sum = move |column: usize| -> f64 {
                let b = &self.b[column * ldb as usize..][..k as usize];
                norm * f64::from(self.scale) * a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum::<f64>()
            };
            (0..self.finish.columns(n) as usize).map(move |column| {
                let biased = || sum(column) + self.bias[column].to_f64();
                let residual = || self.residual[row * self.residual_stride as usize + column].to_f64();
                match self.finish {
                    Finish::Plain | Finish::PlainF32 => sum(column),
                    Finish::Bias => biased(),
                    Finish::BiasGelu => gelu(biased()),
                    Finish::BiasGeluTanh => gelu_tanh(biased()),
                    Finish::BiasRelu => biased().max(0.0),
                    Finish::Residual => sum(column) + residual(),
                    Finish::BiasResidual => biased() + residual(),
                    Finish::SiluGate => silu(sum(2 * column)) * sum(2 * column + 1),
                    Finish::BiasSiluGate => {
                        let biased = |column: usize| sum(column) + self.bias[column].to_f64();
                        silu(biased(2 * column)) * biased(2 * column + 1)
                    }
                }
            })
        };
        (0..m as usize).into_par_iter().flat_map_iter(row_of).collect()
    }

    /// Compares the bytes of a finished `C` with the reference, and its gaps with the poison.
    fn check(&self, bytes: &[u8], reference: &[f64]) {
        let Gemm { ldc, n, .. } = self.gemm;
        let what = format!("{} with strides {} {} {ldc}", self.gemm.key(), self.gemm.lda, self.gemm.ldb);
        let values = self.finish.values(bytes);
        let (mut inside, mut gaps) = (Vec::new(), Vec::new());
        for row in values.chunks(ldc as usize) {
            let (row, gap) = row.split_at(self.finish.columns(n) as usize);
            inside.extend_from_slice(row);
            gaps.extend_from_slice(gap);
        }
        assert_close(&what, inside.iter().copied(), reference, 1e-3);
        assert!(gaps.iter().all(|value| value.is_nan()), "{what}: elements between the rows of C were written");
        // The norm would hide a single wrong element in a large matrix.
        let mean_square = reference.iter().map(|value| value * value).sum::<f64>() / reference.len() as f64;
        let tolerance = |expected: f64| 2e-3 * expected.abs() + 2e-3 * mean_square.sqrt() + 1e-6;
        let wrong = inside.iter().zip(reference).position(|(value, &expected)| (value - expected).abs() > tolerance(expected));
        if let Some(at) = wrong {
            panic!("{what}: element {at} is {} and should be {}", inside[at], reference[at]);
        }
    }
}

/// `erf` by its Maclaurin series, which converges everywhere; beyond 4 it is 1 within 2e-8.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// An even n for the gates, which have no other.
fn shape_for(finish: Finish, [m, n, k]: [u32; 3]) -> [u32; 3] {
    [m, if finish.is_gate() { n.next_multiple_of(2) } else { n }, k]
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn every_epilogue_is_right_at_shapes_that_fill_no_tile() {
    let gpu = Gpu::open();
    let mut random = Random::new(1);
    for finish in Finish::ALL {
        for shape in
            [[1, 1, 1], [1, 128, 64], [7, 131, 100], [31, 77, 129], [64, 96, 512], [129, 257, 72], [200, 136, 331], [300, 520, 256]]
        {
            // Rows of A and B on 16 bytes, as nearly every model has them; then rows that are not.
            for aligned in [true, false] {
                let shape = shape_for(finish, shape);
                let k_gap = if aligned { shape[2].next_multiple_of(8) - shape[2] } else { 3 };
                let problem = Problem::new(&gpu, &mut random, shape, [k_gap, k_gap, 0, 0], finish);
                gpu.run(&problem.gemm, gpu.sms());
                problem.check(&gpu.download(&problem.c), &problem.reference());
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn random_shapes_and_strides_are_right() {
    let gpu = Gpu::open();
    let mut random = Random::new(2);
    for _ in 0..rounds(120) {
        let finish = *random.pick(&Finish::ALL);
        let most_rows = *random.pick(&[16, 32, 64, 400]);
        let shape = shape_for(finish, [random.between(1, most_rows), random.between(1, 600), random.between(1, 700)]);
        let gap = |random: &mut Random| if random.between(0, 1) == 0 { 0 } else { random.between(1, 24) };
        let aligned_gap = |random: &mut Random| shape[2].next_multiple_of(8) - shape[2] + 8 * random.between(0, 2);
        let k_gaps =
            if random.between(0, 3) == 0 { [gap(&mut random), gap(&mut random)] } else { [0; 2].map(|_| aligned_gap(&mut random)) };
        let gaps = [k_gaps[0], k_gaps[1], gap(&mut random), gap(&mut random)];
        let problem = Problem::new(&gpu, &mut random, shape, gaps, finish);
        gpu.run(&problem.gemm, *random.pick(&gpu.sm_counts()));
        problem.check(&gpu.download(&problem.c), &problem.reference());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn outputs_have_the_same_bits_at_every_sm_count() {
    let gpu = Gpu::open();
    let mut random = Random::new(3);
    // Shapes for which the choice of the tile changes with the SM count, a skinny one, and one without alignment.
    for (shape, k_gap) in [
        ([1024, 768, 768], 0),
        ([1000, 2304, 760], 0),
        ([640, 1536, 1111], 1),
        ([40, 4096, 1024], 0),
        ([8, 2048, 2048], 0),
        ([8, 2048, 8192], 0),
        ([13, 3000, 4096], 0),
        ([32, 2050, 1016], 0),
        ([33, 2050, 1016], 0),
        ([64, 2048, 8192], 0),
        ([70, 90, 333], 0),
    ] {
        for finish in [Finish::BiasGelu, Finish::Residual] {
            let problem = Problem::new(&gpu, &mut random, shape, [k_gap, k_gap, 0, 0], finish);
            let outputs = gpu.assert_same_bits_at_every_sm_count(&problem.gemm, &[&problem.c]);
            problem.check(&outputs[0], &problem.reference());
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn all_tile_shapes_give_the_same_bits() {
    let gpu = Gpu::open();
    let mut random = Random::new(4);
    for finish in Finish::ALL {
        for shape in [[300, 530, 520], [129, 64, 1000], [50, 300, 77]] {
            let shape = shape_for(finish, shape);
            let k_gap = shape[2].next_multiple_of(8) - shape[2];
            let problem = Problem::new(&gpu, &mut random, shape, [k_gap, k_gap, 0, 0], finish);
            let reference = problem.reference();
            let mut first = None;
            for variant in Variant::TILED.into_iter().chain([Variant::Unaligned]) {
                gpu.poison(&problem.c);
                let launch = problem.gemm.configure_variant(variant, Sms(gpu.sms()), gpu.device().topology()).expect("a variant that fits");
                gpu.enqueue(&problem.gemm, &launch, gpu.stream(), gpu.tiles(&launch));
                let bytes = gpu.download(&problem.c);
                problem.check(&bytes, &reference);
                assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{variant:?} differs for {}", problem.gemm.key());
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn all_hopper_shapes_give_the_same_bits() {
    let gpu = Gpu::open();
    if gpu.device().topology().compute_capability != (9, 0) {
        return;
    }
    let mut random = Random::new(6);
    for finish in Finish::ALL {
        for shape in [[300, 544, 520], [129, 64, 1000], [70, 304, 80]] {
            let problem = Problem::new(&gpu, &mut random, shape, [0; 4], finish);
            let reference = problem.reference();
            let mut first = None;
            for shape in Warpgroup::ALL {
                for sms in [Sms(2), Sms(gpu.sms())] {
                    gpu.poison(&problem.c);
                    let launch =
                        problem.gemm.configure_variant(Variant::Warpgroup(shape), sms, gpu.device().topology()).expect("a shape that fits");
                    gpu.enqueue(&problem.gemm, &launch, gpu.stream(), gpu.tiles(&launch));
                    let bytes = gpu.download(&problem.c);
                    problem.check(&bytes, &reference);
                    assert!(
                        *first.get_or_insert_with(|| bytes.clone()) == bytes,
                        "{shape:?} on {sms} SMs differs for {}",
                        problem.gemm.key()
                    );
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_residual_may_be_the_output_itself() {
    let gpu = Gpu::open();
    let mut random = Random::new(5);
    for m in [4, 150] {
        let problem = Problem::new(&gpu, &mut random, [m, 256, 192], [0; 4], Finish::Residual);
        let reference = problem.reference();
        let c = gpu.upload_f16(&problem.residual);
        let in_place = Epilogue::Residual(Residual { ptr: c.ptr(), stride: problem.residual_stride });
        gpu.run(&Gemm { c: c.ptr(), epilogue: in_place, ..problem.gemm }, gpu.sms());
        problem.check(&gpu.download(&c), &reference);
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_row_that_is_no_number_is_none_after_any_epilogue_and_no_other_row_is() {
    let gpu = Gpu::open();
    let mut random = Random::new(12);
    for finish in Finish::ALL {
        // Few rows, many, and such that do not begin on 16 bytes.
        for (m, gap) in [(8, 0), (100, 0), (8, 3)] {
            let mut problem = Problem::new(&gpu, &mut random, [m, 64, 64], [gap, gap, 0, 0], finish);
            let reference = problem.reference();
            let lda = problem.gemm.lda as usize;
            problem.a[lda..][..64].fill(f16::NAN);
            let a = gpu.upload_f16(&problem.a);
            gpu.run(&Gemm { a: a.ptr(), ..problem.gemm }, gpu.sms());
            let output = finish.values(&gpu.download(&problem.c));
            let columns = finish.columns(64) as usize;
            let what = format!("{finish:?} of {m} rows, gap {gap}");
            assert!(output[columns..][..columns].iter().all(|value| value.is_nan()), "{what}: {:?}", &output[columns..][..columns]);
            let [others, expected] = [&output, &reference].map(|rows| [&rows[..columns], &rows[2 * columns..]].concat());
            assert_close(what, others, &expected, 1e-3);
        }
    }
}

/// Numbers of rows that the skinny kernels do, around those that each is made for.
const FEW_ROWS: [u32; 11] = [1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 64];

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn few_rows_are_right_at_every_epilogue_and_length_of_k() {
    let gpu = Gpu::open();
    let mut random = Random::new(6);
    for finish in Finish::ALL {
        for rows in cases(&FEW_ROWS) {
            // Of k: less than a step, a ring that A fits in, one that it does not fit in, and an end in the middle of a stage.
            for k in cases(&[8, 248, 2048, 5000, 8192]) {
                let columns = *random.pick(&[1, 31, 257, 1000]);
                let problem = Problem::new(&gpu, &mut random, shape_for(finish, [rows, columns, k]), [0; 4], finish);
                gpu.run(&problem.gemm, *random.pick(&gpu.sm_counts()));
                problem.check(&gpu.download(&problem.c), &problem.reference());
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn few_normed_rows_are_right_at_every_epilogue_and_length_of_k() {
    let gpu = Gpu::open();
    let mut random = Random::new(8);
    for finish in Finish::ALL {
        for rows in cases(&FEW_ROWS) {
            // Less than a step, one and a bit, the second block of a pair without any, many rounds of a ring.
            for k in cases(&[8, 248, 264, 2048, 5000]) {
                // One tile; many, of which each worker has one; so many that workers have several.
                let columns = *random.pick(&[1, 31, 257, 1000, 9000]);
                let problem = Problem::new(&gpu, &mut random, shape_for(finish, [rows, columns, k]), [0, 0, 0, 0], finish);
                let problem = problem.with_normed_rows(&gpu);
                if !problem.gemm.can_norm_rows(gpu.device().topology()) {
                    return;
                }
                gpu.run(&problem.gemm, *random.pick(&gpu.sm_counts()));
                problem.check(&gpu.download(&problem.c), &problem.reference());
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn normed_rows_have_the_same_bits_at_every_sm_count() {
    let gpu = Gpu::open();
    if gpu.device().topology().compute_capability != (9, 0) {
        return;
    }
    let mut random = Random::new(9);
    // Pairs and single blocks, few tiles and many, short launches and such as poll their grant.
    for (finish, shape) in [
        (Finish::Plain, [8, 3072, 2048]),
        (Finish::SiluGate, [8, 16_384, 2048]),
        (Finish::SiluGate, [1, 28_672, 4096]),
        (Finish::Bias, [13, 3000, 3584]),
        (Finish::BiasSiluGate, [32, 9000, 1016]),
        (Finish::Bias, [32, 2050, 1016]),
        (Finish::BiasSiluGate, [64, 9000, 1016]),
        (Finish::Bias, [47, 2050, 1016]),
    ] {
        let problem = Problem::new(&gpu, &mut random, shape, [0; 4], finish).with_normed_rows(&gpu);
        let outputs = gpu.assert_same_bits_at_every_sm_count(&problem.gemm, &[&problem.c]);
        problem.check(&outputs[0], &problem.reference());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_row_that_is_no_number_or_all_zeros_does_not_reach_other_normed_rows() {
    let gpu = Gpu::open();
    let mut random = Random::new(10);
    let mut problem = Problem::new(&gpu, &mut random, [8, 192, 512], [0; 4], Finish::Plain).with_normed_rows(&gpu);
    if !problem.gemm.can_norm_rows(gpu.device().topology()) {
        return;
    }
    problem.a[2 * 512 + 17] = f16::NAN;
    problem.a[3 * 512..4 * 512].fill(f16::ZERO);
    problem.a[5 * 512 + 400] = f16::INFINITY;
    let a = gpu.upload_f16(&problem.a);
    gpu.run(&Gemm { a: a.ptr(), ..problem.gemm }, gpu.sms());
    let (output, reference) = (gpu.download_f16(&problem.c), problem.reference());
    for (row, (output, reference)) in output.chunks(192).zip(reference.chunks(192)).enumerate() {
        match row {
            2 | 5 => assert!(output.iter().all(|value| value.is_nan()), "row {row}"),
            3 => assert!(output.iter().all(|value| value.to_f32() == 0.0), "row {row}"),
            _ => assert_close(format!("row {row}"), output.iter().map(|value| value.to_f64()), reference, 1e-3),
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn every_skinny_kernel_is_right_and_those_that_share_k_alike_give_the_same_bits() {
    let gpu = Gpu::open();
    if gpu.device().topology().compute_capability != (9, 0) {
        return;
    }
    let mut random = Random::new(7);
    for (finish, [rows, n, k]) in [
        (Finish::Residual, [8, 2048, 2048]),
        (Finish::BiasSiluGate, [5, 1046, 4096]),
        (Finish::PlainF32, [16, 6144, 1024]),
        (Finish::Bias, [9, 333, 8192]),
        (Finish::Residual, [32, 2048, 2048]),
        (Finish::Bias, [20, 129, 264]),
        (Finish::Residual, [64, 2048, 2048]),
        (Finish::BiasSiluGate, [33, 1046, 1160]),
        (Finish::PlainF32, [50, 129, 264]),
        (Finish::PlainF32, [1, 8200, 96]),
        // In halves too: a last tile that is not full, one stage of each half, many rounds of a ring, and more tiles than 2 SMs have blocks.
        (Finish::PlainF32, [7, 2050, 512]),
        (Finish::BiasResidual, [1, 33, 1536]),
        (Finish::Residual, [8, 2048, 8192]),
        (Finish::Residual, [1, 4096, 14_336]),
    ] {
        let plain = Problem::new(&gpu, &mut random, [rows, n, k], [0; 4], finish);
        assert_skinny_kernels_agree(&gpu, &plain);
        assert_skinny_kernels_agree(&gpu, &plain.with_normed_rows(&gpu));
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn halves_with_gaps_between_rows_give_the_bits_of_pairs() {
    let gpu = Gpu::open();
    if gpu.device().topology().compute_capability != (9, 0) {
        return;
    }
    let mut random = Random::new(11);
    for (finish, shape) in [(Finish::Residual, [5, 1000, 2560]), (Finish::BiasSiluGate, [8, 4096, 1024]), (Finish::PlainF32, [3, 70, 4608])]
    {
        let plain = Problem::new(&gpu, &mut random, shape, [8, 24, 3, 5], finish);
        assert_skinny_kernels_agree(&gpu, &plain);
        assert_skinny_kernels_agree(&gpu, &plain.with_normed_rows(&gpu));
    }
}

/// Fails unless every skinny kernel that can do the problem is right, and those that share k give the same bits, in pairs or in halves, whatever the depth of
/// their rings.
fn assert_skinny_kernels_agree(gpu: &Gpu, problem: &Problem) {
    let reference = problem.reference();
    let mut first = HashMap::new();
    let topology = gpu.device().topology();
    for skinny in Skinny::ALL.into_iter().filter(|skinny| skinny.can_do(&problem.gemm, topology)) {
        for sms in [Sms(2), Sms(gpu.sms() / 4), Sms(gpu.sms())] {
            gpu.poison(&problem.c);
            let variant = Variant::Skinny(skinny);
            let launch = problem.gemm.configure_variant(variant, sms, topology).expect("a kernel that fits");
            gpu.enqueue(&problem.gemm, &launch, gpu.stream(), gpu.tiles(&launch));
            let bytes = gpu.download(&problem.c);
            problem.check(&bytes, &reference);
            let same = first.entry((skinny.rows(), skinny.shares_k())).or_insert_with(|| bytes.clone());
            assert!(*same == bytes, "{skinny} on {sms} SMs differs for {}", problem.gemm.key());
        }
    }
}
