//! Policies: pure functions from the GPU's topology, the tenants and their profiles to a plan. One file per policy.
//!
//! A policy names TPC sets, not partitions: it can be computed, tested and compared with no device. [`crate::Runtime`] turns its [`Draft`]
//! into a [`Plan`](crate::launch::Plan) by making the partitions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::device::{Priority, Sms, Topology};
use crate::launch::{Fingerprint, Walls, Work};
use crate::partition::TpcSet;
use crate::profile::Curve;
use crate::tenant::{Class, TenantId};

/// What a policy knows of one kernel of a tenant.
#[derive(Debug, Clone)]
pub struct KernelDemand {
    /// Which kernel.
    pub kernel: Fingerprint,
    /// Launches in one request.
    pub launches: u32,
    /// The least it must do.
    pub work: Work,
    /// Its measured latency by SM count; none if it was never profiled.
    pub curve: Option<Arc<Curve>>,
}

/// What a policy knows of one tenant.
#[derive(Debug, Clone)]
pub struct TenantDemand {
    /// Which tenant.
    pub id: TenantId,
    /// What it is served for.
    pub class: Class,
    /// Its objective.
    pub slo: Option<Duration>,
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
    /// The TPCs that elastic kernels may use.
    pub grant: TpcSet,
    /// For kernels without a profile.
    pub default: DraftPlacement,
    /// By kernel.
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

    /// A draft with one entry for each tenant. Equal inputs give equal drafts; no tenant gets an empty set.
    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft;
}
