//! The commands `forward`, `generate` and `embed` on the CPU, as a user runs them.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::pty::{self, OpenptFlags};
use serde::Deserialize;

use smidgen::batch::RaggedBatch;
use smidgen::reference::Reference;
use smidgen::weights::Weights;

mod tiny_models;

use tiny_models::{Copy, DECODERS, ENCODERS, expected, fixture, read_tensor, relative_error};

/// Standard output and standard error of a command that must succeed.
fn smidgen(args: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_smidgen")).args(args).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{args:?}: {stderr}");
    (stdout, stderr)
}

/// What a command that must succeed shows on standard error where that is a terminal.
fn shown_on_a_terminal(args: &[&str]) -> String {
    let ours = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    pty::grantpt(&ours).unwrap();
    pty::unlockpt(&ours).unwrap();
    let path = pty::ptsname(&ours, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
    let mut child = command.args(args).env("TERM", "xterm").stdin(Stdio::null()).stdout(Stdio::null()).stderr(terminal).spawn().unwrap();
    // It holds the terminal open, which would never end.
    drop(command);
    let mut shown = Vec::new();
    // The end of a terminal that nobody has open any more is an error.
    let _ = File::from(ours).read_to_end(&mut shown);
    let shown = String::from_utf8(shown).unwrap();
    assert!(child.wait().unwrap().success(), "{args:?}: {shown}");
    shown
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn forward_writes_the_tensor_that_transformers_computes() {
    for name in DECODERS.into_iter().chain(ENCODERS) {
        let folder = tempfile::tempdir().unwrap();
        let (model, ids, out) = (fixture(name), fixture(name).join("ids.json"), folder.path().join("out.safetensors"));
        smidgen(&["forward", "--device", "cpu", "--model", text(&model), "--ids", text(&ids), "--out", text(&out)]);
        let tensor = if ENCODERS.contains(&name) { "last_hidden_state" } else { "logits" };
        let (output, expected) = (read_tensor(&out, tensor), expected(name));
        assert_eq!(output.shape, expected.shape, "{name}");
        let error = relative_error(&output.values, &expected.values);
        assert!(error < 1e-4, "{name}: relative error {error}");
    }
}

#[test]
fn forward_runs_a_preset_with_the_same_weights_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, "[[101, 2023, 102]]").unwrap();
    let run = |file: &str| {
        let out = folder.path().join(file);
        smidgen(&["forward", "--device", "cpu", "--model", "distilbert", "--ids", text(&ids), "--out", text(&out)]);
        read_tensor(&out, "last_hidden_state")
    };
    let output = run("first.safetensors");
    assert_eq!(output.shape, [3, 768]);
    assert!(output.values.iter().all(|x| x.is_finite()));
    assert_eq!(output, run("second.safetensors"));
}

#[test]
fn generate_prints_the_continuation_and_a_seed_repeats_it() {
    for name in ["gpt2", "llama-untied", "qwen2"] {
        let model = fixture(name);
        let generate =
            |options: &[&str]| smidgen(&[&["generate", "--device", "cpu", "--model", text(&model), "the quick"], options].concat()).0;
        let greedy = generate(&["--max-tokens", "12"]);
        assert!(!greedy.trim().is_empty(), "{name}");
        assert_eq!(greedy, generate(&["--max-tokens", "12", "--temperature", "0", "--seed", "9"]), "{name}");
        let longer = generate(&["--max-tokens", "24"]);
        assert!(longer.starts_with(greedy.trim_end_matches(['\u{fffd}', '\n'])), "{name}: a longer text begins alike");
        let sampled = |seed| generate(&["--max-tokens", "12", "--temperature", "1.5", "--top-k", "50", "--top-p", "0.95", "--seed", seed]);
        assert_eq!(sampled("1"), sampled("1"), "{name}");
        assert_ne!(sampled("1"), sampled("2"), "{name}");
    }
}

#[derive(Deserialize)]
struct Answer {
    prompt: String,
    text: String,
    tokens: usize,
    stop: String,
    latency_ms: f64,
}

