//! The two phases of a decoder's work.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What one request of a decoder is. Other models have no phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecoderPhase {
    /// One step: the next token of every sequence of the batch, each with a cache of earlier tokens. Bound by memory.
    #[default]
    Decode,
    /// A whole prompt of every sequence, to its first token. Bound by arithmetic.
    Prefill,
}

/// A phase's name that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("phase `{0}` is neither decode nor prefill")]
pub struct UnknownPhase(String);

impl FromStr for DecoderPhase {
    type Err = UnknownPhase;

    fn from_str(text: &str) -> Result<Self, UnknownPhase> {
        match text {
            "decode" => Ok(Self::Decode),
            "prefill" => Ok(Self::Prefill),
            _ => Err(UnknownPhase(text.to_owned())),
        }
    }
}

impl fmt::Display for DecoderPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
        })
    }
}
