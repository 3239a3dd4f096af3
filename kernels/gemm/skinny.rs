//! GEMM of few rows, the decode step's: how a problem is cut for the kernels of `skinny.cuh`, and their launches.
//!
//! The time is that of reading `B` once, so the cut follows from bytes: tiles as wide as lets all granted SMs end together, and, where a problem
//! has too few columns for tiles that read much more of `B` than of `A`, shares of k that meet in a [`Workspace`]. The width of a tile has no
//! influence on the bits, so it may depend on the SM count; the kernel and the shares of k follow from the problem alone.

use std::fmt;
use std::mem::offset_of;

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Element, Launch, Params, Swizzle, TensorMap};

use super::{Gemm, Variant, abi};

/// Device memory in which the blocks that share a tile's columns of k add up their sums.
///
/// All zeros before its first use; every launch leaves it fit for the next. Launches that may run at the same time need one each, so a stream has
/// its own. Without one, a problem of few rows and columns is done all the same, in about twice the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workspace {
    /// Where it begins; a multiple of 16.
    pub ptr: DevicePtr,
    /// Its length, bytes.
    pub bytes: u32,
}

impl Workspace {
    /// Enough for every problem that gains from it, bytes.
    pub const BYTES: u32 = ARRIVALS_BYTES + (8 << 20);
}

/// Counters of arrivals at the workspace's beginning, one for each tile of a problem whose k is shared out.
const ARRIVALS_BYTES: u32 = 4 * MOST_SHARED_COLUMNS / 8;

/// Problems with more columns than this have tiles enough.
const MOST_SHARED_COLUMNS: u32 = 16_384;

/// Units of the widest tiles beyond which k is not shared out any further: about one for each SM of a large GPU.
const MOST_SHARED_UNITS: u64 = 160;

/// Columns of k below which a share is not worth its start.
const LEAST_SHARE: u32 = 512;

/// What a tile costs besides the columns of B that it reads, in columns.
const TILE_COST_COLUMNS: u64 = 4;

/// Columns of k that a warp multiplies in one step: a swizzled row of shared memory.
const SLOT_K: u32 = 64;

/// How long a launch must be to poll the grant, microseconds.
const LONG_US: f64 = 20.0;

/// Rates at which weights arrive, measured on an H200 (docs/kernels/skinny-gemm.md), GB/s: of one SM, and of the memory.
const GB_PER_SECOND_OF_SM: f64 = 90.0;
const GB_PER_SECOND: f64 = 4200.0;

/// The kernels of `skinny.cu`, by the rows of `A` and the most columns of `C` of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Skinny {
    /// Up to 8 rows, 16 columns; the bits of [`Rows8x32`](Self::Rows8x32).
    Rows8x16,
    /// Up to 8 rows, 32 columns.
    Rows8x32,
    /// Up to 16 rows, 64 columns.
    Rows16x64,
    /// Up to 32 rows, 128 columns.
    Rows32x128,
}

/// What the host must know of a `SkinnyShape` in `skinny.cu`.
#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: u32,
    columns: u32,
    /// Warps that share out a tile's columns, and those that share out k.
    warps_n: u32,
    warps_k: u32,
    shared_bytes: u32,
    /// The kernel's launch bound.
    blocks_per_sm: u32,
}

/// A problem in units: `splits` shares of k for each tile of `columns` columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    columns: u32,
    splits: u32,
    steps: u32,
    units: u32,
}

impl Shape {
    /// Columns of k that a block multiplies in one step.
    const fn step_k(self) -> u32 {
        SLOT_K * self.warps_k
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} units of {} columns and 1/{} of k", self.units, self.columns, self.splits)
    }
}

impl fmt::Display for Skinny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, columns) = self.tile();
        write!(f, "Skinny{rows}x{columns}")
    }
}

impl Skinny {
    /// The kernel for `gemm`; none if it has too many rows, or rows that do not begin on 16 bytes, or if the GPU is no Hopper.
    pub(super) fn choose(gemm: &Gemm, sms: Sms, gpu: &Topology) -> Option<Self> {
        let fits = |skinny: &Self| skinny.can_do(gemm, gpu) && skinny.blocks_per_sm(gpu) > 0;
        let by_rows = match gemm.m {
            ..=8 => Self::Rows8x32,
            9..=16 => Self::Rows16x64,
            _ => Self::Rows32x128,
        };
        // With tiles this narrow, 16 columns a block have more bytes under way.
        let narrow = by_rows == Self::Rows8x32 && gemm.n <= 16 * by_rows.resident_blocks(sms, gpu);
        Some(if narrow { Self::Rows8x16 } else { by_rows }).filter(fits)
    }

