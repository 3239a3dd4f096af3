//! Runs the `cargo` that runs this program, and reads what it answers in JSON.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// `cargo` in the repository's root.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// What a build left behind.
#[derive(Debug, Default)]
pub struct Built {
    /// Every executable, by the name of its target.
    pub executables: Vec<(String, PathBuf)>,
    /// Every other file, by the name of its target.
    pub files: Vec<(String, PathBuf)>,
    /// The folder that the root package's build script wrote to.
    pub kernels_out: Option<PathBuf>,
}

impl Built {
    /// The executable of the target `name`.
    pub fn executable(&self, name: &str) -> Result<&Path> {
        let found = self.executables.iter().find(|(target, _)| target == name);
        found.map(|(_, path)| path.as_path()).with_context(|| format!("cargo built no executable named {name}"))
    }

    /// The file of the library target `name` with this extension.
    pub fn file(&self, name: &str, extension: &str) -> Result<&Path> {
        let found = self.files.iter().find(|(target, path)| target == name && path.extension().is_some_and(|found| found == extension));
        found.map(|(_, path)| path.as_path()).with_context(|| format!("cargo built no .{extension} of {name}"))
    }
}

/// Builds as `arguments` say; the compiler's messages go to the terminal.
pub fn build(root: &Path, arguments: &[&str]) -> Result<Built> {
    let mut command = cargo(root);
    command.args(arguments).arg("--message-format=json-render-diagnostics").stdout(Stdio::piped()).stdin(Stdio::null());
    let output = command.spawn().and_then(|child| child.wait_with_output()).context("cannot run cargo")?;
    if !output.status.success() {
        bail!("`cargo {}` failed; what it said is above", arguments.join(" "));
    }
    let mut built = Built::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).with_context(|| format!("cargo answered what is not JSON: {line}"))?;
        match message["reason"].as_str() {
            Some("compiler-artifact") => {
                let Some(name) = message["target"]["name"].as_str() else { continue };
                if let Some(path) = message["executable"].as_str() {
                    built.executables.push((name.to_owned(), path.into()));
                }
                let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str);
                built.files.extend(files.map(|path| (name.to_owned(), path.into())));
            }
            Some("build-script-executed") if is_root_package(&message["package_id"], root) => {
                built.kernels_out = message["out_dir"].as_str().map(PathBuf::from);
            }
            _ => {}
        }
    }
    Ok(built)
}

/// The names of the workspace's targets of one kind (`test`, `bench`).
pub fn targets(root: &Path, kind: &str) -> Result<Vec<String>> {
    let output = cargo(root).args(["metadata", "--no-deps", "--format-version=1"]).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("`cargo metadata` answered what is not JSON")?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    Ok(packages
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|found| found == kind)))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

/// Package ids are URLs: `path+file:///folder#name@version`, or without the name where it is the folder's.
fn is_root_package(id: &Value, root: &Path) -> bool {
    id.as_str()
        .and_then(|id| id.strip_prefix("path+file://"))
        .and_then(|id| id.split('#').next())
        .is_some_and(|folder| Path::new(folder) == root)
}
