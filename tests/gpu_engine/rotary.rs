//! Rotary positions and the write to the KV cache on the GPU against f64 on the CPU.

use half::f16;
use proptest::prelude::*;
use proptest::sample::select;
use smidgen::kernels::attention::{CacheWrite, Heads, KvCache, PAGE_TOKENS, Rotary};
use smidgen_runtime::device::DevicePtr;
use smidgen_runtime::launch::Kernel;

use crate::draws::{extent, for_draws, head_dims, heads};
use crate::ieee754::{POISON, assert_as_ieee_754_says};
use crate::support::{Gpu, Random};

fn assert_same_bits(what: &str, output: &[f16], expected: &[f16]) {
    let wrong = output.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(output.len(), expected.len(), "{what}");
    assert_eq!(wrong, None, "{what}: the first wrong element");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn rotary_turns_queries_and_keys_and_fills_the_cache() {
    let gpu = Gpu::open();
    // Halves of heads on 16 bytes and not.
    let head_dim = prop_oneof![extent(128).prop_map(|pairs| 2 * pairs), (1..=16_u32).prop_map(|eighths| 16 * eighths)];
    let gaps = prop_oneof![select(vec![0_u32, 8]), 1..=9_u32];
    let draws = (heads(3, &[1, 2, 3, 4], head_dim), extent(40), gaps, any::<bool>(), any::<u64>(), select(gpu.sm_counts()));
    for_draws(40, &draws, |(heads, rows, gap, is_cached, seed, sms)| {
        let mut random = Random::new(seed);
        let (kv_heads, capacity) = (heads.kv_heads, PAGE_TOKENS);
        let stride = heads.qkv_width() + gap;
        let (head_dim, half) = (heads.head_dim as usize, heads.head_dim as usize / 2);

        let before = random.f16s((rows * stride) as usize, 2.0);
        // Every row has a place of its own in the cache; without a cache, positions are as large as models have them.
        let places: Vec<(u32, u32)> = (0..rows).map(|row| (row % 3, capacity - 1 - row / 3)).collect();
        let positions: Vec<u32> =
            places.iter().map(|&(_, position)| if is_cached { position } else { random.between(0, 131_071) }).collect();
        let sequence_of: Vec<u32> = places.iter().map(|&(sequence, _)| sequence).collect();
        let frequencies: Vec<f32> = (0..half).map(|i| 500_000_f64.powf(-(i as f64) / half as f64) as f32).collect();

        let qkv = gpu.upload_f16(&before);
        // Pages from the last to the first: sequence b's only page is page 2 - b.
        let page_table = gpu.upload_u32(&[2, 1, 0]);
        let cache_len = 3 * kv_heads as usize * capacity as usize * head_dim;
        let [k, v] = [(); 2].map(|()| gpu.poisoned_f16(cache_len));
        let [positions_on_gpu, sequence_of_on_gpu] = [&positions, &sequence_of].map(|values| gpu.upload_u32(values));
        let frequencies_on_gpu = gpu.upload_f32(&frequencies);
        let kernel = Rotary {
            heads,
            rows,
            qkv: qkv.ptr(),
            qkv_stride: stride,
            positions: positions_on_gpu.ptr(),
            inverse_frequencies: frequencies_on_gpu.ptr(),
            cache: (is_cached).then_some(KvCache { keys: k.ptr(), values: v.ptr(), page_table: page_table.ptr(), pages_per_sequence: 1 }),
            sequence_of: if is_cached { sequence_of_on_gpu.ptr() } else { DevicePtr::NULL },
        };
        gpu.run(&kernel, sms);

        let after = gpu.download_f16(&qkv);
        let mut expected_caches = [(); 2].map(|()| vec![POISON; cache_len]);
        for (row, (before, after)) in before.chunks(stride as usize).zip(after.chunks(stride as usize)).enumerate() {
            let rotated = (heads.heads + kv_heads) as usize * head_dim;
            for (at, (x, y)) in before[..rotated].chunks(head_dim).zip(after.chunks(head_dim)).enumerate() {
                for i in 0..half {
                    let (sin, cos) = f64::from(positions[row] as f32 * frequencies[i]).sin_cos();
                    let [low, high] = [x[i].to_f64(), x[i + half].to_f64()];
                    for (value, turned) in [(y[i], low * cos - high * sin), (y[i + half], high * cos + low * sin)] {
                        let error = (value.to_f64() - turned).abs();
                        assert!(error <= 2e-3, "{}: row {row}, head {at}, pair {i} is {value} and should be {turned}", kernel.key());
                    }
                }
            }
            assert_eq!(before[rotated..], after[rotated..], "{}: values or the gap of row {row} changed", kernel.key());
            let (sequence, position) = places[row];
            for head in 0..kv_heads {
                let place = ((((2 - sequence) * kv_heads + head) * capacity + position) as usize) * head_dim;
                let first = heads.heads + head;
                for (cache, of) in expected_caches.iter_mut().zip([first, first + kv_heads]) {
                    cache[place..][..head_dim].copy_from_slice(&after[of as usize * head_dim..][..head_dim]);
                }
            }
        }
        if kernel.cache.is_none() {
            expected_caches.iter_mut().for_each(|cache| cache.fill(POISON));
        }
        for (cache, expected) in [k, v].iter().zip(&expected_caches) {
            assert_same_bits(&format!("{}: the cache", kernel.key()), &gpu.download_f16(cache), expected);
        }
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn rotary_of_a_position_beyond_the_cache_leaves_the_cache_alone() {
    let gpu = Gpu::open();
    let heads = Heads { heads: 2, kv_heads: 2, head_dim: 16 };
    let qkv = gpu.upload_f16(&Random::new(12).f16s(heads.qkv_width() as usize, 1.0));
    let [k, v] = [(); 2].map(|()| gpu.poisoned_f16(2 * 64 * 16));
    let [positions, sequence_of, page_table] = [[64], [0], [0]].map(|value| gpu.upload_u32(&value));
    let inverse_frequencies = gpu.upload_f32(&[1.0; 8]);
    let kernel = Rotary {
        heads,
        rows: 1,
        qkv: qkv.ptr(),
        qkv_stride: heads.qkv_width(),
        positions: positions.ptr(),
        inverse_frequencies: inverse_frequencies.ptr(),
        cache: Some(KvCache { keys: k.ptr(), values: v.ptr(), page_table: page_table.ptr(), pages_per_sequence: 1 }),
        sequence_of: sequence_of.ptr(),
    };
    gpu.run(&kernel, gpu.sms());
    for cache in [k, v] {
        assert!(gpu.download_f16(&cache).iter().all(|value| value.is_nan()));
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_cache_write_copies_keys_and_values_and_changes_nothing_else() {
    // Two sequences of two pages each, in this order.
    const TABLE: [u32; 4] = [3, 0, 1, 2];
    const CAPACITY: u32 = 2 * PAGE_TOKENS;
    let gpu = Gpu::open();
    let gaps = prop_oneof![select(vec![0_u32, 8]), 1..=9_u32];
    let draws = (heads(3, &[1, 2, 3], head_dims()), extent(60), gaps, any::<u64>(), select(gpu.sm_counts()));
    for_draws(40, &draws, |(heads, rows, gap, seed, sms)| {
        let mut random = Random::new(seed);
        let (head_dim, stride) = (heads.head_dim as usize, (heads.qkv_width() + gap) as usize);
        let mut before = random.f16s(rows as usize * stride, 2.0);
        // What is no number is copied like all else.
        for (at, value) in [MARKED, f16::INFINITY, f16::NEG_INFINITY].into_iter().enumerate() {
            let last = before.len() - 1 - gap as usize;
            before[last.saturating_sub(at)] = value;
        }
        let qkv = gpu.upload_f16(&before);
        // No two rows have one place. One in nine has none: its position is beyond the capacity.
        let places = 2 * (CAPACITY + CAPACITY / 8);
        let first = random.between(0, places - 1);
        let place = |row: u32| (first + 37 * row) % places;
        let [sequence_of, positions] =
            [|place: u32| place % 2, |place: u32| place / 2].map(|of| (0..rows).map(|row| of(place(row))).collect::<Vec<_>>());
        let page_elements = (KvCache::page_bytes(heads) / 2) as usize;
        let pools = [(); 2].map(|()| gpu.poisoned_f16(4 * page_elements));
        let arrays = [&TABLE[..], &positions, &sequence_of].map(|values| gpu.upload_u32(values));
        let cache = KvCache { keys: pools[0].ptr(), values: pools[1].ptr(), page_table: arrays[0].ptr(), pages_per_sequence: 2 };
        let kernel = CacheWrite {
            heads,
            rows,
            qkv: qkv.ptr(),
            qkv_stride: stride as u32,
            positions: arrays[1].ptr(),
            cache,
            sequence_of: arrays[2].ptr(),
        };
        gpu.run(&kernel, sms);
        assert_same_bits(&format!("{}: the rows", kernel.key()), &gpu.download_f16(&qkv), &before);
        for (pool, first_head) in pools.iter().zip([heads.heads, heads.heads + heads.kv_heads]) {
            let mut expected = vec![POISON; 4 * page_elements];
            for (row, (&position, &sequence)) in positions.iter().zip(&sequence_of).enumerate().filter(|(_, place)| *place.0 < CAPACITY) {
                for head in 0..heads.kv_heads {
                    let page = TABLE[(sequence * 2 + position / PAGE_TOKENS) as usize];
                    let to = ((page * heads.kv_heads + head) * PAGE_TOKENS + position % PAGE_TOKENS) as usize * head_dim;
                    let from = row * stride + (first_head + head) as usize * head_dim;
                    expected[to..][..head_dim].copy_from_slice(&before[from..][..head_dim]);
                }
            }
            assert_same_bits(&format!("{}: the cache", kernel.key()), &gpu.download_f16(pool), &expected);
        }
    });
}

/// A NaN that arithmetic would not keep.
const MARKED: f16 = f16::from_bits(0x7e2a);

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn rotation_turns_what_is_no_number_as_ieee_754_says_and_the_cache_keeps_it() {
    let gpu = Gpu::open();
    for head_dim in [16_usize, 20] {
        let heads = Heads { heads: 2, kv_heads: 1, head_dim: head_dim as u32 };
        let (width, half) = (heads.qkv_width() as usize, head_dim / 2);
        // At position 0 infinity is multiplied by a sine of 0.
        let positions = [0_u32, 3, 63, 9];
        let mut before = Random::new(15).f16s(4 * width, 2.0);
        // Heads are two of queries, one of keys and one of values.
        for (row, head, column, value) in [
            (1, 0, 2, f16::NAN),
            (0, 1, 1, f16::INFINITY),
            (1, 2, 5, f16::INFINITY),
            (2, 2, half + 3, f16::NEG_INFINITY),
            (3, 2, 0, f16::NAN),
            (3, 3, 4, MARKED),
            (0, 3, 6, f16::NEG_INFINITY),
        ] {
            before[row * width + head * head_dim + column] = value;
        }
        // As long as FP16 goes: turned by 3 and by 9 radians, one of a pair is beyond it and the other is not.
        for row in [1, 3] {
            (before[row * width + head_dim], before[row * width + head_dim + half]) = (f16::MAX, f16::MAX);
        }
        let frequencies: Vec<f32> = (0..half).map(|pair| 0.5_f32.powi(pair as i32)).collect();
        let qkv = gpu.upload_f16(&before);
        let pools = [(); 2].map(|()| gpu.poisoned_f16(4 * (KvCache::page_bytes(heads) / 2) as usize));
        let words = [&positions, &[0, 1, 2, 3]].map(|words| gpu.upload_u32(words));
        let frequencies_on_gpu = gpu.upload_f32(&frequencies);
        let kernel = Rotary {
            heads,
            rows: 4,
            qkv: qkv.ptr(),
            qkv_stride: width as u32,
            positions: words[0].ptr(),
            inverse_frequencies: frequencies_on_gpu.ptr(),
            cache: Some(KvCache { keys: pools[0].ptr(), values: pools[1].ptr(), page_table: words[1].ptr(), pages_per_sequence: 1 }),
            sequence_of: words[1].ptr(),
        };
        gpu.run(&kernel, gpu.sms());
        let after = gpu.download_f16(&qkv);
        let mut expected: Vec<f64> = before.iter().map(|value| value.to_f64()).collect();
        for (row, &position) in expected.chunks_mut(width).zip(&positions) {
            for head in row[..3 * head_dim].chunks_mut(head_dim) {
                for (pair, &frequency) in frequencies.iter().enumerate() {
                    let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                    let (low, high) = (head[pair], head[pair + half]);
                    (head[pair], head[pair + half]) = (low * cos - high * sin, high * cos + low * sin);
                }
            }
        }
        let what = kernel.key().to_string();
        assert_as_ieee_754_says(&what, &after, &expected);
        for (row, &position) in positions.iter().enumerate() {
            for (pool, head) in pools.iter().zip([2, 3]) {
                let kept = gpu.download_f16(pool);
                let place = (row * PAGE_TOKENS as usize + position as usize) * head_dim;
                let rotated = &after[row * width + head * head_dim..][..head_dim];
                assert_same_bits(&format!("{what}: the cache, row {row}"), &kept[place..][..head_dim], rotated);
            }
            let values = row * width + 3 * head_dim..(row + 1) * width;
            assert_same_bits(&format!("{what}: values of row {row}"), &after[values.clone()], &before[values]);
        }
    }
}
