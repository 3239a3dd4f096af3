//! Latency by SM count.

use std::sync::Arc;

use crate::device::Sms;

use super::Energy;

/// Median latencies of one kernel at rising SM counts, and what a launch takes in energy where that was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// SM count and latency in microseconds; SM counts rise strictly, latencies are positive.
    points: Vec<(Sms, f64)>,
    energy: Option<Arc<Energy>>,
}

impl Curve {
    /// A curve through `points`, in any order. `None` without points, with a repeated SM count, a count of 0, or a latency that is not a
    /// positive number.
    pub fn new(mut points: Vec<(Sms, f64)>) -> Option<Self> {
        points.sort_by_key(|point| point.0);
        let rising = points.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let sound = points.iter().all(|&(sms, us)| sms.0 > 0 && us.is_finite() && us > 0.0);
        (!points.is_empty() && rising && sound).then_some(Self { points, energy: None })
    }

    /// The same latencies with, or without, what a launch takes in energy.
    #[must_use]
    pub fn with_energy(self, energy: Option<Arc<Energy>>) -> Self {
        Self { energy, ..self }
    }

    /// What a launch takes in energy; none if that was not measured.
    pub fn energy(&self) -> Option<&Energy> {
        self.energy.as_deref()
    }

    /// The measured points.
    pub fn points(&self) -> &[(Sms, f64)] {
        &self.points
    }

    /// Latency in microseconds on `sms` SMs: between measured counts, SM-time is interpolated linearly; below the first, SM-time stays;
    /// beyond the last, latency stays.
    pub fn at(&self, sms: Sms) -> f64 {
        let x = f64::from(sms.0.max(1));
        let sm_time = |&(sms, us): &(Sms, f64)| f64::from(sms.0) * us;
        let above = self.points.partition_point(|point| point.0 < sms);
        match (above.checked_sub(1).map(|below| &self.points[below]), self.points.get(above)) {
            (None, Some(first)) => sm_time(first) / x,
            (Some(last), None) => last.1,
            (Some(low), Some(high)) => {
                let (x0, x1) = (f64::from(low.0.0), f64::from(high.0.0));
                let share = (x - x0) / (x1 - x0);
                (sm_time(low) * (1.0 - share) + sm_time(high) * share) / x
            }
            (None, None) => f64::INFINITY,
        }
    }

