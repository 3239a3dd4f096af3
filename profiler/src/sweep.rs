//! Which points are measured, and in which order.
//!
//! Kernel keys are measured one after another, in the order in which the request first launches them, each on every rung. Within a key
//! the rungs take turns: samples are taken in rounds that go up the ladder and down again, so that a clock that slows down while the GPU warms
//! up slows all rungs, and does not look like an effect of the SM count. Then the board's [power](crate::power) is read at a few of the rungs. A key that is finished is saved before the next one begins, beside
//! what other sweeps saved into the same file meanwhile.
//!
//! **Invariant:** a key is measured after those that the request launches before it. A decoder's last kernel moves every sequence on by one token
//! each time it runs, so that whatever were measured after it would read past the end of what the request allocated.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use smidgen_runtime::device::{Device, DeviceError, Sms};
use smidgen_runtime::launch::Kernel;
use smidgen_runtime::partition::{Ladder, rungs};
use smidgen_runtime::profile::{Bound, KernelProfile, Peaks, PowerSample, Profile, Provenance, SCHEMA_VERSION, SamplePoint};

use crate::measure::{Bench, FEWEST_SAMPLES, Lane, MOST_SAMPLES, Point};
use crate::power::{PowerMeter, Windows};
use crate::{Origin, SweepError, knee, roofline, shared, trial};

/// How a sweep measures.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The SM counts to measure on; empty for [`rungs`]. The whole GPU is always added, since the minimum SM count is relative to it.
    pub rungs: Vec<Sms>,
    /// How much slower than on the whole GPU a kernel may be on its minimum SM count: 0.02 is 2%.
    pub tolerance: f64,
    /// Replays before the samples of each round, at least 1.
    pub warm_up: u32,
    /// Samples of one point, 5 to 10000; fewer are taken, but no fewer than 5, of a point that would exceed `longest_point`.
    pub samples: u32,
    /// Rounds in which they are taken, at least 1.
    pub rounds: u32,
    /// One sample holds as many launches as this takes, at least 4.
    pub shortest_replay: Duration,
    /// One sample holds no more launches than this takes, unless 4 take longer.
    pub longest_replay: Duration,
    /// The samples of one point take about this long at most, unless 5 take longer.
    pub longest_point: Duration,
    /// Configurations of a kernel that are tried on each SM count, its own choice among them, at least 1. With 1 nothing is tried.
    pub configurations: u32,
    /// How long a kernel runs at each of four SM counts while the board's power is read; zero for not at all.
    pub power_window: Duration,
    /// The rates to hold kernels against; without, the data sheet of a known GPU or else the best rates that the sweep itself reached.
    pub peaks: Option<Peaks>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rungs: Vec::new(),
            tolerance: 0.02,
            warm_up: 2,
            samples: 21,
            rounds: 3,
            shortest_replay: Duration::from_micros(300),
            longest_replay: Duration::from_millis(20),
            longest_point: Duration::from_millis(500),
            configurations: 1,
            power_window: Duration::from_millis(300),
            peaks: None,
        }
    }
}

/// How much a sweep has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Kernel keys in the recorded request.
    pub keys: usize,
    /// Points, one for each key and rung.
    pub points: usize,
    /// How many of them an earlier sweep has finished. They are not reported again.
    pub finished: usize,
    /// Windows in which the board's power is to be read, beside the points.
    pub windows: usize,
}

/// Who watches a sweep, such as a progress bar. `()` does not care.
pub trait Progress {
    /// The sweep begins.
    fn begin(&mut self, _size: Size) {}
    /// A kernel key's points are measured next.
    fn key_begun(&mut self, _key: &str) {}
    /// One point is finished. The points of a key finish close to each other, since they are measured in turns.
    fn point_done(&mut self, _key: &str, _point: &SamplePoint) {}
    /// A window in which the board's power was read is over.
    fn window_done(&mut self, _key: &str, _sms: Sms) {}
    /// A kernel key is finished and about to be saved.
    fn key_done(&mut self, _key: &str, _kernel: &KernelProfile) {}
}

