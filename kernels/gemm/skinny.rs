//! GEMM of few rows, the decode step's: which kernel of `skinny.cuh` does a problem, and its launch.
//!
//! The time is that of reading `B` once. Whether k is shared changes the order of additions, so it follows from the problem alone; whether two blocks do the
//! halves or one, and how deep their rings are, does not, and the latter follows from the SM count.

use std::fmt;
use std::mem::offset_of;

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Element, Launch, Params, Swizzle, TensorMap};

use super::super::attention::Rotary;
use super::warpgroup::{ACQUAINTANCE_BYTES, TILE_BOARD_BYTES, Warpgroup};
use super::{Gemm, Variant, abi};

/// Tiles up to which k is shared: with fewer, SMs would be idle.
const MOST_SHARED_TILES: u32 = 128;

/// Columns of k from which two blocks share them whatever the tiles: one would be long over its last tile. Not with more rows of `A` than this, which are as
/// many bytes as those of `B` in tiles of pairs, and half as many in the others.
const ALWAYS_SHARED_K: u32 = 4096;
/// Columns of k from which 33 to 64 rows are quicker here than in warpgroup tiles, where few tiles share them: measured at 2048 and 4096, where they are not, and at
/// 8192 and 14336 (docs/kernels/skinny-gemm.md).
const LONG_K_OF_MANY_ROWS: u32 = 8192;
const MOST_ROWS_ALWAYS_SHARED: u32 = 32;

/// Columns of `C` up to which one block does both halves of k, of 32 columns, for sure: with more, it would have a second tile where a pair has one. Of many
/// tiles that does not matter.
const MOST_HALVED_COLUMNS: u32 = 64 * 64;

/// Columns of k that one block can halve as pairs do are a multiple of this: twice what pairs cut at.
const HALVED_K: u32 = 512;

/// SMs from which blocks that share k may have one each: the memory's rate is then divided among so many that one block takes in its part.
const DEEP_FROM_SMS: Sms = Sms(60);

/// Pairs of a head that are in one tile of a product whose columns are heads; in halves, half of these.
pub(super) const PAIRS_OF_TILE: u32 = 32;

/// How long a launch must be to poll the grant, microseconds.
const LONG_US: f64 = 25.0;

/// Rates at which operands arrive, measured on an H200 (docs/kernels/skinny-gemm.md), GB/s: of one SM, `A` included, and of the memory.
const GB_PER_SECOND_OF_SM: f64 = 107.0;
const GB_PER_SECOND: f64 = 4200.0;

/// Bytes of `B` that a launch has asked for and not got, at most, beside other tenants: what memory delivers at its full rate within 1.4 us. With twice as many,
/// 68 SMs of an H200 read 6% more, and a GEMM on the other 64 took 1.7 times as long, since its misses wait behind them (docs/kernels/skinny-gemm.md).
const BYTES_UNDER_WAY: u32 = 6_500_000;

/// Stages that an SM has under way at least, whatever that is in bytes. One is asked for when an older one is there: of two, only one is under way for much of the
/// time, and Llama 1B's gate and up took 10% longer on 96 SMs of an H200, 16% on 120.
const LEAST_STAGES_OF_SM: u32 = 3;

/// A kernel of `skinny.cu`: for up to 8, 16, 32 or 64 rows of `A`, padded with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Skinny {
    /// One block does a tile.
    Eight,
    /// Two blocks share a tile's k.
    EightPair,
    /// The same, each with the whole of an SM's shared memory.
    EightDeepPair,
    /// One block, with both halves of k in each multiplication: the bits of a pair.
    EightHalves,
    /// The same, with the whole of an SM's shared memory.
    EightDeepHalves,
    /// As with 8 rows.
    Sixteen,
    /// As with 8 rows.
    SixteenPair,
    /// As with 8 rows.
    SixteenDeepPair,
    /// As with 8 rows.
    ThirtyTwo,
    /// As with 8 rows.
    ThirtyTwoPair,
    /// As with 8 rows.
    ThirtyTwoDeepPair,
    /// As with 8 rows.
    SixtyFour,
    /// As with 8 rows, in tiles of twice as many columns.
    SixtyFourPair,
    /// As with 8 rows.
    SixtyFourDeepPair,
}

/// The figures of a shape: those of its `SkinnyShape` in `skinny.cu`, in that order.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Of `A`.
    rows: u32,
    /// Blocks that share k.
    pair: u32,
    /// Consumers, each with 64 rows of wgmma's left operand.
    groups: u32,
    /// Blocks of 64 columns of k in a stage.
    k_blocks: u32,
    stages: u32,
    /// The kernel's launch bound.
    blocks_per_sm: u32,
    /// Of k in one multiplication.
    parts: u32,
}

