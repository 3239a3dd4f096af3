//! What a decoder computes on: the sequences of one batch with their key-value caches, and the prompts of one prefill.

use smidgen_runtime::device::{Buffer, DevicePtr};
use smidgen_runtime::launch::Session;

use super::{Decoder, SlotBatch};
use crate::config::DecoderConfig;
use crate::kernels::attention::{AttentionDecode, Heads, KvCache, PAGE_TOKENS};
use crate::kernels::sampling::{Sample, SampleParams};
use crate::models::BuildError;
use crate::models::encoder::RaggedShape;
use crate::models::tensors::{bytes_of_u32, upload, upload_u32};
use crate::serve::batching::Limits;

/// The sequences of one batch: their caches, the tokens that come next, and room for what the layers pass on.
pub struct DecoderBatch {
    pub(super) sequences: u32,
    /// Pages that each sequence's cache has.
    pub(super) pages_per_sequence: u32,
    /// Tokens that the caches will typically hold: what a step's kernel key counts.
    pub(super) context: u32,
    /// Rows there is room for in a prefill.
    pub(super) max_rows: u32,
    /// Rows there is room for the logits of.
    pub(super) logit_rows: u32,
    pub(super) caches: Vec<Cache>,
    /// `[sequences, pages_per_sequence]` u32, the same for all layers: every sequence has pages of its own, in order.
    pub(super) page_table: Buffer,
    /// What decode attention counts and sums in.
    pub(super) workspace: Buffer,
    /// The token that each sequence's next step takes, `[sequences]` u32.
    pub(super) tokens: Buffer,
    /// Its position.
    pub(super) positions: Buffer,
    /// Cache length including it.
    pub(super) lengths: Buffer,
    /// 0, 1, 2, ...: in a step, row and sequence are the same.
    pub(super) numbers: Buffer,
    pub(super) params: Buffer,
    pub(super) logits: Buffer,
    /// What sampling counts in, 0 between launches.
    pub(super) arrivals: Buffer,
    /// What sampling sums in.
    pub(super) scratch: Buffer,
    /// The residual stream, `[max_rows, hidden]`.
    pub(super) x: Buffer,
    /// `[max_rows, hidden]`.
    pub(super) normed: Buffer,
    /// `[max_rows, (heads + 2 kv_heads) * head_dim]`.
    pub(super) qkv: Buffer,
    /// `[max_rows, heads * head_dim]`.
    pub(super) attention: Buffer,
    /// `[max_rows, intermediate]`.
    pub(super) inner: Buffer,
}

pub(super) struct Cache {
    pub(super) keys: Buffer,
    pub(super) values: Buffer,
}

/// The prompts of one prefill on the device.
pub struct Prompts {
    pub(super) sequences: u32,
    pub(super) rows: u32,
    pub(super) max_length: u32,
    pub(super) ids: Buffer,
    pub(super) positions: Buffer,
    pub(super) starts: Buffer,
    pub(super) lengths: Buffer,
    pub(super) sequence_of: Buffer,
    pub(super) last_rows: Buffer,
}

/// What a batch has room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Sequences that take steps together.
    pub(super) sequences: u32,
    /// Pages of the cache.
    pub(super) pages: u32,
    /// Pages that one sequence has at most.
    pub(super) pages_per_sequence: u32,
    /// Tokens of one launch.
    pub(super) rows: u32,
    /// Rows of logits.
    pub(super) logit_rows: u32,
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
        let room = Room::new(sequences, capacity, max_rows, logits);
        let page_table = upload_u32(session, &(0..room.pages).collect::<Vec<_>>())?;
        self.batch_with(session, room, page_table)
    }

    /// Device memory of a [`batch`](Self::batch) made with the same arguments, bytes.
    pub(in crate::models) fn batch_bytes(config: &DecoderConfig, sequences: u32, capacity: u32, max_rows: u32, logits: LogitRows) -> u64 {
        let room = Room::new(sequences, capacity, max_rows, logits);
        room.bytes(config).saturating_add(4 * u64::from(room.pages))
    }

    /// Device memory of the weights and of a batch with `limits`, bytes.
    pub fn serving_memory_bytes(config: &DecoderConfig, limits: Limits) -> u64 {
        let room = SlotBatch::room(limits);
        let tables = 4 * (u64::from(room.sequences) + 1) * u64::from(room.pages_per_sequence);
        (Self::weight_bytes(config) + tables).saturating_add(room.bytes(config))
    }

    /// A batch whose sequences have the pages that `page_table` says.
    pub(super) fn batch_with(&self, session: &Session, room: Room, page_table: Buffer) -> Result<DecoderBatch, BuildError> {
        let Room { sequences, pages, pages_per_sequence, rows, logit_rows } = room;
        let config = &self.config;
        let device = session.device();
        let halves = |columns: usize| Buffer::new(device, u64::from(rows) * columns as u64 * 2);
        let zeroed = |bytes: u64| -> Result<Buffer, BuildError> {
            let buffer = Buffer::new(device, bytes)?;
            device.fill(session.stream(), buffer.ptr(), 0, bytes)?;
            Ok(buffer)
        };
        // Masked positions of a page count with weight 0, so what lies there before any token is written must be a number.
        let part = || zeroed(u64::from(pages) * KvCache::page_bytes(self.heads()));
        let cache = || -> Result<Cache, BuildError> { Ok(Cache { keys: part()?, values: part()? }) };
        let zeros = vec![0; sequences as usize];
        let greedy = SampleParams { temperature: 0.0, top_p: 1.0, top_k: 0, draw: 0.0 };
        Ok(DecoderBatch {
            sequences,
            pages_per_sequence,
            context: pages_per_sequence * PAGE_TOKENS,
            max_rows: rows,
            logit_rows,
            caches: (0..config.layers).map(|_| cache()).collect::<Result<_, _>>()?,
            page_table,
            workspace: zeroed(AttentionDecode::workspace_bytes(self.heads(), sequences, pages_per_sequence))?,
            tokens: upload_u32(session, &zeros)?,
            positions: upload_u32(session, &zeros)?,
            lengths: upload_u32(session, &zeros)?,
            numbers: upload_u32(session, &(0..sequences).collect::<Vec<_>>())?,
            params: upload(session, &vec![sample_bytes(&greedy); sequences as usize].concat())?,
            logits: Buffer::new(device, u64::from(logit_rows) * config.vocab as u64 * 4)?,
            arrivals: zeroed(4 * u64::from(sequences))?,
            scratch: Buffer::new(device, Sample::scratch_bytes(sequences, config.vocab as u32))?,
            x: halves(config.hidden)?,
            normed: halves(config.hidden)?,
            qkv: halves(config.query_width() + 2 * config.kv_width())?,
            attention: halves(config.query_width())?,
            inner: halves(config.intermediate)?,
        })
    }
}

