//! The parameters of a model as the engine thinks of them, their shapes, and the names Hugging Face gave them.
//!
//! The CPU reference and the GPU models ask for `Parameter::layer(3, LayerParameter::QueryWeight)` and never see a checkpoint's names, so
//! that one forward pass serves every family and every way of saving it.

use std::fmt;

use super::layout::Layout;
use crate::config::{DecoderConfig, DecoderFamily, DecoderNorm, EncoderConfig, EncoderFamily, ModelConfig, Positions};

/// One tensor of a model. Weights of projections are `[out, in]`, row-major: `y = x * W^T + b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parameter {
    /// `[vocab, hidden]`.
    TokenEmbedding,
    /// `[max_positions, hidden]`; encoders, and decoders with learned positions.
    PositionEmbedding,
    /// `[token_types, hidden]`; encoders that have token types.
    TokenTypeEmbedding,
    /// `[hidden]`: scale of the layer norm over the summed embeddings; encoders.
    EmbeddingNormWeight,
    /// `[hidden]`: shift of the same.
    EmbeddingNormBias,
    /// `[hidden]`: scale of the norm after the last layer; decoders.
    FinalNormWeight,
    /// `[hidden]`: shift of the same; decoders with layer norms.
    FinalNormBias,
    /// `[vocab, hidden]`: from the residual stream to logits; decoders with untied embeddings.
    OutputHead,
    /// A parameter of the layer with this index.
    Layer(usize, LayerParameter),
}

/// One tensor of a transformer layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerParameter {
    /// `[heads * head_dim, hidden]`.
    QueryWeight,
    /// `[heads * head_dim]`.
    QueryBias,
    /// `[kv_heads * head_dim, hidden]`.
    KeyWeight,
    /// `[kv_heads * head_dim]`.
    KeyBias,
    /// `[kv_heads * head_dim, hidden]`.
    ValueWeight,
    /// `[kv_heads * head_dim]`.
    ValueBias,
    /// `[hidden, heads * head_dim]`: from the attended values back to the residual stream.
    AttentionOutputWeight,
    /// `[hidden]`.
    AttentionOutputBias,
    /// `[hidden]`: scale of the norm after the attention residual (encoders) or before the attention (decoders).
    AttentionNormWeight,
    /// `[hidden]`: shift of the same, where it is a layer norm.
    AttentionNormBias,
    /// `[intermediate, hidden]`: the projection that the activation is applied to, where the feed-forward block is gated.
    GateWeight,
    /// `[intermediate]`.
    GateBias,
    /// `[intermediate, hidden]`: into the feed-forward block. It is multiplied by the activated gate, or the activation is applied to it where
    /// there is none.
    UpWeight,
    /// `[intermediate]`.
    UpBias,
    /// `[hidden, intermediate]`: out of the feed-forward block.
    DownWeight,
    /// `[hidden]`.
    DownBias,
    /// `[hidden]`: scale of the norm after the feed-forward residual (encoders) or before the feed-forward block (decoders).
    FeedForwardNormWeight,
    /// `[hidden]`: shift of the same, where it is a layer norm.
    FeedForwardNormBias,
}

use LayerParameter as L;

impl LayerParameter {
    /// Every parameter that a layer of some family has.
    pub(super) const ALL: [Self; 18] = [
        L::QueryWeight,
        L::QueryBias,
        L::KeyWeight,
        L::KeyBias,
        L::ValueWeight,
        L::ValueBias,
        L::AttentionOutputWeight,
        L::AttentionOutputBias,
        L::AttentionNormWeight,
        L::AttentionNormBias,
        L::GateWeight,
        L::GateBias,
        L::UpWeight,
        L::UpBias,
        L::DownWeight,
        L::DownBias,
        L::FeedForwardNormWeight,
        L::FeedForwardNormBias,
    ];
}

impl Parameter {
    /// Shorthand for [`Parameter::Layer`].
    pub const fn layer(index: usize, parameter: LayerParameter) -> Self {
        Self::Layer(index, parameter)
    }

