//! The decoder families on the device: a norm before each block, causal attention with grouped queries, and a feed-forward block.
//! [`Decoder::prefill`] takes whole prompts, [`Decoder::step`] one token of each sequence against the key-value cache.
//!
//! What a family has is decided by its weights, as the configuration says: GPT-2 adds learned positions to its embeddings, norms by mean and
//! variance, and has a plain feed-forward block; the others turn queries and keys by their positions, norm by the mean square, and gate. A sliding
//! window is the attention kernels' business: keys that left it stay in the cache and are not read.
//!
//! Weights of RMS norms are multiplied into the projections after them when the model is loaded, so that a projection of few rows can norm them itself
//! ([`Decoder::norms_rows`] decides); docs/decisions/0018.
//!
//! Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; Touvron et al., "Llama 2", 2023.

mod batch;
mod inputs;
mod slots;

use std::ops::Range;

use half::f16;
use smidgen_runtime::device::{Buffer, DevicePtr};
use smidgen_runtime::launch::{LaunchError, Session};

use super::tensors::{Loader, ptr};
use super::{BuildError, BulkCopy};
use crate::config::{Activation, DecoderConfig, DecoderNorm, Positions};
use crate::kernels::attention::{AttentionDecode, AttentionPrefill, CacheWrite, Heads, PAGE_TOKENS, Rotary};
use crate::kernels::embedding::{Embed, EmbedNorm, PositionTable};
use crate::kernels::gemm::{Epilogue, Gemm, QkvProduct, Residual, RowNorm};
use crate::kernels::norm::{Norm, NormKind};
use crate::kernels::sampling::Sample;
use crate::weights::{LayerParameter, Parameter, Weights};

pub use batch::{DecoderBatch, LogitRows, Prompts};
pub(super) use inputs::sample_params;
pub use slots::SlotBatch;

/// A decoder's weights.
pub struct Decoder {
    config: DecoderConfig,
    words: Buffer,
    /// `[max_positions, hidden]`, where positions are learned.
    positions: Option<Buffer>,
    /// `[head_dim / 2]` f32, where they are rotary.
    inverse_frequencies: Option<Buffer>,
    /// None where the token embedding is the head.
    head: Option<Buffer>,
    /// Of the last norm; none where they are in the head.
    norm: Option<NormWeights>,
    /// Of the norms whose weights are in the projections after them: ones.
    unit_norm: NormWeights,
    layers: Vec<Layer>,
}

struct NormWeights {
    weight: Buffer,
    /// None under an RMS norm.
    bias: Option<Buffer>,
}

struct Layer {
    /// Positions that a query sees, its own included; 0 where it sees all.
    window: u32,
    /// Factor of the attention scores.
    scale: f32,
    /// None where they are in the projections.
    attention_norm: Option<NormWeights>,
    qkv: Buffer,
    qkv_bias: Option<Buffer>,
    attention_output: Buffer,
    attention_output_bias: Option<Buffer>,
    /// None where they are in the projection.
    mlp_norm: Option<NormWeights>,
    up: UpProjection,
    down: Buffer,
    down_bias: Option<Buffer>,
}

/// Into the feed-forward block.
enum UpProjection {
    /// Gate and up projections, row by row in turn; their biases element by element in turn.
    Gated { weight: Buffer, bias: Option<Buffer> },
    /// One projection, and the epilogue that adds its bias and applies the activation.
    Plain { weight: Buffer, bias: Buffer, activated: fn(DevicePtr) -> Epilogue },
}

/// Which rows of the residual stream a product is of.
#[derive(Debug, Clone, Copy)]
enum Rows {
    /// The first ones.
    First,
    /// The first ones, whose norm the embedding has made.
    Normed,
    /// Those that an index in device memory picks.
    Picked(DevicePtr),
}

/// Where the tokens of a pass stand, row by row.
struct RowPlaces {
    rows: u32,
    positions: DevicePtr,
    /// Rows of the page table.
    sequence_of: DevicePtr,
}

/// Where attention reads new keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeysFrom {
    Cache,
    Rows,
}

