//! Text to token ids and back, by the `tokenizer.json` that came with a model.
//!
//! A tokenizer that can produce an id the model has no embedding for is refused when it is opened. What `tokenizer.json` says about padding
//! and truncation is ignored: batches are ragged, and the length limit is the model's.

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{PostProcessor, TruncationParams};

use crate::config::ModelConfig;

/// The text side of a model.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    /// Cuts at `max_tokens` and keeps what it cut, so that [`Encoded::truncated`] is known.
    inner: tokenizers::Tokenizer,
    max_tokens: usize,
}

/// The token ids of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The ids, special tokens included.
    pub ids: Vec<u32>,
    /// Whether the text had more tokens than the limit, so that its end is missing.
    pub truncated: bool,
}

impl Tokenizer {
    /// Opens `tokenizer.json` in the model directory `dir`. Encoded texts have at most `max_tokens` tokens, or the model's longest sequence
    /// where that is less.
    ///
    /// # Errors
    /// [`TokenizerError`] where the file is missing or malformed, and where its vocabulary or special tokens do not fit the model.
    #[tracing::instrument(level = "debug", name = "open tokenizer", skip_all, fields(dir = %dir.display()))]
    pub fn open(dir: &Path, config: &ModelConfig, max_tokens: Option<usize>) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| TokenizerError::Unreadable { path: path.clone(), source })?;
        let malformed = |problem: String| TokenizerError::Malformed { path: path.clone(), problem };
        // In two steps: the library's own parser panics where JSON breaks off inside a decoder.
        let parsed: Value = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if let Some(token) = undefined_special_token(&parsed["post_processor"]) {
            return Err(malformed(format!("its post_processor uses the special token `{token}` without defining it")));
        }
        let mut inner: tokenizers::Tokenizer = guarded(|| Ok(serde_json::from_value(parsed)?)).map_err(malformed)?;
        let vocab = config.vocab();
        if let Some((token, id)) = inner.get_vocab(true).into_iter().filter(|&(_, id)| id as usize >= vocab).max_by_key(|&(_, id)| id) {
            return Err(TokenizerError::Vocabulary { path, token, id, vocab });
        }
        // What is put around every text need not be in the vocabulary.
        let around = guarded(|| inner.encode("", true)).map_err(malformed)?;
        if let Some((&id, token)) = around.get_ids().iter().zip(around.get_tokens()).find(|&(&id, _)| id as usize >= vocab) {
            return Err(TokenizerError::Vocabulary { path, token: token.clone(), id, vocab });
        }
        let max_tokens = max_tokens.map_or(config.max_sequence(), |limit| limit.min(config.max_sequence()));
        // The library subtracts the special tokens from the limit unchecked.
        let specials = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if specials >= max_tokens {
            return Err(TokenizerError::NoRoom { path, specials, max_tokens });
        }
        inner.with_padding(None);
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        inner.with_truncation(Some(truncation)).map_err(|error| malformed(error.to_string()))?;
        Ok(Self { path, inner, max_tokens })
    }

    /// The most tokens an encoded text has.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The ids of `text` with the special tokens that the model expects around it.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] where the tokenizer has no token for a part of the text and none for the unknown.
    pub fn encode(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let encoding =
            guarded(|| self.inner.encode(text, true)).map_err(|problem| TokenizerError::Encode { path: self.path.clone(), problem })?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), truncated: !encoding.get_overflowing().is_empty() })
    }

    /// The text of `ids`, without special tokens. Bytes that are no complete character become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] where the tokenizer's decoder cannot join the tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        guarded(|| self.inner.decode(ids, true)).map_err(|problem| TokenizerError::Encode { path: self.path.clone(), problem })
    }

    /// A decoder for tokens that come one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), context: 0, shown: 0 }
    }
}

/// Text from tokens that come one by one. A character split over several tokens appears once its last token is there; spaces that depend
/// on the token before are right, since each piece is decoded together with the tokens of the piece before it.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// The first token of the piece shown last: decoding starts here.
    context: usize,
    /// The tokens before this one have been shown.
    shown: usize,
}

