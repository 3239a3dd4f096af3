//! Continuous batching on the CPU: keys and values in the scheduler's pages, all rows of a step in one pass.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::batch::{self, InputError};
use crate::generate::warn_of_no_number;
use crate::serve::batching::{Draw, Executor, Limits, NewPages, StepPlan};

use super::decoder::{Cache, Decoder, LayerCache};
use super::matrix::Matrix;
use super::sample;

/// The slots of one [`Scheduler`](crate::serve::batching::Scheduler), on the CPU. Steps are computed as they are issued.
///
/// A step gathers the pages of each of its sequences into one piece, computes as [`Decoder`] does for a sequence that has one, and scatters the new rows.
#[derive(Debug)]
pub struct PagedBatch<'m> {
    model: &'m Decoder,
    limits: Limits,
    page_tokens: usize,
    /// By layer: keys and values, `[pages, page_tokens, kv_heads * head_dim]`.
    layers: Vec<LayerCache>,
    /// By slot: the pages of its sequence.
    tables: Vec<Vec<u32>>,
    /// By slot: the token drawn last.
    drawn: Vec<u32>,
    /// Of steps not collected.
    results: VecDeque<Vec<u32>>,
    opened: Instant,
}

impl Decoder {
    /// Slots and pages as `limits` says, empty.
    pub fn paged_batch(&self, limits: Limits) -> PagedBatch<'_> {
        let elements = limits.pages as usize * limits.page_tokens as usize * self.kv_width();
        let layer = || LayerCache { keys: vec![0.0; elements], values: vec![0.0; elements] };
        let slots = limits.slots as usize;
        PagedBatch {
            model: self,
            limits,
            page_tokens: limits.page_tokens as usize,
            layers: (0..self.layer_count()).map(|_| layer()).collect(),
            tables: vec![Vec::new(); slots],
            drawn: vec![0; slots],
            results: VecDeque::new(),
            opened: Instant::now(),
        }
    }
}

impl PagedBatch<'_> {
    /// Where the elements of a slot's token at `position` lie in the pages of a layer.
    fn elements(&self, slot: u32, position: usize) -> Range<usize> {
        let width = self.model.kv_width();
        let page = self.tables[slot as usize][position / self.page_tokens] as usize;
        let row = page * self.page_tokens + position % self.page_tokens;
        row * width..(row + 1) * width
    }

    /// The first `tokens` tokens of a slot in one piece.
    fn gather(&self, slot: u32, tokens: usize) -> Cache {
        let piece = |pages: &[f32]| (0..tokens).flat_map(|position| &pages[self.elements(slot, position)]).copied().collect();
        let layer = |layer: &LayerCache| LayerCache { keys: piece(&layer.keys), values: piece(&layer.values) };
        Cache { tokens, layers: self.layers.iter().map(layer).collect() }
    }

    /// Puts the tokens of `cache` from `start` on into the slot's pages.
    fn scatter(&mut self, slot: u32, start: usize, cache: &Cache) {
        let width = self.model.kv_width();
        for position in start..cache.tokens {
            let (to, from) = (self.elements(slot, position), position * width..(position + 1) * width);
            for (layer, cache) in self.layers.iter_mut().zip(&cache.layers) {
                layer.keys[to.clone()].copy_from_slice(&cache.keys[from.clone()]);
                layer.values[to.clone()].copy_from_slice(&cache.values[from.clone()]);
            }
        }
    }
}

impl Executor for PagedBatch<'_> {
    type Error = InputError;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn issue(&mut self, step: &StepPlan) -> Result<(), InputError> {
        for NewPages { slot, first, pages } in &step.new_pages {
            let table = &mut self.tables[*slot as usize];
            table.truncate(*first);
            table.extend(pages);
        }
        let decodes = step.decodes.iter().map(|decode| (decode.slot, decode.position, &self.drawn[decode.slot as usize..][..1]));
        let chunks: Vec<(u32, usize, &[u32])> =
            decodes.chain(step.prefills.iter().map(|prefill| (prefill.slot, prefill.start, &prefill.tokens[..]))).collect();
        for (index, (_, start, tokens)) in chunks.iter().enumerate() {
            batch::check_sequence(index, tokens, *start, self.model.config())?;
        }
        let mut caches: Vec<Cache> = chunks.iter().map(|&(slot, start, _)| self.gather(slot, start)).collect();
        let sequences: Vec<&[u32]> = chunks.iter().map(|&(_, _, tokens)| tokens).collect();
        let hidden = self.model.hidden(&sequences, &mut caches);

        // Decodes draw always, prefills where their plan says so; the row that draws is a chunk's last.
        let draws = step.decodes.iter().map(|decode| Some(decode.draw)).chain(step.prefills.iter().map(|prefill| prefill.draw));
        let mut end = 0;
        let mut last_rows = Vec::new();
        for (tokens, draw) in sequences.iter().zip(draws) {
            end += tokens.len();
            last_rows.extend(draw.map(|_| hidden.row(end - 1)));
        }
        let logits = self.model.logits(&Matrix::new(hidden.width(), last_rows.concat()));
        let starts: Vec<(u32, usize)> = chunks.iter().map(|&(slot, start, _)| (slot, start)).collect();
        for ((slot, start), cache) in starts.into_iter().zip(&caches) {
            self.scatter(slot, start, cache);
        }
        let draw = |(row, (slot, draw)): (usize, (u32, Draw))| {
            warn_of_no_number(logits.row(row));
            let token = sample(logits.row(row), &draw.sampling, draw.uniform);
            self.drawn[slot as usize] = token;
            token
        };
        let tokens = step.draws().enumerate().map(draw).collect();
        self.results.push_back(tokens);
        Ok(())
    }

    fn is_done(&mut self) -> Result<bool, InputError> {
        Ok(true)
    }

    fn collect(&mut self) -> Result<Vec<u32>, InputError> {
        Ok(self.results.pop_front().unwrap_or_default())
    }

    fn now(&self) -> Duration {
        self.opened.elapsed()
    }
}
