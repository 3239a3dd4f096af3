//! Simulated device memory: addresses and capacity for everything, contents only for what is written in small pieces.
//!
//! Grants, counters and token ids are small writes, and what was written can be read back. Weights are not kept: a large write only makes its
//! range read as zeros.

use std::collections::BTreeMap;

use crate::device::{DeviceError, DevicePtr};

/// Writes up to this many bytes are kept.
const KEPT_BYTES: u64 = 4096;
const PAGE: u64 = 4096;
/// CUDA's alignment of an allocation.
const ALIGNMENT: u64 = 256;
/// Where addresses begin: far from null, as on a real device.
const BASE: u64 = 0x7f00_0000_0000;

/// A write that a stream carries out in its turn.
#[derive(Debug, Clone)]
pub(super) enum Write {
    /// A small copy.
    Bytes { target: u64, bytes: Vec<u8> },
    /// A small fill.
    Fill { target: u64, bytes: u64, value: u8 },
    /// A write too large to keep.
    Forget { target: u64, bytes: u64 },
}

impl Write {
    pub(super) fn copy(target: DevicePtr, source: &[u8]) -> Self {
        let bytes = source.len() as u64;
        if bytes <= KEPT_BYTES {
            Self::Bytes { target: target.0, bytes: source.to_vec() }
        } else {
            Self::Forget { target: target.0, bytes }
        }
    }

    pub(super) fn fill(target: DevicePtr, value: u8, bytes: u64) -> Self {
        // Zeros need no keeping: what is not kept reads as zeros.
        if bytes <= KEPT_BYTES && value != 0 {
            Self::Fill { target: target.0, bytes, value }
        } else {
            Self::Forget { target: target.0, bytes }
        }
    }

    /// First address and size.
    pub(super) fn range(&self) -> (u64, u64) {
        match self {
            Self::Bytes { target, bytes } => (*target, bytes.len() as u64),
            Self::Fill { target, bytes, .. } | Self::Forget { target, bytes } => (*target, *bytes),
        }
    }
}

/// The memory of one simulated GPU.
pub(super) struct Memory {
    capacity: u64,
    used: u64,
    /// Addresses are never given out twice, so that a stale one is caught.
    next: u64,
    /// Sizes by first address.
    allocations: BTreeMap<u64, u64>,
    /// Kept contents by page number.
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
}

impl Memory {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, used: 0, next: BASE, allocations: BTreeMap::new(), pages: BTreeMap::new() }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.capacity - self.used
    }

    /// Takes `bytes` away, without an address.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<(), DeviceError> {
        let free = self.free_bytes();
        if bytes > free {
            return Err(DeviceError::OutOfMemory { asked: bytes, free });
        }
        self.used += bytes;
        Ok(())
    }

    /// Gives back what [`reserve`](Self::reserve) took.
    pub(super) fn release(&mut self, bytes: u64) {
        self.used -= bytes;
    }

    pub(super) fn allocate(&mut self, bytes: u64) -> Result<DevicePtr, DeviceError> {
        let size = bytes.max(1).checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        self.reserve(size).map_err(|_| DeviceError::OutOfMemory { asked: bytes, free: self.free_bytes() })?;
        let address = self.next;
        self.next += size;
        self.allocations.insert(address, size);
        Ok(DevicePtr(address))
    }

    /// The size of what was given back, if `address` was allocated.
    pub(super) fn free(&mut self, address: DevicePtr) -> Option<u64> {
        let size = self.allocations.remove(&address.0)?;
        self.used -= size;
        self.forget(address.0, size);
        Some(size)
    }

    /// Whether `bytes` from `address` on lie in one allocation.
    pub(super) fn holds(&self, address: DevicePtr, bytes: u64) -> bool {
        let allocation = self.allocations.range(..=address.0).next_back();
        allocation.is_some_and(|(&first, &size)| address.0.checked_add(bytes).is_some_and(|end| end <= first + size))
    }

    pub(super) fn apply(&mut self, write: &Write) {
        match write {
            Write::Bytes { target, bytes } => self.write(*target, bytes),
            Write::Fill { target, bytes, value } => self.write(*target, &vec![*value; *bytes as usize]),
            Write::Forget { target, bytes } => self.forget(*target, *bytes),
        }
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = address + done as u64;
            let (page, offset) = (at / PAGE, (at % PAGE) as usize);
            let count = (bytes.len() - done).min(PAGE as usize - offset);
            let page = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[offset..offset + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
    }

    /// What was kept of a range; zeros elsewhere.
    pub(super) fn read(&self, address: u64, target: &mut [u8]) {
        target.fill(0);
        let end = address + target.len() as u64;
        for (&page, contents) in self.pages.range(address / PAGE..end.div_ceil(PAGE)) {
            let first = page * PAGE;
            let (from, to) = (address.max(first), end.min(first + PAGE));
            let kept = &contents[(from - first) as usize..(to - first) as usize];
            target[(from - address) as usize..(to - address) as usize].copy_from_slice(kept);
        }
    }

    fn forget(&mut self, address: u64, bytes: u64) {
        let end = address + bytes;
        let mut emptied = Vec::new();
        for (&page, contents) in self.pages.range_mut(address / PAGE..end.div_ceil(PAGE)) {
            let first = page * PAGE;
            let (from, to) = (address.max(first), end.min(first + PAGE));
            contents[(from - first) as usize..(to - first) as usize].fill(0);
            if to - from == PAGE {
                emptied.push(page);
            }
        }
        for page in emptied {
            self.pages.remove(&page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_writes_are_read_back_across_a_page_and_a_large_write_clears_them() {
        let mut memory = Memory::new(1 << 20);
        let first = memory.allocate(100).unwrap();
        let buffer = memory.allocate(3 * PAGE).unwrap();
        assert!(first.0.is_multiple_of(ALIGNMENT) && buffer.0.is_multiple_of(ALIGNMENT));
        let at = buffer.offset(PAGE - 128);
        memory.apply(&Write::copy(at, &[7; 300]));
        memory.apply(&Write::fill(at.offset(300), 9, 2));
        let mut seen = [1; 304];
        memory.read(at.0, &mut seen);
        assert!(seen[..300].iter().all(|&byte| byte == 7));
        assert_eq!(seen[300..], [9, 9, 0, 0]);
        memory.apply(&Write::copy(buffer, &[1; 2 * PAGE as usize]));
        memory.read(at.0, &mut seen);
        assert_eq!(seen, [0; 304]);
    }

    #[test]
    fn a_range_beyond_its_allocation_is_not_held() {
        let mut memory = Memory::new(1 << 20);
        let buffer = memory.allocate(512).unwrap();
        assert!(memory.holds(buffer.offset(256), 256));
        assert!(!memory.holds(buffer.offset(256), 257));
        assert!(!memory.holds(buffer, u64::MAX));
        assert_eq!(memory.free(buffer), Some(512));
        assert!(!memory.holds(buffer, 1));
        assert_eq!(memory.free(buffer), None);
    }
}
