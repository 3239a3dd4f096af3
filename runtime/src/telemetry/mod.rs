//! What the runtime shows of itself: latencies, a timeline, metrics, and the kernel times by which profiles are corrected.
//!
//! | file | what is in it |
//! |---|---|
//! | [`latencies`](Latencies) | latency recorders |
//! | [`trace`] | events in rings of fixed size, one for each thread that writes and one for the grants of each tenant; what becomes of them as a [`Trace`] |
//! | [`chrome`] | a trace as Chrome trace JSON, which Perfetto opens |
//! | [`metrics`] | counters, gauges and histograms by tenant, through the `metrics` facade |
//! | `grants` | what tenants may use, told without a lock by whichever thread changes it |
//! | `probe` | the session's side: the one branch on the launch path, and what lies behind it |
//! | `sampler` | device times of at most 1 % of the launches, and of the replays; for a timeline, of all replays |
//! | `wanted` | requests that are launched instead of replayed, so that their kernels can be timed |
//!
//! A [`Telemetry`] belongs to one [`Runtime`](crate::Runtime). Sessions write into rings and counters of their own; whoever wants to see
//! something collects it. On the launch path there is one branch, not taken while nothing is traced and no sample is due, and never an
//! allocation or a lock.

pub mod chrome;
mod grants;
mod latencies;
pub mod metrics;
pub(crate) mod probe;
mod sampler;
pub mod trace;
mod wanted;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, Fingerprint, KernelKey, Sms, StreamId};
use crate::policy::Observation;
use crate::tenant::{TenantId, TenantSpec};
use metrics::{RuntimeMetrics, TenantMetrics};
use probe::Pulse;
use sampler::{SamplePool, Samples};
use trace::{Event, Happening, Lane, Ring, TenantTrace, Trace};
use wanted::Wanted;

pub(crate) use grants::GrantLog;
pub use latencies::Latencies;
pub(crate) use metrics::Memory;
pub use probe::{Probe, RequestLog};
pub(crate) use sampler::ReplaySample;
pub use sampler::{SAMPLE_STRIDE, Sample};

/// Rings that are kept of sessions, and of tenants. Beyond, the oldest whose session or tenant is gone is forgotten, so that those that come and go leave no
/// memory behind.
const MOST_RINGS: usize = 256;
/// Streams whose partitions are kept.
const MOST_LANES: usize = 4096;

/// What a runtime is to record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recording {
    /// Events that each ring of the timeline holds at least, 32 bytes each, up to [`MOST_EVENTS`](trace::MOST_EVENTS); the oldest are overwritten. Each session,
    /// each [`RequestLog`] and each tenant, for its grants, has a ring. 0 for no timeline.
    pub events: usize,
    /// Whether at most 1 % of the launches, and of the replays, are timed on the device; with a timeline, all replays, up to 256 of a session from one
    /// [`Runtime::correct`](crate::Runtime::correct) to the next.
    pub sampling: bool,
}

impl Default for Recording {
    /// No timeline; kernel times are sampled.
    fn default() -> Self {
        Self { events: 0, sampling: true }
    }
}

/// Everything recorded of one runtime.
pub struct Telemetry {
    device: Arc<dyn Device>,
    recording: Recording,
    /// Read at every launch, written when somebody looks.
    tracing: Arc<AtomicBool>,
    metrics: RuntimeMetrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tenants: BTreeMap<TenantId, Tenant>,
    /// Names of tenants that were dismissed while there was a timeline.
    gone: BTreeMap<TenantId, String>,
    rings: VecDeque<TenantRing>,
    lanes: VecDeque<Lane>,
    grants: VecDeque<(TenantId, Arc<GrantLog>)>,
    /// Times of kernels and replays, which are read off the threads of the sessions.
    events: VecDeque<(TenantId, Event)>,
    plans: VecDeque<(Duration, &'static str)>,
    kernels: BTreeMap<Fingerprint, KernelKey>,
    pools: Vec<Weak<SamplePool>>,
}

struct Tenant {
    name: String,
    /// Kernels of its requests, in the order first met.
    met: Vec<KernelKey>,
    pulse: Arc<Pulse>,
    wanted: Arc<Wanted>,
    metrics: TenantMetrics,
}

struct TenantRing {
    tenant: TenantId,
    name: String,
    ring: Arc<Ring>,
}

impl Telemetry {
    /// Records of a runtime on `device`. Metrics go to the recorder that is installed now.
    pub fn new(device: Arc<dyn Device>, recording: Recording) -> Arc<Self> {
        let (tracing, metrics) = (Arc::new(AtomicBool::new(recording.events > 0)), RuntimeMetrics::new());
        Arc::new(Self { device, recording, tracing, metrics, state: Mutex::default() })
    }

