//! Llama and Mistral in f32, with a cache of keys and values.

use crate::batch::{self, InputError, RaggedBatch};
use crate::config::{DecoderConfig, ModelConfig};
use crate::generate::{Continue, Sampling};
use crate::weights::{LayerParameter as L, Parameter, Weights, WeightsError};

use super::matrix::{self, Linear, Matrix};
use super::ops::{self, Heads, KeysAndValues, RmsNorm};
use super::{load, sample};

/// A decoder on the CPU.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    architecture: DecoderConfig,
    tokens: Matrix,
    layers: Vec<Layer>,
    final_norm: RmsNorm,
    /// `None` where the token embedding serves as the head.
    head: Option<Matrix>,
    frequencies: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    feed_forward_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
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
        let norm = |parameter| Ok::<_, WeightsError>(RmsNorm { weight: weights.f32(parameter)?, epsilon: architecture.rms_norm_epsilon });
        let layer = |index| {
            let linear = |weight, bias, biased: bool| {
                load::linear(weights, Parameter::Layer(index, weight), biased.then_some(Parameter::Layer(index, bias)))
            };
            let (attention_bias, mlp_bias) = (architecture.attention_bias, architecture.mlp_bias);
            Ok::<_, WeightsError>(Layer {
                attention_norm: norm(Parameter::Layer(index, L::AttentionNormWeight))?,
                query: linear(L::QueryWeight, L::QueryBias, attention_bias)?,
                key: linear(L::KeyWeight, L::KeyBias, attention_bias)?,
                value: linear(L::ValueWeight, L::ValueBias, attention_bias)?,
                attention_output: linear(L::AttentionOutputWeight, L::AttentionOutputBias, attention_bias)?,
                feed_forward_norm: norm(Parameter::Layer(index, L::FeedForwardNormWeight))?,
                gate: linear(L::GateWeight, L::GateBias, mlp_bias)?,
                up: linear(L::UpWeight, L::UpBias, mlp_bias)?,
                down: linear(L::DownWeight, L::DownBias, mlp_bias)?,
            })
        };
        Ok(Self {
            config: weights.config().clone(),
            architecture: architecture.clone(),
            tokens: load::matrix(weights, Parameter::TokenEmbedding)?,
            layers: (0..architecture.layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: norm(Parameter::FinalNormWeight)?,
            head: (!architecture.tied_embeddings).then(|| load::matrix(weights, Parameter::OutputHead)).transpose()?,
            frequencies: architecture.rope.inverse_frequencies(architecture.head_dim),
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
        let ids = sequences.iter().copied().flatten();
        let embedded = ids.flat_map(|&id| self.tokens.row(id as usize)).copied().collect();
        let mut hidden = Matrix::new(self.architecture.hidden, embedded);
        let positions: Vec<usize> =
            sequences.iter().zip(&*caches).flat_map(|(tokens, cache)| cache.tokens..cache.tokens + tokens.len()).collect();
        let lengths: Vec<usize> = sequences.iter().map(|tokens| tokens.len()).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = layer.attention_norm.apply(&hidden);
            let attended = self.attend(layer, &normed, &positions, &lengths, caches.iter_mut().map(|cache| &mut cache.layers[index]));
            hidden.add(&layer.attention_output.apply(&attended));
            let normed = layer.feed_forward_norm.apply(&hidden);
            let mut gate = layer.gate.apply(&normed);
            ops::activate(self.architecture.activation, &mut gate);
            let up = layer.up.apply(&normed);
            gate.values_mut().iter_mut().zip(up.values()).for_each(|(gate, up)| *gate *= up);
            hidden.add(&layer.down.apply(&gate));
        }
        caches.iter_mut().zip(&lengths).for_each(|(cache, length)| cache.tokens += length);
        hidden
    }

    fn attend<'c>(
        &self,
        layer: &Layer,
        normed: &Matrix,
        positions: &[usize],
        lengths: &[usize],
        caches: impl Iterator<Item = &'c mut LayerCache>,
    ) -> Matrix {
        let (mut query, mut key, value) = (layer.query.apply(normed), layer.key.apply(normed), layer.value.apply(normed));
        ops::rotate(&mut query, positions, &self.frequencies);
        ops::rotate(&mut key, positions, &self.frequencies);
        let architecture = &self.architecture;
        let heads = Heads { queries: architecture.heads, keys: architecture.kv_heads, dim: architecture.head_dim, causal: true };
        let (width, kv_width) = (architecture.query_width(), architecture.kv_width());
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
        Ok(sample(&self.extend(tokens)?, sampling, uniform))
    }
}
