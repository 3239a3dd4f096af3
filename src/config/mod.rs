//! What a model is made of, read from a Hugging Face `config.json` and checked before anything is allocated.
//!
//! Weight naming, the CPU reference, the GPU models and the presets all take their sizes from here. A configuration that parses describes
//! a model this engine computes exactly as Hugging Face transformers does: a field that would change the result and is not supported, an
//! unknown field that is switched on, and fields that contradict each other are errors that name the file, the field and the remedy.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

mod deberta;
mod decoder;
mod encoder;
mod fields;
mod rope;
mod vision;

pub use deberta::{Convolution, RelativeAttention};
pub use decoder::{DecoderConfig, DecoderFamily, DecoderNorm, Positions, ScoreScale, SlidingWindow};
pub use encoder::{EncoderConfig, EncoderFamily};
pub use rope::{Rope, RopeScaling};
pub use vision::VisionConfig;

use fields::Fields;

/// A model's architecture: everything that its forward pass needs besides the weights.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// Bidirectional, text in and one vector per token out.
    Encoder(EncoderConfig),
    /// Causal, text in and one distribution over the next token per token out.
    Decoder(DecoderConfig),
    /// An image in, and a score for each class or one vector per patch out.
    Vision(VisionConfig),
}

impl ModelConfig {
    /// Reads `config.json` in the model directory `dir`, and the end-of-sequence ids of `generation_config.json` where that exists.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file, the field and what to do.
    pub fn open(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let mut config = Self::from_json(&path, &read_object(&path)?)?;
        let generation = dir.join("generation_config.json");
        if let Self::Decoder(decoder) = &mut config
            && generation.exists()
        {
            let object = read_object(&generation)?;
            if let Some(ids) = Fields::new(&generation, &object).token_ids("eos_token_id", decoder.vocab)? {
                decoder.end_of_sequence = Cow::Owned(ids);
            }
        }
        Ok(config)
    }

    /// Reads an already parsed `config.json`; `path` only serves the error messages.
    ///
    /// # Errors
    /// [`ConfigError::Field`], naming the field and what to do.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<Self, ConfigError> {
        let fields = Fields::new(path, object);
        let model_type = fields.text("model_type")?.ok_or_else(|| fields.missing("model_type"))?;
        let config = match model_type {
            "bert" => Self::Encoder(encoder::bert(&fields)?),
            "distilbert" => Self::Encoder(encoder::distilbert(&fields)?),
            "deberta" => Self::Encoder(deberta::deberta(&fields)?),
            "deberta-v2" => Self::Encoder(deberta::deberta_v2(&fields)?),
            "vit" => Self::Vision(vision::vit(&fields)?),
            "gpt2" => Self::Decoder(decoder::gpt2(&fields)?),
            "llama" => Self::Decoder(decoder::llama(&fields)?),
            "mistral" => Self::Decoder(decoder::mistral(&fields)?),
            "qwen2" => Self::Decoder(decoder::qwen2(&fields)?),
            other => {
                return Err(fields.error(
                    "model_type",
                    format!("is `{other}`, which this engine cannot run"),
                    "use a model of type bert, distilbert, deberta, deberta-v2, vit, gpt2, llama, mistral or qwen2",
                ));
            }
        };
        Ok(config)
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.hidden,
            Self::Decoder(decoder) => decoder.hidden,
            Self::Vision(vision) => vision.hidden,
        }
    }

    /// Number of transformer layers.
    pub fn layers(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.layers,
            Self::Decoder(decoder) => decoder.layers,
            Self::Vision(vision) => vision.layers,
        }
    }

    /// Number of token ids; every id of an input is below it. A vision model has none.
    pub fn vocab(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.vocab,
            Self::Decoder(decoder) => decoder.vocab,
            Self::Vision(_) => 0,
        }
    }

    /// The longest sequence: as many tokens as the model has positions. A vision model's sequences all have this length.
    pub fn max_sequence(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.max_positions,
            Self::Decoder(decoder) => decoder.max_sequence(),
            Self::Vision(vision) => vision.tokens(),
        }
    }

    /// Width of one output row: the hidden width of an encoder, the vocabulary of a decoder, the classes of a vision model that has some.
    pub fn output_width(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.hidden,
            Self::Decoder(decoder) => decoder.vocab,
            Self::Vision(vision) => vision.output_width(),
        }
    }
}

/// The nonlinearity of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x/2 * (1 + erf(x / sqrt 2))`; `gelu` in a configuration.
    Gelu,
    /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`; `gelu_new` and `gelu_pytorch_tanh`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + exp(-x))`; `silu` and `swish`.
    Silu,
}

impl Activation {
    fn from_field(fields: &Fields<'_>, field: &str, default: Self) -> Result<Self, ConfigError> {
        match fields.text(field)? {
            None => Ok(default),
            Some("gelu" | "gelu_python") => Ok(Self::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Self::GeluTanh),
            Some("relu") => Ok(Self::Relu),
            Some("silu" | "swish") => Ok(Self::Silu),
            Some(other) => Err(fields.error(
                field,
                format!("is `{other}`, which this engine does not compute"),
                "use a model with gelu, gelu_new, gelu_pytorch_tanh, relu or silu",
            )),
        }
    }
}

/// What can be wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or cannot be read.
    #[error("{path}: cannot be read ({source}); give a Hugging Face model directory that holds this file")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why the system refused.
        source: std::io::Error,
    },
    /// The file is not a JSON object.
    #[error("{path}: not a JSON object ({problem}); download the file again")]
    NotJson {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        problem: String,
    },
    /// One field is missing, malformed, unsupported, unknown or contradicts another.
    #[error("{path}: field `{field}` {problem}; {remedy}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, with the names of the objects around it.
        field: Box<str>,
        /// What is wrong with it.
        problem: Box<str>,
        /// What the user can do.
        remedy: &'static str,
    },
}

fn read_object(path: &Path) -> Result<Map<String, Value>, ConfigError> {
    let bytes = fs::read(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|error| ConfigError::NotJson { path: path.to_owned(), problem: error.to_string() })
}
