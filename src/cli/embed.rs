//! `smidgen embed`: one vector for each text.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use smidgen::batch::RaggedBatch;
use smidgen::config::ModelConfig;
use smidgen::embedding::{EmbeddingRecipe, Pooling};
use smidgen::models::{ModelSource, Solo, Work};
use smidgen::reference::Reference;
use smidgen::tokenizer::Tokenizer;

use super::output::to_stdout;
use super::{ComputeDevice, finite, progress, text_directory};

/// Texts in one batch: enough to fill the device, few enough that the first vectors come soon.
const BATCH: usize = 64;

/// Turn texts into vectors with a model of the BERT family.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// A Hugging Face model directory.
    #[arg(long)]
    model: String,
    /// The texts; without any, the lines of standard input.
    texts: Vec<String>,
    /// How to print the vectors. Default: a summary on a terminal, JSON lines otherwise.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// CPU or GPU; the GPU where there is one.
    #[arg(long, value_enum)]
    device: Option<ComputeDevice>,
}

/// How vectors are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One object per line: `{"text": ..., "embedding": [...]}`.
    Json,
    /// The cosine similarity to the first text, the first elements, and the text.
    Summary,
}

#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    embedding: &'a [f32],
}

pub fn run(args: &EmbedArgs) -> anyhow::Result<()> {
    let source = ModelSource::find(&args.model)?;
    let ModelConfig::Encoder(config) = source.config() else {
        let (found, command) = match source.config() {
            ModelConfig::Vision(_) => ("a vision model, which takes images", "classify"),
            _ => ("a decoder, which has no embeddings", "generate"),
        };
        bail!("{}: is {found}; use `smidgen {command}`, or a model of the BERT family", args.model);
    };
    let dir = text_directory(&source)?;
    let recipe = EmbeddingRecipe::open(dir, config.hidden)?;
    let tokenizer = Tokenizer::open(dir, source.config(), recipe.max_tokens)?;
    let texts = if args.texts.is_empty() { read_lines()? } else { args.texts.clone() };
    let ids = encode(&tokenizer, &recipe, &texts)?;
    RaggedBatch::new(&ids, source.config())?;
    let bar = progress::bar(texts.len() as u64, "{bar:24} {pos}/{len} texts {msg} {elapsed}")?;
    bar.set_message(format!("loading {}", args.model));
    let mut embedder = Embedder::load(&source, recipe, args.device, &ids)?;
    bar.set_message("");
    let default = if io::stdout().is_terminal() { Format::Summary } else { Format::Json };
    let mut printer = Printer { format: args.format.unwrap_or(default), out: io::stdout().lock(), first: None };
    for (texts, ids) in texts.chunks(BATCH).zip(ids.chunks(BATCH)) {
        for (text, vector) in texts.iter().zip(embedder.embed(ids)?) {
            finite(&args.model, &vector)?;
            to_stdout(bar.suspend(|| printer.print(text, vector)))?;
        }
        bar.inc(texts.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

fn read_lines() -> anyhow::Result<Vec<String>> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        bail!("no text; give one or more after the options, or pipe lines into standard input");
    }
    let line = |(index, line): (usize, io::Result<String>)| {
        line.map_err(|error| anyhow!("standard input, line {}: cannot be read ({error}); give UTF-8", index + 1))
    };
    let lines = stdin.lock().lines().enumerate().map(line).collect::<Result<Vec<_>, _>>()?;
    if lines.is_empty() {
        bail!("standard input is empty; give one text a line");
    }
    Ok(lines)
}

fn encode(tokenizer: &Tokenizer, recipe: &EmbeddingRecipe, texts: &[String]) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut ids = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let encoded = tokenizer.encode(&recipe.prepare(text))?;
        if encoded.truncated {
            tracing::warn!("text {} has more than {} tokens; what is beyond them is left out", index + 1, tokenizer.max_tokens());
        }
        ids.push(encoded.ids);
    }
    Ok(ids)
}

enum Embedder {
    Cpu { reference: Box<Reference>, config: ModelConfig, recipe: EmbeddingRecipe },
    Gpu { solo: Box<Solo>, recipe: EmbeddingRecipe },
}

impl Embedder {
    fn load(source: &ModelSource, recipe: EmbeddingRecipe, device: Option<ComputeDevice>, ids: &[Vec<u32>]) -> anyhow::Result<Self> {
        let Some(gpu) = ComputeDevice::open(device)? else {
            return Ok(Self::Cpu { reference: Box::new(Reference::load(source.weights())?), config: source.config().clone(), recipe });
        };
        let solo = Solo::load(&gpu, source, ids.chunks(BATCH).map(Work::Embed))?;
        Ok(Self::Gpu { solo: Box::new(solo), recipe })
    }

    fn embed(&mut self, ids: &[Vec<u32>]) -> anyhow::Result<Vec<Vec<f32>>> {
        match self {
            Self::Cpu { reference, config, recipe } => {
                let batch = RaggedBatch::new(ids, config)?;
                let hidden = reference.forward(&batch);
                let width = hidden.width();
                Ok(batch.rows().map(|rows| recipe.apply(&hidden.values()[rows.start * width..rows.end * width], width)).collect())
            }
            Self::Gpu { solo, recipe } => Ok(solo.embed(ids, recipe.pooling == Pooling::Mean, recipe.normalise)?),
        }
    }
}

struct Printer<W> {
    format: Format,
    out: W,
    /// What a summary compares with.
    first: Option<Vec<f32>>,
}

impl<W: Write> Printer<W> {
    fn print(&mut self, text: &str, vector: Vec<f32>) -> io::Result<()> {
        match self.format {
            Format::Json => {
                serde_json::to_writer(&mut self.out, &Line { text, embedding: &vector })?;
                writeln!(self.out)
            }
            Format::Summary => {
                let head: Vec<String> = vector.iter().take(4).map(|x| format!("{x:7.4}")).collect();
                let width = vector.len();
                let first = self.first.get_or_insert_with(|| vector.clone());
                let shown: String = text.chars().take(60).collect();
                writeln!(self.out, "{:7.4}  [{} ...] ({width})  {shown}", cosine(first, &vector), head.join(" "))
            }
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
