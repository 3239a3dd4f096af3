//! Grants: the SM set a tenant holds right now, a mask in device memory that its elastic kernels poll before every tile.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::{Buffer, Device, DeviceError, DevicePtr, PartitionId, Priority, Stream};
use crate::partition::TpcSet;

/// One tenant's grant. Written by a 32-byte copy on a high-priority stream of its own, so that it overtakes the kernels it steers.
pub struct Grant {
    device: Arc<dyn Device>,
    // Dropped before the mask that its copies write.
    stream: Stream,
    mask: Buffer,
    /// What was written last.
    held: Mutex<TpcSet>,
}

impl Grant {
    /// A grant of every SM.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(device: &Arc<dyn Device>) -> Result<Self, DeviceError> {
        let mask = Buffer::new(device, size_of::<[u32; 8]>() as u64)?;
        let stream = Stream::new(device, PartitionId::WHOLE, Priority::High)?;
        let all = device.topology().all_tpcs();
        let grant = Self { device: Arc::clone(device), stream, mask, held: Mutex::new(all) };
        grant.set(all)?;
        grant.device.synchronize(grant.stream.id())?;
        Ok(grant)
    }

    /// Grants exactly the SMs of `tpcs`. Kernels in flight follow at their next tile; this does not wait for them.
    ///
    /// # Errors
    /// What the device says.
    pub fn set(&self, tpcs: TpcSet) -> Result<(), DeviceError> {
        let mut bytes = [0; 32];
        for (target, word) in bytes.chunks_exact_mut(4).zip(self.device.sm_mask(tpcs)?) {
            target.copy_from_slice(&word.to_le_bytes());
        }
        let mut held = self.held.lock();
        self.device.upload(self.stream.id(), self.mask.ptr(), &bytes)?;
        *held = tpcs;
        Ok(())
    }

    /// Grants the SMs of `tpcs` besides those granted already, and waits until every kernel sees them: about 10 us.
    ///
    /// # Errors
    /// What the device says.
    pub fn widen(&self, tpcs: TpcSet) -> Result<(), DeviceError> {
        let held = *self.held.lock();
        if held.includes(tpcs) {
            return Ok(());
        }
        self.set(held | tpcs)?;
        self.device.synchronize(self.stream.id())
    }

    /// What was granted last.
    pub fn held(&self) -> TpcSet {
        *self.held.lock()
    }

    /// Where kernels poll.
    pub fn ptr(&self) -> DevicePtr {
        self.mask.ptr()
    }
}

impl Drop for Grant {
    /// Waits for the last copy, which would otherwise write memory that is somebody else's by then.
    fn drop(&mut self) {
        if let Err(error) = self.device.synchronize(self.stream.id()) {
            tracing::debug!("a grant was given up with its last copy unfinished: {error}");
        }
    }
}
