//! What NaN, infinity and overflow do: they come out where IEEE 754 sends them, and reach no row, head or sequence but their own.

use half::f16;
use smidgen::kernels::attention::{AttentionPrefill, Heads};
use smidgen::kernels::gemm::{Epilogue, Gemm};
use smidgen::kernels::norm::{Norm, NormKind};
use smidgen_runtime::device::DevicePtr;
use smidgen_runtime::launch::Kernel;

use crate::support::{Gpu, Random};

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
