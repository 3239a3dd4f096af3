//! Encoded tensor maps, remembered: an engine launches the same kernels on the same buffers again and again, and the driver takes longer to encode a
//! map than the rest of a launch takes us.
//!
//! What a map encodes to depends on nothing but the map, its pointer included. An entry can therefore not go stale, whatever becomes of the
//! buffer, and may be used by any tenant.

use crate::device::DevicePtr;

use super::{Element, MAX_DIMENSIONS, Swizzle, TensorMap};

/// A tensor map as the driver wrote it.
pub type EncodedMap = [u64; 16];

/// Entries that a map may be in, one after another.
const WINDOW: usize = 4;

/// Entries at first, and at most: 1 MB.
const FEWEST: usize = 256;
const MOST: usize = 4096;

/// A table of maps, doubled while maps do not find room in it, up to a limit. It allocates only then.
#[derive(Default)]
pub struct EncodedMaps {
    /// A power of two, or none.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    map: TensorMap,
    encoded: EncodedMap,
}

impl EncodedMaps {
    /// An empty table.
    pub const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// What `map` encodes to: what `encode` said of it before, or says now.
    ///
    /// # Errors
    /// What `encode` returns.
    #[inline]
    pub fn get<E>(&mut self, map: &TensorMap, encode: impl FnOnce(&TensorMap) -> Result<EncodedMap, E>) -> Result<&EncodedMap, E> {
        let at = match self.find(map) {
            Some(at) => at,
            None => {
                let encoded = encode(map)?;
                self.insert(Entry { map: *map, encoded })
            }
        };
        Ok(&self.entries[at].encoded)
    }

    #[inline]
    fn find(&self, map: &TensorMap) -> Option<usize> {
        let mask = self.entries.len().checked_sub(1)?;
        if *map == Entry::FREE.map {
            return None;
        }
        let home = home(map);
        (home..home + WINDOW).map(|at| at & mask).find(|&at| self.entries[at].map == *map)
    }

    /// Where `entry` is from now on.
    #[cold]
    fn insert(&mut self, entry: Entry) -> usize {
        loop {
            if let Some(at) = self.put(entry) {
                return at;
            }
            if self.entries.len() == MOST {
                let at = home(&entry.map) & (MOST - 1);
                self.entries[at] = entry;
                return at;
            }
            let larger = vec![Entry::FREE; (2 * self.entries.len()).clamp(FEWEST, MOST)];
            for entry in std::mem::replace(&mut self.entries, larger) {
                // One that finds no room is encoded again when it is needed.
                if entry.map != Entry::FREE.map {
                    self.put(entry);
                }
            }
        }
    }

    /// Puts `entry` where it is found, if there is room.
    fn put(&mut self, entry: Entry) -> Option<usize> {
        let mask = self.entries.len().checked_sub(1)?;
        let home = home(&entry.map);
        let free = (home..home + WINDOW).map(|at| at & mask).find(|&at| self.entries[at].map == Entry::FREE.map)?;
        self.entries[free] = entry;
        Some(free)
    }
}

impl Entry {
    /// Of no dimensions: a map that no driver encodes.
    const FREE: Self = Self {
        map: TensorMap {
            ptr: DevicePtr::NULL,
            element: Element::F16,
            dimensions: 0,
            sizes: [0; MAX_DIMENSIONS],
            strides: [0; MAX_DIMENSIONS - 1],
            tile: [0; MAX_DIMENSIONS],
            swizzle: Swizzle::None,
        },
        encoded: [0; 16],
    };
}

/// Where the search for a map begins, before it is wrapped to the table: multiplicative hashing (Knuth, "The Art of Computer Programming", 6.4) of what
/// tells an engine's maps apart. Each part has an odd factor of its own, so that no product waits for another.
fn home(map: &TensorMap) -> usize {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let [rows, columns] = [map.sizes[1], map.sizes[0]];
    let tile = u64::from(map.tile[0]) << 32 | u64::from(map.tile[1]);
    let mixed = map.ptr.0.wrapping_mul(GOLDEN)
        ^ rows.wrapping_mul(GOLDEN.rotate_left(16) | 1)
        ^ columns.wrapping_mul(GOLDEN.rotate_left(32) | 1)
        ^ tile.wrapping_mul(GOLDEN.rotate_left(48) | 1);
    (mixed >> 40) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(number: u64) -> TensorMap {
        TensorMap::matrix(DevicePtr(number << 12), Element::F16, [1024, 768], 768, [128, 64], Swizzle::Bytes128)
    }

    fn encode(map: &TensorMap) -> Result<EncodedMap, ()> {
        Ok([map.ptr.0 ^ u64::from(map.tile[1]); 16])
    }

    #[test]
    fn a_map_is_encoded_once_and_always_found_as_it_was_encoded() {
        let mut maps = EncodedMaps::new();
        let mut encoded = 0;
        for _ in 0..3 {
            for number in 0..500 {
                let found = maps.get(&map(number), |map| {
                    encoded += 1;
                    encode(map)
                });
                assert_eq!(found.copied(), encode(&map(number)));
            }
        }
        // A map or two may have found its window full when the table was doubled.
        assert!((500..520).contains(&encoded), "{encoded} encodings");
    }

    #[test]
    fn maps_that_differ_in_one_place_are_told_apart() {
        let mut maps = EncodedMaps::new();
        maps.get(&map(1), encode).unwrap();
        let base = map(1);
        for other in [
            TensorMap { ptr: DevicePtr(16), ..base },
            TensorMap { element: Element::F32, ..base },
            TensorMap { dimensions: 3, ..base },
            TensorMap { sizes: [768, 1024, 2, 1], ..base },
            TensorMap { strides: [1536, 16, 0], ..base },
            TensorMap { tile: [64, 64, 1, 1], ..base },
            TensorMap { swizzle: Swizzle::None, ..base },
        ] {
            assert_eq!(maps.get(&other, |_| Err(7)), Err(7), "{other:?}");
        }
    }

    #[test]
    fn more_maps_than_fit_are_still_encoded_rightly() {
        let mut maps = EncodedMaps::new();
        for number in (0..20_000).chain(0..20_000) {
            assert_eq!(maps.get(&map(number), encode).copied(), encode(&map(number)));
        }
        assert_eq!(maps.entries.len(), MOST);
    }

    #[test]
    fn a_map_that_cannot_be_encoded_is_asked_for_again() {
        let mut maps = EncodedMaps::new();
        maps.get(&map(2), encode).unwrap();
        assert_eq!(maps.get(&Entry::FREE.map, |_| Err("no dimensions")), Err("no dimensions"));
        assert_eq!(maps.get(&map(1), |_| Err("refused")), Err("refused"));
        assert_eq!(maps.get(&map(1), encode).copied(), encode(&map(1)));
    }
}
