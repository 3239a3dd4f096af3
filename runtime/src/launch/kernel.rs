//! What an engine tells the runtime about a kernel: its key, its cost, and its launch at any SM count.

use std::mem::{MaybeUninit, size_of};

use crate::device::{DevicePtr, Sms, Topology};

use super::{EncodedMap, EncodedMaps, KernelKey, LaunchError, TensorMap};

/// The largest parameter struct a kernel may take, bytes (four 128-byte tensor maps and their companions fit).
pub const MAX_PARAM_BYTES: usize = 768;

/// The most tensor maps that a kernel's parameters may hold.
pub const MAX_TENSOR_MAPS: usize = 4;

/// Bytes of an encoded tensor map, and what its address in the parameters is a multiple of.
const TENSOR_MAP_BYTES: usize = 128;
const TENSOR_MAP_ALIGNMENT: usize = 64;

/// A kernel descriptor: shapes and device pointers, nothing about SMs.
///
/// Most kernels implement [`configure`](Kernel::configure) alone. One that takes long to decide (which of many tile shapes is quickest here) may
/// put the decision into [`choose`](Kernel::choose), which sessions call once for a key and SM count. One whose decision is a prediction may say what else
/// it could have chosen, [`configurations`](Kernel::configurations): the profiler measures which is quicker, and sessions launch by what it found.
///
/// # Safety
/// [`configure`](Kernel::configure) and [`configure_as`](Kernel::configure_as) must return parameters of the type that the named `__global__` function takes as its first argument (its
/// second is a [`TilesArg`]), and every pointer in them must stay valid until the launch has completed.
pub unsafe trait Kernel {
    /// What the profiler measures this launch as, and the plan places it by.
    fn key(&self) -> KernelKey;

    /// The least the launch must do, for rooflines and for the simulator where no profile exists.
    fn work(&self) -> Work;

    /// The launch that uses at most `sms` SMs. The arithmetic of the outputs must not depend on `sms`.
    ///
    /// # Errors
    /// [`LaunchError::Unsupported`] for a shape that the kernel cannot do.
    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError>;

    /// What follows from the [`key`](Kernel::key), the SM count and the GPU alone and is worth remembering from one launch to the next. It must
    /// not depend on anything else of the descriptor: launches with the same key share it.
    fn choose(&self, _sms: Sms, _gpu: &Topology) -> Choice {
        Choice::default()
    }

    /// What a profile may have this kernel launched as on `sms` SMs: first what [`choose`](Kernel::choose) returns, then the others, the likeliest to be quick
    /// first. All of them give the same bits. Like a choice, they must follow from the key, the SM count and the GPU alone. None where nothing is to be chosen, or
    /// where the choice serves something that the profiler, which measures a kernel alone, does not see.
    fn configurations(&self, _sms: Sms, _gpu: &Topology) -> Vec<Configuration> {
        Vec::new()
    }

    /// [`configure`](Kernel::configure), given what [`choose`](Kernel::choose) returned, or one of [`configurations`](Kernel::configurations), for a kernel of
    /// the same key, SM count and GPU.
    ///
    /// # Errors
    /// As [`configure`](Kernel::configure).
    fn configure_as(&self, _choice: Choice, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        self.configure(sms, gpu)
    }
}

/// A kernel's own note of a decision, see [`Kernel::choose`]; the bits mean what the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choice(pub u64);

/// One of several choices that a kernel has, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configuration {
    /// What profiles call it. Another build may offer others, but must not use this name for another one: 1 to 64 letters, digits and `_.-`.
    pub name: &'static str,
    /// What [`Kernel::configure_as`] is given.
    pub choice: Choice,
}

impl Configuration {
    /// Whether a profile may call a configuration so.
    pub fn is_name(name: &str) -> bool {
        (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    }
}

/// The least that a launch must do, whatever the implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Work {
    /// Floating-point operations; a multiply-add counts two.
    pub flops: u64,
    /// Bytes through device memory, each input read once and each output written once.
    pub bytes: u64,
}

/// Which grid elastic kernels are launched with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grids {
    /// No more blocks than fit at once: they take tile after tile, and a grant may take their SMs from them.
    #[default]
    Persistent,
    /// One block for each tile (or as many as do a tile together), which ends with it: the hardware hands out SMs anew at every tile, by priority.
    /// Nothing is counted and no grant is polled, so that grants do not confine such launches.
    TilePerBlock,
    /// As many blocks as fit at once, which stride over the tiles: what elastic kernels are without their elasticity. Nothing is counted and no grant is
    /// polled.
    Fixed,
}

