//! `slo`: latency tenants own the fewest SMs that keep their objective, throughput tenants share everything else and borrow what is
//! idle. Where there are only latency tenants, each also gets of the rest what makes it no slower than its objective allows.
//!
//! A plan is made in five steps. Each is a file, and explains its formula at its top:
//!
//! 1. `request`: a tenant's request on `n` SMs takes `L(n)`, the sum over its kernels of launches times measured latency. Kernels that were
//!    never profiled count for nothing; a tenant of which nothing was profiled counts for an equal share of the GPU.
//! 2. `contention`: beside others it takes `T(n) = L(n) * slowdown`, since disjoint SMs share L2 and DRAM. The others are taken
//!    to work all the time, on an equal share of the rest each. Where all of them together draw more than the board may, the clock falls, and the slowdown holds that too (`power`).
//! 3. `latency`: each latency tenant owns the least `n` with `T(n)` within its SLO times a margin, 0.9 by default. Where the rate of its requests is known, `T(n)`
//!    holds their queueing (`queue`), and the margin, which stands for queues too, is divided by 0.9: 1 by default. Without an SLO it owns the `n` that is worth its SM-time.
//! 4. `throughput`: the others divide what is left so that the product of their throughputs is greatest, within the bandwidth and the power there are, and
//!    overlap only if that is predicted to be better for all together.
//! 5. `placement` and `switches`: each kernel runs in one of few partitions of its tenant; neighbours in a request part only if that saves
//!    more than the hop costs.
//!
//! **Ownership and borrowing.** Owned sets are disjoint, except for windows, which throughput tenants own together. A latency tenant's TPCs are lent while it has no request: every throughput
//! tenant's grant holds them too, and is narrowed when the owner begins one. One that never pauses for long enough lends nothing. The guard: owners run at [`Priority::High`], whoever may
//! borrow at [`Priority::Normal`], so that a block that waits for a lent SM never goes before its owner's. Only launches that
//! poll the grant are sized for more than the tenant owns.
//!
//! **Planning again.** A [`Replanner`] says when, and with which [`Adjustments`].
//!
//! **Limits.** Predictions are averages of a busy tenant: no phases of a request, no bursts beyond those of a Poisson process. The margin stands for these, and the
//! replanner corrects it from misses. A tenant with a share of the GPU ([`Share`](crate::tenant::Share)), and those without one beside it, are each planned for as if their SMs were a GPU of their own:
//! its bandwidth is what so many SMs read alone, which is too much where tenants in the other regions read a lot and too little where they do not, its power the same share of the board's as of its SMs, and
//! nothing is predicted of what regions do to each other. Power counts where profiles hold the energy of each tenant's kernels (`power`), and what is lent counts in
//! what the board is forecast to draw, but has no price. The contention constants were measured on an H200. docs/decisions/0014 says what was weighed, and 0023 of power.

use std::collections::{BTreeMap, BTreeSet};

use crate::device::{Priority, Topology};
use crate::partition::TpcSet;
use crate::tenant::TenantId;

use super::division::contiguous;
use super::family::Family;
use super::{Draft, Policy, TenantDemand, TenantDraft};

mod ablation;
mod contention;
mod latency;
mod placement;
mod power;
mod queue;
mod replan;
mod request;
mod scene;
mod switches;
mod throughput;

pub use ablation::{Ablations, UnknownAblation};
pub(crate) use replan::CLOSE;
pub use replan::{Adjustments, Event, Observation, Replanner};

use placement::{Placed, Rooms, place};
use power::Draw;
use queue::with_waiting;
use scene::Scene;

/// The part of an SLO that a predicted latency may take, unless told otherwise: the rest is for queues, phases and the model's error. Where queues are predicted, from
/// the rate of requests, all margins are divided by it.
const MARGIN: f64 = 0.9;

/// What a launch in another partition than the one before loses, microseconds: 72 hops in a graph of BERT-base's forward pass, measured on an H200 at 2.1 to 2.2
/// each, the lost overlap of launches included (24 hops at 2.7 to 3.1).
const HOP_US: f64 = 2.2;

/// Latency tenants first, by their SLOs; throughput tenants share the rest and borrow what is idle.
///
/// ```
/// use smidgen_runtime::policy::{Ablations, Slo};
///
/// let without_borrowing = Slo::default().with_ablations(Ablations { no_borrow: true, ..Ablations::default() });
/// assert!(without_borrowing.ablations().no_borrow);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Slo {
    ablations: Ablations,
    adjustments: Adjustments,
}

