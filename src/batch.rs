//! Token ids on their way into a model: several sequences of different lengths, checked once, stored without padding.

use std::ops::Range;

use crate::config::{DecoderFamily, ModelConfig};

/// Sequences of token ids, one after another. Every id is below the model's vocabulary, no sequence is empty or longer than the model
/// allows, and there is at least one: forward passes rely on it and check nothing again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaggedBatch {
    ids: Vec<u32>,
    /// Where each sequence starts, and at the end the number of ids.
    offsets: Vec<usize>,
}

impl RaggedBatch {
    /// The batch of `sequences` for a model of this configuration.
    ///
    /// # Errors
    /// [`InputError`] for the first sequence that the model cannot run.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S], config: &ModelConfig) -> Result<Self, InputError> {
        if sequences.is_empty() {
            return Err(InputError::NoSequence);
        }
        let (mut ids, mut offsets) = (Vec::new(), vec![0]);
        for (index, sequence) in sequences.iter().enumerate() {
            let sequence = sequence.as_ref();
            check_sequence(index, sequence, 0, config)?;
            ids.extend_from_slice(sequence);
            offsets.push(ids.len());
        }
        Ok(Self { ids, offsets })
    }

    /// The ids of all sequences, one after another.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where each sequence starts among [`RaggedBatch::ids`], and at the end the number of ids: one entry more than there are sequences.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// The rows of each sequence.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        self.offsets.windows(2).map(|ends| ends[0]..ends[1])
    }

    /// Number of tokens in the longest sequence.
    pub fn longest(&self) -> usize {
        self.rows().map(|rows| rows.len()).max().unwrap_or(0)
    }
}

/// Checks that a model of this configuration can append `tokens` to a sequence that already has `before` tokens.
///
/// # Errors
/// [`InputError`], naming the sequence by `index`.
pub fn check_sequence(index: usize, tokens: &[u32], before: usize, config: &ModelConfig) -> Result<(), InputError> {
    if matches!(config, ModelConfig::Vision(_)) {
        return Err(InputError::NotText);
    }
    if tokens.is_empty() {
        return Err(InputError::EmptySequence { index });
    }
    let (length, limit) = (before + tokens.len(), config.max_sequence());
    if length > limit {
        let gpt2 = matches!(config, ModelConfig::Decoder(decoder) if decoder.family == DecoderFamily::Gpt2);
        let field = if gpt2 { "n_positions" } else { "max_position_embeddings" };
        return Err(InputError::TooLong { index, length, limit, field });
    }
    match tokens.iter().position(|&id| id as usize >= config.vocab()) {
        None => Ok(()),
        Some(position) => Err(InputError::UnknownId { index, position: before + position, id: tokens[position], vocab: config.vocab() }),
    }
}

/// Why a model cannot run an input. Messages count sequences and positions from 1, as people do, and fields from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// There is nothing to run.
    #[error("there is no sequence; give at least one")]
    NoSequence,
    /// The model takes images.
    #[error("this is a vision model, which takes images and no token ids; use `smidgen classify`")]
    NotText,
    /// A sequence has no token.
    #[error("sequence {} is empty; give each sequence at least one token id", index + 1)]
    EmptySequence {
        /// Which sequence.
        index: usize,
    },
    /// A sequence is longer than the model allows.
    #[error("sequence {} has {length} tokens but the model's {field} is {limit}; shorten or split it", index + 1)]
    TooLong {
        /// Which sequence.
        index: usize,
        /// Its tokens.
        length: usize,
        /// The most the model allows.
        limit: usize,
        /// The field of config.json that sets the limit.
        field: &'static str,
    },
    /// A token id is not in the vocabulary.
    #[error(
        "sequence {}, position {}: token id {id} is not below the model's vocab_size ({vocab}); use this model's tokenizer",
        index + 1,
        position + 1
    )]
    UnknownId {
        /// Which sequence.
        index: usize,
        /// Which token of it.
        position: usize,
        /// The id.
        id: u32,
        /// The number of ids.
        vocab: usize,
    },
}
