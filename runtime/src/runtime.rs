//! The runtime as an engine holds it: a device, its ladder, the tenants, a policy, and the plan they add up to.
//!
//! Every change (a tenant comes, goes, or shows its kernels; another policy) makes a new plan: the policy drafts it, the ladder makes the
//! partitions it names, the grants widen, the plan is published by one pointer store, TPCs change owners in the [ledger](crate::partition::ledger),
//! and the grants narrow. Nothing here is on the launch path.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, Sms};
use crate::launch::lending::{Holdings, Lending, Requests, Tenancy, Terms};
use crate::launch::{Fingerprint, KernelKey, LaunchError, Placement, Plan, PlanCell, SeenKernel, Session, TenantPlan};
use crate::partition::{Ladder, LadderError, PARTITION_BYTES, PartitionRef, TpcSet};
use crate::policy::{DraftPlacement, KernelDemand, Policy, TenantDemand, TenantDraft};
use crate::profile::{Corrections, Curve, DriftReport, KernelDrift, ProfileStore};
use crate::telemetry::{Recording, RequestLog, Telemetry};
use crate::tenant::{TenantId, TenantSpec};

/// What a runtime may take for itself, and records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// Device memory for partitions, bytes, at [`PARTITION_BYTES`] each.
    pub partition_bytes: u64,
    /// What it records of launches.
    pub recording: Recording,
}

impl Default for RuntimeOptions {
    /// Room for 128 partitions: about 0.75 GB.
    fn default() -> Self {
        Self { partition_bytes: 128 * PARTITION_BYTES, recording: Recording::default() }
    }
}

/// Several tenants on one device.
///
/// ```
/// use std::sync::Arc;
///
/// use smidgen_runtime::device::Sms;
/// use smidgen_runtime::device::sim::{SimConfig, SimDevice};
/// use smidgen_runtime::policy::StaticEqual;
/// use smidgen_runtime::profile::ProfileStore;
/// use smidgen_runtime::tenant::{Class, TenantSpec};
/// use smidgen_runtime::{AdmitError, Runtime};
///
/// let device = SimDevice::new(SimConfig::h200());
/// let runtime = Runtime::new(device, Box::new(StaticEqual), Arc::new(ProfileStore::default()));
/// let tenant = |name: &str| TenantSpec { name: name.to_owned(), class: Class::Throughput, slo: None, memory_bytes: 1 << 30 };
///
/// let first = runtime.admit(tenant("first"))?;
/// let second = runtime.admit(tenant("second"))?;
/// assert_eq!(runtime.plan().tenants[&first].default.sms, Sms(66));
///
/// runtime.dismiss(second)?;
/// assert_eq!(runtime.plan().tenants[&first].default.sms, Sms(132));
/// # Ok::<(), AdmitError>(())
/// ```
pub struct Runtime {
    device: Arc<dyn Device>,
    ladder: Ladder,
    plans: PlanCell,
    telemetry: Arc<Telemetry>,
    lending: Arc<Lending>,
    state: Mutex<State>,
}

struct State {
    policy: Box<dyn Policy>,
    profiles: Arc<ProfileStore>,
    /// What kernel times seen so far say against the profiles.
    corrections: Corrections,
    tenants: BTreeMap<TenantId, Admitted>,
    next: u32,
}

struct Admitted {
    spec: TenantSpec,
    tenancy: Arc<Tenancy>,
    kernels: Vec<KernelDemand>,
}

/// Kernels of a tenant that run on the default placement, since nobody has measured them.
#[derive(Debug, Clone, PartialEq)]
pub struct Unprofiled {
    /// The tenant.
    pub tenant: TenantId,
    /// Its name.
    pub name: String,
    /// The kernels, in the order in which its sessions met them.
    pub kernels: Vec<KernelKey>,
}

