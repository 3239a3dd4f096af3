//! GEMM on the GPU against sums in f64 on the CPU: every epilogue, any shape and stride, and the same bits at every SM count.

use half::f16;
use proptest::prelude::*;
use proptest::sample::select;
use rayon::prelude::*;
use smidgen::kernels::gemm::{Epilogue, Gemm, Residual, RowNorm, Variant, Warpgroup};
use smidgen_runtime::device::{Buffer, DevicePtr, Sms};
use smidgen_runtime::launch::{Configuration, Kernel};

use crate::attention::f64s;
use crate::draws::{aligned_gap, extent, for_draws, gap};
use crate::support::{Gpu, Random, assert_close, at_most_under_a_sanitizer, cases, is_sanitized};

/// What to do with the sums; the operands come with the [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Finish {
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
    pub(crate) const ALL: [Self; 10] = [
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

    pub(crate) fn columns(self, n: u32) -> u32 {
        if self.is_gate() { n / 2 } else { n }
    }

    pub(crate) fn element_bytes(self) -> u32 {
        if self == Self::PlainF32 { 4 } else { 2 }
    }

    /// `scale` counts where sums are stored as they are.
    pub(crate) fn epilogue(self, scale: f32, bias: DevicePtr, residual: Residual) -> Epilogue {
        match self {
            Self::Plain => Epilogue::Plain { scale },
            Self::PlainF32 => Epilogue::PlainF32 { scale },
            Self::Bias => Epilogue::Bias(bias),
            Self::BiasGelu => Epilogue::BiasGelu(bias),
            Self::BiasGeluTanh => Epilogue::BiasGeluTanh(bias),
            Self::BiasRelu => Epilogue::BiasRelu(bias),
            Self::Residual => Epilogue::Residual(residual),
            Self::BiasResidual => Epilogue::BiasResidual(bias, residual),
            Self::SiluGate => Epilogue::SiluGate,
            Self::BiasSiluGate => Epilogue::BiasSiluGate(bias),
        }
    }

    /// A row of `C`, of its sums and its row of the residual. What is no number goes where IEEE 754 sends it.
    pub(crate) fn of_row(self, sums: &[f64], bias: &[f16], residual: &[f16]) -> Vec<f64> {
        let biased = || sums.iter().zip(bias).map(|(sum, bias)| sum + bias.to_f64());
        let with_residual =
            |sums: &mut dyn Iterator<Item = f64>| sums.zip(residual).map(|(sum, residual)| sum + residual.to_f64()).collect();
        let gated = |sums: &[f64]| sums.as_chunks::<2>().0.iter().map(|&[gate, up]| silu(gate) * up).collect();
        match self {
            Self::Plain | Self::PlainF32 => sums.to_vec(),
            Self::Bias => biased().collect(),
            Self::BiasGelu => biased().map(gelu).collect(),
            Self::BiasGeluTanh => biased().map(gelu_tanh).collect(),
            // `f64::max` would turn a NaN into 0.
            Self::BiasRelu => biased().map(|x| if x < 0.0 { 0.0 } else { x }).collect(),
            Self::Residual => with_residual(&mut sums.iter().copied()),
            Self::BiasResidual => with_residual(&mut biased()),
            Self::SiluGate => gated(sums),
            Self::BiasSiluGate => gated(&biased().collect::<Vec<_>>()),
        }
    }
}

/// A product with its operands on the host and on the GPU.
pub(crate) struct Problem {
    pub(crate) gemm: Gemm,
    finish: Finish,
    pub(crate) a: Vec<f16>,
    pub(crate) b: Vec<f16>,
    pub(crate) bias: Vec<f16>,
    pub(crate) residual: Vec<f16>,
    pub(crate) residual_stride: u32,
    scale: f32,
    pub(crate) c: Buffer,
    _operands: [Buffer; 4],
}

