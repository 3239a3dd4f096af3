//! What the models on a device refuse, and that every family's launches are accepted: on the simulator, which computes nothing.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use half::f16;
use safetensors::tensor::Dtype;
use serde_json::json;
use smidgen::config::ModelConfig;
use smidgen::generate::{Continue, Sampling};
use smidgen::kernels::attention::PAGE_TOKENS;
use smidgen::models::{BuildError, Decoder, Direct, LogitRows, ModelSource, Prompts, Solo, SoloBatch, SoloError, Work};
use smidgen::serve::batching::{Batching, Limits, Output, Request, RequestId};
use smidgen::weights::{LayerParameter, Parameter, Weights};
use smidgen_runtime::device::Device;
use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::policy::{Exclusive, StaticEqual};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime};

mod tiny_models;

use tiny_models::{Copy, DECODERS, ENCODERS, OwnedTensor, fixture, fixture_ids};

fn device() -> Arc<dyn Device> {
    SimDevice::new(SimConfig::h200())
}

fn source(dir: &Path) -> ModelSource {
    ModelSource::find(dir.to_str().unwrap()).unwrap()
}

#[test]
fn every_family_launches_a_forward_pass_of_the_whole_ragged_batch() {
    for name in DECODERS.into_iter().chain(ENCODERS) {
        let (source, sequences) = (source(&fixture(name)), fixture_ids(name));
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        let output = Solo::load(&device(), &source, [Work::Forward(&sequences)]).unwrap().forward(&sequences).unwrap();
        assert_eq!(output.len(), tokens * source.config().output_width(), "{name}");
    }
}

#[test]
fn a_model_alone_may_have_all_of_the_gpu_s_memory() {
    let source = ModelSource::find("bert-base").unwrap();
    let mut config = SimConfig::h200();
    // Sizes are rounded up to what the driver gives, and a grant takes some bytes; room for one partition would be 5.8 MB.
    config.topology.memory_bytes = source.memory_bytes(1, 16).unwrap() + (2 << 20);
    let gpu: Arc<dyn Device> = SimDevice::new(config);
    let sequences = [vec![1; 16]];
    Solo::load(&gpu, &source, [Work::Forward(&sequences)]).unwrap().forward(&sequences).unwrap();
}

/// What a model alone will be asked for, and the asking.
type Asked<'a> = (&'a str, Work<'a>, &'a dyn Fn(Solo) -> Result<(), SoloError>);

#[test]
fn what_does_not_fit_a_model_alone_is_refused_with_figures_before_anything_is_loaded_and_what_does_runs() {
    let (prompts, texts) = ([vec![1; 900], vec![2; 700], vec![3; 5]], vec![vec![1; 2]; 3000]);
    let asked: [Asked<'_>; 5] = [
        // 1605 rows of 50257 logits take more than the weights.
        ("gpt2", Work::Forward(&prompts), &|mut solo| solo.forward(&prompts).map(drop)),
        ("qwen2-0.5b", Work::Forward(&prompts), &|mut solo| solo.forward(&prompts).map(drop)),
        // A prompt's activations, with the logits of its last row alone.
        ("qwen2-0.5b", Work::Sequence { prompt: 20_000, capacity: 20_008 }, &|solo| {
            let mut sequence = solo.sequence(20_000, 20_008)?;
            sequence.next(&vec![1; 20_000], &Sampling::GREEDY, 0.0)?;
            sequence.next(&[1], &Sampling::GREEDY, 0.0).map(drop)
        }),
        ("bert-base", Work::Embed(&texts), &|mut solo| solo.embed(&texts, true, true).map(drop)),
        ("vit-base-patch16-224", Work::Classify(70), &|mut solo| solo.classify(&vec![vec![0.5; 3 * 224 * 224]; 70]).map(drop)),
    ];
    for (model, work, run) in asked {
        let source = ModelSource::find(model).unwrap();
        let gpu = |memory_bytes| -> Arc<dyn Device> {
            let mut config = SimConfig::h200();
            config.topology.memory_bytes = memory_bytes;
            SimDevice::new(config)
        };
        let Err(error) = Solo::load(&gpu(1 << 20), &source, [work]) else { panic!("{model} fits 1 MiB") };
        let SoloError::Admit(AdmitError::NoMemory { needed, .. }) = error else { panic!("{error}") };
        let Err(error) = Solo::load(&gpu(needed - 1), &source, [work]) else { panic!("{model} fits where a byte is missing") };
        assert!(matches!(error, SoloError::Admit(AdmitError::NoMemory { free, .. }) if free == needed - 1), "{error}");
        // Biases are not counted, and sizes are rounded up.
        let solo = Solo::load(&gpu(needed + (2 << 20)), &source, [work]).unwrap();
        run(solo).unwrap_or_else(|error| panic!("{model} asked for {needed} bytes: {error}"));
    }
}

