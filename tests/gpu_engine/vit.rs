//! ViT on the GPU: the patches it is fed, and whole models against Hugging Face transformers and the CPU reference, with the same bits at every SM
//! count.

use std::path::Path;
use std::sync::Arc;

use half::f16;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use smidgen::config::{ModelConfig, VisionConfig};
use smidgen::kernels::unfold::UnfoldPatches;
use smidgen::models::{ModelSource, Solo, SoloError, Vision, Work};
use smidgen::presets;
use smidgen::reference::Reference;
use smidgen::weights::Weights;
use smidgen_runtime::Runtime;
use smidgen_runtime::device::Sms;
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Exclusive, Policy};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantSpec};

use crate::draws::{extent, for_draws, gap};
use crate::support::{Gpu, Random, device, is_sanitized};
use crate::tenant::OnTheFirst;
use crate::tiny_models::{Copy, fixture, read_tensor, relative_error};

/// FP16 on the GPU against f32 elsewhere.
const TOLERANCE: f64 = 2e-2;

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn patches_are_unfolded_exactly_with_zeros_for_the_class_token_and_the_gap() {
    let gpu = Gpu::open();
    let shapes = (1..=5_usize, 1..=4_usize, extent(14), extent(16), gap(9));
    for_draws(20, &(shapes, any::<u64>(), select(gpu.sm_counts())), |((images, channels, side, patch, gap), seed, sms)| {
        let [side, patch, gap] = [side, patch, gap].map(|extent| extent as usize);
        let image_size = side * patch;
        let (elements, stride) = (channels * patch * patch, channels * patch * patch + gap);
        let pixels = Random::new(seed).f16s(images * channels * image_size * image_size, 1.0);
        let (input, y) = (gpu.upload_f16(&pixels), gpu.poisoned_f16(images * (1 + side * side) * stride));
        let kernel = UnfoldPatches {
            images: images as u32,
            channels: channels as u32,
            image_size: image_size as u32,
            patch_size: patch as u32,
            stride: stride as u32,
            pixels: input.ptr(),
            y: y.ptr(),
        };
        gpu.run(&kernel, sms);
        let mut expected = Vec::new();
        for image in pixels.chunks_exact(channels * image_size * image_size) {
            expected.resize(expected.len() + stride, f16::ZERO);
            for (top, left) in (0..side * side).map(|at| (at / side * patch, at % side * patch)) {
                let pixel = |at: usize| {
                    let (channel, row, column) = (at / patch / patch, at / patch % patch, at % patch);
                    image[(channel * image_size + top + row) * image_size + left + column]
                };
                expected.extend((0..stride).map(|at| if at < elements { pixel(at) } else { f16::ZERO }));
            }
        }
        assert!(gpu.download_f16(&y) == expected, "{images} images of {side} by {side} patches of {patch}");
    });
}

fn solo(dir: &Path) -> Solo {
    let source = ModelSource::find(dir.to_str().expect("a path in UTF-8")).expect("a model directory");
    Solo::load(&device(), &source, [Work::Classify(2)]).expect("a small model fits")
}

/// The fixture's two images.
fn images() -> Vec<Vec<f32>> {
    let pixels = read_tensor(&fixture("vit").join("expected.safetensors"), "pixel_values").values;
    pixels.chunks_exact(3 * 24 * 24).map(<[f32]>::to_vec).collect()
}

