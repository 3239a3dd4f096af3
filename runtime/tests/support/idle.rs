//! A device on which every allocation and every nanosecond is the runtime's own.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use smidgen_runtime::device::sim::SimConfig;
use smidgen_runtime::device::{
    Device, DeviceError, DevicePtr, EventId, FunctionId, GraphId, HostPtr, LaunchRequest, PartitionId, Priority, Sms, StreamId, Topology,
};
use smidgen_runtime::partition::TpcSet;

/// What each graph takes.
pub const GRAPH_BYTES: u64 = 3 << 20;

/// A device that numbers what it is asked for and does nothing else. Every partition of it has the SMs of the whole GPU; of an odd number of TPCs it says so
/// at once, as a driver's back end may.
pub struct Idle {
    topology: Topology,
    next: AtomicU64,
    launched: AtomicU64,
    partitions: AtomicU64,
    copies: AtomicU64,
    refuses_copies: AtomicBool,
    refuses_queries: Mutex<Option<DeviceError>>,
    asked: AtomicU64,
    answers: Mutex<()>,
    elapsed: AtomicU64,
    on_launch: fn(&LaunchRequest<'_>),
}

impl Idle {
    pub fn new() -> Arc<Self> {
        Self::that_does(|_| ())
    }

    /// One that calls `on_launch` at every launch, for what a back end would do there on the host.
    pub fn that_does(on_launch: fn(&LaunchRequest<'_>)) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        let topology = SimConfig::h200().topology;
        let refuses_copies = AtomicBool::new(false);
        Arc::new(Self {
            topology,
            next: AtomicU64::new(1),
            launched: zero(),
            partitions: zero(),
            copies: zero(),
            refuses_copies,
            refuses_queries: Mutex::default(),
            asked: zero(),
            answers: Mutex::default(),
            elapsed: zero(),
            on_launch,
        })
    }

    /// Launches so far.
    pub fn launched(&self) -> u64 {
        self.launched.load(Ordering::Relaxed)
    }

    /// Partitions made so far.
    pub fn partitions(&self) -> u64 {
        self.partitions.load(Ordering::Relaxed)
    }

    /// Copies to the device so far.
    pub fn copies(&self) -> u64 {
        self.copies.load(Ordering::Relaxed)
    }

    /// Whether copies to the device fail from here on.
    pub fn refuse_copies(&self, refuse: bool) {
        self.refuses_copies.store(refuse, Ordering::Relaxed);
    }

    /// With what queries of events fail from here on; with none they are answered again.
    pub fn refuse_queries(&self, error: Option<DeviceError>) {
        *self.refuses_queries.lock().unwrap() = error;
    }

    /// How often somebody asked whether this device is simulated.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whoever asks that gets no answer while the guard lives.
    pub fn hold_answers(&self) -> MutexGuard<'_, ()> {
        self.answers.lock().unwrap()
    }

    /// What lies between any two events from here on.
    pub fn set_elapsed(&self, elapsed: Duration) {
        self.elapsed.store(elapsed.as_nanos() as u64, Ordering::Relaxed);
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl Device for Idle {
    fn topology(&self) -> &Topology {
        &self.topology
    }
    fn is_simulated(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        drop(self.answers.lock().unwrap());
        true
    }
    fn bind_thread(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn free_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.topology.memory_bytes)
    }
    fn allocate(&self, _: u64) -> Result<DevicePtr, DeviceError> {
        Ok(DevicePtr(self.number() << 20))
    }
    fn free(&self, _: DevicePtr) {}
    fn upload(&self, _: StreamId, _: DevicePtr, _: &[u8]) -> Result<(), DeviceError> {
        if self.refuses_copies.load(Ordering::Relaxed) {
            return Err(DeviceError::Driver { call: "idleUpload", status: "told to fail".to_owned(), sticky: false });
        }
        self.copies.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn allocate_host(&self, bytes: usize) -> Result<HostPtr, DeviceError> {
        Ok(HostPtr(Box::leak(vec![0_u8; bytes].into_boxed_slice()).as_mut_ptr()))
    }
    fn free_host(&self, _: HostPtr) {}
    unsafe fn upload_pinned(&self, _: StreamId, _: DevicePtr, _: &[u8]) -> Result<(), DeviceError> {
        self.copies.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn download(&self, _: StreamId, _: DevicePtr, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn fill(&self, _: StreamId, _: DevicePtr, _: u8, _: u64) -> Result<(), DeviceError> {
        Ok(())
    }
    fn load(&self, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn function(&self, _: &'static str) -> Result<FunctionId, DeviceError> {
        Ok(FunctionId(self.number()))
    }
    fn create_partition(&self, tpcs: TpcSet) -> Result<PartitionId, DeviceError> {
        self.partitions.fetch_add(1, Ordering::Relaxed);
        if !tpcs.len().is_multiple_of(2) {
            return Err(DeviceError::ShortPartition { asked: self.topology.sms_of(tpcs), granted: self.topology.sms });
        }
        Ok(PartitionId(self.number() as u32))
    }
    fn destroy_partition(&self, _: PartitionId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn partition_sms(&self, _: PartitionId) -> Result<Sms, DeviceError> {
        Ok(self.topology.sms)
    }
    fn sm_mask(&self, _: TpcSet) -> Result<[u32; 8], DeviceError> {
        Ok([0; 8])
    }
    fn create_stream(&self, _: PartitionId, _: Priority) -> Result<StreamId, DeviceError> {
        Ok(StreamId(self.number()))
    }
    fn destroy_stream(&self, _: StreamId) {}
    fn launch(&self, _: StreamId, request: &LaunchRequest<'_>) -> Result<(), DeviceError> {
        (self.on_launch)(black_box(request));
        self.launched.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn create_event(&self, _: bool) -> Result<EventId, DeviceError> {
        Ok(EventId(self.number()))
    }
    fn destroy_event(&self, _: EventId) {}
    fn record(&self, _: EventId, _: StreamId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn wait(&self, _: StreamId, _: EventId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn query(&self, _: EventId) -> Result<bool, DeviceError> {
        self.refuses_queries.lock().unwrap().clone().map_or(Ok(true), Err)
    }
    fn elapsed(&self, _: EventId, _: EventId) -> Result<Duration, DeviceError> {
        Ok(Duration::from_nanos(self.elapsed.load(Ordering::Relaxed)))
    }
    fn synchronize(&self, _: StreamId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn begin_capture(&self, _: StreamId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn end_capture(&self, _: StreamId) -> Result<GraphId, DeviceError> {
        Ok(GraphId(self.number()))
    }
    fn replay(&self, _: GraphId, _: StreamId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn graph_bytes(&self, _: GraphId) -> u64 {
        GRAPH_BYTES
    }
    fn destroy_graph(&self, _: GraphId) {}
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn pass_time(&self, _: Duration) {}
}
