//! Latency by SM count.

use crate::device::Sms;

/// Median latencies of one kernel at rising SM counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// SM count and latency in microseconds; SM counts rise strictly, latencies are positive.
    points: Vec<(Sms, f64)>,
}

impl Curve {
    /// A curve through `points`, in any order. `None` without points, with a repeated SM count, a count of 0, or a latency that is not a
    /// positive number.
    pub fn new(mut points: Vec<(Sms, f64)>) -> Option<Self> {
        points.sort_by_key(|point| point.0);
        let rising = points.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let sound = points.iter().all(|&(sms, us)| sms.0 > 0 && us.is_finite() && us > 0.0);
        (!points.is_empty() && rising && sound).then_some(Self { points })
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

    /// The best latency anywhere on the curve, microseconds.
    pub fn best(&self) -> f64 {
        self.points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min)
    }

    /// The fewest measured SMs on which the kernel is within `tolerance` (0.02 is 2%) of its latency on the most SMs, as KRISP defines it.
    pub fn minimum_sms(&self, tolerance: f64) -> Sms {
        let whole = self.points[self.points.len() - 1].1;
        let enough = |point: &&(Sms, f64)| point.1 <= whole * (1.0 + tolerance);
        self.points.iter().find(enough).map_or(self.points[self.points.len() - 1].0, |point| point.0)
    }
}
