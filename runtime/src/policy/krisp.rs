//! `krisp-o` and `krisp-i`: kernel-wise right-sizing, as KRISP (HPCA 2023) does it, with the masks of [`crate::partition::krisp`].
//!
//! KRISP decides at each launch, in the GPU's command processor, from counters of the kernels that run at that instant. A host cannot know
//! them, so this policy decides once per set of tenants, from how much of its time each tenant is *expected* to occupy each TPC. What that
//! changes is in docs/decisions/0004.

use std::collections::BTreeMap;

use crate::device::{Sms, Topology};
use crate::launch::Walls;
use crate::partition::krisp::{Distribution, OverlapLimit, Request, SmLoad};
use crate::partition::{TpcSet, rungs};
use crate::profile::Curve;

use super::division::{Claim, proportional};
use super::{DEFAULT_TOLERANCE, Draft, DraftPlacement, KernelDemand, Policy, TenantDemand, TenantDraft, WALLED, in_order};

/// Each kernel on its own minimum SM count, rounded up to a rung of the ladder.
///
/// - **Overlapping** (KRISP-O): a kernel gets its full minimum anywhere, on the TPCs that the tenants placed before occupy least. Its
///   partition and grid confine it. No grant does: a grant belongs to a tenant, and the union of what a tenant's kernels use tends to the
///   whole GPU, where kernels that were never profiled run anyway.
/// - **Isolated** (KRISP-I, overlap limit 0): each tenant first gets a region of its own, all regions together the whole GPU, in
///   proportion to the TPCs that its kernels need on average over its request's time. A kernel then gets its minimum inside the region, or
///   the whole region if that is smaller. All three walls are in force, the grant being the region. TPCs beyond a tenant's neediest
///   kernel go to others first, since no profiled kernel of it would use them.
///
/// All kernels of a tenant with the same minimum share one set: each set is a partition, and costs about 6 MB of device memory.
#[derive(Debug, Clone, Copy)]
pub struct Krisp {
    overlap_limit: OverlapLimit,
    distribution: Distribution,
    tolerance: f64,
}

impl Krisp {
    /// KRISP-O.
    pub const fn overlapping() -> Self {
        Self { overlap_limit: OverlapLimit::UNLIMITED, distribution: Distribution::Conserved, tolerance: DEFAULT_TOLERANCE }
    }

    /// KRISP-I.
    pub const fn isolated() -> Self {
        Self { overlap_limit: OverlapLimit::ISOLATED, ..Self::overlapping() }
    }

    /// With sets spread over GPCs in that way.
    #[must_use]
    pub const fn with_distribution(self, distribution: Distribution) -> Self {
        Self { distribution, ..self }
    }

    /// With kernels allowed to be slower by `tolerance` (0.02 is 2%) than on the whole GPU.
    #[must_use]
    pub const fn with_tolerance(self, tolerance: f64) -> Self {
        Self { tolerance, ..self }
    }

    fn is_isolated(&self) -> bool {
        self.overlap_limit == OverlapLimit::ISOLATED
    }

    fn request(&self, tpcs: u16, within: TpcSet) -> Request {
        Request { tpcs, within, overlap_limit: self.overlap_limit, distribution: self.distribution }
    }

    /// What each profiled kernel of the tenant needs.
    fn needs<'a>(&self, topology: &Topology, rungs: &[Sms], tenant: &'a TenantDemand) -> Vec<Need<'a>> {
        let whole = topology.all_tpcs().len();
        let need = |kernel: &'a KernelDemand| {
            let curve = kernel.curve.as_deref()?;
            let minimum = curve.minimum_sms(self.tolerance);
            let rung = rungs.iter().copied().find(|&rung| rung >= minimum).unwrap_or(minimum);
            Some(Need { kernel, curve, tpcs: topology.tpcs_for(rung).clamp(1, whole.max(1)) })
        };
        tenant.kernels.iter().filter_map(need).collect()
    }

    /// The TPCs that each tenant keeps to.
    fn regions(&self, topology: &Topology, needs: &[Vec<Need<'_>>]) -> Vec<TpcSet> {
        if !self.is_isolated() {
            return vec![topology.all_tpcs(); needs.len()];
        }
        let claims: Vec<Option<Claim>> = needs.iter().map(|needs| claim(topology, needs)).collect();
        let mut load = SmLoad::new(topology);
        let mut free = topology.all_tpcs();
        let mut region = |tpcs| {
            let region = load.allocate(self.request(tpcs, free), 1);
            free = free - region;
            region
        };
        proportional(topology.all_tpcs().len(), &claims).into_iter().map(&mut region).collect()
    }
}