impl Progress for () {}

/// A sweep over the kernel keys of one recorded request.
pub struct Sweep<'a> {
    /// Where the kernels run. Nothing else may run there meanwhile.
    pub device: &'a Arc<dyn Device>,
    /// Makes the partitions; needs room for one on each rung but the last.
    pub ladder: &'a Ladder,
    /// The launches of one request, in their order. Several launches of one key are its rotation: their buffers are used in turn. Each is
    /// launched thousands of times, on whatever its buffers hold by then, so the buffers must stay allocated and the launch must bear it.
    pub recording: &'a [Box<dyn Kernel + Send>],
    /// What the provenance says beside the device.
    pub origin: &'a Origin,
    /// How to measure.
    pub options: &'a Options,
    /// What reads the board's power; nothing is read without, and never of a simulated board.
    pub meter: Option<&'a dyn PowerMeter>,
}

/// The recorded launches of one kernel key.
struct Group<'a> {
    key: String,
    instances: Vec<&'a dyn Kernel>,
}

/// What is known of one kernel key, and what is yet to be measured.
struct Missing<'a> {
    known: Option<&'a KernelProfile>,
    /// SM counts whose latency nobody knows.
    latency: Vec<Sms>,
    /// SM counts at which the board's power was not read.
    power: Vec<Sms>,
}

impl<'a> Missing<'a> {
    fn of(known: Option<&'a KernelProfile>, rungs: &[Sms], windows: Option<&Windows<'_>>) -> Self {
        let is_known = |sms: Sms| known.is_some_and(|kernel| kernel.points.iter().any(|point| point.sms == sms));
        let latency = rungs.iter().copied().filter(|&sms| !is_known(sms)).collect();
        Self { known, latency, power: windows.map_or(Vec::new(), |windows| windows.missing(known)) }
    }
}

/// What was measured of one kernel key.
#[derive(Default)]
struct Measured {
    points: Vec<SamplePoint>,
    power: Vec<(Sms, PowerSample)>,
}

impl Measured {
    /// The points by rising SM count, each with its power.
    fn merged(mut self) -> Vec<SamplePoint> {
        self.points.sort_by_key(|point| point.sms);
        for (sms, sample) in self.power {
            self.points.iter_mut().filter(|point| point.sms == sms).for_each(|point| point.power = Some(sample));
        }
        self.points
    }
}

