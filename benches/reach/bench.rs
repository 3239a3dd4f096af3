//! What all rows share: the GPU, sessions at any SM count, device times of captured launches, and comparisons in which ours and the peer's samples
//! are taken in turn.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use criterion::{Criterion, SamplingMode};
use smidgen::fatbin::FATBIN;
use smidgen::kernels::random::{Distribution, RandomWeights};
use smidgen_profiler::clocks::{Clocks, Reading};
use smidgen_profiler::roofline::datasheet_peaks;
use smidgen_runtime::device::cuda::CudaDevice;
use smidgen_runtime::device::{Buffer, Device, DeviceError, Event, PartitionId, Priority, Sms};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::{CapturedGraph, Kernel, LaunchError, Placement, Plan, PlanCell, Session, TenantPlan, Walls};
use smidgen_runtime::tenant::TenantId;

use crate::results::{Beside, Curve, Row, TargetOf, Unit};

/// Device time that one sample should take: long against the clock's resolution and a graph's start.
const SAMPLE: Duration = Duration::from_millis(3);

/// Launches in one graph, at most.
const MOST_LAUNCHES: u32 = 512;

/// The GPU and what was found so far.
pub struct Bench {
    pub device: Arc<dyn Device>,
    cuda: Arc<CudaDevice>,
    criterion: Criterion,
    pub clocks: Clocks,
    /// The table's lines asked for.
    only: BTreeSet<u8>,
    pub rows: Vec<Row>,
    pub curves: Vec<Curve>,
}

/// A session whose launches are placed on so many SMs.
pub struct Lane {
    pub sms: u16,
    pub session: Session,
}

/// Several executions captured in a graph.
pub struct Replay {
    graph: CapturedGraph,
    executions: u32,
    marks: [Event; 2],
}

/// Medians of samples taken in turn.
pub struct Compared {
    pub ours: f64,
    /// The judged peer's first.
    pub others: Vec<f64>,
    pub spread: f64,
    reading: Option<Reading>,
}

/// One figure to be judged. `amounts` turn seconds of ours and the peer's into the unit: a rate is the amount over the seconds, a time the product.
pub struct Case {
    pub row: u8,
    pub work: String,
    pub sms: u16,
    pub unit: Unit,
    pub amounts: [f64; 2],
    pub target: f64,
    pub target_of: TargetOf,
    pub peer_is: String,
    /// What else was measured, in the order of the samples; with the judged peer's amount.
    pub beside: Vec<&'static str>,
    pub note: Option<String>,
    /// What one execution does, of which the data sheet has a peak: for figures that are times, and so tell no rate.
    pub peak_of: Option<PeakOf>,
}

/// What many launches do together: the sum of their work.
#[derive(Debug, Clone, Copy)]
pub enum PeakOf {
    /// Floating-point operations.
    Flops(u64),
    /// Bytes through device memory.
    Bytes(u64),
}

impl Bench {
    /// The first GPU with our kernels on it.
    pub fn open(only: BTreeSet<u8>) -> Result<Self> {
        let cuda = CudaDevice::open(0)?;
        cuda.load(FATBIN.ok_or(DeviceError::NoKernels)?)?;
        let criterion = Criterion::default()
            .sample_size(10)
            // The samples are as long as they need to be whatever criterion asks for.
            .warm_up_time(Duration::from_nanos(1))
            .measurement_time(Duration::from_secs(5))
            .nresamples(2000)
            .configure_from_args();
        Ok(Self {
            device: Arc::clone(&cuda) as Arc<dyn Device>,
            cuda,
            criterion,
            clocks: Clocks::start(),
            only,
            rows: Vec::new(),
            curves: Vec::new(),
        })
    }

    /// Whether a line of the table was asked for.
    pub fn wants(&self, row: u8) -> bool {
        self.only.contains(&row)
    }

    /// SMs of the whole GPU.
    pub fn all_sms(&self) -> u16 {
        self.device.topology().sms.0
    }

    /// A session on the whole GPU, or in a partition of so many SMs in the driver's co-scheduled groups, where foreign kernels with large
    /// clusters run too.
    pub fn lane(&self, sms: u16) -> Result<Lane> {
        let partition = if sms == self.all_sms() { PartitionId::WHOLE } else { self.cuda.create_coscheduled_partition(Sms(sms))? };
        let placement = Placement { sms: Sms(sms), partition, priority: Priority::Normal, borrows: false };
        let walls = Walls { grid: true, grant: false, partition: sms < self.all_sms() };
        let all = self.device.topology().all_tpcs();
        let tenant = TenantPlan { owned: all, grant: all, default: placement, kernels: HashMap::new(), walls };
        let plans = PlanCell::new(Plan { policy: "fixed", tenants: HashMap::from([(TenantId(0), tenant)]), ..Plan::default() });
        let session = Session::new(&self.device, &plans, TenantId(0), Arc::new(Grant::new(&self.device)?))?;
        Ok(Lane { sms, session })
    }

