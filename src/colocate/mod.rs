//! Several tenants on one GPU, under one way of sharing after the other, compared with each tenant alone.
//!
//! | file | what it does |
//! |---|---|
//! | [`spec`], [`tenants_file`] | read what the user asks for |
//! | [`sharing`] | the ways of sharing: the runtime's policies by name, and the baselines |
//! | [`phase`] | runs tenants under one way of sharing and measures them |
//! | `serving` | serves them side by side, each on its own, so that one's failure is nobody else's |
//! | [`worker`] | runs a phase in fresh processes, as every phase on a GPU is |
//! | [`mps`] | the MPS daemon that the baselines `mps-...` need |
//! | [`profiles`] | the profiles that policies place by |
//! | [`queue`] | the kernels that ran without a profile, as a file |
//! | [`watch`] | what a run shows of itself: timelines, metrics over HTTP |
//! | [`results`], [`table`], [`report`] | the figures as JSON, as text and as one HTML page |
//! | [`names`] | names too long for their place in these, or of several lines |

pub mod mps;
pub mod names;
pub mod phase;
pub mod profiles;
pub mod queue;
pub mod report;
pub mod results;
mod serving;
pub mod sharing;
pub mod spec;
pub mod table;
pub mod tenants_file;
pub mod watch;
pub mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smidgen_profiler::clocks::Clocks;
use smidgen_runtime::device::sim::{self, SimConfig, SimDevice};
use smidgen_runtime::device::{Device, DeviceError, Topology};
use smidgen_runtime::profile::ProfileError;

use mps::MpsError;
use phase::{PhaseDevice, PhaseError};
use results::{PhaseClocks, PlannedPower, PolicyResult, Prediction, RunProvenance, RunResult, TenantResult};
use sharing::{SharesError, Sharing};
use spec::TenantRequest;
use watch::{PhaseWatch, Shown, Watch};
use worker::WorkerError;

/// Where a run's tenants live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// On the GPU, in worker processes.
    Cuda,
    /// On the simulated H200, in this process, in virtual time.
    Sim,
}

/// A run as asked for.
#[derive(Debug, Clone)]
pub struct Run {
    /// Who shares the GPU.
    pub tenants: Vec<TenantRequest>,
    /// How, one after the other.
    pub policies: Vec<Sharing>,
    /// Seconds measured for each phase.
    pub seconds: f64,
    /// Profiles to place by (and, on the simulator, to take durations from).
    pub profiles: Vec<PathBuf>,
    /// Device memory for partitions, as in [`RuntimeOptions`](smidgen_runtime::RuntimeOptions).
    pub partition_bytes: Option<u64>,
    /// GPU or simulator.
    pub place: Where,
    /// What it shows of itself.
    pub watch: Watch,
}

/// What a phase brought.
struct Measured {
    figures: Vec<TenantResult>,
    power: Option<PlannedPower>,
    /// On a GPU, when the measured time began, and how long it was.
    window: Option<(Instant, Duration)>,
}

