//! The architectures of well-known models, for machines that do not have their weights. Runs of a preset use seeded random weights
//! ([`Weights::random`](crate::weights::Weights::random)): speed and memory are those of the real model, the output is not.

use crate::config::{Activation, EncoderConfig, EncoderFamily, ModelConfig};

mod decoders;

pub use decoders::{
    DEEPSEEK_R1_DISTILL_QWEN_1_5B, DEEPSEEK_R1_DISTILL_QWEN_7B, DISTILGPT2, GPT2, GPT2_LARGE, GPT2_MEDIUM, GPT2_XL, LLAMA_3_1_8B,
    LLAMA_3_2_1B, LLAMA_3_2_3B, MISTRAL_7B, QWEN2_0_5B, QWEN2_1_5B, QWEN2_7B,
};

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

/// Every encoder with the name that `--model` and `--tenant` take.
const ENCODERS: [(&str, ModelConfig); 3] = [("bert-base", BERT_BASE), ("bert-large", BERT_LARGE), ("distilbert", DISTILBERT)];

/// Every preset with the name that `--model` and `--tenant` take.
pub fn all() -> impl Iterator<Item = (&'static str, ModelConfig)> {
    ENCODERS.into_iter().chain(decoders::ALL)
}

/// The preset called `name`.
pub fn find(name: &str) -> Option<ModelConfig> {
    all().find(|(known, _)| *known == name).map(|(_, config)| config)
}

/// The names of all presets, for messages.
pub fn names() -> String {
    all().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::weights::names;

    /// Parameter counts published with the models (pooler and task heads excepted).
    #[test]
    fn each_preset_has_as_many_parameters_as_the_model_it_is_named_after() {
        let published: HashMap<&str, usize> = HashMap::from([
            ("bert-base", 108_891_648),
            ("bert-large", 334_092_288),
            ("distilbert", 66_362_880),
            ("distilgpt2", 81_912_576),
            ("gpt2", 124_439_808),
            ("gpt2-medium", 354_823_168),
            ("gpt2-large", 774_030_080),
            ("gpt2-xl", 1_557_611_200),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.2-3b", 3_212_749_824),
            ("llama-3.1-8b", 8_030_261_248),
            ("deepseek-r1-distill-llama-8b", 8_030_261_248),
            ("mistral-7b", 7_241_732_096),
            ("qwen2-0.5b", 494_032_768),
            ("qwen2-1.5b", 1_543_714_304),
            ("qwen2-7b", 7_615_616_512),
            ("deepseek-r1-distill-qwen-1.5b", 1_777_088_000),
            ("deepseek-r1-distill-qwen-7b", 7_615_616_512),
        ]);
        for (name, config) in all() {
            let count: usize = names::parameters(&config).iter().map(|p| p.shape(&config).iter().product::<usize>()).sum();
            assert_eq!(published.get(name), Some(&count), "{name}");
        }
    }
}