#[test]
fn work_that_is_another_kind_of_model_s_is_refused_before_anything_is_loaded() {
    let ids = [vec![1, 2]];
    for (model, work, command) in [
        ("bert", Work::Sequence { prompt: 1, capacity: 2 }, "smidgen embed"),
        ("llama-tied", Work::Embed(&ids), "smidgen generate"),
        ("vit", Work::Forward(&ids), "smidgen classify"),
    ] {
        let Err(error) = Solo::load(&device(), &source(&fixture(model)), [work]) else { panic!("{model} took it") };
        assert!(error.to_string().contains(command), "{error}");
    }
}

#[test]
fn a_vision_model_launches_a_forward_pass_of_all_images_and_takes_no_token_ids() {
    let mut solo = Solo::load(&device(), &source(&fixture("vit")), [Work::Classify(2)]).unwrap();
    let logits = solo.classify(&vec![vec![0.5; 3 * 24 * 24]; 70]).unwrap();
    assert_eq!((logits.len(), logits[0].len()), (70, 5));
    assert!(matches!(solo.forward(&[vec![1, 2]]), Err(SoloError::WrongKind { .. })));
    let error = solo.classify(&[vec![0.5; 7]]).unwrap_err().to_string();
    assert!(error.contains("pixels"), "{error}");
    let mut text = Solo::load(&device(), &source(&fixture("bert")), [Work::Embed(&[vec![1; 8]])]).unwrap();
    assert!(matches!(text.classify(&[vec![0.5; 3 * 24 * 24]]), Err(SoloError::WrongKind { .. })));
}

/// Presets of every kind of encoder, at a length and a batch that have nothing round about them.
#[test]
fn every_encoder_and_vision_preset_is_a_workload() {
    for name in ["deberta-base", "deberta-v2-xlarge", "deberta-v3-small", "vit-base-patch16-224", "vit-huge-patch14"] {
        let source = ModelSource::find(name).unwrap();
        let runtime = Runtime::new(device(), Box::new(Exclusive), Arc::new(ProfileStore::default()));
        let memory_bytes = source.memory_bytes(3, 77).unwrap();
        let spec = TenantSpec { name: name.into(), class: Class::Throughput, slo: None, memory_bytes };
        let mut session = runtime.session(runtime.admit(spec).unwrap()).unwrap();
        source.workload(&mut session, &mut Direct, 3, 77).unwrap().enqueue(&mut session).unwrap();
    }
}

/// How often a step of `rows` sequences launches a kernel whose name begins so.
fn launches_of_step(model: &str, rows: u32, kernel: &str) -> u32 {
    let source = if fixture(model).is_dir() { source(&fixture(model)) } else { ModelSource::find(model).unwrap() };
    let runtime = Runtime::new(device(), Box::new(Exclusive), Arc::new(ProfileStore::default()));
    let spec = TenantSpec { name: model.into(), class: Class::Throughput, slo: None, memory_bytes: 0 };
    let mut session = runtime.session(runtime.admit(spec).unwrap()).unwrap();
    let mut workload = source.workload(&mut session, &mut Direct, rows, 20).unwrap();
    session.forget_counts();
    workload.enqueue(&mut session).unwrap();
    session.seen().iter().filter(|seen| seen.key.name().starts_with(kernel)).map(|seen| seen.launches).sum()
}

