//! `cargo xtask test`: all that must hold before a change is merged, in the order of what fails fastest.
//!
//! One line for each step; the first that fails shows all that it said, and ends the run.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cargo::{self, cargo};
use crate::{abi, toolchain};

/// GPU tests live in test targets whose names begin so, each test ignored with its reason: a machine without a GPU passes them by.
pub const GPU_TEST_PREFIX: &str = "gpu_";

/// Runs every check; with `gpu`, also the tests that need one.
pub fn run(root: &Path, gpu: bool) -> Result<()> {
    let mut run = Run { started: Instant::now(), steps: 0, tests: Tally::default() };
    run.step("toolchain", || {
        let nvcc = toolchain::ensure_nvcc(root)?;
        abi::ensure_libclang(root)?;
        Ok(nvcc.to_string())
    })?;
    run.cargo("formatting", cargo(root).args(["fmt", "--all", "--check"]))?;
    run.cargo("kernels", cargo(root).args(["check", "--package=smidgen", "--lib"]))?;
    run.cargo("clippy", cargo(root).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let runtime_alone = ["clippy", "--package=smidgen-runtime", "--package=smidgen-capi", "--no-default-features", "--", "-D", "warnings"];
    run.cargo("runtime without CUDA", cargo(root).args(runtime_alone))?;
    run.cargo("tests", cargo(root).args(["test", "--workspace"]))?;
    // Every interleaving of the runtime's lock-free parts. In a folder of its own, since everything is compiled with the flag.
    let interleavings = ["test", "--package=smidgen-runtime", "--no-default-features", "--lib", "--target-dir=target/loom", "loom_"];
    run.cargo("interleavings", cargo(root).args(interleavings).env("RUSTFLAGS", "--cfg loom"))?;
    for example in ["01_one_model", "02_link_the_runtime", "03_foreign_engine"] {
        run.cargo(example, cargo(root).args(["run", "--quiet", "--example", example]))?;
    }
    run.cargo("documentation", cargo(root).args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    if gpu {
        let targets = gpu_tests(root)?;
        let arguments = targets.iter().flat_map(|target| ["--test", target]);
        run.cargo("GPU tests", cargo(root).args(["test", "--workspace"]).args(arguments).args(["--", "--ignored", "--test-threads=1"]))?;
    }
    let Run { started, steps, tests } = run;
    println!("{steps} steps passed in {}: {} tests passed, {} ignored", seconds(started.elapsed()), tests.passed, tests.ignored);
    Ok(())
}

/// The names of the GPU test targets.
pub fn gpu_tests(root: &Path) -> Result<Vec<String>> {
    let mut tests = cargo::targets(root, "test")?;
    tests.retain(|target| target.starts_with(GPU_TEST_PREFIX));
    if tests.is_empty() {
        bail!("there is no test target whose name begins with {GPU_TEST_PREFIX}");
    }
    Ok(tests)
}

struct Run {
    started: Instant,
    steps: u32,
    tests: Tally,
}

impl Run {
    fn cargo(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let mut tests = Tally::default();
        self.step(name, || {
            let said = run_quietly(command)?;
            tests = Tally::of(&said);
            Ok(String::new())
        })?;
        self.tests.passed += tests.passed;
        self.tests.ignored += tests.ignored;
        Ok(())
    }

    fn step(&mut self, name: &str, action: impl FnOnce() -> Result<String>) -> Result<()> {
        print!("{name:20} ");
        io::stdout().flush()?;
        let started = Instant::now();
        let outcome = action();
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        let remark = outcome.as_deref().unwrap_or_default();
        println!("{}", format!("{verdict:6} {:>8}  {remark}", seconds(started.elapsed())).trim_end());
        outcome.with_context(|| format!("step `{name}` failed"))?;
        self.steps += 1;
        Ok(())
    }
}

/// Runs `command` and hands back what it said on both channels, in the order in which it said it.
fn run_quietly(command: &mut Command) -> Result<String> {
    let log = tempfile::NamedTempFile::new().context("cannot keep what a step says")?;
    let channel = |file: &File| file.try_clone().map(Stdio::from);
    command.stdin(Stdio::null()).stdout(channel(log.as_file())?).stderr(channel(log.as_file())?);
    let status = command.status().context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&fs::read(log.path())?).into_owned();
    if !status.success() {
        bail!("{status}\n{}", said.trim_end());
    }
    Ok(said)
}

/// How many tests ran, added up over the lines that end each test binary's report.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u32,
    ignored: u32,
}

impl Tally {
    fn of(said: &str) -> Self {
        let mut tally = Self::default();
        for line in said.lines().filter(|line| line.starts_with("test result:")) {
            let count = |unit: &str| -> u32 {
                line.split_once(unit).and_then(|(before, _)| before.split_whitespace().next_back()?.parse().ok()).unwrap_or(0)
            };
            tally.passed += count(" passed");
            tally.ignored += count(" ignored");
        }
        tally
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Tally, run_quietly};

    #[test]
    fn tests_are_counted_over_all_test_binaries() {
        let said = "\
test a ... ok
test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.03s

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        assert_eq!(Tally::of(said), Tally { passed: 13, ignored: 3 });
    }

    #[test]
    fn a_failed_command_shows_both_of_its_channels_in_order() {
        let failure = run_quietly(Command::new("sh").args(["-c", "echo first; echo second >&2; echo third; exit 3"]));
        let message = failure.expect_err("it exits with 3").to_string();
        assert!(message.ends_with("first\nsecond\nthird"), "{message}");
        assert!(message.contains('3'), "{message}");
    }

    #[test]
    fn a_command_that_succeeds_hands_back_what_it_said() {
        assert_eq!(run_quietly(Command::new("echo").arg("done")).expect("echo succeeds"), "done\n");
    }
}