impl Sweep<'_> {
    /// Sweeps, keeping the profile in `path`: a profile that is there already is gone on with, and it is saved after every kernel key. What another
    /// sweep saves there meanwhile stays, and is in the profile that is returned.
    ///
    /// # Errors
    /// As [`run`](Sweep::run), and [`SweepError::Profile`] for a file that is there but cannot be used.
    pub fn run_into(&self, path: &Path, progress: &mut dyn Progress) -> Result<Profile, SweepError> {
        self.run(shared::read(path)?, progress, &mut |profile| self.save(profile, path)).map_err(|error| match error {
            SweepError::OtherConditions { .. } | SweepError::MeasuredAndSimulated { .. } => {
                SweepError::File { path: path.to_owned(), source: Box::new(error) }
            }
            other => other,
        })
    }

    /// Measures every point that `earlier` lacks, and calls `save` with all there is so far whenever a kernel key is finished. What `save` adds to it
    /// stays, and is not measured any more.
    ///
    /// # Errors
    /// [`SweepError`]; what `save` was called with last is a valid profile all the same.
    #[tracing::instrument(level = "debug", name = "sweep", skip_all, fields(model = self.origin.model))]
    pub fn run(
        &self,
        earlier: Option<Profile>,
        progress: &mut dyn Progress,
        save: &mut dyn FnMut(&mut Profile) -> Result<(), SweepError>,
    ) -> Result<Profile, SweepError> {
        self.check_options()?;
        let groups = self.groups();
        if groups.is_empty() {
            return Err(SweepError::NothingRecorded);
        }
        let rungs = self.rungs()?;
        let mut profile = self.begin_with(earlier)?;
        count_launches(&mut profile, &groups);
        let meter = self.meter.filter(|_| !self.device.is_simulated() && !self.options.power_window.is_zero());
        let mut windows = meter.and_then(|meter| Windows::open(meter, self.options.power_window, &rungs, profile.power));
        if meter.is_some() && windows.is_none() {
            tracing::warn!("the board's power cannot be read, so the profile holds no energies");
        }
        let to_do = groups.iter().map(|group| Missing::of(profile.kernels.get(&group.key), &rungs, windows.as_ref()));
        let (unmeasured, unread) =
            to_do.fold((0, 0), |(points, windows), missing| (points + missing.latency.len(), windows + missing.power.len()));
        let points = groups.len() * rungs.len();
        progress.begin(Size { keys: groups.len(), points, finished: points - unmeasured, windows: unread });
        if unmeasured + unread == 0 {
            profile.provenance.include(&self.origin.provenance(&**self.device));
            self.judge(&mut profile);
            save(&mut profile)?;
            return Ok(profile);
        }

        self.device.bind_thread()?;
        // All of them now: a rung that cannot be had must not be found out after minutes of measuring.
        let lanes = rungs.iter().map(|&sms| Lane::new(&**self.device, self.ladder, sms)).collect::<Result<Vec<_>, _>>()?;
        let bench = Bench::new(self.device, &lanes[0], self.options.samples)?;
        for group in &groups {
            let missing = Missing::of(profile.kernels.get(&group.key), &rungs, windows.as_ref());
            if missing.latency.is_empty() && missing.power.is_empty() {
                continue;
            }
            progress.key_begun(&group.key);
            let mut measured = self.measure(&bench, &lanes, group, &missing, windows.as_mut(), progress)?;
            measured.points.extend(profile.kernels.remove(&group.key).into_iter().flat_map(|kernel| kernel.points));
            let kernel = self.kernel_profile(group, measured.merged())?;
            profile.kernels.insert(group.key.clone(), kernel);
            profile.power = windows.as_ref().map(|windows| windows.board).or(profile.power);
            profile.provenance = self.provenance_after(&profile.provenance);
            self.judge(&mut profile);
            progress.key_done(&group.key, &profile.kernels[&group.key]);
            save(&mut profile)?;
        }
        Ok(profile)
    }

    /// Puts `profile` into `path`, with what another sweep has put there since this one read it.
    fn save(&self, profile: &mut Profile, path: &Path) -> Result<(), SweepError> {
        let _lock = shared::lock(path)?;
        if let Some(there) = shared::read(path)? {
            shared::take_over(profile, self.begin_with(Some(there))?);
            count_launches(profile, &self.groups());
            self.judge(profile);
        }
        Ok(profile.write(path)?)
    }

    /// What is missing of one key: latencies, in rounds up and down the ladder, and then what the board drew.
    #[tracing::instrument(level = "debug", name = "measure kernel", skip_all, fields(kernel = group.key))]
    fn measure(
        &self,
        bench: &Bench,
        lanes: &[Lane],
        group: &Group<'_>,
        missing: &Missing<'_>,
        windows: Option<&mut Windows<'_>>,
        progress: &mut dyn Progress,
    ) -> Result<Measured, SweepError> {
        let failed = |sms| move |error: DeviceError| SweepError::Kernel { key: group.key.clone(), sms, source: error.into() };
        let wanted = |lane: &&Lane| missing.latency.contains(&lane.sms) || missing.power.contains(&lane.sms);
        let prepare = |lane: &Lane| {
            let (choice, configuration) = if missing.latency.contains(&lane.sms) {
                trial::quickest(bench, lane, &group.instances, self.options)?.unzip()
            } else {
                // Its power is that of the launches whose latency is known.
                (trial::named(bench, lane, &group.instances, missing.known), None)
            };
            Ok((bench.prepare(lane, &group.instances, choice, self.options)?, configuration))
        };
        let all = lanes.iter().filter(wanted).map(prepare).collect::<Result<Vec<_>, SweepError>>()?;
        let (mut prepared, configurations): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let rounds = self.options.rounds;
        for round in 0..rounds {
            let mut sample = |point: &mut Point| {
                // The whole of the samples, split as evenly as it goes.
                let count = point.samples * (round + 1) / rounds - point.samples * round / rounds;
                if missing.latency.contains(&point.sms) {
                    bench.sample(point, count, self.options).map_err(failed(point.sms))
                } else {
                    Ok(())
                }
            };
            if round % 2 == 0 {
                prepared.iter_mut().try_for_each(&mut sample)
            } else {
                prepared.iter_mut().rev().try_for_each(&mut sample)
            }?;
        }
        let mut measured = Measured::default();
        if let Some(windows) = windows {
            for point in prepared.iter().filter(|point| missing.power.contains(&point.sms)) {
                let sample = windows.read(bench, point).map_err(failed(point.sms))?;
                measured.power.extend(sample.map(|sample| (point.sms, sample)));
                progress.window_done(&group.key, point.sms);
            }
        }
        let finished = prepared.into_iter().zip(configurations).filter(|(point, _)| missing.latency.contains(&point.sms));
        for (point, configuration) in finished {
            let point = SamplePoint { configuration, ..point.finish(&group.key)? };
            progress.point_done(&group.key, &point);
            measured.points.push(point);
        }
        Ok(measured)
    }

    fn kernel_profile(&self, group: &Group<'_>, points: Vec<SamplePoint>) -> Result<KernelProfile, SweepError> {
        let topology = self.device.topology();
        let kernel = group.instances[0];
        let failed = |source| SweepError::Kernel { key: group.key.clone(), sms: topology.sms, source };
        let launch = kernel.configure(topology.sms, topology).map_err(failed)?;
        let no_time = || SweepError::NoTime { key: group.key.clone(), sms: topology.sms };
        Ok(KernelProfile {
            work: kernel.work(),
            launches: group.instances.len() as u32,
            blocks_per_sm: launch.blocks_per_sm,
            // Judged once the kernel is among the others, whose rates may be what it is held against.
            bound: Bound::Latency,
            minimum_sms: knee::minimum_sms(&points, self.options.tolerance).ok_or_else(no_time)?,
            points,
        })
    }

    /// Says of every kernel what limits it.
    fn judge(&self, profile: &mut Profile) {
        profile.peaks = self.peaks().unwrap_or_else(|| roofline::reached_peaks(profile.kernels.values()));
        for kernel in profile.kernels.values_mut() {
            if let Some(us) = roofline::whole_gpu_us(kernel) {
                kernel.bound = roofline::bound(kernel.work, us, &profile.peaks);
            }
        }
    }

    /// The peaks that do not depend on what is measured.
    fn peaks(&self) -> Option<Peaks> {
        self.options.peaks.or_else(|| roofline::datasheet_peaks(self.device.topology()))
    }

    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        let mut places = BTreeMap::new();
        for kernel in self.recording {
            let key = kernel.key();
            let place = *places.entry(key.fingerprint()).or_insert_with(|| {
                groups.push(Group { key: key.to_string(), instances: Vec::new() });
                groups.len() - 1
            });
            groups[place].instances.push(&**kernel);
        }
        groups
    }

    fn rungs(&self) -> Result<Vec<Sms>, SweepError> {
        let topology = self.device.topology();
        let mut counts = if self.options.rungs.is_empty() { rungs(topology) } else { self.options.rungs.clone() };
        let whole = topology.sms;
        if let Some(&bad) =
            counts.iter().find(|sms| sms.0 == 0 || **sms > whole || (sms.0 % topology.sms_per_tpc.max(1) != 0 && **sms != whole))
        {
            let reason = format!("{bad} SMs is no partition: it must be a multiple of {} between 1 and {whole}", topology.sms_per_tpc);
            return Err(SweepError::Option { name: "rungs", reason });
        }
        counts.push(whole);
        counts.sort_unstable();
        counts.dedup();
        Ok(counts)
    }

    fn check_options(&self) -> Result<(), SweepError> {
        let options = self.options;
        let refuse = |name, reason: String| Err(SweepError::Option { name, reason });
        if !(options.tolerance > 0.0 && options.tolerance < 1.0) {
            return refuse("tolerance", format!("{} is not between 0 and 1, both excluded (0.02 is 2%)", options.tolerance));
        }
        if !(FEWEST_SAMPLES..=MOST_SAMPLES).contains(&options.samples) {
            return refuse("samples", format!("{} is not between {FEWEST_SAMPLES} and {MOST_SAMPLES}", options.samples));
        }
        if options.rounds == 0 || options.rounds > options.samples {
            return refuse("rounds", format!("{} rounds cannot share {} samples", options.rounds, options.samples));
        }
        if options.configurations == 0 {
            return refuse("configurations", "0 are none to measure; 1 is the kernel's own choice".to_owned());
        }
        if options.shortest_replay > options.longest_replay {
            return refuse(
                "shortest_replay",
                format!("{:?} is longer than longest_replay, {:?}", options.shortest_replay, options.longest_replay),
            );
        }
        Ok(())
    }

    /// The profile to go on with, or an empty one.
    fn begin_with(&self, earlier: Option<Profile>) -> Result<Profile, SweepError> {
        let here = self.origin.provenance(&**self.device);
        let Some(earlier) = earlier else {
            let peaks = self.peaks().unwrap_or_else(|| roofline::reached_peaks([]));
            return Ok(Profile {
                schema: SCHEMA_VERSION,
                provenance: here,
                tolerance: self.options.tolerance,
                peaks,
                power: None,
                kernels: BTreeMap::new(),
            });
        };
        let there = &earlier.provenance;
        if there.simulated != here.simulated {
            return Err(SweepError::MeasuredAndSimulated { simulated: here.simulated });
        }
        let conditions = [
            ("schema", earlier.schema.to_string(), SCHEMA_VERSION.to_string()),
            ("provenance.gpu", there.gpu.clone(), here.gpu),
            ("provenance.sms", there.sms.to_string(), here.sms.to_string()),
            ("provenance.driver", there.driver.clone(), here.driver),
            ("provenance.kernel_build", there.kernel_build.clone(), here.kernel_build),
            ("tolerance", earlier.tolerance.to_string(), self.options.tolerance.to_string()),
        ];
        match conditions.into_iter().find(|(_, there, here)| there != here) {
            Some((field, found, here)) => Err(SweepError::OtherConditions { field, found, here }),
            None => Ok(earlier),
        }
    }

    /// Where and how the next key is measured, in a file that may hold other models too.
    fn provenance_after(&self, earlier: &Provenance) -> Provenance {
        let here = self.origin.provenance(&**self.device);
        let mut both = Provenance { models: earlier.models.clone(), command: earlier.command.clone(), ..here.clone() };
        both.include(&here);
        both
    }
}

/// Counts the launches of the recorded request, in place of those of the one before.
fn count_launches(profile: &mut Profile, groups: &[Group<'_>]) {
    for kernel in profile.kernels.values_mut() {
        kernel.launches = 0;
    }
    for group in groups {
        if let Some(kernel) = profile.kernels.get_mut(&group.key) {
            kernel.launches = group.instances.len() as u32;
        }
    }
}