impl TextStream<'_> {
    /// Takes the next token and returns the text that is complete now, often none.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.unshown()?;
        // An incomplete character decodes to U+FFFD, for as long as it may still be completed.
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.context = self.shown;
        self.shown = self.ids.len();
        Ok(text)
    }

    /// Ends the stream and returns what was held back, with U+FFFD for what never became a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.unshown()
    }

    fn unshown(&self) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[self.context..self.shown])?;
        let with = self.tokenizer.decode(&self.ids[self.context..])?;
        Ok(with.get(before.len()..).unwrap_or_default().to_owned())
    }
}

/// Runs a call into the tokenizer library, whose panics on contradictory files become errors here.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Nothing that a panic could leave half-done is used afterwards: a tokenizer is not changed by what it translates.
    match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(cause) => {
            let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
            Err(format!("the file contradicts itself: {}", text.unwrap_or("no reason given")))
        }
    }
}

/// A special token that a `TemplateProcessing` step puts around texts but does not define: the library would panic on the first text.
fn undefined_special_token(processor: &Value) -> Option<String> {
    if let Some(processors) = processor["processors"].as_array() {
        return processors.iter().find_map(undefined_special_token);
    }
    let used = ["single", "pair"].into_iter().filter_map(|template| processor[template].as_array()).flatten();
    let mut tokens = used.filter_map(|piece| piece["SpecialToken"]["id"].as_str());
    tokens.find(|token| processor["special_tokens"].get(token).is_none()).map(str::to_owned)
}

/// What can be wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is missing or cannot be read.
    #[error("{path}: cannot be read ({source}); download the model's tokenizer.json, or use `smidgen forward`, which takes token ids")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why the system refused.
        source: std::io::Error,
    },
    /// The file is no tokenizer.
    #[error("{path}: not a tokenizer ({problem}); download the file again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        problem: String,
    },
    /// The tokenizer knows ids that the model lacks.
    #[error("{path}: token `{token}` has id {id}, but the model's vocab_size is {vocab}; use the tokenizer.json that came with the model")]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// One of those tokens.
        token: String,
        /// That id.
        id: u32,
        /// The number of ids the model has.
        vocab: usize,
    },
    /// Special tokens alone fill the longest sequence.
    #[error(
        "{path}: adds {specials} special tokens, which leaves no room for text in the {max_tokens} tokens a sequence may have; use the tokenizer.json that came with the model, and of an embedding model the sentence_bert_config.json, whose max_seq_length may be what limits them"
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Special tokens around every text.
        specials: usize,
        /// Tokens in the longest sequence.
        max_tokens: usize,
    },
    /// A text cannot be turned into ids, or ids not into a text.
    #[error("{path}: cannot translate the text ({problem}); use the tokenizer.json that came with the model")]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the tokenizer said.
        problem: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Tokenizer {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-untied");
        Tokenizer::open(&dir, &ModelConfig::open(&dir).unwrap(), None).unwrap()
    }

    #[test]
    fn decoding_gives_back_what_was_encoded() {
        let tokenizer = open();
        let text = "the quick brown fox, naïve: 狐 🦊!";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap().ids).unwrap(), text);
    }

    #[test]
    fn a_stream_never_shows_a_part_of_a_character_and_ends_complete() {
        let tokenizer = open();
        let text = "a fox 狐 and 🦊🦊 in the shade";
        let mut stream = tokenizer.stream();
        let mut pieces = Vec::new();
        for id in tokenizer.encode(text).unwrap().ids {
            pieces.push(stream.push(id).unwrap());
        }
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 5, "{pieces:?}");
        assert_eq!(pieces.concat() + &stream.finish().unwrap(), text);
    }

    #[test]
    fn a_stream_that_ends_within_a_character_shows_a_replacement() {
        let tokenizer = open();
        let ids = tokenizer.encode("🦊").unwrap().ids;
        let mut stream = tokenizer.stream();
        for &id in &ids[..ids.len() - 1] {
            assert_eq!(stream.push(id).unwrap(), "");
        }
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn a_text_beyond_the_limit_is_cut_and_says_so() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bert");
        let tokenizer = Tokenizer::open(&dir, &ModelConfig::open(&dir).unwrap(), Some(6)).unwrap();
        let short = tokenizer.encode("cat").unwrap();
        let long = tokenizer.encode("caterpillar").unwrap();
        assert_eq!((short.ids.len(), short.truncated), (5, false));
        assert_eq!((long.ids.len(), long.truncated), (6, true));
        assert_eq!(long.ids.last(), short.ids.last(), "the closing special token stays");
    }
}
