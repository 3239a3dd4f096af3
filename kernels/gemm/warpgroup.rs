//! The Hopper kernels of `warpgroup.cuh`: their shapes, what one needs of an SM, how long it takes, and its launch.
//!
//! All shapes add in the same order and give the same bits, so the one with the least predicted time on the granted SMs does the problem. They
//! take matrices whose rows all begin on 16 bytes, `C` and the residual included, since the copy engine reads and writes them.

use std::mem::offset_of;

use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::{Element, Launch, Params, Swizzle, TensorMap};

use super::super::abi;
use super::{Epilogue, Gemm, Residual};

/// How much longer pairs of blocks may be predicted to take. Beside a prefill of Mistral-7B on 66 SMs with pairs everywhere, a decode step of Llama-3.2-1B on the other 66 had a p99
/// of 1.41 ms instead of 1.57, and the prefill took 446 ms instead of 441; on all 132 SMs, alone, 207 instead of 212.
const NEARLY_AS_QUICK: f64 = 1.15;
const MANY_ROUNDS: u64 = 3;

/// A compiled shape, by the tile of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Warpgroup {
    /// 128 x 256, in pairs of blocks.
    Tile128x256,
    /// 128 x 192.
    Tile128x192,
    /// 128 x 160.
    Tile128x160,
    /// 128 x 128, two tiles in turn.
    Tile128x128,
    /// 128 x 96.
    Tile128x96,
    /// 64 x 128.
    Tile64x128,
    /// 64 x 96.
    Tile64x96,
    /// 64 x 64.
    Tile64x64,
}

/// The figures of a shape: those of its `WarpgroupShape`, in the `.cu` file of its name.
struct Shape {
    blocks_in_pair: u32,
    rows: u32,
    columns: u32,
    /// Blocks of 64 columns of `A` and `B` in one stage.
    k_blocks: u32,
    stages: u32,
    consumers: u32,
    takes_turns: bool,
}

impl Shape {
    const fn new(rows: u32, columns: u32, k_blocks: u32, stages: u32, consumers: u32) -> Self {
        Self { blocks_in_pair: 1, rows, columns, k_blocks, stages, consumers, takes_turns: false }
    }

    /// Columns of the product that leave a block together.
    const fn slice(&self, epilogue: Epilogue) -> u32 {
        if self.columns.is_multiple_of(64) && !matches!(epilogue, Epilogue::PlainF32 { .. }) { 64 } else { 32 }
    }

    /// Stages, two staged slices and a bias for each consumer, barriers, and what aligns them.
    const fn shared_bytes(&self) -> u32 {
        let stages = self.stages * self.k_blocks * (self.rows + self.columns) * 128;
        let epilogue = self.consumers * (2 * 64 * 128 + self.columns * 2);
        let barriers = 2 * self.stages + 3 * self.consumers;
        1024 + stages + epilogue + barriers * 8 + TILE_BOARD_BYTES + ACQUAINTANCE_BYTES
    }

    /// Tiles along m and n. Of a pair's two, one lies below the other, or beside it if `shares_a`; together they count as one.
    fn tiles(&self, gemm: &Gemm, shares_a: bool) -> u64 {
        let (down, across) = if shares_a { (1, self.blocks_in_pair) } else { (self.blocks_in_pair, 1) };
        u64::from(gemm.m.div_ceil(self.rows * down)) * u64::from(gemm.n.div_ceil(self.columns * across))
    }
}

/// What `tile_board.cuh` needs of shared memory: for the board, and for what a worker's blocks tell each other of their SMs.
pub(super) const TILE_BOARD_BYTES: u32 = 4 * (8 + 8 + 4) + 4 * 8 + 4;
pub(super) const ACQUAINTANCE_BYTES: u32 = 4;

/// Shared memory of an SM of compute capability 9.0, of which the largest shape needs nearly all.
const SM_SHARED_BYTES: u32 = 228 * 1024;

/// Cycles in a microsecond at the clock that an H200 holds under these kernels. This and the figures of `predicted_cycles` were fitted to every shape's time
/// for eight products of BERT at seven SM counts, on an H200, 2026-11-22, and to the choice that was quickest for the large ones; docs/kernels/gemm.md has them.
const CYCLES_PER_MICROSECOND: f64 = 1900.0;

