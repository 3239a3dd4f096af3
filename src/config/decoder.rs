//! The decoder families: causal, a norm before each block. Llama, Mistral and Qwen2 have rotary positions, RMS norms, grouped queries and a gated
//! feed-forward block; GPT-2 has learned positions, layer norms, a bias everywhere and a plain feed-forward block.

use std::borrow::Cow;

use super::encoder::{divides, either_name};
use super::fields::Fields;
use super::rope::{self, Rope};
use super::{Activation, ConfigError};

/// How a decoder's checkpoint and configuration name things. What its layers compute is said by the other fields of [`DecoderConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderFamily {
    /// GPT-2 and DistilGPT-2.
    Gpt2,
    /// Llama, TinyLlama, and what was distilled into Llama.
    Llama,
    /// Mistral: like Llama with an optional sliding window.
    Mistral,
    /// Qwen2, Qwen2.5, and what was distilled into them: like Llama with biases on queries, keys and values.
    Qwen2,
}

/// The architecture of a decoder.
///
/// Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; Touvron et al., "Llama 2", 2023; Jiang et al.,
/// "Mistral 7B", 2023; Yang et al., "Qwen2 Technical Report", 2024; Ainslie et al., "GQA", 2023.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Naming.
    pub family: DecoderFamily,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of one head, even under rotary positions. `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Positions the model was made for: the longest sequence.
    pub max_positions: usize,
    /// How a token knows its position.
    pub positions: Positions,
    /// The norm before each block and before the head.
    pub norm: DecoderNorm,
    /// Added to the variance or the mean square by every norm.
    pub norm_epsilon: f32,
    /// Applied to the gate projection, or to the up projection where there is no gate.
    pub activation: Activation,
    /// Whether the feed-forward block multiplies the activated gate projection with the up projection.
    pub gated: bool,
    /// Whether the output head is the token embedding.
    pub tied_embeddings: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the projection of the attended values has a bias.
    pub attention_output_bias: bool,
    /// Whether the projections of the feed-forward block have biases.
    pub mlp_bias: bool,
    /// Factors of the attention scores.
    pub score_scale: ScoreScale,
    /// How far back tokens attend, if limited.
    pub sliding_window: Option<SlidingWindow>,
    /// Ids that end a generation.
    pub end_of_sequence: Cow<'static, [u32]>,
}

/// How a decoder's token knows its position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Positions {
    /// A learned vector for each position is added to the token's.
    Learned,
    /// Queries and keys are turned by their position.
    Rotary(Rope),
}

/// The norm of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderNorm {
    /// Of mean and variance, with a shift.
    Layer,
    /// Of the mean square, without a shift.
    Rms,
}

/// The factors of the attention scores, product by product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreScale {
    /// `1 / sqrt(head_dim)`.
    pub by_head_dim: bool,
    /// `1 / (index of the layer + 1)`.
    pub by_layer: bool,
}

impl ScoreScale {
    /// As in the Transformer: by the width of the heads alone.
    pub const USUAL: Self = Self { by_head_dim: true, by_layer: false };
}

/// A limit to how far back tokens attend. Memory of older tokens arrives through the layers below: token `i` of layer `n` depends on the tokens
/// after `i - n * width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Positions a token sees, its own included.
    pub width: usize,
    /// How many layers, from the first, have no window.
    pub full_layers: usize,
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

    /// The longest sequence: a token needs a position, and a window limits only what it sees.
    pub fn max_sequence(&self) -> usize {
        self.max_positions
    }

    /// The positions that a token sees in this layer, its own included, if limited.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|window| layer >= window.full_layers).map(|window| window.width)
    }

    /// Factor of the attention scores in this layer.
    pub fn score_scale(&self, layer: usize) -> f32 {
        let by_head_dim = if self.score_scale.by_head_dim { 1.0 / (self.head_dim as f32).sqrt() } else { 1.0 };
        if self.score_scale.by_layer { by_head_dim / (layer + 1) as f32 } else { by_head_dim }
    }
}