    /// `elements` halves uniform in [-`half_width`, `half_width`), others for each seed.
    pub fn random(&self, lane: &mut Lane, elements: u64, half_width: f32, seed: u64) -> Result<Buffer> {
        let buffer = Buffer::new(&self.device, elements * 2)?;
        let distribution = Distribution::Uniform { key: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), half_width };
        let fill = RandomWeights { rows: 1, columns: elements, stride: elements, distribution, y: buffer.ptr() };
        lane.session.launch(&fill)?;
        self.device.synchronize(lane.session.stream())?;
        Ok(buffer)
    }

    /// A buffer of words.
    pub fn words(&self, lane: &Lane, words: impl Iterator<Item = u32>) -> Result<Buffer> {
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let buffer = Buffer::new(&self.device, bytes.len() as u64)?;
        self.device.upload(lane.session.stream(), buffer.ptr(), &bytes)?;
        self.device.synchronize(lane.session.stream())?;
        Ok(buffer)
    }

    /// How many sets of operands of `bytes` bytes it takes until a set is used again only after L2 has held twice its size of others.
    pub fn sets(&self, bytes: u64) -> usize {
        (2 * self.device.topology().l2_bytes).div_ceil(bytes.max(1)).clamp(2, 128) as usize
    }

    /// Takes samples of `turn` (ours, then those of the peers that there are) under criterion, which reports ours; none if it was told to leave this
    /// out.
    pub fn compare(&mut self, row: u8, id: &str, mut turn: impl FnMut() -> Result<Vec<Duration>>) -> Result<Option<Compared>> {
        let (mut samples, mut failure) = (Vec::<Vec<f64>>::new(), None);
        let from = Instant::now();
        let mut group = self.criterion.benchmark_group(format!("row {row}"));
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|iterations| match turn() {
                Ok(times) => {
                    samples.resize(times.len(), Vec::new());
                    samples.iter_mut().zip(&times).for_each(|(samples, time)| samples.push(time.as_secs_f64()));
                    times.first().copied().unwrap_or_default().mul_f64(iterations as f64)
                }
                Err(error) => {
                    failure = Some(error);
                    Duration::from_secs(1)
                }
            });
        });
        group.finish();
        if let Some(error) = failure {
            return Err(error.context(format!("row {row}, {id}")));
        }
        let medians: Vec<f64> = samples.iter_mut().filter_map(|samples| median(samples)).collect();
        let Some((&ours, others)) = medians.split_first() else { return Ok(None) };
        let spread = (samples[0][samples[0].len() - 1] - samples[0][0]) / ours;
        Ok(Some(Compared { ours, others: others.to_vec(), spread, reading: self.clocks.since(from) }))
    }

    /// Judges what was measured, prints it and keeps it.
    pub fn judge(&mut self, case: Case, compared: &Compared) {
        self.keep(self.row(case, compared));
    }

    /// What was measured, judged.
    pub fn row(&self, case: Case, compared: &Compared) -> Row {
        let figure = |seconds: f64, amount: f64| match case.unit {
            Unit::Tflops | Unit::Gbytes | Unit::Ratio => amount / seconds,
            Unit::Milliseconds | Unit::SmMilliseconds => amount * seconds,
        };
        let ours = figure(compared.ours, case.amounts[0]);
        let percent_of_peak = self.percent_of_peak(&case, ours, compared.ours).map(significant);
        let mut others = compared.others.iter().map(|seconds| figure(*seconds, case.amounts[1]));
        let peer = others.next();
        let ratio = peer.map(|peer| case.unit.ratio(ours, peer));
        let beside = others.zip(case.beside).map(|(peer, peer_is)| Beside {
            peer_is: peer_is.to_owned(),
            peer: significant(peer),
            ratio: significant(case.unit.ratio(ours, peer)),
        });
        let reading = compared.reading.as_ref();
        let mut row = Row {
            row: case.row,
            work: case.work,
            sms: case.sms,
            ours: significant(ours),
            peer: peer.map(significant),
            unit: case.unit,
            ratio: ratio.map(significant),
            target: case.target,
            target_of: case.target_of,
            reached: false,
            peer_is: case.peer_is,
            beside: beside.collect(),
            percent_of_peak,
            spread: significant(compared.spread),
            clock_mhz: reading.map(|reading| reading.clock_mhz),
            power_w: reading.map(|reading| reading.most_power_w.round()),
            throttled: reading.is_some_and(|reading| reading.held_back > 0.0),
            note: case.note,
        };
        row.reached = row.meets_target();
        row
    }

    /// Prints a row and keeps it.
    pub fn keep(&mut self, row: Row) {
        println!("{}", crate::report::line(&row));
        self.rows.push(row);
    }

    /// Of the data sheet's peak: arithmetic's of the case's SMs, the memory's of the GPU. `figure` is in the case's unit, and of `seconds`.
    fn percent_of_peak(&self, case: &Case, figure: f64, seconds: f64) -> Option<f64> {
        let peaks = datasheet_peaks(self.device.topology())?;
        let of_arithmetic = |flops_per_s: f64| flops_per_s / (peaks.flops_per_s * f64::from(case.sms) / f64::from(self.all_sms()));
        let of_memory = |bytes_per_s: f64| bytes_per_s / peaks.bytes_per_s;
        let share = match (case.unit, case.peak_of) {
            (Unit::Tflops, _) => of_arithmetic(figure * 1e12),
            (Unit::Gbytes, _) => of_memory(figure * 1e9),
            (Unit::Milliseconds | Unit::SmMilliseconds, Some(PeakOf::Flops(flops))) => of_arithmetic(flops as f64 / seconds),
            (Unit::Milliseconds | Unit::SmMilliseconds, Some(PeakOf::Bytes(bytes))) => of_memory(bytes as f64 / seconds),
            (Unit::Milliseconds | Unit::SmMilliseconds, None) | (Unit::Ratio, _) => return None,
        };
        Some(100.0 * share)
    }
}

