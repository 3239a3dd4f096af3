//! How fast SMs change hands on a GPU: lines 4, 5 and 9 of the runtime's table. `cargo bench --bench reclaim`, or `benches/reclaim` of a bundle.
//!
//! | line | what is measured |
//! |---|---|
//! | 4 | a 64-block kernel of a latency tenant arrives at random moments of a GEMM 8192x14336x4096 that runs on all SMs, borrowed ones among them; and tiles done over 10,000 random resizes |
//! | 5 | an undisturbed GEMM that counts its tiles and polls its grant, against the same launch with neither |
//! | 9 | a tenant resized from 60% to 80% of the SMs while its kernels run |
//!
//! Everything goes through a `Runtime`, as in an engine. Times are device times where events can tell them; an arrival is the moment of the host's call, and what
//! the host needs from there to the first mark on the device is added.
//!
//! | variable | what it says |
//! |---|---|
//! | `SMIDGEN_RESULTS` | folder for `reclaim.json`: `provenance`, and `rows` of `row`, `work`, `ours`, `unit`, `target`, `reached` (the last two null for what is not judged) |
//! | `SMIDGEN_COMMAND` | the command that the provenance names |
#![allow(missing_docs)]

mod arrival;
mod house;
mod probe;
mod resize;
mod undisturbed;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use std::{env, fs};

use anyhow::{Result, bail};
use serde::Serialize;
use smidgen::fatbin::BUILD_HASH;
use smidgen_profiler::today;
use smidgen_runtime::device::Device;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    row: u8,
    work: String,
    ours: f64,
    unit: &'static str,
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

fn main() -> Result<()> {
    let device = match smidgen::cuda::open() {
        Ok(device) => device,
        Err(reason) => {
            println!("nothing measured: {reason:#}");
            return Ok(());
        }
    };
    type Line = fn(&Arc<dyn Device>) -> Result<Vec<Row>>;
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    let lines: [(&str, Line); 4] =
        [("4, arrivals", arrival::run), ("4, tiles", resize::tiles), ("5", undisturbed::run), ("9", resize::grow)];
    for (name, line) in lines {
        let from = Instant::now();
        // A line that fails must not take the others with it.
        match line(&device) {
            Ok(measured) => {
                for row in &measured {
                    let verdict = row.reached.map_or("", |reached| if reached { "reached" } else { "NOT REACHED" });
                    let target = row.target.map_or(String::new(), |target| format!("(at most {target})"));
                    println!("{:2} {:90} {:>9} {:6} {target} {verdict}", row.row, row.work, row.ours, row.unit);
                }
                rows.extend(measured);
            }
            Err(error) => failures.push(format!("line {name}: {error:#}")),
        }
        println!("line {name} took {:.0} s", from.elapsed().as_secs_f64());
        write(&*device, &rows)?;
    }
    if !failures.is_empty() {
        bail!("not everything was measured: {}", failures.join("; "));
    }
    Ok(())
}

fn write(device: &dyn Device, rows: &[Row]) -> Result<()> {
    let Some(folder) = env::var_os("SMIDGEN_RESULTS").map(PathBuf::from) else { return Ok(()) };
    let topology = device.topology();
    let provenance = Provenance {
        command: env::var("SMIDGEN_COMMAND").unwrap_or_else(|_| env::args().collect::<Vec<_>>().join(" ")),
        commit: env!("SMIDGEN_COMMIT"),
        kernel_build: BUILD_HASH,
        machine: &topology.name,
        sms: topology.sms.0,
        driver: &topology.driver,
        date: today(),
    };
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("reclaim.json"), serde_json::to_string_pretty(&Results { provenance, rows })? + "\n")?;
    Ok(())
}

/// Four significant digits.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let unit = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * unit).round() / unit
}

/// The sample below which `percent` of all lie; sorts them.
pub fn percentile(samples: &mut [f64], percent: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = (samples.len() as f64 * percent / 100.0).ceil() as usize;
    samples.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
