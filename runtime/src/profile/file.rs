//! The profile file: read whole, checked, written whole. A reader never sees half a file, whenever the writer is interrupted.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::Deserialize;

use super::check::check;
use super::layout::to_json;
use super::{Profile, ProfileError, SCHEMA_VERSION};

/// The end of an unfinished file's name.
const TEMPORARY: &str = ".tmp";

/// A writer takes milliseconds: what has not changed for so long has none any more, also where clocks of several machines differ.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The one field that every version of the schema has.
#[derive(Deserialize)]
struct Versioned {
    schema: u64,
}

impl Profile {
    /// Reads and checks a profile file.
    ///
    /// # Errors
    /// [`ProfileError::Read`], [`ProfileError::NotAFile`], [`ProfileError::NotAProfile`], [`ProfileError::Malformed`], [`ProfileError::Schema`] or [`ProfileError::Field`].
    #[tracing::instrument(level = "debug", name = "read profile", skip_all, fields(path = %path.display()))]
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        refuse_others_than_files(path)?;
        let text = fs::read(path).map_err(|source| ProfileError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// The profile that `text` holds, and checks it. Errors name it `path`.
    ///
    /// # Errors
    /// [`ProfileError::NotAProfile`], [`ProfileError::Malformed`], [`ProfileError::Schema`] or [`ProfileError::Field`].
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, ProfileError> {
        let malformed = |error| malformed(path, text, &error);
        // The version first: another version's fields are not flaws of this one's.
        let Versioned { schema } = serde_json::from_slice(text).map_err(malformed)?;
        if schema != u64::from(SCHEMA_VERSION) {
            return Err(ProfileError::Schema { path: path.to_owned(), found: schema });
        }
        let profile: Self = serde_json::from_slice(text).map_err(malformed)?;
        profile.checked(path)?;
        Ok(profile)
    }

    /// Checks the profile and puts it in `path`, whose folders are made if they are not there. The file appears, or is replaced, in one step.
    ///
    /// # Errors
    /// [`ProfileError::Field`] for a profile that could not be read back, [`ProfileError::NotAFile`], [`ProfileError::Write`] with what the system says. A file that was
    /// there before is unharmed then.
    #[tracing::instrument(level = "debug", name = "write profile", skip_all, fields(path = %path.display()))]
    pub fn write(&self, path: &Path) -> Result<(), ProfileError> {
        self.checked(path)?;
        refuse_others_than_files(path)?;
        let text = to_json(self).map_err(io::Error::from);
        text.and_then(|text| replace(path, &text)).map_err(|source| ProfileError::Write { path: path.to_owned(), source })
    }

    pub(super) fn checked(&self, path: &Path) -> Result<(), ProfileError> {
        check(self).map_err(|flaw| ProfileError::Field {
            path: path.to_owned(),
            field: flaw.field,
            reason: flaw.reason,
            command: self.provenance.command_again(path),
        })
    }
}

fn refuse_others_than_files(path: &Path) -> Result<(), ProfileError> {
    match fs::metadata(path) {
        Ok(there) if !there.is_file() => Err(ProfileError::NotAFile { path: path.to_owned(), is_folder: there.is_dir() }),
        // What cannot be looked at says why when it is opened.
        _ => Ok(()),
    }
}

/// A field that nothing but a profile has, near the beginning, so that a profile that was cut short still has it.
const TELLTALE: &[u8] = b"\"kernel_build\"";

fn malformed(path: &Path, contents: &[u8], error: &serde_json::Error) -> ProfileError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let reason = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text).to_owned();
    let path = path.to_owned();
    if contents.windows(TELLTALE.len()).any(|window| window == TELLTALE) {
        ProfileError::Malformed { path, line, column, reason }
    } else {
        ProfileError::NotAProfile { path, line, column, reason }
    }
}

/// Writes beside the target and renames over it, which the system does in one step within a folder.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    if let Some(folder) = path.parent() {
        // An empty parent is the current folder, which is there.
        if !folder.as_os_str().is_empty() {
            fs::create_dir_all(folder)?;
        }
    }
    static WRITES: AtomicU32 = AtomicU32::new(0);
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    remove_abandoned(path, &hidden);
    hidden.push(format!("{}-{}{TEMPORARY}", process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
    let unfinished = Unfinished(path.with_file_name(hidden));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&unfinished.0)?;
    write_through(&mut file, text)?;
    fs::rename(&unfinished.0, path)
}

/// Removes what writers of `path` that were interrupted have left beside it, under names that begin with `hidden`. Where that cannot be done, it is
/// left to the next one.
fn remove_abandoned(path: &Path, hidden: &OsStr) {
    let Ok(entries) = fs::read_dir(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))) else { return };
    let is_abandoned = |entry: &DirEntry| {
        let name = entry.file_name();
        let numbers =
            name.as_encoded_bytes().strip_prefix(hidden.as_encoded_bytes()).and_then(|rest| rest.strip_suffix(TEMPORARY.as_bytes()));
        let is_ours =
            numbers.is_some_and(|numbers| !numbers.is_empty() && numbers.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-'));
        let age = || entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
        is_ours && age().is_some_and(|age| age > ABANDONED)
    };
    for entry in entries.flatten().filter(is_abandoned) {
        let _ = fs::remove_file(entry.path());
    }
}

/// On the disk before the rename, so that a crash cannot leave an empty file under the final name.
fn write_through(file: &mut File, text: &[u8]) -> io::Result<()> {
    file.write_all(text)?;
    file.sync_all()
}

/// A temporary file that goes away unless it was renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the rename there is nothing of this name, which is the usual case.
        let _ = fs::remove_file(&self.0);
    }
}
