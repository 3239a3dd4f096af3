//! What DeBERTa has beside BERT: position matrices that attention multiplies by, and version 2's convolution.
//!
//! The table of relative positions is no input of a forward pass, so all that is done to it is done when a model is loaded: the layer norm, each
//! layer's projections, and the buckets. What remains is a matrix with one row for each distance that two tokens can have, in order; so the
//! kernel reads rows side by side and knows nothing of buckets.

use half::f16;
use smidgen_runtime::device::{Buffer, DevicePtr};
use smidgen_runtime::launch::{LaunchError, Session};

use super::BuildError;
use super::encoder::{EncoderBatch, Linear, NormWeights, feed_forward};
use super::tensors::{Loader, ptr, upload_u32};
use crate::config::{self, EncoderConfig, RelativeAttention};
use crate::kernels::attention::AttentionDisentangled;
use crate::kernels::gemm::{Epilogue, Gemm};
use crate::kernels::norm::Norm;
use crate::kernels::pooling::GatherRows;
use crate::kernels::unfold::UnfoldTokens;
use crate::weights::{LayerParameter as P, Parameter};

/// The table of relative positions.
pub(super) struct RelativePositions {
    heads: u32,
    head_dim: u32,
    scale: f32,
    /// Distances from `-reach` to `reach` have a row in the position matrices.
    reach: u32,
    relative: RelativeAttention,
    /// `[2 * span, hidden]`, normalised where the model says so.
    table: Buffer,
    /// The row of the table for each distance, `[2 * reach + 1]` u32.
    rows: Buffer,
}

/// One layer's position matrices, `[2 * reach + 1, hidden]` each.
pub(super) struct PositionTerms {
    keys: Option<Buffer>,
    queries: Option<Buffer>,
}

impl RelativePositions {
    pub(super) fn load(loader: &mut Loader<'_>, config: &EncoderConfig, relative: &RelativeAttention) -> Result<Self, BuildError> {
        let table = loader.load(Parameter::RelativeEmbedding)?;
        if relative.normalised {
            let norm = NormWeights { weight: loader.load(Parameter::RelativeNormWeight)?, bias: loader.load(Parameter::RelativeNormBias)? };
            let shape = [2 * relative.span as u32, config.hidden as u32];
            finish(loader.session())?;
            loader.session().launch(&norm.norm(shape, config.layer_norm_epsilon, table.ptr(), table.ptr()))?;
            finish(loader.session())?;
        }
        let reach = config.max_positions as u32 - 1;
        let rows: Vec<u32> = (-i64::from(reach)..=i64::from(reach)).map(|distance| relative.row(distance) as u32).collect();
        Ok(Self {
            heads: config.heads as u32,
            head_dim: config.head_dim() as u32,
            scale: 1.0 / ((config.head_dim() * relative.terms()) as f32).sqrt(),
            reach,
            relative: relative.clone(),
            table,
            rows: upload_u32(loader.session(), &rows)?,
        })
    }

    /// Elements of one layer's position matrices, and of the weights that are on the device while they are made.
    pub(super) fn elements_of_a_layer(config: &EncoderConfig, relative: &RelativeAttention) -> u64 {
        (relative.terms() as u64 - 1) * 2 * (config.max_positions + relative.span) as u64 * config.hidden as u64
    }

    /// The position matrices of layer `index`, whose content is projected by `qkv`.
    pub(super) fn project(
        &self,
        loader: &mut Loader<'_>,
        config: &EncoderConfig,
        index: usize,
        qkv: &Linear,
    ) -> Result<PositionTerms, BuildError> {
        let hidden = config.hidden as u64;
        // Queries are projected by the first rows of the content's weight, keys by those that follow.
        let mut project = |weight, bias, first_row: u64| {
            if self.relative.shared_projections {
                let weight = qkv.weight.ptr().offset(2 * first_row * hidden);
                return self.expand(loader.session(), config, weight, Epilogue::Bias(qkv.bias.ptr().offset(2 * first_row)));
            }
            let weight = loader.load(Parameter::layer(index, weight))?;
            let bias = Parameter::layer(index, bias);
            // The first DeBERTa's position keys have no bias.
            let bias = loader.weights().has(bias).then(|| loader.load(bias)).transpose()?;
            let epilogue = bias.as_ref().map_or(Epilogue::NONE, |bias| Epilogue::Bias(bias.ptr()));
            self.expand(loader.session(), config, weight.ptr(), epilogue)
        };
        let keys = self.relative.content_to_position.then(|| project(P::PositionKeyWeight, P::PositionKeyBias, hidden)).transpose()?;
        let queries = self.relative.position_to_content.then(|| project(P::PositionQueryWeight, P::PositionQueryBias, 0)).transpose()?;
        Ok(PositionTerms { keys, queries })
    }

    /// The table projected by `weight`, one row for each distance.
    fn expand(&self, session: &mut Session, config: &EncoderConfig, weight: DevicePtr, epilogue: Epilogue) -> Result<Buffer, BuildError> {
        let (hidden, entries, distances) = (config.hidden as u32, 2 * self.relative.span as u32, 2 * self.reach + 1);
        let projected = Buffer::new(session.device(), 2 * u64::from(entries) * u64::from(hidden))?;
        let expanded = Buffer::new(session.device(), 2 * u64::from(distances) * u64::from(hidden))?;
        finish(session)?;
        session.launch(&Gemm::new([entries, hidden, hidden], self.table.ptr(), weight, projected.ptr(), epilogue))?;
        let (x, index, y) = (projected.ptr(), self.rows.ptr(), expanded.ptr());
        session.launch(&GatherRows { rows: distances, width: hidden, x, index, y })?;
        finish(session)?;
        Ok(expanded)
    }