fn assert_close(output: &[Vec<f32>], tensor: &str) {
    let expected = read_tensor(&fixture("vit").join("expected.safetensors"), tensor).values;
    assert_eq!(output.len(), 2);
    for (output, expected) in output.iter().zip(expected.chunks_exact(expected.len() / 2)) {
        let error = relative_error(output, expected);
        assert!(error < TOLERANCE, "{tensor}: relative error {error:.2e}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn vit_computes_what_transformers_computes() {
    assert_close(&solo(&fixture("vit")).classify(&images()).expect("a forward pass"), "logits");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn vit_without_its_classifier_computes_the_last_hidden_state() {
    let bare = Copy::of("vit").edit_json("config.json", |config| config["architectures"] = json!(["ViTModel"]));
    assert_close(&solo(bare.path()).classify(&images()).expect("a forward pass"), "last_hidden_state");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn vit_refuses_what_is_no_image() {
    let mut vit = solo(&fixture("vit"));
    assert!(matches!(vit.forward(&[vec![1, 2]]), Err(SoloError::WrongKind { .. })));
    assert!(vit.classify(&[vec![0.0; 3 * 24 * 24 + 1]]).is_err());
}

/// Two layers of a preset, or one under compute-sanitizer, with random weights that the GPU makes itself.
fn few_layers(preset: ModelConfig) -> (VisionConfig, Weights) {
    let ModelConfig::Vision(config) = preset else { panic!("ViT is a vision model") };
    let config = VisionConfig { layers: if is_sanitized() { 1 } else { 2 }, ..config };
    (config.clone(), Weights::random(ModelConfig::Vision(config), 8))
}

/// What a model computes of `images` under a policy: the bytes of its logits.
fn logits(policy: impl Policy + 'static, config: &VisionConfig, weights: &Weights, pixels: &[f32]) -> Vec<u8> {
    let runtime = Runtime::new(device(), Box::new(policy), Arc::new(ProfileStore::default()));
    let spec = TenantSpec { name: "vit".into(), class: Class::Throughput, slo: None, memory_bytes: 1 << 30 };
    let tenant = runtime.admit(spec).expect("1 GB of device memory");
    let mut session = runtime.session(tenant).expect("an admitted tenant");
    let mut uploader = runtime.uploader(tenant).expect("an admitted tenant");
    let model = Vision::new(config, weights, &mut session, &mut uploader).expect("a small model fits");
    let batch = model.batch(&mut session, &mut uploader, (pixels.len() / config.pixels()) as u32).expect("a small batch fits");
    let (ptr, elements) = model.output(&batch);
    let device = Arc::clone(session.device());
    device.fill(session.stream(), ptr, 0xff, elements as u64 * 2).expect("a fill");
    batch.show(&mut session, &mut uploader, pixels).expect("pixels");
    model.forward(&mut session, &batch).expect("a forward pass");
    let mut bytes = vec![0; elements * 2];
    device.download(session.stream(), ptr, &mut bytes).expect("a download");
    bytes
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn presets_of_either_patch_and_head_size_compute_what_the_reference_does() {
    let mut random = Random::new(32);
    for preset in [presets::VIT_BASE_PATCH16_224, presets::VIT_HUGE_PATCH14] {
        let (config, weights) = few_layers(preset);
        let pixels = random.f32s(if is_sanitized() { 1 } else { 3 } * config.pixels(), 1.0);
        let bytes = logits(Exclusive, &config, &weights, &pixels);
        let output: Vec<f32> = bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect();
        let Reference::Vision(reference) = Reference::load(&weights).expect("random weights") else { unreachable!() };
        for (output, expected) in output.chunks_exact(config.classes).zip(reference.forward(&pixels).values().chunks_exact(config.classes))
        {
            let error = relative_error(output, expected);
            assert!(error < TOLERANCE, "patches of {}: relative error {error:.2e}", config.patch_size);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn vit_has_the_same_bits_in_partitions_of_every_size() {
    let (config, weights) = few_layers(presets::VIT_BASE_PATCH16_224);
    let pixels = Random::new(33).f32s(if is_sanitized() { 1 } else { 5 } * config.pixels(), 1.0);
    let expected = logits(Exclusive, &config, &weights, &pixels);
    let gpu = Gpu::open();
    for sms in gpu.sm_counts() {
        let tpcs = TpcSet::range(0, gpu.device().topology().tpcs_for(Sms(sms)));
        assert!(logits(OnTheFirst(tpcs), &config, &weights, &pixels) == expected, "other bits on {sms} SMs");
    }
}
