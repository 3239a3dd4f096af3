//! Host-to-device copies: those of latency tenants go at once, those of throughput tenants in chunks that take turns, and no faster than a rate that can be set.
//!
//! Copies of different streams share the link: a small one that is handed to the driver at once hardly waits, whatever else is on it
//! (docs/decisions/0020-latency-copies-go-at-once.md). So a latency tenant's copy passes nobody's queue: the thread that asks for it enqueues it, in order with
//! the session's launches, without a lock. Throughput tenants are held to few chunks on the link together, so that they take turns, can be shaped, and
//! leave the link to others within a chunk or two even where it serves copies strictly in order, as the simulator's does. An [`Uploader`] is one tenant's way
//! in; [`Transfers`] belongs to the runtime and decides.
//!
//! | file | what is in it |
//! |---|---|
//! | `uploader` | a tenant's side: staging, order with the session's launches, copies that go at once |
//! | `queue` | who is next; pure |
//! | `bucket` | rates; pure |
//! | `link` | copies that were sent, and what must outlive them |
//!
//! | tenant | its copies |
//! |---|---|
//! | latency, no rate | go at once |
//! | latency, shaped | in chunks, as soon as the rate lets them |
//! | throughput | in chunks, at most [`TransferConfig::in_flight`] of all such tenants on the link, as soon as the rates let them |
//!
//! No thread of its own does the copying: each thread stages its own chunks, and one of those that wait looks after the link for
//! all, while the others sleep. Copies back to the host, copies within captured graphs, and the few bytes of a grant do not come here.

mod bucket;
mod link;
mod queue;
mod uploader;

use std::collections::BTreeMap;
use std::hint;
use std::mem;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, Event};
use crate::tenant::{Class, TenantId};

use link::{Link, Piece};
use queue::{LaneId, Queue};

pub use uploader::{After, Source, Upload, Uploader};

/// How often the one who looks after the link does so. Each look takes the driver's lock, which launches take too; a chunk is on the link fifteen times as long.
const LOOK_EVERY: Duration = Duration::from_micros(5);

/// The longest that a waiting thread sleeps where nobody wakes it. Whoever looks after the link wakes those whose chunks moved on, so this only bounds what a missed call costs.
const SLEEP: Duration = Duration::from_millis(1);

/// How copies of throughput tenants, and of tenants with a rate, are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferConfig {
    /// Bytes of a chunk.
    pub chunk_bytes: usize,
    /// Chunks of throughput tenants on the link at a time. One leaves the link idle from its end until the host has noticed and sent the next.
    pub in_flight: u32,
}

impl Default for TransferConfig {
    /// Two chunks of 4 MiB: at 55 GB/s, 76 us each, beside which the few microseconds that the host takes to notice an arrival and to send the next are small.
    /// Two of 1 MiB left a fifth of the link unused on an H200.
    fn default() -> Self {
        Self { chunk_bytes: 4 << 20, in_flight: 2 }
    }
}

/// The copies of all tenants of a runtime.
pub struct Transfers {
    device: Arc<dyn Device>,
    config: TransferConfig,
    lanes: AtomicU64,
    shared: Mutex<Shared>,
    /// Held by the one waiting thread that looks after the link.
    looking: Mutex<()>,
}

struct Shared {
    queue: Queue<Chunk>,
    link: Link<Sent>,
    /// Copies that went at once, of uploaders that are gone.
    orphans: Link<()>,
    /// Whose copies go at once, for their uploaders to read.
    express: BTreeMap<TenantId, Arc<AtomicBool>>,
}

/// A chunk that may be sent by whoever is at hand.
struct Chunk {
    lane: LaneId,
    piece: Piece,
    /// To be done before the chunk may go.
    after: Option<Arc<Event>>,
    is_last: bool,
    /// Whether the source is staging memory, which its uploader waits for.
    is_staged: bool,
    progress: Arc<Progress>,
}

/// Whose chunk is on the link.
struct Sent {
    class: Class,
    is_staged: bool,
    /// Whether it counts as on the link no more.
    is_off: bool,
    progress: Arc<Progress>,
}

/// What became of the chunks of an uploader's last upload. It is the uploader's, so that an upload which waits for staging memory is told what happens to
/// the copies before it.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    /// The event behind the last chunk, once that is sent; or why the upload is over.
    outcome: Mutex<Option<Result<Arc<Event>, DeviceError>>>,
    /// Who sleeps until the upload moves on.
    waiter: Mutex<Option<Thread>>,
}

impl Transfers {
    pub(crate) fn new(device: Arc<dyn Device>, config: TransferConfig) -> Arc<Self> {
        let config = TransferConfig { chunk_bytes: config.chunk_bytes.max(1), in_flight: config.in_flight.max(1) };
        let burst = config.chunk_bytes as u64 * u64::from(config.in_flight);
        let queue = Queue::new(config.in_flight, burst);
        let shared = Shared { queue, link: Link::new(&device), orphans: Link::new(&device), express: BTreeMap::new() };
        Arc::new(Self { device, config, lanes: AtomicU64::new(0), shared: Mutex::new(shared), looking: Mutex::new(()) })
    }

    /// How copies are cut.
    pub fn config(&self) -> TransferConfig {
        self.config
    }

    pub(crate) fn set_rate(&self, tenant: TenantId, bytes_per_second: Option<NonZeroU64>) {
        let mut shared = self.shared.lock();
        shared.queue.set_rate(tenant, bytes_per_second, self.device.now());
        shared.tell(tenant);
    }

