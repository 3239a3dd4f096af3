//! Which kernel does a problem: the compiled variants, what each needs of an SM, and the choice among them at an SM count.
//!
//! The tiled variants give the same bits, so any of them may do a problem, and the one with the least predicted time on the granted SMs
//! does. The other variants add in another order or read otherwise: whether they are used follows from the problem alone, never from the SM
//! count, or outputs would change when a tenant is resized.

use std::fmt;

use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::{Choice, Configuration};

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
    /// Named by a profile; none where the problem chooses among skinny kernels itself.
    skinny: Option<Skinny>,
    /// Whether the warpgroup shape polls the grant.
    pub(super) warpgroup_is_elastic: bool,
}

impl Quickest {
    pub(super) fn of(gemm: &Gemm, sms: Sms, gpu: &Topology) -> Self {
        let tiled = Self::tiled_by_predicted_time(gemm, sms, gpu).first().copied().unwrap_or(Variant::Tiled64x64);
        let warpgroup = Warpgroup::choose(gemm, sms);
        Self { warpgroup, tiled, skinny: None, warpgroup_is_elastic: warpgroup.is_elastic(gemm, sms) }
    }

    /// The same but for one shape.
    fn naming(self, variant: Variant, gemm: &Gemm, sms: Sms) -> Self {
        match variant {
            Variant::Warpgroup(warpgroup) => Self { warpgroup, warpgroup_is_elastic: warpgroup.is_elastic(gemm, sms), ..self },
            Variant::Skinny(skinny) => Self { skinny: Some(skinny), ..self },
            tiled => Self { tiled, ..self },
        }
    }

    /// What may be named for problems of the key that `gemm` has, on 16 bytes as those that matter are: the choice itself, then the others that give its bits. None
    /// where there is nothing else to choose, or where pairs were chosen for the sake of neighbours, whom the profiler does not see.
    pub(super) fn configurations(gemm: &Gemm, sms: Sms, gpu: &Topology) -> Vec<Configuration> {
        let gemm = &gemm.aligned();
        let chosen = Self::of(gemm, sms, gpu);
        let own = Variant::choose(gemm, chosen, sms, gpu);
        let mut others: Vec<Variant> = match own {
            Variant::Skinny(own) => {
                Skinny::ALL.into_iter().filter(|other| other.can_stand_in_for(own, gemm, gpu)).map(Variant::Skinny).collect()
            }
            Variant::Warpgroup(_) if Warpgroup::prefers_pairs(gemm, sms) => Vec::new(),
            Variant::Warpgroup(_) => Warpgroup::by_predicted_time(gemm, sms).map(Variant::Warpgroup).to_vec(),
            Variant::Unaligned => Vec::new(),
            _ => Self::tiled_by_predicted_time(gemm, sms, gpu),
        };
        others.retain(|other| *other != own);
        if others.is_empty() {
            return Vec::new();
        }
        let named = others.into_iter().map(|other| (other, chosen.naming(other, gemm, sms)));
        let all = [(own, chosen)].into_iter().chain(named);
        all.map(|(variant, quickest)| Configuration { name: variant.name(), choice: quickest.to_choice() }).collect()
    }

    fn tiled_by_predicted_time(gemm: &Gemm, sms: Sms, gpu: &Topology) -> Vec<Variant> {
        let mut fitting = Variant::TILED.into_iter().filter(|tiled| tiled.blocks_per_sm(gpu) > 0).collect::<Vec<_>>();
        fitting.sort_by(|a, b| a.predicted_cycles(gemm, sms, gpu).total_cmp(&b.predicted_cycles(gemm, sms, gpu)));
        fitting
    }

    /// As a number: where the shapes stand in their lists, a byte each, and from 1 on where there may be none.
    pub(super) fn to_choice(self) -> Choice {
        let warpgroup = Warpgroup::ALL.iter().position(|shape| *shape == self.warpgroup).unwrap_or(0);
        let tiled = Variant::TILED.iter().position(|variant| *variant == self.tiled).unwrap_or(0);
        let skinny = self.skinny.and_then(|named| Skinny::ALL.iter().position(|skinny| *skinny == named)).map_or(0, |at| at as u8 + 1);
        Choice(u64::from_le_bytes([warpgroup as u8, tiled as u8, u8::from(self.warpgroup_is_elastic), skinny, 0, 0, 0, 0]))
    }

