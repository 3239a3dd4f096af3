//! GEMM of few rows, the decode step's: which kernel of `skinny.cuh` does a problem, and its launch.
//!
//! The time is that of reading `B` once. Whether two blocks share k changes the order of additions, so it follows from the problem alone; how deep their rings
//! are does not, and follows from the SM count.

use std::fmt;
use std::mem::offset_of;

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Element, Launch, Params, Swizzle, TensorMap};

use super::super::attention::Rotary;
use super::warpgroup::TILE_BOARD_BYTES;
use super::{Gemm, Variant, abi};

/// Tiles up to which two blocks share k: with fewer, SMs would be idle.
const MOST_SHARED_TILES: u32 = 128;

/// Columns of k from which two blocks share them whatever the tiles: one block would be long over its last tile.
const ALWAYS_SHARED_K: u32 = 4096;

/// SMs from which a pair's blocks have one each: the memory's rate is then divided among so many that one block takes in its part.
const DEEP_FROM_SMS: Sms = Sms(60);

/// Pairs of a head that are in one tile of a product whose columns are heads.
pub(super) const PAIRS_OF_TILE: u32 = 32;

/// How long a launch must be to poll the grant, microseconds.
const LONG_US: f64 = 25.0;

/// Rates at which weights arrive, measured on an H200 (docs/kernels/skinny-gemm.md), GB/s: of one SM, and of the memory.
const GB_PER_SECOND_OF_SM: f64 = 95.0;
const GB_PER_SECOND: f64 = 4200.0;

/// A kernel of `skinny.cu`: for up to 8, 16 or 32 rows of `A`, padded with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Skinny {
    rows: Rows,
    blocks: Blocks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Rows {
    Eight,
    Sixteen,
    ThirtyTwo,
}

/// Who does a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Blocks {
    /// One block.
    Single,
    /// Two that share k.
    Pair,
    /// The same, each with the whole of an SM's shared memory.
    DeepPair,
}

/// The figures of a shape: those of its `SkinnyShape` in `skinny.cu`.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Consumers, each with 64 columns of `C`.
    groups: u32,
    /// Blocks of 64 columns of k in a stage.
    k_blocks: u32,
    stages: u32,
    /// The kernel's launch bound.
    blocks_per_sm: u32,
}

impl Rows {
    const fn count(self) -> u32 {
        match self {
            Self::Eight => 8,
            Self::Sixteen => 16,
            Self::ThirtyTwo => 32,
        }
    }
}

impl fmt::Display for Skinny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, columns) = self.tile();
        let blocks = match self.blocks {
            Blocks::Single => "",
            Blocks::Pair => " in pairs",
            Blocks::DeepPair => " in deep pairs",
        };
        write!(f, "Skinny{rows}x{columns}{blocks}")
    }
}

impl Skinny {
    /// Every kernel, by rows, single blocks first.
    pub const ALL: [Self; 9] = {
        const ROWS: [Rows; 3] = [Rows::Eight, Rows::Sixteen, Rows::ThirtyTwo];
        const BLOCKS: [Blocks; 3] = [Blocks::Single, Blocks::Pair, Blocks::DeepPair];
        let mut all = [Self { rows: Rows::Eight, blocks: Blocks::Single }; 9];
        let mut at = 0;
        while at < all.len() {
            all[at] = Self { rows: ROWS[at / 3], blocks: BLOCKS[at % 3] };
            at += 1;
        }
        all
    };

    /// The kernel for `gemm`; none if it has too many rows, or rows that do not begin on 16 bytes, or if the GPU is no Hopper.
    pub(super) fn choose(gemm: &Gemm, sms: Sms, gpu: &Topology) -> Option<Self> {
        let rows = match gemm.m {
            ..=8 => Rows::Eight,
            9..=16 => Rows::Sixteen,
            _ => Rows::ThirtyTwo,
        };
        let shares_k = gemm.n.div_ceil(64) <= MOST_SHARED_TILES || gemm.k >= ALWAYS_SHARED_K;
        let blocks = match shares_k {
            false => Blocks::Single,
            true if sms < DEEP_FROM_SMS => Blocks::Pair,
            true => Blocks::DeepPair,
        };
        let skinny = Self { rows, blocks };
        let fits = |skinny: &Self| skinny.can_do(gemm, gpu) && Variant::Skinny(*skinny).blocks_per_sm(gpu) > 0;
        Some(skinny).filter(fits)
    }

    /// Whether problems like `gemm` are done here, however many SMs there are.
    pub(super) fn is_chosen_at_any_sms(gemm: &Gemm, gpu: &Topology) -> bool {
        [Sms(1), DEEP_FROM_SMS].into_iter().all(|sms| Self::choose(gemm, sms, gpu).is_some())
    }

    pub(super) fn can_do(self, gemm: &Gemm, gpu: &Topology) -> bool {
        gemm.is_aligned() && gemm.m <= self.rows.count() && gpu.compute_capability == (9, 0)
    }