    /// The number by which metrics tell this runtime from others in the process: their label `runtime`. It is free again when the runtime and its
    /// sessions are gone.
    pub fn number(&self) -> u32 {
        self.metrics.number()
    }

    /// Turns the timeline on or off while the runtime runs. It has no effect where [`Recording::events`] is 0.
    pub fn set_tracing(&self, on: bool) {
        self.tracing.store(on && self.recording.events > 0, Ordering::Relaxed);
    }

    /// Whether the timeline is written.
    pub fn is_tracing(&self) -> bool {
        self.tracing.load(Ordering::Relaxed)
    }

    /// The timeline as far as the rings hold it, oldest first.
    pub fn trace(&self) -> Trace {
        let state = &*self.state.lock();
        let mut tenants = BTreeMap::<TenantId, TenantTrace>::new();
        for ring in &state.rings {
            let track = tenants.entry(ring.tenant).or_insert_with(|| TenantTrace::new(ring.name.clone()));
            track.events.extend(ring.ring.snapshot());
        }
        let grants = state.grants.iter().flat_map(|(tenant, log)| log.snapshot().into_iter().map(|event| (*tenant, event)));
        for (tenant, event) in grants.chain(state.events.iter().copied()) {
            let name = || state.tenants.get(&tenant).map(|tenant| &tenant.name).or_else(|| state.gone.get(&tenant));
            let new = || TenantTrace::new(name().map_or_else(|| format!("tenant {}", tenant.0), String::clone));
            tenants.entry(tenant).or_insert_with(new).events.push(event);
        }
        for track in tenants.values_mut() {
            track.events.sort_by_key(|event| event.at);
        }
        Trace {
            simulated: self.device.is_simulated(),
            sms: self.device.topology().sms,
            tenants,
            plans: state.plans.iter().map(|&(at, policy)| (at, policy.to_owned())).collect(),
            kernels: state.kernels.iter().map(|(&kernel, key)| (kernel.0, key.to_string())).collect(),
            lanes: state.lanes.iter().copied().collect(),
        }
    }

    /// Kernels that the requests of a tenant launch, as far as its sessions have met them; none of an unknown tenant.
    pub fn met(&self, tenant: TenantId) -> Vec<KernelKey> {
        self.state.lock().tenants.get(&tenant).map_or_else(Vec::new, |tenant| tenant.met.clone())
    }

    /// The key of a kernel that some session has met.
    pub fn key(&self, kernel: Fingerprint) -> Option<KernelKey> {
        self.state.lock().kernels.get(&kernel).copied()
    }

    /// What a session of `tenant` records through.
    ///
    /// # Errors
    /// What the device says of the events by which kernels are timed.
    pub(crate) fn probe(self: &Arc<Self>, tenant: TenantId) -> Result<Probe, DeviceError> {
        let samples =
            if self.recording.sampling { Some(Arc::new(SamplePool::new(&self.device, tenant, self.recording.events > 0)?)) } else { None };
        let mut state = self.state.lock();
        let Some(known) = state.tenants.get(&tenant) else { return Ok(Probe::default()) };
        let (counts, pulse, wanted) = (Arc::clone(known.metrics.counts()), Arc::clone(&known.pulse), Arc::clone(&known.wanted));
        if let Some(samples) = &samples {
            state.pools.retain(|pool| pool.strong_count() > 0);
            state.pools.push(Arc::downgrade(samples));
        }
        let ring = self.ring(&mut state, tenant);
        drop(state);
        Ok(Probe::new(self, tenant, ring, samples, counts, pulse, wanted))
    }

