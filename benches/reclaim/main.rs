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
#[path = "../runtime/rows.rs"]
mod rows;
mod undisturbed;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use smidgen_runtime::device::Device;

use rows::Row;

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
                measured.iter().for_each(|row| println!("{row}"));
                rows.extend(measured);
            }
            Err(error) => failures.push(format!("line {name}: {error:#}")),
        }
        println!("line {name} took {:.0} s", from.elapsed().as_secs_f64());
        rows::write("reclaim", Some(device.topology()), &rows)?;
    }
    if !failures.is_empty() {
        bail!("not everything was measured: {}", failures.join("; "));
    }
    Ok(())
}

/// The sample below which `percent` of all lie; sorts them.
pub fn percentile(samples: &mut [f64], percent: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = (samples.len() as f64 * percent / 100.0).ceil() as usize;
    samples.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
