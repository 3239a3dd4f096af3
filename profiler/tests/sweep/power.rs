//! What the board draws while kernels run: when it is read, what is made of it, and what becomes of profiles that lack it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use smidgen_profiler::clocks::Reading;
use smidgen_profiler::{Options, PowerMeter, Size};
use smidgen_runtime::device::Sms;
use smidgen_runtime::launch::{KernelKey, Work};
use smidgen_runtime::profile::{BoardPower, KernelProfile, PowerSample, Profile, SamplePoint};

use crate::support::device::Script;
use crate::support::kernel::{NORM, SYMBOLS, ScriptedKernel};
use crate::{GEMM_KEY, Meanwhile, NORM_KEY, Rig, Watcher, knees, noisy};

/// A board that draws the same whatever it does: at each reading what the script says next, and the last for ever.
pub(super) struct FakeMeter {
    limit_w: Option<f64>,
    watts: Vec<f64>,
    clocks_mhz: Vec<u32>,
    read: Cell<usize>,
}

impl FakeMeter {
    /// 100 W idle; 400 W in every window, at the full clock.
    fn steady() -> Self {
        Self { limit_w: Some(700.0), watts: vec![100.0, 400.0], clocks_mhz: vec![345, 1980], read: Cell::new(0) }
    }
}

impl PowerMeter for FakeMeter {
    fn limit_w(&self) -> Option<f64> {
        self.limit_w
    }
    fn read(&self, _: Instant, _: Duration) -> Option<Reading> {
        let at = self.read.replace(self.read.get() + 1);
        let power_w = *self.watts.get(at).or(self.watts.last())?;
        let clock_mhz = *self.clocks_mhz.get(at).or(self.clocks_mhz.last())?;
        Some(Reading { clock_mhz, power_w, most_power_w: power_w, held_back_by: Vec::new(), held_back: 0.0 })
    }
}

impl Rig {
    /// With a meter, and windows that a test need not wait for.
    fn metered(script: Script, meter: FakeMeter) -> Self {
        let options = Options { power_window: Duration::from_millis(3), ..Options::default() };
        Self { meter: Some(meter), options, ..Self::new(script) }
    }
}

/// The SM counts at which power was read, and what was.
fn power_of(profile: &Profile, key: &str) -> Vec<(u16, PowerSample)> {
    profile.kernels[key].points.iter().filter_map(|point| Some((point.sms.0, point.power?))).collect()
}

#[test]
fn power_is_read_at_four_counts_and_belongs_to_the_time_that_a_launch_took_meanwhile() {
    let rig = Rig::metered(Script { latency_us: knees, ..Script::default() }, FakeMeter::steady());
    let profile = rig.run().unwrap();
    assert_eq!(profile.power, Some(BoardPower { idle_w: 100.0, limit_w: 700.0, clock_mhz: 1980 }));
    for (key, launch_us) in [(GEMM_KEY, [40.0, 20.0, 10.0, 10.0]), (NORM_KEY, [4.0; 4])] {
        let expected = [16, 32, 64, 132].into_iter().zip(launch_us);
        let sample = |launch_us| PowerSample { board_w: 400.0, launch_us, clock_mhz: 1980 };
        assert_eq!(power_of(&profile, key), expected.map(|(sms, launch_us)| (sms, sample(launch_us))).collect::<Vec<_>>(), "{key}");
    }
    let gemm = profile.kernels[GEMM_KEY].points.iter().find(|point| point.sms == Sms(32)).unwrap();
    assert_eq!(gemm.power.unwrap().above_idle_uj(&profile.power.unwrap()), 300.0 * 20.0);
    let unmetered = Rig::new(Script { latency_us: knees, ..Script::default() }).run().unwrap();
    for (key, kernel) in unmetered.kernels {
        assert!(kernel.points.iter().all(|point| point.power.is_none()));
        let bare = |point: &SamplePoint| SamplePoint { power: None, ..point.clone() };
        assert_eq!(profile.kernels[&key].points.iter().map(bare).collect::<Vec<_>>(), kernel.points, "reading power changes no latency");
    }
    assert_eq!(rig.device.leaks(), 0);
}

