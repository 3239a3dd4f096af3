//! Models on the device: weights in FP16, and the forward pass as launches through one [`Session`].
//!
//! A model is made from a Hugging Face directory or from a preset with seeded random weights ([`ModelSource`]); [`Encoder`], [`Decoder`] and
//! [`Vision`] hold its weights and the buffers of one batch. Batches are ragged: the tokens of all sequences are the rows of one matrix, and two short arrays
//! say where each sequence starts and how long it is, so that nothing is computed for padding.

mod bulk;
mod deberta;
mod decoder;
mod encoder;
mod phase;
mod serving;
mod solo;
mod tensors;
mod vision;
mod workload;

use smidgen_runtime::device::DeviceError;
use smidgen_runtime::launch::{LaunchError, Session};

use crate::config::{DecoderConfig, ModelConfig};
use crate::serve::Workload;
use crate::serve::batching::Limits;
use crate::weights::{Weights, WeightsError};

pub use bulk::{BulkCopy, Direct};
pub use decoder::{Decoder, DecoderBatch, LogitRows, Prompts, SlotBatch};
pub use encoder::{Encoder, EncoderBatch};
pub use phase::{DecoderPhase, UnknownPhase};
pub use serving::SoloBatch;
pub use solo::{DeviceSequence, Solo, SoloError, Work};
pub use vision::{Vision, VisionBatch};

/// Why a model is not on the device.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A request longer than the model's positions.
    #[error(
        "`{model}` takes sequences of up to {limit} tokens, not {asked}; use a smaller `seq` (or, of a stream, a smaller `prompt` or `generate`)"
    )]
    TooLong {
        /// The preset or directory.
        model: String,
        /// Tokens asked for.
        asked: u32,
        /// Its limit.
        limit: usize,
    },
    /// Caches that fill the model's positions, so that none is left for the token of a decode step.
    #[error(
        "`{model}` takes sequences of up to {limit} tokens, and a decode step adds one to the {asked} of `seq`; use a `seq` of at most {}",
        limit - 1
    )]
    NoRoomToDecode {
        /// The preset or directory.
        model: String,
        /// Tokens in each cache.
        asked: u32,
        /// Its limit.
        limit: usize,
    },
    /// A sequence to be continued that has no token.
    #[error("a prompt is empty; give each sequence at least one token")]
    EmptyPrompt,
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

/// A model as `--model` names it: a Hugging Face directory, or a preset with seeded random weights.
#[derive(Debug)]
pub struct ModelSource {
    name: String,
    weights: Weights,
}

impl ModelSource {
    /// A preset by name, or a Hugging Face model directory.
    ///
    /// # Errors
    /// What is wrong with the name or the directory.
    pub fn find(name: &str) -> Result<Self, BuildError> {
        Ok(Self { name: name.to_owned(), weights: Weights::find(name)? })
    }

    /// The preset or directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the model computes.
    pub fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    /// Its parameters.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Device memory that the weights and one batch will take, bytes. `batch` counts images for a vision model, whose `seq` is always its own.
    ///
    /// # Errors
    /// [`BuildError::TooLong`] for sequences beyond the model's positions.
    pub fn memory_bytes(&self, batch: u32, seq: u32) -> Result<u64, BuildError> {
        self.check_length(seq)?;
        Ok(match self.config() {
            ModelConfig::Encoder(config) => Encoder::memory_bytes(config, batch, seq),
            ModelConfig::Decoder(config) => Decoder::memory_bytes(config, batch, seq),
            ModelConfig::Vision(config) => Vision::memory_bytes(config, batch),
        })
    }

