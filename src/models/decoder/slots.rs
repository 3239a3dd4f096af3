//! Continuous batching on the device: the slots of one scheduler, the pages they share, and the launches of each step.
//!
//! A step without prefills is a captured graph, one for each power of two of slots (and for each of the two token buffers, see below): it covers every
//! slot up to the highest in use. A step with prefills is launched kernel by kernel, since no two are alike.
//!
//! **What the host waits for.** Steps need nothing from the host but which slot stands where, which it knows without the tokens: each step embeds the
//! tokens that the one before it drew, in device memory. So the host issues step `k + 1` before it reads what step `k` drew. Drawn tokens alternate between
//! two buffers, so that step `k + 1` does not write over what is being read, and they are read on a stream of their own, which waits for step `k` alone.

use std::collections::VecDeque;
use std::time::Duration;

use smidgen_runtime::device::{Buffer, DevicePtr, Event, PartitionId, Priority, Stream};
use smidgen_runtime::launch::{LaunchError, Session, WorkId};

use super::batch::{DecoderBatch, Room};
use super::inputs::{RowInputs, RowPtrs, SlotInputs};
use super::{Decoder, KeysFrom, Layer, RowPlaces, Rows};
use crate::kernels::attention::{AttentionChunk, AttentionDecode, KvCache, PAGE_TOKENS};
use crate::kernels::sampling::Sample;
use crate::models::BuildError;
use crate::models::tensors::{bytes_of_u32, upload, upload_u32};
use crate::serve::batching::{Executor, Limits, NewPages, StepPlan};

/// Buffers of drawn tokens, and so steps that are issued and not read.
const TOKEN_BUFFERS: usize = 2;

/// Slots, tokens and pages that can be counted in sums of 32 bits.
const MOST: u32 = 1 << 30;

/// A decoder whose slots are filled by a [`Scheduler`](crate::serve::batching::Scheduler) with the same limits.
pub struct SlotBatch {
    /// First, so that it is dropped first: it waits for the launches that use all the rest.
    session: Session,
    decoder: Decoder,
    /// With a spare row of the page table after those of the slots, and a spare page after those of the scheduler.
    batch: DecoderBatch,
    limits: Limits,
    /// [`SlotInputs`], field after field.
    slot_inputs: Buffer,
    /// [`RowInputs`].
    row_inputs: Buffer,
    /// By slot, the token drawn last: by even steps in the second buffer, by odd ones in the first.
    tokens: [Buffer; TOKEN_BUFFERS],
    drawn: [Event; TOKEN_BUFFERS],
    /// Where drawn tokens are read, so that no step waits for it.
    reading: Stream,
    /// The page table as the device has it.
    tables: Vec<u32>,
    /// For each power of two of slots and each token buffer, whether the step has run since its last capture, so that what another capture of it
    /// needs is loaded.
    loaded: Vec<[bool; TOKEN_BUFFERS]>,
    issued: usize,
    /// For each step not read, the slots whose tokens are wanted.
    in_flight: VecDeque<Vec<u32>>,
    /// Tokens of steps that were read early.
    read: VecDeque<Vec<u32>>,
}