/// What the plan is predicted to give one tenant while every other works and nothing is lent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// A request's latency, microseconds, the slowdown included. Where requests arrive at a known rate, the 99th percentile with their waiting for each other:
    /// infinite if more arrive than are served.
    pub latency_us: f64,
    /// How many times longer requests take than on the same SMs alone: beside others on other SMs, among those that overlap on these, and at the clock that the board's power
    /// limit leaves.
    pub slowdown: f64,
    /// What `latency_us` should be at most: the SLO times the margin, or at a known rate times the margin divided by 0.9.
    pub limit_us: Option<f64>,
}

/// What the board is predicted to draw on average while throughput tenants work all the time and latency tenants for the requests that come: in between others
/// work on what these lend. Of tenants with a share of the GPU, or beside one: of what share of the board's power their SMs have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PowerForecast {
    /// Watts, idle ones included: at most the limit.
    pub board_w: f64,
    /// What it would be at the full clock.
    pub unlimited_w: f64,
    /// The board's limit, watts.
    pub limit_w: f64,
    /// The clock of the SMs as a share of the full one: below 1 where the limit binds.
    pub clock: f64,
}

impl Slo {
    /// Without some of its parts.
    #[must_use]
    pub fn with_ablations(self, ablations: Ablations) -> Self {
        Self { ablations, ..self }
    }

    /// With corrections from what tenants were seen to do.
    #[must_use]
    pub fn with_adjustments(self, adjustments: Adjustments) -> Self {
        Self { adjustments, ..self }
    }

    /// What it does without.
    pub const fn ablations(&self) -> Ablations {
        self.ablations
    }

    /// What [`plan`](Policy::plan) is predicted to give each tenant. A tenant of which nothing was profiled is left out.
    pub fn forecast(&self, topology: &Topology, tenants: &[TenantDemand]) -> BTreeMap<TenantId, Forecast> {
        let decided = self.decide(topology, tenants).into_iter();
        decided.filter_map(|decided| Some((decided.id, decided.forecast?))).collect()
    }

    fn decide(&self, topology: &Topology, tenants: &[TenantDemand]) -> Vec<Decided> {
        let scene = Scene::new(topology, tenants, &self.ablations, &self.adjustments);
        if scene.tenants.is_empty() { Vec::new() } else { self.decide_in(&scene).1 }
    }

    /// Of a scene with tenants.
    fn decide_in(&self, scene: &Scene<'_>) -> (Parts, Vec<Decided>) {
        let mut parts = if scene.tenants.len() > usize::from(scene.tpcs()) { Parts::in_turn(scene) } else { Parts::divided(scene) };
        if self.ablations.no_borrow {
            parts.windows.clone_from(&parts.owned);
        }
        let us_per_uj = us_per_uj(scene, &parts);
        let decided = (0..scene.tenants.len()).map(|at| self.decide_for(scene, at, &parts, us_per_uj)).collect();
        (parts, decided)
    }

    fn decide_for(&self, scene: &Scene<'_>, at: usize, parts: &Parts, us_per_uj: f64) -> Decided {
        let rooms = self.rooms(scene, at, parts, us_per_uj);
        let Placed { draft, load } = place(scene, at, &rooms);
        let tenant = &scene.tenants[at];
        let overlap = overlap(scene, at, parts);
        let slowdown = scene.slowdown(at, rooms.owned.len()) * overlap;
        let latency_us = |us: f64| with_waiting(us * slowdown, tenant.demand.rate);
        let limit_us = tenant.limit.map(|limit| limit.planned_us);
        let forecast = load.map(|load| Forecast { latency_us: latency_us(load.us), slowdown, limit_us });
        let is_ample = tenant.is_latency() && parts.owned[at].len() > parts.needs[at];
        let known = load.filter(|_| scene.power.is_some());
        let draw = known.map(|load| scene.draw(at, &load, load.us * scene.contended(at, rooms.owned.len()) * overlap));
        let busy = tenant.demand.rate.zip(load).map_or(1.0, |(rate, load)| (rate * load.us * slowdown * 1e-6).min(1.0));
        Decided { id: tenant.demand.id, draft, forecast, is_ample, draw: draw.unwrap_or_default(), busy }
    }

