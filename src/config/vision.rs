//! ViT: an image cut into square patches, each a token, behind a class token; layer norm before each block.

use std::borrow::Cow;

use serde_json::Value;

use super::encoder::divides;
use super::fields::Fields;
use super::{Activation, ConfigError};

/// The architecture of a vision transformer. Every projection has a bias, those of queries, keys and values where `qkv_bias` says so.
///
/// Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; `hidden` is a multiple of it.
    pub heads: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Height and width of an image, pixels; a multiple of `patch_size`.
    pub image_size: usize,
    /// Height and width of a patch, pixels.
    pub patch_size: usize,
    /// Colours of a pixel.
    pub channels: usize,
    /// Whether the projections of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Added to the variance by every layer norm.
    pub layer_norm_epsilon: f32,
    /// Between the two projections of the feed-forward block.
    pub activation: Activation,
    /// What an image can be classified as; 0 where the model has no classifier.
    pub classes: usize,
    /// The classes' names; empty where nobody named them.
    pub labels: Cow<'static, [String]>,
}

impl VisionConfig {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Patches of an image.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Tokens of an image: the class token, then its patches row by row.
    pub fn tokens(&self) -> usize {
        1 + self.patches()
    }

    /// Elements of a patch: for each colour its pixels row by row.
    pub fn patch_elements(&self) -> usize {
        self.channels * self.patch_size.pow(2)
    }

    /// Elements of an image: for each colour its pixels row by row.
    pub fn pixels(&self) -> usize {
        self.channels * self.image_size.pow(2)
    }

    /// Width of one output row: the classes, or the hidden width where there is no classifier.
    pub fn output_width(&self) -> usize {
        if self.classes > 0 { self.classes } else { self.hidden }
    }

    /// The name of a class, or its number where nobody named it.
    pub fn label(&self, class: usize) -> Cow<'_, str> {
        self.labels.get(class).map_or_else(|| format!("class {class}").into(), |label| label.as_str().into())
    }
}

const FIELDS: [&str; 14] = [
    "encoder_stride",
    "hidden_act",
    "hidden_size",
    "image_size",
    "intermediate_size",
    "layer_norm_eps",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
    // The pooler is no part of what this engine computes.
    "pooler_act",
    "pooler_output_size",
    "qkv_bias",
    "tie_word_embeddings",
];

/// Beyond this a pixel matrix would not fit anywhere, and products of sizes would not fit in 64 bits.
const LARGEST_IMAGE: usize = 1 << 14;

pub(super) fn vit(fields: &Fields<'_>) -> Result<VisionConfig, ConfigError> {
    let labels = labels(fields)?;
    let config = VisionConfig {
        hidden: fields.size("hidden_size")?,
        layers: fields.size("num_hidden_layers")?,
        heads: fields.size("num_attention_heads")?,
        intermediate: fields.size("intermediate_size")?,
        image_size: fields.size("image_size")?,
        patch_size: fields.size("patch_size")?,
        channels: fields.optional_size("num_channels")?.unwrap_or(3),
        qkv_bias: fields.flag("qkv_bias")?.unwrap_or(true),
        layer_norm_epsilon: fields.optional_positive("layer_norm_eps")?.unwrap_or(1e-12) as f32,
        activation: Activation::from_field(fields, "hidden_act", Activation::Gelu)?,
        classes: if is_classifier(fields) { classes(fields, labels.len())? } else { 0 },
        labels: labels.into(),
    };
    if config.channels != 3 {
        return Err(fields.error("num_channels", format!("is {}", config.channels), "only images of three colours are supported"));
    }
    if config.image_size > LARGEST_IMAGE {
        return Err(fields.error("image_size", format!("is {}, beyond {LARGEST_IMAGE}", config.image_size), "correct it"));
    }
    divides(fields, "num_attention_heads", config.heads, "hidden_size", config.hidden)?;
    divides(fields, "patch_size", config.patch_size, "image_size", config.image_size)?;
    fields.refuse_unknown(&FIELDS)?;
    Ok(config)
}

/// Whether the weights were saved with a classifier: the bare model says that it is one.
fn is_classifier(fields: &Fields<'_>) -> bool {
    let Some(Value::Array(names)) = fields.value("architectures") else { return false };
    names.iter().any(|name| name.as_str() == Some("ViTForImageClassification"))
}

/// As many as there are names; without names two, as transformers has it.
fn classes(fields: &Fields<'_>, labels: usize) -> Result<usize, ConfigError> {
    Ok(if labels > 0 { labels } else { fields.optional_size("num_labels")?.unwrap_or(2) })
}

/// `id2label`, in the order of its numbers, which begin at 0 and leave none out.
fn labels(fields: &Fields<'_>) -> Result<Vec<String>, ConfigError> {
    let Some(named) = fields.value("id2label") else { return Ok(Vec::new()) };
    let wrong = || fields.error("id2label", "does not give each number from 0 a name", "copy it from the model's original config.json");
    let named = named.as_object().ok_or_else(wrong)?;
    (0..named.len()).map(|class| named.get(&class.to_string()).and_then(Value::as_str).map(str::to_owned).ok_or_else(wrong)).collect()
}
