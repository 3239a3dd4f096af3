//! Streams, events and host time.

use std::time::Duration;

use smidgen_runtime::device::sim::SimConfig;
use smidgen_runtime::device::{Event, PartitionId};

use crate::support::{Gpu, Job, assert_near, micros, with_curves};

/// A kernel of 10 us wherever it runs.
fn ten_us() -> (Job, Gpu) {
    let job = Job::new("ten_us", 1, 1);
    (job, Gpu::new(with_curves(SimConfig::h200(), &[(job, &[(2, 10.0), (132, 10.0)])])))
}

#[test]
fn work_on_one_stream_runs_in_order() {
    let gpu = Gpu::h200();
    let stream = gpu.stream(PartitionId::WHOLE);
    // Eight blocks leave most of the GPU free, so that only stream order keeps these apart.
    for flops in [5_000_000_000, 1_000_000, 300_000_000] {
        gpu.launch(stream, Job::new("link", flops, 0).grid(8).tiles(8));
    }
    gpu.synchronize(stream);
    let links = gpu.traced("link");
    assert_eq!(links.len(), 3);
    assert!(links.windows(2).all(|pair| pair[1].ready >= pair[0].ended), "{links:?}");
}

#[test]
fn streams_run_side_by_side_where_room_is_left() {
    let gpu = Gpu::without_overheads();
    let (one, other) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    let half = Job::new("half", 10_000_000_000, 0).grid(66).tiles(66);
    let alone = gpu.time_us(one, || gpu.launch(one, half));
    let both = gpu.time_us(one, || {
        gpu.launch(one, half);
        gpu.launch(other, half);
    });
    assert_near(both, alone, 0.01);
    gpu.synchronize(other);
}

#[test]
fn an_event_orders_work_across_streams() {
    let gpu = Gpu::h200();
    let (producer, consumer) = (gpu.stream_on(0, 64), gpu.stream_on(64, 64));
    gpu.launch(producer, Job::new("produce", 50_000_000_000, 0));
    let produced = gpu.mark(producer);
    gpu.device.wait(consumer, produced.id()).unwrap();
    gpu.launch(consumer, Job::new("consume", 1_000_000, 0));
    // Recorded anew: the wait was for the first mark, and does not wait for this one.
    gpu.launch(producer, Job::new("later", 50_000_000_000, 0));
    gpu.device.record(produced.id(), producer).unwrap();
    gpu.synchronize(consumer);
    assert!(!gpu.device.query(produced.id()).unwrap());
    gpu.synchronize(producer);
    assert!(gpu.device.query(produced.id()).unwrap());
    let trace = gpu.sim.take_trace();
    let kernel = |name| trace.iter().find(|kernel| kernel.symbol == name).unwrap();
    assert!(kernel("consume").ready >= kernel("produce").ended);
    assert!(kernel("consume").ended < kernel("later").ended);
}

#[test]
fn waiting_for_an_event_that_was_never_recorded_does_not_wait() {
    let gpu = Gpu::h200();
    let stream = gpu.stream(PartitionId::WHOLE);
    gpu.device.wait(stream, gpu.event().id()).unwrap();
    gpu.launch(stream, Job::new("free", 1, 1));
    gpu.synchronize(stream);
    assert_eq!(gpu.traced("free").len(), 1);
}

#[test]
fn an_event_dropped_before_it_is_reached_still_holds_back_who_waits_for_it() {
    let gpu = Gpu::h200();
    let (producer, consumer) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    gpu.launch(producer, Job::new("produce", 50_000_000_000, 0).grid(8));
    let event = gpu.mark(producer);
    gpu.device.wait(consumer, event.id()).unwrap();
    drop(event);
    gpu.launch(consumer, Job::new("consume", 1, 1).grid(8));
    gpu.synchronize(consumer);
    let trace = gpu.sim.take_trace();
    assert_eq!(trace.iter().map(|kernel| kernel.symbol).collect::<Vec<_>>(), ["produce", "consume"]);
}

