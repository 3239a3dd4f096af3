//! One file for each command, and what they share.

use std::sync::Arc;

use anyhow::bail;
use clap::ValueEnum;
use smidgen::models::ModelSource;
use smidgen_runtime::device::{Device, DeviceError};
use smidgen_runtime::profile::quoted;

pub mod classify;
pub mod colocate;
pub mod doctor;
pub mod embed;
pub mod forward;
pub mod generate;
mod inputs;
pub mod output;
pub mod profile;
mod progress;
mod requests;
pub mod top;

/// What computes a model's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ComputeDevice {
    /// The reference, in f32.
    Cpu,
    /// The GPU of this machine, in f16.
    Cuda,
}

impl ComputeDevice {
    /// The GPU to compute on, or `None` for the CPU. Without a choice: the GPU where there is one that works.
    fn open(choice: Option<Self>) -> anyhow::Result<Option<Arc<dyn Device>>> {
        match choice {
            Some(Self::Cpu) => Ok(None),
            Some(Self::Cuda) => match smidgen::cuda::open() {
                // What is simulated computes nothing.
                Err(DeviceError::NoGpu(reason)) => bail!("no NVIDIA GPU: {reason}; install the NVIDIA driver, or use `--device cpu`"),
                opened => Ok(Some(opened?)),
            },
            None => Ok(smidgen::cuda::open().inspect_err(|error| tracing::info!("computing on the CPU: {error}")).ok()),
        }
    }
}

/// The directory of a model that has text to work with. A preset has none.
fn text_directory(source: &ModelSource) -> anyhow::Result<&std::path::Path> {
    if source.weights().as_random().is_some() {
        bail!(
            "{}: a preset has random weights and no tokenizer; give a model directory, or use `smidgen forward`, which takes token ids",
            source.name()
        );
    }
    Ok(std::path::Path::new(source.name()))
}

/// `values`, the output of the model `name`, if they are numbers: damaged weights give none.
fn finite<'a>(name: &str, values: &'a [f32]) -> anyhow::Result<&'a [f32]> {
    if values.iter().all(|value| value.is_finite()) {
        Ok(values)
    } else {
        bail!("{name}: its output is not finite: its weights are damaged; download them again")
    }
}

/// The command this process was started by, as it can be typed again: what results and profiles keep as their provenance.
fn command_line() -> String {
    let quoted = std::env::args().skip(1).map(|argument| quoted(&argument));
    std::iter::once("smidgen".to_owned()).chain(quoted).collect::<Vec<_>>().join(" ")
}

/// The commit this binary was built from, as the build script found it; empty outside a checkout.
fn commit() -> String {
    env!("SMIDGEN_COMMIT").to_owned()
}
