//! BERT-base inference beside neighbours that copy to the device: how long one inference takes, from its token ids on the host to its last hidden state on the
//! host. `cargo bench --bench pcie`, or `SMIDGEN_RESULTS=FOLDER benches/pcie --bench` in a bundle. About a minute.
//!
//! Under pressure P, P threads copy blocks of P x 4 MiB from page-locked memory, each block after the last, while 300 inferences of batch 8 and sequence 128 are
//! timed, after 10 that are not. The neighbours' copies go
//!
//! | way | how |
//! |---|---|
//! | `raw` | to the driver, each block as one copy, outside of the runtime |
//! | `prioritised` | through the runtime: in chunks that take turns |
//! | `shaped` | the same, and all neighbours together no faster than half of what the link carries alone |
//!
//! The inference's own inputs go through the runtime, at once, in all three. Kernels are captured in a graph, and no neighbour launches any, so that nothing but the copies
//! differs. Rounds of the three ways take turns.
//!
//! | variable | what it says |
//! |---|---|
//! | `SMIDGEN_RESULTS` | folder for `pcie.json` and a plot for each pressure, `pcie-4.svg` |
//! | `SMIDGEN_PRESSURES` | pressures instead of 0 to 16: `1,4` |
//! | `SMIDGEN_COMMAND` | the command that the provenance names |
#![allow(missing_docs)]

use std::env;
use std::fs;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use smidgen::config::ModelConfig;
use smidgen::fatbin::FATBIN;
use smidgen::models::{Encoder, EncoderBatch};
use smidgen::presets;
use smidgen::weights::Weights;
use smidgen_profiler::today;
use smidgen_runtime::Runtime;
use smidgen_runtime::device::cuda::{CudaDevice, MAX_CONNECTIONS};
use smidgen_runtime::device::{Buffer, Device, DeviceError, PartitionId, PinnedBuffer, Priority, Stream};
use smidgen_runtime::launch::{CapturedGraph, Session};
use smidgen_runtime::policy::DefaultSharing;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::transfer::{After, Uploader};

mod plot;

const PRESSURES: [usize; 6] = [0, 1, 2, 4, 8, 16];
const BLOCK: usize = 4 << 20;
const WARM_UP: usize = 10;
const TIMED: usize = 300;
/// The timed inferences of one way come in so many rounds, between which the other ways have theirs.
const ROUNDS: usize = 3;
const BATCH: u32 = 8;
const SEQUENCE: u32 = 128;

/// How the neighbours copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Raw,
    Prioritised,
    Shaped,
}

impl Way {
    const ALL: [Self; 3] = [Self::Raw, Self::Prioritised, Self::Shaped];

    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Prioritised => "prioritised",
            Self::Shaped => "shaped",
        }
    }
}

