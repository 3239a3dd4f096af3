//! One tenant's way to the device: its copies, at once or in chunks that take turns, in order with its session's launches.
//!
//! A copy that goes at once and comes after launches is enqueued on the session's own stream: stream order is all that it needs, and the host waits for nothing.
//! Every other copy is enqueued on the uploader's stream, for whose last event the session's stream waits. A chunk that takes turns is not enqueued before
//! what it comes after is done, since it would hold a place on the link meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::device::{Device, DeviceError, DevicePtr, Event, PartitionId, PinnedBuffer, Priority, Stream, StreamId};
use crate::launch::{LaunchError, Session};
use crate::tenant::{Class, TenantId};

use super::link::{Link, Piece};
use super::queue::LaneId;
use super::{Chunk, Progress, Transfers};

/// Chunks of one upload that are staged and not sent, or sent and not arrived.
const STAGED: usize = 2;

/// Pageable bytes that are staged at a time by a tenant whose copies go at once: one piece is on the link while the next is staged.
const STAGED_AT_ONCE: usize = 1 << 20;

/// What a copy comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum After {
    /// After everything that the session has launched so far, as a copy on its stream would.
    #[default]
    Launches,
    /// After nothing: no launch in flight touches the target. A tenant with two buffers for its inputs copies the next ones so while it computes.
    Nothing,
}

/// Where the bytes are.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Anywhere; staged in page-locked memory by the calling thread, chunk by chunk.
    Pageable(&'a [u8]),
    /// In page-locked memory, read from there. It cannot be written ([`Arc::get_mut`]) before the copy is done and somebody has looked: the next upload does,
    /// or [`Uploader::collect`].
    Pinned(&'a Arc<PinnedBuffer>),
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Pageable(bytes)
    }
}

impl<'a> From<&'a Arc<PinnedBuffer>> for Source<'a> {
    fn from(buffer: &'a Arc<PinnedBuffer>) -> Self {
        Self::Pinned(buffer)
    }
}

impl Source<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Pageable(bytes) => bytes.len(),
            Self::Pinned(buffer) => buffer.as_slice().len(),
        }
    }
}

/// Copies a tenant's inputs to the device.
///
/// ```
/// use std::sync::Arc;
///
/// use smidgen_runtime::device::Buffer;
/// use smidgen_runtime::device::sim::{SimConfig, SimDevice};
/// use smidgen_runtime::policy::StaticEqual;
/// use smidgen_runtime::profile::ProfileStore;
/// use smidgen_runtime::tenant::{Class, TenantSpec};
/// use smidgen_runtime::transfer::After;
/// use smidgen_runtime::{AdmitError, Runtime};
///
/// let runtime = Runtime::new(SimDevice::new(SimConfig::h200()), Box::new(StaticEqual), Arc::new(ProfileStore::default()));
/// let spec = TenantSpec { name: "ours".to_owned(), class: Class::Latency, slo: None, memory_bytes: 1 << 30 };
/// let tenant = runtime.admit(spec)?;
/// let (mut session, mut uploader) = (runtime.session(tenant)?, runtime.uploader(tenant)?);
///
/// let inputs = Buffer::new(session.device(), 4 << 20)?;
/// uploader.upload(&mut session, inputs.ptr(), vec![7; 4 << 20].as_slice(), After::Launches)?;
/// // What is launched from here on waits for the copy.
/// # Ok::<(), AdmitError>(())
/// ```
pub struct Uploader {
    transfers: Arc<Transfers>,
    device: Arc<dyn Device>,
    tenant: TenantId,
    lane: LaneId,
    stream: Stream,
    /// What the copy comes after.
    after: Arc<Event>,
    staging: Vec<Arc<PinnedBuffer>>,
    /// Whether copies go at once.
    express: Arc<AtomicBool>,
    /// Those that did.
    link: Link<()>,
    /// Of those that take turns.
    progress: Arc<Progress>,
    /// Behind what went to the session's stream last: what goes to `stream` next must be made to come after it.
    on_session: Option<Arc<Event>>,
}

impl Uploader {
    pub(crate) fn new(transfers: &Arc<Transfers>, device: &Arc<dyn Device>, tenant: TenantId, class: Class) -> Result<Self, LaunchError> {
        transfers.set_class(tenant, class);
        Ok(Self {
            transfers: Arc::clone(transfers),
            device: Arc::clone(device),
            tenant,
            lane: transfers.new_lane(),
            stream: Stream::new(device, PartitionId::WHOLE, Priority::Normal)?,
            after: Arc::new(Event::new(device)?),
            staging: Vec::new(),
            express: transfers.express(tenant),
            link: Link::new(&transfers.device),
            progress: Arc::default(),
            on_session: None,
        })
    }

