//! Pooling, picked rows and weight initialisation on the GPU against f64 (or exact) references on the CPU: any width, the same bits at every SM count.

use half::f16;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use smidgen::kernels::pooling::{GatherRows, MeanPool};
use smidgen::kernels::random::{Distribution, RandomWeights};
use smidgen::weights::names::{LayerParameter, Parameter};
use smidgen_runtime::device::Buffer;

use crate::draws::{extent, for_draws};
use crate::rowwise::{GUARD, assert_same_bits, guarded, halves, widths};
use crate::support::{Gpu, Random, assert_close, is_sanitized};

/// The floats of a guarded output, whose guard must be whole.
fn floats(bytes: &[u8]) -> Vec<f32> {
    let (output, guard) = bytes.split_at(bytes.len() - GUARD);
    assert!(guard.iter().all(|&byte| byte == 0xff), "the kernel wrote beyond its output");
    output.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn gather_picks_rows_in_any_order_and_repeatedly() {
    let gpu = Gpu::open();
    let most = if is_sanitized() { 3_000 } else { 300_000 };
    for_draws(24, &(widths(), 0..=u32::MAX, extent(50), any::<u64>()), |(width, rows, source, seed)| {
        let mut random = Random::new(seed);
        let rows = 1 + rows % (most / width).max(1);
        let x = random.f16s((source * width) as usize, 5.0);
        let index: Vec<u32> = (0..rows).map(|_| random.between(0, source - 1)).collect();
        let (x_on_gpu, index_on_gpu) = (gpu.upload_f16(&x), gpu.upload_u32(&index));
        let y = guarded(&gpu, 2 * (rows * width) as usize);
        let gather = GatherRows { rows, width, x: x_on_gpu.ptr(), index: index_on_gpu.ptr(), y: y.ptr() };
        let output = halves(&gpu.assert_same_bits_at_every_sm_count(&gather, &[&y])[0]);
        let expected = index.iter().flat_map(|&row| &x[(row * width) as usize..][..width as usize]).copied().collect::<Vec<_>>();
        assert_same_bits(format!("{rows} rows of {width}"), &output, &expected);
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn mean_pool_averages_each_sequence_and_normalises_if_asked() {
    let gpu = Gpu::open();
    let widths = prop_oneof![extent(4096), select(vec![127_u32, 256, 384, 768, 1031, 4096])];
    for normalise in [false, true] {
        for_draws(10, &(widths.clone(), vec(extent(200), 2..=40), any::<u64>()), |(width, lengths, seed)| {
            let mut random = Random::new(seed);
            let rows = lengths.len() as u32;
            // Sequences lie one after another, with a gap here and there.
            let starts: Vec<u32> = lengths
                .iter()
                .scan(0, |end, length| {
                    let start = *end + random.between(0, 2);
                    *end = start + length;
                    Some(start)
                })
                .collect();
            let tokens = starts[rows as usize - 1] + lengths[rows as usize - 1];
            let mut x = random.f16s((tokens * width) as usize, 4.0);
            // One sequence of zeros, whose average has no direction.
            x[(starts[0] * width) as usize..((starts[0] + lengths[0]) * width) as usize].fill(f16::ZERO);
            let (x_on_gpu, starts_on_gpu, lengths_on_gpu) = (gpu.upload_f16(&x), gpu.upload_u32(&starts), gpu.upload_u32(&lengths));
            let y = guarded(&gpu, 4 * (rows * width) as usize);
            let pool = MeanPool {
                rows,
                width,
                tokens,
                x: x_on_gpu.ptr(),
                starts: starts_on_gpu.ptr(),
                lengths: lengths_on_gpu.ptr(),
                normalise,
                y: y.ptr(),
            };
            let output = floats(&gpu.assert_same_bits_at_every_sm_count(&pool, &[&y])[0]);
            for (row, y) in output.chunks(width as usize).enumerate() {
                let sequence = x.chunks(width as usize).skip(starts[row] as usize).take(lengths[row] as usize);
                let mut mean = vec![0.0; width as usize];
                for token in sequence {
                    mean.iter_mut().zip(token).for_each(|(mean, &x)| *mean += f64::from(x) / f64::from(lengths[row]));
                }
                let length = mean.iter().map(|mean| mean * mean).sum::<f64>().sqrt();
                if normalise && length > 0.0 {
                    mean.iter_mut().for_each(|mean| *mean /= length);
                }
                assert_close(format!("width {width}, row {row}, normalise {normalise}"), y.iter().copied(), &mean, 1e-5);
            }
        });
    }
}

fn weights(rows: u64, columns: u64, stride: u64, distribution: Distribution, y: &Buffer) -> RandomWeights {
    RandomWeights { rows, columns, stride, distribution, y: y.ptr() }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn random_weights_are_those_of_the_cpu() {
    let gpu = Gpu::open();
    let config = smidgen::presets::find("distilbert").expect("a preset");
    let reference = smidgen::weights::RandomWeights::new(&config, 11);
    for parameter in [LayerParameter::QueryWeight, LayerParameter::KeyWeight].map(|parameter| Parameter::Layer(0, parameter)) {
        let expected: Vec<f16> = reference.f32(parameter).expect("a parameter").into_iter().map(f16::from_f32).collect();
        let key = reference.key(parameter).expect("a parameter");
        let uniform = Distribution::Uniform { key, half_width: smidgen::weights::RandomWeights::HALF_WIDTH };
        let y = guarded(&gpu, 2 * expected.len());
        let output = gpu.assert_same_bits_at_every_sm_count(&weights(1, expected.len() as u64, expected.len() as u64, uniform, &y), &[&y]);
        assert_same_bits(format!("{parameter:?}"), &halves(&output[0]), &expected);
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn random_weights_are_uniform_and_another_key_is_another_sequence() {
    const COUNT: usize = 1 << 20;
    let gpu = Gpu::open();
    let sequence = |key| {
        let y = guarded(&gpu, 2 * COUNT);
        gpu.run(&weights(1, COUNT as u64, COUNT as u64, Distribution::Uniform { key, half_width: 1.0 }, &y), gpu.sms());
        halves(&gpu.download(&y)).into_iter().map(f64::from).collect::<Vec<_>>()
    };
    let (a, b) = (sequence(1), sequence(u64::MAX));
    let moment = |values: &[f64], power| values.iter().map(|value| value.powi(power)).sum::<f64>() / COUNT as f64;
    // Of a uniform distribution over [-1, 1): mean 0, mean square 1/3, mean fourth power 1/5; five standard errors are tolerated.
    let within = 5.0 / (COUNT as f64).sqrt();
    for values in [&a, &b] {
        assert!(values.iter().all(|value| (-1.0..=1.0).contains(value)));
        for (power, expected) in [(1, 0.0), (2, 1.0 / 3.0), (3, 0.0), (4, 0.2)] {
            assert!((moment(values, power) - expected).abs() < within, "mean of power {power}: {}", moment(values, power));
        }
    }
    let products: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a * b).collect();
    let neighbours: Vec<f64> = a.iter().zip(&a[1..]).map(|(a, b)| a * b).collect();
    assert!(moment(&products, 1).abs() < within && moment(&neighbours, 1).abs() < within, "draws are correlated");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn weights_fill_their_rows_and_nothing_between() {
    let gpu = Gpu::open();
    let mut random = Random::new(10);
    for (rows, columns, gap) in [(1, 1, 0), (3, 8191, 1), (2, 8192, 0), (100, 33, 31), (7, 20_000, 12_345)] {
        let stride = columns + gap;
        let y = guarded(&gpu, 2 * (rows * stride) as usize);
        let constant = random.unit();
        let fill = weights(rows, columns, stride, Distribution::Constant(constant), &y);
        let output = halves(&gpu.assert_same_bits_at_every_sm_count(&fill, &[&y])[0]);
        for (at, value) in output.iter().enumerate() {
            let inside = at as u64 % stride < columns;
            assert_eq!(value.is_nan(), !inside, "element {at} of rows of {columns}, {stride} apart, is {value}");
            assert!(!inside || *value == f16::from_f32(constant), "element {at} is {value}, not {constant}");
        }
    }
}