impl Decoder {
    /// Puts the weights on the device; `bulk` copies them where they are read from a checkpoint.
    ///
    /// # Errors
    /// The first parameter that is missing or misshapen; a variant that there is no kernel for; what the device says.
    pub fn new(config: &DecoderConfig, weights: &Weights, session: &mut Session, bulk: &mut dyn BulkCopy) -> Result<Self, BuildError> {
        let mut loader = Loader::new(weights, session, bulk);
        let (positions, inverse_frequencies) = match config.positions {
            Positions::Learned => (Some(loader.load(Parameter::PositionEmbedding)?), None),
            Positions::Rotary(rope) => (None, Some(loader.upload_f32(&rope.inverse_frequencies(config.head_dim))?)),
        };
        let head_norm = folds_norms(config).then_some(Parameter::FinalNormWeight);
        Ok(Self {
            config: config.clone(),
            words: loader.load(Parameter::TokenEmbedding)?,
            positions,
            inverse_frequencies,
            head: (!config.tied_embeddings).then(|| loader.stacked_with_norm(&[Parameter::OutputHead], head_norm)).transpose()?,
            norm: (config.tied_embeddings || head_norm.is_none())
                .then(|| NormWeights::load(&mut loader, config, Parameter::FinalNormWeight, Parameter::FinalNormBias))
                .transpose()?,
            unit_norm: NormWeights { weight: loader.upload(&vec![f16::ONE; config.hidden])?, bias: None },
            layers: (0..config.layers).map(|index| Layer::load(&mut loader, config, index)).collect::<Result<_, _>>()?,
        })
    }

    /// Device memory of the weights and one batch of `batch` sequences whose caches hold `seq` tokens and the next, bytes.
    pub fn memory_bytes(config: &DecoderConfig, batch: u32, seq: u32) -> u64 {
        Self::weight_bytes(config).saturating_add(Self::batch_bytes(config, batch, seq.saturating_add(1), batch, LogitRows::Last))
    }

    /// Device memory of the weights and of a prefill of `batch` prompts of `seq` tokens, bytes.
    pub fn prefill_memory_bytes(config: &DecoderConfig, batch: u32, seq: u32) -> u64 {
        let rows = batch.saturating_mul(seq);
        let prefill = Self::batch_bytes(config, batch, seq, rows, LogitRows::Last).saturating_add(Prompts::bytes(batch, rows));
        Self::weight_bytes(config).saturating_add(prefill)
    }

    /// Device memory of the weights, bytes.
    pub(super) fn weight_bytes(config: &DecoderConfig) -> u64 {
        let (hidden, inner) = (config.hidden as u64, config.intermediate as u64);
        let (query, kv) = (config.query_width() as u64, config.kv_width() as u64);
        let positions = if config.positions == Positions::Learned { config.max_positions } else { 0 } as u64;
        let tables = (config.vocab as u64 * if config.tied_embeddings { 1 } else { 2 } + positions) * hidden;
        let layer = hidden * (2 * query + 2 * kv + if config.gated { 3 } else { 2 } * inner + 2);
        2 * (tables + config.layers as u64 * layer)
    }

    /// Launches the forward pass over whole prompts: fills the caches, and leaves the logits of the wanted rows.
    ///
    /// # Errors
    /// [`LaunchError::Unsupported`] for prompts that `batch` has no room for; what a launch says.
    pub fn prefill(&self, session: &mut Session, batch: &DecoderBatch, prompts: &Prompts, wanted: LogitRows) -> Result<(), LaunchError> {
        check_room(batch, prompts, wanted)?;
        let rows = prompts.rows;
        session.launch(&self.embed(session, batch, rows, 0..rows, prompts.ids.ptr(), prompts.positions.ptr()))?;
        for (at, layer) in self.layers.iter().enumerate() {
            let places = RowPlaces { rows, positions: prompts.positions.ptr(), sequence_of: prompts.sequence_of.ptr() };
            self.project_and_rotate(session, at, batch, &places, KeysFrom::Rows)?;
            session.launch(&AttentionPrefill {
                heads: self.heads(),
                sequences: batch.sequences,
                max_length: prompts.max_length,
                tokens: rows,
                rows,
                causal: true,
                window: layer.window,
                scale: layer.scale,
                qkv: batch.qkv.ptr(),
                qkv_stride: self.heads().qkv_width(),
                output: batch.attention.ptr(),
                output_stride: self.heads().output_width(),
                starts: prompts.starts.ptr(),
                lengths: prompts.lengths.ptr(),
            })?;
            self.finish_layer(session, layer, batch, rows)?;
        }
        match wanted {
            LogitRows::All => self.logits(session, batch, rows, Rows::First),
            LogitRows::Last => self.logits(session, batch, batch.sequences, Rows::Picked(prompts.last_rows.ptr())),
        }
    }

