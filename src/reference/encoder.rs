//! BERT, DistilBERT and DeBERTa in f32.

use crate::batch::RaggedBatch;
use crate::config::{EncoderConfig, EncoderFamily, ModelConfig};
use crate::weights::{LayerParameter as L, Parameter, Weights, WeightsError};

use super::disentangled::{Convolution, PositionTerms, RelativePositions, split_headwise};
use super::load;
use super::matrix::{Linear, Matrix};
use super::ops::{self, Heads, KeysAndValues, LayerNorm};

/// An encoder on the CPU.
#[derive(Debug)]
pub struct Encoder {
    config: ModelConfig,
    architecture: EncoderConfig,
    tokens: Matrix,
    positions: Option<Matrix>,
    /// The embedding of token type 0, which every token of an input has.
    token_type: Option<Vec<f32>>,
    embedding_norm: LayerNorm,
    relative: Option<RelativePositions>,
    convolution: Option<Convolution>,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    position_terms: Option<PositionTerms>,
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
        let relative =
            architecture.relative.as_ref().map(|relative| RelativePositions::load(weights, architecture, relative)).transpose()?;
        let layer = |index| {
            let linear = |weight, bias| load::linear(weights, Parameter::Layer(index, weight), Some(Parameter::Layer(index, bias)));
            let norm = |weight, bias| norm(Parameter::Layer(index, weight), Parameter::Layer(index, bias));
            let [query, key, value] = match architecture.family {
                EncoderFamily::Deberta => split_headwise(weights, index, architecture.heads)?,
                _ => [linear(L::QueryWeight, L::QueryBias)?, linear(L::KeyWeight, L::KeyBias)?, linear(L::ValueWeight, L::ValueBias)?],
            };
            Ok::<_, WeightsError>(Layer {
                position_terms: relative.as_ref().map(|relative| relative.project(weights, index, &key, &query)).transpose()?,
                query,
                key,
                value,
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
            positions: architecture.absolute_positions.then(|| load::matrix(weights, Parameter::PositionEmbedding)).transpose()?,
            token_type,
            embedding_norm: norm(Parameter::EmbeddingNormWeight, Parameter::EmbeddingNormBias)?,
            layers: (0..architecture.layers).map(layer).collect::<Result<_, _>>()?,
            relative,
            convolution: architecture
                .convolution
                .as_ref()
                .map(|convolution| Convolution::load(weights, architecture, convolution))
                .transpose()?,
        })
    }

    /// The configuration, for checking inputs.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The last hidden state, `[tokens, hidden]`: the rows of the sequences one after another.
    pub fn forward(&self, batch: &RaggedBatch) -> Matrix {
        let mut hidden = self.embed(batch);
        let embedded = self.convolution.as_ref().map(|_| hidden.clone());
        for (index, layer) in self.layers.iter().enumerate() {
            let attended = self.attend(layer, &hidden, batch);
            hidden.add(&layer.attention_output.apply(&attended));
            layer.attention_norm.apply(&mut hidden);
            let mut inner = layer.up.apply(&hidden);
            ops::activate(self.architecture.activation, &mut inner);
            hidden.add(&layer.down.apply(&inner));
            layer.feed_forward_norm.apply(&mut hidden);
            if let (0, Some(convolution), Some(embedded)) = (index, &self.convolution, &embedded) {
                convolution.apply(embedded, &mut hidden, batch.rows());
            }
        }
        hidden
    }

    fn embed(&self, batch: &RaggedBatch) -> Matrix {
        let mut hidden = Matrix::zeros(batch.ids().len(), self.architecture.hidden);
        let positions = batch.rows().flat_map(|rows| 0..rows.len());
        for ((row, &id), position) in hidden.rows_mut().zip(batch.ids()).zip(positions) {
            let mut add = |table: &[f32]| row.iter_mut().zip(table).for_each(|(sum, element)| *sum += element);
            add(self.tokens.row(id as usize));
            if let Some(positions) = &self.positions {
                add(positions.row(position));
            }
            if let Some(kind) = &self.token_type {
                add(kind);
            }
        }
        self.embedding_norm.apply(&mut hidden);
        hidden
    }

    fn attend(&self, layer: &Layer, hidden: &Matrix, batch: &RaggedBatch) -> Matrix {
        let (query, key, value) = (layer.query.apply(hidden), layer.key.apply(hidden), layer.value.apply(hidden));
        let width = self.architecture.hidden;
        let heads = Heads::bidirectional(self.architecture.heads, self.architecture.head_dim());
        let mut attended = Vec::with_capacity(hidden.values().len());
        for rows in batch.rows() {
            let elements = rows.start * width..rows.end * width;
            let [query, keys, values] = [&query, &key, &value].map(|matrix| &matrix.values()[elements.clone()]);
            attended.extend(match (&self.relative, &layer.position_terms) {
                (Some(relative), Some(terms)) => relative.attend(heads.queries, [query, keys, values], terms),
                _ => ops::attend(heads, query, KeysAndValues { keys, values }),
            });
        }
        Matrix::new(width, attended)
    }
}
