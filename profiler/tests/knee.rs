//! The way from samples to a minimum SM count, under noise of any kind.

use proptest::prelude::*;

use smidgen_profiler::knee::{minimum_sms, summarize};
use smidgen_runtime::device::Sms;
use smidgen_runtime::profile::SamplePoint;

const RUNGS: [u16; 17] = [2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 120, 132];
const TOLERANCE: f64 = 0.02;

fn points(us: impl Fn(u16) -> f64) -> Vec<SamplePoint> {
    RUNGS
        .iter()
        .map(|&sms| SamplePoint {
            sms: Sms(sms),
            median_us: us(sms),
            samples_us: vec![us(sms)],
            rejected: 0,
            configuration: None,
            power: None,
        })
        .collect()
}

/// A kernel that scales until `knee` SMs and not beyond.
fn scaling(knee: u16) -> impl Fn(u16) -> f64 {
    move |sms| 1000.0 / f64::from(sms.min(knee))
}

#[test]
fn no_samples_make_no_point() {
    assert_eq!(summarize(Sms(2), vec![]), None);
    assert_eq!(minimum_sms(&[], TOLERANCE), None);
}

#[test]
fn a_sample_far_from_the_others_is_left_out_of_the_median_and_kept_in_the_point() {
    let samples = vec![10.0, 10.1, 55.0, 9.9, 10.0, 10.2];
    let point = summarize(Sms(2), samples.clone()).unwrap();
    assert_eq!((point.median_us, point.rejected, point.samples_us), (10.0, 1, samples));
}

#[test]
fn samples_that_agree_to_a_tick_make_no_outlier_of_the_next_tick() {
    let point = summarize(Sms(2), vec![10.0, 10.0, 10.0, 10.0, 10.01]).unwrap();
    assert_eq!(point.rejected, 0);
}

proptest! {
    #[test]
    fn at_least_half_of_any_samples_are_kept(samples in prop::collection::vec(0.01_f64..1e6, 1..60)) {
        let point = summarize(Sms(2), samples.clone()).unwrap();
        prop_assert!(point.kept() * 2 >= samples.len());
        let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let most = samples.iter().copied().fold(0.0, f64::max);
        let rounding = 5e-6;
        prop_assert!(least <= point.median_us + rounding && point.median_us <= most + rounding);
        prop_assert_eq!(point.samples_us, samples);
    }

    #[test]
    fn a_quarter_of_outliers_moves_the_median_no_further_than_the_noise(
        mut samples in prop::collection::vec(0.99_f64..1.01, 18),
        outliers in prop::collection::vec(1.5_f64..100.0, 0..6),
        at in 0_usize..18,
    ) {
        samples.splice(at..at, outliers.iter().copied());
        let point = summarize(Sms(2), samples).unwrap();
        prop_assert!((point.median_us - 1.0).abs() <= 0.01, "{}", point.median_us);
    }

    #[test]
    fn noise_within_half_the_tolerance_does_not_move_the_minimum(
        knee in prop::sample::select(&RUNGS[..]),
        noise in prop::collection::vec(-0.0049_f64..0.0049, 17),
    ) {
        let place = |sms| RUNGS.iter().position(|&rung| rung == sms).unwrap();
        let curve = points(|sms| scaling(knee)(sms) * (1.0 + noise[place(sms)]));
        prop_assert_eq!(minimum_sms(&curve, TOLERANCE), Some(Sms(knee)));
    }

    #[test]
    fn one_dip_anywhere_never_lowers_the_minimum_below_the_rung_before_the_knee(
        knee in prop::sample::select(&RUNGS[..]),
        dipped in prop::sample::select(&RUNGS[..16]),
        depth in 0.02_f64..0.99,
    ) {
        let curve = points(|sms| scaling(knee)(sms) * if sms == dipped { depth } else { 1.0 });
        let found = minimum_sms(&curve, TOLERANCE).unwrap();
        let before = RUNGS.iter().rev().find(|&&rung| rung < knee).copied().unwrap_or(knee);
        prop_assert!(found == Sms(knee) || (dipped == before && found == Sms(before)), "{found} for a knee at {knee}, dip at {dipped}");
    }

    #[test]
    fn one_bump_anywhere_raises_the_minimum_by_two_rungs_at_most(
        knee in prop::sample::select(&RUNGS[..]),
        bumped in prop::sample::select(&RUNGS[..16]),
        height in 1.05_f64..10.0,
    ) {
        let curve = points(|sms| scaling(knee)(sms) * if sms == bumped { height } else { 1.0 });
        let place = |sms: u16| RUNGS.iter().position(|&rung| rung == sms).unwrap();
        let found = minimum_sms(&curve, TOLERANCE).unwrap();
        prop_assert!(place(found.0) >= place(knee) && place(found.0) <= place(knee) + 2, "{found} for a knee at {knee}, bump at {bumped}");
    }
}
