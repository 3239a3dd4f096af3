//! From a kernel key's fingerprint to the session's number for it, on the launch path.

use crate::launch::Fingerprint;

/// Kernel indices by fingerprint: open addressing with linear probing, at most half full.
#[derive(Default)]
pub(super) struct KeyIndex {
    /// Fingerprint and index; an index of `u32::MAX` marks a free slot.
    slots: Vec<(Fingerprint, u32)>,
    len: usize,
}

impl KeyIndex {
    const FREE: u32 = u32::MAX;

    #[inline]
    pub(super) fn find(&self, fingerprint: Fingerprint) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = fingerprint.0 as usize & mask;
        loop {
            let (key, index) = self.slots[at];
            if index == Self::FREE {
                return None;
            }
            if key == fingerprint {
                return Some(index as usize);
            }
            at = (at + 1) & mask;
        }
    }

    pub(super) fn insert(&mut self, fingerprint: Fingerprint, index: usize) {
        if self.len * 2 >= self.slots.len() {
            let larger = vec![(Fingerprint(0), Self::FREE); (self.slots.len() * 2).max(64)];
            for (key, index) in std::mem::replace(&mut self.slots, larger) {
                if index != Self::FREE {
                    self.put(key, index);
                }
            }
        }
        self.put(fingerprint, index as u32);
        self.len += 1;
    }

    fn put(&mut self, fingerprint: Fingerprint, index: u32) {
        let mask = self.slots.len() - 1;
        let mut at = fingerprint.0 as usize & mask;
        while self.slots[at].1 != Self::FREE {
            at = (at + 1) & mask;
        }
        self.slots[at] = (fingerprint, index);
    }
}
