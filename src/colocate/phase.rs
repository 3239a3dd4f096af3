//! One phase of a run: tenants under one way of sharing, in this process, measured.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use smidgen_runtime::device::Device;
use smidgen_runtime::device::sim::SimDevice;
use smidgen_runtime::launch::{KernelKey, LaunchError, Session, Walls};
use smidgen_runtime::policy::UnknownPolicy;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::telemetry::{Latencies, Recording, RequestLog};
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::{Runtime, RuntimeOptions, Tenancy};

use super::results::{PlannedPower, StreamResult, TenantResult};
use super::serving::{self, Resident};
use super::sharing::Sharing;
use super::spec::{Stream, TenantRequest};
use super::watch::{self, Observer, PhaseWatch, Shown, SimulatedKernels, TRACE_EVENTS};
use crate::kernels::attention::PAGE_TOKENS;
use crate::models::{BuildError, DecoderPhase, ModelSource, SlotBatch};
use crate::serve::batching::{Batching, Limits};
use crate::serve::{RequestShape, Seat, Served, Server, Step, StreamError, StreamServer, Turn, Window, Workload};

/// Load before and after the measured window, so that nobody is measured beside a neighbour that has not started or has finished.
const SHOULDER: Duration = Duration::from_millis(300);

/// Load before the measured window where a policy adapts its plan to objectives: what is measured is what it settles on.
const SETTLING: Duration = Duration::from_secs(4);

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
#[tracing::instrument(level = "debug", name = "serve", skip_all, fields(%sharing))]
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
    // On the simulator the times of a baseline's kernels are those of profiles, too.
    let by_profile = policy.needs_profiles() || (sharing.is_baseline() && matches!(device, PhaseDevice::Sim(_)));
    let recording = Recording { events: if watch.trace { TRACE_EVENTS } else { 0 }, ..Recording::default() };
    let runtime =
        Runtime::with_options(device.device(), policy, profiles, RuntimeOptions { partition_bytes: watch.partition_bytes, recording });
    let mut tenancies = Vec::new();
    let mut prepared = Vec::new();
    for (process, tenant) in tenants.iter().enumerate() {
        if let (PhaseDevice::Sim(sim), true) = (device, sharing.is_baseline()) {
            sim.set_process(process as u32);
        }
        let (tenancy, tenant) = prepare(&runtime, tenant, sharing)?;
        tenancies.push(tenancy);
        prepared.push(tenant);
    }
    // Captured only now that the plan knows every tenant's kernels.
    let servers = tenants
        .iter()
        .zip(&tenancies)
        .zip(prepared)
        .map(|((tenant, tenancy), prepared)| TenantServer::new(tenant, prepared, runtime.request_log(tenancy.tenant())?));
    let mut servers = servers.collect::<Result<Vec<_>, _>>()?;
    if matches!(sharing, Sharing::Policy(name) if name == "exclusive") {
        let turn = Arc::new(Turn::default());
        for (number, server) in (0..).zip(&mut servers) {
            server.take_turns(turn.seat(number));
        }
    }
    gate()?;
    let start = runtime.device().now();
    let from = start + before_window(sharing, tenants);
    let until = from + Duration::from_secs_f64(seconds);
    let window = Window { from, until, end: until + SHOULDER };
    for (seed, (tenant, server)) in tenants.iter().zip(&mut servers).enumerate() {
        server.start(window, tenant.rate, seed as u64);
    }
    let residents = tenants.iter().zip(servers).zip(tenancies);
    let residents = residents.map(|((request, server), tenancy)| Resident { request, server, tenancy }).collect();
    let mut observer = Observer::new(&runtime, recorder.as_ref().map(|(recorder, show)| (recorder, *show)));
    let outcomes = match device {
        PhaseDevice::Cuda(_) => serving::on_threads(&runtime, residents, &mut observer),
        PhaseDevice::Sim(device) => {
            observer.simulated = watch.trace.then(|| SimulatedKernels::of(device));
            serving::in_virtual_time(&runtime, residents, &mut observer)
        }
    };
    // The others were served to the end, but beside a neighbour that was not there: no measurement of these tenants together.
    let outcomes = outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
    // Nobody is dismissed before all is read: the plan would change.
    let mut shown = Shown {
        trace: watch.trace.then(|| observer.trace()),
        power: runtime.predicted_power().map(PlannedPower::from),
        ..Shown::default()
    };
    if by_profile {
        let unprofiled = runtime.unprofiled().into_iter();
        shown.unprofiled = unprofiled.map(|tenant| (tenant.name, tenant.kernels.iter().map(KernelKey::to_string).collect())).collect();
    }
    let figures = tenants.iter().zip(&outcomes);
    let figures = figures.map(|(tenant, (served, tenancy))| result(&runtime, tenant, tenancy.tenant(), served, seconds)).collect();
    Ok((figures, shown))
}

