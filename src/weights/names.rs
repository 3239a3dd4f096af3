//! The parameters of a model as the engine thinks of them: their logical names, shapes and order.
//!
//! The CPU reference and the GPU models ask for `Parameter::layer(3, LayerParameter::QueryWeight)` and never see a checkpoint's names, so
//! that one forward pass serves every family and every way of saving it.

use std::fmt;

use crate::config::{DecoderConfig, DecoderNorm, EncoderConfig, EncoderFamily, ModelConfig, Positions, RelativeAttention, VisionConfig};

/// One tensor of a model. Weights of projections are `[out, in]`, row-major: `y = x * W^T + b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parameter {
    /// `[vocab, hidden]`.
    TokenEmbedding,
    /// `[max_positions, hidden]`; encoders, and decoders with learned positions. `[1, tokens, hidden]` of vision models.
    PositionEmbedding,
    /// `[token_types, hidden]`; encoders that have token types.
    TokenTypeEmbedding,
    /// `[hidden]`: scale of the layer norm over the summed embeddings; encoders.
    EmbeddingNormWeight,
    /// `[hidden]`: shift of the same.
    EmbeddingNormBias,
    /// `[2 * span, hidden]`: one row for each relative position; DeBERTa.
    RelativeEmbedding,
    /// `[hidden]`: scale of the layer norm over the relative positions; DeBERTa v2 and v3.
    RelativeNormWeight,
    /// `[hidden]`: shift of the same.
    RelativeNormBias,
    /// `[hidden, hidden, width]`: output channel, input channel, token; DeBERTa v2 xlarge.
    ConvolutionWeight,
    /// `[hidden]`.
    ConvolutionBias,
    /// `[hidden]`: scale of the layer norm over the first layer's output and the convolution's.
    ConvolutionNormWeight,
    /// `[hidden]`: shift of the same.
    ConvolutionNormBias,
    /// `[1, 1, hidden]`: what stands before the patches; vision models.
    ClassToken,
    /// `[hidden, channels, patch_size, patch_size]`: from a patch's pixels to the residual stream; vision models.
    PatchWeight,
    /// `[hidden]`.
    PatchBias,
    /// `[hidden]`: scale of the norm after the last layer; decoders and vision models.
    FinalNormWeight,
    /// `[hidden]`: shift of the same, where it is a layer norm.
    FinalNormBias,
    /// `[vocab, hidden]`: from the residual stream to logits; decoders with untied embeddings. `[classes, hidden]`: vision models that classify.
    OutputHead,
    /// `[classes]`; vision models that classify.
    OutputHeadBias,
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
    /// `[3 * hidden, hidden]`: for each head in turn the rows of its query, its key and its value; the first DeBERTa.
    HeadwiseQkvWeight,
    /// `[hidden, hidden]`: from relative positions to what queries are multiplied by; DeBERTa.
    PositionKeyWeight,
    /// `[hidden]`; DeBERTa v2.
    PositionKeyBias,
    /// `[hidden, hidden]`: from relative positions to what keys are multiplied by; DeBERTa.
    PositionQueryWeight,
    /// `[hidden]`.
    PositionQueryBias,
    /// `[hidden, heads * head_dim]`: from the attended values back to the residual stream.
    AttentionOutputWeight,
    /// `[hidden]`.
    AttentionOutputBias,
    /// `[hidden]`: scale of the norm after the attention residual (encoders) or before the attention (decoders, vision models).
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
    /// `[hidden]`: scale of the norm after the feed-forward residual (encoders) or before the feed-forward block (decoders, vision
    /// models).
    FeedForwardNormWeight,
    /// `[hidden]`: shift of the same, where it is a layer norm.
    FeedForwardNormBias,
}

use LayerParameter as L;

