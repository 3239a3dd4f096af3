//! `smidgen forward`: a model's output on token ids, for comparison with other implementations.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use safetensors::tensor::{Dtype, TensorView};
use smidgen::batch::RaggedBatch;
use smidgen::config::ModelConfig;
use smidgen::generate::warn_of_no_number;
use smidgen::models::{ModelSource, Solo, Work};
use smidgen::reference::Reference;

use super::inputs::model_files;
use super::output::{Unfinished, check_writable};
use super::{ComputeDevice, progress};

/// Run a model on token ids and write its output: the tensor `logits` (decoders) or `last_hidden_state` (encoders), f32, one row per token,
/// the sequences one after another.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// A Hugging Face model directory, or a preset with random weights.
    #[arg(long)]
    model: String,
    /// Token ids: a JSON array of arrays, whose lengths may differ.
    #[arg(long)]
    ids: PathBuf,
    /// CPU or GPU; the GPU where there is one.
    #[arg(long, value_enum)]
    device: Option<ComputeDevice>,
    /// The safetensors file to write.
    #[arg(long)]
    out: PathBuf,
}

pub fn run(args: &ForwardArgs) -> anyhow::Result<()> {
    let sequences = read_ids(&args.ids)?;
    let source = ModelSource::find(&args.model)?;
    let batch = RaggedBatch::new(&sequences, source.config()).with_context(|| args.ids.display().to_string())?;
    let mut inputs = model_files(&args.model);
    inputs.push(args.ids.clone());
    check_writable(&[&args.out], &inputs)?;
    let spinner = progress::spinner(&format!("loading {}", args.model))?;
    let running = || spinner.set_message(format!("{} tokens through {}", batch.ids().len(), args.model));
    let values = match ComputeDevice::open(args.device)? {
        None => {
            let reference = Reference::load(source.weights())?;
            running();
            reference.forward(&batch).into_values()
        }
        Some(gpu) => {
            let mut solo = Solo::load(&gpu, &source, [Work::Forward(&sequences)])?;
            running();
            solo.forward(&sequences)?
        }
    };
    spinner.finish_and_clear();
    values.chunks_exact(source.config().output_width()).for_each(warn_of_no_number);
    let name = match source.config() {
        ModelConfig::Encoder(_) => "last_hidden_state",
        // No batch of token ids is for a vision model.
        ModelConfig::Decoder(_) | ModelConfig::Vision(_) => "logits",
    };
    let mut file = Unfinished::create(&args.out)?;
    file.write(&encode(name, &values, source.config().output_width())?)?;
    file.finish()
}

fn read_ids(path: &Path) -> anyhow::Result<Vec<Vec<u32>>> {
    let bytes = fs::read(path).with_context(|| format!("{}: cannot be read; give a JSON file of token ids", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        anyhow!("{}: not a JSON array of arrays of token ids ({error}); write it like [[101, 2023, 102], [101, 102]]", path.display())
    })
}

/// A safetensors file of one f32 tensor, `[rows, width]`.
fn encode(name: &str, values: &[f32], width: usize) -> anyhow::Result<Vec<u8>> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![values.len() / width, width], &bytes)?;
    Ok(safetensors::serialize([(name, view)], None)?)
}