    /// Copies `source` to `target`, at once or in its turn; launches of `session` from here on wait for the copy. This returns as soon as all of it is
    /// sent, and pageable bytes may be used again then.
    ///
    /// # Errors
    /// [`LaunchError::WrongTenant`] with another tenant's session, [`LaunchError::Paused`], [`LaunchError::Dismissed`] and [`LaunchError::InCapture`] before
    /// anything is copied; what the device says, of this copy or of earlier ones of this uploader that are under way. After an error part of the target may have
    /// been written.
    pub fn upload<'a>(
        &'a mut self,
        session: &'a mut Session,
        target: DevicePtr,
        source: impl Into<Source<'a>>,
        after: After,
    ) -> Result<(), LaunchError> {
        let mut upload = self.begin(session, target, source, after)?;
        // Before the first poll, so that nothing is missed from then on.
        if let Way::Queued(progress) = &upload.way {
            *progress.waiter.lock() = Some(thread::current());
        }
        while !upload.poll()? {
            upload.wait();
        }
        Ok(())
    }

    /// [`upload`](Uploader::upload) for a thread that has other things to do: nothing is sent before the first [`Upload::poll`].
    ///
    /// # Errors
    /// As [`upload`](Uploader::upload).
    pub fn begin<'a>(
        &'a mut self,
        session: &'a mut Session,
        target: DevicePtr,
        source: impl Into<Source<'a>>,
        after: After,
    ) -> Result<Upload<'a>, LaunchError> {
        if session.tenant() != self.tenant {
            return Err(LaunchError::WrongTenant);
        }
        let stream = session.stream_for_copy()?;
        let source = source.into();
        let (express, bytes) = (self.express.load(Ordering::Relaxed), source.bytes());
        let to_session = express && after == After::Launches;
        if !to_session {
            if after == After::Launches {
                session.mark(&self.after)?;
            }
            if let Some(last) = self.on_session.take() {
                self.device.wait(self.stream.id(), last.id())?;
            }
        }
        let chunk_bytes = self.transfers.config().chunk_bytes;
        let piece_bytes = match source {
            Source::Pageable(_) if express => chunk_bytes.min(STAGED_AT_ONCE),
            Source::Pinned(_) if express => bytes.max(1),
            _ => chunk_bytes,
        };
        if let Source::Pageable(_) = source {
            self.stage_at_least(bytes.min(piece_bytes))?;
        }
        let way = match express {
            true if to_session => Way::Express(stream),
            true => Way::Express(self.stream.id()),
            false => {
                // Nothing waits there, unless an upload before this one was forgotten.
                self.transfers.withdraw(self.lane);
                self.progress.begin();
                Way::Queued(Arc::clone(&self.progress))
            }
        };
        let pieces = bytes.div_ceil(piece_bytes);
        Ok(Upload { uploader: self, session, target, source, after, way, piece_bytes, pieces, staged: 0, finished: pieces == 0 })
    }

    /// Lets go of the page-locked sources of copies that have arrived, so that they can be written again. Every upload begins with it.
    pub fn collect(&mut self) {
        // An error is the next upload's to meet.
        _ = self.link.look();
        self.transfers.pump();
    }

    /// Makes staging memory for chunks of `bytes` bytes, unless it is there: for a few token ids a page will do.
    fn stage_at_least(&mut self, bytes: usize) -> Result<(), LaunchError> {
        const PAGE: usize = 4096;
        if self.staging.first().is_none_or(|staging| staging.as_slice().len() < bytes) {
            let bytes = bytes.checked_next_multiple_of(PAGE).unwrap_or(bytes);
            let buffers = (0..STAGED).map(|_| PinnedBuffer::new(&self.device, bytes).map(Arc::new));
            self.staging = buffers.collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        _ = self.link.look();
        // What was sent still reads its source, and so may what cannot be asked about.
        self.transfers.adopt(&mut self.link);
    }
}

/// How an upload goes.
enum Way {
    /// At once, on this stream.
    Express(StreamId),
    /// In chunks that take turns with others'.
    Queued(Arc<Progress>),
}

/// A copy under way. Given up before it is finished, what was sent still arrives, and the rest is not sent.
#[must_use = "nothing is sent before `poll` is called"]
pub struct Upload<'a> {
    uploader: &'a mut Uploader,
    session: &'a mut Session,
    target: DevicePtr,
    source: Source<'a>,
    after: After,
    way: Way,
    piece_bytes: usize,
    pieces: usize,
    /// Pieces that were sent or queued.
    staged: usize,
    finished: bool,
}

