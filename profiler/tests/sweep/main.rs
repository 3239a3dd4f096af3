//! A sweep as its caller meets it, on a device whose kernels take scripted times.

#[path = "../support"]
mod support {
    pub mod device;
    pub mod kernel;
}

mod power;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use smidgen_profiler::{Options, Origin, PowerMeter, Progress, Size, Sweep, SweepError};
use smidgen_runtime::device::{Device, DevicePtr, PartitionId, Sms};
use smidgen_runtime::launch::{Kernel, KernelKey, Work};
use smidgen_runtime::partition::{Ladder, rungs};
use smidgen_runtime::profile::{Bound, KernelProfile, PeakSource, Peaks, Profile, SamplePoint};

use power::FakeMeter;
use support::device::{Script, ScriptedDevice};
use support::kernel::{GEMM, NORM, ScriptedKernel, TILES, request};

const GEMM_KEY: &str = "gemm[1024x768x3072]f16";
const NORM_KEY: &str = "norm[1024x768]f16";

fn origin() -> Origin {
    Origin {
        model: "bert-base".into(),
        kernel_build: "00c0ffee".into(),
        command: "smidgen profile --model bert-base -o p.json".into(),
        commit: "abc".into(),
        date: "2026-11-21".into(),
    }
}

/// A bench: one device, and sweeps on it.
struct Rig {
    device: Arc<ScriptedDevice>,
    contract: Arc<dyn Device>,
    ladder: Ladder,
    origin: Origin,
    options: Options,
    recording: Vec<Box<dyn Kernel + Send>>,
    meter: Option<FakeMeter>,
}

impl Rig {
    fn new(script: Script) -> Self {
        let device = Arc::new(ScriptedDevice::new(script));
        let contract: Arc<dyn Device> = Arc::clone(&device) as _;
        let ladder = Ladder::new(Arc::clone(&contract), 64);
        Self { device, contract, ladder, origin: origin(), options: Options::default(), recording: request(3), meter: None }
    }

    fn sweep(&self) -> Sweep<'_> {
        let meter = self.meter.as_ref().map(|meter| meter as &dyn PowerMeter);
        Sweep {
            device: &self.contract,
            ladder: &self.ladder,
            recording: &self.recording,
            origin: &self.origin,
            options: &self.options,
            meter,
        }
    }

    fn run(&self) -> Result<Profile, SweepError> {
        self.sweep().run(None, &mut (), &mut |_| Ok(()))
    }

    fn run_into(&self, path: &Path) -> Result<Profile, SweepError> {
        self.sweep().run_into(path, &mut ())
    }
}

/// A GEMM that scales to 64 SMs, and a norm that 2 SMs saturate.
fn knees(key: KernelKey, sms: Sms) -> f64 {
    match key.name() {
        "gemm" => 10.0 * 64.0 / f64::from(sms.0.min(64)),
        _ => 4.0,
    }
}

fn noisy() -> Script {
    Script { latency_us: knees, noise: 0.003, outliers: 0.1, ..Script::default() }
}

#[derive(Default)]
struct Watcher {
    size: Option<Size>,
    begun: Vec<String>,
    points: Vec<(String, Sms)>,
    windows: Vec<(String, Sms)>,
    done: Vec<String>,
}

impl Progress for Watcher {
    fn begin(&mut self, size: Size) {
        self.size = Some(size);
    }
    fn key_begun(&mut self, key: &str) {
        self.begun.push(key.into());
    }
    fn point_done(&mut self, key: &str, point: &SamplePoint) {
        self.points.push((key.into(), point.sms));
    }
    fn window_done(&mut self, key: &str, sms: Sms) {
        self.windows.push((key.into(), sms));
    }
    fn key_done(&mut self, key: &str, _: &KernelProfile) {
        self.done.push(key.into());
    }
}

#[test]
fn the_minimum_of_a_known_curve_is_found_through_noise_and_outliers() {
    let profile = Rig::new(noisy()).run().unwrap();
    assert_eq!(profile.kernels[GEMM_KEY].minimum_sms, Sms(64));
    assert_eq!(profile.kernels[NORM_KEY].minimum_sms, Sms(2));
    for (key, kernel) in &profile.kernels {
        for point in &kernel.points {
            let truth = if key == GEMM_KEY { knees(KernelKey::new(GEMM, [1]), point.sms) } else { 4.0 };
            assert!((point.median_us / truth - 1.0).abs() < 0.003, "{key} on {} SMs: {} for {truth}", point.sms, point.median_us);
        }
    }
}

