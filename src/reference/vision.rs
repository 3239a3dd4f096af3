//! ViT in f32: patches of images as tokens, layer norm before each block.

use crate::config::{ModelConfig, VisionConfig};
use crate::weights::{LayerParameter as L, Parameter, Weights, WeightsError};

use super::load;
use super::matrix::{Linear, Matrix};
use super::ops::{self, Heads, KeysAndValues, LayerNorm};

/// A vision model on the CPU.
#[derive(Debug)]
pub struct Vision {
    config: ModelConfig,
    architecture: VisionConfig,
    /// `[patch_elements]` to `[hidden]`.
    patches: Linear,
    class_token: Vec<f32>,
    /// `[tokens, hidden]`.
    positions: Matrix,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    classifier: Option<Linear>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    feed_forward_norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Vision {
    pub(super) fn load(weights: &Weights, architecture: &VisionConfig) -> Result<Self, WeightsError> {
        let norm = |weight, bias| {
            let epsilon = architecture.layer_norm_epsilon;
            Ok::<_, WeightsError>(LayerNorm { weight: weights.f32(weight)?, bias: weights.f32(bias)?, epsilon })
        };
        let layer = |index| {
            let at = |parameter| Parameter::layer(index, parameter);
            let linear = |weight, bias: Option<L>| load::linear(weights, at(weight), bias.map(at));
            let qkv_bias = |bias| architecture.qkv_bias.then_some(bias);
            Ok::<_, WeightsError>(Layer {
                attention_norm: norm(at(L::AttentionNormWeight), at(L::AttentionNormBias))?,
                query: linear(L::QueryWeight, qkv_bias(L::QueryBias))?,
                key: linear(L::KeyWeight, qkv_bias(L::KeyBias))?,
                value: linear(L::ValueWeight, qkv_bias(L::ValueBias))?,
                attention_output: linear(L::AttentionOutputWeight, Some(L::AttentionOutputBias))?,
                feed_forward_norm: norm(at(L::FeedForwardNormWeight), at(L::FeedForwardNormBias))?,
                up: linear(L::UpWeight, Some(L::UpBias))?,
                down: linear(L::DownWeight, Some(L::DownBias))?,
            })
        };
        let head = || load::linear(weights, Parameter::OutputHead, Some(Parameter::OutputHeadBias));
        Ok(Self {
            config: weights.config().clone(),
            architecture: architecture.clone(),
            patches: Linear {
                weight: Matrix::new(architecture.patch_elements(), weights.f32(Parameter::PatchWeight)?),
                bias: Some(weights.f32(Parameter::PatchBias)?),
            },
            class_token: weights.f32(Parameter::ClassToken)?,
            positions: load::matrix(weights, Parameter::PositionEmbedding)?,
            layers: (0..architecture.layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: norm(Parameter::FinalNormWeight, Parameter::FinalNormBias)?,
            classifier: (architecture.classes > 0).then(head).transpose()?,
        })
    }

    /// The configuration, for checking inputs.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Logits, `[images, classes]`; the last hidden state, `[images * tokens, hidden]`, where the model has no classifier. `pixels` are images as
    /// [`ImageProcessor`](crate::images::ImageProcessor) makes them, `[images, channels, image_size, image_size]`; what fills no image is left out.
    pub fn forward(&self, pixels: &[f32]) -> Matrix {
        let hidden = self.hidden(pixels);
        let Some(classifier) = &self.classifier else { return hidden };
        let tokens = self.architecture.tokens();
        let class_rows = (0..hidden.rows() / tokens).flat_map(|image| hidden.row(image * tokens)).copied().collect();
        classifier.apply(&Matrix::new(hidden.width(), class_rows))
    }

    /// The last hidden state, `[images * tokens, hidden]`, of a model with or without a classifier; see [`Vision::forward`] for `pixels`.
    pub fn hidden(&self, pixels: &[f32]) -> Matrix {
        let mut hidden = self.embed(pixels);
        for layer in &self.layers {
            let attended = self.attend(layer, &normalised(&hidden, &layer.attention_norm));
            hidden.add(&layer.attention_output.apply(&attended));
            let mut inner = layer.up.apply(&normalised(&hidden, &layer.feed_forward_norm));
            ops::activate(self.architecture.activation, &mut inner);
            hidden.add(&layer.down.apply(&inner));
        }
        self.final_norm.apply(&mut hidden);
        hidden
    }

    fn embed(&self, pixels: &[f32]) -> Matrix {
        let VisionConfig { image_size, patch_size, channels, .. } = self.architecture;
        let mut hidden = Vec::new();
        for image in pixels.chunks_exact(self.architecture.pixels()) {
            let mut patches = Vec::with_capacity(image.len());
            for top in (0..image_size).step_by(patch_size) {
                for left in (0..image_size).step_by(patch_size) {
                    for row in (0..channels).flat_map(|channel| (0..patch_size).map(move |y| channel * image_size + top + y)) {
                        patches.extend_from_slice(&image[row * image_size + left..][..patch_size]);
                    }
                }
            }
            hidden.extend_from_slice(&self.class_token);
            hidden.extend(self.patches.apply(&Matrix::new(self.architecture.patch_elements(), patches)).values());
        }
        let mut hidden = Matrix::new(self.architecture.hidden, hidden);
        for (row, values) in hidden.rows_mut().enumerate() {
            let position = self.positions.row(row % self.architecture.tokens());
            values.iter_mut().zip(position).for_each(|(value, position)| *value += position);
        }
        hidden
    }

    fn attend(&self, layer: &Layer, x: &Matrix) -> Matrix {
        let [query, key, value] = [&layer.query, &layer.key, &layer.value].map(|projection| projection.apply(x));
        let heads = self.architecture.heads;
        let heads = Heads::bidirectional(heads, self.architecture.head_dim());
        let elements = self.architecture.tokens() * x.width();
        let images =
            query.values().chunks_exact(elements).zip(key.values().chunks_exact(elements)).zip(value.values().chunks_exact(elements));
        let attended = images.flat_map(|((query, keys), values)| ops::attend(heads, query, KeysAndValues { keys, values }));
        Matrix::new(x.width(), attended.collect())
    }
}

fn normalised(x: &Matrix, norm: &LayerNorm) -> Matrix {
    let mut y = x.clone();
    norm.apply(&mut y);
    y
}