    pub(super) fn attention(&self, batch: &EncoderBatch, terms: &PositionTerms) -> AttentionDisentangled {
        let width = self.heads * self.head_dim;
        AttentionDisentangled {
            heads: self.heads,
            head_dim: self.head_dim,
            sequences: batch.sequences(),
            max_length: batch.max_length(),
            tokens: batch.rows(),
            scale: self.scale,
            qkv: batch.qkv(),
            qkv_stride: 3 * width,
            position_keys: ptr(terms.keys.as_ref()),
            position_queries: ptr(terms.queries.as_ref()),
            position_stride: width,
            reach: self.reach,
            output: batch.attended(),
            output_stride: width,
            starts: batch.starts(),
            lengths: batch.lengths(),
        }
    }
}

/// Waits for what was launched while a model is loaded. Then weights that were filled by launches may be read by kernels that do not wait for
/// earlier launches before they read weights, and buffers of intermediate results may be freed.
fn finish(session: &Session) -> Result<(), BuildError> {
    Ok(session.device().synchronize(session.stream())?)
}

/// The projection to queries, keys and values of the first DeBERTa, whose weight has them head by head, and whose keys have no bias.
pub(super) fn headwise_qkv(loader: &mut Loader<'_>, config: &EncoderConfig, index: usize) -> Result<Linear, BuildError> {
    let weight = loader.regrouped_by_head(Parameter::layer(index, P::HeadwiseQkvWeight), config.heads)?;
    let mut bias = loader.weights().f16(Parameter::layer(index, P::QueryBias))?;
    bias.resize(2 * config.hidden, f16::ZERO);
    bias.extend(loader.weights().f16(Parameter::layer(index, P::ValueBias))?);
    Ok(Linear { weight, bias: loader.upload(&bias)? })
}

/// A convolution over neighbouring tokens, as a product with what each token sees.
pub(super) struct Convolution {
    width: u32,
    /// The weight is `[hidden, width * hidden]`.
    taps: Linear,
    activation: fn(DevicePtr) -> Epilogue,
    norm: NormWeights,
}

/// Room for the convolution of one batch.
pub(super) struct ConvolutionBatch {
    /// `[rows, width * hidden]`.
    neighbours: Buffer,
    /// `[rows, hidden]`.
    convolved: Buffer,
}

impl Convolution {
    pub(super) fn load(loader: &mut Loader<'_>, config: &EncoderConfig, convolution: &config::Convolution) -> Result<Self, BuildError> {
        let (hidden, width) = (config.hidden, convolution.width);
        let stored = loader.weights().f16(Parameter::ConvolutionWeight)?;
        // Stored with the taps innermost; a token's elements lie side by side in what it is multiplied with.
        let of_output = |output: &[f16]| (0..width).flat_map(|tap| output.iter().skip(tap).step_by(width).copied()).collect::<Vec<_>>();
        let tap_by_tap: Vec<f16> = stored.chunks_exact(hidden * width).flat_map(of_output).collect();
        Ok(Self {
            width: width as u32,
            taps: Linear { weight: loader.upload(&tap_by_tap)?, bias: loader.load(Parameter::ConvolutionBias)? },
            activation: feed_forward(convolution.activation)?,
            norm: NormWeights {
                weight: loader.load(Parameter::ConvolutionNormWeight)?,
                bias: loader.load(Parameter::ConvolutionNormBias)?,
            },
        })
    }

    /// Elements of the weights and of the room for a batch of `rows` tokens.
    pub(super) fn elements(config: &EncoderConfig, convolution: &config::Convolution, rows: u64) -> u64 {
        let (hidden, width) = (config.hidden as u64, convolution.width as u64);
        hidden * (hidden * width + 3) + rows * hidden * (width + 1)
    }

    pub(super) fn batch(&self, session: &Session, rows: u32, hidden: u32) -> Result<ConvolutionBatch, BuildError> {
        let room = |columns: u32| Buffer::new(session.device(), u64::from(rows) * u64::from(columns) * 2);
        Ok(ConvolutionBatch { neighbours: room(self.width * hidden)?, convolved: room(hidden)? })
    }

    /// Convolves the embeddings, which are the batch's residual stream before the first layer.
    pub(super) fn convolve(
        &self,
        session: &mut Session,
        config: &EncoderConfig,
        batch: &EncoderBatch,
        room: &ConvolutionBatch,
    ) -> Result<(), LaunchError> {
        let hidden = config.hidden as u32;
        session.launch(&UnfoldTokens {
            sequences: batch.sequences(),
            max_length: batch.max_length(),
            tokens: batch.rows(),
            hidden,
            width: self.width,
            x: batch.output(),
            starts: batch.starts(),
            lengths: batch.lengths(),
            y: room.neighbours.ptr(),
        })?;
        let shape = [batch.rows(), hidden, self.width * hidden];
        session.launch(&self.taps.gemm(shape, room.neighbours.ptr(), room.convolved.ptr(), self.activation))
    }

    /// `layer_norm(the first layer's output + the convolution)`, in place.
    pub(super) fn add(&self, config: &EncoderConfig, batch: &EncoderBatch, room: &ConvolutionBatch) -> Norm {
        let shape = [batch.rows(), config.hidden as u32];
        Norm { residual: room.convolved.ptr(), ..self.norm.norm(shape, config.layer_norm_epsilon, batch.output(), batch.output()) }
    }
}
