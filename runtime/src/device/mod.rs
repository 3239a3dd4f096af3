//! The contract between the runtime and a GPU, and the two back ends that keep it.
//!
//! A back end supplies memory, streams inside partitions, kernel launches, events, graphs and a clock, with CUDA's meaning for each:
//! work on one stream runs in order, events order work between streams, a captured graph replays what was enqueued while capturing. Every
//! handle is a plain number that the back end gave out, so that the launch path carries no reference counts; the owning wrappers
//! ([`Buffer`], [`PinnedBuffer`], [`Stream`], [`Event`], [`Graph`]) give theirs back when dropped. Partitions live as long as the device, unless they are given
//! back.
//!
//! | back end | what runs | clock |
//! |---|---|---|
//! | `cuda` | the kernels of the loaded fatbin, on the GPU | wall |
//! | [`sim`] | nothing: each launch takes the time its profile says, on simulated SMs with shared DRAM bandwidth | virtual |
//!
//! What a back end must also keep: a partition that cannot be made as asked is an error and never the whole GPU; the SM count of a partition
//! is read back, not assumed; [`Device::launch`] takes no lock that another tenant's launch holds for longer than the driver call itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bytes::readable;
use crate::partition::TpcSet;

#[cfg(feature = "cuda-13000")]
pub mod cuda;
pub mod sim;

mod pinned;
pub(crate) mod request;

pub use pinned::PinnedBuffer;
pub use request::{
    Element, EncodedMap, EncodedMaps, Fingerprint, Grids, KernelKey, KernelName, Launch, LaunchRequest, MAX_DIMENSIONS, MAX_PARAM_BYTES,
    MAX_TENSOR_MAPS, ParamBytes, Params, ParseKeyError, Precision, Swizzle, TILE_PROGRESS_BYTES, TensorMap, TilesArg, Work,
};

/// A number of streaming multiprocessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sms(pub u16);

impl Sms {
    /// The count as an index or a factor.
    pub const fn get(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for Sms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An address in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The null address: "this operand is absent".
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on; beyond the last one it wraps, and the device refuses what is no address of its.
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// Whether this is [`DevicePtr::NULL`].
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// The address of page-locked host memory, owned by a [`PinnedBuffer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPtr(pub *mut u8);

/// How the GPU orders thread blocks that wait for an SM. It acts when running blocks end, never before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// After everybody else.
    Low,
    /// CUDA's default is the lowest it has; this one leaves room below.
    #[default]
    Normal,
    /// Before everybody else.
    High,
}

/// A partition, as the back end numbered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(pub u32);

impl PartitionId {
    /// The whole GPU, which is always there and is no green context.
    pub const WHOLE: Self = Self(0);
}

/// A stream. On `cuda` this is the `CUstream` itself, which is what opaque launches hand to foreign libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

/// A kernel's entry point in a loaded library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FunctionId(pub u64);

/// An event, owned by an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(pub u64);

/// An instantiated graph, owned by a [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GraphId(pub u64);

/// What the GPU is made of, read from the driver (or from the simulator's description).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// Marketing name, as the driver gives it.
    pub name: String,
    /// SMs that this process may use.
    pub sms: Sms,
    /// SMs in one TPC, the smallest part a partition can hold.
    pub sms_per_tpc: u16,
    /// TPCs in each GPC. The driver does not say, so `cuda` assumes GPCs of equal size (docs/decisions/0003).
    pub tpcs_per_gpc: Vec<u16>,
    /// The driver's co-scheduled groups of SMs.
    pub coscheduled: CoscheduledGroups,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Bytes of L2 cache.
    pub l2_bytes: u64,
    /// Shared memory one SM offers to resident blocks, bytes.
    pub shared_bytes_per_sm: u32,
    /// Compute capability, major and minor.
    pub compute_capability: (u8, u8),
    /// Driver version as `cuDriverGetVersion` encodes it: 13000 is CUDA 13.0.
    pub driver_version: u32,
    /// Kernel-mode driver version, such as `580.159.04`; empty where it cannot be read.
    pub driver: String,
}

