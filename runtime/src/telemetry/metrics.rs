//! Metrics by tenant, through the [`metrics`](https://docs.rs/metrics) facade: whoever wants them installs a recorder before the runtime is made.
//!
//! | name | kind | labels | what it counts |
//! |---|---|---|---|
//! | `smidgen_requests_total` | counter | `tenant` | requests answered |
//! | `smidgen_request_seconds` | histogram | `tenant` | from a request's arrival to its end |
//! | `smidgen_slo_misses_total` | counter | `tenant` | requests that missed the tenant's objective |
//! | `smidgen_slo_seconds` | gauge | `tenant` | the objective; absent or 0 where the tenant has none |
//! | `smidgen_launches_total` | counter | `tenant` | kernels launched eagerly, or captured |
//! | `smidgen_hops_total` | counter | `tenant` | changes of stream between launches |
//! | `smidgen_replays_total` | counter | `tenant` | captured graphs launched |
//! | `smidgen_sms_owned` | gauge | `tenant` | SMs that the plan gives the tenant |
//! | `smidgen_sms_held` | gauge | `tenant` | SMs that its elastic kernels may use now |
//! | `smidgen_sms_borrowed` | gauge | `tenant` | SMs it holds beyond its own |
//! | `smidgen_memory_promised_bytes` | gauge | `tenant` | device memory that it was admitted with |
//! | `smidgen_memory_allocated_bytes` | gauge | `tenant` | device memory that its sessions hold, captured graphs among it |
//! | `smidgen_memory_graph_bytes` | gauge | `tenant` | of that, what the driver took for captured graphs |
//! | `smidgen_plans_total` | counter | | plans put in force |
//! | `smidgen_drift_reports_total` | counter | | times that kernels were found to differ from their profile |
//! | `smidgen_drift_ratio` | gauge | `kernel` | a kernel's time divided by its profile's, where it was found to differ |
//! | `smidgen_plan_drift_ratio` | gauge | `tenant` | a replay's time divided by what the plan expects of it, where that was found to differ |
//!
//! All have one label more, `runtime`: the number of the runtime in this process, 0 where there is but one. With several, such as one for each
//! GPU, [`Telemetry::number`](super::Telemetry::number) says which is whose. Tenants of one runtime are told apart by their names.
//!
//! Sessions count in plain atomics; [`Runtime::publish_metrics`](crate::Runtime::publish_metrics) carries the counts over. Call it twice a
//! second, or before each scrape.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use parking_lot::Mutex;

use crate::device::{Fingerprint, KernelKey, Sms};
use crate::launch::SessionStats;

/// Requests answered.
pub const REQUESTS: &str = "smidgen_requests_total";
/// Latencies of requests, seconds.
pub const REQUEST_SECONDS: &str = "smidgen_request_seconds";
/// Requests that missed the objective.
pub const SLO_MISSES: &str = "smidgen_slo_misses_total";
/// The objective, seconds.
pub const SLO_SECONDS: &str = "smidgen_slo_seconds";
/// Kernels launched or captured.
pub const LAUNCHES: &str = "smidgen_launches_total";
/// Changes of stream.
pub const HOPS: &str = "smidgen_hops_total";
/// Graphs launched.
pub const REPLAYS: &str = "smidgen_replays_total";
/// SMs by right.
pub const SMS_OWNED: &str = "smidgen_sms_owned";
/// SMs in use.
pub const SMS_HELD: &str = "smidgen_sms_held";
/// SMs in use that are others'.
pub const SMS_BORROWED: &str = "smidgen_sms_borrowed";
/// Device memory promised.
pub const MEMORY_PROMISED: &str = "smidgen_memory_promised_bytes";
/// Device memory held.
pub const MEMORY_ALLOCATED: &str = "smidgen_memory_allocated_bytes";
/// Device memory of captured graphs.
pub const MEMORY_GRAPHS: &str = "smidgen_memory_graph_bytes";
/// Plans put in force.
pub const PLANS: &str = "smidgen_plans_total";
/// Reports of drift.
pub const DRIFT_REPORTS: &str = "smidgen_drift_reports_total";
/// A kernel's time over its profile's.
pub const DRIFT_RATIO: &str = "smidgen_drift_ratio";

