//! The BERT and DeBERTa families on the device: post-norm layers of bidirectional attention and a feed-forward block, every projection with a
//! bias. What only DeBERTa has is in [`deberta`](super::deberta).
//!
//! Source: Devlin et al., "BERT", 2018; Vaswani et al., "Attention is all you need", 2017; He et al., "DeBERTa", 2020.

use smidgen_runtime::device::{Buffer, DevicePtr};
use smidgen_runtime::launch::{LaunchError, Session};

use super::deberta::{Convolution, ConvolutionBatch, PositionTerms, RelativePositions, headwise_qkv};
use super::tensors::{Loader, ptr, upload_u32};
use super::{BuildError, BulkCopy};
use crate::config::{Activation, EncoderConfig, EncoderFamily};
use crate::kernels::attention::{AttentionPrefill, Heads};
use crate::kernels::embedding::{Embed, EmbedNorm, PositionTable};
use crate::kernels::gemm::{Epilogue, Gemm, Residual};
use crate::kernels::norm::{Norm, NormKind};
use crate::weights::{LayerParameter, Parameter, Weights};

/// An encoder's weights.
pub struct Encoder {
    config: EncoderConfig,
    /// The epilogue of the first feed-forward projection, whose bias it gets.
    activation: fn(DevicePtr) -> Epilogue,
    words: Buffer,
    positions: Option<Buffer>,
    token_types: Option<Buffer>,
    norm: NormWeights,
    relative: Option<RelativePositions>,
    convolution: Option<Convolution>,
    layers: Vec<Layer>,
}

/// The scale and shift of a layer norm, `[hidden]` each.
pub(super) struct NormWeights {
    pub weight: Buffer,
    pub bias: Buffer,
}

/// The weight, `[out, in]`, and bias of a projection.
pub(super) struct Linear {
    pub weight: Buffer,
    pub bias: Buffer,
}

struct Layer {
    qkv: Linear,
    /// Where scores have terms for distances.
    position_terms: Option<PositionTerms>,
    attention_output: Linear,
    attention_norm: NormWeights,
    up: Linear,
    down: Linear,
    output_norm: NormWeights,
}

/// One ragged batch: its tokens, and room for what the layers pass on.
pub struct EncoderBatch {
    rows: u32,
    sequences: u32,
    max_length: u32,
    ids: Buffer,
    positions: Buffer,
    starts: Buffer,
    lengths: Buffer,
    /// The residual stream, `[rows, hidden]`; the output after a forward pass.
    x: Buffer,
    /// `[rows, hidden]`.
    y: Buffer,
    /// `[rows, 3 * hidden]`.
    qkv: Buffer,
    /// `[rows, hidden]`.
    attention: Buffer,
    /// `[rows, intermediate]`.
    inner: Buffer,
    convolution: Option<ConvolutionBatch>,
}

impl Encoder {
    /// Puts the weights on the device; `bulk` copies them where they are read from a checkpoint.
    ///
    /// # Errors
    /// The first parameter that is missing or misshapen; an activation that there is no kernel for; what the device says.
    pub fn new(config: &EncoderConfig, weights: &Weights, session: &mut Session, bulk: &mut dyn BulkCopy) -> Result<Self, BuildError> {
        let activation = feed_forward(config.activation)?;
        let mut loader = Loader::new(weights, session, bulk);
        let relative = config.relative.as_ref().map(|relative| RelativePositions::load(&mut loader, config, relative)).transpose()?;
        let convolution = config.convolution.as_ref().map(|convolution| Convolution::load(&mut loader, config, convolution)).transpose()?;
        Ok(Self {
            config: config.clone(),
            activation,
            words: loader.load(Parameter::TokenEmbedding)?,
            positions: config.absolute_positions.then(|| loader.load(Parameter::PositionEmbedding)).transpose()?,
            token_types: (config.token_types > 0).then(|| loader.load(Parameter::TokenTypeEmbedding)).transpose()?,
            norm: NormWeights { weight: loader.load(Parameter::EmbeddingNormWeight)?, bias: loader.load(Parameter::EmbeddingNormBias)? },
            layers: (0..config.layers).map(|index| Layer::load(&mut loader, config, relative.as_ref(), index)).collect::<Result<_, _>>()?,
            relative,
            convolution,
        })
    }

