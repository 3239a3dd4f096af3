//! What tenants draw together, and what the clock makes of it: the power budget.
//!
//! A board at its power limit lowers the clock of all SMs, so that each tenant slows down for what all of them draw. At the full clock a tenant `t` draws
//!
//! ```text
//! W_t = E_t(n) / T_t        E_t(n): its request's energy above idle on n SMs; T_t: its latency beside the others
//! ```
//!
//! or, where the rate of its requests is known, that rate times `E_t`, if that is less. Where the idle board and all `W_t` together are above the limit, the clock falls from `f` to
//! `phi * f` such that they fit. With `m` the share of a request in which it moves bytes as fast as its SMs can, which no clock of the SMs makes quicker,
//!
//! ```text
//! time    T_t(phi) = T_t * (m + (1 - m) / phi)
//! energy  E_t(phi) = E_t * phi^1.3
//! fits    W * phi^1.3 / (m + (1 - m) / phi) = limit - idle        W, m: all tenants' sum, and mean by what they draw
//! ```
//!
//! The exponent is measured ([`Energy`](crate::profile::Energy)): work that scales with the clock draws its power to the 2.3, between the square and the cube that voltage and frequency
//! leave room for (Horowitz, "Computing's Energy Problem", ISSCC 2014). Four BERT-base encoders in quarters of an H200 draw 4 * 262 W of the 570 W above idle that there are: predicted is 0.77 of the full
//! clock for `m = 0`, measured were 1545 of 1980 MHz, 0.78. Beside each other they draw less than four times one alone, since they are slowed down in L2.
//!
//! So at the limit throughput is power over energy, and joules have a price: one watt more slows every tenant down. In the logarithm of all throughput tenants' rates, a percent more of
//! what all draw costs the price in percent:
//!
//! ```text
//! price = sum over them of k_t / (1.3 + k)        k = (1 - m) / (m * phi + 1 - m)
//! ```
//!
//! `k_t` being how much of a fall of the clock `t` feels and `k` the same for all together. What a tenant's kernel could save in energy is worth so much of its time (`placement`), and sizes
//! are tried at such prices (`throughput`). Latency tenants pay none: what they need is sized for the clock as it is predicted, and no objective is given up for joules.
//!
//! No part of a board's power is predicted where a tenant works of whose kernels no energy is known: half of a sum is no budget.

use std::iter::Sum;

use crate::device::{Sms, Topology};
use crate::policy::{GAP_US, KernelDemand};
use crate::profile::{Board, ENERGY_BY_CLOCK, Energy};

use super::contention::Load;

/// The share of its full clock below which no board falls: an H200 idles at 345 of 1980 MHz.
const LOWEST_CLOCK: f64 = 0.17;
/// Of Newton's method: the function is nearly a line, and two find the clock to a thousandth.
const STEPS: u32 = 2;

/// What a part of the GPU may draw above idle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Power {
    pub(super) board: Board,
    /// Watts. Of a part of the GPU, as many as its share of the SMs.
    pub(super) budget_w: f64,
}

/// What one tenant draws above idle at the full clock, or several together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Draw {
    pub(super) watts: f64,
    /// Those of them whose rate no clock changes.
    unclocked: f64,
}

impl Power {
    /// The budget of these SMs.
    pub(super) fn new(topology: &Topology, board: Board) -> Self {
        let share = f64::from(topology.sms.0) / f64::from(board.sms.0.max(1));
        Self { board, budget_w: (board.limit_w - board.idle_w) * share.min(1.0) }
    }

    /// The clock, as a share of the full one, at which `draw` fits.
    pub(super) fn clock(&self, draw: Draw) -> f64 {
        if draw.watts <= self.budget_w {
            return 1.0;
        }
        let (over, memory) = ((draw.watts / self.budget_w).ln(), draw.memory());
        // By Newton's method in the logarithm of the clock.
        let mut x = -over / (ENERGY_BY_CLOCK + 1.0 - memory);
        for _ in 0..STEPS {
            let slower = (1.0 - memory) * (-x).exp();
            let times = memory + slower;
            x -= (ENERGY_BY_CLOCK * x - times.ln() + over) / (ENERGY_BY_CLOCK + slower / times);
        }
        x.exp().clamp(LOWEST_CLOCK, 1.0)
    }

    /// What as much again as `draw` costs in the logarithm of rates, to first order: of tenants whose shares of time that no clock changes are `memories`. Nothing below the limit.
    pub(super) fn price(&self, draw: Draw, memories: impl Iterator<Item = f64>) -> f64 {
        let clock = self.clock(draw);
        if clock >= 1.0 {
            return 0.0;
        }
        let felt = |memory: f64| (1.0 - memory) / (memory * clock + 1.0 - memory);
        memories.map(felt).sum::<f64>() / (ENERGY_BY_CLOCK + felt(draw.memory()))
    }
}

