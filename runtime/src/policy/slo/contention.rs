//! What tenants on disjoint SMs cost each other: the bandwidth budget.
//!
//! Green contexts divide SMs. They do not divide the L2, the crossbar or the DRAM, so a tenant slows down while its neighbours work. Three
//! effects, each a factor on the tenant's rate, with `m` the share of its time in which it moves bytes as fast as its SMs can:
//!
//! | effect | factor | constant from |
//! |---|---|---|
//! | L2 and crossbar: tensor-core work moves its operands through the L2 many times | `1 - m * 0.28 * min(1, tensor / 0.5)` | readers on 16 to 48 SMs lose 24 to 31%, 28% on average, beside a GEMM on the rest |
//! | DRAM: all together ask for `D`, more than the `B` there is | `1 - m * (1 - B / D)` | 4.64 TB/s read by all SMs |
//! | L2 misses: neighbours' bytes evict what a tenant would find again | `1 - (1 - m) * 0.60 * min(1, traffic / B)` | a GEMM on 72 to 96 SMs keeps 81 to 90% beside 0.92 to 1.46 TB/s |
//!
//! `tensor` is the neighbours' share of the GPU's tensor-core rate, as much slower as they are beside others; `traffic` are the bytes a second that they ask
//! for. They are averages over a request, so a
//! planner that keeps `D` below `B` places memory-bound tenants beside compute-bound ones: two of the former fill the DRAM, two of the latter
//! fill the tensor cores, one of each pays the first effect alone. The simulator computes the same effects kernel by kernel.
//!
//! All constants were measured on an H200. On another GPU the shape holds and the figures are guesses.

use std::iter::Sum;

use crate::device::{Sms, Topology};

/// Bytes a microsecond that the first so many SMs read: 4 GB, 1024-thread blocks, 16-byte loads.
const READ: [(u16, f64); 10] = [
    (8, 1.000e6),
    (16, 1.890e6),
    (24, 2.690e6),
    (32, 3.250e6),
    (40, 3.780e6),
    (48, 4.110e6),
    (56, 4.280e6),
    (64, 4.460e6),
    (80, 4.500e6),
    (132, 4.640e6),
];
/// FP16 operations a microsecond that one SM sustains: 640 TFLOP/s of a large GEMM on 132 SMs.
const FLOPS_PER_SM: f64 = 640e6 / 132.0;
/// Rate that a reader loses beside tensor-core work.
const L2_LOSS: f64 = 0.28;
/// The share of the GPU's tensor-core rate from which on it loses no more. A decoding Llama-3.2-1B on 66 SMs takes 1.18 times as long beside BERT-large or a
/// prefill of Mistral-7B on the others, which do 0.36 and 0.46 of that rate there; a GEMM on 84 SMs costs readers no less than one on 116.
const L2_SATURATION: f64 = 0.5;
/// Rate that cached work would lose beside all of the DRAM's traffic.
const MISS_LOSS: f64 = 0.60;

/// Bytes a microsecond that `sms` SMs can read: in proportion below the first measured count, linear between counts, constant beyond the last.
pub(super) fn read_rate(sms: Sms) -> f64 {
    let above = READ.partition_point(|&(count, _)| count < sms.0);
    match (above.checked_sub(1).map(|below| READ[below]), READ.get(above)) {
        (Some((low, slow)), Some(&(high, fast))) => slow + (fast - slow) * f64::from(sms.0 - low) / f64::from(high - low),
        (None, Some(&(count, rate))) => rate * f64::from(sms.0.max(1)) / f64::from(count),
        (_, None) => READ[READ.len() - 1].1,
    }
}

/// One request of a tenant on some number of SMs, undisturbed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    /// Its latency, microseconds.
    pub(super) us: f64,
    /// The time that its bytes would take on these SMs if it did nothing else; at most `us`.
    pub(super) memory_us: f64,
    /// Bytes it moves.
    pub(super) bytes: f64,
    /// Operations it does.
    pub(super) flops: f64,
    /// What it takes in energy at the full clock, above an idle board, microjoules: 0 where nobody knows.
    pub(super) uj: f64,
}

impl Load {
    /// The share of its time in which it moves bytes as fast as its SMs can.
    pub(super) fn memory(&self) -> f64 {
        (self.memory_us / self.us).clamp(0.0, 1.0)
    }
}

/// What a tenant does to its neighbours while it works.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pressure {
    /// Bytes a microsecond.
    pub(super) traffic: f64,
    /// Operations a microsecond.
    pub(super) flops: f64,
}

impl Pressure {
    /// Of a tenant that works all the time.
    pub(super) fn of(load: &Load) -> Self {
        Self { traffic: load.bytes / load.us, flops: load.flops / load.us }
    }

