//! The Llama family on the device: pre-norm layers of causal attention with rotary positions and grouped queries, and a gated feed-forward
//! block. [`Decoder::prefill`] takes whole prompts, [`Decoder::step`] one token of each sequence against the key-value cache.
//!
//! Attention is never windowed here: a configuration limits sequences to its sliding window
//! ([`DecoderConfig::max_sequence`]), and within the window sliding and full attention are the same.
//!
//! Source: Touvron et al., "Llama 2", 2023.

use smidgen_runtime::device::{Buffer, DevicePtr};
use smidgen_runtime::launch::{LaunchError, Session};

use super::BuildError;
use super::encoder::RaggedShape;
use super::tensors::{Loader, bytes_of_u32, upload, upload_u32};
use crate::config::{Activation, DecoderConfig};
use crate::kernels::attention::{AttentionDecode, AttentionPrefill, Heads, KvCache, PAGE_TOKENS, Rotary};
use crate::kernels::embedding::Embed;
use crate::kernels::gemm::{Epilogue, Gemm, Residual};
use crate::kernels::norm::{Norm, NormKind};
use crate::kernels::pooling::GatherRows;
use crate::kernels::sampling::{Sample, SampleParams};
use crate::weights::{LayerParameter, Parameter, Weights};

/// A decoder's weights.
pub struct Decoder {
    config: DecoderConfig,
    words: Buffer,
    /// None where the token embedding is the head.
    head: Option<Buffer>,
    norm: Buffer,
    inverse_frequencies: Buffer,
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: Buffer,
    qkv: Buffer,
    qkv_bias: Option<Buffer>,
    attention_output: Buffer,
    attention_output_bias: Option<Buffer>,
    mlp_norm: Buffer,
    /// Gate and up projections, row by row in turn.
    gate_up: Buffer,
    /// Their biases, element by element in turn.
    gate_up_bias: Option<Buffer>,
    down: Buffer,
    down_bias: Option<Buffer>,
}

/// The sequences of one batch: their caches, the tokens that come next, and room for what the layers pass on.
pub struct DecoderBatch {
    sequences: u32,
    /// Pages that each sequence's cache has.
    pages_per_sequence: u32,
    /// Tokens that the caches will typically hold: what a step's kernel key counts.
    context: u32,
    /// Rows there is room for in a prefill.
    max_rows: u32,
    caches: Vec<Cache>,
    /// `[sequences, pages_per_sequence]` u32, the same for all layers: every sequence has pages of its own, in order.
    page_table: Buffer,
    /// What decode attention counts and sums in.
    workspace: Buffer,
    /// The token that each sequence's next step takes, `[sequences]` u32.
    tokens: Buffer,
    /// Its position.
    positions: Buffer,
    /// Cache length including it.
    lengths: Buffer,
    /// 0, 1, 2, ...: in a step, row and sequence are the same.
    numbers: Buffer,
    params: Buffer,
    logits: Buffer,
    /// The residual stream, `[max_rows, hidden]`.
    x: Buffer,
    /// `[max_rows, hidden]`.
    normed: Buffer,
    /// `[max_rows, (heads + 2 kv_heads) * head_dim]`.
    qkv: Buffer,
    /// `[max_rows, heads * head_dim]`.
    attention: Buffer,
    /// `[max_rows, intermediate]`.
    inner: Buffer,
}

struct Cache {
    keys: Buffer,
    values: Buffer,
}

/// The prompts of one prefill on the device.
pub struct Prompts {
    rows: u32,
    max_length: u32,
    ids: Buffer,
    positions: Buffer,
    starts: Buffer,
    lengths: Buffer,
    sequence_of: Buffer,
    last_rows: Buffer,
}

/// Which rows' logits are wanted after a prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// The last of each sequence, to sample from.
    Last,
    /// All of them, for comparison with other implementations.
    All,
}

