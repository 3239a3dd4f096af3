//! Rotary positions, in place, and the write of new keys and values to the KV cache.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::super::abi;
use super::{Heads, product, unsupported};

/// Threads of a block, and blocks that fit on an SM at once: the kernel's launch bounds.
const THREADS: u32 = 256;
const BLOCKS_PER_SM: u32 = 4;

/// One layer's keys and values of past tokens: `[sequences, kv_heads, capacity, head_dim]` each, FP16, without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCache {
    /// Keys, rotated.
    pub k: DevicePtr,
    /// Values.
    pub v: DevicePtr,
    /// Positions that a sequence has room for.
    pub capacity: u32,
}

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
    /// The sequence in the cache that a row belongs to: `[rows]`, u32. Not read without a cache.
    pub sequence_of: DevicePtr,
}

impl Rotary {
    fn check(&self) -> Result<(), LaunchError> {
        let reason = if let Some(reason) = self.heads.problem(self.qkv_stride) {
            reason
        } else if !self.heads.head_dim.is_multiple_of(2) {
            format!("a head of {} columns has no halves to rotate: the head size must be even", self.heads.head_dim)
        } else if self.rows == 0 {
            "there are no rows".to_owned()
        } else {
            return Ok(());
        };
        Err(unsupported(&self.key(), reason))
    }

    fn args(&self) -> abi::RotaryArgs {
        abi::RotaryArgs {
            qkv: self.qkv.0,
            positions: self.positions.0,
            inverse_frequencies: self.inverse_frequencies.0,
            k_cache: self.cache.map_or(0, |cache| cache.k.0),
            v_cache: self.cache.map_or(0, |cache| cache.v.0),
            sequence_of: self.sequence_of.0,
            rows: self.rows,
            heads: self.heads.heads,
            kv_heads: self.heads.kv_heads,
            head_dim: self.heads.head_dim,
            capacity: self.cache.map_or(0, |cache| cache.capacity),
            qkv_stride: self.qkv_stride,
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
        Ok(Launch {
            symbol: "rotary",
            grid: Launch::persistent_grid(self.rows, sms, BLOCKS_PER_SM),
            block: THREADS,
            shared_bytes: 0,
            blocks_per_sm: BLOCKS_PER_SM,
            tiles: self.rows,
            elastic: false,
            programmatic: true,
            params: Params::new(self.args()),
        })
    }
}