/// How many times longer than at the full clock a request takes.
pub(super) fn times(load: &Load, clock: f64) -> f64 {
    if clock >= 1.0 {
        return 1.0;
    }
    let memory = load.memory();
    memory + (1.0 - memory) / clock
}

impl Draw {
    /// Of a tenant whose request takes `us`, and comes at a rate, where one is known, instead of one after another.
    pub(super) fn of(load: &Load, us: f64, rate: Option<f64>) -> Self {
        let busy = load.uj / us;
        match rate.map(|rate| rate * load.uj * 1e-6).filter(|&watts| watts < busy) {
            Some(watts) => Self { watts, unclocked: watts },
            None => Self { watts: busy, unclocked: busy * load.memory() },
        }
    }

    /// The mean of both, of which the other is drawn for this share of the time.
    pub(super) fn mixed(self, other: Self, share: f64) -> Self {
        let mix = |one: f64, other: f64| one + share * (other - one);
        Self { watts: mix(self.watts, other.watts), unclocked: mix(self.unclocked, other.unclocked) }
    }

    /// The share whose rate no clock changes.
    pub(super) fn memory(self) -> f64 {
        if self.watts > 0.0 { (self.unclocked / self.watts).clamp(0.0, 1.0) } else { 0.0 }
    }
}

impl Sum for Draw {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self { watts: sum.watts + one.watts, unclocked: sum.unclocked + one.unclocked })
    }
}

/// The energies of one request's kernels, at the SM counts at which the first of them was measured: profiles have the same for all.
#[derive(Debug)]
pub(super) struct Energies {
    pub(super) board: Board,
    counts: Vec<Sms>,
    /// Microjoules of one launch by kernel and count, kernel after kernel.
    kernels: Vec<f64>,
    /// Of the request by count.
    request: Vec<f64>,
}

/// A size as a mixture of two counts. As in [`Energy::at`], energy is linear between them.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    low: usize,
    high: usize,
    share: f64,
}

impl Energies {
    /// None if no kernel has energy. One that has none beside others that do counts as drawing what they draw on average.
    pub(super) fn new(kernels: &[&KernelDemand]) -> Option<Self> {
        let first = kernels.iter().find_map(|kernel| energy(kernel))?;
        let counts: Vec<Sms> = first.points().iter().map(|point| point.0).collect();
        let (rows, request) = (Vec::with_capacity(kernels.len() * counts.len()), vec![0.0; counts.len()]);
        let mut energies = Self { board: first.board(), counts, kernels: rows, request };
        let mut lacking = Vec::new();
        for (number, kernel) in kernels.iter().enumerate() {
            match energy(kernel) {
                Some(energy) => energies.append(energy),
                None => {
                    lacking.push(number);
                    energies.kernels.extend(energies.counts.iter().map(|_| 0.0));
                }
            }
        }
        for (kernel, row) in kernels.iter().zip(energies.kernels.chunks_exact(energies.counts.len())) {
            row.iter().zip(&mut energies.request).for_each(|(uj, sum)| *sum += f64::from(kernel.launches) * uj);
        }
        if !lacking.is_empty() {
            energies.fill(kernels, &lacking);
        }
        Some(energies)
    }

    fn append(&mut self, energy: &Energy) {
        let points = energy.points();
        if points.len() == self.counts.len() && points.iter().zip(&self.counts).all(|(point, count)| point.0 == *count) {
            self.kernels.extend(points.iter().map(|point| point.1));
        } else {
            let Self { counts, kernels, .. } = self;
            kernels.extend(counts.iter().map(|&count| energy.at(count)));
        }
    }

    /// Gives kernels without energy the others' mean power.
    fn fill(&mut self, kernels: &[&KernelDemand], lacking: &[usize]) {
        let width = self.counts.len();
        for (place, &count) in self.counts.iter().enumerate() {
            let known = (0..kernels.len()).filter(|number| !lacking.contains(number));
            let known_us: f64 = known.map(|number| launches_us(kernels[number], count)).sum();
            let watts = self.request[place] / known_us;
            for &number in lacking {
                let us = launches_us(kernels[number], count);
                self.kernels[number * width + place] = watts * us / f64::from(kernels[number].launches.max(1));
                self.request[place] += watts * us;
            }
        }
    }

    /// Where `sms` lie between the counts.
    pub(super) fn place(&self, sms: Sms) -> At {
        let above = self.counts.partition_point(|count| *count < sms);
        if above == 0 || above == self.counts.len() {
            let only = above.min(self.counts.len() - 1);
            return At { low: only, high: only, share: 0.0 };
        }
        let (low, high) = (self.counts[above - 1].0, self.counts[above].0);
        At { low: above - 1, high: above, share: f64::from(sms.0 - low) / f64::from(high - low) }
    }

    /// One launch of a kernel, microjoules.
    pub(super) fn kernel(&self, kernel: usize, at: At) -> f64 {
        let row = &self.kernels[kernel * self.counts.len()..(kernel + 1) * self.counts.len()];
        at.mix(row)
    }