/// How long the load lasts before it is measured.
pub(super) fn before_window(sharing: &Sharing, tenants: &[TenantRequest]) -> Duration {
    let adapts = sharing.policy(false).is_ok_and(|policy| policy.adapts());
    if adapts && tenants.iter().any(|tenant| tenant.slo_ms.is_some()) { SETTLING } else { SHOULDER }
}

/// A tenant whose kernels the runtime has seen.
enum Prepared {
    /// One request is one workload.
    Requests(Box<Session>, Box<dyn Workload>),
    /// A stream of requests, with their shape.
    Stream(Box<SlotBatch>, RequestShape),
}

/// A tenant being served.
pub(super) enum TenantServer {
    Requests(Box<Server>),
    Stream(Box<StreamServer<SlotBatch>>),
}

/// A tenant's model, and the device memory that serving it takes.
///
/// # Errors
/// [`PhaseError::Build`]: there is no such model, or it does not suit the tenant's phase and lengths.
pub fn find_model(tenant: &TenantRequest) -> Result<(ModelSource, u64), PhaseError> {
    let build = |source| PhaseError::build(tenant, source);
    let source = ModelSource::find(&tenant.model).map_err(build)?;
    let memory_bytes = match (tenant.stream, tenant.phase) {
        (Some(stream), _) => source.serving_memory_bytes(limits(tenant, stream)),
        (None, DecoderPhase::Decode) => source.memory_bytes(tenant.batch, tenant.seq),
        (None, DecoderPhase::Prefill) => source.prefill_memory_bytes(tenant.batch, tenant.seq),
    };
    let memory_bytes = memory_bytes.map_err(build)?;
    Ok((source, memory_bytes))
}

