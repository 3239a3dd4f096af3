//! Elastic kernels: resizing in flight.

use std::time::Duration;

use proptest::prelude::*;
use smidgen_runtime::device::sim::SimConfig;
use smidgen_runtime::device::{Buffer, PartitionId, Priority};
use smidgen_runtime::partition::TpcSet;

use crate::support::{Gpu, Job, assert_near, micros, without_overheads};

/// 4.74 ms of 15 us tiles on the whole GPU.
fn persistent() -> Job {
    Job::new("persistent", 640_000_000 * 4_740, 0).tiles(132 * 316)
}

#[test]
fn a_grant_that_shrinks_lets_a_short_kernel_in_within_tens_of_microseconds() {
    let gpu = Gpu::h200();
    let (batch, latency, control) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    let all = gpu.device.topology().all_tpcs();
    let grant = gpu.grant(control, all);
    gpu.launch(batch, persistent().elastic(grant.ptr()));
    gpu.device.pass_time(gpu.device.now() + Duration::from_micros(500));
    let before = gpu.device.now();
    gpu.regrant(control, &grant, TpcSet::range(0, 34));
    gpu.launch(latency, Job::new("short", 640_000_000 * 10 / 2, 0).grid(64).tiles(64).priority(Priority::High));
    gpu.synchronize(latency);
    let waited_us = micros(gpu.device.now() - before);
    assert!((20.0..45.0).contains(&waited_us), "{waited_us} us");
    gpu.synchronize(batch);
    assert_eq!(gpu.traced("persistent").len(), 1);
}

#[test]
fn a_kernel_told_to_leave_every_sm_keeps_one_block_and_ends() {
    let gpu = Gpu::without_overheads();
    let (batch, control) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    let grant = gpu.grant(control, TpcSet::range(0, 66));
    let job = Job::new("persistent", 6_400_000_000, 0).tiles(1320).elastic(grant.ptr());
    let alone = gpu.time_us(batch, || gpu.launch(batch, job));
    let shrunk = gpu.time_us(batch, || {
        gpu.launch(batch, job);
        gpu.regrant(control, &grant, TpcSet::EMPTY);
    });
    assert!(shrunk > 100.0 * alone, "{shrunk} us, {alone} us alone");
}

#[test]
fn blocks_placed_where_the_grant_does_not_hold_leave_at_once() {
    let gpu = Gpu::without_overheads();
    let (batch, control) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    let grant = gpu.grant(control, TpcSet::range(0, 33));
    let job = Job::new("persistent", 66_000_000_000, 0).tiles(1320);
    let masked = gpu.time_us(batch, || gpu.launch(batch, job.elastic(grant.ptr())));
    assert_eq!(gpu.traced("persistent")[0].tpcs, TpcSet::range(0, 33));
    let half = gpu.stream_on(0, 66);
    assert_near(masked, gpu.time_us(half, || gpu.launch(half, job.grid(66))), 0.01);
}

#[test]
fn a_joiner_makes_its_owner_faster_and_ends_with_it() {
    let gpu = Gpu::without_overheads();
    let (owner, joiner, control) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    let progress = Buffer::new(&gpu.device, 16).unwrap();
    let grant = gpu.grant(control, TpcSet::range(0, 33));
    let job = Job { progress: progress.ptr(), ..Job::new("persistent", 640_000_000_000, 0).tiles(10_000).elastic(grant.ptr()) };
    let half = gpu.time_us(owner, || gpu.launch(owner, job));
    assert_near(half, 2_000.0, 0.01);
    let grown = gpu.time_us(owner, || {
        gpu.launch(owner, job);
        gpu.device.pass_time(gpu.device.now() + Duration::from_micros(1_000));
        gpu.regrant(control, &grant, TpcSet::range(0, 66));
        gpu.synchronize(control);
        // The first launch left the counter in epoch 1.
        gpu.launch(joiner, Job { joins: 2, name: "joiner", ..job });
    });
    // Half of the tiles on half of the SMs, the other half on all.
    assert_near(grown, 1_500.0, 0.01);
    gpu.synchronize(joiner);
    let trace = gpu.sim.take_trace();
    assert_eq!(trace[1].ended, trace[2].ended);
}

#[test]
fn a_joiner_of_another_epoch_touches_nothing_and_ends_at_once() {
    let gpu = Gpu::without_overheads();
    let (owner, joiner) = (gpu.stream_on(0, 66), gpu.stream_on(66, 66));
    let progress = Buffer::new(&gpu.device, 16).unwrap();
    let job = Job { progress: progress.ptr(), elastic: true, ..Job::new("persistent", 640_000_000_000, 0).tiles(10_000) };
    gpu.launch(owner, job.grid(66));
    gpu.launch(joiner, Job { joins: 2, name: "stale", ..job.grid(66) });
    gpu.synchronize(joiner);
    assert!(micros(gpu.device.now()) < 5.0);
    gpu.synchronize(owner);
    assert_near(micros(gpu.device.now()), 2_000.0, 0.01);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the grant does, the work that is done is the integral of the SMs that were held, but for one tile at each change.
    #[test]
    fn no_work_is_lost_or_done_twice_under_random_grants(changes in prop::collection::vec((1_u16..=66, 40_u64..400), 1..12)) {
        let gpu = Gpu::new(SimConfig { dram_interference: 0.0, ..without_overheads(SimConfig::h200()) });
        let (batch, control) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
        let all = TpcSet::range(0, 66);
        let grant = gpu.grant(control, all);
        let begin = gpu.device.now();
        gpu.launch(batch, persistent().elastic(grant.ptr()));
        // Blocks that left do not come back without a joiner, so that what is held only shrinks.
        let (mut held, mut done_us, mut wait_us) = (all, 0.0, 0.0);
        for &(tpcs, us) in &changes {
            let chosen: TpcSet = (0..66).filter(|tpc| (tpc * 37 + us as u16) % 66 < tpcs).collect();
            gpu.regrant(control, &grant, chosen);
            // Where none is held any more, one block stays.
            let kept = held & chosen;
            let sms = f64::from(kept.len() * 2);
            held = kept;
            gpu.device.pass_time(gpu.device.now() + Duration::from_micros(us));
            done_us += us as f64 * sms.max(1.0) / 132.0;
            wait_us += 15.0;
            if held.is_empty() {
                break;
            }
        }
        let sms = f64::from(held.len() * 2).max(1.0);
        let rest_us = (4_740.0 - done_us) * 132.0 / sms;
        let asked = micros(gpu.device.now() - begin);
        gpu.synchronize(batch);
        let took = micros(gpu.device.now() - begin);
        prop_assert_eq!(gpu.traced("persistent").len(), 1);
        // Blocks that leave finish their tile first, which is done on top of what the integral counts.
        let slack = wait_us * 132.0 / sms + 1.0;
        prop_assert!(took <= asked + rest_us + 1.0 && took >= asked + rest_us - slack, "took {took}, expected {} - {slack}", asked + rest_us);
    }
}
