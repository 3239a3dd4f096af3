//! One point: the latency of one kernel key on one SM count, and the same launches for as long as it takes to read the board's power.
//!
//! The launches are captured into a graph, so that the host's launch rate does not count, and one replay holds enough of them to be long
//! against the clock's resolution and the graph's own start. They rotate over the recorded launches of the key: the layers of a model
//! launch the same key on different weights, so that each launch finds the caches as it would in the request. A replay runs before the first
//! mark, and all replays are enqueued before the first has ended, so that the GPU never waits for the host between two marks.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use smidgen_runtime::device::{
    Buffer, Device, DeviceError, DevicePtr, Event, FunctionId, Graph, LaunchRequest, Priority, Sms, StreamId, Topology,
};
use smidgen_runtime::launch::{Choice, Kernel, KernelKey, Launch, LaunchError, TILE_PROGRESS_BYTES, TilesArg, Work};
use smidgen_runtime::partition::{Ladder, PartitionRef, TpcSet};
use smidgen_runtime::profile::SamplePoint;

use crate::sweep::Options;
use crate::{SweepError, knee};

/// Launches in one replay, at least: one launch's end and the next one's start belong to what is measured.
const FEWEST_LAUNCHES: u32 = 4;

/// Launches in one replay, at most: beyond, building the graph takes longer than replaying it.
const MOST_LAUNCHES: u32 = 1024;

/// Samples of a point, however long they take: fewer make no median that bears an outlier.
pub(crate) const FEWEST_SAMPLES: u32 = 5;

/// Samples of a point, at most: each one has an event.
pub(crate) const MOST_SAMPLES: u32 = 10_000;

/// Launches that overlap must not count on one counter.
const PROGRESSES: u64 = 2;

/// Replays that the host enqueues at a time while it keeps the GPU busy, as the time that they take, and how often it looks whether the GPU is through.
const BATCH: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_micros(200);

/// A stream inside the partition of one rung: the first TPCs in the driver's order, the same ones for every kernel.
pub(crate) struct Lane {
    pub(crate) sms: Sms,
    stream: StreamId,
    _partition: PartitionRef,
}

impl Lane {
    pub(crate) fn new(device: &dyn Device, ladder: &Ladder, sms: Sms) -> Result<Self, SweepError> {
        let tpcs = TpcSet::range(0, device.topology().tpcs_for(sms));
        let partition = ladder.partition(tpcs).map_err(|source| SweepError::Partition { sms, source })?;
        Ok(Self { sms, stream: device.create_stream(partition.id(), Priority::Normal)?, _partition: partition })
    }
}

/// What all points share: the device, the tile counter, the events.
pub(crate) struct Bench {
    device: Arc<dyn Device>,
    /// One counter serves all launches: they run one after another, and it resets itself.
    progress: Buffer,
    marks: Vec<Event>,
}

/// A kernel key on one SM count, captured and ready to be timed.
pub(crate) struct Point {
    pub(crate) sms: Sms,
    stream: StreamId,
    graph: Graph,
    launches: u32,
    /// How many samples shall be taken.
    pub(crate) samples: u32,
    /// Those taken so far, microseconds.
    pub(crate) samples_us: Vec<f64>,
}

/// The part of a window that counts.
pub(crate) struct Held {
    pub(crate) from: Instant,
    pub(crate) length: Duration,
    /// Mean time of a launch, microseconds.
    pub(crate) launch_us: f64,
}

/// One recorded launch, configured for an SM count.
struct Configured {
    function: FunctionId,
    launch: Launch,
    key: KernelKey,
    work: Work,
}

impl Bench {
    /// A bench whose tile counters are cleared.
    pub(crate) fn new(device: &Arc<dyn Device>, lane: &Lane, most_samples: u32) -> Result<Self, DeviceError> {
        let progress = Buffer::new(device, PROGRESSES * TILE_PROGRESS_BYTES)?;
        device.fill(lane.stream, progress.ptr(), 0, progress.bytes())?;
        device.synchronize(lane.stream)?;
        let marks = (0..=most_samples).map(|_| Event::timed(device)).collect::<Result<_, _>>()?;
        Ok(Self { device: Arc::clone(device), progress, marks })
    }

    pub(crate) fn topology(&self) -> &Topology {
        self.device.topology()
    }

