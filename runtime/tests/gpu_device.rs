//! The CUDA back end as the runtime's other rooms see it. Most tests need a GPU; those that do not show what a machine without one gets.
#![cfg(feature = "cuda-13000")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use smidgen_runtime::device::cuda::{CudaDevice, probe};
use smidgen_runtime::device::{
    Buffer, Device, DeviceError, DevicePtr, Event, FunctionId, Graph, LaunchRequest, PartitionId, Priority, Sms, StreamId,
};
use smidgen_runtime::launch::{KernelKey, KernelName, Launch, Params, TilesArg, Work};
use smidgen_runtime::partition::TpcSet;

/// Two kernels with the parameters that every kernel has: a struct of 64 bytes, then the tiles.
///
/// `record_sms` writes the SM of each block to `args.out[block]` and keeps the SM for `args.number` cycles, so that later blocks go elsewhere.
/// `echo` writes `args.number`, `tiles.count` and `tiles.joins` to `args.out`.
const PTX: &str = r".version 7.0
.target sm_80
.address_size 64

.visible .entry record_sms(.param .align 8 .b8 args[64], .param .align 8 .b8 tiles[24])
{
    .reg .pred %p;
    .reg .b32 %block, %sm, %thread;
    .reg .b64 %out, %cycles, %offset, %start, %now, %spent;
    ld.param.u64 %out, [args];
    ld.param.u64 %cycles, [args+8];
    mov.u64 %start, %clock64;
    mov.u32 %thread, %tid.x;
    setp.ne.u32 %p, %thread, 0;
    @%p bra stay;
    mov.u32 %block, %ctaid.x;
    mov.u32 %sm, %smid;
    cvta.to.global.u64 %out, %out;
    mul.wide.u32 %offset, %block, 4;
    add.u64 %out, %out, %offset;
    st.global.u32 [%out], %sm;
stay:
    mov.u64 %now, %clock64;
    sub.u64 %spent, %now, %start;
    setp.lt.u64 %p, %spent, %cycles;
    @%p bra stay;
    ret;
}

.visible .entry echo(.param .align 8 .b8 args[64], .param .align 8 .b8 tiles[24])
{
    .reg .b32 %number, %count, %joins;
    .reg .b64 %out;
    ld.param.u64 %out, [args];
    cvta.to.global.u64 %out, %out;
    ld.param.u32 %number, [args+8];
    ld.param.u32 %count, [tiles+16];
    ld.param.u32 %joins, [tiles+20];
    st.global.u32 [%out], %number;
    st.global.u32 [%out+4], %count;
    st.global.u32 [%out+8], %joins;
    ret;
}
";

/// What `echo` leaves where [`launch_echo`] sent it.
const ECHOED: [u32; 3] = [5, 7, 9];

/// Blocks launched for each SM, two waves of them or more: enough that every SM that may run them does.
const BLOCKS_PER_SM: u32 = 64;

/// The kernels' first parameter.
#[derive(Clone, Copy)]
#[repr(C)]
struct Args {
    out: DevicePtr,
    number: u64,
    unused: [u64; 6],
}

/// A GPU with [`PTX`] loaded, for one test at a time: blocks of another test could keep an SM full until all of ours ran elsewhere.
struct Gpu {
    device: Arc<dyn Device>,
    cuda: Arc<CudaDevice>,
    _alone: MutexGuard<'static, ()>,
}