#[test]
fn every_sample_is_in_the_profile_and_outliers_are_counted() {
    let rig = Rig::new(noisy());
    let profile = rig.run().unwrap();
    let mut outliers = 0;
    for (key, kernel) in &profile.kernels {
        assert_eq!(kernel.points.iter().map(|point| point.sms).collect::<Vec<_>>(), rungs(rig.contract.topology()));
        for point in &kernel.points {
            assert_eq!(point.samples_us.len(), 21, "{key} on {} SMs", point.sms);
            let far = point.samples_us.iter().filter(|&&us| us > 1.9 * point.median_us).count();
            assert!(point.rejected as usize >= far, "{key} on {} SMs: {:?}", point.sms, point.samples_us);
            outliers += far;
        }
    }
    assert!(outliers > 20, "the script makes one sample in ten an outlier, and there were {outliers} of 714");
}

#[test]
fn provenance_and_work_come_from_the_device_the_origin_and_the_recording() {
    let profile = Rig::new(Script { simulated: true, ..noisy() }).run().unwrap();
    let provenance = &profile.provenance;
    assert_eq!((provenance.gpu.as_str(), provenance.sms, provenance.driver.as_str()), ("Scripted GPU", Sms(132), "1.2.3"));
    assert_eq!(
        (provenance.models.join(" ").as_str(), provenance.kernel_build.as_str(), provenance.commit.as_str()),
        ("bert-base", "00c0ffee", "abc")
    );
    assert!(provenance.simulated);
    let gemm = &profile.kernels[GEMM_KEY];
    assert_eq!((gemm.launches, gemm.blocks_per_sm, gemm.work.flops), (3, 2, 4_831_838_208));
}

#[test]
fn launches_rotate_over_the_recorded_ones_each_on_a_grid_for_its_partition() {
    let rig = Rig::new(noisy());
    rig.run().unwrap();
    let replayed = rig.device.replayed();
    let whole_rotations = replayed.iter().filter(|launches| launches.len() % 3 == 0).count();
    assert!(whole_rotations > 600);
    for launches in replayed {
        assert!(launches.len() >= 4);
        for (at, launch) in launches.iter().enumerate() {
            assert_eq!(launch.instance, at as u32 % 3);
            assert_eq!(launch.grid, (launch.sms.get() * 2).min(TILES));
            assert_eq!(launch.grant, DevicePtr::NULL);
            assert!(rig.device.was_cleared(launch.progress));
        }
        // A launch may take its first tile while the one before it still counts.
        assert!(launches.windows(2).all(|pair| pair[0].progress != pair[1].progress));
    }
}

#[test]
fn the_rungs_of_a_key_are_measured_in_turns_up_and_down_the_ladder() {
    let rig = Rig::new(noisy());
    rig.run().unwrap();
    let norm = KernelKey::new(NORM, [1024, 768]);
    let mut visits: Vec<u16> =
        rig.device.replayed().iter().filter(|launches| launches[0].key == norm).map(|launches| launches[0].sms.0).collect();
    visits.dedup();
    let up: Vec<u16> = rungs(rig.contract.topology()).iter().map(|sms| sms.0).collect();
    let down: Vec<u16> = up.iter().rev().copied().collect();
    // First the captures, then the three rounds.
    let mut expected = [up.clone(), up.clone(), down, up].concat();
    expected.dedup();
    assert_eq!(visits, expected);
}

#[test]
fn a_finished_sweep_has_given_back_what_it_took() {
    let rig = Rig::new(noisy());
    rig.run().unwrap();
    assert_eq!(rig.device.leaks(), 0);
    let failing = Rig::new(Script { fails_at: 500, ..noisy() });
    failing.run().unwrap_err();
    assert_eq!(failing.device.leaks(), 0);
}

#[test]
fn long_kernels_take_fewer_samples_and_no_fewer_than_five() {
    let profile = Rig::new(Script { latency_us: |_, sms| 4e6 / f64::from(sms.0), ..Script::default() }).run().unwrap();
    let samples = |at: usize| profile.kernels[GEMM_KEY].points[at].samples_us.len();
    assert_eq!(samples(0), 5);
    assert_eq!(profile.kernels[GEMM_KEY].points[0].median_us, 2e6);
    let rig = Rig { options: Options { longest_point: Duration::from_secs(3600), ..Options::default() }, ..Rig::new(Script::default()) };
    assert_eq!(rig.run().unwrap().kernels[GEMM_KEY].points[0].samples_us.len(), 21);
}

