//! The CPU reference against Hugging Face transformers, on tiny random models made by `tests/fixtures/make_tiny_models.py` and
//! `make_tiny_encoders.py`.

use half::{bf16, f16};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde_json::json;

use smidgen::batch::RaggedBatch;
use smidgen::config::ModelConfig;
use smidgen::generate::{Generation, Sampling, Stop};
use smidgen::reference::{Decoder, Reference};
use smidgen::weights::Weights;

mod tiny_models;

use tiny_models::{Copy, DECODERS, ENCODERS, OwnedTensor, expected, fixture, fixture_ids, relative_error};

/// f32 against f32: only the order of sums differs.
const TOLERANCE: f64 = 1e-4;

fn forward(dir: &std::path::Path, sequences: &[Vec<u32>]) -> Vec<f32> {
    let weights = Weights::open(dir).unwrap();
    let batch = RaggedBatch::new(sequences, weights.config()).unwrap();
    Reference::load(&weights).unwrap().forward(&batch).into_values()
}

fn open_decoder(dir: &std::path::Path) -> Decoder {
    match Reference::load(&Weights::open(dir).unwrap()).unwrap() {
        Reference::Decoder(decoder) => decoder,
        Reference::Encoder(_) | Reference::Vision(_) => panic!("{} is no decoder", dir.display()),
    }
}

fn generate(decoder: &Decoder, prompt: &[u32], max_tokens: usize, sampling: Sampling, seed: u64) -> (Vec<u32>, Stop) {
    let ModelConfig::Decoder(config) = decoder.config() else { unreachable!() };
    let mut generation = Generation::new(decoder.start(), config, prompt, max_tokens, sampling, seed);
    let tokens = generation.by_ref().map(|token| token.unwrap()).collect();
    (tokens, generation.stop().unwrap())
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
}

fn greedy(name: &str) -> Greedy {
    tiny_models::read_json(&fixture(name).join("greedy.json"))
}

#[test]
fn every_family_computes_what_transformers_computes() {
    for name in DECODERS.into_iter().chain(ENCODERS) {
        let error = relative_error(&forward(&fixture(name), &fixture_ids(name)), &expected(name).values);
        assert!(error < TOLERANCE, "{name}: relative error {error}");
    }
}

#[test]
fn greedy_generation_gives_the_64_tokens_of_transformers() {
    for name in DECODERS {
        let Greedy { prompt, tokens } = greedy(name);
        assert_eq!(tokens.len(), 64);
        let (generated, stop) = generate(&open_decoder(&fixture(name)), &prompt, 64, Sampling::GREEDY, 0);
        assert_eq!((generated, stop), (tokens, Stop::MaxTokens), "{name}");
    }
}

#[test]
fn a_sequence_gives_the_same_rows_alone_as_in_a_batch() {
    for name in DECODERS.into_iter().chain(ENCODERS) {
        let sequences = fixture_ids(name);
        let alone: Vec<f32> = sequences.iter().flat_map(|sequence| forward(&fixture(name), std::slice::from_ref(sequence))).collect();
        let error = relative_error(&forward(&fixture(name), &sequences), &alone);
        assert!(error < 1e-5, "{name}: relative error {error}");
    }
}

#[test]
fn a_prompt_fed_in_pieces_gives_the_logits_of_the_whole() {
    for name in DECODERS {
        let decoder = open_decoder(&fixture(name));
        let sequence = &fixture_ids(name)[2];
        let whole = decoder.start().extend(sequence).unwrap();
        let mut pieces = decoder.start();
        pieces.extend(&sequence[..9]).unwrap();
        pieces.extend(&sequence[9..10]).unwrap();
        let error = relative_error(&pieces.extend(&sequence[10..]).unwrap(), &whole);
        assert!(error < 1e-5, "{name}: relative error {error}");
    }
}

#[test]
fn a_checkpoint_in_shards_gives_bit_identical_results() {
    let model = Copy::of("llama-untied");
    let tensors = model.tensors();
    let shards: Vec<_> = tensors.chunks(tensors.len().div_ceil(3)).collect();
    let mut weight_map = serde_json::Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        tiny_models::write_tensors(&model.file(&file), shard);
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), json!(file))));
    }
    std::fs::remove_file(model.file("model.safetensors")).unwrap();
    let model = model.edit_json("model.safetensors.index.json", |index| *index = json!({ "metadata": {}, "weight_map": weight_map }));
    let sequences = fixture_ids("llama-untied");
    assert_eq!(forward(model.path(), &sequences), forward(&fixture("llama-untied"), &sequences));
}

/// Half precision is a way of storing: a checkpoint in F16 or BF16 is the model whose F32 weights were rounded, no more and no less.
#[test]
fn a_checkpoint_in_half_precision_is_the_same_model_with_rounded_weights() {
    for name in ["llama-tied", "bert"] {
        let sequences = fixture_ids(name);
        let change = |dtype, stored: fn(f32) -> [u8; 2], rounded: fn(f32) -> f32| {
            let stored = Copy::of(name).edit_tensors(|all| all.iter().map(|tensor| tensor.encoded(dtype, stored)).collect());
            let rounded = Copy::of(name)
                .edit_tensors(|all| all.iter().map(|tensor| tensor.encoded(Dtype::F32, |x| rounded(x).to_le_bytes())).collect());
            let output = forward(stored.path(), &sequences);
            assert_eq!(output, forward(rounded.path(), &sequences), "{name} in {dtype:?}");
            relative_error(&output, &expected(name).values)
        };
        let error = change(Dtype::F16, |x| f16::from_f32(x).to_le_bytes(), |x| f16::from_f32(x).to_f32());
        assert!(error < 2e-2, "{name} in F16: relative error {error}");
        change(Dtype::BF16, |x| bf16::from_f32(x).to_le_bytes(), |x| bf16::from_f32(x).to_f32());
    }
}

