//! Partitions, occupancy and priority: which blocks run where, and when.

use smidgen_runtime::device::sim::SimConfig;
use smidgen_runtime::device::{PartitionId, Priority, Sms};
use smidgen_runtime::partition::TpcSet;

use crate::support::{Gpu, Job, assert_near, micros, with_curves, without_overheads};

const CURVE: &[(u16, f64)] = &[(8, 800.0), (16, 410.0), (32, 230.0), (64, 140.0), (132, 100.0)];

fn profiled(job: Job) -> Gpu {
    Gpu::new(with_curves(without_overheads(SimConfig::h200()), &[(job, CURVE)]))
}

#[test]
fn a_kernel_alone_in_a_partition_takes_what_its_profile_says_and_never_leaves_it() {
    let job = Job::new("profiled", 1, 1);
    let gpu = profiled(job);
    for (sms, expected_us) in CURVE {
        let stream = gpu.stream_on(0, *sms);
        assert_near(gpu.time_us(stream, || gpu.launch(stream, job.grid(u32::from(*sms)).tiles(1000))), *expected_us, 0.001);
        // A grid of one tile per block, larger than the partition, runs in waves and takes as long.
        assert_near(gpu.time_us(stream, || gpu.launch(stream, job.grid(1000).tiles(1000))), *expected_us, 0.001);
        assert!(gpu.traced("profiled").iter().all(|kernel| kernel.tpcs == TpcSet::range(0, sms / 2)));
    }
}

#[test]
fn a_persistent_grid_uses_no_more_sms_than_it_was_sized_for() {
    let job = Job::new("profiled", 1, 1).tiles(1000);
    let gpu = profiled(job);
    let stream = gpu.stream(PartitionId::WHOLE);
    assert_near(gpu.time_us(stream, || gpu.launch(stream, job.grid(32))), 230.0, 0.001);
    // With two blocks to an SM, 64 blocks are the grid for 32 SMs, however they are spread.
    assert_near(gpu.time_us(stream, || gpu.launch(stream, Job { blocks_per_sm: 2, ..job.grid(64) })), 230.0, 0.001);
}

#[test]
fn disjoint_partitions_do_not_share_sms_and_overlapping_ones_do() {
    let job = Job::new("compute", 100_000_000_000, 0);
    let gpu = Gpu::without_overheads();
    let (low, high, middle) = (gpu.stream_on(0, 66), gpu.stream_on(66, 66), gpu.stream_on(34, 66));
    let alone = gpu.time_us(low, || gpu.launch(low, job.grid(66)));
    let disjoint = gpu.time_us(low, || {
        gpu.launch(low, job.grid(66));
        gpu.launch(high, job.grid(66));
    });
    assert_near(disjoint, alone, 0.001);
    gpu.synchronize(high);
    let half_room = Job { blocks_per_sm: 2, ..job.grid(132) };
    let overlapping = gpu.time_us(middle, || {
        gpu.launch(low, half_room.grid(66));
        gpu.launch(middle, half_room.grid(66));
    });
    assert!(overlapping > 1.2 * alone, "{overlapping} us, {alone} us alone");
    gpu.synchronize(low);
}

#[test]
fn two_kernels_on_the_same_sms_halve_each_other() {
    let gpu = Gpu::without_overheads();
    let (one, other) = (gpu.stream_on(0, 66), gpu.stream_on(0, 66));
    let job = Job { blocks_per_sm: 2, ..Job::new("compute", 100_000_000_000, 0).grid(66).tiles(66) };
    let alone = gpu.time_us(one, || gpu.launch(one, job));
    let together = gpu.time_us(one, || {
        gpu.launch(one, job);
        gpu.launch(other, job);
    });
    assert_near(together, 2.0 * alone, 0.01);
}

#[test]
fn a_kernel_that_computes_and_one_that_reads_share_sms_for_less() {
    let gpu = Gpu::new(SimConfig { l2_interference: 0.0, dram_interference: 0.0, ..without_overheads(SimConfig::h200()) });
    let (one, other) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    let half = |job: Job| Job { blocks_per_sm: 2, ..job };
    let (compute, read) = (half(Job::new("compute", 640_000_000_000, 0)), half(Job::new("read", 0, 4_640_000_000)));
    let together = gpu.time_us(one, || {
        gpu.launch(one, compute);
        gpu.launch(other, read);
        gpu.synchronize(other);
    });
    assert_near(together, 1_000.0, 0.01);
}

