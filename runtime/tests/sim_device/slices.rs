//! Processes that take turns on the GPU.

use std::time::Duration;

use smidgen_runtime::device::PartitionId;
use smidgen_runtime::device::sim::{Sharing, SimConfig};

use crate::support::{Gpu, Job, assert_near, micros, with_curves, without_overheads};

fn two_processes(config: SimConfig) -> (Gpu, [smidgen_runtime::device::StreamId; 2]) {
    let gpu = Gpu::new(config);
    let streams = [0, 1].map(|process| {
        gpu.sim.set_process(process);
        gpu.stream(PartitionId::WHOLE)
    });
    (gpu, streams)
}

#[test]
fn two_busy_processes_get_half_of_the_time_each() {
    let sharing = Sharing::TimeSliced { quantum: Duration::from_millis(2), switch: Duration::ZERO };
    let (gpu, streams) = two_processes(without_overheads(SimConfig::h200()).with_sharing(sharing));
    let job = Job::new("long", 640_000_000_000 * 50, 0).tiles(10_000);
    for stream in streams {
        gpu.launch(stream, job);
    }
    gpu.synchronize(streams[0]);
    gpu.synchronize(streams[1]);
    let ends: Vec<f64> = gpu.traced("long").iter().map(|kernel| micros(kernel.ended)).collect();
    assert_near(ends[0], 98_000.0, 0.001);
    assert_near(ends[1], 100_000.0, 0.001);
}

#[test]
fn a_process_alone_is_not_slowed_and_streams_of_one_process_run_side_by_side() {
    let (gpu, streams) = two_processes(without_overheads(SimConfig::h200()).with_sharing(Sharing::time_sliced()));
    let job = Job::new("long", 640_000_000_000 * 10, 0).grid(66);
    assert_near(gpu.time_us(streams[0], || gpu.launch(streams[0], job)), 20_000.0, 0.001);
    let second = gpu.stream(PartitionId::WHOLE);
    let us = gpu.time_us(streams[1], || {
        gpu.launch(streams[1], job);
        gpu.launch(second, job);
    });
    assert_near(us, 20_120.0, 0.001);
}

#[test]
fn time_slicing_costs_a_short_request_and_a_gemm_what_was_measured() {
    let gemm = Job::new("gemm", 2 * 8192 * 14336 * 4096, 0).tiles(3584);
    let decode = Job::new("decode", 0, 1_900_000_000).tiles(10_000);
    let alone_gemm_us = gemm.work.flops as f64 / 639e6;
    let config = with_curves(SimConfig::h200(), &[(gemm, &[(132, alone_gemm_us)]), (decode, &[(132, 889.0)])]);
    let (gpu, [requests, batch]) = two_processes(config.with_sharing(Sharing::time_sliced()));
    for _ in 0..400 {
        gpu.launch(batch, gemm);
    }
    let mut latencies = Vec::new();
    let end = Duration::from_millis(400);
    while gpu.device.now() < end {
        latencies.push(gpu.time_us(requests, || gpu.launch(requests, decode)));
        gpu.device.pass_time(gpu.device.now() + Duration::from_micros(30));
    }
    latencies.sort_by(f64::total_cmp);
    assert_near(latencies[latencies.len() / 2], 3_370.0, 0.10);
    let gemms = gpu.traced("gemm").len() as f64;
    assert_near(gemms * gemm.work.flops as f64 / micros(gpu.device.now()) / 1e6, 425.0, 0.10);
}
