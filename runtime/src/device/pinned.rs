//! Page-locked host memory as a safe type.

use std::fmt;
use std::slice;
use std::sync::Arc;

use super::{Device, DeviceError, DevicePtr, HostPtr, StreamId};

/// Page-locked host memory that is given back when dropped. A copy from it keeps an [`Arc`] of it, so that it can be written again
/// ([`Arc::get_mut`]) only when no copy reads it any more.
pub struct PinnedBuffer {
    device: Arc<dyn Device>,
    ptr: HostPtr,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone, and the driver's functions may be called from any thread.
unsafe impl Send for PinnedBuffer {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Allocates `bytes` zeros. Slow: the driver locks every page.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Arc<dyn Device>, bytes: usize) -> Result<Self, DeviceError> {
        let buffer = Self { ptr: device.allocate_host(bytes.max(1))?, device: Arc::clone(device), bytes };
        // SAFETY: the memory is `bytes` long and nobody else's; the driver may leave it with any contents, and this gives it some.
        unsafe { buffer.ptr.0.write_bytes(0, bytes) };
        Ok(buffer)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `bytes` bytes are allocated at `ptr` and were written when the buffer was made.
        unsafe { slice::from_raw_parts(self.ptr.0, self.bytes) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the buffer is borrowed alone; copies in flight keep an `Arc` of it, which rules that out.
        unsafe { slice::from_raw_parts_mut(self.ptr.0, self.bytes) }
    }

    /// Copies `bytes` bytes from `first` on to the device in stream order. What it returns is to be dropped when the copy is done, and not before.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn upload(
        self: &Arc<Self>,
        device: &dyn Device,
        stream: StreamId,
        target: DevicePtr,
        first: usize,
        bytes: usize,
    ) -> Result<Arc<Self>, DeviceError> {
        let source = self.as_slice().get(first..first.saturating_add(bytes)).unwrap_or_default();
        // SAFETY: the memory is page-locked; the `Arc` that the caller keeps until the copy is done keeps it alive and unwritten.
        unsafe { device.upload_pinned(stream, target, source) }?;
        Ok(Arc::clone(self))
    }
}

impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedBuffer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        self.device.free_host(self.ptr);
    }
}
