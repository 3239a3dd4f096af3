//! DeBERTa's attention in f32: scores with terms for the distance of query and key.

use rayon::prelude::*;

use crate::config::{EncoderConfig, RelativeAttention};
use crate::weights::{LayerParameter as L, Parameter, Weights, WeightsError};

use super::load;
use super::matrix::{self, Linear, Matrix, Strided};
use super::ops::{self, LayerNorm};

/// The table of relative positions, as all layers project it.
#[derive(Debug)]
pub(super) struct RelativePositions {
    relative: RelativeAttention,
    /// `[2 * span, hidden]`.
    table: Matrix,
}

/// One layer's projections of the table, `[2 * span, hidden]` each; which of them there are decides the terms of a score.
#[derive(Debug)]
pub(super) struct PositionTerms {
    /// What queries are multiplied by.
    keys: Option<Matrix>,
    /// What keys are multiplied by.
    queries: Option<Matrix>,
}

impl RelativePositions {
    pub(super) fn load(weights: &Weights, architecture: &EncoderConfig, relative: &RelativeAttention) -> Result<Self, WeightsError> {
        let mut table = load::matrix(weights, Parameter::RelativeEmbedding)?;
        if relative.normalised {
            let (weight, bias) = (weights.f32(Parameter::RelativeNormWeight)?, weights.f32(Parameter::RelativeNormBias)?);
            LayerNorm { weight, bias, epsilon: architecture.layer_norm_epsilon }.apply(&mut table);
        }
        Ok(Self { relative: relative.clone(), table })
    }

    /// The projections of layer `index`, whose content is projected by `key` and `query`.
    pub(super) fn project(&self, weights: &Weights, index: usize, key: &Linear, query: &Linear) -> Result<PositionTerms, WeightsError> {
        let own = |weight, bias| {
            let (weight, bias) = (Parameter::layer(index, weight), Parameter::layer(index, bias));
            // The first DeBERTa's position keys have no bias.
            let bias = weights.has(bias).then_some(bias);
            load::linear(weights, weight, bias).map(|projection| projection.apply(&self.table))
        };
        let shared = self.relative.shared_projections;
        let keys = || if shared { Ok(key.apply(&self.table)) } else { own(L::PositionKeyWeight, L::PositionKeyBias) };
        let queries = || if shared { Ok(query.apply(&self.table)) } else { own(L::PositionQueryWeight, L::PositionQueryBias) };
        Ok(PositionTerms {
            keys: self.relative.content_to_position.then(keys).transpose()?,
            queries: self.relative.position_to_content.then(queries).transpose()?,
        })
    }

    /// `softmax((q k^T + c2p + p2c) / sqrt(dim * terms)) v` for each head of one sequence; `content` are its queries, keys and values, `[tokens,
    /// heads * dim]` each. See [`RelativeAttention`] for the terms.
    pub(super) fn attend(&self, heads: usize, content: [&[f32]; 3], terms: &PositionTerms) -> Vec<f32> {
        let [queries, keys, values] = content;
        let width = self.table.width();
        let (tokens, dim) = (queries.len() / width, width / heads);
        let scale = 1.0 / ((dim * self.relative.terms()) as f32).sqrt();
        let rows: Vec<usize> = (0..2 * tokens - 1).map(|at| self.relative.row(at as i64 - (tokens as i64 - 1))).collect();
        let one_head = |head: usize| {
            let of_head = |values: &'_ [f32], rows: usize| -> Vec<f32> {
                (0..rows).flat_map(|row| values[row * width + head * dim..][..dim].iter().copied()).collect()
            };
            let dense = |values: &[f32], by: &[f32]| {
                let (rows, others) = (values.len() / dim, by.len() / dim);
                let mut product = vec![0.0; rows * others];
                let matrix = |values, rows| Strided { values, rows, columns: dim, stride: dim };
                matrix::product_with_transposed(scale, matrix(values, rows), matrix(by, others), &mut product);
                product
            };
            let (q, k) = (of_head(queries, tokens), of_head(keys, tokens));
            let mut scores = dense(&q, &k);
            let positions = self.table.rows();
            // [tokens, positions]: the first for each query, the second for each key.
            let content_to_position = terms.keys.as_ref().map(|keys| dense(&q, &of_head(keys.values(), positions)));
            let position_to_content = terms.queries.as_ref().map(|queries| dense(&k, &of_head(queries.values(), positions)));
            for (query, scores) in scores.chunks_exact_mut(tokens).enumerate() {
                for (key, score) in scores.iter_mut().enumerate() {
                    let row = rows[query + tokens - 1 - key];
                    *score += content_to_position.as_ref().map_or(0.0, |term| term[query * positions + row]);
                    *score += position_to_content.as_ref().map_or(0.0, |term| term[key * positions + row]);
                }
                ops::softmax(scores);
            }
            let mut attended = vec![0.0; tokens * dim];
            let scores = Strided { values: &scores, rows: tokens, columns: tokens, stride: tokens };
            matrix::product(scores, Strided { values: &of_head(values, tokens), rows: tokens, columns: dim, stride: dim }, &mut attended);
            attended
        };
        let attended: Vec<Vec<f32>> = (0..heads).into_par_iter().map(one_head).collect();
        (0..tokens).flat_map(|row| attended.iter().flat_map(move |head| head[row * dim..][..dim].iter().copied())).collect()
    }
}

