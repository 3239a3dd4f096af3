//! Kernels that memory bounds, and a few others, while their grant changes: the bits of a run that nobody disturbs. GEMMs of many rows are in `elastic.rs`, attention beside its
//! other tests.

use half::f16;
use smidgen::kernels::attention::{CacheWrite, Heads, KvCache, Rotary};
use smidgen::kernels::embedding::{Embed, EmbedNorm, PositionTable};
use smidgen::kernels::gemm::{Epilogue, Gemm, RowNorm};
use smidgen::kernels::norm::{Norm, NormKind};
use smidgen::kernels::pooling::{GatherRows, MeanPool};
use smidgen::kernels::random::{Distribution, RandomWeights};
use smidgen::kernels::sampling::SampleParams;
use smidgen::kernels::unfold::{UnfoldPatches, UnfoldTokens};
use smidgen_runtime::device::{Buffer, DevicePtr, Sms};
use smidgen_runtime::launch::{Kernel, TilesArg};

use crate::elastic::{Grant, epoch};
use crate::support::{Gpu, Random, is_sanitized, rounds};
use crate::{deberta, qkv, sampling};

/// SMs on which launches of a few megabytes are long.
const FEW: u16 = 8;

/// `usual`, and a sixteenth of it under compute-sanitizer.
fn sized(usual: u32) -> u32 {
    if is_sanitized() { usual.div_ceil(16) } else { usual }
}

/// Random halves, made where they stay: on the host they would take longer than the test.
fn made_at_random(gpu: &Gpu, elements: u64) -> Buffer {
    let y = gpu.poisoned_f16(elements as usize);
    let distribution = Distribution::Uniform { key: elements, half_width: 1.0 };
    gpu.run(&RandomWeights { rows: 1, columns: elements, stride: elements, distribution, y: y.ptr() }, gpu.sms());
    y
}

/// What a kernel reads and writes, and what it held before.
type InPlace<'a> = Option<(&'a Buffer, &'a [u8])>;