#[test]
fn products_of_few_rows_norm_them_and_products_of_many_have_a_norm_before_them() {
    let launches = |model, rows| ["rms_norm_gemm", "rms_norm", "embed_rms_norm"].map(|kernel| launches_of_step(model, rows, kernel));
    // Two layers, each with two norms, and one before the head: the product's own where the head is not the embedding.
    assert_eq!(launches("llama-tied", 64), [4, 5, 0]);
    assert_eq!(launches("llama-untied", 64), [5, 5, 0]);
    // The embedding makes the first one.
    assert_eq!(launches("llama-untied", 65), [0, 4, 1]);
    // Rows of 36 halves, which no skinny kernel takes.
    assert_eq!(launches("mistral", 1), [0, 4, 1]);
    assert_eq!(launches_of_step("gpt2", 1, "rms_norm"), 0);
}

#[test]
fn a_layer_of_few_rows_is_five_launches_where_heads_are_whole_tiles() {
    // 24 layers; the embedding, the norm before a head that is the embedding, the head, and the draw.
    for rows in [8, 64] {
        assert_eq!(launches_of_step("qwen2-0.5b", rows, ""), 24 * 5 + 4);
    }
    assert_eq!(launches_of_step("qwen2-0.5b", 8, "rms_norm_gemm_bias_rotary_cached"), 24);
    assert_eq!(launches_of_step("qwen2-0.5b", 65, ""), 24 * 8 + 3);
    // Heads of 8 columns.
    assert_eq!(launches_of_step("llama-tied", 8, "rotary_cached"), 2);
}

#[test]
fn a_weight_takes_its_norm_before_it_is_rounded_and_is_refused_where_it_overflows() {
    let norm = |factor: f32| {
        let scale = move |tensor: &OwnedTensor| match tensor.name.ends_with("0.input_layernorm.weight") {
            true => tensor.encoded(Dtype::F32, |x| (x * factor).to_le_bytes()),
            false => tensor.clone(),
        };
        Copy::of("llama-tied").edit_tensors(move |all| all.iter().map(scale).collect())
    };
    let model = norm(1.0);
    let weights = Weights::open(model.path()).unwrap();
    let (query, scales) = (Parameter::layer(0, LayerParameter::QueryWeight), Parameter::layer(0, LayerParameter::AttentionNormWeight));
    let (query_values, scales) = (weights.f32(query).unwrap(), weights.f32(scales).unwrap());
    let expected: Vec<f16> =
        query_values.chunks(scales.len()).flat_map(|row| row.iter().zip(&scales).map(|(w, scale)| f16::from_f32(w * scale))).collect();
    assert_eq!(weights.f16_with_scaled_columns(query, &scales).unwrap(), expected);
    assert_ne!(weights.f16(query).unwrap(), expected);

    let huge = norm(1e7);
    let Err(error) = Solo::load(&device(), &source(huge.path()), [Work::Forward(&[vec![1; 8]])]) else {
        panic!("products beyond f16 were accepted")
    };
    let message = error.to_string();
    assert!(message.contains("0.self_attn.q_proj.weight") && message.contains("beyond the largest f16"), "{message}");
}

#[test]
fn a_plain_feed_forward_block_with_silu_is_refused_with_the_field_and_the_remedy() {
    for (name, field) in [("bert", "hidden_act"), ("distilbert", "activation"), ("gpt2", "activation_function")] {
        let model = Copy::of(name).edit_json("config.json", |config| config[field] = json!("silu"));
        let Err(error) = Solo::load(&device(), &source(model.path()), [Work::Forward(&[vec![1; 8]])]) else {
            panic!("{name} with silu was accepted")
        };
        let message = error.to_string();
        assert!(message.contains("silu") && message.contains("--device cpu"), "{message}");
    }
}