impl Room {
    /// For `sequences` sequences of up to `capacity` tokens each, whose pages are their own, and launches of up to `max_rows` tokens.
    fn new(sequences: u32, capacity: u32, max_rows: u32, logits: LogitRows) -> Self {
        let rows = max_rows.max(sequences);
        let pages_per_sequence = KvCache::pages_for(capacity);
        let logit_rows = if logits == LogitRows::All { rows } else { sequences };
        Self { sequences, pages: sequences.saturating_mul(pages_per_sequence), pages_per_sequence, rows, logit_rows }
    }

    /// Device memory of a batch with it, bytes: what [`Decoder::batch_with`] allocates.
    fn bytes(self, config: &DecoderConfig) -> u64 {
        let heads = Heads { heads: config.heads as u32, kv_heads: config.kv_heads as u32, head_dim: config.head_dim as u32 };
        let cache = 2 * config.layers as u64 * u64::from(self.pages) * KvCache::page_bytes(heads);
        let columns = 2 * config.hidden + 2 * config.query_width() + 2 * config.kv_width() + config.intermediate;
        let logits = 4 * u64::from(self.logit_rows) * config.vocab as u64;
        let sampling = Sample::scratch_bytes(self.sequences, config.vocab as u32);
        // Token, position, length, number, arrivals and how to draw.
        let sequences = u64::from(self.sequences) * (5 * 4 + size_of::<SampleParams>() as u64);
        let workspace = AttentionDecode::workspace_bytes(heads, self.sequences, self.pages_per_sequence);
        let activations = 2 * u64::from(self.rows) * columns as u64;
        // Nobody could have as many as do not fit a number, which `workspace_bytes` says by the largest.
        [cache, activations, logits, sampling, sequences, workspace].into_iter().fold(0, u64::saturating_add)
    }
}

impl Prompts {
    /// Device memory of `sequences` prompts of `rows` tokens in all, bytes.
    pub(in crate::models) fn bytes(sequences: u32, rows: u32) -> u64 {
        // By row: id, position and sequence. By sequence: first row, length and last row.
        4 * 3 * (u64::from(rows) + u64::from(sequences))
    }

    /// Puts the prompts of a batch on the device, one a sequence; ids were checked against the vocabulary.
    ///
    /// # Errors
    /// [`BuildError::EmptyPrompt`]; what the device says.
    pub fn new(session: &Session, sequences: &[Vec<u32>]) -> Result<Self, BuildError> {
        if sequences.iter().any(Vec::is_empty) {
            return Err(BuildError::EmptyPrompt);
        }
        let shape = RaggedShape::of(sequences);
        let sequence_of: Vec<u32> =
            (0_u32..).zip(&shape.lengths).flat_map(|(sequence, &length)| (0..length).map(move |_| sequence)).collect();
        let last_rows: Vec<u32> = shape.starts.iter().zip(&shape.lengths).map(|(start, length)| start + length - 1).collect();
        Ok(Self {
            sequences: sequences.len() as u32,
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

    pub(super) fn cache(&self, cache: &Cache) -> KvCache {
        KvCache {
            keys: cache.keys.ptr(),
            values: cache.values.ptr(),
            page_table: self.page_table.ptr(),
            pages_per_sequence: self.pages_per_sequence,
        }
    }
}

/// A `SampleParams` as the device reads it.
pub(super) fn sample_bytes(params: &SampleParams) -> Vec<u8> {
    [params.temperature.to_le_bytes(), params.top_p.to_le_bytes(), params.top_k.to_le_bytes(), params.draw.to_le_bytes()].concat()
}