    /// Lets all throughput tenants together copy at most so many bytes per second, or as many as they can.
    pub fn set_throughput_rate(&self, bytes_per_second: Option<NonZeroU64>) {
        self.shared.lock().queue.set_throughput_rate(bytes_per_second, self.device.now());
    }

    pub(crate) fn set_class(&self, tenant: TenantId, class: Class) {
        let mut shared = self.shared.lock();
        shared.queue.set_class(tenant, class);
        shared.tell(tenant);
    }

    pub(crate) fn forget(&self, tenant: TenantId) {
        let mut shared = self.shared.lock();
        shared.queue.forget(tenant);
        shared.express.remove(&tenant);
    }

    fn new_lane(&self) -> LaneId {
        self.lanes.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a tenant's copies go at once, from now on.
    fn express(&self, tenant: TenantId) -> Arc<AtomicBool> {
        let mut shared = self.shared.lock();
        let express = Arc::clone(shared.express.entry(tenant).or_default());
        shared.tell(tenant);
        express
    }

    fn push(&self, tenant: TenantId, chunk: Chunk) {
        let (lane, bytes) = (chunk.lane, chunk.piece.bytes as u64);
        self.shared.lock().queue.push(lane, tenant, bytes, chunk);
    }

    fn withdraw(&self, lane: LaneId) {
        self.shared.lock().queue.withdraw(lane);
    }

    fn adopt(&self, link: &mut Link<()>) {
        let orphans = &mut self.shared.lock().orphans;
        // Where every tenant's copies go at once, nobody else looks.
        orphans.let_go();
        orphans.adopt(link);
    }

    /// Notes which chunks have arrived and sends what may go. Never waits: while another thread is at it, there is nothing to do here.
    fn pump(&self) {
        let Some(mut shared) = self.shared.try_lock() else { return };
        let Shared { queue, link, orphans, .. } = &mut *shared;
        orphans.let_go();
        link.collect(|sent, copy| {
            // One that cannot be asked about is in nobody's way but its own uploader's.
            if !mem::replace(&mut sent.is_off, true) {
                queue.done(sent.class);
            }
            match copy {
                Ok(()) if sent.is_staged => _ = sent.progress.wake(),
                Ok(()) => {}
                Err(error) => sent.progress.end(Err(error)),
            }
        });
        let now = self.device.now();
        while let Some((class, chunk)) = queue.pop(now, |chunk| chunk.may_go(&*self.device)) {
            let Chunk { lane, piece, is_last, is_staged, progress, .. } = chunk;
            match link.send(&piece, Sent { class, is_staged, is_off: false, progress: Arc::clone(&progress) }) {
                Ok(event) => {
                    progress.sent.fetch_add(1, Ordering::Release);
                    match is_last {
                        true => progress.end(Ok(event)),
                        false => _ = progress.wake(),
                    }
                }
                Err(error) => {
                    queue.done(class);
                    queue.withdraw(lane);
                    progress.end(Err(error));
                }
            }
        }
    }

    /// Until when nothing can go but for an event of the device.
    fn next_at(&self) -> Duration {
        self.shared.lock().queue.next_at(self.device.now()).unwrap_or(Duration::MAX)
    }

    /// Waits until it is time to pump again: as the one who looks after the link, or asleep while another does.
    fn wait(&self) {
        let Some(_looking) = self.looking.try_lock() else { return thread::park_timeout(SLEEP) };
        let looked = self.device.now();
        self.device.pass_time(self.next_at());
        // Virtual time stands still here, and has passed exactly as far as there is something to see.
        while !self.device.is_simulated() && self.device.now().saturating_sub(looked) < LOOK_EVERY {
            hint::spin_loop();
        }
    }

    /// Wakes somebody to look after the link, unless somebody does: to be called by a thread that will not wait any more.
    fn hand_over(&self) {
        if self.looking.is_locked() {
            return;
        }
        let shared = self.shared.lock();
        let on_link = shared.link.tags().map(|sent| &sent.progress);
        let mut all = on_link.chain(shared.queue.waiting().map(|chunk| &chunk.progress));
        _ = all.any(|progress| progress.wake());
    }
}

impl Shared {
    /// Tells a tenant's uploaders whether its copies go at once.
    fn tell(&self, tenant: TenantId) {
        if let Some(express) = self.express.get(&tenant) {
            express.store(self.queue.is_express(tenant), Ordering::Relaxed);
        }
    }
}

impl Chunk {
    /// Whether what it comes after is done. Where that cannot be told the chunk stays, and its upload is over, which takes it back.
    fn may_go(&self, device: &dyn Device) -> bool {
        let Some(after) = &self.after else { return true };
        link::is_done(device, after).unwrap_or_else(|error| {
            self.progress.end(Err(error));
            false
        })
    }
}

impl Progress {
    /// For the next upload, when no chunk of the last one waits any more.
    fn begin(&self) {
        self.sent.store(0, Ordering::Relaxed);
        *self.outcome.lock() = None;
    }

    /// Ends the upload, unless it has ended already, and wakes who sleeps until then.
    fn end(&self, outcome: Result<Arc<Event>, DeviceError>) {
        self.outcome.lock().get_or_insert(outcome);
        self.wake();
    }

    /// Wakes who sleeps until the upload moves on; whether anybody may.
    fn wake(&self) -> bool {
        let waiter = self.waiter.lock();
        waiter.as_ref().inspect(|waiter| waiter.unpark()).is_some()
    }
}
