//! What the run says in one sentence, computed from its figures: what one tenant gains or loses between ordinary sharing and a policy of
//! the runtime. Which two ways of sharing are compared is fixed by their names, so the sentence cannot pick the winner. Of an MPS baseline that ran with
//! both forms of the kernels it takes the one that does better.

use super::scale::{index, milliseconds, number, positive};
use crate::colocate::results::{PolicyResult, RunResult, TenantResult};
use smidgen_runtime::tenant::Class;

/// Ways of sharing that do without the runtime's placements; the first one that was run is compared against.
const ORDINARY: [&str; 6] = ["mps-default", "mps-priority", "mps-percent", "time-slice", "default-sharing", "exclusive"];

/// The runtime's policies; the first one that was run is compared.
const PLACED: [&str; 5] = ["slo", "krisp-i", "krisp-o", "model-rightsize", "static-equal"];

/// Differences below this share are called none.
const NOISE: f64 = 0.02;

/// The two ways of sharing that the report sets against each other, and the tenant it does so for.
pub(super) struct Comparison<'a> {
    /// Ordinary sharing, if it was run.
    pub(super) ordinary: Option<&'a PolicyResult>,
    /// A policy of the runtime, if one was run.
    pub(super) placed: Option<&'a PolicyResult>,
    /// The tenant whose latency is quoted.
    pub(super) tenant: &'a TenantResult,
    /// Its 99th percentile alone.
    alone_p99_ms: f64,
}

impl<'a> Comparison<'a> {
    /// None if the run has no tenant.
    pub(super) fn of(run: &'a RunResult) -> Option<Self> {
        let family = |policy: &PolicyResult| policy.policy.split(':').next().unwrap_or_default().to_owned();
        let ordinary = ORDINARY.iter().find_map(|name| best(run, run.policies.iter().filter(|policy| family(policy) == *name)));
        let unknown = || run.policies.iter().find(|policy| !ORDINARY.contains(&&*family(policy)));
        let placed = PLACED.iter().find_map(|name| run.policies.iter().find(|policy| policy.policy == *name)).or_else(unknown);
        // The one that fares worst is quoted, of those whose latency is an objective.
        let fate = |tenant: &&TenantResult| {
            let shared = placed.or(ordinary).and_then(|policy| find(&policy.tenants, &tenant.name));
            let alone = p99_alone(run, &tenant.name).unwrap_or(tenant.p99_ms);
            shared.and_then(|shared| positive(shared.p99_ms)).map_or(f64::INFINITY, |p99| p99 / alone)
        };
        let worst = |class: Option<Class>| {
            let candidates = tenants(run).iter().filter(|tenant| class.is_none_or(|class| tenant.class == class));
            candidates.max_by(|a, b| fate(a).total_cmp(&fate(b)))
        };
        let tenant = worst(Some(Class::Latency)).or_else(|| worst(None))?;
        let alone_p99_ms = p99_alone(run, &tenant.name).unwrap_or(tenant.p99_ms);
        Some(Self { ordinary, placed, tenant, alone_p99_ms })
    }

    /// The tenant's 99th percentile under `policy`.
    pub(super) fn p99_ms(&self, policy: &PolicyResult) -> Option<f64> {
        find(&policy.tenants, &self.tenant.name).and_then(|tenant| positive(tenant.p99_ms))
    }

    /// What the tenant's requests should keep under `policy`, milliseconds.
    pub(super) fn objective_ms(&self, policy: &PolicyResult) -> Option<f64> {
        find(&policy.tenants, &self.tenant.name)?.slo_ms.and_then(positive)
    }

    /// The share of the tenant's requests that kept it.
    pub(super) fn kept(&self, policy: &PolicyResult) -> Option<f64> {
        find(&policy.tenants, &self.tenant.name)?.slo_attainment
    }