impl fmt::Display for Skinny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, columns) = self.tile();
        let blocks = match self {
            Self::Eight | Self::Sixteen | Self::ThirtyTwo | Self::SixtyFour => "",
            Self::EightPair | Self::SixteenPair | Self::ThirtyTwoPair | Self::SixtyFourPair => " in pairs",
            Self::EightDeepPair | Self::SixteenDeepPair | Self::ThirtyTwoDeepPair | Self::SixtyFourDeepPair => " in deep pairs",
            Self::EightHalves => " in halves",
            Self::EightDeepHalves => " in deep halves",
        };
        write!(f, "Skinny{rows}x{columns}{blocks}")
    }
}

impl Skinny {
    /// Every kernel, by rows, single blocks first.
    pub const ALL: [Self; 14] = [
        Self::Eight,
        Self::EightPair,
        Self::EightDeepPair,
        Self::EightHalves,
        Self::EightDeepHalves,
        Self::Sixteen,
        Self::SixteenPair,
        Self::SixteenDeepPair,
        Self::ThirtyTwo,
        Self::ThirtyTwoPair,
        Self::ThirtyTwoDeepPair,
        Self::SixtyFour,
        Self::SixtyFourPair,
        Self::SixtyFourDeepPair,
    ];

    /// The kernel for `gemm`; none if it has too many rows, or rows that do not begin on 16 bytes, or if the GPU is no Hopper, or if the warpgroup kernels
    /// are predicted to be as quick.
    pub(super) fn choose(gemm: &Gemm, sms: Sms, gpu: &Topology) -> Option<Self> {
        if Self::leaves_to_warpgroups(gemm, gpu) {
            return None;
        }
        // A second round of a few blocks, each as long as all of the first together, and the products of a decoder would be longer on 60 SMs than on 56.
        let has_leftovers = (sms.get() + 1..=sms.get() + sms.get() / 8).contains(&gemm.n.div_ceil(32));
        Self::choose_with(gemm, sms, sms >= DEEP_FROM_SMS && !has_leftovers, gpu)
    }

    /// The same of products whose columns are heads.
    pub(super) fn choose_rotary(gemm: &Gemm, sms: Sms, gpu: &Topology) -> Option<Self> {
        // Of a second round few SMs would have a block; then two on each do all at once. A chain of such products loses by it, since the next one's
        // blocks fill the other SMs, but attention's, which come next in a decoder, are few.
        let has_two_rounds = (sms.get() + 1..=2 * sms.get()).contains(&gemm.n.div_ceil(32));
        Self::choose_with(gemm, sms, sms >= DEEP_FROM_SMS && !has_two_rounds, gpu)
    }

    /// `deep`: blocks that share k have an SM to themselves.
    fn choose_with(gemm: &Gemm, sms: Sms, deep: bool, gpu: &Topology) -> Option<Self> {
        let skinny = Self::of_whole_tiles(gemm, deep, gpu)?;
        let halved = match skinny {
            Self::EightPair => Self::EightHalves,
            Self::EightDeepPair => Self::EightDeepHalves,
            other => other,
        };
        let has_many_rounds = deep && gemm.n.div_ceil(32) > 2 * sms.get();
        let halves = (gemm.n <= MOST_HALVED_COLUMNS || has_many_rounds) && halved.fits(gemm, gpu);
        Some(if halves { halved } else { skinny })
    }

    /// Whether warpgroup kernels do as well: with as many rows of `A` as their tiles have, what is left of the differences is that two blocks may share k, which
    /// pays where k is long, and that rows are normed on the way.
    fn leaves_to_warpgroups(gemm: &Gemm, gpu: &Topology) -> bool {
        let gains_by_sharing = gemm.k >= LONG_K_OF_MANY_ROWS && Self::wants_shared_k(gemm);
        gemm.m > 32 && !gains_by_sharing && gemm.row_norm.is_none() && Warpgroup::can_do(gemm, gpu)
    }

    /// Whether two halves of k are added up apart.
    fn wants_shared_k(gemm: &Gemm) -> bool {
        let always = gemm.m <= MOST_ROWS_ALWAYS_SHARED && gemm.k >= ALWAYS_SHARED_K;
        always || gemm.n.div_ceil(64) <= MOST_SHARED_TILES
    }

