//! Configurations of well-known models in the form of their published `config.json`, with the fields that a reader has to know or to pass over:
//! each is accepted, and is what the preset of its name says.

use std::path::Path;

use serde_json::{Value, json};

use smidgen::config::ModelConfig;
use smidgen::presets;

fn assert_is_preset(name: &str, published: Value) {
    let Value::Object(object) = published else { panic!("{name}: not an object") };
    let config = ModelConfig::from_json(Path::new("config.json"), &object).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(Some(config), presets::find(name), "{name}");
}

#[test]
fn gpt2_configurations_are_their_presets() {
    let text_generation = json!({"text-generation": {"do_sample": true, "max_length": 50}});
    assert_is_preset(
        "distilgpt2",
        json!({
            "_num_labels": 1,
            "activation_function": "gelu_new",
            "architectures": ["GPT2LMHeadModel"],
            "attn_pdrop": 0.1,
            "bos_token_id": 50256,
            "embd_pdrop": 0.1,
            "eos_token_id": 50256,
            "id2label": {"0": "LABEL_0"},
            "initializer_range": 0.02,
            "label2id": {"LABEL_0": 0},
            "layer_norm_epsilon": 1e-05,
            "model_type": "gpt2",
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 6,
            "n_positions": 1024,
            "resid_pdrop": 0.1,
            "summary_activation": null,
            "summary_first_dropout": 0.1,
            "summary_proj_to_labels": true,
            "summary_type": "cls_index",
            "summary_use_proj": true,
            "task_specific_params": text_generation,
            "vocab_size": 50257,
        }),
    );
    for (name, width, heads, layers) in [("gpt2-medium", 1024, 16, 24), ("gpt2-large", 1280, 20, 36), ("gpt2-xl", 1600, 25, 48)] {
        assert_is_preset(
            name,
            json!({
                "activation_function": "gelu_new",
                "architectures": ["GPT2LMHeadModel"],
                "attn_pdrop": 0.1,
                "bos_token_id": 50256,
                "embd_pdrop": 0.1,
                "eos_token_id": 50256,
                "initializer_range": 0.02,
                "layer_norm_epsilon": 1e-05,
                "model_type": "gpt2",
                "n_ctx": 1024,
                "n_embd": width,
                "n_head": heads,
                "n_layer": layers,
                "n_positions": 1024,
                "n_special": 0,
                "output_past": true,
                "predict_special_tokens": true,
                "resid_pdrop": 0.1,
                "summary_activation": null,
                "summary_first_dropout": 0.1,
                "summary_proj_to_labels": true,
                "summary_type": "cls_index",
                "summary_use_proj": true,
                "task_specific_params": text_generation,
                "vocab_size": 50257,
            }),
        );
    }
}

#[test]
fn qwen2_configurations_are_their_presets() {
    assert_is_preset(
        "qwen2-1.5b",
        json!({
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "hidden_size": 1536,
            "initializer_range": 0.02,
            "intermediate_size": 8960,
            "max_position_embeddings": 131072,
            "max_window_layers": 28,
            "model_type": "qwen2",
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": true,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.40.1",
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": 151936,
        }),
    );
    assert_is_preset(
        "deepseek-r1-distill-qwen-7b",
        json!({
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
            "hidden_act": "silu",
            "hidden_size": 3584,
            "initializer_range": 0.02,
            "intermediate_size": 18944,
            "max_position_embeddings": 131072,
            "max_window_layers": 28,
            "model_type": "qwen2",
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000,
            "sliding_window": 4096,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.44.0",
            "use_cache": true,
            "use_mrope": false,
            "use_sliding_window": false,
            "vocab_size": 152064,
        }),
    );
}

#[test]
fn llama_and_mistral_configurations_are_their_presets() {
    assert_is_preset(
        "deepseek-r1-distill-llama-8b",
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.43.0.dev0",
            "use_cache": true,
            "vocab_size": 128256,
        }),
    );
    assert_is_preset(
        "mistral-7b",
        json!({
            "architectures": ["MistralForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.34.0.dev0",
            "use_cache": true,
            "vocab_size": 32000,
        }),
    );
}