impl Upload<'_> {
    /// Moves on as far as it goes without waiting; whether all of it is sent and the session waits for the last of it.
    ///
    /// # Errors
    /// What the device says; the upload is over then.
    pub fn poll(&mut self) -> Result<bool, LaunchError> {
        if !self.finished {
            // Either way may need the staging memory that the other used before the class or the rate changed.
            self.uploader.link.look()?;
            self.finished = match &self.way {
                &Way::Express(stream) => self.send(stream)?,
                Way::Queued(progress) => {
                    let progress = Arc::clone(progress);
                    self.take_turns(&progress)?
                }
            };
        }
        Ok(self.finished)
    }

    /// Until when there is nothing to do unless something happens on the device: what to give [`Device::pass_time`].
    pub fn wait_until(&self) -> Duration {
        match self.way {
            Way::Express(_) => Duration::MAX,
            Way::Queued(_) => self.uploader.transfers.next_at(),
        }
    }

    fn wait(&self) {
        match self.way {
            // For its own staging memory.
            Way::Express(_) => self.uploader.device.pass_time(Duration::MAX),
            Way::Queued(_) => self.uploader.transfers.wait(),
        }
    }

    fn send(&mut self, stream: StreamId) -> Result<bool, LaunchError> {
        while self.staged < self.pieces {
            let Some(piece) = self.stage(stream) else {
                // Copies that took turns may have the staging memory, and be why it never comes back.
                let Uploader { progress, transfers, .. } = &*self.uploader;
                progress.begin();
                transfers.pump();
                let outcome = progress.outcome.lock().take();
                return outcome.transpose().map(|_| false).map_err(LaunchError::from);
            };
            let sent = self.uploader.link.send(&piece, ())?;
            match self.after {
                After::Launches => self.uploader.on_session = Some(sent),
                After::Nothing if self.staged == self.pieces => self.session.wait_for(&sent)?,
                After::Nothing => {}
            }
        }
        Ok(true)
    }

    fn take_turns(&mut self, progress: &Arc<Progress>) -> Result<bool, LaunchError> {
        if let Source::Pageable(_) = self.source {
            // For staging memory that is free by now.
            self.uploader.transfers.pump();
        }
        self.queue(progress);
        self.uploader.transfers.pump();
        let outcome = progress.outcome.lock().take();
        match outcome {
            Some(Ok(last)) => self.session.wait_for(&last).map(|()| true),
            Some(Err(error)) => Err(error.into()),
            None => Ok(false),
        }
    }

    /// Queues chunks while there is room for them. Only a few are queued at a time, so that others of the class get their turns.
    fn queue(&mut self, progress: &Arc<Progress>) {
        let (lane, stream) = (self.uploader.lane, self.uploader.stream.id());
        while self.staged - (progress.sent.load(Ordering::Acquire) as usize) < STAGED {
            let is_first = self.staged == 0;
            let Some(piece) = self.stage(stream) else { return };
            let after = (is_first && self.after == After::Launches).then(|| Arc::clone(&self.uploader.after));
            let is_last = self.staged == self.pieces;
            let is_staged = matches!(self.source, Source::Pageable(_));
            let chunk = Chunk { lane, piece, after, is_last, is_staged, progress: Arc::clone(progress) };
            self.uploader.transfers.push(self.uploader.tenant, chunk);
        }
    }

    /// The next piece, staged where it must be; none where there is no other, or no staging memory that nothing reads.
    fn stage(&mut self, stream: StreamId) -> Option<Piece> {
        if self.staged == self.pieces {
            return None;
        }
        let from = self.staged * self.piece_bytes;
        let bytes = (self.source.bytes() - from).min(self.piece_bytes);
        let (source, first) = match self.source {
            Source::Pinned(buffer) => (Arc::clone(buffer), from),
            Source::Pageable(pageable) => {
                let free = self.uploader.staging.iter_mut().find(|staging| Arc::strong_count(staging) == 1)?;
                Arc::get_mut(free)?.as_mut_slice()[..bytes].copy_from_slice(&pageable[from..from + bytes]);
                (Arc::clone(free), 0)
            }
        };
        self.staged += 1;
        let target = self.target.offset(from as u64);
        Some(Piece { device: Arc::clone(&self.uploader.device), stream, target, source, first, bytes })
    }

    /// Takes back what is queued, and waits for what was sent: the target may be freed next, and nothing else does.
    fn give_up(&self) -> Result<(), DeviceError> {
        let stream = match self.way {
            Way::Express(stream) => stream,
            Way::Queued(_) => {
                self.uploader.transfers.withdraw(self.uploader.lane);
                self.uploader.stream.id()
            }
        };
        self.uploader.device.synchronize(stream)
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = self.give_up()
        {
            tracing::debug!("an upload was given up with copies unfinished: {error}");
        }
        if let Way::Queued(progress) = &self.way {
            let waited = progress.waiter.lock().take().is_some();
            if waited {
                self.uploader.transfers.hand_over();
            }
        }
    }
}