    pub(super) fn from_choice(Choice(bits): Choice) -> Self {
        let [warpgroup, tiled, is_elastic, skinny, ..] = bits.to_le_bytes();
        Self {
            warpgroup: Warpgroup::ALL.get(usize::from(warpgroup)).copied().unwrap_or(Warpgroup::Tile64x64),
            tiled: Variant::TILED.get(usize::from(tiled)).copied().unwrap_or(Variant::Tiled64x64),
            skinny: usize::from(skinny).checked_sub(1).and_then(|at| Skinny::ALL.get(at)).copied(),
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
            // Named for the key: this problem's rows may lie otherwise, and its bits are its own choice's in any case.
            let named = quickest.skinny.filter(|named| named.can_stand_in_for(skinny, gemm, gpu));
            return Self::Skinny(named.unwrap_or(skinny));
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

    /// What profiles call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Skinny(skinny) => skinny.name(),
            Self::Unaligned => "unaligned",
            compiled => compiled.entry_points().0,
        }
    }

    /// The entry point with an epilogue, a value of `GemmEpilogue` in kernels/abi.h.
    pub(super) const fn symbol(self, epilogue: GemmEpilogue) -> &'static str {
        match self {
            Self::Unaligned => "gemm_unaligned",
            Self::Skinny(skinny) => skinny.symbol(),
            compiled => compiled.entry_points().1[epilogue as usize],
        }
    }

    /// The name of a variant with entry points by epilogue, and these.
    const fn entry_points(self) -> (&'static str, [&'static str; 9]) {
        /// In the order of `GemmEpilogue`.
        macro_rules! with_each_epilogue {
            ($variant:literal) => {
                (
                    $variant,
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
                    ],
                )
            };
        }
        match self {
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
            Self::Tiled64x64 | Self::Unaligned | Self::Skinny(_) => with_each_epilogue!("64x64"),
        }
    }
}

