//! Which kernel does a problem: the compiled variants, what each needs of an SM, and the choice among them at an SM count.
//!
//! The tiled variants give the same bits, so any of them may do a problem, and the one with the least predicted time on the granted SMs
//! does. The other variants add in another order or read otherwise: whether they are used follows from the problem alone, never from the SM
//! count, or outputs would change when a tenant is resized.

use std::fmt;

use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::Choice;

use super::abi::GemmEpilogue;
use super::skinny::Skinny;
use super::warpgroup::Warpgroup;
use super::{Epilogue, Gemm};

/// A compiled kernel: a tile shape of `tiled.cuh`, or a shape of `skinny.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Hopper's kernels.
    Warpgroup(Warpgroup),
    /// Tiles of 128 x 256.
    Tiled128x256,
    /// Tiles of 128 x 128.
    Tiled128x128,
    /// Tiles of 64 x 128.
    Tiled64x128,
    /// Tiles of 64 x 64.
    Tiled64x64,
    /// Tiles of 64 x 64 with loads of single halves, for rows that do not begin on 16 bytes.
    Unaligned,
    /// Few rows.
    Skinny(Skinny),
}

/// Shared memory that the driver keeps for itself in each block, and the kernel's own static part, bytes.
const RESERVED_SHARED_BYTES: u32 = 1024 + 128;

/// Multiply-adds that an SM does in a cycle in the main loop of the largest tile. This and the figures below were fitted to `cargo bench
/// --bench kernels` on an H200 (results/h200/kernels.txt), 2026-11-21: main loops from the slope between k = 768 and k = 3072, the rest from what is left.
const MULTIPLY_ADDS_PER_CYCLE: f64 = 786.0;

/// Cycles of a tile outside its main loop, however small it is: taking it, and filling the pipeline from memory.
const TILE_CYCLES: f64 = 11_400.0;

/// Cycles of the epilogue for each element that a thread holds; a residual is read where it is added, so its latency shows.
const fn epilogue_cycles(epilogue: Epilogue) -> f64 {
    match epilogue {
        Epilogue::Residual(_) | Epilogue::BiasResidual(..) => 240.0,
        Epilogue::BiasGelu(_) | Epilogue::BiasGeluTanh(_) | Epilogue::SiluGate | Epilogue::BiasSiluGate(_) => 115.0,
        _ => 55.0,
    }
}

/// The quickest shapes of the two kinds that have many, all of one kind giving the same bits. They follow from a problem's kernel key, and from nothing
/// else of it, so that a session asks once (`Kernel::choose`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quickest {
    warpgroup: Warpgroup,
    tiled: Variant,
    /// Whether the warpgroup shape polls the grant.
    pub(super) warpgroup_is_elastic: bool,
}

impl Quickest {
    pub(super) fn of(gemm: &Gemm, sms: Sms, gpu: &Topology) -> Self {
        let fitting = Variant::TILED.into_iter().filter(|tiled| tiled.blocks_per_sm(gpu) > 0);
        let quicker = |a: &Variant, b: &Variant| a.predicted_cycles(gemm, sms, gpu).total_cmp(&b.predicted_cycles(gemm, sms, gpu));
        let tiled = fitting.min_by(quicker).unwrap_or(Variant::Tiled64x64);
        let warpgroup = Warpgroup::choose(gemm, sms);
        Self { warpgroup, tiled, warpgroup_is_elastic: warpgroup.is_elastic(gemm, sms) }
    }

    /// As a number: where the shapes stand in their lists, a byte each.
    pub(super) fn to_choice(self) -> Choice {
        let warpgroup = Warpgroup::ALL.iter().position(|shape| *shape == self.warpgroup).unwrap_or(0);
        let tiled = Variant::TILED.iter().position(|variant| *variant == self.tiled).unwrap_or(0);
        Choice(u64::from(self.warpgroup_is_elastic) << 16 | (tiled as u64) << 8 | warpgroup as u64)
    }