impl Problem {
    /// Random operands. `gaps` are what `lda - k`, `ldb - k`, `ldc` minus the columns of `C`, and the residual's stride minus `n` are.
    pub(crate) fn new(gpu: &Gpu, random: &mut Random, [m, n, k]: [u32; 3], gaps: [u32; 4], finish: Finish) -> Self {
        let [lda, ldb, ldc, residual_stride] = [k + gaps[0], k + gaps[1], finish.columns(n) + gaps[2], n + gaps[3]];
        let a = random.f16s((m * lda) as usize, 1.0);
        let b = random.f16s((n * ldb) as usize, 1.0);
        let bias = random.f16s(n as usize, 1.0);
        let residual = random.f16s((m * residual_stride) as usize, 4.0);
        let operands = [&a, &b, &bias, &residual].map(|operand| gpu.upload_f16(operand));
        let c = gpu.poisoned((m * ldc * finish.element_bytes()) as usize);
        let scale = if matches!(finish, Finish::Plain | Finish::PlainF32) { *random.pick(&[1.0, 0.125]) } else { 1.0 };
        let epilogue = finish.epilogue(scale, operands[2].ptr(), Residual { ptr: operands[3].ptr(), stride: residual_stride });
        let gemm = Gemm { lda, ldb, ldc, ..Gemm::new([m, n, k], operands[0].ptr(), operands[1].ptr(), c.ptr(), epilogue) };
        Self { gemm, finish, a, b, bias, residual, residual_stride, scale, c, _operands: operands }
    }

    /// With rows of `A` that are normed, and of very different size, so that a row normed by another's squares is wrong. The smallest ones' squares are of
    /// the size of epsilon.
    pub(crate) fn with_normed_rows(self, gpu: &Gpu) -> Self {
        let mut normed = self.edited(gpu, |problem| {
            for (row, factor) in problem.a.chunks_mut(problem.gemm.lda as usize).zip([1.0, 32.0, 1.0 / 64.0, 8.0, 0.25].iter().cycle()) {
                row.iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32() * factor));
            }
        });
        normed.gemm.row_norm = Some(RowNorm { epsilon: 1e-4 });
        normed
    }

    /// With operands that `edit` has changed.
    pub(crate) fn edited(mut self, gpu: &Gpu, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self._operands = [&self.a, &self.b, &self.bias, &self.residual].map(|operand| gpu.upload_f16(operand));
        let [a, b, bias, residual] = self._operands.each_ref().map(Buffer::ptr);
        let epilogue = self.finish.epilogue(self.scale, bias, Residual { ptr: residual, stride: self.residual_stride });
        self.gemm = Gemm { a, b, epilogue, ..self.gemm };
        self
    }

    /// `C` by its definition, row by row, without the gaps.
    pub(crate) fn reference(&self) -> Vec<f64> {
        let [m, n, k, lda, ldb] = [self.gemm.m, self.gemm.n, self.gemm.k, self.gemm.lda, self.gemm.ldb].map(|extent| extent as usize);
        let sums = multiply(&self.a, lda, &self.b, ldb, [m, n, k]);
        let row_of = |(row, sums): (usize, &[f64])| {
            let norm = self.gemm.row_norm.map_or(1.0, |norm| norm_of(&self.a[row * lda..][..k], norm));
            let sums: Vec<f64> = sums.iter().map(|sum| norm * f64::from(self.scale) * sum).collect();
            self.finish.of_row(&sums, &self.bias, &self.residual[row * self.residual_stride as usize..])
        };
        sums.chunks(n).enumerate().flat_map(row_of).collect()
    }

    /// Compares the bytes of a finished `C` with the reference, and its gaps with the poison.
    pub(crate) fn check(&self, bytes: &[u8], reference: &[f64]) {
        let Gemm { ldc, n, .. } = self.gemm;
        let what = format!("{} with strides {} {} {ldc}", self.gemm.key(), self.gemm.lda, self.gemm.ldb);
        let values: Vec<f64> = if self.finish == Finish::PlainF32 {
            bytes.as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
        } else {
            bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f64()).collect()
        };
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

