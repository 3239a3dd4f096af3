//! Shapes that proptest draws and, where one fails, shrinks: the same in every run, so that a failure can be looked at again.
//!
//! `PROPTEST_RNG_SEED` draws others, and `PROPTEST_CASES` more or, under compute-sanitizer, fewer.

use std::env;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngSeed, TestRunner};
use smidgen::kernels::attention::Heads;

/// On both sides of the tiles and blocks that kernels are made of.
const PRIMES: [u32; 22] = [2, 3, 5, 7, 11, 13, 17, 31, 37, 61, 67, 97, 127, 131, 251, 257, 383, 509, 521, 1021, 1031, 2053];

/// Every compiled head size, sizes between them, and those of tiny test models.
pub(crate) const HEAD_DIMS: [u32; 18] = [1, 8, 12, 16, 20, 32, 33, 48, 64, 72, 80, 96, 100, 112, 128, 160, 250, 256];

/// Runs `test`, which panics where something is wrong, on `cases` draws.
pub(crate) fn for_draws<S: Strategy>(cases: u32, draws: &S, test: impl Fn(S::Value)) {
    let asked_for = env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let usual = ProptestConfig::default();
    let config = ProptestConfig {
        cases: asked_for.unwrap_or(cases),
        max_shrink_iters: 40,
        failure_persistence: None,
        rng_seed: if usual.rng_seed == RngSeed::Random { RngSeed::Fixed(1) } else { usual.rng_seed },
        ..usual
    };
    let outcome = TestRunner::new(config).run(draws, |draw| {
        test(draw);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// 1 to `most`, which is at least 2: 1 itself and primes more often than by chance.
pub(crate) fn extent(most: u32) -> impl Strategy<Value = u32> + Clone {
    let primes: Vec<u32> = PRIMES.into_iter().filter(|&prime| prime <= most).collect();
    prop_oneof![1 => Just(1), 2 => select(primes), 4 => 1..=most]
}

/// Elements between two rows: none, or up to `most`.
pub(crate) fn gap(most: u32) -> impl Strategy<Value = u32> + Clone {
    prop_oneof![Just(0), 1..=most]
}

/// What makes rows of `columns` elements begin on 16 bytes, and up to 16 elements more.
pub(crate) fn aligned_gap(columns: u32) -> impl Strategy<Value = u32> + Clone {
    (0_u32..=2).prop_map(move |more| columns.next_multiple_of(8) - columns + 8 * more)
}

/// Columns of a head.
pub(crate) fn head_dims() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![select(&HEAD_DIMS[..]), 1..=256_u32]
}

/// Up to `most_keys` heads of keys, and as many times one of `groups` of queries.
pub(crate) fn heads(most_keys: u32, groups: &'static [u32], head_dims: impl Strategy<Value = u32>) -> impl Strategy<Value = Heads> {
    (1..=most_keys, select(groups), head_dims).prop_map(|(kv_heads, group, head_dim)| Heads { heads: kv_heads * group, kv_heads, head_dim })
}