    /// The shape this parameter has in a model of this configuration. A table that the model lacks has no rows.
    pub fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let hidden = config.hidden();
        let (query, kv, intermediate) = match config {
            ModelConfig::Encoder(encoder) => (hidden, hidden, encoder.intermediate),
            ModelConfig::Decoder(decoder) => (decoder.query_width(), decoder.kv_width(), decoder.intermediate),
        };
        match self {
            Self::TokenEmbedding | Self::OutputHead => vec![config.vocab(), hidden],
            Self::PositionEmbedding => match config {
                ModelConfig::Encoder(encoder) => vec![encoder.max_positions, hidden],
                ModelConfig::Decoder(decoder) if decoder.positions == Positions::Learned => vec![decoder.max_positions, hidden],
                ModelConfig::Decoder(_) => vec![0, hidden],
            },
            Self::TokenTypeEmbedding => match config {
                ModelConfig::Encoder(encoder) => vec![encoder.token_types, hidden],
                ModelConfig::Decoder(_) => vec![0, hidden],
            },
            Self::EmbeddingNormWeight | Self::EmbeddingNormBias | Self::FinalNormWeight | Self::FinalNormBias => vec![hidden],
            Self::Layer(_, parameter) => match parameter {
                L::QueryWeight => vec![query, hidden],
                L::QueryBias => vec![query],
                L::KeyWeight | L::ValueWeight => vec![kv, hidden],
                L::KeyBias | L::ValueBias => vec![kv],
                L::AttentionOutputWeight => vec![hidden, query],
                L::GateWeight | L::UpWeight => vec![intermediate, hidden],
                L::GateBias | L::UpBias => vec![intermediate],
                L::DownWeight => vec![hidden, intermediate],
                L::AttentionOutputBias
                | L::DownBias
                | L::AttentionNormWeight
                | L::AttentionNormBias
                | L::FeedForwardNormWeight
                | L::FeedForwardNormBias => vec![hidden],
            },
        }
    }

    /// What a parameter is in the arithmetic, for initialising it without a checkpoint.
    pub fn role(self) -> Role {
        match self {
            Self::EmbeddingNormWeight | Self::FinalNormWeight | Self::Layer(_, L::AttentionNormWeight | L::FeedForwardNormWeight) => {
                Role::NormScale
            }
            Self::EmbeddingNormBias | Self::FinalNormBias => Role::Bias,
            Self::Layer(
                _,
                L::QueryBias
                | L::KeyBias
                | L::ValueBias
                | L::AttentionOutputBias
                | L::AttentionNormBias
                | L::GateBias
                | L::UpBias
                | L::DownBias
                | L::FeedForwardNormBias,
            ) => Role::Bias,
            _ => Role::Weight,
        }
    }

    /// The name in a Hugging Face checkpoint whose base model's tensors start with `prefix` (see [`prefixes`]), or `None` where models of
    /// this family have no such parameter.
    pub(super) fn hugging_face_name(self, config: &ModelConfig, prefix: &str) -> Option<String> {
        match config {
            ModelConfig::Encoder(encoder) => encoder_name(self, encoder, prefix),
            ModelConfig::Decoder(DecoderConfig { family: DecoderFamily::Gpt2, .. }) => gpt2_name(self, prefix),
            ModelConfig::Decoder(_) => decoder_name(self, prefix),
        }
    }

    /// How the tensor of that name holds this parameter.
    pub(super) fn layout(self, config: &ModelConfig) -> Layout {
        match (config, self) {
            (ModelConfig::Decoder(decoder), Self::Layer(_, layer)) if decoder.family == DecoderFamily::Gpt2 => gpt2_layout(layer, decoder),
            _ => Layout::Whole,
        }
    }
}

