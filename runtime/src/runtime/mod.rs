//! The runtime as an engine holds it: a device, its ladder, the tenants, a policy, and the plan they add up to.
//!
//! Every change (a tenant comes, goes, shows its kernels, or is changed; another policy) makes a new plan: the policy drafts it, the ladder makes the
//! partitions it names, the grants widen, the plan is published by one pointer store, TPCs change owners in the [ledger](crate::partition::ledger),
//! and the grants narrow. Nothing here is on the launch path. A change that fails has changed nothing, but that a dismissed
//! tenant is gone in any case, and what was seen stays seen; the plan in force is stale then, until another one is.
//!
//! | file | what is in it |
//! |---|---|
//! | `mod` | from tenants and a policy to the plan in force |
//! | `tenants` | what can be done with a tenant: admit, pause, resize, dismiss, ... |
//! | `requests` | what sessions announce and record: SMs lent between requests, and who holds which |
//! | `observed` | what was seen while serving: kernel times that correct the profiles, metrics |
//! | `shares` | the SMs that a tenant was promised, whatever the policy |
//! | `watched` | the device as a tenant sees it: its memory counted, a lost context met once |
//! | `error` | what is refused, with figures |

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, Sms, Topology};
use crate::launch::lending::{Lending, Terms};
use crate::launch::{Fingerprint, Placement, Plan, PlanCell, TenantPlan};
use crate::partition::{Ladder, LadderError, PARTITION_BYTES, PartitionRef, TpcSet};
use crate::policy::{Draft, DraftPlacement, Event, Policy, Replanner, TenantDemand, TenantDraft};
use crate::profile::{Corrections, ProfileStore};
use crate::telemetry::{Recording, Telemetry};
use crate::tenant::TenantId;
use crate::transfer::{TransferConfig, Transfers};

mod error;
mod observed;
mod requests;
mod shares;
mod tenants;
mod watched;

use tenants::Admitted;
use watched::{Loss, Watched};

pub use error::{AdmitError, MemoryHolder};
pub use observed::Unprofiled;
pub use tenants::{Tenancy, TenantStatus};

/// What a runtime may take for itself, and records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RuntimeOptions {
    /// Device memory for partitions, bytes, at [`PARTITION_BYTES`] each. Three quarters of it are for those that the policy foresees
    /// ([`Policy::family`]), which are made at start, 2 ms each; the rest is for other sets, made when a plan first names them. No tenant is
    /// admitted into what partitions have not taken of it yet. More than an eighth of the GPU's memory counts as an eighth. 0 where all work is for the whole GPU, which is no
    /// partition: alone on it, or under a policy that confines nobody.
    ///
    /// `None`, the default, is a 64th of the GPU's memory, or 64 partitions if that is more: on an H200 2.3 GB, of which what `slo` foresees takes 1.6.
    pub partition_bytes: Option<u64>,
    /// What it records of launches.
    pub recording: Recording,
}