/// Launch, prologue and the first loads' way from memory.
const LAUNCH_CYCLES: f64 = 4500.0;

/// What a launch of pairs takes longer.
const PAIRS_LAUNCH_CYCLES: f64 = 2500.0;

/// A launch that takes longer polls its grant: one that is over sooner gives its SMs back as fast by ending.
const ELASTIC_FROM_MICROSECONDS: f64 = 20.0;

impl Warpgroup {
    /// Every shape.
    pub const ALL: [Self; 8] = [
        Self::Tile128x256,
        Self::Tile128x192,
        Self::Tile128x160,
        Self::Tile128x128,
        Self::Tile128x96,
        Self::Tile64x128,
        Self::Tile64x96,
        Self::Tile64x64,
    ];

    const fn shape(self) -> Shape {
        match self {
            Self::Tile128x256 => Shape { blocks_in_pair: 2, ..Shape::new(128, 256, 1, 4, 2) },
            Self::Tile128x192 => Shape::new(128, 192, 1, 4, 2),
            Self::Tile128x160 => Shape::new(128, 160, 1, 5, 2),
            Self::Tile128x128 => Shape { takes_turns: true, ..Shape::new(128, 128, 1, 6, 2) },
            Self::Tile128x96 => Shape::new(128, 96, 1, 6, 2),
            Self::Tile64x128 => Shape::new(64, 128, 1, 8, 1),
            Self::Tile64x96 => Shape::new(64, 96, 2, 5, 1),
            Self::Tile64x64 => Shape::new(64, 64, 2, 6, 1),
        }
    }

    /// Whether the kernels run on `gpu` and are right for the problem: the same for every shape. Rows of `C` must also end on 16 bytes: the
    /// copy engine would round the last bytes up, into what lies between two rows.
    pub(super) fn can_do(gemm: &Gemm, gpu: &Topology) -> bool {
        let runs_here = gpu.compute_capability == (9, 0) && gpu.shared_bytes_per_sm >= SM_SHARED_BYTES;
        let on_16_bytes = if matches!(gemm.epilogue, Epilogue::PlainF32 { .. }) { 4 } else { 8 };
        let c_is_aligned = gemm.c.0.is_multiple_of(16) && (gemm.ldc | gemm.c_columns()).is_multiple_of(on_16_bytes);
        let residual_is_aligned =
            gemm.residual().is_none_or(|residual| residual.ptr.0.is_multiple_of(16) && residual.stride.is_multiple_of(8));
        runs_here && gemm.is_aligned() && c_is_aligned && residual_is_aligned
    }

    /// The shape with the least predicted time, or pairs where they are nearly as quick and the last round counts for little: they ask L2 for half as much, which
    /// is what neighbours have to wait for.
    pub(super) fn choose(gemm: &Gemm, sms: Sms) -> Self {
        if Self::prefers_pairs(gemm, sms) { Self::Tile128x256 } else { Self::by_predicted_time(gemm, sms)[0] }
    }

    /// Whether pairs are chosen for the sake of neighbours, whether or not they are the quickest.
    pub(super) fn prefers_pairs(gemm: &Gemm, sms: Sms) -> bool {
        let pairs = Self::Tile128x256;
        let many_rounds = pairs.tiles(gemm) >= MANY_ROUNDS * u64::from(sms.get() / 2);
        let quickest = Self::by_predicted_time(gemm, sms)[0];
        many_rounds && pairs.predicted_cycles(gemm, sms) <= NEARLY_AS_QUICK * quickest.predicted_cycles(gemm, sms)
    }

    /// Every shape, the one that is predicted to be quickest first.
    pub(super) fn by_predicted_time(gemm: &Gemm, sms: Sms) -> [Self; 8] {
        let mut shapes = Self::ALL;
        shapes.sort_by(|a, b| a.predicted_cycles(gemm, sms).total_cmp(&b.predicted_cycles(gemm, sms)));
        shapes
    }

