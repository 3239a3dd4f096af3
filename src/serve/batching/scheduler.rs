//! Which tokens each step computes: requests join and leave between steps.
//!
//! The scheduler is pure bookkeeping: no device, no clock, no randomness of its own; equal calls give equal plans. A step is planned by
//! [`Scheduler::plan`], and its tokens are handed back by [`Scheduler::complete`]. Several steps may be planned ahead, since a plan says only *that* a
//! token is drawn, not which: the device keeps the last token of each slot for the next step.
//!
//! | a request is | has a slot | has pages | leaves by |
//! |---|---|---|---|
//! | waiting | no | no | admission, in the order of arrival, into the first free slot |
//! | prefilling | yes | for all tokens known at admission | the step with the last of them, which draws a token, or preemption |
//! | decoding | yes | for its tokens, growing | its last draw, or preemption |
//! | leaving | no | no | the arrival of the tokens on their way |
//!
//! One step has one row for every decoding request, then as many tokens of prefilling ones, oldest first, as the step's token budget leaves, then of newly
//! admitted ones. Long prompts are thus cut into chunks, and a decoding request waits for one budget of tokens at most, not for a whole prompt.
//!
//! **When pages run out** for a decoding request, the youngest request with a slot is preempted: it gives its pages back and waits again, first in the queue;
//! its prompt and the tokens drawn so far are computed anew when it is next admitted. Only younger requests are preempted for older ones, and
//! [`Scheduler::submit`] refuses what would not fit alone, so the oldest request always advances, and every request becomes the oldest.
//!
//! Sources: Yu et al., "Orca", 2022 (scheduling between iterations); Kwon et al., "PagedAttention", 2023, section 4.5 (preemption by recomputation);
//! Agrawal et al., "Sarathi-Serve", 2024 (chunked prefill).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::pages::{HeldPages, PagePool};
use super::request::{Output, Request, RequestId, SubmitError};
use crate::generate::{Sampling, Stop, Uniform};

/// What a scheduler may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests in one step, at most.
    pub slots: u32,
    /// Tokens in one step, at most; no fewer than slots.
    pub step_tokens: u32,
    /// Pages of key-value cache.
    pub pages: u32,
    /// Tokens that a page has room for.
    pub page_tokens: u32,
    /// Tokens in one sequence that the model computes, at most.
    pub max_sequence: usize,
}

/// Limits under which nothing can be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// One of them is zero.
    #[error("{0} is 0; it must be at least 1")]
    Zero(&'static str),
    /// A step has no room for one token of each slot.
    #[error("{step_tokens} tokens in a step are too few for {slots} requests at once; allow at least as many tokens as requests")]
    Budget {
        /// Tokens in a step.
        step_tokens: u32,
        /// Requests in a step.
        slots: u32,
    },
}

/// One step: what is computed, and which rows of it draw a token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepPlan {
    /// Pages that slots are given before the step.
    pub new_pages: Vec<NewPages>,
    /// Slots that compute the token they drew last, and draw the next.
    pub decodes: Vec<Decode>,
    /// Slots that compute tokens the host knows.
    pub prefills: Vec<Prefill>,
}

/// Pages for a slot's sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPages {
    /// The slot.
    pub slot: u32,
    /// Which page of the sequence the first of them is; 0 where the slot has a new sequence.
    pub first: usize,
    /// Their numbers.
    pub pages: Vec<u32>,
}

/// How one token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// From which distribution.
    pub sampling: Sampling,
    /// The random number, in `[0, 1)`.
    pub uniform: f32,
}

/// One row: the token drawn last in a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decode {
    /// The slot.
    pub slot: u32,
    /// The token's position, which is also how many tokens of the sequence the cache holds.
    pub position: usize,
    /// How the next token is drawn.
    pub draw: Draw,
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Prefill {
    /// The slot.
    pub slot: u32,
    /// Position of the first token, which is also how many tokens of the sequence the cache holds.
    pub start: usize,
    /// The tokens, at least one.
    pub tokens: Vec<u32>,
    /// How the next token is drawn, where these are the last that are known.
    pub draw: Option<Draw>,
}

impl StepPlan {
    /// Tokens computed.
    pub fn rows(&self) -> usize {
        self.decodes.len() + self.prefills.iter().map(|prefill| prefill.tokens.len()).sum::<usize>()
    }

    /// The slots that draw a token, in the order in which the tokens are handed back: decodes first, then prefills.
    pub fn draws(&self) -> impl Iterator<Item = (u32, Draw)> {
        let decodes = self.decodes.iter().map(|decode| (decode.slot, decode.draw));
        decodes.chain(self.prefills.iter().filter_map(|prefill| Some((prefill.slot, prefill.draw?))))
    }
}

/// The requests that wait, and those that have a slot.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: PagePool,
    /// Every request that has not all its tokens yet.
    sequences: BTreeMap<RequestId, Sequence>,
    /// In the order of arrival, which is that of [`RequestId`].
    waiting: VecDeque<RequestId>,
    /// Those with a slot, in the order of arrival: all of them came before those that wait.
    running: Vec<RequestId>,
    /// The request in each slot.
    slots: Vec<Option<RequestId>>,
    /// For each planned step, oldest first, the requests that draw a token in it.
    planned: VecDeque<Vec<RequestId>>,
    submitted: u64,
    preemptions: u64,
}