impl Variant {
    /// The variant, and who chose it: what the heuristic does not choose, a profile has named, or the profiler while it measures.
    pub(super) fn and_who_chose_it(self, gemm: &Gemm, sms: Sms, gpu: &Topology) -> String {
        let predicted = Self::choose(gemm, Quickest::of(gemm, sms, gpu), sms, gpu);
        format!("{self} by {}", if self == predicted { "heuristic" } else { "profile" })
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use smidgen_runtime::device::DevicePtr;
    use smidgen_runtime::launch::{Kernel as _, Launch};

    use super::super::super::testing::h200;
    use super::*;

    fn gemm(shape: [u32; 3]) -> Gemm {
        Gemm::new(shape, DevicePtr(256), DevicePtr(512), DevicePtr(1024), Epilogue::NONE)
    }

    fn ampere() -> Topology {
        Topology { compute_capability: (8, 0), shared_bytes_per_sm: 164 << 10, ..h200() }
    }

    /// Launches of every configuration on offer, by name.
    fn offered(gemm: &Gemm, sms: u16, gpu: &Topology) -> Vec<(&'static str, Launch)> {
        let configured = |offered: Configuration| {
            (offered.name, gemm.configure_as(offered.choice, Sms(sms), gpu).unwrap_or_else(|error| panic!("{}: {error}", offered.name)))
        };
        gemm.configurations(Sms(sms), gpu).into_iter().map(configured).collect()
    }

    const SHAPES: [[u32; 3]; 10] = [
        [1024, 768, 768],
        [1024, 3072, 768],
        [1024, 768, 3072],
        [8192, 14_336, 4096],
        [40, 4096, 4096],
        [8, 2048, 8192],
        [8, 28_672, 4096],
        [13, 3000, 4096],
        [32, 128_256, 2048],
        [100, 30_522, 768],
    ];

    #[test]
    fn the_first_configuration_is_the_choice_and_the_others_are_shapes_of_its_family() {
        for gpu in [h200(), ampere()] {
            for (shape, sms) in SHAPES.into_iter().flat_map(|shape| [2, 16, 33, 66, 132].map(|sms| (shape, sms))) {
                let gemm = gemm(shape);
                let own = gemm.configure(Sms(sms), &gpu).expect("a supported shape");
                let all = offered(&gemm, sms, &gpu);
                if let Some((_, first)) = all.first() {
                    let facts = |launch: &Launch| (launch.symbol, launch.grid, launch.elastic);
                    assert_eq!(facts(first), facts(&own), "{shape:?} at {sms} SMs");
                    assert!(all.len() > 1);
                }
                let family = |symbol: &str| ["warpgroup", "skinny"].into_iter().find(|family| symbol.contains(family));
                let symbols: HashSet<_> = all.iter().map(|(_, launch)| launch.symbol).collect();
                assert_eq!(symbols.len(), all.len(), "{shape:?} at {sms} SMs: {symbols:?}");
                for (name, launch) in &all {
                    assert!(Configuration::is_name(name) && launch.symbol.contains(name), "{name}: {}", launch.symbol);
                    assert_eq!(family(launch.symbol), family(own.symbol), "{shape:?} at {sms} SMs");
                    assert!(launch.grid <= u32::from(sms.max(2)) * launch.blocks_per_sm, "{name} at {sms} SMs: {launch:?}");
                }
            }
        }
    }

    #[test]
    fn few_rows_are_offered_what_adds_in_the_same_order() {
        let names = |shape, sms| offered(&gemm(shape), sms, &h200()).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(
            names([8, 2048, 8192], 132),
            ["skinny_8x32_deep_halves", "skinny_8x64_pair", "skinny_8x64_deep_pair", "skinny_8x32_halves"]
        );
        assert_eq!(names([13, 3000, 4096], 32), ["skinny_16x64_pair", "skinny_16x64_deep_pair"]);
        // One block has the whole of k: no other kernel adds so.
        assert_eq!(names([8, 16_384, 2048], 132), [""; 0]);
    }

    #[test]
    fn pairs_that_spare_the_neighbours_are_not_for_a_profiler_to_undo() {
        let large = gemm([8192, 14_336, 4096]);
        assert!(offered(&large, 66, &h200()).is_empty());
        let small = offered(&gemm([1024, 768, 768]), 132, &h200());
        assert_eq!((small[0].0, small.len()), ("warpgroup_64x96", Warpgroup::ALL.len()));
    }

    #[test]
    fn what_is_named_for_a_key_does_not_change_the_family_of_a_problem_whose_rows_lie_otherwise() {
        for shape in [[1024, 768, 768], [8, 2048, 8192]] {
            let plain = gemm(shape);
            let odd = Gemm { a: DevicePtr(258), ..plain };
            for Configuration { name, choice } in odd.configurations(Sms(132), &h200()) {
                let symbol = |gemm: &Gemm| gemm.configure_as(choice, Sms(132), &h200()).expect("a supported shape").symbol;
                assert_eq!(symbol(&odd), "gemm_unaligned");
                assert!(symbol(&plain).contains(name), "{name}");
            }
        }
        let choice = gemm([8, 2048, 8192]).configurations(Sms(132), &h200())[1].choice;
        let other = gemm([13, 3000, 4096]);
        let own = other.configure(Sms(132), &h200()).expect("a supported shape").symbol;
        assert_eq!(other.configure_as(choice, Sms(132), &h200()).expect("a supported shape").symbol, own);
    }

    #[test]
    fn a_printed_choice_says_who_made_it() {
        let gemm = gemm([1024, 768, 768]);
        let line = |variant: Variant| variant.and_who_chose_it(&gemm, Sms(132), &h200());
        let own = Variant::Warpgroup(Warpgroup::Tile64x96);
        assert_eq!(line(own), "Warpgroup(Tile64x96) by heuristic");
        let other = Variant::Warpgroup(Warpgroup::Tile64x128);
        assert_eq!(line(other), "Warpgroup(Tile64x128) by profile");
    }
}
