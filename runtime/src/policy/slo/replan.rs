//! When to plan again, and with what corrections: a small state machine beside the policy, never on the launch path.
//!
//! Plans are computed from profiles, and tenants then show what profiles do not: queues, phases, idleness. A [`Replanner`] is told who comes
//! and goes, what else plans are made from has changed ([`Resized`](Event::Resized), [`Changed`](Event::Changed)), when a plan comes into force
//! ([`Planned`](Event::Planned)), a few times a second ([`Window`](Event::Window)) how many requests each tenant finished
//! and how many missed their SLO, and that a plan which this called for cannot be made ([`Unplannable`](Event::Unplannable)). It answers with the
//! [`Adjustments`] to plan with, or with nothing.
//!
//! | what is seen of a tenant | what changes | when |
//! |---|---|---|
//! | it is admitted or dismissed | everything | at once |
//! | somebody comes, goes or is changed in any way | margins go back by the steps up that no plan followed | at once |
//! | it has another share | its margin goes back by all steps that no plan followed | at once |
//! | clearly more than 1% of its requests miss | its margin goes one step down: its part grows | after 2 verdicts in succession, then 4, 8, ...; at once where the last step was up |
//! | most of its requests miss in two windows in succession after a step up, before the first verdict on it and before any other plan | its margin goes that step down | at once |
//! | fewer than 1% come close to missing | its margin goes one step up: its part shrinks | after `calm` verdicts in succession of which none was bad, at first 6 |
//! | it finishes nothing, and has nothing to do | a throughput tenant's part shrinks to one TPC | after `patience` windows in succession, at first 5 |
//! | it works again | it gets its part back | at once |
//! | it pauses too briefly to lend | nobody's launches are sized for a latency tenant's SMs | after `patience` windows in succession, at first 5 |
//! | it pauses for long enough | they are again | at once |
//! | no plan can be made with what a window changed of it | its margin goes that step back, or it is not idle or restless yet | at once |
//!
//! Only latency tenants with an SLO have a margin. Of a paused tenant nothing is seen.
//!
//! Where no plan can be made, what else the window taught stays learned, and who works again or pauses for long enough is planned for as such from then on. Of
//! several tenants whose changes are taken back the first one's waits as if it had come and ended, and the others' are due with their next verdict or window,
//! without it: one that can never be planned for keeps nobody else's waiting.
//!
//! A verdict is on 200 requests or more: windows with fewer are added up, so that one slow request changes nothing. Close to missing is what takes more than
//! [`CLOSE`] of the objective: a step up must not by itself make a tenant miss that kept its objective. So it must be seen to move SMs:
//! - Who owns more than its margin asks for, since nobody else could use it, takes no step up. How it does on those SMs says nothing of fewer.
//! - A step moves nothing, and no plan follows it, where whole TPCs or a step of a curve leave its part as it is. Several in succession may be needed to move one TPC, so
//!   they add up, but only while nothing else changes: another plan would put all of them in force at once, and nobody has tried them. A step down
//!   begins where the last plan left the margin, since the steps up after that took nothing away. Steps down that moved nothing stay, for misses were seen and what is
//!   too much comes back, unless a share was to blame.
//!
//! **Hysteresis.** A step up that is followed by a step down, or taken back, doubles `calm`, and idleness or restlessness that ends doubles `patience`, each up to 1024
//! windows: a tenant that swings changes the plan ever more rarely, a logarithm of the number of windows at first and at most about twice in
//! 1024 windows in the end. Each step down that follows another waits for twice as many verdicts, since a tenant that the last steps did not help is hardly
//! helped by the next, and each plan costs its neighbours new graphs. After each plan that differs from the last four windows are not judged: sessions capture their graphs anew,
//! requests wait for that, and those that wait make others wait. A step that moves no SM silences nobody. But a step up after which most requests miss for longer than a capture takes has failed, as where
//! kernels are much slower on a few SMs less: waiting for a verdict would have a closed loop miss for most of a second.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::tenant::{Class, TenantId};

