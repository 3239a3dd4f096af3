//! Rows of `results/h200/runtime.json`, the measured table of the runtime's own costs, as the benchmarks of it write them: into
//! `$SMIDGEN_RESULTS/<benchmark>.json` where that folder is named, with the command that `$SMIDGEN_COMMAND` names, or their own.
#![allow(dead_code)] // Every benchmark compiles this module and uses its own part of it.

use std::path::PathBuf;
use std::{env, fmt, fs};

use anyhow::Result;
use serde::Serialize;
use smidgen::fatbin::BUILD_HASH;
use smidgen_profiler::today;
use smidgen_runtime::device::Topology;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The line of the table.
    row: u8,
    work: String,
    ours: f64,
    unit: &'static str,
    /// What `ours` must not exceed; none where it is not judged.
    target: Option<f64>,
    reached: Option<bool>,
}

impl Row {
    /// Reached where it is no more than `target`.
    pub fn at_most(row: u8, work: impl Into<String>, ours: f64, unit: &'static str, target: f64) -> Self {
        Self { row, work: work.into(), ours: rounded(ours), unit, target: Some(target), reached: Some(ours <= target) }
    }

    /// Told beside the others, and not judged.
    pub fn beside(row: u8, work: impl Into<String>, ours: f64, unit: &'static str) -> Self {
        Self { row, work: work.into(), ours: rounded(ours), unit, target: None, reached: None }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:2} {:90} {:>9} {:6}", self.row, self.work, self.ours, self.unit)?;
        let (Some(target), Some(reached)) = (self.target, self.reached) else { return Ok(()) };
        write!(f, " (at most {target}) {}", if reached { "reached" } else { "NOT REACHED" })
    }
}

#[derive(Serialize)]
struct Results<'a> {
    provenance: Provenance<'a>,
    rows: &'a [Row],
}

#[derive(Serialize)]
struct Provenance<'a> {
    command: String,
    commit: &'static str,
    kernel_build: &'static str,
    machine: &'a str,
    sms: u16,
    driver: &'a str,
    date: String,
}

/// Writes the rows where the environment says. `machine` is the GPU; none where only the host was measured.
pub fn write(benchmark: &str, machine: Option<&Topology>, rows: &[Row]) -> Result<()> {
    let Some(folder) = env::var_os("SMIDGEN_RESULTS").map(PathBuf::from) else { return Ok(()) };
    let provenance = Provenance {
        command: env::var("SMIDGEN_COMMAND").unwrap_or_else(|_| env::args().collect::<Vec<_>>().join(" ")),
        commit: env!("SMIDGEN_COMMIT"),
        kernel_build: BUILD_HASH,
        machine: machine.map_or("host only", |gpu| &gpu.name),
        sms: machine.map_or(0, |gpu| gpu.sms.0),
        driver: machine.map_or("", |gpu| &gpu.driver),
        date: today(),
    };
    fs::create_dir_all(&folder)?;
    let text = serde_json::to_string_pretty(&Results { provenance, rows })? + "\n";
    Ok(fs::write(folder.join(format!("{benchmark}.json")), text)?)
}

/// Four significant digits.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let unit = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * unit).round() / unit
}
