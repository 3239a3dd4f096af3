//! `cargo xtask bundle`: one folder that a GPU machine without a Rust toolchain can run.
//!
//! | in it | what it is |
//! |---|---|
//! | `smidgen` | the command, kernels inside |
//! | `run-gpu-tests`, `tests/` | every test target that needs a GPU |
//! | `run-benches`, `benches/` | the benchmarks |
//! | `run-reach`, `peers/` | the benchmark that measures ours beside cuBLASLt and PyTorch, and PyTorch's side |
//! | `run-colocation` | tenants side by side under every policy and baseline, and the same pairs in PyTorch |
//! | `run-sanitizer` | the GPU tests under compute-sanitizer |
//! | `run-examples`, `examples/` | the engines that link the runtime, in Rust and in C |
//! | `profiles/`, `fixtures/` | what these read; the scripts name the folder in `SMIDGEN_FIXTURES` and the command in `SMIDGEN_BIN` |
//! | `COMMIT` | what it was built from, for the provenance of results |

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::{self, Built};
use crate::{files, test, toolchain};

/// A bundle travels to the GPU machine with every run.
const LARGEST_BYTES: u64 = 66_000_000;

/// Engines that link the runtime; the kernels of other examples are those of `smidgen`.
const EXAMPLES: [&str; 2] = ["02_link_the_runtime", "03_foreign_engine"];

const SCRIPTS: [(&str, &str); 6] = [
    ("run-gpu-tests", include_str!("bundle/run-gpu-tests")),
    ("run-benches", include_str!("bundle/run-benches")),
    ("run-reach", include_str!("bundle/run-reach")),
    ("run-colocation", include_str!("bundle/run-colocation")),
    ("run-sanitizer", include_str!("bundle/run-sanitizer")),
    ("run-examples", include_str!("bundle/run-examples")),
];

/// Builds everything in release form and packs it into `destination`, whose earlier bundle it replaces.
pub fn run(root: &Path, destination: &Path) -> Result<()> {
    ensure!(
        !destination.exists() || destination.join(SCRIPTS[0].0).exists(),
        "{} is there and is not an earlier bundle: choose another folder",
        destination.display()
    );
    toolchain::ensure_nvcc(root)?;
    let gpu_tests = test::gpu_tests(root)?;
    let benches = cargo::targets(root, "bench")?;

    let command = cargo::build(root, &["build", "--release", "--package=smidgen", "--bin=smidgen"])?;
    ensure!(
        command.kernels_out.as_ref().is_some_and(|out| out.join("kernels.fatbin").exists()),
        "no kernel was built, so the bundle would be of no use: see the warnings above"
    );
    let built_tests = build_targets(root, &["test", "--release", "--workspace", "--no-run"], "--test", &gpu_tests)?;
    let built_benches = build_targets(root, &["bench", "--workspace", "--no-run"], "--bench", &benches)?;
    let examples = EXAMPLES.map(str::to_owned);
    let built_examples = build_targets(root, &["build", "--release", "--package=smidgen"], "--example", &examples)?;

    let partial = destination.with_added_extension("partial");
    files::remove_if_there(&partial)?;
    for folder in ["tests", "benches", "examples"] {
        fs::create_dir_all(partial.join(folder)).with_context(|| format!("cannot create {}", partial.display()))?;
    }
    strip(command.executable("smidgen")?, &partial.join("smidgen"))?;
    for name in &gpu_tests {
        strip(built_tests.executable(name)?, &partial.join("tests").join(name))?;
    }
    for name in &benches {
        strip(built_benches.executable(name)?, &partial.join("benches").join(name))?;
    }
    for name in &examples {
        strip(built_examples.executable(name)?, &partial.join("examples").join(name))?;
    }
    build_c_example(root, &partial.join("examples"))?;
    for (name, text) in SCRIPTS {
        fs::write(partial.join(name), text)?;
        fs::set_permissions(partial.join(name), fs::Permissions::from_mode(0o755))?;
    }
    files::copy_tree(&root.join("profiles"), &partial.join("profiles"))?;
    files::copy_tree(&root.join("tests/fixtures"), &partial.join("fixtures"))?;
    files::copy_tree(&root.join("benches/peers"), &partial.join("peers"))?;
    fs::write(partial.join("COMMIT"), commit(root)?)?;

    let total = check_size(&partial)?;
    files::remove_if_there(destination)?;
    fs::rename(&partial, destination).with_context(|| format!("cannot rename {}", partial.display()))?;
    println!(
        "{}: {:.1} MB, {} GPU test binaries, {} benchmarks, {} examples",
        destination.display(),
        megabytes(total),
        gpu_tests.len(),
        benches.len(),
        EXAMPLES.len() + 1
    );
    Ok(())
}

