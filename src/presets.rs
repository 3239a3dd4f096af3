//! The architectures of well-known models, for machines that do not have their weights. Runs of a preset use seeded random weights
//! ([`Weights::random`](crate::weights::Weights::random)): speed and memory are those of the real model, the output is not.

use std::borrow::Cow;

use crate::config::{Activation, DecoderConfig, DecoderFamily, EncoderConfig, EncoderFamily, ModelConfig, Rope, RopeScaling};

/// `bert-base-uncased`: 110 million parameters.
pub const BERT_BASE: ModelConfig = ModelConfig::Encoder(EncoderConfig {
    family: EncoderFamily::Bert,
    hidden: 768,
    layers: 12,
    heads: 12,
    intermediate: 3072,
    vocab: 30522,
    max_positions: 512,
    token_types: 2,
    layer_norm_epsilon: 1e-12,
    activation: Activation::Gelu,
});

/// `bert-large-uncased`: 335 million parameters.
pub const BERT_LARGE: ModelConfig = ModelConfig::Encoder(EncoderConfig {
    family: EncoderFamily::Bert,
    hidden: 1024,
    layers: 24,
    heads: 16,
    intermediate: 4096,
    vocab: 30522,
    max_positions: 512,
    token_types: 2,
    layer_norm_epsilon: 1e-12,
    activation: Activation::Gelu,
});

/// `distilbert-base-uncased`: 66 million parameters.
pub const DISTILBERT: ModelConfig = ModelConfig::Encoder(EncoderConfig {
    family: EncoderFamily::DistilBert,
    hidden: 768,
    layers: 6,
    heads: 12,
    intermediate: 3072,
    vocab: 30522,
    max_positions: 512,
    token_types: 0,
    layer_norm_epsilon: 1e-12,
    activation: Activation::Gelu,
});

/// `Llama-3.2-1B`: 1.24 billion parameters, head tied to the embedding.
pub const LLAMA_3_2_1B: ModelConfig = ModelConfig::Decoder(DecoderConfig {
    family: DecoderFamily::Llama,
    hidden: 2048,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    intermediate: 8192,
    vocab: 128_256,
    max_positions: 131_072,
    rms_norm_epsilon: 1e-5,
    activation: Activation::Silu,
    rope: Rope {
        theta: 500_000.0,
        scaling: RopeScaling::Llama3 { factor: 32.0, low_frequency_factor: 1.0, high_frequency_factor: 4.0, original_positions: 8192.0 },
    },
    tied_embeddings: true,
    attention_bias: false,
    mlp_bias: false,
    sliding_window: None,
    end_of_sequence: Cow::Borrowed(&[128_001]),
});

/// `Mistral-7B-v0.1`: 7.24 billion parameters.
pub const MISTRAL_7B: ModelConfig = ModelConfig::Decoder(DecoderConfig {
    family: DecoderFamily::Mistral,
    hidden: 4096,
    layers: 32,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    intermediate: 14336,
    vocab: 32000,
    max_positions: 32768,
    rms_norm_epsilon: 1e-5,
    activation: Activation::Silu,
    rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
    tied_embeddings: false,
    attention_bias: false,
    mlp_bias: false,
    sliding_window: Some(4096),
    end_of_sequence: Cow::Borrowed(&[2]),
});

/// Every preset with the name that `--model` and `--tenant` take.
pub const ALL: [(&str, ModelConfig); 5] = [
    ("bert-base", BERT_BASE),
    ("bert-large", BERT_LARGE),
    ("distilbert", DISTILBERT),
    ("llama-3.2-1b", LLAMA_3_2_1B),
    ("mistral-7b", MISTRAL_7B),
];

/// The preset called `name`.
pub fn find(name: &str) -> Option<ModelConfig> {
    ALL.into_iter().find(|(known, _)| *known == name).map(|(_, config)| config)
}

/// The names of all presets, for messages.
pub fn names() -> String {
    ALL.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::names;

    /// Parameter counts published with the models (pooler and task heads excepted).
    #[test]
    fn each_preset_has_as_many_parameters_as_the_model_it_is_named_after() {
        let published = [108_891_648, 334_092_288, 66_362_880, 1_235_814_400, 7_241_732_096];
        for ((name, config), published) in ALL.into_iter().zip(published) {
            let count: usize = names::parameters(&config).iter().map(|p| p.shape(&config).iter().product::<usize>()).sum();
            assert_eq!(count, published, "{name}");
        }
    }
}