    /// Of a tenant whose arithmetic is so many times slower than undisturbed. What it asks of the DRAM stays: by that is decided who gets how much.
    pub(super) fn slowed(self, times: f64) -> Self {
        Self { flops: self.flops / times, ..self }
    }

    /// This pressure without one of its parts; never negative, whatever rounding says.
    pub(super) fn without(self, one: Self) -> Self {
        Self { traffic: (self.traffic - one.traffic).max(0.0), flops: (self.flops - one.flops).max(0.0) }
    }
}

impl Sum for Pressure {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self { traffic: sum.traffic + one.traffic, flops: sum.flops + one.flops })
    }
}

/// The rates of one GPU that neighbours contend for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contention {
    /// Bytes a microsecond.
    pub(super) read: f64,
    /// Operations a microsecond.
    flops: f64,
    ignored: bool,
}

impl Contention {
    /// For this GPU; `ignored` predicts that neighbours cost nothing.
    pub(super) fn new(topology: &Topology, ignored: bool) -> Self {
        Self { read: read_rate(topology.sms), flops: FLOPS_PER_SM * f64::from(topology.sms.0.max(1)), ignored }
    }

    /// Whether neighbours are predicted to cost nothing.
    pub(super) fn is_ignored(&self) -> bool {
        self.ignored
    }

    /// What a tenant of which nothing is known is expected to do: as much as a large GEMM.
    pub(super) fn unknown(&self) -> Pressure {
        Pressure { traffic: 0.0, flops: self.flops * L2_SATURATION }
    }

    /// How many times longer a request takes beside such neighbours: 1 or more.
    pub(super) fn slowdown(&self, load: &Load, neighbours: Pressure) -> f64 {
        if self.ignored {
            return 1.0;
        }
        let memory = load.memory();
        let tensor = (neighbours.flops / self.flops / L2_SATURATION).min(1.0);
        let demand = load.bytes / load.us + neighbours.traffic;
        let l2 = 1.0 - memory * L2_LOSS * tensor;
        let dram = 1.0 - memory * (1.0 - self.read / demand.max(self.read));
        let misses = 1.0 - (1.0 - memory) * MISS_LOSS * (neighbours.traffic / self.read).min(1.0);
        1.0 / (l2 * dram * misses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads all the time on `sms` SMs.
    fn reader(sms: u16) -> Load {
        let us = 1000.0;
        Load { us, memory_us: us, bytes: read_rate(Sms(sms)) * us, ..Load::default() }
    }

    fn h200() -> Contention {
        Contention { read: read_rate(Sms(132)), flops: FLOPS_PER_SM * 132.0, ignored: false }
    }

    #[test]
    fn a_reader_beside_a_gemm_slows_down_as_measured() {
        // SMs, GB/s alone, GB/s beside a GEMM on the other SMs.
        for (sms, alone, beside) in
            [(16, 1880.0, 1364.0), (24, 2598.0, 1878.0), (32, 3072.0, 2126.0), (40, 3655.0, 2608.0), (48, 3955.0, 2997.0)]
        {
            let gemm = Pressure { traffic: 0.0, flops: FLOPS_PER_SM * f64::from(132 - sms) };
            let predicted = h200().slowdown(&reader(sms), gemm);
            let measured: f64 = alone / beside;
            assert!((predicted / measured - 1.0).abs() < 0.06, "{sms} SMs: {predicted} predicted, {measured} measured");
        }
    }

    #[test]
    fn readers_that_ask_for_more_than_the_dram_gives_share_it() {
        let [narrow, wide] = [reader(16), reader(80)];
        let (first, second) = (h200().slowdown(&narrow, Pressure::of(&wide)), h200().slowdown(&wide, Pressure::of(&narrow)));
        let served = narrow.bytes / narrow.us / first + wide.bytes / wide.us / second;
        assert!((served - h200().read).abs() < 1.0, "{served}");
    }

    #[test]
    fn arithmetic_suffers_from_traffic_and_not_from_arithmetic() {
        let gemm = Load { us: 1000.0, flops: 320e9, ..Load::default() };
        assert_eq!(h200().slowdown(&gemm, Pressure::of(&gemm)), 1.0);
        // A GEMM on 72 SMs kept 81% of its rate beside 1.46 TB/s.
        let measured: f64 = 1.0 / 0.81;
        let predicted = h200().slowdown(&gemm, Pressure { traffic: 1.46e6, flops: 0.0 });
        assert!((predicted / measured - 1.0).abs() < 0.02, "{predicted}");
    }
}
