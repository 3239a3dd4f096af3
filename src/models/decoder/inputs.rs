//! A planned step as arrays for the kernels.
//!
//! Rows of a step: one for each of the first slots, decoding or not, then the tokens of the prefills, one after another. A slot that has nothing to decode
//! still has its row, so that row and slot are the same number in every kernel; it computes a token of no sequence at position 0, sees no key, and writes to
//! a page that nobody reads.

use smidgen_runtime::device::DevicePtr;

use crate::generate::Sampling;
use crate::kernels::sampling::SampleParams;
use crate::models::tensors::bytes_of_u32;
use crate::serve::batching::StepPlan;

use super::batch::sample_bytes;

/// Fields of [`RowInputs`] begin on 16 bytes.
const FIELD_WORDS: usize = 4;

/// What the kernels read by slot. Every step uploads it, all in one piece, in the order of the fields.
#[derive(Debug)]
pub(super) struct SlotInputs {
    /// Position of the token that the slot computes.
    pub(super) positions: Vec<u32>,
    /// Row of the page table: the slot's own, or the spare one after the last slot's.
    pub(super) table_rows: Vec<u32>,
    /// Tokens in the cache, the present one included; 0 where there is none.
    pub(super) lengths: Vec<u32>,
    /// How the next token is drawn.
    pub(super) params: Vec<SampleParams>,
}

/// What the kernels read in a step with prefills, besides [`SlotInputs`]. It is uploaded in one piece, too.
#[derive(Debug)]
pub(super) struct RowInputs {
    /// The prefills' tokens.
    pub(super) ids: Vec<u32>,
    /// By row: its position.
    pub(super) positions: Vec<u32>,
    /// By row: its row of the page table.
    pub(super) table_rows: Vec<u32>,
    /// By slot: the row from which its next token is drawn; any, where none is.
    pub(super) last_rows: Vec<u32>,
    /// By prefill: its first row.
    pub(super) starts: Vec<u32>,
    /// By prefill: its rows.
    pub(super) lengths: Vec<u32>,
    /// By prefill: tokens of its sequence in the cache, its own included.
    pub(super) contexts: Vec<u32>,
    /// By prefill: its slot.
    pub(super) slots: Vec<u32>,
}

/// Where the fields of [`RowInputs`] begin on the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowPtrs {
    pub(super) ids: DevicePtr,
    pub(super) positions: DevicePtr,
    pub(super) table_rows: DevicePtr,
    pub(super) last_rows: DevicePtr,
    pub(super) starts: DevicePtr,
    pub(super) lengths: DevicePtr,
    pub(super) contexts: DevicePtr,
    pub(super) slots: DevicePtr,
}

impl SlotInputs {
    pub(super) fn new(step: &StepPlan, slots: u32) -> Self {
        let count = slots as usize;
        let greedy = SampleParams { temperature: 0.0, top_p: 1.0, top_k: 0, draw: 0.0 };
        let mut inputs =
            Self { positions: vec![0; count], table_rows: vec![slots; count], lengths: vec![0; count], params: vec![greedy; count] };
        for decode in &step.decodes {
            let slot = decode.slot as usize;
            inputs.positions[slot] = decode.position as u32;
            inputs.table_rows[slot] = decode.slot;
            inputs.lengths[slot] = decode.position as u32 + 1;
        }
        for (slot, draw) in step.draws() {
            inputs.params[slot as usize] = sample_params(&draw.sampling, draw.uniform);
        }
        inputs
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = bytes_of_u32(&[&self.positions[..], &self.table_rows, &self.lengths].concat());
        bytes.extend(self.params.iter().flat_map(sample_bytes));
        bytes
    }
}

impl RowInputs {
    /// The rows of a step with `slot_rows` rows for slots, which are those of `slots`.
    pub(super) fn new(step: &StepPlan, slots: &SlotInputs, slot_rows: u32) -> Self {
        let count = slot_rows as usize;
        let mut inputs = Self {
            ids: Vec::new(),
            positions: slots.positions[..count].to_vec(),
            table_rows: slots.table_rows[..count].to_vec(),
            last_rows: (0..slots.positions.len() as u32).collect(),
            starts: Vec::new(),
            lengths: Vec::new(),
            contexts: Vec::new(),
            slots: Vec::new(),
        };
        for prefill in &step.prefills {
            inputs.starts.push(inputs.positions.len() as u32);
            inputs.lengths.push(prefill.tokens.len() as u32);
            inputs.contexts.push((prefill.start + prefill.tokens.len()) as u32);
            inputs.slots.push(prefill.slot);
            inputs.ids.extend(&prefill.tokens);
            inputs.positions.extend((prefill.start as u32..).take(prefill.tokens.len()));
            inputs.table_rows.extend(prefill.tokens.iter().map(|_| prefill.slot));
            inputs.last_rows[prefill.slot as usize] = inputs.positions.len() as u32 - 1;
        }
        inputs
    }