use super::MARGIN;

/// Margins from the loosest to the tightest, the default among them. Near it in small steps: where a request's time hardly depends on its SMs, a small step
/// costs its neighbours many. Above the first one the forecast is wrong beyond repair; below the last one a tenant cannot be helped by SMs.
const MARGINS: [f64; 17] = [1.3, 1.22, 1.15, 1.09, 1.04, 0.99, 0.945, MARGIN, 0.87, 0.84, 0.8, 0.75, 0.7, 0.6, 0.5, 0.42, 0.35];
/// Where in [`MARGINS`] the default is.
const DEFAULT_STEP: usize = 7;
/// The part of its objective beyond which a request has nearly missed it. A step up makes requests at most 6% longer.
pub(crate) const CLOSE: f64 = 0.9;
/// Requests that a verdict on misses needs.
const ENOUGH_REQUESTS: u64 = 200;
/// One miss in so many requests is tolerated: the SLO is one of the 99th percentile.
const TOLERATED: f64 = 100.0;
const BAD_VERDICTS: u32 = 2;
const CALM_VERDICTS: u32 = 6;
const PATIENT_WINDOWS: u32 = 5;
/// Windows in succession, of so many requests or more, that tell a failed step up.
const FAILED_WINDOWS: u32 = 2;
const FEWEST_REQUESTS: u64 = 20;
/// Windows after a change in which latencies say nothing of the new plan yet.
const SETTLING_WINDOWS: u32 = 4;
const MOST_WINDOWS: u32 = 1024;

/// What a plan is made with besides topology, tenants and profiles.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Adjustments {
    /// The part of its SLO that a tenant's predicted latency may take, where that is not the default, 0.9. For a tenant whose rate is known it is divided by 0.9, as the
    /// default is: its predicted latency holds the queues that the rest of the SLO is left for otherwise.
    pub margins: BTreeMap<TenantId, f64>,
    /// Throughput tenants without work.
    pub idle: BTreeSet<TenantId>,
    /// Latency tenants that never pause for long enough to lend anything. A launch that is sized for lent SMs which never come sends blocks there all the same,
    /// in between their owner's: a decoding tenant's p99 beside a prefill was 1.74 times that of alone with such launches, 1.39 times without.
    pub restless: BTreeSet<TenantId>,
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
    /// How many of them took longer than nine tenths of it, those that missed included.
    pub close: u64,
    /// Whether it has unfinished ones: then it is not idle, however long they take.
    pub working: bool,
    /// Whether it was at rest for long enough to lend what it owns.
    pub rested: bool,
    /// Whether it is paused. What else was seen of it counts for nothing then.
    pub paused: bool,
    /// Whether it owns more than its margin asks for, because nobody else could use it ([`Policy::ample`](crate::policy::Policy::ample)): that it keeps its objective
    /// then does not say that it would with less.
    pub ample: bool,
}

/// What a [`Replanner`] is told.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A tenant came, with this class and objective, or is from now on as good as another: it has another class or objective, or showed other kernels.
    Admitted(TenantId, Class, Option<Duration>),
    /// A tenant went.
    Dismissed(TenantId),
    /// A tenant has another share of the GPU. What was learned of it holds on, as far as plans followed it.
    Resized(TenantId),
    /// Something else has changed that plans are made from: somebody's rate, who is paused, how long kernels take, the policy.
    Changed,
    /// A plan came into force that differs from the one before, for whatever reason.
    Planned,
    /// A window of time ended: what each tenant did in it. A tenant that is left out did nothing.
    Window(&'a [Observation]),
    /// No plan can be made with the adjustments that the last window led to. If some of them can be taken back, it is time to plan without those.
    Unplannable,
}