impl SlotBatch {
    /// Makes room for `limits`, whose pages must be of [`PAGE_TOKENS`] tokens.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(decoder: Decoder, session: Session, limits: Limits) -> Result<Self, BuildError> {
        if limits.page_tokens != PAGE_TOKENS {
            return Err(BuildError::Unsupported("the cache's pages have 64 tokens on the GPU"));
        }
        if [limits.slots, limits.step_tokens, limits.pages].iter().any(|&limit| limit > MOST) {
            return Err(BuildError::Unsupported("more than 2^30 slots, tokens in a step or pages"));
        }
        let device = session.device();
        let Limits { slots, step_tokens, pages, .. } = limits;
        let room = Self::room(limits);
        let spare_page = pages;
        let tables = vec![spare_page; (slots as usize + 1) * room.pages_per_sequence as usize];
        let batch = decoder.batch_with(&session, room, upload_u32(&session, &tables)?)?;
        let words = |count: u32| upload_u32(&session, &vec![0; count as usize]);
        let event = || Event::new(device);
        let sizes = slots.next_power_of_two().trailing_zeros() + 1;
        Ok(Self {
            slot_inputs: upload(&session, &SlotInputs::new(&StepPlan::default(), slots).bytes())?,
            row_inputs: Buffer::new(device, 4 * RowInputs::max_words(slots, step_tokens))?,
            tokens: [words(slots)?, words(slots)?],
            drawn: [event()?, event()?],
            reading: Stream::new(device, PartitionId::WHOLE, Priority::Normal)?,
            tables,
            loaded: vec![[false; TOKEN_BUFFERS]; sizes as usize],
            issued: 0,
            in_flight: VecDeque::new(),
            read: VecDeque::new(),
            session,
            decoder,
            batch,
            limits,
        })
    }

    /// Runs and captures every decode step there can be, so that no request waits for it. Without it that happens as they are first needed.
    ///
    /// # Errors
    /// What a launch says.
    pub fn prepare(&mut self) -> Result<(), BuildError> {
        for size in 0..self.loaded.len() {
            let rows = (1 << size).min(self.limits.slots);
            for buffer in 0..TOKEN_BUFFERS {
                // Once so that everything is loaded, and once to capture it. All slots are idle.
                self.launch_decode(rows, buffer)?;
                self.launch_decode(rows, buffer)?;
            }
        }
        Ok(self.session.device().synchronize(self.session.stream())?)
    }

    /// Launches one decode step over all slots, idle as they are, and waits for it: the session has met its kernels then.
    ///
    /// # Errors
    /// What a launch says.
    pub fn run_idle_step(&mut self) -> Result<(), BuildError> {
        self.launch_decode(self.limits.slots, self.issued % TOKEN_BUFFERS)?;
        Ok(self.session.device().synchronize(self.session.stream())?)
    }

    /// The session whose launches these are.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// What its batch has room for.
    pub(super) fn room(limits: Limits) -> Room {
        let Limits { slots, step_tokens, pages, .. } = limits;
        let (rows, pages_per_sequence) = (slots.saturating_add(step_tokens), Self::pages_per_sequence(limits));
        // One page is nobody's.
        Room { sequences: slots, pages: pages.saturating_add(1), pages_per_sequence, rows, logit_rows: slots }
    }

    pub(super) fn pages_per_sequence(limits: Limits) -> u32 {
        let longest = u32::try_from(limits.max_sequence).unwrap_or(u32::MAX);
        KvCache::pages_for(longest).min(limits.pages).max(1)
    }

    fn give_pages(&mut self, new_pages: &[NewPages]) -> Result<(), BuildError> {
        let width = Self::pages_per_sequence(self.limits) as usize;
        for NewPages { slot, first, pages } in new_pages {
            let at = *slot as usize * width + first;
            self.tables[at..at + pages.len()].copy_from_slice(pages);
            self.upload(self.batch.page_table.ptr().offset(4 * at as u64), pages)?;
        }
        Ok(())
    }

    fn upload(&self, target: DevicePtr, words: &[u32]) -> Result<(), BuildError> {
        Ok(self.session.device().upload(self.session.stream(), target, &bytes_of_u32(words))?)
    }

    /// Launches a step that only decodes, over the first `rows` slots: kernel by kernel the first time under a plan, since what it needs may not be
    /// loaded, then by capturing it, and from then on by replaying it, also when an earlier plan has come back, unless the runtime
    /// wants its kernels timed.
    fn launch_decode(&mut self, rows: u32, buffer: usize) -> Result<(), BuildError> {
        let size = rows.next_power_of_two().trailing_zeros() as usize;
        let work = WorkId((size * TOKEN_BUFFERS + buffer) as u64);
        let Self { session, decoder, batch, slot_inputs, tokens, limits, loaded, .. } = self;
        let step = SlotStep { rows, slots: limits.slots, inputs: slot_inputs, from: &tokens[buffer], to: &tokens[1 - buffer] };
        if session.replay_kept_or_launch(work, |session| decoder.decode_slots(session, batch, &step))? {
            return Ok(());
        }
        let was_loaded = std::mem::replace(&mut loaded[size][buffer], false);
        if was_loaded {
            session.replay_or_capture(work, |session| decoder.decode_slots(session, batch, &step))?;
        } else {
            decoder.decode_slots(session, batch, &step)?;
            loaded[size][buffer] = true;
        }
        Ok(())
    }

    /// Launches a step with prefills, over the first `rows` slots.
    fn launch_mixed(&mut self, plan: &StepPlan, slots: &SlotInputs, rows: u32, buffer: usize) -> Result<(), BuildError> {
        let decode_rows = if plan.decodes.is_empty() { 0 } else { rows };
        let inputs = RowInputs::new(plan, slots, decode_rows);
        let (words, ptrs) = inputs.packed(self.row_inputs.ptr());
        self.upload(self.row_inputs.ptr(), &words)?;
        let mixed = MixedRows {
            decode_rows,
            prefill_rows: inputs.ids.len() as u32,
            chunks: inputs.starts.len() as u32,
            longest: inputs.lengths.iter().copied().max().unwrap_or(0),
            context: inputs.contexts.iter().copied().max().unwrap_or(0),
            draws: plan.draws().next().is_some(),
            ptrs,
        };
        let Self { session, decoder, batch, slot_inputs, tokens, limits, .. } = self;
        let step = SlotStep { rows, slots: limits.slots, inputs: slot_inputs, from: &tokens[buffer], to: &tokens[1 - buffer] };
        Ok(decoder.mixed_step(session, batch, &step, &mixed)?)
    }

    /// The tokens of the oldest step that was not read, waited for.
    fn read_oldest(&mut self) -> Result<Vec<u32>, BuildError> {
        let Some(slots) = self.in_flight.pop_front() else { return Ok(Vec::new()) };
        // The buffers alternate, and the newest step wrote to the one after its own.
        let buffer = (self.issued - self.in_flight.len()) % TOKEN_BUFFERS;
        let device = self.session.device();
        device.wait(self.reading.id(), self.drawn[buffer].id())?;
        let mut bytes = vec![0; 4 * self.limits.slots as usize];
        device.download(self.reading.id(), self.tokens[buffer].ptr(), &mut bytes)?;
        let words = bytes.as_chunks().0;
        Ok(slots.into_iter().filter_map(|slot| words.get(slot as usize)).map(|&word| u32::from_le_bytes(word)).collect())
    }
}