    /// Tiles that the launch counts: pairs of them where blocks work in pairs.
    pub(super) fn tiles(self, gemm: &Gemm) -> u64 {
        self.shape().tiles(gemm, self.shares_a(gemm))
    }

    /// Rows and columns of a block's tile.
    pub(super) const fn tile(self) -> (u32, u32) {
        let shape = self.shape();
        (shape.rows, shape.columns)
    }

    /// Dynamic shared memory of a block, bytes.
    pub(super) const fn shared_bytes(self) -> u32 {
        self.shape().shared_bytes()
    }

    /// Whether a pair's tiles lie side by side: where that leaves fewer of them without work.
    fn shares_a(self, gemm: &Gemm) -> bool {
        let shape = self.shape();
        shape.blocks_in_pair > 1 && shape.tiles(gemm, true) < shape.tiles(gemm, false)
    }

    /// Cycles of the busiest SM. A step of 64 columns takes as long as its multiplications, or its bytes at what an SM gets of L2, or the
    /// hand-over of a stage; an epilogue is hidden behind the next tile where consumers take turns.
    fn predicted_cycles(self, gemm: &Gemm, sms: Sms) -> f64 {
        let shape = self.shape();
        let tiles = self.tiles(gemm);
        let workers = u64::from(sms.get() / shape.blocks_in_pair).max(1);
        let rounds = tiles.div_ceil(workers) as f64;
        let busy_sms = (tiles.min(workers) * u64::from(shape.blocks_in_pair)) as f64;

        let (rows, columns) = (f64::from(shape.rows), f64::from(shape.columns));
        let multiply = rows * columns * 64.0 / 2048.0;
        let fetched = if shape.blocks_in_pair > 1 { rows + columns / 2.0 } else { rows + columns };
        let fetch = fetched * 128.0 / (75.0 - 0.11 * busy_sms);
        let hand_over = if shape.k_blocks > 1 { 150.0 } else { 310.0 };
        let main = f64::from(gemm.k.div_ceil(64)) * multiply.max(fetch).max(hand_over);

        let elements = rows * columns / f64::from(128 * if shape.takes_turns { 1 } else { shape.consumers });
        let epilogue = elements * epilogue_cycles(gemm.epilogue);
        let launch = LAUNCH_CYCLES + if shape.blocks_in_pair > 1 { PAIRS_LAUNCH_CYCLES } else { 0.0 };
        if shape.takes_turns {
            return launch + rounds * main.max((main + epilogue) / 2.0) + epilogue;
        }
        launch + rounds * (main + epilogue)
    }

    /// Whether a launch takes so long that it polls its grant.
    pub(super) fn is_elastic(self, gemm: &Gemm, sms: Sms) -> bool {
        self.predicted_cycles(gemm, sms) > ELASTIC_FROM_MICROSECONDS * CYCLES_PER_MICROSECOND
    }

    /// The launch. It is made where it stays: a move of its parameters takes longer than all that is decided here.
    pub(super) fn launch(self, gemm: &Gemm, symbol: &'static str, tiles: u32, elastic: bool, sms: Sms) -> Launch {
        use abi::WarpgroupGemmArgs as Args;
        const UNUSED: abi::TensorMap = abi::TensorMap { opaque: [0; 16] };
        let shape = self.shape();
        let blocks_in_pair = shape.blocks_in_pair;
        // A pair needs two SMs, and there is no TPC of one.
        let workers = (sms.get() / blocks_in_pair).max(1);
        let mut launch = Launch {
            symbol,
            grid: tiles.clamp(1, workers) * blocks_in_pair,
            block: 128 * (shape.consumers + 1),
            shared_bytes: shape.shared_bytes(),
            blocks_per_sm: 1,
            tiles,
            blocks_per_tile: blocks_in_pair,
            elastic,
            programmatic: true,
            begins_by_number: true,
            params: Params::new(Args {
                a: UNUSED,
                b: UNUSED,
                c: UNUSED,
                residual: UNUSED,
                gemm: gemm.args(),
                shares_a: u32::from(self.shares_a(gemm)),
            }),
        };
        self.put_tensor_maps(gemm, &mut launch.params);
        launch
    }