/// `smidgen generate` over a file of prompts.
fn serve(prompts: &str, options: &[&str]) -> (Vec<Answer>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.txt");
    std::fs::write(&file, prompts).unwrap();
    let model = fixture("llama-untied");
    let arguments = ["generate", "--device", "cpu", "--model", text(&model), "--requests", text(&file)];
    let (stdout, stderr) = smidgen(&[&arguments, options].concat());
    (stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), stderr)
}

#[test]
fn generate_answers_a_file_of_prompts_in_order_as_it_answers_each_alone() {
    let prompts = ["the quick", "a", "the dog and the cat", "the quick"];
    let model = fixture("llama-untied");
    let options = ["--max-tokens", "9", "--temperature", "1.2"];
    for batching in [&[][..], &["--max-batch", "2", "--chunk", "3"], &["--cache-tokens", "1", "--rate", "1000/s"]] {
        let (answers, stderr) = serve(&prompts.join("\n\n"), &[&options[..], &["--seed", "5"], batching].concat());
        assert_eq!(answers.iter().map(|answer| answer.prompt.as_str()).collect::<Vec<_>>(), prompts);
        for (index, answer) in answers.iter().enumerate() {
            let seed = (5 + index).to_string();
            let alone = ["generate", "--device", "cpu", "--model", text(&model), prompts[index], "--seed", &seed];
            assert_eq!(smidgen(&[&alone[..], &options].concat()).0, format!("{}\n", answer.text), "prompt {index}, {batching:?}");
            assert!(answer.latency_ms > 0.0);
            assert_eq!((answer.tokens, answer.stop.as_str()), (9, "max-tokens"));
        }
        for part in ["4 requests, 36 tokens", "tokens/s", "time to first token", "time per output token"] {
            assert!(stderr.contains(part), "{stderr}");
        }
    }
}

#[test]
fn generate_refuses_requests_that_it_cannot_serve_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let path = folder.path().join("prompts.txt");
        std::fs::write(&path, text).unwrap();
        path
    };
    let model = fixture("llama-untied");
    let long = "a ".repeat(500);
    for (prompts, options, part) in [
        ("\n \n", &[][..], "has no prompt"),
        (&format!("a\n{long}"), &[], "prompt 2 has more than the"),
        ("a\na\na", &["--chunk", "2"], "--chunk 2: each of the 3 requests"),
        ("a", &["--max-batch", "0"], "--max-batch"),
        ("a", &["and a prompt"], "cannot be used with"),
        ("a", &["--rate", "0"], "a rate is from"),
    ] {
        let arguments = ["generate", "--device", "cpu", "--model", text(&model), "--requests", text(&file(prompts))].map(str::to_owned);
        let output = Command::new(env!("CARGO_BIN_EXE_smidgen")).args(arguments).args(options).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(part), "{options:?}: {stderr}");
    }
}

#[derive(Deserialize)]
struct Line {
    text: String,
    embedding: Vec<f32>,
}

fn embed(model: &Path, texts: &[&str]) -> (Vec<Line>, String) {
    let (stdout, stderr) = smidgen(&[&["embed", "--device", "cpu", "--model", text(model)], texts].concat());
    (stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), stderr)
}

#[test]
fn embed_prints_one_json_line_for_each_text_in_order() {
    let (lines, _) = embed(&fixture("bert"), &["a cat", "the dog", "a cat"]);
    assert_eq!(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["a cat", "the dog", "a cat"]);
    assert_eq!(lines[0].embedding, lines[2].embedding);
    assert_ne!(lines[0].embedding, lines[1].embedding);
    for line in &lines {
        let length = line.embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "normalised by default: {length}");
    }
}