    /// Without halves; `deep` as above.
    fn of_whole_tiles(gemm: &Gemm, deep: bool, gpu: &Topology) -> Option<Self> {
        let [single, pair, deep_pair] = match gemm.m {
            ..=8 => [Self::Eight, Self::EightPair, Self::EightDeepPair],
            9..=16 => [Self::Sixteen, Self::SixteenPair, Self::SixteenDeepPair],
            17..=32 => [Self::ThirtyTwo, Self::ThirtyTwoPair, Self::ThirtyTwoDeepPair],
            _ => [Self::SixtyFour, Self::SixtyFourPair, Self::SixtyFourDeepPair],
        };
        let skinny = match (Self::wants_shared_k(gemm), deep) {
            (false, _) => single,
            (true, false) => pair,
            (true, true) => deep_pair,
        };
        Some(skinny).filter(|skinny| skinny.fits(gemm, gpu))
    }

    fn fits(self, gemm: &Gemm, gpu: &Topology) -> bool {
        self.can_do(gemm, gpu) && Variant::Skinny(self).blocks_per_sm(gpu) > 0
    }

    /// Whether problems like `gemm`, with rows that are normed or columns that are heads, are done here, however many SMs there are.
    pub(super) fn is_chosen_at_any_sms(gemm: &Gemm, gpu: &Topology) -> bool {
        [false, true].into_iter().all(|deep| Self::of_whole_tiles(gemm, deep, gpu).is_some())
    }

    /// Whether the kernel is right for the problem, quick or not.
    pub fn can_do(self, gemm: &Gemm, gpu: &Topology) -> bool {
        let can_halve = self.shape().parts == 1 || gemm.k.is_multiple_of(HALVED_K);
        can_halve && gemm.is_aligned() && gemm.m <= self.rows() && gpu.compute_capability == (9, 0)
    }

    const fn shape(self) -> Shape {
        let (rows, pair, groups, k_blocks, stages, blocks_per_sm, parts) = match self {
            Self::Eight => (8, 1, 1, 4, 3, 2, 1),
            Self::EightPair => (8, 2, 1, 4, 3, 2, 1),
            Self::EightDeepPair => (8, 2, 1, 4, 6, 1, 1),
            Self::EightHalves => (8, 1, 1, 2, 5, 2, 2),
            Self::EightDeepHalves => (8, 1, 1, 4, 5, 1, 2),
            Self::Sixteen => (16, 1, 1, 2, 5, 2, 1),
            Self::SixteenPair => (16, 2, 1, 2, 5, 2, 1),
            Self::SixteenDeepPair => (16, 2, 1, 4, 5, 1, 1),
            Self::ThirtyTwo => (32, 1, 2, 2, 5, 1, 1),
            Self::ThirtyTwoPair => (32, 2, 1, 2, 4, 2, 1),
            Self::ThirtyTwoDeepPair => (32, 2, 1, 4, 4, 1, 1),
            Self::SixtyFour => (64, 1, 2, 2, 3, 1, 1),
            Self::SixtyFourPair => (64, 2, 2, 2, 3, 1, 1),
            Self::SixtyFourDeepPair => (64, 2, 1, 2, 6, 1, 1),
        };
        Shape { rows, pair, groups, k_blocks, stages, blocks_per_sm, parts }
    }

    /// Whether two halves of k are added up apart, by two blocks or by one: the order of additions of all kernels that do is the same.
    pub const fn shares_k(self) -> bool {
        self.shape().pair * self.shape().parts > 1
    }

    /// Most rows of `A`.
    pub const fn rows(self) -> u32 {
        self.shape().rows
    }

    /// Whether the problem, which `other` does, may as well be done by this: with the same bits, however many blocks do it and how deep their rings are.
    pub(super) fn can_stand_in_for(self, other: Self, gemm: &Gemm, gpu: &Topology) -> bool {
        (self.rows(), self.shares_k()) == (other.rows(), other.shares_k()) && self.fits(gemm, gpu)
    }

