//! Requests of real models, with curves measured on an H200.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use smidgen_runtime::device::Sms;
use smidgen_runtime::launch::{Fingerprint, Work};
pub use smidgen_runtime::policy::GAP_US;
use smidgen_runtime::policy::{KernelDemand, TenantDemand};
use smidgen_runtime::profile::{Curve, Profile};
use smidgen_runtime::tenant::{Class, TenantId};

/// Launches of one request, in the order in which they first happen.
const LLAMA_STEP: [(&str, u32); 10] = [
    ("embed_rms_norm[8x2048]f16", 1),
    ("gemm[8x3072x2048]f16", 16),
    ("rotary_cached[8x32x8x64]f16", 16),
    ("attention_decode[8x32x8x64x256]f16", 16),
    ("gemm_residual[8x2048x2048]f16", 16),
    ("rms_norm[8x2048]f16", 32),
    ("gemm_silu_gate[8x16384x2048]f16", 16),
    ("gemm_residual[8x2048x8192]f16", 16),
    ("gemm_f32[8x128256x2048]f16", 1),
    ("sample_tokens[8x128256]f16", 1),
];
const BERT_LARGE: [(&str, u32); 7] = [
    ("embed_layer_norm[1024x1024]f16", 1),
    ("gemm_bias[1024x3072x1024]f16", 24),
    ("attention_bidirectional[8x128x16x16x64]f16", 24),
    ("gemm_bias_residual[1024x1024x1024]f16", 24),
    ("layer_norm[1024x1024]f16", 48),
    ("gemm_bias_gelu[1024x4096x1024]f16", 24),
    ("gemm_bias_residual[1024x1024x4096]f16", 24),
];

/// What `results/h200/slo*.json` were measured with: the kernels of `profiles/h200.json`.
const DECODE_STEP: [(&str, u32); 9] = [
    ("embed[8x2048]f16", 1),
    ("rms_norm_gemm_rotary_cached[8x3072x2048x8x64]f16", 16),
    ("attention_decode[8x32x8x64x256]f16", 16),
    ("gemm_residual[8x2048x2048]f16", 16),
    ("rms_norm_gemm_silu_gate[8x16384x2048]f16", 16),
    ("gemm_residual[8x2048x8192]f16", 16),
    ("rms_norm[8x2048]f16", 1),
    ("gemm_f32[8x128256x2048]f16", 1),
    ("sample_tokens[8x128256]f16", 1),
];
const ENCODE_64: [(&str, u32); 7] = [
    ("embed_layer_norm[8192x1024]f16", 1),
    ("gemm_bias[8192x3072x1024]f16", 24),
    ("attention_bidirectional[64x128x16x16x64]f16", 24),
    ("gemm_bias_residual[8192x1024x1024]f16", 24),
    ("layer_norm[8192x1024]f16", 48),
    ("gemm_bias_gelu[8192x4096x1024]f16", 24),
    ("gemm_bias_residual[8192x1024x4096]f16", 24),
];
const PREFILL: [(&str, u32); 11] = [
    ("embed_rms_norm[8192x4096]f16", 1),
    ("gemm[8192x6144x4096]f16", 32),
    ("rotary_cached[8192x32x8x128]f16", 32),
    ("attention_causal[1x8192x32x8x128x4096]f16", 32),
    ("gemm_residual[8192x4096x4096]f16", 32),
    ("rms_norm[8192x4096]f16", 63),
    ("gemm_silu_gate[8192x28672x4096]f16", 32),
    ("gemm_residual[8192x4096x14336]f16", 32),
    ("rms_norm[1x4096]f16", 1),
    ("gemm_f32[1x32000x4096]f16", 1),
    ("sample_tokens[1x32000]f16", 1),
];

/// A decode step of Llama-3.2-1B at batch 8, from an earlier published profile.
pub fn llama_step() -> Vec<KernelDemand> {
    profiled("results/h200/profile-hopper.json", &LLAMA_STEP)
}

/// BERT-large at batch 8 and sequence 128, from an earlier published profile.
pub fn bert_large() -> Vec<KernelDemand> {
    profiled("results/h200/profile-hopper.json", &BERT_LARGE)
}

/// A decode step of Llama-3.2-1B at batch 8, from the shipped profile.
pub fn decode_step() -> Vec<KernelDemand> {
    profiled("profiles/h200.json", &DECODE_STEP)
}