#[test]
fn what_is_no_decoder_is_not_batched_and_the_command_for_it_is_named() {
    let limits = Limits { slots: 2, step_tokens: 8, pages: 4, page_tokens: PAGE_TOKENS, max_sequence: 8 };
    for (name, command) in [("bert", "smidgen embed"), ("vit", "smidgen classify")] {
        let Err(error) = SoloBatch::load(&device(), &source(&fixture(name)), limits) else { panic!("{name} was batched") };
        assert!(error.to_string().contains(command), "{error}");
    }
}

#[test]
fn prompts_that_a_batch_has_no_room_for_are_refused_before_anything_is_launched() {
    let weights = Weights::open(&fixture("llama-tied")).unwrap();
    let ModelConfig::Decoder(config) = weights.config() else { panic!("llama is a decoder") };
    let runtime = Runtime::new(device(), Box::new(Exclusive), Arc::new(ProfileStore::default()));
    let spec = TenantSpec { name: "llama".into(), class: Class::Throughput, slo: None, memory_bytes: 0 };
    let mut session = runtime.session(runtime.admit(spec).unwrap()).unwrap();
    let decoder = Decoder::new(config, &weights, &mut session, &mut Direct).unwrap();
    let mut prefill = |sequences: &[Vec<u32>], wanted| {
        let batch = decoder.batch(&session, 2, 4, 6, LogitRows::Last).unwrap();
        let prompts = Prompts::new(&session, sequences).map_err(|error| error.to_string())?;
        decoder.prefill(&mut session, &batch, &prompts, wanted).map_err(|error| error.to_string())
    };
    assert_eq!(prefill(&[vec![1; 3], vec![1; 3]], LogitRows::Last), Ok(()));
    let refused = [
        (vec![vec![1; 3], vec![1; 4]], LogitRows::Last),
        (vec![vec![1; 3]], LogitRows::Last),
        (vec![vec![1; 3], vec![1; 3]], LogitRows::All),
        (vec![vec![1; PAGE_TOKENS as usize + 1], vec![1]], LogitRows::Last),
    ];
    for (sequences, wanted) in refused {
        let error = prefill(&sequences, wanted).unwrap_err();
        assert!(error.contains("make the batch as the prompts are"), "{sequences:?}: {error}");
    }
    assert!(prefill(&[vec![1; 3], vec![]], LogitRows::Last).unwrap_err().contains("at least one token"));
}

#[test]
fn a_sequence_that_outgrows_its_cache_is_refused_and_may_go_on_below_that() {
    let solo = Solo::load(&device(), &source(&fixture("llama-tied")), [Work::Sequence { prompt: 4, capacity: 4 }]).unwrap();
    let mut sequence = solo.sequence(4, 4).unwrap();
    let mut next = |tokens: &[u32]| sequence.next(tokens, &Sampling::GREEDY, 0.0);
    next(&[1, 2, 3]).unwrap();
    assert!(matches!(next(&[4, 5]), Err(SoloError::Full { length: 5, capacity: 4 })));
    next(&[4]).unwrap();
    assert!(matches!(next(&[5]), Err(SoloError::Full { length: 5, capacity: 4 })));
}

#[test]
fn a_decode_step_reaches_beyond_the_sliding_window_to_the_last_position() {
    let source = source(&fixture("mistral-window"));
    let runtime = Runtime::new(device(), Box::new(Exclusive), Arc::new(ProfileStore::default()));
    let spec = TenantSpec { name: "mistral".into(), class: Class::Throughput, slo: None, memory_bytes: 0 };
    let mut session = runtime.session(runtime.admit(spec).unwrap()).unwrap();
    source.workload(&mut session, &mut Direct, 2, 191).unwrap();
    let Err(error) = source.workload(&mut session, &mut Direct, 2, 192) else { panic!("a step beyond the last position was accepted") };
    assert!(matches!(error, BuildError::NoRoomToDecode { asked: 192, limit: 192, .. }), "{error}");
}