    fn rooms(&self, scene: &Scene<'_>, at: usize, parts: &Parts, us_per_uj: f64) -> Rooms {
        let priority = if scene.tenants[at].is_latency() || self.ablations.no_guard { Priority::High } else { Priority::Normal };
        let alone = Rooms::alone(parts.owned[at], priority, self.ablations.no_switch_budget);
        if scene.tenants[at].is_latency() {
            return Rooms { need: parts.needs[at].min(alone.need), ..alone };
        }
        let alone = Rooms { us_per_uj, ..alone };
        if self.ablations.no_borrow {
            return alone;
        }
        let members = scene.tenants.iter().filter(|tenant| !tenant.is_latency()).count();
        let sharers = u16::try_from(members).unwrap_or(u16::MAX);
        let rivals = if parts.windows[at] == parts.owned[at] { 0.0 } else { throughput::rivals(at, &parts.windows) };
        Rooms { window: parts.windows[at], lent: parts.lent, sharers, rivals, ..alone }
    }
}

impl Policy for Slo {
    fn name(&self) -> &'static str {
        "slo"
    }

    fn needs_profiles(&self) -> bool {
        !self.ablations.no_profile
    }

    fn adapts(&self) -> bool {
        true
    }

    fn adjust(&mut self, adjustments: Adjustments) {
        self.adjustments = adjustments;
    }

    fn slowdowns(&self, topology: &Topology, tenants: &[TenantDemand]) -> BTreeMap<TenantId, f64> {
        self.forecast(topology, tenants).into_iter().map(|(id, forecast)| (id, forecast.slowdown)).collect()
    }

    fn ample(&self, topology: &Topology, tenants: &[TenantDemand]) -> BTreeSet<TenantId> {
        self.decide(topology, tenants).into_iter().filter(|decided| decided.is_ample).map(|decided| decided.id).collect()
    }

    /// Two tenants take edges, whatever their sizes. A third one is between them, beside a latency tenant that has less than half of the GPU for the most part.
    fn family(&self, topology: &Topology) -> Vec<TpcSet> {
        let (all, half) = (topology.all_tpcs().len(), topology.all_tpcs().len() / 2);
        let family = Family::new(topology).equal_parts(2..=4).edges().equal_parts(5..=8);
        let likely = family.inner_halves(1..half).inner_single_tpcs(1..half);
        likely.inner_halves(half..all).inner_single_tpcs(half..all).sets()
    }

    fn power(&self, topology: &Topology, tenants: &[TenantDemand]) -> Option<PowerForecast> {
        let scene = Scene::new(topology, tenants, &self.ablations, &self.adjustments);
        let power = scene.power?;
        let (parts, mut decided) = self.decide_in(&scene);
        if !self.ablations.no_borrow {
            add_loans(&scene, &parts, &mut decided);
        }
        let draw: Draw = decided.iter().map(|decided| decided.draw).sum();
        let [limit_w, unlimited_w] = [power.budget_w, draw.watts].map(|watts| power.board.idle_w + watts);
        Some(PowerForecast { board_w: unlimited_w.min(limit_w), unlimited_w, limit_w, clock: power.clock(draw) })
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        self.decide(topology, tenants).into_iter().map(|decided| (decided.id, decided.draft)).collect()
    }
}

/// How many times longer than alone on its window a tenant's request takes while the others use theirs.
fn overlap(scene: &Scene<'_>, at: usize, parts: &Parts) -> f64 {
    scene.tenants[at].request.as_ref().map_or(1.0, |request| throughput::overlap(scene, request, at, &parts.windows))
}

/// What a microjoule of a throughput tenant costs in its time, microseconds, once these parts draw more than they may.
fn us_per_uj(scene: &Scene<'_>, parts: &Parts) -> f64 {
    let Some(power) = scene.power else { return 0.0 };
    let draw = |at: usize| {
        let tpcs = parts.windows[at].len();
        let load = scene.load(at, tpcs)?;
        Some(scene.draw(at, load, load.us * scene.contended(at, parts.owned[at].len()) * overlap(scene, at, parts)))
    };
    let draw: Draw = (0..scene.tenants.len()).filter_map(draw).sum();
    let throughput = (0..scene.tenants.len()).filter(|&at| !scene.tenants[at].is_latency() && !scene.tenants[at].idle);
    let memories = throughput.filter_map(|at| Some(scene.load(at, parts.windows[at].len())?.memory()));
    power.price(draw, memories) / draw.watts.max(1.0)
}

