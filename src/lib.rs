//! An FP16 transformer engine whose every kernel gets just the SMs it needs.
//!
//! The engine runs encoders of the BERT family and decoders of the Llama family from Hugging Face model directories, on the GPU through
//! [`smidgen_runtime`] or on the CPU.
//!
//! | room | what is in it |
//! |---|---|
//! | [`config`] | architectures, read from `config.json` and checked |
//! | [`presets`] | architectures of well-known models |
//! | [`weights`] | safetensors checkpoints, parameter names, random weights |

pub mod config;
pub mod presets;
pub mod weights;
