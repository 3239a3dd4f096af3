//! Which skinny kernel does what, and its launches.

use super::super::super::testing::h200;
use super::super::Epilogue;
use super::*;

fn gemm(shape: [u32; 3]) -> Gemm {
    Gemm::new(shape, DevicePtr(256), DevicePtr(512), DevicePtr(1024), Epilogue::NONE)
}

fn choose(shape: [u32; 3], sms: u16) -> Skinny {
    Skinny::choose(&gemm(shape), Sms(sms), &h200()).expect("few rows")
}

const SHAPES: [[u32; 3]; 12] = [
    [1, 2048, 2048],
    [8, 3072, 2048],
    [8, 1, 8],
    [7, 32_000, 4096],
    [16, 4096, 4096],
    [32, 4096, 14_336],
    [32, 2048, 2048],
    [17, 28_672, 4096],
    [32, 128_256, 2048],
    [33, 2048, 8192],
    [64, 6144, 8192],
    [64, 8192, 8192],
];

#[test]
fn the_order_of_additions_does_not_depend_on_the_sm_count() {
    for shape in SHAPES {
        let order = |sms| {
            let skinny = choose(shape, sms);
            (skinny.rows(), skinny.shares_k())
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
            assert!(launch.grid.is_multiple_of(skinny.shape().pair), "{shape:?} at {sms} SMs: {launch:?}");
            assert!(launch.grid <= launch.tiles * skinny.shape().pair, "{shape:?} at {sms} SMs: {launch:?}");
        }
    }
}

#[test]
fn few_tiles_share_k_and_many_do_not() {
    assert_eq!(choose([8, 6144, 2048], 132), Skinny::EightDeepPair);
    assert_eq!(choose([8, 6144, 2048], 32), Skinny::EightPair);
    assert_eq!(choose([9, 2048, 2048], 132), Skinny::SixteenDeepPair);
    assert_eq!(choose([8, 16_384, 2048], 132), Skinny::Eight);
    assert_eq!(choose([8, 28_672, 4096], 32), Skinny::EightPair);
}

#[test]
fn up_to_64_rows_are_done_here_where_k_is_shared_or_rows_are_normed_or_warpgroups_cannot() {
    let norm = Some(super::super::RowNorm { epsilon: 1e-5 });
    let chosen = |gemm: Gemm| [32, 132].map(|sms| Skinny::choose(&gemm, Sms(sms), &h200()));
    assert_eq!(chosen(gemm([64, 2048, 8192])), [Some(Skinny::SixtyFourPair), Some(Skinny::SixtyFourDeepPair)]);
    assert_eq!(chosen(gemm([33, 4096, 14_336])), [Some(Skinny::SixtyFourPair), Some(Skinny::SixtyFourDeepPair)]);
    for shape in [[64, 16_384, 2048], [40, 28_672, 4096], [64, 2048, 2048], [64, 4096, 4096]] {
        assert_eq!(chosen(gemm(shape)), [None; 2]);
        for other in [Gemm { row_norm: norm, ..gemm(shape) }, Gemm { ldc: shape[1] + 1, ..gemm(shape) }] {
            assert!(chosen(other).iter().all(Option::is_some), "{shape:?}");
        }
        assert!(Skinny::is_chosen_at_any_sms(&gemm(shape), &h200()));
    }
    assert_eq!(chosen(Gemm { row_norm: norm, ..gemm([65, 2048, 2048]) }), [None; 2]);
}

#[test]
fn few_rows_and_columns_are_done_in_halves_where_these_are_those_of_pairs() {
    assert_eq!(choose([8, 2048, 8192], 132), Skinny::EightDeepHalves);
    assert_eq!(choose([1, 4096, 4096], 32), Skinny::EightHalves);
    assert_eq!(choose([1, 4097, 4096], 32), Skinny::EightPair);
    // On a few SMs less than it has tiles, they go two to an SM.
    assert_eq!([58, 60, 63, 64].map(|sms| choose([8, 2048, 8192], sms)), {
        use Skinny::{EightDeepHalves, EightHalves};
        [EightHalves, EightHalves, EightHalves, EightDeepHalves]
    });
    assert_eq!(choose([1, 4096, 4096], 96), Skinny::EightDeepHalves);
    // Two rounds of tiles, or many.
    assert_eq!(choose([8, 6144, 4096], 132), Skinny::EightDeepPair);
    assert_eq!(choose([8, 28_672, 4096], 132), Skinny::EightDeepHalves);
    assert_eq!(choose([8, 28_672, 4096], 32), Skinny::EightPair);
    // A pair's first block has 768 of these.
    assert_eq!(choose([8, 2048, 1280], 132), Skinny::EightDeepPair);
    for shape in SHAPES {
        for skinny in Skinny::ALL.into_iter().filter(|skinny| skinny.shape().parts > 1) {
            assert_eq!(skinny.can_do(&gemm(shape), &h200()), shape[0] <= 8 && shape[2].is_multiple_of(512), "{skinny} {shape:?}");
        }
    }
}

#[test]
fn the_copy_engine_brings_both_halves_of_k_at_once() {
    let gemm = Gemm { ldb: 2056, ..gemm([5, 2050, 2048]) };
    let b = Skinny::EightHalves.operand(gemm.b, [gemm.n, gemm.k], gemm.ldb, 32);
    assert_eq!((b.dimensions, b.sizes, b.strides, b.tile), (3, [1024, 2050, 2, 1], [4112, 2048, 0], [64, 32, 2, 1]));
    let a = Skinny::EightHalves.stages_of_a(&gemm);
    assert_eq!((a.dimensions, a.sizes, a.strides, a.tile), (4, [64, 5, 2, 16], [4096, 2048, 128], [64, 8, 2, 2]));
    let launch = Skinny::EightHalves.launch(&gemm, Sms(132), &h200());
    assert_eq!((launch.tiles, launch.grid, launch.blocks_per_tile), (65, 65, 1));
}

#[test]
fn columns_that_are_heads_are_added_up_as_others_are() {
    for shape in SHAPES {
        for sms in [1, 32, 132] {
            let rotary = Skinny::choose_rotary(&gemm(shape), Sms(sms), &h200()).expect("few rows");
            assert_eq!(rotary.shares_k(), choose(shape, sms).shares_k(), "{shape:?}");
        }
    }
}

#[test]
fn beside_others_a_block_asks_for_no_more_than_its_part_of_what_memory_needs_under_way() {
    let under_way = |skinny: Skinny, sms| skinny.stages_under_way(Sms(sms), &h200());
    assert_eq!([132, 130, 100, 66, 44, 8].map(|sms| under_way(Skinny::EightDeepHalves, sms)), [5, 3, 3, 3, 5, 5]);
    assert_eq!([132, 130, 66, 32].map(|sms| under_way(Skinny::Eight, sms)), [3, 2, 2, 3]);
    for skinny in Skinny::ALL {
        assert!((1..=130).all(|sms| (1..=skinny.shape().stages).contains(&under_way(skinny, sms))), "{skinny}");
    }
}

#[test]
fn long_launches_poll_the_grant_and_short_ones_do_not() {
    let elastic = |shape, sms| choose(shape, sms).launch(&gemm(shape), Sms(sms), &h200()).elastic;
    assert!(elastic([8, 128_256, 2048], 132));
    assert!(!elastic([8, 2048, 2048], 132));
    // One tile for each SM, which takes 28 us.
    assert!(!elastic([1, 4096, 14_336], 132));
    assert!(elastic([1, 4096, 14_336], 32));
    assert!(elastic([8, 2048, 2048], 2));
}