impl Lane {
    /// Captures `body` for instance 0, 1, ..., each of `instances` at least once and enough of them for one sample.
    pub fn replay<E: From<LaunchError>>(
        &mut self,
        instances: usize,
        mut body: impl FnMut(&mut Session, usize) -> Result<(), E>,
    ) -> Result<Replay>
    where
        anyhow::Error: From<E>,
    {
        // Eagerly first: code is loaded at a kernel's first launch, which must not fall into a capture.
        for instance in 0..instances.min(2) {
            body(&mut self.session, instance)?;
        }
        self.session.device().synchronize(self.session.stream()).context("the first launch")?;
        let trial = self.capture(2, instances, &mut body)?;
        trial.time(self)?;
        let wanted = SAMPLE.as_secs_f64() / trial.time(self)?.as_secs_f64().max(1e-7);
        let executions = (wanted.ceil() as u32).clamp(1, MOST_LAUNCHES).max(instances as u32);
        self.capture(executions, instances, &mut body)
    }

    fn capture<E: From<LaunchError>>(
        &mut self,
        executions: u32,
        instances: usize,
        body: &mut impl FnMut(&mut Session, usize) -> Result<(), E>,
    ) -> Result<Replay>
    where
        anyhow::Error: From<E>,
    {
        let graph = self.session.capture(|session| (0..executions as usize).try_for_each(|at| body(session, at % instances)))?;
        let mark = || Event::timed(self.session.device());
        Ok(Replay { graph, executions, marks: [mark()?, mark()?] })
    }

    /// [`Lane::replay`] of kernels that differ in their operands alone.
    pub fn replay_kernels<K: Kernel + Clone + Send + 'static>(&mut self, kernels: &[K]) -> Result<Replay> {
        self.replay(kernels.len(), |session, at| session.launch(&kernels[at]))
    }
}

impl Replay {
    /// Device time of one execution. A replay before the first mark warms up and hides the host's part of the second.
    pub fn time(&self, lane: &mut Lane) -> Result<Duration> {
        self.time_of(lane, 1)
    }

    /// [`Replay::time`] over several replays, for graphs that are a whole forward pass.
    pub fn time_of(&self, lane: &mut Lane, replays: u32) -> Result<Duration> {
        let session = &mut lane.session;
        session.replay(&self.graph)?;
        session.device().record(self.marks[0].id(), session.stream())?;
        for _ in 0..replays {
            session.replay(&self.graph)?;
        }
        session.device().record(self.marks[1].id(), session.stream())?;
        session.device().synchronize(session.stream())?;
        Ok(session.device().elapsed(self.marks[0].id(), self.marks[1].id())? / (self.executions * replays))
    }
}

/// Sorts `samples`.
fn median(samples: &mut [f64]) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

/// Four significant digits: what the samples carry.
pub fn significant(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let unit = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * unit).round() / unit
}
