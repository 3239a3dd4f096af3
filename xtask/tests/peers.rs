//! PyTorch's side of the colocation figures, with a PyTorch that computes nothing.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// What the script says; `None` without Python.
fn colocate(arguments: &[&str], variables: &[(&str, &str)]) -> Option<Output> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3");
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(root.join("../benches/peers/colocate.py")).args(["--no-mps", "--seconds", "0.3"]).args(arguments);
    command.env("PYTHONPATH", root.join("tests/fixtures/torch")).env("PYTHONDONTWRITEBYTECODE", "1").envs(variables.iter().copied());
    Some(command.output().expect("the script runs"))
}

fn tenants(output: &Output, pair: &str) -> Vec<Value> {
    let printed: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    printed["pairs"][pair]["tenants"].as_array().unwrap_or_else(|| panic!("{printed}")).clone()
}

#[test]
fn four_tenants_are_measured_alone_and_together() {
    let Some(output) = colocate(&["--pairs", "encoders"], &[]) else { return };
    let tenants = tenants(&output, "encoders");
    assert!(output.status.success() && tenants.len() == 4);
    for tenant in tenants {
        assert!(tenant["alone"]["requests"].as_u64() > Some(10) && tenant["beside"]["p99_ms"].as_f64() >= Some(2.0), "{tenant}");
    }
}

#[test]
fn at_a_load_the_first_tenant_s_requests_arrive_at_that_part_of_its_rate_and_are_set_against_itself_at_that_rate() {
    let Some(output) = colocate(&["--pairs", "decode-encoder-load", "--load", "0.5"], &[]) else { return };
    let tenants = tenants(&output, "decode-encoder-load");
    let (decode, encoder) = (&tenants[0], &tenants[1]);
    let number = |tenant: &Value, path: &str| tenant.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {tenant}"));
    let rate = number(decode, "/beside/rate");
    assert!((rate / number(decode, "/alone/throughput") - 0.5).abs() < 1e-9, "{decode}");
    assert!((number(decode, "/beside/slo_ms") / number(decode, "/alone_at_rate/p99_ms") - 1.5).abs() < 1e-9, "{decode}");
    assert!((0.0..=1.0).contains(&number(decode, "/beside/kept")), "{decode}");
    let p99s = number(decode, "/beside/p99_ms") / number(decode, "/alone_at_rate/p99_ms");
    assert!((number(decode, "/p99_ratio") - p99s).abs() < 1e-9, "{decode}");
    assert!(encoder["beside"].get("rate").is_none() && encoder.get("alone_at_rate").is_none(), "{encoder}");
}

#[test]
fn a_tenant_that_ends_without_an_answer_is_an_error_with_its_status_and_what_it_said() {
    let Some(output) = colocate(&["--pairs", "encoders"], &[("NO_GPU", "1")]) else { return };
    let printed: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let error = printed["pairs"]["encoders"]["error"].as_str().expect("an error");
    assert!(!output.status.success());
    assert!(error.contains("bert-base ended with status 1") && error.contains("CUDA error: out of memory"), "{error}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("CUDA error: out of memory"), "the log has all of it");
}