    /// Launches one step of every sequence: its token goes into the cache, and the logits of the next one come out.
    ///
    /// # Errors
    /// What a launch says.
    pub fn step(&self, session: &mut Session, batch: &DecoderBatch) -> Result<(), LaunchError> {
        let rows = batch.sequences;
        session.launch(&self.embed(session, batch, rows, 0..rows, batch.tokens.ptr(), batch.positions.ptr()))?;
        for (at, (layer, cache)) in self.layers.iter().zip(&batch.caches).enumerate() {
            let places = RowPlaces { rows, positions: batch.positions.ptr(), sequence_of: batch.numbers.ptr() };
            self.project_and_rotate(session, at, batch, &places, KeysFrom::Cache)?;
            session.launch(&AttentionDecode {
                heads: self.heads(),
                sequences: rows,
                context: batch.context,
                window: layer.window,
                scale: layer.scale,
                qkv: batch.qkv.ptr(),
                qkv_stride: self.heads().qkv_width(),
                cache: batch.cache(cache),
                output: batch.attention.ptr(),
                output_stride: self.heads().output_width(),
                lengths: batch.lengths.ptr(),
                workspace: batch.workspace.ptr(),
            })?;
            self.finish_layer(session, layer, batch, rows)?;
        }
        self.logits(session, batch, rows, Rows::First)
    }

    /// Launches the draw of each sequence's next token from its logits. With `advance`, the sequences then stand one token further on.
    ///
    /// # Errors
    /// What a launch says.
    pub fn sample(&self, session: &mut Session, batch: &DecoderBatch, advance: bool) -> Result<(), LaunchError> {
        let moved = |buffer: &Buffer| if advance { buffer.ptr() } else { DevicePtr::NULL };
        session.launch(&Sample {
            rows: batch.sequences,
            vocabulary: self.config.vocab as u32,
            logits: batch.logits.ptr(),
            params: batch.params.ptr(),
            tokens: batch.tokens.ptr(),
            positions: moved(&batch.positions),
            lengths: moved(&batch.lengths),
            arrivals: batch.arrivals.ptr(),
            scratch: batch.scratch.ptr(),
        })
    }

    /// Tokens to choose from.
    pub fn vocabulary(&self) -> usize {
        self.config.vocab
    }

    /// The embeddings of the tokens `part` of a pass over `rows`, with their positions where those are learned: those rows of the residual stream, and
    /// the first layer's norm of them where its projection does not norm them. It is the launch of a step that waits for the step before: attention may
    /// read lengths, page table and older keys and values as soon as it runs ([`AttentionDecode`]).
    fn embed(&self, session: &Session, batch: &DecoderBatch, rows: u32, part: Range<u32>, ids: DevicePtr, positions: DevicePtr) -> Embed {
        let config = &self.config;
        let from_first = |buffer: &Buffer| buffer.ptr().offset(2 * u64::from(part.start) * config.hidden as u64);
        let norm_of = |layer: &Layer| {
            let norm = layer.attention_norm.as_ref();
            let weights = norm.unwrap_or(&self.unit_norm);
            (!self.norms_rows(session, norm, &self.qkv_product(layer, batch, rows))).then(|| EmbedNorm {
                kind: self.norm_kind(),
                weight: weights.weight.ptr(),
                bias: ptr(weights.bias.as_ref()),
                epsilon: config.norm_epsilon,
            })
        };
        let norm = self.layers.first().and_then(norm_of);
        let table = |table: &Buffer| PositionTable { positions, table: table.ptr(), entries: config.max_positions as u32 };
        Embed {
            rows: part.len() as u32,
            width: config.hidden as u32,
            vocabulary: config.vocab as u32,
            ids,
            words: self.words.ptr(),
            positions: self.positions.as_ref().map(table),
            type_table: DevicePtr::NULL,
            sum: norm.map_or(DevicePtr::NULL, |_| from_first(&batch.x)),
            norm,
            y: from_first(if norm.is_some() { &batch.normed } else { &batch.x }),
        }
    }

