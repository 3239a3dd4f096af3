//! Device memory: allocation, and copies whose host side is free again as soon as the call returns.

use cudarc::driver::sys::{CUdevice, CUdevice_attribute};

use super::driver::{self, Stream};
use crate::device::{DeviceError, DevicePtr};

/// How host memory reaches the device.
pub struct HostMemory {
    /// The GPU walks the host's own page tables, so that the driver may copy from pageable memory without staging it first.
    reads_host_pages: bool,
}

impl HostMemory {
    pub fn of(device: CUdevice) -> Result<Self, DeviceError> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES;
        Ok(Self { reads_host_pages: driver::device_attribute(device, attribute)? != 0 })
    }

    /// Copies `source` in stream order. The driver stages pageable memory before it returns ("API synchronization behavior", CUDA driver
    /// API); where it does not stage, this waits for the copy.
    pub fn upload(&self, stream: Stream, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError> {
        if source.is_empty() {
            return Ok(());
        }
        refuse_under_capture(stream, "cuMemcpyHtoDAsync")?;
        let staged = !self.reads_host_pages && !driver::memory_is_page_locked(source.as_ptr())?;
        // SAFETY: either the driver has copied `source` when this returns, or the wait below outlasts the copy.
        unsafe { driver::memory_copy_to_device(stream, target, source) }?;
        if staged { Ok(()) } else { driver::stream_synchronize(stream) }
    }
}

/// Writes words in stream order, without a copy: the stream's own engine does it, and the host makes one short call for all.
pub fn write_words(stream: Stream, target: DevicePtr, words: &[u64]) -> Result<(), DeviceError> {
    refuse_under_capture(stream, "cuStreamBatchMemOp")?;
    let mut target = target;
    for words in words.chunks(driver::WORDS_AT_ONCE) {
        driver::stream_write_words(stream, target, words)?;
        target = target.offset(8 * words.len() as u64);
    }
    Ok(())
}

/// Copies page-locked bytes in stream order, without waiting.
///
/// # Safety
/// `source` must not change or go away before the stream has done the copy.
pub unsafe fn upload_pinned(stream: Stream, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError> {
    if source.is_empty() {
        return Ok(());
    }
    refuse_under_capture(stream, "cuMemcpyHtoDAsync")?;
    // SAFETY: the same promise, handed on.
    unsafe { driver::memory_copy_to_device(stream, target, source) }
}

/// Waits for `stream` and copies to the host.
pub fn download(stream: Stream, source: DevicePtr, target: &mut [u8]) -> Result<(), DeviceError> {
    refuse_under_capture(stream, "cuMemcpyDtoHAsync")?;
    if !target.is_empty() {
        // SAFETY: the wait below outlasts the copy, and `target` is borrowed until then.
        unsafe { driver::memory_copy_to_host(stream, source, target) }?;
    }
    driver::stream_synchronize(stream)
}

/// Sets device bytes in stream order.
pub fn fill(stream: Stream, target: DevicePtr, value: u8, bytes: u64) -> Result<(), DeviceError> {
    if bytes == 0 {
        return Ok(());
    }
    driver::memory_fill(stream, target, value, host_size(bytes))
}

/// Device memory, or an error that says what is left.
pub fn allocate(bytes: u64) -> Result<DevicePtr, DeviceError> {
    match driver::memory_allocate(host_size(bytes))? {
        Some(ptr) => Ok(ptr),
        None => Err(DeviceError::OutOfMemory { asked: bytes, free: driver::memory_free_bytes()? }),
    }
}

/// More than a pointer can span is more than any GPU has: the driver then says so.
fn host_size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// A captured copy would keep the host address and use it at every replay, long after the borrow has ended.
fn refuse_under_capture(stream: Stream, call: &'static str) -> Result<(), DeviceError> {
    if !driver::stream_is_capturing(stream)? {
        return Ok(());
    }
    let status = "the stream is being captured, and a graph cannot hold copies from or to the host; copy before or after the capture";
    Err(DeviceError::Driver { call, status: status.to_owned(), sticky: false })
}
