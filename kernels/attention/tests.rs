//! Launches and refusals of the attention kernels, which need no GPU to be checked.

use smidgen_runtime::device::{DevicePtr, Sms};
use smidgen_runtime::launch::{Kernel, LaunchError, TensorMap, Work};

use super::super::testing::h200;
use super::*;

const LLAMA: Heads = Heads { heads: 32, kv_heads: 8, head_dim: 64 };

const CACHE: KvCache = KvCache { keys: DevicePtr(512), values: DevicePtr(1024), page_table: DevicePtr(2048), pages_per_sequence: 8 };

fn prefill(heads: Heads) -> AttentionPrefill {
    AttentionPrefill {
        heads,
        sequences: 8,
        max_length: 100,
        tokens: 640,
        rows: 800,
        causal: true,
        window: 0,
        scale: 0.125,
        qkv: DevicePtr(256),
        qkv_stride: heads.qkv_width(),
        output: DevicePtr(512),
        output_stride: heads.output_width(),
        starts: DevicePtr(1024),
        lengths: DevicePtr(2048),
    }
}

fn decode(heads: Heads) -> AttentionDecode {
    AttentionDecode {
        heads,
        sequences: 8,
        context: 129,
        window: 0,
        scale: 0.125,
        qkv: DevicePtr(256),
        qkv_stride: heads.qkv_width(),
        cache: CACHE,
        output: DevicePtr(2048),
        output_stride: heads.output_width(),
        lengths: DevicePtr(4096),
        workspace: DevicePtr(8192),
    }
}

fn chunk(heads: Heads) -> AttentionChunk {
    AttentionChunk {
        heads,
        chunks: 3,
        max_length: 100,
        tokens: 150,
        rows: 160,
        context: 200,
        window: 0,
        scale: 0.125,
        qkv: DevicePtr(256),
        qkv_stride: heads.qkv_width(),
        cache: CACHE,
        output: DevicePtr(2048),
        output_stride: heads.output_width(),
        starts: DevicePtr(4096),
        lengths: DevicePtr(4112),
        contexts: DevicePtr(4128),
        sequence_of: DevicePtr(4144),
    }
}

fn rotary(heads: Heads) -> Rotary {
    Rotary {
        heads,
        rows: 8,
        qkv: DevicePtr(256),
        qkv_stride: heads.qkv_width(),
        positions: DevicePtr(512),
        inverse_frequencies: DevicePtr(1024),
        cache: None,
        sequence_of: DevicePtr::NULL,
    }
}

fn cache_write(heads: Heads) -> CacheWrite {
    CacheWrite {
        heads,
        rows: 8,
        qkv: DevicePtr(256),
        qkv_stride: heads.qkv_width(),
        positions: DevicePtr(512),
        cache: CACHE,
        sequence_of: DevicePtr(1024),
    }
}

