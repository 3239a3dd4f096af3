//! An MPS daemon of our own, in a private folder, quit when dropped. Whatever daemon the machine runs already is left alone.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::interrupts::{self, Held};

const CONTROL: &str = "nvidia-cuda-mps-control";

/// Why there is no MPS daemon.
#[derive(Debug, thiserror::Error)]
pub enum MpsError {
    /// The program is not on the PATH.
    #[error(
        "`{CONTROL}` is not on the PATH: policies such as mps-default need it; it comes with the NVIDIA driver (package nvidia-compute-utils)"
    )]
    Missing,
    /// It did not start.
    #[error("`{CONTROL} -d` failed: {0}")]
    Failed(String),
    /// Tenants run, but no MPS server does: what would be measured is time slicing.
    #[error("the tenants did not connect to the MPS daemon; the end of its control.log: {0}")]
    Unused(String),
    /// The user wants to stop.
    #[error("interrupted; the MPS daemon was quit")]
    Interrupted,
    /// Interrupts cannot be caught, so that the daemon could be left behind.
    #[error("cannot catch interrupts: {0}")]
    Signals(io::Error),
    /// The private folder could not be made.
    #[error("cannot make a private folder for the MPS daemon: {0}")]
    Folder(io::Error),
}

/// The daemon's program, so that a run can be refused before it begins.
///
/// # Errors
/// [`MpsError::Missing`] if it is not on the PATH.
pub fn find() -> Result<PathBuf, MpsError> {
    find_in(&std::env::var_os("PATH").unwrap_or_default())
}

fn find_in(path: &OsStr) -> Result<PathBuf, MpsError> {
    std::env::split_paths(path).map(|folder| folder.join(CONTROL)).find(|program| program.is_file()).ok_or(MpsError::Missing)
}

/// A running daemon.
///
/// While it runs, an [interrupt](interrupts) does not end this process at once, which would leave the daemon behind: it is noted, and
/// [`MpsDaemon::check_not_interrupted`] tells.
pub struct MpsDaemon {
    /// Short, because the daemon's socket path must fit in 107 bytes.
    folder: TempDir,
    /// Last, so that all of the above is gone before an interrupt may end the process.
    interrupts: Held,
}

impl MpsDaemon {
    /// Starts a daemon with default settings.
    ///
    /// # Errors
    /// [`MpsError`], with what to do.
    #[tracing::instrument(level = "debug", name = "start MPS daemon", skip_all)]
    pub fn start() -> Result<Self, MpsError> {
        let folder = tempfile::Builder::new().prefix("mps").rand_bytes(6).tempdir().map_err(MpsError::Folder)?;
        let daemon = Self { folder, interrupts: interrupts::hold().map_err(MpsError::Signals)? };
        let output = daemon.control().arg("-d").stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => Ok(daemon),
            Ok(output) => Err(MpsError::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MpsError::Missing),
            Err(error) => Err(MpsError::Failed(error.to_string())),
        }
    }

    /// What a client process must find in its environment.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("CUDA_MPS_PIPE_DIRECTORY", self.folder.path()), ("CUDA_MPS_LOG_DIRECTORY", self.folder.path())]
    }

    /// Makes sure that clients are really served by this daemon.
    ///
    /// # Errors
    /// [`MpsError::Unused`] if they are not.
    pub fn check_in_use(&self) -> Result<(), MpsError> {
        let servers = self.ask("get_server_list").map_err(|error| MpsError::Failed(error.to_string()))?;
        if servers.trim().is_empty() { Err(MpsError::Unused(self.end_of_log())) } else { Ok(()) }
    }

    /// Whether the run may go on.
    ///
    /// # Errors
    /// [`MpsError::Interrupted`] once an interrupt has come.
    pub fn check_not_interrupted(&self) -> Result<(), MpsError> {
        if self.interrupts.came() { Err(MpsError::Interrupted) } else { Ok(()) }
    }

    /// Its folder is gone before anybody could look.
    fn end_of_log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("control.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    fn control(&self) -> Command {
        let mut command = Command::new(CONTROL);
        command.envs(self.environment());
        command
    }

    #[tracing::instrument(level = "debug", name = "ask MPS daemon", skip_all, fields(question = question))]
    fn ask(&self, question: &str) -> io::Result<String> {
        let mut child = self.control().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            writeln!(stdin, "{question}")?;
        }
        Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned())
    }
}

impl Drop for MpsDaemon {
    fn drop(&mut self) {
        if let Err(error) = self.ask("quit") {
            tracing::warn!("could not quit the MPS daemon in {}: {error}", self.folder.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_daemon_is_refused_by_policy_and_with_what_to_install() {
        let folder = tempfile::tempdir().unwrap();
        let error = find_in(folder.path().as_os_str()).unwrap_err().to_string();
        assert!(["mps-default", "PATH", "nvidia-compute-utils"].iter().all(|part| error.contains(part)), "{error}");
        assert!(!error.contains("--policy"), "not every command has it: {error}");
        let run = crate::colocate::RunError::from(MpsError::Missing).to_string();
        assert!(run.starts_with(&error) && run.ends_with("out of --policy"), "{run}");
        std::fs::write(folder.path().join(CONTROL), "").unwrap();
        assert_eq!(find_in(folder.path().as_os_str()).unwrap(), folder.path().join(CONTROL));
    }
}