#[test]
fn a_short_kernel_waits_for_a_whole_persistent_one_whatever_its_priority() {
    for priority in [Priority::Normal, Priority::High] {
        let gpu = Gpu::h200();
        let (batch, latency) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
        gpu.launch(batch, Job::new("persistent", 2_500_000_000_000, 0).tiles(3000));
        gpu.launch(batch, Job::new("next", 2_500_000_000_000, 0).tiles(3000));
        gpu.device.pass_time(std::time::Duration::from_micros(100));
        gpu.launch(latency, Job::new("short", 1_000_000, 0).grid(64).tiles(64).priority(priority));
        gpu.synchronize(latency);
        let short = gpu.traced("short").remove(0);
        assert!(micros(short.started - short.ready) > 3_500.0, "{short:?}");
    }
}

#[test]
fn a_short_kernel_slips_in_while_the_last_wave_of_a_persistent_one_leaves_sms_idle() {
    let gpu = Gpu::without_overheads();
    let (batch, latency) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    // Ten tiles for each of 132 blocks, of 100 us each, and 32 tiles more.
    let alone_us = gpu.time_us(batch, || gpu.launch(batch, Job::new("persistent", 640_000_000 * 1_100, 0).tiles(1352)));
    gpu.launch(batch, Job::new("persistent", 640_000_000 * 1_100, 0).tiles(1352));
    let before = gpu.device.now();
    gpu.launch(latency, Job::new("short", 64_000_000, 0).grid(100).tiles(100));
    gpu.synchronize(latency);
    assert_near(micros(gpu.device.now() - before), 1_000.0, 0.01);
    gpu.synchronize(batch);
    assert_near(micros(gpu.device.now() - before), alone_us, 0.001);
}

#[test]
fn priority_acts_when_short_blocks_end() {
    let wait_us = |priority| {
        let gpu = Gpu::h200();
        let (flood, latency) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
        // 280 waves of 10 us blocks.
        gpu.launch(flood, Job::new("flood", 640_000_000 * 2_810, 0).grid(280 * 132).tiles(280 * 132));
        gpu.device.pass_time(std::time::Duration::from_micros(30));
        gpu.launch(latency, Job::new("two_waves", 6_400_000_000, 0).grid(264).tiles(264).priority(priority));
        gpu.synchronize(latency);
        let kernel = gpu.traced("two_waves").remove(0);
        micros(kernel.ended - kernel.ready)
    };
    assert!(wait_us(Priority::Normal) > 2_500.0);
    assert!(wait_us(Priority::High) < 30.0);
}

#[test]
fn a_flood_that_made_room_still_does_all_of_its_work() {
    let gpu = Gpu::without_overheads();
    let (flood, latency) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    let job = Job::new("flood", 640_000_000 * 1_000, 0).grid(100 * 132).tiles(100 * 132);
    let alone = gpu.time_us(flood, || gpu.launch(flood, job));
    let short = Job::new("short", 640_000_000 * 20, 0).priority(Priority::High);
    let both = gpu.time_us(flood, || {
        gpu.launch(flood, job);
        for _ in 0..10 {
            gpu.launch(latency, short);
        }
    });
    let work = alone + 10.0 * 20.0;
    // The SMs that stand empty while the others' blocks end add at most a block's 10 us for each arrival.
    assert!(both > work * 0.999 && both < work + 10.0 * 12.0, "{both} us for {work} us of work");
}

#[test]
fn a_kernel_that_waits_keeps_later_ones_behind_it_that_would_find_room() {
    let started_after_us = |someone_waits: bool| {
        let gpu = Gpu::without_overheads();
        let (waiting, behind) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
        // Half of the room on SMs 0 to 7 is free, and nothing elsewhere.
        gpu.launch(gpu.stream_on(8, 124), Job::new("holder", 640_000_000_000, 0).grid(124).tiles(124));
        gpu.launch(gpu.stream_on(0, 8), Job { blocks_per_sm: 2, ..Job::new("holder", 640_000_000_000, 0).grid(8).tiles(8) });
        if someone_waits {
            gpu.launch(waiting, Job::new("waiting", 640_000_000, 0));
        }
        gpu.launch(behind, Job { blocks_per_sm: 2, ..Job::new("behind", 1_000_000, 0).grid(1).tiles(1) });
        gpu.synchronize(behind);
        micros(gpu.traced("behind")[0].started)
    };
    assert_eq!(started_after_us(false), 0.0);
    assert!(started_after_us(true) > 1_000.0);
}

#[test]
fn a_partition_reports_its_sms_and_takes_memory() {
    let gpu = Gpu::h200();
    assert_eq!(gpu.device.partition_sms(PartitionId::WHOLE).unwrap(), Sms(132));
    let free = gpu.device.free_bytes().unwrap();
    let partition = gpu.device.create_partition(TpcSet::range(0, 3).with(65)).unwrap();
    assert_eq!(gpu.device.partition_sms(partition).unwrap(), Sms(8));
    assert_eq!(free - gpu.device.free_bytes().unwrap(), 5_800_000);
}
