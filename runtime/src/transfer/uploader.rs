//! One tenant's way to the device: its copies in chunks, in order with its session's launches.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::device::{Device, DevicePtr, Event, PartitionId, PinnedBuffer, Priority, Stream};
use crate::launch::{LaunchError, Session};
use crate::tenant::{Class, TenantId};

use super::queue::LaneId;
use super::{Chunk, Progress, Transfers};

/// Chunks of one upload that are staged and not sent, or sent and not arrived.
const STAGED: usize = 2;

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
    /// In page-locked memory, read from there. It cannot be written ([`Arc::get_mut`]) before the copy is done.
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
    /// What the copy comes after, and what comes after the copy.
    after: Arc<Event>,
    done: Arc<Event>,
    staging: Vec<Arc<PinnedBuffer>>,
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
            done: Arc::new(Event::new(device)?),
            staging: Vec::new(),
        })
    }

    /// Copies `source` to `target` in its turn; launches of `session` from here on wait for the copy. This returns as soon as every chunk is sent, and
    /// pageable bytes may be used again then.
    ///
    /// # Errors
    /// [`LaunchError::Paused`], [`LaunchError::Dismissed`] and [`LaunchError::Capturing`] before anything is copied; what the device says. After an error
    /// part of the target may have been written.
    pub fn upload<'a>(
        &'a mut self,
        session: &'a mut Session,
        target: DevicePtr,
        source: impl Into<Source<'a>>,
        after: After,
    ) -> Result<(), LaunchError> {
        let device = Arc::clone(&self.device);
        let mut upload = self.begin(session, target, source, after)?;
        while !upload.poll()? {
            device.pass_time(upload.wait_until());
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
        session.mark(&self.after)?;
        let source = source.into();
        let chunk_bytes = self.transfers.config().chunk_bytes;
        if let Source::Pageable(_) = source {
            let largest = source.bytes().min(chunk_bytes);
            self.stage_at_least(largest)?;
        }
        let chunks = source.bytes().div_ceil(chunk_bytes);
        Ok(Upload { uploader: self, session, target, source, after, chunks, staged: 0, progress: Arc::default(), finished: chunks == 0 })
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

/// A copy under way. Given up before it is finished, what was sent still arrives, and the rest is not sent.
#[must_use = "nothing is sent before `poll` is called"]
pub struct Upload<'a> {
    uploader: &'a mut Uploader,
    session: &'a mut Session,
    target: DevicePtr,
    source: Source<'a>,
    after: After,
    chunks: usize,
    /// Chunks that were queued.
    staged: usize,
    progress: Arc<Progress>,
    finished: bool,
}

impl Upload<'_> {
    /// Moves on as far as it goes without waiting; whether every chunk is sent and the session waits for the last.
    ///
    /// # Errors
    /// What the device says; the upload is over then.
    pub fn poll(&mut self) -> Result<bool, LaunchError> {
        if self.finished {
            return Ok(true);
        }
        self.uploader.transfers.pump();
        while self.stage() {}
        self.uploader.transfers.pump();
        if let Some(error) = self.progress.error.lock().take() {
            return Err(error.into());
        }
        if self.sent() < self.chunks {
            return Ok(false);
        }
        self.session.wait_for(&self.uploader.done)?;
        self.finished = true;
        Ok(true)
    }

    /// Until when there is nothing to do unless something happens on the device: what to give [`Device::pass_time`].
    pub fn wait_until(&self) -> Duration {
        self.uploader.transfers.next_at()
    }

    fn sent(&self) -> usize {
        self.progress.sent.load(Ordering::Acquire) as usize
    }

    /// Queues the next chunk, if there is one and room for it. Only a few are queued at a time, so that others of the class get their turns.
    fn stage(&mut self) -> bool {
        if self.staged == self.chunks || self.staged - self.sent() >= STAGED {
            return false;
        }
        let uploader = &mut *self.uploader;
        let chunk_bytes = uploader.transfers.config().chunk_bytes;
        let from = self.staged * chunk_bytes;
        let bytes = (self.source.bytes() - from).min(chunk_bytes);
        let (source, first) = match self.source {
            Source::Pinned(buffer) => (Arc::clone(buffer), from),
            Source::Pageable(pageable) => {
                let slot = self.staged % STAGED;
                let Some(free) = uploader.staging.get_mut(slot) else { return false };
                // In use until the copy from it has arrived.
                let Some(staging) = Arc::get_mut(free) else { return false };
                staging.as_mut_slice()[..bytes].copy_from_slice(&pageable[from..from + bytes]);
                (Arc::clone(free), 0)
            }
        };
        let is_last = self.staged + 1 == self.chunks;
        let chunk = Chunk {
            lane: uploader.lane,
            device: Arc::clone(&uploader.device),
            stream: uploader.stream.id(),
            target: self.target.offset(from as u64),
            source,
            first,
            bytes,
            after: (self.after == After::Launches && self.staged == 0).then(|| Arc::clone(&uploader.after)),
            done: is_last.then(|| Arc::clone(&uploader.done)),
            progress: Arc::clone(&self.progress),
        };
        uploader.transfers.push(uploader.tenant, chunk);
        self.staged += 1;
        true
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.uploader.transfers.withdraw(self.uploader.lane);
        // The target may be freed next, and the session does not wait for what was sent.
        if let Err(error) = self.uploader.device.synchronize(self.uploader.stream.id()) {
            tracing::debug!("an upload was given up with copies unfinished: {error}");
        }
    }
}
