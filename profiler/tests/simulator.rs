//! A sweep on the simulated H200: the same code as on a GPU, in virtual time.

#[path = "support/kernel.rs"]
mod kernel;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use smidgen_profiler::{Options, Origin, Sweep, report};
use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::device::{Device, Sms};
use smidgen_runtime::launch::{KernelKey, Work};
use smidgen_runtime::partition::{Ladder, rungs};
use smidgen_runtime::profile::{Bound, KernelProfile, Machine, Profile, ProfileStore, SamplePoint};

use kernel::{GEMM, NORM, request};

fn sweep(config: SimConfig) -> Profile {
    let device: Arc<dyn Device> = SimDevice::new(config);
    let ladder = Ladder::new(Arc::clone(&device), 64);
    let origin = Origin {
        model: "bert-base".into(),
        kernel_build: "00c0ffee".into(),
        command: "smidgen profile".into(),
        commit: String::new(),
        date: "2026-11-21".into(),
    };
    let options = Options::default();
    let sweep = Sweep { device: &device, ladder: &ladder, recording: &request(3), origin: &origin, options: &options, meter: None };
    sweep.run(None, &mut (), &mut |_| Ok(())).unwrap()
}

/// A kernel that scales until `knee` SMs, where it takes `us` microseconds.
fn scaling(us: f64, knee: u16) -> KernelProfile {
    let points = rungs(SimDevice::new(SimConfig::h200()).topology()).into_iter().map(|sms| {
        let median_us = us * f64::from(knee) / f64::from(sms.0.min(knee));
        SamplePoint { sms, median_us, samples_us: vec![median_us; 5], rejected: 0, configuration: None, power: None }
    });
    KernelProfile {
        work: Work::default(),
        launches: 1,
        blocks_per_sm: 2,
        bound: Bound::Latency,
        minimum_sms: Sms(knee),
        points: points.collect(),
    }
}

#[test]
fn a_sweep_of_the_simulator_finds_the_curves_that_it_was_given() {
    let empty = sweep(SimConfig::h200());
    let (gemm, norm) = (KernelKey::new(GEMM, [1024, 768, 3072]).to_string(), KernelKey::new(NORM, [1024, 768]).to_string());
    let given = BTreeMap::from([(gemm, scaling(40.0, 64)), (norm, scaling(20.0, 8))]);
    let found = sweep(SimConfig::h200().with_profiles(&[Profile { kernels: given.clone(), ..empty }]));
    for (key, given) in given {
        let found = &found.kernels[&key];
        assert_eq!(found.minimum_sms, given.minimum_sms, "{key}");
        for (found, given) in found.points.iter().zip(given.points) {
            assert_eq!(found.sms, given.sms);
            let off = found.median_us / given.median_us - 1.0;
            assert!(off.abs() < 0.02, "{key} on {} SMs: {} us for {}", found.sms, found.median_us, given.median_us);
        }
    }
}

#[test]
fn a_simulated_profile_says_so_wherever_it_goes() {
    let profile = sweep(SimConfig::h200());
    assert!(profile.provenance.simulated);
    assert!(report::table(&profile).lines().all(|line| line.starts_with("SIMULATED")));
    let device = SimDevice::new(SimConfig::h200());
    let on_the_simulator = Machine::of(&*device, "00c0ffee");
    let on_a_gpu = Machine { simulated: false, ..on_the_simulator };
    assert_eq!(ProfileStore::default().add(Path::new("p.json"), profile.clone(), &on_the_simulator).unwrap(), []);
    let error = ProfileStore::default().add(Path::new("p.json"), profile, &on_a_gpu).unwrap_err();
    assert!(error.to_string().contains("SIMULATED"), "{error}");
}

#[test]
fn two_sweeps_of_the_simulator_are_equal_to_the_last_sample() {
    assert_eq!(sweep(SimConfig::h200()), sweep(SimConfig::h200()));
}
