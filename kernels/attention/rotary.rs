//! Rotary positions, in place, and the write of new keys and values to the KV cache.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::super::abi;
use super::{Heads, KvCache, product, unsupported};

/// Threads of a block, and blocks that fit on an SM at once: the kernel's launch bounds.
const THREADS: u32 = 256;
const BLOCKS_PER_SM: u32 = 4;

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
    fn check(&self) -> Result<(), LaunchError> {
        let odd = !self.heads.head_dim.is_multiple_of(2);
        let reason = odd.then(|| format!("a head of {} columns has no halves to rotate: the head size must be even", self.heads.head_dim));
        check(&self.key(), self.heads, self.rows, self.qkv_stride, self.cache.as_ref(), reason)
    }

    fn args(&self) -> abi::RotaryArgs {
        let none = KvCache { keys: DevicePtr::NULL, values: DevicePtr::NULL, page_table: DevicePtr::NULL, pages_per_sequence: 0 };
        abi::RotaryArgs {
            cache: self.cache.unwrap_or(none).args(self.heads),
            qkv: self.qkv.0,
            positions: self.positions.0,
            inverse_frequencies: self.inverse_frequencies.0,
            sequence_of: self.sequence_of.0,
            rows: self.rows,
            heads: self.heads.heads,
            qkv_stride: self.qkv_stride,
        }
    }
}

impl CacheWrite {
    fn args(&self) -> abi::RotaryArgs {
        abi::RotaryArgs {
            cache: self.cache.args(self.heads),
            qkv: self.qkv.0,
            positions: self.positions.0,
            inverse_frequencies: 0,
            sequence_of: self.sequence_of.0,
            rows: self.rows,
            heads: self.heads.heads,
            qkv_stride: self.qkv_stride,
        }
    }
}

/// Refuses what no row-wise kernel of this file can do; `reason` is what the caller found.
fn check(
    key: &KernelKey,
    heads: Heads,
    rows: u32,
    qkv_stride: u32,
    cache: Option<&KvCache>,
    reason: Option<String>,
) -> Result<(), LaunchError> {
    let no_rows = || (rows == 0).then(|| "there are no rows".to_owned());
    let reason = heads.problem(qkv_stride).or(reason).or_else(|| cache.and_then(KvCache::problem)).or_else(no_rows);
    reason.map_or(Ok(()), |reason| Err(unsupported(key, reason)))
}

/// Blocks stride over the rows.
fn launch(args: abi::RotaryArgs, sms: Sms) -> Launch {
    Launch {
        symbol: "rotary",
        grid: Launch::persistent_grid(args.rows, sms, BLOCKS_PER_SM),
        block: THREADS,
        shared_bytes: 0,
        blocks_per_sm: BLOCKS_PER_SM,
        tiles: args.rows,
        elastic: false,
        programmatic: true,
        params: Params::new(args),
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
        Ok(launch(self.args(), sms))
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
        check(&self.key(), self.heads, self.rows, self.qkv_stride, Some(&self.cache), None)?;
        Ok(launch(self.args(), sms))
    }
}