#[test]
fn a_window_is_as_long_as_it_is_wanted_on_the_device_s_clock() {
    let window = Duration::from_millis(300);
    let counted = |window: Duration| {
        let mut rig = Rig::metered(Script { latency_us: knees, ..Script::default() }, FakeMeter::steady());
        rig.meter = (!window.is_zero()).then(FakeMeter::steady);
        rig.options.power_window = window.max(Duration::from_millis(1));
        rig.run().unwrap();
        let replayed = rig.device.replayed();
        let us: f64 = replayed.iter().flatten().map(|launch| knees(launch.key, launch.sms)).sum();
        Duration::from_secs_f64(us / 1e6)
    };
    let added = counted(window) - counted(Duration::ZERO);
    assert!(added >= window * 8 * 95 / 100 && added <= window * 8 * 105 / 100, "{added:?} for 8 windows of {window:?}");
}

#[test]
fn a_window_counts_at_the_clock_that_it_ran_at_and_the_highest_is_the_board_s() {
    let meter = FakeMeter { watts: vec![120.0, 700.0, 300.0], clocks_mhz: vec![345, 1440, 1980], ..FakeMeter::steady() };
    let profile = Rig::metered(Script { latency_us: knees, ..Script::default() }, meter).run().unwrap();
    let read = power_of(&profile, GEMM_KEY);
    assert_eq!((read[0].1.board_w, read[0].1.clock_mhz, read[1].1.clock_mhz), (700.0, 1440, 1980));
    assert_eq!(profile.power.unwrap().clock_mhz, 1980);
}

#[test]
fn progress_reports_every_window_once() {
    let rig = Rig::metered(noisy(), FakeMeter::steady());
    let mut watcher = Watcher::default();
    rig.sweep().run(None, &mut watcher, &mut |_| Ok(())).unwrap();
    assert_eq!(watcher.size, Some(Size { keys: 2, points: 34, finished: 0, windows: 8 }));
    let expected: Vec<(String, Sms)> =
        [GEMM_KEY, NORM_KEY].iter().flat_map(|key| [16, 32, 64, 132].map(|sms| ((*key).into(), Sms(sms)))).collect();
    assert_eq!(watcher.windows, expected);
    assert_eq!(watcher.points.len(), 34);
}

#[test]
fn a_profile_without_energies_gets_them_and_keeps_its_latencies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    let before = Rig::new(noisy()).run_into(&path).unwrap();
    let rig = Rig::metered(noisy(), FakeMeter::steady());
    let mut watcher = Watcher::default();
    let after = rig.sweep().run_into(&path, &mut watcher).unwrap();
    assert_eq!(watcher.size, Some(Size { keys: 2, points: 34, finished: 34, windows: 8 }));
    assert_eq!((watcher.points.len(), watcher.windows.len()), (0, 8));
    assert_eq!(power_of(&after, NORM_KEY).len(), 4);
    for (key, kernel) in before.kernels {
        let samples = |kernel: &KernelProfile| kernel.points.iter().map(|point| point.samples_us.clone()).collect::<Vec<_>>();
        assert_eq!(samples(&after.kernels[&key]), samples(&kernel), "{key}");
    }
    assert_eq!(Profile::read(&path).unwrap(), after);
    let again = Rig::metered(noisy(), FakeMeter::steady());
    assert_eq!(again.run_into(&path).unwrap(), after);
    assert_eq!(again.device.launches(), 0);
}

