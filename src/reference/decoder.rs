//! The decoder families in f32, with a cache of keys and values. What a family leaves out (a gate, a bias, learned or rotary positions) is `None`
//! here, as the configuration says.

use crate::batch::{self, InputError, RaggedBatch};
use crate::config::{DecoderConfig, DecoderNorm, ModelConfig, Positions};
use crate::generate::{Continue, Sampling, warn_of_no_number};
use crate::weights::{LayerParameter as L, Parameter, Weights, WeightsError};

use super::matrix::{self, Linear, Matrix};
use super::ops::{self, Heads, KeysAndValues, LayerNorm, RmsNorm};
use super::{load, sample};

/// A decoder on the CPU.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    architecture: DecoderConfig,
    tokens: Matrix,
    /// Learned positions.
    positions: Option<Matrix>,
    /// Radians per position of each pair under rotary positions.
    frequencies: Option<Vec<f32>>,
    layers: Vec<Layer>,
    final_norm: Norm,
    /// `None` where the token embedding serves as the head.
    head: Option<Matrix>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    feed_forward_norm: Norm,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

#[derive(Debug)]
enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn apply(&self, x: &Matrix) -> Matrix {
        match self {
            Self::Layer(norm) => {
                let mut y = x.clone();
                norm.apply(&mut y);
                y
            }
            Self::Rms(norm) => norm.apply(x),
        }
    }
}

