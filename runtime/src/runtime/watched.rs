//! A device as one tenant sees it: what it allocates is counted, and the loss of the context is met once and then known to all.
//!
//! Sessions are given this view instead of the device, so that everything an engine does for a tenant passes it: launches, copies, allocations, waits.
//! It costs a launch one load.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{
    Device, DeviceError, DevicePtr, EventId, FunctionId, GraphId, HostPtr, LaunchRequest, PartitionId, Priority, Sms, StreamId, Topology,
};
use crate::partition::TpcSet;

/// Set once, by whoever first meets an error that the context does not survive.
pub(super) type Loss = Arc<OnceLock<DeviceError>>;

/// Device memory that a tenant holds.
#[derive(Default)]
pub(super) struct Account {
    allocations: Sizes<DevicePtr>,
    /// What the driver took for its captured graphs.
    graphs: Sizes<GraphId>,
}

impl Account {
    /// Bytes allocated and not freed, graphs among them.
    pub(super) fn bytes(&self) -> u64 {
        self.allocations.sum() + self.graphs.sum()
    }

    /// Bytes of its graphs.
    pub(super) fn graph_bytes(&self) -> u64 {
        self.graphs.sum()
    }
}

/// Sizes of what is held, and their sum.
struct Sizes<K> {
    sum: AtomicU64,
    each: Mutex<HashMap<K, u64>>,
}

impl<K> Default for Sizes<K> {
    fn default() -> Self {
        Self { sum: AtomicU64::new(0), each: Mutex::default() }
    }
}

impl<K: Eq + Hash> Sizes<K> {
    fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    fn add(&self, held: K, bytes: u64) {
        self.sum.fetch_add(bytes, Ordering::Relaxed);
        self.each.lock().insert(held, bytes);
    }