#[test]
fn energies_that_come_later_are_those_of_the_configuration_that_the_profile_names() {
    let third_is_quickest =
        || Script { factor: |_, symbol| if symbol == SYMBOLS[2] { 0.5 } else { 1.0 }, latency_us: knees, ..Script::default() };
    let mut rig = Rig::new(third_is_quickest());
    rig.options.configurations = 4;
    let before = rig.run().unwrap();
    let rig = Rig::metered(third_is_quickest(), FakeMeter::steady());
    let after = rig.sweep().run(Some(before), &mut (), &mut |_| Ok(())).unwrap();
    for point in after.kernels[GEMM_KEY].points.iter().filter(|point| point.power.is_some()) {
        assert_eq!(point.configuration.as_ref().map(|measured| &*measured.name), Some(SYMBOLS[2]));
        assert_eq!(point.power.unwrap().launch_us, point.median_us, "{} SMs", point.sms);
    }
    assert_eq!(power_of(&after, GEMM_KEY).len(), 4);
}

#[test]
fn a_sweep_that_goes_on_keeps_the_idle_power_and_takes_the_limit_that_is_in_force() {
    let first = Rig::metered(noisy(), FakeMeter::steady()).run().unwrap();
    let meter = FakeMeter { limit_w: Some(500.0), watts: vec![90.0, 450.0], clocks_mhz: vec![345, 1500], ..FakeMeter::steady() };
    let mut rig = Rig::metered(noisy(), meter);
    rig.recording =
        vec![Box::new(ScriptedKernel { key: KernelKey::new(NORM, [8, 768]), instance: 0, work: Work::default(), configurations: 0 })];
    let profile = rig.sweep().run(Some(first), &mut (), &mut |_| Ok(())).unwrap();
    assert_eq!(profile.power, Some(BoardPower { idle_w: 100.0, limit_w: 500.0, clock_mhz: 1980 }));
    assert_eq!(power_of(&profile, "norm[8x768]f16")[0].1.board_w, 450.0);
}

#[test]
fn two_sweeps_into_one_file_at_once_keep_each_others_energies() {
    let mut other = Rig::metered(noisy(), FakeMeter { clocks_mhz: vec![2010], ..FakeMeter::steady() });
    other.recording =
        vec![Box::new(ScriptedKernel { key: KernelKey::new(NORM, [8, 768]), instance: 0, work: Work::default(), configurations: 0 })];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    let rig = Rig::metered(noisy(), FakeMeter::steady());
    let profile = rig.sweep().run_into(&path, &mut Meanwhile { other: Some(&other), path: &path }).unwrap();
    assert_eq!(profile.power.unwrap().clock_mhz, 2010);
    assert!([GEMM_KEY, NORM_KEY, "norm[8x768]f16"].iter().all(|key| power_of(&profile, key).len() == 4));
}

#[test]
fn what_no_meter_reads_is_left_out_and_no_sweep_fails_for_it() {
    let silent = || FakeMeter { watts: Vec::new(), ..FakeMeter::steady() };
    let limitless = FakeMeter { limit_w: None, ..FakeMeter::steady() };
    let at_its_limit = FakeMeter { limit_w: Some(100.0), ..FakeMeter::steady() };
    let off = Options { power_window: Duration::ZERO, ..Options::default() };
    for rig in [
        Rig::metered(noisy(), silent()),
        Rig::metered(noisy(), limitless),
        Rig::metered(noisy(), at_its_limit),
        Rig::metered(Script { simulated: true, ..noisy() }, FakeMeter::steady()),
        Rig { options: off, ..Rig::metered(noisy(), FakeMeter::steady()) },
    ] {
        let mut watcher = Watcher::default();
        let profile = rig.sweep().run(None, &mut watcher, &mut |_| Ok(())).unwrap();
        assert_eq!((profile.power, watcher.windows.len()), (None, 0));
        assert!(profile.kernels.values().flat_map(|kernel| &kernel.points).all(|point| point.power.is_none()));
        assert_eq!(watcher.size.unwrap().windows, 0);
    }
}
