//! The CUDA back end: one GPU through NVIDIA's driver API, version 13.0 or newer, found at run time.
//!
//! | file | what it keeps |
//! |---|---|
//! | `loader` | looks for the driver and its symbols before anything calls them |
//! | `driver`, `status` | one thin function for each driver function; statuses as errors |
//! | `context`, `topology` | the primary context, and what the GPU is made of |
//! | `partition` | green contexts over any set of TPCs, from one split of the SMs |
//! | `sm_map` | which SMs each TPC has, measured |
//! | `stream`, `memory`, `library`, `graph` | what runs inside them, on what, and recorded how |
//! | `probe` | findings for `smidgen doctor` |
//!
//! Every driver call that can fail returns its status by name. Nothing here falls back to anything else, and nothing panics where the driver
//! is missing, old or broken.
//!
//! A stream takes launches concurrently with others only if it has a hardware queue of its own. The driver reads how many to
//! make from the environment when it starts, so a program sets [`MAX_CONNECTIONS`] first thing in `main`; a library cannot, because changing
//! the environment is unsound once other threads run.

mod context;
mod driver;
mod graph;
mod library;
mod loader;
mod memory;
mod partition;
mod probe;
mod sm_map;
mod status;
mod stream;
mod topology;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use parking_lot::Mutex;

use self::context::PrimaryContext;
use self::graph::Graphs;
use self::library::Libraries;
use self::memory::HostMemory;
use self::partition::Partitions;
use self::sm_map::SmMap;
use self::status::tolerate;
use self::stream::{PriorityLevels, Streams};
use super::{
    Device, DeviceError, DevicePtr, EventId, FunctionId, GraphId, HostPtr, LaunchRequest, PartitionId, Priority, Sms, StreamId, Topology,
};
use crate::partition::TpcSet;

pub use self::probe::{Granularity, Probe, probe};

/// The environment variable and the value that give each stream a hardware queue, 32 being the most there are. To be set before the first
/// [`CudaDevice::open`] and before the program starts threads.
pub const MAX_CONNECTIONS: (&str, &str) = ("CUDA_DEVICE_MAX_CONNECTIONS", "32");

/// A GPU.
///
/// It works in the device's primary context, which foreign libraries share. Methods bind that context to the calling thread themselves and
/// remember that they did: whoever makes another context current on a thread must put the primary one back.
pub struct CudaDevice {
    // Dropped from top to bottom: streams before the green contexts they are in, and everything before the context.
    streams: Streams,
    graphs: Graphs,
    partitions: Partitions,
    libraries: Libraries,
    host_memory: HostMemory,
    priorities: PriorityLevels,
    topology: Topology,
    /// Measured when first asked for.
    sm_map: Mutex<Option<SmMap>>,
    context: PrimaryContext,
    opened: Instant,
}

impl CudaDevice {
    /// Opens the GPU with this number among those that the process may see (`CUDA_VISIBLE_DEVICES`).
    ///
    /// # Errors
    /// [`DeviceError::NoGpu`] where there is no driver or no such GPU, [`DeviceError::OldDriver`], or what the driver says.
    #[tracing::instrument(level = "debug", name = "open device", skip_all, fields(ordinal = ordinal))]
    pub fn open(ordinal: u32) -> Result<Arc<Self>, DeviceError> {
        let (variable, value) = MAX_CONNECTIONS;
        if std::env::var_os(variable).is_none() {
            tracing::warn!(
                "{variable} is not set: partitions may wait for each other's launches; set it to {value} before the program starts"
            );
        }
        let driver_version = loader::initialize()?;
        let device = topology::device(ordinal)?;
        let context = PrimaryContext::retain(device)?;
        context.bind()?;
        let partitions = Partitions::of(device);
        Ok(Arc::new(Self {
            streams: Streams::default(),
            graphs: Graphs::default(),
            libraries: Libraries::of(device),
            host_memory: HostMemory::of(device)?,
            priorities: PriorityLevels::of_current_context()?,
            topology: topology::read(device, driver_version, partitions.split().ok(), partitions.coscheduled().ok())?,
            partitions,
            sm_map: Mutex::default(),
            context,
            opened: Instant::now(),
        }))
    }

