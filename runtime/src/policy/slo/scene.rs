//! What the planner sees: the GPU, the tenants by rising number, and what they would do to each other.

use crate::device::{Sms, Topology};
use crate::policy::{TenantDemand, in_order};
use crate::profile::Board;
use crate::tenant::Class;

use super::contention::{Contention, Load, Pressure};
use super::power::{Draw, Power, times};
use super::queue::with_waiting;
use super::replan::Adjustments;
use super::request::{Request, Sizes};
use super::{Ablations, MARGIN};

#[derive(Debug)]
pub(super) struct Tenant<'a> {
    pub(super) demand: &'a TenantDemand,
    /// None if nothing of its request was profiled.
    pub(super) request: Option<Request<'a>>,
    /// What its requests may be predicted to take; none without an SLO.
    pub(super) limit: Option<Limit>,
    /// Whether it is a throughput tenant without work.
    pub(super) idle: bool,
    /// Whether it is a latency tenant whose TPCs others may use while it pauses.
    pub(super) lends: bool,
}

/// Latencies in microseconds, waiting for other requests included where the tenant's rate is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) slo_us: f64,
    /// The SLO times the tenant's margin.
    pub(super) planned_us: f64,
}

/// What all others do to a tenant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neighbours {
    pub(super) pressure: Pressure,
    draw: Draw,
}

impl Tenant<'_> {
    pub(super) fn is_latency(&self) -> bool {
        self.demand.class == Class::Latency
    }
}

#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) topology: &'a Topology,
    pub(super) sizes: Sizes,
    pub(super) contention: Contention,
    pub(super) tenants: Vec<Tenant<'a>>,
    /// None where it is not known what a tenant draws.
    pub(super) power: Option<Power>,
    /// What all tenants would do together with so many TPCs each, by TPCs from 0.
    together: Vec<Pressure>,
}

