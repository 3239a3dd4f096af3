//! Copies that were sent, and what must outlive them: a source may be neither freed nor written before its copy has arrived.

use std::mem;
use std::sync::Arc;

use crate::device::{Device, DeviceError, DevicePtr, Event, PinnedBuffer, StreamId};

/// One piece of page-locked memory that goes to the device in one call.
pub(super) struct Piece {
    /// The device as the tenant sees it.
    pub(super) device: Arc<dyn Device>,
    pub(super) stream: StreamId,
    pub(super) target: DevicePtr,
    pub(super) source: Arc<PinnedBuffer>,
    pub(super) first: usize,
    pub(super) bytes: usize,
}

/// Copies that were sent and have not arrived, as far as anybody has looked, each with what its sender wants to know then.
pub(super) struct Link<T> {
    /// Makes the events, which outlive the tenants whose copies they mark.
    device: Arc<dyn Device>,
    sent: Vec<Sent<T>>,
    /// Events of copies that have arrived. Somebody may be about to wait for one, or keep it.
    spare: Vec<Arc<Event>>,
}

struct Sent<T> {
    event: Arc<Event>,
    _source: Arc<PinnedBuffer>,
    tag: T,
}

impl<T> Link<T> {
    pub(super) fn new(device: &Arc<dyn Device>) -> Self {
        Self { device: Arc::clone(device), sent: Vec::new(), spare: Vec::new() }
    }

    /// Enqueues the copy, and an event behind it.
    pub(super) fn send(&mut self, piece: &Piece, tag: T) -> Result<Arc<Event>, DeviceError> {
        let event = match self.spare.iter().position(|event| Arc::strong_count(event) == 1) {
            Some(at) => self.spare.swap_remove(at),
            None => Arc::new(Event::new(&self.device)?),
        };
        let source = piece.source.upload(&*piece.device, piece.stream, piece.target, piece.first, piece.bytes)?;
        if let Err(error) = self.device.record(event.id(), piece.stream) {
            // The copy reads the source, and there is nothing to tell when it has.
            if self.device.synchronize(piece.stream).is_err() {
                tracing::debug!(%error, "a copy could not be waited for");
            }
            return Err(error);
        }
        self.sent.push(Sent { event: Arc::clone(&event), _source: source, tag });
        Ok(event)
    }

    /// Lets go of the copies that have arrived, and tells of them. A copy that cannot be asked about may still read its source, so it stays; it is told of with
    /// the error, each time anew.
    pub(super) fn collect(&mut self, mut tell: impl FnMut(&mut T, Result<(), DeviceError>)) {
        for at in (0..self.sent.len()).rev() {
            match is_done(&*self.device, &self.sent[at].event) {
                Ok(false) => {}
                Ok(true) => {
                    let Sent { event, mut tag, .. } = self.sent.swap_remove(at);
                    self.spare.push(event);
                    tell(&mut tag, Ok(()));
                }
                Err(error) => tell(&mut self.sent[at].tag, Err(error)),
            }
        }
    }

    /// Takes over what another has sent.
    pub(super) fn adopt(&mut self, other: &mut Self) {
        self.sent.append(&mut other.sent);
    }

    pub(super) fn tags(&self) -> impl Iterator<Item = &T> {
        self.sent.iter().map(|sent| &sent.tag)
    }
}

impl Link<()> {
    /// [`collect`](Link::collect) where all copies are one uploader's; the error of one that cannot be asked about.
    pub(super) fn look(&mut self) -> Result<(), DeviceError> {
        let mut looked = Ok(());
        self.collect(|(), copy| looked = mem::replace(&mut looked, Ok(())).and(copy));
        looked
    }

    /// [`look`](Link::look) for a link that sends nothing, where nobody is left to be told: it has no use for the events.
    pub(super) fn let_go(&mut self) {
        _ = self.look();
        self.spare.clear();
    }
}

/// Whether everything before the event's mark is done. Nothing is under way any more in a context that is lost: what comes next meets that again.
///
/// # Errors
/// What the device says, unless it only refuses to be asked during a capture: that passes, and says nothing of the mark.
pub(super) fn is_done(device: &dyn Device, event: &Event) -> Result<bool, DeviceError> {
    match device.query(event.id()) {
        Err(error) if error.is_sticky() => Ok(true),
        Err(DeviceError::DuringCapture { .. }) => Ok(false),
        answer => answer,
    }
}
