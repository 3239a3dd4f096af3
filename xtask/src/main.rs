//! The project's chores, run as `cargo xtask CHORE`: what a developer or a build server does around `cargo build` itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod nvcc;
mod toolchain;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "smidgen's chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Find a CUDA compiler, or install the pinned one into .toolchain/
    Toolchain,
}

fn main() -> ExitCode {
    match run(Arguments::parse().chore, &repository_root()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore, root: &Path) -> Result<()> {
    match chore {
        Chore::Toolchain => println!("{}", toolchain::ensure_nvcc(root)?),
    }
    Ok(())
}

/// The folder of the workspace's `Cargo.toml`.
fn repository_root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}