/// The groups of SMs that the driver places large clusters in: a partition joined from such groups runs kernels that launch them, one of single TPCs does not. SMs
/// beyond the last group are in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoscheduledGroups {
    /// SMs in each.
    pub sms_per_group: u16,
    /// How many there are.
    pub groups: u16,
}

impl CoscheduledGroups {
    /// As many groups of a size as `sms` SMs hold.
    pub const fn filling(sms_per_group: u16, sms: Sms) -> Self {
        let groups = match sms.0.checked_div(sms_per_group) {
            Some(groups) => groups,
            None => 0,
        };
        Self { sms_per_group, groups }
    }
}

impl Topology {
    /// The number of TPCs.
    pub fn tpcs(&self) -> u16 {
        self.sms.0 / self.sms_per_tpc.max(1)
    }

    /// Every TPC.
    pub fn all_tpcs(&self) -> TpcSet {
        TpcSet::range(0, self.tpcs())
    }

    /// How many SMs the TPCs of `set` have.
    pub fn sms_of(&self, set: TpcSet) -> Sms {
        Sms(set.len() * self.sms_per_tpc)
    }

    /// The fewest TPCs that have at least `sms` SMs.
    pub fn tpcs_for(&self, sms: Sms) -> u16 {
        sms.0.div_ceil(self.sms_per_tpc.max(1))
    }
}

/// A GPU, real or simulated. See the module's page for what its methods promise.
pub trait Device: Send + Sync {
    /// What the GPU is made of.
    fn topology(&self) -> &Topology;

    /// Whether times are virtual and outputs are not computed. Every place that prints a figure asks this.
    fn is_simulated(&self) -> bool;

    /// Makes this device current on the calling thread. Cheap when it already is.
    fn bind_thread(&self) -> Result<(), DeviceError>;

    /// Bytes of device memory that are free now.
    fn free_bytes(&self) -> Result<u64, DeviceError>;

    /// `bytes` of device memory, aligned to 256, not cleared. Use [`Buffer::new`].
    fn allocate(&self, bytes: u64) -> Result<DevicePtr, DeviceError>;

    /// Gives back what [`allocate`](Device::allocate) returned.
    fn free(&self, ptr: DevicePtr);

