//! `cargo xtask header`: the C side of the runtime.
//!
//! `runtime/capi` is the one definition; cbindgen derives `include/smidgen.h` from it, documentation included. The result is checked in, so that
//! a C engine needs no Rust to read it, and `--check` proves that it still follows from the crate.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Writes the header of the crate in `source`, or with `check` only compares it with what is there.
pub fn run(source: &Path, header: &Path, check: bool) -> Result<()> {
    let current = generate(source)?;
    if check {
        let stored = fs::read_to_string(header).with_context(|| format!("cannot read {}", header.display()))?;
        ensure!(stored == current, "{} does not follow from {}: run `cargo xtask header`", header.display(), source.display());
        return Ok(());
    }
    fs::write(header, current).with_context(|| format!("cannot write {}", header.display()))
}

fn generate(source: &Path) -> Result<String> {
    let settings = source.join("cbindgen.toml");
    let config = cbindgen::Config::from_file(&settings).map_err(anyhow::Error::msg).with_context(|| settings.display().to_string())?;
    let bindings = cbindgen::Builder::new().with_crate(source).with_config(config).generate();
    let bindings = bindings.with_context(|| format!("{}: cbindgen refuses it", source.display()))?;
    let mut header = Vec::new();
    bindings.write(&mut header);
    Ok(String::from_utf8(header)?)
}