impl Policy for Krisp {
    fn name(&self) -> &'static str {
        match (self.is_isolated(), self.distribution) {
            (false, Distribution::Conserved) => "krisp-o",
            (false, Distribution::Packed) => "krisp-o-packed",
            (false, Distribution::Distributed) => "krisp-o-distributed",
            (true, Distribution::Conserved) => "krisp-i",
            (true, Distribution::Packed) => "krisp-i-packed",
            (true, Distribution::Distributed) => "krisp-i-distributed",
        }
    }

    fn needs_profiles(&self) -> bool {
        true
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let tenants = in_order(tenants);
        let rungs = rungs(topology);
        let needs: Vec<Vec<Need<'_>>> = tenants.iter().map(|tenant| self.needs(topology, &rungs, tenant)).collect();
        let regions = self.regions(topology, &needs);
        let walls = if self.is_isolated() { WALLED } else { Walls { grant: false, ..WALLED } };
        let mut load = SmLoad::new(topology);
        let mut draft = Draft::new();
        for ((tenant, needs), region) in tenants.iter().zip(&needs).zip(regions) {
            let mut placed = TenantDraft::over(topology, region, walls);
            // All sets are chosen before any is counted: a tenant's kernels run one after another, never beside each other.
            let mut sets: BTreeMap<u16, TpcSet> = BTreeMap::new();
            for need in needs {
                let tpcs = need.tpcs.min(region.len());
                let set = *sets.entry(tpcs).or_insert_with(|| load.choose(self.request(tpcs, region)));
                placed.kernels.insert(need.kernel.kernel, DraftPlacement::over(topology, set));
            }
            for (tpcs, permille) in occupancy(topology, needs, region) {
                load.occupy(sets.get(&tpcs).copied().unwrap_or(region), permille);
            }
            draft.insert(tenant.id, placed);
        }
        draft
    }
}

/// What one kernel needs.
#[derive(Debug, Clone, Copy)]
struct Need<'a> {
    kernel: &'a KernelDemand,
    curve: &'a Curve,
    /// TPCs that hold its minimum SM count.
    tpcs: u16,
}

impl Need<'_> {
    /// The kernel's time in one request if it runs on `tpcs` TPCs, microseconds.
    fn request_us(&self, topology: &Topology, tpcs: u16) -> f64 {
        f64::from(self.kernel.launches) * self.curve.at(Sms(tpcs.saturating_mul(topology.sms_per_tpc)))
    }
}

/// A tenant's claim to a region: the average of its kernels' needs over its request's time, in thousandths of a TPC. None if it has no
/// profiled kernel.
fn claim(topology: &Topology, needs: &[Need<'_>]) -> Option<Claim> {
    let enough = needs.iter().map(|need| need.tpcs).max()?;
    let (mut total_us, mut tpc_us) = (0.0, 0.0);
    for need in needs {
        let us = need.request_us(topology, need.tpcs);
        total_us += us;
        tpc_us += us * f64::from(need.tpcs);
    }
    // A request that takes no time divides 0 by 0; the cast makes that 0, which counts as 1.
    Some(Claim { weight: (1000.0 * tpc_us / total_us).round() as u64, enough })
}

/// For each size of set, the share of the tenant's time that it spends there, in thousandths. A tenant of whom nothing is known counts as
/// always busy everywhere in its region.
fn occupancy(topology: &Topology, needs: &[Need<'_>], region: TpcSet) -> BTreeMap<u16, u32> {
    if needs.is_empty() {
        return BTreeMap::from([(region.len(), 1000)]);
    }
    let mut by_size: BTreeMap<u16, f64> = BTreeMap::new();
    for need in needs {
        let tpcs = need.tpcs.min(region.len());
        *by_size.entry(tpcs).or_default() += need.request_us(topology, tpcs);
    }
    let total_us: f64 = by_size.values().sum();
    by_size.into_iter().map(|(tpcs, us)| (tpcs, (1000.0 * us / total_us).round() as u32)).collect()
}
