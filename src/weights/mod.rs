//! The weights of a model: a Hugging Face checkpoint, memory-mapped and checked against the configuration, or seeded random numbers.
//!
//! [`Checkpoint`] knows files and tensor names, [`names`] knows which parameters a model has, `hugging_face` what checkpoints call them and how they
//! keep them, and [`Weights`] joins the three: it is what forward passes load from. Opening checks every name and shape, so that a model that opens also loads; conversion happens when a tensor is asked
//! for, so that no second copy of the whole model is ever in memory.

use std::path::{Path, PathBuf};

use half::f16;

use crate::config::{ConfigError, ModelConfig};
use crate::presets;

mod checkpoint;
mod hugging_face;
mod layout;
pub mod names;
mod random;

pub use checkpoint::Checkpoint;
pub use names::{LayerParameter, Parameter, Role};
pub use random::RandomWeights;

/// Every run of a preset has the same weights.
const PRESET_SEED: u64 = 0;

/// The parameters of one model, by logical name.
#[derive(Debug)]
pub struct Weights {
    config: ModelConfig,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Checkpoint { checkpoint: Checkpoint, prefix: &'static str },
    Random(RandomWeights),
}

impl Weights {
    /// Opens the model directory `dir`: `config.json` and the safetensors beside it.
    ///
    /// # Errors
    /// [`WeightsError`] for a configuration that is refused, and for a weight file that is missing, truncated or does not match the
    /// configuration; each names the file, the tensor and what to do.
    #[tracing::instrument(level = "debug", name = "open weights", skip_all, fields(dir = %dir.display()))]
    pub fn open(dir: &Path) -> Result<Self, WeightsError> {
        let config = ModelConfig::open(dir)?;
        Self::from_checkpoint(Checkpoint::open(dir)?, config)
    }

    /// What a user means by `--model MODEL`: a model directory, or the name of a preset with random weights.
    ///
    /// # Errors
    /// As [`Weights::open`]; [`WeightsError::UnknownModel`] where `model` is neither.
    pub fn find(model: &str) -> Result<Self, WeightsError> {
        let dir = Path::new(model);
        if dir.is_dir() {
            return Self::open(dir);
        }
        let config = presets::find(model).ok_or_else(|| WeightsError::UnknownModel { model: model.to_owned() })?;
        Ok(Self::random(config, PRESET_SEED))
    }

    /// The weights of `checkpoint`, which must hold every parameter of `config` in its shape.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`] or [`WeightsError::Dtype`] for the first parameter that does not match,
    /// [`WeightsError::Surplus`] for a layer or bias that `config` leaves out.
    pub fn from_checkpoint(checkpoint: Checkpoint, config: ModelConfig) -> Result<Self, WeightsError> {
        let prefixes = hugging_face::prefixes(&config);
        let parameters = names::parameters(&config);
        let has_embedding = |prefix: &&str| {
            let name = parameters.first().and_then(|embedding| embedding.hugging_face_name(&config, prefix));
            name.is_some_and(|name| checkpoint.contains(&name))
        };
        let prefix = prefixes.into_iter().find(has_embedding).unwrap_or(prefixes[0]);
        let weights = Self { config, source: Source::Checkpoint { checkpoint, prefix } };
        for &parameter in &parameters {
            weights.check(parameter)?;
        }
        weights.check_nothing_is_left_out(&parameters)?;
        Ok(weights)
    }

    /// Seeded random weights for a model of this configuration (see [`RandomWeights`]).
    pub fn random(config: ModelConfig, seed: u64) -> Self {
        Self { source: Source::Random(RandomWeights::new(&config, seed)), config }
    }

    /// The configuration the weights were checked against.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether models of this configuration have `parameter`.
    pub fn has(&self, parameter: Parameter) -> bool {
        names::parameters(&self.config).contains(&parameter)
    }

    /// How the random weights are made, where they are random: a device can then make them itself.
    pub fn as_random(&self) -> Option<&RandomWeights> {
        match &self.source {
            Source::Random(random) => Some(random),
            Source::Checkpoint { .. } => None,
        }
    }

    /// One parameter in row-major f32, of the shape [`Parameter::shape`] says.
    ///
    /// # Errors
    /// [`WeightsError::Absent`] for a parameter that models of this configuration do not have.
    pub fn f32(&self, parameter: Parameter) -> Result<Vec<f32>, WeightsError> {
        match &self.source {
            Source::Random(random) => random.f32(parameter),
            Source::Checkpoint { checkpoint, .. } => {
                let (shape, layout) = (parameter.shape(&self.config), parameter.layout(&self.config));
                let stored = checkpoint.tensor_f32(&self.tensor_name(parameter)?, &layout.stored_shape(&shape))?;
                Ok(layout.extract(stored, &shape))
            }
        }
    }

    /// One parameter in row-major f16, of the shape [`Parameter::shape`] says, rounded to nearest even.
    ///
    /// # Errors
    /// As [`Weights::f32`], and [`WeightsError::Overflow`] where an element is beyond f16.
    pub fn f16(&self, parameter: Parameter) -> Result<Vec<f16>, WeightsError> {
        match &self.source {
            Source::Random(random) => Ok(random.f32(parameter)?.into_iter().map(f16::from_f32).collect()),
            Source::Checkpoint { checkpoint, .. } => {
                let (shape, layout) = (parameter.shape(&self.config), parameter.layout(&self.config));
                let stored = checkpoint.tensor_f16(&self.tensor_name(parameter)?, &layout.stored_shape(&shape))?;
                Ok(layout.extract(stored, &shape))
            }
        }
    }

