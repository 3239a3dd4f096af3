//! Safetensors files, one or several, memory-mapped.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use super::WeightsError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a model directory, by the names the files give them.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file to name when a tensor is nowhere: the single file or the index.
    entry: PathBuf,
    shards: Vec<Shard>,
    /// Which shard holds a tensor.
    shard_of: HashMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the tensors' bytes begin: after the length field and the header.
    data_start: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// One tensor as it lies in a file.
struct Stored<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

impl Checkpoint {
    /// Maps `model.safetensors` in `dir`, or else the shards that `model.safetensors.index.json` lists. Reads the headers only.
    ///
    /// # Errors
    /// [`WeightsError`] where there is no such file, where one is missing, unreadable, truncated or malformed, and where the index
    /// places a tensor in a shard that does not hold it.
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            let shard = Shard::open(single.clone())?;
            let shard_of = shard.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
            return Ok(Self { entry: single, shards: vec![shard], shard_of });
        }
        if index.exists() {
            return Self::open_sharded(dir, index);
        }
        let remedy = if dir.join("pytorch_model.bin").exists() || dir.join("pytorch_model.bin.index.json").exists() {
            "it holds PyTorch weights: convert them with transformers' `save_pretrained(..., safe_serialization=True)`"
        } else {
            "give a Hugging Face model directory with its weights downloaded"
        };
        Err(WeightsError::NoWeights { dir: dir.to_owned(), remedy })
    }

    fn open_sharded(dir: &Path, index: PathBuf) -> Result<Self, WeightsError> {
        let wrong = |problem: String| WeightsError::Index { path: index.clone(), problem };
        let bytes = std::fs::read(&index).map_err(|source| WeightsError::Unreadable { path: index.clone(), source })?;
        let parsed: Index = serde_json::from_slice(&bytes).map_err(|error| wrong(format!("not a checkpoint index ({error})")))?;
        let mut files: Vec<&String> = parsed.weight_map.values().collect();
        files.sort();
        files.dedup();
        // An index names files beside itself; anything else would read outside the model directory.
        if let Some(file) = files.iter().find(|file| !is_plain_file_name(file)) {
            return Err(wrong(format!("shard `{file}` is not a plain file name")));
        }
        let shards = files.iter().map(|file| Shard::open(dir.join(file))).collect::<Result<Vec<_>, _>>()?;
        let mut shard_of = HashMap::with_capacity(parsed.weight_map.len());
        for (tensor, file) in &parsed.weight_map {
            let Ok(shard) = files.binary_search(&file) else { continue };
            if shards[shard].metadata.info(tensor).is_none() {
                return Err(wrong(format!("tensor `{tensor}` is not in `{file}`, where the index places it")));
            }
            shard_of.insert(tensor.clone(), shard);
        }
        Ok(Self { entry: index, shards, shard_of })
    }

    /// The single file, or the index of the shards.
    pub fn path(&self) -> &Path {
        &self.entry
    }

    /// Whether some file holds a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.shard_of.contains_key(name)
    }

    /// The tensor `name`, which must have the shape `shape`, row-major and converted to f32 (exact for every supported type).
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`], [`WeightsError::Dtype`].
    pub fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let (_, stored) = self.stored(name, shape)?;
        let mut values = Vec::with_capacity(stored.bytes.len() / (stored.dtype.bitsize() / 8));
        stored.for_each(|value| values.push(value));
        Ok(values)
    }

    /// The tensor `name`, which must have the shape `shape`, row-major and rounded to f16.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor_f32`], and [`WeightsError::Overflow`] where an element's magnitude is above 65504.
    pub fn tensor_f16(&self, name: &str, shape: &[usize]) -> Result<Vec<f16>, WeightsError> {
        let (shard, stored) = self.stored(name, shape)?;
        let mut overflow = None;
        let mut values = Vec::with_capacity(stored.bytes.len() / (stored.dtype.bitsize() / 8));
        stored.for_each(|value| {
            if value.abs() > f16::MAX.to_f32() {
                overflow.get_or_insert(value);
            }
            values.push(f16::from_f32(value));
        });
        match overflow {
            None => Ok(values),
            Some(value) => Err(WeightsError::Overflow { path: shard.path.clone(), tensor: name.to_owned(), value }),
        }
    }

    /// Whether the tensor `name` is there with the shape `shape` and a supported type, without reading it.
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<(), WeightsError> {
        self.stored(name, shape).map(|_| ())
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<(&Shard, Stored<'_>), WeightsError> {
        let found = self.shard_of.get(name).map(|&index| &self.shards[index]);
        let Some((shard, info)) = found.and_then(|shard| Some((shard, shard.metadata.info(name)?))) else {
            let remedy = match name {
                "lm_head.weight" => "if the model ties its head to its embedding, set `tie_word_embeddings` to true in config.json",
                _ => "download the complete model, or the config.json that belongs to these weights",
            };
            return Err(WeightsError::Missing { path: self.entry.clone(), tensor: name.to_owned(), expected: shape.into(), remedy });
        };
        let (path, tensor) = (shard.path.clone(), name.to_owned());
        if info.shape != shape {
            return Err(WeightsError::Shape { path, tensor, found: info.shape.as_slice().into(), expected: shape.into() });
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(WeightsError::Dtype { path, tensor, dtype: format!("{:?}", info.dtype) });
        }
        let (start, end) = info.data_offsets;
        let bytes = shard.map.get(shard.data_start + start..shard.data_start + end);
        let bytes = bytes.ok_or_else(|| WeightsError::Malformed { path, problem: format!("tensor `{name}` ends beyond the file") })?;
        Ok((shard, Stored { dtype: info.dtype, bytes }))
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, WeightsError> {
        let unreadable = |source| WeightsError::Unreadable { path: path.clone(), source };
        // To map a folder is no such device to the system.
        if path.is_dir() {
            return Err(unreadable(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder")));
        }
        let file = File::open(&path).map_err(unreadable)?;
        // SAFETY: the map is only read. That nobody truncates the file meanwhile is the usual contract of a model directory: the process
        // would get SIGBUS, as every program does that maps its weights.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| WeightsError::Malformed { path: path.clone(), problem: error.to_string() })?;
        Ok(Self { path, map, metadata, data_start: header + size_of::<u64>() })
    }
}

impl Stored<'_> {
    /// Calls `consume` on every element, widened to f32. Safetensors are little-endian on every machine.
    fn for_each(&self, mut consume: impl FnMut(f32)) {
        match self.dtype {
            Dtype::F32 => self.bytes.as_chunks().0.iter().for_each(|&bytes| consume(f32::from_le_bytes(bytes))),
            Dtype::F16 => self.bytes.as_chunks().0.iter().for_each(|&bytes| consume(f16::from_le_bytes(bytes).to_f32())),
            _ => self.bytes.as_chunks().0.iter().for_each(|&bytes| consume(bf16::from_le_bytes(bytes).to_f32())),
        }
    }
}

fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}