/// BERT-large at batch 64 and sequence 128, from the shipped profile.
pub fn encode_64() -> Vec<KernelDemand> {
    profiled("profiles/h200.json", &ENCODE_64)
}

/// Mistral-7B over a prompt of 8192 tokens, from the shipped profile.
pub fn prefill() -> Vec<KernelDemand> {
    profiled("profiles/h200.json", &PREFILL)
}

fn profiled(profile: &str, launches: &[(&str, u32)]) -> Vec<KernelDemand> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(profile);
    let profile = Profile::read(&path).unwrap();
    let demand = |&(key, launches): &(&str, u32)| {
        let measured = &profile.kernels[key];
        KernelDemand { kernel: key.parse().unwrap(), launches, work: measured.work, curve: measured.curve().map(Arc::new) }
    };
    launches.iter().map(demand).collect()
}

/// BERT-base at batch 8 and sequence 128, of cuBLAS and PyTorch kernels in green contexts of so many SMs, microseconds.
pub fn bert_base() -> Vec<KernelDemand> {
    const SMS: [u16; 9] = [8, 16, 32, 64, 72, 96, 120, 128, 132];
    const KERNELS: [(u32, u64, u64, [f64; 9]); 6] = [
        (12, gemm_flops(2304, 768), gemm_bytes(2304, 768), [99.0, 50.0, 27.0, 14.3, 14.0, 13.6, 13.6, 8.1, 8.1]),
        (12, 201_326_592, 6_291_456, [35.0, 19.0, 11.0, 8.0, 8.0, 6.2, 6.2, 6.2, 6.2]),
        (12, gemm_flops(768, 768), gemm_bytes(768, 768), [52.0, 27.0, 14.0, 7.8, 7.5, 7.4, 7.3, 4.4, 4.4]),
        (24, 4_718_592, 3_147_776, [37.0, 19.0, 11.0, 6.3, 6.0, 4.9, 4.2, 4.1, 4.1]),
        (12, gemm_flops(3072, 768), gemm_bytes(3072, 768), [124.0, 63.0, 34.0, 17.5, 17.2, 16.9, 16.9, 9.9, 9.9]),
        (12, gemm_flops(768, 3072), gemm_bytes(768, 3072), [115.0, 59.0, 34.0, 19.6, 16.1, 16.1, 16.3, 9.9, 9.9]),
    ];
    let demand = |(number, (launches, flops, bytes, latencies)): (u64, (u32, u64, u64, [f64; 9]))| KernelDemand {
        kernel: Fingerprint(number),
        launches,
        work: Work { flops, bytes },
        curve: Curve::new(SMS.map(Sms).into_iter().zip(latencies).collect()).map(Arc::new),
    };
    (0..).zip(KERNELS).map(demand).collect()
}

const fn gemm_flops(n: u64, k: u64) -> u64 {
    2 * 1024 * n * k
}

const fn gemm_bytes(n: u64, k: u64) -> u64 {
    2 * (1024 * k + k * n + 1024 * n)
}

/// The same request with `times` as much to do in every launch.
pub fn larger(kernels: Vec<KernelDemand>, times: u32) -> Vec<KernelDemand> {
    let scale = |kernel: KernelDemand| {
        let points = kernel.curve.iter().flat_map(|curve| curve.points()).map(|&(sms, us)| (sms, us * f64::from(times))).collect();
        let work = Work { flops: kernel.work.flops * u64::from(times), bytes: kernel.work.bytes * u64::from(times) };
        KernelDemand { work, curve: Curve::new(points).map(Arc::new), ..kernel }
    };
    kernels.into_iter().map(scale).collect()
}

pub fn latency_tenant(id: u32, slo_us: Option<u64>, kernels: &[KernelDemand]) -> TenantDemand {
    TenantDemand { id: TenantId(id), class: Class::Latency, slo: slo_us.map(Duration::from_micros), rate: None, kernels: kernels.to_vec() }
}

pub fn throughput_tenant(id: u32, kernels: &[KernelDemand]) -> TenantDemand {
    TenantDemand { id: TenantId(id), class: Class::Throughput, slo: None, rate: None, kernels: kernels.to_vec() }
}

/// A request in one partition of so many SMs, undisturbed.
pub fn request_us(kernels: &[KernelDemand], sms: u16) -> f64 {
    let us = |kernel: &KernelDemand| f64::from(kernel.launches) * kernel.curve.as_ref().map_or(0.0, |curve| curve.at(Sms(sms)) + GAP_US);
    kernels.iter().map(us).sum()
}
