//! `cargo xtask kernels`: compiles the kernels, and shows what each one asks of an SM.
//!
//! ptxas reports registers, shared memory and spills while it compiles; `build.rs` keeps the reports beside the objects.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{cargo, files, nvcc, toolchain};

/// What one kernel takes on one architecture. Sizes are bytes for each thread, shared memory for each block.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resources {
    kernel: String,
    architecture: String,
    registers: u32,
    /// Static shared memory only: dynamic shared memory is chosen at launch.
    shared: u32,
    stack: u32,
    spill_stores: u32,
    spill_loads: u32,
}

/// Compiles every kernel; with `report`, prints a table of what they take.
pub fn run(root: &Path, report: bool) -> Result<()> {
    toolchain::ensure_nvcc(root)?;
    let out = cargo::build(root, &["check", "--quiet", "--package=smidgen", "--lib"])?.kernels_out;
    let out = out.context("cargo did not say where the kernels were built")?;
    let image = out.join("kernels.fatbin");
    if !image.exists() {
        bail!("no kernel was built: see the warnings above");
    }
    println!("{} bytes in {}", fs::metadata(&image)?.len(), image.display());
    if report {
        let mut table = Vec::new();
        let reports = files::under(&nvcc::objects_folder(&out))?.into_iter().filter(|path| path.to_string_lossy().ends_with(".ptxas.txt"));
        for path in reports {
            table.extend(parse(&fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?));
        }
        print(table);
    }
    Ok(())
}

fn print(mut table: Vec<Resources>) {
    table.sort();
    let readable = demangled(&table.iter().map(|row| row.kernel.clone()).collect::<Vec<_>>());
    let width = readable.iter().map(String::len).max().unwrap_or(0).max("kernel".len());
    println!(
        "{:width$}  {:7}  {:>9}  {:>8}  {:>7}  {:>12}  {:>11}",
        "kernel", "arch", "registers", "shared B", "stack B", "spill stores", "spill loads"
    );
    for (row, name) in table.iter().zip(readable) {
        let Resources { architecture, registers, shared, stack, spill_stores, spill_loads, .. } = row;
        println!("{name:width$}  {architecture:7}  {registers:9}  {shared:8}  {stack:7}  {spill_stores:12}  {spill_loads:11}");
    }
}

/// Reads ptxas' report (`-Xptxas -v`): for each kernel a line that names it, one with its stack and spills, one with its registers.
fn parse(report: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    // Functions that are not inlined are reported among the kernels, in the same form; their stack and spills are not the kernel's.
    let mut described = String::new();
    for line in report.lines() {
        if let Some(names) = line.split_once("Compiling entry function '").map(|(_, rest)| rest) {
            let mut quoted = names.split('\'');
            let kernel = quoted.next().unwrap_or_default().to_owned();
            let architecture = quoted.nth(1).unwrap_or_default().to_owned();
            found.push(Resources { kernel, architecture, ..Resources::default() });
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            described = name.trim().to_owned();
        } else if let Some(current) = found.last_mut().filter(|current| current.kernel == described) {
            if line.contains("stack frame") {
                current.stack = number_before(line, " bytes stack frame");
                current.spill_stores = number_before(line, " bytes spill stores");
                current.spill_loads = number_before(line, " bytes spill loads");
            } else if line.contains(" registers") {
                current.registers = number_before(line, " registers");
                current.shared = number_before(line, " bytes smem");
            }
        }
    }
    found
}

/// The number that stands right before `unit` in `line`, or 0 if the line has no such figure: ptxas leaves out what is zero.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.find(unit).map_or("", |end| &line[..end]);
    before.rsplit(|character: char| !character.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// C++ names as a person writes them, if binutils' `c++filt` is there; as they are if not.
fn demangled(names: &[String]) -> Vec<String> {
    let filter = || -> Option<Vec<String>> {
        let mut child = Command::new("c++filt").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        // Dropping the pipe after the write ends the filter's input.
        child.stdin.take()?.write_all(names.join("\n").as_bytes()).ok()?;
        let output = child.wait_with_output().ok()?;
        let lines: Vec<String> = String::from_utf8(output.stdout).ok()?.lines().map(str::to_owned).collect();
        (lines.len() == names.len()).then_some(lines)
    };
    filter().unwrap_or_else(|| names.to_vec())
}

#[cfg(test)]
mod tests {
    use super::{Resources, parse};

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem, 4 bytes cmem[3]
ptxas info    : Compiling entry function 'gemm' for 'sm_80'
ptxas info    : Function properties for helper
    96 bytes stack frame, 12 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for gemm
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 254 registers, used 1 barriers, 16 bytes cumulative stack size, 49152 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 0.474 ms
ptxas info    : Compiling entry function 'gemm' for 'sm_90a'
ptxas info    : Function properties for gemm
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 0 barriers
";

    #[test]
    fn each_kernel_is_reported_once_for_each_architecture_with_its_own_spills() {
        let sm_80 = Resources {
            kernel: "gemm".into(),
            architecture: "sm_80".into(),
            registers: 254,
            shared: 49152,
            stack: 16,
            spill_stores: 8,
            spill_loads: 4,
        };
        let sm_90a = Resources { kernel: "gemm".into(), architecture: "sm_90a".into(), registers: 168, ..Resources::default() };
        assert_eq!(parse(REPORT), [sm_80, sm_90a]);
    }

    #[test]
    fn a_report_without_kernels_is_an_empty_table() {
        assert_eq!(parse("ptxas info    : 0 bytes gmem\n"), []);
    }
}