    /// Device memory of the weights and one batch of `batch` sequences of `seq` tokens, bytes.
    pub fn memory_bytes(config: &EncoderConfig, batch: u32, seq: u32) -> u64 {
        let (hidden, inner) = (config.hidden as u64, config.intermediate as u64);
        let positions = if config.absolute_positions { config.max_positions } else { 0 };
        let tables = (config.vocab + positions + config.token_types) as u64 * hidden;
        let rows = u64::from(batch) * u64::from(seq);
        let relative = config.relative.as_ref().map_or(0, |relative| RelativePositions::elements_of_a_layer(config, relative));
        let layer = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner + relative;
        let convolution = config.convolution.as_ref().map_or(0, |convolution| Convolution::elements(config, convolution, rows));
        // By row: id and position. By sequence: first row and length.
        let shape = 8 * (rows + u64::from(batch));
        2 * (tables + config.layers as u64 * layer + rows * (6 * hidden + inner) + convolution) + shape
    }

    /// Room for a batch of `sequences`, whose ids were checked against the vocabulary.
    ///
    /// # Errors
    /// What the device says.
    pub fn batch(&self, session: &Session, sequences: &[Vec<u32>]) -> Result<EncoderBatch, BuildError> {
        let shape = RaggedShape::of(sequences);
        let room = |columns: usize| Buffer::new(session.device(), u64::from(shape.rows) * columns as u64 * 2);
        let hidden = self.config.hidden;
        Ok(EncoderBatch {
            rows: shape.rows,
            sequences: shape.lengths.len() as u32,
            max_length: shape.max_length,
            ids: upload_u32(session, &sequences.concat())?,
            positions: upload_u32(session, &shape.positions)?,
            starts: upload_u32(session, &shape.starts)?,
            lengths: upload_u32(session, &shape.lengths)?,
            x: room(hidden)?,
            y: room(hidden)?,
            qkv: room(3 * hidden)?,
            attention: room(hidden)?,
            inner: room(self.config.intermediate)?,
            convolution: self.convolution.as_ref().map(|convolution| convolution.batch(session, shape.rows, hidden as u32)).transpose()?,
        })
    }

    /// Launches the forward pass; the last hidden state is then in [`EncoderBatch::output`].
    ///
    /// # Errors
    /// What a launch says.
    pub fn forward(&self, session: &mut Session, batch: &EncoderBatch) -> Result<(), LaunchError> {
        let config = &self.config;
        let (rows, hidden, inner) = (batch.rows, config.hidden as u32, config.intermediate as u32);
        let (x, y) = (batch.x.ptr(), batch.y.ptr());
        let added = |bias| Epilogue::BiasResidual(bias, Residual { ptr: x, stride: hidden });
        session.launch(&self.embedding(batch))?;
        let convolution = self.convolution.as_ref().zip(batch.convolution.as_ref());
        if let Some((convolution, room)) = convolution {
            convolution.convolve(session, config, batch, room)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            session.launch(&layer.qkv.gemm([rows, 3 * hidden, hidden], x, batch.qkv.ptr(), Epilogue::Bias))?;
            match (&self.relative, &layer.position_terms) {
                (Some(relative), Some(terms)) => session.launch(&relative.attention(batch, terms))?,
                _ => session.launch(&self.attention(batch))?,
            }
            session.launch(&layer.attention_output.gemm([rows, hidden, hidden], batch.attention.ptr(), y, added))?;
            session.launch(&layer.attention_norm.apply(rows, config, y, x))?;
            session.launch(&layer.up.gemm([rows, inner, hidden], x, batch.inner.ptr(), self.activation))?;
            session.launch(&layer.down.gemm([rows, hidden, inner], batch.inner.ptr(), y, added))?;
            session.launch(&layer.output_norm.apply(rows, config, y, x))?;
            if let (0, Some((convolution, room))) = (index, convolution) {
                session.launch(&convolution.add(config, batch, room))?;
            }
        }
        Ok(())
    }

