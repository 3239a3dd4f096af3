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
    for name in ["run-gpu-tests", "run-benches", "run-reach", "run-sanitizer", "run-examples", "run-colocation"] {
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

#[test]
fn an_example_that_fails_fails_the_run_and_those_in_c_are_told_where_their_kernels_are() {
    let bundle =
        bundle(&[("examples/02_rust", r#"echo "queues=$CUDA_DEVICE_MAX_CONNECTIONS""#), ("examples/c_saxpy", r#"echo "ptx=$1"; exit 1"#)]);
    let output = run(&bundle, "run-examples", &[]);
    let said = said(&output);
    assert!(!output.status.success());
    assert!(said.contains("queues=32") && said.contains("ptx=examples/saxpy.ptx") && said.contains("FAILED: c_saxpy"), "{said}");
}

#[test]
fn what_an_example_says_is_kept_below_its_command_commit_and_machine() {
    let bundle = bundle(&[("examples/03_foreign_engine", "echo 12 us a block"), ("examples/c_saxpy", "echo not chosen")]);
    fs::write(bundle.path().join("COMMIT"), "0123abcd\n").expect("writable");
    executable(&bundle.path().join("path/nvidia-smi"), "#!/bin/sh\necho NVIDIA H200, 580.159.04\n");
    let path = format!("{}/path:{}", bundle.path().display(), std::env::var("PATH").unwrap_or_default());
    let out = bundle.path().join("results");
    let run = |arguments: &[&str]| {
        Command::new(bundle.path().join("run-examples")).args(arguments).env("PATH", &path).output().expect("the script runs")
    };
    let folder = out.display().to_string();
    let output = run(&["--out", &folder, "foreign"]);
    assert!(output.status.success() && said(&output).contains("12 us a block"), "{}", said(&output));
    let kept = fs::read_to_string(out.join("foreign-engine.txt")).expect("the file is there");
    let expected =
        format!("command: ./run-examples --out {folder} foreign\ncommit: 0123abcd\nmachine: NVIDIA H200, driver 580.159.04\ndate: ");
    assert!(kept.starts_with(&expected) && kept.ends_with("\n\n12 us a block\n"), "{kept}");
    assert_eq!(fs::read_dir(&out).expect("a folder").count(), 1);

    executable(&bundle.path().join("examples/03_foreign_engine"), "#!/bin/sh\necho no cuBLASLt >&2; exit 1\n");
    let failed = run(&["--out", &folder, "foreign"]);
    assert!(!failed.status.success() && said(&failed).contains("FAILED: 03_foreign_engine"), "{}", said(&failed));
    assert!(!run(&["nothing"]).status.success() && !run(&["--outs"]).status.success());
}

#[test]
fn the_table_s_run_hands_its_options_to_the_benchmark_and_keeps_its_results_together() {
    let bundle = bundle(&[
        (
            "benches/reach",
            r#"echo "rows=$SMIDGEN_ROWS peers=$SMIDGEN_PEERS command=$SMIDGEN_COMMAND" | tee "$SMIDGEN_RESULTS/kernels.json""#,
        ),
        ("tests/gpu_engine", "exit 0"),
    ]);
    let output = run(&bundle, "run-reach", &["--rows", "1,2", "--out", &format!("{}/here", bundle.path().display())]);
    let expected = format!("rows=1,2 peers={0}/peers command=./run-reach --rows 1,2 --out {0}/here", bundle.path().display());
    assert!(output.status.success() && said(&output).contains(&expected), "{}", said(&output));
    assert!(bundle.path().join("here/kernels.json").exists() && bundle.path().join("here/reach.log").exists());
}

/// The command of the same bundle, as far as `run-colocation` asks it for anything.
const COMMAND: &str = r#"#!/bin/sh
case "$*" in
    *--help*) echo "slo, mps-default" ;;
    *) echo "asked: $*" ;;
esac
"#;

#[test]
fn every_row_of_tenants_side_by_side_has_the_same_pair_in_pytorch_beside_it() {
    let bundle = bundle(&[]);
    executable(&bundle.path().join("smidgen"), COMMAND);
    executable(&bundle.path().join("path/python3"), "#!/bin/sh\nshift; echo \"peers: $*\"\n");
    let path = format!("{}/path:{}", bundle.path().display(), std::env::var("PATH").unwrap_or_default());
    let peers = |rows: &str| {
        let mut script = Command::new(bundle.path().join("run-colocation"));
        let output = script.args(["--rows", rows, "--policies", "slo"]).env("PATH", &path).output().expect("the script runs");
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        said.lines().find_map(|line| line.strip_prefix("peers: ")).map(str::to_owned).unwrap_or_else(|| panic!("{said}"))
    };
    assert_eq!(peers("1,2"), "--pairs decode-prefill,decode-encoder --load 0.3 --seconds 6");
    assert_eq!(peers("3,4"), "--pairs decode-prefill-load,decode-encoder-load,encoders --load 0.3 --seconds 6");
}

#[test]
fn the_table_s_run_fails_when_its_benchmark_does_and_refuses_options_it_does_not_know() {
    let bundle = bundle(&[("benches/reach", "exit 3"), ("tests/gpu_engine", "exit 0")]);
    assert!(!run(&bundle, "run-reach", &["--rows", "1"]).status.success());
    let refused = run(&bundle, "run-reach", &["--row", "1"]);
    assert!(!refused.status.success() && said(&refused).contains("--rows"), "{}", said(&refused));
}

/// A `compute-sanitizer` that finds an error in the test `case` of a binary whose name contains `bad`, and whose `slow` binary does not end in time.
const SANITIZER: &str = r#"#!/bin/sh
case "$*" in
    *bad*)
        echo "test case ... ========= Invalid __global__ write of size 4 bytes"
        echo "========= by thread (0,0,0)"
        echo ok
        echo "========= ERROR SUMMARY: 1 error"
        exit 0 ;;
    *stuck*"first second"*) printf 'test first ... '; exec sleep 30 ;;
    *crashing*"first second"*) printf 'test first ... '; exit 139 ;;
    *stuck*|*crashing*) echo 'test second ... ok'; exit 0 ;;
    *slow*) printf 'test case ... '; sleep 30 ;;
    *failed*) printf 'test case ... FAILED\n'; exit 101 ;;
