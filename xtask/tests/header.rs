//! The C header, by way of `cargo xtask header`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn header(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).arg("header").args(arguments).output().expect("xtask runs")
}

fn checked_in() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/smidgen.h")).expect("the header is checked in")
}

#[test]
fn the_checked_in_header_follows_from_the_crate() {
    let output = header(&["--check"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_header_that_was_edited_is_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let edited = folder.path().join("smidgen.h");
    fs::write(&edited, checked_in().replacen("uint32_t", "uint64_t", 1)).expect("writable");
    let output = header(&["--check", "--header", edited.to_str().expect("UTF-8")]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("cargo xtask header"), "the error names the command to run");
}

#[test]
fn every_function_and_every_field_of_the_header_is_documented() {
    let header = checked_in();
    let lines: Vec<&str> = header.lines().collect();
    let mut declared = 0;
    for (at, line) in lines.iter().enumerate() {
        let function = line.starts_with("smidgen_status ") || line.starts_with("const char *") || line.starts_with("uint32_t ");
        let field_or_value = line.starts_with("    ") && (line.ends_with(';') || line.ends_with(',')) && !line.contains("//");
        // Parameters of a function that takes several lines are indented further.
        let continued = line.starts_with("     ");
        if (function || field_or_value) && !continued {
            declared += 1;
            let above = lines[at - 1].trim_start();
            assert!(above.starts_with("//"), "line {}: `{line}` has no documentation", at + 1);
        }
    }
    assert!(declared > 100, "only {declared} declarations were found");
}
