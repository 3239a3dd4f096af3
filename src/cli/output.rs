//! Files that commands write. A file is there whole or not at all: an earlier one survives until its successor is complete.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use tempfile::NamedTempFile;

/// A file that appears under its name only when it is whole; until then it is a temporary beside it, gone if anything fails.
pub struct Unfinished {
    path: PathBuf,
    file: NamedTempFile,
}

impl Unfinished {
    /// Begins the file `path`.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            bail!("{}: is a folder; give the name of a file", path.display());
        }
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        // As any new file has them, instead of the private ones of a temporary; the process's mask still applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // The error's own text names the temporary, which nobody asked for.
        let file = builder.prefix(".smidgen-").tempfile_in(folder).map_err(|error| {
            anyhow!("{}: cannot be written ({}); give a file in a folder that exists and is writable", path.display(), error.kind())
        })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Puts `contents` on the disk, still under the temporary's name.
    pub fn write(&mut self, contents: &[u8]) -> anyhow::Result<()> {
        let written = self.file.write_all(contents).and_then(|()| self.file.as_file().sync_all());
        written.with_context(|| format!("{}: cannot be written; check that its disk has room", self.path.display()))
    }

    /// Gives the file its name, in place of an earlier one.
    pub fn finish(self) -> anyhow::Result<()> {
        let path = self.path;
        self.file.persist(&path).with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(())
    }
}

/// Refuses a path that cannot be written, so that a long run does not end there.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    Unfinished::create(path).map(drop)
}