    /// One kind of request: a forward pass of `batch` sequences of `seq` tokens for an encoder; for a decoder one step of `batch` sequences whose
    /// caches hold `seq` tokens, ending with a sampled token; for a vision model a forward pass of `batch` images, each of which has as many tokens as
    /// it has patches and a class, whatever `seq` says. `bulk` copies weights and images.
    ///
    /// # Errors
    /// What is wrong with the weights, or what the device says.
    #[tracing::instrument(level = "debug", name = "load model", skip_all, fields(model = self.name))]
    pub fn workload(&self, session: &mut Session, bulk: &mut dyn BulkCopy, batch: u32, seq: u32) -> Result<Box<dyn Workload>, BuildError> {
        match self.config() {
            ModelConfig::Encoder(config) => {
                self.check_length(seq)?;
                workload::encoder(config, &self.weights, session, bulk, batch, seq)
            }
            ModelConfig::Decoder(config) => {
                self.check_length(seq)?;
                let limit = config.max_sequence();
                if seq as usize == limit {
                    return Err(BuildError::NoRoomToDecode { model: self.name.clone(), asked: seq, limit });
                }
                workload::decoder(config, &self.weights, session, bulk, batch, seq)
            }
            ModelConfig::Vision(config) => workload::vision(config, &self.weights, session, bulk, batch),
        }
    }

    /// Device memory that the weights and one prefill of `batch` prompts of `seq` tokens will take, bytes.
    ///
    /// # Errors
    /// [`BuildError::TooLong`] for prompts beyond the model's positions, [`BuildError::Unsupported`] for other models than decoders.
    pub fn prefill_memory_bytes(&self, batch: u32, seq: u32) -> Result<u64, BuildError> {
        self.check_length(seq)?;
        Ok(Decoder::prefill_memory_bytes(self.prefilled()?, batch, seq))
    }

    /// Requests that are prefills of a decoder: whole prompts of `seq` tokens, `batch` of them as the rows of one matrix, to the first token drawn. `bulk` copies
    /// the weights.
    ///
    /// # Errors
    /// As [`prefill_memory_bytes`](Self::prefill_memory_bytes); what is wrong with the weights, or what the device says.
    #[tracing::instrument(level = "debug", name = "load model", skip_all, fields(model = self.name))]
    pub fn prefill(&self, session: &mut Session, bulk: &mut dyn BulkCopy, batch: u32, seq: u32) -> Result<Box<dyn Workload>, BuildError> {
        self.check_length(seq)?;
        workload::prefill(self.prefilled()?, &self.weights, session, bulk, batch, seq)
    }

    /// Device memory that the weights and the cache of a decoder's slots will take, bytes.
    ///
    /// # Errors
    /// [`BuildError::TooLong`] for sequences beyond the model's positions, [`BuildError::Unsupported`] for an encoder.
    pub fn serving_memory_bytes(&self, limits: Limits) -> Result<u64, BuildError> {
        self.check_length(u32::try_from(limits.max_sequence).unwrap_or(u32::MAX))?;
        Ok(Decoder::serving_memory_bytes(self.decoder()?, limits))
    }

    /// The slots of a decoder that serves requests by continuous batching. It takes the session over; `bulk` copies the weights.
    ///
    /// # Errors
    /// What is wrong with the weights, or what the device says.
    #[tracing::instrument(level = "debug", name = "load model", skip_all, fields(model = self.name))]
    pub fn slots(&self, mut session: Session, bulk: &mut dyn BulkCopy, limits: Limits) -> Result<SlotBatch, BuildError> {
        let decoder = Decoder::new(self.decoder()?, &self.weights, &mut session, bulk)?;
        SlotBatch::new(decoder, session, limits)
    }

    fn decoder(&self) -> Result<&DecoderConfig, BuildError> {
        match self.config() {
            ModelConfig::Decoder(config) => Ok(config),
            _ => Err(BuildError::Unsupported("only decoders serve a stream of requests: leave `prompt` and `generate` out")),
        }
    }

    fn prefilled(&self) -> Result<&DecoderConfig, BuildError> {
        match self.config() {
            ModelConfig::Decoder(config) => Ok(config),
            _ => Err(BuildError::Unsupported("only decoders have a prefill: leave `phase` out")),
        }
    }

    fn check_length(&self, seq: u32) -> Result<(), BuildError> {
        let limit = self.config().max_sequence();
        // Nobody chooses the length of an image.
        if seq as usize > limit && !matches!(self.config(), ModelConfig::Vision(_)) {
            return Err(BuildError::TooLong { model: self.name.clone(), asked: seq, limit });
        }
        Ok(())
    }
}
