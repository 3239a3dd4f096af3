//! The paged KV cache: what [`Rotary`](super::Rotary) and [`CacheWrite`](super::CacheWrite) fill, and what decode reads.
//!
//! One layer's keys lie in a pool of pages, `[pages, kv_heads, PAGE_TOKENS, head_dim]` FP16, its values in another. Which pages belong to which
//! sequence is said by a table in device memory, so that a sequence grows page by page, and memory is held for the tokens that exist. All layers
//! may share one table.

use smidgen_runtime::device::DevicePtr;

use super::super::abi;
use super::Heads;

/// Tokens of one page. With 64, one head's part of a page is 4 KiB or more for heads from 32 columns up, long enough to be read at full
/// bandwidth wherever it lies, and a sequence leaves 32 tokens of its last page unused on average.
pub const PAGE_TOKENS: u32 = abi::KV_PAGE_TOKENS;

/// One layer's keys and values of past tokens, in pages.
///
/// Position `p` of sequence `b` lies at `p % PAGE_TOKENS` of page `page_table[b][p / PAGE_TOKENS]`. Entries past a sequence's length are not
/// followed and may hold anything. A page may stand in the rows of several sequences, as long as none of them writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCache {
    /// Keys, rotated: `[pages, kv_heads, PAGE_TOKENS, head_dim]`, FP16, on 16 bytes.
    pub keys: DevicePtr,
    /// Values, laid out like the keys.
    pub values: DevicePtr,
    /// `[sequences, pages_per_sequence]`, u32.
    pub page_table: DevicePtr,
    /// Pages that a sequence has at most.
    pub pages_per_sequence: u32,
}

impl KvCache {
    /// Pages that `tokens` tokens of one sequence need.
    pub const fn pages_for(tokens: u32) -> u32 {
        tokens.div_ceil(PAGE_TOKENS)
    }

    /// Bytes of one page's keys, and of its values.
    pub const fn page_bytes(heads: Heads) -> u64 {
        2 * PAGE_TOKENS as u64 * heads.kv_heads as u64 * heads.head_dim as u64
    }

    /// Positions that a sequence has room for; `u32::MAX` where they cannot be counted.
    pub const fn capacity(&self) -> u32 {
        self.pages_per_sequence.saturating_mul(PAGE_TOKENS)
    }

    /// What does not fit, if anything does not.
    pub(super) fn problem(&self) -> Option<String> {
        if !(1..=1 << 30).contains(&self.capacity()) {
            Some(format!("a sequence has 1 to {} pages, not {}", (1 << 30) / PAGE_TOKENS, self.pages_per_sequence))
        } else if !(self.keys.0 | self.values.0).is_multiple_of(16) {
            Some("the cache's keys and values must begin on 16 bytes".to_owned())
        } else {
            None
        }
    }

    pub(super) fn args(&self, heads: Heads) -> abi::KvPages {
        abi::KvPages {
            keys: self.keys.0,
            values: self.values.0,
            page_table: self.page_table.0,
            pages_per_sequence: self.pages_per_sequence,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
        }
    }
}