    #[inline(always)]
    fn put_tensor_maps(self, gemm: &Gemm, params: &mut Params) {
        use abi::WarpgroupGemmArgs as Args;
        let shape = self.shape();
        let shares_a = self.shares_a(gemm);
        let shared_rows = |rows: u32, shared: bool| if shared { rows / shape.blocks_in_pair } else { rows };
        let operand = |ptr, [rows, columns]: [u32; 2], stride, tile| {
            TensorMap::matrix(ptr, Element::F16, [rows, columns], stride, [tile, 64], Swizzle::Bytes128)
        };
        let a = operand(gemm.a, [gemm.m, gemm.k], gemm.lda, shared_rows(shape.rows, shares_a));
        let b = operand(gemm.b, [gemm.n, gemm.k], gemm.ldb, shared_rows(shape.columns, !shares_a));

        let slice = shape.slice(gemm.epilogue);
        let (element, c_slice) = match gemm.epilogue {
            Epilogue::PlainF32 { .. } => (Element::F32, slice),
            Epilogue::SiluGate | Epilogue::BiasSiluGate(_) => (Element::F16, slice / 2),
            _ => (Element::F16, slice),
        };
        let swizzle = match u64::from(c_slice) * element.bytes() {
            128 => Swizzle::Bytes128,
            64 => Swizzle::Bytes64,
            _ => Swizzle::Bytes32,
        };
        let c = TensorMap::matrix(gemm.c, element, [gemm.m, gemm.c_columns()], gemm.ldc, [64, c_slice], swizzle);
        params.put_tensor_maps([(offset_of!(Args, a), a), (offset_of!(Args, b), b), (offset_of!(Args, c), c)]);
        // Encoding a map takes time on the launch path, so only one that is used is named.
        if let Some(Residual { ptr, stride }) = gemm.residual() {
            let residual = TensorMap::matrix(ptr, element, [gemm.m, gemm.c_columns()], stride, [64, c_slice], swizzle);
            params.put_tensor_maps([(offset_of!(Args, residual), residual)]);
        }
    }
}

/// Cycles of the epilogue for each element that a thread holds.
const fn epilogue_cycles(epilogue: Epilogue) -> f64 {
    match epilogue {
        Epilogue::Plain { .. } | Epilogue::PlainF32 { .. } => 25.0,
        Epilogue::Bias(_) | Epilogue::BiasRelu(_) => 40.0,
        _ => 70.0,
    }
}

#[cfg(test)]
mod tests {
    use smidgen_runtime::device::DevicePtr;

    use super::*;

    /// What was quickest on an H200: short launches in the run that the figures above were fitted to, long ones in those that gave them pairs.
    #[test]
    fn the_shape_predicted_to_be_quickest_was_so_when_measured() {
        let quickest = [
            ([1024, 768, 768], 132, Warpgroup::Tile64x96),
            ([1024, 768, 768], 96, Warpgroup::Tile64x128),
            ([1024, 768, 3072], 132, Warpgroup::Tile64x96),
            ([1024, 2304, 768], 132, Warpgroup::Tile128x160),
            ([1024, 2304, 768], 72, Warpgroup::Tile128x128),
            ([1024, 3072, 768], 132, Warpgroup::Tile128x192),
            ([1024, 3072, 768], 96, Warpgroup::Tile128x128),
            ([1024, 1024, 1024], 132, Warpgroup::Tile64x128),
            ([1024, 1024, 4096], 132, Warpgroup::Tile64x128),
            ([1024, 3072, 1024], 132, Warpgroup::Tile128x192),
            ([1024, 4096, 1024], 132, Warpgroup::Tile128x128),
            ([2048, 4096, 4096], 132, Warpgroup::Tile128x256),
            ([4096, 4096, 4096], 132, Warpgroup::Tile128x256),
        ];
        for (shape, sms, expected) in quickest {
            let gemm = Gemm::new(shape, DevicePtr(256), DevicePtr(512), DevicePtr(1024), Epilogue::NONE);
            assert_eq!(Warpgroup::choose(&gemm, Sms(sms)), expected, "{shape:?} at {sms} SMs");
        }
    }
}
