//! Decoders. Sizes from the `config.json` published with each model.

use std::borrow::Cow;

use crate::config::{
    Activation, DecoderConfig, DecoderFamily, DecoderNorm, ModelConfig, Positions, Rope, RopeScaling, ScoreScale, SlidingWindow,
};

/// Every decoder with the name that `--model` and `--tenant` take.
pub(super) const ALL: [(&str, ModelConfig); 15] = [
    ("distilgpt2", DISTILGPT2),
    ("gpt2", GPT2),
    ("gpt2-medium", GPT2_MEDIUM),
    ("gpt2-large", GPT2_LARGE),
    ("gpt2-xl", GPT2_XL),
    ("llama-3.2-1b", LLAMA_3_2_1B),
    ("llama-3.2-3b", LLAMA_3_2_3B),
    ("llama-3.1-8b", LLAMA_3_1_8B),
    ("deepseek-r1-distill-llama-8b", LLAMA_3_1_8B),
    ("mistral-7b", MISTRAL_7B),
    ("qwen2-0.5b", QWEN2_0_5B),
    ("qwen2-1.5b", QWEN2_1_5B),
    ("qwen2-7b", QWEN2_7B),
    ("deepseek-r1-distill-qwen-1.5b", DEEPSEEK_R1_DISTILL_QWEN_1_5B),
    ("deepseek-r1-distill-qwen-7b", DEEPSEEK_R1_DISTILL_QWEN_7B),
];

/// `distilgpt2`: 82 million parameters.
pub const DISTILGPT2: ModelConfig = gpt2(768, 6, 12);

/// `gpt2`: 124 million parameters.
pub const GPT2: ModelConfig = gpt2(768, 12, 12);

/// `gpt2-medium`: 355 million parameters.
pub const GPT2_MEDIUM: ModelConfig = gpt2(1024, 24, 16);

/// `gpt2-large`: 774 million parameters.
pub const GPT2_LARGE: ModelConfig = gpt2(1280, 36, 20);

/// `gpt2-xl`: 1.56 billion parameters.
pub const GPT2_XL: ModelConfig = gpt2(1600, 48, 25);

/// `Llama-3.2-1B`: 1.24 billion parameters, head tied to the embedding.
pub const LLAMA_3_2_1B: ModelConfig =
    llama3(Sizes { hidden: 2048, layers: 16, heads: 32, kv_heads: 8, intermediate: 8192 }, 64, 32.0, true);

/// `Llama-3.2-3B`: 3.21 billion parameters, head tied to the embedding.
pub const LLAMA_3_2_3B: ModelConfig =
    llama3(Sizes { hidden: 3072, layers: 28, heads: 24, kv_heads: 8, intermediate: 8192 }, 128, 32.0, true);

/// `Llama-3.1-8B`, and `DeepSeek-R1-Distill-Llama-8B`, which was trained from it: 8.03 billion parameters.
pub const LLAMA_3_1_8B: ModelConfig =
    llama3(Sizes { hidden: 4096, layers: 32, heads: 32, kv_heads: 8, intermediate: 14336 }, 128, 8.0, false);

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
    positions: Positions::Rotary(Rope { theta: 10_000.0, scaling: RopeScaling::None }),
    norm: DecoderNorm::Rms,
    norm_epsilon: 1e-5,
    activation: Activation::Silu,
    gated: true,
    tied_embeddings: false,
    qkv_bias: false,
    attention_output_bias: false,
    mlp_bias: false,
    score_scale: ScoreScale::USUAL,
    sliding_window: Some(SlidingWindow { width: 4096, full_layers: 0 }),
    end_of_sequence: Cow::Borrowed(&[2]),
});

/// `Qwen2-0.5B`: 494 million parameters, head tied to the embedding.
pub const QWEN2_0_5B: ModelConfig =
    qwen2(Sizes { hidden: 896, layers: 24, heads: 14, kv_heads: 2, intermediate: 4864 }, 151_936, 1_000_000.0, true);

/// `Qwen2-1.5B`: 1.54 billion parameters, head tied to the embedding.
pub const QWEN2_1_5B: ModelConfig =
    qwen2(Sizes { hidden: 1536, layers: 28, heads: 12, kv_heads: 2, intermediate: 8960 }, 151_936, 1_000_000.0, true);

