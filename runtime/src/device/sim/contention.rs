//! How fast kernels run that share the GPU: three effects, applied to each kernel's rate alone on the SMs it has.
//!
//! 1. **L2 and crossbar.** A kernel that keeps tensor cores busy moves its operands through the L2 many times, which lengthens every other
//!    kernel's loads. Measured: readers on 16 to 48 SMs lose 24 to 31% next to a GEMM on the rest, whatever the rest is, so the effect
//!    saturates, somewhere below the 64% of the tensor-core rate that the smallest of those GEMMs reached.
//! 2. **DRAM.** Where the kernels together ask for more bytes than their SMs can read together, memory-bound kernels give way in
//!    proportion to what they ask, so that the sum is what the SMs can read.
//! 3. **DRAM traffic beside other work.** Its neighbours' DRAM traffic passes the L2 and evicts what it would find there, so a kernel loses in
//!    proportion to that traffic, as far as the DRAM is not what it waits for itself: that is the second effect. Measured: a GEMM on 96, 88 and
//!    72 SMs keeps 90, 84 and 81% of its rate beside 0.92, 1.11 and 1.46 TB/s. A GEMM that keeps the tensor cores a third busy loses as
//!    much: BERT-large on 66 SMs beside 1.4 TB/s of a Llama-3.2-1B decoding on the others kept 81% of the rate that its profile gives.
//!
//! Every byte of a kernel's [`Work`](crate::device::Work) counts as DRAM traffic, also where a cache would have served it.

use super::config::SimConfig;
use super::cost::{CostModel, KernelCost};

/// The share of the GPU's tensor-core rate at which the first effect saturates. Fitted, to what Llama-3.2-1B decode steps lose to BERT-large and to a prefill on
/// the other SMs (results/h200/slo*.json): on 66 SMs nothing between 0.15 and 0.5 tells from another, and on 116 they lose a tenth to neighbours that keep an
/// eighth of the tensor cores busy on 16.
const SATURATION: f64 = 0.5;

/// One running kernel, as the model sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    /// Nanoseconds that the whole kernel would take on the SMs it has now, undisturbed.
    latency_ns: f64,
    /// Bytes per nanosecond at that rate.
    bytes_per_ns: f64,
    /// How much of what its SMs can read it reads, 0 to 1.
    memory_bound: f64,
    /// How much of what its SMs can compute it computes, 0 to 1.
    compute_bound: f64,
    /// Its part of the GPU's tensor-core rate, 0 to 1.
    tensor: f64,
    /// SMs that it has, shared ones in part.
    sms: f64,
    /// What disturbances leave of its rate, 0 to 1.
    slowdown: f64,
}

impl Demand {
    pub(super) fn new(cost: &KernelCost, sms: f64, costs: &CostModel, gpu_sms: f64) -> Self {
        let latency_ns = cost.latency_ns(sms);
        let bytes_per_ns = cost.work.bytes as f64 / latency_ns;
        let memory_bound = (bytes_per_ns / costs.bandwidth.at(sms).max(1e-9)).min(1.0);
        let compute_bound = (cost.work.flops as f64 / latency_ns / (costs.flops_per_sm * sms.max(1e-9))).min(1.0);
        Self { latency_ns, bytes_per_ns, memory_bound, compute_bound, tensor: compute_bound * sms / gpu_sms, sms, slowdown: 1.0 }
    }

    /// The part of the whole kernel that is done in a nanosecond.
    pub(super) fn rate(&self) -> f64 {
        self.slowdown / self.latency_ns
    }

    /// What the kernel asks of each of the `occupied` SMs that its blocks are on.
    pub(super) fn load_on_each(&self, occupied: u32, costs: &CostModel) -> SmLoad {
        let occupied = f64::from(occupied.max(1));
        let issue = self.compute_bound * self.sms / occupied;
        let memory = self.bytes_per_ns / (costs.bandwidth.at(1.0) * occupied);
        SmLoad { issue: issue.min(1.0), memory: memory.min(1.0) }
    }

    fn traffic(&self) -> f64 {
        self.bytes_per_ns * self.slowdown
    }
}

/// What kernels ask of one SM, as parts of what it can do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SmLoad {
    /// Tensor-core issue.
    issue: f64,
    /// Loads and stores.
    memory: f64,
}

impl SmLoad {
    /// How much of the SM is left to a kernel with this load where all kernels together ask for `total`. Blocks ask at times that have nothing to
    /// do with each other: each of its requests finds the unit taken with the probability that others hold it, and waits for about as long as
    /// it will be served.
    pub(super) fn share_of(self, total: Self) -> f64 {
        let issue = self.issue * (total.issue - self.issue);
        let memory = self.memory * (total.memory - self.memory);
        1.0 / (1.0 + issue + memory)
    }
}

impl std::ops::AddAssign for SmLoad {
    fn add_assign(&mut self, other: Self) {
        self.issue += other.issue;
        self.memory += other.memory;
    }
}

/// Slows `demands`, which run at the same time, by what they do to each other.
pub(super) fn contend(demands: &mut [Demand], costs: &CostModel, config: &SimConfig) {
    if demands.len() > 1 {
        let tensor: f64 = demands.iter().map(|demand| demand.tensor).sum();
        for demand in &mut *demands {
            let pressure = ((tensor - demand.tensor) / SATURATION).clamp(0.0, 1.0);
            demand.slowdown = 1.0 - demand.memory_bound * config.l2_interference * pressure;
        }
        share_dram(demands, costs);
        let peak = costs.bandwidth.at(f64::INFINITY);
        let traffic: f64 = demands.iter().map(Demand::traffic).sum();
        for demand in &mut *demands {
            let others = ((traffic - demand.traffic()) / peak).clamp(0.0, 1.0);
            demand.slowdown *= 1.0 - (1.0 - demand.memory_bound) * config.dram_interference * others;
        }
    }
}

/// The second effect. With traffic `t` and memory-boundness `m`, each kernel keeps `1 - m (1 - x)` of its rate, and `x` is such that the sum of
/// what is left of `t` is the capacity `c`: `x = 1 - (sum t - c) / sum (t m)`.
fn share_dram(demands: &mut [Demand], costs: &CostModel) {
    let capacity = costs.bandwidth.at(demands.iter().map(|demand| demand.sms).sum());
    let traffic: f64 = demands.iter().map(Demand::traffic).sum();
    let yielding: f64 = demands.iter().map(|demand| demand.traffic() * demand.memory_bound).sum();
    if traffic > capacity && yielding > 0.0 {
        let given_up = ((traffic - capacity) / yielding).min(0.99);
        for demand in demands {
            demand.slowdown *= 1.0 - demand.memory_bound * given_up;
        }
    }
}
