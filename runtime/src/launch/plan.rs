//! Plans: the placements of all kernels of all tenants, immutable, swapped whole by one pointer store.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use parking_lot::Mutex;

use crate::device::{PartitionId, Priority, Sms, Topology};
use crate::partition::{PartitionRef, TpcSet};
use crate::tenant::TenantId;

use super::{Fingerprint, LaunchError};

/// What one launch gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// SMs to size the grid for.
    pub sms: Sms,
    /// The partition whose stream takes the launch.
    pub partition: PartitionId,
    /// Its order among blocks that wait for an SM.
    pub priority: Priority,
    /// Whether it reaches beyond what the tenant has by right. Only launches that poll the grant may run there, since SMs can be taken back from no
    /// others: those run at the tenant's default placement.
    pub borrows: bool,
}

impl Placement {
    /// The whole GPU at normal priority.
    pub const fn whole(sms: Sms) -> Self {
        Self { sms, partition: PartitionId::WHOLE, priority: Priority::Normal, borrows: false }
    }
}

/// Which means confine a tenant's kernels, from soft to hard. Every result names those that were in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Walls {
    /// Persistent grids no larger than the granted SMs.
    pub grid: bool,
    /// A grant that elastic kernels poll.
    pub grant: bool,
    /// Green contexts.
    pub partition: bool,
}

/// One tenant's part of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantPlan {
    /// The TPCs that the tenant has by right.
    pub owned: TpcSet,
    /// The TPCs that the tenant's elastic kernels may use while nobody else wants them: owned ones, and those that it may borrow.
    pub grant: TpcSet,
    /// For kernels that were never profiled or never seen when the plan was made.
    pub default: Placement,
    /// By kernel key.
    pub kernels: HashMap<Fingerprint, Placement>,
    /// What confines this tenant.
    pub walls: Walls,
}

impl TenantPlan {
    /// Every kernel on the whole GPU, unconfined.
    pub(super) fn everywhere(gpu: &Topology) -> Self {
        let all = gpu.all_tpcs();
        Self { owned: all, grant: all, default: Placement::whole(gpu.sms), kernels: HashMap::new(), walls: Walls::default() }
    }

    /// The placement of a kernel.
    pub fn placement(&self, kernel: Fingerprint) -> Placement {
        self.kernels.get(&kernel).copied().unwrap_or(self.default)
    }

    /// Every partition and priority that launches under this plan may use.
    pub fn streams(&self) -> impl Iterator<Item = (PartitionId, Priority)> {
        std::iter::once(&self.default).chain(self.kernels.values()).map(|placement| (placement.partition, placement.priority))
    }

    /// Whether every kernel is placed as under `other`. Grants do not count: they live in device memory, and act on captured graphs as on
    /// launches.
    pub fn places_like(&self, other: &Self) -> bool {
        let agree = |kernel: &Fingerprint| self.placement(*kernel) == other.placement(*kernel);
        self.default == other.default && self.kernels.keys().chain(other.kernels.keys()).all(agree)
    }
}

/// The placements of all kernels of all tenants.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The policy that made it.
    pub policy: &'static str,
    /// By tenant.
    pub tenants: HashMap<TenantId, TenantPlan>,
    /// Tenants that are admitted but must not launch.
    pub paused: BTreeSet<TenantId>,
}

impl Plan {
    /// A tenant's part.
    ///
    /// # Errors
    /// [`LaunchError::Paused`] or [`LaunchError::Dismissed`] where it has none.
    pub fn tenant(&self, tenant: TenantId) -> Result<&TenantPlan, LaunchError> {
        self.tenants.get(&tenant).ok_or_else(|| self.absence(tenant))
    }

    /// Why a tenant is not in the plan.
    fn absence(&self, tenant: TenantId) -> LaunchError {
        if self.paused.contains(&tenant) { LaunchError::Paused } else { LaunchError::Dismissed }
    }
}

/// The current plan, shared by the runtime that publishes and the sessions that read it with one atomic load.
#[derive(Debug, Clone)]
pub struct PlanCell {
    plan: Arc<ArcSwap<Plan>>,
    /// The partitions of the plan in force, which stay until the next one is; locked where plans change.
    partitions: Arc<Mutex<Vec<PartitionRef>>>,
}

impl PlanCell {
    /// A cell that holds `plan`.
    pub fn new(plan: Plan) -> Self {
        Self { plan: Arc::new(ArcSwap::from_pointee(plan)), partitions: Arc::default() }
    }

    /// The plan now in force.
    pub fn current(&self) -> Arc<Plan> {
        self.plan.load_full()
    }

    /// Puts `plan` in force; sessions follow at their next launch. Its partitions must live as long as the device, or be among those that the
    /// plan before it was published with.
    pub fn publish(&self, plan: Plan) {
        let _held = self.partitions.lock();
        self.plan.store(Arc::new(plan));
    }

    /// Puts `plan` in force and refers to `partitions`, those that it names, while it is. Returns the references for the plan before it.
    pub fn publish_on(&self, plan: Plan, partitions: Vec<PartitionRef>) -> Vec<PartitionRef> {
        let mut held = self.partitions.lock();
        self.plan.store(Arc::new(plan));
        std::mem::replace(&mut held, partitions)
    }

    /// The plan in force, with references to its partitions: between reading the one and the other no plan is published.
    pub(super) fn in_force(&self) -> (Arc<Plan>, Vec<PartitionRef>) {
        let held = self.partitions.lock();
        (self.plan.load_full(), held.clone())
    }

    /// A reader that remembers what it last saw, so that reading an unchanged plan is one load and one comparison.
    pub(super) fn reader(&self) -> PlanReader {
        Cache::new(Arc::clone(&self.plan))
    }
}

pub(super) type PlanReader = Cache<Arc<ArcSwap<Plan>>, Arc<Plan>>;