    /// A partition of exactly `sms` SMs for foreign kernels that launch clusters of more than two blocks: its SMs come in the driver's
    /// co-scheduled groups (of 8 SMs on compute capability 9.0), which partitions over TPCs give up for their granularity.
    ///
    /// # Errors
    /// [`DeviceError::ShortPartition`] for an SM count that whole groups do not make, naming the next smaller one that they do.
    #[tracing::instrument(level = "debug", skip_all, fields(sms = sms.0))]
    pub fn create_coscheduled_partition(&self, sms: Sms) -> Result<PartitionId, DeviceError> {
        self.context.bind()?;
        self.partitions.create_coscheduled(sms)
    }

    /// The primary context, for libraries that ask for one. It stays valid while the device is open.
    pub fn context_handle(&self) -> sys::CUcontext {
        self.context.handle().raw()
    }

    /// A stream of this device, for opaque launches. It stays valid until it is given back, or the device closed.
    pub fn stream_handle(&self, stream: StreamId) -> sys::CUstream {
        driver::Stream::from(stream).raw()
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        tolerate(self.context.bind());
        // A green context must not be destroyed under running kernels.
        tolerate(driver::context_synchronize());
    }
}

impl Device for CudaDevice {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn is_simulated(&self) -> bool {
        false
    }

    fn bind_thread(&self) -> Result<(), DeviceError> {
        self.context.bind()
    }

    fn free_bytes(&self) -> Result<u64, DeviceError> {
        self.context.bind()?;
        driver::memory_free_bytes()
    }

    fn allocate(&self, bytes: u64) -> Result<DevicePtr, DeviceError> {
        self.context.bind()?;
        memory::allocate(bytes)
    }

    fn free(&self, ptr: DevicePtr) {
        tolerate(self.context.bind().and_then(|()| driver::memory_free(ptr)));
    }

