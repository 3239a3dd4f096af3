//! Generation, token by token, the same on every device: prompt in, tokens out, until an end token, a limit, or the end of the positions.
//!
//! A device implements [`Continue`]: append tokens, draw the next. The random numbers are drawn here, on the host, so that a seed means the
//! same text wherever the arithmetic agrees.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::DecoderConfig;
use crate::splitmix::SplitMix64;

/// How the next token is chosen from the logits. The algorithm is part of the contract, so that devices agree:
///
/// 1. At temperature 0: the largest logit; of equals, the lowest id. Nothing else applies.
/// 2. Sort the ids by descending logit; of equals, the lower id first.
/// 3. Keep the first `top_k`.
/// 4. `p = softmax(logit / temperature)` over what is kept.
/// 5. Keep the shortest prefix whose probabilities sum to at least `top_p`.
/// 6. Take the first id, in this order, at which the running sum exceeds `uniform` times the sum of all that are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// How many of the most probable ids stay; `None` for all.
    pub top_k: Option<NonZeroUsize>,
    /// How much probability the ids that stay must reach; 1 for all.
    pub top_p: f32,
}

impl Sampling {
    /// Always the most probable token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: None, top_p: 1.0 };
}

/// A sequence on some device that can be continued.
pub trait Continue {
    /// What can go wrong on that device.
    type Error;

    /// Appends `tokens` (the prompt at first, then the token drawn last) and draws the one that follows, with `uniform` in `[0, 1)`.
    ///
    /// # Errors
    /// What the device says; the sequence cannot be continued then.
    fn next(&mut self, tokens: &[u32], sampling: &Sampling, uniform: f32) -> Result<u32, Self::Error>;
}

/// Warns, once in a process, of `logits`, or another row of a model's output, without a finite number among them: whatever is made of it means nothing. Looks at the
/// first number only where that is finite.
pub fn warn_of_no_number(logits: &[f32]) {
    static HAS_WARNED: AtomicBool = AtomicBool::new(false);
    if !logits.iter().any(|logit| logit.is_finite()) && !HAS_WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "the model's output holds no finite number, so that the result means nothing: its weights are damaged; download them again"
        );
    }
}

/// The random numbers of a generation: number `i` (from 0) is the top 24 bits of SplitMix64's output `i` for this seed, times 2^-24.
#[derive(Debug, Clone)]
pub struct Uniform(SplitMix64);

impl Uniform {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64(seed))
    }

    /// The next number, in `[0, 1)`.
    pub fn draw(&mut self) -> f32 {
        (self.0.next() >> 40) as f32 * (1.0 / 16_777_216.0)
    }
}

/// The tokens that follow a prompt, drawn one by one as the iterator is advanced. It ends after an end-of-sequence token (which is not
/// yielded), after `max_tokens`, or when the model has no position left; [`Generation::stop`] says which.
#[derive(Debug)]
pub struct Generation<'c, S> {
    sequence: S,
    config: &'c DecoderConfig,
    sampling: Sampling,
    uniform: Uniform,
    /// What the sequence has not seen yet: the prompt, then the token drawn last.
    pending: Vec<u32>,
    /// Tokens in the sequence, pending ones included.
    length: usize,
    drawn: usize,
    max_tokens: usize,
    stop: Option<Stop>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The model drew an end-of-sequence token.
    EndOfSequence,
    /// As many tokens as asked for were drawn.
    MaxTokens,
    /// The sequence is as long as the model allows.
    Full,
    /// The device failed.
    Failed,
}

impl<'c, S: Continue> Generation<'c, S> {
    /// Continues `prompt` on the empty `sequence`.
    pub fn new(sequence: S, config: &'c DecoderConfig, prompt: &[u32], max_tokens: usize, sampling: Sampling, seed: u64) -> Self {
        let uniform = Uniform::new(seed);
        Self { sequence, config, sampling, uniform, pending: prompt.to_vec(), length: prompt.len(), drawn: 0, max_tokens, stop: None }
    }

    /// Why the generation ended, once it has.
    pub fn stop(&self) -> Option<Stop> {
        self.stop
    }

    fn end<T>(&mut self, stop: Stop) -> Option<T> {
        self.stop = Some(stop);
        None
    }
}

impl<S: Continue> Iterator for Generation<'_, S> {
    type Item = Result<u32, S::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.stop.is_some() {
            return None;
        }
        if self.drawn == self.max_tokens {
            return self.end(Stop::MaxTokens);
        }
        // A prompt that is itself too long goes to the device, which names the limit; only a drawn token ends quietly.
        if self.drawn > 0 && self.length > self.config.max_sequence() {
            return self.end(Stop::Full);
        }
        match self.sequence.next(&self.pending, &self.sampling, self.uniform.draw()) {
            Err(error) => {
                self.stop = Some(Stop::Failed);
                Some(Err(error))
            }
            Ok(token) if self.config.end_of_sequence.contains(&token) => self.end(Stop::EndOfSequence),
            Ok(token) => {
                self.pending.clear();
                self.pending.push(token);
                self.length += 1;
                self.drawn += 1;
                Some(Ok(token))
            }
        }
    }
}
