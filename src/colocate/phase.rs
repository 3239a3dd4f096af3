//! One phase of a run: tenants under one way of sharing, in this process, measured.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use smidgen_runtime::Runtime;
use smidgen_runtime::device::sim::{KernelTrace, SimDevice};
use smidgen_runtime::device::{Device, Topology};
use smidgen_runtime::launch::{Grids, KernelKey, LaunchError, Session, Walls};
use smidgen_runtime::policy::UnknownPolicy;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::telemetry::trace::{Event, Happening, Trace};
use smidgen_runtime::telemetry::{Latencies, Recording, RequestLog};
use smidgen_runtime::tenant::{TenantId, TenantSpec};

use super::results::{StreamResult, TenantResult};
use super::sharing::Sharing;
use super::spec::{Stream, TenantRequest};
use super::watch::{self, Observer, PhaseWatch, Shown, TRACE_EVENTS};
use crate::kernels::attention::PAGE_TOKENS;
use crate::models::{self, BuildError, DecoderPhase, SlotBatch};
use crate::serve::batching::{Batching, Limits};
use crate::serve::{RequestShape, Served, Server, Step, StreamError, StreamServer, Turn, Window, Workload};

/// Load before and after the measured window, so that nobody is measured beside a neighbour that has not started or has finished.
const SHOULDER: Duration = Duration::from_millis(300);

/// Time between two looks at the tenants' threads.
const TICK: Duration = Duration::from_millis(50);

