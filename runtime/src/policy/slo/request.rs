//! One tenant's request, tabulated once at every size that a part of the GPU may have, so that sizing is look-ups.

use crate::device::{Sms, Topology};
use crate::partition::rungs;
use crate::policy::{GAP_US, KernelDemand, TenantDemand};
use crate::profile::Curve;

use super::contention::{Load, read_rate};
use super::power::Energies;

/// The sizes at which requests are tabulated: the ladder's rungs, and between them every whole TPC.
#[derive(Debug)]
pub(super) struct Sizes {
    rungs: Vec<Rung>,
    /// By TPCs, from 0, which stands for no size and is never asked for.
    by_tpcs: Vec<Between>,
    sms_by_tpcs: Vec<Sms>,
}

#[derive(Debug, Clone, Copy)]
struct Rung {
    sms: Sms,
    /// Bytes a microsecond that its SMs read.
    read: f64,
}

/// A size as a mixture of two rungs. As in [`Curve::at`], SM-time is linear between them: latency is `low_part * low + high_part * high`.
#[derive(Debug, Clone, Copy)]
struct Between {
    low: usize,
    high: usize,
    low_part: f64,
    high_part: f64,
}

impl Sizes {
    pub(super) fn new(topology: &Topology) -> Self {
        let rungs: Vec<Rung> = rungs(topology).into_iter().map(|sms| Rung { sms, read: read_rate(sms) }).collect();
        let sms_by_tpcs: Vec<Sms> = (0..=topology.all_tpcs().len()).map(|tpcs| Sms(tpcs.saturating_mul(topology.sms_per_tpc))).collect();
        let by_tpcs = sms_by_tpcs.iter().map(|sms| between(&rungs, sms.0)).collect();
        Self { rungs, by_tpcs, sms_by_tpcs }
    }

    /// The sizes in TPCs that are rungs and smaller than `tpcs`, falling.
    pub(super) fn rungs_below(&self, topology: &Topology, tpcs: u16) -> impl Iterator<Item = u16> {
        let sizes = self.rungs.iter().rev().map(|rung| topology.tpcs_for(rung.sms));
        sizes.filter(move |&size| size > 0 && size < tpcs).collect::<Vec<_>>().into_iter()
    }
}

fn between(rungs: &[Rung], sms: u16) -> Between {
    let x = f64::from(sms.max(1));
    let at = |rung: usize| f64::from(rungs[rung].sms.0.max(1));
    let above = rungs.partition_point(|rung| rung.sms.0 < sms);
    if above == 0 || above == rungs.len() {
        let rung = above.min(rungs.len() - 1);
        return Between { low: rung, high: rung, low_part: at(rung) / x, high_part: 0.0 };
    }
    let share = (x - at(above - 1)) / (at(above) - at(above - 1));
    Between { low: above - 1, high: above, low_part: (1.0 - share) * at(above - 1) / x, high_part: share * at(above) / x }
}

/// The profiled kernels of one request. Kernels without a curve count for nothing in it.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// In the order in which they are first launched.
    pub(super) kernels: Vec<&'a KernelDemand>,
    /// For each kernel, the least SM-time in which any measured size did it, SM-microseconds a launch.
    pub(super) least_sm_us: Vec<f64>,
    /// Latencies of one launch by kernel and rung, kernel after kernel, the gap before the next one included.
    latencies: Vec<f64>,
    /// The request by TPCs.
    loads: Vec<Load>,
    rungs: usize,
    /// None where no energy of its kernels is known, or nobody asks.
    pub(super) energies: Option<Energies>,
}

impl<'a> Request<'a> {
    /// Nothing if no kernel that the request launches was profiled.
    pub(super) fn new(sizes: &Sizes, tenant: &'a TenantDemand, no_power: bool) -> Option<Self> {
        let profiled = |kernel: &&KernelDemand| kernel.curve.is_some() && kernel.launches > 0;
        let kernels: Vec<_> = tenant.kernels.iter().filter(profiled).collect();
        if kernels.is_empty() {
            return None;
        }
        let rungs = sizes.rungs.len();
        let mut latencies = Vec::with_capacity(kernels.len() * rungs);
        for curve in kernels.iter().filter_map(|kernel| kernel.curve.as_deref()) {
            append(curve, &sizes.rungs, &mut latencies);
        }
        let least = |row: &[f64]| sizes.rungs.iter().zip(row).map(|(rung, us)| f64::from(rung.sms.0) * us).fold(f64::INFINITY, f64::min);
        let least_sm_us = latencies.chunks_exact(rungs).map(least).collect();
        let mut loads = loads(sizes, &kernels, &latencies);
        let energies = if no_power { None } else { Energies::new(&kernels) };
        if let Some(energies) = &energies {
            loads.iter_mut().zip(&sizes.sms_by_tpcs).for_each(|(load, &sms)| load.uj = energies.request(energies.place(sms)));
        }
        Some(Self { kernels, least_sm_us, latencies, loads, rungs, energies })
    }

    /// The whole request in one partition of `tpcs` TPCs.
    pub(super) fn load(&self, tpcs: u16) -> &Load {
        &self.loads[usize::from(tpcs).min(self.loads.len() - 1)]
    }

    /// One launch of a kernel on `tpcs` TPCs, microseconds.
    pub(super) fn kernel_us(&self, sizes: &Sizes, kernel: usize, tpcs: u16) -> f64 {
        let Between { low, high, low_part, high_part } = sizes.by_tpcs[usize::from(tpcs).min(sizes.by_tpcs.len() - 1)];
        let row = &self.latencies[kernel * self.rungs..(kernel + 1) * self.rungs];
        low_part * row[low] + high_part * row[high]
    }

    /// The least SM-time in which the request can be done, SM-microseconds.
    pub(super) fn least_sm_us(&self) -> f64 {
        self.kernels.iter().zip(&self.least_sm_us).map(|(kernel, sm_us)| f64::from(kernel.launches) * sm_us).sum()
    }
}

/// The curve at each rung.
fn append(curve: &Curve, rungs: &[Rung], latencies: &mut Vec<f64>) {
    let points = curve.points();
    // Profiles are measured at the rungs, so that there is mostly nothing to look up.
    if points.len() == rungs.len() && points.iter().zip(rungs).all(|(point, rung)| point.0 == rung.sms) {
        latencies.extend(points.iter().map(|point| point.1 + GAP_US));
    } else {
        latencies.extend(rungs.iter().map(|rung| curve.at(rung.sms) + GAP_US));
    }
}

fn loads(sizes: &Sizes, kernels: &[&KernelDemand], latencies: &[f64]) -> Vec<Load> {
    let mut at_rungs = vec![Load::default(); sizes.rungs.len()];
    for (kernel, row) in kernels.iter().zip(latencies.chunks_exact(sizes.rungs.len())) {
        let (launches, bytes, flops) = (f64::from(kernel.launches), kernel.work.bytes as f64, kernel.work.flops as f64);
        for ((load, &us), rung) in at_rungs.iter_mut().zip(row).zip(&sizes.rungs) {
            load.us += launches * us;
            load.memory_us += launches * us.min(bytes / rung.read);
            load.bytes += launches * bytes;
            load.flops += launches * flops;
        }
    }
    let mix = |size: &Between| {
        let (low, high) = (at_rungs[size.low], at_rungs[size.high]);
        let mixed = |low: f64, high: f64| size.low_part * low + size.high_part * high;
        Load { us: mixed(low.us, high.us), memory_us: mixed(low.memory_us, high.memory_us), ..low }
    };
    sizes.by_tpcs.iter().map(mix).collect()
}