fn assert_refused(kernel: &dyn Kernel, reason: &str) {
    match kernel.configure(Sms(132), &h200()) {
        Err(LaunchError::Unsupported { reason: said, .. }) => assert!(said.contains(reason), "`{said}` should name `{reason}`"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn turning_and_caching_rows_polls_the_grant_where_it_is_long() {
    const MISTRAL: Heads = Heads { heads: 32, kv_heads: 8, head_dim: 128 };
    let elastic = |kernel: &dyn Kernel, sms| kernel.configure(Sms(sms), &h200()).unwrap().elastic;
    let turned = |rows, sms| elastic(&Rotary { rows, cache: Some(CACHE), ..rotary(MISTRAL) }, sms);
    // On an H200: 70 us, 814, and a few.
    assert_eq!([(8192, 132), (8192, 8), (512, 132), (8, 2)].map(|(rows, sms)| turned(rows, sms)), [true, true, false, false]);
    let written = |rows, sms| elastic(&CacheWrite { rows, ..cache_write(MISTRAL) }, sms);
    assert_eq!([(16_384, 132), (8192, 8), (8192, 132)].map(|(rows, sms)| written(rows, sms)), [true, true, false]);
    // Element by element.
    let slowly = Rotary { rows: 2048, qkv: DevicePtr(258), ..rotary(MISTRAL) };
    assert!(elastic(&slowly, 132) && !elastic(&Rotary { qkv: DevicePtr(256), ..slowly }, 132));
}

#[test]
fn keys_name_the_kind_of_attention_and_its_shape() {
    assert_eq!(prefill(LLAMA).key().to_string(), "attention_causal[8x100x32x8x64]f16");
    assert_eq!(AttentionPrefill { causal: false, ..prefill(LLAMA) }.key().to_string(), "attention_bidirectional[8x100x32x8x64]f16");
    assert_eq!(AttentionPrefill { window: 16, ..prefill(LLAMA) }.key().to_string(), "attention_causal[8x100x32x8x64x16]f16");
    assert_eq!(chunk(LLAMA).key().to_string(), "attention_chunk[3x100x32x8x64x256]f16");
    assert_eq!(rotary(LLAMA).key().to_string(), "rotary[8x32x8x64]f16");
    assert_eq!(cache_write(LLAMA).key().to_string(), "cache_write[8x8x64]f16");
}

#[test]
fn a_growing_sequence_keeps_its_decode_key_until_it_doubles() {
    let key = |context| AttentionDecode { context, ..decode(LLAMA) }.key();
    assert_eq!(key(129), key(256));
    assert_ne!(key(256), key(257));
    assert_eq!(key(200).to_string(), "attention_decode[8x32x8x64x256]f16");
}

#[test]
fn any_head_size_runs_on_the_next_larger_compiled_one() {
    for (head_dim, suffix) in [(1, "d32"), (20, "d32"), (33, "d64"), (64, "d64"), (72, "d80"), (96, "d96"), (112, "d128"), (256, "d256")] {
        let heads = Heads { head_dim, ..LLAMA };
        for kernel in [&prefill(heads) as &dyn Kernel, &decode(heads), &chunk(heads)] {
            let launch = kernel.configure(Sms(132), &h200()).unwrap();
            assert!(launch.symbol.ends_with(suffix), "{head_dim}: {}", launch.symbol);
        }
    }
}

#[test]
fn prefill_uses_what_the_gpu_has_and_rows_allow() {
    let ampere = Topology { compute_capability: (8, 0), ..h200() };
    let symbol = |kernel: AttentionPrefill, gpu: &Topology| kernel.configure(Sms(132), gpu).unwrap().symbol;
    let long = AttentionPrefill { max_length: 1000, ..prefill(LLAMA) };
    assert_eq!(symbol(long, &h200()), "attention_prefill_wgmma_d64");
    assert_eq!(symbol(prefill(LLAMA), &h200()), "attention_prefill_short_d64");
    for (off_16_bytes, gpu) in [
        (long, &ampere),
        (AttentionPrefill { qkv: DevicePtr(258), ..long }, &h200()),
        (AttentionPrefill { output_stride: 2049, ..long }, &h200()),
        (AttentionPrefill { qkv_stride: 3076, ..prefill(LLAMA) }, &h200()),
    ] {
        assert_eq!(symbol(off_16_bytes, gpu), "attention_prefill_d64");
    }
}

#[test]
fn chunks_use_what_the_gpu_has_and_rows_allow_whatever_their_lengths() {
    let ampere = Topology { compute_capability: (8, 0), ..h200() };
    let symbol = |kernel: AttentionChunk, gpu: &Topology| kernel.configure(Sms(132), gpu).unwrap().symbol;
    for max_length in [1, 100, 5000] {
        assert_eq!(symbol(AttentionChunk { max_length, ..chunk(LLAMA) }, &h200()), "attention_chunk_wgmma_d64");
    }
    assert_eq!(symbol(chunk(Heads { head_dim: 40, ..LLAMA }), &h200()), "attention_chunk_wgmma_d64");
    for (off_16_bytes, gpu) in [
        (chunk(LLAMA), &ampere),
        (AttentionChunk { qkv: DevicePtr(258), ..chunk(LLAMA) }, &h200()),
        (AttentionChunk { output: DevicePtr(2052), ..chunk(LLAMA) }, &h200()),
        (AttentionChunk { output_stride: 2049, ..chunk(LLAMA) }, &h200()),
        (AttentionChunk { qkv_stride: 3076, ..chunk(LLAMA) }, &h200()),
        (chunk(Heads { head_dim: 60, ..LLAMA }), &h200()),
    ] {
        assert_eq!(symbol(off_16_bytes, gpu), "attention_chunk_d64");
    }
}

#[test]
fn the_copy_engine_reaches_every_page_of_a_pool_and_nothing_past_the_rows_of_qkv() {
    for (heads, kv_heads, head_dim) in [(32, 8, 128), (8, 8, 8), (4, 1, 256), (64, 64, 72)] {
        let launch = chunk(Heads { heads, kv_heads, head_dim }).configure(Sms(132), &h200()).unwrap();
        let maps: Vec<TensorMap> = launch.params.tensor_maps().map(|(_, map)| *map).collect();
        let [rows, keys, values] = maps[..] else { panic!("{maps:?}") };
        assert_eq!((rows.ptr, rows.sizes[1]), (DevicePtr(256), 160));
        assert_eq!([keys.ptr, values.ptr], [CACHE.keys, CACHE.values]);
        // Page p, head h is part p * kv_heads + h: 64 rows side by side, and one part after another.
        let part = 2 * 64 * u64::from(head_dim);
        assert_eq!((keys.sizes[..2].to_vec(), keys.strides[..2].to_vec()), (vec![u64::from(head_dim), 64], vec![part / 64, part]));
        assert!(keys.sizes[2] * part > 256 << 30 && keys.sizes[2] <= 1 << 32, "{keys:?}");
    }
}

#[test]
fn prefill_is_elastic_where_its_sms_are_busy_for_long() {
    let elastic = |length, sms| {
        let kernel = AttentionPrefill { max_length: length, tokens: 8 * length, rows: 8 * length, ..prefill(LLAMA) };
        kernel.configure(Sms(sms), &h200()).unwrap().elastic
    };
    assert!(elastic(4096, 132));
    assert!(!elastic(128, 132));
    assert!(elastic(128, 2));
}

#[test]
fn tiles_are_counted_by_the_longest_length_and_by_groups_of_query_heads() {
    let tiles = |kernel: &dyn Kernel| kernel.configure(Sms(132), &h200()).unwrap().tiles;
    let ampere = Topology { compute_capability: (8, 0), ..h200() };
    assert_eq!(prefill(LLAMA).configure(Sms(132), &ampere).unwrap().tiles, 8 * 32 * 2);
    assert_eq!(tiles(&prefill(LLAMA)), 8 * 32);
    assert_eq!(tiles(&AttentionPrefill { max_length: 129, ..prefill(LLAMA) }), 8 * 32 * 3);
    assert_eq!(tiles(&prefill(Heads { head_dim: 128, ..LLAMA })), 8 * 32);
    assert_eq!(chunk(LLAMA).configure(Sms(132), &ampere).unwrap().tiles, 3 * 32 * 2);
    assert_eq!(tiles(&chunk(LLAMA)), 3 * 32 * 2);
    assert_eq!(tiles(&chunk(Heads { head_dim: 128, ..LLAMA })), 3 * 32);
    assert_eq!(tiles(&AttentionChunk { max_length: 129, ..chunk(Heads { head_dim: 128, ..LLAMA }) }), 3 * 32 * 2);
    // 8 pages are one chunk.
    assert_eq!(tiles(&decode(LLAMA)), 8 * 8);
    assert_eq!(tiles(&decode(Heads { heads: 40, kv_heads: 2, head_dim: 64 })), 8 * 2 * 3);
    // 64 pages are 4 chunks: 256 in all.
    let cache = KvCache { pages_per_sequence: 64, ..CACHE };
    assert_eq!(tiles(&AttentionDecode { context: 4096, cache, ..decode(LLAMA) }), 8 * 8 * 4);
    assert_eq!(tiles(&AttentionDecode { context: 4096, sequences: 64, cache, ..decode(LLAMA) }), 64 * 8 * 2);
}

#[test]
fn decode_uses_the_copy_engine_where_there_is_one_and_it_can_reach_the_rows() {
    let symbol = |kernel: AttentionDecode, gpu: &Topology| kernel.configure(Sms(132), gpu).unwrap().symbol;
    assert_eq!(symbol(decode(LLAMA), &h200()), "attention_decode_bulk_d64");
    assert_eq!(symbol(AttentionDecode { qkv_stride: 3073, ..decode(LLAMA) }, &h200()), "attention_decode_d64");
    assert_eq!(symbol(AttentionDecode { qkv: DevicePtr(264), ..decode(LLAMA) }, &h200()), "attention_decode_d64");
    assert_eq!(symbol(decode(Heads { head_dim: 72, ..LLAMA }), &h200()), "attention_decode_d80");
    let ampere = Topology { compute_capability: (8, 0), shared_bytes_per_sm: 164 << 10, ..h200() };
    assert_eq!(symbol(decode(LLAMA), &ampere), "attention_decode_d64");
}

#[test]
fn decode_launches_no_blocks_for_chunks_that_are_not_expected() {
    let cache = KvCache { pages_per_sequence: 64, ..CACHE };
    let grid = |context| AttentionDecode { context, cache, ..decode(LLAMA) }.configure(Sms(132), &h200()).unwrap().grid;
    assert_eq!(grid(100), 8 * 8);
    assert_eq!(grid(4096), 8 * 8 * 4);
}

#[test]
fn decode_polls_its_grant_only_where_it_runs_for_long_and_has_chunks_to_leave_to_others() {
    let cache = KvCache { pages_per_sequence: 512, ..CACHE };
    let elastic = |sequences, context, sms| {
        AttentionDecode { sequences, context, cache, ..decode(LLAMA) }.configure(Sms(sms), &h200()).unwrap().elastic
    };
    assert!(!elastic(8, 128, 132));
    // 256 chunks, and room for 528 blocks.
    assert!(!elastic(8, 8192, 132));
    assert!(elastic(8, 4096, 32));
    assert!(elastic(8, 32_768, 132));
    assert!(elastic(64, 4096, 132));
}

#[test]
fn grids_stay_within_what_the_granted_sms_hold() {
    for head_dim in [32, 64, 80, 96, 128, 256] {
        for sms in [1, 2, 34, 132] {
            let heads = Heads { head_dim, ..LLAMA };
            for kernel in [&prefill(heads) as &dyn Kernel, &decode(heads), &chunk(heads), &rotary(heads), &cache_write(heads)] {
                let launch = kernel.configure(Sms(sms), &h200()).unwrap();
                assert!(launch.grid >= 1 && launch.grid <= u32::from(sms) * launch.blocks_per_sm, "{}", launch.symbol);
                assert!(launch.grid <= launch.tiles);
            }
        }
    }
}

#[test]
fn shapes_that_no_kernel_can_do_are_refused_with_what_would_fit() {
    assert_refused(&prefill(Heads { head_dim: 257, ..LLAMA }), "1 to 256 columns, not 257");
    assert_refused(&decode(Heads { head_dim: 0, ..LLAMA }), "1 to 256 columns, not 0");
    assert_refused(&prefill(Heads { kv_heads: 5, ..LLAMA }), "32 query heads cannot share 5 key heads");
    assert_refused(&decode(Heads { kv_heads: 0, ..LLAMA }), "cannot share 0 key heads");
    assert_refused(&AttentionPrefill { qkv_stride: 3071, ..prefill(LLAMA) }, "3072 columns wide");
    assert_refused(&AttentionDecode { output_stride: 2047, ..decode(LLAMA) }, "2048 columns wide");
    assert_refused(&AttentionPrefill { scale: -1.0, ..prefill(LLAMA) }, "positive");
    assert_refused(&AttentionPrefill { rows: 0, ..prefill(LLAMA) }, "must have rows");
    assert_refused(&AttentionPrefill { sequences: 0, ..prefill(LLAMA) }, "must be a sequence");
    assert_refused(&rotary(Heads { head_dim: 15, ..LLAMA }), "must be even");
    assert_refused(&AttentionDecode { cache: KvCache { pages_per_sequence: 0, ..CACHE }, ..decode(LLAMA) }, "1 to 16777216 pages, not 0");
    assert_refused(&AttentionDecode { cache: KvCache { values: DevicePtr(1032), ..CACHE }, ..decode(LLAMA) }, "on 16 bytes");
    assert_refused(&AttentionChunk { chunks: 0, ..chunk(LLAMA) }, "must be a chunk");
    assert_refused(&AttentionChunk { rows: 0, ..chunk(LLAMA) }, "must have rows");
    assert_refused(&cache_write(Heads { head_dim: 300, ..LLAMA }), "1 to 256 columns");
    assert_refused(&CacheWrite { rows: 0, ..cache_write(LLAMA) }, "no rows");
    assert_refused(&AttentionDecode { sequences: 4097, ..decode(LLAMA) }, "32776 groups of query heads");
    assert_refused(&prefill(Heads { heads: u32::MAX, kv_heads: 1, head_dim: 256 }), "longer than");
}

#[test]
fn a_gpu_with_too_little_shared_memory_is_an_error_and_not_a_failing_launch() {
    let small = Topology { shared_bytes_per_sm: 100 << 10, compute_capability: (8, 9), ..h200() };
    assert!(decode(LLAMA).configure(Sms(8), &small).is_ok());
    let error = decode(Heads { head_dim: 256, ..LLAMA }).configure(Sms(8), &small).unwrap_err();
    assert!(error.to_string().contains("bytes of shared memory"), "{error}");
}

#[test]
fn work_counts_what_the_masks_leave() {
    assert_eq!(chunk(LLAMA).work(), Work { flops: 4 * 32 * 64 * 150 * 175, bytes: 4 * 64 * (3 * 200 * 8 + 150 * 32) });
    let encoder = AttentionPrefill { causal: false, tokens: 800, ..prefill(LLAMA) };
    assert_eq!(encoder.work(), Work { flops: 4 * 2048 * 800 * 100, bytes: 2 * 800 * (3072 + 2048) });
    let flops = |kernel: AttentionPrefill| kernel.work().flops;
    assert_eq!(flops(AttentionPrefill { causal: true, ..encoder }), flops(encoder) / 2);
    assert_eq!(flops(AttentionPrefill { window: 1, ..encoder }), flops(encoder) / 100);
    assert_eq!(flops(AttentionPrefill { causal: true, window: 1, ..encoder }), flops(encoder) / 100);
    assert_eq!(decode(LLAMA).work().bytes, 4 * 8 * 64 * (8 * 129 + 32));
    assert_eq!(AttentionDecode { window: 100, ..decode(LLAMA) }.work().flops, 4 * 8 * 32 * 64 * 100);
}

#[test]
fn no_shape_however_absurd_panics() {
    let heads = Heads { heads: u32::MAX, kv_heads: u32::MAX, head_dim: u32::MAX };
    let huge = AttentionPrefill { sequences: u32::MAX, max_length: u32::MAX, tokens: u32::MAX, window: u32::MAX, ..prefill(heads) };
    let decode = AttentionDecode { sequences: u32::MAX, context: u32::MAX, ..decode(heads) };
    let cache = KvCache { pages_per_sequence: u32::MAX, ..CACHE };
    let full = AttentionDecode { cache, ..decode };
    let chunk = AttentionChunk { chunks: u32::MAX, max_length: u32::MAX, tokens: u32::MAX, context: u32::MAX, cache, ..chunk(heads) };
    let rotary = Rotary { rows: u32::MAX, ..rotary(heads) };
    let write = CacheWrite { rows: u32::MAX, cache, ..cache_write(heads) };
    AttentionDecode::workspace_bytes(heads, u32::MAX, u32::MAX);
    for kernel in [&huge as &dyn Kernel, &AttentionPrefill { causal: false, ..huge }, &decode, &full, &chunk, &rotary, &write] {
        kernel.work();
        assert!(kernel.configure(Sms(132), &h200()).is_err(), "{}", kernel.key());
    }
}
