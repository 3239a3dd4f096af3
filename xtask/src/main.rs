//! The project's chores, run as `cargo xtask CHORE`: what a developer or a build server does around `cargo build` itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod abi;
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
    /// Regenerate kernels/abi.rs from kernels/abi.h
    Abi {
        /// Change nothing; fail if the bindings do not follow from the header
        #[arg(long)]
        check: bool,
        /// The header [default: kernels/abi.h]
        #[arg(long)]
        header: Option<PathBuf>,
        /// The bindings [default: kernels/abi.rs]
        #[arg(long)]
        bindings: Option<PathBuf>,
    },
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
        Chore::Abi { check, header, bindings } => {
            let header = header.unwrap_or_else(|| root.join("kernels/abi.h"));
            let bindings = bindings.unwrap_or_else(|| root.join("kernels/abi.rs"));
            abi::run(root, &header, &bindings, check)?;
        }
    }
    Ok(())
}

/// The folder of the workspace's `Cargo.toml`.
fn repository_root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}