/// A replay's time over the plan's.
pub const PLAN_DRIFT_RATIO: &str = "smidgen_plan_drift_ratio";

/// What the sessions of one tenant launched, as they tell it: each adds what is new. The last of them to go, which may outlive the tenant, shows the rest.
pub(super) struct Counts {
    launches: AtomicU64,
    hops: AtomicU64,
    replays: AtomicU64,
    shown: [Counter; 3],
}

impl Counts {
    fn new(labels: &[(&'static str, String); 2]) -> Self {
        let shown = [LAUNCHES, HOPS, REPLAYS].map(|name| counter!(name, labels));
        Self { launches: AtomicU64::new(0), hops: AtomicU64::new(0), replays: AtomicU64::new(0), shown }
    }

    /// Carries over what was counted since the last call.
    pub(super) fn publish(&self) {
        for (counted, shown) in [&self.launches, &self.hops, &self.replays].into_iter().zip(&self.shown) {
            shown.increment(counted.swap(0, Ordering::Relaxed));
        }
    }

    pub(super) fn add_launched(&self, before: SessionStats, now: SessionStats) {
        self.launches.fetch_add(now.launches - before.launches, Ordering::Relaxed);
        self.hops.fetch_add(now.hops - before.hops, Ordering::Relaxed);
        self.replays.fetch_add(now.replays - before.replays, Ordering::Relaxed);
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        self.publish();
    }
}

/// Tells a runtime's metrics from those of others in the process: the least number that none of them has, so that a process whose runtimes follow
/// each other has one series for all.
struct Number(u32);

static TAKEN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

impl Number {
    fn take() -> Self {
        let mut taken = TAKEN.lock();
        let number = (0..=u32::MAX).find(|number| !taken.contains(number)).unwrap_or_default();
        taken.insert(number);
        Self(number)
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        TAKEN.lock().remove(&self.0);
    }
}

/// Metrics of a runtime that are no tenant's.
pub(super) struct RuntimeMetrics {
    pub(super) plans: Counter,
    pub(super) drift_reports: Counter,
    drifts: Mutex<BTreeMap<Fingerprint, Gauge>>,
    number: Number,
}

impl RuntimeMetrics {
    pub(super) fn new() -> Self {
        describe();
        let number = Number::take();
        let labels = [("runtime", number.0.to_string())];
        Self { plans: counter!(PLANS, &labels), drift_reports: counter!(DRIFT_REPORTS, &labels), drifts: Mutex::default(), number }
    }

    pub(super) fn number(&self) -> u32 {
        self.number.0
    }

    pub(super) fn tenant(&self, name: &str) -> TenantMetrics {
        TenantMetrics::new([("tenant", name.to_owned()), ("runtime", self.number.0.to_string())])
    }

    pub(super) fn set_drift(&self, kernel: &KernelKey, ratio: f64) {
        let gauge = || gauge!(DRIFT_RATIO, "kernel" => kernel.to_string(), "runtime" => self.number.0.to_string());
        self.drifts.lock().entry(kernel.fingerprint()).or_insert_with(gauge).set(ratio);
    }
}

impl Drop for RuntimeMetrics {
    /// No figure of a runtime that is gone shall stand as if it were one of now.
    fn drop(&mut self) {
        self.drifts.get_mut().values().for_each(|gauge| gauge.set(0.0));
    }
}

/// One tenant's metrics.
pub(super) struct TenantMetrics {
    counts: Arc<Counts>,
    owned: Gauge,
    held: Gauge,
    borrowed: Gauge,
    memory: [Gauge; 3],
    requests: RequestMetrics,
    plan_drift: Option<Gauge>,
    labels: [(&'static str, String); 2],
}

impl TenantMetrics {
    fn new(labels: [(&'static str, String); 2]) -> Self {
        Self {
            counts: Arc::new(Counts::new(&labels)),
            owned: gauge!(SMS_OWNED, &labels),
            held: gauge!(SMS_HELD, &labels),
            borrowed: gauge!(SMS_BORROWED, &labels),
            memory: [MEMORY_PROMISED, MEMORY_ALLOCATED, MEMORY_GRAPHS].map(|name| gauge!(name, &labels)),
            requests: RequestMetrics {
                requests: counter!(REQUESTS, &labels),
                misses: counter!(SLO_MISSES, &labels),
                seconds: histogram!(REQUEST_SECONDS, &labels),
            },
            plan_drift: None,
            labels,
        }
    }

    pub(super) fn requests(&self) -> RequestMetrics {
        self.requests.clone()
    }

    pub(super) fn set_objective(&self, slo: Option<Duration>) {
        gauge!(SLO_SECONDS, &self.labels).set(slo.unwrap_or_default().as_secs_f64());
    }

    pub(super) fn set_plan_drift(&mut self, ratio: f64) {
        self.plan_drift.get_or_insert_with(|| gauge!(PLAN_DRIFT_RATIO, &self.labels)).set(ratio);
    }

    /// Where its sessions count.
    pub(super) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    pub(super) fn set_sms(&self, owned: Sms, held: Sms, borrowed: Sms) {
        self.owned.set(f64::from(owned.0));
        self.held.set(f64::from(held.0));
        self.borrowed.set(f64::from(borrowed.0));
    }

    pub(super) fn set_memory(&self, Memory { promised, allocated, graphs }: Memory) {
        self.memory.iter().zip([promised, allocated, graphs]).for_each(|(gauge, bytes)| gauge.set(bytes as f64));
    }
}

/// A tenant's device memory, bytes.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) promised: u64,
    /// Graphs among it.
    pub(crate) allocated: u64,
    pub(crate) graphs: u64,
}

impl Drop for TenantMetrics {
    /// No figure of a tenant that is gone shall stand as if it were one of now.
    fn drop(&mut self) {
        self.counts.publish();
        self.set_sms(Sms(0), Sms(0), Sms(0));
        self.set_memory(Memory::default());
        self.set_objective(None);
        self.plan_drift.iter().for_each(|gauge| gauge.set(0.0));
    }
}

/// What is counted of one tenant's requests.
#[derive(Clone)]
pub(super) struct RequestMetrics {
    requests: Counter,
    misses: Counter,
    seconds: Histogram,
}

impl RequestMetrics {
    pub(super) fn answered(&self, took: Duration, kept: bool) {
        self.requests.increment(1);
        self.misses.increment(u64::from(!kept));
        self.seconds.record(took.as_secs_f64());
    }
}

/// Tells the recorder what the names mean.
fn describe() {
    describe_counter!(REQUESTS, "Requests answered.");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "From a request's arrival to its end.");
    describe_counter!(SLO_MISSES, "Requests that missed the tenant's objective.");
    describe_gauge!(SLO_SECONDS, Unit::Seconds, "The tenant's objective; 0 for none.");
    describe_counter!(LAUNCHES, "Kernels launched eagerly, or captured.");
    describe_counter!(HOPS, "Changes of stream between launches.");
    describe_counter!(REPLAYS, "Captured graphs launched.");
    describe_gauge!(SMS_OWNED, "SMs that the plan gives the tenant.");
    describe_gauge!(SMS_HELD, "SMs that the tenant's elastic kernels may use now.");
    describe_gauge!(SMS_BORROWED, "SMs that the tenant holds beyond its own.");
    describe_gauge!(MEMORY_PROMISED, Unit::Bytes, "Device memory that the tenant was admitted with.");
    describe_gauge!(MEMORY_ALLOCATED, Unit::Bytes, "Device memory that the tenant's sessions hold, captured graphs among it.");
    describe_gauge!(MEMORY_GRAPHS, Unit::Bytes, "Device memory that the driver took for the tenant's captured graphs.");
    describe_counter!(PLANS, "Plans put in force.");
    describe_counter!(DRIFT_REPORTS, "Times that kernels were found to differ from their profile.");
    describe_gauge!(DRIFT_RATIO, "A kernel's time divided by its profile's.");
    describe_gauge!(PLAN_DRIFT_RATIO, "A replay's time divided by what the plan expects of it.");
}