impl RuntimeOptions {
    /// How many partitions there may be on such a GPU.
    fn partitions(&self, topology: &Topology) -> usize {
        let usual = || (topology.memory_bytes / USUAL_FOR_PARTITIONS).max(FEWEST_USUAL * PARTITION_BYTES);
        let bytes = self.partition_bytes.unwrap_or_else(usual).min(topology.memory_bytes / MOST_FOR_PARTITIONS);
        usize::try_from(bytes / PARTITION_BYTES).unwrap_or(usize::MAX)
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
/// assert_eq!(runtime.plan().tenant(first)?.default.sms, Sms(66));
///
/// runtime.dismiss(second)?;
/// assert_eq!(runtime.plan().tenant(first)?.default.sms, Sms(132));
/// # Ok::<(), AdmitError>(())
/// ```
pub struct Runtime {
    /// As it was given.
    bare: Arc<dyn Device>,
    /// As the runtime itself sees it.
    device: Arc<dyn Device>,
    loss: Loss,
    ladder: Ladder,
    plans: PlanCell,
    telemetry: Arc<Telemetry>,
    lending: Arc<Lending>,
    transfers: Arc<Transfers>,
    state: Mutex<State>,
}

/// The part of the GPU's memory that partitions may have at most, as a divisor: the rest is what they are there to share.
const MOST_FOR_PARTITIONS: u64 = 8;
/// The part that they may have unless told otherwise, and how many they may be then on a GPU with little memory: a plan of KRISP's for three tenants names about fifty.
const USUAL_FOR_PARTITIONS: u64 = 64;
const FEWEST_USUAL: u64 = 64;

/// What a partition may take to be made for a plan that may never come.
const FORESEEN_PATIENCE: Duration = Duration::from_millis(20);

struct State {
    policy: Box<dyn Policy>,
    /// What tenants were seen to do, as far as it changes plans.
    replanner: Replanner,
    profiles: Arc<ProfileStore>,
    /// What kernel times seen so far say against the profiles.
    corrections: Corrections,
    /// What replays seen so far say against the plan.
    plan_drift: Corrections<TenantId>,
    /// Tenants that were asked to launch requests: by kernel, the number of its samples at which there are enough.
    asked: BTreeMap<TenantId, BTreeMap<Fingerprint, usize>>,
    tenants: BTreeMap<TenantId, Admitted>,
    next: u32,
    /// Whether something has changed since that the plan in force knows nothing of, because planning for it failed.
    stale: bool,
}

impl Runtime {
    /// A runtime without tenants, which records what [`Recording`] says unless told otherwise.
    pub fn new(device: Arc<dyn Device>, policy: Box<dyn Policy>, profiles: Arc<ProfileStore>) -> Self {
        Self::with_options(device, policy, profiles, RuntimeOptions::default())
    }

    /// A runtime without tenants, as `options` say.
    #[tracing::instrument(level = "debug", name = "make runtime", skip_all, fields(policy = policy.name()))]
    pub fn with_options(device: Arc<dyn Device>, policy: Box<dyn Policy>, profiles: Arc<ProfileStore>, options: RuntimeOptions) -> Self {
        let loss = Loss::default();
        let watched: Arc<dyn Device> =
            Watched::new(Arc::clone(&device), Arc::clone(&loss), "the runtime itself".to_owned(), Arc::default());
        let telemetry = Telemetry::new(Arc::clone(&watched), options.recording);
        let lending = Arc::new(Lending::new(&watched, &telemetry));
        let ladder = Ladder::new(Arc::clone(&watched), options.partitions(device.topology()));
        ladder.make_family(policy.family(device.topology()));
        let plans = PlanCell::new(Plan { policy: policy.name(), ..Plan::default() });
        let transfers = Transfers::new(Arc::clone(&watched), TransferConfig::default());
        let state = State {
            policy,
            replanner: Replanner::default(),
            profiles,
            corrections: Corrections::default(),
            plan_drift: Corrections::of_replays(),
            asked: BTreeMap::new(),
            tenants: BTreeMap::new(),
            next: 0,
            stale: false,
        };
        Self { bare: device, device: watched, loss, ladder, plans, telemetry, lending, transfers, state: Mutex::new(state) }
    }

    /// The same runtime, whose copies are cut as `config` says. Uploaders made before do not take part.
    #[must_use]
    pub fn with_transfers(self, config: TransferConfig) -> Self {
        Self { transfers: Transfers::new(Arc::clone(&self.device), config), ..self }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The timeline and what else is recorded of this runtime.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// The engine of host-to-device copies.
    pub fn transfers(&self) -> &Arc<Transfers> {
        &self.transfers
    }

    /// Device memory that partitions may take, bytes, and what those that exist take.
    pub fn partition_bytes(&self) -> (u64, u64) {
        self.ladder.bytes()
    }

    /// Whether the device's context is lost, and who met that first. Every call of every tenant says the same from then on, at once and without
    /// reaching the driver.
    pub fn loss(&self) -> Option<&DeviceError> {
        self.loss.get()
    }

    /// The plan now in force.
    pub fn plan(&self) -> Arc<Plan> {
        self.plans.current()
    }

    /// Plans by another policy from here on. What that one [foresees](Policy::family) is made only while there is no tenant whom that could hold up.
    ///
    /// # Errors
    /// If a partition of the new plan cannot be made; the old plan stays in force then.
    #[tracing::instrument(level = "debug", skip_all, fields(policy = policy.name()))]
    pub fn set_policy(&self, policy: Box<dyn Policy>) -> Result<(), AdmitError> {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.policy, policy);
        state.take_in(Event::Changed);
        if state.tenants.is_empty() {
            self.ladder.make_family(state.policy.family(self.device.topology()));
        }
        self.replan(&mut state).inspect_err(|_| {
            state.policy = before;
            let adjustments = state.replanner.adjustments();
            state.policy.adjust(adjustments);
        })
    }

    /// Puts in force what the policy drafts. After an error the old plan stands.
    fn replan(&self, state: &mut State) -> Result<(), AdmitError> {
        let (plan, partitions) = self.make_plan(state)?;
        self.put_in_force(state, plan, partitions)
    }

    /// As `replan`, for a change that stays whether or not it can be planned for.
    fn replan_in_any_case(&self, state: &mut State) -> Result<(), AdmitError> {
        self.replan(state).inspect_err(|_| state.stale = true)
    }

    /// What the policy drafts, on this device, with references to the partitions that it names.
    #[tracing::instrument(level = "debug", skip_all, fields(policy = state.policy.name(), tenants = state.tenants.len()))]
    fn make_plan(&self, state: &State) -> Result<(Plan, Vec<PartitionRef>), AdmitError> {
        if let Some(lost) = self.loss.get() {
            return Err(lost.clone().into());
        }
        let draft = self.draft(state)?;
        let unplaced = state.tenants.iter().find(|(id, admitted)| !admitted.paused && !draft.contains_key(id));
        if let Some((_, admitted)) = unplaced {
            return Err(AdmitError::Unplaced { policy: state.policy.name(), name: admitted.spec.name.clone() });
        }
        // Referred to from here on, so that making one does not take another of the same plan away.
        let mut partitions = HashMap::new();
        let mut realise = |(&id, draft)| Ok((id, self.realise(draft, &mut partitions)?));
        let tenants = draft.iter().map(&mut realise).collect::<Result<_, LadderError>>()?;
        let paused = state.tenants.iter().filter(|(_, admitted)| admitted.paused).map(|(&id, _)| id).collect();
        Ok((Plan { policy: state.policy.name(), tenants, paused }, partitions.into_values().collect()))
    }

    #[tracing::instrument(level = "debug", skip_all, fields(policy = plan.policy))]
    fn put_in_force(&self, state: &mut State, plan: Plan, partitions: Vec<PartitionRef>) -> Result<(), AdmitError> {
        let terms = state.terms(&plan);
        // A kernel must not start in its new partition under the old grant: all blocks but one would leave.
        self.lending.widen(&terms)?;
        let before = self.plans.current();
        let is_other = plan != *before;
        let partitions_before = self.plans.publish_on(plan, partitions);
        self.lending.adopt(&terms).inspect_err(|_| {
            drop(self.plans.publish_on(Plan::clone(&before), partitions_before));
            self.lending.adopt(&state.terms(&before)).unwrap_or_else(|error| tracing::warn!("a grant is not the plan's: {error}"));
        })?;
        if is_other {
            state.take_in(Event::Planned);
        }
        state.stale = false;
        self.telemetry.plan_published(state.policy.name());
        state.tenants.values().for_each(|admitted| self.lending.note(&admitted.membership));
        Ok(())
    }

    /// What the policy drafts for the tenants that run, each inside the SMs it may have.
    fn draft(&self, state: &State) -> Result<Draft, AdmitError> {
        let topology = self.device.topology();
        let regions = state.regions(topology)?;
        Ok(regions.iter().flat_map(|(region, demands)| shares::draft_in(&*state.policy, topology, *region, demands)).collect())
    }

    /// Makes the partitions of plans that [`adapt`](Runtime::adapt) may ask for, the likeliest plans first, until half of the ladder's room is taken by them and by
    /// what is in use. On an H200 one takes a millisecond
    /// while the GPU is idle; beside tenants at work it waits for what they have launched, 0.9 s beside a prefill, and holds up everybody's launches. So the first one that is slow is the
    /// last: others are at work already.
    fn make_foreseen_partitions(&self, state: &mut State) {
        if !state.policy.adapts() {
            return;
        }
        let _span = tracing::debug_span!("make foreseen partitions").entered();
        // Referred to until the end, so that they count as taken, and so that the last ones do not take the place of the first.
        let mut made = Vec::new();
        'plans: for adjustments in state.replanner.foreseen() {
            state.policy.adjust(adjustments);
            let draft = self.draft(state).unwrap_or_default();
            let placements = draft.values().flat_map(|draft| draft.kernels.values().chain([&draft.default]));
            for tpcs in placements.map(|placement| placement.tpcs).collect::<BTreeSet<_>>() {
                if !self.ladder.has_room_to_spare() {
                    break 'plans;
                }
                let begun = self.device.now();
                match self.ladder.partition(tpcs) {
                    Ok(partition) => made.push(partition),
                    Err(error) => tracing::debug!("a partition that a later plan may want cannot be made: {error}"),
                }
                if self.device.now().saturating_sub(begun) > FORESEEN_PATIENCE {
                    break 'plans;
                }
            }
        }
        let adjustments = state.replanner.adjustments();
        state.policy.adjust(adjustments);
    }

    /// What `draft` means on this device. References to the partitions that it names are added to `partitions`.
    fn realise(&self, draft: &TenantDraft, partitions: &mut HashMap<TpcSet, PartitionRef>) -> Result<TenantPlan, LadderError> {
        let mut place = |placement: &DraftPlacement| {
            let partition = match partitions.entry(placement.tpcs) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(self.ladder.partition(placement.tpcs)?),
            };
            let borrows = draft.walls.grant && !draft.owned.includes(placement.tpcs);
            Ok::<_, LadderError>(Placement { sms: placement.sms, partition: partition.id(), priority: placement.priority, borrows })
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
    /// Lets the policy know what `event` means for plans from here on. Whether it is time to make one.
    fn take_in(&mut self, event: Event<'_>) -> bool {
        // How tenants fare under plans that no margin is in says nothing of margins.
        if matches!(event, Event::Window(_)) && !self.policy.adapts() {
            return false;
        }
        let adjustments = self.replanner.on(event).filter(|_| self.policy.adapts());
        adjustments.map(|adjustments| self.policy.adjust(adjustments)).is_some()
    }

    /// The tenants that run, by the SMs that they may have: each with a share alone on its own, all others together on the rest.
    fn regions(&self, topology: &Topology) -> Result<Vec<(TpcSet, Vec<TenantDemand>)>, AdmitError> {
        let running = self.tenants.iter().filter(|(_, admitted)| !admitted.paused);
        let (shared, unshared): (Vec<_>, Vec<_>) = running.partition(|(_, admitted)| admitted.share.is_some());
        let rest = shared.iter().fold(topology.all_tpcs(), |rest, (_, admitted)| rest - admitted.region);
        if let (true, Some((_, last))) = (rest.is_empty(), unshared.last()) {
            let (name, asked) = (last.spec.name.clone(), Sms(topology.sms_per_tpc));
            return Err(AdmitError::NoSms { name, asked, free: Sms(0), unshared: unshared.len() });
        }
        let demand = |&(&id, admitted): &(&TenantId, &Admitted)| admitted.demand(id);
        let together = Some((rest, unshared.iter().map(demand).collect::<Vec<_>>())).filter(|(_, demands)| !demands.is_empty());
        Ok(together.into_iter().chain(shared.iter().map(|tenant| (tenant.1.region, vec![demand(tenant)]))).collect())
    }

    fn terms(&self, plan: &Plan) -> Vec<Terms> {
        Terms::of(self.tenants.iter().filter_map(|(id, admitted)| Some((&admitted.membership, plan.tenants.get(id)?))))
    }
}