const ROTARY_FIELDS: &[&str] = &[
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

const GPT2_FIELDS: &[&str] = &[
    "activation_function",
    "hidden_size",
    "layer_norm_epsilon",
    "max_position_embeddings",
    "n_ctx",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "num_attention_heads",
    "num_hidden_layers",
    // Says in which order and precision the scores are computed; they are in full precision here in any case.
    "reorder_and_upcast_attn",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "tie_word_embeddings",
    "vocab_size",
];

pub(super) fn llama(fields: &Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    let config = DecoderConfig {
        qkv_bias: attention_bias,
        attention_output_bias: attention_bias,
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        sliding_window: sliding_window(fields, None, 0)?,
        ..rotary(fields, DecoderFamily::Llama, fields.size("num_attention_heads")?)?
    };
    fields.refuse_unknown(&[ROTARY_FIELDS, &["attention_bias", "mlp_bias"]].concat())?;
    Ok(config)
}

pub(super) fn mistral(fields: &Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    // Absent and null differ here: transformers' default is the window of the first Mistral.
    let width = if fields.names("sliding_window") { fields.optional_size("sliding_window")? } else { Some(4096) };
    let window = sliding_window(fields, width, 0)?;
    if window.map(|window| (window.width, window.full_layers)) != width.map(|width| (width, 0)) {
        let problem = "exempts layers from `sliding_window`, which transformers' Mistral gives to all of them";
        return Err(fields.error("layer_types", problem, "remove one of the two"));
    }
    let config = DecoderConfig { sliding_window: window, ..rotary(fields, DecoderFamily::Mistral, 8)? };
    fields.refuse_unknown(&[ROTARY_FIELDS, &["sliding_window"]].concat())?;
    Ok(config)
}

pub(super) fn qwen2(fields: &Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let width = match fields.flag("use_sliding_window")? {
        // As for Mistral.
        Some(true) if fields.names("sliding_window") => fields.optional_size("sliding_window")?,
        Some(true) => Some(4096),
        _ => None,
    };
    let full_layers = fields.count("max_window_layers")?.unwrap_or(28);
    let config = DecoderConfig {
        qkv_bias: true,
        sliding_window: sliding_window(fields, width, full_layers)?,
        ..rotary(fields, DecoderFamily::Qwen2, 32)?
    };
    fields.refuse_unknown(&[ROTARY_FIELDS, &["max_window_layers", "sliding_window", "use_sliding_window"]].concat())?;
    Ok(config)
}

pub(super) fn gpt2(fields: &Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    if fields.flag("add_cross_attention")? == Some(true) {
        let problem = "is true, and attention to an encoder is not supported";
        return Err(fields.error("add_cross_attention", problem, "use a model that only decodes"));
    }
    let (hidden, heads) = (either_name(fields, "n_embd", "hidden_size")?, either_name(fields, "n_head", "num_attention_heads")?);
    divides(fields, "n_head", heads, "n_embd", hidden)?;
    let max_positions = either_name(fields, "n_positions", "max_position_embeddings")?;
    // The length of the causal mask, as older configurations give it.
    if let Some(context) = fields.optional_size("n_ctx")?
        && context != max_positions
    {
        let problem = format!("is {context} but `n_positions`, which says the same, is {max_positions}");
        return Err(fields.error("n_ctx", problem, "remove the wrong one"));
    }
    let vocab = fields.size("vocab_size")?;
    let config = DecoderConfig {
        family: DecoderFamily::Gpt2,
        hidden,
        layers: either_name(fields, "n_layer", "num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        intermediate: fields.optional_size("n_inner")?.unwrap_or(4 * hidden),
        vocab,
        max_positions,
        positions: Positions::Learned,
        norm: DecoderNorm::Layer,
        norm_epsilon: fields.optional_positive("layer_norm_epsilon")?.unwrap_or(1e-5) as f32,
        activation: Activation::from_field(fields, "activation_function", Activation::GeluTanh)?,
        gated: false,
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        qkv_bias: true,
        attention_output_bias: true,
        mlp_bias: true,
        score_scale: ScoreScale {
            by_head_dim: fields.flag("scale_attn_weights")?.unwrap_or(true),
            by_layer: fields.flag("scale_attn_by_inverse_layer_idx")?.unwrap_or(false),
        },
        sliding_window: None,
        end_of_sequence: Cow::Owned(fields.token_ids("eos_token_id", vocab)?.unwrap_or_default()),
    };
    fields.refuse_unknown(GPT2_FIELDS)?;
    Ok(config)
}

/// What the families with rotary positions share; biases and sliding window are off.
fn rotary(fields: &Fields<'_>, family: DecoderFamily, default_kv_heads: usize) -> Result<DecoderConfig, ConfigError> {
    let hidden = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    let kv_heads = match fields.optional_size("num_key_value_heads")? {
        Some(kv_heads) => kv_heads,
        // As for the window of Mistral: null says that nothing is shared.
        None if fields.names("num_key_value_heads") => heads,
        None => default_kv_heads,
    };
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
        positions: Positions::Rotary(rope::parse(fields)?),
        norm: DecoderNorm::Rms,
        norm_epsilon: fields.optional_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        activation: Activation::from_field(fields, "hidden_act", Activation::Silu)?,
        gated: true,
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: false,
        attention_output_bias: false,
        mlp_bias: false,
        score_scale: ScoreScale::USUAL,
        sliding_window: None,
        end_of_sequence: Cow::Owned(fields.token_ids("eos_token_id", vocab)?.unwrap_or_default()),
    })
}

/// A window of `width` positions from layer `full_layers` on, unless `layer_types` says for each layer whether it has one.
fn sliding_window(fields: &Fields<'_>, width: Option<usize>, full_layers: usize) -> Result<Option<SlidingWindow>, ConfigError> {
    let layers = fields.size("num_hidden_layers")?;
    let mut full_layers = if width.is_some() { full_layers.min(layers) } else { layers };
    if let Some(types) = fields.value("layer_types") {
        let kinds: Option<Vec<&str>> = types.as_array().and_then(|types| types.iter().map(|kind| kind.as_str()).collect());
        let Some(kinds) = kinds.filter(|kinds| kinds.len() == layers) else {
            return Err(fields.error("layer_types", format!("does not list one kind for each of the {layers} layers"), "correct it"));
        };
        let full = kinds.iter().take_while(|&&kind| kind == "full_attention").count();
        if let Some((layer, kind)) = kinds.iter().enumerate().skip(full).find(|&(_, &kind)| kind != "sliding_attention") {
            let remedy = "use a model with full_attention up to some layer and sliding_attention from there on";
            return Err(fields.error("layer_types", format!("names {kind} for layer {layer}"), remedy));
        }
        if full < layers && width.is_none() {
            return Err(fields.error("layer_types", "names sliding_attention in a model without a sliding window", "correct it"));
        }
        full_layers = full;
    }
    Ok(width.filter(|_| full_layers < layers).map(|width| SlidingWindow { width, full_layers }))
}
