//! What Hugging Face checkpoints call the parameters of each family, and how they keep them.

use super::layout::Layout;
use super::names::{LayerParameter, LayerParameter as L, Parameter};
use crate::config::{DecoderConfig, DecoderFamily, EncoderConfig, EncoderFamily, ModelConfig};

impl Parameter {
    /// The name in a Hugging Face checkpoint whose base model's tensors start with `prefix` (see [`prefixes`]), or `None` where models of
    /// this family have no such parameter.
    pub(super) fn hugging_face_name(self, config: &ModelConfig, prefix: &str) -> Option<String> {
        match config {
            ModelConfig::Encoder(encoder) => encoder_name(self, encoder, prefix),
            ModelConfig::Decoder(DecoderConfig { family: DecoderFamily::Gpt2, .. }) => gpt2_name(self, prefix),
            ModelConfig::Decoder(_) => decoder_name(self, prefix),
            ModelConfig::Vision(_) => vision_name(self, prefix),
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

/// What may stand before every name of [`Parameter::hugging_face_name`], most common first. A checkpoint of the bare model has no prefix,
/// one of the model with a task head has the family's.
pub(super) fn prefixes(config: &ModelConfig) -> [&'static str; 2] {
    match config {
        ModelConfig::Encoder(EncoderConfig { family: EncoderFamily::Bert, .. }) => ["", "bert."],
        ModelConfig::Encoder(EncoderConfig { family: EncoderFamily::DistilBert, .. }) => ["", "distilbert."],
        ModelConfig::Decoder(DecoderConfig { family: DecoderFamily::Gpt2, .. }) => ["transformer.", ""],
        ModelConfig::Encoder(EncoderConfig { family: EncoderFamily::Deberta | EncoderFamily::DebertaV2, .. }) => ["", "deberta."],
        ModelConfig::Vision(_) => ["", "vit."],
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
        Parameter::RelativeEmbedding => "encoder.rel_embeddings.weight",
        Parameter::RelativeNormWeight => "encoder.LayerNorm.weight",
        Parameter::RelativeNormBias => "encoder.LayerNorm.bias",
        Parameter::ConvolutionWeight => "encoder.conv.conv.weight",
        Parameter::ConvolutionBias => "encoder.conv.conv.bias",
        Parameter::ConvolutionNormWeight => "encoder.conv.LayerNorm.weight",
        Parameter::ConvolutionNormBias => "encoder.conv.LayerNorm.bias",
        Parameter::Layer(index, layer) => {
            return Some(match encoder.family {
                EncoderFamily::Bert => format!("{prefix}encoder.layer.{index}.{}", bert_layer_name(layer)?),
                EncoderFamily::DistilBert => format!("{prefix}transformer.layer.{index}.{}", distilbert_layer_name(layer)?),
                EncoderFamily::Deberta => format!("{prefix}encoder.layer.{index}.{}", deberta_layer_name(layer)?),
                EncoderFamily::DebertaV2 => format!("{prefix}encoder.layer.{index}.{}", deberta_v2_layer_name(layer)?),
            });
        }
        _ => return None,
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
        _ => return None,
    })
}

fn deberta_layer_name(parameter: LayerParameter) -> Option<&'static str> {
    Some(match parameter {
        L::HeadwiseQkvWeight => "attention.self.in_proj.weight",
        L::QueryBias => "attention.self.q_bias",
        L::ValueBias => "attention.self.v_bias",
        L::PositionKeyWeight => "attention.self.pos_proj.weight",
        L::PositionQueryWeight => "attention.self.pos_q_proj.weight",
        L::PositionQueryBias => "attention.self.pos_q_proj.bias",
        L::QueryWeight | L::KeyWeight | L::KeyBias | L::ValueWeight => return None,
        common => return bert_layer_name(common),
    })
}

fn deberta_v2_layer_name(parameter: LayerParameter) -> Option<&'static str> {
    Some(match parameter {
        L::QueryWeight => "attention.self.query_proj.weight",
        L::QueryBias => "attention.self.query_proj.bias",
        L::KeyWeight => "attention.self.key_proj.weight",
        L::KeyBias => "attention.self.key_proj.bias",
        L::ValueWeight => "attention.self.value_proj.weight",
        L::ValueBias => "attention.self.value_proj.bias",
        L::PositionKeyWeight => "attention.self.pos_key_proj.weight",
        L::PositionKeyBias => "attention.self.pos_key_proj.bias",
        L::PositionQueryWeight => "attention.self.pos_query_proj.weight",
        L::PositionQueryBias => "attention.self.pos_query_proj.bias",
        common => return bert_layer_name(common),
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
        _ => return None,
    })
}

fn vision_name(parameter: Parameter, prefix: &str) -> Option<String> {
    let name = match parameter {
        Parameter::ClassToken => "embeddings.cls_token",
        Parameter::PositionEmbedding => "embeddings.position_embeddings",
        Parameter::PatchWeight => "embeddings.patch_embeddings.projection.weight",
        Parameter::PatchBias => "embeddings.patch_embeddings.projection.bias",
        Parameter::FinalNormWeight => "layernorm.weight",
        Parameter::FinalNormBias => "layernorm.bias",
        // The classifier is no part of the base model.
        Parameter::OutputHead => return Some("classifier.weight".to_owned()),
        Parameter::OutputHeadBias => return Some("classifier.bias".to_owned()),
        Parameter::Layer(index, layer) => return Some(format!("{prefix}encoder.layer.{index}.{}", vision_layer_name(layer)?)),
        _ => return None,
    };
    Some(format!("{prefix}{name}"))
}

fn vision_layer_name(parameter: LayerParameter) -> Option<&'static str> {
    Some(match parameter {
        L::AttentionNormWeight => "layernorm_before.weight",
        L::AttentionNormBias => "layernorm_before.bias",
        L::QueryWeight => "attention.attention.query.weight",
        L::QueryBias => "attention.attention.query.bias",
        L::KeyWeight => "attention.attention.key.weight",
        L::KeyBias => "attention.attention.key.bias",
        L::ValueWeight => "attention.attention.value.weight",
        L::ValueBias => "attention.attention.value.bias",
        L::FeedForwardNormWeight => "layernorm_after.weight",
        L::FeedForwardNormBias => "layernorm_after.bias",
        common => return bert_layer_name(common),
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
        _ => return None,
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
        _ => return None,
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