#[test]
fn progress_reports_every_point_once() {
    let rig = Rig::new(noisy());
    let mut watcher = Watcher::default();
    rig.sweep().run(None, &mut watcher, &mut |_| Ok(())).unwrap();
    assert_eq!(watcher.size, Some(Size { keys: 2, points: 34, finished: 0, windows: 0 }));
    assert_eq!(watcher.begun, [GEMM_KEY, NORM_KEY]);
    assert_eq!(watcher.done, watcher.begun);
    let rungs = rungs(rig.contract.topology());
    let expected: Vec<(String, Sms)> = [GEMM_KEY, NORM_KEY].iter().flat_map(|key| rungs.iter().map(|&sms| ((*key).into(), sms))).collect();
    assert_eq!(watcher.points, expected);
}

#[test]
fn the_profile_is_saved_after_every_kernel_key() {
    let rig = Rig::new(noisy());
    let mut saved = Vec::new();
    let profile = rig.sweep().run(None, &mut (), &mut |profile| {
        saved.push(profile.clone());
        Ok(())
    });
    assert_eq!(saved.iter().map(|profile| profile.kernels.len()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(saved[1], profile.unwrap());
}

#[test]
fn an_interrupted_sweep_leaves_a_readable_file_and_goes_on_to_the_same_one() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, resumed) = (folder.path().join("whole.json"), folder.path().join("resumed.json"));
    let uninterrupted = Rig::new(noisy());
    uninterrupted.run_into(&whole).unwrap();

    // The first key's launches and half of the second's.
    let fails_at = uninterrupted.device.launches() * 3 / 4;
    let error = Rig::new(Script { fails_at, ..noisy() }).run_into(&resumed).unwrap_err();
    assert!(error.to_string().starts_with(NORM_KEY), "{error}");
    let left = Profile::read(&resumed).unwrap();
    assert_eq!(left.kernels.keys().collect::<Vec<_>>(), [GEMM_KEY]);

    let rig = Rig::new(noisy());
    let mut watcher = Watcher::default();
    rig.sweep().run_into(&resumed, &mut watcher).unwrap();
    assert_eq!(watcher.size, Some(Size { keys: 2, points: 34, finished: 17, windows: 0 }));
    assert_eq!(watcher.points.len(), 17);
    assert!(rig.device.replayed().iter().flatten().all(|launch| launch.key.name() == "norm"));
    assert_eq!(fs::read_to_string(&resumed).unwrap(), fs::read_to_string(&whole).unwrap());
}

#[test]
fn a_finished_profile_is_not_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    let first = Rig::new(noisy()).run_into(&path).unwrap();
    let mut rig = Rig::new(noisy());
    rig.origin.date = "2027-01-01".into();
    assert_eq!(rig.run_into(&path).unwrap(), first);
    assert_eq!(rig.device.launches(), 0);
}

#[test]
fn added_rungs_are_measured_and_the_others_kept() {
    let coarse = Rig { options: Options { rungs: vec![Sms(32)], ..Options::default() }, ..Rig::new(noisy()) };
    let profile = coarse.run().unwrap();
    let gemm = &profile.kernels[GEMM_KEY];
    assert_eq!((gemm.points.len(), gemm.minimum_sms), (2, Sms(132)), "the whole GPU is always measured");
    let before = gemm.points.clone();
    let finer = Rig { options: Options { rungs: vec![Sms(64), Sms(66)], ..Options::default() }, ..Rig::new(noisy()) };
    let profile = finer.sweep().run(Some(profile), &mut (), &mut |_| Ok(())).unwrap();
    let gemm = &profile.kernels[GEMM_KEY];
    assert_eq!(gemm.points.iter().map(|point| point.sms.0).collect::<Vec<_>>(), [32, 64, 66, 132]);
    assert_eq!((&gemm.points[0], &gemm.points[3]), (&before[0], &before[1]));
    assert_eq!(gemm.minimum_sms, Sms(64));
}

#[test]
fn a_second_model_adds_its_kernels_and_the_first_one_stays_without_launches() {
    let profile = Rig::new(noisy()).run().unwrap();
    let mut rig = Rig::new(noisy());
    rig.origin.model = "bert-large".into();
    rig.origin.command = "smidgen profile --model bert-large --batch 1 -o p.json".into();
    rig.recording =
        vec![Box::new(ScriptedKernel { key: KernelKey::new(NORM, [8, 768]), instance: 0, work: Work::default(), configurations: 0 })];
    let profile = rig.sweep().run(Some(profile), &mut (), &mut |_| Ok(())).unwrap();
    let launches: BTreeMap<&str, u32> = profile.kernels.iter().map(|(key, kernel)| (key.as_str(), kernel.launches)).collect();
    assert_eq!(launches, BTreeMap::from([(GEMM_KEY, 0), (NORM_KEY, 0), ("norm[8x768]f16", 1)]));
    assert_eq!(profile.provenance.models, ["bert-base", "bert-large"]);
    assert_eq!(
        profile.provenance.command,
        "smidgen profile --model bert-base -o p.json && smidgen profile --model bert-large --batch 1 -o p.json"
    );
}

