//! Configurations of well-known decoders in the form of their published `config.json`, with the fields that a reader has to know or to pass over:
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
