//! Policies: pure functions from the GPU's topology, the tenants and their profiles to a plan. One file per policy.
//!
//! A policy names TPC sets, not partitions: it can be computed, tested and compared with no device. [`crate::Runtime`] turns its [`Draft`]
//! into a [`Plan`](crate::launch::Plan) by making the partitions.
//!
//! | policy | a tenant's kernels get | walls | profiles |
//! |---|---|---|---|
//! | [`Exclusive`] | the whole GPU, for a tenant that is alone | none | no |
//! | [`DefaultSharing`] | the whole GPU, all at once | none | no |
//! | [`StaticEqual`] | an equal part | grid, grant, partition | no |
//! | [`ModelRightsize`] | a part sized to the tenant's whole request | grid, grant, partition | yes |
//! | [`Krisp::isolated`] | each its own minimum, inside the tenant's region | grid, grant, partition | yes |
//! | [`Krisp::overlapping`] | each its own minimum, anywhere | grid, partition | yes |
//! | [`Slo`], the default | the fewest on which its SLO holds, or a share of the rest and what is lent | grid, grant, partition | yes |
//!
//! What they have in common:
//! - Every launch has [`Priority::Normal`], except under `slo`, the only one that knows classes and objectives.
//! - Nothing is lent, except under `slo`: what a tenant owns is all that it may use.
//! - Tenants are taken in the order of their numbers, so that their order in the slice decides nothing.
//! - A tenant of whose request nothing is known (no kernel seen, or none profiled) gets an equal share of the GPU where tenants are kept apart, and the whole GPU
//!   where they are not, under [`Krisp::overlapping`] too. Under `slo` a latency tenant claims an equal share of the GPU, and a throughput tenant gets an equal share of
//!   what latency tenants leave.
//! - Where a policy keeps tenants apart but they outnumber the TPCs, each gets one TPC, in turn, and some share one: the walls
//!   stand, but around a tenant and its companions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::device::{Fingerprint, Priority, Sms, Topology, Work};
use crate::launch::Walls;
use crate::partition::TpcSet;
use crate::partition::krisp::Distribution;
use crate::profile::Curve;
use crate::tenant::{Class, TenantId};

mod default_sharing;
mod division;
mod exclusive;
mod family;
mod krisp;
mod model_rightsize;
mod slo;
mod static_equal;

pub use default_sharing::DefaultSharing;
pub use exclusive::Exclusive;
pub use krisp::Krisp;
pub use model_rightsize::ModelRightsize;
pub(crate) use slo::CLOSE;
pub use slo::{Ablations, Adjustments, Event, Forecast, Observation, PowerForecast, Replanner, Slo, UnknownAblation};
pub use static_equal::StaticEqual;

/// How much slower than on the whole GPU a right-sized kernel or request may be, unless told otherwise: 2%.
pub const DEFAULT_TOLERANCE: f64 = 0.02;

/// The policy that is used where none is named.
pub const DEFAULT: &str = "slo";

/// Every name that [`by_name`] knows. Behind `slo:` there may be [`Ablations`].
pub const NAMES: [&str; 11] = [
    "exclusive",
    "default-sharing",
    "static-equal",
    "model-rightsize",
    "krisp-o",
    "krisp-o-packed",
    "krisp-o-distributed",
    "krisp-i",
    "krisp-i-packed",
    "krisp-i-distributed",
    DEFAULT,
];

/// The policy of that name, with [`DEFAULT_TOLERANCE`]. `slo:no-borrow,no-bandwidth` is `slo` without two of its parts ([`Ablations::NAMES`]); `+`
/// may stand for the comma.
///
/// # Errors
/// [`UnknownPolicy`] lists the names that exist.
pub fn by_name(name: &str) -> Result<Box<dyn Policy>, UnknownPolicy> {
    let (packed, distributed) = (Distribution::Packed, Distribution::Distributed);
    Ok(match name {
        "exclusive" => Box::new(Exclusive),
        "default-sharing" => Box::new(DefaultSharing),
        "static-equal" => Box::new(StaticEqual),
        "model-rightsize" => Box::new(ModelRightsize::default()),
        "krisp-o" => Box::new(Krisp::overlapping()),
        "krisp-o-packed" => Box::new(Krisp::overlapping().with_distribution(packed)),
        "krisp-o-distributed" => Box::new(Krisp::overlapping().with_distribution(distributed)),
        "krisp-i" => Box::new(Krisp::isolated()),
        "krisp-i-packed" => Box::new(Krisp::isolated().with_distribution(packed)),
        "krisp-i-distributed" => Box::new(Krisp::isolated().with_distribution(distributed)),
        _ => Box::new(Slo::default().with_ablations(ablations(name)?)),
    })
}

/// What the policy of that name does without: nothing, but for `slo:` and names from [`Ablations::NAMES`]. For engines, which launch without
/// graphs or elastic kernels where an ablation says so.
///
/// # Errors
/// [`UnknownPolicy`] as from [`by_name`].
pub fn ablations(name: &str) -> Result<Ablations, UnknownPolicy> {
    match name.strip_prefix("slo:") {
        Some(list) => Ok(list.parse()?),
        None if NAMES.contains(&name) => Ok(Ablations::default()),
        None => Err(UnknownPolicy::Name { name: name.to_owned() }),
    }
}

/// A name that no policy has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownPolicy {
    /// No policy is called that.
    #[error("there is no policy `{name}`; there are {}", NAMES.join(", "))]
    Name {
        /// The name asked for.
        name: String,
    },
    /// The policy has no such part.
    #[error(transparent)]
    Ablation(#[from] UnknownAblation),
}

