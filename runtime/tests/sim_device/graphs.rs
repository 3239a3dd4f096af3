//! Capture and replay.

use std::time::Duration;

use smidgen_runtime::device::sim::SimConfig;
use smidgen_runtime::device::{PartitionId, Priority};
use smidgen_runtime::partition::TpcSet;

use crate::support::{Gpu, Job, assert_near};

#[test]
fn a_captured_launch_does_not_run_until_it_is_replayed_and_then_every_time() {
    let gpu = Gpu::h200();
    let stream = gpu.stream(PartitionId::WHOLE);
    let graph = gpu.capture(stream, || gpu.launch(stream, Job::new("node", 1, 1)));
    gpu.synchronize(stream);
    assert!(gpu.traced("node").is_empty());
    for _ in 0..3 {
        gpu.replay(&graph, stream);
    }
    gpu.synchronize(stream);
    assert_eq!(gpu.traced("node").len(), 3);
}

#[test]
fn nodes_keep_the_partitions_and_the_order_they_were_captured_with() {
    let gpu = Gpu::h200();
    let (narrow, wide) = (gpu.stream_on(10, 16), gpu.stream_on(26, 60));
    let graph = gpu.capture(narrow, || {
        gpu.launch(narrow, Job::new("first", 1_000_000_000, 0));
        gpu.device.wait(wide, gpu.mark(narrow).id()).unwrap();
        gpu.launch(wide, Job::new("second", 1_000_000_000, 0));
        gpu.device.wait(narrow, gpu.mark(wide).id()).unwrap();
        gpu.launch(narrow, Job::new("third", 1_000_000_000, 0));
    });
    let other = gpu.stream(PartitionId::WHOLE);
    gpu.replay(&graph, other);
    gpu.launch(other, Job::new("after", 1, 1));
    gpu.synchronize(other);
    let trace = gpu.sim.take_trace();
    assert_eq!(trace.iter().map(|kernel| kernel.symbol).collect::<Vec<_>>(), ["first", "second", "third", "after"]);
    assert_eq!(trace[0].tpcs, TpcSet::range(5, 13));
    assert_eq!(trace[1].tpcs, TpcSet::range(13, 43));
    assert_eq!(trace[2].tpcs, TpcSet::range(5, 13));
    assert!(trace.windows(2).all(|pair| pair[1].ready >= pair[0].ended));
}

/// The order in which three launches of a graph and one of another stream run, which comes while the first of them fills the GPU.
fn order_beside_another_stream(follow: impl Fn(Job) -> Job) -> Vec<&'static str> {
    let gpu = Gpu::h200();
    let (ours, theirs) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    let job = |name| Job::new(name, 64_000_000_000, 0).tiles(132);
    let graph = gpu.capture(ours, || {
        gpu.launch(ours, job("first"));
        gpu.launch(ours, follow(job("second")));
        gpu.launch(ours, follow(job("third")));
    });
    gpu.replay(&graph, ours);
    gpu.device.pass_time(gpu.device.now() + Duration::from_micros(60));
    gpu.launch(theirs, job("other"));
    gpu.synchronize(ours);
    gpu.synchronize(theirs);
    let mut trace = gpu.sim.take_trace();
    trace.sort_by_key(|kernel| kernel.started);
    assert!(trace.windows(2).all(|pair| pair[1].started >= pair[0].ended), "each fills the GPU: {trace:?}");
    trace.iter().map(|kernel| kernel.symbol).collect()
}

#[test]
fn a_launch_that_may_overlap_queues_ahead_of_others_that_come_while_the_one_before_it_runs() {
    assert_eq!(order_beside_another_stream(|job| job), ["first", "other", "second", "third"]);
    assert_eq!(order_beside_another_stream(Job::overlapping), ["first", "second", "other", "third"]);
}