    /// One request, microjoules.
    pub(super) fn request(&self, at: At) -> f64 {
        at.mix(&self.request)
    }
}

impl At {
    fn mix(self, row: &[f64]) -> f64 {
        row[self.low] * (1.0 - self.share) + row[self.high] * self.share
    }
}

fn energy(kernel: &KernelDemand) -> Option<&Energy> {
    kernel.curve.as_deref()?.energy()
}

/// All launches of a kernel in one request, microseconds.
fn launches_us(kernel: &KernelDemand, sms: Sms) -> f64 {
    kernel.curve.as_ref().map_or(0.0, |curve| f64::from(kernel.launches) * (curve.at(sms) + GAP_US))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn power(budget_w: f64) -> Power {
        Power { board: Board { sms: Sms(132), idle_w: 130.0, limit_w: 130.0 + budget_w }, budget_w }
    }

    fn draw(watts: f64, memory: f64) -> Draw {
        Draw { watts, unclocked: watts * memory }
    }

    #[test]
    fn four_encoders_in_quarters_of_an_h200_run_at_the_clock_that_was_measured() {
        // One draws 262 W above idle. Measured at 700 W: 1545 of 1980 MHz.
        let clock = power(570.0).clock(draw(4.0 * 262.0, 0.0));
        assert!((clock * 1980.0 - 1545.0).abs() < 40.0, "{clock}");
    }

    #[test]
    fn below_the_limit_the_clock_is_full_and_joules_cost_nothing() {
        assert_eq!(power(570.0).clock(draw(570.0, 0.3)), 1.0);
        assert_eq!(power(570.0).price(draw(570.0, 0.3), [0.3, 0.3].into_iter()), 0.0);
        assert_eq!(power(570.0).clock(Draw::default()), 1.0);
        let load = Load { us: 10.0, memory_us: 3.0, ..Load::default() };
        assert_eq!(times(&load, 1.0), 1.0);
    }

    #[test]
    fn a_tenant_at_a_rate_draws_for_the_requests_that_come_and_never_more_than_when_it_is_always_busy() {
        let load = Load { us: 1000.0, memory_us: 500.0, uj: 400_000.0, ..Load::default() };
        let watts = |rate| Draw::of(&load, 2000.0, rate).watts;
        assert_eq!([watts(None), watts(Some(100.0)), watts(Some(1e9))], [200.0, 40.0, 200.0]);
        assert_eq!(Draw::of(&load, 2000.0, Some(100.0)).memory(), 1.0);
        assert_eq!(Draw::of(&load, 2000.0, None).memory(), 0.5);
    }

    proptest! {
        #[test]
        fn at_the_clock_that_is_found_the_draw_is_the_budget(over in 1.001_f64..6.0, memory in 0.0_f64..1.0) {
            let clock = power(500.0).clock(draw(500.0 * over, memory));
            let drawn = 500.0 * over * clock.powf(ENERGY_BY_CLOCK) / (memory + (1.0 - memory) / clock);
            prop_assert!(clock < 1.0 && (clock <= LOWEST_CLOCK || (drawn / 500.0 - 1.0).abs() < 1e-3), "{clock}: {drawn} W");
        }

        #[test]
        fn who_draws_more_lowers_the_clock_and_a_lower_clock_makes_nobody_faster(
            watts in 0.0_f64..3000.0, more in 0.0_f64..1000.0, memory in 0.0_f64..1.0, bytes in 0.0_f64..1.0,
        ) {
            let (less, more) = (power(570.0).clock(draw(watts, memory)), power(570.0).clock(draw(watts + more, memory)));
            prop_assert!(more <= less + 1e-9);
            let load = Load { us: 1.0, memory_us: bytes, ..Load::default() };
            prop_assert!(times(&load, more) >= times(&load, less) - 1e-9);
            prop_assert!(times(&load, less) >= 1.0);
        }

        #[test]
        fn the_price_of_a_watt_is_what_it_costs_everybody(over in 1.05_f64..4.0, memories in prop::collection::vec(0.0_f64..1.0, 1..6)) {
            // One kind of draw, so that its mixture does not change with its height.
            let memory = memories.iter().sum::<f64>() / memories.len() as f64;
            let log_rates = |watts: f64| {
                let clock = power(500.0).clock(draw(watts, memory));
                memories.iter().map(|&bytes| -times(&Load { us: 1.0, memory_us: bytes, ..Load::default() }, clock).ln()).sum::<f64>()
            };
            let watts = 500.0 * over;
            prop_assume!(power(500.0).clock(draw(watts * 1.01, memory)) > LOWEST_CLOCK);
            let lost = log_rates(watts) - log_rates(watts * 1.001);
            let price = power(500.0).price(draw(watts, memory), memories.iter().copied());
            prop_assert!((lost / 0.001_f64.ln_1p() - price).abs() < 0.02 * price + 1e-4, "{lost} lost at a price of {price}");
        }
    }
}