/// Decides when to plan again. Equal events give equal decisions.
#[derive(Debug, Clone, Default)]
pub struct Replanner {
    tenants: BTreeMap<TenantId, Watched>,
    /// Windows that are not judged any more.
    settling: u32,
    /// The tenants whose margins moved in the last window, or who became idle or restless, as they were before; none once anything else has happened.
    before: BTreeMap<TenantId, Watched>,
}

#[derive(Debug, Clone)]
struct Watched {
    class: Class,
    /// Whether it is a latency tenant with an SLO.
    is_judged: bool,
    /// Of [`MARGINS`].
    step: usize,
    /// The last step that a plan followed. Those beyond it have moved nothing.
    tried: usize,
    /// What no verdict was given on yet.
    pending: Tally,
    /// What the verdicts were given on since the last bad one, or the last step.
    spell: Tally,
    /// Verdicts in succession.
    bad: u32,
    good: u32,
    /// Bad verdicts in succession that a step down takes.
    insistence: u32,
    /// Verdicts without a bad one that a step up takes.
    calm: u32,
    /// Whether the last change of the margin was a step up.
    loosened: bool,
    trial: Trial,
    /// Windows of that trial in succession in which most requests missed.
    failed: u32,
    /// Windows since a throughput tenant worked, or since a latency tenant rested.
    waited: u32,
    patience: u32,
    /// Whether that was too long: the one is idle, the other restless.
    overdue: bool,
}

/// Whether a step up is yet to prove itself. A step that no plan follows moved nothing, and has nothing to prove.
///
/// | state   | leaves by |
/// |---------|-----------|
/// | none    | a step up, to `Due` |
/// | due     | a plan, to `On`; the next window, to `None` |
/// | on      | the first verdict, the next plan, or a step, to `None` |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    None,
    Due,
    On,
}

/// Requests, and how they kept their objective.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    requests: u64,
    missed: u64,
    close: u64,
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            missed: self.missed.saturating_add(other.missed),
            close: self.close.saturating_add(other.close),
        }
    }
}

impl Replanner {
    /// Takes in `event`. With the adjustments to plan with if it is time to plan again.
    pub fn on(&mut self, event: Event<'_>) -> Option<Adjustments> {
        let before = std::mem::take(&mut self.before);
        let changed = match event {
            Event::Admitted(tenant, class, slo) => {
                self.tenants.insert(tenant, Watched::new(class, slo.is_some()));
                self.tighten_untried()
            }
            Event::Dismissed(tenant) => self.tenants.remove(&tenant).is_some() && self.tighten_untried(),
            Event::Resized(tenant) => {
                self.tenants.get_mut(&tenant).into_iter().for_each(Watched::loosen_untried);
                self.tighten_untried()
            }
            Event::Changed => self.tighten_untried(),
            Event::Planned => {
                self.settling = SETTLING_WINDOWS;
                for (tenant, watched) in &mut self.tenants {
                    watched.planned(before.get(tenant));
                }
                false
            }
            Event::Window(observed) => self.window(observed),
            Event::Unplannable => self.take_back(&before),
        };
        changed.then(|| self.adjustments())
    }

    /// A change other than of margins is about to be planned for.
    fn tighten_untried(&mut self) -> bool {
        self.tenants.values_mut().for_each(Watched::tighten_untried);
        true
    }

    /// What [`on`](Replanner::on) may answer one day, as far as one tenant differs from the present: each tenant that has a margin at each of them, the nearest first, and
    /// each tenant with or without work or rest.
    pub fn foreseen(&self) -> Vec<Adjustments> {
        let mut steps: Vec<usize> = (0..MARGINS.len()).collect();
        steps.sort_by_key(|step| step.abs_diff(DEFAULT_STEP));
        let judged =
            |step| self.tenants.iter().filter(move |(_, watched)| watched.is_judged && watched.step != step).map(|(&tenant, _)| tenant);
        let but_for = |tenant, change: &dyn Fn(&mut Watched)| {
            let mut then = self.clone();
            then.tenants.get_mut(&tenant).into_iter().for_each(change);
            then.adjustments()
        };
        let margins = steps.iter().flat_map(|&step| judged(step).map(move |tenant| (tenant, step)));
        let margins = margins.map(|(tenant, step)| but_for(tenant, &|watched| watched.step = step));
        let overdue = self.tenants.keys().map(|&tenant| but_for(tenant, &|watched| watched.overdue = !watched.overdue));
        margins.chain(overdue).collect()
    }