#[test]
fn embed_pools_as_the_models_own_files_say() {
    let model = Copy::of("bert").edit_json("modules.json", |modules| {
        *modules = serde_json::json!([
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]);
    });
    std::fs::create_dir(model.file("1_Pooling")).unwrap();
    let model = model.edit_json("1_Pooling/config.json", |config| *config = serde_json::json!({"pooling_mode_cls_token": true}));
    let (lines, _) = embed(model.path(), &["a"]);
    // [CLS] a [SEP] in the fixture's vocabulary.
    let weights = Weights::open(model.path()).unwrap();
    let batch = RaggedBatch::new(&[[2_u32, 5, 3]], weights.config()).unwrap();
    let hidden = Reference::load(&weights).unwrap().forward(&batch);
    assert_eq!(lines[0].embedding, hidden.row(0));
}

#[test]
fn embed_makes_texts_lower_case_where_the_models_own_files_say_so() {
    // The fixture's tokenizer knows small letters only.
    let model = Copy::of("bert").edit_json("tokenizer.json", |tokenizer| tokenizer["normalizer"] = serde_json::Value::Null);
    let cased = embed(model.path(), &["A cat", "a cat"]).0;
    assert_ne!(cased[0].embedding, cased[1].embedding);
    let model = model.edit_json("sentence_bert_config.json", |config| *config = serde_json::json!({"do_lower_case": true}));
    let lowered = embed(model.path(), &["A cat", "a cat"]).0;
    assert_eq!(lowered[0].embedding, lowered[1].embedding);
}

#[test]
fn embed_cuts_a_text_at_the_models_limit_and_says_so() {
    let (lines, stderr) = embed(&fixture("bert"), &["cat", &"a".repeat(60)]);
    assert_eq!(lines.len(), 2);
    assert!(stderr.contains("text 2 has more than 40 tokens"), "{stderr}");
    assert!(!stderr.contains("text 1"), "{stderr}");
}

#[test]
fn a_filter_for_the_log_that_is_none_is_said_to_be_ignored() {
    let (model, ids) = (fixture("bert"), fixture("bert").join("ids.json"));
    let run = |filter: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
        command.args(["forward", "--device", "cpu", "--model", text(&model), "--ids", text(&ids), "--out", "/dev/null"]);
        let output = command.env("SMIDGEN_LOG", filter).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let stderr = run("smidgen=loud");
    assert!(stderr.starts_with("warning: SMIDGEN_LOG is ignored") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(run("warn"), "");
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_find_no_room_are_an_error_that_names_standard_output() {
    let (bert, llama, vit, folder) = (fixture("bert"), fixture("llama-untied"), fixture("vit"), tempfile::tempdir().unwrap());
    let (prompts, image) = (folder.path().join("prompts"), fixture("vit").join("image.png"));
    fs::write(&prompts, "the cat\n").unwrap();
    let commands: [&[&str]; 4] = [
        &["embed", "--model", text(&bert), "a cat"],
        &["generate", "--model", text(&llama), "--max-tokens", "4", "the cat"],
        &["generate", "--model", text(&llama), "--max-tokens", "4", "--requests", text(&prompts)],
        &["classify", "--model", text(&vit), text(&image)],
    ];
    for command in commands {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let args = [command, &["--device", "cpu"]].concat();
        let output = Command::new(env!("CARGO_BIN_EXE_smidgen")).args(args).stdout(full).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {stderr}");
        assert!(
            stderr.starts_with("error: standard output cannot be written; check where it leads: No space left"),
            "{command:?}: {stderr}"
        );
    }
}

#[test]
fn a_command_that_may_take_long_shows_what_it_does_on_a_terminal_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let (bert, out) = (fixture("bert"), folder.path().join("out.safetensors"));
    let ids = bert.join("ids.json");
    let forward = ["forward", "--device", "cpu", "--model", text(&bert), "--ids", text(&ids), "--out", text(&out)];
    let embed = ["embed", "--device", "cpu", "--model", text(&bert), "the quick", "brown fox"];
    for (args, parts) in [(&forward[..], ["loading", "tokens through"]), (&embed[..], ["loading", "0/2 texts"])] {
        let shown = shown_on_a_terminal(args);
        assert!(parts.iter().all(|part| shown.contains(part)), "{args:?}: {shown:?}");
        assert_eq!(smidgen(args).1, "", "{args:?}");
    }
}