/// Lets throughput tenants draw for the SMs that latency tenants lend while these rest, shared out evenly.
fn add_loans(scene: &Scene<'_>, parts: &Parts, decided: &mut [Decided]) {
    let borrowers: Vec<usize> = (0..scene.tenants.len()).filter(|&at| !scene.tenants[at].is_latency() && !scene.tenants[at].idle).collect();
    let lent = |at: usize| f64::from((parts.owned[at] & parts.lent).len());
    let rested: f64 = (0..decided.len()).map(|at| lent(at) * (1.0 - decided[at].busy)).sum();
    let (all, sharers) = (f64::from(parts.lent.len()), u16::try_from(borrowers.len()).unwrap_or(u16::MAX));
    if sharers == 0 || rested == 0.0 {
        return;
    }
    for at in borrowers {
        let tpcs = parts.windows[at].len() + parts.lent.len() / sharers;
        let Some(load) = scene.load(at, tpcs) else { continue };
        let on_loan = scene.draw(at, load, load.us * overlap(scene, at, parts));
        decided[at].draw = decided[at].draw.mixed(on_loan, rested / all);
    }
}

struct Decided {
    id: TenantId,
    draft: TenantDraft,
    forecast: Option<Forecast>,
    /// Whether it is a latency tenant that owns more than it needs.
    is_ample: bool,
    /// At the full clock, if it is known.
    draw: Draw,
    /// The share of the time in which it works on requests.
    busy: f64,
}

/// Who owns what, by tenant.
struct Parts {
    owned: Vec<TpcSet>,
    /// What each uses besides what is lent: what it owns, or more where throughput tenants overlap.
    windows: Vec<TpcSet>,
    /// The least TPCs that do, for latency tenants.
    needs: Vec<u16>,
    /// All that latency tenants own who pause now and then.
    lent: TpcSet,
}

impl Parts {
    /// Latency tenants' parts first, then throughput tenants', each in the order of their numbers; but of two of the latter the smaller part first, as
    /// it is among the sets that are made in advance.
    fn divided(scene: &Scene<'_>) -> Self {
        let all = 0..scene.tenants.len();
        let (latency, throughput): (Vec<usize>, Vec<usize>) = all.clone().partition(|&at| scene.tenants[at].is_latency());
        let needs: Vec<u16> = all.map(|at| if scene.tenants[at].is_latency() { latency::need(scene, at) } else { 1 }).collect();
        let mut sizes = latency::sizes(scene, &needs);
        let shared = scene.tpcs() - sizes.iter().sum::<u16>();
        if !throughput.is_empty() {
            let parts = throughput::sizes(scene, &throughput, &sizes, shared);
            throughput.iter().zip(parts).for_each(|(&at, part)| sizes[at] = part);
        }
        let mut ordered = throughput.clone();
        if let [first, second] = ordered[..]
            && sizes[second] < sizes[first]
        {
            ordered.reverse();
        }
        let order: Vec<usize> = latency.iter().chain(&ordered).copied().collect();
        let mut owned = vec![TpcSet::EMPTY; sizes.len()];
        let sorted: Vec<u16> = order.iter().map(|&at| sizes[at]).collect();
        order.iter().zip(contiguous(scene.topology, &sorted)).for_each(|(&at, part)| owned[at] = part);
        let mut windows = owned.clone();
        let parts: Vec<TpcSet> = throughput.iter().map(|&at| owned[at]).collect();
        throughput.iter().zip(throughput::windows(scene, &throughput, &parts, &sizes)).for_each(|(&at, window)| windows[at] = window);
        let lent = latency.iter().filter(|&&at| scene.tenants[at].lends).fold(TpcSet::EMPTY, |lent, &at| lent | owned[at]);
        Self { owned, windows, needs, lent }
    }

    /// More tenants than TPCs: one TPC each, in turn. Nothing is lent, since every TPC has several owners.
    fn in_turn(scene: &Scene<'_>) -> Self {
        let sizes = vec![1; scene.tenants.len()];
        let owned = contiguous(scene.topology, &sizes);
        Self { windows: owned.clone(), owned, needs: sizes, lent: TpcSet::EMPTY }
    }
}
