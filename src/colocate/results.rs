//! What a run found, in the form that is written as JSON and drawn as HTML.

use serde::{Deserialize, Serialize};
use smidgen_profiler::clocks::Reading;
use smidgen_runtime::launch::Walls;
use smidgen_runtime::policy::PowerForecast;
use smidgen_runtime::tenant::Class;

/// Where and how the figures were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunProvenance {
    /// The command line.
    pub command: String,
    /// Commit of the sources, empty where unknown.
    pub commit: String,
    /// GPU name.
    pub gpu: String,
    /// Its SMs.
    pub sms: u16,
    /// Kernel-mode driver version.
    pub driver: String,
    /// Day of the run, `2026-11-21`.
    pub date: String,
    /// Whether the figures come from the simulator. They must never stand in a table of measured ones.
    pub simulated: bool,
    /// Seconds measured for each phase.
    pub seconds: f64,
}

/// One tenant's figures in one phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantResult {
    /// The tenant's name.
    pub name: String,
    /// Its model, a preset or a directory.
    pub model: String,
    /// What it is served for.
    pub class: Class,
    /// Requests per second; of one that the measured time holds in part, that part.
    pub throughput: f64,
    /// Median latency.
    pub p50_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Mean latency over mean latency alone, at the same rate where requests arrive at one; 1 when alone.
    pub slowdown: f64,
    /// Requests finished while measuring, and those still waiting then that had missed the objective already.
    pub requests: u64,
    /// Requests that had arrived and were not answered when the measured time was over; of a stream those that came at a rate and had no token then. Where
    /// they are many, latencies are lower bounds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub waiting: u64,
    /// Requests that arrived per second, on average; none in a closed loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// The latency that its requests should keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo_ms: Option<f64>,
    /// Share of the requests within the tenant's SLO; none without one, or without requests.
    pub slo_attainment: Option<f64>,
    /// Mean latency.
    pub mean_ms: f64,
    /// Latency in milliseconds at quantiles 0, 0.01, ..., 1: the curve that the report draws.
    pub quantiles_ms: Vec<f64>,
    /// What confined the tenant's kernels.
    pub walls: Walls,
    /// The most SMs any of its kernels was placed on.
    pub sms: u16,
    /// Where its requests are a stream: when their tokens came. The latencies above are those of whole requests then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamResult>,
}

/// What a tenant that serves a stream of requests did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StreamResult {
    /// Tokens drawn per second, of the requests that finished while measuring.
    pub tokens_per_second: f64,
    /// From arrival to the first token: 50th, 95th and 99th percentile. Of requests that had none and had missed the objective: at least as long as they
    /// had waited.
    pub first_token_ms: [f64; 3],
    /// Mean gap between a request's tokens after the first: 50th, 95th and 99th percentile.
    pub per_token_ms: [f64; 3],
}

/// One way of sharing, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyResult {
    /// Its name.
    pub policy: String,
    /// By tenant, in the order asked for.
    pub tenants: Vec<TenantResult>,
    /// Sum over tenants of throughput over throughput alone.
    pub total_normalised_throughput: f64,
    /// Smallest over largest slowdown: 1 is fair.
    pub fairness: f64,
    /// Jain's index of the normalised throughputs (Jain, Chiu and Hawe 1984): 1 is fair, 1 / tenants is not.
    pub jain: f64,
    /// The simulator's prediction, where one was made from the measured profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Vec<Prediction>>,
    /// What the board is predicted to draw, where the policy counts joules and the profiles hold the energy of every tenant's kernels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<PlannedPower>,
}

/// What the board is predicted to draw while every tenant works.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PlannedPower {
    /// Watts, at most the limit.
    pub board_w: f64,
    /// The board's limit, watts.
    pub limit_w: f64,
    /// The clock of the SMs as a share of the full one.
    pub clock: f64,
}

impl From<PowerForecast> for PlannedPower {
    fn from(forecast: PowerForecast) -> Self {
        let PowerForecast { board_w, limit_w, clock, .. } = forecast;
        Self { board_w: board_w.round(), limit_w: limit_w.round(), clock: (100.0 * clock).round() / 100.0 }
    }
}

