//! The scripts of a bundle, with test binaries that are scripts themselves.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Answers like a test binary with one GPU test named `case`, which passes if `BODY` does.
const TEST_BINARY: &str = r#"#!/bin/sh
case " $* " in
    *" other "*) selected=no ;;
    *) selected=yes ;;
esac
case " $* " in
    *" --list "*) [ $selected = no ] || echo "case: test"; exit 0 ;;
esac
BODY
"#;

fn bundle(binaries: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bundle");
    for name in ["run-gpu-tests", "run-benches"] {
        executable(&folder.path().join(name), &fs::read_to_string(scripts.join(name)).expect("the script is there"));
    }
    for (path, body) in binaries {
        executable(&folder.path().join(path), &TEST_BINARY.replace("BODY", body));
    }
    folder
}

fn executable(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, text).expect("writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

fn run(bundle: &TempDir, script: &str, arguments: &[&str]) -> Output {
    Command::new(bundle.path().join(script)).args(arguments).current_dir("/").output().expect("the script runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn tests_that_pass_end_in_success_and_are_counted() {
    let output = run(&bundle(&[("tests/gpu_a", "exit 0"), ("tests/gpu_b", "exit 0")]), "run-gpu-tests", &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("all 2 selected"), "{}", said(&output));
}

#[test]
fn one_failure_fails_the_run_names_its_binary_and_lets_the_others_run() {
    let output = run(&bundle(&[("tests/gpu_a", "exit 101"), ("tests/gpu_b", "echo b ran")]), "run-gpu-tests", &[]);
    assert!(!output.status.success());
    assert!(said(&output).contains("FAILED: gpu_a") && said(&output).contains("b ran"), "{}", said(&output));
}

#[test]
fn a_filter_that_selects_nothing_is_a_failure() {
    let output = run(&bundle(&[("tests/gpu_a", "exit 0")]), "run-gpu-tests", &["other"]);
    assert!(!output.status.success());
    assert!(said(&output).contains("no GPU test was selected"), "{}", said(&output));
}

#[test]
fn a_bundle_without_tests_is_a_failure() {
    assert!(!run(&bundle(&[]), "run-gpu-tests", &[]).status.success());
}

#[test]
fn tests_find_fixtures_and_the_command_in_the_bundle_and_run_one_at_a_time() {
    let bundle = bundle(&[("tests/gpu_a", r#"echo "$SMIDGEN_FIXTURES $SMIDGEN_BIN $*""#)]);
    let output = run(&bundle, "run-gpu-tests", &["--nocapture"]);
    let folder = bundle.path().display();
    let expected = format!("{folder}/fixtures {folder}/smidgen --ignored --test-threads=1 --nocapture");
    assert!(said(&output).contains(&expected), "{}", said(&output));
}

#[test]
fn a_benchmark_that_fails_fails_the_run() {
    let bundle = bundle(&[("benches/kernels", "exit 1"), ("benches/launch", "echo launch ran")]);
    let output = run(&bundle, "run-benches", &[]);
    assert!(!output.status.success());
    assert!(said(&output).contains("FAILED: kernels") && said(&output).contains("launch ran"), "{}", said(&output));
}