impl Gpu {
    fn open() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock();
        let cuda = CudaDevice::open(0).expect("these tests run on a machine with a GPU");
        cuda.load(PTX.as_bytes()).expect("the PTX loads");
        Self { device: Arc::clone(&cuda) as Arc<dyn Device>, cuda, _alone: alone }
    }

    fn tpcs(&self) -> u16 {
        self.cuda.topology().tpcs()
    }

    fn stream(&self, partition: PartitionId) -> StreamId {
        self.cuda.create_stream(partition, Priority::Normal).expect("a stream")
    }

    fn partition(&self, tpcs: TpcSet) -> PartitionId {
        self.cuda.create_partition(tpcs).expect("a partition")
    }

    fn function(&self, symbol: &'static str) -> FunctionId {
        self.cuda.function(symbol).expect("a kernel of the PTX")
    }

    /// Blocks for the whole GPU, whatever partition they are launched in.
    fn blocks(&self) -> u32 {
        self.cuda.topology().sms.get() * BLOCKS_PER_SM
    }

    fn words(&self, count: u32) -> Buffer {
        Buffer::new(&self.device, u64::from(count) * 4).expect("device memory")
    }

    fn read(&self, stream: StreamId, buffer: &Buffer) -> Vec<u32> {
        let mut bytes = vec![0; buffer.bytes() as usize];
        self.cuda.download(stream, buffer.ptr(), &mut bytes).expect("a download");
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
    }

    fn record_sms(&self, stream: StreamId, out: &Buffer, priority: Priority) {
        let args = Args { out: out.ptr(), number: 20_000, unused: [0; 6] };
        launch(&*self.cuda, stream, self.function("record_sms"), args, [self.blocks(), 0], priority).expect("a launch");
    }

    fn launch_echo(&self, stream: StreamId, out: &Buffer, shared_bytes: u32) -> Result<(), DeviceError> {
        let args = Args { out: out.ptr(), number: ECHOED[0].into(), unused: [0; 6] };
        launch(&*self.cuda, stream, self.function("echo"), args, [1, shared_bytes], Priority::Normal)
    }

    /// The SMs on which blocks launched on `stream` ran.
    fn sms_used(&self, stream: StreamId) -> BTreeSet<u32> {
        let out = self.words(self.blocks());
        self.cuda.fill(stream, out.ptr(), 0xff, out.bytes()).expect("a fill");
        self.record_sms(stream, &out, Priority::Normal);
        self.read(stream, &out).into_iter().collect()
    }

    /// The SMs that a grant of these TPCs names.
    fn granted(&self, tpcs: TpcSet) -> BTreeSet<u32> {
        let mask = self.cuda.sm_mask(tpcs).expect("a mask");
        let topology = self.cuda.topology();
        if tpcs == topology.all_tpcs() {
            assert_eq!(mask, [u32::MAX; 8], "the whole GPU is granted without a look at its SMs");
            return (0..topology.sms.get()).collect();
        }
        (0..256).filter(|sm| mask[*sm as usize / 32] >> (sm % 32) & 1 == 1).collect()
    }
}