#[test]
fn elapsed_is_the_device_time_between_two_events() {
    let (job, gpu) = ten_us();
    let stream = gpu.stream(PartitionId::WHOLE);
    let start = gpu.mark(stream);
    gpu.launch(stream, job);
    let end = gpu.mark(stream);
    assert!(gpu.device.elapsed(start.id(), end.id()).is_err(), "not complete");
    gpu.synchronize(stream);
    // From the first mark on, the host needs 4.1 us to launch.
    assert_near(micros(gpu.device.elapsed(start.id(), end.id()).unwrap()), 14.1, 0.05);
}

#[test]
fn time_stands_still_until_a_caller_lets_it_pass() {
    let (job, gpu) = ten_us();
    let stream = gpu.stream(PartitionId::WHOLE);
    let at = gpu.device.now();
    gpu.launch(stream, job);
    let done = gpu.mark(stream);
    assert!(!gpu.device.query(done.id()).unwrap());
    assert_eq!(gpu.device.now(), at);
    gpu.device.pass_time(at + Duration::from_micros(3));
    assert_eq!(gpu.device.now(), at + Duration::from_micros(3));
    gpu.device.pass_time(Duration::MAX);
    assert!(gpu.device.query(done.id()).unwrap(), "the next event is the mark");
    let end = gpu.device.now();
    gpu.device.pass_time(Duration::MAX);
    assert_eq!(gpu.device.now(), end, "nothing is left that could happen");
    gpu.device.pass_time(end + Duration::from_secs(1));
    assert_eq!(gpu.device.now(), end + Duration::from_secs(1));
}

#[test]
fn launch_and_hop_overheads_are_those_measured() {
    const LAUNCHES: u32 = 400;
    let per_kernel = |gpu: &Gpu, job: Job, hops: bool| {
        let streams = [gpu.stream_on(0, 64), gpu.stream_on(64, 64)];
        gpu.time_us(streams[0], || {
            for turn in 0..LAUNCHES as usize {
                let stream = streams[if hops { turn % 2 } else { 0 }];
                gpu.launch(stream, job);
                if hops {
                    gpu.device.wait(streams[(turn + 1) % 2], gpu.mark(stream).id()).unwrap();
                }
            }
        }) / f64::from(LAUNCHES)
    };
    let empty = Job::new("empty", 0, 0);
    assert_near(per_kernel(&Gpu::h200(), empty, false), 4.1, 0.02);
    assert_near(per_kernel(&Gpu::h200(), empty, true), 5.0, 0.02);
    let (job, gpu) = ten_us();
    assert_near(per_kernel(&gpu, job, false), 10.12, 0.005);
    assert_near(per_kernel(&gpu, job, true), 10.25, 0.005);
}

#[test]
fn what_a_small_upload_wrote_is_downloaded_after_the_kernels_before_it() {
    let (job, gpu) = ten_us();
    let stream = gpu.stream(PartitionId::WHOLE);
    let buffer = gpu.device.allocate(1024).unwrap();
    gpu.launch(stream, job);
    gpu.device.upload(stream, buffer.offset(8), &[1, 2, 3]).unwrap();
    gpu.device.fill(stream, buffer.offset(9), 9, 1).unwrap();
    let mut seen = [7; 4];
    gpu.device.download(stream, buffer.offset(8), &mut seen).unwrap();
    assert_eq!(seen, [1, 9, 3, 0]);
    assert!(gpu.device.now() > Duration::from_micros(14));
}

#[test]
fn an_event_that_keeps_no_time_orders_streams_and_is_not_asked_for_the_time() {
    let (job, gpu) = ten_us();
    let stream = gpu.stream(PartitionId::WHOLE);
    let (start, end) = (gpu.mark(stream), Event::new(&gpu.device).unwrap());
    gpu.launch(stream, job);
    gpu.device.record(end.id(), stream).unwrap();
    gpu.synchronize(stream);
    assert!(gpu.device.query(end.id()).unwrap());
    let refused = gpu.device.elapsed(start.id(), end.id()).unwrap_err();
    assert!(refused.to_string().contains("keeps no time"), "{refused}");
}