#[test]
fn deberta_configurations_are_their_presets() {
    for (name, hidden, layers, heads) in [("deberta-base", 768, 12, 12), ("deberta-large", 1024, 24, 16)] {
        assert_is_preset(
            name,
            json!({
                "attention_probs_dropout_prob": 0.1,
                "hidden_act": "gelu",
                "hidden_dropout_prob": 0.1,
                "hidden_size": hidden,
                "initializer_range": 0.02,
                "intermediate_size": 4 * hidden,
                "layer_norm_eps": 1e-7,
                "max_position_embeddings": 512,
                "max_relative_positions": -1,
                "model_type": "deberta",
                "num_attention_heads": heads,
                "num_hidden_layers": layers,
                "padding_idx": 0,
                "pooler_dropout": 0,
                "pooler_hidden_act": "gelu",
                "pos_att_type": "c2p|p2c",
                "position_biased_input": false,
                "relative_attention": true,
                "type_vocab_size": 0,
                "vocab_size": 50265,
            }),
        );
    }
    let v2 = |hidden: u32, layers: u32, heads: u32| {
        json!({
            "attention_head_size": 64,
            "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": 4 * hidden,
            "layer_norm_eps": 1e-7,
            "max_position_embeddings": 512,
            "max_relative_positions": -1,
            "model_type": "deberta-v2",
            "norm_rel_ebd": "layer_norm",
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "pos_att_type": "p2c|c2p",
            "position_biased_input": false,
            "position_buckets": 256,
            "relative_attention": true,
            "share_att_key": true,
            "type_vocab_size": 0,
            "vocab_size": 128_100,
        })
    };
    for (name, hidden, layers, heads) in
        [("deberta-v3-small", 768, 6, 12), ("deberta-v3-base", 768, 12, 12), ("deberta-v3-large", 1024, 24, 16)]
    {
        assert_is_preset(name, v2(hidden, layers, heads));
    }
    let mut xlarge = v2(1536, 24, 24);
    (xlarge["conv_kernel_size"], xlarge["conv_act"]) = (json!(3), json!("gelu"));
    assert_is_preset("deberta-v2-xlarge", xlarge);
}

/// But for the labels, which the presets have no names for.
#[test]
fn vit_configurations_are_their_presets() {
    for (name, hidden, layers, heads, patch_size) in
        [("vit-base-patch16-224", 768, 12, 12, 16), ("vit-large-patch16-224", 1024, 24, 16, 16), ("vit-huge-patch14", 1280, 32, 16, 14)]
    {
        let labels: serde_json::Map<_, _> = (0..1000).map(|class| (class.to_string(), json!(format!("label of {class}")))).collect();
        let published = json!({
            "architectures": ["ViTForImageClassification"],
            "attention_probs_dropout_prob": 0.0,
            "encoder_stride": 16,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": hidden,
            "id2label": labels,
            "image_size": 224,
            "initializer_range": 0.02,
            "intermediate_size": 4 * hidden,
            "label2id": {},
            "layer_norm_eps": 1e-12,
            "model_type": "vit",
            "num_attention_heads": heads,
            "num_channels": 3,
            "num_hidden_layers": layers,
            "patch_size": patch_size,
            "qkv_bias": true,
        });
        let Value::Object(object) = published else { unreachable!() };
        let config = ModelConfig::from_json(Path::new("config.json"), &object).unwrap_or_else(|error| panic!("{name}: {error}"));
        let ModelConfig::Vision(vision) = config else { panic!("{name} is a vision model") };
        assert_eq!((vision.label(999).as_ref(), vision.labels.len()), ("label of 999", 1000));
        let unnamed = smidgen::config::VisionConfig { labels: [].as_slice().into(), ..vision };
        assert_eq!(Some(ModelConfig::Vision(unnamed)), presets::find(name), "{name}");
    }
}
