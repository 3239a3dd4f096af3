//! An FP16 transformer engine whose every kernel gets just the SMs it needs.
//!
//! The engine runs encoders of the BERT and DeBERTa families, vision transformers and decoders (GPT-2, Llama, Mistral, Qwen2) from Hugging Face
//! model directories, on the GPU through
//! [`smidgen_runtime`] or on the CPU, where [`mod@reference`] computes the same models in f32 as the yardstick for the kernels.
//!
//! | room | what is in it |
//! |---|---|
//! | [`config`] | architectures, read from `config.json` and checked |
//! | [`presets`] | architectures of well-known models |
//! | [`weights`] | safetensors checkpoints, parameter names, random weights |
//! | [`batch`] | token ids, checked, ragged |
//! | [`images`] | image files to the pixels that a vision model takes |
//! | [`tokenizer`] | text to token ids and back |
//! | [`embedding`] | from hidden states to one vector per text |
//! | [`generate`] | generation, token by token, on any device |
//! | [`mod@reference`] | the models in f32 on the CPU |
//! | [`kernels`] | one room per operator: device code, descriptors, launch heuristics |
//! | [`models`] | forward passes as launches through one session |
//! | [`serve`] | one tenant's requests: arrivals, latencies |
//! | [`colocate`] | several tenants side by side under one policy after another |
//! | [`interrupts`] | signals held back while something must not be left half done |
//! | [`cuda`], [`fatbin`] | the GPU with the kernels built into this binary |

pub mod batch;
pub mod colocate;
pub mod config;
pub mod cuda;
pub mod embedding;
pub mod fatbin;
pub mod generate;
pub mod images;
pub mod interrupts;
#[path = "../kernels/mod.rs"]
pub mod kernels;
pub mod models;
pub mod presets;
pub mod reference;
pub mod serve;
mod splitmix;
pub mod tokenizer;
pub mod weights;
