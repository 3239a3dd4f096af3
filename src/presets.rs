//! The architectures of well-known models, for machines that do not have their weights. Runs of a preset use seeded random weights
//! ([`Weights::random`](crate::weights::Weights::random)): speed and memory are those of the real model, the output is not.

use std::borrow::Cow;

use crate::config::{Activation, Convolution, EncoderConfig, EncoderFamily, ModelConfig, RelativeAttention, VisionConfig};

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
    absolute_positions: true,
    relative: None,
    convolution: None,
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
    absolute_positions: true,
    relative: None,
    convolution: None,
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
    absolute_positions: true,
    relative: None,
    convolution: None,
    token_types: 0,
    layer_norm_epsilon: 1e-12,
    activation: Activation::Gelu,
});

/// `deberta-base`: 139 million parameters.
pub const DEBERTA_BASE: ModelConfig = deberta(768, 12, 12);

/// `deberta-large`: 405 million parameters.
pub const DEBERTA_LARGE: ModelConfig = deberta(1024, 24, 16);

/// `deberta-v2-xlarge`: 885 million parameters.
pub const DEBERTA_V2_XLARGE: ModelConfig = deberta_v2(1536, 24, 24, Some(Convolution { width: 3, activation: Activation::Gelu }));

/// `deberta-v3-small`: 141 million parameters, of which 98 million are the embedding.
pub const DEBERTA_V3_SMALL: ModelConfig = deberta_v2(768, 6, 12, None);

/// `deberta-v3-base`: 184 million parameters.
pub const DEBERTA_V3_BASE: ModelConfig = deberta_v2(768, 12, 12, None);

/// `deberta-v3-large`: 434 million parameters.
pub const DEBERTA_V3_LARGE: ModelConfig = deberta_v2(1024, 24, 16, None);

/// `vit-base-patch16-224`: 87 million parameters, 197 tokens an image.
pub const VIT_BASE_PATCH16_224: ModelConfig = vit(768, 12, 12, 16);

/// `vit-large-patch16-224`: 304 million parameters, 197 tokens an image.
pub const VIT_LARGE_PATCH16_224: ModelConfig = vit(1024, 24, 16, 16);

/// `vit-huge-patch14-224-in21k` with a classifier of 1000 classes: 632 million parameters, 257 tokens an image.
pub const VIT_HUGE_PATCH14: ModelConfig = vit(1280, 32, 16, 14);

/// A first-version DeBERTa.
const fn deberta(hidden: usize, layers: usize, heads: usize) -> ModelConfig {
    let relative = RelativeAttention {
        span: 512,
        bucketed_to: None,
        content_to_position: true,
        position_to_content: true,
        shared_projections: false,
        normalised: false,
    };
    ModelConfig::Encoder(EncoderConfig {
        family: EncoderFamily::Deberta,
        hidden,
        layers,
        heads,
        intermediate: 4 * hidden,
        vocab: 50265,
        max_positions: 512,
        absolute_positions: false,
        relative: Some(relative),
        convolution: None,
        token_types: 0,
        layer_norm_epsilon: 1e-7,
        activation: Activation::Gelu,
    })
}

/// DeBERTa v2 or v3: they differ in how they were trained, and in the convolution.
const fn deberta_v2(hidden: usize, layers: usize, heads: usize, convolution: Option<Convolution>) -> ModelConfig {
    let relative = RelativeAttention {
        span: 256,
        bucketed_to: Some(512),
        content_to_position: true,
        position_to_content: true,
        shared_projections: true,
        normalised: true,
    };
    ModelConfig::Encoder(EncoderConfig {
        family: EncoderFamily::DebertaV2,
        hidden,
        layers,
        heads,
        intermediate: 4 * hidden,
        vocab: 128_100,
        max_positions: 512,
        absolute_positions: false,
        relative: Some(relative),
        convolution,
        token_types: 0,
        layer_norm_epsilon: 1e-7,
        activation: Activation::Gelu,
    })
}

/// ViT for images of 224 by 224 pixels and the 1000 classes of ImageNet.
const fn vit(hidden: usize, layers: usize, heads: usize, patch_size: usize) -> ModelConfig {
    ModelConfig::Vision(VisionConfig {
        hidden,
        layers,
        heads,
        intermediate: 4 * hidden,
        image_size: 224,
        patch_size,
        channels: 3,
        qkv_bias: true,
        layer_norm_epsilon: 1e-12,
        activation: Activation::Gelu,
        classes: 1000,
        labels: Cow::Borrowed(&[]),
    })
}

/// Every encoder with the name that `--model` and `--tenant` take.
const ENCODERS: [(&str, ModelConfig); 12] = [
    ("bert-base", BERT_BASE),
    ("bert-large", BERT_LARGE),
    ("distilbert", DISTILBERT),
    ("deberta-base", DEBERTA_BASE),
    ("deberta-large", DEBERTA_LARGE),
    ("deberta-v2-xlarge", DEBERTA_V2_XLARGE),
    ("deberta-v3-small", DEBERTA_V3_SMALL),
    ("deberta-v3-base", DEBERTA_V3_BASE),
    ("deberta-v3-large", DEBERTA_V3_LARGE),
    ("vit-base-patch16-224", VIT_BASE_PATCH16_224),
    ("vit-large-patch16-224", VIT_LARGE_PATCH16_224),
    ("vit-huge-patch14", VIT_HUGE_PATCH14),
];

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
            ("deberta-base", 138_601_728),
            ("deberta-large", 405_163_008),
            ("deberta-v2-xlarge", 884_593_152),
            ("deberta-v3-small", 141_304_320),
            ("deberta-v3-base", 183_831_552),
            ("deberta-v3-large", 434_012_160),
            ("vit-base-patch16-224", 86_567_656),
            ("vit-large-patch16-224", 304_326_632),
            ("vit-huge-patch14", 632_045_800),
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