/// Admits a tenant, makes its model, and runs one request (of a stream, one step of all its slots), which shows the runtime its kernels.
#[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.name))]
fn prepare<'a>(runtime: &'a Runtime, tenant: &TenantRequest, sharing: &Sharing) -> Result<(Tenancy<&'a Runtime>, Prepared), PhaseError> {
    let build = |source| PhaseError::build(tenant, source);
    let (source, memory_bytes) = find_model(tenant)?;
    let spec = TenantSpec { name: tenant.name.clone(), class: tenant.class, slo: tenant.slo(), memory_bytes };
    let id = runtime.admit(spec)?;
    let tenancy = Tenancy::new(runtime, id);
    // A stream's rate is of requests, and its objective of tokens.
    runtime.expect_rate(id, tenant.rate.filter(|_| tenant.stream.is_none()))?;
    let mut session = runtime.session(id)?;
    // Whoever is served meanwhile must not wait for a whole model.
    let mut uploader = runtime.uploader(id)?;
    session.set_grids(sharing.grids());
    if sharing.is_eager() {
        session.launch_eagerly();
    }
    let (kernels, prepared) = match tenant.stream {
        Some(stream) => {
            let mut slots = source.slots(session, &mut uploader, limits(tenant, stream)).map_err(build)?;
            slots.session().forget_counts();
            slots.run_idle_step().map_err(build)?;
            let vocab = source.config().vocab() as u32;
            let shape = RequestShape { vocab, prompt: stream.prompt, generate: stream.generate.try_into().unwrap_or(NonZeroUsize::MIN) };
            (slots.session().seen().to_vec(), Prepared::Stream(Box::new(slots), shape))
        }
        None => {
            let workload = match tenant.phase {
                DecoderPhase::Decode => source.workload(&mut session, &mut uploader, tenant.batch, tenant.seq),
                DecoderPhase::Prefill => source.prefill(&mut session, &mut uploader, tenant.batch, tenant.seq),
            };
            let mut workload = workload.map_err(build)?;
            session.forget_counts();
            workload.enqueue(&mut session).map_err(|source| PhaseError::launch(tenant, source))?;
            runtime.device().synchronize(session.stream()).map_err(|error| PhaseError::launch(tenant, error.into()))?;
            (session.seen().to_vec(), Prepared::Requests(Box::new(session), workload))
        }
    };
    runtime.learn(id, &kernels)?;
    Ok((tenancy, prepared))
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
        // A throughput tenant has always something to do.
        let lends = tenant.class == Class::Latency;
        Ok(match prepared {
            Prepared::Requests(session, workload) => {
                let server = Server::new(*session, workload, tenant.slo()).map_err(|source| PhaseError::launch(tenant, source))?;
                let server = server.observed(log);
                Self::Requests(Box::new(if lends { server.lending() } else { server }))
            }
            Prepared::Stream(mut slots, shape) => {
                slots.prepare().map_err(|source| PhaseError::build(tenant, source))?;
                let batching = Batching::new(*slots)
                    .map_err(|source| PhaseError::Stream { tenant: tenant.name.clone(), problem: source.to_string() })?;
                let server = StreamServer::new(batching, shape, tenant.slo()).observed(log);
                Self::Stream(Box::new(if lends { server.lending() } else { server }))
            }
        })
    }

    fn take_turns(&mut self, seat: Seat) {
        match self {
            Self::Requests(server) => server.take_turns(seat),
            Self::Stream(server) => server.take_turns(seat),
        }
    }

    fn start(&mut self, window: Window, rate: Option<f64>, seed: u64) {
        match self {
            Self::Requests(server) => server.start(window, rate, seed),
            Self::Stream(server) => server.start(window, rate, seed),
        }
    }

    pub(super) fn step(&mut self, tenant: &TenantRequest) -> Result<Step, PhaseError> {
        match self {
            Self::Requests(server) => server.step().map_err(|source| PhaseError::launch(tenant, source)),
            Self::Stream(server) => server.step().map_err(|error| match error {
                StreamError::Executor(source) => PhaseError::build(tenant, source),
                StreamError::Submit(source) => PhaseError::Stream { tenant: tenant.name.clone(), problem: source.to_string() },
            }),
        }
    }

    pub(super) fn finish(self) -> Served {
        match self {
            Self::Requests(server) => server.finish(),
            Self::Stream(server) => server.finish(),
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
        throughput: served.requests / seconds,
        p50_ms: latencies.quantile_ms(0.50),
        p95_ms: latencies.quantile_ms(0.95),
        p99_ms: latencies.quantile_ms(0.99),
        slowdown: 1.0,
        requests: latencies.count(),
        waiting: served.waiting,
        rate: tenant.rate,
        slo_ms: tenant.slo_ms,
        slo_attainment: tenant.slo_ms.filter(|_| latencies.count() > 0).map(|_| served.within_slo as f64 / latencies.count() as f64),
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

    pub(super) fn launch(tenant: &TenantRequest, source: LaunchError) -> Self {
        Self::Launch { tenant: tenant.name.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::path::Path;

    use smidgen_runtime::device::sim::SimConfig;
    use smidgen_runtime::policy::DefaultSharing;
    use smidgen_runtime::transfer::TransferConfig;

    use super::*;

    #[test]
    fn a_tenant_s_checkpoint_is_loaded_no_faster_than_throughput_tenants_may_copy() {
        let requests = [("bert", "batch=1,seq=16"), ("vit", "batch=1"), ("llama-tied", "batch=1,seq=16,phase=prefill")];
        for (model, request) in requests.into_iter().chain([("llama-tied", "batch=1,prompt=8,generate=4")]) {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model);
            let runtime = Runtime::new(SimDevice::new(SimConfig::h200()), Box::new(DefaultSharing), Arc::new(ProfileStore::default()));
            let runtime = runtime.with_transfers(TransferConfig { chunk_bytes: 1024, in_flight: 1 });
            let tenant: TenantRequest = format!("a={},{request}", dir.display()).parse().unwrap();
            assert_eq!(tenant.class, Class::Throughput);
            let time_to_prepare = || {
                let before = runtime.device().now();
                prepare(&runtime, &tenant, &"default-sharing".parse().unwrap()).unwrap();
                (runtime.device().now() - before).as_secs_f64()
            };
            // The file has f32, the device f16; a part of the file is its header.
            let bytes = std::fs::metadata(dir.join("model.safetensors")).unwrap().len() as f64 / 2.0;
            let rate = NonZeroU64::new(1_000_000).unwrap();
            let least = 0.8 * bytes / rate.get() as f64;
            let took = time_to_prepare();
            assert!(took < least, "{model} took {took} s without a rate");
            runtime.transfers().set_throughput_rate(Some(rate));
            let took = time_to_prepare();
            assert!(took > least, "{model},{request} took {took} s at 1 MB/s, {least} s at least");
        }
    }
}
