//! What NaN, infinity and overflow do: they come out where IEEE 754 sends them, and reach no row, head or sequence but their own. Here for products, norms and
//! attention over whole sequences; tests of other kernels stand beside those of what they compute, and compare with [`assert_as_ieee_754_says`].

use half::f16;
use smidgen::kernels::attention::{AttentionPrefill, Heads};
use smidgen::kernels::gemm::{Epilogue, Gemm, Variant, Warpgroup};
use smidgen::kernels::norm::{Norm, NormKind};
use smidgen_runtime::device::{DevicePtr, Sms};
use smidgen_runtime::launch::Kernel;

use crate::gemm::{Finish, Problem, shape_for};
use crate::support::{Gpu, Random, cases};

/// What a poisoned buffer holds where nobody wrote: a NaN, but not the one that arithmetic makes.
pub(crate) const POISON: f16 = f16::from_bits(0xffff);

/// Fails unless each element of an output is a NaN where the reference is, an infinity where it is one or beyond FP16, and close to it elsewhere.
pub(crate) fn assert_as_ieee_754_says(what: &str, output: &[f16], reference: &[f64]) {
    assert_eq!(output.len(), reference.len(), "{what}");
    for (at, (output, &reference)) in output.iter().zip(reference).enumerate() {
        let expected = f16::from_f64(reference);
        let is_right = if expected.is_nan() {
            output.is_nan() && output.to_bits() != POISON.to_bits()
        } else if expected.is_infinite() {
            *output == expected
        } else {
            (output.to_f64() - reference).abs() <= 2e-2 + 4e-3 * reference.abs()
        };
        assert!(is_right, "{what}: element {at} is {output} and should be {expected}");
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

/// Writes what is no number, and what sums beyond FP16, to the operands of a product with at least 8 rows and more than 128 columns.
fn spoil(problem: &mut Problem) {
    let Gemm { n, k, lda, ldb, .. } = problem.gemm;
    let [n, k, lda, ldb, residual_stride] = [n, k, lda, ldb, problem.residual_stride].map(|extent| extent as usize);
    // Positive weights, so that the sign of an infinity is known; one is zero, and infinity times zero is NaN, and one is NaN itself.
    problem.b.iter_mut().for_each(|value| *value = f16::from_f32(value.to_f32().abs() + 0.25));
    problem.b[(n - 1) * ldb + 3] = f16::ZERO;
    problem.b[100 * ldb + 7] = f16::NAN;
    let a = &mut problem.a;
    a[lda + 3] = f16::NAN;
    a[2 * lda + 3] = f16::INFINITY;
    a[3 * lda + 3] = f16::NEG_INFINITY;
    (a[4 * lda + 3], a[4 * lda + 5]) = (f16::INFINITY, f16::NEG_INFINITY);
    a[5 * lda..][..k].fill(f16::MAX);
    a[6 * lda..][..k].fill(f16::MIN);
    // To gates and ups of a gated product.
    for (column, value) in
        [(10, f16::NAN), (21, f16::NAN), (32, f16::INFINITY), (43, f16::INFINITY), (54, f16::NEG_INFINITY), (65, f16::NEG_INFINITY)]
    {
        problem.bias[column] = value;
    }
    // To a row of numbers, and to the infinite sums of row 2.
    for (row, column, value) in
        [(7, 70, f16::NAN), (7, 71, f16::INFINITY), (7, 72, f16::NEG_INFINITY), (2, 73, f16::NEG_INFINITY), (2, 74, f16::INFINITY)]
    {
        problem.residual[row * residual_stride + column] = value;
    }
}

/// Fails unless `C` is the reference in the sense of [`assert_as_ieee_754_says`].
fn check(problem: &Problem, gpu: &Gpu, finish: Finish, by: &str) {
    let what = format!("{} by {by}", problem.gemm.key());
    let columns = finish.columns(problem.gemm.n) as usize;
    let ldc = problem.gemm.ldc as usize;
    let reference = problem.reference();
    if finish == Finish::PlainF32 {
        // Sums beyond FP16 are numbers here.
        let output = gpu.download_f32(&problem.c);
        let rows = output.chunks(ldc).flat_map(|row| &row[..columns]).map(|&value| f64::from(value));
        for (at, (output, expected)) in rows.zip(&reference).enumerate() {
            let same = if expected.is_finite() { (output - expected).abs() <= 1e-3 + 1e-4 * expected.abs() } else { output == *expected };
            assert!(same || (output.is_nan() && expected.is_nan()), "{what}: element {at} is {output} and should be {expected}");
        }
    } else {
        let output: Vec<f16> = gpu.download_f16(&problem.c).chunks(ldc).flat_map(|row| row[..columns].to_vec()).collect();
        assert_as_ieee_754_says(&what, &output, &reference);
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn nan_infinity_and_overflow_pass_every_epilogue_of_every_kind_of_kernel_as_ieee_754_says() {
    let gpu = Gpu::open();
    let mut random = Random::new(21);
    for finish in Finish::ALL {
        // As they are chosen: few rows in halves and in pairs, more rows, many, rows of C and of A anywhere.
        for (rows, gaps) in
            cases(&[(8, [0; 4]), (16, [0; 4]), (24, [0; 4]), (48, [0; 4]), (200, [0; 4]), (200, [0, 0, 3, 0]), (40, [3, 3, 0, 0])])
        {
            let problem = Problem::new(&gpu, &mut random, shape_for(finish, [rows, 192, 512]), gaps, finish).edited(&gpu, spoil);
            gpu.run(&problem.gemm, gpu.sms());
            check(&problem, &gpu, finish, "choice");
            if rows > 32 {
                continue;
            }
            let problem = problem.with_normed_rows(&gpu);
            if problem.gemm.can_norm_rows(gpu.device().topology()) {
                gpu.poison(&problem.c);
                gpu.run(&problem.gemm, gpu.sms());
                check(&problem, &gpu, finish, "choice");
            }
        }
        let problem = Problem::new(&gpu, &mut random, shape_for(finish, [70, 192, 512]), [0; 4], finish).edited(&gpu, spoil);
        let hoppers = Warpgroup::ALL.into_iter().map(Variant::Warpgroup).filter(|_| gpu.device().topology().compute_capability == (9, 0));
        for variant in Variant::TILED.into_iter().chain([Variant::Unaligned]).chain(hoppers) {
            gpu.poison(&problem.c);
            let launch = problem.gemm.configure_variant(variant, Sms(gpu.sms()), gpu.device().topology()).expect("a variant that fits");
            gpu.enqueue(&problem.gemm, &launch, gpu.stream(), gpu.tiles(&launch));
            check(&problem, &gpu, finish, &format!("{variant:?}"));
        }
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