/// Rows of `A * B^T`, of rows of `k` elements that lie `lda` and `ldb` apart.
pub(crate) fn multiply(a: &[f16], lda: usize, b: &[f16], ldb: usize, [m, n, k]: [usize; 3]) -> Vec<f64> {
    let a: Vec<Vec<f64>> = (0..m).map(|row| f64s(&a[row * lda..][..k])).collect();
    let column = |column: usize| {
        let b = f64s(&b[column * ldb..][..k]);
        a.iter().map(|a| dot(a, &b)).collect::<Vec<_>>()
    };
    let columns: Vec<Vec<f64>> = (0..n).into_par_iter().map(column).collect();
    (0..m).flat_map(|row| columns.iter().map(move |column| column[row])).collect()
}

/// In several sums, none of which waits for another.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in whole_a.iter().zip(whole_b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
}

/// What each element of a row counts where rows are normed.
pub(crate) fn norm_of(row: &[f16], norm: RowNorm) -> f64 {
    let squares: f64 = row.iter().map(|value| value.to_f64().powi(2)).sum();
    1.0 / (squares / row.len() as f64 + f64::from(norm.epsilon)).sqrt()
}

/// GELU by the error function. Of minus infinity it is its limit, as in the kernels, where the formula multiplies infinity by zero.
fn gelu(x: f64) -> f64 {
    if x == f64::NEG_INFINITY { 0.0 } else { 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2) }
}