/// `Qwen2-7B`: 7.62 billion parameters.
pub const QWEN2_7B: ModelConfig =
    qwen2(Sizes { hidden: 3584, layers: 28, heads: 28, kv_heads: 4, intermediate: 18944 }, 152_064, 1_000_000.0, false);

/// `DeepSeek-R1-Distill-Qwen-1.5B`: 1.78 billion parameters; unlike `Qwen2-1.5B`, its head is its own.
pub const DEEPSEEK_R1_DISTILL_QWEN_1_5B: ModelConfig =
    qwen2(Sizes { hidden: 1536, layers: 28, heads: 12, kv_heads: 2, intermediate: 8960 }, 151_936, 10_000.0, false);

/// `DeepSeek-R1-Distill-Qwen-7B`: 7.62 billion parameters.
pub const DEEPSEEK_R1_DISTILL_QWEN_7B: ModelConfig =
    qwen2(Sizes { hidden: 3584, layers: 28, heads: 28, kv_heads: 4, intermediate: 18944 }, 152_064, 10_000.0, false);

/// What differs from size to size of a family.
struct Sizes {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    intermediate: usize,
}

const fn gpt2(hidden: usize, layers: usize, heads: usize) -> ModelConfig {
    ModelConfig::Decoder(DecoderConfig {
        family: DecoderFamily::Gpt2,
        hidden,
        layers,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        intermediate: 4 * hidden,
        vocab: 50257,
        max_positions: 1024,
        positions: Positions::Learned,
        norm: DecoderNorm::Layer,
        norm_epsilon: 1e-5,
        activation: Activation::GeluTanh,
        gated: false,
        tied_embeddings: true,
        qkv_bias: true,
        attention_output_bias: true,
        mlp_bias: true,
        score_scale: ScoreScale::USUAL,
        sliding_window: None,
        end_of_sequence: Cow::Borrowed(&[50256]),
    })
}

const fn llama3(sizes: Sizes, head_dim: usize, factor: f32, tied_embeddings: bool) -> ModelConfig {
    ModelConfig::Decoder(DecoderConfig {
        family: DecoderFamily::Llama,
        hidden: sizes.hidden,
        layers: sizes.layers,
        heads: sizes.heads,
        kv_heads: sizes.kv_heads,
        head_dim,
        intermediate: sizes.intermediate,
        vocab: 128_256,
        max_positions: 131_072,
        positions: Positions::Rotary(Rope {
            theta: 500_000.0,
            scaling: RopeScaling::Llama3 { factor, low_frequency_factor: 1.0, high_frequency_factor: 4.0, original_positions: 8192.0 },
        }),
        norm: DecoderNorm::Rms,
        norm_epsilon: 1e-5,
        activation: Activation::Silu,
        gated: true,
        tied_embeddings,
        qkv_bias: false,
        attention_output_bias: false,
        mlp_bias: false,
        score_scale: ScoreScale::USUAL,
        sliding_window: None,
        end_of_sequence: Cow::Borrowed(&[128_001]),
    })
}

const fn qwen2(sizes: Sizes, vocab: usize, theta: f32, tied_embeddings: bool) -> ModelConfig {
    ModelConfig::Decoder(DecoderConfig {
        family: DecoderFamily::Qwen2,
        hidden: sizes.hidden,
        layers: sizes.layers,
        heads: sizes.heads,
        kv_heads: sizes.kv_heads,
        head_dim: sizes.hidden / sizes.heads,
        intermediate: sizes.intermediate,
        vocab,
        max_positions: 131_072,
        positions: Positions::Rotary(Rope { theta, scaling: RopeScaling::None }),
        norm: DecoderNorm::Rms,
        norm_epsilon: 1e-6,
        activation: Activation::Silu,
        gated: true,
        tied_embeddings,
        qkv_bias: true,
        attention_output_bias: false,
        mlp_bias: false,
        score_scale: ScoreScale::USUAL,
        // The published configurations name a window and switch it off.
        sliding_window: None,
        end_of_sequence: Cow::Borrowed(&[151_643]),
    })
}
