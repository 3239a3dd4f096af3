//! Which CUDA compiler is used, by way of `cargo xtask toolchain` on machines made up of scripts that answer like nvcc.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A program at `path` that answers `--version` as nvcc of `version` does.
fn nvcc_of_version(version: &str, path: &Path) {
    let release: Vec<_> = version.split('.').take(2).collect();
    let line = format!("Cuda compilation tools, release {}, V{version}", release.join("."));
    program(path, &format!("echo '{line}'"));
}

fn program(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

struct Machine {
    folder: TempDir,
    toolchain: Command,
}

impl Machine {
    /// A machine with nothing but a shell.
    fn bare() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut toolchain = Command::new(env!("CARGO_BIN_EXE_xtask"));
        toolchain.arg("toolchain").env_remove("NVCC").env_remove("CUDA_HOME").env("PATH", "");
        Self { folder, toolchain }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn run(&mut self) -> Output {
        self.toolchain.output().expect("xtask runs")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn nvcc_named_by_its_variable_comes_before_all_others() {
    let mut machine = Machine::bare();
    nvcc_of_version("13.2.51", &machine.path("own/nvcc"));
    nvcc_of_version("13.1.80", &machine.path("home/bin/nvcc"));
    let (own, home) = (machine.path("own/nvcc"), machine.path("home"));
    let output = machine.toolchain.env("NVCC", own).env("CUDA_HOME", home).output().expect("xtask runs");
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("13.2.51") && said(&output).contains("from NVCC"), "{}", said(&output));
}

#[test]
fn a_cuda_home_that_is_too_old_gives_way_to_the_path() {
    let mut machine = Machine::bare();
    nvcc_of_version("12.4.131", &machine.path("home/bin/nvcc"));
    nvcc_of_version("13.1.80", &machine.path("bin/nvcc"));
    let (home, bin) = (machine.path("home"), machine.path("bin"));
    machine.toolchain.env("CUDA_HOME", home).env("PATH", bin);
    let output = machine.run();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("13.1.80") && said(&output).contains("from PATH"), "{}", said(&output));
}

#[test]
fn a_variable_that_names_an_old_compiler_is_an_error_that_says_which_version_it_is() {
    let mut machine = Machine::bare();
    nvcc_of_version("12.9.86", &machine.path("nvcc"));
    let nvcc = machine.path("nvcc");
    machine.toolchain.env("NVCC", nvcc);
    let output = machine.run();
    assert!(!output.status.success());
    assert!(said(&output).contains("is version 12.9.86") && said(&output).contains("unset NVCC"), "{}", said(&output));
}

#[test]
fn a_variable_that_names_something_else_is_an_error_that_says_so() {
    let mut machine = Machine::bare();
    program(&machine.path("nvcc"), "echo 'not a compiler'");
    let nvcc = machine.path("nvcc");
    machine.toolchain.env("NVCC", nvcc);
    let output = machine.run();
    assert!(!output.status.success());
    assert!(said(&output).contains("does not answer like nvcc"), "{}", said(&output));
}
