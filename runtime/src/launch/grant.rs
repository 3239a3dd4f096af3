//! Grants: the SM set a tenant holds right now, a mask in device memory that its elastic kernels poll before every tile.
//!
//! What stands in a tenant's grant is decided in [`lending`](super::lending), from the ledger; here it is written. A write is four words on
//! a high-priority stream of the grant's own, so that it overtakes the kernels it steers. It allocates nothing and waits for nothing. Kernels may see one word before
//! another: whatever a mask says of an SM, it says by itself.

use std::array::from_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::device::{Buffer, Device, DeviceError, DevicePtr, PartitionId, Priority, Stream};
use crate::partition::TpcSet;

use super::turn::Turn;

/// One tenant's grant.
pub struct Grant {
    device: Arc<dyn Device>,
    // Dropped before the mask that its copies write.
    stream: Stream,
    mask: Buffer,
    turn: Turn,
    held: Held,
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
        let grant = Self { device: Arc::clone(device), stream, mask, turn: Turn::new(), held: Held::default() };
        grant.write(all, grant.device.sm_mask(all)?)?;
        grant.device.synchronize(grant.stream.id())?;
        Ok(grant)
    }

    /// Where kernels poll.
    pub fn ptr(&self) -> DevicePtr {
        self.mask.ptr()
    }

    /// The TPCs that were written last; kernels see them some microseconds later.
    pub fn held(&self) -> TpcSet {
        self.held.get()
    }

    /// Grants exactly the SMs of `tpcs`, in place of a [`Runtime`](crate::Runtime): it looks after the grants of its tenants itself. Kernels in
    /// flight follow at their next tile; this does not wait for them.
    ///
    /// # Errors
    /// What the device says.
    pub fn set(&self, tpcs: TpcSet) -> Result<(), DeviceError> {
        self.refresh(|| Some(tpcs), |tpcs| self.device.sm_mask(tpcs))
    }

    /// Writes what `wanted` says, unless it was written last or `wanted` says nothing. Kernels in flight follow at their next tile; this does
    /// not wait for them. Where threads meet here, one of them writes for all, and what it writes last was asked for last.
    ///
    /// # Errors
    /// What `mask` or the device says.
    pub(super) fn refresh(
        &self,
        wanted: impl Fn() -> Option<TpcSet>,
        mask: impl Fn(TpcSet) -> Result<[u32; 8], DeviceError>,
    ) -> Result<(), DeviceError> {
        self.turn.run(|| match wanted() {
            Some(tpcs) if tpcs != self.held() => self.write(tpcs, mask(tpcs)?),
            _ => Ok(()),
        })
    }

    /// Waits until every kernel sees what was written: about 10 us. Never on the launch path.
    ///
    /// # Errors
    /// What the device says.
    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        while self.turn.is_taken() {
            std::thread::yield_now();
        }
        self.device.synchronize(self.stream.id())
    }

    fn write(&self, tpcs: TpcSet, mask: [u32; 8]) -> Result<(), DeviceError> {
        let words: [u64; 4] = from_fn(|at| u64::from(mask[2 * at + 1]) << 32 | u64::from(mask[2 * at]));
        self.device.write_words(self.stream.id(), self.mask.ptr(), &words)?;
        self.held.set(tpcs);
        Ok(())
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

/// A set that one thread at a time writes and any may read without a lock: a sequence lock (Boehm, "Can Seqlocks Get Along With Programming
/// Language Memory Models?", 2012). The version is odd while a write is under way.
#[derive(Default)]
struct Held {
    version: AtomicU32,
    halves: [AtomicU64; 2],
}

impl Held {
    fn get(&self) -> TpcSet {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let [low, high] = [0, 1].map(|half: usize| u128::from(self.halves[half].load(Ordering::Relaxed)));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return TpcSet::from_bits(high << 64 | low);
            }
            std::hint::spin_loop();
        }
    }

    fn set(&self, tpcs: TpcSet) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let bits = tpcs.bits();
        self.halves[0].store(bits as u64, Ordering::Relaxed);
        self.halves[1].store((bits >> 64) as u64, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }
}
