//! A kernel's parameters on their way to the driver: bytes that are copied, and tensor maps that are encoded.

use std::mem::{MaybeUninit, size_of};

use super::{EncodedMap, EncodedMaps, TensorMap};

/// The largest parameter struct a kernel may take, bytes (four 128-byte tensor maps and their companions fit).
pub const MAX_PARAM_BYTES: usize = 768;

/// The most tensor maps that a kernel's parameters may hold.
pub const MAX_TENSOR_MAPS: usize = 4;

/// Bytes of an encoded tensor map, and what its address in the parameters is a multiple of.
const TENSOR_MAP_BYTES: usize = 128;
const TENSOR_MAP_ALIGNMENT: usize = 64;

/// A kernel's first parameter, kept inline so that a launch allocates nothing. A launch is copied a few times on its way, so a tensor map lies where its
/// encoded form will be, and no byte is held for it elsewhere.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Params {
    bytes: ParamBytes,
    /// Of the struct.
    len: u16,
    map_count: u8,
    /// Bytes at the beginning that are tensor maps.
    maps_end: u16,
    /// Where `TensorMap`s lie in `bytes`.
    map_offsets: [u16; MAX_TENSOR_MAPS],
}

/// A parameter struct as the driver takes it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct ParamBytes([MaybeUninit<u8>; MAX_PARAM_BYTES]);

impl ParamBytes {
    /// Room for one.
    pub const fn uninit() -> Self {
        Self([MaybeUninit::uninit(); MAX_PARAM_BYTES])
    }

    /// Where the struct begins.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }
}

impl Params {
    /// The bytes of `args`, a `#[repr(C)]` struct from the kernels' ABI. Structs beyond [`MAX_PARAM_BYTES`] do not compile.
    #[inline(always)]
    pub fn new<T: Copy + 'static>(args: T) -> Self {
        const { assert!(size_of::<T>() <= MAX_PARAM_BYTES && align_of::<T>() <= align_of::<Params>()) };
        let mut params =
            Self { bytes: ParamBytes::uninit(), len: size_of::<T>() as u16, map_count: 0, maps_end: 0, map_offsets: [0; MAX_TENSOR_MAPS] };
        // SAFETY: the assertion above shows that `T` fits and is aligned; padding stays `MaybeUninit`.
        unsafe { params.bytes.0.as_mut_ptr().cast::<T>().write(args) };
        params
    }

    /// The same parameters; each of `maps` is encoded at its offset, in bytes, by the back end when the launch is made.
    ///
    /// # Panics
    /// As [`put_tensor_maps`](Params::put_tensor_maps).
    #[must_use]
    #[inline(always)]
    pub fn with_tensor_maps<const COUNT: usize>(mut self, maps: [(usize, TensorMap); COUNT]) -> Self {
        self.put_tensor_maps(maps);
        self
    }

    /// [`with_tensor_maps`](Params::with_tensor_maps) where the parameters are in their place already: moving them takes time on the launch path.
    ///
    /// # Panics
    /// If an offset is none of a tensor map in the struct, or of two maps that overlap, or these are more maps than [`MAX_TENSOR_MAPS`]: a mistake in the
    /// kernel's descriptor, whatever its shapes.
    #[inline(always)]
    pub fn put_tensor_maps<const COUNT: usize>(&mut self, maps: [(usize, TensorMap); COUNT]) {
        const { assert!(COUNT <= MAX_TENSOR_MAPS && size_of::<TensorMap>() <= TENSOR_MAP_BYTES) };
        const { assert!(align_of::<TensorMap>() <= TENSOR_MAP_ALIGNMENT) };
        for (offset, map) in maps {
            let is_inside = offset.is_multiple_of(TENSOR_MAP_ALIGNMENT) && offset + TENSOR_MAP_BYTES <= usize::from(self.len);
            let others = &self.map_offsets[..usize::from(self.map_count)];
            let is_free = others.iter().all(|&other| usize::from(other).abs_diff(offset) >= TENSOR_MAP_BYTES);
            assert!(is_inside && is_free && usize::from(self.map_count) < MAX_TENSOR_MAPS, "no tensor map at {offset}");
            let place = self.bytes.0[offset..].as_mut_ptr().cast::<TensorMap>();
            // SAFETY: the assertions show that a `TensorMap` fits there and is aligned.
            unsafe { place.write(map) };
            self.map_offsets[usize::from(self.map_count)] = offset as u16;
            self.map_count += 1;
            if offset == usize::from(self.maps_end) {
                self.maps_end += TENSOR_MAP_BYTES as u16;
            }
        }
    }

    /// The tensor maps, each with its offset in the struct.
    #[inline]
    pub fn tensor_maps(&self) -> impl Iterator<Item = (usize, &TensorMap)> {
        self.map_offsets[..usize::from(self.map_count)].iter().map(|&offset| {
            let offset = usize::from(offset);
            let place = self.bytes.0[offset..].as_ptr().cast::<TensorMap>();
            // SAFETY: `with_tensor_maps` wrote a `TensorMap` there, and asserted of every later one that it lies beside it.
            (offset, unsafe { &*place })
        })
    }

    /// Writes the struct to `place` with every tensor map encoded, from `maps` or else as `encode` says: a back end's part of a launch.
    ///
    /// # Errors
    /// What `encode` returns; what is in `place` is of no use then.
    #[inline]
    pub fn encode_into<E>(
        &self,
        place: &mut ParamBytes,
        maps: &mut EncodedMaps,
        mut encode: impl FnMut(&TensorMap) -> Result<EncodedMap, E>,
    ) -> Result<(), E> {
        let plain = usize::from(self.maps_end)..usize::from(self.len);
        place.0[plain.clone()].copy_from_slice(&self.bytes.0[plain]);
        for (offset, map) in self.tensor_maps() {
            for (word, target) in maps.get(map, &mut encode)?.iter().zip(place.0[offset..offset + TENSOR_MAP_BYTES].chunks_exact_mut(8)) {
                target.write_copy_of_slice(&word.to_ne_bytes());
            }
        }
        Ok(())
    }

    /// The struct of a kernel without tensor maps; none for others.
    #[inline]
    pub fn plain(&self) -> Option<&ParamBytes> {
        (self.map_count == 0).then_some(&self.bytes)
    }
}

impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Params(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Element, Swizzle};
    use super::*;
    use crate::device::DevicePtr;

    const MAP: TensorMap = TensorMap::matrix(DevicePtr(4096), Element::F16, [8, 8], 8, [8, 8], Swizzle::None);

    #[test]
    fn tensor_maps_are_found_where_they_were_put() {
        let params = Params::new([0_u64; 40]).with_tensor_maps([(192, MAP), (0, MAP)]);
        assert_eq!(params.tensor_maps().map(|(at, map)| (at, *map)).collect::<Vec<_>>(), [(192, MAP), (0, MAP)]);
    }

    #[test]
    fn encoded_maps_take_their_places_and_the_rest_stays_as_it_was() {
        for offsets in [[0, 128], [192, 0], [64, 256]] {
            let params = Params::new([7_u64; 48]).with_tensor_maps(offsets.map(|offset| (offset, MAP)));
            let mut place = ParamBytes::uninit();
            params.encode_into(&mut place, &mut EncodedMaps::new(), |map| Ok::<_, ()>([map.ptr.0; 16])).unwrap();
            // SAFETY: all 48 words were written: `Params::new` copied them, and maps are whole words.
            let words = unsafe { place.as_ptr().cast::<[u64; 48]>().read() };
            for (at, word) in words.into_iter().enumerate() {
                let is_map = offsets.iter().any(|&offset| (offset..offset + TENSOR_MAP_BYTES).contains(&(8 * at)));
                assert_eq!(word, if is_map { MAP.ptr.0 } else { 7 }, "word {at} of maps at {offsets:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "no tensor map at 64")]
    fn tensor_maps_cannot_overlap() {
        let _ = Params::new([0_u64; 40]).with_tensor_maps([(0, MAP), (64, MAP)]);
    }
}