    /// Captures `instances`, recorded launches of one key, for the SMs of `lane`: as `choice` says, or as each chooses itself.
    pub(crate) fn prepare(
        &self,
        lane: &Lane,
        instances: &[&dyn Kernel],
        choice: Option<Choice>,
        options: &Options,
    ) -> Result<Point, SweepError> {
        let failed = |source: LaunchError| match instances.first() {
            Some(kernel) => SweepError::Kernel { key: kernel.key().to_string(), sms: lane.sms, source },
            None => SweepError::NothingRecorded,
        };
        let configured =
            instances.iter().map(|kernel| self.configure(*kernel, choice, lane.sms)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        // Eagerly once: code is loaded at a kernel's first launch, which must not fall into a capture.
        for launch in &configured {
            self.launch(lane, launch, 0).map_err(|error| failed(error.into()))?;
        }
        let trial = self.capture(lane, &configured, FEWEST_LAUNCHES, 1).map_err(|error| failed(error.into()))?;
        let trial_us = self.replays(&trial, 1, 2).map_err(|error| failed(error.into()))?;
        let us = trial_us.into_iter().fold(f64::INFINITY, f64::min);
        if us <= 0.0 {
            return Err(SweepError::NoTime { key: configured[0].key.to_string(), sms: lane.sms });
        }
        let launches = launches_in_a_replay(us, configured.len() as u32, options);
        let samples = samples_in(options.longest_point, us * f64::from(launches), options.samples);
        self.capture(lane, &configured, launches, samples).map_err(|error| failed(error.into()))
    }

    /// Takes `count` more samples of `point`.
    pub(crate) fn sample(&self, point: &mut Point, count: u32, options: &Options) -> Result<(), DeviceError> {
        let samples = self.replays(point, options.warm_up, count)?;
        point.samples_us.extend(samples);
        Ok(())
    }

    /// Keeps the partition of `point` busy for about `length`. What is told is of the time after the first one of `settling` equal parts.
    pub(crate) fn hold(&self, point: &Point, length: Duration, settling: u32) -> Result<Held, DeviceError> {
        // A bench has more marks than that, since no median is of so few samples.
        let [settled, end, even, odd, ..] = &self.marks[..] else { return Ok(Held { from: Instant::now(), length, launch_us: 0.0 }) };
        let replay_us = self.replays(point, 1, 1)?.into_iter().fold(0.0, f64::max) * f64::from(point.launches);
        let replays_in = |time: Duration| (time.as_secs_f64() * 1e6 / replay_us.max(1.0)) as u32;
        let batch = replays_in(BATCH).max(1);
        let batches = (replays_in(length) / batch).max(settling.max(2));
        let unsettled = batches / settling.max(2);
        for number in 0..batches {
            let mark = if number % 2 == 0 { even } else { odd };
            // Two batches are under way, so that the GPU never waits, and not all of them, so that the host never does.
            while number >= 2 && !self.device.query(mark.id())? {
                thread::sleep(LOOK);
            }
            if number == unsettled {
                self.device.record(settled.id(), point.stream)?;
            }
            for _ in 0..batch {
                self.device.replay(point.graph.id(), point.stream)?;
            }
            self.device.record(mark.id(), point.stream)?;
        }
        self.device.record(end.id(), point.stream)?;
        self.device.synchronize(point.stream)?;
        let ended = Instant::now();
        let length = self.device.elapsed(settled.id(), end.id())?;
        let launches = f64::from((batches - unsettled) * batch) * f64::from(point.launches);
        Ok(Held { from: ended.checked_sub(length).unwrap_or(ended), length, launch_us: microseconds(length, launches) })
    }

    fn configure(&self, kernel: &dyn Kernel, choice: Option<Choice>, sms: Sms) -> Result<Configured, LaunchError> {
        let launch = match choice {
            Some(choice) => kernel.configure_as(choice, sms, self.topology())?,
            None => kernel.configure(sms, self.topology())?,
        };
        Ok(Configured { function: self.device.function(launch.symbol)?, launch, key: kernel.key(), work: kernel.work() })
    }

    /// Launches as a session does, `at` launches after the first of a chain: counters in turn for elastic kernels only, and over the end of the launch
    /// before where the kernel allows it.
    fn launch(&self, lane: &Lane, configured: &Configured, at: usize) -> Result<(), DeviceError> {
        let Configured { function, launch, key, work } = configured;
        let counter = self.progress.ptr().offset(at as u64 % PROGRESSES * TILE_PROGRESS_BYTES);
        let progress = if launch.elastic { counter } else { DevicePtr::NULL };
        let tiles = TilesArg::owner(launch, progress, DevicePtr::NULL);
        let overlaps = at > 0 && launch.programmatic;
        let request = LaunchRequest { function: *function, launch, tiles, priority: Priority::Normal, overlaps, key: *key, work: *work };
        self.device.launch(lane.stream, &request)
    }

    fn capture(&self, lane: &Lane, configured: &[Configured], launches: u32, samples: u32) -> Result<Point, DeviceError> {
        self.device.begin_capture(lane.stream)?;
        let mut chain = configured.iter().cycle().take(launches as usize).enumerate();
        let launched = chain.try_for_each(|(at, launch)| self.launch(lane, launch, at));
        // Also after a refused launch: the stream must not stay in capture.
        let graph = Graph::end_capture(&self.device, lane.stream);
        launched?;
        Ok(Point { sms: lane.sms, stream: lane.stream, graph: graph?, launches, samples, samples_us: Vec::new() })
    }

    /// Microseconds per launch in each of `count` replays, after `warm_up` more, at least one.
    fn replays(&self, point: &Point, warm_up: u32, count: u32) -> Result<Vec<f64>, DeviceError> {
        let marks = &self.marks[..self.marks.len().min(count as usize + 1)];
        let Some((first, rest)) = marks.split_first() else { return Ok(Vec::new()) };
        for _ in 0..warm_up.max(1) {
            self.device.replay(point.graph.id(), point.stream)?;
        }
        self.device.record(first.id(), point.stream)?;
        for mark in rest {
            self.device.replay(point.graph.id(), point.stream)?;
            self.device.record(mark.id(), point.stream)?;
        }
        self.device.synchronize(point.stream)?;
        let elapsed = marks.windows(2).map(|pair| self.device.elapsed(pair[0].id(), pair[1].id()));
        elapsed.map(|elapsed| elapsed.map(|elapsed| microseconds(elapsed, f64::from(point.launches)))).collect()
    }
}

impl Point {
    /// The samples as the profile holds them.
    pub(crate) fn finish(self, key: &str) -> Result<SamplePoint, SweepError> {
        let (sms, sound) = (self.sms, self.samples_us.iter().all(|&us| us > 0.0));
        let point = if sound { knee::summarize(sms, self.samples_us) } else { None };
        point.ok_or_else(|| SweepError::NoTime { key: key.to_owned(), sms })
    }
}

/// To a tenth of a nanosecond, below what any device's clock resolves, so that the file does not carry digits that mean nothing.
fn microseconds(elapsed: Duration, launches: f64) -> f64 {
    let tenths_of_ns = elapsed.as_nanos() as f64 * 10.0 / launches;
    tenths_of_ns.round() / 1e4
}

/// How many launches of `us` microseconds make a replay of the wanted length: whole rotations over the `instances` if that is not too long.
fn launches_in_a_replay(us: f64, instances: u32, options: &Options) -> u32 {
    let launches_in = |time: Duration| time.as_secs_f64() * 1e6 / us;
    // Casts of floats saturate, so that an absurd estimate ends at a limit.
    let fewest = (launches_in(options.shortest_replay).ceil() as u32).clamp(FEWEST_LAUNCHES, MOST_LAUNCHES);
    let most = (launches_in(options.longest_replay) as u32).clamp(fewest, MOST_LAUNCHES);
    let rotations = fewest.div_ceil(instances.max(1));
    (rotations * instances.max(1)).clamp(fewest, most)
}

/// How many replays of `us` microseconds fit into `time`, within what is needed and what is wanted.
fn samples_in(time: Duration, us: f64, wanted: u32) -> u32 {
    ((time.as_secs_f64() * 1e6 / us) as u32).clamp(FEWEST_SAMPLES, wanted.max(FEWEST_SAMPLES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launches(us: f64, instances: u32) -> u32 {
        launches_in_a_replay(us, instances, &Options::default())
    }

    #[test]
    fn short_kernels_fill_a_replay_with_whole_rotations() {
        assert_eq!(launches(10.0, 1), 30);
        assert_eq!(launches(10.0, 12), 36);
        assert_eq!(launches(100.0, 48), 48);
    }

    #[test]
    fn long_kernels_are_launched_a_few_times_even_where_a_replay_gets_long() {
        assert_eq!(launches(10_000.0, 1), 4);
        assert_eq!(launches(10_000.0, 12), 4);
        assert_eq!(launches(1_000.0, 100), 20);
    }

    #[test]
    fn absurdly_short_kernels_make_no_endless_graph() {
        assert_eq!(launches(1e-9, 7), MOST_LAUNCHES);
    }

    #[test]
    fn a_slow_point_takes_fewer_samples_but_never_too_few_for_a_median() {
        assert_eq!(samples_in(Duration::from_millis(500), 1_000.0, 21), 21);
        assert_eq!(samples_in(Duration::from_millis(500), 50_000.0, 21), 10);
        assert_eq!(samples_in(Duration::from_millis(500), 1e9, 21), FEWEST_SAMPLES);
    }
}