/// The simulator draws token 0 always, so that only the number of tokens tells anything.
#[test]
fn requests_of_every_length_are_served_together_in_eager_and_captured_steps() {
    for name in DECODERS {
        let source = source(&fixture(name));
        let limits = Limits { slots: 3, step_tokens: 5, pages: 6, page_tokens: PAGE_TOKENS, max_sequence: source.config().max_sequence() };
        let mut batching = Batching::new(SoloBatch::load(&device(), &source, limits).unwrap()).unwrap();
        for count in 1..=8 {
            let max_tokens = NonZeroUsize::new(count * 3 % 11 + 1).unwrap();
            let request = Request { prompt: vec![7; count], max_tokens, sampling: Sampling::GREEDY, seed: 0, stop_tokens: [].into() };
            batching.submit(request, Duration::ZERO).unwrap();
        }
        let mut outputs = Vec::new();
        while !batching.is_idle() {
            outputs.extend(batching.step().unwrap());
        }
        for (index, count) in (1..=8).enumerate() {
            let tokens = outputs.iter().filter(|output| matches!(output, Output::Token(RequestId(id), 0) if *id == index as u64)).count();
            assert_eq!(tokens, count * 3 % 11 + 1, "{name}, request {index}");
        }
        assert_eq!(batching.take_finished().len(), 8);
    }
}

#[test]
fn requests_are_served_on_while_tenants_come_and_go() {
    let source = source(&fixture("llama-tied"));
    let limits = Limits { slots: 4, step_tokens: 8, pages: 4, page_tokens: PAGE_TOKENS, max_sequence: 30 };
    let runtime = Runtime::new(device(), Box::new(StaticEqual), Arc::new(ProfileStore::default()));
    let spec = TenantSpec { name: "served".into(), class: Class::Throughput, slo: None, memory_bytes: 0 };
    let session = runtime.session(runtime.admit(spec.clone()).unwrap()).unwrap();
    let mut batching = Batching::new(source.slots(session, &mut Direct, limits).unwrap()).unwrap();
    let max_tokens = NonZeroUsize::new(20).unwrap();
    for _ in 0..4 {
        let request = Request { prompt: vec![1, 2], max_tokens, sampling: Sampling::GREEDY, seed: 0, stop_tokens: [].into() };
        batching.submit(request, Duration::ZERO).unwrap();
    }
    let (mut tokens, mut guest) = (0, None);
    for step in 0.. {
        if batching.is_idle() {
            break;
        }
        match step {
            6 => guest = Some(runtime.admit(spec.clone()).unwrap()),
            12 => guest.take().into_iter().for_each(|guest| runtime.dismiss(guest).unwrap()),
            _ => (),
        }
        tokens += batching.step().unwrap().iter().filter(|output| matches!(output, Output::Token(..))).count();
    }
    assert_eq!(tokens, 80);
    // Of the 19 steps that only decode, the first under each plan is launched kernel by kernel for each of the two token buffers. There are two: once the
    // guest is gone the first is back, and its graphs were kept.
    assert_eq!(batching.executor_mut().session().stats().replays, 19 - 2 * 2);
}

#[test]
fn a_cache_that_does_not_fit_is_refused_before_anything_is_loaded() {
    let source = ModelSource::find("llama-3.2-1b").unwrap();
    let limits = Limits { slots: 64, step_tokens: 512, pages: 1 << 20, page_tokens: PAGE_TOKENS, max_sequence: 131_072 };
    let Err(error) = SoloBatch::load(&device(), &source, limits) else { panic!("2 TB of cache were accepted") };
    assert!(error.to_string().contains("needs 2201.69 GB of device memory"), "{error}");
}
