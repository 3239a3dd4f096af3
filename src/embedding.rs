//! From the hidden states of a text to one vector for it, as the model's sentence-transformers files say.
//!
//! `modules.json` lists the steps and `1_Pooling/config.json` says how the token vectors are joined; `sentence_bert_config.json` limits the
//! length, and says whether a text is made lower case. A model without these files gets what most of them say: the mean, normalised.

use std::borrow::Cow;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// How token vectors become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean, special tokens included.
    Mean,
    /// The first of them.
    FirstToken,
}

/// How a text becomes a vector, besides the model itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddingRecipe {
    /// How token vectors become one.
    pub pooling: Pooling,
    /// Whether the vector is scaled to length 1.
    pub normalise: bool,
    /// The most tokens a text may have, if fewer than the model's positions.
    pub max_tokens: Option<usize>,
    /// Whether a text is made lower case before it is cut into tokens.
    pub lower_case: bool,
}

#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

/// `config_sentence_transformers.json`.
#[derive(Deserialize)]
struct PromptConfig {
    default_prompt_name: Option<String>,
}

impl EmbeddingRecipe {
    /// The mean of the token vectors, scaled to length 1.
    pub const DEFAULT: Self = Self { pooling: Pooling::Mean, normalise: true, max_tokens: None, lower_case: false };

    /// Reads the recipe in the model directory `dir` of a model whose hidden width is `hidden`.
    ///
    /// # Errors
    /// [`RecipeError`] where a file is malformed, asks for a step that this engine does not compute, or contradicts the model.
    pub fn open(dir: &Path, hidden: usize) -> Result<Self, RecipeError> {
        let sentence: Option<SentenceConfig> = read_if_there(&dir.join("sentence_bert_config.json"))?;
        let max_tokens = sentence.as_ref().and_then(|sentence| sentence.max_seq_length);
        let lower_case = sentence.and_then(|sentence| sentence.do_lower_case).unwrap_or(false);
        let prompts = dir.join("config_sentence_transformers.json");
        if let Some(name) = read_if_there::<PromptConfig>(&prompts)?.and_then(|config| config.default_prompt_name) {
            let remedy = "put the prompt in front of each text yourself, and null here";
            return Err(unsupported(&prompts, "default_prompt_name", &format!("`{name}`, and no prompts are added here"), remedy));
        }
        let path = dir.join("modules.json");
        let Some(modules) = read_if_there::<Vec<Module>>(&path)? else { return Ok(Self { max_tokens, lower_case, ..Self::DEFAULT }) };
        let mut recipe = Self { normalise: false, max_tokens, lower_case, ..Self::DEFAULT };
        for module in &modules {
            match module.kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Pooling" => recipe.pooling = read_pooling(dir, &path, &module.path, hidden)?,
                "Normalize" => recipe.normalise = true,
                _ => {
                    return Err(unsupported(
                        &path,
                        "type",
                        &format!("`{}`", module.kind),
                        "use a model of Transformer, Pooling and Normalize",
                    ));
                }
            }
        }
        Ok(recipe)
    }

    /// What of a text is cut into tokens.
    pub fn prepare<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.lower_case { text.to_lowercase().into() } else { text.into() }
    }

    /// The vector of a text from its hidden states, `[tokens, hidden]`.
    pub fn apply(&self, rows: &[f32], hidden: usize) -> Vec<f32> {
        let mut vector = vec![0.0; hidden];
        match self.pooling {
            Pooling::FirstToken => rows.iter().zip(&mut vector).for_each(|(x, sum)| *sum = *x),
            Pooling::Mean => {
                let tokens = (rows.len() / hidden.max(1)) as f32;
                rows.chunks_exact(hidden).for_each(|row| vector.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
                vector.iter_mut().for_each(|sum| *sum /= tokens);
            }
        }
        if self.normalise {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
            vector.iter_mut().for_each(|x| *x /= length);
        }
        vector
    }
}

fn read_pooling(dir: &Path, modules: &Path, folder: &str, hidden: usize) -> Result<Pooling, RecipeError> {
    if !Path::new(folder).components().all(|component| matches!(component, Component::Normal(_))) {
        return Err(unsupported(modules, "path", &format!("`{folder}`, outside the model directory"), "download the model again"));
    }
    let path = dir.join(folder).join("config.json");
    let Some(config) = read_if_there::<Map<String, Value>>(&path)? else { return Ok(Pooling::Mean) };
    for field in ["word_embedding_dimension", "embedding_dimension"] {
        if let Some(width) = config.get(field).and_then(Value::as_u64)
            && width != hidden as u64
        {
            return Err(unsupported(
                &path,
                field,
                &format!("{width}, but the model's hidden_size is {hidden}"),
                "use the files of one model",
            ));
        }
    }
    // Newer files name the mode, older ones have a flag for each; several modes at once are concatenated, which nobody here computes.
    let flagged =
        config.iter().filter(|(_, value)| **value == Value::Bool(true)).filter_map(|(name, _)| name.strip_prefix("pooling_mode_"));
    let named = config.get("pooling_mode").and_then(Value::as_str);
    let modes: Vec<&str> = named.into_iter().chain(flagged).collect();
    match modes.as_slice() {
        [] | ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::FirstToken),
        _ => Err(unsupported(&path, "pooling_mode", &format!("`{}`", modes.join(" + ")), "use a model with mean or cls pooling")),
    }
}

fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecipeError> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(|source| RecipeError::Unreadable { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| RecipeError::Malformed { path: path.to_owned(), problem: error.to_string() })
}

fn unsupported(path: &Path, field: &str, value: &str, remedy: &'static str) -> RecipeError {
    RecipeError::Field { path: path.to_owned(), field: field.to_owned(), value: value.to_owned(), remedy }
}

/// What can be wrong with a model's sentence-transformers files.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A file cannot be read.
    #[error("{path}: cannot be read ({source}); check its permissions")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why the system refused.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: malformed ({problem}); download the file again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        problem: String,
    },
    /// A field asks for what this engine does not compute, or contradicts the model.
    #[error("{path}: field `{field}` is {value}; {remedy}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What it is, and why that is wrong.
        value: String,
        /// What the user can do.
        remedy: &'static str,
    },
}
