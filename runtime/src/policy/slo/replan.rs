//! When to plan again, and with what corrections: a small state machine beside the policy, never on the launch path.
//!
//! Plans are computed from profiles, and tenants then show what profiles do not: queues, phases, idleness. A [`Replanner`] is told who comes
//! and goes, and a few times a second ([`Window`](Event::Window)) how many requests each tenant finished and how many missed their SLO. It
//! answers with the [`Adjustments`] to plan with, or with nothing.
//!
//! | what is seen of a tenant | what changes | when |
//! |---|---|---|
//! | it is admitted or dismissed | everything | at once |
//! | clearly more than 1% of its requests miss | its margin goes one step down: its part is sized for less than its SLO | after 2 windows in succession |
//! | none misses | its margin goes one step up, towards the default | after `calm` windows in succession, at first 30 |
//! | it finishes nothing, and has nothing to do | a throughput tenant's part shrinks to one TPC | after `patience` windows in succession, at first 5 |
//! | it works again | it gets its part back | at once |
//!
//! **Hysteresis.** A step up that is followed by a step down doubles `calm`, and idleness that ends doubles `patience`, each up to 1024 windows: a
//! tenant that swings changes the plan ever more rarely, a logarithm of the number of windows at first and at most about twice in
//! 1024 windows in the end. After each change two windows are not judged: sessions capture their graphs anew, and requests wait for that. Windows with few requests are added up until they hold 100, so that one slow request changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::tenant::{Class, TenantId};

use super::MARGIN;

/// Margins, from the default down, first in small steps: where a request's time hardly depends on its SMs, a small step costs its neighbours many. Below
/// the last one a tenant cannot be helped by SMs.
const MARGINS: [f64; 10] = [MARGIN, 0.87, 0.84, 0.8, 0.75, 0.7, 0.6, 0.5, 0.42, 0.35];
/// Requests that a verdict on misses needs.
const ENOUGH_REQUESTS: u64 = 100;
/// One miss in so many requests is tolerated: the SLO is one of the 99th percentile.
const TOLERATED: f64 = 100.0;
const BAD_WINDOWS: u32 = 2;
const CALM_WINDOWS: u32 = 30;
const IDLE_WINDOWS: u32 = 5;
/// Windows after a change in which latencies say nothing of the new plan yet.
const SETTLING_WINDOWS: u32 = 2;
const MOST_WINDOWS: u32 = 1024;

/// What a plan is made with besides topology, tenants and profiles.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Adjustments {
    /// The part of its SLO that a tenant's predicted latency may take, where that is not the default.
    pub margins: BTreeMap<TenantId, f64>,
    /// Throughput tenants without work.
    pub idle: BTreeSet<TenantId>,
}

/// What one tenant did in one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Which tenant.
    pub tenant: TenantId,
    /// Requests that it finished.
    pub requests: u64,
    /// How many of them took longer than its SLO.
    pub missed: u64,
    /// Whether it has unfinished ones: then it is not idle, however long they take.
    pub working: bool,
}

/// What a [`Replanner`] is told.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A tenant came, or showed other kernels than before.
    Admitted(TenantId, Class),
    /// A tenant went.
    Dismissed(TenantId),
    /// A window of time ended: what each tenant did in it. A tenant that is left out did nothing.
    Window(&'a [Observation]),
}

/// Decides when to plan again. Equal events give equal decisions.
#[derive(Debug, Clone, Default)]
pub struct Replanner {
    tenants: BTreeMap<TenantId, Watched>,
    /// Windows that are not judged any more.
    settling: u32,
}

#[derive(Debug, Clone)]
struct Watched {
    class: Class,
    /// Of [`MARGINS`].
    step: usize,
    /// Requests and misses that no verdict was given on yet.
    requests: u64,
    missed: u64,
    bad: u32,
    good: u32,
    calm: u32,
    /// Whether the last change of the margin was a step up.
    loosened: bool,
    quiet: u32,
    patience: u32,
    idle: bool,
}