/// One way under one pressure.
#[derive(Debug, Serialize)]
struct Row {
    pressure: usize,
    way: &'static str,
    /// Milliseconds of every timed inference, in rising order: the CDF.
    times_ms: Vec<f64>,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    /// What the neighbours copied meanwhile, GB/s.
    neighbours_gb_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Results {
    provenance: Provenance,
    /// Page-locked memory to the device in one stream, nothing beside it, GB/s.
    link_gb_per_s: f64,
    shaped_to_gb_per_s: f64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Provenance {
    command: String,
    commit: String,
    machine: String,
    driver: String,
    date: String,
}

/// The latency tenant.
struct Bert {
    session: Session,
    uploader: Uploader,
    graph: CapturedGraph,
    batch: EncoderBatch,
    /// The graph reads its weights.
    _model: Encoder,
    ids: Vec<u8>,
    output: Vec<u8>,
}

fn main() -> Result<()> {
    let (variable, value) = MAX_CONNECTIONS;
    // SAFETY: no other thread runs yet.
    unsafe { env::set_var(variable, value) };
    let device = CudaDevice::open(0)?;
    device.load(FATBIN.ok_or(DeviceError::NoKernels)?)?;
    let device: Arc<dyn Device> = device;
    let runtime = Runtime::new(Arc::clone(&device), Box::new(DefaultSharing), Arc::new(ProfileStore::default()));
    let pressures = pressures()?;
    let link = link_rate(runtime.device())?;
    let shaped = link / 2.0;
    println!("link {:.1} GB/s; shaped: {:.1} GB/s for all neighbours together", link / 1e9, shaped / 1e9);
    println!("{:>8} {:12} {:>8} {:>8} {:>8} {:>16}", "pressure", "way", "p50 ms", "p95 ms", "p99 ms", "neighbours GB/s");
    let mut bert = Bert::new(&runtime)?;
    let mut rows = Vec::new();
    for pressure in pressures {
        let ways = if pressure == 0 { &Way::ALL[..1] } else { &Way::ALL[..] };
        let mut measured: Vec<(Vec<f64>, u64, f64)> = ways.iter().map(|_| (Vec::new(), 0, 0.0)).collect();
        for _ in 0..ROUNDS {
            for (&way, (times, bytes, seconds)) in ways.iter().zip(&mut measured) {
                runtime.transfers().set_throughput_rate((way == Way::Shaped).then(|| NonZeroU64::new(shaped as u64)).flatten());
                let round =
                    under_pressure(&runtime, &mut bert, pressure, way).with_context(|| format!("pressure {pressure}, {}", way.name()))?;
                times.extend(round.0);
                *bytes += round.1;
                *seconds += round.2;
            }
        }
        for (way, (times, bytes, seconds)) in ways.iter().zip(measured) {
            let row = Row::new(pressure, if pressure == 0 { "alone" } else { way.name() }, times, bytes as f64 / seconds / 1e9);
            println!(
                "{:>8} {:12} {:>8.3} {:>8.3} {:>8.3} {:>16.1}",
                row.pressure, row.way, row.p50_ms, row.p95_ms, row.p99_ms, row.neighbours_gb_per_s
            );
            rows.push(row);
        }
    }
    write(&Results { provenance: provenance(&*device), link_gb_per_s: link / 1e9, shaped_to_gb_per_s: shaped / 1e9, rows })
}

fn pressures() -> Result<Vec<usize>> {
    let Ok(text) = env::var("SMIDGEN_PRESSURES") else { return Ok(PRESSURES.to_vec()) };
    let parsed: Result<Vec<usize>, _> = text.split(',').map(|pressure| pressure.trim().parse()).collect();
    parsed.with_context(|| format!("SMIDGEN_PRESSURES={text}: write numbers with commas between them, such as 1,4"))
}

impl Row {
    fn new(pressure: usize, way: &'static str, mut times_ms: Vec<f64>, neighbours_gb_per_s: f64) -> Self {
        times_ms.sort_by(f64::total_cmp);
        let quantile = |share: f64| times_ms.get(((times_ms.len() as f64 * share) as usize).min(times_ms.len().saturating_sub(1))).copied();
        let [p50_ms, p95_ms, p99_ms] = [0.50, 0.95, 0.99].map(|share| quantile(share).unwrap_or(f64::NAN));
        Self { pressure, way, times_ms, p50_ms, p95_ms, p99_ms, neighbours_gb_per_s }
    }
}

impl Bert {
    fn new(runtime: &Runtime) -> Result<Self> {
        let ModelConfig::Encoder(config) = presets::BERT_BASE else { bail!("BERT-base is an encoder") };
        let memory_bytes = Encoder::memory_bytes(&config, BATCH, SEQUENCE);
        let tenant = runtime.admit(TenantSpec { name: "bert-base".to_owned(), class: Class::Latency, slo: None, memory_bytes })?;
        let (mut session, mut uploader) = (runtime.session(tenant)?, runtime.uploader(tenant)?);
        let weights = Weights::random(ModelConfig::Encoder(config.clone()), 1);
        let model = Encoder::new(&config, &weights, &mut session, &mut uploader)?;
        let ids: Vec<u32> = (0..BATCH * SEQUENCE).map(|at| at * 7919 % config.vocab as u32).collect();
        let sequences: Vec<Vec<u32>> = ids.chunks(SEQUENCE as usize).map(<[u32]>::to_vec).collect();
        let batch = model.batch(&session, &sequences)?;
        // Eagerly first: what is looked up at a kernel's first launch must not fall into a capture.
        model.forward(&mut session, &batch)?;
        session.device().synchronize(session.stream())?;
        let graph = session.capture(|session| model.forward(session, &batch))?;
        let output = vec![0; batch.rows() as usize * model.hidden() * 2];
        let ids = ids.into_iter().flat_map(u32::to_le_bytes).collect();
        Ok(Self { session, uploader, graph, batch, _model: model, ids, output })
    }

    /// One inference, from host to host.
    fn infer(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.uploader.upload(&mut self.session, self.batch.ids(), self.ids.as_slice(), After::Launches)?;
        self.session.replay(&self.graph)?;
        let stream = self.session.stream();
        self.session.device().download(stream, self.batch.output(), &mut self.output)?;
        Ok(start.elapsed())
    }
}

/// Inferences of one round beside neighbours: milliseconds of each, bytes that the neighbours copied meanwhile, and seconds that it took.
fn under_pressure(runtime: &Runtime, bert: &mut Bert, pressure: usize, way: Way) -> Result<(Vec<f64>, u64, f64)> {
    let (stop, copied, copying) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let neighbour = || -> Result<()> {
            let mut neighbour = Neighbour::new(runtime, pressure * BLOCK)?;
            copying.fetch_add(1, Ordering::Release);
            while !stop.load(Ordering::Relaxed) {
                neighbour.copy(way)?;
                copied.fetch_add((pressure * BLOCK) as u64, Ordering::Relaxed);
            }
            neighbour.leave(runtime)
        };
        let neighbours: Vec<_> = (0..pressure).map(|_| scope.spawn(neighbour)).collect();
        while copying.load(Ordering::Acquire) < pressure as u64 && !neighbours.iter().any(thread::ScopedJoinHandle::is_finished) {
            thread::yield_now();
        }
        let mut measure = || -> Result<_> {
            for _ in 0..WARM_UP {
                bert.infer()?;
            }
            let (before, start) = (copied.load(Ordering::Relaxed), Instant::now());
            let times = (0..TIMED / ROUNDS).map(|_| Ok(bert.infer()?.as_secs_f64() * 1e3)).collect::<Result<Vec<_>>>()?;
            Ok((times, copied.load(Ordering::Relaxed) - before, start.elapsed().as_secs_f64()))
        };
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        for neighbour in neighbours {
            match neighbour.join() {
                Ok(ended) => ended?,
                Err(_) => bail!("a neighbour panicked"),
            }
        }
        measured
    })
}