    /// Copies host bytes to the device in stream order. `source` may be reused as soon as this returns. An error while the stream is captured.
    fn upload(&self, stream: StreamId, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError>;

    /// Writes a few words in stream order, each by itself: quicker than [`upload`](Device::upload) where a back end has something quicker. `target` is a
    /// multiple of 8. An error while the stream is captured.
    fn write_words(&self, stream: StreamId, target: DevicePtr, words: &[u64]) -> Result<(), DeviceError> {
        let mut bytes = [0; 64];
        words.chunks(8).zip((0..).step_by(64)).try_for_each(|(words, at)| {
            bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
            self.upload(stream, target.offset(at), &bytes[..8 * words.len()])
        })
    }

    /// `bytes` of page-locked host memory, which the GPU reads without the host's help; more than 0 bytes, not cleared. Slow (the driver locks every
    /// page): never on the launch path. Use [`PinnedBuffer::new`].
    fn allocate_host(&self, bytes: usize) -> Result<HostPtr, DeviceError>;

    /// Gives back what [`allocate_host`](Device::allocate_host) returned.
    fn free_host(&self, ptr: HostPtr);

    /// Copies page-locked bytes to the device in stream order, without waiting. An error while the stream is captured. Use
    /// [`transfer`](crate::transfer), which keeps the promise below.
    ///
    /// # Safety
    /// `source` lies in memory of [`allocate_host`](Device::allocate_host), and neither changes nor goes away before the stream has done the copy.
    unsafe fn upload_pinned(&self, stream: StreamId, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError>;

    /// Waits for the stream and copies device bytes to the host. The simulator keeps no results and only small writes (at most
    /// 4 KiB each): these read back as written, anything else as zeros.
    fn download(&self, stream: StreamId, source: DevicePtr, target: &mut [u8]) -> Result<(), DeviceError>;

    /// Sets `bytes` device bytes to `value` in stream order.
    fn fill(&self, stream: StreamId, target: DevicePtr, value: u8, bytes: u64) -> Result<(), DeviceError>;

    /// Loads a fatbin or PTX text, whose kernels [`function`](Device::function) then finds.
    fn load(&self, fatbin: &[u8]) -> Result<(), DeviceError>;

    /// The entry point called `symbol`, allowed to use as much dynamic shared memory as an SM gives to one block. Slow the first time.
    fn function(&self, symbol: &'static str) -> Result<FunctionId, DeviceError>;

    /// A partition over exactly these TPCs. Slow (about 1 ms and 6 MB on `cuda`): never on the launch path.
    fn create_partition(&self, tpcs: TpcSet) -> Result<PartitionId, DeviceError>;

    /// Gives back a partition in which nothing runs, in which no stream is left, and on which no graph has nodes that will be replayed. Its
    /// number is not used again. Slow, as making it.
    ///
    /// # Errors
    /// For the whole GPU, a number that is not a partition's, or one with streams left, which then stays as it was. The simulator also refuses
    /// where something runs or a graph has nodes.
    fn destroy_partition(&self, partition: PartitionId) -> Result<(), DeviceError>;

    /// The SM count of a partition, read back from the device.
    fn partition_sms(&self, partition: PartitionId) -> Result<Sms, DeviceError>;

    /// The SMs of these TPCs, one bit per SM in `%smid` order, 32 to a word: what a grant holds. All ones for
    /// [`all_tpcs`](Topology::all_tpcs). The first call for fewer TPCs takes milliseconds on `cuda`, which measures the numbers then: never on
    /// the launch path, nor while this thread captures.
    ///
    /// # Errors
    /// [`DeviceError::BadPartition`] for TPCs that the GPU lacks, [`DeviceError::SmNumbers`] where `%smid` does not identify SMs.
    fn sm_mask(&self, tpcs: TpcSet) -> Result<[u32; 8], DeviceError>;

    /// A stream whose kernels run inside `partition`. It lives as long as the device, unless it is given back. Use [`Stream::new`].
    fn create_stream(&self, partition: PartitionId, priority: Priority) -> Result<StreamId, DeviceError>;

    /// Gives back a stream, which must not be capturing. What was enqueued on it still runs, and graphs captured on it stay as they are.
    fn destroy_stream(&self, stream: StreamId);

    /// Enqueues one kernel.
    fn launch(&self, stream: StreamId, request: &LaunchRequest<'_>) -> Result<(), DeviceError>;

    /// A new event; `timed` for one that [`elapsed`](Device::elapsed) may ask. Use [`Event::new`] or [`Event::timed`].
    fn create_event(&self, timed: bool) -> Result<EventId, DeviceError>;

    /// Gives back an event.
    fn destroy_event(&self, event: EventId);

    /// Marks the present end of `stream` in `event`.
    fn record(&self, event: EventId, stream: StreamId) -> Result<(), DeviceError>;

    /// Makes later work on `stream` wait for what `event` marks.
    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), DeviceError>;

    /// Whether everything before the event's mark is done.
    fn query(&self, event: EventId) -> Result<bool, DeviceError>;

    /// Device time between two completed events.
    fn elapsed(&self, start: EventId, end: EventId) -> Result<Duration, DeviceError>;

    /// Waits until everything on `stream` is done.
    fn synchronize(&self, stream: StreamId) -> Result<(), DeviceError>;

    /// From here on, work on `stream`, and on streams that wait for its events, is recorded and not run. Until the same thread ends the
    /// capture it must not allocate or free, and should have looked up its kernels before.
    fn begin_capture(&self, stream: StreamId) -> Result<(), DeviceError>;

    /// Ends the recording and instantiates it; nodes keep their partitions and priorities. Use [`Graph::end_capture`].
    fn end_capture(&self, stream: StreamId) -> Result<GraphId, DeviceError>;

    /// Enqueues a whole graph on `stream`.
    fn replay(&self, graph: GraphId, stream: StreamId) -> Result<(), DeviceError>;

    /// Device memory that the driver took to instantiate this graph, as far as the device can tell. By default, and on `sim`, graphs take none.
    fn graph_bytes(&self, _graph: GraphId) -> u64 {
        0
    }

    /// Gives back a graph.
    fn destroy_graph(&self, graph: GraphId);

    /// Time since the device was opened: wall on `cuda`, virtual on `sim`.
    fn now(&self) -> Duration;

    /// Lets time pass until something may have changed: `cuda` spins for an instant, `sim` runs to its next event, but never past `until`.
    fn pass_time(&self, until: Duration);
}

/// Device memory that is given back when dropped.
pub struct Buffer {
    device: Arc<dyn Device>,
    ptr: DevicePtr,
    bytes: u64,
}

impl Buffer {
    /// Allocates `bytes` bytes, not cleared.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] with what was asked and what is free.
    pub fn new(device: &Arc<dyn Device>, bytes: u64) -> Result<Self, DeviceError> {
        let ptr = device.allocate(bytes.max(1))?;
        Ok(Self { device: Arc::clone(device), ptr, bytes })
    }

    /// The first byte's address.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("ptr", &self.ptr).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.free(self.ptr);
    }
}

/// A stream that is given back when dropped; what was enqueued on it still runs then.
pub struct Stream {
    device: Arc<dyn Device>,
    id: StreamId,
}

impl Stream {
    /// A new stream whose kernels run inside `partition`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Arc<dyn Device>, partition: PartitionId, priority: Priority) -> Result<Self, DeviceError> {
        Ok(Self { id: device.create_stream(partition, priority)?, device: Arc::clone(device) })
    }

    /// The handle for [`Device`]'s methods.
    pub fn id(&self) -> StreamId {
        self.id
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.device.destroy_stream(self.id);
    }
}

/// An event that is given back when dropped.
pub struct Event {
    device: Arc<dyn Device>,
    id: EventId,
}

impl Event {
    /// A new, unmarked event, to be waited for and asked whether it is reached.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Arc<dyn Device>) -> Result<Self, DeviceError> {
        Ok(Self { id: device.create_event(false)?, device: Arc::clone(device) })
    }