/// A configured launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Name of the `extern "C" __global__` function.
    pub symbol: &'static str,
    /// Thread blocks. Persistent kernels ask for no more than fit on their SMs at once.
    pub grid: u32,
    /// Threads in a block.
    pub block: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Thread blocks of this kernel that fit on one SM at once.
    pub blocks_per_sm: u32,
    /// Tiles to be done. An elastic kernel's blocks take them from a counter; others stride over them.
    pub tiles: u32,
    /// Blocks that do a tile together, side by side in the grid: 2 for kernels whose blocks work in pairs (clusters), else 1.
    pub blocks_per_tile: u32,
    /// Whether blocks take tiles from a counter and poll the grant before each. Launches much shorter than a reaction would take need not.
    pub elastic: bool,
    /// Whether every thread waits (`griddepcontrol.wait`) before it touches what earlier launches write, so that this launch's blocks
    /// may start while the last ones of the launch before it still run (programmatic dependent launch).
    pub programmatic: bool,
    /// Whether an elastic launch's workers can begin with the tiles of their own numbers, [`TilesArg::numbered`]: those of a `TileQueue` in
    /// kernels/elastic.cuh can.
    pub begins_by_number: bool,
    /// The kernel's first parameter.
    pub params: Params,
}

impl Launch {
    /// The grid of a persistent kernel: as many blocks as `sms` SMs hold at once, never more than there are tiles.
    pub const fn persistent_grid(tiles: u32, sms: Sms, blocks_per_sm: u32) -> u32 {
        let resident = sms.get().saturating_mul(blocks_per_sm);
        let grid = if tiles < resident { tiles } else { resident };
        if grid == 0 { 1 } else { grid }
    }

    /// Tiles that an elastic launch may have: the counter keeps other things in the same word. One of more tiles is not elastic.
    pub const MAX_ELASTIC_TILES: u32 = 1 << 22;

    /// Most workers that may begin with tiles of their own numbers: as many give theirs back at most, and others may wait to be taken again besides.
    const MOST_NUMBERED: u32 = 320;

    /// [`TilesArg::numbered`] of a launch whose blocks begin on SMs that the grant most likely holds. None where workers have fewer than one and a half tiles each:
    /// nobody would be left to do the one of a worker that begins elsewhere.
    #[inline]
    pub const fn numbered(&self) -> u32 {
        let workers = self.grid / if self.blocks_per_tile == 0 { 1 } else { self.blocks_per_tile };
        let may = self.elastic && self.begins_by_number && workers <= Self::MOST_NUMBERED && workers <= self.tiles / 3 * 2;
        if may { workers } else { 0 }
    }

    /// Gives an elastic launch the form of `grids`; others have none to choose. A launch that is not elastic is given no `TileProgress`.
    #[inline]
    pub fn take_form(&mut self, grids: Grids) {
        self.elastic &= self.tiles <= Self::MAX_ELASTIC_TILES;
        if !self.elastic || grids == Grids::Persistent {
            return;
        }
        if grids == Grids::TilePerBlock {
            self.grid = self.tiles.saturating_mul(self.blocks_per_tile).max(self.grid);
        }
        self.elastic = false;
    }
}

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

/// Every kernel's second parameter, `Tiles` in kernels/elastic.cuh: where tiles are counted and which SMs may take them.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct TilesArg {
    /// The `TileProgress` of this launch, zero before the first use; it resets itself. Null for a launch that is not elastic.
    pub progress: DevicePtr,
    /// The tenant's grant, one bit per SM in `%smid` order; null where every SM is granted.
    pub grant: DevicePtr,
    /// Tiles to be done.
    pub count: u32,
    /// 0 for the launch that owns the counter; for a joining launch, 1 + the epoch that it may take tiles of: epoch 2^32 - 1 gets none.
    pub joins: u32,
    /// Tiles that the counter leaves out, since the owner's workers begin with those of their own numbers: [`Launch::numbered`]; or 0.
    pub numbered: u32,
    /// 0.
    pub unused: u32,
}

impl TilesArg {
    /// The argument of a launch that owns the counter at `progress`, on SMs that it was granted; with a null `progress`, of one that is not elastic.
    #[inline]
    pub const fn owner(launch: &Launch, progress: DevicePtr, grant: DevicePtr) -> Self {
        let numbered = if progress.0 == 0 { 0 } else { launch.numbered() };
        Self { progress, grant, count: launch.tiles, joins: 0, numbered, unused: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Element, Swizzle};
    use super::*;

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

    #[test]
    fn a_grid_of_any_number_of_blocks_an_sm_has_no_more_blocks_than_tiles() {
        assert_eq!(Launch::persistent_grid(1000, Sms(132), u32::MAX), 1000);
    }
}
