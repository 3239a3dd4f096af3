//! What commands read, so that no output takes its place.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

/// What a model folder is read from beside `model*.safetensors` and their index.
const MODEL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "preprocessor_config.json",
];

/// The files of the model that `--model` names; a preset has none. Others in the same folder may be results of earlier runs, which the next one replaces.
pub fn model_files(model: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(model).into_iter().flatten().flatten();
    let is_read = |name: &str| MODEL_FILES.contains(&name) || (name.starts_with("model") && name.contains(".safetensors"));
    entries.filter(|entry| entry.file_name().to_str().is_some_and(is_read)).map(|entry| entry.path()).collect()
}

/// Whether both paths lead to one file: by another spelling, a symbolic link or a hard link. Devices and pipes lose nothing when they are written.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let (Ok(there), Ok(here)) = (fs::metadata(one), fs::metadata(other)) else { return false };
    there.is_file() && here.is_file() && (has_same_number(&there, &here) || one.canonicalize().ok() == other.canonicalize().ok())
}

#[cfg(unix)]
fn has_same_number(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(not(unix))]
fn has_same_number(_one: &Metadata, _other: &Metadata) -> bool {
    false
}