    /// The sentence.
    pub(super) fn headline(&self) -> String {
        let name = &self.tenant.name;
        let alone = milliseconds(self.alone_p99_ms);
        match (self.ordinary, self.placed) {
            (Some(from), Some(to)) => {
                let totals = format!("{} → {}", index(from.total_normalised_throughput), index(to.total_normalised_throughput));
                let latency = match (self.p99_ms(from), self.p99_ms(to)) {
                    (Some(before), Some(after)) => format!(
                        "{name}’s p99 goes from {} under {} to {} under {}",
                        milliseconds(before),
                        from.policy,
                        milliseconds(after),
                        to.policy
                    ),
                    (None, Some(after)) => {
                        format!("{name} finishes no request under {}; its p99 under {} is {}", from.policy, to.policy, milliseconds(after))
                    }
                    (Some(before), None) => {
                        format!("{name} finishes no request under {}; its p99 under {} is {}", to.policy, from.policy, milliseconds(before))
                    }
                    (None, None) => format!("{name} finishes no request under {} or {}", from.policy, to.policy),
                };
                format!("{latency}; total normalised throughput {totals}.")
            }
            (Some(only), None) | (None, Some(only)) => {
                let latency = match self.p99_ms(only) {
                    Some(p99) => format!("{name}’s p99 is {} under {}, {alone} alone", milliseconds(p99), only.policy),
                    None => format!("{name} finishes no request under {}; its p99 alone is {alone}", only.policy),
                };
                format!("{latency}; total normalised throughput {}.", index(only.total_normalised_throughput))
            }
            (None, None) => format!("{name}’s p99 is {alone} alone; no policy was run."),
        }
    }

    /// Who did better, said plainly; none without two ways of sharing and latencies under both.
    pub(super) fn verdict(&self) -> Option<String> {
        let (from, to) = (self.ordinary?, self.placed?);
        let latency = change(self.p99_ms(from)?, self.p99_ms(to)?);
        let throughput = change(positive(from.total_normalised_throughput)?, to.total_normalised_throughput);
        let (p99, total) = (format!("p99 {}", in_words(latency, "lower", "higher")), in_words(throughput, "less", "more"));
        let (ours, theirs) = (&to.policy, &from.policy);
        Some(match (-sign(latency), sign(throughput)) {
            (0, 0) => format!("{ours} and {theirs} differ by less than {:.0}% on both counts.", NOISE * 100.0),
            (1, 1) => format!("{ours} is better on both counts: {p99}, {total} throughput."),
            (-1, -1) => format!("{ours} is worse than {theirs} on both counts: {p99}, {total} throughput."),
            (1, -1) | (-1, 1) => format!("{ours} trades one for the other: {p99}, {total} throughput."),
            _ => format!("{ours} against {theirs}: {p99}, {total} throughput."),
        })
    }
}

/// The one whose latency tenants suffer least at their 99th percentile, the worst of them counting; without such tenants, the one that gets most done.
fn best<'a>(run: &RunResult, policies: impl Iterator<Item = &'a PolicyResult>) -> Option<&'a PolicyResult> {
    let suffering = |policy: &PolicyResult| {
        let latency = policy.tenants.iter().filter(|tenant| tenant.class == Class::Latency);
        let worst = latency.map(|tenant| {
            let alone = p99_alone(run, &tenant.name).unwrap_or(1.0);
            positive(tenant.p99_ms).map_or(f64::INFINITY, |p99| p99 / alone)
        });
        worst.fold(0.0, f64::max)
    };
    policies.min_by(|a, b| {
        let totals = b.total_normalised_throughput.total_cmp(&a.total_normalised_throughput);
        suffering(a).total_cmp(&suffering(b)).then(totals)
    })
}

/// The tenants of a run: as measured alone or, failing that, as first measured together.
pub(super) fn tenants(run: &RunResult) -> &[TenantResult] {
    match run.policies.first() {
        Some(first) if run.alone.is_empty() => &first.tenants,
        _ => &run.alone,
    }
}

/// The 99th percentile of a tenant by itself: at its own rate of requests, where it has one.
fn p99_alone(run: &RunResult, name: &str) -> Option<f64> {
    find(&run.alone_at_rate, name).or_else(|| find(&run.alone, name)).and_then(|alone| positive(alone.p99_ms))
}

/// The tenant called `name`.
pub(super) fn find<'a>(tenants: &'a [TenantResult], name: &str) -> Option<&'a TenantResult> {
    tenants.iter().find(|tenant| tenant.name == name)
}

fn change(before: f64, after: f64) -> f64 {
    after / before - 1.0
}

fn sign(change: f64) -> i8 {
    if change > NOISE {
        1
    } else if change < -NOISE {
        -1
    } else {
        0
    }
}

fn in_words(change: f64, less: &str, more: &str) -> String {
    let word = if change < 0.0 { less } else { more };
    match sign(change) {
        0 => "the same".into(),
        1 if change >= 1.0 => format!("{} times {word}", number(1.0 + change)),
        -1 if change <= -0.5 && change > -1.0 => format!("{} times {word}", number(1.0 / (1.0 + change))),
        _ => format!("{:.0}% {word}", change.abs() * 100.0),
    }
}