/// What the simulator predicted for one tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The tenant's name.
    pub name: String,
    /// Predicted requests per second. SIMULATED.
    pub simulated_throughput: f64,
    /// Predicted over measured, minus 1.
    pub error: f64,
}

/// The GPU's clock and power while a phase was measured. Where a limit held the clock back, throughput is what that limit leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseClocks {
    /// The phase: a policy, or a tenant alone.
    pub phase: String,
    /// Median clock of the SMs.
    pub sm_clock_mhz: u32,
    /// Mean power of the board.
    pub power_w: f64,
    /// What held the clock back at any time.
    pub held_back_by: Vec<String>,
    /// Share of the measured time in which it was.
    pub held_back: f64,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Where and how.
    pub provenance: RunProvenance,
    /// Each tenant alone on the GPU.
    pub alone: Vec<TenantResult>,
    /// Each tenant alone whose requests arrive at a rate, at that rate: what queueing does to it without a neighbour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alone_at_rate: Vec<TenantResult>,
    /// The same tenants together, one entry a policy.
    pub policies: Vec<PolicyResult>,
    /// Clock and power, phase by phase; none on the simulator, and where nothing reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clocks: Vec<PhaseClocks>,
}

impl RunResult {
    /// Every tenant in every phase, in the order of the tables.
    pub fn phases(&self) -> impl Iterator<Item = (&str, &TenantResult)> {
        let alone = self.alone.iter().map(|tenant| ("alone", tenant));
        let at_rate = self.alone_at_rate.iter().map(|tenant| ("alone at its rate", tenant));
        let together = self.policies.iter().flat_map(|policy| policy.tenants.iter().map(|tenant| (policy.policy.as_str(), tenant)));
        alone.chain(at_rate).chain(together)
    }
}

impl PhaseClocks {
    /// Of a phase, with figures rounded to what they are good for.
    pub fn new(phase: String, reading: &Reading) -> Self {
        let held_back_by = reading.held_back_by.iter().map(|&limit| limit.to_owned()).collect();
        let held_back = (100.0 * reading.held_back).round() / 100.0;
        Self { phase, sm_clock_mhz: reading.clock_mhz, power_w: reading.power_w.round(), held_back_by, held_back }
    }

    /// What held the clock back, and for how much of the time.
    pub fn limits(&self) -> String {
        if self.held_back_by.is_empty() {
            return "nothing".to_owned();
        }
        format!("{}, {:.0}% of the time", self.held_back_by.join(", "), 100.0 * self.held_back)
    }
}

impl TenantResult {
    /// Whether so many requests were still waiting that percentiles of latency are no more than lower bounds.
    pub fn falls_behind(&self) -> bool {
        self.waiting > self.requests / 100 + 1
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl PolicyResult {
    /// Compares what tenants did together with what they did alone; `alone` and `tenants` are in the same order. Latencies are set against `alone_at_rate` where a
    /// tenant is in it: what queueing does to it without a neighbour is no neighbour's doing.
    pub fn new(policy: String, mut tenants: Vec<TenantResult>, alone: &[TenantResult], alone_at_rate: &[TenantResult]) -> Self {
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let mut normalised = Vec::with_capacity(tenants.len());
        for (tenant, alone) in tenants.iter_mut().zip(alone) {
            let undisturbed = alone_at_rate.iter().find(|at_rate| at_rate.name == tenant.name).unwrap_or(alone);
            tenant.slowdown = ratio(tenant.mean_ms, undisturbed.mean_ms);
            normalised.push(ratio(tenant.throughput, alone.throughput));
        }
        let total: f64 = normalised.iter().sum();
        let squares: f64 = normalised.iter().map(|share| share * share).sum();
        let slowdowns = || tenants.iter().map(|tenant| tenant.slowdown);
        let (least, most) = (slowdowns().fold(f64::INFINITY, f64::min), slowdowns().fold(0.0, f64::max));
        Self {
            policy,
            total_normalised_throughput: total,
            fairness: if least.is_finite() { ratio(least, most) } else { 0.0 },
            jain: ratio(total * total, squares * normalised.len() as f64),
            tenants,
            predicted: None,
            power: None,
        }
    }
}