    /// Width of the output.
    pub fn hidden(&self) -> usize {
        self.config.hidden
    }

    fn embedding(&self, batch: &EncoderBatch) -> Embed {
        let positions = |table: &Buffer| PositionTable {
            positions: batch.positions.ptr(),
            table: table.ptr(),
            entries: self.config.max_positions as u32,
        };
        Embed {
            rows: batch.rows,
            width: self.config.hidden as u32,
            vocabulary: self.config.vocab as u32,
            ids: batch.ids.ptr(),
            words: self.words.ptr(),
            positions: self.positions.as_ref().map(positions),
            type_table: ptr(self.token_types.as_ref()),
            sum: DevicePtr::NULL,
            norm: Some(EmbedNorm {
                kind: NormKind::Layer,
                weight: self.norm.weight.ptr(),
                bias: self.norm.bias.ptr(),
                epsilon: self.config.layer_norm_epsilon,
            }),
            y: batch.x.ptr(),
        }
    }

    fn attention(&self, batch: &EncoderBatch) -> AttentionPrefill {
        let (heads, head_dim) = (self.config.heads as u32, self.config.head_dim() as u32);
        let heads = Heads { heads, kv_heads: heads, head_dim };
        AttentionPrefill {
            heads,
            sequences: batch.sequences,
            max_length: batch.max_length,
            tokens: batch.rows,
            rows: batch.rows,
            causal: false,
            window: 0,
            scale: 1.0 / (head_dim as f32).sqrt(),
            qkv: batch.qkv.ptr(),
            qkv_stride: heads.qkv_width(),
            output: batch.attention.ptr(),
            output_stride: heads.output_width(),
            starts: batch.starts.ptr(),
            lengths: batch.lengths.ptr(),
        }
    }
}

impl EncoderBatch {
    /// Sequences in the batch.
    pub fn sequences(&self) -> u32 {
        self.sequences
    }

    /// Rows of the longest sequence.
    pub fn max_length(&self) -> u32 {
        self.max_length
    }

    /// Queries, keys and values of one layer, `[rows, 3 * hidden]` fp16.
    pub(super) fn qkv(&self) -> DevicePtr {
        self.qkv.ptr()
    }

    /// What attention makes of them, `[rows, hidden]` fp16.
    pub(super) fn attended(&self) -> DevicePtr {
        self.attention.ptr()
    }

    /// Tokens of all sequences.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Token ids of all sequences, `[rows]` of `u32`: another request of the same lengths is these in their place.
    pub fn ids(&self) -> DevicePtr {
        self.ids.ptr()
    }

    /// First row of each sequence, `[sequences]` u32.
    pub fn starts(&self) -> DevicePtr {
        self.starts.ptr()
    }

    /// Rows of each sequence, `[sequences]` u32.
    pub fn lengths(&self) -> DevicePtr {
        self.lengths.ptr()
    }

    /// The last hidden state, `[rows, hidden]` fp16, once a forward pass is done.
    pub fn output(&self) -> DevicePtr {
        self.x.ptr()
    }
}

impl Layer {
    fn load(
        loader: &mut Loader<'_>,
        config: &EncoderConfig,
        relative: Option<&RelativePositions>,
        index: usize,
    ) -> Result<Self, BuildError> {
        use LayerParameter as P;
        let qkv = match config.family {
            EncoderFamily::Deberta => headwise_qkv(loader, config, index)?,
            _ => Linear::stacked(
                loader,
                index,
                &[(P::QueryWeight, P::QueryBias), (P::KeyWeight, P::KeyBias), (P::ValueWeight, P::ValueBias)],
            )?,
        };
        let position_terms = relative.map(|relative| relative.project(loader, config, index, &qkv)).transpose()?;
        let mut stacked = |parts: &[P]| {
            let parts: Vec<Parameter> = parts.iter().map(|&part| Parameter::layer(index, part)).collect();
            loader.stacked(&parts)
        };
        Ok(Self {
            qkv,
            position_terms,
            attention_output: Linear { weight: stacked(&[P::AttentionOutputWeight])?, bias: stacked(&[P::AttentionOutputBias])? },
            attention_norm: NormWeights { weight: stacked(&[P::AttentionNormWeight])?, bias: stacked(&[P::AttentionNormBias])? },
            up: Linear { weight: stacked(&[P::UpWeight])?, bias: stacked(&[P::UpBias])? },
            down: Linear { weight: stacked(&[P::DownWeight])?, bias: stacked(&[P::DownBias])? },
            output_norm: NormWeights { weight: stacked(&[P::FeedForwardNormWeight])?, bias: stacked(&[P::FeedForwardNormBias])? },
        })
    }
}