impl Executor for SlotBatch {
    type Error = BuildError;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn issue(&mut self, plan: &StepPlan) -> Result<(), BuildError> {
        if self.in_flight.len() == TOKEN_BUFFERS {
            let tokens = self.read_oldest()?;
            self.read.push_back(tokens);
        }
        self.give_pages(&plan.new_pages)?;
        let slots = SlotInputs::new(plan, self.limits.slots);
        self.session.device().upload(self.session.stream(), self.slot_inputs.ptr(), &slots.bytes())?;
        let used = plan.decodes.iter().map(|decode| decode.slot).chain(plan.prefills.iter().map(|prefill| prefill.slot));
        let rows = used.max().map_or(1, |slot| slot + 1).next_power_of_two().min(self.limits.slots);
        let buffer = self.issued % TOKEN_BUFFERS;
        if plan.prefills.is_empty() { self.launch_decode(rows, buffer) } else { self.launch_mixed(plan, &slots, rows, buffer) }?;
        self.issued += 1;
        let device = self.session.device();
        device.record(self.drawn[self.issued % TOKEN_BUFFERS].id(), self.session.stream())?;
        self.in_flight.push_back(plan.draws().map(|(slot, _)| slot).collect());
        Ok(())
    }

    fn is_done(&mut self) -> Result<bool, BuildError> {
        if !self.read.is_empty() || self.in_flight.is_empty() {
            return Ok(true);
        }
        let buffer = (self.issued + 1 - self.in_flight.len()) % TOKEN_BUFFERS;
        Ok(self.session.device().query(self.drawn[buffer].id())?)
    }

    fn collect(&mut self) -> Result<Vec<u32>, BuildError> {
        match self.read.pop_front() {
            Some(tokens) => Ok(tokens),
            None => self.read_oldest(),
        }
    }

    fn begin_request(&mut self) -> Result<(), BuildError> {
        Ok(self.session.begin_request()?)
    }

    fn grow(&mut self) -> Result<(), BuildError> {
        self.session.grow()?;
        Ok(())
    }

    fn end_request(&mut self) -> Result<(), BuildError> {
        Ok(self.session.end_request()?)
    }

    fn now(&self) -> Duration {
        self.session.device().now()
    }
}

/// A step over the first `rows` slots.
struct SlotStep<'a> {
    rows: u32,
    /// All slots, which is what the inputs' fields are long.
    slots: u32,
    inputs: &'a Buffer,
    /// The tokens drawn by the step before.
    from: &'a Buffer,
    /// The tokens that this step draws.
    to: &'a Buffer,
}

/// The rows of a step with prefills: of slots first, then of prefills.
struct MixedRows {
    decode_rows: u32,
    prefill_rows: u32,
    /// Prefills.
    chunks: u32,
    /// Rows of the longest of them.
    longest: u32,
    /// Tokens in the cache of the one with most.
    context: u32,
    /// Whether any slot draws a token.
    draws: bool,
    ptrs: RowPtrs,
}

impl SlotStep<'_> {
    /// A field of [`SlotInputs`], after `words` words of each slot.
    fn input(&self, words: u32) -> DevicePtr {
        self.inputs.ptr().offset(4 * u64::from(words) * u64::from(self.slots))
    }

    fn positions(&self) -> DevicePtr {
        self.input(0)
    }

    fn table_rows(&self) -> DevicePtr {
        self.input(1)
    }

    fn lengths(&self) -> DevicePtr {
        self.input(2)
    }

    fn params(&self) -> DevicePtr {
        self.input(3)
    }
}