/// What a launch of a request takes besides its kernel, microseconds, where each waits for the one before: profiles hold each kernel's own time. Whole
/// requests of Llama-3.2-1B and BERT-base took 0.5 to 0.67 us a launch more on an H200 than their kernels.
pub const GAP_US: f64 = 0.6;

/// What a policy knows of one kernel of a tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelDemand {
    /// Which kernel.
    pub kernel: Fingerprint,
    /// Launches in one request.
    pub launches: u32,
    /// The least it must do.
    pub work: Work,
    /// Its measured latency by SM count, and its energy where that was measured; none if it was never profiled.
    pub curve: Option<Arc<Curve>>,
}

/// What a policy knows of one tenant.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantDemand {
    /// Which tenant.
    pub id: TenantId,
    /// What it is served for.
    pub class: Class,
    /// Its objective.
    pub slo: Option<Duration>,
    /// Requests a second that arrive at random; none where they come one after another, or nobody knows.
    pub rate: Option<f64>,
    /// Its kernels, in the order in which a request first launches them. Empty until a request has run.
    pub kernels: Vec<KernelDemand>,
}

/// Where one kernel shall run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftPlacement {
    /// SMs to size the grid for.
    pub sms: Sms,
    /// The TPCs of its partition; all of them where no partition is wanted.
    pub tpcs: TpcSet,
    /// Its order among blocks that wait for an SM.
    pub priority: Priority,
}

/// Where one tenant's kernels shall run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantDraft {
    /// The TPCs that the tenant has by right.
    pub owned: TpcSet,
    /// The TPCs that elastic kernels may use while nobody else wants them: owned ones, and those that the tenant may borrow.
    pub grant: TpcSet,
    /// For every kernel that `kernels` does not name.
    pub default: DraftPlacement,
    /// Kernels placed on their own, by a policy that works kernel by kernel.
    pub kernels: BTreeMap<Fingerprint, DraftPlacement>,
    /// What confines the tenant.
    pub walls: Walls,
}

/// A plan before its partitions are made.
pub type Draft = BTreeMap<TenantId, TenantDraft>;

/// Decides which SMs every kernel of every tenant gets.
pub trait Policy: Send + Sync {
    /// The name on the command line and in results.
    fn name(&self) -> &'static str;

    /// Whether the policy places kernels by their measured curves, so that tenants should be profiled first.
    fn needs_profiles(&self) -> bool;

    /// Whether plans follow [`Adjustments`] from what tenants were seen to do.
    fn adapts(&self) -> bool {
        false
    }

    /// Plans with `adjustments` from here on, where it [adapts](Policy::adapts).
    fn adjust(&mut self, adjustments: Adjustments) {
        let _ = adjustments;
    }

    /// How many times longer than undisturbed, 1 or more, each tenant's requests are predicted to take under [`plan`](Policy::plan), while all others work.
    /// Tenants of which nothing is predicted are left out.
    fn slowdowns(&self, topology: &Topology, tenants: &[TenantDemand]) -> BTreeMap<TenantId, f64> {
        let _ = (topology, tenants);
        BTreeMap::new()
    }

    /// Tenants that own more under [`plan`](Policy::plan) than their margins ask for ([`Adjustments::margins`]), because nobody else could use it.
    fn ample(&self, topology: &Topology, tenants: &[TenantDemand]) -> BTreeSet<TenantId> {
        let _ = (topology, tenants);
        BTreeSet::new()
    }

    /// The TPC sets that plans on this GPU are likely to name, those that most plans name first. The runtime makes their partitions before there are tenants, as far as there
    /// is room. None, the default, where nobody is confined or where sets depend on the tenants in every part.
    fn family(&self, topology: &Topology) -> Vec<TpcSet> {
        let _ = topology;
        Vec::new()
    }

    /// What the board is predicted to draw under [`plan`](Policy::plan) while all tenants work; none where that is not known of each of them.
    fn power(&self, topology: &Topology, tenants: &[TenantDemand]) -> Option<PowerForecast> {
        let _ = (topology, tenants);
        None
    }

    /// A draft with one entry for each tenant. Equal inputs give equal drafts; no tenant gets an empty set.
    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft;
}

/// The tenants by rising number, each once.
fn in_order(tenants: &[TenantDemand]) -> Vec<&TenantDemand> {
    let mut tenants: Vec<&TenantDemand> = tenants.iter().collect();
    tenants.sort_by_key(|tenant| tenant.id);
    tenants.dedup_by_key(|tenant| tenant.id);
    tenants
}

impl DraftPlacement {
    /// As many SMs as `tpcs` have, at normal priority.
    fn over(topology: &Topology, tpcs: TpcSet) -> Self {
        Self { sms: topology.sms_of(tpcs), tpcs, priority: Priority::Normal }
    }
}

impl TenantDraft {
    /// Every kernel on all of `tpcs`.
    fn over(topology: &Topology, tpcs: TpcSet, walls: Walls) -> Self {
        Self { owned: tpcs, grant: tpcs, default: DraftPlacement::over(topology, tpcs), kernels: BTreeMap::new(), walls }
    }
}

/// Everybody on the whole GPU, nobody confined.
fn unconfined(topology: &Topology, tenants: &[TenantDemand]) -> Draft {
    tenants.iter().map(|tenant| (tenant.id, TenantDraft::over(topology, topology.all_tpcs(), Walls::default()))).collect()
}

/// All three walls around each tenant.
const WALLED: Walls = Walls { grid: true, grant: true, partition: true };
