//! The models in f32 on the CPU: plain, complete, and the yardstick that every kernel is held against.
//!
//! `--device cpu` runs it, tests compare the GPU with it, and it is itself compared with Hugging Face transformers (`tests/`). Batches are
//! ragged: rows of all sequences lie one after another, nothing is padded, so nothing has to be masked but the future. Sums are f32 in the
//! order of the code; results repeat bit for bit on one machine whatever the number of threads.

use crate::config::ModelConfig;
use crate::weights::{Weights, WeightsError};

mod decoder;
mod disentangled;
mod encoder;
mod matrix;
mod ops;
mod paged;
mod sampling;
mod vision;

pub use decoder::{Decoder, Sequence};
pub use encoder::Encoder;
pub use matrix::Matrix;
pub use paged::PagedBatch;
pub use sampling::sample;
pub use vision::Vision;

use crate::batch::RaggedBatch;

/// A model on the CPU, with its weights in f32.
#[derive(Debug)]
pub enum Reference {
    /// BERT family, DeBERTa included.
    Encoder(Encoder),
    /// GPT-2, Llama, Mistral, Qwen2.
    Decoder(Decoder),
    /// ViT.
    Vision(Vision),
}

impl Reference {
    /// Loads all weights, converted to f32.
    ///
    /// # Errors
    /// [`WeightsError`] as [`Weights::f32`] says.
    #[tracing::instrument(level = "debug", name = "load reference", skip_all)]
    pub fn load(weights: &Weights) -> Result<Self, WeightsError> {
        Ok(match weights.config() {
            ModelConfig::Encoder(architecture) => Self::Encoder(Encoder::load(weights, architecture)?),
            ModelConfig::Decoder(architecture) => Self::Decoder(Decoder::load(weights, architecture)?),
            ModelConfig::Vision(architecture) => Self::Vision(Vision::load(weights, architecture)?),
        })
    }

    /// The last hidden state of an encoder or the logits of a decoder, one row per token, the sequences one after another.
    /// No row for a vision model, which has no tokens: [`Vision::forward`] takes its images.
    pub fn forward(&self, batch: &RaggedBatch) -> Matrix {
        match self {
            Self::Encoder(encoder) => encoder.forward(batch),
            Self::Decoder(decoder) => decoder.forward(batch),
            Self::Vision(vision) => Matrix::new(vision.config().output_width(), Vec::new()),
        }
    }
}

/// From [`Weights`] to the reference's own types.
mod load {
    use super::matrix::{Linear, Matrix};
    use crate::weights::{Parameter, Weights, WeightsError};

    pub(super) fn matrix(weights: &Weights, parameter: Parameter) -> Result<Matrix, WeightsError> {
        let width = parameter.shape(weights.config()).last().copied().unwrap_or(1);
        Ok(Matrix::new(width, weights.f32(parameter)?))
    }

    pub(super) fn linear(weights: &Weights, weight: Parameter, bias: Option<Parameter>) -> Result<Linear, WeightsError> {
        Ok(Linear { weight: matrix(weights, weight)?, bias: bias.map(|bias| weights.f32(bias)).transpose()? })
    }
}