    fn norm_kind(&self) -> NormKind {
        match self.config.norm {
            DecoderNorm::Layer => NormKind::Layer,
            DecoderNorm::Rms => NormKind::Rms,
        }
    }

    /// Whether `product`, of the residual stream, norms its rows itself: where no weights of the norm are left, and the kernel that does the product can.
    fn norms_rows(&self, session: &Session, norm: Option<&NormWeights>, product: &Gemm) -> bool {
        norm.is_none() && product.can_norm_rows(session.device().topology())
    }

    /// `product`, of the residual stream, made one of its normed rows; where it does not norm them itself, their norm is launched.
    fn normed(
        &self,
        session: &mut Session,
        batch: &DecoderBatch,
        rows: Rows,
        norm: Option<&NormWeights>,
        product: Gemm,
    ) -> Result<Gemm, LaunchError> {
        if !matches!(rows, Rows::Picked(_)) && self.norms_rows(session, norm, &product) {
            return Ok(Gemm { row_norm: Some(RowNorm { epsilon: self.config.norm_epsilon }), ..product });
        }
        let weights = norm.unwrap_or(&self.unit_norm);
        match rows {
            Rows::First => session.launch(&self.norm(batch, product.m, DevicePtr::NULL, weights))?,
            Rows::Picked(index) => session.launch(&self.norm(batch, product.m, index, weights))?,
            Rows::Normed => {}
        }
        Ok(Gemm { a: batch.normed.ptr(), ..product })
    }

    /// The norm of the residual stream, of all its rows or those picked by `index`.
    fn norm(&self, batch: &DecoderBatch, rows: u32, index: DevicePtr, weights: &NormWeights) -> Norm {
        Norm {
            kind: self.norm_kind(),
            rows,
            width: self.config.hidden as u32,
            epsilon: self.config.norm_epsilon,
            x: batch.x.ptr(),
            index,
            residual: DevicePtr::NULL,
            sum: DevicePtr::NULL,
            weight: weights.weight.ptr(),
            bias: ptr(weights.bias.as_ref()),
            y: batch.normed.ptr(),
        }
    }

    /// Queries, keys and values of `rows` rows of the residual stream.
    fn qkv_product(&self, layer: &Layer, batch: &DecoderBatch, rows: u32) -> Gemm {
        let epilogue = layer.qkv_bias.as_ref().map_or(Epilogue::NONE, |bias| Epilogue::Bias(bias.ptr()));
        let shape = [rows, self.heads().qkv_width(), self.config.hidden as u32];
        Gemm::new(shape, batch.x.ptr(), layer.qkv.ptr(), batch.qkv.ptr(), epilogue)
    }

    /// Query, key and value projections of the normed rows in the layer `at`, rotation where positions are rotary, and keys and values into the cache.
    /// Keys and values remain in `batch.qkv` too, unless attention is said to read them from the cache.
    fn project_and_rotate(
        &self,
        session: &mut Session,
        at: usize,
        batch: &DecoderBatch,
        places: &RowPlaces,
        attention_reads: KeysFrom,
    ) -> Result<(), LaunchError> {
        let &RowPlaces { rows, positions, sequence_of } = places;
        let (layer, cache) = (&self.layers[at], batch.cache(&batch.caches[at]));
        let input = if at == 0 { Rows::Normed } else { Rows::First };
        let product = self.normed(session, batch, input, layer.attention_norm.as_ref(), self.qkv_product(layer, batch, rows))?;
        let (heads, qkv, qkv_stride) = (self.heads(), product.c, product.ldc);
        let Some(frequencies) = &self.inverse_frequencies else {
            session.launch(&product)?;
            return session.launch(&CacheWrite { heads, rows, qkv, qkv_stride, positions, cache, sequence_of });
        };
        let (inverse_frequencies, cache) = (frequencies.ptr(), Some(cache));
        let rotary = Rotary { heads, rows, qkv, qkv_stride, positions, inverse_frequencies, cache, sequence_of };
        let both = QkvProduct { product, rotary };
        if attention_reads == KeysFrom::Cache && both.can_be_one_launch(session.device().topology()) {
            return session.launch(&both);
        }
        session.launch(&product)?;
        session.launch(&rotary)
    }

