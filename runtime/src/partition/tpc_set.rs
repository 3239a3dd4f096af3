//! Sets of TPCs as 128-bit masks: cheap to copy, compare and combine.

use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};

/// A set of TPCs, numbered from 0 in the order of the driver's split. Which SMs they have is for
/// [`Device::sm_mask`](crate::device::Device::sm_mask) to say.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TpcSet(u128);

impl TpcSet {
    /// No TPC.
    pub const EMPTY: Self = Self(0);
    /// TPCs that a set can name.
    pub const CAPACITY: u16 = 128;

    /// The TPCs `first..end`. Numbers from [`TpcSet::CAPACITY`] on are left out.
    pub const fn range(first: u16, end: u16) -> Self {
        Self(Self::below(end) & !Self::below(first))
    }

    const fn below(end: u16) -> u128 {
        if end >= Self::CAPACITY { u128::MAX } else { (1 << end) - 1 }
    }

    /// The set with `tpc` in it, unless that is [`TpcSet::CAPACITY`] or more.
    #[must_use]
    pub const fn with(self, tpc: u16) -> Self {
        Self(self.0 | (Self::below(tpc.saturating_add(1)) & !Self::below(tpc)))
    }

    /// One bit for each TPC, TPC 0 the lowest.
    pub(crate) const fn bits(self) -> u128 {
        self.0
    }

    /// The set of those bits.
    pub(crate) const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// How many TPCs are in the set.
    pub const fn len(self) -> u16 {
        self.0.count_ones() as u16
    }

    /// Whether no TPC is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `tpc` is in the set.
    pub const fn contains(self, tpc: u16) -> bool {
        tpc < Self::CAPACITY && self.0 >> tpc & 1 == 1
    }

    /// Whether every TPC of `other` is in the set.
    pub const fn includes(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Whether the sets share no TPC.
    pub const fn is_disjoint(self, other: Self) -> bool {
        self.0 & other.0 == 0
    }

    /// The TPCs in rising order.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let tpc = rest.trailing_zeros() as u16;
            (rest != 0).then(|| {
                rest &= rest - 1;
                tpc
            })
        })
    }

    /// The first `count` TPCs of the set, all of them if there are fewer.
    #[must_use]
    pub fn first(self, count: u16) -> Self {
        self.iter().take(count as usize).collect()
    }
}

impl BitOr for TpcSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for TpcSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for TpcSet {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<u16> for TpcSet {
    fn from_iter<I: IntoIterator<Item = u16>>(tpcs: I) -> Self {
        tpcs.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Debug for TpcSet {
    /// Runs of TPCs: `{0..8, 12..14}`, ends excluded.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = f.debug_set();
        let mut start = 0;
        while start < Self::CAPACITY {
            if !self.contains(start) {
                start += 1;
                continue;
            }
            let end = (start..Self::CAPACITY).find(|&tpc| !self.contains(tpc)).unwrap_or(Self::CAPACITY);
            set.entry(&(start..end));
            start = end;
        }
        set.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_at_the_edges_of_the_mask_hold_what_they_name() {
        assert_eq!(TpcSet::range(0, 128).len(), 128);
        assert_eq!(TpcSet::range(127, 128).iter().collect::<Vec<_>>(), [127]);
        assert_eq!(TpcSet::range(5, 5), TpcSet::EMPTY);
        assert_eq!(format!("{:?}", TpcSet::range(0, 3).with(7).with(127)), "{0..3, 7..8, 127..128}");
    }
}