impl LayerParameter {
    /// Every parameter that a layer of some family has.
    pub(super) const ALL: [Self; 23] = [
        L::QueryWeight,
        L::QueryBias,
        L::KeyWeight,
        L::KeyBias,
        L::ValueWeight,
        L::ValueBias,
        L::HeadwiseQkvWeight,
        L::PositionKeyWeight,
        L::PositionKeyBias,
        L::PositionQueryWeight,
        L::PositionQueryBias,
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
            ModelConfig::Vision(vision) => (hidden, hidden, vision.intermediate),
        };
        match self {
            Self::TokenEmbedding => vec![config.vocab(), hidden],
            Self::OutputHead => match config {
                ModelConfig::Vision(vision) => vec![vision.classes, hidden],
                _ => vec![config.vocab(), hidden],
            },
            Self::OutputHeadBias => vec![config.output_width()],
            Self::PositionEmbedding => match config {
                ModelConfig::Encoder(encoder) => vec![encoder.max_positions, hidden],
                ModelConfig::Decoder(decoder) if decoder.positions == Positions::Learned => vec![decoder.max_positions, hidden],
                ModelConfig::Decoder(_) => vec![0, hidden],
                ModelConfig::Vision(vision) => vec![1, vision.tokens(), hidden],
            },
            Self::TokenTypeEmbedding => match config {
                ModelConfig::Encoder(encoder) => vec![encoder.token_types, hidden],
                _ => vec![0, hidden],
            },
            Self::RelativeEmbedding => match config {
                ModelConfig::Encoder(EncoderConfig { relative: Some(relative), .. }) => vec![2 * relative.span, hidden],
                _ => vec![0, hidden],
            },
            Self::ConvolutionWeight => match config {
                ModelConfig::Encoder(EncoderConfig { convolution: Some(convolution), .. }) => vec![hidden, hidden, convolution.width],
                _ => vec![0, hidden],
            },
            Self::ClassToken => vec![1, 1, hidden],
            Self::PatchWeight => match config {
                ModelConfig::Vision(vision) => vec![hidden, vision.channels, vision.patch_size, vision.patch_size],
                _ => vec![0, hidden],
            },
            Self::EmbeddingNormWeight
            | Self::EmbeddingNormBias
            | Self::RelativeNormWeight
            | Self::RelativeNormBias
            | Self::ConvolutionBias
            | Self::ConvolutionNormWeight
            | Self::ConvolutionNormBias
            | Self::PatchBias
            | Self::FinalNormWeight
            | Self::FinalNormBias => vec![hidden],
            Self::Layer(_, parameter) => match parameter {
                L::QueryWeight => vec![query, hidden],
                L::QueryBias => vec![query],
                L::KeyWeight | L::ValueWeight => vec![kv, hidden],
                L::KeyBias | L::ValueBias => vec![kv],
                L::HeadwiseQkvWeight => vec![3 * hidden, hidden],
                L::PositionKeyWeight | L::PositionQueryWeight => vec![hidden, hidden],
                L::AttentionOutputWeight => vec![hidden, query],
                L::GateWeight | L::UpWeight => vec![intermediate, hidden],
                L::GateBias | L::UpBias => vec![intermediate],
                L::DownWeight => vec![hidden, intermediate],
                L::PositionKeyBias
                | L::PositionQueryBias
                | L::AttentionOutputBias
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
            Self::EmbeddingNormWeight
            | Self::RelativeNormWeight
            | Self::ConvolutionNormWeight
            | Self::FinalNormWeight
            | Self::Layer(_, L::AttentionNormWeight | L::FeedForwardNormWeight) => Role::NormScale,
            Self::EmbeddingNormBias
            | Self::RelativeNormBias
            | Self::ConvolutionBias
            | Self::ConvolutionNormBias
            | Self::PatchBias
            | Self::FinalNormBias
            | Self::OutputHeadBias => Role::Bias,
            Self::Layer(
                _,
                L::QueryBias
                | L::KeyBias
                | L::ValueBias
                | L::PositionKeyBias
                | L::PositionQueryBias
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
        ModelConfig::Vision(vision) => vision_parameters(vision),
    };
    let layers = (0..config.layers()).flat_map(|index| layer.iter().map(move |&parameter| Parameter::Layer(index, parameter)));
    outer.into_iter().chain(layers).chain(last).collect()
}

type Parts = (Vec<Parameter>, Vec<LayerParameter>, Vec<Parameter>);

fn encoder_parameters(encoder: &EncoderConfig) -> Parts {
    let mut outer = vec![Parameter::TokenEmbedding];
    if encoder.absolute_positions {
        outer.push(Parameter::PositionEmbedding);
    }
    if encoder.token_types > 0 {
        outer.push(Parameter::TokenTypeEmbedding);
    }
    outer.extend([Parameter::EmbeddingNormWeight, Parameter::EmbeddingNormBias]);
    let first_deberta = encoder.family == EncoderFamily::Deberta;
    let own = |there: fn(&RelativeAttention) -> bool| {
        encoder.relative.as_ref().is_some_and(|relative| !relative.shared_projections && there(relative))
    };
    let (c2p, p2c) = (own(|relative| relative.content_to_position), own(|relative| relative.position_to_content));
    if let Some(relative) = &encoder.relative {
        outer.push(Parameter::RelativeEmbedding);
        if relative.normalised {
            outer.extend([Parameter::RelativeNormWeight, Parameter::RelativeNormBias]);
        }
    }
    let layer = [
        (L::QueryWeight, !first_deberta),
        (L::HeadwiseQkvWeight, first_deberta),
        (L::QueryBias, true),
        (L::KeyWeight, !first_deberta),
        (L::KeyBias, !first_deberta),
        (L::ValueWeight, !first_deberta),
        (L::ValueBias, true),
        (L::PositionKeyWeight, c2p),
        (L::PositionKeyBias, c2p && !first_deberta),
        (L::PositionQueryWeight, p2c),
        (L::PositionQueryBias, p2c),
        (L::AttentionOutputWeight, true),
        (L::AttentionOutputBias, true),
        (L::AttentionNormWeight, true),
        (L::AttentionNormBias, true),
        (L::UpWeight, true),
        (L::UpBias, true),
        (L::DownWeight, true),
        (L::DownBias, true),
        (L::FeedForwardNormWeight, true),
        (L::FeedForwardNormBias, true),
    ];
    let layer = layer.into_iter().filter_map(|(parameter, there)| there.then_some(parameter)).collect();
    let last = match &encoder.convolution {
        None => Vec::new(),
        Some(_) => {
            vec![Parameter::ConvolutionWeight, Parameter::ConvolutionBias, Parameter::ConvolutionNormWeight, Parameter::ConvolutionNormBias]
        }
    };
    (outer, layer, last)
}

fn vision_parameters(vision: &VisionConfig) -> Parts {
    let outer = vec![Parameter::ClassToken, Parameter::PositionEmbedding, Parameter::PatchWeight, Parameter::PatchBias];
    let layer = [
        (L::AttentionNormWeight, true),
        (L::AttentionNormBias, true),
        (L::QueryWeight, true),
        (L::QueryBias, vision.qkv_bias),
        (L::KeyWeight, true),
        (L::KeyBias, vision.qkv_bias),
        (L::ValueWeight, true),
        (L::ValueBias, vision.qkv_bias),
        (L::AttentionOutputWeight, true),
        (L::AttentionOutputBias, true),
        (L::FeedForwardNormWeight, true),
        (L::FeedForwardNormBias, true),
        (L::UpWeight, true),
        (L::UpBias, true),
        (L::DownWeight, true),
        (L::DownBias, true),
    ];
    let layer = layer.into_iter().filter_map(|(parameter, there)| there.then_some(parameter)).collect();
    let mut last = vec![Parameter::FinalNormWeight, Parameter::FinalNormBias];
    if vision.classes > 0 {
        last.extend([Parameter::OutputHead, Parameter::OutputHeadBias]);
    }
    (outer, layer, last)
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