    /// What profiles call it.
    pub(super) fn name(self) -> &'static str {
        self.symbol().trim_start_matches("gemm_")
    }

    /// The entry point, for every epilogue.
    pub(super) const fn symbol(self) -> &'static str {
        self.symbols()[0]
    }

    /// The same, and that of products whose columns are heads.
    const fn symbols(self) -> [&'static str; 2] {
        macro_rules! with_rotary {
            ($name:literal) => {
                [concat!("gemm_skinny_", $name), concat!("gemm_skinny_", $name, "_rotary")]
            };
        }
        match self {
            Self::Eight => with_rotary!("8x64"),
            Self::EightPair => with_rotary!("8x64_pair"),
            Self::EightDeepPair => with_rotary!("8x64_deep_pair"),
            Self::EightHalves => with_rotary!("8x32_halves"),
            Self::EightDeepHalves => with_rotary!("8x32_deep_halves"),
            Self::Sixteen => with_rotary!("16x64"),
            Self::SixteenPair => with_rotary!("16x64_pair"),
            Self::SixteenDeepPair => with_rotary!("16x64_deep_pair"),
            Self::ThirtyTwo => with_rotary!("32x128"),
            Self::ThirtyTwoPair => with_rotary!("32x64_pair"),
            Self::ThirtyTwoDeepPair => with_rotary!("32x64_deep_pair"),
            Self::SixtyFour => with_rotary!("64x128"),
            Self::SixtyFourPair => with_rotary!("64x128_pair"),
            Self::SixtyFourDeepPair => with_rotary!("64x64_deep_pair"),
        }
    }

    /// Threads of a block: consumers, the producer's warp and the one that takes tiles.
    pub(super) const fn threads(self) -> u32 {
        128 * self.shape().groups + 64
    }

    /// Stages of `B` that a block has asked for and not got, at most. Where the launch has the GPU to itself, nobody minds.
    fn stages_under_way(self, sms: Sms, gpu: &Topology) -> u32 {
        let Shape { groups, k_blocks, stages, .. } = self.shape();
        if sms >= gpu.sms {
            return stages;
        }
        let blocks_per_sm = Variant::Skinny(self).blocks_per_sm(gpu).max(1);
        let stage = k_blocks * 64 * groups * 128;
        let share = sms.get().max(1) * blocks_per_sm * stage;
        ((BYTES_UNDER_WAY + share / 2) / share).max(LEAST_STAGES_OF_SM.div_ceil(blocks_per_sm)).min(stages)
    }

    /// Dynamic shared memory of a block, bytes: stages, the sums of a tile, barriers, and what aligns them.
    pub(super) const fn shared_bytes(self) -> u32 {
        let Shape { rows, pair, groups, k_blocks, stages, parts, .. } = self.shape();
        let ring = stages * k_blocks * (64 * groups + parts * rows) * 128;
        let sums = rows * (64 + 4) * 4;
        let squares = pair * parts * if rows > 16 { rows } else { 16 } * 4;
        1024 + ring + groups * (sums + squares) + (2 * stages + 2) * 8 + TILE_BOARD_BYTES + ACQUAINTANCE_BYTES
    }

    /// Blocks for which an SM has registers: the kernels' launch bounds.
    pub(super) const fn blocks_by_registers(self) -> u32 {
        self.shape().blocks_per_sm
    }

    /// Rows and columns of a tile.
    pub(super) const fn tile(self) -> (u32, u32) {
        (self.rows(), 64 / self.shape().parts * self.shape().groups)
    }

    /// Tiles that the launch counts.
    pub(super) fn tiles(self, gemm: &Gemm) -> u32 {
        gemm.n.div_ceil(self.tile().1)
    }

    /// The launch of a problem that [`can_do`](Self::can_do) allows, on a GPU where a block fits.
    pub(super) fn launch(self, gemm: &Gemm, sms: Sms, gpu: &Topology) -> Launch {
        let b = self.operand(gemm.b, [gemm.n, gemm.k], gemm.ldb, self.tile().1);
        self.launch_with(self.symbol(), Params::new(self.args(gemm, sms, gpu)), b, gemm, sms, gpu)
    }

    /// The launch of a product whose columns are heads, of sizes that [`PAIRS_OF_TILE`] divides half of.
    pub(super) fn launch_rotary(self, gemm: &Gemm, rotary: &Rotary, sms: Sms, gpu: &Topology) -> Launch {
        let half_head = rotary.heads.head_dim / 2;
        let matrix = self.operand(gemm.b, [gemm.n, gemm.k], gemm.ldb, PAIRS_OF_TILE / self.shape().parts);
        // Rows of a lower half, of the same head the rows of the upper half that they are turned with, and of both the halves of k if there are any.
        let b = TensorMap {
            dimensions: matrix.dimensions + 1,
            sizes: [matrix.sizes[0], matrix.sizes[1] - u64::from(half_head), 2, matrix.sizes[2]],
            strides: [matrix.strides[0], matrix.strides[0] * u64::from(half_head), matrix.strides[1]],
            tile: [matrix.tile[0], matrix.tile[1], 2, matrix.tile[2]],
            ..matrix
        };
        let params = Params::new(abi::SkinnyQkvArgs { product: self.args(gemm, sms, gpu), rotary: rotary.args() });
        self.launch_with(self.symbols()[1], params, b, gemm, sms, gpu)
    }

    /// Tiles of `tile_rows` rows and 64 columns of an operand; in halves, of these rows in both halves of its columns.
    fn operand(self, ptr: DevicePtr, extents: [u32; 2], stride: u32, tile_rows: u32) -> TensorMap {
        let whole = TensorMap::matrix(ptr, Element::F16, extents, stride, [tile_rows, 64], Swizzle::Bytes128);
        if self.shape().parts == 1 {
            return whole;
        }
        let [rows, half] = [u64::from(extents[0]), u64::from(extents[1] / 2)];
        TensorMap {
            dimensions: 3,
            sizes: [half, rows, 2, 1],
            strides: [whole.strides[0], Element::F16.bytes() * half, 0],
            tile: [64, tile_rows, 2, 1],
            ..whole
        }
    }

    /// The rows of `A`, as copies of a block of 64 columns. In halves, blocks are a dimension of their own: a copy brings a stage's, of both halves, which are
    /// whole blocks.
    fn stages_of_a(self, gemm: &Gemm) -> TensorMap {
        let matrix = self.operand(gemm.a, [gemm.m, gemm.k], gemm.lda, self.rows());
        if self.shape().parts == 1 {
            return matrix;
        }
        TensorMap {
            dimensions: 4,
            sizes: [64, matrix.sizes[1], 2, matrix.sizes[0] / 64],
            strides: [matrix.strides[0], matrix.strides[1], 64 * Element::F16.bytes()],
            tile: [64, matrix.tile[1], 2, self.shape().k_blocks],
            ..matrix
        }
    }

    /// Without the tensor maps.
    fn args(self, gemm: &Gemm, sms: Sms, gpu: &Topology) -> abi::SkinnyGemmArgs {
        const UNUSED: abi::TensorMap = abi::TensorMap { opaque: [0; 16] };
        abi::SkinnyGemmArgs {
            a: UNUSED,
            b: UNUSED,
            gemm: gemm.args(),
            norms_rows: u32::from(gemm.row_norm.is_some()),
            epsilon: gemm.row_norm.map_or(0.0, |norm| norm.epsilon),
            stages_under_way: self.stages_under_way(sms, gpu),
        }
    }

    /// `params` are, or begin with, a `SkinnyGemmArgs`.
    fn launch_with(self, symbol: &'static str, params: Params, b: TensorMap, gemm: &Gemm, sms: Sms, gpu: &Topology) -> Launch {
        use abi::SkinnyGemmArgs as Args;
        const { assert!(offset_of!(abi::SkinnyQkvArgs, product) == 0) };
        let blocks_per_sm = Variant::Skinny(self).blocks_per_sm(gpu);
        let tiles = self.tiles(gemm);
        // A pair needs two SMs, or the room of two blocks on one.
        let workers = (sms.get() * blocks_per_sm / self.shape().pair).max(1);
        Launch {
            symbol,
            grid: tiles.clamp(1, workers) * self.shape().pair,
            block: self.threads(),
            shared_bytes: self.shared_bytes(),
            blocks_per_sm,
            tiles,
            blocks_per_tile: self.shape().pair,
            // Of a tile to each worker none is given back.
            elastic: self.predicted_us(gemm, sms) > LONG_US && tiles > workers,
            programmatic: true,
            begins_by_number: true,
            params: params.with_tensor_maps([(offset_of!(Args, a), self.stages_of_a(gemm)), (offset_of!(Args, b), b)]),
        }
    }

    /// How long the launch will take on `sms` SMs, roughly, microseconds.
    fn predicted_us(self, gemm: &Gemm, sms: Sms) -> f64 {
        let Shape { rows, groups, .. } = self.shape();
        let share_of_b = f64::from(64 * groups) / f64::from(64 * groups + rows);
        let megabytes = f64::from(gemm.n) * f64::from(gemm.k) * 2e-6;
        megabytes * 1e3 / GB_PER_SECOND.min(GB_PER_SECOND_OF_SM * share_of_b * f64::from(sms.get()))
    }
}

#[cfg(test)]
#[path = "skinny_tests.rs"]
mod tests;