    fn upload(&self, stream: StreamId, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError> {
        self.context.bind()?;
        self.host_memory.upload(stream.into(), target, source)
    }

    fn write_words(&self, stream: StreamId, target: DevicePtr, words: &[u64]) -> Result<(), DeviceError> {
        self.context.bind()?;
        memory::write_words(stream.into(), target, words)
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPtr, DeviceError> {
        self.context.bind()?;
        driver::host_allocate(bytes).map(HostPtr)
    }

    fn free_host(&self, ptr: HostPtr) {
        tolerate(self.context.bind().and_then(|()| driver::host_free(ptr.0)));
    }

    unsafe fn upload_pinned(&self, stream: StreamId, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError> {
        self.context.bind()?;
        // SAFETY: the same promise, handed on.
        unsafe { memory::upload_pinned(stream.into(), target, source) }
    }

    fn download(&self, stream: StreamId, source: DevicePtr, target: &mut [u8]) -> Result<(), DeviceError> {
        self.context.bind()?;
        memory::download(stream.into(), source, target)
    }

    fn fill(&self, stream: StreamId, target: DevicePtr, value: u8, bytes: u64) -> Result<(), DeviceError> {
        self.context.bind()?;
        memory::fill(stream.into(), target, value, bytes)
    }

    fn load(&self, fatbin: &[u8]) -> Result<(), DeviceError> {
        self.context.bind()?;
        self.libraries.load(fatbin)
    }

    fn function(&self, symbol: &'static str) -> Result<FunctionId, DeviceError> {
        self.context.bind()?;
        self.libraries.function(symbol)
    }

    fn create_partition(&self, tpcs: TpcSet) -> Result<PartitionId, DeviceError> {
        self.context.bind()?;
        self.partitions.create(tpcs)
    }

    fn destroy_partition(&self, partition: PartitionId) -> Result<(), DeviceError> {
        self.context.bind()?;
        match self.streams.inside(partition) {
            0 => self.partitions.destroy(partition),
            left => {
                let status = format!("{left} streams are left in partition {}; give them back first", partition.0);
                Err(DeviceError::Driver { call: "cuGreenCtxDestroy", status, sticky: false })
            }
        }
    }

    fn partition_sms(&self, partition: PartitionId) -> Result<Sms, DeviceError> {
        self.context.bind()?;
        match partition {
            PartitionId::WHOLE => driver::context_sms(self.context.handle()).map(topology::sms),
            partition => self.partitions.sms(partition),
        }
    }

    fn sm_mask(&self, tpcs: TpcSet) -> Result<[u32; 8], DeviceError> {
        // Not measured, and so at no cost, and right also where SMs cannot be told apart.
        if tpcs == self.topology.all_tpcs() {
            return Ok([u32::MAX; 8]);
        }
        let mut measured = self.sm_map.lock();
        if let Some(map) = &*measured {
            return map.mask(tpcs);
        }
        self.context.bind()?;
        let map = SmMap::measure(self.context.device(), &self.partitions, self.priorities.level(Priority::High))?;
        measured.insert(map).mask(tpcs)
    }

    fn create_stream(&self, partition: PartitionId, priority: Priority) -> Result<StreamId, DeviceError> {
        self.context.bind()?;
        let level = self.priorities.level(priority);
        let stream = match partition {
            PartitionId::WHOLE => driver::stream_create(level),
            partition => self.partitions.create_stream(partition, level),
        }?;
        Ok(self.streams.keep(partition, stream).into())
    }

    fn destroy_stream(&self, stream: StreamId) {
        tolerate(self.context.bind().and_then(|()| self.streams.release(stream.into())));
    }

    fn launch(&self, stream: StreamId, request: &LaunchRequest<'_>) -> Result<(), DeviceError> {
        self.context.bind()?;
        let level = self.priorities.level(request.priority);
        driver::kernel_launch(stream.into(), request.function.into(), request.launch, &request.tiles, level, request.overlaps)
    }

    fn create_event(&self, timed: bool) -> Result<EventId, DeviceError> {
        self.context.bind()?;
        driver::event_create(timed).map(EventId::from)
    }

    fn destroy_event(&self, event: EventId) {
        tolerate(self.context.bind().and_then(|()| driver::event_destroy(event.into())));
    }

    fn record(&self, event: EventId, stream: StreamId) -> Result<(), DeviceError> {
        self.context.bind()?;
        driver::event_record(event.into(), stream.into())
    }

    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), DeviceError> {
        self.context.bind()?;
        driver::stream_wait(stream.into(), event.into())
    }

    fn query(&self, event: EventId) -> Result<bool, DeviceError> {
        self.context.bind()?;
        driver::event_query(event.into())
    }

    fn elapsed(&self, start: EventId, end: EventId) -> Result<Duration, DeviceError> {
        self.context.bind()?;
        stream::elapsed(start.into(), end.into())
    }

    fn synchronize(&self, stream: StreamId) -> Result<(), DeviceError> {
        self.context.bind()?;
        driver::stream_synchronize(stream.into())
    }

    fn begin_capture(&self, stream: StreamId) -> Result<(), DeviceError> {
        self.context.bind()?;
        driver::stream_begin_capture(stream.into())
    }

    fn end_capture(&self, stream: StreamId) -> Result<GraphId, DeviceError> {
        self.context.bind()?;
        self.graphs.end_capture(stream.into())
    }

    fn replay(&self, graph: GraphId, stream: StreamId) -> Result<(), DeviceError> {
        self.context.bind()?;
        driver::graph_launch(graph.into(), stream.into())
    }

    fn graph_bytes(&self, graph: GraphId) -> u64 {
        self.graphs.bytes(graph)
    }

    fn destroy_graph(&self, graph: GraphId) {
        tolerate(self.context.bind().and_then(|()| self.graphs.destroy(graph)));
    }

    fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    fn pass_time(&self, _until: Duration) {
        // Long enough not to hammer the driver with queries, short beside the fastest kernel.
        for _ in 0..64 {
            std::hint::spin_loop();
        }
    }
}