/// A phase that could not be run.
#[derive(Debug, thiserror::Error)]
pub enum PhaseError {
    /// A tenant's model could not be made.
    #[error("tenant `{tenant}`: {source}")]
    Build {
        /// The tenant's name.
        tenant: String,
        /// Why.
        source: BuildError,
    },
    /// No such policy.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
    /// A tenant could not be admitted.
    #[error(transparent)]
    Admit(#[from] smidgen_runtime::AdmitError),
    /// A tenant's launches failed.
    #[error("tenant `{tenant}`: {source}")]
    Launch {
        /// The tenant's name.
        tenant: String,
        /// Why.
        source: LaunchError,
    },
    /// A tenant's stream of requests cannot be served.
    #[error("tenant `{tenant}`: {problem}")]
    Stream {
        /// The tenant's name.
        tenant: String,
        /// Why.
        problem: String,
    },
    /// A tenant's thread panicked.
    #[error("tenant `{0}` panicked; the other tenants were not touched")]
    Panic(String),
    /// The coordinating process went away.
    #[error("the run was called off")]
    CalledOff,
}

/// The device of a phase. The simulator is told apart because it needs to know which process a stream belongs to.
pub enum PhaseDevice {
    /// A GPU.
    Cuda(Arc<dyn Device>),
    /// The simulator.
    Sim(Arc<SimDevice>),
}

impl PhaseDevice {
    fn device(&self) -> Arc<dyn Device> {
        match self {
            Self::Cuda(device) => Arc::clone(device),
            Self::Sim(device) => Arc::clone(device) as Arc<dyn Device>,
        }
    }
}

/// Runs `tenants` together for `seconds`, and says what it showed besides their figures. `gate` is called when everything is loaded and
/// captured, and the load begins when it returns.
///
/// # Errors
/// [`PhaseError`], naming the tenant.
pub fn run(
    device: &PhaseDevice,
    sharing: &Sharing,
    tenants: &[TenantRequest],
    profiles: Arc<ProfileStore>,
    seconds: f64,
    watch: &PhaseWatch<'_>,
    gate: impl FnOnce() -> Result<(), PhaseError>,
) -> Result<(Vec<TenantResult>, Shown), PhaseError> {
    let recorder = watch.metrics.map(|show| (watch::recorder(), show));
    // Of this phase alone: the next one begins at zero.
    let _recording = recorder.as_ref().map(|(recorder, _)| metrics::set_default_local_recorder(recorder));
    // On a GPU the daemon keeps a process to its percentage of the SMs.
    let policy = sharing.policy(matches!(device, PhaseDevice::Sim(_)))?;
    let by_profile = policy.needs_profiles();
    let recording = Recording { events: if watch.trace { TRACE_EVENTS } else { 0 }, ..Recording::default() };
    let runtime = Runtime::recording(device.device(), policy, profiles, recording);
    let mut ids = Vec::new();
    let mut prepared = Vec::new();
    for (process, tenant) in tenants.iter().enumerate() {
        if let (PhaseDevice::Sim(sim), true) = (device, sharing.is_baseline()) {
            sim.set_process(process as u32);
        }
        let (id, tenant) = prepare(&runtime, tenant, sharing.grids())?;
        ids.push(id);
        prepared.push(tenant);
    }
    // Captured only now that the plan knows every tenant's kernels.
    let servers = tenants
        .iter()
        .zip(&ids)
        .zip(prepared)
        .map(|((tenant, &id), prepared)| TenantServer::new(tenant, prepared, runtime.request_log(id)?));
    let mut servers = servers.collect::<Result<Vec<_>, _>>()?;
    if matches!(sharing, Sharing::Policy(name) if name == "exclusive") {
        let turn = Arc::new(Turn::default());
        for (number, server) in (0..).zip(&mut servers) {
            server.take_turns(Arc::clone(&turn), number);
        }
    }
    gate()?;
    let start = runtime.device().now();
    let from = start + SHOULDER;
    let until = from + Duration::from_secs_f64(seconds);
    let window = Window { from, until, end: until + SHOULDER };
    for (seed, (tenant, server)) in tenants.iter().zip(&mut servers).enumerate() {
        server.start(window, tenant.rate, seed as u64);
    }
    let observer = Observer::new(&runtime, recorder.as_ref().map(|(recorder, show)| (recorder, *show)));
    let mut kernels = SimulatedKernels::default();
    let served = match device {
        PhaseDevice::Cuda(device) => serve_on_threads(&**device, tenants, servers, observer)?,
        PhaseDevice::Sim(device) => serve_in_virtual_time(device, tenants, servers, observer, watch.trace.then_some(&mut kernels))?,
    };
    let mut shown = Shown { trace: watch.trace.then(|| runtime.telemetry().trace()), ..Shown::default() };
    if let Some(trace) = &mut shown.trace {
        kernels.join(trace, runtime.device().topology());
    }
    if by_profile {
        let unprofiled = runtime.unprofiled().into_iter();
        shown.unprofiled = unprofiled.map(|tenant| (tenant.name, tenant.kernels.iter().map(KernelKey::to_string).collect())).collect();
    }
    let figures =
        tenants.iter().zip(ids).zip(served).map(|((tenant, id), served)| result(&runtime, tenant, id, &served, seconds)).collect();
    Ok((figures, shown))
}

/// A tenant whose kernels the runtime has seen.
enum Prepared {
    /// One request is one workload.
    Requests(Box<Session>, Box<dyn Workload>),
    /// A stream of requests, with their shape.
    Stream(Box<SlotBatch>, RequestShape),
}

/// A tenant being served.
enum TenantServer {
    Requests(Box<Server>),
    Stream(Box<StreamServer<SlotBatch>>),
}

/// Admits a tenant, makes its model, and runs one request (of a stream, one step of all its slots), which shows the runtime its kernels.
fn prepare(runtime: &Runtime, tenant: &TenantRequest, grids: Grids) -> Result<(TenantId, Prepared), PhaseError> {
    let build = |source| PhaseError::build(tenant, source);
    let source = models::ModelSource::find(&tenant.model).map_err(build)?;
    let limits = tenant.stream.map(|stream| limits(tenant, stream));
    let memory_bytes = match (limits, tenant.phase) {
        (Some(limits), _) => source.serving_memory_bytes(limits),
        (None, DecoderPhase::Decode) => source.memory_bytes(tenant.batch, tenant.seq),
        (None, DecoderPhase::Prefill) => source.prefill_memory_bytes(tenant.batch, tenant.seq),
    };
    let memory_bytes = memory_bytes.map_err(build)?;
    let spec = TenantSpec { name: tenant.name.clone(), class: tenant.class, slo: tenant.slo(), memory_bytes };
    let id = runtime.admit(spec)?;
    let mut session = runtime.session(id)?;
    session.set_grids(grids);
    let (kernels, prepared) = match (tenant.stream, limits) {
        (Some(stream), Some(limits)) => {
            let mut slots = source.slots(session, limits).map_err(build)?;
            slots.session().forget_counts();
            slots.run_idle_step().map_err(build)?;
            let vocab = source.config().vocab() as u32;
            let shape = RequestShape { vocab, prompt: stream.prompt, generate: stream.generate.try_into().unwrap_or(NonZeroUsize::MIN) };
            (slots.session().seen().to_vec(), Prepared::Stream(Box::new(slots), shape))
        }
        _ => {
            let workload = match tenant.phase {
                DecoderPhase::Decode => source.workload(&mut session, tenant.batch, tenant.seq),
                DecoderPhase::Prefill => source.prefill(&mut session, tenant.batch, tenant.seq),
            };
            let mut workload = workload.map_err(build)?;
            session.forget_counts();
            workload.enqueue(&mut session).map_err(|source| PhaseError::launch(tenant, source))?;
            runtime.device().synchronize(session.stream()).map_err(|error| PhaseError::launch(tenant, error.into()))?;
            (session.seen().to_vec(), Prepared::Requests(Box::new(session), workload))
        }
    };
    runtime.learn(id, &kernels)?;
    Ok((id, prepared))
}

/// Slots and pages for a stream: enough for all its requests at once, so that none is preempted.
fn limits(tenant: &TenantRequest, stream: Stream) -> Limits {
    let longest = stream.longest();
    let pages = tenant.batch.saturating_mul(longest.div_ceil(PAGE_TOKENS));
    Limits { slots: tenant.batch, step_tokens: stream.chunk, pages, page_tokens: PAGE_TOKENS, max_sequence: longest as usize }
}

impl TenantServer {
    /// Captures what the tenant replays.
    fn new(tenant: &TenantRequest, prepared: Prepared, log: RequestLog) -> Result<Self, PhaseError> {
        Ok(match prepared {
            Prepared::Requests(session, workload) => {
                let server = Server::new(*session, workload, tenant.slo()).map_err(|source| PhaseError::launch(tenant, source))?;
                Self::Requests(Box::new(server.observed(log)))
            }
            Prepared::Stream(mut slots, shape) => {
                slots.prepare().map_err(|source| PhaseError::build(tenant, source))?;
                let batching = Batching::new(*slots)
                    .map_err(|source| PhaseError::Stream { tenant: tenant.name.clone(), problem: source.to_string() })?;
                Self::Stream(Box::new(StreamServer::new(batching, shape, tenant.slo()).observed(log)))
            }
        })
    }