/// Runs `kernel` with a grid for `few` SMs, on which it must be elastic, and with one for all, while its grant changes at random.
fn assert_same_bits(gpu: &Gpu, kernel: &dyn Kernel, outputs: &[&Buffer], in_place: InPlace, few: u16) {
    let run = |how: &dyn Fn()| -> Vec<Vec<u8>> {
        outputs.iter().for_each(|output| gpu.poison(output));
        if let Some((buffer, before)) = in_place {
            gpu.device().upload(gpu.stream(), buffer.ptr(), before).expect("an upload");
        }
        how();
        outputs.iter().copied().chain(in_place.map(|(buffer, _)| buffer)).map(|output| gpu.download(output)).collect()
    };
    let undisturbed = run(&|| gpu.run(kernel, gpu.sms()));
    let grant = Grant::new(gpu, [u32::MAX; 8]);
    for sms in [few, gpu.sms()] {
        let mut launch = kernel.configure(Sms(sms), gpu.device().topology()).expect("a supported shape");
        assert!(launch.elastic || sms != few || is_sanitized(), "{} is not elastic on {few} SMs", kernel.key());
        launch.elastic = true;
        for round in 0..rounds(10) {
            let disturbed = run(&|| {
                grant.set_at_random_during(gpu, round.into(), || {
                    gpu.enqueue(kernel, &launch, gpu.stream(), TilesArg { grant: grant.words(), ..gpu.tiles(&launch) });
                    gpu.device().synchronize(gpu.stream()).expect("the kernel runs");
                });
            });
            assert!(disturbed == undisturbed, "{} with a grid for {sms} SMs, round {round}: the output differs", kernel.key());
            epoch(gpu);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn products_of_few_rows_have_the_same_bits_while_their_grant_changes() {
    let gpu = Gpu::open();
    // Single blocks, halves of k, pairs; with 64 rows pairs, and single blocks that norm them.
    for ([m, n, k], is_normed) in [
        ([8, 128_256, 2048], false),
        ([1, 28_672, 4096], true),
        ([32, 32_000, 4096], false),
        ([64, 8192, 8192], false),
        ([64, 32_000, 4096], true),
    ] {
        let [n, k] = if is_sanitized() { [n.min(4096), k.min(1024)] } else { [n, k] };
        let [a, b] = [m, n].map(|rows| made_at_random(&gpu, u64::from(rows) * u64::from(k)));
        let c = gpu.poisoned_f16((m * n) as usize);
        let row_norm = is_normed.then_some(RowNorm { epsilon: 1e-5 });
        let gemm = Gemm { row_norm, ..Gemm::new([m, n, k], a.ptr(), b.ptr(), c.ptr(), Epilogue::NONE) };
        if is_normed && !gemm.can_norm_rows(gpu.device().topology()) {
            continue;
        }
        assert_same_bits(&gpu, &gemm, &[&c], None, FEW);
    }
}

/// On all SMs no decoder's queries, keys and values take as long as a reaction, so it is few on which they poll.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn queries_keys_and_values_have_the_same_bits_while_their_grant_changes() {
    let gpu = Gpu::open();
    let mut random = Random::new(51);
    for (rows, few) in [(8, 4), (60, 4)] {
        let heads = Heads { heads: sized(32), kv_heads: sized(8), head_dim: 128 };
        let problem = qkv::Problem::new(&gpu, &mut random, heads, [rows, 1024], true, true);
        if problem.kernel.can_be_one_launch(gpu.device().topology()) {
            assert_same_bits(&gpu, &problem.kernel, &[&problem.c, &problem.keys, &problem.values], None, few);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn long_norms_embeddings_and_pools_have_the_same_bits_while_their_grant_changes() {
    let gpu = Gpu::open();
    let mut random = Random::new(52);
    let (rows, width) = (sized(2048), 4096);
    let [x, weight, bias] = [rows, 1, 1].map(|rows| made_at_random(&gpu, u64::from(rows * width)));
    let [y, sum] = [(); 2].map(|()| gpu.poisoned_f16((rows * width) as usize));
    for kind in [NormKind::Layer, NormKind::Rms] {
        let norm = Norm {
            kind,
            rows,
            width,
            epsilon: 1e-5,
            x: x.ptr(),
            index: DevicePtr::NULL,
            residual: DevicePtr::NULL,
            sum: DevicePtr::NULL,
            weight: weight.ptr(),
            bias: if kind == NormKind::Layer { bias.ptr() } else { DevicePtr::NULL },
            y: y.ptr(),
        };
        assert_same_bits(&gpu, &norm, &[&y], None, FEW);
    }
    // The rows of `x` are the words and the positions of the embedding, too, and what is picked and averaged.
    let indices = gpu.upload_u32(&(0..rows).map(|_| random.between(0, rows - 1)).collect::<Vec<_>>());
    let embed = Embed {
        rows,
        width,
        vocabulary: rows,
        ids: indices.ptr(),
        words: x.ptr(),
        positions: Some(PositionTable { positions: indices.ptr(), table: x.ptr(), entries: rows }),
        type_table: DevicePtr::NULL,
        sum: sum.ptr(),
        norm: Some(EmbedNorm { kind: NormKind::Layer, weight: weight.ptr(), bias: bias.ptr(), epsilon: 1e-5 }),
        y: y.ptr(),
    };
    assert_same_bits(&gpu, &embed, &[&y, &sum], None, FEW);
    assert_same_bits(&gpu, &GatherRows { rows, width, x: x.ptr(), index: indices.ptr(), y: y.ptr() }, &[&y], None, FEW);
    let sequences = rows / 16;
    let [starts, lengths] = [|i: u32| 16 * i, |i: u32| 1 + i % 16].map(|of| gpu.upload_u32(&(0..sequences).map(of).collect::<Vec<_>>()));
    let averages = gpu.poisoned_f32((sequences * width) as usize);
    let pool = MeanPool {
        rows: sequences,
        width,
        tokens: rows,
        x: x.ptr(),
        starts: starts.ptr(),
        lengths: lengths.ptr(),
        normalise: true,
        y: averages.ptr(),
    };
    assert_same_bits(&gpu, &pool, &[&averages], None, FEW);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn draws_have_the_same_tokens_while_their_grant_changes() {
    let gpu = Gpu::open();
    let mut random = Random::new(53);
    let logits: Vec<Vec<f32>> = (0..16).map(|_| random.f32s(sized(32_000) as usize, 20.0)).collect();
    // Greedy rows, and such that are cut to the top k, to the top p, or to both.
    let params: Vec<SampleParams> = (0..16)
        .map(|row: u32| SampleParams {
            temperature: if row.is_multiple_of(4) { 0.0 } else { 1.0 },
            top_p: if row % 4 > 1 { 0.9 } else { 1.0 },
            top_k: 50 * (row % 2),
            draw: (row as f32 + 0.5) / 16.0,
        })
        .collect();
    let batch = sampling::Batch::new(&gpu, &logits, &params);
    assert_same_bits(&gpu, &batch.kernel(), &[&batch.tokens], None, FEW);
    assert!(gpu.download_u32(&batch.arrivals).iter().all(|&arrivals| arrivals == 0), "the kernel left its counters behind");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn attention_with_distances_has_the_same_bits_while_its_grant_changes() {
    let gpu = Gpu::open();
    let mut random = Random::new(54);
    let longest = if is_sanitized() { 130 } else { 512 };
    // Hopper's kernel, and the portable one.
    for (heads, head_dim) in [(12, 64), (12, 20)] {
        let batch = deberta::Batch {
            heads: sized(heads),
            head_dim,
            lengths: vec![longest, longest - 1, longest / 2, longest],
            padded_to: None,
            reach: 512,
            content_to_position: true,
            position_to_content: true,
            gaps: [0; 3],
            spread: 1.0,
        };
        let attention = deberta::Attention::new(&gpu, &mut random, batch);
        assert_same_bits(&gpu, &attention.kernel, &[&attention.output], None, FEW);
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn rotation_and_cache_write_have_the_same_bits_while_their_grant_changes() {
    const SEQUENCES: u32 = 32;
    let gpu = Gpu::open();
    let mut random = Random::new(55);
    let heads = Heads { heads: 8, kv_heads: 4, head_dim: 128 };
    let (rows, stride) = (sized(2048), heads.qkv_width());
    let before: Vec<u8> = random.f16s((rows * stride) as usize, 2.0).into_iter().flat_map(f16::to_le_bytes).collect();
    let qkv = gpu.upload(&before);
    let numbers = |of: &dyn Fn(u32) -> u32, count: u32| gpu.upload_u32(&(0..count).map(of).collect::<Vec<_>>());
    let [positions, sequence_of] = [numbers(&|row| row / SEQUENCES, rows), numbers(&|row| row % SEQUENCES, rows)];
    let page_table = numbers(&|page| SEQUENCES - 1 - page, SEQUENCES);
    let inverse_frequencies = gpu.upload_f32(&(0..64).map(|i| 10_000_f32.powf(-(i as f32) / 64.0)).collect::<Vec<_>>());
    let [keys, values] = [(); 2].map(|()| gpu.poisoned(SEQUENCES as usize * KvCache::page_bytes(heads) as usize));
    let cache = KvCache { keys: keys.ptr(), values: values.ptr(), page_table: page_table.ptr(), pages_per_sequence: 1 };
    let rotary = Rotary {
        heads,
        rows,
        qkv: qkv.ptr(),
        qkv_stride: stride,
        positions: positions.ptr(),
        inverse_frequencies: inverse_frequencies.ptr(),
        cache: Some(cache),
        sequence_of: sequence_of.ptr(),
    };
    assert_same_bits(&gpu, &rotary, &[&keys, &values], Some((&qkv, &before)), FEW);
    let write =
        CacheWrite { heads, rows, qkv: qkv.ptr(), qkv_stride: stride, positions: positions.ptr(), cache, sequence_of: sequence_of.ptr() };
    assert_same_bits(&gpu, &write, &[&keys, &values], None, FEW);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn unfolding_and_random_weights_have_the_same_bits_while_their_grant_changes() {
    let gpu = Gpu::open();
    let (images, channels, image_size, patch_size, stride) = (sized(16), 3, 224, 16, 768);
    let pixels = made_at_random(&gpu, u64::from(images * channels * image_size * image_size));
    let unfolded = gpu.poisoned_f16((images * 197 * stride) as usize);
    let patches = UnfoldPatches { images, channels, image_size, patch_size, stride, pixels: pixels.ptr(), y: unfolded.ptr() };
    assert_same_bits(&gpu, &patches, &[&unfolded], None, FEW);

    let (sequences, max_length, hidden, width) = (sized(16), 128, 768, 3);
    let x = made_at_random(&gpu, u64::from(sequences * max_length * hidden));
    let y = gpu.poisoned_f16((sequences * max_length * hidden * width) as usize);
    let [starts, lengths] = [|i: u32| 128 * i, |i: u32| 128 - i].map(|of| gpu.upload_u32(&(0..sequences).map(of).collect::<Vec<_>>()));
    let tokens = (0..sequences).map(|i| 128 - i).sum();
    let neighbours =
        UnfoldTokens { sequences, max_length, tokens, hidden, width, x: x.ptr(), starts: starts.ptr(), lengths: lengths.ptr(), y: y.ptr() };
    assert_same_bits(&gpu, &neighbours, &[&y], None, FEW);

    let (rows, columns, stride) = (sized(512).into(), 4000, 4096);
    let weights = gpu.poisoned_f16((rows * stride) as usize);
    let distribution = Distribution::Uniform { key: 7, half_width: 0.05 };
    assert_same_bits(&gpu, &RandomWeights { rows, columns, stride, distribution, y: weights.ptr() }, &[&weights], None, FEW);
}