    /// Output projection, norm and feed-forward block of a layer, each added to the residual stream.
    fn finish_layer(&self, session: &mut Session, layer: &Layer, batch: &DecoderBatch, rows: u32) -> Result<(), LaunchError> {
        let (hidden, inner) = (self.config.hidden as u32, self.config.intermediate as u32);
        let x = batch.x.ptr();
        let residual = Residual { ptr: x, stride: hidden };
        let added = |bias: &Option<Buffer>| match bias {
            Some(bias) => Epilogue::BiasResidual(bias.ptr(), residual),
            None => Epilogue::Residual(residual),
        };
        let (up_rows, up, activated) = match &layer.up {
            UpProjection::Gated { weight, bias: None } => (2 * inner, weight, Epilogue::SiluGate),
            UpProjection::Gated { weight, bias: Some(bias) } => (2 * inner, weight, Epilogue::BiasSiluGate(bias.ptr())),
            UpProjection::Plain { weight, bias, activated } => (inner, weight, activated(bias.ptr())),
        };
        let width = self.config.query_width() as u32;
        session.launch(&Gemm::new(
            [rows, hidden, width],
            batch.attention.ptr(),
            layer.attention_output.ptr(),
            x,
            added(&layer.attention_output_bias),
        ))?;
        let up = Gemm::new([rows, up_rows, hidden], x, up.ptr(), batch.inner.ptr(), activated);
        let up = self.normed(session, batch, Rows::First, layer.mlp_norm.as_ref(), up)?;
        session.launch(&up)?;
        session.launch(&Gemm::new([rows, hidden, inner], batch.inner.ptr(), layer.down.ptr(), x, added(&layer.down_bias)))
    }

    /// Final norm and head over `count` rows of the residual stream.
    fn logits(&self, session: &mut Session, batch: &DecoderBatch, count: u32, rows: Rows) -> Result<(), LaunchError> {
        let head = self.head.as_ref().unwrap_or(&self.words);
        let (vocabulary, hidden) = (self.config.vocab as u32, self.config.hidden as u32);
        let epilogue = Epilogue::PlainF32 { scale: 1.0 };
        let product = Gemm::new([count, vocabulary, hidden], batch.x.ptr(), head.ptr(), batch.logits.ptr(), epilogue);
        let product = self.normed(session, batch, rows, self.norm.as_ref(), product)?;
        session.launch(&product)
    }

    fn heads(&self) -> Heads {
        let config = &self.config;
        Heads { heads: config.heads as u32, kv_heads: config.kv_heads as u32, head_dim: config.head_dim as u32 }
    }
}

/// Whether weights of norms are multiplied into the projections after them: those of RMS norms, which shift nothing.
fn folds_norms(config: &DecoderConfig) -> bool {
    config.norm == DecoderNorm::Rms
}

impl Layer {
    fn load(loader: &mut Loader<'_>, config: &DecoderConfig, index: usize) -> Result<Self, BuildError> {
        use LayerParameter as P;
        let at = |parameter| Parameter::layer(index, parameter);
        let mut bias = |wanted: bool, parts: &[Parameter]| wanted.then(|| loader.stacked(parts)).transpose();
        let qkv_bias = bias(config.qkv_bias, &[at(P::QueryBias), at(P::KeyBias), at(P::ValueBias)])?;
        let attention_output_bias = bias(config.attention_output_bias, &[at(P::AttentionOutputBias)])?;
        let down_bias = bias(config.mlp_bias, &[at(P::DownBias)])?;
        Ok(Self {
            window: config.window(index).map_or(0, |window| window as u32),
            scale: config.score_scale(index),
            attention_norm: NormWeights::load_unfolded(loader, config, at(P::AttentionNormWeight), at(P::AttentionNormBias))?,
            qkv: loader.stacked_with_norm(
                &[at(P::QueryWeight), at(P::KeyWeight), at(P::ValueWeight)],
                folds_norms(config).then_some(at(P::AttentionNormWeight)),
            )?,
            qkv_bias,
            attention_output: loader.load(at(P::AttentionOutputWeight))?,
            attention_output_bias,
            mlp_norm: NormWeights::load_unfolded(loader, config, at(P::FeedForwardNormWeight), at(P::FeedForwardNormBias))?,
            up: UpProjection::load(loader, config, index)?,
            down: loader.load(at(P::DownWeight))?,
            down_bias,
        })
    }
}

