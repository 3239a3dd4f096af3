//! The runtime as an engine holds it: a device, its ladder, the tenants, a policy, and the plan they add up to.
//!
//! Every change (a tenant comes, goes, or shows its kernels; another policy) makes a new plan: the policy drafts it, the ladder makes the
//! partitions it names, the grants widen, the plan is published by one pointer store, and the grants narrow. Nothing here is on the launch path.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError};
use crate::launch::grant::Grant;
use crate::launch::{LaunchError, Placement, Plan, PlanCell, SeenKernel, Session, TenantPlan};
use crate::partition::{Ladder, LadderError, PARTITION_BYTES, PartitionRef, TpcSet};
use crate::policy::{DraftPlacement, KernelDemand, Policy, TenantDemand, TenantDraft};
use crate::profile::ProfileStore;
use crate::tenant::{TenantId, TenantSpec};

/// What a runtime may take for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// Device memory for partitions, bytes, at [`PARTITION_BYTES`] each.
    pub partition_bytes: u64,
}

impl Default for RuntimeOptions {
    /// Room for 128 partitions: about 0.75 GB.
    fn default() -> Self {
        Self { partition_bytes: 128 * PARTITION_BYTES }
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
    state: Mutex<State>,
}

struct State {
    policy: Box<dyn Policy>,
    profiles: Arc<ProfileStore>,
    tenants: BTreeMap<TenantId, Admitted>,
    next: u32,
}

struct Admitted {
    spec: TenantSpec,
    grant: Arc<Grant>,
    kernels: Vec<KernelDemand>,
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
    /// A runtime without tenants.
    pub fn new(device: Arc<dyn Device>, policy: Box<dyn Policy>, profiles: Arc<ProfileStore>) -> Self {
        Self::with_options(device, policy, profiles, RuntimeOptions::default())
    }

    /// A runtime without tenants that takes no more than `options` say.
    pub fn with_options(device: Arc<dyn Device>, policy: Box<dyn Policy>, profiles: Arc<ProfileStore>, options: RuntimeOptions) -> Self {
        let partitions = usize::try_from(options.partition_bytes / PARTITION_BYTES).unwrap_or(usize::MAX);
        let ladder = Ladder::new(Arc::clone(&device), partitions);
        let plans = PlanCell::new(Plan { policy: policy.name(), ..Plan::default() });
        let state = State { policy, profiles, tenants: BTreeMap::new(), next: 0 };
        Self { device, ladder, plans, state: Mutex::new(state) }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
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
    pub fn admit(&self, spec: TenantSpec) -> Result<TenantId, AdmitError> {
        let mut state = self.state.lock();
        // A tenant admitted before may not have allocated all of its memory yet.
        let promised = state.tenants.values().map(|admitted| admitted.spec.memory_bytes).fold(0, u64::saturating_add);
        let free = self.device.free_bytes()?.min(self.device.topology().memory_bytes.saturating_sub(promised));
        if spec.memory_bytes > free {
            return Err(AdmitError::NoMemory { name: spec.name, needed: spec.memory_bytes, free });
        }
        let grant = Arc::new(Grant::new(&self.device)?);
        let id = TenantId(state.next);
        state.next += 1;
        state.tenants.insert(id, Admitted { spec, grant, kernels: Vec::new() });
        self.replan(&state).inspect_err(|_| drop(state.tenants.remove(&id)))?;
        Ok(id)
    }

    /// A session for an admitted tenant.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] after it was dismissed.
    pub fn session(&self, tenant: TenantId) -> Result<Session, AdmitError> {
        let grant = Arc::clone(&self.state.lock().tenants.get(&tenant).ok_or(AdmitError::Unknown(tenant))?.grant);
        Ok(Session::new(&self.device, &self.plans, tenant, grant)?)
    }

    /// Tells which kernels one request of the tenant launches, and plans again.
    ///
    /// # Errors
    /// [`AdmitError::ImpossibleSlo`] if the kernels' best latencies add up to more than the objective; what a plan or the device says.
    /// Nothing has changed then.
    pub fn learn(&self, tenant: TenantId, request: &[SeenKernel]) -> Result<(), AdmitError> {
        let mut state = self.state.lock();
        let profiles = Arc::clone(&state.profiles);
        let admitted = state.tenants.get_mut(&tenant).ok_or(AdmitError::Unknown(tenant))?;
        let kernels: Vec<_> = request.iter().filter(|seen| seen.launches > 0).map(|seen| demand(&profiles, seen)).collect();
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
        })
    }

    /// Removes a tenant from the plan; its SMs go to the others, and its session's next launch is refused.
    ///
    /// # Errors
    /// [`AdmitError::Unknown`] if it is gone already. If a partition for the others cannot be made, that is the error; the tenant is gone
    /// all the same, and the others keep the SMs they had.
    pub fn dismiss(&self, tenant: TenantId) -> Result<(), AdmitError> {
        let mut state = self.state.lock();
        state.tenants.remove(&tenant).ok_or(AdmitError::Unknown(tenant))?;
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
        Ok(admitted.grant.set(tpcs)?)
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

    /// Puts in force what the policy drafts. After an error the old plan stands.
    fn replan(&self, state: &State) -> Result<(), AdmitError> {
        let demands: Vec<_> = state.tenants.iter().map(|(&id, admitted)| admitted.demand(id)).collect();
        let draft = state.policy.plan(self.device.topology(), &demands);
        // Referred to from here on, so that making one does not take another of the same plan away.
        let mut partitions = HashMap::new();
        let mut realise = |(&id, draft)| Ok((id, self.realise(draft, &mut partitions)?));
        let tenants = draft.iter().map(&mut realise).collect::<Result<_, LadderError>>()?;
        let grants = || state.tenants.iter().filter_map(|(id, admitted)| Some((&admitted.grant, draft.get(id)?.grant)));
        // A kernel must not start in its new partition under the old grant: all blocks but one would leave.
        grants().try_for_each(|(grant, tpcs)| grant.widen(tpcs))?;
        let before = self.plans.current();
        let partitions_before = self.plans.publish_on(Plan { policy: state.policy.name(), tenants }, partitions.into_values().collect());
        let narrowed = grants().try_for_each(|(grant, tpcs)| grant.set(tpcs));
        Ok(narrowed.inspect_err(|_| drop(self.plans.publish_on(Plan::clone(&before), partitions_before)))?)
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
        self.device.sm_mask(draft.grant)?;
        Ok(TenantPlan {
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

impl Admitted {
    fn demand(&self, id: TenantId) -> TenantDemand {
        TenantDemand { id, class: self.spec.class, slo: self.spec.slo, kernels: self.kernels.clone() }
    }
}

fn demand(profiles: &ProfileStore, seen: &SeenKernel) -> KernelDemand {
    let kernel = seen.key.fingerprint();
    KernelDemand { kernel, launches: seen.launches, work: seen.work, curve: profiles.curve(kernel) }
}