/// Runs `other` into `path` while the sweep that it watches is about to save its first key.
struct Meanwhile<'a> {
    other: Option<&'a Rig>,
    path: &'a Path,
}

impl Progress for Meanwhile<'_> {
    fn key_done(&mut self, _: &str, _: &KernelProfile) {
        if let Some(other) = self.other.take() {
            other.run_into(self.path).unwrap();
        }
    }
}

#[test]
fn two_sweeps_into_one_file_at_once_keep_each_others_kernels_and_models() {
    let mut other = Rig::new(noisy());
    other.origin.model = "bert-large".into();
    other.recording =
        vec![Box::new(ScriptedKernel { key: KernelKey::new(NORM, [8, 768]), instance: 0, work: Work::default(), configurations: 0 })];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    let profile = Rig::new(noisy()).sweep().run_into(&path, &mut Meanwhile { other: Some(&other), path: &path }).unwrap();
    assert_eq!(Profile::read(&path).unwrap(), profile);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside the profile");
    let launches: BTreeMap<&str, u32> = profile.kernels.iter().map(|(key, kernel)| (key.as_str(), kernel.launches)).collect();
    assert_eq!(launches, BTreeMap::from([(GEMM_KEY, 3), (NORM_KEY, 3), ("norm[8x768]f16", 0)]));
    assert_eq!(profile.provenance.models, ["bert-base", "bert-large"]);
}

#[test]
fn points_that_another_sweep_measured_meanwhile_are_kept_and_not_measured_again() {
    let coarse = Rig { options: Options { rungs: vec![Sms(32)], ..Options::default() }, ..Rig::new(noisy()) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    let finer = Rig::new(noisy());
    let profile = coarse.sweep().run_into(&path, &mut Meanwhile { other: Some(&finer), path: &path }).unwrap();
    for key in [GEMM_KEY, NORM_KEY] {
        let measured: Vec<Sms> = profile.kernels[key].points.iter().map(|point| point.sms).collect();
        assert_eq!(measured, rungs(coarse.contract.topology()), "{key}");
    }
    assert_eq!(profile.kernels[GEMM_KEY].minimum_sms, Sms(64));
    assert!(coarse.device.replayed().iter().flatten().all(|launch| launch.key.name() == "gemm"));
}

#[test]
fn a_file_of_other_conditions_that_appears_during_a_sweep_is_left_as_it_is() {
    let mut other = Rig::new(noisy());
    other.origin.kernel_build = "beef".into();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    let error = Rig::new(noisy()).sweep().run_into(&path, &mut Meanwhile { other: Some(&other), path: &path }).unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}: provenance.kernel_build: ", path.display())), "{error}");
    assert_eq!(Profile::read(&path).unwrap().provenance.kernel_build, "beef");
}

#[test]
fn a_model_whose_kernels_were_all_measured_for_another_is_named_and_not_measured() {
    let profile = Rig::new(noisy()).run().unwrap();
    let mut rig = Rig::new(noisy());
    rig.origin.model = "bert-tiny".into();
    rig.recording.truncate(2);
    let profile = rig.sweep().run(Some(profile), &mut (), &mut |_| Ok(())).unwrap();
    assert_eq!((profile.kernels[GEMM_KEY].launches, profile.kernels[NORM_KEY].launches), (1, 1));
    assert_eq!(profile.provenance.models, ["bert-base", "bert-tiny"]);
    assert_eq!(rig.device.launches(), 0);
}

#[test]
fn a_profile_of_other_conditions_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    Rig::new(noisy()).run_into(&path).unwrap();
    let before = fs::read_to_string(&path).unwrap();
    let mut other_kernels = Rig::new(noisy());
    other_kernels.origin.kernel_build = "beef".into();
    let mut other_tolerance = Rig::new(noisy());
    other_tolerance.options.tolerance = 0.05;
    for (rig, field, found, here) in
        [(other_kernels, "provenance.kernel_build", "00c0ffee", "beef"), (other_tolerance, "tolerance", "0.02", "0.05")]
    {
        let message = rig.run_into(&path).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: {field}: ", path.display())), "{message}");
        assert!(message.contains(&format!("has `{found}`, this run `{here}`")), "{message}");
        assert!(!message.contains("delete"), "{message}");
        assert_eq!(rig.device.launches(), 0);
    }
    let simulated = Rig::new(Script { simulated: true, ..noisy() }).run_into(&path).unwrap_err().to_string();
    assert_eq!(simulated, format!("{}: it holds measured figures, and this run is SIMULATED; name another file with `-o`", path.display()));
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
}

