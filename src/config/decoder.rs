//! Llama and Mistral: causal, rotary positions, RMS norm before each block, grouped queries, gated feed-forward.

use std::borrow::Cow;

use super::encoder::divides;
use super::fields::Fields;
use super::rope::{self, Rope};
use super::{Activation, ConfigError};

/// Which defaults a decoder's configuration has; the layers compute the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderFamily {
    /// Llama and TinyLlama.
    Llama,
    /// Mistral: like Llama with an optional sliding window.
    Mistral,
}

/// The architecture of a decoder.
///
/// Source: Touvron et al., "Llama 2", 2023; Jiang et al., "Mistral 7B", 2023; Ainslie et al., "GQA", 2023.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Defaults and naming.
    pub family: DecoderFamily,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of one head, even. `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Added to the mean square by every RMS norm.
    pub rms_norm_epsilon: f32,
    /// Applied to the gate projection.
    pub activation: Activation,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether the output head is the token embedding.
    pub tied_embeddings: bool,
    /// Whether the query, key, value and output projections have biases.
    pub attention_bias: bool,
    /// Whether the gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// How many positions back a token may attend, if limited.
    pub sliding_window: Option<usize>,
    /// Ids that end a generation.
    pub end_of_sequence: Cow<'static, [u32]>,
}

impl DecoderConfig {
    /// Width of all query heads together: rows of the query projection, columns of the output projection.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The longest sequence this engine computes: full attention equals sliding attention as long as the window covers the sequence.
    pub fn max_sequence(&self) -> usize {
        self.sliding_window.map_or(self.max_positions, |window| window.min(self.max_positions))
    }
}

const FIELDS: &[&str] = &[
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
];

pub(super) fn llama(fields: &Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let heads = fields.size("num_attention_heads")?;
    let config = DecoderConfig {
        attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        ..common(fields, DecoderFamily::Llama, heads)?
    };
    fields.refuse_unknown(&[FIELDS, &["attention_bias", "mlp_bias"]].concat())?;
    Ok(config)
}

pub(super) fn mistral(fields: &Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    // Absent and null differ here: transformers' default is the window of the first Mistral.
    let sliding_window = if fields.names("sliding_window") { fields.optional_size("sliding_window")? } else { Some(4096) };
    let config = DecoderConfig { sliding_window, ..common(fields, DecoderFamily::Mistral, 8)? };
    fields.refuse_unknown(&[FIELDS, &["sliding_window"]].concat())?;
    Ok(config)
}

/// What both families share; biases and sliding window are off.
fn common(fields: &Fields<'_>, family: DecoderFamily, default_kv_heads: usize) -> Result<DecoderConfig, ConfigError> {
    let hidden = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    let kv_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(default_kv_heads);
    divides(fields, "num_key_value_heads", kv_heads, "num_attention_heads", heads)?;
    let head_dim = match fields.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None => {
            divides(fields, "num_attention_heads", heads, "hidden_size", hidden)?;
            hidden / heads
        }
    };
    if !head_dim.is_multiple_of(2) {
        let problem = format!("is {head_dim}, and rotary positions turn pairs of elements");
        return Err(fields.error("head_dim", problem, "use a model with an even head width"));
    }
    full_attention(fields)?;
    let vocab = fields.size("vocab_size")?;
    Ok(DecoderConfig {
        family,
        hidden,
        layers: fields.size("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        intermediate: fields.size("intermediate_size")?,
        vocab,
        max_positions: fields.size("max_position_embeddings")?,
        rms_norm_epsilon: fields.optional_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        activation: Activation::from_field(fields, "hidden_act", Activation::Silu)?,
        rope: rope::parse(fields)?,
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        attention_bias: false,
        mlp_bias: false,
        sliding_window: None,
        end_of_sequence: Cow::Owned(fields.token_ids("eos_token_id", vocab)?.unwrap_or_default()),
    })
}

/// `layer_types` may say per layer how it attends; this engine attends fully everywhere.
fn full_attention(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let listed = fields.value("layer_types").and_then(|types| types.as_array()).map_or(&[][..], Vec::as_slice);
    match listed.iter().find(|kind| kind.as_str() != Some("full_attention")) {
        None => Ok(()),
        Some(kind) => {
            Err(fields.error("layer_types", format!("names {kind}"), "only models with full_attention in every layer are supported"))
        }
    }
}