    /// A matrix as [`Weights::f16`] gives it, each column multiplied by an element of `scales` before it is rounded.
    ///
    /// # Errors
    /// As [`Weights::f16`], and [`WeightsError::ProductOverflow`] where a product is beyond f16.
    pub fn f16_with_scaled_columns(&self, parameter: Parameter, scales: &[f32]) -> Result<Vec<f16>, WeightsError> {
        let values = self.f32(parameter)?;
        let mut overflow = None;
        let scaled = values.iter().zip(scales.iter().cycle()).map(|(value, scale)| {
            let product = value * scale;
            if product.abs() > f16::MAX.to_f32() {
                overflow.get_or_insert(product);
            }
            f16::from_f32(product)
        });
        let scaled = scaled.collect();
        match (overflow, &self.source) {
            (Some(value), Source::Checkpoint { checkpoint, .. }) => {
                Err(WeightsError::ProductOverflow { path: checkpoint.path().to_owned(), tensor: self.tensor_name(parameter)?, value })
            }
            _ => Ok(scaled),
        }
    }

    fn check(&self, parameter: Parameter) -> Result<(), WeightsError> {
        match &self.source {
            Source::Random(_) => Ok(()),
            Source::Checkpoint { checkpoint, .. } => {
                let stored = parameter.layout(&self.config).stored_shape(&parameter.shape(&self.config));
                checkpoint.check(&self.tensor_name(parameter)?, &stored)
            }
        }
    }

    /// A layer or a bias that the checkpoint has and the configuration does not would silently be missing from the result.
    fn check_nothing_is_left_out(&self, parameters: &[Parameter]) -> Result<(), WeightsError> {
        let Source::Checkpoint { checkpoint, .. } = &self.source else { return Ok(()) };
        let candidates =
            (0..=self.config.layers()).flat_map(|index| LayerParameter::ALL.map(|parameter| Parameter::Layer(index, parameter)));
        for parameter in candidates.filter(|candidate| !parameters.contains(candidate)) {
            match self.tensor_name(parameter) {
                Ok(tensor) if checkpoint.contains(&tensor) => {
                    return Err(WeightsError::Surplus { path: checkpoint.path().to_owned(), tensor });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What the checkpoint calls `parameter`.
    fn tensor_name(&self, parameter: Parameter) -> Result<String, WeightsError> {
        let Source::Checkpoint { checkpoint, prefix } = &self.source else { return Err(WeightsError::Absent { parameter }) };
        let name = parameter.hugging_face_name(&self.config, prefix).ok_or(WeightsError::Absent { parameter })?;
        match hugging_face::tensorflow_norm_name(&name) {
            Some(old) if !checkpoint.contains(&name) && checkpoint.contains(&old) => Ok(old),
            _ => Ok(name),
        }
    }
}

/// What can be wrong with a model's weights.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The name is that of no directory and no preset.
    #[error("{model}: neither a model directory nor a preset; give a directory with config.json, or one of {}", presets::names())]
    UnknownModel {
        /// What the user gave.
        model: String,
    },
    /// The directory has no weight file that this engine reads.
    #[error("{dir}: no model.safetensors and no model.safetensors.index.json; {remedy}")]
    NoWeights {
        /// The model directory.
        dir: PathBuf,
        /// What the user can do, given what the directory does hold.
        remedy: &'static str,
    },
    /// The system cannot open or map a file.
    #[error("{path}: cannot be read ({source}); check that the file is there and readable, or download it again")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why the system refused.
        source: std::io::Error,
    },
    /// A file is truncated or is no safetensors file.
    #[error("{path}: truncated or not a safetensors file ({problem}); download it again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        problem: String,
    },
    /// The index of a sharded checkpoint does not say what it must.
    #[error("{path}: {problem}; download the file again")]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tensor that the configuration calls for is not in the checkpoint.
    #[error("{path}: tensor `{tensor}` of shape {expected:?} is missing; {remedy}")]
    Missing {
        /// The file that should hold it.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// The shape that config.json implies.
        expected: Box<[usize]>,
        /// What the user can do.
        remedy: &'static str,
    },
    /// The checkpoint has a layer or a bias that the configuration does not mention.
    #[error("{path}: tensor `{tensor}` has no place in the model that config.json describes; use the config.json these weights came with")]
    Surplus {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error(
        "{path}: tensor `{tensor}` has shape {found:?} but config.json implies {expected:?}; use the config.json these weights came with"
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        found: Box<[usize]>,
        /// The shape that config.json implies.
        expected: Box<[usize]>,
    },
    /// A tensor's element type is none of F32, F16, BF16.
    #[error("{path}: tensor `{tensor}` is of type {dtype}; convert the checkpoint to F32, F16 or BF16")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type, as safetensors calls it.
        dtype: String,
    },
    /// An element is too large for f16.
    #[error(
        "{path}: tensor `{tensor}` holds {value}, beyond the largest f16 (65504); `smidgen forward`, `generate` and `embed` compute in f32 with `--device cpu`"
    )]
    Overflow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element.
        value: f32,
    },
    /// A tensor with the weight of the norm before it, which are one matrix on the GPU, has an element too large for f16.
    #[error(
        "{path}: tensor `{tensor}` times the weight of the norm before it is {value}, beyond the largest f16 (65504); `smidgen forward` and `generate` compute in f32 with `--device cpu`"
    )]
    ProductOverflow {
        /// The file, or the index of several.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The product.
        value: f32,
    },
    /// Models of this configuration have no such parameter: a mistake in a forward pass, not in the files.
    #[error("this model has no parameter `{parameter}`")]
    Absent {
        /// The parameter asked for.
        parameter: Parameter,
    },
}