    pub(super) fn from_choice(Choice(bits): Choice) -> Self {
        let [warpgroup, tiled, is_elastic, ..] = bits.to_le_bytes();
        Self {
            warpgroup: Warpgroup::ALL.get(usize::from(warpgroup)).copied().unwrap_or(Warpgroup::Tile64x64),
            tiled: Variant::TILED.get(usize::from(tiled)).copied().unwrap_or(Variant::Tiled64x64),
            warpgroup_is_elastic: is_elastic != 0,
        }
    }
}

impl Variant {
    /// The variants that give the same bits.
    pub const TILED: [Self; 4] = [Self::Tiled128x256, Self::Tiled128x128, Self::Tiled64x128, Self::Tiled64x64];

    /// The variant with the least predicted time for `gemm` on `sms` SMs, given which of each kind has.
    pub(super) fn choose(gemm: &Gemm, quickest: Quickest, sms: Sms, gpu: &Topology) -> Self {
        if !gemm.is_aligned() {
            return Self::Unaligned;
        }
        if let Some(skinny) = Skinny::choose(gemm, sms, gpu) {
            return Self::Skinny(skinny);
        }
        if Warpgroup::can_do(gemm, gpu) {
            return Self::Warpgroup(quickest.warpgroup);
        }
        quickest.tiled
    }

    /// Whether the kernel is right for the problem, quick or not.
    pub(super) fn can_do(self, gemm: &Gemm, gpu: &Topology) -> bool {
        match self {
            Self::Warpgroup(_) => Warpgroup::can_do(gemm, gpu),
            Self::Unaligned => true,
            Self::Skinny(skinny) => skinny.can_do(gemm, gpu),
            Self::Tiled128x256 | Self::Tiled128x128 | Self::Tiled64x128 | Self::Tiled64x64 => gemm.is_aligned(),
        }
    }

    /// Rows and columns of a tile.
    const fn tile(self) -> (u32, u32) {
        match self {
            Self::Warpgroup(warpgroup) => warpgroup.tile(),
            Self::Tiled128x256 => (128, 256),
            Self::Tiled128x128 => (128, 128),
            Self::Tiled64x128 => (64, 128),
            Self::Tiled64x64 | Self::Unaligned => (64, 64),
            Self::Skinny(skinny) => skinny.tile(),
        }
    }

    /// Stages of 64 columns of `A` and `B` that a block of the tiled variants keeps in shared memory.
    const fn stages(self) -> u32 {
        match self {
            Self::Warpgroup(_) | Self::Skinny(_) => 0,
            Self::Unaligned => 2,
            _ => 3,
        }
    }

    /// Threads of a block.
    pub(super) const fn threads(self) -> u32 {
        match self {
            Self::Tiled128x256 => 256,
            Self::Skinny(skinny) => skinny.threads(),
            _ => 128,
        }
    }

    /// Dynamic shared memory of a block, bytes.
    pub(super) const fn shared_bytes(self) -> u32 {
        if let Self::Skinny(skinny) = self {
            return skinny.shared_bytes();
        }
        if let Self::Warpgroup(warpgroup) = self {
            return warpgroup.shared_bytes();
        }
        let (rows, columns) = self.tile();
        self.stages() * (rows + columns) * 128
    }

    /// Blocks for which an SM has registers: the kernels' launch bounds.
    const fn blocks_by_registers(self) -> u32 {
        match self {
            Self::Warpgroup(_) | Self::Tiled128x256 => 1,
            Self::Tiled128x128 => 2,
            Self::Tiled64x128 => 3,
            Self::Tiled64x64 | Self::Unaligned => 4,
            Self::Skinny(skinny) => skinny.blocks_by_registers(),
        }
    }

    /// Blocks that fit on one SM of `gpu` at once.
    pub(super) fn blocks_per_sm(self, gpu: &Topology) -> u32 {
        self.blocks_by_registers().min(gpu.shared_bytes_per_sm / (self.shared_bytes() + RESERVED_SHARED_BYTES))
    }

    /// Tiles of the problem.
    pub(super) fn tiles(self, gemm: &Gemm) -> u64 {
        let (rows, columns) = self.tile();
        if let Self::Warpgroup(warpgroup) = self {
            return warpgroup.tiles(gemm);
        }
        u64::from(gemm.m.div_ceil(rows)) * u64::from(gemm.n.div_ceil(columns))
    }

