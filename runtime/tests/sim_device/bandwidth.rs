//! DRAM bandwidth by SM count and next to other kernels, against what was measured on the H200.

use smidgen_runtime::device::PartitionId;
use smidgen_runtime::device::sim::SimConfig;

use crate::support::{Gpu, Job, assert_near, with_curves, without_overheads};

const BYTES: u64 = 4_000_000_000;

fn read() -> Job {
    Job::new("read", 0, BYTES).tiles(100_000)
}

/// GB/s of the reader's kernels in the trace.
fn read_rate(gpu: &Gpu) -> f64 {
    let reads = gpu.traced("read");
    let ns: u128 = reads.iter().map(|read| (read.ended - read.started).as_nanos()).sum();
    reads.len() as f64 * BYTES as f64 / ns as f64
}

#[test]
fn a_reader_alone_reaches_the_measured_bandwidth_of_its_sms() {
    let gpu = Gpu::h200();
    for (sms, expected) in [(8, 1000.0), (16, 1890.0), (32, 3250.0), (48, 4110.0), (64, 4460.0), (80, 4500.0), (132, 4640.0)] {
        let stream = gpu.stream_on(0, sms);
        gpu.launch(stream, read());
        gpu.synchronize(stream);
        assert_near(read_rate(&gpu), expected, 0.01);
    }
}

#[test]
fn a_reader_beside_a_gemm_on_the_other_sms_loses_what_was_measured() {
    let gemm = Job::new("gemm", 2 * 8192 * 14336 * 4096, 2 * (8192 * 4096 + 14336 * 4096 + 8192 * 14336)).tiles(3584);
    let curve: &[_] = &[(8, 17282.0), (16, 8670.0), (32, 4342.0), (64, 2313.0), (72, 2134.0), (96, 1827.0), (120, 1577.0), (132, 1490.0)];
    for (sms, expected) in [(16, 1364.0), (24, 1878.0), (32, 2126.0), (40, 2608.0), (48, 2997.0)] {
        let gpu = Gpu::new(with_curves(SimConfig::h200(), &[(gemm, curve)]));
        let (reader, other) = (gpu.stream_on(0, sms), gpu.stream_on(sms, 132 - sms));
        for _ in 0..4 {
            gpu.launch(other, gemm);
        }
        gpu.launch(reader, read());
        gpu.synchronize(reader);
        assert_near(read_rate(&gpu), expected, 0.10);
    }
}

#[test]
fn a_gemm_loses_what_was_measured_to_a_neighbour_s_traffic() {
    let gemm = Job::new("gemm", 2 * 8192 * 14336 * 4096, 2 * (8192 * 4096 + 14336 * 4096 + 8192 * 14336)).tiles(3584);
    let curve: &[_] = &[(64, 2313.0), (72, 2134.0), (96, 1827.0), (120, 1577.0), (132, 1490.0)];
    // The neighbour reads 1.9 GB of weights in each request; requests and GEMM rates as measured with green contexts of these sizes.
    for (decode_sms, gemm_sms, request_ms, tflops) in [(24, 96, 2.06, 473.0), (32, 88, 1.71, 427.0), (48, 72, 1.30, 366.0)] {
        let decode = Job::new("decode", 0, 1_900_000_000).tiles(100_000);
        let decode_alone: &[_] = &[(decode_sms, request_ms * 1e3)];
        let gpu = Gpu::new(with_curves(without_overheads(SimConfig::h200()), &[(gemm, curve), (decode, decode_alone)]));
        let (reader, other) = (gpu.stream_on(0, decode_sms), gpu.stream_on(decode_sms, gemm_sms));
        for _ in 0..4 {
            gpu.launch(reader, decode);
        }
        let us = gpu.time_us(other, || gpu.launch(other, gemm));
        assert_near(gemm.work.flops as f64 / us / 1e6, tflops, 0.10);
    }
}

#[test]
fn two_readers_share_what_the_dram_gives() {
    let gpu = Gpu::without_overheads();
    let (one, other) = (gpu.stream_on(0, 66), gpu.stream_on(66, 66));
    gpu.launch(one, read());
    gpu.launch(other, read());
    gpu.synchronize(one);
    gpu.synchronize(other);
    assert_near(read_rate(&gpu), 4640.0 / 2.0, 0.01);
}

#[test]
fn small_readers_do_not_slow_each_other_while_the_dram_has_more_to_give() {
    let gpu = Gpu::without_overheads();
    let streams = [gpu.stream_on(0, 16), gpu.stream_on(16, 16)];
    for stream in streams {
        gpu.launch(stream, read());
    }
    gpu.synchronize(streams[0]);
    gpu.synchronize(streams[1]);
    // Their 32 SMs can read 3250 GB/s, a little less than twice what 16 can.
    assert_near(read_rate(&gpu), 3250.0 / 2.0, 0.01);
}

#[test]
fn a_compute_bound_kernel_alone_takes_its_roofline() {
    let gpu = Gpu::without_overheads();
    let stream = gpu.stream(PartitionId::WHOLE);
    let us = gpu.time_us(stream, || gpu.launch(stream, Job::new("gemm", 640_000_000_000, 1_000_000)));
    assert_near(us, 1_000.0, 0.001);
    assert_eq!(gpu.device.topology().sms.0, 132);
}