esac
echo "test case ... ok"
echo "========= ERROR SUMMARY: 0 errors"
"#;

fn sanitize(bundle: &TempDir) -> Output {
    executable(&bundle.path().join("path/compute-sanitizer"), SANITIZER);
    let path = format!("{}/path:{}", bundle.path().display(), std::env::var("PATH").unwrap_or_default());
    let script = bundle.path().join("run-sanitizer");
    Command::new(script).env("PATH", path).env("SMIDGEN_SANITIZER_SECONDS", "2").output().expect("the script runs")
}

#[test]
fn the_sanitizer_gives_one_verdict_for_each_tool() {
    let output = sanitize(&bundle(&[("tests/gpu_a", "exit 0"), ("tests/gpu_b", "exit 0")]));
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "memcheck: 2 clean\nracecheck: 2 clean\nsynccheck: 2 clean\n");
}

#[test]
fn what_the_sanitizer_found_fails_the_run_and_what_it_had_no_time_for_is_not_called_clean() {
    let output = sanitize(&bundle(&[("tests/gpu_bad", "exit 0"), ("tests/gpu_slow", "exit 0")]));
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("memcheck: 0 clean, 1 error (case), 1 unfinished (case)\n-- gpu_bad case: ========= Invalid"), "{said}");
}

#[test]
fn tests_after_one_that_stands_still_or_crashes_are_run_all_the_same() {
    let bundle = bundle(&[]);
    for name in ["tests/gpu_crashing", "tests/gpu_stuck"] {
        executable(&bundle.path().join(name), "#!/bin/sh\necho 'first: test'\necho 'second: test'\n");
    }
    executable(&bundle.path().join("path/compute-sanitizer"), SANITIZER);
    let path = format!("{}/path:{}", bundle.path().display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(bundle.path().join("run-sanitizer"));
    let limits = [("SMIDGEN_SANITIZER_SECONDS", "25"), ("SMIDGEN_SANITIZER_STALL", "2"), ("SMIDGEN_SANITIZER_TOOLS", "memcheck")];
    let output = command.env("PATH", path).envs(limits).output().expect("the script runs");
    assert!(said(&output).contains("memcheck: 2 clean, 2 unfinished (first first)\n"), "{}", said(&output));
}

#[test]
fn a_test_that_fails_under_the_sanitizer_fails_the_run() {
    let output = sanitize(&bundle(&[("tests/gpu_failed", "exit 0"), ("tests/gpu_good", "exit 0")]));
    assert!(!output.status.success());
    assert!(said(&output).contains("racecheck: 1 clean, 1 failed (case)\n"), "{}", said(&output));
}
