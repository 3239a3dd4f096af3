//! Device times of a few launches and replays, taken by events around them.
//!
//! Every [`SAMPLE_STRIDE`]-th eager launch of a session, and every so many replays one, is enqueued between two events of a fixed pool, and so are launches of requests
//! that the runtime [wants](super::wanted) to time. While a timeline is written, every replay is, as far as there are events, for the timeline alone. Nobody waits for them: whoever
//! collects samples asks later whether they are done. A launch inside a capture is never timed, since events would become nodes of the graph.
//!
//! Two kinds of launches give no sample, because what lies between their events is not the kernel alone:
//! - where the device had come to the first event before the launch was enqueued, so that it then waited for the host. A replay may: what it waits is the
//!   5 to 10 us in which the host launches the graph, so that comparisons leave short graphs out;
//! - where all events of the pool are taken by launches that are not done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, Event, Fingerprint, LaunchRequest, PartitionId, Priority, Sms, Stream, StreamId};
use crate::launch::capture::GraphBody;
use crate::tenant::TenantId;

use super::probe::{Observable, Replayable};

/// One launch in so many is timed, and one replay. Below 1 %; a prime, so that the samples of a model whose requests all launch the same number of kernels
/// fall on every kernel in turn.
pub const SAMPLE_STRIDE: u64 = 127;

/// Launches of one session that may be timed at once.
const SLOTS: usize = 8;

/// Replays of one session that may be timed at once for a timeline: of a thousand in a second, all, where somebody collects four times a second.
const TRACED_REPLAYS: usize = 256;

/// One launch as the device timed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Whose launch.
    pub tenant: TenantId,
    /// Which kernel.
    pub kernel: Fingerprint,
    /// The partition it ran in.
    pub partition: u32,
    /// SMs that its grid was sized for.
    pub sms: Sms,
    /// When it began, on the device's clock. Some microseconds off after minutes on `cuda`, whose event times are 32-bit floats.
    pub began: Duration,
    /// How long it took.
    pub took: Duration,
    /// Whether it belongs to a request that was launched so that its kernels can be timed, where it could have been replayed.
    pub replaces_replay: bool,
}

/// One replay as the device timed it.
pub(crate) struct ReplaySample {
    /// Whose.
    pub(crate) tenant: TenantId,
    /// Of what.
    pub(crate) graph: Arc<GraphBody>,
    /// The partition of the stream that it was launched on.
    pub(crate) partition: u32,
    /// When it began, on the device's clock.
    pub(crate) began: Duration,
    /// How long it took.
    pub(crate) took: Duration,
    /// Whether it is one of the few that are held against the plan, which a timeline adds none to.
    pub(crate) judged: bool,
}

/// The events of one session.
pub(super) struct SamplePool {
    tenant: TenantId,
    slots: [Slot<Timed>; SLOTS],
    replays: [Slot<TimedReplay>; 2],
    /// Where there is a timeline. The session uses them in turn.
    traced: Box<[Slot<TimedReplay>]>,
    next_traced: AtomicUsize,
    /// Marks `epoch_at` on the device, so that an event's time can be told on the device's clock.
    epoch: Event,
    epoch_at: Duration,
    /// Held by the one who collects.
    collecting: Mutex<()>,
}

/// A launch that is timed.
struct Timed {
    kernel: Fingerprint,
    partition: PartitionId,
    sms: Sms,
    replaces_replay: bool,
}

/// A replay that is timed.
type TimedReplay = (Arc<GraphBody>, PartitionId);

/// What is timed. The session writes a free slot, the collector reads a timed one; neither waits for the other.
///
/// | state | who may touch the slot | leaves by |
/// |-------|------------------------|-----------|
/// | FREE  | the session            | `time`, once both events are recorded |
/// | TIMED | the collector          | `take`, once the second event is done |
struct Slot<T> {
    state: AtomicU32,
    begin: Event,
    end: Event,
    /// The state says whose it is, so that it is never waited for.
    what: Mutex<Option<T>>,
}

const FREE: u32 = 0;
const TIMED: u32 = 1;

impl<T> Slot<T> {
    fn new(device: &Arc<dyn Device>) -> Result<Self, DeviceError> {
        Ok(Self { state: AtomicU32::new(FREE), begin: Event::timed(device)?, end: Event::timed(device)?, what: Mutex::new(None) })
    }

    fn is_free(&self) -> bool {
        self.state.load(Ordering::Acquire) == FREE
    }

    /// Enqueues what `enqueue` does between the events. Where `alone` is wanted and the device had come to the first one before, there will be no sample.
    fn time(
        &self,
        device: &dyn Device,
        stream: StreamId,
        what: T,
        alone: bool,
        enqueue: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        device.record(self.begin.id(), stream)?;
        enqueue()?;
        // It is enqueued: what goes wrong from here on costs the sample, and is no error of the launch.
        let waited_for_host = alone && device.query(self.begin.id()).unwrap_or(true);
        let is_sample = device.record(self.end.id(), stream).is_ok() && !waited_for_host;
        if let Some(mut place) = self.what.try_lock().filter(|_| is_sample) {
            *place = Some(what);
            self.state.store(TIMED, Ordering::Release);
        }
        Ok(())
    }