    /// What the next plan is to be made with.
    pub fn adjustments(&self) -> Adjustments {
        let moved = self.tenants.iter().filter(|(_, watched)| watched.step != DEFAULT_STEP);
        let overdue = |class| {
            let of_class = self.tenants.iter().filter(move |(_, watched)| watched.overdue && watched.class == class);
            of_class.map(|(&tenant, _)| tenant).collect()
        };
        Adjustments {
            margins: moved.map(|(&tenant, watched)| (tenant, MARGINS[watched.step])).collect(),
            idle: overdue(Class::Throughput),
            restless: overdue(Class::Latency),
        }
    }

    fn window(&mut self, observed: &[Observation]) -> bool {
        let judged = self.settling == 0;
        self.settling = self.settling.saturating_sub(1);
        let mut changed = false;
        for (tenant, watched) in &mut self.tenants {
            let of_tenant = || observed.iter().filter(|observation| observation.tenant == *tenant);
            watched.trial = if watched.trial == Trial::Due { Trial::None } else { watched.trial };
            let before = watched.clone();
            if of_tenant().any(|observation| observation.paused) {
                continue;
            }
            let sum = |sum: Tally, one: &Observation| {
                // Of what would come close to missing on what it needs, nothing is known.
                let close = if one.ample { one.requests } else { one.close };
                sum.plus(Tally { requests: one.requests, missed: one.missed, close })
            };
            let did = of_tenant().fold(Tally::default(), sum);
            changed |= watched.wait(match watched.class {
                Class::Throughput => did.requests > 0 || of_tenant().any(|observation| observation.working),
                // Who does nothing at all rests.
                Class::Latency => of_tenant().all(|observation| observation.rested),
            });
            changed |= watched.is_judged && (judged && watched.judge(did) || watched.judge_step_up(did));
            if watched.step != before.step || (watched.overdue && !before.overdue) {
                self.before.insert(*tenant, before);
            }
        }
        changed
    }

    /// Nobody knows whose change it was that cannot be planned for. One tenant's waits, so that tenants whose changes are due together are not from then on.
    fn take_back(&mut self, before: &BTreeMap<TenantId, Watched>) -> bool {
        for (nth, (tenant, before)) in before.iter().enumerate() {
            if let Some(watched) = self.tenants.get_mut(tenant) {
                watched.take_back(before, nth == 0);
            }
        }
        !before.is_empty()
    }
}

impl Watched {
    fn new(class: Class, has_slo: bool) -> Self {
        Self {
            class,
            is_judged: class == Class::Latency && has_slo,
            step: DEFAULT_STEP,
            tried: DEFAULT_STEP,
            pending: Tally::default(),
            spell: Tally::default(),
            bad: 0,
            good: 0,
            insistence: BAD_VERDICTS,
            calm: CALM_VERDICTS,
            loosened: false,
            trial: Trial::None,
            failed: 0,
            waited: 0,
            patience: PATIENT_WINDOWS,
            overdue: false,
        }
    }

    /// Undoes a step, and idleness or restlessness that was found. That then `waits`, as if it had come and ended, or is due with the next verdict or window.
    fn take_back(&mut self, before: &Self, waits: bool) {
        if self.overdue && !before.overdue {
            (self.overdue, self.waited) = (false, if waits { 0 } else { before.waited });
            self.patience = if waits { doubled(self.patience) } else { self.patience };
        }
        if !waits && self.step != before.step {
            let Self { waited, patience, overdue, .. } = *self;
            *self = Self { waited, patience, overdue, ..before.clone() };
        }
        // A step down waits already: for more verdicts than the last one, and not at once for having followed a step up.
        if self.step < before.step {
            (self.loosened, self.trial) = (before.loosened, Trial::None);
            self.calm = doubled(self.calm);
        }
        self.step = before.step;
    }

