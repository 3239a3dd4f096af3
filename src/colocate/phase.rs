//! One phase of a run: tenants under one way of sharing, in this process, measured.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use smidgen_runtime::Runtime;
use smidgen_runtime::device::Device;
use smidgen_runtime::device::sim::SimDevice;
use smidgen_runtime::launch::{LaunchError, Walls};
use smidgen_runtime::policy::{self, DefaultSharing, Policy, UnknownPolicy};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{TenantId, TenantSpec};

use super::results::TenantResult;
use super::spec::{Sharing, TenantRequest};
use crate::models::{self, BuildError};
use crate::serve::{Served, Server, Step, Turn, Window};

/// Load before and after the measured window, so that nobody is measured beside a neighbour that has not started or has finished.
const SHOULDER: Duration = Duration::from_millis(300);

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

/// Runs `tenants` together for `seconds`. `gate` is called when everything is loaded and captured, and the load begins when it returns.
///
/// # Errors
/// [`PhaseError`], naming the tenant.
pub fn run(
    device: &PhaseDevice,
    sharing: &Sharing,
    tenants: &[TenantRequest],
    profiles: Arc<ProfileStore>,
    seconds: f64,
    gate: impl FnOnce() -> Result<(), PhaseError>,
) -> Result<Vec<TenantResult>, PhaseError> {
    let policy: Box<dyn Policy> = match sharing {
        Sharing::Policy(name) => policy::by_name(name)?,
        // A baseline's tenants know nothing of each other: every kernel takes the whole GPU.
        Sharing::TimeSlice | Sharing::MpsDefault => Box::new(DefaultSharing),
    };
    let runtime = Runtime::new(device.device(), policy, profiles);
    let mut ids = Vec::new();
    let mut prepared = Vec::new();
    for (process, tenant) in tenants.iter().enumerate() {
        if let (PhaseDevice::Sim(sim), true) = (device, sharing.is_baseline()) {
            sim.set_process(process as u32);
        }
        let (id, session, workload) = prepare(&runtime, tenant)?;
        ids.push(id);
        prepared.push((session, workload));
    }
    // Captured only now that the plan knows every tenant's kernels.
    let mut servers = Vec::new();
    for (tenant, (session, workload)) in tenants.iter().zip(prepared) {
        servers.push(Server::new(session, workload, tenant.slo()).map_err(|source| PhaseError::launch(tenant, source))?);
    }
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
    let served = match device {
        PhaseDevice::Cuda(device) => serve_on_threads(&**device, tenants, servers)?,
        PhaseDevice::Sim(device) => serve_in_virtual_time(&**device, tenants, servers)?,
    };
    Ok(tenants.iter().zip(ids).zip(served).map(|((tenant, id), served)| result(&runtime, tenant, id, &served, seconds)).collect())
}

type Prepared = (TenantId, smidgen_runtime::launch::Session, Box<dyn crate::serve::Workload>);

/// Admits a tenant, makes its model, and runs one request, which shows the runtime its kernels.
fn prepare(runtime: &Runtime, tenant: &TenantRequest) -> Result<Prepared, PhaseError> {
    let build = |source| PhaseError::Build { tenant: tenant.name.clone(), source };
    let launch = |source| PhaseError::launch(tenant, source);
    let source = models::ModelSource::find(&tenant.model).map_err(build)?;
    let memory_bytes = source.memory_bytes(tenant.batch, tenant.seq).map_err(build)?;
    let spec = TenantSpec { name: tenant.name.clone(), class: tenant.class, slo: tenant.slo(), memory_bytes };
    let id = runtime.admit(spec)?;
    let mut session = runtime.session(id)?;
    let mut workload = source.workload(&mut session, tenant.batch, tenant.seq).map_err(build)?;
    session.forget_counts();
    workload.enqueue(&mut session).map_err(launch)?;
    runtime.device().synchronize(session.stream()).map_err(|error| launch(error.into()))?;
    let request = session.seen().to_vec();
    runtime.learn(id, &request)?;
    Ok((id, session, workload))
}

fn serve_on_threads(device: &dyn Device, tenants: &[TenantRequest], servers: Vec<Server>) -> Result<Vec<Served>, PhaseError> {
    let serve = |mut server: Server| {
        device.bind_thread()?;
        loop {
            match server.step()? {
                Step::Finished => return Ok(server.finish()),
                Step::Busy => device.pass_time(Duration::MAX),
                Step::IdleUntil(instant) => device.pass_time(instant),
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = servers.into_iter().map(|server| scope.spawn(move || serve(server))).collect();
        let joined: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        tenants
            .iter()
            .zip(joined)
            .map(|(tenant, served)| match served {
                Ok(served) => served.map_err(|source: LaunchError| PhaseError::launch(tenant, source)),
                Err(_) => Err(PhaseError::Panic(tenant.name.clone())),
            })
            .collect()
    })
}

fn serve_in_virtual_time(device: &dyn Device, tenants: &[TenantRequest], mut servers: Vec<Server>) -> Result<Vec<Served>, PhaseError> {
    loop {
        let mut until = None;
        for (tenant, server) in tenants.iter().zip(&mut servers) {
            let next = match server.step().map_err(|source| PhaseError::launch(tenant, source))? {
                Step::Finished => continue,
                Step::Busy => Duration::MAX,
                Step::IdleUntil(instant) => instant,
            };
            until = Some(until.map_or(next, |until: Duration| until.min(next)));
        }
        match until {
            Some(until) => device.pass_time(until),
            None => return Ok(servers.into_iter().map(Server::finish).collect()),
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
        slo_attainment: tenant.slo_ms.map(|_| served.within_slo as f64 / latencies.count().max(1) as f64),
        mean_ms: latencies.mean_ms(),
        quantiles_ms: (0..=100).map(|percent| latencies.quantile_ms(f64::from(percent) / 100.0)).collect(),
        walls: mine.map_or(Walls::default(), |plan| plan.walls),
        sms: widest,
    }
}

impl PhaseError {
    fn launch(tenant: &TenantRequest, source: LaunchError) -> Self {
        Self::Launch { tenant: tenant.name.clone(), source }
    }
}
