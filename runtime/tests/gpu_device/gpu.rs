//! A GPU with two small kernels on it, and what tests ask of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use smidgen_runtime::device::cuda::CudaDevice;
use smidgen_runtime::device::{Buffer, Device, DeviceError, DevicePtr, FunctionId, LaunchRequest, PartitionId, Priority, StreamId};
use smidgen_runtime::launch::{KernelKey, KernelName, Launch, Params, TilesArg, Work};
use smidgen_runtime::partition::TpcSet;

/// Two kernels with the parameters that every kernel has: a struct of 64 bytes, then the tiles.
///
/// `record_sms` writes the SM of each block to `args.out[block]` and keeps the SM for `args.number` cycles, so that later blocks go elsewhere.
/// `echo` writes `args.number`, `tiles.count` and `tiles.joins` to `args.out`.
pub const PTX: &str = r".version 7.0
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
pub const ECHOED: [u32; 3] = [5, 7, 9];

/// Blocks launched for each SM, two waves of them or more: enough that every SM that may run them does.
const BLOCKS_PER_SM: u32 = 64;

/// The kernels' first parameter.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Args {
    pub out: DevicePtr,
    pub number: u64,
    pub unused: [u64; 6],
}

/// Whether a sanitizer watches, to which a launch on a stream of its own takes a second.
pub fn is_sanitized() -> bool {
    std::env::var_os("SMIDGEN_SANITIZED").is_some()
}

/// A GPU with [`PTX`] loaded, for one test at a time: blocks of another test could keep an SM full until all of ours ran elsewhere.
pub struct Gpu {
    pub device: Arc<dyn Device>,
    pub cuda: Arc<CudaDevice>,
    _alone: MutexGuard<'static, ()>,
}

impl Gpu {
    pub fn open() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock();
        let cuda = CudaDevice::open(0).expect("these tests run on a machine with a GPU");
        cuda.load(PTX.as_bytes()).expect("the PTX loads");
        Self { device: Arc::clone(&cuda) as Arc<dyn Device>, cuda, _alone: alone }
    }

    pub fn tpcs(&self) -> u16 {
        self.cuda.topology().tpcs()
    }

    pub fn stream(&self, partition: PartitionId) -> StreamId {
        self.cuda.create_stream(partition, Priority::Normal).expect("a stream")
    }

    pub fn partition(&self, tpcs: TpcSet) -> PartitionId {
        self.cuda.create_partition(tpcs).expect("a partition")
    }

    pub fn function(&self, symbol: &'static str) -> FunctionId {
        self.cuda.function(symbol).expect("a kernel of the PTX")
    }

    /// Blocks for the whole GPU, whatever partition they are launched in.
    pub fn blocks(&self) -> u32 {
        self.cuda.topology().sms.get() * BLOCKS_PER_SM
    }

    pub fn words(&self, count: u32) -> Buffer {
        Buffer::new(&self.device, u64::from(count) * 4).expect("device memory")
    }

    pub fn read(&self, stream: StreamId, buffer: &Buffer) -> Vec<u32> {
        let mut bytes = vec![0; buffer.bytes() as usize];
        self.cuda.download(stream, buffer.ptr(), &mut bytes).expect("a download");
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
    }

    pub fn record_sms(&self, stream: StreamId, out: &Buffer, priority: Priority) {
        let args = Args { out: out.ptr(), number: 20_000, unused: [0; 6] };
        launch(&*self.cuda, stream, self.function("record_sms"), args, [self.blocks(), 0], priority).expect("a launch");
    }

    pub fn launch_echo(&self, stream: StreamId, out: &Buffer, shared_bytes: u32) -> Result<(), DeviceError> {
        let args = Args { out: out.ptr(), number: ECHOED[0].into(), unused: [0; 6] };
        launch(&*self.cuda, stream, self.function("echo"), args, [1, shared_bytes], Priority::Normal)
    }

    /// The SMs on which blocks launched on `stream` ran.
    pub fn sms_used(&self, stream: StreamId) -> BTreeSet<u32> {
        let out = self.words(self.blocks());
        self.cuda.fill(stream, out.ptr(), 0xff, out.bytes()).expect("a fill");
        self.record_sms(stream, &out, Priority::Normal);
        self.read(stream, &out).into_iter().collect()
    }

    /// The SMs that a grant of these TPCs names.
    pub fn granted(&self, tpcs: TpcSet) -> BTreeSet<u32> {
        let mask = self.cuda.sm_mask(tpcs).expect("a mask");
        let topology = self.cuda.topology();
        if tpcs == topology.all_tpcs() {
            assert_eq!(mask, [u32::MAX; 8], "the whole GPU is granted without a look at its SMs");
            return (0..topology.sms.get()).collect();
        }
        (0..256).filter(|sm| mask[*sm as usize / 32] >> (sm % 32) & 1 == 1).collect()
    }
}

pub fn launch(
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
        begins_by_number: false,
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
