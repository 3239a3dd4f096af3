//! Typed access to the fields of one configuration object, with errors that name the file and the field.

use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;

/// Products of three sizes fit in 64 bits. No published model has a larger one, but for the positions of a few.
const LARGEST_SIZE: u64 = 1 << 21;

/// Fields of `config.json` that cannot change the result of a forward pass in inference, whatever their value: descriptions, training
/// settings, output options, and the settings of heads that this engine does not run.
const HARMLESS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "directionality",
    "dropout",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "model_type",
    "n_special",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pad_token_id",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "predict_special_tokens",
    "pretraining_tp",
    "problem_type",
    "qa_dropout",
    "resid_pdrop",
    "return_dict",
    "sep_token_id",
    "seq_classif_dropout",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_return_dict",
];

/// One JSON object of a configuration file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Name of the field that holds the object; empty for the file itself.
    within: &'a str,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, within: "", object }
    }

    /// The object in `field`, or `None` where the field is absent or null.
    pub(super) fn object(&self, field: &'a str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { path: self.path, within: field, object })),
            Some(other) => Err(self.wrong_type(field, other, "an object")),
        }
    }

    /// The value of `field`; null counts as absent, as it does in transformers.
    pub(super) fn value(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Whether the file names `field` at all, be it as null.
    pub(super) fn names(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    /// A size of at least 1.
    pub(super) fn size(&self, field: &str) -> Result<usize, ConfigError> {
        self.optional_size(field)?.ok_or_else(|| self.missing(field))
    }

    /// A size of at least 1, if the field is there.
    pub(super) fn optional_size(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value.as_u64() {
            Some(size @ 1..=LARGEST_SIZE) => Ok(Some(size as usize)),
            _ => Err(self.wrong_type(field, value, &format!("a whole number from 1 to {LARGEST_SIZE}"))),
        }
    }

    /// A size that may be 0, if the field is there.
    pub(super) fn count(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value.as_u64() {
            Some(count @ 0..=LARGEST_SIZE) => Ok(Some(count as usize)),
            _ => Err(self.wrong_type(field, value, &format!("a whole number from 0 to {LARGEST_SIZE}"))),
        }
    }

    /// A size of at least 1, if the field is there and not the 0 or -1 that says that there is none.
    pub(super) fn optional_count(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        match self.value(field).and_then(Value::as_i64) {
            Some(-1 | 0) => Ok(None),
            _ => self.optional_size(field),
        }
    }

    /// A finite number above 0, if the field is there.
    pub(super) fn optional_positive(&self, field: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number > 0.0 && number <= f64::from(f32::MAX) => Ok(Some(number)),
            _ => Err(self.wrong_type(field, value, "a number above 0")),
        }
    }

    /// A finite number above 0.
    pub(super) fn positive(&self, field: &str) -> Result<f64, ConfigError> {
        self.optional_positive(field)?.ok_or_else(|| self.missing(field))
    }

    /// A truth value, if the field is there.
    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong_type(field, value, "true or false"))
    }

    /// A string, if the field is there.
    pub(super) fn text(&self, field: &str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong_type(field, value, "a string"))
    }

    /// One token id or a list of them, each below `vocab`, if the field is there.
    pub(super) fn token_ids(&self, field: &str, vocab: usize) -> Result<Option<Vec<u32>>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let listed = match value {
            Value::Array(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        let ids = listed.iter().map(|id| id.as_u64().filter(|&id| id < vocab as u64).map(|id| id as u32)).collect::<Option<Vec<_>>>();
        ids.map(Some).ok_or_else(|| self.wrong_type(field, value, &format!("a token id below vocab_size ({vocab}), or a list of such")))
    }

    /// Refuses every field that is neither in `used` nor harmless, unless its value switches nothing on.
    ///
    /// A field this engine has never heard of may change the result, and running without it would then be silently wrong.
    pub(super) fn refuse_unknown(&self, used: &[&str]) -> Result<(), ConfigError> {
        for (name, value) in self.object {
            let inert = matches!(value, Value::Null | Value::Bool(false));
            if inert || name.starts_with('_') || used.contains(&name.as_str()) || HARMLESS.contains(&name.as_str()) {
                continue;
            }
            if name == "quantization_config" {
                return Err(self.error(name, "says that the weights are quantised", "use the unquantised model in F32, F16 or BF16"));
            }
            return Err(self.error(name, "is unknown to this engine and may change the result", "remove it if the model does not need it"));
        }
        Ok(())
    }

    pub(super) fn missing(&self, field: &str) -> ConfigError {
        self.error(field, "is missing", "copy it from the model's original config.json")
    }

    pub(super) fn error(&self, field: &str, problem: impl Into<Box<str>>, remedy: &'static str) -> ConfigError {
        let field = if self.within.is_empty() { field.to_owned() } else { format!("{}.{field}", self.within) };
        ConfigError::Field { path: self.path.to_owned(), field: field.into(), problem: problem.into(), remedy }
    }

    fn wrong_type(&self, field: &str, found: &Value, wanted: &str) -> ConfigError {
        let mut shown = found.to_string();
        if shown.chars().count() > 40 {
            shown = shown.chars().take(40).chain(['.', '.', '.']).collect();
        }
        self.error(field, format!("is {shown} where {wanted} belongs"), "correct it")
    }
}
