//! Products of few rows on the GPU, with and without a norm of the rows, against sums in f64 on the CPU: Hopper's kernels for them, which share k in several
//! ways that must give the same bits.

use std::collections::HashMap;

use half::f16;
use proptest::prelude::*;
use proptest::sample::select;
use smidgen::kernels::gemm::{Gemm, Skinny, Variant};
use smidgen_runtime::device::Sms;
use smidgen_runtime::launch::Kernel;

use crate::draws::{extent, for_draws};
use crate::gemm::{Draw, Finish, Problem, products};
use crate::support::{Gpu, Random, assert_close, at_most_under_a_sanitizer, cases};

/// Numbers of rows around those that each kernel is made for, and any other.
fn few_rows() -> impl Strategy<Value = u32> {
    prop_oneof![3 => select(vec![1_u32, 2, 7, 8, 9, 16, 17, 31, 32, 33, 48, 63, 64]), 1 => 1..=64_u32]
}

/// Products of few rows with one epilogue, rows of A and B on 16 bytes.
fn products_of_few_rows(finish: Finish) -> impl Strategy<Value = Draw> {
    // One tile; many, of which each worker has one.
    let columns = prop_oneof![extent(1100), select(vec![31_u32, 257, 1000])];
    // Less than a step, one and a bit, the second block of a pair without any, a ring that A fits in, one that it does not fit in, many rounds of a ring, and
    // an end in the middle of a stage.
    let k = prop_oneof![2 => extent(1500), 3 => select(vec![8_u32, 248, 264, 2048, 5000, 8192])];
    // So many tiles that workers have several.
    let many_columns = (Just(9000_u32), select(vec![264_u32, 1024, 1500]));
    products(Just(finish), few_rows(), prop_oneof![7 => (columns, k), 1 => many_columns], true)
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn few_rows_are_right_at_every_epilogue_and_length_of_k() {
    let gpu = Gpu::open();
    for finish in Finish::ALL {
        for_draws(30, &(products_of_few_rows(finish), select(gpu.sm_counts())), |(draw, sms)| {
            let problem = draw.problem(&gpu);
            gpu.run(&problem.gemm, sms);
            problem.check(&gpu.download(&problem.c), &problem.reference());
        });
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn few_normed_rows_are_right_at_every_epilogue_and_length_of_k() {
    let gpu = Gpu::open();
    let is_hopper = gpu.device().topology().compute_capability == (9, 0);
    for finish in Finish::ALL {
        for_draws(30, &(products_of_few_rows(finish), select(gpu.sm_counts())), |(draw, sms)| {
            let problem = draw.problem(&gpu).with_normed_rows(&gpu);
            if !problem.gemm.can_norm_rows(gpu.device().topology()) {
                assert!(!is_hopper || problem.gemm.m > 64, "{} cannot be done", problem.gemm.key());
                return;
            }
            gpu.run(&problem.gemm, sms);
            problem.check(&gpu.download(&problem.c), &problem.reference());
        });
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn normed_rows_have_the_same_bits_at_every_sm_count() {
    let gpu = Gpu::open();
    if gpu.device().topology().compute_capability != (9, 0) {
        return;
    }
    let mut random = Random::new(9);
    // Pairs and single blocks, few tiles and many, short launches and such as poll their grant.
    for (finish, shape) in [
        (Finish::Plain, [8, 3072, 2048]),
        (Finish::SiluGate, [8, 16_384, 2048]),
        (Finish::SiluGate, [1, 28_672, 4096]),
        (Finish::Bias, [13, 3000, 3584]),
        (Finish::BiasSiluGate, [32, 9000, 1016]),
        (Finish::Bias, [32, 2050, 1016]),
        (Finish::BiasSiluGate, [64, 9000, 1016]),
        (Finish::Bias, [47, 2050, 1016]),
    ] {
        let shape = at_most_under_a_sanitizer(shape, [64, 2050, 4096]);
        let problem = Problem::new(&gpu, &mut random, shape, [0; 4], finish).with_normed_rows(&gpu);
        let outputs = gpu.assert_same_bits_at_every_sm_count(&problem.gemm, &[&problem.c]);
        problem.check(&outputs[0], &problem.reference());
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_row_that_is_no_number_or_all_zeros_does_not_reach_other_normed_rows() {
    let gpu = Gpu::open();
    let mut random = Random::new(10);
    let mut problem = Problem::new(&gpu, &mut random, [8, 192, 512], [0; 4], Finish::Plain).with_normed_rows(&gpu);
    if !problem.gemm.can_norm_rows(gpu.device().topology()) {
        return;
    }
    problem.a[2 * 512 + 17] = f16::NAN;
    problem.a[3 * 512..4 * 512].fill(f16::ZERO);
    problem.a[5 * 512 + 400] = f16::INFINITY;
    let a = gpu.upload_f16(&problem.a);
    gpu.run(&Gemm { a: a.ptr(), ..problem.gemm }, gpu.sms());
    let (output, reference) = (gpu.download_f16(&problem.c), problem.reference());
    for (row, (output, reference)) in output.chunks(192).zip(reference.chunks(192)).enumerate() {
        match row {
            2 | 5 => assert!(output.iter().all(|value| value.is_nan()), "row {row}"),
            3 => assert!(output.iter().all(|value| value.to_f32() == 0.0), "row {row}"),
            _ => assert_close(format!("row {row}"), output.iter().map(|value| value.to_f64()), reference, 1e-3),
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn every_skinny_kernel_is_right_and_those_that_share_k_alike_give_the_same_bits() {
    let gpu = Gpu::open();
    if gpu.device().topology().compute_capability != (9, 0) {
        return;
    }
    let mut random = Random::new(7);
    for (finish, shape) in cases(&[
        (Finish::Residual, [8, 2048, 2048]),
        (Finish::BiasSiluGate, [5, 1046, 4096]),
        (Finish::PlainF32, [16, 6144, 1024]),
        (Finish::Bias, [9, 333, 8192]),
        (Finish::Residual, [32, 2048, 2048]),
        (Finish::Residual, [64, 2048, 2048]),
        (Finish::BiasSiluGate, [33, 1046, 1160]),
        (Finish::PlainF32, [50, 129, 264]),
        (Finish::Bias, [20, 129, 264]),
        (Finish::PlainF32, [1, 8200, 96]),
        // In halves too: a last tile that is not full, one stage of each half, many rounds of a ring, and more tiles than 2 SMs have blocks.
        (Finish::PlainF32, [7, 2050, 512]),
        (Finish::BiasResidual, [1, 33, 1536]),
        (Finish::Residual, [8, 2048, 8192]),
        (Finish::Residual, [1, 4096, 14_336]),
    ]) {
        let shape = at_most_under_a_sanitizer(shape, [64, 1046, 4096]);
        let plain = Problem::new(&gpu, &mut random, shape, [0; 4], finish);
        assert_skinny_kernels_agree(&gpu, &plain);
        assert_skinny_kernels_agree(&gpu, &plain.with_normed_rows(&gpu));
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn halves_with_gaps_between_rows_give_the_bits_of_pairs() {
    let gpu = Gpu::open();
    if gpu.device().topology().compute_capability != (9, 0) {
        return;
    }
    let mut random = Random::new(11);
    for (finish, shape) in [(Finish::Residual, [5, 1000, 2560]), (Finish::BiasSiluGate, [8, 4096, 1024]), (Finish::PlainF32, [3, 70, 4608])]
    {
        let plain = Problem::new(&gpu, &mut random, shape, [8, 24, 3, 5], finish);
        assert_skinny_kernels_agree(&gpu, &plain);
        assert_skinny_kernels_agree(&gpu, &plain.with_normed_rows(&gpu));
    }
}

/// Fails unless every skinny kernel that can do the problem is right, and those that share k give the same bits, in pairs or in halves, whatever the depth of
/// their rings.
fn assert_skinny_kernels_agree(gpu: &Gpu, problem: &Problem) {
    let reference = problem.reference();
    let mut first = HashMap::new();
    let topology = gpu.device().topology();
    for skinny in Skinny::ALL.into_iter().filter(|skinny| skinny.can_do(&problem.gemm, topology)) {
        for sms in [Sms(2), Sms(gpu.sms() / 4), Sms(gpu.sms())] {
            gpu.poison(&problem.c);
            let variant = Variant::Skinny(skinny);
            let launch = problem.gemm.configure_variant(variant, sms, topology).expect("a kernel that fits");
            gpu.enqueue(&problem.gemm, &launch, gpu.stream(), gpu.tiles(&launch));
            let bytes = gpu.download(&problem.c);
            problem.check(&bytes, &reference);
            let same = first.entry((skinny.rows(), skinny.shares_k())).or_insert_with(|| bytes.clone());
            assert!(*same == bytes, "{skinny} on {sms} SMs differs for {}", problem.gemm.key());
        }
    }
}
