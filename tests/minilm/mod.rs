//! all-MiniLM-L6-v2 on 100 sentences, by `smidgen embed`, against sentence-transformers in f32 (`tests/fixtures/minilm/make_embeddings.py`).

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use serde::Deserialize;

use crate::tiny_models::{fixture, read_tensor};

#[derive(Deserialize)]
struct Line {
    text: String,
    embedding: Vec<f32>,
}

/// Fails unless the vector that the model in `model` gives each sentence on `device` and the one that sentence-transformers does have a cosine of
/// `at_least`. The least of them.
#[track_caller]
pub fn assert_cosines(model: &Path, device: &str, at_least: f64) -> f64 {
    let sentences = fs::read_to_string(fixture("minilm").join("sentences.txt")).expect("the sentences");
    let expected = read_tensor(&fixture("minilm").join("embeddings.safetensors"), "embeddings");
    let lines = embed(model, device, &sentences);
    assert_eq!((expected.shape.as_slice(), lines.len()), ([100, 384].as_slice(), 100));
    let mut least = 1.0_f64;
    for ((line, sentence), expected) in lines.iter().zip(sentences.lines()).zip(expected.values.chunks_exact(384)) {
        assert_eq!(line.text, sentence);
        let cosine = cosine(&line.embedding, expected);
        assert!(cosine >= at_least, "cosine {cosine} for {sentence:?}");
        least = least.min(cosine);
    }
    least
}

/// What `smidgen embed` prints for the lines of `sentences`, which it takes in ragged batches. `SMIDGEN_BIN` names the command where a test runs
/// away from the repository.
fn embed(model: &Path, device: &str, sentences: &str) -> Vec<Line> {
    let command = env::var_os("SMIDGEN_BIN").unwrap_or_else(|| OsString::from(env!("CARGO_BIN_EXE_smidgen")));
    let mut child = Command::new(command)
        .args(["embed", "--device", device, "--format", "json", "--model"])
        .arg(model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command starts");
    // Read to the end before anything is answered, so that neither pipe can fill up.
    child.stdin.take().expect("a pipe").write_all(sentences.as_bytes()).expect("the command reads its input");
    let output = child.wait_with_output().expect("the command ends");
    assert!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout).expect("JSON lines");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
