//! `smidgen generate`: a prompt continued, shown as it comes, or many served together.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use smidgen::batch;
use smidgen::config::{DecoderConfig, ModelConfig};
use smidgen::generate::{Continue, Generation, Sampling, Stop};
use smidgen::models::{ModelSource, Solo, Work};
use smidgen::reference::Reference;
use smidgen::tokenizer::Tokenizer;

use super::output::to_stdout;
use super::requests::{self, ServingArgs};
use super::{ComputeDevice, text_directory};

/// Continue a prompt, or the lines of a file, with a decoder: GPT-2, Llama, Mistral, Qwen2.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A Hugging Face model directory.
    #[arg(long)]
    pub(super) model: String,
    /// The text to continue; or --requests.
    #[arg(conflicts_with = "requests")]
    prompt: Option<String>,
    #[command(flatten)]
    serving: ServingArgs,
    /// The most tokens to generate.
    #[arg(long, default_value = "128", allow_negative_numbers = true)]
    pub(super) max_tokens: NonZeroUsize,
    /// Divides the logits before sampling; 0 always takes the most probable token.
    #[arg(long, default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Sample among this many of the most probable tokens; default all.
    #[arg(long)]
    top_k: Option<NonZeroUsize>,
    /// Sample among the fewest most probable tokens that together reach this probability.
    #[arg(long, default_value_t = 1.0, value_parser = probability, allow_negative_numbers = true)]
    top_p: f32,
    /// The seed of the random numbers; of the first request, where there are several, and one more for each after it.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// CPU or GPU; the GPU where there is one.
    #[arg(long, value_enum)]
    pub(super) device: Option<ComputeDevice>,
}

pub fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let source = ModelSource::find(&args.model)?;
    let ModelConfig::Decoder(config) = source.config() else {
        let (found, command) = match source.config() {
            ModelConfig::Vision(_) => ("a vision model, which takes images", "classify"),
            _ => ("an encoder, which generates nothing", "embed"),
        };
        bail!("{}: is {found}; use `smidgen {command}`, or a decoder", args.model);
    };
    let tokenizer = Tokenizer::open(text_directory(&source)?, source.config(), None)?;
    let Some(prompt) = &args.prompt else { return requests::serve(args, &args.serving, &source, config, &tokenizer) };
    let prompt = encode("the prompt", prompt, &tokenizer, &source)?;
    match ComputeDevice::open(args.device)? {
        None => {
            let Reference::Decoder(decoder) = Reference::load(source.weights())? else { bail!("{}: is an encoder", args.model) };
            stream(args, config, &tokenizer, &prompt, decoder.start())
        }
        Some(gpu) => {
            let room = prompt.len().saturating_add(args.max_tokens.get()).min(config.max_sequence());
            let (tokens, capacity) = (u32::try_from(prompt.len())?, u32::try_from(room)?);
            let solo = Solo::load(&gpu, &source, [Work::Sequence { prompt: tokens, capacity }])?;
            stream(args, config, &tokenizer, &prompt, solo.sequence(tokens, capacity)?)
        }
    }
}

/// The token ids of `text`, which messages call `what`.
pub(super) fn encode(what: &str, text: &str, tokenizer: &Tokenizer, source: &ModelSource) -> anyhow::Result<Vec<u32>> {
    let encoded = tokenizer.encode(text)?;
    if encoded.truncated {
        bail!("{what} has more than the {} tokens this model takes; shorten it", tokenizer.max_tokens());
    }
    if encoded.ids.is_empty() {
        bail!("{what} is empty, and this model's tokenizer adds nothing to it; give some text");
    }
    batch::check_sequence(0, &encoded.ids, 0, source.config())?;
    Ok(encoded.ids)
}

impl GenerateArgs {
    pub(super) fn sampling(&self) -> Sampling {
        Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p }
    }
}

fn stream<S>(args: &GenerateArgs, config: &DecoderConfig, tokenizer: &Tokenizer, prompt: &[u32], sequence: S) -> anyhow::Result<()>
where
    S: Continue,
    S::Error: Error + Send + Sync + 'static,
{
    let mut generation = Generation::new(sequence, config, prompt, args.max_tokens.get(), args.sampling(), args.seed);
    let mut text = tokenizer.stream();
    let mut out = io::stdout().lock();
    let start = Instant::now();
    let mut tokens = 0;
    for token in generation.by_ref() {
        tokens += 1;
        let piece = text.push(token?)?;
        to_stdout(out.write_all(piece.as_bytes()).and_then(|()| out.flush()))?;
    }
    let rest = text.finish()?;
    to_stdout(writeln!(out, "{rest}"))?;
    if io::stderr().is_terminal() {
        let end = match generation.stop() {
            Some(Stop::EndOfSequence) => "the model ended the text",
            Some(Stop::Full) => "the model has no position left",
            _ => "--max-tokens is reached",
        };
        eprintln!("[{tokens} tokens, {:.1} per second; {end}]", f64::from(tokens) / start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn temperature(text: &str) -> Result<f32, String> {
    let value = text.parse::<f32>().map_err(|error| error.to_string())?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("a temperature is a number from 0 up".to_owned()) }
}

fn probability(text: &str) -> Result<f32, String> {
    let value = text.parse::<f32>().map_err(|error| error.to_string())?;
    if value > 0.0 && value <= 1.0 { Ok(value) } else { Err("a probability is above 0 and at most 1".to_owned()) }
}
