//! `cargo xtask abi`: the Rust side of the structs that cross from Rust to the kernels.
//!
//! `kernels/abi.h` is the one definition; bindgen derives `kernels/abi.rs` from it. The result is checked in, so that building needs no
//! libclang, and `--check` proves that it still follows from the header. bindgen needs a libclang to do either; where the machine has none,
//! a pinned wheel is unpacked beside the CUDA compiler.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use bindgen::{Formatter, RustEdition, RustTarget};

use crate::toolchain;

const LIBCLANG_WHEEL: &str = "libclang==18.1.1";
const LIBCLANG_FOLDER: &str = ".toolchain/libclang-18.1.1";

/// The lints that generated code is excused from: it keeps C's names, and `abi.h` need not document every field.
const PREAMBLE: &str =
    "//! The structs that cross from Rust to the kernels. Generated from `abi.h` by `cargo xtask abi`: change that file, not this one.
#![allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all, rustdoc::all)]";

/// Writes the bindings of `header` to `bindings`, or with `check` only compares them with what is there.
pub fn run(root: &Path, header: &Path, bindings: &Path, check: bool) -> Result<()> {
    let current = generate(root, header)?;
    if check {
        let stored = fs::read_to_string(bindings).with_context(|| format!("cannot read {}", bindings.display()))?;
        ensure!(stored == current, "{} does not follow from {}: run `cargo xtask abi`", bindings.display(), header.display());
        return Ok(());
    }
    fs::write(bindings, current).with_context(|| format!("cannot write {}", bindings.display()))
}

/// Loads a libclang into this process: the one that `LIBCLANG_PATH` names, the system's, or else the pinned wheel's.
pub fn ensure_libclang(root: &Path) -> Result<()> {
    if clang_sys::is_loaded() || clang_sys::load().is_ok() {
        return Ok(());
    }
    toolchain::install(root, LIBCLANG_FOLDER, "libclang (25 MB to download)", &[LIBCLANG_WHEEL])?;
    let folder = root.join(LIBCLANG_FOLDER).join("clang/native");
    // SAFETY: chores run on the main thread and nothing here starts another, so no one reads the environment meanwhile.
    unsafe { env::set_var("LIBCLANG_PATH", &folder) };
    if let Err(reason) = clang_sys::load() {
        bail!("the libclang that was just installed does not load: {reason}");
    }
    Ok(())
}

fn generate(root: &Path, header: &Path) -> Result<String> {
    ensure!(header.is_file(), "{}: no such header", header.display());
    ensure_libclang(root)?;
    let name = header.to_str().with_context(|| format!("{}: the path is not UTF-8", header.display()))?;
    bindgen::Builder::default()
        .header(name)
        // Plain comments become documentation, as well as those in Doxygen's form.
        .clang_args(["-x", "c", "-std=c11", "-fparse-all-comments", "-Wno-pragma-once-outside-header"])
        .clang_args(compiler_headers())
        .allowlist_file(format!(".*{}", header.file_name().unwrap_or_default().to_string_lossy().replace('.', "\\.")))
        .allowlist_recursively(false)
        .derive_copy(true)
        .derive_debug(true)
        .layout_tests(true)
        .disable_header_comment()
        .raw_line(PREAMBLE)
        .rust_target(RustTarget::stable(85, 0).map_err(|error| anyhow::anyhow!("{error}"))?)
        .rust_edition(RustEdition::Edition2024)
        .formatter(Formatter::Rustfmt)
        .rustfmt_configuration_file(Some(root.join("rustfmt.toml")))
        .generate()
        .map(|bindings| bindings.to_string())
        .with_context(|| format!("{}: bindgen refuses it", header.display()))
}

/// gcc's own headers, searched last: a libclang without its clang has no `stddef.h` of its own.
fn compiler_headers() -> Vec<String> {
    let answer = Command::new("gcc").arg("-print-file-name=include").output();
    let folder = answer.ok().filter(|answer| answer.status.success()).and_then(|answer| String::from_utf8(answer.stdout).ok());
    folder.map(|folder| vec!["-idirafter".to_owned(), folder.trim().to_owned()]).unwrap_or_default()
}