    fn take_turns(&mut self, turn: Arc<Turn>, number: u64) {
        match self {
            Self::Requests(server) => server.take_turns(turn, number),
            Self::Stream(server) => server.take_turns(turn, number),
        }
    }

    fn start(&mut self, window: Window, rate: Option<f64>, seed: u64) {
        match self {
            Self::Requests(server) => server.start(window, rate, seed),
            Self::Stream(server) => server.start(window, rate, seed),
        }
    }

    fn step(&mut self, tenant: &TenantRequest) -> Result<Step, PhaseError> {
        match self {
            Self::Requests(server) => server.step().map_err(|source| PhaseError::launch(tenant, source)),
            Self::Stream(server) => server.step().map_err(|error| match error {
                StreamError::Executor(source) => PhaseError::build(tenant, source),
                StreamError::Submit(source) => PhaseError::Stream { tenant: tenant.name.clone(), problem: source.to_string() },
            }),
        }
    }

    fn finish(self) -> Served {
        match self {
            Self::Requests(server) => server.finish(),
            Self::Stream(server) => server.finish(),
        }
    }
}

fn serve_on_threads(
    device: &dyn Device,
    tenants: &[TenantRequest],
    servers: Vec<TenantServer>,
    mut observer: Observer<'_>,
) -> Result<Vec<Served>, PhaseError> {
    let serve = |tenant, mut server: TenantServer| {
        device.bind_thread().map_err(|error| PhaseError::launch(tenant, error.into()))?;
        loop {
            match server.step(tenant)? {
                Step::Finished => return Ok(server.finish()),
                Step::Busy => device.pass_time(Duration::MAX),
                Step::IdleUntil(instant) => device.pass_time(instant),
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = tenants.iter().zip(servers).map(|(tenant, server)| scope.spawn(move || serve(tenant, server))).collect();
        while !threads.iter().all(|thread| thread.is_finished()) {
            observer.poll();
            thread::sleep(TICK);
        }
        observer.look();
        let joined: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        tenants.iter().zip(joined).map(|(tenant, served)| served.unwrap_or_else(|_| Err(PhaseError::Panic(tenant.name.clone())))).collect()
    })
}

fn serve_in_virtual_time(
    device: &SimDevice,
    tenants: &[TenantRequest],
    mut servers: Vec<TenantServer>,
    mut observer: Observer<'_>,
    mut kernels: Option<&mut SimulatedKernels>,
) -> Result<Vec<Served>, PhaseError> {
    loop {
        let mut until = None;
        for (tenant, server) in tenants.iter().zip(&mut servers) {
            let next = match server.step(tenant)? {
                Step::Finished => continue,
                Step::Busy => Duration::MAX,
                Step::IdleUntil(instant) => instant,
            };
            until = Some(until.map_or(next, |until: Duration| until.min(next)));
        }
        if let Some(kernels) = &mut kernels {
            kernels.take(device);
        }
        observer.poll();
        match until {
            Some(until) => device.pass_time(until),
            None => {
                observer.look();
                return Ok(servers.into_iter().map(TenantServer::finish).collect());
            }
        }
    }
}

/// The last kernels that the simulator ran, for a timeline.
#[derive(Default)]
struct SimulatedKernels(VecDeque<KernelTrace>);

impl SimulatedKernels {
    fn take(&mut self, device: &SimDevice) {
        self.0.extend(device.take_trace());
        self.0.drain(..self.0.len().saturating_sub(TRACE_EVENTS));
    }

    /// Puts them where their streams belong, in place of those of them that were sampled.
    fn join(self, trace: &mut Trace, topology: &Topology) {
        for track in trace.tenants.values_mut() {
            track.events.retain(|event| !matches!(event.what, Happening::Kernel { .. }));
        }
        for KernelTrace { key, stream, started, ended, tpcs, .. } in self.0 {
            let Some(lane) = trace.lanes.iter().find(|lane| lane.stream == stream.0) else { continue };
            let what = Happening::Kernel {
                kernel: key,
                partition: lane.partition,
                sms: topology.sms_of(tpcs),
                took: ended.saturating_sub(started),
            };
            if let Some(track) = trace.tenants.get_mut(&lane.tenant) {
                track.events.push(Event { at: started, what });
            }
        }
    }
}

fn result(runtime: &Runtime, tenant: &TenantRequest, id: TenantId, served: &Served, seconds: f64) -> TenantResult {
    let plan = runtime.plan();
    let mine = plan.tenants.get(&id);
    let widest = mine.map_or(0, |plan| plan.kernels.values().chain([&plan.default]).map(|placement| placement.sms.0).max().unwrap_or(0));
    let latencies = &served.latencies;
    TenantResult {
        name: tenant.name.clone(),
        model: tenant.model.clone(),
        class: tenant.class,
        throughput: latencies.count() as f64 / seconds,
        p50_ms: latencies.quantile_ms(0.50),
        p95_ms: latencies.quantile_ms(0.95),
        p99_ms: latencies.quantile_ms(0.99),
        slowdown: 1.0,
        requests: latencies.count(),
        rate: tenant.rate,
        slo_ms: tenant.slo_ms,
        slo_attainment: tenant.slo_ms.map(|_| served.within_slo as f64 / latencies.count().max(1) as f64),
        mean_ms: latencies.mean_ms(),
        quantiles_ms: (0..=100).map(|percent| latencies.quantile_ms(f64::from(percent) / 100.0)).collect(),
        walls: mine.map_or(Walls::default(), |plan| plan.walls),
        sms: widest,
        stream: served.stream.as_ref().map(|stream| {
            let percentiles = |latencies: &Latencies| [0.50, 0.95, 0.99].map(|quantile| latencies.quantile_ms(quantile));
            StreamResult {
                tokens_per_second: stream.tokens as f64 / seconds,
                first_token_ms: percentiles(&stream.first),
                per_token_ms: percentiles(&stream.per_token),
            }
        }),
    }
}

impl PhaseError {
    fn build(tenant: &TenantRequest, source: BuildError) -> Self {
        Self::Build { tenant: tenant.name.clone(), source }
    }

    fn launch(tenant: &TenantRequest, source: LaunchError) -> Self {
        Self::Launch { tenant: tenant.name.clone(), source }
    }
}
