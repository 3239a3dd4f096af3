//! The project's chores, run as `cargo xtask CHORE`: what a developer or a build server does around `cargo build` itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod abi;
mod bundle;
mod cargo;
mod demo;
mod docs;
mod files;
mod header;
mod kernels;
mod nvcc;
mod test;
mod toolchain;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "smidgen's chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build smidgen and run its demo: two tenants on one GPU, or on the simulated one where there is none
    Demo {
        /// Arguments for `smidgen demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check formatting, lints, kernels, tests and documentation
    Test {
        /// Also run the tests that need a GPU
        #[arg(long)]
        gpu: bool,
    },
    /// Find a CUDA compiler, or install the pinned one into .toolchain/
    Toolchain,
    /// Compile the kernels
    Kernels {
        /// Print the registers, shared memory and spills of each kernel
        #[arg(long)]
        report: bool,
    },
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
    /// Regenerate include/smidgen.h from runtime/capi
    Header {
        /// Change nothing; fail if the header does not follow from the crate
        #[arg(long)]
        check: bool,
        /// The crate [default: runtime/capi]
        #[arg(long)]
        source: Option<PathBuf>,
        /// The header [default: include/smidgen.h]
        #[arg(long)]
        header: Option<PathBuf>,
    },
    /// Draw the measured parts of docs/kernels.md and its plots from results/
    Docs {
        /// Change nothing; fail if they do not follow from the results
        #[arg(long)]
        check: bool,
    },
    /// Pack smidgen, its GPU tests, benchmarks and examples into a folder for a GPU machine
    Bundle {
        /// The folder [default: bundle/ in the repository]
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().chore, &repository_root()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore, root: &Path) -> Result<ExitCode> {
    match chore {
        Chore::Demo { arguments } => return demo::run(root, &arguments),
        Chore::Test { gpu } => test::run(root, gpu)?,
        Chore::Toolchain => println!("{}", toolchain::ensure_nvcc(root)?),
        Chore::Kernels { report } => kernels::run(root, report)?,
        Chore::Abi { check, header, bindings } => {
            let header = header.unwrap_or_else(|| root.join("kernels/abi.h"));
            let bindings = bindings.unwrap_or_else(|| root.join("kernels/abi.rs"));
            abi::run(root, &header, &bindings, check)?;
        }
        Chore::Header { check, source, header } => {
            let source = source.unwrap_or_else(|| root.join("runtime/capi"));
            let header = header.unwrap_or_else(|| root.join("include/smidgen.h"));
            header::run(&source, &header, check)?;
        }
        Chore::Docs { check } => docs::run(root, check)?,
        Chore::Bundle { output } => bundle::run(root, &output.unwrap_or_else(|| root.join("bundle")))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The folder of the workspace's `Cargo.toml`.
fn repository_root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}