    /// Work or rest, whichever is waited for, `came` or not. Whether the tenant became overdue or ceased to be.
    fn wait(&mut self, came: bool) -> bool {
        let was_overdue = self.overdue;
        self.waited = if came { 0 } else { self.waited.saturating_add(1) };
        self.overdue = if was_overdue { !came } else { self.waited >= self.patience };
        if was_overdue && !self.overdue {
            self.patience = doubled(self.patience);
        }
        was_overdue != self.overdue
    }

    /// A plan came into force, for a step of its own or for another reason. `before` is what it was in the last window, if that changed it.
    fn planned(&mut self, before: Option<&Self>) {
        if before.is_some_and(|before| before.step != self.step) {
            self.tried = self.step;
        }
        self.trial = if self.trial == Trial::Due { Trial::On } else { Trial::None };
        self.failed = 0;
    }

    /// Takes back steps up that moved nothing.
    fn tighten_untried(&mut self) {
        if self.step < self.tried {
            (self.step, self.loosened, self.trial) = (self.tried, false, Trial::None);
        }
    }

    /// Takes back steps down that moved nothing.
    fn loosen_untried(&mut self) {
        if self.step > self.tried {
            (self.step, self.insistence) = (self.tried, BAD_VERDICTS);
        }
    }

    /// Whether the margin changed.
    fn judge(&mut self, did: Tally) -> bool {
        self.pending = self.pending.plus(did);
        if self.pending.requests < ENOUGH_REQUESTS {
            return false;
        }
        let judged = std::mem::take(&mut self.pending);
        self.trial = Trial::None;
        if judged.missed as f64 > certainly_more(judged.requests as f64 / TOLERATED) {
            (self.good, self.spell) = (0, Tally::default());
            self.bad += 1;
            return (self.loosened || self.bad >= self.insistence) && self.tighten();
        }
        self.bad = 0;
        self.good = self.good.saturating_add(1);
        self.spell = self.spell.plus(judged);
        self.good >= self.calm && self.loosen()
    }

    /// Whether the step up on trial failed, and was taken back.
    fn judge_step_up(&mut self, did: Tally) -> bool {
        let failed = self.trial == Trial::On && did.requests >= FEWEST_REQUESTS && did.missed > did.requests / 2;
        self.failed = if failed { self.failed + 1 } else { 0 };
        self.failed >= FAILED_WINDOWS && self.tighten()
    }

    fn tighten(&mut self) -> bool {
        (self.bad, self.trial) = (0, Trial::None);
        let lower = self.step.max(self.tried) + 1;
        if lower == MARGINS.len() {
            return false;
        }
        if self.loosened {
            self.calm = doubled(self.calm);
        } else {
            self.insistence = doubled(self.insistence);
        }
        self.loosened = false;
        self.step = lower;
        true
    }

    /// After a calm spell, one step up if it leaves room for that.
    fn loosen(&mut self) -> bool {
        let spell = std::mem::take(&mut self.spell);
        self.good = 0;
        self.insistence = BAD_VERDICTS;
        if self.step == 0 || spell.close as f64 * TOLERATED >= spell.requests as f64 {
            return false;
        }
        (self.loosened, self.trial) = (true, Trial::Due);
        self.step -= 1;
        true
    }
}

/// How many of `expected` misses are too many to be chance: three standard deviations more, of counts that are Poisson's. With two, queues were taken for
/// undersized: their misses come in groups.
fn certainly_more(expected: f64) -> f64 {
    expected + 3.0 * expected.sqrt()
}

fn doubled(windows: u32) -> u32 {
    windows.saturating_mul(2).min(MOST_WINDOWS)
}
