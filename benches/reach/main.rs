//! The measured table of docs/kernels.md: our kernels and models beside their peers, in one run on one GPU. `./run-reach` of a bundle runs it whole;
//! `SMIDGEN_ROWS=1,2,4 cargo bench --bench reach` a part.
//!
//! Every figure is a criterion benchmark. Its samples are device times of captured graphs, and after each of ours comes one of the peer's, so that clock,
//! power and temperature are the same for both. Operands are random and rotate over twice what L2 holds. cuBLASLt runs in this process, on the same partition's
//! stream, as an opaque launch; PyTorch in a child process that answers for one sample at a time.
//!
//! | variable | what it says |
//! |---|---|
//! | `SMIDGEN_ROWS` | lines of the table, `1,2,4`; all without it |
//! | `SMIDGEN_RESULTS` | folder for `kernels.json` and `clocks.csv` |
//! | `SMIDGEN_PEERS` | folder of `serve.py`, where it is not `benches/peers` |
//! | `SMIDGEN_COMMAND` | the command that the provenance names |
#![allow(missing_docs)]

mod bench;
mod cublaslt;
mod peers;
mod report;
#[path = "../../xtask/src/docs/results.rs"]
#[allow(dead_code)] // The forms of other results are in it too.
mod results;
mod rows;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use smidgen::fatbin::BUILD_HASH;
use smidgen_profiler::today;

use crate::bench::Bench;
use crate::peers::Peers;
use crate::results::{Provenance, Results};

/// Lines whose peer is PyTorch.
const PYTORCH: [u8; 3] = [5, 7, 8];

fn main() -> Result<()> {
    let only = asked_for()?;
    let mut bench = match Bench::open(only.clone()) {
        Ok(bench) => bench,
        Err(reason) => {
            println!("nothing measured: {reason:#}");
            return Ok(());
        }
    };
    let started = Instant::now();
    let mut peers = start_peers(&only);
    type Line = fn(&mut Bench, &mut Option<Peers>) -> Result<()>;
    let lines: [(&[u8], Line); 8] = [
        (&[1, 2, 3], |bench, _| rows::gemm::run(bench)),
        (&[4], |bench, _| rows::skinny::run(bench)),
        (&[5], rows::attention::prefill),
        (&[6], |bench, _| rows::attention::decode(bench)),
        (&[7], rows::models::bert_base),
        (&[9], |bench, _| rows::models::mistral(bench)),
        (&[10], |bench, _| rows::models::sm_time(bench)),
        // Last, since PyTorch compiles for a minute or two before.
        (&[8], rows::models::llama),
    ];
    let mut failures = Vec::new();
    for (numbers, line) in lines {
        if numbers.iter().any(|&number| bench.wants(number)) {
            let from = Instant::now();
            // A line that fails must not take the others with it.
            if let Err(error) = line(&mut bench, &mut peers) {
                eprintln!("line {numbers:?} failed: {error:#}");
                failures.push(format!("{numbers:?}: {error:#}"));
            }
            println!("line {numbers:?} took {:.0} s", from.elapsed().as_secs_f64());
            // Also what is not all: a run that is cut short keeps the lines before.
            bench.rows.sort_by_key(|row| row.row);
            write(&bench)?;
        }
    }
    println!("\n{}in {:.0} s", report::summary(&bench.rows), started.elapsed().as_secs_f64());
    if !failures.is_empty() {
        bail!("not everything was measured: {}", failures.join("; "));
    }
    Ok(())
}

fn asked_for() -> Result<BTreeSet<u8>> {
    match env::var("SMIDGEN_ROWS") {
        Ok(rows) if !rows.is_empty() => {
            let parse = |row: &str| {
                row.trim().parse().ok().filter(|row| (1..=10).contains(row)).with_context(|| format!("`{row}` is no line of the table"))
            };
            rows.split(',').map(parse).collect()
        }
        _ => Ok((1..=10).collect()),
    }
}

fn start_peers(only: &BTreeSet<u8>) -> Option<Peers> {
    if !PYTORCH.iter().any(|row| only.contains(row)) {
        return None;
    }
    Peers::start().inspect_err(|reason| eprintln!("no PyTorch peers: {reason:#}")).ok()
}

/// Has PyTorch build `work`: what it is, and what to note if it cannot be had.
fn prepare(peers: &mut Option<Peers>, work: &str) -> (String, Option<String>) {
    let Some(peers) = peers else { return ("PyTorch".to_owned(), Some("PyTorch was not there".to_owned())) };
    match peers.prepare(work) {
        Ok(what) => (what, None),
        Err(reason) => ("PyTorch".to_owned(), Some(format!("the peer failed: {reason:#}"))),
    }
}

/// Our sample, and after it one of the peer's if it is `there`.
fn with_sample(ours: Duration, peers: &mut Option<Peers>, work: &str, there: bool) -> Result<Vec<Duration>> {
    let mut times = vec![ours];
    if let Some(peers) = peers.as_mut().filter(|_| there) {
        times.push(peers.sample(work)?);
    }
    Ok(times)
}

fn give_back(peers: &mut Option<Peers>, work: &str) {
    if let Some(Err(reason)) = peers.as_mut().map(|peers| peers.drop_work(work)) {
        eprintln!("{reason:#}");
    }
}

fn write(bench: &Bench) -> Result<()> {
    let Some(folder) = env::var_os("SMIDGEN_RESULTS").map(PathBuf::from) else { return Ok(()) };
    let results = Results { provenance: provenance(bench), rows: bench.rows.clone(), curves: bench.curves.clone() };
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("kernels.json"), serde_json::to_string_pretty(&results)? + "\n")?;
    fs::write(folder.join("clocks.csv"), bench.clocks.csv())?;
    Ok(())
}

fn provenance(bench: &Bench) -> Provenance {
    let topology = bench.device.topology();
    let clocks: Vec<u32> = bench.rows.iter().filter_map(|row| row.clock_mhz).collect();
    let powers = bench.rows.iter().filter_map(|row| row.power_w);
    let throttled = bench.rows.iter().filter(|row| row.throttled).count() as f64 / bench.rows.len().max(1) as f64;
    Provenance {
        command: env::var("SMIDGEN_COMMAND").unwrap_or_else(|_| env::args().collect::<Vec<_>>().join(" ")),
        commit: env!("SMIDGEN_COMMIT").to_owned(),
        kernel_build: BUILD_HASH.to_owned(),
        machine: topology.name.clone(),
        sms: topology.sms.0,
        driver: topology.driver.clone(),
        cuda: format!("{}.{}", topology.driver_version / 1000, topology.driver_version % 1000 / 10),
        date: today(),
        peers: "cuBLASLt in the same process; PyTorch, named with each row, in a child process".to_owned(),
        clock_mhz: clocks.iter().min().zip(clocks.iter().max()).map(|(&least, &most)| [least, most]),
        power_w: powers.reduce(f64::max),
        throttled: bench::significant(throttled),
    }
}