    /// What an engine tells of the requests of `tenant` through; it records nothing of an unknown one.
    pub(crate) fn request_log(&self, tenant: TenantId) -> RequestLog {
        let mut state = self.state.lock();
        let Some(known) = state.tenants.get(&tenant) else { return RequestLog::default() };
        let (metrics, pulse) = (known.metrics.requests(), Arc::clone(&known.pulse));
        let ring = self.ring(&mut state, tenant);
        RequestLog::new(Arc::clone(&self.tracing), ring, metrics, pulse)
    }

    /// A new ring of `tenant`, if there is a timeline.
    fn ring(&self, state: &mut State, tenant: TenantId) -> Option<Arc<Ring>> {
        let name = state.tenants.get(&tenant).map(|tenant| tenant.name.clone()).filter(|_| self.recording.events > 0)?;
        let ring = Arc::new(Ring::new(self.recording.events));
        keep(&mut state.rings, TenantRing { tenant, name, ring: Arc::clone(&ring) }, |known| Arc::strong_count(&known.ring) == 1);
        Some(ring)
    }

    /// What the grants of `tenant` are told to, if there is a timeline.
    pub(crate) fn grant_log(&self, tenant: TenantId) -> Option<Arc<GrantLog>> {
        let log = (self.recording.events > 0).then(|| Arc::new(GrantLog::new(&self.tracing, self.recording.events)))?;
        keep(&mut self.state.lock().grants, (tenant, Arc::clone(&log)), |(_, known)| Arc::strong_count(known) == 1);
        Some(log)
    }

    pub(crate) fn admitted(&self, tenant: TenantId, spec: &TenantSpec) {
        let mut state = self.state.lock();
        // Two tenants of one name must not overwrite each other's gauges.
        let is_taken = |name: &String| state.tenants.values().any(|known| known.name == *name);
        let mut name = spec.name.clone();
        // Somebody may be called what this one would be called instead.
        while is_taken(&name) {
            name = format!("{name} ({})", tenant.0);
        }
        let metrics = self.metrics.tenant(&name);
        if spec.slo.is_some() {
            metrics.set_objective(spec.slo);
        }
        let known = Tenant { name, met: Vec::new(), pulse: Arc::default(), wanted: Arc::default(), metrics };
        known.pulse.set_objective(spec.slo);
        state.tenants.insert(tenant, known);
    }

    pub(crate) fn objective_changed(&self, tenant: TenantId, slo: Option<Duration>) {
        if let Some(tenant) = self.state.lock().tenants.get(&tenant) {
            tenant.metrics.set_objective(slo);
            tenant.pulse.set_objective(slo);
        }
    }

    pub(crate) fn dismissed(&self, tenant: TenantId) {
        let state = &mut *self.state.lock();
        if let Some(gone) = state.tenants.remove(&tenant) {
            state.gone.extend(self.is_tracing().then_some((tenant, gone.name.clone())));
            if state.gone.len() > MOST_RINGS {
                state.gone.pop_first();
            }
        }
    }

    /// One request launches `kernels`: what was met before it, such as what fills in weights, is no part of requests.
    pub(crate) fn learned(&self, tenant: TenantId, kernels: impl Iterator<Item = KernelKey>) {
        if let Some(tenant) = self.state.lock().tenants.get_mut(&tenant) {
            tenant.met = kernels.collect();
        }
    }

    /// A plan is in force from now on.
    pub(crate) fn plan_published(&self, policy: &'static str) {
        self.metrics.plans.increment(1);
        if self.is_tracing() {
            let now = self.device.now();
            push_bounded(&mut self.state.lock().plans, (now, policy), self.recording.events);
        }
    }

    /// What became of every tenant's requests since the last call.
    pub(crate) fn take_observations(&self) -> Vec<Observation> {
        self.state.lock().tenants.iter().map(|(&tenant, known)| known.pulse.take(tenant)).collect()
    }