    const fn shape(self) -> Shape {
        let (groups, k_blocks, stages, blocks_per_sm) = match (self.rows, self.blocks) {
            (Rows::Eight, Blocks::Single | Blocks::Pair) => (1, 4, 3, 2),
            (Rows::Eight, Blocks::DeepPair) => (1, 4, 6, 1),
            (Rows::Sixteen, Blocks::Single | Blocks::Pair) => (1, 2, 5, 2),
            (Rows::Sixteen, Blocks::DeepPair) => (1, 4, 5, 1),
            (Rows::ThirtyTwo, Blocks::Single) => (2, 2, 5, 1),
            (Rows::ThirtyTwo, Blocks::Pair) => (1, 2, 4, 2),
            (Rows::ThirtyTwo, Blocks::DeepPair) => (1, 4, 4, 1),
        };
        Shape { groups, k_blocks, stages, blocks_per_sm }
    }

    /// Whether two blocks share k, each with a half: the order of additions of all kernels that do is the same.
    pub const fn shares_k(self) -> bool {
        self.blocks_in_pair() > 1
    }

    const fn blocks_in_pair(self) -> u32 {
        match self.blocks {
            Blocks::Single => 1,
            Blocks::Pair | Blocks::DeepPair => 2,
        }
    }

    /// Most rows of `A`.
    pub const fn rows(self) -> u32 {
        self.rows.count()
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
        match (self.rows, self.blocks) {
            (Rows::Eight, Blocks::Single) => with_rotary!("8x64"),
            (Rows::Eight, Blocks::Pair) => with_rotary!("8x64_pair"),
            (Rows::Eight, Blocks::DeepPair) => with_rotary!("8x64_deep_pair"),
            (Rows::Sixteen, Blocks::Single) => with_rotary!("16x64"),
            (Rows::Sixteen, Blocks::Pair) => with_rotary!("16x64_pair"),
            (Rows::Sixteen, Blocks::DeepPair) => with_rotary!("16x64_deep_pair"),
            (Rows::ThirtyTwo, Blocks::Single) => with_rotary!("32x128"),
            (Rows::ThirtyTwo, Blocks::Pair) => with_rotary!("32x64_pair"),
            (Rows::ThirtyTwo, Blocks::DeepPair) => with_rotary!("32x64_deep_pair"),
        }
    }

    /// Threads of a block: consumers, the producer's warp and the one that takes tiles.
    pub(super) const fn threads(self) -> u32 {
        128 * self.shape().groups + 64
    }

    /// Dynamic shared memory of a block, bytes: stages, the sums of a tile, barriers, and what aligns them.
    pub(super) const fn shared_bytes(self) -> u32 {
        let shape = self.shape();
        let rows = self.rows.count();
        let stages = shape.stages * shape.k_blocks * (64 * shape.groups + rows) * 128;
        let sums = rows * (64 + 4) * 4;
        let squares = self.blocks_in_pair() * if rows > 16 { rows } else { 16 } * 4;
        1024 + stages + shape.groups * (sums + squares) + (2 * shape.stages + 2) * 8 + TILE_BOARD_BYTES + 8
    }

    /// Blocks for which an SM has registers: the kernels' launch bounds.
    pub(super) const fn blocks_by_registers(self) -> u32 {
        self.shape().blocks_per_sm
    }

    /// Rows and columns of a tile.
    pub(super) const fn tile(self) -> (u32, u32) {
        (self.rows.count(), 64 * self.shape().groups)
    }

    /// Tiles that the launch counts.
    pub(super) fn tiles(self, gemm: &Gemm) -> u32 {
        gemm.n.div_ceil(self.tile().1)
    }

    /// The launch of a problem that [`can_do`](Self::can_do) allows, on a GPU where a block fits.
    pub(super) fn launch(self, gemm: &Gemm, sms: Sms, gpu: &Topology) -> Launch {
        let b = operand(gemm.b, [gemm.n, gemm.k], gemm.ldb, self.tile().1);
        self.launch_with(self.symbol(), Params::new(args(gemm)), b, gemm, sms, gpu)
    }

    /// The launch of a product whose columns are heads, of sizes that [`PAIRS_OF_TILE`] divides half of.
    pub(super) fn launch_rotary(self, gemm: &Gemm, rotary: &Rotary, sms: Sms, gpu: &Topology) -> Launch {
        let half = rotary.heads.head_dim / 2;
        let stride = 2 * u64::from(gemm.ldb);
        // Rows of a lower half, and of each head the rows of the upper half that they are turned with.
        let b = TensorMap {
            dimensions: 3,
            sizes: [u64::from(gemm.k), u64::from(gemm.n - half), 2, 1],
            strides: [stride, stride * u64::from(half), 0],
            tile: [64, PAIRS_OF_TILE, 2, 1],
            ..operand(gemm.b, [gemm.n, gemm.k], gemm.ldb, 0)
        };
        let params = Params::new(abi::SkinnyQkvArgs { product: args(gemm), rotary: rotary.args() });
        self.launch_with(self.symbols()[1], params, b, gemm, sms, gpu)
    }