    /// Share of the SM's multiply-add rate that the main loop reaches with one block on the SM, and with as many as fit. A lone block with few
    /// warps waits for its own copies; small warp tiles read more shared memory for each multiplication (see tiled.cuh).
    const fn efficiency(self) -> (f64, f64) {
        match self {
            Self::Tiled128x256 => (1.0, 1.0),
            Self::Tiled128x128 => (0.86, 0.98),
            Self::Tiled64x128 => (0.71, 0.85),
            _ => (0.50, 0.63),
        }
    }

    /// Cycles of the slowest SM, tiles spread evenly.
    fn predicted_cycles(self, gemm: &Gemm, sms: Sms, gpu: &Topology) -> f64 {
        let (rows, columns) = self.tile();
        let resident = f64::from(self.blocks_per_sm(gpu).max(1));
        let tiles_per_sm = self.tiles(gemm).div_ceil(u64::from(sms.get().max(1))) as f64;
        let at_once = tiles_per_sm.min(resident);
        let (alone, full) = self.efficiency();
        let efficiency = if resident > 1.0 { alone + (full - alone) * (at_once - 1.0) / (resident - 1.0) } else { full };
        let rounds = (tiles_per_sm / at_once).ceil();
        let epilogue = epilogue_cycles(gemm.epilogue) * f64::from(rows * columns) / f64::from(self.threads());
        let multiply_adds = f64::from(rows) * f64::from(columns) * f64::from(gemm.k.div_ceil(64)) * 64.0;
        tiles_per_sm * multiply_adds / (MULTIPLY_ADDS_PER_CYCLE * efficiency) + rounds * (TILE_CYCLES + epilogue)
    }

    /// The entry point with an epilogue, a value of `GemmEpilogue` in kernels/abi.h.
    pub(super) const fn symbol(self, epilogue: GemmEpilogue) -> &'static str {
        /// In the order of `GemmEpilogue`.
        macro_rules! with_each_epilogue {
            ($variant:literal) => {
                [
                    concat!("gemm_", $variant, "_plain"),
                    concat!("gemm_", $variant, "_plain_f32"),
                    concat!("gemm_", $variant, "_bias"),
                    concat!("gemm_", $variant, "_bias_gelu"),
                    concat!("gemm_", $variant, "_bias_gelu_tanh"),
                    concat!("gemm_", $variant, "_bias_relu"),
                    concat!("gemm_", $variant, "_residual"),
                    concat!("gemm_", $variant, "_bias_residual"),
                    concat!("gemm_", $variant, "_silu_gate"),
                ]
            };
        }
        let symbols = match self {
            Self::Warpgroup(Warpgroup::Tile128x256) => with_each_epilogue!("warpgroup_128x256"),
            Self::Warpgroup(Warpgroup::Tile128x192) => with_each_epilogue!("warpgroup_128x192"),
            Self::Warpgroup(Warpgroup::Tile128x160) => with_each_epilogue!("warpgroup_128x160"),
            Self::Warpgroup(Warpgroup::Tile128x128) => with_each_epilogue!("warpgroup_128x128"),
            Self::Warpgroup(Warpgroup::Tile128x96) => with_each_epilogue!("warpgroup_128x96"),
            Self::Warpgroup(Warpgroup::Tile64x128) => with_each_epilogue!("warpgroup_64x128"),
            Self::Warpgroup(Warpgroup::Tile64x96) => with_each_epilogue!("warpgroup_64x96"),
            Self::Warpgroup(Warpgroup::Tile64x64) => with_each_epilogue!("warpgroup_64x64"),
            Self::Tiled128x256 => with_each_epilogue!("128x256"),
            Self::Tiled128x128 => with_each_epilogue!("128x128"),
            Self::Tiled64x128 => with_each_epilogue!("64x128"),
            Self::Tiled64x64 => with_each_epilogue!("64x64"),
            Self::Unaligned => return "gemm_unaligned",
            Self::Skinny(skinny) => return skinny.symbol(),
        };
        symbols[epilogue as usize]
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skinny(skinny) => skinny.fmt(f),
            other => fmt::Debug::fmt(other, f),
        }
    }
}