/// Why a run ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Two tenants of the same name could not be told apart.
    #[error("two tenants are called `{0}`; give each --tenant a name of its own")]
    SameName(String),
    /// A way of sharing that stands in a run twice would be measured twice under one name.
    #[error("`{0}` is asked for twice; name each --policy once")]
    SamePolicy(String),
    /// A tenant's model is not there, or does not suit it.
    #[error(transparent)]
    Tenant(Box<PhaseError>),
    /// A phase failed in worker processes.
    #[error("{phase}: {source}")]
    Worker {
        /// The policy, or the tenant alone.
        phase: String,
        /// Why.
        source: WorkerError,
    },
    /// A phase failed on the simulator.
    #[error("{phase}: {source}")]
    Phase {
        /// The policy, or the tenant alone.
        phase: String,
        /// Why. Boxed to keep results small.
        source: Box<PhaseError>,
    },
    /// A profile cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// There is no such GPU.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The objective cannot be met even alone.
    #[error(
        "tenant `{tenant}`: its SLO of {slo_ms} ms is below its isolated latency, {alone_ms:.3} ms at the median; raise `slo=` or use a smaller batch"
    )]
    ImpossibleSlo {
        /// The tenant's name.
        tenant: String,
        /// What was asked for.
        slo_ms: f64,
        /// What it has alone.
        alone_ms: f64,
    },
    /// An objective or a load was asked for by comparison with what the tenant does alone, which is nothing.
    #[error("tenant `{0}` finished no request alone, so its `load=` or `slo=` cannot be set by that; measure longer with --duration")]
    NothingMeasured(String),
    /// Shares of a baseline do not fit.
    #[error(transparent)]
    Shares(#[from] SharesError),
    /// A policy needs MPS, which is not there.
    #[error("{}{}", .0, if matches!(.0, MpsError::Missing) { ", or leave those whose names begin with mps- out of --policy" } else { "" })]
    Mps(#[from] MpsError),
}

impl Run {
    /// Refuses what can be refused before anything is measured.
    ///
    /// # Errors
    /// [`RunError::SameName`]; [`RunError::SamePolicy`]; [`RunError::Tenant`]; [`RunError::Shares`]; [`RunError::Mps`] where a policy needs MPS and it is missing.
    pub fn check(&self) -> Result<(), RunError> {
        for (at, tenant) in self.tenants.iter().enumerate() {
            if self.tenants[..at].iter().any(|other| other.name == tenant.name) {
                return Err(RunError::SameName(tenant.name.clone()));
            }
            phase::find_model(tenant).map_err(|error| RunError::Tenant(Box::new(error)))?;
        }
        for (at, sharing) in self.policies.iter().enumerate() {
            if self.policies[..at].contains(sharing) {
                return Err(RunError::SamePolicy(sharing.to_string()));
            }
        }
        self.policies.iter().try_for_each(|sharing| sharing.check(self.tenants.len()))?;
        if self.place == Where::Cuda && self.policies.iter().any(Sharing::needs_mps) {
            mps::find()?;
        }
        Ok(())
    }

    /// Measures each tenant alone, then all of them under each policy. `observe` hears the name of each phase as it begins.
    ///
    /// # Errors
    /// The first phase that fails, by name. Nothing is written.
    pub fn execute(&self, provenance: RunProvenance, mut observe: impl FnMut(&str)) -> Result<RunResult, RunError> {
        self.check()?;
        let gpu = (self.place == Where::Cuda).then(Clocks::start);
        let mut clocks = Vec::new();
        let mut measure = |phase: &str, sharing: &Sharing, tenants: &[TenantRequest]| {
            observe(phase);
            let Measured { figures, power, window } = self.phase(phase, sharing, tenants)?;
            let reading = gpu.as_ref().zip(window).and_then(|(gpu, (from, length))| gpu.within(from, length));
            clocks.extend(reading.map(|reading| PhaseClocks::new(phase.to_owned(), &reading)));
            Ok::<_, RunError>((figures, power))
        };
        let exclusive = Sharing::Policy("exclusive".into());
        let mut alone = Vec::new();
        for tenant in &self.tenants {
            // Alone means as fast as it can: at its own rate it would only wait for requests.
            let saturated = TenantRequest { rate: None, ..tenant.clone() };
            let measured = measure(&format!("{} alone", tenant.name), &exclusive, &[saturated])?.0;
            // A stream's objective is for its tokens, which come sooner at its own rate than with all slots busy, as they are here.
            if let (Some(slo_ms), Some(result)) = (tenant.slo_ms, measured.first())
                && result.stream.is_none()
                && slo_ms < result.p50_ms
            {
                return Err(RunError::ImpossibleSlo { tenant: tenant.name.clone(), slo_ms, alone_ms: result.p50_ms });
            }
            alone.extend(measured);
        }
        let mut alone_at_rate = Vec::new();
        for tenant in self.with_rates(&alone)?.iter().filter(|tenant| tenant.rate.is_some()) {
            alone_at_rate.extend(measure(&format!("{} alone at its rate", tenant.name), &exclusive, std::slice::from_ref(tenant))?.0);
        }
        let tenants = self.with_objectives(&alone, &alone_at_rate)?;
        let mut policies = Vec::new();
        for sharing in &self.policies {
            let phase = sharing.to_string();
            let (tenants, power) = measure(&phase, sharing, &tenants)?;
            policies.push(PolicyResult { power, ..PolicyResult::new(phase, tenants, &alone, &alone_at_rate) });
        }
        Ok(RunResult { provenance, alone, alone_at_rate, policies, clocks })
    }

    /// The tenants with loads turned into rates, by what each does alone.
    fn with_rates(&self, alone: &[TenantResult]) -> Result<Vec<TenantRequest>, RunError> {
        let rated = self.tenants.iter().zip(alone).map(|(tenant, alone)| match tenant.load {
            Some(_) if alone.throughput <= 0.0 => Err(RunError::NothingMeasured(tenant.name.clone())),
            Some(load) => Ok(TenantRequest { rate: Some(load * alone.throughput), ..tenant.clone() }),
            None => Ok(tenant.clone()),
        });
        rated.collect()
    }

    /// The same with relative objectives in milliseconds too: multiples of the 99th percentile alone, in a closed loop or at the tenant's own rate, that is
    /// with its own queueing; of a stream, of the time per output token.
    fn with_objectives(&self, alone: &[TenantResult], alone_at_rate: &[TenantResult]) -> Result<Vec<TenantRequest>, RunError> {
        let mut tenants = self.with_rates(alone)?;
        for (tenant, alone) in tenants.iter_mut().zip(alone) {
            let Some(times) = tenant.slo_times_alone else { continue };
            let alone = alone_at_rate.iter().find(|at_rate| at_rate.name == alone.name).unwrap_or(alone);
            let p99_ms = alone.stream.map_or(alone.p99_ms, |stream| stream.per_token_ms[2]);
            if alone.requests == 0 || p99_ms <= 0.0 {
                return Err(RunError::NothingMeasured(tenant.name.clone()));
            }
            tenant.slo_ms = Some(times * p99_ms);
        }
        Ok(tenants)
    }

    /// Opens the device that the tenants will run on, checks the profiles against it, and closes it again: workers must not share the GPU with
    /// this process.
    ///
    /// # Errors
    /// What opening the GPU says; the first profile that cannot be used.
    pub fn inspect(&self) -> Result<Topology, RunError> {
        let device: Arc<dyn Device> = match self.place {
            Where::Cuda => crate::cuda::open()?,
            Where::Sim => SimDevice::new(SimConfig::h200()),
        };
        for warning in profiles::load(&self.profiles, &*device)?.1 {
            tracing::warn!("{warning}");
        }
        Ok(device.topology().clone())
    }

    /// How many phases [`execute`](Run::execute) goes through.
    pub fn phases(&self) -> usize {
        let at_rate = self.tenants.iter().filter(|tenant| tenant.rate.is_some() || tenant.load.is_some()).count();
        self.tenants.len() + at_rate + self.policies.len()
    }

    #[tracing::instrument(level = "debug", skip_all, fields(phase = name))]
    fn phase(&self, name: &str, sharing: &Sharing, tenants: &[TenantRequest]) -> Result<Measured, RunError> {
        self.watch.begin(name, self.place == Where::Sim);
        // The tenants of a baseline know nothing of the runtime, and a tenant alone (whose phase bears its own name) has no neighbour.
        let trace = self.watch.timelines.is_some() && !sharing.is_baseline() && name == sharing.to_string();
        let exposition = self.watch.metrics.as_deref();
        let show = |text| exposition.iter().for_each(|exposition| exposition.show(String::clone(&text)));
        let watch = PhaseWatch {
            trace,
            partition_bytes: self.partition_bytes,
            metrics: exposition.is_some().then_some(&show as &(dyn Fn(String) + Sync)),
        };
        let (measured, shown) = match self.place {
            Where::Cuda => {
                let (figures, shown, begun) = worker::run_phase(sharing, tenants, &self.profiles, self.seconds, &watch)
                    .map_err(|source| RunError::Worker { phase: name.to_owned(), source })?;
                let from = begun + phase::before_window(sharing, tenants);
                (Measured { figures, power: shown.power, window: Some((from, Duration::from_secs_f64(self.seconds))) }, shown)
            }
            Where::Sim => {
                let (figures, shown) = self.simulate(name, sharing, tenants, &watch)?;
                (Measured { figures, power: shown.power, window: None }, shown)
            }
        };
        self.watch.keep(name, shown);
        Ok(measured)
    }

    fn simulate(
        &self,
        name: &str,
        sharing: &Sharing,
        tenants: &[TenantRequest],
        watch: &PhaseWatch<'_>,
    ) -> Result<(Vec<TenantResult>, Shown), RunError> {
        let read = self.profiles.iter().map(|path| profiles::read(path)).collect::<Result<Vec<_>, _>>()?;
        let mut config = SimConfig::h200().with_profiles(&read);
        if matches!(sharing, Sharing::TimeSlice) {
            config.sharing = sim::Sharing::time_sliced();
        }
        config.trace = watch.trace;
        let device = SimDevice::new(config);
        let (profiles, _) = profiles::load(&self.profiles, &*device)?;
        phase::run(&PhaseDevice::Sim(Arc::clone(&device)), sharing, tenants, profiles, self.seconds, watch, || Ok(()))
            .map_err(|source| RunError::Phase { phase: name.to_owned(), source: Box::new(source) })
    }

    /// Runs the same phases on the simulator and notes beside each measured figure what it predicts.
    ///
    /// # Errors
    /// As [`execute`](Run::execute).
    pub fn predict(&self, measured: &mut RunResult) -> Result<(), RunError> {
        let tenants = self.with_objectives(&measured.alone, &measured.alone_at_rate)?;
        let simulated = Run { place: Where::Sim, watch: Watch::default(), ..self.clone() };
        for (policy, sharing) in measured.policies.iter_mut().zip(&self.policies) {
            let predicted = simulated.phase(&policy.policy, sharing, &tenants)?.figures;
            let compare = |(predicted, measured): (TenantResult, &TenantResult)| Prediction {
                error: if measured.throughput > 0.0 { predicted.throughput / measured.throughput - 1.0 } else { f64::NAN },
                simulated_throughput: predicted.throughput,
                name: predicted.name,
            };
            policy.predicted = Some(predicted.into_iter().zip(&policy.tenants).map(compare).collect());
        }
        Ok(())
    }
}
