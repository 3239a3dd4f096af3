//! Rows of `results/h200/runtime.json`, the measured table of the runtime's own costs, as the benchmarks of it write them: into
//! `$SMIDGEN_RESULTS/<benchmark>.json` where that folder is named.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::Result;
use serde::Serialize;
use smidgen_profiler::today;
use smidgen_runtime::device::Topology;

/// One figure.
#[derive(Serialize)]
pub struct Row {
    /// The line of the table.
    pub row: u8,
    pub work: String,
    pub ours: f64,
    pub unit: &'static str,
    /// What `ours` must not exceed.
    pub target: f64,
    pub reached: bool,
}

impl Row {
    pub fn new(row: u8, work: impl Into<String>, ours: f64, unit: &'static str, target: f64) -> Self {
        Self { row, work: work.into(), ours, unit, target, reached: ours <= target }
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
    machine: &'a str,
    driver: &'a str,
    date: String,
}

/// Prints the rows, and writes them where the environment says. `machine` is the GPU; none where only the host was measured.
pub fn keep(benchmark: &str, machine: Option<&Topology>, rows: &[Row]) -> Result<()> {
    for row in rows {
        let reached = if row.reached { "reached" } else { "NOT reached" };
        println!("row {}: {:.3} {} (target {}, {reached}): {}", row.row, row.ours, row.unit, row.target, row.work);
    }
    let Some(folder) = env::var_os("SMIDGEN_RESULTS").map(PathBuf::from) else { return Ok(()) };
    let provenance = Provenance {
        command: env::var("SMIDGEN_COMMAND").unwrap_or_else(|_| env::args().collect::<Vec<_>>().join(" ")),
        commit: env!("SMIDGEN_COMMIT"),
        machine: machine.map_or("host only", |gpu| &gpu.name),
        driver: machine.map_or("", |gpu| &gpu.driver),
        date: today(),
    };
    fs::create_dir_all(&folder)?;
    let text = serde_json::to_string_pretty(&Results { provenance, rows })? + "\n";
    Ok(fs::write(folder.join(format!("{benchmark}.json")), text)?)
}