impl Replanner {
    /// Takes in `event`. With the adjustments to plan with if it is time to plan again.
    pub fn on(&mut self, event: Event<'_>) -> Option<Adjustments> {
        let changed = match event {
            Event::Admitted(tenant, class) => {
                self.tenants.insert(tenant, Watched::new(class));
                true
            }
            Event::Dismissed(tenant) => self.tenants.remove(&tenant).is_some(),
            Event::Window(observed) => self.window(observed),
        };
        if changed {
            self.settling = SETTLING_WINDOWS;
        }
        changed.then(|| self.adjustments())
    }

    /// What the next plan is to be made with.
    pub fn adjustments(&self) -> Adjustments {
        let tightened = self.tenants.iter().filter(|(_, watched)| watched.step > 0);
        let idle = self.tenants.iter().filter(|(_, watched)| watched.idle);
        Adjustments {
            margins: tightened.map(|(&tenant, watched)| (tenant, MARGINS[watched.step])).collect(),
            idle: idle.map(|(&tenant, _)| tenant).collect(),
        }
    }

    fn window(&mut self, observed: &[Observation]) -> bool {
        let judged = self.settling == 0;
        self.settling = self.settling.saturating_sub(1);
        let mut changed = false;
        for (tenant, watched) in &mut self.tenants {
            let of_tenant = observed.iter().filter(|observation| observation.tenant == *tenant);
            let sum = |(requests, missed, working): (u64, u64, bool), one: &Observation| {
                (requests.saturating_add(one.requests), missed.saturating_add(one.missed), working || one.working)
            };
            let (requests, missed, working) = of_tenant.fold((0, 0, false), sum);
            changed |= watched.work(requests > 0 || working);
            changed |= judged && watched.misses(requests, missed);
        }
        changed
    }
}

impl Watched {
    const fn new(class: Class) -> Self {
        Self {
            class,
            step: 0,
            requests: 0,
            missed: 0,
            bad: 0,
            good: 0,
            calm: CALM_WINDOWS,
            loosened: false,
            quiet: 0,
            patience: IDLE_WINDOWS,
            idle: false,
        }
    }

    /// Whether the tenant became idle or ceased to be.
    fn work(&mut self, works: bool) -> bool {
        // What a latency tenant owns is lent while it idles, with no other plan.
        if self.class == Class::Latency {
            return false;
        }
        let was_idle = self.idle;
        self.quiet = if works { 0 } else { self.quiet.saturating_add(1) };
        self.idle = if was_idle { !works } else { self.quiet >= self.patience };
        if was_idle && !self.idle {
            self.patience = doubled(self.patience);
        }
        was_idle != self.idle
    }

    /// Whether the margin changed.
    fn misses(&mut self, requests: u64, missed: u64) -> bool {
        self.requests = self.requests.saturating_add(requests);
        self.missed = self.missed.saturating_add(missed);
        if self.requests < ENOUGH_REQUESTS {
            return false;
        }
        let bad = self.missed as f64 > certainly_more(self.requests as f64 / TOLERATED);
        let good = self.missed == 0;
        (self.requests, self.missed) = (0, 0);
        self.bad = if bad { self.bad + 1 } else { 0 };
        self.good = if good { self.good.saturating_add(1) } else { 0 };
        if self.bad >= BAD_WINDOWS {
            return self.tighten();
        }
        self.good >= self.calm && self.loosen()
    }

    fn tighten(&mut self) -> bool {
        self.bad = 0;
        if self.step + 1 == MARGINS.len() {
            return false;
        }
        if self.loosened {
            self.calm = doubled(self.calm);
        }
        self.loosened = false;
        self.step += 1;
        true
    }

    fn loosen(&mut self) -> bool {
        self.good = 0;
        if self.step == 0 {
            return false;
        }
        self.loosened = true;
        self.step -= 1;
        true
    }
}

/// How many of `expected` misses are too many to be chance: two standard deviations more, of counts that are Poisson's.
fn certainly_more(expected: f64) -> f64 {
    expected + 2.0 * expected.sqrt()
}

fn doubled(windows: u32) -> u32 {
    windows.saturating_mul(2).min(MOST_WINDOWS)
}
