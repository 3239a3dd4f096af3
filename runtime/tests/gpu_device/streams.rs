//! Streams, graphs, events and threads.

use std::collections::BTreeSet;
use std::time::Duration;

use smidgen_runtime::device::{Device, Event, Graph, PartitionId, Priority};
use smidgen_runtime::partition::TpcSet;

use crate::gpu::{Args, ECHOED, Gpu, is_sanitized, launch};

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn every_priority_is_accepted_on_streams_launches_and_graph_nodes() {
    let gpu = Gpu::open();
    let out = gpu.words(gpu.blocks());
    let priorities = [Priority::Low, Priority::Normal, Priority::High];
    for partition in [PartitionId::WHOLE, gpu.partition(TpcSet::range(0, 2))] {
        for of_stream in priorities {
            let stream = gpu.cuda.create_stream(partition, of_stream).unwrap();
            for of_launch in priorities {
                gpu.record_sms(stream, &out, of_launch);
            }
            gpu.cuda.begin_capture(stream).unwrap();
            for of_node in priorities {
                gpu.record_sms(stream, &out, of_node);
            }
            let graph = Graph::end_capture(&gpu.device, stream).unwrap();
            gpu.cuda.replay(graph.id(), stream).unwrap();
            gpu.cuda.synchronize(stream).unwrap();
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn graph_nodes_keep_their_partitions_whatever_stream_replays_them() {
    let gpu = Gpu::open();
    let sets = [TpcSet::range(0, 4), TpcSet::range(10, 11), gpu.cuda.topology().all_tpcs()];
    let streams = sets.map(|tpcs| gpu.stream(gpu.partition(tpcs)));
    let out = sets.map(|_| gpu.words(gpu.blocks()));
    let events = sets.map(|_| Event::new(&gpu.device).unwrap());
    gpu.function("record_sms");

    gpu.cuda.begin_capture(streams[0]).unwrap();
    for hop in 0..streams.len() {
        gpu.record_sms(streams[hop], &out[hop], Priority::Normal);
        gpu.cuda.record(events[hop].id(), streams[hop]).unwrap();
        gpu.cuda.wait(streams[(hop + 1) % streams.len()], events[hop].id()).unwrap();
    }
    let graph = Graph::end_capture(&gpu.device, streams[0]).unwrap();

    for replayer in [gpu.stream(PartitionId::WHOLE), gpu.stream(gpu.partition(TpcSet::range(20, 21)))] {
        for out in &out {
            gpu.cuda.fill(replayer, out.ptr(), 0xff, out.bytes()).unwrap();
        }
        gpu.cuda.replay(graph.id(), replayer).unwrap();
        for (&tpcs, out) in sets.iter().zip(&out) {
            let used: BTreeSet<u32> = gpu.read(replayer, out).into_iter().collect();
            assert_eq!(used, gpu.granted(tpcs), "{tpcs:?}");
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn copies_are_refused_under_capture_and_the_capture_goes_on() {
    let gpu = Gpu::open();
    let stream = gpu.stream(PartitionId::WHOLE);
    let out = gpu.words(3);
    gpu.function("echo");
    gpu.cuda.begin_capture(stream).unwrap();
    let up = gpu.cuda.upload(stream, out.ptr(), &[1; 12]).unwrap_err();
    let down = gpu.cuda.download(stream, out.ptr(), &mut [0; 12]).unwrap_err();
    for error in [up, down] {
        assert!(error.to_string().contains("captured"), "{error}");
    }
    gpu.launch_echo(stream, &out, 0).unwrap();
    let graph = Graph::end_capture(&gpu.device, stream).unwrap();
    gpu.cuda.fill(stream, out.ptr(), 0, out.bytes()).unwrap();
    assert_eq!(gpu.read(stream, &out), [0; 3], "captured work does not run");
    gpu.cuda.replay(graph.id(), stream).unwrap();
    assert_eq!(gpu.read(stream, &out), ECHOED);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn events_order_streams_of_different_partitions_and_measure_time() {
    let gpu = Gpu::open();
    let [slow, fast] = [TpcSet::range(0, 1), TpcSet::range(1, 2)].map(|tpcs| gpu.stream(gpu.partition(tpcs)));
    let [start, end, after] = [(); 3].map(|()| Event::timed(&gpu.device).unwrap());
    let (long, late) = (gpu.words(1), gpu.words(3));
    let record = gpu.function("record_sms");
    let cycles = 200_000_000;

    gpu.cuda.record(start.id(), slow).unwrap();
    launch(&*gpu.cuda, slow, record, Args { out: long.ptr(), number: cycles, unused: [0; 6] }, [1, 0], Priority::Normal).unwrap();
    gpu.cuda.record(end.id(), slow).unwrap();
    gpu.cuda.wait(fast, end.id()).unwrap();
    gpu.launch_echo(fast, &late, 0).unwrap();
    gpu.cuda.record(after.id(), fast).unwrap();
    // Under a sanitizer a launch returns when it has ended.
    let at_once = is_sanitized();
    assert!(at_once || !gpu.cuda.query(after.id()).unwrap(), "the second stream waits for the first");

    while !gpu.cuda.query(after.id()).unwrap() {
        gpu.cuda.pass_time(gpu.cuda.now() + Duration::from_micros(1));
    }
    assert!(gpu.cuda.query(end.id()).unwrap(), "the first stream was done before");
    let spent = gpu.cuda.elapsed(start.id(), end.id()).unwrap();
    // No GPU clocks above 4 GHz.
    assert!(spent >= Duration::from_nanos(cycles / 4) && spent < Duration::from_secs(10), "{spent:?}");
    assert_eq!(gpu.read(fast, &late), ECHOED);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn threads_that_never_bound_the_device_may_use_it() {
    let gpu = Gpu::open();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (stream, out) = (gpu.stream(PartitionId::WHOLE), gpu.words(3));
                gpu.launch_echo(stream, &out, 0).unwrap();
                assert_eq!(gpu.read(stream, &out), ECHOED);
            });
        }
    });
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_closed_device_may_be_opened_again() {
    for _ in 0..3 {
        let gpu = Gpu::open();
        let tpcs = TpcSet::range(0, 2);
        assert_eq!(gpu.sms_used(gpu.stream(gpu.partition(tpcs))), gpu.granted(tpcs));
    }
}
