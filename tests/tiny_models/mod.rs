//! What several test files need: fixtures, altered copies of them, and reading tensors.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

/// The decoders among the fixtures.
pub const DECODERS: [&str; 8] = ["gpt2", "gpt2-odd", "llama-tied", "llama-untied", "mistral", "mistral-window", "qwen2", "qwen2-untied"];
/// The encoders among the fixtures.
pub const ENCODERS: [&str; 5] = ["bert", "distilbert", "deberta", "deberta-v2", "deberta-v3"];

/// The directory of a tiny model. `SMIDGEN_FIXTURES` names the folder where a test runs away from the repository.
pub fn fixture(name: &str) -> PathBuf {
    let fixtures = std::env::var_os("SMIDGEN_FIXTURES").map(PathBuf::from);
    fixtures.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")).join(name)
}

/// The token ids a tiny model was run on.
pub fn fixture_ids(name: &str) -> Vec<Vec<u32>> {
    read_json(&fixture(name).join("ids.json"))
}

/// What transformers computed for [`fixture_ids`].
pub fn expected(name: &str) -> Tensor {
    let tensor = if ENCODERS.contains(&name) { "last_hidden_state" } else { "logits" };
    read_tensor(&fixture(name).join("expected.safetensors"), tensor)
}

pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// An f32 tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

pub fn read_tensor(path: &Path, name: &str) -> Tensor {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::F32, "{name}");
    let values = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Tensor { shape: view.shape().to_vec(), values }
}

/// `|a - b| / |b|`, as vectors.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut b.iter().map(|b| f64::from(*b)))
}

/// A copy of a tiny model that a test may damage.
pub struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    pub fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixture(name)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Changes the JSON object in `file`.
    pub fn edit_json(self, file: &str, edit: impl FnOnce(&mut Value)) -> Self {
        let path = self.file(file);
        let mut value: Value = if path.exists() { read_json(&path) } else { Value::Object(serde_json::Map::new()) };
        edit(&mut value);
        fs::write(path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
        self
    }

    /// Replaces the tensors of model.safetensors: `change` gets all of them and returns what shall be written.
    pub fn edit_tensors(self, change: impl FnOnce(Vec<OwnedTensor>) -> Vec<OwnedTensor>) -> Self {
        let tensors = change(self.tensors());
        write_tensors(&self.file("model.safetensors"), &tensors);
        self
    }

    pub fn tensors(&self) -> Vec<OwnedTensor> {
        let bytes = fs::read(self.file("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        file.iter()
            .map(|(name, view)| OwnedTensor {
                name: name.into(),
                dtype: view.dtype(),
                shape: view.shape().into(),
                bytes: view.data().into(),
            })
            .collect()
    }
}

/// One tensor of a file.
#[derive(Debug, Clone)]
pub struct OwnedTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl OwnedTensor {
    /// The same tensor with every f32 element encoded by `encode`.
    pub fn encoded<const N: usize>(&self, dtype: Dtype, encode: impl Fn(f32) -> [u8; N]) -> Self {
        let values = self.bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        Self { dtype, bytes: values.flat_map(encode).collect(), ..self.clone() }
    }
}

pub fn write_tensors(path: &Path, tensors: &[OwnedTensor]) {
    let views = tensors.iter().map(|t| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
