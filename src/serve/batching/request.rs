//! What is asked of a decoder, and what comes back.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::generate::{Sampling, Stop};

/// A prompt to be continued.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Token ids, at least one; below the vocabulary, which [`check_sequence`](crate::batch::check_sequence) looks at.
    pub prompt: Vec<u32>,
    /// The most tokens to draw.
    pub max_tokens: NonZeroUsize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Seed of the random numbers, which belong to this request alone.
    pub seed: u64,
    /// Tokens that end the request; the one drawn is not part of the output.
    pub stop_tokens: Arc<[u32]>,
}

/// A request's number, rising in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a finished step brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The next token of a request.
    Token(RequestId, u32),
    /// A request has all its tokens, for this reason.
    Finished(RequestId, Stop),
}

/// A request that can never be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Nothing to continue.
    #[error("the prompt is empty; give it at least one token")]
    EmptyPrompt,
    /// More tokens than the model has positions.
    #[error("the prompt has {tokens} tokens and the model takes {limit}; shorten it")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The most the model takes.
        limit: usize,
    },
    /// More tokens than all pages together hold.
    #[error(
        "a prompt of {prompt} tokens and {drawn} more need {needed} pages of key-value cache, and there are {pages}; ask for fewer tokens or make the cache larger"
    )]
    TooLarge {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to be drawn.
        drawn: usize,
        /// Pages that takes.
        needed: usize,
        /// Pages there are.
        pages: u32,
    },
}