#[derive(Debug)]
struct Sequence {
    /// The prompt and every token drawn, as far as they came back.
    tokens: Vec<u32>,
    /// Drawn in planned steps, but not come back.
    on_their_way: usize,
    /// Tokens whose keys and values are in the pages once the planned steps are done.
    cached: usize,
    /// Whether the next token to compute is one that its slot drew.
    decoding: bool,
    slot: u32,
    pages: HeldPages,
    draws_left: usize,
    /// Why it ends when no draw is left.
    end: Stop,
    sampling: Sampling,
    uniform: Uniform,
    stop_tokens: Arc<[u32]>,
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Errors
    /// [`LimitsError`].
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        let named = [
            (u64::from(limits.slots), "the number of requests at once"),
            (u64::from(limits.pages), "the number of pages"),
            (u64::from(limits.page_tokens), "the number of tokens in a page"),
            (limits.max_sequence as u64, "the length of the longest sequence"),
        ];
        if let Some(&(_, name)) = named.iter().find(|(value, _)| *value == 0) {
            return Err(LimitsError::Zero(name));
        }
        if limits.step_tokens < limits.slots {
            return Err(LimitsError::Budget { step_tokens: limits.step_tokens, slots: limits.slots });
        }
        Ok(Self {
            limits,
            pool: PagePool::new(limits.pages, limits.page_tokens),
            sequences: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            slots: vec![None; limits.slots as usize],
            planned: VecDeque::new(),
            submitted: 0,
            preemptions: 0,
        })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`SubmitError`] for one that could not be served even alone.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        let Request { prompt, max_tokens, sampling, seed, stop_tokens } = request;
        let (length, limit) = (prompt.len(), self.limits.max_sequence);
        if length == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if length > limit {
            return Err(SubmitError::TooLong { tokens: length, limit });
        }
        // The last token drawn is not computed, so it may stand one past the end.
        let most = limit - length + 1;
        let (draws, end) = if max_tokens.get() <= most { (max_tokens.get(), Stop::MaxTokens) } else { (most, Stop::Full) };
        let needed = self.pool.pages_for(length + draws - 1);
        if needed > self.limits.pages as usize {
            return Err(SubmitError::TooLarge { prompt: length, drawn: draws, needed, pages: self.limits.pages });
        }
        let id = RequestId(self.submitted);
        self.submitted += 1;
        self.sequences.insert(
            id,
            Sequence {
                tokens: prompt,
                on_their_way: 0,
                cached: 0,
                decoding: false,
                slot: 0,
                pages: HeldPages::default(),
                draws_left: draws,
                end,
                sampling,
                uniform: Uniform::new(seed),
                stop_tokens,
            },
        );
        self.waiting.push_back(id);
        Ok(id)
    }

    /// The next step, or `None` where nothing can be computed before a planned step is complete (or at all).
    pub fn plan(&mut self) -> Option<StepPlan> {
        let mut plan = StepPlan::default();
        let preempted = self.plan_decodes(&mut plan);
        let mut budget = (self.limits.step_tokens as usize).saturating_sub(plan.decodes.len());
        for at in 0..self.running.len() {
            self.plan_prefill(self.running[at], &mut budget, &mut plan);
        }
        // Pages that were just taken from somebody are not for newcomers.
        while !preempted && budget > 0 && self.admit(&mut plan) {
            let newest = self.running[self.running.len() - 1];
            self.plan_prefill(newest, &mut budget, &mut plan);
        }
        if plan.rows() == 0 {
            return None;
        }
        let drawing = plan.draws().filter_map(|(slot, _)| self.slots[slot as usize]).collect();
        self.planned.push_back(drawing);
        self.release_those_done();
        Some(plan)
    }

    /// Takes the tokens that the oldest planned step drew, in the order of [`StepPlan::draws`], and says what they mean. A token too many is ignored, and so
    /// are tokens drawn after a request's stop token by a step planned before it was known.
    pub fn complete(&mut self, tokens: &[u32]) -> Vec<Output> {
        let mut outputs = Vec::new();
        for (id, &token) in self.planned.pop_front().unwrap_or_default().into_iter().zip(tokens) {
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            sequence.on_their_way -= 1;
            let stop = if sequence.stop_tokens.contains(&token) {
                Some(Stop::EndOfSequence)
            } else {
                sequence.tokens.push(token);
                outputs.push(Output::Token(id, token));
                (sequence.draws_left == 0 && sequence.on_their_way == 0).then_some(sequence.end)
            };
            if let Some(stop) = stop {
                self.release(id);
                self.waiting.retain(|&waiting| waiting != id);
                self.sequences.remove(&id);
                outputs.push(Output::Finished(id, stop));
            }
        }
        outputs
    }

    /// Whether every request has all its tokens.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Requests with a slot.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Requests without a slot that need one, preempted ones included.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Planned steps that are not complete.
    pub fn in_flight(&self) -> usize {
        self.planned.len()
    }

    /// How often a request lost its pages to an older one.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// What this scheduler may use.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// One row for each decoding request, oldest first; whether anybody was preempted for it.
    fn plan_decodes(&mut self, plan: &mut StepPlan) -> bool {
        let mut preempted = false;
        let mut at = 0;
        while at < self.running.len() {
            let id = self.running[at];
            at += 1;
            if !self.sequences.get(&id).is_some_and(|sequence| sequence.decoding) {
                continue;
            }
            while !self.grow(id, 1, plan) {
                preempted = true;
                if self.preempt_youngest().is_none_or(|youngest| youngest == id) {
                    break;
                }
            }
            if let Some(sequence) = self.sequences.get_mut(&id).filter(|sequence| sequence.decoding) {
                let position = sequence.cached;
                sequence.cached += 1;
                plan.decodes.push(Decode { slot: sequence.slot, position, draw: sequence.draw() });
            }
        }
        preempted
    }

    /// As many tokens of a prefilling request as `budget` allows; nothing for another.
    fn plan_prefill(&mut self, id: RequestId, budget: &mut usize, plan: &mut StepPlan) {
        let Some(sequence) = self.sequences.get_mut(&id).filter(|sequence| !sequence.decoding) else { return };
        let start = sequence.cached;
        let end = sequence.tokens.len().min(start + *budget);
        if start == end {
            return;
        }
        *budget -= end - start;
        sequence.cached = end;
        sequence.decoding = end == sequence.tokens.len();
        let draw = sequence.decoding.then(|| sequence.draw());
        plan.prefills.push(Prefill { slot: sequence.slot, start, tokens: sequence.tokens[start..end].to_vec(), draw });
    }

    /// Gives the request that has waited longest a slot and pages for all its tokens, where there are both; whether it did.
    fn admit(&mut self, plan: &mut StepPlan) -> bool {
        let Some(&id) = self.waiting.front() else { return false };
        let Some(slot) = self.slots.iter().position(Option::is_none) else { return false };
        let Some(sequence) = self.sequences.get(&id) else { return false };
        // A preempted request is recomputed from its tokens, so the host must have them all.
        if sequence.on_their_way > 0 {
            return false;
        }
        // A page for each request that will need one more, so that an admission is not what makes the next step preempt. A request alone always fits.
        let grows = |id: &&RequestId| {
            self.sequences.get(id).is_some_and(|other| self.pool.pages_for(other.last_cached()) > other.pages.numbers().len())
        };
        let reserve = self.running.iter().filter(grows).count();
        if self.pool.pages_for(sequence.tokens.len()) + reserve > self.pool.free() {
            return false;
        }
        let tokens = sequence.tokens.len();
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.slot = slot as u32;
        }
        self.slots[slot] = Some(id);
        self.waiting.pop_front();
        self.running.push(id);
        self.grow(id, tokens, plan)
    }

    /// Pages for `more` tokens of a request with a slot; whether there are enough.
    fn grow(&mut self, id: RequestId, more: usize, plan: &mut StepPlan) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        let first = sequence.pages.numbers().len();
        if !self.pool.grow(&mut sequence.pages, sequence.cached + more) {
            return false;
        }
        let pages = &sequence.pages.numbers()[first..];
        if !pages.is_empty() {
            plan.new_pages.push(NewPages { slot: sequence.slot, first, pages: pages.to_vec() });
        }
        true
    }

    /// Sends the youngest request with a slot back to the head of the queue, and says which it is.
    fn preempt_youngest(&mut self) -> Option<RequestId> {
        let id = *self.running.last()?;
        self.release(id);
        self.waiting.push_front(id);
        self.preemptions += 1;
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.cached = 0;
            sequence.decoding = false;
        }
        Some(id)
    }

    /// Requests whose last draw is planned need their slot and pages no more: later steps run after it.
    fn release_those_done(&mut self) {
        let done = |id: &RequestId| self.sequences.get(id).is_some_and(|sequence| sequence.draws_left == 0);
        let done: Vec<RequestId> = self.running.iter().copied().filter(done).collect();
        for id in done {
            self.release(id);
        }
    }

    /// Takes slot and pages back, where the request has them.
    fn release(&mut self, id: RequestId) {
        let Some(at) = self.running.iter().position(|&running| running == id) else { return };
        self.running.remove(at);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            self.slots[sequence.slot as usize] = None;
            self.pool.give_back(&mut sequence.pages);
        }
    }
}

impl Sequence {
    /// Tokens in the cache at the end: all but the last drawn.
    fn last_cached(&self) -> usize {
        (self.tokens.len() + self.on_their_way + self.draws_left).saturating_sub(1)
    }

    /// Counts one more token on its way.
    fn draw(&mut self) -> Draw {
        self.on_their_way += 1;
        self.draws_left = self.draws_left.saturating_sub(1);
        Draw { sampling: self.sampling, uniform: self.uniform.draw() }
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