/// A tenant that does nothing but copy.
struct Neighbour {
    tenant: TenantId,
    session: Session,
    uploader: Uploader,
    source: Arc<PinnedBuffer>,
    target: Buffer,
    stream: Stream,
}

impl Neighbour {
    fn new(runtime: &Runtime, bytes: usize) -> Result<Self> {
        runtime.device().bind_thread()?;
        let spec = TenantSpec { name: "copying".to_owned(), class: Class::Throughput, slo: None, memory_bytes: bytes as u64 };
        let tenant = runtime.admit(spec)?;
        let session = runtime.session(tenant)?;
        let device = session.device();
        let (source, target) = (Arc::new(PinnedBuffer::new(device, bytes)?), Buffer::new(device, bytes as u64)?);
        let stream = Stream::new(device, PartitionId::WHOLE, Priority::Normal)?;
        Ok(Self { tenant, uploader: runtime.uploader(tenant)?, source, target, stream, session })
    }

    /// Copies the block and waits until it is there.
    fn copy(&mut self, way: Way) -> Result<()> {
        if way == Way::Raw {
            let device = self.session.device();
            // SAFETY: the source is page-locked, nobody writes it, and the wait below outlasts the copy.
            unsafe { device.upload_pinned(self.stream.id(), self.target.ptr(), self.source.as_slice()) }?;
            return Ok(device.synchronize(self.stream.id())?);
        }
        self.uploader.upload(&mut self.session, self.target.ptr(), &self.source, After::Nothing)?;
        Ok(self.session.device().synchronize(self.session.stream())?)
    }

    fn leave(self, runtime: &Runtime) -> Result<()> {
        let tenant = self.tenant;
        drop(self);
        Ok(runtime.dismiss(tenant)?)
    }
}

/// Bytes per second of page-locked memory to the device, nothing beside it.
fn link_rate(device: &Arc<dyn Device>) -> Result<f64> {
    const BYTES: usize = 256 << 20;
    const COPIES: u32 = 8;
    let (source, target) = (PinnedBuffer::new(device, BYTES)?, Buffer::new(device, BYTES as u64)?);
    let stream = Stream::new(device, PartitionId::WHOLE, Priority::Normal)?;
    let copies = |copies: u32| -> Result<Duration> {
        let start = Instant::now();
        for _ in 0..copies {
            // SAFETY: the source is page-locked, nobody writes it, and the wait below outlasts the copies.
            unsafe { device.upload_pinned(stream.id(), target.ptr(), source.as_slice()) }?;
        }
        device.synchronize(stream.id())?;
        Ok(start.elapsed())
    };
    copies(1)?;
    Ok(BYTES as f64 * f64::from(COPIES) / copies(COPIES)?.as_secs_f64())
}

fn write(results: &Results) -> Result<()> {
    let Some(folder) = env::var_os("SMIDGEN_RESULTS").map(PathBuf::from) else { return Ok(()) };
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("pcie.json"), serde_json::to_string_pretty(results)? + "\n")?;
    let alone = results.rows.iter().find(|row| row.pressure == 0);
    let mut pressures: Vec<usize> = results.rows.iter().map(|row| row.pressure).filter(|&pressure| pressure > 0).collect();
    pressures.dedup();
    for pressure in pressures {
        let curves = alone.into_iter().chain(results.rows.iter().filter(|row| row.pressure == pressure));
        let curves: Vec<(&str, &[f64])> = curves.map(|row| (row.way, &row.times_ms[..])).collect();
        let mib = (pressure * BLOCK) >> 20;
        let title = format!("BERT-base beside {pressure} threads that copy {mib} MiB: ms");
        fs::write(folder.join(format!("pcie-{pressure}.svg")), plot::cdf(&title, &curves))?;
    }
    Ok(())
}

fn provenance(device: &dyn Device) -> Provenance {
    let topology = device.topology();
    Provenance {
        command: env::var("SMIDGEN_COMMAND").unwrap_or_else(|_| env::args().collect::<Vec<_>>().join(" ")),
        commit: env!("SMIDGEN_COMMIT").to_owned(),
        machine: topology.name.clone(),
        driver: topology.driver.clone(),
        date: today(),
    }
}