impl<'a> Scene<'a> {
    pub(super) fn new(topology: &'a Topology, tenants: &'a [TenantDemand], ablations: &Ablations, adjustments: &Adjustments) -> Self {
        let sizes = Sizes::new(topology);
        let contention = Contention::new(topology, ablations.no_bandwidth);
        let seen = |demand: &'a TenantDemand| {
            // Where queueing is predicted, nothing need be set aside for it.
            let whole = if demand.rate.is_some() { MARGIN } else { 1.0 };
            let margin = adjustments.margins.get(&demand.id).copied().unwrap_or(MARGIN) / whole;
            let slo = demand.slo.filter(|_| demand.class == Class::Latency);
            Tenant {
                demand,
                request: if ablations.no_profile { None } else { Request::new(&sizes, demand, ablations.no_power) },
                limit: slo.map(|slo| slo.as_secs_f64() * 1e6).map(|slo_us| Limit { slo_us, planned_us: slo_us * margin }),
                idle: demand.class == Class::Throughput && adjustments.idle.contains(&demand.id),
                lends: demand.class == Class::Latency && !adjustments.restless.contains(&demand.id),
            }
        };
        let tenants: Vec<Tenant<'a>> = in_order(tenants).into_iter().map(seen).collect();
        let power = budget(topology, &tenants);
        let mut scene = Self { topology, sizes, contention, tenants, power, together: Vec::new() };
        scene.together = (0..=scene.tpcs()).map(|tpcs| (0..scene.tenants.len()).map(|at| scene.pressure(at, tpcs)).sum()).collect();
        scene
    }

    /// TPCs of the GPU.
    pub(super) fn tpcs(&self) -> u16 {
        self.topology.all_tpcs().len()
    }

    /// How many tenants there are.
    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.tenants.len()).unwrap_or(u16::MAX)
    }

    /// SMs of so many TPCs.
    pub(super) fn sms(&self, tpcs: u16) -> f64 {
        f64::from(tpcs) * f64::from(self.topology.sms_per_tpc)
    }

    /// The same as a count.
    pub(super) fn sms_count(&self, tpcs: u16) -> Sms {
        Sms(tpcs.saturating_mul(self.topology.sms_per_tpc))
    }

    /// A tenant's request on so many TPCs, undisturbed; none if nothing of it was profiled.
    pub(super) fn load(&self, tenant: usize, tpcs: u16) -> Option<&Load> {
        Some(self.tenants[tenant].request.as_ref()?.load(tpcs))
    }

    /// What a tenant does to the others while it works on `tpcs` TPCs.
    pub(super) fn pressure(&self, tenant: usize, tpcs: u16) -> Pressure {
        self.tenants[tenant].request.as_ref().map_or_else(|| self.contention.unknown(), |request| Pressure::of(request.load(tpcs.max(1))))
    }

    /// What all others do to a tenant that holds `tpcs` TPCs, if they work all the time and share the rest equally, each slowed down by this tenant and
    /// by the others. That this tenant is slowed down too, and disturbs them less, is left out: a request of BERT-large takes 1.50 times as long
    /// beside decoding, and is predicted to take 1.44.
    pub(super) fn neighbours(&self, tenant: usize, tpcs: u16) -> Neighbours {
        let others = self.count().saturating_sub(1);
        let each = (self.tpcs() - tpcs.min(self.tpcs())).checked_div(others).unwrap_or(0).max(1).min(self.tpcs());
        let all: Pressure =
            [self.together[usize::from(each)].without(self.pressure(tenant, each)), self.pressure(tenant, tpcs)].into_iter().sum();
        let mut neighbours = Neighbours { pressure: Pressure::default(), draw: Draw::default() };
        for at in (0..self.tenants.len()).filter(|&at| at != tenant) {
            let undisturbed = self.pressure(at, each);
            let request = self.tenants[at].request.as_ref();
            let times = request.map_or(1.0, |request| self.contention.slowdown(request.load(each), all.without(undisturbed)));
            neighbours.pressure = [neighbours.pressure, undisturbed.slowed(times)].into_iter().sum();
            if let Some(request) = request.filter(|_| self.power.is_some()) {
                let load = request.load(each);
                neighbours.draw = [neighbours.draw, self.draw(at, load, load.us * times)].into_iter().sum();
            }
        }
        neighbours
    }

    /// How much longer a tenant's requests take on `tpcs` TPCs beside the others; 1 if nothing of it was profiled.
    pub(super) fn slowdown(&self, tenant: usize, tpcs: u16) -> f64 {
        let Some(request) = &self.tenants[tenant].request else { return 1.0 };
        let (load, neighbours) = (request.load(tpcs), self.neighbours(tenant, tpcs));
        let slowdown = self.contention.slowdown(load, neighbours.pressure);
        let own = || self.draw(tenant, load, load.us * slowdown);
        slowdown * self.power.map_or(1.0, |power| times(load, power.clock([own(), neighbours.draw].into_iter().sum())))
    }

    /// The same at the full clock.
    pub(super) fn contended(&self, tenant: usize, tpcs: u16) -> f64 {
        let Some(request) = &self.tenants[tenant].request else { return 1.0 };
        self.contention.slowdown(request.load(tpcs), self.neighbours(tenant, tpcs).pressure)
    }

    /// What a tenant draws at the full clock whose request is this and takes `us` beside the others. Nothing while it is known to have no work.
    pub(super) fn draw(&self, tenant: usize, load: &Load, us: f64) -> Draw {
        let tenant = &self.tenants[tenant];
        if tenant.idle { Draw::default() } else { Draw::of(load, us, tenant.demand.rate) }
    }

    /// The clock at which all of `draws` fit, as a share of the full one; the full one where nobody knows what a tenant draws.
    pub(super) fn clock(&self, draws: impl Iterator<Item = Draw>) -> f64 {
        self.power.map_or(1.0, |power| power.clock(draws.sum()))
    }

    /// A request in one partition of `tpcs` TPCs beside the others, microseconds. None if nothing of it was profiled.
    pub(super) fn request_us(&self, tenant: usize, tpcs: u16) -> Option<f64> {
        let request = self.tenants[tenant].request.as_ref()?;
        Some(request.load(tpcs).us * self.slowdown(tenant, tpcs))
    }

    /// The same with its waiting for other requests, where the tenant's rate is known.
    pub(super) fn waited_us(&self, tenant: usize, tpcs: u16) -> Option<f64> {
        Some(with_waiting(self.request_us(tenant, tpcs)?, self.tenants[tenant].demand.rate))
    }
}

/// The power budget, if it is known what each tenant draws. Where more tenants than TPCs share them in turn, nothing is predicted of how long each waits.
fn budget(topology: &Topology, tenants: &[Tenant<'_>]) -> Option<Power> {
    if tenants.len() > usize::from(topology.all_tpcs().len()) {
        return None;
    }
    let boards = tenants.iter().map(|tenant| Some(tenant.request.as_ref()?.energies.as_ref()?.board));
    let least = |board: Board, other: Board| if other.limit_w - other.idle_w < board.limit_w - board.idle_w { other } else { board };
    boards.reduce(|one, other| Some(least(one?, other?))).flatten().map(|board| Power::new(topology, board))
}
