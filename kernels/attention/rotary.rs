//! Rotary positions, in place, and the write of new keys and values to the KV cache.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::super::{abi, outlasts_a_reaction_at};
use super::{Heads, KvCache, product, unsupported};

/// Threads of a block, and blocks that fit on an SM at once: the kernel's launch bounds.
const THREADS: u32 = 128;
const BLOCKS_PER_SM: u32 = 8;

/// What an SM moves in a microsecond where it turns heads, which angles bound: `rotary_cached[8192x32x8x128]` takes 814 us on 8 SMs of an H200.
const ROTATED_BYTES: u64 = 33_000;

/// The same where it copies heads as they are: what other kernels move that memory bounds.
const COPIED_BYTES: u64 = 50_000;

/// How many times as long rows take that are read element by element, roughly.
const ELEMENT_BY_ELEMENT: u64 = 4;

/// Rotates the pairs `(i, i + head_dim / 2)` of every query and key head by `position * inverse_frequencies[i]`, in place, as Hugging Face's
/// `rotate_half` does, and copies the rotated keys and the values to the cache where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotary {
    /// How a row is divided; the head size must be even.
    pub heads: Heads,
    /// Rows of `qkv`.
    pub rows: u32,
    /// `[rows, (heads + 2 * kv_heads) * head_dim]`, FP16.
    pub qkv: DevicePtr,
    /// Elements from one row of `qkv` to the next.
    pub qkv_stride: u32,
    /// `[rows]`, u32. Angles are FP32, as in the reference implementations: beyond 2^24 positions would be rounded.
    pub positions: DevicePtr,
    /// `[head_dim / 2]`, f32: `theta^(-2i / head_dim)`, scaled as the model's configuration says.
    pub inverse_frequencies: DevicePtr,
    /// Receives the keys and values of each row at its position; a row whose position is beyond the capacity is rotated only.
    pub cache: Option<KvCache>,
    /// The row of the page table that a row belongs to: `[rows]`, u32. Not read without a cache.
    pub sequence_of: DevicePtr,
}

/// Copies keys and values to the cache as they are, for models without rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheWrite {
    /// How a row is divided.
    pub heads: Heads,
    /// Rows of `qkv`.
    pub rows: u32,
    /// `[rows, (heads + 2 * kv_heads) * head_dim]`, FP16; the query heads are not read.
    pub qkv: DevicePtr,
    /// Elements from one row of `qkv` to the next.
    pub qkv_stride: u32,
    /// `[rows]`, u32. A row whose position is beyond the capacity is left out.
    pub positions: DevicePtr,
    /// Receives the keys and values of each row at its position.
    pub cache: KvCache,
    /// The row of the page table that a row belongs to: `[rows]`, u32.
    pub sequence_of: DevicePtr,
}

impl Rotary {
    /// As the kernels have it; to be called after `check`.
    pub(in super::super) fn args(&self) -> abi::RotaryArgs {
        self.rows().args()
    }

    pub(in super::super) fn check(&self) -> Result<(), LaunchError> {
        let odd = !self.heads.head_dim.is_multiple_of(2);
        let reason = odd.then(|| format!("a head of {} columns has no halves to rotate: the head size must be even", self.heads.head_dim));
        self.rows().check(&self.key(), reason)
    }

    fn rows(&self) -> Rows {
        Rows {
            heads: self.heads,
            rows: self.rows,
            qkv: self.qkv,
            qkv_stride: self.qkv_stride,
            positions: self.positions,
            inverse_frequencies: Some(self.inverse_frequencies),
            cache: self.cache,
            sequence_of: self.sequence_of,
        }
    }
}

impl CacheWrite {
    fn rows(&self) -> Rows {
        Rows {
            heads: self.heads,
            rows: self.rows,
            qkv: self.qkv,
            qkv_stride: self.qkv_stride,
            positions: self.positions,
            inverse_frequencies: None,
            cache: Some(self.cache),
            sequence_of: self.sequence_of,
        }
    }
}

/// What [`Rotary`] and [`CacheWrite`] have in common: the kernel `rotary` in rotary.cu.
struct Rows {
    heads: Heads,
    rows: u32,
    qkv: DevicePtr,
    qkv_stride: u32,
    positions: DevicePtr,
    /// Where heads are rotated.
    inverse_frequencies: Option<DevicePtr>,
    cache: Option<KvCache>,
    sequence_of: DevicePtr,
}

impl Rows {
    /// `reason`: what else speaks against the launch.
    fn check(&self, key: &KernelKey, reason: Option<String>) -> Result<(), LaunchError> {
        let no_rows = || (self.rows == 0).then(|| "there are no rows".to_owned());
        let too_many = || self.tiles().is_none().then(|| "more than 2^32 tiles".to_owned());
        let cache = || self.cache.as_ref().and_then(KvCache::problem);
        let reason = self.heads.problem(self.qkv_stride).or(reason).or_else(cache).or_else(no_rows).or_else(too_many);
        reason.map_or(Ok(()), |reason| Err(unsupported(key, reason)))
    }

