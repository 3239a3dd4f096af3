//! Which configuration of a kernel is quickest on one SM count, where it offers several.
//!
//! A kernel chooses its tile shape by a prediction. Here the first few that it offers run beside its own choice, each on a handful of samples, in two rounds that go through
//! them there and back, so that a clock that drifts favours none. Another one wins only if it is ahead by more than noise in *both* rounds: of several that are alike the
//! quickest of a few samples is the luckiest, and luck does not come twice. The winner is then measured as any point is; what was sampled here only decides.

use smidgen_runtime::launch::{Choice, Kernel};
use smidgen_runtime::profile::{KernelProfile, MeasuredConfiguration};

use crate::measure::{Bench, Lane};
use crate::sweep::Options;
use crate::{SweepError, knee};

/// How far ahead of the kernel's own choice another one must be: medians of few samples differ by less where the launches are the same.
const MARGIN: f64 = 0.02;

const ROUNDS: usize = 2;

/// Samples of one configuration in a round: the fewest whose median bears an outlier.
const SAMPLES: usize = 3;

/// The configuration that is quicker than the kernel's own choice on the SMs of `lane`; none where that choice stays, or is the only one on offer. `instances` are recorded
/// launches of one key.
pub(crate) fn quickest(
    bench: &Bench,
    lane: &Lane,
    instances: &[&dyn Kernel],
    options: &Options,
) -> Result<Option<(Choice, MeasuredConfiguration)>, SweepError> {
    let Some(kernel) = instances.first().filter(|_| options.configurations > 1) else { return Ok(None) };
    let mut offered = kernel.configurations(lane.sms, bench.topology());
    offered.truncate(options.configurations as usize);
    let Some((own, others)) = offered.split_first().filter(|(_, others)| !others.is_empty()) else { return Ok(None) };

    let options = Options { warm_up: 1, ..options.clone() };
    let prepared = offered.iter().map(|offered| bench.prepare(lane, instances, Some(offered.choice), &options));
    let mut points = prepared.collect::<Result<Vec<_>, _>>()?;
    for round in 0..ROUNDS {
        let mut sample = |point| bench.sample(point, SAMPLES as u32, &options);
        let sampled =
            if round % 2 == 0 { points.iter_mut().try_for_each(&mut sample) } else { points.iter_mut().rev().try_for_each(&mut sample) };
        sampled.map_err(|error| SweepError::Kernel { key: kernel.key().to_string(), sms: lane.sms, source: error.into() })?;
    }
    let samples: Vec<&[f64]> = points.iter().map(|point| &*point.samples_us).collect();
    let (own_samples, others_samples) = (samples[0], &samples[1..]);
    let gains = others.iter().zip(others_samples).map(|(other, samples)| (other, sure_gain(own_samples, samples)));
    let best = gains.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, gain)| *gain > MARGIN);
    Ok(best.map(|(best, gain)| {
        let gain = (gain * 1e4).round() / 1e4;
        (best.choice, MeasuredConfiguration { name: best.name.to_owned(), instead_of: own.name.to_owned(), gain })
    }))
}

/// The configuration that `known` names for the SMs of `lane`, if it names one that is still on offer.
pub(crate) fn named(bench: &Bench, lane: &Lane, instances: &[&dyn Kernel], known: Option<&KernelProfile>) -> Option<Choice> {
    let point = known?.points.iter().find(|point| point.sms == lane.sms)?;
    let name = &point.configuration.as_ref()?.name;
    let offered = instances.first()?.configurations(lane.sms, bench.topology());
    offered.into_iter().find(|offered| offered.name == *name).map(|offered| offered.choice)
}

/// How much longer the one takes than the other, as a share of the other's time, in the round where that is least.
fn sure_gain(own_us: &[f64], other_us: &[f64]) -> f64 {
    let gain = |(own, other): (&[f64], &[f64])| Some(knee::median(own)? / knee::median(other)? - 1.0);
    let gains = own_us.chunks(SAMPLES).zip(other_us.chunks(SAMPLES)).map(gain);
    gains.map(|gain| gain.filter(|gain| gain.is_finite()).unwrap_or(0.0)).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_counts_as_far_as_both_rounds_show_it() {
        let own = [10.0, 10.0, 50.0, 10.2, 10.2, 10.2];
        assert!((sure_gain(&own, &[8.0, 8.0, 8.0, 10.0, 10.0, 10.0]) - 0.02).abs() < 1e-9);
        assert!(sure_gain(&own, &[8.0, 8.0, 8.0, 12.0, 12.0, 12.0]) < 0.0);
    }

    #[test]
    fn times_that_cannot_be_are_no_gain() {
        let nothing = [0.0; 6];
        assert_eq!([sure_gain(&nothing, &nothing), sure_gain(&[1.0; 6], &nothing)], [0.0; 2]);
    }
}