    /// The same for [`Device::elapsed`]. The GPU takes microseconds longer to mark such an event and to let others wait for it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn timed(device: &Arc<dyn Device>) -> Result<Self, DeviceError> {
        Ok(Self { id: device.create_event(true)?, device: Arc::clone(device) })
    }

    /// The handle for [`Device`]'s methods.
    pub fn id(&self) -> EventId {
        self.id
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.destroy_event(self.id);
    }
}

/// A captured graph that is given back when dropped.
pub struct Graph {
    device: Arc<dyn Device>,
    id: GraphId,
}

impl Graph {
    /// Ends a capture begun on `stream` and keeps its graph.
    ///
    /// # Errors
    /// What the driver says, such as a captured stream that was not joined.
    pub fn end_capture(device: &Arc<dyn Device>, stream: StreamId) -> Result<Self, DeviceError> {
        Ok(Self { id: device.end_capture(stream)?, device: Arc::clone(device) })
    }

    /// The handle for [`Device`]'s methods.
    pub fn id(&self) -> GraphId {
        self.id
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.destroy_graph(self.id);
    }
}

/// What can go wrong between the runtime and a GPU.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// The driver library or the GPU is not there.
    #[error("no NVIDIA GPU: {0}; install the NVIDIA driver, or use the simulator (`--device sim`, `SimDevice`)")]
    NoGpu(String),
    /// The driver is older than what the green-context API needs.
    #[error("the driver supports CUDA {}.{}, smidgen needs {}.{} or newer: update the NVIDIA driver", found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10)]
    OldDriver {
        /// What `cuDriverGetVersion` said.
        found: u32,
        /// The oldest that works.
        needed: u32,
    },
    /// Nothing was loaded, or the kernels were not compiled into this binary.
    #[error(
        "no kernels are loaded; load a fatbin or PTX first, or where smidgen was built without a CUDA compiler run `cargo xtask toolchain` and build again"
    )]
    NoKernels,
    /// No loaded library has such a kernel.
    #[error("no loaded library has a kernel called `{symbol}`; load the one that has it, and build both again if this binary should")]
    UnknownSymbol {
        /// The name looked for.
        symbol: String,
    },
    /// Device memory is used up.
    #[error(
        "out of device memory: {} asked, {} free; use a smaller batch, sequence or model, or fewer tenants",
        readable(*asked),
        readable(*free)
    )]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes free at that moment.
        free: u64,
    },
    /// A partition could not be made as asked. There is no fallback to the whole GPU.
    #[error(
        "a partition of {asked} SMs was asked for and {granted} were granted; ask for whole groups of SMs, which `smidgen doctor` shows"
    )]
    ShortPartition {
        /// SMs asked for.
        asked: Sms,
        /// SMs the driver granted.
        granted: Sms,
    },
    /// The set names TPCs that the GPU lacks, or none.
    #[error("a partition needs 1 to {tpcs} TPCs of this GPU, not {asked:?}")]
    BadPartition {
        /// The set asked for.
        asked: TpcSet,
        /// How many TPCs the GPU has.
        tpcs: u16,
    },
    /// Kernels inside a partition did not read as many numbers in `%smid` as the partition has SMs.
    #[error(
        "kernels on TPCs {tpcs:?} read {found} numbers in %smid where there are {expected} SMs; MPS gives SMs virtual numbers: grant each tenant the whole GPU there; without MPS, other kernels kept SMs busy: try again when they are done"
    )]
    SmNumbers {
        /// The TPCs that the kernels ran on.
        tpcs: TpcSet,
        /// SMs that these TPCs have.
        expected: Sms,
        /// Numbers read.
        found: Sms,
    },
    /// The driver does not do this call because of a capture: it refuses some calls while one is in progress. Of what a refused
    /// [`query`](Device::query) asked about it says nothing.
    #[error("{call} failed during a capture: {status}")]
    DuringCapture {
        /// The driver function.
        call: &'static str,
        /// Its status by name and meaning.
        status: String,
    },
    /// Any other driver status.
    #[error("{call} failed: {status}")]
    Driver {
        /// The driver function.
        call: &'static str,
        /// Its status by name and meaning.
        status: String,
        /// Whether the context is lost: every later call of every tenant will fail too.
        sticky: bool,
    },
    /// The context was lost before this call, which did not reach the driver. CUDA reports such an error to whoever calls next, so `first` is who met
    /// it, which need not be whose kernel it was.
    #[error(
        "the GPU's context is lost, for every tenant of this process: {first} was the first to meet it ({cause}); restart the process; if it happens again, run {first} alone under compute-sanitizer"
    )]
    Lost {
        /// Who met it first: a tenant by name, or the runtime itself.
        first: Arc<str>,
        /// What it met.
        cause: Arc<str>,
    },
}

impl DeviceError {
    /// Whether the context is lost for every tenant of this process.
    pub fn is_sticky(&self) -> bool {
        matches!(self, Self::Driver { sticky: true, .. } | Self::Lost { .. })
    }
}