    /// Brings the metrics of `tenant` up to date.
    pub(crate) fn publish(&self, tenant: TenantId, owned: Sms, held: Sms, borrowed: Sms, memory: Memory) {
        if let Some(tenant) = self.state.lock().tenants.get(&tenant) {
            tenant.metrics.counts().publish();
            tenant.metrics.set_sms(owned, held, borrowed);
            tenant.metrics.set_memory(memory);
        }
    }

    /// The times of kernels and of replays that the device has finished since the last call; those that were timed for the timeline alone stand on it, and no more.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) fn take_samples(&self) -> Result<Samples, DeviceError> {
        // The pools are held while they are read: the session of one may end meanwhile, and take its events along.
        let pools: Vec<_> = self.state.lock().pools.iter().filter_map(Weak::upgrade).collect();
        let mut samples = Samples::default();
        for pool in pools {
            pool.resolve(&*self.device, &mut samples)?;
        }
        if self.is_tracing() {
            let state = &mut *self.state.lock();
            for sample in &samples.launches {
                let what = Happening::Kernel { kernel: sample.kernel, partition: sample.partition, sms: sample.sms, took: sample.took };
                push_bounded(&mut state.events, (sample.tenant, Event { at: sample.began, what }), self.recording.events);
            }
            for replay in &samples.replays {
                let what = Happening::Replayed { partition: replay.partition, launches: replay.graph.launches, took: replay.took };
                push_bounded(&mut state.events, (replay.tenant, Event { at: replay.began, what }), self.recording.events);
            }
        }
        samples.replays.retain(|replay| replay.judged);
        Ok(samples)
    }

    /// Asks the sessions of `tenant` to launch some of the requests that they would replay.
    pub(crate) fn ask_for_launches(&self, tenant: TenantId) {
        if let Some(tenant) = self.state.lock().tenants.get(&tenant) {
            tenant.wanted.ask();
        }
    }

    /// The kernels that are timed in such requests of `tenant` from here on; where there are none, no more requests are launched. Whether any still are to be.
    pub(crate) fn want_times(&self, tenant: TenantId, kernels: Vec<Fingerprint>) -> bool {
        self.state.lock().tenants.get(&tenant).is_some_and(|tenant| tenant.wanted.set_kernels(kernels))
    }

    pub(crate) fn drifted(&self, kernel: &KernelKey, ratio: f64) {
        self.metrics.set_drift(kernel, ratio);
    }

    pub(crate) fn plan_drifted(&self, tenant: TenantId, ratio: f64) {
        if let Some(tenant) = self.state.lock().tenants.get_mut(&tenant) {
            tenant.metrics.set_plan_drift(ratio);
        }
    }

    pub(crate) fn drift_reported(&self) {
        self.metrics.drift_reports.increment(1);
    }

    fn met_kernel(&self, tenant: TenantId, key: KernelKey) {
        let state = &mut *self.state.lock();
        state.kernels.insert(key.fingerprint(), key);
        if let Some(tenant) = state.tenants.get_mut(&tenant)
            && !tenant.met.contains(&key)
        {
            tenant.met.push(key);
        }
    }

    fn met_lane(&self, tenant: TenantId, stream: StreamId, partition: crate::device::PartitionId) {
        if self.recording.events > 0 {
            let sms = self.device.partition_sms(partition).unwrap_or_default();
            let lane = Lane { tenant, stream: stream.0, partition: partition.0, sms };
            let state = &mut *self.state.lock();
            // A driver may number a later stream as one that is gone.
            state.lanes.retain(|known| known.stream != lane.stream || known.tenant != tenant);
            push_bounded(&mut state.lanes, lane, MOST_LANES);
        }
    }
}

/// Adds a ring to those that are kept, in place of the oldest whose writers are gone where there are too many.
fn keep<T>(rings: &mut VecDeque<T>, ring: T, is_over: impl Fn(&T) -> bool) {
    if rings.len() >= MOST_RINGS
        && let Some(oldest) = rings.iter().position(is_over)
    {
        rings.remove(oldest);
    }
    rings.push_back(ring);
}

fn push_bounded<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(item);
}
