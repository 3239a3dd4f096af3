//! The operators between the matrix products: norms, activations, rotary positions, attention.

use rayon::prelude::*;

use crate::config::Activation;

use super::matrix::{self, Matrix, Strided};

/// `y = (x - mean) / sqrt(variance + epsilon) * weight + bias`, row by row.
///
/// Source: Ba, Kiros and Hinton, "Layer Normalization", 2016, eq. 4, with the biased variance.
#[derive(Debug)]
pub(super) struct LayerNorm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) epsilon: f32,
}

impl LayerNorm {
    pub(super) fn apply(&self, x: &mut Matrix) {
        let width = x.width() as f32;
        for row in x.rows_mut() {
            let mean = row.iter().sum::<f32>() / width;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / width;
            let scale = 1.0 / (variance + self.epsilon).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
                *x = (*x - mean) * scale * weight + bias;
            }
        }
    }
}

/// `y = x / sqrt(mean(x^2) + epsilon) * weight`, row by row.
///
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4.
#[derive(Debug)]
pub(super) struct RmsNorm {
    pub(super) weight: Vec<f32>,
    pub(super) epsilon: f32,
}

impl RmsNorm {
    pub(super) fn apply(&self, x: &Matrix) -> Matrix {
        let mut y = x.clone();
        let width = y.width() as f32;
        for row in y.rows_mut() {
            let mean_square = row.iter().map(|x| x * x).sum::<f32>() / width;
            let scale = 1.0 / (mean_square + self.epsilon).sqrt();
            row.iter_mut().zip(&self.weight).for_each(|(x, weight)| *x *= scale * weight);
        }
        y
    }
}

/// Applies `activation` to every element.
pub(super) fn activate(activation: Activation, x: &mut Matrix) {
    let function: fn(f32) -> f32 = match activation {
        Activation::Gelu => |x| 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => |x| {
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        },
        // `f32::max` would turn NaN into 0.
        Activation::Relu => |x| if x < 0.0 { 0.0 } else { x },
        Activation::Silu => |x| x / (1.0 + (-x).exp()),
    };
    x.values_mut().par_chunks_mut(4096).for_each(|chunk| chunk.iter_mut().for_each(|x| *x = function(*x)));
}

/// Turns the pairs of every head of every row of `x` (`[rows, heads * 2 * frequencies]`) to the row's position.
pub(super) fn rotate(x: &mut Matrix, positions: &[usize], frequencies: &[f32]) {
    let half = frequencies.len();
    for (row, &position) in x.rows_mut().zip(positions) {
        for head in row.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for ((a, b), frequency) in first.iter_mut().zip(second).zip(frequencies) {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// How the heads of one attention lie in its matrices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) dim: usize,
    /// Factor of the scores.
    pub(super) scale: f32,
    /// Whether a token sees only itself and what is before it.
    pub(super) causal: bool,
    /// How many positions a causal token sees, its own included, if limited.
    pub(super) window: Option<usize>,
}

impl Heads {
    /// Heads of an encoder: each with keys of its own, which all tokens see.
    pub(super) fn bidirectional(heads: usize, dim: usize) -> Self {
        Self { queries: heads, keys: heads, dim, scale: 1.0 / (dim as f32).sqrt(), causal: false, window: None }
    }
}

/// Keys and values of one sequence, `[tokens, keys * dim]` each.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeysAndValues<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

/// Queries whose scores are computed at once: those of a whole long prompt would not fit in memory.
const QUERIES_AT_ONCE: usize = 256;

/// `softmax(scale q k^T) v` for each head of one sequence. `queries` (`[n, heads * dim]`) are the last `n` tokens of the sequence.
///
/// Source: Vaswani et al., "Attention Is All You Need", 2017, eq. 1.
pub(super) fn attend(heads: Heads, queries: &[f32], past: KeysAndValues<'_>) -> Vec<f32> {
    let (width, kv_width) = (heads.queries * heads.dim, heads.keys * heads.dim);
    let (rows, tokens) = (queries.len() / width, past.keys.len() / kv_width);
    let before = tokens - rows;
    let one_head = |head: usize| {
        let kv_start = head / (heads.queries / heads.keys) * heads.dim;
        let keys = Strided { values: &past.keys[kv_start..], rows: tokens, columns: heads.dim, stride: kv_width };
        let values = Strided { values: &past.values[kv_start..], ..keys };
        let mut attended = vec![0.0; rows * heads.dim];
        for (attended, first) in attended.chunks_mut(QUERIES_AT_ONCE * heads.dim).zip((0..).step_by(QUERIES_AT_ONCE)) {
            let rows = attended.len() / heads.dim;
            let queries = Strided { values: &queries[first * width + head * heads.dim..], rows, columns: heads.dim, stride: width };
            let mut scores = vec![0.0; rows * tokens];
            matrix::product_with_transposed(heads.scale, queries, keys, &mut scores);
            for (row, scores) in scores.chunks_exact_mut(tokens).enumerate() {
                let end = if heads.causal { before + first + row + 1 } else { tokens };
                let start = heads.window.map_or(0, |window| end.saturating_sub(window));
                softmax(&mut scores[start..end]);
                scores[..start].fill(0.0);
                scores[end..].fill(0.0);
            }
            matrix::product(Strided { values: &scores, rows, columns: tokens, stride: tokens }, values, attended);
        }
        attended
    };
    let attended: Vec<Vec<f32>> = (0..heads.queries).into_par_iter().map(one_head).collect();
    let mut joined = vec![0.0; rows * width];
    for (head, attended) in attended.iter().enumerate() {
        for (row, attended) in attended.chunks_exact(heads.dim).enumerate() {
            joined[row * width + head * heads.dim..][..heads.dim].copy_from_slice(attended);
        }
    }
    joined
}

/// Softmax in place, shifted by the maximum so that nothing overflows.
pub(super) fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
    let total: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_none_after_any_activation() {
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
            let mut x = Matrix::new(3, vec![f32::NAN, 2.0, -2.0]);
            activate(activation, &mut x);
            let [nan, positive, negative] = x.values()[..] else { panic!("three values") };
            assert!(nan.is_nan() && positive > 1.7 && negative.abs() < 0.3, "{activation:?}: {x:?}");
        }
    }

    #[test]
    fn queries_attend_alike_whether_alone_or_with_more_than_are_done_at_once() {
        let rows = 2 * QUERIES_AT_ONCE + 3;
        let values = |count: usize, step: f32| (0..count).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        for (causal, window) in [(false, None), (true, None), (true, Some(5))] {
            let heads = Heads { queries: 2, keys: 1, dim: 4, scale: 0.5, causal, window };
            let (queries, keys, values) = (values(rows * 8, 0.7), values(rows * 4, 0.3), values(rows * 4, 0.9));
            let all = attend(heads, &queries, KeysAndValues { keys: &keys, values: &values });
            for row in [0, 1, QUERIES_AT_ONCE - 1, QUERIES_AT_ONCE, rows - 1] {
                let seen = if causal { row + 1 } else { rows };
                let past = KeysAndValues { keys: &keys[..seen * 4], values: &values[..seen * 4] };
                let alone = attend(heads, &queries[row * 8..][..8], past);
                let far = alone.iter().zip(&all[row * 8..]).any(|(a, b)| (a - b).abs() > 1e-5);
                assert!(!far, "row {row}, causal {causal}, window {window:?}");
            }
        }
    }
}