fn build_targets(root: &Path, arguments: &[&str], flag: &str, targets: &[String]) -> Result<Built> {
    if targets.is_empty() {
        return Ok(Built::default());
    }
    let selected = targets.iter().flat_map(|target| [flag, target]);
    cargo::build(root, &arguments.iter().copied().chain(selected).collect::<Vec<_>>())
}

/// The engine in C, with the C library inside it, and the kernels that it loads.
fn build_c_example(root: &Path, folder: &Path) -> Result<()> {
    let library = cargo::build(root, &["rustc", "--release", "--package=smidgen-capi", "--lib", "--crate-type=staticlib"])?;
    let library = library.file("smidgen_capi", "a")?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c11", "-O2", "-s", "-Iinclude", "examples/c/saxpy.c", "-o"]).arg(folder.join("c_saxpy")).arg(library);
    let status =
        gcc.args(["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"]).current_dir(root).status().context("cannot run gcc")?;
    ensure!(status.success(), "gcc failed on examples/c/saxpy.c");
    fs::copy(root.join("examples/saxpy.ptx"), folder.join("saxpy.ptx")).context("cannot copy examples/saxpy.ptx")?;
    Ok(())
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").arg("-o").args([to, from]).status().context("cannot run strip: install binutils")?;
    ensure!(status.success(), "strip failed on {}", from.display());
    Ok(())
}

/// The commit that was built, marked where the working tree differs from it.
fn commit(root: &Path) -> Result<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).current_dir(root).output();
    let output = output.context("cannot run git, which names the commit")?;
    ensure!(output.status.success(), "git cannot name the commit: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The size of all files in `folder`, or an error that names the largest where that is too much.
fn check_size(folder: &Path) -> Result<u64> {
    let mut sizes = Vec::new();
    for file in files::under(folder)? {
        sizes.push((fs::metadata(&file)?.len(), file));
    }
    let total = sizes.iter().map(|(bytes, _)| bytes).sum();
    if total > LARGEST_BYTES {
        sizes.sort();
        let largest: Vec<_> =
            sizes.iter().rev().take(8).map(|(bytes, file)| format!("{:.1} MB {}", megabytes(*bytes), file.display())).collect();
        bail!("{:.1} MB, but a bundle is {} MB at most; the largest:\n{}", megabytes(total), LARGEST_BYTES / 1_000_000, largest.join("\n"));
    }
    Ok(total)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::check_size;

    #[test]
    fn a_bundle_that_is_too_large_is_an_error_that_names_the_largest_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("tests")).expect("a folder");
        File::create(folder.path().join("tests/gpu_large")).and_then(|file| file.set_len(66_000_001)).expect("a sparse file");
        File::create(folder.path().join("smidgen")).and_then(|file| file.set_len(10)).expect("a file");
        let message = check_size(folder.path()).expect_err("too large").to_string();
        assert!(message.find("gpu_large") < message.find("smidgen"), "{message}");
        assert!(message.contains("gpu_large"), "{message}");
    }

    #[test]
    fn the_size_of_a_bundle_counts_every_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("tests")).expect("a folder");
        for (path, bytes) in [("tests/gpu_a", 1000), ("smidgen", 24)] {
            File::create(folder.path().join(path)).and_then(|file| file.set_len(bytes)).expect("a file");
        }
        assert_eq!(check_size(folder.path()).expect("small enough"), 1024);
    }
}
