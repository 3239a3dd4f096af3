//! Launches and refusals of the attention kernels, which need no GPU to be checked.

use smidgen_runtime::device::{DevicePtr, Sms};
use smidgen_runtime::launch::{Kernel, LaunchError, Work};

use super::super::testing::h200;
use super::*;

const LLAMA: Heads = Heads { heads: 32, kv_heads: 8, head_dim: 64 };

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
        cache: KvCache { k: DevicePtr(512), v: DevicePtr(1024), capacity: 512 },
        output: DevicePtr(2048),
        output_stride: heads.output_width(),
        lengths: DevicePtr(4096),
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

fn assert_refused(kernel: &dyn Kernel, reason: &str) {
    match kernel.configure(Sms(132), &h200()) {
        Err(LaunchError::Unsupported { reason: said, .. }) => assert!(said.contains(reason), "`{said}` should name `{reason}`"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_name_the_kind_of_attention_and_its_shape() {
    assert_eq!(prefill(LLAMA).key().to_string(), "attention_causal[8x100x32x8x64]f16");
    assert_eq!(AttentionPrefill { causal: false, ..prefill(LLAMA) }.key().to_string(), "attention_bidirectional[8x100x32x8x64]f16");
    assert_eq!(AttentionPrefill { window: 16, ..prefill(LLAMA) }.key().to_string(), "attention_causal[8x100x32x8x64x16]f16");
    assert_eq!(rotary(LLAMA).key().to_string(), "rotary[8x32x8x64]f16");
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
        for kernel in [&prefill(heads) as &dyn Kernel, &decode(heads)] {
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
fn tiles_are_counted_by_the_longest_length_and_by_groups_of_16_query_heads() {
    let tiles = |kernel: &dyn Kernel| kernel.configure(Sms(132), &h200()).unwrap().tiles;
    let ampere = Topology { compute_capability: (8, 0), ..h200() };
    assert_eq!(prefill(LLAMA).configure(Sms(132), &ampere).unwrap().tiles, 8 * 32 * 2);
    assert_eq!(tiles(&prefill(LLAMA)), 8 * 32);
    assert_eq!(tiles(&AttentionPrefill { max_length: 129, ..prefill(LLAMA) }), 8 * 32 * 3);
    assert_eq!(tiles(&prefill(Heads { head_dim: 128, ..LLAMA })), 8 * 32);
    assert_eq!(tiles(&decode(LLAMA)), 8 * 8);
    assert_eq!(tiles(&decode(Heads { heads: 40, kv_heads: 2, head_dim: 64 })), 8 * 2 * 2);
}

#[test]
fn grids_stay_within_what_the_granted_sms_hold() {
    for head_dim in [32, 64, 80, 96, 128, 256] {
        for sms in [1, 2, 34, 132] {
            let heads = Heads { head_dim, ..LLAMA };
            for kernel in [&prefill(heads) as &dyn Kernel, &decode(heads), &rotary(heads)] {
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
    assert_refused(&prefill(Heads { heads: u32::MAX, kv_heads: 1, head_dim: 256 }), "longer than");
}

#[test]
fn a_gpu_with_too_little_shared_memory_is_an_error_and_not_a_failing_launch() {
    let small = Topology { shared_bytes_per_sm: 100 << 10, ..h200() };
    assert!(decode(LLAMA).configure(Sms(8), &small).is_ok());
    let error = decode(Heads { head_dim: 128, ..LLAMA }).configure(Sms(8), &small).unwrap_err();
    assert!(error.to_string().contains("bytes of shared memory"), "{error}");
}

#[test]
fn work_counts_what_the_masks_leave() {
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
    let rotary = Rotary { rows: u32::MAX, ..rotary(heads) };
    for kernel in [&huge as &dyn Kernel, &AttentionPrefill { causal: false, ..huge }, &decode, &rotary] {
        kernel.work();
        assert!(kernel.configure(Sms(132), &h200()).is_err(), "{}", kernel.key());
    }
}