/// Why a tenant was not admitted, or a change to it refused.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// It does not fit.
    #[error("tenant `{name}` needs {needed} bytes of device memory and {free} are free; use a smaller model, batch or sequence")]
    NoMemory {
        /// The tenant's name.
        name: String,
        /// Bytes it would take.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The objective cannot be met even alone.
    #[error(
        "tenant `{name}`: its SLO of {:.3} ms is below its isolated latency of {:.3} ms; raise `slo=` or use a smaller batch",
        slo.as_secs_f64() * 1e3,
        isolated.as_secs_f64() * 1e3
    )]
    ImpossibleSlo {
        /// The tenant's name.
        name: String,
        /// What was asked for.
        slo: Duration,
        /// The sum of its kernels' latencies on the whole GPU.
        isolated: Duration,
    },
    /// The ledger cannot tell more tenants apart.
    #[error("65535 tenants are admitted already; dismiss one first")]
    TooMany,
    /// No such tenant.
    #[error("no tenant has the number {}; it was dismissed", .0.0)]
    Unknown(TenantId),
    /// A partition of the new plan cannot be made.
    #[error(transparent)]
    Ladder(#[from] LadderError),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The session could not be made.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl Runtime {
    /// A runtime without tenants, which records what [`Recording`] says unless told otherwise.
    pub fn new(device: Arc<dyn Device>, policy: Box<dyn Policy>, profiles: Arc<ProfileStore>) -> Self {
        Self::with_options(device, policy, profiles, RuntimeOptions::default())
    }

    /// A runtime without tenants that records what `recording` says.
    pub fn recording(device: Arc<dyn Device>, policy: Box<dyn Policy>, profiles: Arc<ProfileStore>, recording: Recording) -> Self {
        Self::with_options(device, policy, profiles, RuntimeOptions { recording, ..RuntimeOptions::default() })
    }

    /// A runtime without tenants, as `options` say.
    pub fn with_options(device: Arc<dyn Device>, policy: Box<dyn Policy>, profiles: Arc<ProfileStore>, options: RuntimeOptions) -> Self {
        let telemetry = Telemetry::new(Arc::clone(&device), options.recording);
        let partitions = usize::try_from(options.partition_bytes / PARTITION_BYTES).unwrap_or(usize::MAX);
        let ladder = Ladder::new(Arc::clone(&device), partitions);
        let plans = PlanCell::new(Plan { policy: policy.name(), ..Plan::default() });
        let lending = Arc::new(Lending::new(&device));
        let state = State { policy, profiles, corrections: Corrections::default(), tenants: BTreeMap::new(), next: 0 };
        Self { device, ladder, plans, telemetry, lending, state: Mutex::new(state) }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The timeline and what else is recorded of this runtime.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// The plan now in force.
    pub fn plan(&self) -> Arc<Plan> {
        self.plans.current()
    }

    /// Admits a tenant and plans for it. Its kernels are not known yet: run one request, then [`learn`](Runtime::learn) them.
    ///
    /// # Errors
    /// [`AdmitError::NoMemory`] with figures if it does not fit beside what the others were admitted with, or if less is free; what a
    /// plan or the device says. Nothing has changed then.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = spec.name))]
    pub fn admit(&self, spec: TenantSpec) -> Result<TenantId, AdmitError> {
        let mut state = self.state.lock();
        // A tenant admitted before may not have allocated all of its memory yet.
        let promised = state.tenants.values().map(|admitted| admitted.spec.memory_bytes).fold(0, u64::saturating_add);
        let free = self.device.free_bytes()?.min(self.device.topology().memory_bytes.saturating_sub(promised));
        if spec.memory_bytes > free {
            return Err(AdmitError::NoMemory { name: spec.name, needed: spec.memory_bytes, free });
        }
        let tenancy = self.lending.admit()?.ok_or(AdmitError::TooMany)?;
        let id = TenantId(state.next);
        state.next += 1;
        self.telemetry.admitted(id, &spec);
        state.tenants.insert(id, Admitted { spec, tenancy: Arc::clone(&tenancy), kernels: Vec::new() });
        self.replan(&state).inspect_err(|_| {
            state.tenants.remove(&id);
            self.lending.dismiss(&tenancy);
            self.telemetry.dismissed(id);
        })?;
        Ok(id)
    }

    /// A session for an admitted tenant.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] after it was dismissed.
    pub fn session(&self, tenant: TenantId) -> Result<Session, AdmitError> {
        let tenancy = Arc::clone(&self.state.lock().tenants.get(&tenant).ok_or(AdmitError::Unknown(tenant))?.tenancy);
        let session = Session::new(&self.device, &self.plans, tenant, Arc::clone(tenancy.grant()))?;
        Ok(session.observed(self.telemetry.probe(tenant)?).announcing(Requests::new(&self.lending, &tenancy)))
    }

    /// What an engine tells of the tenant's requests through, for metrics and for the timeline.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] after it was dismissed.
    pub fn request_log(&self, tenant: TenantId) -> Result<RequestLog, AdmitError> {
        let state = self.state.lock();
        state.tenants.get(&tenant).ok_or(AdmitError::Unknown(tenant)).map(|_| self.telemetry.request_log(tenant))
    }

    /// Tells which kernels one request of the tenant launches, and plans again.
    ///
    /// # Errors
    /// [`AdmitError::ImpossibleSlo`] if the kernels' best latencies add up to more than the objective; what a plan or the device says.
    /// Nothing has changed then.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0, kernels = request.len()))]
    pub fn learn(&self, tenant: TenantId, request: &[SeenKernel]) -> Result<(), AdmitError> {
        let mut state = self.state.lock();
        let kernels: Vec<_> = request.iter().filter(|seen| seen.launches > 0).map(|seen| state.kernel_demand(seen)).collect();
        let admitted = state.tenants.get_mut(&tenant).ok_or(AdmitError::Unknown(tenant))?;
        if let Some(slo) = admitted.spec.slo {
            let best = |kernel: &KernelDemand| kernel.curve.as_ref().map_or(0.0, |curve| curve.best()) * f64::from(kernel.launches);
            let isolated = Duration::from_secs_f64(kernels.iter().map(best).sum::<f64>() / 1e6);
            if slo < isolated {
                return Err(AdmitError::ImpossibleSlo { name: admitted.spec.name.clone(), slo, isolated });
            }
        }
        let before = std::mem::replace(&mut admitted.kernels, kernels);
        self.replan(&state).inspect_err(|_| {
            if let Some(admitted) = state.tenants.get_mut(&tenant) {
                admitted.kernels = before;
            }
        })?;
        self.telemetry.learned(tenant, request.iter().filter(|seen| seen.launches > 0).map(|seen| seen.key));
        Ok(())
    }

    /// Removes a tenant from the plan; its SMs go to the others, and its session's next launch is refused.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] if it is gone already. If a partition for the others cannot be made, that is the error; the tenant is gone
    /// all the same, and the others keep the SMs they had.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = tenant.0))]
    pub fn dismiss(&self, tenant: TenantId) -> Result<(), AdmitError> {
        let mut state = self.state.lock();
        let gone = state.tenants.remove(&tenant).ok_or(AdmitError::Unknown(tenant))?;
        self.lending.dismiss(&gone.tenancy);
        self.telemetry.dismissed(tenant);
        self.replan(&state).inspect_err(|_| {
            let mut others = Plan::clone(&self.plans.current());
            others.tenants.remove(&tenant);
            self.plans.publish(others);
        })
    }

    /// Grants a tenant exactly `tpcs` until the next plan says otherwise: its elastic kernels, those in flight and those in captured graphs
    /// included, leave other SMs at their next tile. Placements stay as planned. This does not wait for the kernels;
    /// one that starts before a larger grant has arrived, some microseconds later, ends on the SMs of the old one.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] if it was dismissed; [`DeviceError::BadPartition`] for TPCs that the GPU lacks.
    pub fn set_grant(&self, tenant: TenantId, tpcs: TpcSet) -> Result<(), AdmitError> {
        let state = self.state.lock();
        let admitted = state.tenants.get(&tenant).ok_or(AdmitError::Unknown(tenant))?;
        self.lending.grant_by_hand(&admitted.tenancy, tpcs)?;
        self.note_grant(tenant, admitted);
        Ok(())
    }

    /// What a tenant has at this moment: its own TPCs, which of them it lends, and what it borrows.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] if it was dismissed.
    pub fn holdings(&self, tenant: TenantId) -> Result<Holdings, AdmitError> {
        let state = self.state.lock();
        let admitted = state.tenants.get(&tenant).ok_or(AdmitError::Unknown(tenant))?;
        Ok(self.lending.holdings(&admitted.tenancy))
    }

    /// From here on a tenant lends its TPCs once it has been idle for so long;
    /// [`DEFAULT_HYSTERESIS`](crate::launch::lending::DEFAULT_HYSTERESIS) until then. Zero lends as a request ends.
    pub fn set_hysteresis(&self, hysteresis: Duration) {
        self.lending.set_hysteresis(hysteresis);
    }

    /// Lends the TPCs of tenants that have been idle for long enough. Replays, and requests that begin or end, do the same on their way; an engine
    /// that only waits should call this at the time of the device's clock that it returns. `None` where nothing will be due before another
    /// request ends.
    ///
    /// # Errors
    /// What the device says of a borrower's grant.
    pub fn settle(&self) -> Result<Option<Duration>, DeviceError> {
        self.lending.settle()
    }

    /// Plans by another policy from here on.
    ///
    /// # Errors
    /// If a partition of the new plan cannot be made; the old plan stays in force then.
    pub fn set_policy(&self, policy: Box<dyn Policy>) -> Result<(), AdmitError> {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.policy, policy);
        self.replan(&state).inspect_err(|_| state.policy = before)
    }

    /// Compares the kernel times taken since the last call with the profiles, and plans again where some differ by more than
    /// [`DRIFT_BOUND`](crate::profile::DRIFT_BOUND): with curves corrected by what was seen. Says which differ; nothing where none does. Call
    /// it once a second or so, from a thread that is not serving.
    ///
    /// # Errors
    /// What the device says of the events by which kernels are timed. If no plan can be made with the corrected curves, that is the error; the
    /// old plan stays in force, and plans made later are made with the corrected curves.
    pub fn correct(&self) -> Result<Option<DriftReport>, AdmitError> {
        self.device.bind_thread()?;
        let samples = self.telemetry.take_samples()?;
        let state = &mut *self.state.lock();
        for sample in samples {
            let held = state.tenants.get(&sample.tenant).map(|admitted| self.device.topology().sms_of(admitted.tenancy.grant().held()));
            // A kernel that may not use all the SMs it was sized for takes longer, and is no slower for it.
            if held.is_some_and(|held| held >= sample.sms)
                && let Some(curve) = state.profiles.curve(sample.kernel)
            {
                state.corrections.add(sample.kernel, sample.took.as_secs_f64() * 1e6, curve.at(sample.sms));
            }
        }
        let moved = state.corrections.review();
        let drift = |(kernel, ratio)| Some(KernelDrift { kernel: self.telemetry.key(kernel)?, ratio });
        let kernels: Vec<_> = moved.into_iter().filter_map(drift).collect();
        let Some(worst) = kernels.first() else { return Ok(None) };
        self.telemetry.drift_reported();
        kernels.iter().for_each(|drift| self.telemetry.drifted(&drift.kernel, drift.ratio));
        tracing::warn!(
            "{} kernels differ from their profile by more than {:.0}%, {} most: it takes {:.2} times as long; profile again on this machine",
            kernels.len(),
            crate::profile::DRIFT_BOUND * 100.0,
            worst.kernel,
            worst.ratio
        );
        let replanned = state.policy.needs_profiles();
        state.correct_demands();
        if replanned {
            self.replan(state)?;
        }
        Ok(Some(DriftReport { kernels, replanned }))
    }

    /// Kernels that no profile holds, by tenant: they run on the default placement until somebody profiles them. Tenants whose kernels all
    /// have profiles are left out.
    pub fn unprofiled(&self) -> Vec<Unprofiled> {
        let state = self.state.lock();
        let unprofiled = state.tenants.iter().map(|(&tenant, admitted)| {
            let met = self.telemetry.met(tenant).into_iter();
            let kernels = met.filter(|key| state.profiles.curve(key.fingerprint()).is_none()).collect();
            Unprofiled { tenant, name: admitted.spec.name.clone(), kernels }
        });
        unprofiled.filter(|tenant| !tenant.kernels.is_empty()).collect()
    }

    /// Brings the metrics of all tenants up to date, for whoever is about to read them.
    pub fn publish_metrics(&self) {
        let state = self.state.lock();
        let plan = self.plans.current();
        for (&tenant, admitted) in &state.tenants {
            let [owned, held, borrowed] = self.sms(&plan, tenant, admitted);
            self.telemetry.publish(tenant, owned, held, borrowed);
        }
    }

    /// The SMs that a tenant owns, holds, and holds beyond its own.
    fn sms(&self, plan: &Plan, tenant: TenantId, admitted: &Admitted) -> [Sms; 3] {
        let owned = plan.tenants.get(&tenant).map_or(TpcSet::EMPTY, |plan| plan.owned);
        let held = admitted.tenancy.grant().held();
        [owned, held, held - owned].map(|tpcs| self.device.topology().sms_of(tpcs))
    }

    fn note_grant(&self, tenant: TenantId, admitted: &Admitted) {
        if self.telemetry.is_tracing() {
            let [owned, held, borrowed] = self.sms(&self.plans.current(), tenant, admitted);
            self.telemetry.grant_changed(tenant, owned, held, borrowed);
        }
    }

    /// Puts in force what the policy drafts. After an error the old plan stands.
    #[tracing::instrument(level = "debug", skip_all, fields(policy = state.policy.name(), tenants = state.tenants.len()))]
    fn replan(&self, state: &State) -> Result<(), AdmitError> {
        let demands: Vec<_> = state.tenants.iter().map(|(&id, admitted)| admitted.demand(id)).collect();
        let draft = state.policy.plan(self.device.topology(), &demands);
        // Referred to from here on, so that making one does not take another of the same plan away.
        let mut partitions = HashMap::new();
        let mut realise = |(&id, draft)| Ok((id, self.realise(draft, &mut partitions)?));
        let tenants = draft.iter().map(&mut realise).collect::<Result<_, LadderError>>()?;
        let plan = Plan { policy: state.policy.name(), tenants };
        let terms = state.terms(&plan);
        // A kernel must not start in its new partition under the old grant: all blocks but one would leave.
        self.lending.widen(&terms)?;
        let before = self.plans.current();
        let partitions_before = self.plans.publish_on(plan, partitions.into_values().collect());
        self.lending.adopt(&terms).inspect_err(|_| {
            drop(self.plans.publish_on(Plan::clone(&before), partitions_before));
            self.lending.adopt(&state.terms(&before)).unwrap_or_else(|error| tracing::warn!("a grant is not the plan's: {error}"));
        })?;
        self.telemetry.plan_published(state.policy.name());
        state.tenants.iter().for_each(|(&id, admitted)| self.note_grant(id, admitted));
        Ok(())
    }

    /// What `draft` means on this device. References to the partitions that it names are added to `partitions`.
    fn realise(&self, draft: &TenantDraft, partitions: &mut HashMap<TpcSet, PartitionRef>) -> Result<TenantPlan, LadderError> {
        let mut place = |placement: &DraftPlacement| {
            let partition = match partitions.entry(placement.tpcs) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(self.ladder.partition(placement.tpcs)?),
            };
            Ok::<_, LadderError>(Placement { sms: placement.sms, partition: partition.id(), priority: placement.priority })
        };
        // Asked before the plan is in force: what cannot be granted must not be planned for.
        self.device.sm_mask(draft.owned | draft.grant)?;
        Ok(TenantPlan {
            owned: draft.owned,
            grant: draft.grant,
            default: place(&draft.default)?,
            kernels: draft
                .kernels
                .iter()
                .map(|(&kernel, placement)| Ok((kernel, place(placement)?)))
                .collect::<Result<_, LadderError>>()?,
            walls: draft.walls,
        })
    }
}

