//! Finds a CUDA compiler on this machine, and the folder that keeps what it made.
//!
//! `build.rs` includes this file too, so that the build and the chores always agree on both. It needs nothing beyond the standard library for
//! that reason.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest CUDA release whose compiler is accepted: the one that the pinned wheels carry and that the driver bindings are made for.
const OLDEST: (u32, u32) = (13, 0);

/// Where `cargo xtask toolchain` unpacks the compiler, below the repository root. It carries the version, so that a new pin installs anew.
pub const INSTALLED: &str = ".toolchain/cuda-13.0.88";

/// A usable CUDA compiler.
#[derive(Debug, Clone)]
pub struct Nvcc {
    /// The executable.
    pub path: PathBuf,
    /// The full version, such as `13.0.88`.
    pub version: String,
    /// What named it: an environment variable, or this project's own folder.
    pub named_by: &'static str,
}

impl fmt::Display for Nvcc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nvcc {} at {} (from {})", self.version, self.path.display(), self.named_by)
    }
}

/// No usable compiler, and why each place was passed over.
#[derive(Debug)]
pub struct NotFound {
    passed_over: Vec<String>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = OLDEST;
        write!(f, "no CUDA compiler of version {major}.{minor} or newer ({})", self.passed_over.join("; "))
    }
}

impl std::error::Error for NotFound {}

/// Looks in `NVCC`, `CUDA_HOME/bin`, `PATH` and the project's own toolchain folder below `root`, in this order.
///
/// A compiler that is too old or does not run is passed over, except one named by `NVCC`: who sets that wants no other.
///
/// # Errors
/// [`NotFound`] says what was found in each place.
pub fn find(root: &Path) -> Result<Nvcc, NotFound> {
    let mut passed_over = Vec::new();
    if let Some(path) = set("NVCC") {
        return inspect(path.into(), "NVCC").map_err(|reason| NotFound { passed_over: vec![format!("NVCC: {reason}")] });
    }
    passed_over.push("NVCC: not set".to_owned());

    let home = set("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let on_path = env::split_paths(&env::var_os("PATH").unwrap_or_default()).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    let installed = Some(root.join(INSTALLED).join("nvidia/cu13/bin/nvcc")).filter(|nvcc| nvcc.is_file());
    let places = [
        ("CUDA_HOME", home, "not set"),
        ("PATH", on_path, "holds no nvcc"),
        ("the project's .toolchain", installed, "nothing is installed"),
    ];
    for (place, candidate, absent) in places {
        match candidate.map(|path| inspect(path, place)) {
            Some(Ok(nvcc)) => return Ok(nvcc),
            Some(Err(reason)) => passed_over.push(format!("{place}: {reason}")),
            None => passed_over.push(format!("{place}: {absent}")),
        }
    }
    Err(NotFound { passed_over })
}

/// Where compiled kernels are kept, given a build script's output folder: beside the profiles' folders in cargo's target folder.
///
/// A build script has an output folder for each profile, and one more under clippy, but kernels come out the same in all of them.
pub fn objects_folder(out_dir: &Path) -> PathBuf {
    let target = out_dir.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    target.unwrap_or(out_dir).join("kernels")
}

/// An environment variable, where one that is empty counts as not set.
fn set(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn inspect(path: PathBuf, named_by: &'static str) -> Result<Nvcc, String> {
    let answer = Command::new(&path).arg("--version").output().map_err(|error| format!("{} does not run: {error}", path.display()))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let Some(version) = parse_version(&text) else {
        return Err(format!("{} --version does not answer like nvcc", path.display()));
    };
    if release(version) < Some(OLDEST) {
        return Err(format!("{} is version {version}", path.display()));
    }
    Ok(Nvcc { version: version.to_owned(), path, named_by })
}

/// The `13.0.88` of `Cuda compilation tools, release 13.0, V13.0.88`.
fn parse_version(text: &str) -> Option<&str> {
    let version = text.split(", V").nth(1)?.lines().next()?.trim();
    release(version).map(|_| version)
}

fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}