impl Decoder {
    /// Puts the weights on the device.
    ///
    /// # Errors
    /// The first parameter that is missing or misshapen; a variant that there is no kernel for; what the device says.
    pub fn new(config: &DecoderConfig, weights: &Weights, session: &mut Session) -> Result<Self, BuildError> {
        if config.activation != Activation::Silu {
            return Err(BuildError::Unsupported(
                "`hidden_act` is not silu: the gated feed-forward kernels compute silu only; use `--device cpu`",
            ));
        }
        let mut loader = Loader::new(weights, session);
        Ok(Self {
            config: config.clone(),
            words: loader.load(Parameter::TokenEmbedding)?,
            head: (!config.tied_embeddings).then(|| loader.load(Parameter::OutputHead)).transpose()?,
            norm: loader.load(Parameter::FinalNormWeight)?,
            inverse_frequencies: loader.upload_f32(&config.rope.inverse_frequencies(config.head_dim))?,
            layers: (0..config.layers).map(|index| Layer::load(&mut loader, config, index)).collect::<Result<_, _>>()?,
        })
    }

    /// Device memory of the weights and one batch of `batch` sequences whose caches hold `seq` tokens and the next, bytes.
    pub fn memory_bytes(config: &DecoderConfig, batch: u32, seq: u32) -> u64 {
        let (hidden, inner) = (config.hidden as u64, config.intermediate as u64);
        let (query, kv) = (config.query_width() as u64, config.kv_width() as u64);
        let tables = config.vocab as u64 * hidden * if config.tied_embeddings { 1 } else { 2 };
        let layer = hidden * (2 * query + 2 * kv + 3 * inner + 2);
        let cache = 2 * kv * u64::from(batch) * u64::from(KvCache::pages_for(seq + 1) * PAGE_TOKENS);
        let rows = u64::from(batch) * (2 * hidden + 2 * query + 2 * kv + inner + 2 * config.vocab as u64);
        2 * (tables + config.layers as u64 * (layer + cache) + rows)
    }

    /// Room for `sequences` sequences of up to `capacity` tokens each, and for prefills of up to `max_rows` tokens in all.
    ///
    /// # Errors
    /// What the device says.
    pub fn batch(
        &self,
        session: &Session,
        sequences: u32,
        capacity: u32,
        max_rows: u32,
        logits: LogitRows,
    ) -> Result<DecoderBatch, BuildError> {
        let config = &self.config;
        let device = session.device();
        let halves = |rows: u32, columns: usize| Buffer::new(device, u64::from(rows) * columns as u64 * 2);
        let max_rows = max_rows.max(sequences);
        let zeros = vec![0; sequences as usize];
        let pages_per_sequence = KvCache::pages_for(capacity);
        let cache = || -> Result<Cache, BuildError> {
            let room = || Buffer::new(device, u64::from(sequences * pages_per_sequence) * KvCache::page_bytes(self.heads()));
            Ok(Cache { keys: room()?, values: room()? })
        };
        let logit_rows = if logits == LogitRows::All { max_rows } else { sequences };
        let workspace = Buffer::new(device, AttentionDecode::workspace_bytes(self.heads(), sequences, pages_per_sequence))?;
        device.fill(session.stream(), workspace.ptr(), 0, workspace.bytes())?;
        let greedy = SampleParams { temperature: 0.0, top_p: 1.0, top_k: 0, draw: 0.0 };
        Ok(DecoderBatch {
            sequences,
            pages_per_sequence,
            context: capacity,
            max_rows,
            caches: (0..config.layers).map(|_| cache()).collect::<Result<_, _>>()?,
            page_table: upload_u32(session, &(0..sequences * pages_per_sequence).collect::<Vec<_>>())?,
            workspace,
            tokens: upload_u32(session, &zeros)?,
            positions: upload_u32(session, &zeros)?,
            lengths: upload_u32(session, &zeros)?,
            numbers: upload_u32(session, &(0..sequences).collect::<Vec<_>>())?,
            params: upload(session, &vec![sample_bytes(&greedy); sequences as usize].concat())?,
            logits: Buffer::new(device, u64::from(logit_rows) * config.vocab as u64 * 4)?,
            x: halves(max_rows, config.hidden)?,
            normed: halves(max_rows, config.hidden)?,
            qkv: halves(max_rows, config.query_width() + 2 * config.kv_width())?,
            attention: halves(max_rows, config.query_width())?,
            inner: halves(max_rows, config.intermediate)?,
        })
    }

