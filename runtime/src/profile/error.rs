//! What can be wrong with a profile: refused ([`ProfileError`]) or used all the same ([`ProfileWarning`]). Each names the file and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use crate::device::Sms;

use super::{SCHEMA_VERSION, quoted};

/// The command that measures a profile into a file.
fn measure_into(path: &Path) -> String {
    format!("smidgen profile --model MODEL -o {}", quoted(&path.display().to_string()))
}

/// Why a profile was not read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}; measure a profile with `{}`", path.display(), measure_into(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is something else than a file, which may have no end, or nobody at the other one.
    #[error("{}: is {}; name a plain file, since a profile is read and saved several times", path.display(), if *is_folder { "a folder" } else { "a device or a pipe" })]
    NotAFile {
        /// Where.
        path: PathBuf,
        /// Whether it is a folder.
        is_folder: bool,
    },
    /// The file cannot be written. What was there before is unharmed.
    #[error("{}: cannot be written: {source}; name a file in a folder that you may write to with `-o`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is something else, so that it is nothing to be measured anew.
    #[error(
        "{}: is no profile (line {line}, column {column}: {reason}); name a file that `smidgen profile` wrote, or a new one for it to write",
        path.display()
    )]
    NotAProfile {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
        /// What is there in place of a profile.
        reason: String,
    },
    /// The file is a damaged profile: not JSON, or its fields are not those of a profile.
    #[error(
        "{}, line {line}, column {column}: {reason}; restore the file, or move it away and run `{}`",
        path.display(),
        measure_into(path)
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The file was written by another version of smidgen.
    #[error(
        "{}: schema: version {found}, but this build reads version {SCHEMA_VERSION}; move it away and run `{}`",
        path.display(),
        measure_into(path)
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u64,
    },
    /// A field holds what cannot be.
    #[error("{}: {field}: {reason}; correct it, or move the file away and run `{command}`", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Where in the file, such as `kernels["gemm[8x8]f16"].points[2].sms`.
        field: String,
        /// What is wrong with it.
        reason: String,
        /// The command that measures the same models here.
        command: String,
    },
    /// The profile is of another GPU.
    #[error(
        "{}: profiled on {found} but this GPU is {here}; move it away and run `{command}` here",
        path.display()
    )]
    GpuMismatch {
        /// The file.
        path: PathBuf,
        /// The GPU in the profile.
        found: String,
        /// The GPU at hand.
        here: String,
        /// The command that measures the same models here.
        command: String,
    },
    /// The profile is of a GPU with another number of SMs, such as another MIG slice.
    #[error(
        "{}: profiled on {found} SMs but this GPU has {here}; move it away and run `{command}` here",
        path.display()
    )]
    SmsMismatch {
        /// The file.
        path: PathBuf,
        /// SMs in the profile.
        found: Sms,
        /// SMs at hand.
        here: Sms,
        /// The command that measures the same models here.
        command: String,
    },
    /// The profile comes out of the simulator, and the GPU at hand is real.
    #[error(
        "{}: SIMULATED, so it says nothing about a real GPU; move it away and run `{command}` here",
        path.display()
    )]
    Simulated {
        /// The file.
        path: PathBuf,
        /// The command that measures the same models here.
        command: String,
    },
}

/// What differs between a profile and the machine it is used on, without making it useless.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProfileWarning {
    /// Measured under another driver.
    #[error("{}: measured with driver {found}, this is {here}; latencies may differ", path.display())]
    Driver {
        /// The file.
        path: PathBuf,
        /// The driver in the profile.
        found: String,
        /// The driver at hand.
        here: String,
    },
    /// Measured with other kernels.
    #[error(
        "{}: measured with kernel build {found}, this is {here}; move it away and run `{command}` for exact placements",
        path.display()
    )]
    KernelBuild {
        /// The file.
        path: PathBuf,
        /// The kernel build in the profile.
        found: String,
        /// The kernel build at hand.
        here: String,
        /// The command that measures the same models here.
        command: String,
    },
    /// The profile holds kernels that one loaded before it holds too, with other results.
    #[error("{}: holds {kernels} kernels again that were loaded before; {}", path.display(), if *replaced { "its figures are used" } else { "the measured figures stay, the simulated ones are left out" })]
    Again {
        /// The file.
        path: PathBuf,
        /// How many kernels.
        kernels: usize,
        /// Whether the figures of this profile are used; simulated figures never replace measured ones.
        replaced: bool,
    },
}
