//! An FP16 transformer engine whose every kernel gets just the SMs it needs.
//!
//! The engine runs encoders of the BERT family and decoders of the Llama family from Hugging Face model directories, on the GPU through
//! [`smidgen_runtime`] or on the CPU, where [`mod@reference`] computes the same models in f32 as the yardstick for the kernels.
//!
//! | room | what is in it |
//! |---|---|
//! | [`config`] | architectures, read from `config.json` and checked |
//! | [`presets`] | architectures of well-known models |
//! | [`weights`] | safetensors checkpoints, parameter names, random weights |
//! | [`batch`] | token ids, checked, ragged |
//! | [`mod@reference`] | the models in f32 on the CPU |
//! | [`generate`] | generation, token by token, on any device |

pub mod batch;
pub mod config;
pub mod generate;
pub mod presets;
pub mod reference;
pub mod weights;
