//! `cargo xtask demo`: from a fresh clone to the main job's result, in one command.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{cargo, toolchain};

/// Builds the `smidgen` command and runs `smidgen demo` with `arguments`; its exit code becomes ours.
///
/// Without a compiler for the kernels (no network, say) the demo still runs, on the simulated GPU.
pub fn run(root: &Path, arguments: &[String]) -> Result<ExitCode> {
    if let Err(reason) = toolchain::ensure_nvcc(root) {
        eprintln!("warning: going on without GPU kernels: {reason:#}");
    }
    let built = cargo::build(root, &["build", "--release", "--package=smidgen", "--bin=smidgen"])?;
    let smidgen = built.executable("smidgen")?;
    let status = Command::new(smidgen).arg("demo").args(arguments).current_dir(root).status();
    let status = status.with_context(|| format!("cannot run {}", smidgen.display()))?;
    // No code means that a signal ended it.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
