//! What commands write: lines on standard output, and files. A file is there whole or not at all: an earlier one survives until its successor is complete.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use smidgen::interrupts::{self, Held};
use tempfile::NamedTempFile;

use super::inputs::is_same_file;

/// Prints `text` and ends the line. Where nobody reads any more, that is an error like another, and no panic.
pub fn print_line(text: impl Display) -> anyhow::Result<()> {
    to_stdout(writeln!(io::stdout().lock(), "{text}"))
}

/// What came of writing to standard output, by its name where that has failed.
pub fn to_stdout(written: io::Result<()>) -> anyhow::Result<()> {
    written.context("standard output cannot be written; check where it leads")
}

/// A file that appears under its name only when it is whole; until then it is a temporary beside it, gone if anything fails or an interrupt comes.
pub struct Unfinished {
    /// As it was given.
    path: PathBuf,
    place: Place,
}

enum Place {
    /// Takes the place of the file at the path, where links lead. The temporary comes first, so that it is gone before an interrupt may end the process.
    Beside(NamedTempFile, Held, PathBuf),
    /// A device or a pipe, which has no earlier contents to be kept and must stay what it is. Interrupts do what they usually do: nobody may read it.
    Straight(File),
}

impl Unfinished {
    /// Begins the file `path`.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            bail!("{}: is a folder; give the name of a file", path.display());
        }
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            let opened = File::options().write(true).open(path);
            let file = opened.map_err(|error| anyhow!("{}: cannot be written ({}); give another", path.display(), error.kind()))?;
            return Ok(Self { path: path.to_owned(), place: Place::Straight(file) });
        }
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let held = interrupts::hold().context("interrupts cannot be caught")?;
        let mut builder = tempfile::Builder::new();
        // As any new file has them, instead of the private ones of a temporary; the process's mask still applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // The error's own text names the temporary, which nobody asked for.
        let file = builder.prefix(".smidgen-").tempfile_in(folder).map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::NotFound => "its folder is not there".to_owned(),
                other => other.to_string(),
            };
            anyhow!("{}: cannot be written ({why}); give a file in a folder that exists and is writable", path.display())
        })?;
        Ok(Self { path: path.to_owned(), place: Place::Beside(file, held, target) })
    }

    /// Refuses to go on once an interrupt has come, which did not end the process for the temporary's sake.
    fn check_not_interrupted(&self) -> anyhow::Result<()> {
        if let Place::Beside(_, held, _) = &self.place
            && held.came()
        {
            bail!("interrupted; {} is as it was", self.path.display());
        }
        Ok(())
    }

    /// Puts `contents` on the disk, still under the temporary's name.
    pub fn write(&mut self, contents: &[u8]) -> anyhow::Result<()> {
        let written = match &mut self.place {
            Place::Beside(file, ..) => file.write_all(contents).and_then(|()| file.as_file().sync_all()),
            Place::Straight(file) => file.write_all(contents),
        };
        written.with_context(|| format!("{}: cannot be written; check that its disk has room", self.path.display()))?;
        self.check_not_interrupted()
    }

    /// Gives the file its name, in place of an earlier one.
    pub fn finish(self) -> anyhow::Result<()> {
        if let Place::Beside(file, _held, target) = self.place {
            file.persist(target).with_context(|| format!("{}: cannot be written", self.path.display()))?;
        }
        Ok(())
    }
}

/// Refuses outputs that cannot be written, of which two are one, or that would take the place of one of the `inputs`, so that a long run does not end there.
pub fn check_writable(outputs: &[&Path], inputs: &[PathBuf]) -> anyhow::Result<()> {
    for (at, path) in outputs.iter().enumerate() {
        if outputs[..at].iter().any(|other| place(other) == place(path)) {
            bail!("{}: two outputs cannot be one file; give each a name of its own", path.display());
        }
        check_not_read(path, inputs)?;
        Unfinished::create(path)?.check_not_interrupted()?;
    }
    Ok(())
}

/// Refuses an output that would take the place of one of the `inputs`.
pub fn check_not_read(output: &Path, inputs: &[PathBuf]) -> anyhow::Result<()> {
    match inputs.iter().find(|input| is_same_file(input, output)) {
        Some(input) if input == output => bail!("{}: is read by this very command; give the output another name", output.display()),
        Some(input) => bail!("{}: is {}, which this very command reads; give the output another name", output.display(), input.display()),
        None => Ok(()),
    }
}

/// Where a file is, however its path is written; the file itself may not be there yet.
fn place(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    path.canonicalize().unwrap_or_else(|_| folder.join(path.file_name().unwrap_or_default()))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use parking_lot::Mutex;
    use signal_hook::consts::SIGTERM;

    use super::*;

    /// An interrupt comes for all that is being written: held by each test that writes.
    static WRITING: Mutex<()> = Mutex::new(());

    fn write(path: &Path) -> anyhow::Result<()> {
        let mut file = Unfinished::create(path)?;
        file.write(b"new")?;
        file.finish()
    }

    #[test]
    fn an_interrupt_while_a_file_is_written_leaves_the_earlier_one_and_no_temporary() {
        let _writing = WRITING.lock();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "old").unwrap();
        let names = || fs::read_dir(folder.path()).unwrap().count();
        let mut file = Unfinished::create(&path).unwrap();
        assert_eq!(names(), 2);
        signal_hook::low_level::raise(SIGTERM).unwrap();
        let error = file.write(b"new").unwrap_err().to_string();
        assert!(error.contains("interrupted"), "{error}");
        drop(file);
        assert_eq!((names(), fs::read_to_string(&path).unwrap()), (1, "old".to_owned()));
        // The next is written as ever.
        write(&path).unwrap();
        assert_eq!((names(), fs::read_to_string(&path).unwrap()), (1, "new".to_owned()));
    }

    #[test]
    fn two_names_of_one_file_are_refused_before_either_is_written() {
        let _writing = WRITING.lock();
        let folder = tempfile::tempdir().unwrap();
        let [plain, roundabout, other] = ["out", "./out", "other"].map(|name| folder.path().join(name));
        let roundabout =
            folder.path().join(format!("../{}", folder.path().file_name().unwrap().display())).join(roundabout.file_name().unwrap());
        assert!(check_writable(&[&plain, &other], &[]).is_ok());
        for twice in [&plain, &roundabout] {
            assert!(check_writable(&[&plain, twice], &[]).unwrap_err().to_string().contains("one file"), "{}", twice.display());
        }
    }

    #[test]
    fn a_link_stays_a_link_and_its_target_is_written() {
        let _writing = WRITING.lock();
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "old").unwrap();
        symlink(&target, &link).unwrap();
        write(&link).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(target).unwrap(), "new");
    }

    #[test]
    fn a_device_stays_a_device() {
        write(Path::new("/dev/null")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn two_outputs_are_two_files() {
        let _writing = WRITING.lock();
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        check_writable(&[&one, &other], &[]).unwrap();
        assert!(check_writable(&[&one, &one], &[]).unwrap_err().to_string().contains("a name of its own"));
    }
}