impl Decoder {
    /// Every slot's token goes into its pages, and the next one is drawn.
    fn decode_slots(&self, session: &mut Session, batch: &DecoderBatch, step: &SlotStep<'_>) -> Result<(), LaunchError> {
        let rows = step.rows;
        session.launch(&self.embed(session, batch, rows, 0..rows, step.from.ptr(), step.positions()))?;
        for (at, (layer, cache)) in self.layers.iter().zip(&batch.caches).enumerate() {
            let places = RowPlaces { rows, positions: step.positions(), sequence_of: step.table_rows() };
            self.project_and_rotate(session, at, batch, &places, KeysFrom::Cache)?;
            session.launch(&self.attend_slots(layer, batch, batch.cache(cache), rows, step.lengths()))?;
            self.finish_layer(session, layer, batch, rows)?;
        }
        self.logits(session, batch, rows, Rows::First)?;
        session.launch(&self.draw_slots(batch, step))
    }

    /// [`decode_slots`](Self::decode_slots), and the tokens of prefills beside them.
    fn mixed_step(&self, session: &mut Session, batch: &DecoderBatch, step: &SlotStep<'_>, mixed: &MixedRows) -> Result<(), LaunchError> {
        let MixedRows { decode_rows, prefill_rows, draws, ptrs, .. } = mixed;
        let rows = decode_rows + prefill_rows;
        if *decode_rows > 0 {
            session.launch(&self.embed(session, batch, rows, 0..*decode_rows, step.from.ptr(), step.positions()))?;
        }
        let positions = ptrs.positions.offset(4 * u64::from(*decode_rows));
        session.launch(&self.embed(session, batch, rows, *decode_rows..rows, ptrs.ids, positions))?;
        for (at, (layer, cache)) in self.layers.iter().zip(&batch.caches).enumerate() {
            let places = RowPlaces { rows, positions: ptrs.positions, sequence_of: ptrs.table_rows };
            self.project_and_rotate(session, at, batch, &places, KeysFrom::Cache)?;
            if *decode_rows > 0 {
                session.launch(&self.attend_slots(layer, batch, batch.cache(cache), *decode_rows, step.lengths()))?;
            }
            session.launch(&self.attend_prefills(layer, batch, batch.cache(cache), mixed))?;
            self.finish_layer(session, layer, batch, rows)?;
        }
        if !draws {
            return Ok(());
        }
        self.logits(session, batch, step.rows, Rows::Picked(ptrs.last_rows))?;
        session.launch(&self.draw_slots(batch, step))
    }

    /// Attention of the first `rows` slots' tokens.
    fn attend_slots(&self, layer: &Layer, batch: &DecoderBatch, cache: KvCache, rows: u32, lengths: DevicePtr) -> AttentionDecode {
        AttentionDecode {
            heads: self.heads(),
            sequences: rows,
            context: batch.context,
            window: layer.window,
            scale: layer.scale,
            qkv: batch.qkv.ptr(),
            qkv_stride: self.heads().qkv_width(),
            cache,
            output: batch.attention.ptr(),
            output_stride: self.heads().output_width(),
            lengths,
            workspace: batch.workspace.ptr(),
        }
    }

    /// Attention of the prefills' tokens.
    fn attend_prefills(&self, layer: &Layer, batch: &DecoderBatch, cache: KvCache, mixed: &MixedRows) -> AttentionChunk {
        let MixedRows { ptrs, .. } = mixed;
        AttentionChunk {
            heads: self.heads(),
            chunks: mixed.chunks,
            max_length: mixed.longest,
            tokens: mixed.prefill_rows,
            rows: mixed.decode_rows + mixed.prefill_rows,
            context: mixed.context,
            window: layer.window,
            scale: layer.scale,
            qkv: batch.qkv.ptr(),
            qkv_stride: self.heads().qkv_width(),
            cache,
            output: batch.attention.ptr(),
            output_stride: self.heads().output_width(),
            starts: ptrs.starts,
            lengths: ptrs.lengths,
            contexts: ptrs.contexts,
            sequence_of: ptrs.slots,
        }
    }

    fn draw_slots(&self, batch: &DecoderBatch, step: &SlotStep<'_>) -> Sample {
        Sample {
            rows: step.rows,
            vocabulary: self.config.vocab as u32,
            logits: batch.logits.ptr(),
            params: step.params(),
            tokens: step.to.ptr(),
            positions: DevicePtr::NULL,
            lengths: DevicePtr::NULL,
            arrivals: batch.arrivals.ptr(),
            scratch: batch.scratch.ptr(),
        }
    }
}
