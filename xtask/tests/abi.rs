//! The bindings of `kernels/abi.h`, by way of `cargo xtask abi`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `xtask abi` with `arguments`; `None` where the machine has no libclang. `cargo xtask test` puts one there first, so that nothing is
/// passed over where it counts.
fn abi(arguments: &[&str]) -> Option<Output> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.toolchain/libclang-18.1.1");
    if clang_sys::load().is_err() && !installed.exists() {
        eprintln!("not checked: this machine has no libclang (`cargo xtask test` brings one)");
        return None;
    }
    Some(Command::new(env!("CARGO_BIN_EXE_xtask")).arg("abi").args(arguments).output().expect("xtask runs"))
}

fn on_files(folder: &Path, header: &str, check: bool) -> Option<Output> {
    let [header_path, bindings_path] = ["abi.h", "abi.rs"].map(|name| folder.join(name));
    fs::write(&header_path, header).expect("the folder is writable");
    let mut arguments = vec!["--header", header_path.to_str().expect("UTF-8"), "--bindings", bindings_path.to_str().expect("UTF-8")];
    arguments.extend(check.then_some("--check"));
    abi(&arguments)
}

#[test]
fn the_checked_in_bindings_follow_from_the_header() {
    let Some(output) = abi(&["--check"]) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_header_changed_after_its_bindings_is_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(generated) = on_files(folder.path(), "struct Tiles { int count; };", false) else { return };
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));

    let unchanged = on_files(folder.path(), "struct Tiles { int count; };", true).expect("libclang was there");
    assert!(unchanged.status.success(), "{}", String::from_utf8_lossy(&unchanged.stderr));

    let changed = on_files(folder.path(), "struct Tiles { int count; int joins; };", true).expect("libclang was there");
    assert!(!changed.status.success());
    assert!(String::from_utf8_lossy(&changed.stderr).contains("cargo xtask abi"), "the error names the command to run");
}

#[test]
fn comments_in_the_header_document_the_bindings_and_layouts_are_asserted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let header = "#include <stdint.h>\n// One operand.\ntypedef struct Operand {\n    uint64_t address; // in device memory\n} Operand;\n";
    let Some(generated) = on_files(folder.path(), header, false) else { return };
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));

    let bindings = fs::read_to_string(folder.path().join("abi.rs")).expect("bindings were written");
    for expected in ["One operand.", "in device memory", "pub address: u64", "Size of Operand", "derive(Debug, Copy, Clone)"] {
        assert!(bindings.contains(expected), "no {expected:?} in\n{bindings}");
    }
    assert!(!bindings.contains("uint64_t"), "what the header includes stays out of the bindings");
}

#[test]
fn a_header_that_is_not_c_is_an_error_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(output) = on_files(folder.path(), "struct Tiles { unknown count; };", false) else { return };
    assert!(!output.status.success());
    assert!(!folder.path().join("abi.rs").exists());
}
