//! BERT and DistilBERT in f32.

use crate::batch::RaggedBatch;
use crate::config::{EncoderConfig, ModelConfig};
use crate::weights::{LayerParameter as L, Parameter, Weights, WeightsError};

use super::load;
use super::matrix::{Linear, Matrix};
use super::ops::{self, Heads, KeysAndValues, LayerNorm};

/// An encoder on the CPU.
#[derive(Debug)]
pub struct Encoder {
    config: ModelConfig,
    architecture: EncoderConfig,
    tokens: Matrix,
    positions: Matrix,
    /// The embedding of token type 0, which every token of an input has.
    token_type: Option<Vec<f32>>,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    feed_forward_norm: LayerNorm,
}

impl Encoder {
    pub(super) fn load(weights: &Weights, architecture: &EncoderConfig) -> Result<Self, WeightsError> {
        let norm = |weight, bias| {
            let epsilon = architecture.layer_norm_epsilon;
            Ok::<_, WeightsError>(LayerNorm { weight: weights.f32(weight)?, bias: weights.f32(bias)?, epsilon })
        };
        let layer = |index| {
            let linear = |weight, bias| load::linear(weights, Parameter::Layer(index, weight), Some(Parameter::Layer(index, bias)));
            let norm = |weight, bias| norm(Parameter::Layer(index, weight), Parameter::Layer(index, bias));
            Ok::<_, WeightsError>(Layer {
                query: linear(L::QueryWeight, L::QueryBias)?,
                key: linear(L::KeyWeight, L::KeyBias)?,
                value: linear(L::ValueWeight, L::ValueBias)?,
                attention_output: linear(L::AttentionOutputWeight, L::AttentionOutputBias)?,
                attention_norm: norm(L::AttentionNormWeight, L::AttentionNormBias)?,
                up: linear(L::UpWeight, L::UpBias)?,
                down: linear(L::DownWeight, L::DownBias)?,
                feed_forward_norm: norm(L::FeedForwardNormWeight, L::FeedForwardNormBias)?,
            })
        };
        let token_type = match architecture.token_types {
            0 => None,
            _ => Some(load::matrix(weights, Parameter::TokenTypeEmbedding)?.row(0).to_vec()),
        };
        Ok(Self {
            config: weights.config().clone(),
            architecture: architecture.clone(),
            tokens: load::matrix(weights, Parameter::TokenEmbedding)?,
            positions: load::matrix(weights, Parameter::PositionEmbedding)?,
            token_type,
            embedding_norm: norm(Parameter::EmbeddingNormWeight, Parameter::EmbeddingNormBias)?,
            layers: (0..architecture.layers).map(layer).collect::<Result<_, _>>()?,
        })
    }

    /// The configuration, for checking inputs.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The last hidden state, `[tokens, hidden]`: the rows of the sequences one after another.
    pub fn forward(&self, batch: &RaggedBatch) -> Matrix {
        let mut hidden = self.embed(batch);
        for layer in &self.layers {
            let attended = self.attend(layer, &hidden, batch);
            hidden.add(&layer.attention_output.apply(&attended));
            layer.attention_norm.apply(&mut hidden);
            let mut inner = layer.up.apply(&hidden);
            ops::activate(self.architecture.activation, &mut inner);
            hidden.add(&layer.down.apply(&inner));
            layer.feed_forward_norm.apply(&mut hidden);
        }
        hidden
    }

    fn embed(&self, batch: &RaggedBatch) -> Matrix {
        let mut hidden = Vec::with_capacity(batch.ids().len() * self.architecture.hidden);
        for rows in batch.rows() {
            for (position, &id) in batch.ids()[rows].iter().enumerate() {
                let sum = self.tokens.row(id as usize).iter().zip(self.positions.row(position)).map(|(token, position)| token + position);
                match &self.token_type {
                    Some(kind) => hidden.extend(sum.zip(kind).map(|(sum, kind)| sum + kind)),
                    None => hidden.extend(sum),
                }
            }
        }
        let mut hidden = Matrix::new(self.architecture.hidden, hidden);
        self.embedding_norm.apply(&mut hidden);
        hidden
    }

    fn attend(&self, layer: &Layer, hidden: &Matrix, batch: &RaggedBatch) -> Matrix {
        let (query, key, value) = (layer.query.apply(hidden), layer.key.apply(hidden), layer.value.apply(hidden));
        let width = self.architecture.hidden;
        let (heads, dim) = (self.architecture.heads, self.architecture.head_dim());
        let heads = Heads { queries: heads, keys: heads, dim, scale: 1.0 / (dim as f32).sqrt(), causal: false, window: None };
        let mut attended = Vec::with_capacity(hidden.values().len());
        for rows in batch.rows() {
            let elements = rows.start * width..rows.end * width;
            let past = KeysAndValues { keys: &key.values()[elements.clone()], values: &value.values()[elements.clone()] };
            attended.extend(ops::attend(heads, &query.values()[elements], past));
        }
        Matrix::new(width, attended)
    }
}