/// `0.5 * (1 + tanh(u))` is `1 / (1 + exp(-2u))`, which cancels nowhere.
fn gelu_tanh(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    if x == f64::NEG_INFINITY { 0.0 } else { x / (1.0 + (-2.0 * u).exp()) }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// An even n for the gates, which have no other.
pub(crate) fn shape_for(finish: Finish, [m, n, k]: [u32; 3]) -> [u32; 3] {
    [m, if finish.is_gate() { n.next_multiple_of(2) } else { n }, k]
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn every_epilogue_is_right_at_shapes_that_fill_no_tile() {
    let gpu = Gpu::open();
    let mut random = Random::new(1);
    for finish in Finish::ALL {
        for shape in
            cases(&[[1, 1, 1], [1, 128, 64], [7, 131, 100], [31, 77, 129], [64, 96, 512], [129, 257, 72], [200, 136, 331], [300, 520, 256]])
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

/// What distinguishes one product from another, and the seed of its operands.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    pub(crate) finish: Finish,
    pub(crate) shape: [u32; 3],
    /// As [`Problem::new`] has them.
    pub(crate) gaps: [u32; 4],
    pub(crate) seed: u64,
}

impl Draw {
    pub(crate) fn problem(&self, gpu: &Gpu) -> Problem {
        Problem::new(gpu, &mut Random::new(self.seed), self.shape, self.gaps, self.finish)
    }
}

/// Any shape up to these; rows of A and B on 16 bytes where `aligned`, rows of C anywhere.
pub(crate) fn products(
    finish: impl Strategy<Value = Finish>,
    rows: impl Strategy<Value = u32>,
    columns_and_k: impl Strategy<Value = (u32, u32)>,
    aligned: bool,
) -> impl Strategy<Value = Draw> {
    let k_gaps = [(gap(24), 0_u32..=2), (gap(24), 0_u32..=2)];
    (finish, rows, columns_and_k, k_gaps, [gap(24), gap(24)], any::<u64>()).prop_map(
        move |(finish, rows, (columns, k), k_gaps, [c_gap, residual_gap], seed)| {
            let k_gaps = k_gaps.map(|(gap, more)| if aligned { k.next_multiple_of(8) - k + 8 * more } else { gap });
            Draw { finish, shape: shape_for(finish, [rows, columns, k]), gaps: [k_gaps[0], k_gaps[1], c_gap, residual_gap], seed }
        },
    )
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn random_shapes_and_strides_are_right() {
    let gpu = Gpu::open();
    let rows = || prop_oneof![extent(64), extent(400)];
    for (aligned, cases) in [(true, 60), (false, 30)] {
        let draws = products(select(&Finish::ALL[..]), rows(), (extent(600), extent(700)), aligned);
        for_draws(cases, &(draws, select(gpu.sm_counts())), |(draw, sms)| {
            let problem = draw.problem(&gpu);
            gpu.run(&problem.gemm, sms);
            problem.check(&gpu.download(&problem.c), &problem.reference());
        });
    }
}

/// Rows of C on 16 bytes too, which Hopper's kernels for many rows ask for.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn random_shapes_and_strides_are_right_on_hoppers_own_kernels() {
    let gpu = Gpu::open();
    let is_hopper = gpu.device().topology().compute_capability == (9, 0);
    let draws = (select(&Finish::ALL[..]), 65..=500_u32, extent(40), extent(700)).prop_flat_map(|(finish, rows, sixteenths, k)| {
        let gaps = [aligned_gap(k), aligned_gap(k), aligned_gap(0), aligned_gap(0)];
        (Just((finish, [rows, 16 * sixteenths, k])), gaps, any::<u64>())
    });
    for_draws(60, &(draws, select(gpu.sm_counts())), |(((finish, shape), gaps, seed), sms)| {
        let problem = Draw { finish, shape, gaps, seed }.problem(&gpu);
        let launch = problem.gemm.configure(Sms(sms), gpu.device().topology()).expect("a supported shape");
        assert!(launch.symbol.contains("warpgroup") || !is_hopper, "{} is done by {}", problem.gemm.key(), launch.symbol);
        gpu.run(&problem.gemm, sms);
        problem.check(&gpu.download(&problem.c), &problem.reference());
    });
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
            let shape = at_most_under_a_sanitizer(shape, [300, 600, 1111]);
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
        for shape in [[129, 64, 1000], [300, 530, 520], [50, 300, 77]].into_iter().take(if is_sanitized() { 1 } else { 3 }) {
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
        for shape in [[129, 64, 1000], [300, 544, 520], [70, 304, 80]].into_iter().take(if is_sanitized() { 1 } else { 3 }) {
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
fn every_configuration_that_a_profile_may_name_gives_the_bits_of_the_choice() {
    let gpu = Gpu::open();
    let topology = gpu.device().topology();
    let mut random = Random::new(12);
    for (shape, finish) in [
        ([1024, 768, 768], Finish::BiasResidual),
        ([1000, 2304, 760], Finish::Bias),
        ([128, 3072, 768], Finish::BiasGelu),
        ([8, 2048, 8192], Finish::Residual),
        ([13, 3000, 4096], Finish::SiluGate),
    ] {
        let shape = at_most_under_a_sanitizer(shape, [300, 600, 4096]);
        let problem = Problem::new(&gpu, &mut random, shape, [0; 4], finish);
        for sms in gpu.sm_counts() {
            let mut first = None;
            for Configuration { name, choice } in problem.gemm.configurations(Sms(sms), topology) {
                gpu.poison(&problem.c);
                let launch = problem.gemm.configure_as(choice, Sms(sms), topology).expect("a configuration on offer");
                gpu.enqueue(&problem.gemm, &launch, gpu.partition(sms), gpu.tiles(&launch));
                gpu.device().synchronize(gpu.partition(sms)).expect("the kernel runs");
                let bytes = gpu.download(&problem.c);
                let same = *first.get_or_insert_with(|| bytes.clone()) == bytes;
                assert!(same, "{name} on {sms} SMs differs for {}", problem.gemm.key());
            }
        }
        problem.check(&gpu.download(&problem.c), &problem.reference());
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