impl NormWeights {
    fn load(loader: &mut Loader<'_>, config: &DecoderConfig, weight: Parameter, bias: Parameter) -> Result<Self, BuildError> {
        let bias = (config.norm == DecoderNorm::Layer).then(|| loader.load(bias)).transpose()?;
        Ok(Self { weight: loader.load(weight)?, bias })
    }

    /// The same of a norm before projections, which take its weights where they can.
    fn load_unfolded(
        loader: &mut Loader<'_>,
        config: &DecoderConfig,
        weight: Parameter,
        bias: Parameter,
    ) -> Result<Option<Self>, BuildError> {
        (!folds_norms(config)).then(|| Self::load(loader, config, weight, bias)).transpose()
    }
}

/// Kernels write as many rows as there are prompts' tokens, wherever the batch ends.
fn check_room(batch: &DecoderBatch, prompts: &Prompts, wanted: LogitRows) -> Result<(), LaunchError> {
    let asked = [prompts.sequences, prompts.max_length, prompts.rows];
    let room = [batch.sequences, batch.pages_per_sequence * PAGE_TOKENS, batch.max_rows];
    let logits = if wanted == LogitRows::All { prompts.rows } else { batch.sequences };
    if asked[0] == room[0] && asked[1] <= room[1] && asked[2] <= room[2] && logits <= batch.logit_rows {
        return Ok(());
    }
    let reason = format!(
        "{} sequences of up to {} tokens, {} in all and {logits} with logits, where the batch is of {} sequences of up to {}, {} in all and {} with logits; make the batch as the prompts are",
        asked[0], asked[1], asked[2], room[0], room[1], room[2], batch.logit_rows
    );
    Err(LaunchError::Unsupported { kernel: "prefill".to_owned(), reason })
}

impl UpProjection {
    fn load(loader: &mut Loader<'_>, config: &DecoderConfig, index: usize) -> Result<Self, BuildError> {
        use LayerParameter as P;
        let at = |parameter| Parameter::layer(index, parameter);
        let norm = folds_norms(config).then_some(at(P::FeedForwardNormWeight));
        if config.gated {
            if config.activation != Activation::Silu {
                return Err(BuildError::Unsupported(
                    "`hidden_act` is not silu: the gated feed-forward kernels compute silu only; `smidgen forward` and `generate` can with `--device cpu`",
                ));
            }
            let bias = config.mlp_bias.then(|| loader.interleaved(at(P::GateBias), at(P::UpBias), None)).transpose()?;
            return Ok(Self::Gated { weight: loader.interleaved(at(P::GateWeight), at(P::UpWeight), norm)?, bias });
        }
        let activated = match config.activation {
            Activation::Gelu => Epilogue::BiasGelu,
            Activation::GeluTanh => Epilogue::BiasGeluTanh,
            Activation::Relu => Epilogue::BiasRelu,
            Activation::Silu => {
                return Err(BuildError::Unsupported(
                    "`activation_function` is silu: the plain feed-forward kernels compute gelu, gelu_new and relu only; `smidgen forward` and `generate` can with `--device cpu`",
                ));
            }
        };
        if !config.mlp_bias {
            return Err(BuildError::Unsupported("the plain feed-forward kernels add a bias, and this model has none"));
        }
        Ok(Self::Plain { weight: loader.stacked_with_norm(&[at(P::UpWeight)], norm)?, bias: loader.load(at(P::UpBias))?, activated })
    }
}