fn launch(
    device: &dyn Device,
    stream: StreamId,
    function: FunctionId,
    args: Args,
    [grid, shared_bytes]: [u32; 2],
    priority: Priority,
) -> Result<(), DeviceError> {
    let params = Params::new(args);
    let launch = Launch {
        symbol: "",
        grid,
        block: 32,
        shared_bytes,
        blocks_per_sm: 1,
        tiles: grid,
        blocks_per_tile: 1,
        elastic: false,
        programmatic: false,
        params,
    };
    let request = LaunchRequest {
        function,
        launch: &launch,
        tiles: TilesArg { count: ECHOED[1], joins: ECHOED[2], ..TilesArg::default() },
        priority,
        overlaps: false,
        key: KernelKey::new(KernelName::new("test"), [grid]),
        work: Work::default(),
    };
    device.launch(stream, &request)
}

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
fn a_kernel_runs_on_every_sm_of_its_partition_and_on_no_other() {
    let gpu = Gpu::open();
    let last = gpu.tpcs();
    let odd: TpcSet = (0..last).filter(|tpc| tpc % 2 == 1).collect();
    for tpcs in [TpcSet::range(0, 1), TpcSet::range(3, 8), TpcSet::range(last - 2, last), odd, TpcSet::range(0, last)] {
        let partition = gpu.partition(tpcs);
        assert_eq!(gpu.cuda.partition_sms(partition).unwrap(), gpu.cuda.topology().sms_of(tpcs), "{tpcs:?}");
        assert_eq!(gpu.sms_used(gpu.stream(partition)), gpu.granted(tpcs), "{tpcs:?}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn disjoint_partitions_share_no_sm_while_both_run() {
    let gpu = Gpu::open();
    let middle = gpu.tpcs() / 2;
    let halves = [TpcSet::range(0, middle), TpcSet::range(middle, gpu.tpcs())];
    let runs = halves.map(|tpcs| (gpu.stream(gpu.partition(tpcs)), gpu.words(gpu.blocks())));
    for round in 0..4 {
        for (stream, out) in &runs {
            gpu.cuda.fill(*stream, out.ptr(), 0xff, out.bytes()).unwrap();
            gpu.record_sms(*stream, out, Priority::Normal);
        }
        let [low, high] = runs.each_ref().map(|(stream, out)| gpu.read(*stream, out).into_iter().collect::<BTreeSet<u32>>());
        assert!(low.is_disjoint(&high), "round {round}: {low:?} {high:?}");
        assert_eq!(low.len() + high.len(), usize::from(gpu.cuda.topology().sms.0), "round {round}: {low:?} {high:?}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_mask_of_each_tpc_names_the_sms_on_which_kernels_in_its_partition_run() {
    let gpu = Gpu::open();
    let mut seen = BTreeSet::new();
    for tpc in 0..gpu.tpcs() {
        let one = TpcSet::range(tpc, tpc + 1);
        let sms = gpu.granted(one);
        assert_eq!(gpu.sms_used(gpu.stream(gpu.partition(one))), sms, "TPC {tpc}");
        assert!(seen.is_disjoint(&sms), "TPC {tpc} shares one of {sms:?}");
        seen.extend(sms);
    }
    assert_eq!(seen, gpu.granted(gpu.cuda.topology().all_tpcs()));
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_mask_of_any_set_names_the_sms_on_which_kernels_in_its_partition_run() {
    let gpu = Gpu::open();
    // Which TPCs: the bits of random numbers from Marsaglia's xorshift64 ("Xorshift RNGs", 2003), always the same.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bit = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random >> 63 == 1
    };
    for _ in 0..24 {
        let tpcs: TpcSet = (0..gpu.tpcs()).filter(|_| bit()).collect();
        assert_eq!(gpu.sms_used(gpu.stream(gpu.partition(tpcs))), gpu.granted(tpcs), "{tpcs:?}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn masks_are_measured_rightly_beside_kernels_that_fill_every_sm() {
    let gpu = Gpu::open();
    let busy = gpu.stream(PartitionId::WHOLE);
    let out = gpu.words(gpu.blocks());
    let record = gpu.function("record_sms");
    // Two waves of about 10 ms each.
    let args = Args { out: out.ptr(), number: 20_000_000, unused: [0; 6] };
    launch(&*gpu.cuda, busy, record, args, [gpu.blocks(), 0], Priority::Normal).unwrap();
    let first = gpu.granted(TpcSet::range(0, 1));
    assert_eq!(gpu.sms_used(gpu.stream(gpu.partition(TpcSet::range(0, 1)))), first);
    gpu.cuda.synchronize(busy).unwrap();
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn no_mask_names_sms_that_the_gpu_lacks() {
    let gpu = Gpu::open();
    assert_eq!(gpu.cuda.sm_mask(TpcSet::EMPTY).unwrap(), [0; 8]);
    for bad in [TpcSet::range(gpu.tpcs(), gpu.tpcs() + 1), TpcSet::range(0, TpcSet::CAPACITY)] {
        let error = gpu.cuda.sm_mask(bad).unwrap_err();
        assert!(matches!(error, DeviceError::BadPartition { asked, .. } if asked == bad), "{error}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_set_without_tpcs_or_beyond_the_gpu_is_no_partition() {
    let gpu = Gpu::open();
    for bad in [TpcSet::EMPTY, TpcSet::range(gpu.tpcs(), gpu.tpcs() + 1), TpcSet::range(0, TpcSet::CAPACITY)] {
        let error = gpu.cuda.create_partition(bad).unwrap_err();
        let DeviceError::BadPartition { asked, tpcs } = error else { panic!("{error}") };
        assert_eq!((asked, tpcs), (bad, gpu.tpcs()));
    }
    assert!(gpu.cuda.create_stream(PartitionId(1000), Priority::High).is_err());
    assert!(gpu.cuda.partition_sms(PartitionId(1000)).is_err());
}

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
    let [start, end, after] = [(); 3].map(|()| Event::new(&gpu.device).unwrap());
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
    let at_once = std::env::var_os("SMIDGEN_SANITIZED").is_some();
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

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn kernels_that_are_not_loaded_are_named() {
    let bare = CudaDevice::open(0).unwrap();
    assert!(matches!(bare.function("echo"), Err(DeviceError::NoKernels)));
    assert!(matches!(bare.load(&[]), Err(DeviceError::NoKernels)));
    bare.load(PTX.as_bytes()).unwrap();
    assert_eq!(bare.function("echo").unwrap(), bare.function("echo").unwrap());
    let error = bare.function("no_such_kernel").unwrap_err();
    assert!(matches!(&error, DeviceError::UnknownSymbol { symbol } if symbol == "no_such_kernel"), "{error}");

    // The driver may look into the text only once a kernel is wanted.
    let misled = CudaDevice::open(0).unwrap();
    let error = misled.load(b"not a kernel").and_then(|()| misled.function("echo")).unwrap_err();
    assert!(!error.is_sticky(), "{error}");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_probe_finds_everything_on_a_machine_that_can_run_smidgen() {
    let found = probe(0);
    found.library.unwrap();
    assert!(found.driver_version.unwrap() >= 13000);
    let topology = found.topology.unwrap();
    assert_eq!(found.devices.unwrap()[0], topology.name);
    let finest = found.finest.unwrap();
    assert_eq!((finest.groups, finest.sms_per_group), (topology.tpcs(), Sms(topology.sms_per_tpc)));
    let coscheduled = found.coscheduled.unwrap();
    assert_eq!(coscheduled.groups * coscheduled.sms_per_group.0 + coscheduled.left_over.0, topology.sms.0);
    assert_eq!(found.partition.unwrap(), Sms(topology.sms_per_tpc));
    let error = CudaDevice::open(10_000).map(drop).unwrap_err();
    assert!(matches!(error, DeviceError::NoGpu(_)), "{error}");
}

#[test]
fn without_a_driver_opening_and_probing_say_what_to_install() {
    // Where there is a GPU, the tests above run instead.
    let Err(error) = CudaDevice::open(0) else { return };
    assert!(matches!(error, DeviceError::NoGpu(_) | DeviceError::OldDriver { .. }), "{error}");
    assert!(error.to_string().contains("the NVIDIA driver"), "{error}");
    let found = probe(0);
    for found in [found.devices.err(), found.topology.err(), found.coscheduled.err(), found.finest.err(), found.partition.err()] {
        assert_eq!(found.map(|error| error.to_string()), Some(error.to_string()));
    }
}

#[test]
fn a_driver_that_is_too_old_is_refused_with_both_versions() {
    let Some(report) = open_with_driver("int cuDriverGetVersion(int *version) { *version = 12080; return 0; }") else { return };
    assert!(report.contains("the driver supports CUDA 12.8, smidgen needs 13.0 or newer"), "{report}");
}

#[test]
fn a_driver_that_fails_or_lacks_functions_is_reported_and_not_called() {
    for (source, report) in [
        ("int cuDriverGetVersion(int *version) { return 34; }", "CUDA_ERROR_STUB_LIBRARY"),
        ("int cuDriverGetVersion(int *version) { *version = 13000; return 0; }", "lacks `cuCtxGetDevResource`"),
        ("int nothing;", "lacks `cuDriverGetVersion`"),
    ] {
        let Some(printed) = open_with_driver(source) else { return };
        assert!(printed.contains(report), "{source}: {printed}");
    }
}

/// What a process prints that opens the device with a driver library compiled from `source`; `None` without a C compiler.
fn open_with_driver(source: &str) -> Option<String> {
    let folder = tempfile::tempdir().expect("a folder for the driver");
    if !compile(source, folder.path()) {
        return None;
    }
    let this_test = std::env::current_exe().expect("the path of this test");
    let output = Command::new(this_test)
        .args(["--exact", "child_opens_the_device", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .expect("this test runs again as a child");
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    Some(printed.into_owned())
}

fn compile(source: &str, folder: &Path) -> bool {
    let c = folder.join("driver.c");
    std::fs::write(&c, source).expect("the source is written");
    let compiler = Command::new("cc").args(["-shared", "-fPIC", "-w", "-o"]).arg(folder.join("libcuda.so")).arg(c).status();
    let Ok(status) = compiler else {
        eprintln!("skipped: there is no C compiler to make a driver library with");
        return false;
    };
    assert!(status.success(), "the driver library compiles");
    true
}

/// Run by [`open_with_driver`] in a process of its own, because a process looks for its driver only once.
#[test]
#[ignore = "run by the tests of broken drivers, in a process of its own"]
fn child_opens_the_device() {
    match CudaDevice::open(0) {
        Ok(_) => println!("opened"),
        Err(error) => println!("{error}"),
    }
}