    /// Whether halves of heads lie on 16 bytes.
    fn vectorised(&self) -> bool {
        self.heads.head_dim.is_multiple_of(16) && self.qkv_stride.is_multiple_of(8) && self.qkv.0.is_multiple_of(16)
    }

    /// Of a row, with the heads that something is done to.
    fn tiles_per_row(&self) -> u32 {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let moved = match (self.inverse_frequencies, self.cache) {
            (Some(_), Some(_)) => heads + 2 * kv_heads,
            (Some(_), None) => heads + kv_heads,
            (None, _) => 2 * kv_heads,
        };
        let pieces = head_dim.div_ceil(2) / if self.vectorised() { 8 } else { 1 };
        (moved * pieces).div_ceil(abi::ROTARY_PIECES_PER_TILE)
    }

    fn tiles(&self) -> Option<u32> {
        self.rows.checked_mul(self.tiles_per_row())
    }

    /// Whether blocks should poll the grant.
    fn is_long(&self, work: Work, sms: Sms) -> bool {
        let bytes = if self.inverse_frequencies.is_some() { ROTATED_BYTES } else { COPIED_BYTES };
        outlasts_a_reaction_at(if self.vectorised() { bytes } else { bytes / ELEMENT_BY_ELEMENT }, work, sms)
    }

    /// To be called after `check`.
    fn launch(&self, work: Work, sms: Sms) -> Launch {
        let tiles = self.tiles().unwrap_or(u32::MAX);
        Launch {
            symbol: "rotary",
            grid: Launch::persistent_grid(tiles, sms, BLOCKS_PER_SM),
            block: THREADS,
            shared_bytes: 0,
            blocks_per_sm: BLOCKS_PER_SM,
            tiles,
            blocks_per_tile: 1,
            elastic: self.is_long(work, sms),
            programmatic: true,
            begins_by_number: false,
            params: Params::new(self.args()),
        }
    }

    fn args(&self) -> abi::RotaryArgs {
        let none = KvCache { keys: DevicePtr::NULL, values: DevicePtr::NULL, page_table: DevicePtr::NULL, pages_per_sequence: 0 };
        abi::RotaryArgs {
            cache: self.cache.unwrap_or(none).args(self.heads),
            qkv: self.qkv.0,
            positions: self.positions.0,
            inverse_frequencies: self.inverse_frequencies.unwrap_or(DevicePtr::NULL).0,
            sequence_of: self.sequence_of.0,
            rows: self.rows,
            heads: self.heads.heads,
            qkv_stride: self.qkv_stride,
            tiles_per_row: self.tiles_per_row(),
            vectorised: u32::from(self.vectorised()),
        }
    }
}

// SAFETY: `rotary` in rotary.cu takes `RotaryArgs` as its first parameter; that the pointers stay valid is for whoever makes the descriptor to see to.
unsafe impl Kernel for Rotary {
    /// `[rows x heads x kv_heads x head_dim]`; writing the cache has a name of its own.
    fn key(&self) -> KernelKey {
        const ROTARY: KernelName = KernelName::new("rotary");
        const ROTARY_CACHED: KernelName = KernelName::new("rotary_cached");
        let name = if self.cache.is_some() { ROTARY_CACHED } else { ROTARY };
        KernelKey::new(name, [self.rows, self.heads.heads, self.heads.kv_heads, self.heads.head_dim])
    }

    fn work(&self) -> Work {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let [heads, kv_heads, head_dim, rows] = [heads, kv_heads, head_dim, self.rows].map(u64::from);
        // With a cache, keys are written once more, and values read and written.
        let moved = 2 * (heads + kv_heads) + if self.cache.is_some() { 3 * kv_heads } else { 0 };
        Work { flops: product([3, rows, heads + kv_heads, head_dim]), bytes: product([2, rows, moved, head_dim]) }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        self.check()?;
        Ok(self.rows().launch(self.work(), sms))
    }
}

// SAFETY: as for `Rotary`.
unsafe impl Kernel for CacheWrite {
    /// `[rows x kv_heads x head_dim]`.
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("cache_write");
        KernelKey::new(NAME, [self.rows, self.heads.kv_heads, self.heads.head_dim])
    }

    fn work(&self) -> Work {
        let [kv_heads, head_dim, rows] = [self.heads.kv_heads, self.heads.head_dim, self.rows].map(u64::from);
        Work { flops: 0, bytes: product([8, rows, kv_heads, head_dim]) }
    }

    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        self.rows().check(&self.key(), None)?;
        Ok(self.rows().launch(self.work(), sms))
    }
}