/// Queries, keys and values of the first DeBERTa, whose weight has the rows of each head's query, key and value in turn.
pub(super) fn split_headwise(weights: &Weights, index: usize, heads: usize) -> Result<[Linear; 3], WeightsError> {
    let packed = load::matrix(weights, Parameter::layer(index, L::HeadwiseQkvWeight))?;
    let dim = packed.rows() / (3 * heads);
    let part = |part: usize, bias: Option<L>| {
        let rows = (0..heads).flat_map(|head| (0..dim).map(move |row| (3 * head + part) * dim + row));
        let weight = Matrix::new(packed.width(), rows.flat_map(|row| packed.row(row)).copied().collect());
        Ok::<_, WeightsError>(Linear { weight, bias: bias.map(|bias| weights.f32(Parameter::layer(index, bias))).transpose()? })
    };
    Ok([part(0, Some(L::QueryBias))?, part(1, None)?, part(2, Some(L::ValueBias))?])
}

/// DeBERTa v2's convolution over neighbouring tokens, and the layer norm over its sum with the first layer's output.
#[derive(Debug)]
pub(super) struct Convolution {
    /// `[hidden, width * hidden]`: for each output channel, tap by tap.
    taps: Linear,
    width: usize,
    activation: crate::config::Activation,
    norm: LayerNorm,
}

impl Convolution {
    pub(super) fn load(
        weights: &Weights,
        architecture: &EncoderConfig,
        convolution: &crate::config::Convolution,
    ) -> Result<Self, WeightsError> {
        let (hidden, width) = (architecture.hidden, convolution.width);
        let stored = weights.f32(Parameter::ConvolutionWeight)?;
        let tap_by_tap = stored
            .chunks_exact(hidden * width)
            .flat_map(|output| (0..width).flat_map(move |tap| output.iter().skip(tap).step_by(width).copied()));
        Ok(Self {
            taps: Linear {
                weight: Matrix::new(hidden * width, tap_by_tap.collect()),
                bias: Some(weights.f32(Parameter::ConvolutionBias)?),
            },
            width,
            activation: convolution.activation,
            norm: LayerNorm {
                weight: weights.f32(Parameter::ConvolutionNormWeight)?,
                bias: weights.f32(Parameter::ConvolutionNormBias)?,
                epsilon: architecture.layer_norm_epsilon,
            },
        })
    }

    /// `layer_norm(output + activation(convolution(embedded)))`, where `sequences` are the rows of each sequence.
    pub(super) fn apply(&self, embedded: &Matrix, output: &mut Matrix, sequences: impl Iterator<Item = std::ops::Range<usize>>) {
        let hidden = embedded.width();
        let mut neighbours = Vec::with_capacity(embedded.values().len() * self.width);
        for rows in sequences {
            for row in rows.clone() {
                for tap in 0..self.width {
                    match (row + tap).checked_sub(self.width / 2).filter(|neighbour| rows.contains(neighbour)) {
                        Some(neighbour) => neighbours.extend_from_slice(embedded.row(neighbour)),
                        None => neighbours.resize(neighbours.len() + hidden, 0.0),
                    }
                }
            }
        }
        let mut convolved = self.taps.apply(&Matrix::new(hidden * self.width, neighbours));
        ops::activate(self.activation, &mut convolved);
        output.add(&convolved);
        self.norm.apply(output);
    }
}
