//! The session's side: what it tells, and the one branch that this costs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::device::{Device, DeviceError, Fingerprint, GraphId, KernelKey, LaunchRequest, PartitionId, Sms, StreamId};
use crate::launch::SessionStats;
use crate::launch::capture::GraphBody;
use crate::policy::{CLOSE, Observation};
use crate::tenant::TenantId;

use super::Telemetry;
use super::metrics::{Counts, RequestMetrics};
use super::sampler::{SAMPLE_STRIDE, SamplePool};
use super::trace::{Event, Happening, Ring};
use super::wanted::{LAUNCHED_STRIDE, MOST_TIMED, Wanted};

/// What one session records through. The default records nothing.
#[derive(Default)]
pub struct Probe {
    tracing: Arc<AtomicBool>,
    /// Launches until the next sample. It counts down past 0, so that 0 at the start means never.
    until_sample: u64,
    /// The same for replays.
    until_replay: u64,
    wanted: Arc<Wanted>,
    /// Replays of the session before which no request is launched for [`Wanted`].
    replays_first: u64,
    timing: Option<Timing>,
    observed: Option<Observed>,
}

struct Observed {
    telemetry: Arc<Telemetry>,
    tenant: TenantId,
    /// Where there is a timeline.
    ring: Option<Arc<Ring>>,
    /// Where kernel times are sampled.
    samples: Option<Arc<SamplePool>>,
    counts: Arc<Counts>,
    pulse: Arc<Pulse>,
    /// What was added to `counts` so far.
    counted: SessionStats,
}

/// A request that is launched so that its kernels can be timed.
struct Timing {
    kernels: Arc<[Fingerprint]>,
    /// Launches that may still be timed.
    left: u32,
    /// Launches from the end of the request until the next sample.
    until_sample: u64,
}

/// A launch that the session is about to make.
pub(crate) struct Observable<'a> {
    pub(crate) device: &'a dyn Device,
    pub(crate) stream: StreamId,
    pub(crate) request: &'a LaunchRequest<'a>,
    pub(crate) partition: PartitionId,
    pub(crate) sms: Sms,
    pub(crate) capturing: bool,
}

/// A replay that the session is about to make.
pub(crate) struct Replayable<'a> {
    pub(crate) device: &'a dyn Device,
    pub(crate) stream: StreamId,
    pub(crate) partition: PartitionId,
    pub(crate) graph: GraphId,
    pub(crate) body: &'a Arc<GraphBody>,
}

impl Probe {
    pub(super) fn new(
        telemetry: &Arc<Telemetry>,
        tenant: TenantId,
        ring: Option<Arc<Ring>>,
        samples: Option<Arc<SamplePool>>,
        counts: Arc<Counts>,
        pulse: Arc<Pulse>,
        wanted: Arc<Wanted>,
    ) -> Self {
        let until_sample = if samples.is_some() { SAMPLE_STRIDE } else { 0 };
        let (tracing, telemetry, counted) = (Arc::clone(&telemetry.tracing), Arc::clone(telemetry), SessionStats::default());
        Self {
            tracing,
            until_sample,
            until_replay: until_sample,
            wanted,
            replays_first: LAUNCHED_STRIDE,
            timing: None,
            observed: Some(Observed { telemetry, tenant, ring, samples, counts, pulse, counted }),
        }
    }

    /// Whether the launch about to be made is to go through [`launch`](Self::launch). Asked once for each launch.
    #[inline]
    pub(crate) fn is_due(&mut self) -> bool {
        self.until_sample = self.until_sample.wrapping_sub(1);
        (self.until_sample == 0) | self.tracing.load(Ordering::Relaxed)
    }

    /// Whether the replay about to be made is to go through [`replay`](Self::replay). Asked once for each replay.
    #[inline]
    pub(crate) fn is_replay_due(&mut self) -> bool {
        self.until_replay = self.until_replay.wrapping_sub(1);
        (self.until_replay == 0) | self.tracing.load(Ordering::Relaxed)
    }

    /// Whether a request that could be replayed, after so many `replays` of the session, may be launched instead: then
    /// [`begin_timing`](Self::begin_timing) says whether it is to be.
    #[inline]
    pub(crate) fn may_time_request(&self, replays: u64) -> bool {
        self.wanted.is_any() && replays >= self.replays_first
    }

    /// Whether the request that comes is to be launched instead of replayed. If so its launches are timed, up to [`end_timing`](Self::end_timing).
    #[cold]
    pub(crate) fn begin_timing(&mut self, replays: u64) -> bool {
        let can_wait = self.observed.as_ref().is_some_and(|observed| observed.samples.is_some() && observed.pulse.can_wait());
        let Some(kernels) = can_wait.then(|| self.wanted.take()).flatten() else { return false };
        self.replays_first = replays + LAUNCHED_STRIDE;
        // Every launch of the request is looked at.
        let until_sample = std::mem::replace(&mut self.until_sample, 1);
        self.timing = Some(Timing { kernels, left: MOST_TIMED, until_sample });
        true
    }

