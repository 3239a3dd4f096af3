//! Online correction: what kernel times seen while serving say against the profile.
//!
//! A sample is a kernel's time on the device divided by its curve's at the SM count that it was launched for. The **drift** of a kernel is the
//! lower quartile of the logarithms of its last 16 samples. A lower quartile, and not a mean or a median, because what disturbs a sample (a
//! neighbour on the memory bus, SMs taken back, a clock that fell) makes it longer and hardly ever shorter: up to three quarters of the
//! samples may be disturbed before the drift moves. It is a milder form of the minimum, which Chen and Revels, "Robust benchmarking in noisy
//! environments", 2016, argue for on these grounds and which a single lucky sample would decide.
//!
//! A drift that is further than [`DRIFT_BOUND`] from the correction in force becomes the correction: one factor for the whole curve. Drifts
//! within the bound of it change nothing, so that plans do not follow noise. Whole replays are judged in the same way, by tenant, against what the plan in
//! force expects of them: most engines launch little else, and a plan whose forecast of neighbours is wrong shows there alone. A replay that differs does not say by
//! which kernel, so it corrects nothing; it has a few requests launched in place of replays, whose kernels are sampled like any others. What constantly disturbs every sample of a kernel cannot be told
//! from drift, and is corrected as if it were.

use std::collections::HashMap;
use std::hash::Hash;

use crate::device::{Fingerprint, KernelKey};
use crate::tenant::TenantId;

/// Samples that a drift is computed from, at most: the last ones.
pub(crate) const WINDOW: usize = 16;

/// Samples below which a kernel is not judged: its lower quartile would be one of its two fastest, and at this many it is the second.
const FEWEST: usize = 8;

/// How far a kernel's time may be from the corrected profile, as a fraction of it.
pub const DRIFT_BOUND: f64 = 0.15;

/// Kernels that shall take less, in microseconds, are not judged: the events around them take up to 2 us themselves.
pub const SHORTEST_JUDGED_US: f64 = 20.0;

/// Replays that shall take less, in microseconds, are not judged: the host takes up to 10 us to launch them.
pub const SHORTEST_JUDGED_REPLAY_US: f64 = 200.0;

/// Samples and corrections by kernel, or by whatever else is timed.
#[derive(Debug, Clone)]
pub struct Corrections<K = Fingerprint> {
    /// The logarithm of what a kernel's time may be multiplied by.
    bound: f64,
    shortest_us: f64,
    kernels: HashMap<K, Samples>,
    /// Kernels that the last review found out of bounds.
    found: Vec<K>,
}

/// The last samples of one kernel.
#[derive(Debug, Clone, Default)]
struct Samples {
    /// Logarithms of measured over expected.
    logs: [f64; WINDOW],
    taken: usize,
    /// The logarithm of the correction in force.
    correction: f64,
}

/// Kernels that differ from their profile.
#[derive(Debug, Clone, PartialEq)]
pub struct DriftReport {
    /// Those whose correction has changed, by falling distance from the profile.
    pub kernels: Vec<KernelDrift>,
    /// Tenants whose replays differ from what the plan expects of them, though their kernels need not: told, and not corrected by itself. Of these,
    /// kernels are timed from here on.
    pub tenants: Vec<PlanDrift>,
    /// Whether the runtime has planned again: not where its policy does not look at profiles.
    pub replanned: bool,
}

/// A tenant whose replays differ from their forecast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanDrift {
    /// Which tenant.
    pub tenant: TenantId,
    /// A replay's time divided by what the plan in force expects: above 1 it is slower.
    pub ratio: f64,
}

/// A kernel that differs from its profile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KernelDrift {
    /// Which kernel.
    pub kernel: KernelKey,
    /// Its time divided by its profile's: above 1 it is slower.
    pub ratio: f64,
}

impl Default for Corrections {
    /// No samples, and [`DRIFT_BOUND`].
    fn default() -> Self {
        Self::new(DRIFT_BOUND, SHORTEST_JUDGED_US)
    }
}

impl Corrections<TenantId> {
    /// No samples of replays, and [`DRIFT_BOUND`].
    pub fn of_replays() -> Self {
        Self::new(DRIFT_BOUND, SHORTEST_JUDGED_REPLAY_US)
    }
}

impl PlanDrift {
    /// Whether its replays differ now: a drift that has gone is told of, too.
    pub(crate) fn is_out_of_bounds(&self) -> bool {
        self.ratio.ln().abs() > DRIFT_BOUND.ln_1p()
    }
}

impl<K: Copy + Ord + Hash> Corrections<K> {
    /// No samples yet. `bound` is a fraction: 0.15 lets a kernel take between 1/1.15 and 1.15 times as long as it should. What shall take less than
    /// `shortest_us` is not judged.
    pub fn new(bound: f64, shortest_us: f64) -> Self {
        Self { bound: bound.max(0.0).ln_1p(), shortest_us, kernels: HashMap::new(), found: Vec::new() }
    }

    /// Adds a sample: `measured_us` on the device, where the profile says `expected_us`. Samples that mean nothing, and those of what is too short, are
    /// left out.
    pub fn add(&mut self, kernel: K, measured_us: f64, expected_us: f64) {
        let log = (measured_us / expected_us).ln();
        if expected_us >= self.shortest_us && log.is_finite() {
            let samples = self.kernels.entry(kernel).or_default();
            samples.logs[samples.taken % WINDOW] = log;
            samples.taken += 1;
        }
    }

