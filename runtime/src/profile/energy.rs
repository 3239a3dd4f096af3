//! Energy by SM count: what a launch costs above an idle board.
//!
//! A profile holds the board's power while one kernel ran again and again, and what a launch took meanwhile ([`PowerSample`]). A board at its limit
//! lowers the clock, so that power and time of one sample belong together, and to that clock. Policies want one figure for all clocks:
//!
//! ```text
//! E(n) = (P(n) - P_idle) * t(n) * (f_full / f(n))^1.3
//! ```
//!
//! with `P`, `t` and `f` the sample's power, time and clock, and `f_full` the highest clock at which anything ran. The exponent was measured on an H200: four BERT-base
//! encoders in quarters take 0.24 J above idle for a forward pass at 1545 MHz and two of them 0.34 J at 1980 (results/h200/README.md), products at a clock lower by a
//! fifth a quarter less (docs/kernels/gemm.md). Energy for the same work is capacitance times voltage squared, and voltage falls with the clock, but not to nothing.
//!
//! Between two measured counts energy is linear in the SM count: a kernel that scales takes the same energy everywhere, and what does not scale keeps more SMs clocked. Outside of
//! them it stays. A kernel that turns out slower than its profile is taken to need no more energy for it, but less power.

use crate::device::Sms;

use super::{BoardPower, KernelProfile, PowerSample};

/// Energy of the same work by the clock: the exponent.
pub(crate) const ENERGY_BY_CLOCK: f64 = 1.3;

/// What the whole GPU's board draws, and may draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Board {
    /// SMs of the whole GPU.
    pub sms: Sms,
    /// Watts with nothing to do.
    pub idle_w: f64,
    /// Watts at which the clock falls.
    pub limit_w: f64,
}

/// What one launch of a kernel takes in energy, above idle and at the full clock, and of which board.
#[derive(Debug, Clone, PartialEq)]
pub struct Energy {
    board: Board,
    /// SM count and microjoules; SM counts rise strictly, energies are 0 or more.
    points: Vec<(Sms, f64)>,
}

impl Energy {
    /// Energies in microjoules by SM count, in any order. `None` without any, with a repeated count, a count of 0, an energy that is no number or negative, or a board
    /// whose limit is not above its idle power.
    pub fn new(board: Board, mut points: Vec<(Sms, f64)>) -> Option<Self> {
        points.sort_by_key(|point| point.0);
        let rising = points.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let sound = points.iter().all(|&(sms, uj)| sms.0 > 0 && uj.is_finite() && uj >= 0.0);
        let bounded = board.sms.0 > 0 && board.idle_w >= 0.0 && board.limit_w.is_finite() && board.limit_w > board.idle_w;
        (!points.is_empty() && rising && sound && bounded).then_some(Self { board, points })
    }

    /// What was measured of `kernel` on a GPU of `sms` SMs; `None` if its power was not read.
    pub fn of(kernel: &KernelProfile, power: &BoardPower, sms: Sms) -> Option<Self> {
        let board = Board { sms, idle_w: power.idle_w, limit_w: power.limit_w };
        let points = kernel.points.iter().filter_map(|point| Some((point.sms, at_full_clock(&point.power?, power)))).collect();
        Self::new(board, points)
    }

    /// The board.
    pub const fn board(&self) -> Board {
        self.board
    }

    /// The measured points.
    pub fn points(&self) -> &[(Sms, f64)] {
        &self.points
    }

    /// Microjoules of one launch on `sms` SMs.
    pub fn at(&self, sms: Sms) -> f64 {
        let above = self.points.partition_point(|point| point.0 < sms);
        match (above.checked_sub(1).map(|below| self.points[below]), self.points.get(above)) {
            (Some((low, less)), Some(&(high, more))) => {
                let share = f64::from(sms.0 - low.0) / f64::from(high.0 - low.0);
                less * (1.0 - share) + more * share
            }
            (None, Some(&(_, uj))) | (Some((_, uj)), None) => uj,
            (None, None) => 0.0,
        }
    }
}

/// Microjoules above idle, as they would be at the full clock. A kernel of few SMs may draw less than the noise of the idle board: then nothing.
fn at_full_clock(sample: &PowerSample, power: &BoardPower) -> f64 {
    let clock = f64::from(power.clock_mhz.max(sample.clock_mhz)) / f64::from(sample.clock_mhz.max(1));
    sample.above_idle_uj(power) * clock.powf(ENERGY_BY_CLOCK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOARD: Board = Board { sms: Sms(132), idle_w: 100.0, limit_w: 700.0 };

    #[test]
    fn points_that_make_no_energy_are_refused() {
        let sound = vec![(Sms(2), 1.0), (Sms(132), 0.0)];
        assert!(Energy::new(BOARD, sound.clone()).is_some());
        for points in [
            vec![],
            vec![(Sms(0), 1.0)],
            vec![(Sms(2), 1.0), (Sms(2), 2.0)],
            vec![(Sms(2), -1.0)],
            vec![(Sms(2), f64::NAN)],
            vec![(Sms(2), f64::INFINITY)],
        ] {
            assert_eq!(Energy::new(BOARD, points.clone()), None, "{points:?}");
        }
        for board in [
            Board { limit_w: 100.0, ..BOARD },
            Board { limit_w: f64::NAN, ..BOARD },
            Board { limit_w: f64::INFINITY, ..BOARD },
            Board { idle_w: -1.0, ..BOARD },
            Board { idle_w: f64::NAN, ..BOARD },
            Board { sms: Sms(0), ..BOARD },
        ] {
            assert_eq!(Energy::new(board, sound.clone()), None, "{board:?}");
        }
    }

    #[test]
    fn energy_is_linear_between_measured_counts_and_stays_outside() {
        let energy = Energy::new(BOARD, vec![(Sms(64), 300.0), (Sms(16), 100.0)]).unwrap();
        let at = |sms| energy.at(Sms(sms));
        assert_eq!([at(2), at(16), at(40), at(64), at(132)], [100.0, 100.0, 200.0, 300.0, 300.0]);
    }

    #[test]
    fn a_sample_at_the_limit_counts_as_more_at_the_full_clock_and_one_below_idle_as_nothing() {
        let power = BoardPower { idle_w: 130.0, limit_w: 700.0, clock_mhz: 1980 };
        let free = PowerSample { board_w: 658.0, launch_us: 637.0, clock_mhz: 1980 };
        // Four encoders in quarters on an H200, a forward pass of each; two of them at the full clock take 0.34 J.
        let held_back = PowerSample { board_w: 693.0, launch_us: 430.0, clock_mhz: 1545 };
        assert!((at_full_clock(&free, &power) - 528.0 * 637.0).abs() < 1e-6);
        assert!((at_full_clock(&held_back, &power) / 0.336e6 - 1.0).abs() < 0.02, "{}", at_full_clock(&held_back, &power));
        assert_eq!(at_full_clock(&PowerSample { board_w: 120.0, ..free }, &power), 0.0);
    }

    proptest! {
        #[test]
        fn energy_stays_between_its_neighbours(
            points in prop::collection::btree_map(1_u16..=256, 0.0_f64..1e5, 1..6), sms in 0_u16..300,
        ) {
            let points: Vec<_> = points.into_iter().map(|(sms, uj)| (Sms(sms), uj)).collect();
            let (least, most) = points.iter().fold((f64::INFINITY, 0.0_f64), |(least, most), point| (least.min(point.1), most.max(point.1)));
            let uj = Energy::new(BOARD, points).unwrap().at(Sms(sms));
            prop_assert!((least - 1e-9..=most + 1e-9).contains(&uj));
        }
    }
}
