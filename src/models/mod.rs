//! Models on the device: weights in FP16, and the forward pass as launches through one [`Session`].
//!
//! A model is made from a Hugging Face directory or from a preset with seeded random weights ([`ModelSource`]); [`Encoder`] and [`Decoder`] hold
//! its weights and the buffers of one batch. Batches are ragged: the tokens of all sequences are the rows of one matrix, and two short arrays
//! say where each sequence starts and how long it is, so that nothing is computed for padding.

mod decoder;
mod encoder;
mod solo;
mod tensors;
mod workload;

use std::path::{Path, PathBuf};

use smidgen_runtime::device::DeviceError;
use smidgen_runtime::launch::{LaunchError, Session};

use crate::config::{ConfigError, ModelConfig};
use crate::presets;
use crate::serve::Workload;
use crate::weights::{Checkpoint, WeightsError};

pub use decoder::{Decoder, DecoderBatch, LogitRows, Prompts};
pub use encoder::{Encoder, EncoderBatch};
pub use solo::{Generation, Solo, SoloError};
pub use tensors::TensorSource;

/// Seed of the presets' weights: the same bits on every machine.
const PRESET_SEED: u64 = 0x5eed;

/// Why a model is not on the device.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Neither a preset nor a directory.
    #[error("`{0}` is neither a model directory nor a preset ({known})", known = presets::NAMES.join(", "))]
    UnknownModel(String),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A request longer than the model's positions.
    #[error("`{model}` takes sequences of up to {limit} tokens, not {asked}; use a smaller `seq`")]
    TooLong {
        /// The preset or directory.
        model: String,
        /// Tokens asked for.
        asked: u32,
        /// Its limit.
        limit: usize,
    },
    /// Something this engine computes on the CPU only.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A launch.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Where a model comes from.
#[derive(Debug, Clone)]
pub struct ModelSource {
    name: String,
    /// What it computes.
    pub config: ModelConfig,
    /// None for a preset.
    directory: Option<PathBuf>,
}

impl ModelSource {
    /// A preset by name, or a Hugging Face model directory.
    ///
    /// # Errors
    /// [`BuildError::UnknownModel`], or what is wrong with the directory's config.json.
    pub fn find(name: &str) -> Result<Self, BuildError> {
        let path = Path::new(name);
        let (config, directory) = match presets::by_name(name) {
            Some(config) => (config, None),
            None if path.is_dir() => (ModelConfig::open(path)?, Some(path.to_owned())),
            None => return Err(BuildError::UnknownModel(name.to_owned())),
        };
        Ok(Self { name: name.to_owned(), config, directory })
    }

    /// Device memory that the weights and one batch will take, bytes.
    ///
    /// # Errors
    /// [`BuildError::TooLong`] for sequences beyond the model's positions.
    pub fn memory_bytes(&self, batch: u32, seq: u32) -> Result<u64, BuildError> {
        self.check_length(seq)?;
        Ok(match &self.config {
            ModelConfig::Encoder(config) => Encoder::memory_bytes(config, batch, seq),
            ModelConfig::Decoder(config) => Decoder::memory_bytes(config, batch, seq),
        })
    }

    /// The weights: from the directory, or random for a preset. Random weights need a session to be made in.
    ///
    /// # Errors
    /// What is wrong with the weight files.
    pub fn tensors(&self, session: &Session) -> Result<TensorSource, BuildError> {
        let checkpoint = self.directory.as_deref().map(Checkpoint::open).transpose()?;
        Ok(TensorSource::new(session, checkpoint, PRESET_SEED))
    }

    /// One kind of request: a forward pass of `batch` sequences of `seq` tokens for an encoder; for a decoder one step of `batch` sequences whose
    /// caches hold `seq` tokens, ending with a sampled token.
    ///
    /// # Errors
    /// What is wrong with the weights, or what the device says.
    pub fn workload(&self, session: &mut Session, batch: u32, seq: u32) -> Result<Box<dyn Workload>, BuildError> {
        self.check_length(seq)?;
        let mut tensors = self.tensors(session)?;
        match &self.config {
            ModelConfig::Encoder(config) => workload::encoder(config, &mut tensors, session, batch, seq),
            ModelConfig::Decoder(config) => workload::decoder(config, &mut tensors, session, batch, seq),
        }
    }

    fn check_length(&self, seq: u32) -> Result<(), BuildError> {
        let limit = self.config.max_sequence();
        if seq as usize > limit {
            return Err(BuildError::TooLong { model: self.name.clone(), asked: seq, limit });
        }
        Ok(())
    }
}