impl State {
    fn terms(&self, plan: &Plan) -> Vec<Terms> {
        Terms::of(self.tenants.iter().filter_map(|(id, admitted)| Some((&admitted.tenancy, plan.tenants.get(id)?))))
    }
}

impl Admitted {
    fn demand(&self, id: TenantId) -> TenantDemand {
        TenantDemand { id, class: self.spec.class, slo: self.spec.slo, kernels: self.kernels.clone() }
    }
}

impl State {
    fn kernel_demand(&self, seen: &SeenKernel) -> KernelDemand {
        let kernel = seen.key.fingerprint();
        KernelDemand { kernel, launches: seen.launches, work: seen.work, curve: self.curve(kernel) }
    }

    /// The kernel's profile, corrected by what was seen.
    fn curve(&self, kernel: Fingerprint) -> Option<Arc<Curve>> {
        let (curve, factor) = (self.profiles.curve(kernel)?, self.corrections.factor(kernel));
        Some(if factor == 1.0 { curve } else { Arc::new(curve.scaled(factor)) })
    }

    /// Gives all tenants' kernels the curves that count now.
    fn correct_demands(&mut self) {
        let mut tenants = std::mem::take(&mut self.tenants);
        for kernel in tenants.values_mut().flat_map(|admitted| &mut admitted.kernels) {
            kernel.curve = self.curve(kernel.kernel);
        }
        self.tenants = tenants;
    }
}
