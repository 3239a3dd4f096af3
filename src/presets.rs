//! The architectures of well-known models, for machines that do not have their weights. Runs of a preset use seeded random weights
//! ([`Weights::random`](crate::weights::Weights::random)): speed and memory are those of the real model, the output is not.

use std::borrow::Cow;

use crate::config::{
    Activation, Convolution, DecoderConfig, DecoderFamily, EncoderConfig, EncoderFamily, ModelConfig, RelativeAttention, Rope, RopeScaling,
    VisionConfig,
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
pub const ALL: [(&str, ModelConfig); 14] = [
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
        let encoders = [138_601_728, 405_163_008, 884_593_152, 141_304_320, 183_831_552, 434_012_160, 86_567_656, 304_326_632, 632_045_800];
        let published = [108_891_648, 334_092_288, 66_362_880].into_iter().chain(encoders).chain([1_235_814_400, 7_241_732_096]);
        for ((name, config), published) in ALL.into_iter().zip(published) {
            let count: usize = names::parameters(&config).iter().map(|p| p.shape(&config).iter().product::<usize>()).sum();
            assert_eq!(count, published, "{name}");
        }
    }
}