    pub(super) fn can_do(self, gemm: &Gemm, gpu: &Topology) -> bool {
        gemm.is_aligned() && gemm.m <= self.shape().rows && gpu.compute_capability == (9, 0)
    }

    const fn shape(self) -> Shape {
        let (rows, columns, [warps_n, warps_k], shared_bytes, blocks_per_sm) = match self {
            Self::Rows8x16 => (8, 16, [1, 4], abi::SKINNY_GEMM_8X16_SHARED_BYTES, 2),
            Self::Rows8x32 => (8, 32, [1, 4], abi::SKINNY_GEMM_8X32_SHARED_BYTES, 2),
            Self::Rows16x64 => (16, 64, [2, 4], abi::SKINNY_GEMM_16X64_SHARED_BYTES, 1),
            Self::Rows32x128 => (32, 128, [4, 2], abi::SKINNY_GEMM_32X128_SHARED_BYTES, 1),
        };
        Shape { rows, columns, warps_n, warps_k, shared_bytes, blocks_per_sm }
    }

    /// The entry point, for every epilogue.
    pub(super) const fn symbol(self) -> &'static str {
        match self {
            Self::Rows8x16 => "gemm_skinny_8x16",
            Self::Rows8x32 => "gemm_skinny_8x32",
            Self::Rows16x64 => "gemm_skinny_16x64",
            Self::Rows32x128 => "gemm_skinny_32x128",
        }
    }

    /// Threads of a block.
    pub(super) const fn threads(self) -> u32 {
        let shape = self.shape();
        32 * shape.warps_n * shape.warps_k
    }

    /// Dynamic shared memory of a block, bytes.
    pub(super) const fn shared_bytes(self) -> u32 {
        self.shape().shared_bytes
    }

    /// Blocks for which an SM has registers: the kernels' launch bounds.
    pub(super) const fn blocks_by_registers(self) -> u32 {
        self.shape().blocks_per_sm
    }

    /// Most rows and columns of a tile.
    pub(super) const fn tile(self) -> (u32, u32) {
        (self.shape().rows, self.shape().columns)
    }

    /// Blocks that fit on one SM of `gpu` at once.
    fn blocks_per_sm(self, gpu: &Topology) -> u32 {
        Variant::Skinny(self).blocks_per_sm(gpu)
    }

    fn resident_blocks(self, sms: Sms, gpu: &Topology) -> u32 {
        (sms.get() * self.blocks_per_sm(gpu)).max(1)
    }

    /// Shares of k. They change the order of additions, so they follow from the problem alone.
    fn splits(self, gemm: &Gemm) -> u32 {
        let Some(workspace) = gemm.workspace.filter(|_| self == Self::Rows32x128) else { return 1 };
        let shape = self.shape();
        let tiles = gemm.n.div_ceil(shape.columns);
        let fits = |splits: u32| {
            let partials = u64::from(splits) * u64::from(gemm.m) * u64::from(gemm.n + shape.columns) * 4;
            gemm.n <= MOST_SHARED_COLUMNS
                && u64::from(tiles) * u64::from(splits) <= MOST_SHARED_UNITS
                && gemm.k / splits >= LEAST_SHARE
                && u64::from(ARRIVALS_BYTES) + partials <= u64::from(workspace.bytes)
        };
        [8, 4, 2].into_iter().find(|&splits| fits(splits)).unwrap_or(1)
    }

    /// How the problem is shared out among blocks on `sms` SMs.
    pub(super) fn cut(self, gemm: &Gemm, sms: Sms, gpu: &Topology) -> Cut {
        let shape = self.shape();
        let splits = self.splits(gemm);
        // As many rounds as the widest tiles need, each as wide as ends the last round together with the others; one more if that is less work.
        let blocks = u64::from(self.resident_blocks(sms, gpu));
        let (n, widest) = (u64::from(gemm.n), u64::from(shape.columns));
        let tiles_at_once = (blocks / u64::from(splits)).max(1);
        let least_rounds = n.div_ceil(widest * tiles_at_once);
        let width = |rounds: u64| n.div_ceil(rounds * tiles_at_once).next_multiple_of(8 * u64::from(shape.warps_n)).min(widest);
        let work = |rounds: u64| rounds * (width(rounds) + TILE_COST_COLUMNS);
        let rounds = if work(least_rounds + 1) < work(least_rounds) { least_rounds + 1 } else { least_rounds };
        let columns = width(rounds) as u32;
        let steps = gemm.k.div_ceil(shape.step_k()).div_ceil(splits);
        Cut { columns, splits, steps, units: gemm.n.div_ceil(columns) * splits }
    }

    /// The launch of a problem that [`can_do`](Self::can_do) allows, on a GPU where a block fits.
    pub(super) fn launch(self, gemm: &Gemm, sms: Sms, gpu: &Topology) -> Launch {
        let (shape, cut) = (self.shape(), self.cut(gemm, sms, gpu));
        let workspace = gemm.workspace.map_or(0, |workspace| workspace.ptr.0);
        let blocks_per_sm = self.blocks_per_sm(gpu);
        let warp_tile = [cut.columns / shape.warps_n, SLOT_K];
        let b_map = TensorMap::matrix(gemm.b, Element::F16, [gemm.n, gemm.k], gemm.ldb, warp_tile, Swizzle::Bytes128);
        Launch {
            symbol: self.symbol(),
            grid: Launch::persistent_grid(cut.units, sms, blocks_per_sm),
            block: self.threads(),
            shared_bytes: shape.shared_bytes,
            blocks_per_sm,
            tiles: cut.units,
            elastic: predicted_us(gemm, sms) > LONG_US,
            programmatic: true,
            params: Params::new(abi::SkinnyGemmArgs {
                b_map: abi::TensorMap { opaque: [0; 16] },
                gemm: gemm.args(),
                partials: workspace + u64::from(ARRIVALS_BYTES),
                arrivals: workspace,
                tile_columns: cut.columns,
                splits: cut.splits,
                steps: cut.steps,
            })
            .with_tensor_maps([(offset_of!(abi::SkinnyGemmArgs, b_map), b_map)]),
        }
    }
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

    fn gemm([m, n, k]: [u32; 3]) -> Gemm {
        let workspace = Workspace { ptr: DevicePtr(4096), bytes: Workspace::BYTES };
        let new = Gemm::new([m, n, k], DevicePtr(256), DevicePtr(512), DevicePtr(1024), Epilogue::NONE);
        Gemm { workspace: Some(workspace), ..new }
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
                let skinny = Skinny::choose(&gemm(shape), Sms(sms), &h200()).expect("few rows");
                let cut = skinny.cut(&gemm(shape), Sms(sms), &h200());
                // The two kernels of 8 rows share out k among their warps in the same way.
                (skinny.shape().rows, skinny.shape().step_k(), cut.splits, cut.steps)
            };
            for sms in 1..=132 {
                assert_eq!(order(sms), order(132), "{shape:?} at {sms} SMs");
            }
        }
    }

    #[test]
    fn units_cover_every_column_and_all_of_k_and_the_workspace_holds_them() {
        for shape in SHAPES {
            let [m, n, k] = shape;
            for sms in [1, 2, 8, 31, 32, 66, 131, 132] {
                let skinny = Skinny::choose(&gemm(shape), Sms(sms), &h200()).expect("few rows");
                let cut = skinny.cut(&gemm(shape), Sms(sms), &h200());
                let tiles = cut.units / cut.splits;
                assert_eq!(tiles * cut.splits, cut.units);
                assert!(cut.columns.is_multiple_of(8) && cut.columns <= skinny.shape().columns, "{shape:?}: {cut:?}");
                assert!(tiles * cut.columns >= n && (tiles - 1) * cut.columns < n, "{shape:?}: {cut:?}");
                assert!(cut.splits * cut.steps * skinny.shape().step_k() >= k, "{shape:?}: {cut:?}");
                if cut.splits > 1 {
                    assert!(4 * tiles <= ARRIVALS_BYTES, "{shape:?}: {cut:?}");
                    assert!(ARRIVALS_BYTES + cut.units * m * cut.columns * 4 <= Workspace::BYTES, "{shape:?}: {cut:?}");
                }
            }
        }
    }

    #[test]
    fn k_is_shared_out_only_where_there_is_a_workspace() {
        let shared = gemm([32, 2048, 2048]);
        let alone = Gemm { workspace: None, ..shared };
        assert!(Skinny::Rows32x128.splits(&shared) > 1);
        assert_eq!(Skinny::Rows32x128.splits(&alone), 1);
    }

    #[test]
    fn long_launches_poll_the_grant_and_short_ones_do_not() {
        let elastic = |shape, sms| Skinny::Rows8x32.launch(&gemm(shape), Sms(sms), &h200()).elastic;
        assert!(elastic([8, 128_256, 2048], 132));
        assert!(!elastic([8, 2048, 2048], 132));
        assert!(elastic([8, 2048, 2048], 2));
    }
}