    /// The request has been launched.
    pub(crate) fn end_timing(&mut self) {
        if let Some(timing) = self.timing.take() {
            self.until_sample = timing.until_sample;
        }
    }

    /// Whether the launch about to be made is to be timed.
    fn takes_sample(&mut self, kernel: &KernelKey) -> bool {
        let Some(timing) = &mut self.timing else {
            let is_due = self.until_sample == 0;
            if is_due {
                self.until_sample = SAMPLE_STRIDE;
            }
            return is_due;
        };
        self.until_sample = 1;
        let is_wanted = timing.left > 0 && timing.kernels.contains(&kernel.fingerprint());
        timing.left -= u32::from(is_wanted);
        is_wanted
    }

    /// Makes the replay, between two events if some are free.
    #[cold]
    pub(crate) fn replay(&mut self, replay: &Replayable<'_>) -> Result<(), DeviceError> {
        let judged = self.until_replay == 0;
        if judged {
            self.until_replay = SAMPLE_STRIDE;
        }
        let timed = match self.observed.as_ref().and_then(|observed| observed.samples.as_ref()) {
            Some(samples) => samples.replay(replay, judged)?,
            None => false,
        };
        if timed { Ok(()) } else { replay.device.replay(replay.graph, replay.stream) }
    }

    /// Makes the launch, between two events if it is to be timed. Says whether the launch is the last thing on its stream.
    #[cold]
    pub(crate) fn launch(&mut self, launch: &Observable<'_>) -> Result<bool, DeviceError> {
        let &Observable { device, stream, request, partition, sms, capturing } = launch;
        let takes_sample = self.takes_sample(&request.key);
        let samples = self.observed.as_ref().and_then(|observed| observed.samples.as_ref());
        let timed = match samples.filter(|_| takes_sample && !capturing) {
            Some(samples) => samples.launch(launch, self.timing.is_some())?,
            None => false,
        };
        if !timed {
            device.launch(stream, request)?;
        }
        self.note(device, || Happening::Launch { kernel: request.key.fingerprint(), partition: partition.0, sms });
        Ok(!timed)
    }

    /// The session went on in another lane.
    #[inline]
    pub(crate) fn hopped(&self, device: &dyn Device, from: PartitionId, to: PartitionId) {
        self.note(device, || Happening::Hop { from: from.0, to: to.0 });
    }

    /// A graph was replayed.
    #[inline]
    pub(crate) fn replayed(&mut self, device: &dyn Device, partition: PartitionId, stats: SessionStats) {
        self.note(device, || Happening::Replay { partition: partition.0 });
        self.count(stats);
    }

    /// The session met a kernel for the first time.
    pub(crate) fn met(&self, key: KernelKey) {
        if let Some(observed) = &self.observed {
            observed.telemetry.met_kernel(observed.tenant, key);
        }
    }

    /// The session has a stream in `partition`.
    pub(crate) fn lane(&self, stream: StreamId, partition: PartitionId) {
        if let Some(observed) = &self.observed {
            observed.telemetry.met_lane(observed.tenant, stream, partition);
        }
    }

    /// Shows others what the session has launched so far.
    #[inline]
    pub(crate) fn count(&mut self, stats: SessionStats) {
        if let Some(observed) = &mut self.observed {
            observed.counts.add_launched(observed.counted, stats);
            observed.counted = stats;
        }
    }

    #[inline]
    fn note(&self, device: &dyn Device, what: impl FnOnce() -> Happening) {
        if self.tracing.load(Ordering::Relaxed) {
            self.write(device.now(), what());
        }
    }

    #[cold]
    fn write(&self, at: Duration, what: Happening) {
        if let Some(ring) = self.observed.as_ref().and_then(|observed| observed.ring.as_ref()) {
            ring.push(Event { at, what });
        }
    }
}

/// What became of one tenant's requests since somebody last looked.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    under_way: AtomicU64,
    answered: AtomicU64,
    missed: AtomicU64,
    close: AtomicU64,
    /// Whether the request answered last missed its objective or nearly did.
    is_late: AtomicBool,
    has_answered: AtomicBool,
    /// Whether the engine ever told of a request, or that it has none.
    tells: AtomicBool,
    /// The objective now, nanoseconds; 0 for none.
    objective: AtomicU64,
}

