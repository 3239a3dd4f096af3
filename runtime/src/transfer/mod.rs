//! Host-to-device copies, which pass one point as launches do: in chunks, those of latency tenants first, and no faster than a rate that can be set.
//!
//! PCIe serves copies in the order in which they reach it, and lets each finish. A neighbour that copies 64 MiB at once so makes a latency tenant's inputs
//! wait for a millisecond. Here every copy is cut into chunks, and few chunks are on the link at a time; what goes next is decided when one has arrived.
//! An [`Uploader`] is one tenant's way in; [`Transfers`] belongs to the runtime and decides.
//!
//! | file | what is in it |
//! |---|---|
//! | `uploader` | an upload from a tenant's side: staging, and order with the session's launches |
//! | `queue` | who is next; pure |
//! | `bucket` | rates; pure |
//!
//! No thread of its own does the copying: chunks are staged by the thread whose they are, and whoever waits for its own hands the next one, whosever it is, to
//! the device. Copies back to the host, copies within captured graphs, and the few bytes of a grant do not come here.

mod bucket;
mod queue;
mod uploader;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, DevicePtr, Event, PinnedBuffer, StreamId};
use crate::tenant::{Class, TenantId};

use queue::{LaneId, Queue};

pub use uploader::{After, Source, Upload, Uploader};

/// How copies are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferConfig {
    /// Bytes of a chunk.
    pub chunk_bytes: usize,
    /// Chunks on the link at a time. One leaves the link idle from its end until the host has noticed and sent the next.
    pub in_flight: u32,
}

impl Default for TransferConfig {
    /// Two chunks of 1 MiB: at 55 GB/s, 19 us each, so that a latency tenant waits for others for 38 us at most, about as long as for a tile. Smaller chunks
    /// would be sent no faster than the host can issue them, a few microseconds each; larger ones only make others wait.
    fn default() -> Self {
        Self { chunk_bytes: 1 << 20, in_flight: 2 }
    }
}

/// The copies of all tenants of a runtime.
pub struct Transfers {
    device: Arc<dyn Device>,
    config: TransferConfig,
    lanes: AtomicU64,
    shared: Mutex<Shared>,
}

struct Shared {
    queue: Queue<Chunk>,
    on_link: Vec<OnLink>,
    /// Events of chunks that have arrived.
    spare: Vec<Event>,
}

/// A chunk that may be sent by whoever is at hand.
struct Chunk {
    lane: LaneId,
    /// The device as the tenant sees it.
    device: Arc<dyn Device>,
    stream: StreamId,
    target: DevicePtr,
    source: Arc<PinnedBuffer>,
    first: usize,
    bytes: usize,
    /// To be done before the chunk may go.
    after: Option<Arc<Event>>,
    /// To be recorded behind it, if it is the last of its upload.
    done: Option<Arc<Event>>,
    progress: Arc<Progress>,
}

/// A chunk that was sent and has not arrived, as far as anybody has looked.
struct OnLink {
    event: Event,
    /// Nobody may write it yet.
    _source: Arc<PinnedBuffer>,
}

/// What became of an upload's chunks.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    error: Mutex<Option<DeviceError>>,
}

impl Transfers {
    pub(crate) fn new(device: Arc<dyn Device>, config: TransferConfig) -> Arc<Self> {
        let config = TransferConfig { chunk_bytes: config.chunk_bytes.max(1), in_flight: config.in_flight.max(1) };
        let burst = config.chunk_bytes as u64 * u64::from(config.in_flight);
        let shared = Shared { queue: Queue::new(config.in_flight, burst), on_link: Vec::new(), spare: Vec::new() };
        Arc::new(Self { device, config, lanes: AtomicU64::new(0), shared: Mutex::new(shared) })
    }

    /// How copies are cut.
    pub fn config(&self) -> TransferConfig {
        self.config
    }

    /// Lets a tenant copy at most so many bytes per second, or as many as it can. A pause saves up for [`TransferConfig::in_flight`] chunks at most.
    pub fn set_rate(&self, tenant: TenantId, bytes_per_second: Option<NonZeroU64>) {
        self.shared.lock().queue.set_rate(tenant, bytes_per_second, self.device.now());
    }

    /// Lets all throughput tenants together copy at most so many bytes per second, or as many as they can.
    pub fn set_throughput_rate(&self, bytes_per_second: Option<NonZeroU64>) {
        self.shared.lock().queue.set_throughput_rate(bytes_per_second, self.device.now());
    }

    pub(crate) fn set_class(&self, tenant: TenantId, class: Class) {
        self.shared.lock().queue.set_class(tenant, class);
    }

    pub(crate) fn forget(&self, tenant: TenantId) {
        self.shared.lock().queue.forget(tenant);
    }

    fn new_lane(&self) -> LaneId {
        self.lanes.fetch_add(1, Ordering::Relaxed)
    }

    fn push(&self, tenant: TenantId, chunk: Chunk) {
        let (lane, bytes) = (chunk.lane, chunk.bytes as u64);
        self.shared.lock().queue.push(lane, tenant, bytes, chunk);
    }

    fn withdraw(&self, lane: LaneId) {
        self.shared.lock().queue.withdraw(lane);
    }

    /// Notes which chunks have arrived and sends what may go. Never waits: while another thread is at it, there is nothing to do here.
    fn pump(&self) {
        let Some(mut shared) = self.shared.try_lock() else { return };
        let Shared { queue, on_link, spare } = &mut *shared;
        for at in (0..on_link.len()).rev() {
            // An error is that of a lost context, which the next chunk meets too.
            if self.device.query(on_link[at].event.id()).unwrap_or(true) {
                spare.push(on_link.swap_remove(at).event);
                queue.done();
            }
        }
        let now = self.device.now();
        while let Some(chunk) = queue.pop(now, Chunk::is_ready) {
            match chunk.send(&self.device, spare.pop()) {
                Ok(sent) => on_link.push(sent),
                Err(error) => {
                    queue.done();
                    queue.withdraw(chunk.lane);
                    *chunk.progress.error.lock() = Some(error);
                }
            }
        }
    }

    /// Until when nothing can go but for an event of the device.
    fn next_at(&self) -> Duration {
        self.shared.lock().queue.next_at(self.device.now()).unwrap_or(Duration::MAX)
    }
}

impl Chunk {
    fn is_ready(&self) -> bool {
        // An error is found again when the chunk is sent.
        self.after.as_ref().is_none_or(|after| self.device.query(after.id()).unwrap_or(true))
    }

    fn send(&self, device: &Arc<dyn Device>, event: Option<Event>) -> Result<OnLink, DeviceError> {
        let event = match event {
            Some(event) => event,
            None => Event::new(device)?,
        };
        let source = self.source.upload(&*self.device, self.stream, self.target, self.first, self.bytes)?;
        let marked = self.device.record(event.id(), self.stream);
        let marked = marked.and_then(|()| self.done.as_ref().map_or(Ok(()), |done| self.device.record(done.id(), self.stream)));
        if let Err(error) = marked {
            // The copy reads the source, and there is nothing to tell when it has.
            if self.device.synchronize(self.stream).is_err() {
                tracing::debug!(%error, "a copy could not be waited for");
            }
            return Err(error);
        }
        self.progress.sent.fetch_add(1, Ordering::Release);
        Ok(OnLink { event, _source: source })
    }
}