    /// What was timed and is done, with when it began, counted from `epoch`, and how long it took.
    fn take(&self, device: &dyn Device, epoch: &Event) -> Result<Option<(T, Duration, Duration)>, DeviceError> {
        if self.is_free() || !device.query(self.end.id())? {
            return Ok(None);
        }
        let times = (device.elapsed(epoch.id(), self.begin.id())?, device.elapsed(self.begin.id(), self.end.id())?);
        let what = self.what.lock().take();
        self.state.store(FREE, Ordering::Release);
        Ok(what.map(|what| (what, times.0, times.1)))
    }
}

impl SamplePool {
    /// A pool for a session of `tenant`; `traces` if there is a timeline. Waits until the device is idle enough to mark the time: never on the launch path.
    pub(super) fn new(device: &Arc<dyn Device>, tenant: TenantId, traces: bool) -> Result<Self, DeviceError> {
        device.bind_thread()?;
        let slot = || Slot::new(device);
        let slots = [slot()?, slot()?, slot()?, slot()?, slot()?, slot()?, slot()?, slot()?];
        let replays = [Slot::new(device)?, Slot::new(device)?];
        let traced = (0..if traces { TRACED_REPLAYS } else { 0 }).map(|_| Slot::new(device)).collect::<Result<_, _>>()?;
        let stream = Stream::new(device, PartitionId::WHOLE, Priority::High)?;
        let epoch = Event::timed(device)?;
        device.record(epoch.id(), stream.id())?;
        device.synchronize(stream.id())?;
        let (next_traced, collecting) = (AtomicUsize::new(0), Mutex::new(()));
        Ok(Self { tenant, slots, replays, traced, next_traced, epoch, epoch_at: device.now(), collecting })
    }

    /// Enqueues the launch between two events. Says whether it did: if not, nothing was enqueued.
    pub(super) fn launch(&self, launch: &Observable<'_>, replaces_replay: bool) -> Result<bool, DeviceError> {
        let &Observable { device, stream, request, partition, sms, .. } = launch;
        let Some(slot) = self.slots.iter().find(|slot| slot.is_free()) else { return Ok(false) };
        let timed = Timed { kernel: request.key.fingerprint(), partition, sms, replaces_replay };
        // An event lies before it now, over whose end a launch cannot overlap.
        slot.time(device, stream, timed, true, || device.launch(stream, &LaunchRequest { overlaps: false, ..*request }))?;
        Ok(true)
    }

    /// Replays a graph that launches `body` between two events, as one of those that are `judged` or for the timeline alone. Says whether it did.
    pub(super) fn replay(&self, replay: &Replayable<'_>, judged: bool) -> Result<bool, DeviceError> {
        let &Replayable { device, stream, partition, graph, body } = replay;
        let judged = self.replays.iter().find(|slot| judged && slot.is_free());
        let Some(slot) = judged.or_else(|| self.next_traced()) else { return Ok(false) };
        slot.time(device, stream, (Arc::clone(body), partition), false, || device.replay(graph, stream))?;
        Ok(true)
    }

    /// The slot that was used longest ago, if it is free again. All that are done are collected at once, so that no other is free before it.
    fn next_traced(&self) -> Option<&Slot<TimedReplay>> {
        let at = self.next_traced.load(Ordering::Relaxed);
        let slot = self.traced.get(at).filter(|slot| slot.is_free())?;
        self.next_traced.store((at + 1) % self.traced.len(), Ordering::Relaxed);
        Some(slot)
    }

    /// Collects the launches and replays that are done.
    pub(super) fn resolve(&self, device: &dyn Device, samples: &mut Samples) -> Result<(), DeviceError> {
        let _collecting = self.collecting.lock();
        let tenant = self.tenant;
        for slot in &self.slots {
            if let Some((Timed { kernel, partition, sms, replaces_replay }, since, took)) = slot.take(device, &self.epoch)? {
                let began = self.epoch_at + since;
                samples.launches.push(Sample { tenant, kernel, partition: partition.0, sms, began, took, replaces_replay });
            }
        }
        let replays = self.replays.iter().map(|slot| (slot, true)).chain(self.traced.iter().map(|slot| (slot, false)));
        for (slot, judged) in replays {
            if let Some(((graph, partition), since, took)) = slot.take(device, &self.epoch)? {
                let began = self.epoch_at + since;
                samples.replays.push(ReplaySample { tenant, graph, partition: partition.0, began, took, judged });
            }
        }
        Ok(())
    }
}

/// What was collected.
#[derive(Default)]
pub(crate) struct Samples {
    pub(crate) launches: Vec<Sample>,
    pub(crate) replays: Vec<ReplaySample>,
}
