//! Calls that a driver would refuse.

use std::time::Duration;

use smidgen_runtime::device::{
    Buffer, DeviceError, DevicePtr, EventId, FunctionId, GraphId, LaunchRequest, PartitionId, Priority, StreamId,
};
use smidgen_runtime::launch::{KernelKey, KernelName, Launch, Params, TilesArg, Work};
use smidgen_runtime::partition::TpcSet;

use crate::support::{Gpu, Job};

#[test]
fn a_partition_outside_of_the_gpu_or_of_no_tpc_is_refused_and_makes_nothing() {
    let gpu = Gpu::h200();
    let free = gpu.device.free_bytes().unwrap();
    for tpcs in [TpcSet::EMPTY, TpcSet::range(60, 67), TpcSet::range(127, 128)] {
        let error = gpu.device.create_partition(tpcs).unwrap_err();
        assert!(matches!(error, DeviceError::BadPartition { asked, tpcs: 66 } if asked == tpcs), "{error}");
    }
    assert_eq!(gpu.device.free_bytes().unwrap(), free);
}

#[test]
fn a_grant_names_sms_of_the_gpu_only() {
    let gpu = Gpu::h200();
    assert_eq!(gpu.device.sm_mask(TpcSet::range(15, 17)).unwrap(), [3 << 30, 3, 0, 0, 0, 0, 0, 0]);
    assert_eq!(gpu.device.sm_mask(TpcSet::EMPTY).unwrap(), [0; 8]);
    assert_eq!(gpu.device.sm_mask(TpcSet::range(0, 66)).unwrap(), [u32::MAX; 8]);
    let error = gpu.device.sm_mask(TpcSet::range(60, 67)).unwrap_err();
    assert!(matches!(error, DeviceError::BadPartition { tpcs: 66, .. }), "{error}");
}

#[test]
fn memory_that_is_not_there_is_refused_with_the_figures() {
    let gpu = Gpu::h200();
    let total = gpu.device.topology().memory_bytes;
    let held = Buffer::new(&gpu.device, total - 1024).unwrap();
    let error = gpu.device.allocate(4096).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { asked: 4096, free } if free <= 1024), "{error}");
    assert!(gpu.device.allocate(u64::MAX).is_err());
    drop(held);
    assert_eq!(gpu.device.free_bytes().unwrap(), total);
    gpu.device.free(DevicePtr(12));
}

#[test]
fn handles_that_were_never_given_out_are_refused() {
    let gpu = Gpu::h200();
    let stream = gpu.stream(PartitionId::WHOLE);
    let (nowhere, never) = (StreamId(99), EventId(99));
    let errors = [
        gpu.device.synchronize(nowhere).err(),
        gpu.device.synchronize(StreamId(0)).err(),
        gpu.device.record(gpu.event().id(), nowhere).err(),
        gpu.device.record(never, stream).err(),
        gpu.device.wait(stream, never).err(),
        gpu.device.query(never).err(),
        gpu.device.elapsed(never, never).err(),
        gpu.device.replay(GraphId(99), stream).err(),
        gpu.device.begin_capture(nowhere).err(),
        gpu.device.end_capture(stream).err(),
        gpu.device.partition_sms(PartitionId(99)).err(),
        gpu.device.create_stream(PartitionId(99), Priority::Normal).err(),
        gpu.device.upload(stream, DevicePtr(4), &[1]).err(),
        gpu.device.fill(stream, DevicePtr(u64::MAX), 1, 2).err(),
        gpu.device.download(stream, DevicePtr::NULL, &mut [0]).err(),
    ];
    for (at, error) in errors.into_iter().enumerate() {
        assert!(matches!(error, Some(DeviceError::Driver { call, sticky: false, .. }) if call.starts_with("sim")), "{at}: {error:?}");
    }
    gpu.device.destroy_event(never);
    gpu.device.destroy_graph(GraphId(99));
    gpu.device.upload(stream, DevicePtr::NULL, &[]).unwrap();
}

#[test]
fn launches_that_no_gpu_could_run_are_refused() {
    let gpu = Gpu::h200();
    let stream = gpu.stream(PartitionId::WHOLE);
    let function = gpu.device.function("some_kernel").unwrap();
    let sound = Launch {
        symbol: "some_kernel",
        grid: 1,
        block: 32,
        shared_bytes: 0,
        blocks_per_sm: 1,
        tiles: 0,
        blocks_per_tile: 1,
        elastic: true,
        programmatic: false,
        begins_by_number: false,
        params: Params::new(0_u8),
    };
    let launch = |function, launch: &Launch| {
        let key = KernelKey::new(KernelName::new("some_kernel"), []);
        let request = LaunchRequest {
            function,
            launch,
            tiles: TilesArg::default(),
            priority: Priority::Normal,
            overlaps: false,
            key,
            work: Work::default(),
        };
        gpu.device.launch(stream, &request)
    };
    assert!(launch(function, &sound).is_ok());
    assert!(launch(FunctionId(77), &sound).is_err());
    for unsound in [
        Launch { grid: 0, ..sound },
        Launch { block: 0, ..sound },
        Launch { block: 2048, ..sound },
        Launch { blocks_per_sm: 0, ..sound },
        Launch { shared_bytes: 1 << 20, ..sound },
    ] {
        assert!(launch(function, &unsound).is_err(), "{unsound:?}");
    }
    gpu.synchronize(stream);
}

#[test]
fn a_capturing_stream_cannot_be_waited_for_and_waits_for_nothing_outside() {
    let gpu = Gpu::h200();
    let (stream, busy) = (gpu.stream(PartitionId::WHOLE), gpu.stream(PartitionId::WHOLE));
    gpu.launch(busy, Job::new("busy", 1, 1));
    let outside = gpu.mark(busy);
    gpu.device.begin_capture(stream).unwrap();
    let inside = gpu.mark(stream);
    assert!(gpu.device.synchronize(stream).is_err());
    assert!(gpu.device.begin_capture(stream).is_err());
    assert!(gpu.device.wait(stream, outside.id()).is_err());
    assert!(gpu.device.query(inside.id()).is_err());
    assert!(gpu.device.end_capture(busy).is_err());
    let graph = gpu.device.end_capture(stream).unwrap();
    gpu.device.replay(graph, stream).unwrap();
    gpu.device.pass_time(Duration::MAX);
    gpu.synchronize(stream);
    // The capture is over, and so is what its events marked.
    assert!(gpu.device.wait(busy, inside.id()).is_err());
}