    /// Words that the inputs of `slots` slots and `step_tokens` tokens take at most.
    pub(super) fn max_words(slots: u32, step_tokens: u32) -> u64 {
        let [slots, step_tokens] = [slots, step_tokens].map(u64::from);
        step_tokens + 2 * (slots + step_tokens) + 5 * slots + 8 * (FIELD_WORDS as u64 - 1)
    }

    /// All fields in one piece, to be uploaded to `base`, and where each begins there.
    pub(super) fn packed(&self, base: DevicePtr) -> (Vec<u32>, RowPtrs) {
        let mut words = Vec::new();
        let mut field = |values: &[u32]| {
            let at = base.offset(4 * words.len() as u64);
            words.extend(values);
            words.resize(words.len().next_multiple_of(FIELD_WORDS), 0);
            at
        };
        let ptrs = RowPtrs {
            ids: field(&self.ids),
            positions: field(&self.positions),
            table_rows: field(&self.table_rows),
            last_rows: field(&self.last_rows),
            starts: field(&self.starts),
            lengths: field(&self.lengths),
            contexts: field(&self.contexts),
            slots: field(&self.slots),
        };
        (words, ptrs)
    }
}

/// A draw as the sampling kernel reads it.
pub(in crate::models) fn sample_params(sampling: &Sampling, uniform: f32) -> SampleParams {
    // A top-k beyond 2^32 keeps everything, which 0 stands for.
    let top_k = sampling.top_k.map_or(0, |top_k| u32::try_from(top_k.get()).unwrap_or(0));
    SampleParams { temperature: sampling.temperature, top_p: sampling.top_p, top_k, draw: uniform }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::batching::{Decode, Draw, Prefill};

    #[test]
    fn idle_slots_see_no_key_and_write_to_the_spare_row() {
        let draw = Draw { sampling: Sampling { temperature: 0.5, ..Sampling::GREEDY }, uniform: 0.25 };
        let step = StepPlan {
            decodes: vec![Decode { slot: 2, position: 9, draw }],
            prefills: vec![
                Prefill { slot: 0, start: 4, tokens: vec![11, 12, 13], draw: Some(draw) },
                Prefill { slot: 3, start: 0, tokens: vec![14], draw: None },
            ],
            ..StepPlan::default()
        };
        let slots = SlotInputs::new(&step, 5);
        assert_eq!(
            (&slots.positions[..], &slots.table_rows[..], &slots.lengths[..]),
            (&[0, 0, 9, 0, 0][..], &[5, 5, 2, 5, 5][..], &[0, 0, 10, 0, 0][..])
        );
        assert_eq!(slots.params.iter().map(|params| params.draw).collect::<Vec<_>>(), [0.25, 0.0, 0.25, 0.0, 0.0]);
        assert_eq!(slots.bytes().len(), 5 * (3 * 4 + 16));

        let rows = RowInputs::new(&step, &slots, 4);
        assert_eq!(rows.ids, [11, 12, 13, 14]);
        assert_eq!(rows.positions, [0, 0, 9, 0, 4, 5, 6, 0]);
        assert_eq!(rows.table_rows, [5, 5, 2, 5, 0, 0, 0, 3]);
        assert_eq!(rows.last_rows, [6, 1, 2, 7, 4], "a slot that decodes draws from its own row");
        let chunks = (&rows.starts[..], &rows.lengths[..], &rows.contexts[..], &rows.slots[..]);
        assert_eq!(chunks, (&[4, 7][..], &[3, 1][..], &[7, 1][..], &[0, 3][..]));
        let (words, ptrs) = rows.packed(DevicePtr(4096));
        assert_eq!(words[(ptrs.contexts.0 - 4096) as usize / 4..][..2], [7, 1]);
        assert!(words.len() as u64 <= RowInputs::max_words(5, 4));
    }
}