    /// The kernels whose drift is out of bounds, each with its new correction, which is in force from now on: measured over expected. While
    /// a review finds kernels that the one before it did not find, there are none yet: what slows a device down slows many kernels, whose
    /// samples come in one after another, and is one finding.
    pub fn review(&mut self) -> Vec<(K, f64)> {
        let out_of_bounds = |samples: &Samples| samples.drift().filter(|drift| (drift - samples.correction).abs() > self.bound);
        let mut found: Vec<_> = self.kernels.iter().filter_map(|(&kernel, samples)| Some((kernel, out_of_bounds(samples)?))).collect();
        let settled = found.iter().all(|(kernel, _)| self.found.contains(kernel));
        self.found = found.iter().map(|&(kernel, _)| kernel).collect();
        if !settled {
            return Vec::new();
        }
        found.sort_by(|one, other| other.1.abs().total_cmp(&one.1.abs()).then(one.0.cmp(&other.0)));
        for &(kernel, drift) in &found {
            self.kernels.entry(kernel).or_default().correction = drift;
        }
        found.into_iter().map(|(kernel, drift)| (kernel, drift.exp())).collect()
    }

    /// Samples added so far.
    pub(crate) fn taken(&self, kernel: K) -> usize {
        self.kernels.get(&kernel).map_or(0, |samples| samples.taken)
    }

    /// Forgets the samples of what is gone.
    pub fn forget(&mut self, kernel: K) {
        self.kernels.remove(&kernel);
    }

    /// What the kernel's latencies are to be multiplied by: 1 where its profile holds.
    pub fn factor(&self, kernel: K) -> f64 {
        self.kernels.get(&kernel).map_or(1.0, |samples| samples.correction.exp())
    }
}

impl Samples {
    /// The lower quartile, by nearest rank; none while there are too few samples.
    fn drift(&self) -> Option<f64> {
        let count = self.taken.min(WINDOW);
        if count < FEWEST {
            return None;
        }
        let mut logs = self.logs;
        let logs = &mut logs[..count];
        logs.sort_by(f64::total_cmp);
        Some(logs[count.div_ceil(4) - 1])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KERNEL: Fingerprint = Fingerprint(7);

    /// Reviews after each of `ratios`, and what they found.
    fn reviews(ratios: impl IntoIterator<Item = f64>) -> Vec<f64> {
        let mut corrections = Corrections::default();
        let mut found = Vec::new();
        for ratio in ratios {
            corrections.add(KERNEL, 100.0 * ratio, 100.0);
            found.extend(corrections.review().into_iter().map(|(_, ratio)| ratio));
        }
        found
    }

    /// Relative errors with a standard deviation of 5%: the sum of 12 uniform numbers is close to a normal one.
    fn noise() -> impl Strategy<Value = Vec<f64>> {
        let error = prop::collection::vec(-0.5_f64..0.5, 12).prop_map(|parts| 0.05 * parts.iter().sum::<f64>());
        prop::collection::vec(error, 200)
    }

    #[test]
    fn a_kernel_that_became_slower_is_corrected_once() {
        let found = reviews(std::iter::repeat_n(1.0, 50).chain(std::iter::repeat_n(1.3, 50)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!((found[0] - 1.3).abs() < 1e-9);
    }

    #[test]
    fn a_kernel_that_recovers_is_corrected_back() {
        let found = reviews([1.3, 1.0].into_iter().flat_map(|ratio| std::iter::repeat_n(ratio, 32)));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!((found[1] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_neighbour_that_disturbs_two_thirds_of_the_samples_is_no_drift() {
        assert_eq!(reviews((0..300).map(|at| if at % 3 == 0 { 1.0 } else { 1.6 })), [0.0; 0]);
    }

    #[test]
    fn kernels_that_are_found_one_after_another_are_one_finding() {
        let mut corrections = Corrections::default();
        let kernels = [Fingerprint(1), Fingerprint(2), Fingerprint(3)];
        let mut found = Vec::new();
        // A kernel has as many samples as launches of it were timed: here one gets ahead of the next by one.
        for round in 0..40 {
            kernels.iter().take(round + 1).for_each(|&kernel| corrections.add(kernel, 130.0, 100.0));
            found.extend(Some(corrections.review()).filter(|review| !review.is_empty()));
        }
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].iter().map(|(kernel, _)| *kernel).collect::<Vec<_>>(), kernels);
    }

    #[test]
    fn a_few_samples_are_not_judged_and_short_kernels_never() {
        assert_eq!(reviews([2.0; 7]), [0.0; 0]);
        let mut corrections = Corrections::default();
        for _ in 0..100 {
            corrections.add(KERNEL, 10.0, 5.0);
        }
        corrections.review();
        assert_eq!(corrections.review(), []);
    }

    #[test]
    fn times_that_mean_nothing_are_left_out() {
        for (measured, expected) in [(0.0, 100.0), (f64::NAN, 100.0), (-1.0, 100.0), (100.0, f64::INFINITY), (100.0, 0.0)] {
            let mut corrections = Corrections::default();
            (0..50).for_each(|_| corrections.add(KERNEL, measured, expected));
            corrections.review();
            assert_eq!(corrections.review(), [], "{measured} against {expected}");
            assert_eq!(corrections.factor(KERNEL), 1.0);
        }
    }

    proptest! {
        #[test]
        fn noise_of_five_percent_is_no_drift(errors in noise()) {
            prop_assert_eq!(reviews(errors.into_iter().map(|error| 1.0 + error)), Vec::<f64>::new());
        }

        #[test]
        fn thirty_percent_beside_noise_of_five_are_found_once(errors in noise()) {
            let found = reviews(errors.into_iter().map(|error| 1.3 + error));
            prop_assert_eq!(found.len(), 1);
            prop_assert!((found[0] - 1.3).abs() < 0.15, "{}", found[0]);
        }
    }
}