/// What a parameter is in the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A matrix or an embedding table.
    Weight,
    /// Added.
    Bias,
    /// The scale of a norm.
    NormScale,
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(index, parameter) => write!(f, "layer {index} {parameter:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Every parameter a model of this configuration has, in the order the forward pass meets them. The order is part of the contract: the
/// random weights of the presets are seeded by it.
pub fn parameters(config: &ModelConfig) -> Vec<Parameter> {
    let (outer, layer, last) = match config {
        ModelConfig::Encoder(encoder) => encoder_parameters(encoder),
        ModelConfig::Decoder(decoder) => decoder_parameters(decoder),
    };
    let layers = (0..config.layers()).flat_map(|index| layer.iter().map(move |&parameter| Parameter::Layer(index, parameter)));
    outer.into_iter().chain(layers).chain(last).collect()
}

type Parts = (Vec<Parameter>, Vec<LayerParameter>, Vec<Parameter>);

fn encoder_parameters(encoder: &EncoderConfig) -> Parts {
    let mut outer = vec![Parameter::TokenEmbedding, Parameter::PositionEmbedding];
    if encoder.token_types > 0 {
        outer.push(Parameter::TokenTypeEmbedding);
    }
    outer.extend([Parameter::EmbeddingNormWeight, Parameter::EmbeddingNormBias]);
    let layer = vec![
        L::QueryWeight,
        L::QueryBias,
        L::KeyWeight,
        L::KeyBias,
        L::ValueWeight,
        L::ValueBias,
        L::AttentionOutputWeight,
        L::AttentionOutputBias,
        L::AttentionNormWeight,
        L::AttentionNormBias,
        L::UpWeight,
        L::UpBias,
        L::DownWeight,
        L::DownBias,
        L::FeedForwardNormWeight,
        L::FeedForwardNormBias,
    ];
    (outer, layer, Vec::new())
}

fn decoder_parameters(decoder: &DecoderConfig) -> Parts {
    let shifted = decoder.norm == DecoderNorm::Layer;
    let layer = vec![
        (L::AttentionNormWeight, true),
        (L::AttentionNormBias, shifted),
        (L::QueryWeight, true),
        (L::QueryBias, decoder.qkv_bias),
        (L::KeyWeight, true),
        (L::KeyBias, decoder.qkv_bias),
        (L::ValueWeight, true),
        (L::ValueBias, decoder.qkv_bias),
        (L::AttentionOutputWeight, true),
        (L::AttentionOutputBias, decoder.attention_output_bias),
        (L::FeedForwardNormWeight, true),
        (L::FeedForwardNormBias, shifted),
        (L::GateWeight, decoder.gated),
        (L::GateBias, decoder.gated && decoder.mlp_bias),
        (L::UpWeight, true),
        (L::UpBias, decoder.mlp_bias),
        (L::DownWeight, true),
        (L::DownBias, decoder.mlp_bias),
    ];
    let outer = [(Parameter::TokenEmbedding, true), (Parameter::PositionEmbedding, decoder.positions == Positions::Learned)];
    let last = [(Parameter::FinalNormWeight, true), (Parameter::FinalNormBias, shifted), (Parameter::OutputHead, !decoder.tied_embeddings)];
    (present(outer), present(layer), present(last))
}

fn present<T>(parameters: impl IntoIterator<Item = (T, bool)>) -> Vec<T> {
    parameters.into_iter().filter_map(|(parameter, there)| there.then_some(parameter)).collect()
}

/// What may stand before every name of [`Parameter::hugging_face_name`], most common first. A checkpoint of the bare model has no prefix,
/// one of the model with a task head has the family's.
pub(super) fn prefixes(config: &ModelConfig) -> [&'static str; 2] {
    match config {
        ModelConfig::Encoder(EncoderConfig { family: EncoderFamily::Bert, .. }) => ["", "bert."],
        ModelConfig::Encoder(EncoderConfig { family: EncoderFamily::DistilBert, .. }) => ["", "distilbert."],
        ModelConfig::Decoder(DecoderConfig { family: DecoderFamily::Gpt2, .. }) => ["transformer.", ""],
        ModelConfig::Decoder(_) => ["model.", ""],
    }
}

/// The name that checkpoints converted from TensorFlow have for a layer norm's tensor, if `name` is one.
pub(super) fn tensorflow_norm_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix("LayerNorm.weight").map(|stem| (stem, "gamma"));
    let (stem, last) = stem.or_else(|| name.strip_suffix("LayerNorm.bias").map(|stem| (stem, "beta")))?;
    Some(format!("{stem}LayerNorm.{last}"))
}