/// The epilogue of the first feed-forward projection of models without a gate, whose bias it gets.
pub(super) fn feed_forward(activation: Activation) -> Result<fn(DevicePtr) -> Epilogue, BuildError> {
    match activation {
        Activation::Gelu => Ok(Epilogue::BiasGelu),
        Activation::GeluTanh => Ok(Epilogue::BiasGeluTanh),
        Activation::Relu => Ok(Epilogue::BiasRelu),
        Activation::Silu => Err(BuildError::Unsupported(
            "`hidden_act` is silu: the feed-forward kernels of encoders compute gelu, gelu_new and relu only; `smidgen forward` and `embed` can with `--device cpu`",
        )),
    }
}

impl Linear {
    /// Projections of the same input, one below the other.
    pub(super) fn stacked(loader: &mut Loader<'_>, index: usize, parts: &[(LayerParameter, LayerParameter)]) -> Result<Self, BuildError> {
        let of_layer = |part: &mut dyn Iterator<Item = LayerParameter>| part.map(|part| Parameter::layer(index, part)).collect::<Vec<_>>();
        let weights = of_layer(&mut parts.iter().map(|part| part.0));
        let biases = of_layer(&mut parts.iter().map(|part| part.1));
        Ok(Self { weight: loader.stacked(&weights)?, bias: loader.stacked(&biases)? })
    }

    /// The product of `a` and the weight; `epilogue` gets the bias.
    pub(super) fn gemm(&self, shape: [u32; 3], a: DevicePtr, c: DevicePtr, epilogue: impl FnOnce(DevicePtr) -> Epilogue) -> Gemm {
        Gemm::new(shape, a, self.weight.ptr(), c, epilogue(self.bias.ptr()))
    }
}

impl NormWeights {
    fn apply(&self, rows: u32, config: &EncoderConfig, x: DevicePtr, y: DevicePtr) -> Norm {
        self.norm([rows, config.hidden as u32], config.layer_norm_epsilon, x, y)
    }

    /// The layer norm of the rows of `x`, of `[rows, width]`.
    pub(super) fn norm(&self, [rows, width]: [u32; 2], epsilon: f32, x: DevicePtr, y: DevicePtr) -> Norm {
        Norm {
            kind: NormKind::Layer,
            rows,
            width,
            epsilon,
            x,
            index: DevicePtr::NULL,
            residual: DevicePtr::NULL,
            sum: DevicePtr::NULL,
            weight: self.weight.ptr(),
            bias: self.bias.ptr(),
            y,
        }
    }
}

/// Where the sequences of a ragged batch lie.
pub(super) struct RaggedShape {
    pub rows: u32,
    pub max_length: u32,
    pub starts: Vec<u32>,
    pub lengths: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
}

impl RaggedShape {
    pub(super) fn of(sequences: &[Vec<u32>]) -> Self {
        let lengths: Vec<u32> = sequences.iter().map(|sequence| sequence.len() as u32).collect();
        let mut rows = 0;
        let mut starts = Vec::with_capacity(lengths.len());
        for length in &lengths {
            starts.push(rows);
            rows += length;
        }
        let positions = lengths.iter().flat_map(|&length| 0..length).collect();
        Self { rows, max_length: lengths.iter().copied().max().unwrap_or(0), starts, lengths, positions }
    }
}