#[test]
fn a_file_that_is_no_profile_is_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    fs::write(&path, "{").unwrap();
    let rig = Rig::new(noisy());
    assert!(matches!(rig.run_into(&path), Err(SweepError::Profile(_))));
    assert_eq!(rig.device.launches(), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), "{");
}

#[test]
fn a_partition_that_is_not_granted_as_asked_ends_the_sweep_before_it_measures() {
    let rig = Rig::new(Script { most_granted: Sms(96), ..noisy() });
    let error = rig.run().unwrap_err();
    assert_eq!(
        error.to_string(),
        "no partition of 112 SMs: a partition of 112 SMs was asked for and 96 were granted; ask for whole groups of SMs, which `smidgen doctor` shows"
    );
    assert_eq!(rig.device.launches(), 0);
}

#[test]
fn a_ladder_without_room_for_the_rungs_is_an_error() {
    let mut rig = Rig::new(noisy());
    rig.ladder = Ladder::new(Arc::clone(&rig.contract), 3);
    assert!(matches!(rig.run(), Err(SweepError::Partition { sms: Sms(12), .. })));
}

#[test]
fn the_whole_gpu_is_measured_outside_any_partition() {
    let rig = Rig::new(noisy());
    rig.run().unwrap();
    assert_eq!(rig.ladder.partition(rig.contract.topology().all_tpcs()).unwrap().id(), PartitionId::WHOLE);
    assert_eq!(rig.ladder.len(), 16);
}

#[test]
fn a_kernel_that_cannot_do_its_shape_is_named() {
    let mut rig = Rig::new(noisy());
    rig.recording.push(Box::new(ScriptedKernel { key: KernelKey::new(GEMM, []), instance: 0, work: Work::default(), configurations: 0 }));
    let message = rig.run().unwrap_err().to_string();
    assert_eq!(message, "gemm[]f16 on 2 SMs: gemm[]f16 cannot do this shape: it has no extent");
}

#[test]
fn a_device_that_times_a_kernel_at_nothing_is_not_believed() {
    let error = Rig::new(Script { latency_us: |_, _| 0.0, ..Script::default() }).run().unwrap_err();
    assert!(matches!(error, SweepError::NoTime { sms: Sms(2), .. }), "{error}");
}

#[test]
fn an_empty_recording_is_an_error() {
    let mut rig = Rig::new(noisy());
    rig.recording.clear();
    assert!(matches!(rig.run(), Err(SweepError::NothingRecorded)));
}

#[test]
fn options_that_cannot_be_are_refused_by_name() {
    let good = Options::default;
    for (options, field) in [
        (Options { tolerance: 0.0, ..good() }, "tolerance"),
        (Options { tolerance: f64::NAN, ..good() }, "tolerance"),
        (Options { samples: 4, ..good() }, "samples"),
        (Options { samples: u32::MAX, ..good() }, "samples"),
        (Options { rounds: 0, ..good() }, "rounds"),
        (Options { rounds: 22, ..good() }, "rounds"),
        (Options { configurations: 0, ..good() }, "configurations"),
        (Options { longest_replay: Duration::ZERO, ..good() }, "shortest_replay"),
        (Options { rungs: vec![Sms(0)], ..good() }, "rungs"),
        (Options { rungs: vec![Sms(3)], ..good() }, "rungs"),
        (Options { rungs: vec![Sms(134)], ..good() }, "rungs"),
    ] {
        let rig = Rig { options, ..Rig::new(noisy()) };
        let error = rig.run().unwrap_err();
        assert!(matches!(error, SweepError::Option { name, .. } if name == field), "{field}: {error}");
    }
}

#[test]
fn bounds_are_judged_by_given_peaks_or_else_by_the_best_that_was_reached() {
    let mut rig = Rig::new(noisy());
    rig.options.peaks = Some(Peaks { flops_per_s: 1e15, bytes_per_s: 1e13, source: PeakSource::Given });
    let profile = rig.run().unwrap();
    assert_eq!(profile.peaks.source, PeakSource::Given);
    assert_eq!((profile.kernels[GEMM_KEY].bound, profile.kernels[NORM_KEY].bound), (Bound::Compute, Bound::Latency));
    let profile = Rig::new(noisy()).run().unwrap();
    assert_eq!(profile.peaks.source, PeakSource::Reached);
    assert_eq!((profile.kernels[GEMM_KEY].bound, profile.kernels[NORM_KEY].bound), (Bound::Compute, Bound::Memory));
}
