//! Memory, the topology, and what reaches a kernel.

use smidgen_runtime::device::{Buffer, Device, DeviceError, DevicePtr, Graph, PartitionId};

use crate::gpu::{ECHOED, Gpu, is_sanitized};

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn memory_holds_what_was_uploaded_and_filled() {
    let gpu = Gpu::open();
    let stream = gpu.stream(PartitionId::WHOLE);
    for bytes in [1_usize, 32, 1000, 1 << 20, (16 << 20) + 3] {
        let buffer = Buffer::new(&gpu.device, bytes as u64).unwrap();
        assert_eq!(buffer.ptr().0 % 256, 0);
        let sent: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
        let mut scratch = sent.clone();
        gpu.cuda.upload(stream, buffer.ptr(), &scratch).unwrap();
        // The contract: the source is ours again at once.
        scratch.fill(0);
        let mut received = vec![0; bytes];
        gpu.cuda.download(stream, buffer.ptr(), &mut received).unwrap();
        assert!(received == sent, "{bytes} bytes");

        let kept = bytes / 2;
        gpu.cuda.fill(stream, buffer.ptr().offset(kept as u64), 0xa5, (bytes - kept) as u64).unwrap();
        gpu.cuda.download(stream, buffer.ptr(), &mut received).unwrap();
        assert!(received[..kept] == sent[..kept], "{bytes} bytes");
        assert!(received[kept..].iter().all(|&byte| byte == 0xa5), "{bytes} bytes");
    }
    gpu.cuda.upload(stream, DevicePtr::NULL, &[]).unwrap();
    gpu.cuda.download(stream, DevicePtr::NULL, &mut []).unwrap();
    gpu.cuda.fill(stream, DevicePtr::NULL, 0, 0).unwrap();
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn asking_for_more_memory_than_there_is_says_how_much_is_free() {
    let gpu = Gpu::open();
    let four_terabytes = 1 << 42;
    let error = Buffer::new(&gpu.device, four_terabytes).unwrap_err();
    let DeviceError::OutOfMemory { asked, free } = error else { panic!("{error}") };
    assert_eq!(asked, four_terabytes);
    assert!(0 < free && free <= gpu.cuda.topology().memory_bytes, "{free}");
    assert!(Buffer::new(&gpu.device, 1 << 20).is_ok(), "the device still works");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn memory_that_was_dropped_is_free_again() {
    let gpu = Gpu::open();
    // 512 GiB in total, more than any GPU has: this fails unless each buffer is given back.
    for _ in 0..128 {
        Buffer::new(&gpu.device, 4 << 30).unwrap();
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_topology_describes_a_real_gpu() {
    let gpu = Gpu::open();
    let topology = gpu.cuda.topology();
    assert!(!topology.name.is_empty());
    assert!(topology.compute_capability >= (8, 0), "{topology:?}");
    assert!(topology.driver_version >= 13000);
    assert_eq!(topology.tpcs() * topology.sms_per_tpc, topology.sms.0);
    assert_eq!(topology.tpcs_per_gpc.iter().sum::<u16>(), topology.tpcs());
    assert!(topology.memory_bytes > 1 << 30 && topology.l2_bytes > 1 << 20 && topology.shared_bytes_per_sm >= 64 << 10, "{topology:?}");
    assert!(gpu.cuda.free_bytes().unwrap() <= topology.memory_bytes);
    assert_eq!(gpu.cuda.partition_sms(PartitionId::WHOLE).unwrap(), topology.sms);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn both_parameters_reach_the_kernel() {
    let gpu = Gpu::open();
    let stream = gpu.stream(PartitionId::WHOLE);
    let out = gpu.words(3);
    gpu.launch_echo(stream, &out, 0).unwrap();
    assert_eq!(gpu.read(stream, &out), ECHOED);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_block_may_use_all_the_shared_memory_that_an_sm_gives_to_one_block() {
    let gpu = Gpu::open();
    let stream = gpu.stream(PartitionId::WHOLE);
    let out = gpu.words(3);
    // CUDA keeps 1 KB of each block's share (CUDA C++ Programming Guide, compute capabilities 8.x and 9.0, "Shared Memory").
    let most = gpu.cuda.topology().shared_bytes_per_sm - 1024;
    gpu.launch_echo(stream, &out, most).unwrap();
    assert_eq!(gpu.read(stream, &out), ECHOED);
    let error = gpu.launch_echo(stream, &out, most + 1).unwrap_err();
    assert!(!error.is_sticky(), "{error}");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn what_graphs_take_is_what_becomes_of_free_memory_and_comes_back() {
    let gpu = Gpu::open();
    let (stream, out) = (gpu.stream(PartitionId::WHOLE), gpu.words(3));
    gpu.launch_echo(stream, &out, 0).unwrap();
    gpu.cuda.synchronize(stream).unwrap();
    let free = || gpu.cuda.free_bytes().unwrap();
    let before = free();
    // A sanitizer makes a replay of this many launches take a second.
    let (count, nodes) = if is_sanitized() { (4, 512) } else { (64, 512) };
    let graphs: Vec<_> = (0..count)
        .map(|_| {
            gpu.cuda.begin_capture(stream).unwrap();
            (0..nodes).for_each(|_| gpu.launch_echo(stream, &out, 0).unwrap());
            Graph::end_capture(&gpu.device, stream).unwrap()
        })
        .collect();
    let taken = before.saturating_sub(free());
    let told: u64 = graphs.iter().map(|graph| gpu.cuda.graph_bytes(graph.id())).sum();
    // The rest of what a graph takes, if there is any, comes with its first replay, which nobody measures.
    graphs.iter().for_each(|graph| gpu.cuda.replay(graph.id(), stream).unwrap());
    gpu.cuda.synchronize(stream).unwrap();
    let replayed = before.saturating_sub(free());
    println!("{count} graphs of {nodes} launches: {told} bytes told, {taken} taken, {replayed} once they were replayed");
    // A capture itself may take a piece, which stays for the next one.
    let piece = 32 << 20;
    assert!(told <= taken + piece && taken <= told + piece, "{told} told, {taken} taken");
    let ids: Vec<_> = graphs.iter().map(Graph::id).collect();
    drop(graphs);
    assert!(ids.iter().all(|&id| gpu.cuda.graph_bytes(id) == 0), "a graph that is gone takes nothing");
}
