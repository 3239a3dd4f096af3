//! Copies that were sent, and what must outlive them: a source may be neither freed nor written before its copy has arrived.

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

    /// Lets go of the copies that have arrived.
    pub(super) fn collect(&mut self, mut arrived: impl FnMut(T)) {
        for at in (0..self.sent.len()).rev() {
            // Nothing arrives any more in a context that is lost. Any other error says nothing of the copy.
            if self.device.query(self.sent[at].event.id()).unwrap_or_else(|error| error.is_sticky()) {
                let Sent { event, tag, .. } = self.sent.swap_remove(at);
                self.spare.push(event);
                arrived(tag);
            }
        }
    }

    /// [`collect`](Link::collect) for a link that sends nothing: it has no use for the events.
    pub(super) fn let_go(&mut self) {
        self.collect(drop);
        self.spare.clear();
    }

    /// Takes over what another has sent.
    pub(super) fn adopt(&mut self, other: &mut Self) {
        self.sent.append(&mut other.sent);
    }

    pub(super) fn tags(&self) -> impl Iterator<Item = &T> {
        self.sent.iter().map(|sent| &sent.tag)
    }
}
