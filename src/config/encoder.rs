//! BERT, DistilBERT and DeBERTa: bidirectional, layer norm after each block. BERT and DistilBERT learn absolute positions; what DeBERTa has
//! instead is in [`deberta`](super::deberta).

use super::deberta::{Convolution, RelativeAttention};
use super::fields::Fields;
use super::{Activation, ConfigError};

/// Which parameter names and embeddings an encoder has; but for the attention of DeBERTa, the layers compute the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderFamily {
    /// BERT and MiniLM: token types are embedded.
    Bert,
    /// DistilBERT: no token types.
    DistilBert,
    /// DeBERTa: one projection for queries, keys and values, head by head, without a bias on the keys.
    Deberta,
    /// DeBERTa v2 and v3.
    DebertaV2,
}

/// The architecture of an encoder. Every projection and norm has a bias, but for those that [`EncoderFamily`] names.
///
/// Source: Devlin et al., "BERT", 2018; Sanh et al., "DistilBERT", 2019; He et al., "DeBERTa", 2020.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Parameter naming and embeddings.
    pub family: EncoderFamily,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; `hidden` is a multiple of it.
    pub heads: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// The longest sequence.
    pub max_positions: usize,
    /// Whether a learned embedding of each of the `max_positions` positions is added to the tokens'.
    pub absolute_positions: bool,
    /// How scores depend on the distance of two tokens; DeBERTa.
    pub relative: Option<RelativeAttention>,
    /// Added to the first layer's output; DeBERTa v2.
    pub convolution: Option<Convolution>,
    /// Rows of the token-type embedding; 0 where there is none. Inputs are all of type 0.
    pub token_types: usize,
    /// Added to the variance by every layer norm.
    pub layer_norm_epsilon: f32,
    /// Between the two projections of the feed-forward block.
    pub activation: Activation,
}

impl EncoderConfig {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }
}

const BERT_FIELDS: &[&str] = &[
    "add_cross_attention",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "is_decoder",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "position_embedding_type",
    "tie_word_embeddings",
    "type_vocab_size",
    "vocab_size",
];

const DISTILBERT_FIELDS: &[&str] = &[
    "activation",
    "dim",
    "hidden_dim",
    "hidden_size",
    "max_position_embeddings",
    "n_heads",
    "n_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "position_embedding_type",
    "sinusoidal_pos_embds",
    "tie_weights_",
    "tie_word_embeddings",
    "vocab_size",
];

pub(super) fn bert(fields: &Fields<'_>) -> Result<EncoderConfig, ConfigError> {
    absolute_positions(fields)?;
    for field in ["is_decoder", "add_cross_attention"] {
        if fields.flag(field)? == Some(true) {
            return Err(fields.error(
                field,
                "is true, and BERT as a decoder is not supported",
                "use a model of type gpt2, llama, mistral or qwen2",
            ));
        }
    }
    let config = EncoderConfig {
        family: EncoderFamily::Bert,
        hidden: fields.size("hidden_size")?,
        layers: fields.size("num_hidden_layers")?,
        heads: fields.size("num_attention_heads")?,
        intermediate: fields.size("intermediate_size")?,
        vocab: fields.size("vocab_size")?,
        max_positions: fields.size("max_position_embeddings")?,
        absolute_positions: true,
        relative: None,
        convolution: None,
        token_types: fields.size("type_vocab_size")?,
        layer_norm_epsilon: fields.optional_positive("layer_norm_eps")?.unwrap_or(1e-12) as f32,
        activation: Activation::from_field(fields, "hidden_act", Activation::Gelu)?,
    };
    divides(fields, "num_attention_heads", config.heads, "hidden_size", config.hidden)?;
    fields.refuse_unknown(BERT_FIELDS)?;
    Ok(config)
}

pub(super) fn distilbert(fields: &Fields<'_>) -> Result<EncoderConfig, ConfigError> {
    absolute_positions(fields)?;
    let config = EncoderConfig {
        family: EncoderFamily::DistilBert,
        hidden: either_name(fields, "dim", "hidden_size")?,
        layers: either_name(fields, "n_layers", "num_hidden_layers")?,
        heads: either_name(fields, "n_heads", "num_attention_heads")?,
        intermediate: fields.size("hidden_dim")?,
        vocab: fields.size("vocab_size")?,
        max_positions: fields.size("max_position_embeddings")?,
        absolute_positions: true,
        relative: None,
        convolution: None,
        token_types: 0,
        // Fixed in transformers' DistilBERT, absent from its configuration.
        layer_norm_epsilon: 1e-12,
        activation: Activation::from_field(fields, "activation", Activation::Gelu)?,
    };
    divides(fields, "n_heads", config.heads, "dim", config.hidden)?;
    fields.refuse_unknown(DISTILBERT_FIELDS)?;
    Ok(config)
}

fn absolute_positions(fields: &Fields<'_>) -> Result<(), ConfigError> {
    match fields.text("position_embedding_type")? {
        None | Some("absolute") => Ok(()),
        Some(other) => {
            Err(fields.error("position_embedding_type", format!("is `{other}`"), "only models with absolute positions are supported"))
        }
    }
}

/// A family's own name for a size, or the common name that transformers maps to it; both must agree where both are there.
pub(super) fn either_name(fields: &Fields<'_>, own: &str, common: &str) -> Result<usize, ConfigError> {
    match (fields.optional_size(own)?, fields.optional_size(common)?) {
        (Some(size), None) | (None, Some(size)) => Ok(size),
        (None, None) => Err(fields.missing(own)),
        (Some(size), Some(other)) if size == other => Ok(size),
        (Some(size), Some(other)) => {
            Err(fields.error(own, format!("is {size} but `{common}`, another name for it, is {other}"), "remove the wrong one"))
        }
    }
}

/// Checks that `size` is a multiple of `parts`.
pub(super) fn divides(fields: &Fields<'_>, parts_field: &str, parts: usize, size_field: &str, size: usize) -> Result<(), ConfigError> {
    if size.is_multiple_of(parts) {
        return Ok(());
    }
    Err(fields.error(parts_field, format!("is {parts}, which does not divide `{size_field}` ({size})"), "correct one of the two"))
}