#[test]
fn names_as_tensorflow_checkpoints_have_them_are_found() {
    let model = Copy::of("bert").edit_tensors(|mut all| {
        for tensor in &mut all {
            tensor.name = tensor.name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        }
        all
    });
    assert_eq!(forward(model.path(), &fixture_ids("bert")), forward(&fixture("bert"), &fixture_ids("bert")));
}

#[test]
fn a_bare_gpt2_with_its_head_and_masks_beside_it_is_found() {
    let model = Copy::of("gpt2").edit_tensors(|mut all| {
        all.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace("transformer.", ""));
        let mut head = all.iter().find(|tensor| tensor.name == "wte.weight").unwrap().clone();
        head.name = "lm_head.weight".to_owned();
        // The published files also hold the causal mask.
        let mask = OwnedTensor { name: "h.0.attn.bias".to_owned(), ..head.clone() };
        all.extend([head, mask]);
        all
    });
    let model = model.edit_json("config.json", |config| config["tie_word_embeddings"] = json!(false));
    assert_eq!(forward(model.path(), &fixture_ids("gpt2")), forward(&fixture("gpt2"), &fixture_ids("gpt2")));
}

#[test]
fn a_decoder_saved_without_its_prefix_is_found() {
    let model = Copy::of("llama-tied").edit_tensors(|mut all| {
        all.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace("model.", ""));
        all
    });
    assert_eq!(forward(model.path(), &fixture_ids("llama-tied")), forward(&fixture("llama-tied"), &fixture_ids("llama-tied")));
}

#[test]
fn generation_ends_at_an_end_token_without_yielding_it() {
    let Greedy { prompt, tokens } = greedy("llama-tied");
    let end = tokens[10];
    let first = tokens.iter().position(|&token| token == end).unwrap();
    for file in ["config.json", "generation_config.json"] {
        let model = Copy::of("llama-tied").edit_json(file, |config| config["eos_token_id"] = json!([end]));
        let (generated, stop) = generate(&open_decoder(model.path()), &prompt, 64, Sampling::GREEDY, 0);
        assert_eq!((generated.as_slice(), stop), (&tokens[..first], Stop::EndOfSequence), "{file}");
    }
}

/// The last token that fits is drawn from the logits of the last position, and stands itself beyond it.
#[test]
fn generation_ends_when_the_positions_are_used_up() {
    let Greedy { prompt, tokens } = greedy("mistral");
    let model = Copy::of("mistral").edit_json("config.json", |config| config["max_position_embeddings"] = json!(20));
    let (generated, stop) = generate(&open_decoder(model.path()), &prompt, 64, Sampling::GREEDY, 0);
    assert_eq!((generated.as_slice(), stop), (&tokens[..20 - prompt.len() + 1], Stop::Full));

    let Greedy { prompt, tokens } = greedy("gpt2-odd");
    let (generated, stop) = generate(&open_decoder(&fixture("gpt2-odd")), &prompt, 200, Sampling::GREEDY, 0);
    assert_eq!((generated.len(), stop), (77 - prompt.len() + 1, Stop::Full), "77 learned positions");
    assert_eq!(generated[..64], tokens);
}

/// A layer's window is 37 positions, so what a token says travels 36 further in each of the two layers.
#[test]
fn a_token_that_left_the_windows_of_all_layers_no_longer_matters() {
    let sequence = &fixture_ids("mistral-window")[2];
    let mut other = sequence.clone();
    other[0] = (sequence[0] + 1) % 97;
    let rows = |sequence: &Vec<u32>| forward(&fixture("mistral-window"), std::slice::from_ref(sequence));
    let (output, other) = (rows(sequence), rows(&other));
    let changed: Vec<bool> = output.chunks_exact(97).zip(other.chunks_exact(97)).map(|(a, b)| relative_error(a, b) > 1e-6).collect();
    assert_eq!(changed.len(), 150);
    assert_eq!(changed.iter().rposition(|&changed| changed), Some(2 * 36));
}

#[test]
fn a_window_in_no_layer_is_full_attention() {
    let sequences = fixture_ids("qwen2");
    let without = Copy::of("qwen2").edit_json("config.json", |config| {
        config["use_sliding_window"] = json!(false);
        config.as_object_mut().unwrap().remove("layer_types");
    });
    let beyond = Copy::of("qwen2").edit_json("config.json", |config| {
        config["max_window_layers"] = json!(3);
        config.as_object_mut().unwrap().remove("layer_types");
    });
    let full = forward(without.path(), &sequences);
    assert_eq!(forward(beyond.path(), &sequences), full);
    assert!(relative_error(&forward(&fixture("qwen2"), &sequences), &full) > 1e-2);
}

#[test]
fn a_seed_decides_what_is_sampled() {
    let decoder = open_decoder(&fixture("llama-tied"));
    let sampling = Sampling { temperature: 1.0, top_k: None, top_p: 0.95 };
    let sampled = |seed| generate(&decoder, &[3, 1, 4], 40, sampling, seed).0;
    assert_eq!(sampled(5), sampled(5));
    assert_ne!(sampled(5), sampled(6));
}
