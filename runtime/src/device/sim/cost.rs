//! How long a kernel takes when it has its SMs and the DRAM to itself: its profile's curve, or a roofline where it has none.

use std::collections::HashMap;
use std::sync::Arc;

use crate::device::{Fingerprint, Sms, Work};

use super::config::SimConfig;

/// A positive function of the SM count, tabled at whole SMs from 0 on.
#[derive(Debug)]
pub(super) struct BySms(Vec<f64>);

impl BySms {
    fn new(sms: u16, at: impl Fn(u16) -> f64) -> Self {
        Self(std::iter::once(0.0).chain((1..=sms.max(1)).map(at)).collect())
    }

    /// Linear between whole SMs; constant beyond the last one.
    pub(super) fn at(&self, sms: f64) -> f64 {
        let below = (sms as usize).min(self.0.len() - 1);
        match self.0.get(below + 1) {
            Some(high) => self.0[below] + (high - self.0[below]) * (sms - below as f64),
            None => self.0[below],
        }
    }
}

/// What the simulator knows of one kernel.
#[derive(Debug)]
pub(super) struct KernelCost {
    pub(super) work: Work,
    /// Nanoseconds alone on so many SMs.
    latency_ns: Arc<BySms>,
}

impl KernelCost {
    /// Nanoseconds alone on `sms` SMs. On part of an SM a kernel takes as much longer.
    pub(super) fn latency_ns(&self, sms: f64) -> f64 {
        if sms < 1.0 { self.latency_ns.at(1.0) / sms.max(1e-3) } else { self.latency_ns.at(sms) }
    }
}

/// Costs by kernel and work, each computed once.
pub(super) struct CostModel {
    /// Bytes per nanosecond (GB/s) that so many SMs can read.
    pub(super) bandwidth: Arc<BySms>,
    sms: u16,
    /// Floating-point operations per nanosecond of one SM.
    pub(super) flops_per_sm: f64,
    floor_ns: f64,
    shortest_ns: f64,
    measured: HashMap<Fingerprint, Arc<BySms>>,
    /// By kernel, floating-point operations and bytes.
    known: HashMap<(Fingerprint, u64, u64), Arc<KernelCost>>,
}

impl CostModel {
    pub(super) fn new(config: &SimConfig) -> Self {
        let sms = config.topology.sms.0;
        let shortest_ns = config.shortest_kernel.as_nanos() as f64;
        let measured = config.curves.iter().map(|(&key, curve)| {
            let at = |sms| (curve.at(Sms(sms)) * 1e3).max(shortest_ns);
            (key, Arc::new(BySms::new(sms, at)))
        });
        Self {
            bandwidth: Arc::new(BySms::new(sms, |sms| read_bandwidth(&config.read_bandwidth, sms))),
            sms,
            flops_per_sm: (config.flops / 1e9 / f64::from(sms.max(1))).max(f64::MIN_POSITIVE),
            floor_ns: config.kernel_floor.as_nanos() as f64,
            shortest_ns,
            measured: measured.collect(),
            known: HashMap::new(),
        }
    }

    /// The cost of a kernel. Where it was never profiled: the larger of its arithmetic and its bytes at the rates of so many SMs, plus a floor
    /// (Williams, Waterman and Patterson, "Roofline", 2009).
    pub(super) fn cost(&mut self, kernel: Fingerprint, work: Work) -> Arc<KernelCost> {
        let Self { bandwidth, sms, flops_per_sm, floor_ns, shortest_ns, measured, known } = self;
        let cost = known.entry((kernel, work.flops, work.bytes)).or_insert_with(|| {
            let latency_ns = measured.get(&kernel).cloned().unwrap_or_else(|| {
                Arc::new(BySms::new(*sms, |sms| {
                    let arithmetic = work.flops as f64 / (*flops_per_sm * f64::from(sms));
                    let traffic = work.bytes as f64 / bandwidth.at(f64::from(sms));
                    // A launch without work is an empty kernel, which has no prologue to pay for either.
                    let floor = if work == Work::default() { 0.0 } else { *floor_ns };
                    (arithmetic.max(traffic) + floor).max(*shortest_ns)
                }))
            });
            Arc::new(KernelCost { work, latency_ns })
        });
        Arc::clone(cost)
    }
}

/// GB/s on `sms` SMs: in proportion below the first point, linear between points, constant beyond the last. 1 GB/s where nothing is known, so
/// that no time is infinite.
fn read_bandwidth(points: &[(Sms, f64)], sms: u16) -> f64 {
    let above = points.partition_point(|point| point.0.0 < sms);
    let rate = match (above.checked_sub(1).and_then(|below| points.get(below)), points.get(above)) {
        (None, Some(first)) => first.1 * f64::from(sms) / f64::from(first.0.0.max(1)),
        (Some(low), Some(high)) => {
            let (x, x0, x1) = (f64::from(sms), f64::from(low.0.0), f64::from(high.0.0));
            low.1 + (high.1 - low.1) * (x - x0) / (x1 - x0)
        }
        (Some(last), None) => last.1,
        (None, None) => 1.0,
    };
    rate.max(1.0)
}
