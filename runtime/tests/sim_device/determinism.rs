//! Equal calls give equal times.

use std::time::Duration;

use smidgen_runtime::device::sim::{KernelTrace, SimConfig};
use smidgen_runtime::device::{Graph, PartitionId, Priority, StreamId};
use smidgen_runtime::partition::TpcSet;

use crate::support::{Gpu, Job};

/// A graph of `layers` layers of four kernels.
fn model(gpu: &Gpu, stream: StreamId, layers: u64, rows: u64, priority: Priority) -> Graph {
    gpu.capture(stream, || {
        for layer in 0..layers {
            let wide = |flops, bytes| Job::new("wide", flops, bytes).tiles(800).priority(priority);
            gpu.launch(stream, wide(rows * 30_000_000, 30_000_000 + layer));
            gpu.launch(stream, Job { blocks_per_sm: 4, ..Job::new("norm", rows, rows * 8_192).grid(96).tiles(96).priority(priority) });
            gpu.launch(stream, wide(rows * 60_000_000, 60_000_000));
            gpu.launch(
                stream,
                Job { blocks_per_sm: 2, ..Job::new("attend", rows * 1_000_000, 4_000_000).grid(64).tiles(64).priority(priority) },
            );
        }
    })
}

/// Two tenants in a closed loop, one of them resized by a third stream, for `span` of virtual time.
fn serve(span: Duration) -> (Vec<KernelTrace>, Vec<Duration>, u32) {
    let gpu = Gpu::new(SimConfig::h200());
    let (latency, batch, control) = (gpu.stream(PartitionId::WHOLE), gpu.stream_on(0, 120), gpu.stream(PartitionId::WHOLE));
    let grant = gpu.grant(control, TpcSet::range(0, 66));
    let graphs = [model(&gpu, latency, 50, 8, Priority::High), model(&gpu, batch, 50, 1024, Priority::Normal)];
    let streams = [latency, batch];
    let mut pending = [None, None];
    let (mut times, mut requests) = (Vec::new(), 0);
    while gpu.device.now() < span {
        for tenant in 0..2 {
            let ready = pending[tenant].as_ref().is_none_or(|event: &smidgen_runtime::device::Event| gpu.device.query(event.id()).unwrap());
            if ready {
                times.push(gpu.device.now());
                requests += 1;
                gpu.replay(&graphs[tenant], streams[tenant]);
                gpu.regrant(control, &grant, TpcSet::range(0, 1 + requests as u16 % 66));
                gpu.launch(streams[tenant], Job::new("elastic", 4_000_000_000, 1_000_000).tiles(900).elastic(grant.ptr()));
                pending[tenant] = Some(gpu.mark(streams[tenant]));
            }
        }
        gpu.device.pass_time(span);
    }
    (gpu.sim.take_trace(), times, requests)
}

#[test]
fn the_same_run_twice_gives_the_same_log_to_the_nanosecond() {
    let (first, second) = (serve(Duration::from_millis(60)), serve(Duration::from_millis(60)));
    assert!(first.0.len() > 1_000 && first.2 > 10, "{} kernels, {} requests", first.0.len(), first.2);
    assert_eq!(first, second);
}
