//! Which kernel does a prefill: decided by the GPU, the head size, where rows lie and the longest sequence, and never by the SM count, so outputs
//! do not depend on it. A change that lets the SM count choose must be among kernels that give the same bits.

use std::mem::offset_of;

use smidgen_runtime::device::Topology;
use smidgen_runtime::launch::Params;

use super::super::abi;
use super::maps::RowsOfHeads;
use super::{AttentionPrefill, CompiledSize};

/// The longest sequence that `PrefillShort` in prefill_short.cuh takes.
const SHORT: u32 = 128;

/// A way to do prefills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// `mma.sync` and asynchronous copies: every GPU, rows wherever they lie (prefill.cuh).
    Mma,
    /// `wgmma`, and the copy engine ahead of it: Hopper, rows on 16 bytes (prefill_wgmma.cuh).
    Wgmma,
    /// `wgmma`, a whole head of a sequence at once: the same, short sequences, small heads (prefill_short.cuh).
    Short,
}

/// By rising head size; launch bounds as `Prefill::BLOCKS_PER_SM` in prefill.cuh.
const MMA: [CompiledSize; 6] = {
    const fn size(head_dim: u32, symbol: &'static str, shared_bytes: u32, blocks_by_registers: u32) -> CompiledSize {
        CompiledSize { head_dim, symbol, threads: 128, shared_bytes, blocks_by_registers }
    }
    [
        size(32, "attention_prefill_d32", abi::ATTENTION_PREFILL_D32_SHARED_BYTES, 4),
        size(64, "attention_prefill_d64", abi::ATTENTION_PREFILL_D64_SHARED_BYTES, 3),
        size(80, "attention_prefill_d80", abi::ATTENTION_PREFILL_D80_SHARED_BYTES, 3),
        size(96, "attention_prefill_d96", abi::ATTENTION_PREFILL_D96_SHARED_BYTES, 2),
        size(128, "attention_prefill_d128", abi::ATTENTION_PREFILL_D128_SHARED_BYTES, 2),
        size(256, "attention_prefill_d256", abi::ATTENTION_PREFILL_D256_SHARED_BYTES, 2),
    ]
};

/// By rising head size.
const WGMMA: [CompiledSize; 6] = [
    CompiledSize::of_warpgroup_loop(32, "attention_prefill_wgmma_d32", abi::ATTENTION_PREFILL_WGMMA_D32_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(64, "attention_prefill_wgmma_d64", abi::ATTENTION_PREFILL_WGMMA_D64_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(80, "attention_prefill_wgmma_d80", abi::ATTENTION_PREFILL_WGMMA_D80_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(96, "attention_prefill_wgmma_d96", abi::ATTENTION_PREFILL_WGMMA_D96_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(128, "attention_prefill_wgmma_d128", abi::ATTENTION_PREFILL_WGMMA_D128_SHARED_BYTES),
    CompiledSize::of_warpgroup_loop(256, "attention_prefill_wgmma_d256", abi::ATTENTION_PREFILL_WGMMA_D256_SHARED_BYTES),
];

/// By rising head size; threads and launch bounds as in `PrefillShort` in prefill_short.cuh.
const SHORT_SIZES: [CompiledSize; 2] = {
    const fn size(head_dim: u32, symbol: &'static str, shared_bytes: u32) -> CompiledSize {
        CompiledSize { head_dim, symbol, threads: 256, shared_bytes, blocks_by_registers: 2 }
    }
    [
        size(32, "attention_prefill_short_d32", abi::ATTENTION_PREFILL_SHORT_D32_SHARED_BYTES),
        size(64, "attention_prefill_short_d64", abi::ATTENTION_PREFILL_SHORT_D64_SHARED_BYTES),
    ]
};

impl Variant {
    /// The fastest for `prefill` on `gpu`.
    pub(super) fn choose(prefill: &AttentionPrefill, gpu: &Topology) -> Self {
        // The machine code is sm_90a's, which no other compute capability runs.
        if gpu.compute_capability != (9, 0) || !rows_of(prefill).on_16_bytes() {
            Self::Mma
        } else if prefill.max_length <= SHORT && CompiledSize::of(prefill.heads.head_dim, &SHORT_SIZES).is_some() {
            Self::Short
        } else {
            Self::Wgmma
        }
    }

    /// The compiled kernel for heads of `head_dim` columns.
    pub(super) fn size(self, head_dim: u32) -> Option<&'static CompiledSize> {
        let sizes: &[CompiledSize] = match self {
            Self::Mma => &MMA,
            Self::Wgmma => &WGMMA,
            Self::Short => &SHORT_SIZES,
        };
        CompiledSize::of(head_dim, sizes)
    }

    /// Queries of one tile of a kernel of this variant: `QUERIES` in its file.
    pub(super) fn queries(self, size: &CompiledSize) -> u32 {
        match self {
            Self::Mma => 64,
            Self::Wgmma => size.queries_of_warpgroup_loop(),
            Self::Short => SHORT,
        }
    }

    /// The kernel's first parameter.
    pub(super) fn params(self, prefill: &AttentionPrefill, args: abi::AttentionPrefillArgs) -> Params {
        match self {
            Self::Mma | Self::Short => Params::new(args),
            Self::Wgmma => {
                let args = abi::AttentionPrefillTmaArgs { rows: abi::TensorMap { opaque: [0; 16] }, plain: args };
                Params::new(args).with_tensor_maps([(offset_of!(abi::AttentionPrefillTmaArgs, rows), rows_of(prefill).map())])
            }
        }
    }
}

fn rows_of(prefill: &AttentionPrefill) -> RowsOfHeads {
    let &AttentionPrefill { heads, rows, qkv, qkv_stride, output, output_stride, .. } = prefill;
    RowsOfHeads { heads, rows, qkv, qkv_stride, output, output_stride }
}