    fn remove(&self, held: &K) {
        if let Some(bytes) = self.each.lock().remove(held) {
            self.sum.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// The view.
pub(super) struct Watched {
    device: Arc<dyn Device>,
    loss: Loss,
    /// For messages: "tenant `a`", or the runtime itself.
    who: String,
    account: Arc<Account>,
}

impl Watched {
    pub(super) fn new(device: Arc<dyn Device>, loss: Loss, who: String, account: Arc<Account>) -> Arc<Self> {
        Arc::new(Self { device, loss, who, account })
    }

    /// The device, unless its context is lost.
    #[inline]
    fn device(&self) -> Result<&dyn Device, DeviceError> {
        match self.loss.get() {
            None => Ok(&*self.device),
            Some(lost) => Err(lost.clone()),
        }
    }

    #[inline]
    fn watch<R>(&self, result: Result<R, DeviceError>) -> Result<R, DeviceError> {
        match result {
            Err(error) if error.is_sticky() => Err(self.lose(error)),
            result => result,
        }
    }

    /// Who meets it first gets the driver's own error, everybody after that [`DeviceError::Lost`].
    #[cold]
    fn lose(&self, error: DeviceError) -> DeviceError {
        let lost = DeviceError::Lost { first: self.who.as_str().into(), cause: error.to_string().into() };
        match self.loss.set(lost) {
            Ok(()) => {
                tracing::error!(first = self.who, %error, "the GPU's context is lost: no tenant of this process can go on; restart it");
                error
            }
            Err(_) => self.loss.get().cloned().unwrap_or(error),
        }
    }
}

impl Device for Watched {
    fn topology(&self) -> &Topology {
        self.device.topology()
    }
    fn is_simulated(&self) -> bool {
        self.device.is_simulated()
    }
    fn bind_thread(&self) -> Result<(), DeviceError> {
        self.watch(self.device()?.bind_thread())
    }
    fn free_bytes(&self) -> Result<u64, DeviceError> {
        self.watch(self.device()?.free_bytes())
    }
    fn allocate(&self, bytes: u64) -> Result<DevicePtr, DeviceError> {
        let ptr = self.watch(self.device()?.allocate(bytes))?;
        self.account.allocations.add(ptr, bytes);
        Ok(ptr)
    }
    // What is given back is given back in any case: a lost context refuses it, and that is reported nowhere.
    fn free(&self, ptr: DevicePtr) {
        self.account.allocations.remove(&ptr);
        self.device.free(ptr);
    }
    fn upload(&self, stream: StreamId, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError> {
        self.watch(self.device()?.upload(stream, target, source))
    }
    fn write_words(&self, stream: StreamId, target: DevicePtr, words: &[u64]) -> Result<(), DeviceError> {
        self.watch(self.device()?.write_words(stream, target, words))
    }
    fn allocate_host(&self, bytes: usize) -> Result<HostPtr, DeviceError> {
        self.watch(self.device()?.allocate_host(bytes))
    }
    fn free_host(&self, ptr: HostPtr) {
        self.device.free_host(ptr);
    }
    unsafe fn upload_pinned(&self, stream: StreamId, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError> {
        let device = self.device()?;
        // SAFETY: the same promise, handed on.
        let uploaded = unsafe { device.upload_pinned(stream, target, source) };
        self.watch(uploaded)
    }
    fn download(&self, stream: StreamId, source: DevicePtr, target: &mut [u8]) -> Result<(), DeviceError> {
        self.watch(self.device()?.download(stream, source, target))
    }
    fn fill(&self, stream: StreamId, target: DevicePtr, value: u8, bytes: u64) -> Result<(), DeviceError> {
        self.watch(self.device()?.fill(stream, target, value, bytes))
    }
    fn load(&self, fatbin: &[u8]) -> Result<(), DeviceError> {
        self.watch(self.device()?.load(fatbin))
    }
    fn function(&self, symbol: &'static str) -> Result<FunctionId, DeviceError> {
        self.watch(self.device()?.function(symbol))
    }
    fn create_partition(&self, tpcs: TpcSet) -> Result<PartitionId, DeviceError> {
        self.watch(self.device()?.create_partition(tpcs))
    }
    fn destroy_partition(&self, partition: PartitionId) -> Result<(), DeviceError> {
        self.watch(self.device()?.destroy_partition(partition))
    }
    fn partition_sms(&self, partition: PartitionId) -> Result<Sms, DeviceError> {
        self.watch(self.device()?.partition_sms(partition))
    }
    fn sm_mask(&self, tpcs: TpcSet) -> Result<[u32; 8], DeviceError> {
        self.watch(self.device()?.sm_mask(tpcs))
    }
    fn create_stream(&self, partition: PartitionId, priority: Priority) -> Result<StreamId, DeviceError> {
        self.watch(self.device()?.create_stream(partition, priority))
    }
    fn destroy_stream(&self, stream: StreamId) {
        self.device.destroy_stream(stream);
    }
    #[inline]
    fn launch(&self, stream: StreamId, request: &LaunchRequest<'_>) -> Result<(), DeviceError> {
        self.watch(self.device()?.launch(stream, request))
    }
    fn create_event(&self, timed: bool) -> Result<EventId, DeviceError> {
        self.watch(self.device()?.create_event(timed))
    }
    fn destroy_event(&self, event: EventId) {
        self.device.destroy_event(event);
    }
    fn record(&self, event: EventId, stream: StreamId) -> Result<(), DeviceError> {
        self.watch(self.device()?.record(event, stream))
    }
    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), DeviceError> {
        self.watch(self.device()?.wait(stream, event))
    }
    fn query(&self, event: EventId) -> Result<bool, DeviceError> {
        self.watch(self.device()?.query(event))
    }
    fn elapsed(&self, start: EventId, end: EventId) -> Result<Duration, DeviceError> {
        self.watch(self.device()?.elapsed(start, end))
    }
    fn synchronize(&self, stream: StreamId) -> Result<(), DeviceError> {
        self.watch(self.device()?.synchronize(stream))
    }
    fn begin_capture(&self, stream: StreamId) -> Result<(), DeviceError> {
        self.watch(self.device()?.begin_capture(stream))
    }
    fn end_capture(&self, stream: StreamId) -> Result<GraphId, DeviceError> {
        let graph = self.watch(self.device()?.end_capture(stream))?;
        self.account.graphs.add(graph, self.device.graph_bytes(graph));
        Ok(graph)
    }
    fn replay(&self, graph: GraphId, stream: StreamId) -> Result<(), DeviceError> {
        self.watch(self.device()?.replay(graph, stream))
    }
    fn graph_bytes(&self, graph: GraphId) -> u64 {
        self.device.graph_bytes(graph)
    }
    fn destroy_graph(&self, graph: GraphId) {
        self.account.graphs.remove(&graph);
        self.device.destroy_graph(graph);
    }
    fn now(&self) -> Duration {
        self.device.now()
    }
    fn pass_time(&self, until: Duration) {
        self.device.pass_time(until);
    }
}