/// Keys and values of the tokens a sequence has so far, per layer, `[tokens, kv_heads * head_dim]` each.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    pub(super) tokens: usize,
    pub(super) layers: Vec<LayerCache>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct LayerCache {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl Decoder {
    pub(super) fn load(weights: &Weights, architecture: &DecoderConfig) -> Result<Self, WeightsError> {
        let norm = |weight, bias| {
            let (weight, epsilon) = (weights.f32(weight)?, architecture.norm_epsilon);
            Ok::<_, WeightsError>(match architecture.norm {
                DecoderNorm::Layer => Norm::Layer(LayerNorm { weight, bias: weights.f32(bias)?, epsilon }),
                DecoderNorm::Rms => Norm::Rms(RmsNorm { weight, epsilon }),
            })
        };
        let layer = |index| {
            let linear = |weight, bias, biased: bool| {
                load::linear(weights, Parameter::Layer(index, weight), biased.then_some(Parameter::Layer(index, bias)))
            };
            let norm = |weight, bias| norm(Parameter::Layer(index, weight), Parameter::Layer(index, bias));
            let (qkv_bias, mlp_bias) = (architecture.qkv_bias, architecture.mlp_bias);
            Ok::<_, WeightsError>(Layer {
                attention_norm: norm(L::AttentionNormWeight, L::AttentionNormBias)?,
                query: linear(L::QueryWeight, L::QueryBias, qkv_bias)?,
                key: linear(L::KeyWeight, L::KeyBias, qkv_bias)?,
                value: linear(L::ValueWeight, L::ValueBias, qkv_bias)?,
                attention_output: linear(L::AttentionOutputWeight, L::AttentionOutputBias, architecture.attention_output_bias)?,
                feed_forward_norm: norm(L::FeedForwardNormWeight, L::FeedForwardNormBias)?,
                gate: architecture.gated.then(|| linear(L::GateWeight, L::GateBias, mlp_bias)).transpose()?,
                up: linear(L::UpWeight, L::UpBias, mlp_bias)?,
                down: linear(L::DownWeight, L::DownBias, mlp_bias)?,
            })
        };
        let (positions, frequencies) = match architecture.positions {
            Positions::Learned => (Some(load::matrix(weights, Parameter::PositionEmbedding)?), None),
            Positions::Rotary(rope) => (None, Some(rope.inverse_frequencies(architecture.head_dim))),
        };
        Ok(Self {
            config: weights.config().clone(),
            architecture: architecture.clone(),
            tokens: load::matrix(weights, Parameter::TokenEmbedding)?,
            positions,
            frequencies,
            layers: (0..architecture.layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: norm(Parameter::FinalNormWeight, Parameter::FinalNormBias)?,
            head: (!architecture.tied_embeddings).then(|| load::matrix(weights, Parameter::OutputHead)).transpose()?,
        })
    }

    /// The configuration, for checking inputs.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The logits, `[tokens, vocab]`: the rows of the sequences one after another.
    pub fn forward(&self, batch: &RaggedBatch) -> Matrix {
        let sequences: Vec<&[u32]> = batch.rows().map(|rows| &batch.ids()[rows]).collect();
        let mut caches = vec![self.empty_cache(); sequences.len()];
        self.logits(&self.hidden(&sequences, &mut caches))
    }

    /// An empty sequence, to be filled and continued token by token.
    pub fn start(&self) -> Sequence<'_> {
        Sequence { model: self, cache: self.empty_cache() }
    }

    pub(super) fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Elements of one token's keys in one layer, and of its values.
    pub(super) fn kv_width(&self) -> usize {
        self.architecture.kv_width()
    }

    fn empty_cache(&self) -> Cache {
        Cache { tokens: 0, layers: vec![LayerCache::default(); self.layers.len()] }
    }

    /// Runs the layers over new tokens of several sequences and appends their keys and values to the caches.
    pub(super) fn hidden(&self, sequences: &[&[u32]], caches: &mut [Cache]) -> Matrix {
        let positions: Vec<usize> =
            sequences.iter().zip(&*caches).flat_map(|(tokens, cache)| cache.tokens..cache.tokens + tokens.len()).collect();
        let mut hidden = self.embed(sequences.iter().copied().flatten().copied(), &positions);
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = layer.attention_norm.apply(&hidden);
            let layer_caches = caches.iter_mut().map(|cache| &mut cache.layers[index]);
            let attended = self.attend(layer, self.heads(index), &normed, &positions, &lengths, layer_caches);
            hidden.add(&layer.attention_output.apply(&attended));
            let normed = layer.feed_forward_norm.apply(&hidden);
            hidden.add(&self.feed_forward(layer, &normed));
        }
        caches.iter_mut().zip(&lengths).for_each(|(cache, length)| cache.tokens += length);
        hidden
    }

    fn embed(&self, ids: impl Iterator<Item = u32>, positions: &[usize]) -> Matrix {
        let mut hidden = Matrix::new(self.architecture.hidden, ids.flat_map(|id| self.tokens.row(id as usize)).copied().collect());
        if let Some(table) = &self.positions {
            for (row, &position) in hidden.rows_mut().zip(positions) {
                row.iter_mut().zip(table.row(position)).for_each(|(x, learned)| *x += learned);
            }
        }
        hidden
    }

    fn feed_forward(&self, layer: &Layer, normed: &Matrix) -> Matrix {
        let activation = self.architecture.activation;
        let mut inner = layer.up.apply(normed);
        match &layer.gate {
            None => ops::activate(activation, &mut inner),
            Some(gate) => {
                let mut gate = gate.apply(normed);
                ops::activate(activation, &mut gate);
                inner.values_mut().iter_mut().zip(gate.values()).for_each(|(up, gate)| *up *= gate);
            }
        }
        layer.down.apply(&inner)
    }

    fn heads(&self, layer: usize) -> Heads {
        let config = &self.architecture;
        let (queries, keys, dim) = (config.heads, config.kv_heads, config.head_dim);
        Heads { queries, keys, dim, scale: config.score_scale(layer), causal: true, window: config.window(layer) }
    }

    fn attend<'c>(
        &self,
        layer: &Layer,
        heads: Heads,
        normed: &Matrix,
        positions: &[usize],
        lengths: &[usize],
        caches: impl Iterator<Item = &'c mut LayerCache>,
    ) -> Matrix {
        let (mut query, mut key, value) = (layer.query.apply(normed), layer.key.apply(normed), layer.value.apply(normed));
        if let Some(frequencies) = &self.frequencies {
            ops::rotate(&mut query, positions, frequencies);
            ops::rotate(&mut key, positions, frequencies);
        }
        let (width, kv_width) = (self.architecture.query_width(), self.architecture.kv_width());
        let mut attended = Vec::with_capacity(query.values().len());
        let mut row = 0;
        for (&length, cache) in lengths.iter().zip(caches) {
            let rows = row..row + length;
            row = rows.end;
            cache.keys.extend_from_slice(&key.values()[rows.start * kv_width..rows.end * kv_width]);
            cache.values.extend_from_slice(&value.values()[rows.start * kv_width..rows.end * kv_width]);
            let past = KeysAndValues { keys: &cache.keys, values: &cache.values };
            attended.extend(ops::attend(heads, &query.values()[rows.start * width..rows.end * width], past));
        }
        Matrix::new(width, attended)
    }

    pub(super) fn logits(&self, hidden: &Matrix) -> Matrix {
        matrix::times_transposed(&self.final_norm.apply(hidden), self.head.as_ref().unwrap_or(&self.tokens))
    }
}

/// One sequence that a [`Decoder`] continues.
#[derive(Debug, Clone)]
pub struct Sequence<'m> {
    model: &'m Decoder,
    cache: Cache,
}

impl Sequence<'_> {
    /// Appends `tokens` and returns the logits of the token after the last of them, `[vocab]`.
    ///
    /// # Errors
    /// [`InputError`] where `tokens` is empty, holds an unknown id or makes the sequence too long; the sequence is then unchanged.
    pub fn extend(&mut self, tokens: &[u32]) -> Result<Vec<f32>, InputError> {
        batch::check_sequence(0, tokens, self.cache.tokens, &self.model.config)?;
        let hidden = self.model.hidden(&[tokens], std::slice::from_mut(&mut self.cache));
        let last = Matrix::new(hidden.width(), hidden.row(hidden.rows() - 1).to_vec());
        Ok(self.model.logits(&last).into_values())
    }
}

impl Continue for Sequence<'_> {
    type Error = InputError;

    fn next(&mut self, tokens: &[u32], sampling: &Sampling, uniform: f32) -> Result<u32, InputError> {
        let logits = self.extend(tokens)?;
        warn_of_no_number(&logits);
        Ok(sample(&logits, sampling, uniform))
    }
}
