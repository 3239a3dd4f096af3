//! Device times of a few launches, taken by events around them.
//!
//! Every [`SAMPLE_STRIDE`]-th eager launch of a session is enqueued between two events of a fixed pool. Nobody waits for them: whoever
//! collects samples asks later whether they are done. A launch inside a capture is never timed, since events would become nodes of the graph.
//!
//! Two kinds of launches give no sample, because what lies between their events is not the kernel alone:
//! - where the device had come to the first event before the launch was enqueued, so that it then waited for the host;
//! - where all events of the pool are taken by launches that are not done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, Event, LaunchRequest, PartitionId, Priority, Sms, Stream, StreamId};
use crate::launch::Fingerprint;
use crate::tenant::TenantId;

/// One launch in so many is timed. Below 1 %; a prime, so that the samples of a model whose requests all launch the same number of kernels
/// fall on every kernel in turn.
pub const SAMPLE_STRIDE: u64 = 127;

/// Launches of one session that may be timed at once.
const SLOTS: usize = 8;

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
}

/// The events of one session.
pub(super) struct SamplePool {
    tenant: TenantId,
    slots: [Slot; SLOTS],
    /// Marks `epoch_at` on the device, so that an event's time can be told on the device's clock.
    epoch: Event,
    epoch_at: Duration,
    /// Held by the one who collects.
    collecting: Mutex<()>,
}

/// A launch that is timed. The session writes a free slot, the collector reads a timed one; neither waits for the other.
///
/// | state | who may touch the slot | leaves by |
/// |-------|------------------------|-----------|
/// | FREE  | the session            | `launch`, once both events are recorded |
/// | TIMED | the collector          | `resolve`, once the second event is done |
struct Slot {
    state: AtomicU32,
    begin: Event,
    end: Event,
    kernel: AtomicU64,
    /// SMs in the low 16 bits, the partition above 32.
    place: AtomicU64,
}

const FREE: u32 = 0;
const TIMED: u32 = 1;

impl SamplePool {
    /// A pool for a session of `tenant`. Waits until the device is idle enough to mark the time: never on the launch path.
    pub(super) fn new(device: &Arc<dyn Device>, tenant: TenantId) -> Result<Self, DeviceError> {
        device.bind_thread()?;
        let slot = || {
            let (begin, end) = (Event::new(device)?, Event::new(device)?);
            Ok(Slot { state: AtomicU32::new(FREE), begin, end, kernel: AtomicU64::new(0), place: AtomicU64::new(0) })
        };
        let slots = [slot()?, slot()?, slot()?, slot()?, slot()?, slot()?, slot()?, slot()?];
        let stream = Stream::new(device, PartitionId::WHOLE, Priority::High)?;
        let epoch = Event::new(device)?;
        device.record(epoch.id(), stream.id())?;
        device.synchronize(stream.id())?;
        Ok(Self { tenant, slots, epoch, epoch_at: device.now(), collecting: Mutex::new(()) })
    }

    /// Enqueues `request` between two events. Says whether it did: if not, nothing was enqueued.
    pub(super) fn launch(
        &self,
        device: &dyn Device,
        stream: StreamId,
        request: &LaunchRequest<'_>,
        partition: PartitionId,
        sms: Sms,
    ) -> Result<bool, DeviceError> {
        let Some(slot) = self.slots.iter().find(|slot| slot.state.load(Ordering::Acquire) == FREE) else { return Ok(false) };
        device.record(slot.begin.id(), stream)?;
        // An event lies before it now, over whose end a launch cannot overlap.
        device.launch(stream, &LaunchRequest { overlaps: false, ..*request })?;
        let waited_for_host = device.query(slot.begin.id())?;
        device.record(slot.end.id(), stream)?;
        if !waited_for_host {
            slot.kernel.store(request.key.fingerprint().0, Ordering::Relaxed);
            slot.place.store(u64::from(sms.0) | u64::from(partition.0) << 32, Ordering::Relaxed);
            slot.state.store(TIMED, Ordering::Release);
        }
        Ok(true)
    }

    /// Collects the launches that are done.
    pub(super) fn resolve(&self, device: &dyn Device, samples: &mut Vec<Sample>) -> Result<(), DeviceError> {
        let _collecting = self.collecting.lock();
        for slot in &self.slots {
            if slot.state.load(Ordering::Acquire) != TIMED || !device.query(slot.end.id())? {
                continue;
            }
            let (kernel, place) = (slot.kernel.load(Ordering::Relaxed), slot.place.load(Ordering::Relaxed));
            samples.push(Sample {
                tenant: self.tenant,
                kernel: Fingerprint(kernel),
                partition: (place >> 32) as u32,
                sms: Sms(place as u16),
                began: self.epoch_at + device.elapsed(self.epoch.id(), slot.begin.id())?,
                took: device.elapsed(slot.begin.id(), slot.end.id())?,
            });
            slot.state.store(FREE, Ordering::Release);
        }
        Ok(())
    }
}