    /// Launches the forward pass over whole prompts: fills the caches, and leaves the logits of the wanted rows.
    ///
    /// # Errors
    /// What a launch says.
    pub fn prefill(&self, session: &mut Session, batch: &DecoderBatch, prompts: &Prompts, wanted: LogitRows) -> Result<(), LaunchError> {
        let rows = prompts.rows;
        session.launch(&self.embed(rows, &prompts.ids, batch))?;
        for (layer, cache) in self.layers.iter().zip(&batch.caches) {
            self.project_and_rotate(session, layer, cache, batch, rows, prompts.positions.ptr(), prompts.sequence_of.ptr())?;
            session.launch(&AttentionPrefill {
                heads: self.heads(),
                sequences: batch.sequences,
                max_length: prompts.max_length,
                tokens: rows,
                causal: true,
                window: 0,
                scale: self.scale(),
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
            LogitRows::All => self.logits(session, batch, rows, batch.x.ptr()),
            LogitRows::Last => {
                // The attention output is done with; it holds the last rows.
                let last = batch.normed.ptr();
                let (rows, width) = (batch.sequences, self.config.hidden as u32);
                session.launch(&GatherRows { rows, width, x: batch.x.ptr(), index: prompts.last_rows.ptr(), y: last })?;
                self.logits(session, batch, rows, last)
            }
        }
    }

    /// Launches one step of every sequence: its token goes into the cache, and the logits of the next one come out.
    ///
    /// # Errors
    /// What a launch says.
    pub fn step(&self, session: &mut Session, batch: &DecoderBatch) -> Result<(), LaunchError> {
        let rows = batch.sequences;
        session.launch(&self.embed(rows, &batch.tokens, batch))?;
        for (layer, cache) in self.layers.iter().zip(&batch.caches) {
            self.project_and_rotate(session, layer, cache, batch, rows, batch.positions.ptr(), batch.numbers.ptr())?;
            session.launch(&AttentionDecode {
                heads: self.heads(),
                sequences: rows,
                context: batch.context,
                window: 0,
                scale: self.scale(),
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
        self.logits(session, batch, rows, batch.x.ptr())
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
        })
    }

    /// Tokens to choose from.
    pub fn vocabulary(&self) -> usize {
        self.config.vocab
    }

    fn embed(&self, rows: u32, ids: &Buffer, batch: &DecoderBatch) -> Embed {
        Embed {
            rows,
            width: self.config.hidden as u32,
            vocabulary: self.config.vocab as u32,
            ids: ids.ptr(),
            words: self.words.ptr(),
            bert: None,
            y: batch.x.ptr(),
        }
    }

    fn rms_norm(&self, rows: u32, x: DevicePtr, weight: &Buffer, y: DevicePtr) -> Norm {
        Norm {
            kind: NormKind::Rms,
            rows,
            width: self.config.hidden as u32,
            epsilon: self.config.rms_norm_epsilon,
            x,
            residual: DevicePtr::NULL,
            sum: DevicePtr::NULL,
            weight: weight.ptr(),
            bias: DevicePtr::NULL,
            y,
        }
    }

    /// Norm, query, key and value projections, rotation, and keys and values into the cache.
    #[expect(clippy::too_many_arguments, reason = "prefill and step differ in the last two alone")]
    fn project_and_rotate(
        &self,
        session: &mut Session,
        layer: &Layer,
        cache: &Cache,
        batch: &DecoderBatch,
        rows: u32,
        positions: DevicePtr,
        sequence_of: DevicePtr,
    ) -> Result<(), LaunchError> {
        let (x, normed, qkv) = (batch.x.ptr(), batch.normed.ptr(), batch.qkv.ptr());
        session.launch(&self.rms_norm(rows, x, &layer.attention_norm, normed))?;
        let epilogue = layer.qkv_bias.as_ref().map_or(Epilogue::NONE, |bias| Epilogue::Bias(bias.ptr()));
        session.launch(&Gemm::new([rows, self.heads().qkv_width(), self.config.hidden as u32], normed, layer.qkv.ptr(), qkv, epilogue))?;
        session.launch(&Rotary {
            heads: self.heads(),
            rows,
            qkv,
            qkv_stride: self.heads().qkv_width(),
            positions,
            inverse_frequencies: self.inverse_frequencies.ptr(),
            cache: Some(batch.cache(cache)),
            sequence_of,
        })
    }

    /// Output projection, norm and feed-forward block, each added to the residual stream.
    fn finish_layer(&self, session: &mut Session, layer: &Layer, batch: &DecoderBatch, rows: u32) -> Result<(), LaunchError> {
        let (hidden, inner) = (self.config.hidden as u32, self.config.intermediate as u32);
        let (x, normed) = (batch.x.ptr(), batch.normed.ptr());
        let residual = Residual { ptr: x, stride: hidden };
        let added = |bias: &Option<Buffer>| match bias {
            Some(bias) => Epilogue::BiasResidual(bias.ptr(), residual),
            None => Epilogue::Residual(residual),
        };
        let gated = layer.gate_up_bias.as_ref().map_or(Epilogue::SiluGate, |bias| Epilogue::BiasSiluGate(bias.ptr()));
        let width = self.config.query_width() as u32;
        session.launch(&Gemm::new(
            [rows, hidden, width],
            batch.attention.ptr(),
            layer.attention_output.ptr(),
            x,
            added(&layer.attention_output_bias),
        ))?;
        session.launch(&self.rms_norm(rows, x, &layer.mlp_norm, normed))?;
        session.launch(&Gemm::new([rows, 2 * inner, hidden], normed, layer.gate_up.ptr(), batch.inner.ptr(), gated))?;
        session.launch(&Gemm::new([rows, hidden, inner], batch.inner.ptr(), layer.down.ptr(), x, added(&layer.down_bias)))
    }

    /// Final norm and head over `rows` rows of `x`.
    fn logits(&self, session: &mut Session, batch: &DecoderBatch, rows: u32, x: DevicePtr) -> Result<(), LaunchError> {
        session.launch(&self.rms_norm(rows, x, &self.norm, batch.normed.ptr()))?;
        let head = self.head.as_ref().unwrap_or(&self.words);
        let (vocabulary, hidden) = (self.config.vocab as u32, self.config.hidden as u32);
        let epilogue = Epilogue::PlainF32 { scale: 1.0 };
        session.launch(&Gemm::new([rows, vocabulary, hidden], batch.normed.ptr(), head.ptr(), batch.logits.ptr(), epilogue))
    }

    fn heads(&self) -> Heads {
        let config = &self.config;
        Heads { heads: config.heads as u32, kv_heads: config.kv_heads as u32, head_dim: config.head_dim as u32 }
    }

    /// Factor of the attention scores.
    fn scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }
}

impl Layer {
    fn load(loader: &mut Loader<'_>, config: &DecoderConfig, index: usize) -> Result<Self, BuildError> {
        use LayerParameter as P;
        let at = |parameter| Parameter::layer(index, parameter);
        let mut bias = |wanted: bool, parts: &[Parameter]| wanted.then(|| loader.stacked(parts)).transpose();
        let qkv_bias = bias(config.attention_bias, &[at(P::QueryBias), at(P::KeyBias), at(P::ValueBias)])?;
        let attention_output_bias = bias(config.attention_bias, &[at(P::AttentionOutputBias)])?;
        let down_bias = bias(config.mlp_bias, &[at(P::DownBias)])?;
        let gate_up_bias = config.mlp_bias.then(|| loader.interleaved(at(P::GateBias), at(P::UpBias))).transpose()?;
        Ok(Self {
            attention_norm: loader.load(at(P::AttentionNormWeight))?,
            qkv: loader.stacked(&[at(P::QueryWeight), at(P::KeyWeight), at(P::ValueWeight)])?,
            qkv_bias,
            attention_output: loader.load(at(P::AttentionOutputWeight))?,
            attention_output_bias,
            mlp_norm: loader.load(at(P::FeedForwardNormWeight))?,
            gate_up: loader.interleaved(at(P::GateWeight), at(P::UpWeight))?,
            gate_up_bias,
            down: loader.load(at(P::DownWeight))?,
            down_bias,
        })
    }
}

impl Prompts {
    /// Puts the prompts of a batch on the device, one a sequence, none empty; ids were checked against the vocabulary.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(session: &Session, sequences: &[Vec<u32>]) -> Result<Self, BuildError> {
        let shape = RaggedShape::of(sequences);
        let sequence_of: Vec<u32> =
            (0_u32..).zip(&shape.lengths).flat_map(|(sequence, &length)| (0..length).map(move |_| sequence)).collect();
        let last_rows: Vec<u32> = shape.starts.iter().zip(&shape.lengths).map(|(start, length)| start + length - 1).collect();
        Ok(Self {
            rows: shape.rows,
            max_length: shape.max_length,
            ids: upload_u32(session, &sequences.concat())?,
            positions: upload_u32(session, &shape.positions)?,
            starts: upload_u32(session, &shape.starts)?,
            lengths: upload_u32(session, &shape.lengths)?,
            sequence_of: upload_u32(session, &sequence_of)?,
            last_rows: upload_u32(session, &last_rows)?,
        })
    }
}

impl DecoderBatch {
    /// Says where each sequence stands: its next token's position is `lengths[i]`, after as many tokens in the cache.
    ///
    /// # Errors
    /// What the device says.
    pub fn stand_at(&self, session: &Session, lengths: &[u32]) -> Result<(), BuildError> {
        let device = session.device();
        let including: Vec<u32> = lengths.iter().map(|length| length + 1).collect();
        device.upload(session.stream(), self.positions.ptr(), &bytes_of_u32(lengths))?;
        device.upload(session.stream(), self.lengths.ptr(), &bytes_of_u32(&including))?;
        Ok(())
    }

