//! From samples to a median, and from medians to the minimum SM count.
//!
//! Timings of a GPU are skewed: most lie within a percent, a few are several times too long (another process, a clock change, an interrupt
//! between two launches). The median alone would bear them, but not the spread that tells how far a median is to be trusted, so what
//! lies far outside is left out first. Every sample stays in the file; only the median does without the outliers.

use smidgen_runtime::device::Sms;
use smidgen_runtime::profile::{Curve, SamplePoint};

/// Distance from the median, in robust standard deviations, beyond which a sample is an outlier. Source: Iglewicz and Hoaglin, "How to Detect
/// and Handle Outliers", 1993.
const CUTOFF: f64 = 3.5;

/// A normal distribution's standard deviation over its median absolute deviation.
const SIGMA_PER_MAD: f64 = 1.4826;

/// The least spread assumed, as a share of the median. Samples that agree to a clock tick would else make outliers of their neighbours.
const LEAST_SIGMA: f64 = 0.001;

/// The point that `samples_us` make, in microseconds and in the order taken; none without samples. At least half of them are kept. The
/// median is rounded to 10 ps.
pub fn summarize(sms: Sms, samples_us: Vec<f64>) -> Option<SamplePoint> {
    let middle = median(&samples_us)?;
    let deviations: Vec<f64> = samples_us.iter().map(|us| (us - middle).abs()).collect();
    let sigma = (SIGMA_PER_MAD * median(&deviations)?).max(LEAST_SIGMA * middle);
    let kept: Vec<f64> = samples_us.iter().copied().filter(|us| (us - middle).abs() <= CUTOFF * sigma).collect();
    let rejected = (samples_us.len() - kept.len()) as u32;
    // Samples have four decimals, so the mean of two has five, and what lies beyond is the arithmetic's own.
    let median_us = (median(&kept)? * 1e5).round() / 1e5;
    Some(SamplePoint { sms, median_us, samples_us, rejected, configuration: None, power: None })
}

/// The fewest measured SMs within `tolerance` of the latency on the most, as [`Curve::minimum_sms`] has it; none if the points make no curve.
pub fn minimum_sms(points: &[SamplePoint], tolerance: f64) -> Option<Sms> {
    let curve = Curve::new(points.iter().map(|point| (point.sms, point.median_us)).collect())?;
    Some(curve.minimum_sms(tolerance))
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0)
}