impl Pulse {
    pub(super) fn set_objective(&self, slo: Option<Duration>) {
        let nanos = slo.unwrap_or_default().as_nanos();
        self.objective.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn objective(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.objective.load(Ordering::Relaxed))).filter(|objective| !objective.is_zero())
    }

    fn answered(&self, spent: f64) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.missed.fetch_add(u64::from(spent > 1.0), Ordering::Relaxed);
        self.close.fetch_add(u64::from(spent > CLOSE), Ordering::Relaxed);
        self.is_late.store(spent > CLOSE, Ordering::Relaxed);
        self.has_answered.store(true, Ordering::Relaxed);
        self.tells.store(true, Ordering::Relaxed);
    }

    /// Whether the next request may take somewhat longer than others. Where requests are answered in the order of their arrival it has waited no longer than
    /// the one answered last took. Of an engine that tells nothing of requests with an objective, nobody knows.
    fn can_wait(&self) -> bool {
        self.objective().is_none() || (self.has_answered.load(Ordering::Relaxed) && !self.is_late.load(Ordering::Relaxed))
    }

    /// What happened since the last call; whether the tenant rested or is paused is not known here. Of an engine that tells nothing, the tenant is taken to be at work.
    pub(super) fn take(&self, tenant: TenantId) -> Observation {
        let working = !self.tells.load(Ordering::Relaxed) || self.under_way.load(Ordering::Relaxed) > 0;
        let [requests, missed, close] = [&self.answered, &self.missed, &self.close].map(|count| count.swap(0, Ordering::Relaxed));
        Observation { tenant, requests, missed, close, working, rested: false, paused: false, ample: false }
    }
}

/// What an engine tells of one tenant's requests through: one for each thread that answers them. The default records nothing.
#[derive(Default)]
pub struct RequestLog {
    tracing: Arc<AtomicBool>,
    ring: Option<Arc<Ring>>,
    metrics: Option<RequestMetrics>,
    pulse: Arc<Pulse>,
    /// Requests that began here and were not answered yet.
    begun: u64,
}

impl RequestLog {
    pub(super) fn new(tracing: Arc<AtomicBool>, ring: Option<Arc<Ring>>, metrics: RequestMetrics, pulse: Arc<Pulse>) -> Self {
        Self { tracing, ring, metrics: Some(metrics), pulse, begun: 0 }
    }

    /// The engine waits for requests, and tells of each. To be said before the first one: of an engine that has told nothing the tenant is taken to be at work, and
    /// keeps its SMs. What has begun and was not answered is under way all the same.
    pub fn rests(&self) {
        self.pulse.tells.store(true, Ordering::Relaxed);
    }

    /// Work on a request begins. An engine whose requests may take longer than a second should say so, or a throughput tenant may be taken to be idle.
    /// A request is answered on the log on which it began; one that never is is under way until that log is dropped.
    pub fn begun(&mut self) {
        self.begun += 1;
        self.pulse.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// A request that arrived at `arrival` on the device's clock was answered at `ended`. `spent` is the part of the tenant's objective that it took: above 1 it
    /// missed it, and 0 stands for no objective. Plans follow both those that miss and those that nearly do ([`Runtime::adapt`](crate::Runtime::adapt)).
    /// It ends one that [began](Self::begun) on this log, if any did: it may be told of without a beginning.
    pub fn answered(&mut self, arrival: Duration, ended: Duration, spent: f64) {
        let (took, kept) = (ended.saturating_sub(arrival), spent <= 1.0);
        if let Some(metrics) = &self.metrics {
            metrics.answered(took, kept);
        }
        self.pulse.answered(spent);
        // What began on another log is that one's to end.
        if self.begun > 0 {
            self.begun -= 1;
            self.pulse.under_way.fetch_sub(1, Ordering::Relaxed);
        }
        if self.tracing.load(Ordering::Relaxed)
            && let Some(ring) = &self.ring
        {
            ring.push(Event { at: arrival, what: Happening::Request { took, kept, objective: self.pulse.objective() } });
        }
    }
}

impl Drop for RequestLog {
    /// Nobody answers what began here any more.
    fn drop(&mut self) {
        self.pulse.under_way.fetch_sub(self.begun, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_waits_for_its_first_request_is_not_at_work() {
        let mut log = RequestLog::default();
        let pulse = Arc::clone(&log.pulse);
        log.rests();
        assert!(!pulse.take(TenantId(0)).working);
        log.begun();
        assert!(pulse.take(TenantId(0)).working);
    }

    #[test]
    fn a_request_whose_log_is_dropped_is_no_work_any_more() {
        let mut log = RequestLog::default();
        let pulse = Arc::clone(&log.pulse);
        let is_working = || pulse.take(TenantId(0)).working;
        assert!(is_working(), "it has told nothing yet");
        (0..2).for_each(|_| log.begun());
        log.answered(Duration::ZERO, Duration::ZERO, 0.0);
        assert!(is_working());
        drop(log);
        assert!(!is_working());
    }

    #[test]
    fn a_request_that_another_log_answered_takes_nobody_else_s_along_when_its_log_is_dropped() {
        let pulse = Arc::<Pulse>::default();
        let log = || RequestLog { tracing: Arc::default(), ring: None, metrics: None, pulse: Arc::clone(&pulse), begun: 0 };
        let (mut began, mut answers, mut other) = (log(), log(), log());
        began.begun();
        answers.answered(Duration::ZERO, Duration::ZERO, 0.0);
        other.begun();
        drop(began);
        assert!(pulse.take(TenantId(0)).working, "the third log's is under way");
        drop(other);
        assert!(!pulse.take(TenantId(0)).working);
    }
}
