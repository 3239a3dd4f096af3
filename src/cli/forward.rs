//! `smidgen forward`: a model's output on token ids, for comparison with other implementations.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use safetensors::tensor::{Dtype, TensorView};
use smidgen::batch::RaggedBatch;
use smidgen::config::ModelConfig;
use smidgen::models::{ModelSource, Solo};
use smidgen::reference::Reference;
use tempfile::NamedTempFile;

use super::ComputeDevice;

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
    // Made before the long part, so that a path that cannot be written fails at once.
    let file = Unfinished::create(&args.out)?;
    let values = match ComputeDevice::open(args.device)? {
        None => Reference::load(source.weights())?.forward(&batch).into_values(),
        Some(gpu) => {
            let (count, tokens) = (u32::try_from(sequences.len())?, u32::try_from(batch.ids().len())?);
            Solo::load(&gpu, &source, count, tokens)?.forward(&sequences)?
        }
    };
    let name = match source.config() {
        ModelConfig::Encoder(_) => "last_hidden_state",
        ModelConfig::Decoder(_) => "logits",
    };
    file.finish(&encode(name, &values, source.config().output_width())?)
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

/// A file that appears under its name only when it is whole; until then it is a temporary beside it, gone if anything fails.
struct Unfinished {
    path: PathBuf,
    file: NamedTempFile,
}

impl Unfinished {
    fn create(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            return Err(anyhow!("{}: is a folder; give the name of a file", path.display()));
        }
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        // As any new file has them, instead of the private ones of a temporary; the process's mask still applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // The error's own text names the temporary, which nobody asked for.
        let file = builder.prefix(".smidgen-").tempfile_in(folder).map_err(|error| {
            anyhow!("{}: cannot be written ({}); give a file in a folder that exists and is writable", path.display(), error.kind())
        })?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn finish(mut self, contents: &[u8]) -> anyhow::Result<()> {
        let cannot = || format!("{}: cannot be written; check that its disk has room", self.path.display());
        self.file.write_all(contents).and_then(|()| self.file.as_file().sync_all()).with_context(cannot)?;
        let path = self.path;
        self.file.persist(&path).with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(())
    }
}