#[test]
fn forked_branches_of_a_graph_run_side_by_side() {
    let gpu = Gpu::h200();
    let (main, side) = (gpu.stream_on(0, 64), gpu.stream_on(64, 64));
    let graph = gpu.capture(main, || {
        gpu.device.wait(side, gpu.mark(main).id()).unwrap();
        gpu.launch(main, Job::new("left", 10_000_000_000, 0));
        gpu.launch(side, Job::new("right", 10_000_000_000, 0));
        gpu.device.wait(main, gpu.mark(side).id()).unwrap();
        gpu.launch(main, Job::new("join", 1, 1));
    });
    gpu.replay(&graph, main);
    gpu.synchronize(main);
    let trace = gpu.sim.take_trace();
    assert_eq!(trace.len(), 3);
    assert_eq!(trace[0].started, trace[1].started);
    assert!(trace[2].ready >= trace[0].ended.max(trace[1].ended));
}

#[test]
fn a_node_costs_what_was_measured_and_more_where_the_partition_changes() {
    const NODES: usize = 500;
    // The start of a graph comes once, whatever the number of its nodes.
    let gpu = Gpu::new(SimConfig { replay_cost: Duration::ZERO, ..SimConfig::h200() });
    let streams = [gpu.stream_on(0, 64), gpu.stream_on(64, 64)];
    let per_node = |hops: bool| {
        let graph = gpu.capture(streams[0], || {
            for turn in 0..NODES {
                let stream = streams[if hops { turn % 2 } else { 0 }];
                gpu.launch(stream, Job::new("empty", 0, 0));
                if hops {
                    gpu.device.wait(streams[(turn + 1) % 2], gpu.mark(stream).id()).unwrap();
                }
            }
        });
        gpu.time_us(streams[0], || gpu.replay(&graph, streams[0])) / NODES as f64
    };
    assert_near(per_node(false), 0.51, 0.03);
    assert_near(per_node(true), 1.20, 0.03);
}

#[test]
fn a_capture_with_a_stream_that_is_not_joined_back_is_an_error_and_ends() {
    let gpu = Gpu::h200();
    let (main, side) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    gpu.device.begin_capture(main).unwrap();
    gpu.device.wait(side, gpu.mark(main).id()).unwrap();
    gpu.launch(side, Job::new("lost", 1, 1));
    let error = gpu.device.end_capture(main).unwrap_err();
    assert!(error.to_string().contains("not joined"), "{error}");
    gpu.synchronize(main);
    gpu.synchronize(side);
}

#[test]
fn a_fill_in_a_graph_happens_at_each_replay_in_its_place_and_an_upload_is_refused() {
    let gpu = Gpu::h200();
    let stream = gpu.stream(PartitionId::WHOLE);
    let buffer = gpu.device.allocate(64).unwrap();
    let graph = gpu.capture(stream, || {
        gpu.launch(stream, Job::new("node", 1, 1));
        gpu.device.fill(stream, buffer, 5, 4).unwrap();
        assert!(gpu.device.upload(stream, buffer, &[6; 4]).is_err(), "a graph does not keep the host's bytes");
    });
    for value in [1, 2] {
        gpu.device.fill(stream, buffer, value, 4).unwrap();
        let mut seen = [0; 4];
        gpu.device.download(stream, buffer, &mut seen).unwrap();
        assert_eq!(seen, [value; 4]);
        gpu.replay(&graph, stream);
        gpu.device.download(stream, buffer, &mut seen).unwrap();
        assert_eq!(seen, [5; 4]);
    }
}

#[test]
fn nodes_keep_their_priority() {
    let gpu = Gpu::without_overheads();
    let (flood, stream, plain) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    let graph = gpu.capture(stream, || gpu.launch(stream, Job::new("urgent", 1_000_000, 0).priority(Priority::High)));
    gpu.launch(flood, Job::new("running", 10_000_000_000, 0));
    gpu.launch(plain, Job::new("plain", 1_000_000, 0));
    gpu.replay(&graph, stream);
    gpu.synchronize(plain);
    let order: Vec<_> = gpu.sim.take_trace().iter().map(|kernel| kernel.symbol).collect();
    assert_eq!(order, ["running", "urgent", "plain"]);
}
