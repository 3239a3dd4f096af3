//! Everything that needs a GPU with this project's kernels on it, in one binary, so that a bundle stays small: kernels against references,
//! elastic tiles under changing grants, whole models, rounding errors. Run by `cargo xtask test --gpu`.
#![cfg(feature = "cuda-13000")]

#[path = "../minilm/mod.rs"]
mod minilm;
#[path = "../support/mod.rs"]
mod support;
#[path = "../tenant/mod.rs"]
mod tenant;
#[path = "../tiny_models/mod.rs"]
mod tiny_models;

mod accuracy;
mod attention;
mod chunk;
mod deberta;
mod decode;
mod draws;
mod elastic;
mod gemm;
mod ieee754;
mod models;
mod pooling;
mod qkv;
mod resizes;
mod rotary;
mod rowwise;
mod sampling;
mod serving;
mod skinny;
mod tenants;
mod vit;
