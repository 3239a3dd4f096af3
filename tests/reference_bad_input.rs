//! What the commands answer to files and arguments that are wrong: one line that names the file or field and the remedy, exit code 2, no
//! output, nothing left behind. The messages are kept as snapshots, one file a subject.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use smidgen::weights::Checkpoint;

mod tiny_models;

use tiny_models::{Copy, OwnedTensor, fixture};

fn smidgen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smidgen")).args(args).output().unwrap()
}

/// The message of a command that must fail as every command fails.
fn message(args: &[&str]) -> String {
    let output = smidgen(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{args:?} printed a result although it failed");
    let line = stderr.strip_prefix("error: ").and_then(|line| line.strip_suffix('\n')).unwrap_or_else(|| panic!("{args:?}: {stderr}"));
    assert!(!line.contains('\n'), "more than one line: {line}");
    line.to_owned()
}

/// Messages of several cases, for one snapshot.
#[derive(Default)]
struct Messages(String);

impl Messages {
    /// `smidgen forward` on a damaged model. The output file must not exist afterwards, nor any other new file beside it.
    fn forward(&mut self, case: &str, model: &Copy) {
        let ids = fixture("llama-tied").join("ids.json");
        self.forward_ids(case, model.path(), &ids);
    }

    fn forward_ids(&mut self, case: &str, model: &Path, ids: &Path) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.safetensors");
        let paths = [model, ids, &out].map(|path| path.to_str().unwrap());
        let line = message(&["forward", "--device", "cpu", "--model", paths[0], "--ids", paths[1], "--out", paths[2]]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{case}: a file is left behind");
        self.push(case, &line.replace(paths[0], "MODEL").replace(paths[1], "IDS").replace(paths[2], "OUT"));
    }

    fn embed(&mut self, case: &str, model: &Path) {
        let model = model.to_str().unwrap();
        let line = message(&["embed", "--device", "cpu", "--model", model, "a cat"]);
        self.push(case, &line.replace(model, "MODEL"));
    }

    fn generate(&mut self, case: &str, model: &Path, prompt: &str) {
        let model = model.to_str().unwrap();
        let line = message(&["generate", "--device", "cpu", "--model", model, prompt]);
        self.push(case, &line.replace(model, "MODEL"));
    }

    fn push(&mut self, case: &str, line: &str) {
        writeln!(self.0, "{case}\n    {line}").unwrap();
    }
}

fn edited(model: &str, edit: impl FnOnce(&mut Value)) -> Copy {
    Copy::of(model).edit_json("config.json", edit)
}

#[test]
fn a_configuration_that_cannot_be_run_is_refused_by_file_and_field() {
    let mut messages = Messages::default();
    let with_file = |contents: &str| {
        let model = Copy::of("llama-tied");
        fs::write(model.file("config.json"), contents).unwrap();
        model
    };
    let without_file = Copy::of("llama-tied");
    fs::remove_file(without_file.file("config.json")).unwrap();
    messages.forward("no file", &without_file);
    messages.forward("truncated", &with_file(r#"{"model_type": "llama", "hidden_size": 4"#));
    messages.forward("not an object", &with_file("[1, 2]"));
    messages.forward("no model type", &with_file("{}"));

    type Edit = fn(&mut Value);
    let llama: [(&str, Edit); 22] = [
        ("unknown model type", |c| c["model_type"] = json!("gptj")),
        ("unknown field", |c| c["logits_scaling"] = json!(8)),
        ("quantised", |c| c["quantization_config"] = json!({"quant_method": "gptq"})),
        ("missing field", |c| c["intermediate_size"] = Value::Null),
        ("a size of 0", |c| c["num_hidden_layers"] = json!(0)),
        ("a negative size", |c| c["hidden_size"] = json!(-48)),
        ("a size that is text", |c| c["vocab_size"] = json!("131")),
        ("a size beyond reason", |c| c["hidden_size"] = json!(u64::MAX)),
        ("activation", |c| c["hidden_act"] = json!("quick_gelu")),
        ("key heads that do not divide the heads", |c| c["num_key_value_heads"] = json!(4)),
        ("odd head width", |c| c["head_dim"] = json!(7)),
        ("heads that do not divide the width", |c| {
            c["head_dim"] = Value::Null;
            c["num_attention_heads"] = json!(10);
        }),
        ("rotary type", |c| c["rope_parameters"] = json!({"rope_type": "yarn", "factor": 2.0})),
        ("rotary field missing", |c| c["rope_parameters"] = json!({"rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4})),
        ("rotary bands reversed", |c| {
            c["rope_parameters"] = json!({"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1});
        }),
        ("rotary field unknown", |c| c["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0, "beta_fast": 32})),
        ("rotary base given twice", |c| c["rope_theta"] = json!(500_000)),
        ("rotary scaling given twice", |c| c["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0})),
        ("rotary type given twice", |c| c["rope_parameters"] = json!({"rope_type": "linear", "type": "llama3"})),
        ("epsilon", |c| c["rms_norm_eps"] = json!(0)),
        ("end token beyond the vocabulary", |c| c["eos_token_id"] = json!([2, 131])),
        ("sliding layers", |c| c["layer_types"] = json!(["full_attention", "sliding_attention"])),
    ];
    for (case, edit) in llama {
        messages.forward(case, &edited("llama-tied", edit));
    }
    let gpt2: [(&str, Edit); 5] = [
        ("GPT-2's heads", |c| c["n_head"] = json!(5)),
        ("GPT-2's positions given twice", |c| c["n_ctx"] = json!(1024)),
        ("GPT-2's width given twice", |c| c["hidden_size"] = json!(32)),
        ("GPT-2 with an encoder", |c| c["add_cross_attention"] = json!(true)),
        ("GPT-2's end token", |c| c["eos_token_id"] = json!(50256)),
    ];
    for (case, edit) in gpt2 {
        messages.forward(case, &edited("gpt2", edit));
    }
    let qwen2: [(&str, Edit); 4] = [
        ("full layers after sliding ones", |c| c["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention"])),
        ("another kind of attention", |c| c["layer_types"] = json!(["full_attention", "chunked_attention", "full_attention"])),
        ("a layer without a kind", |c| c["layer_types"] = json!(["full_attention"])),
        ("full layers that are not counted", |c| c["max_window_layers"] = json!(-1)),
    ];
    for (case, edit) in qwen2 {
        messages.forward(case, &edited("qwen2", edit));
    }
    let exempted = edited("mistral-window", |c| c["layer_types"] = json!(["full_attention", "sliding_attention"]));
    messages.forward("Mistral with a layer without a window", &exempted);
    let bert: [(&str, Edit); 3] = [
        ("relative positions", |c| c["position_embedding_type"] = json!("relative_key")),
        ("BERT as a decoder", |c| c["is_decoder"] = json!(true)),
        ("BERT's heads", |c| c["num_attention_heads"] = json!(5)),
    ];
    for (case, edit) in bert {
        messages.forward(case, &edited("bert", edit));
    }
    let deberta: [(&str, Edit); 9] = [
        ("a convolution of even width", |c| c["conv_kernel_size"] = json!(4)),
        ("a convolution in groups", |c| c["conv_groups"] = json!(2)),
        ("a convolution with tanh", |c| c["conv_act"] = Value::Null),
        ("DeBERTa without relative positions", |c| c["relative_attention"] = json!(false)),
        ("another term of the scores", |c| c["pos_att_type"] = json!("c2p|p2p")),
        ("buckets that reach no farther than single positions", |c| c["position_buckets"] = json!(40)),
        ("another norm of the positions", |c| c["norm_rel_ebd"] = json!("batch_norm")),
        ("embeddings of another width", |c| c["embedding_size"] = json!(16)),
        ("heads that are narrower than the width implies", |c| c["attention_head_size"] = json!(8)),
    ];
    for (case, edit) in deberta {
        messages.forward(case, &edited("deberta-v2", edit));
    }
    messages.forward("buckets in the first DeBERTa", &edited("deberta", |c| c["position_buckets"] = json!(16)));
    messages.forward("DistilBERT's width given twice", &edited("distilbert", |c| c["hidden_size"] = json!(32)));
    insta::assert_snapshot!(messages.0);
}

#[test]
fn fields_that_cannot_change_the_result_are_ignored() {
    let model = edited("llama-tied", |config| {
        config["_attn_implementation"] = json!("eager");
        config["torch_dtype"] = json!("bfloat16");
        config["use_cache"] = json!(false);
        config["some_future_switch"] = json!(false);
    });
    let out = model.file("out.safetensors");
    let (dir, ids) = (model.path().to_str().unwrap(), fixture("llama-tied").join("ids.json"));
    let output = smidgen(&["forward", "--device", "cpu", "--model", dir, "--ids", ids.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn weights_that_do_not_fit_are_refused_by_file_and_tensor() {
    let mut messages = Messages::default();
    let weights = |model: &Copy| model.file("model.safetensors");

    let none = Copy::of("llama-tied");
    fs::remove_file(weights(&none)).unwrap();
    messages.forward("no file", &none);
    fs::write(none.file("pytorch_model.bin"), b"").unwrap();
    messages.forward("PyTorch weights only", &none);

    let cut = |keep: usize| {
        let model = Copy::of("llama-tied");
        let mut bytes = fs::read(weights(&model)).unwrap();
        bytes.truncate(keep);
        fs::write(weights(&model), bytes).unwrap();
        model
    };
    messages.forward("empty", &cut(0));
    messages.forward("truncated in the header", &cut(100));
    messages.forward("truncated in the data", &cut(100_000));
    let garbage = Copy::of("llama-tied");
    fs::write(weights(&garbage), b"<!DOCTYPE html><html>404</html>").unwrap();
    messages.forward("a web page", &garbage);

    let tensors = |edit: fn(Vec<OwnedTensor>) -> Vec<OwnedTensor>| Copy::of("llama-tied").edit_tensors(edit);
    let without = |all: Vec<OwnedTensor>| all.into_iter().filter(|tensor| !tensor.name.contains("layers.1.mlp.up_proj")).collect();
    messages.forward("a tensor is missing", &tensors(without));
    messages.forward(
        "a tensor has another shape",
        &tensors(|mut all| {
            all.iter_mut().filter(|tensor| tensor.name.ends_with("0.self_attn.k_proj.weight")).for_each(|tensor| tensor.shape.reverse());
            all
        }),
    );
    messages.forward(
        "a tensor has another type",
        &tensors(|all| all.iter().map(|tensor| tensor.encoded(Dtype::I64, |x| (x as i64).to_le_bytes())).collect()),
    );
    messages.forward("the configuration has more layers", &edited("llama-tied", |c| c["num_hidden_layers"] = json!(3)));
    messages.forward("the configuration has fewer layers", &edited("llama-tied", |c| c["num_hidden_layers"] = json!(1)));
    let without_bias = Copy::of("llama-untied").edit_json("config.json", |c| c["attention_bias"] = json!(false));
    messages.forward("the configuration has no biases", &without_bias);
    messages.forward("the configuration has another vocabulary", &edited("llama-tied", |c| c["vocab_size"] = json!(132)));
    let shared = edited("deberta-v2", |c| c["share_att_key"] = json!(true));
    messages.forward("the configuration shares what the weights do not", &shared);
    messages.forward("the head is tied in the weights only", &edited("llama-tied", |c| c["tie_word_embeddings"] = json!(false)));
    insta::assert_snapshot!(messages.0);
}

#[test]
fn a_folder_in_the_place_of_weights_is_called_one() {
    let model = Copy::of("bert");
    fs::remove_file(model.file("model.safetensors")).unwrap();
    fs::create_dir(model.file("model.safetensors")).unwrap();
    let line = message(&["embed", "--device", "cpu", "--model", model.path().to_str().unwrap(), "a cat"]);
    assert!(line.contains("model.safetensors: cannot be read (it is a folder)"), "{line}");
}

#[test]
fn shards_that_do_not_fit_are_refused_by_file_and_tensor() {
    let mut messages = Messages::default();
    let sharded = |file: &str, extra: &str| {
        let model = Copy::of("llama-tied");
        let mut map: serde_json::Map<_, _> = model.tensors().into_iter().map(|tensor| (tensor.name, json!(file))).collect();
        if !extra.is_empty() {
            map.insert(extra.to_owned(), json!(file));
        }
        fs::rename(model.file("model.safetensors"), model.file("model-00001-of-00001.safetensors")).unwrap();
        model.edit_json("model.safetensors.index.json", |index| *index = json!({ "weight_map": map }))
    };
    messages.forward("a shard is missing", &sharded("model-00002-of-00002.safetensors", ""));
    messages.forward("a shard outside the directory", &sharded("../model-00001-of-00001.safetensors", ""));
    messages.forward("a tensor is not in its shard", &sharded("model-00001-of-00001.safetensors", "lm_head.weight"));
    let model = sharded("model-00001-of-00001.safetensors", "").edit_json("model.safetensors.index.json", |index| *index = json!({}));
    messages.forward("an index without a map", &model);
    insta::assert_snapshot!(messages.0);
}

#[test]
fn a_tokenizer_that_does_not_match_is_refused() {
    let mut messages = Messages::default();
    messages.embed("no file", &fixture("distilbert"));
    let model = Copy::of("bert");
    fs::write(model.file("tokenizer.json"), b"{\"version\": \"1.0\"").unwrap();
    messages.embed("truncated", model.path());
    let model = Copy::of("bert");
    fs::copy(fixture("llama-untied").join("tokenizer.json"), model.file("tokenizer.json")).unwrap();
    messages.embed("more ids than the model", model.path());
    let model = Copy::of("bert").edit_json("tokenizer.json", |tokenizer| {
        tokenizer["post_processor"]["special_tokens"].as_object_mut().unwrap().remove("[SEP]");
    });
    messages.embed("a special token that is not defined", model.path());
    let model = Copy::of("bert").edit_json("tokenizer.json", |tokenizer| {
        tokenizer["post_processor"]["special_tokens"]["[SEP]"]["ids"] = json!([70_000]);
    });
    messages.embed("a special token beyond the model's ids", model.path());
    let model = Copy::of("bert").edit_json("sentence_bert_config.json", |config| *config = json!({"max_seq_length": 2}));
    messages.embed("a limit of special tokens alone", model.path());
    let model = Copy::of("llama-untied");
    messages.generate("a prompt beyond the positions", model.path(), &"~".repeat(200));
    let model = model.edit_json("config.json", |config| config["max_position_embeddings"] = json!(1));
    messages.generate("no room beside the special tokens", model.path(), "the");
    insta::assert_snapshot!(messages.0);
}

#[test]
fn a_pooling_recipe_that_cannot_be_followed_is_refused() {
    let mut messages = Messages::default();
    let modules = |last: &str, path: &str| {
        Copy::of("bert").edit_json("modules.json", |modules| {
            *modules = json!([
                {"path": "", "type": "sentence_transformers.models.Transformer"},
                {"path": path, "type": "sentence_transformers.models.Pooling"},
                {"path": "2", "type": last},
            ]);
        })
    };
    let pooling = |config: Value| {
        let model = modules("sentence_transformers.models.Normalize", "1_Pooling");
        fs::create_dir(model.file("1_Pooling")).unwrap();
        model.edit_json("1_Pooling/config.json", |file| *file = config)
    };
    messages.embed("another step", modules("sentence_transformers.models.Dense", "1_Pooling").path());
    messages.embed("a path outside the directory", modules("sentence_transformers.models.Normalize", "../1_Pooling").path());
    messages.embed("another pooling", pooling(json!({"pooling_mode_max_tokens": true})).path());
    messages.embed("two poolings", pooling(json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true})).path());
    messages.embed("another width", pooling(json!({"word_embedding_dimension": 384, "pooling_mode_mean_tokens": true})).path());
    let model = Copy::of("bert").edit_json("config_sentence_transformers.json", |config| *config = json!({"default_prompt_name": "query"}));
    messages.embed("a prompt before each text", model.path());
    insta::assert_snapshot!(messages.0);
}

#[test]
fn token_ids_that_the_model_cannot_run_are_refused_by_sequence_and_position() {
    let mut messages = Messages::default();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nothing.json");
    messages.forward_ids("no file", &fixture("llama-tied"), &missing);
    let mut with_ids = |case: &str, model: &Path, ids: &str| {
        let path: PathBuf = folder.path().join("ids.json");
        fs::write(&path, ids).unwrap();
        messages.forward_ids(case, model, &path);
    };
    let llama = fixture("llama-tied");
    with_ids("truncated", &llama, "[[1, 2");
    with_ids("one sequence, not an array of them", &llama, "[1, 2, 3]");
    with_ids("a negative id", &llama, "[[1, -2]]");
    with_ids("a fraction", &llama, "[[1, 2.5]]");
    with_ids("no sequence", &llama, "[]");
    with_ids("an empty sequence", &llama, "[[1], []]");
    with_ids("an id beyond the vocabulary", &llama, "[[1, 2], [3, 131]]");
    with_ids("longer than the positions", &llama, &json!([vec![1; 97]]).to_string());
    with_ids("longer than GPT-2's positions", &fixture("gpt2"), &json!([vec![1; 97]]).to_string());
    with_ids("longer than BERT's positions", &fixture("bert"), &json!([[1], vec![1; 41]]).to_string());
    insta::assert_snapshot!(messages.0);
}

#[test]
fn an_output_that_cannot_be_written_is_refused_and_an_old_one_survives_a_failure() {
    let mut messages = Messages::default();
    let folder = tempfile::tempdir().unwrap();
    let (model, ids) = (fixture("bert"), fixture("bert").join("ids.json"));
    let forward = |ids: &Path, out: &Path| {
        let paths = [&model, ids, out].map(|path| path.to_str().unwrap());
        message(&["forward", "--device", "cpu", "--model", paths[0], "--ids", paths[1], "--out", paths[2]]).replace(paths[2], "OUT")
    };
    messages.push("no such folder", &forward(&ids, &folder.path().join("missing/out.safetensors")));
    messages.push("a folder", &forward(&ids, folder.path()));
    insta::assert_snapshot!(messages.0);

    let (out, bad_ids) = (folder.path().join("out.safetensors"), folder.path().join("ids.json"));
    fs::write(&out, b"old").unwrap();
    fs::write(&bad_ids, b"[[97]]").unwrap();
    forward(&bad_ids, &out);
    assert_eq!(fs::read(&out).unwrap(), b"old");
}

#[test]
fn an_output_never_takes_the_place_of_the_model_or_the_ids() {
    let model = Copy::of("bert");
    let ids = fixture("bert").join("ids.json");
    fs::copy(&ids, model.file("my-ids.json")).unwrap();
    for name in ["model.safetensors", "config.json", "my-ids.json"] {
        let before = fs::read(model.file(name)).unwrap();
        let ids = model.file("my-ids.json");
        let paths = [model.path(), &ids, &model.path().join(".").join(name)].map(|path| path.to_str().unwrap().to_owned());
        let line = message(&["forward", "--device", "cpu", "--model", &paths[0], "--ids", &paths[1], "--out", &paths[2]]);
        assert!(line.starts_with(&paths[2]) && line.contains("give the output another name"), "{line}");
        assert_eq!(fs::read(model.file(name)).unwrap(), before);
    }
    // An earlier result in the model's folder is replaced, as anywhere.
    let out = model.file("out.safetensors");
    for _ in 0..2 {
        let paths = [model.path(), &ids, &out].map(|path| path.to_str().unwrap());
        let output = smidgen(&["forward", "--device", "cpu", "--model", paths[0], "--ids", paths[1], "--out", paths[2]]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_command_that_does_not_suit_the_model_names_the_one_that_does() {
    let mut messages = Messages::default();
    messages.embed("embed with a decoder", &fixture("llama-untied"));
    messages.generate("generate with an encoder", &fixture("bert"), "the");
    messages.embed("embed with a preset", Path::new("bert-base"));
    messages.embed("no such model", Path::new("bert-huge"));
    insta::assert_snapshot!(messages.0);
}

#[test]
fn arguments_out_of_range_are_usage_errors() {
    let model = fixture("llama-untied");
    for (option, value) in
        [("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "0"), ("--top-p", "1.5"), ("--top-k", "0"), ("--max-tokens", "0")]
    {
        let output = smidgen(&["generate", "--model", model.to_str().unwrap(), &format!("{option}={value}"), "the"]);
        assert_eq!(output.status.code(), Some(2), "{option} {value}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(option), "{option} {value}");
    }
}

#[test]
fn an_element_beyond_half_precision_is_refused_by_tensor_and_runs_in_f32() {
    let model = Copy::of("llama-tied").edit_tensors(|mut all| {
        let norm = all.iter_mut().find(|tensor| tensor.name == "model.norm.weight").unwrap();
        norm.bytes[8..12].copy_from_slice(&70_000_f32.to_le_bytes());
        all
    });
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    assert_eq!(checkpoint.tensor_f32("model.norm.weight", &[48]).unwrap()[2], 70_000.0);
    let error = checkpoint.tensor_f16("model.norm.weight", &[48]).unwrap_err().to_string();
    insta::assert_snapshot!(error.replace(model.path().to_str().unwrap(), "MODEL"), @"MODEL/model.safetensors: tensor `model.norm.weight` holds 70000, beyond the largest f16 (65504); `smidgen forward`, `generate` and `embed` compute in f32 with `--device cpu`");
    assert_eq!(checkpoint.tensor_f16("model.layers.0.input_layernorm.weight", &[48]).unwrap().len(), 48);
}

/// Files damaged at random: whatever they hold, opening and running them gives a result or an error, never a panic.
mod damaged {
    use super::*;
    use proptest::prelude::*;
    use smidgen::batch::RaggedBatch;
    use smidgen::embedding::EmbeddingRecipe;
    use smidgen::reference::Reference;
    use smidgen::tokenizer::Tokenizer;
    use smidgen::weights::Weights;

    fn run(model: &Path) -> Option<usize> {
        let weights = Weights::open(model).ok()?;
        let batch = RaggedBatch::new(&[vec![1, 2, 3], vec![4]], weights.config()).ok()?;
        let rows = Reference::load(&weights).ok()?.forward(&batch).rows();
        let tokenizer = Tokenizer::open(model, weights.config(), None).ok()?;
        let recipe = EmbeddingRecipe::open(model, weights.config().hidden()).ok()?;
        tokenizer.encode("a cat sat").ok()?;
        Some(rows + recipe.max_tokens.unwrap_or(0))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

        #[test]
        fn a_file_with_changed_bytes_never_panics(
            model in prop::sample::select(vec!["bert", "gpt2", "llama-untied", "qwen2"]),
            file in prop::sample::select(vec!["config.json", "model.safetensors", "tokenizer.json"]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            within in prop::sample::select(vec![200, usize::MAX]),
        ) {
            let copy = Copy::of(model);
            let mut bytes = fs::read(copy.file(file)).unwrap();
            let within = within.min(bytes.len());
            for (position, byte) in changes {
                bytes[position.index(within)] = byte;
            }
            fs::write(copy.file(file), bytes).unwrap();
            run(copy.path());
        }

        #[test]
        fn a_file_cut_anywhere_is_refused(model in prop::sample::select(vec!["bert", "gpt2"]), keep in any::<prop::sample::Index>()) {
            let copy = Copy::of(model);
            let bytes = fs::read(copy.file("model.safetensors")).unwrap();
            fs::write(copy.file("model.safetensors"), &bytes[..keep.index(bytes.len())]).unwrap();
            prop_assert!(Weights::open(copy.path()).is_err());
        }
    }
}

#[test]
fn damaged_weights_are_no_result() {
    let damaged =
        Copy::of("bert").edit_tensors(|all| all.iter().map(|tensor| tensor.encoded(Dtype::F32, |_| f32::NAN.to_le_bytes())).collect());
    let model = damaged.path().to_str().unwrap();
    let line = message(&["embed", "--device", "cpu", "--model", model, "a cat"]);
    assert!(line.starts_with(model) && line.contains("not finite") && line.contains("download"), "{line}");
}

#[test]
fn a_result_without_a_finite_number_comes_with_one_warning() {
    let damaged = |name: &str| {
        Copy::of(name).edit_tensors(|all| all.iter().map(|tensor| tensor.encoded(Dtype::F32, |_| f32::NAN.to_le_bytes())).collect())
    };
    let (bert, llama, folder) = (damaged("bert"), damaged("llama-untied"), tempfile::tempdir().unwrap());
    let (ids, out, prompts) = (fixture("bert").join("ids.json"), folder.path().join("out"), folder.path().join("prompts"));
    fs::write(&prompts, "the cat\nthe dog\n").unwrap();
    let [bert, llama, ids, out, prompts] = [bert.path(), llama.path(), &ids, &out, &prompts].map(|path| path.to_str().unwrap());
    let sound = fixture("bert");
    let commands: [(&[&str], usize); 4] = [
        (&["forward", "--model", bert, "--ids", ids, "--out", out], 1),
        (&["generate", "--model", llama, "--max-tokens", "4", "the cat"], 1),
        (&["generate", "--model", llama, "--max-tokens", "4", "--requests", prompts], 1),
        (&["forward", "--model", sound.to_str().unwrap(), "--ids", ids, "--out", out], 0),
    ];
    for (command, warnings) in commands {
        let output = smidgen(&[command, &["--device", "cpu"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{command:?}: {stderr}");
        assert_eq!(stderr.lines().filter(|line| line.contains("holds no finite number")).count(), warnings, "{command:?}: {stderr}");
    }
}