fn encoder_name(parameter: Parameter, encoder: &EncoderConfig, prefix: &str) -> Option<String> {
    let name = match parameter {
        Parameter::TokenEmbedding => "embeddings.word_embeddings.weight",
        Parameter::PositionEmbedding => "embeddings.position_embeddings.weight",
        Parameter::TokenTypeEmbedding => "embeddings.token_type_embeddings.weight",
        Parameter::EmbeddingNormWeight => "embeddings.LayerNorm.weight",
        Parameter::EmbeddingNormBias => "embeddings.LayerNorm.bias",
        Parameter::FinalNormWeight | Parameter::FinalNormBias | Parameter::OutputHead => return None,
        Parameter::Layer(index, layer) => {
            return Some(match encoder.family {
                EncoderFamily::Bert => format!("{prefix}encoder.layer.{index}.{}", bert_layer_name(layer)?),
                EncoderFamily::DistilBert => format!("{prefix}transformer.layer.{index}.{}", distilbert_layer_name(layer)?),
            });
        }
    };
    Some(format!("{prefix}{name}"))
}

fn bert_layer_name(parameter: LayerParameter) -> Option<&'static str> {
    Some(match parameter {
        L::QueryWeight => "attention.self.query.weight",
        L::QueryBias => "attention.self.query.bias",
        L::KeyWeight => "attention.self.key.weight",
        L::KeyBias => "attention.self.key.bias",
        L::ValueWeight => "attention.self.value.weight",
        L::ValueBias => "attention.self.value.bias",
        L::AttentionOutputWeight => "attention.output.dense.weight",
        L::AttentionOutputBias => "attention.output.dense.bias",
        L::AttentionNormWeight => "attention.output.LayerNorm.weight",
        L::AttentionNormBias => "attention.output.LayerNorm.bias",
        L::UpWeight => "intermediate.dense.weight",
        L::UpBias => "intermediate.dense.bias",
        L::DownWeight => "output.dense.weight",
        L::DownBias => "output.dense.bias",
        L::FeedForwardNormWeight => "output.LayerNorm.weight",
        L::FeedForwardNormBias => "output.LayerNorm.bias",
        L::GateWeight | L::GateBias => return None,
    })
}

fn distilbert_layer_name(parameter: LayerParameter) -> Option<&'static str> {
    Some(match parameter {
        L::QueryWeight => "attention.q_lin.weight",
        L::QueryBias => "attention.q_lin.bias",
        L::KeyWeight => "attention.k_lin.weight",
        L::KeyBias => "attention.k_lin.bias",
        L::ValueWeight => "attention.v_lin.weight",
        L::ValueBias => "attention.v_lin.bias",
        L::AttentionOutputWeight => "attention.out_lin.weight",
        L::AttentionOutputBias => "attention.out_lin.bias",
        L::AttentionNormWeight => "sa_layer_norm.weight",
        L::AttentionNormBias => "sa_layer_norm.bias",
        L::UpWeight => "ffn.lin1.weight",
        L::UpBias => "ffn.lin1.bias",
        L::DownWeight => "ffn.lin2.weight",
        L::DownBias => "ffn.lin2.bias",
        L::FeedForwardNormWeight => "output_layer_norm.weight",
        L::FeedForwardNormBias => "output_layer_norm.bias",
        L::GateWeight | L::GateBias => return None,
    })
}