    /// How the next tokens are drawn, one entry a sequence.
    ///
    /// # Errors
    /// What the device says.
    pub fn draw_by(&self, session: &Session, params: &[SampleParams]) -> Result<(), BuildError> {
        let bytes: Vec<u8> = params.iter().flat_map(sample_bytes).collect();
        Ok(session.device().upload(session.stream(), self.params.ptr(), &bytes)?)
    }

    /// The tokens drawn last, waited for.
    ///
    /// # Errors
    /// What the device says.
    pub fn tokens(&self, session: &Session) -> Result<Vec<u32>, BuildError> {
        let mut bytes = vec![0; self.sequences as usize * 4];
        session.device().download(session.stream(), self.tokens.ptr(), &mut bytes)?;
        Ok(bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect())
    }

    /// The logits of the last launch, `[rows, vocabulary]` fp32.
    pub fn logits(&self) -> DevicePtr {
        self.logits.ptr()
    }

    fn cache(&self, cache: &Cache) -> KvCache {
        KvCache {
            keys: cache.keys.ptr(),
            values: cache.values.ptr(),
            page_table: self.page_table.ptr(),
            pages_per_sequence: self.pages_per_sequence,
        }
    }

    /// Tokens there is room for in a prefill.
    pub fn max_rows(&self) -> u32 {
        self.max_rows
    }
}

/// A `SampleParams` as the device reads it.
fn sample_bytes(params: &SampleParams) -> Vec<u8> {
    [params.temperature.to_le_bytes(), params.top_p.to_le_bytes(), params.top_k.to_le_bytes(), params.draw.to_le_bytes()].concat()
}
