//! Sets of single SMs, which thread blocks are placed on; partitions, which are sets of TPCs, come in through [`SmSet::of_tpcs`].

use crate::partition::TpcSet;

/// SMs that a set can name.
pub(super) const MAX_SMS: usize = 256;

/// A set of SMs in `%smid` order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SmSet([u64; MAX_SMS / 64]);

impl SmSet {
    pub(super) const EMPTY: Self = Self([0; MAX_SMS / 64]);

    pub(super) fn of_tpcs(tpcs: TpcSet, sms_per_tpc: u16) -> Self {
        let mut set = Self::EMPTY;
        for tpc in tpcs.iter() {
            for sm in tpc * sms_per_tpc..(tpc + 1) * sms_per_tpc {
                set.insert(sm as usize);
            }
        }
        set
    }

    /// The set in a grant: 32-bit little-endian words, one bit for each SM.
    pub(super) fn from_mask(bytes: &[u8]) -> Self {
        let mut set = Self::EMPTY;
        for (word, chunk) in set.0.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(padded);
        }
        set
    }

    /// The set as a grant holds it, the inverse of [`from_mask`](Self::from_mask).
    pub(super) fn to_mask(self) -> [u32; MAX_SMS / 32] {
        let mut mask = [0; MAX_SMS / 32];
        for (halves, word) in mask.chunks_exact_mut(2).zip(self.0) {
            halves.copy_from_slice(&[word as u32, (word >> 32) as u32]);
        }
        mask
    }

    /// SMs from [`MAX_SMS`] on are left out.
    pub(super) fn insert(&mut self, sm: usize) {
        if let Some(word) = self.0.get_mut(sm / 64) {
            *word |= 1 << (sm % 64);
        }
    }

    pub(super) fn contains(&self, sm: usize) -> bool {
        self.0.get(sm / 64).is_some_and(|word| word >> (sm % 64) & 1 == 1)
    }

    pub(super) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(super) fn intersects(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).any(|(mine, theirs)| mine & theirs != 0)
    }

    pub(super) fn union(self, other: Self) -> Self {
        self.zip(other, |mine, theirs| mine | theirs)
    }

    pub(super) fn intersection(self, other: Self) -> Self {
        self.zip(other, |mine, theirs| mine & theirs)
    }

    pub(super) fn without(self, other: Self) -> Self {
        self.zip(other, |mine, theirs| mine & !theirs)
    }

    fn zip(mut self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = join(*mine, theirs);
        }
        self
    }

    /// The SMs in rising order.
    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(at, mut word)| {
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros() as usize;
                (word != 0).then(|| {
                    word &= word - 1;
                    at * 64 + bit
                })
            })
        })
    }

    /// The TPCs that have an SM in the set.
    pub(super) fn tpcs(self, sms_per_tpc: u16) -> TpcSet {
        self.iter().map(|sm| sm as u16 / sms_per_tpc.max(1)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_read_back_names_the_sms_it_was_written_for() {
        let tpcs = TpcSet::range(3, 9).with(65);
        let bytes: Vec<u8> = SmSet::of_tpcs(tpcs, 2).to_mask().into_iter().flat_map(u32::to_le_bytes).collect();
        let set = SmSet::from_mask(&bytes);
        assert_eq!(set, SmSet::of_tpcs(tpcs, 2));
        assert_eq!(set.tpcs(2), tpcs);
        assert_eq!(set.iter().count(), set.len() as usize);
    }
}