    /// `params` are, or begin with, a `SkinnyGemmArgs`.
    fn launch_with(self, symbol: &'static str, params: Params, b: TensorMap, gemm: &Gemm, sms: Sms, gpu: &Topology) -> Launch {
        use abi::SkinnyGemmArgs as Args;
        const { assert!(offset_of!(abi::SkinnyQkvArgs, product) == 0) };
        let blocks_per_sm = Variant::Skinny(self).blocks_per_sm(gpu);
        let tiles = self.tiles(gemm);
        // A pair needs two SMs, or the room of two blocks on one.
        let workers = (sms.get() * blocks_per_sm / self.blocks_in_pair()).max(1);
        let a = operand(gemm.a, [gemm.m, gemm.k], gemm.lda, self.rows());
        Launch {
            symbol,
            grid: tiles.clamp(1, workers) * self.blocks_in_pair(),
            block: self.threads(),
            shared_bytes: self.shared_bytes(),
            blocks_per_sm,
            tiles,
            blocks_per_tile: self.blocks_in_pair(),
            elastic: predicted_us(gemm, sms) > LONG_US,
            programmatic: true,
            params: params.with_tensor_maps([(offset_of!(Args, a), a), (offset_of!(Args, b), b)]),
        }
    }
}

/// Without the tensor maps.
fn args(gemm: &Gemm) -> abi::SkinnyGemmArgs {
    const UNUSED: abi::TensorMap = abi::TensorMap { opaque: [0; 16] };
    abi::SkinnyGemmArgs {
        a: UNUSED,
        b: UNUSED,
        gemm: gemm.args(),
        norms_rows: u32::from(gemm.row_norm.is_some()),
        epsilon: gemm.row_norm.map_or(0.0, |norm| norm.epsilon),
    }
}

/// Tiles of `tile_rows` rows and 64 columns of an operand.
fn operand(ptr: DevicePtr, extents: [u32; 2], stride: u32, tile_rows: u32) -> TensorMap {
    TensorMap::matrix(ptr, Element::F16, extents, stride, [tile_rows, 64], Swizzle::Bytes128)
}

/// How long the launch will take on `sms` SMs, roughly, microseconds.
fn predicted_us(gemm: &Gemm, sms: Sms) -> f64 {
    let megabytes = f64::from(gemm.n) * f64::from(gemm.k) * 2e-6;
    megabytes * 1e3 / GB_PER_SECOND.min(GB_PER_SECOND_OF_SM * f64::from(sms.get()))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::h200;
    use super::super::Epilogue;
    use super::*;

    fn gemm(shape: [u32; 3]) -> Gemm {
        Gemm::new(shape, DevicePtr(256), DevicePtr(512), DevicePtr(1024), Epilogue::NONE)
    }

    fn choose(shape: [u32; 3], sms: u16) -> Skinny {
        Skinny::choose(&gemm(shape), Sms(sms), &h200()).expect("few rows")
    }

    const SHAPES: [[u32; 3]; 9] = [
        [1, 2048, 2048],
        [8, 3072, 2048],
        [8, 1, 8],
        [7, 32_000, 4096],
        [16, 4096, 4096],
        [32, 4096, 14_336],
        [32, 2048, 2048],
        [17, 28_672, 4096],
        [32, 128_256, 2048],
    ];

    #[test]
    fn the_order_of_additions_does_not_depend_on_the_sm_count() {
        for shape in SHAPES {
            let order = |sms| {
                let skinny = choose(shape, sms);
                (skinny.rows, skinny.blocks_in_pair())
            };
            for sms in 1..=132 {
                assert_eq!(order(sms), order(132), "{shape:?} at {sms} SMs");
            }
        }
    }

    #[test]
    fn tiles_cover_every_column_and_a_grid_is_whole_pairs() {
        for shape in SHAPES {
            for sms in [1, 2, 8, 31, 32, 66, 131, 132] {
                let skinny = choose(shape, sms);
                let launch = skinny.launch(&gemm(shape), Sms(sms), &h200());
                assert_eq!(launch.tiles, shape[1].div_ceil(skinny.tile().1), "{shape:?}");
                assert!(launch.grid.is_multiple_of(skinny.blocks_in_pair()), "{shape:?} at {sms} SMs: {launch:?}");
                assert!(launch.grid <= launch.tiles * skinny.blocks_in_pair(), "{shape:?} at {sms} SMs: {launch:?}");
            }
        }
    }

    #[test]
    fn few_tiles_share_k_and_many_do_not() {
        assert_eq!(choose([8, 2048, 2048], 132).blocks, Blocks::DeepPair);
        assert_eq!(choose([8, 2048, 2048], 32).blocks, Blocks::Pair);
        assert_eq!(choose([8, 16_384, 2048], 132).blocks, Blocks::Single);
    }

    #[test]
    fn long_launches_poll_the_grant_and_short_ones_do_not() {
        let elastic = |shape, sms| choose(shape, sms).launch(&gemm(shape), Sms(sms), &h200()).elastic;
        assert!(elastic([8, 128_256, 2048], 132));
        assert!(!elastic([8, 2048, 2048], 132));
        assert!(elastic([8, 2048, 2048], 2));
    }
}
