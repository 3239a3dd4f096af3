//! Rotary positions and the write to the KV cache on the GPU against f64 on the CPU.

use half::f16;
use smidgen::kernels::attention::{CacheWrite, Heads, KvCache, PAGE_TOKENS, Rotary};
use smidgen_runtime::device::DevicePtr;
use smidgen_runtime::launch::Kernel;

use crate::support::{Gpu, Random, rounds};

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn rotary_turns_queries_and_keys_and_fills_the_cache() {
    let gpu = Gpu::open();
    let mut random = Random::new(11);
    for round in 0..rounds(40) {
        let kv_heads = random.between(1, 3);
        let heads = Heads { heads: kv_heads * random.between(1, 4), kv_heads, head_dim: 2 * random.between(1, 128) };
        let [rows, capacity] = [random.between(1, 40), PAGE_TOKENS];
        let stride = heads.qkv_width() + random.between(0, 5);
        let sms = *random.pick(&gpu.sm_counts());
        let (head_dim, half) = (heads.head_dim as usize, heads.head_dim as usize / 2);

        let before = random.f16s((rows * stride) as usize, 2.0);
        // Every row has a place of its own in the cache; without a cache, positions are as large as models have them.
        let places: Vec<(u32, u32)> = (0..rows).map(|row| (row % 3, capacity - 1 - row / 3)).collect();
        let positions: Vec<u32> =
            places.iter().map(|&(_, position)| if round % 2 == 0 { position } else { random.between(0, 131_071) }).collect();
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
            cache: (round % 2 == 0).then_some(KvCache {
                keys: k.ptr(),
                values: v.ptr(),
                page_table: page_table.ptr(),
                pages_per_sequence: 1,
            }),
            sequence_of: if round % 2 == 0 { sequence_of_on_gpu.ptr() } else { DevicePtr::NULL },
        };
        gpu.run(&kernel, sms);

        let after = gpu.download_f16(&qkv);
        let mut expected_caches = [(); 2].map(|()| vec![f16::from_bits(0xffff); cache_len]);
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
            expected_caches.iter_mut().for_each(|cache| cache.fill(f16::from_bits(0xffff)));
        }
        for (cache, expected) in [k, v].iter().zip(&expected_caches) {
            let same = gpu.download_f16(cache).iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: the cache is not what was rotated", kernel.key());
        }
    }
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
    let gpu = Gpu::open();
    let mut random = Random::new(14);
    for (head_dim, gap) in [(64, 0), (128, 8), (20, 0), (33, 1), (80, 0)] {
        let heads = Heads { heads: 6, kv_heads: 3, head_dim };
        let stride = heads.qkv_width() + gap;
        let before = random.f16s((5 * stride) as usize, 2.0);
        let qkv = gpu.upload_f16(&before);
        // Two sequences of two pages each, in this order; the last row has no place in the cache.
        let table = [3, 0, 1, 2];
        let (positions, sequence_of) = ([0, 63, 64, 70, 128], [0, 1, 0, 1, 0]);
        let page_elements = (KvCache::page_bytes(heads) / 2) as usize;
        let pools = [(); 2].map(|()| gpu.poisoned_f16(4 * page_elements));
        let arrays = [&table[..], &positions, &sequence_of].map(|values| gpu.upload_u32(values));
        let cache = KvCache { keys: pools[0].ptr(), values: pools[1].ptr(), page_table: arrays[0].ptr(), pages_per_sequence: 2 };
        let kernel = CacheWrite {
            heads,
            rows: 5,
            qkv: qkv.ptr(),
            qkv_stride: stride,
            positions: arrays[1].ptr(),
            cache,
            sequence_of: arrays[2].ptr(),
        };
        gpu.run(&kernel, gpu.sms());
        assert_eq!(gpu.download_f16(&qkv), before);
        for (pool, first_head) in pools.iter().zip([6, 9]) {
            let mut expected = vec![f16::from_bits(0xffff); 4 * page_elements];
            for (row, (&position, &sequence)) in positions.iter().zip(&sequence_of).enumerate().take(4) {
                for head in 0..3 {
                    let page = table[(sequence * 2 + position / PAGE_TOKENS) as usize];
                    let to = (((page * 3 + head) * PAGE_TOKENS + position % PAGE_TOKENS) * head_dim) as usize;
                    let from = row * stride as usize + ((first_head + head) * head_dim) as usize;
                    expected[to..][..head_dim as usize].copy_from_slice(&before[from..][..head_dim as usize]);
                }
            }
            let same = gpu.download_f16(pool).iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "heads of {head_dim} columns: the cache is not what was in the rows");
        }
    }
}