fn decoder_name(parameter: Parameter, prefix: &str) -> Option<String> {
    match parameter {
        Parameter::TokenEmbedding => Some(format!("{prefix}embed_tokens.weight")),
        Parameter::FinalNormWeight => Some(format!("{prefix}norm.weight")),
        // The head is no part of the base model.
        Parameter::OutputHead => Some("lm_head.weight".to_owned()),
        Parameter::Layer(index, layer) => Some(format!("{prefix}layers.{index}.{}", decoder_layer_name(layer)?)),
        _ => None,
    }
}

fn decoder_layer_name(parameter: LayerParameter) -> Option<&'static str> {
    Some(match parameter {
        L::QueryWeight => "self_attn.q_proj.weight",
        L::QueryBias => "self_attn.q_proj.bias",
        L::KeyWeight => "self_attn.k_proj.weight",
        L::KeyBias => "self_attn.k_proj.bias",
        L::ValueWeight => "self_attn.v_proj.weight",
        L::ValueBias => "self_attn.v_proj.bias",
        L::AttentionOutputWeight => "self_attn.o_proj.weight",
        L::AttentionOutputBias => "self_attn.o_proj.bias",
        L::AttentionNormWeight => "input_layernorm.weight",
        L::GateWeight => "mlp.gate_proj.weight",
        L::GateBias => "mlp.gate_proj.bias",
        L::UpWeight => "mlp.up_proj.weight",
        L::UpBias => "mlp.up_proj.bias",
        L::DownWeight => "mlp.down_proj.weight",
        L::DownBias => "mlp.down_proj.bias",
        L::FeedForwardNormWeight => "post_attention_layernorm.weight",
        L::AttentionNormBias | L::FeedForwardNormBias => return None,
    })
}

fn gpt2_name(parameter: Parameter, prefix: &str) -> Option<String> {
    let name = match parameter {
        Parameter::TokenEmbedding => "wte.weight",
        Parameter::PositionEmbedding => "wpe.weight",
        Parameter::FinalNormWeight => "ln_f.weight",
        Parameter::FinalNormBias => "ln_f.bias",
        // As for the other decoders.
        Parameter::OutputHead => return Some("lm_head.weight".to_owned()),
        Parameter::Layer(index, layer) => return Some(format!("{prefix}h.{index}.{}", gpt2_layer_name(layer)?)),
        _ => return None,
    };
    Some(format!("{prefix}{name}"))
}

fn gpt2_layer_name(parameter: LayerParameter) -> Option<&'static str> {
    Some(match parameter {
        L::QueryWeight | L::KeyWeight | L::ValueWeight => "attn.c_attn.weight",
        L::QueryBias | L::KeyBias | L::ValueBias => "attn.c_attn.bias",
        L::AttentionOutputWeight => "attn.c_proj.weight",
        L::AttentionOutputBias => "attn.c_proj.bias",
        L::AttentionNormWeight => "ln_1.weight",
        L::AttentionNormBias => "ln_1.bias",
        L::UpWeight => "mlp.c_fc.weight",
        L::UpBias => "mlp.c_fc.bias",
        L::DownWeight => "mlp.c_proj.weight",
        L::DownBias => "mlp.c_proj.bias",
        L::FeedForwardNormWeight => "ln_2.weight",
        L::FeedForwardNormBias => "ln_2.bias",
        L::GateWeight | L::GateBias => return None,
    })
}

/// GPT-2 keeps projections as `[in, out]`, and those of queries, keys and values in one tensor.
fn gpt2_layout(parameter: LayerParameter, decoder: &DecoderConfig) -> Layout {
    let hidden = decoder.hidden;
    match parameter {
        L::QueryWeight | L::QueryBias => Layout::Columns { first: 0, of: 3 * hidden },
        L::KeyWeight | L::KeyBias => Layout::Columns { first: hidden, of: 3 * hidden },
        L::ValueWeight | L::ValueBias => Layout::Columns { first: 2 * hidden, of: 3 * hidden },
        L::AttentionOutputWeight | L::DownWeight => Layout::Columns { first: 0, of: hidden },
        L::UpWeight => Layout::Columns { first: 0, of: decoder.intermediate },
        _ => Layout::Whole,
    }
}