    /// The same curve with every latency multiplied by `factor`; the curve as it is where that would make no curve. The energy of a launch stays: what makes a kernel slower
    /// (a lower clock, a neighbour) lowers its power, and not what it has to do.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let scaled = Self::new(self.points.iter().map(|&(sms, us)| (sms, us * factor)).collect());
        scaled.map_or_else(|| self.clone(), |curve| curve.with_energy(self.energy.clone()))
    }

    /// The best latency anywhere on the curve, microseconds.
    pub fn best(&self) -> f64 {
        self.points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min)
    }

    /// The fewest measured SMs on which the kernel is within `tolerance` (0.02 is 2%) of its latency on the most SMs, as KRISP (HPCA 2023)
    /// defines it. A count stands only if the next one up keeps the tolerance too: more SMs never make a kernel need more, so a lone dip
    /// is noise, and giving a kernel too few SMs costs more than giving it a rung too many.
    pub fn minimum_sms(&self, tolerance: f64) -> Sms {
        let (most, whole) = self.points[self.points.len() - 1];
        let enough = |&(_, us): &(Sms, f64)| us <= whole * (1.0 + tolerance);
        self.points.windows(2).find(|pair| enough(&pair[0]) && enough(&pair[1])).map_or(most, |pair| pair[0].0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn curve(points: &[(u16, f64)]) -> Curve {
        Curve::new(points.iter().map(|&(sms, us)| (Sms(sms), us)).collect()).unwrap()
    }

    fn any_curve() -> impl Strategy<Value = Curve> {
        prop::collection::btree_map(1_u16..=256, 0.1_f64..1e5, 1..20)
            .prop_map(|points| Curve::new(points.into_iter().map(|(sms, us)| (Sms(sms), us)).collect()).unwrap())
    }

    #[test]
    fn points_that_make_no_curve_are_refused() {
        for points in [
            vec![],
            vec![(Sms(0), 1.0)],
            vec![(Sms(2), 1.0), (Sms(2), 2.0)],
            vec![(Sms(2), 0.0)],
            vec![(Sms(2), -1.0)],
            vec![(Sms(2), f64::NAN)],
            vec![(Sms(2), f64::INFINITY)],
        ] {
            assert_eq!(Curve::new(points.clone()), None, "{points:?}");
        }
    }

    #[test]
    fn the_minimum_is_the_first_count_of_the_flat_end() {
        let staircase = curve(&[(2, 80.0), (8, 20.0), (16, 10.1), (32, 10.0), (66, 10.15), (132, 10.0)]);
        assert_eq!(staircase.minimum_sms(0.02), Sms(16));
        assert_eq!(staircase.minimum_sms(0.001), Sms(132));
        assert_eq!(staircase.minimum_sms(1.0), Sms(8));
    }

    #[test]
    fn a_lone_dip_below_the_knee_is_not_taken_for_it() {
        assert_eq!(curve(&[(8, 20.0), (16, 9.9), (32, 15.0), (66, 10.0), (132, 10.0)]).minimum_sms(0.02), Sms(66));
    }

    #[test]
    fn a_kernel_that_scales_to_the_last_sm_needs_them_all() {
        assert_eq!(curve(&[(66, 20.0), (132, 10.0)]).minimum_sms(0.02), Sms(132));
        assert_eq!(curve(&[(132, 10.0)]).minimum_sms(0.02), Sms(132));
    }

    proptest! {
        #[test]
        fn at_a_measured_count_the_curve_is_the_measurement(curve in any_curve()) {
            for &(sms, us) in curve.points() {
                prop_assert!((curve.at(sms) - us).abs() <= 1e-9 * us, "{sms}: {} against {us}", curve.at(sms));
            }
        }

        #[test]
        fn between_two_measured_counts_latency_moves_one_way_and_stays_between_them(curve in any_curve()) {
            for pair in curve.points().windows(2) {
                let ((low, left), (high, right)) = (pair[0], pair[1]);
                let direction = (right - left).signum();
                let slack = 1e-9 * left.max(right);
                let mut last = left;
                for sms in low.0..=high.0 {
                    let us = curve.at(Sms(sms));
                    prop_assert!((us - last) * direction >= -slack, "{sms}: {us} after {last}");
                    prop_assert!(us >= left.min(right) - slack && us <= left.max(right) + slack, "{sms}: {us}");
                    last = us;
                }
            }
        }

        #[test]
        fn outside_the_measured_counts_nothing_gets_faster(curve in any_curve()) {
            let (first, last) = (curve.points()[0], curve.points()[curve.points().len() - 1]);
            for sms in 0..=first.0.0 {
                prop_assert!(curve.at(Sms(sms)) >= first.1 * (1.0 - 1e-9));
            }
            prop_assert_eq!(curve.at(Sms(last.0.0 + 100)), last.1);
        }

        #[test]
        fn the_minimum_is_a_measured_count_within_the_tolerance(curve in any_curve(), tolerance in 0.001_f64..0.5) {
            let minimum = curve.minimum_sms(tolerance);
            let whole = curve.points()[curve.points().len() - 1].1;
            let point = curve.points().iter().find(|point| point.0 == minimum);
            prop_assert!(point.is_some_and(|point| point.1 <= whole * (1.0 + tolerance)));
        }

        #[test]
        fn a_wider_tolerance_never_asks_for_more_sms(curve in any_curve(), narrow in 0.001_f64..0.5, more in 0.0_f64..0.5) {
            prop_assert!(curve.minimum_sms(narrow + more) <= curve.minimum_sms(narrow));
        }
    }
}
