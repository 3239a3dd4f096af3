//! A device whose kernels take scripted times, so that tests know what the profiler must find.
//!
//! Each stream has a clock of its own; nothing runs, contends or overlaps. The noise of a sample depends on the kernel, the SM count and how
//! often that pair was replayed before, and on nothing else, so that two sweeps that measure a point the same way see the same samples.
#![allow(dead_code)] // Every test binary compiles this module and uses its own part of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use smidgen_runtime::device::{
    CoscheduledGroups, Device, DeviceError, DevicePtr, EventId, FunctionId, GraphId, HostPtr, LaunchRequest, PartitionId, Priority, Sms,
    StreamId, Topology,
};
use smidgen_runtime::launch::KernelKey;
use smidgen_runtime::partition::TpcSet;

use super::kernel::SYMBOLS;

/// What the device shall do.
pub struct Script {
    /// Microseconds of a kernel on an SM count.
    pub latency_us: fn(KernelKey, Sms) -> f64,
    /// What that is multiplied by, by the kernel's configuration.
    pub factor: fn(Sms, &'static str) -> f64,
    /// Largest relative deviation of a usual sample.
    pub noise: f64,
    /// Share of the samples that take 2 to 10 times as long.
    pub outliers: f64,
    /// The most SMs that a partition is granted.
    pub most_granted: Sms,
    /// The launch, counted from 0, that fails and all after it.
    pub fails_at: u32,
    /// What `is_simulated` says.
    pub simulated: bool,
}

impl Default for Script {
    fn default() -> Self {
        let latency_us = |_, _| 10.0;
        Self {
            latency_us,
            factor: |_, _| 1.0,
            noise: 0.0,
            outliers: 0.0,
            most_granted: Sms(u16::MAX),
            fails_at: u32::MAX,
            simulated: false,
        }
    }
}

impl Script {
    fn us(&self, key: KernelKey, sms: Sms, symbol: &'static str) -> f64 {
        (self.latency_us)(key, sms) * (self.factor)(sms, symbol)
    }
}

/// One launch as the device saw it.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub key: KernelKey,
    /// SMs of the partition.
    pub sms: Sms,
    /// Which of the recorded launches it is.
    pub instance: u32,
    /// Its configuration.
    pub symbol: &'static str,
    pub grid: u32,
    pub grant: DevicePtr,
    pub progress: DevicePtr,
}

pub struct ScriptedDevice {
    topology: Topology,
    script: Script,
    launches: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    partitions: Vec<Sms>,
    streams: Vec<Stream>,
    events: HashMap<u64, f64>,
    graphs: HashMap<u64, Vec<Seen>>,
    replays: HashMap<(u64, Sms), u64>,
    replayed: Vec<Vec<Seen>>,
    cleared: Vec<(DevicePtr, u64)>,
    allocations: HashMap<u64, u64>,
    handles: u64,
}

struct Stream {
    sms: Sms,
    us: f64,
    capture: Option<Vec<Seen>>,
}

impl ScriptedDevice {
    pub fn new(script: Script) -> Self {
        let topology = Topology {
            name: "Scripted GPU".into(),
            sms: Sms(132),
            sms_per_tpc: 2,
            tpcs_per_gpc: vec![9, 9, 8, 8, 8, 8, 8, 8],
            coscheduled: CoscheduledGroups { sms_per_group: 8, groups: 15 },
            memory_bytes: 1 << 30,
            l2_bytes: 50 << 20,
            shared_bytes_per_sm: 228 << 10,
            compute_capability: (9, 0),
            driver_version: 13000,
            driver: "1.2.3".into(),
        };
        let state = State { partitions: vec![topology.sms], ..State::default() };
        Self { topology, script, launches: AtomicU32::new(0), state: Mutex::new(state) }
    }

    /// Every graph replay so far, as the launches in it.
    pub fn replayed(&self) -> Vec<Vec<Seen>> {
        self.state().replayed.clone()
    }

    /// How many launches were enqueued or captured.
    pub fn launches(&self) -> u32 {
        self.launches.load(Ordering::Relaxed)
    }

    /// Whether `ptr` was set to zero.
    pub fn was_cleared(&self, ptr: DevicePtr) -> bool {
        self.state().cleared.iter().any(|&(start, bytes)| (start.0..start.0 + bytes).contains(&ptr.0))
    }

    /// Graphs, events and allocations that were not given back.
    pub fn leaks(&self) -> usize {
        let state = self.state();
        state.graphs.len() + state.events.len() + state.allocations.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn handle(&mut self) -> u64 {
        self.handles += 1;
        self.handles
    }

    fn stream(&mut self, stream: StreamId) -> &mut Stream {
        &mut self.streams[stream.0 as usize]
    }
}

fn broken(call: &'static str) -> DeviceError {
    DeviceError::Driver { call, status: "scripted failure".into(), sticky: false }
}

/// A number in 0..1 that looks random. Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
fn split_mix(seed: u64) -> f64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

impl Device for ScriptedDevice {
    fn topology(&self) -> &Topology {
        &self.topology
    }
    fn is_simulated(&self) -> bool {
        self.script.simulated
    }
    fn bind_thread(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn free_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.topology.memory_bytes)
    }
    fn allocate(&self, bytes: u64) -> Result<DevicePtr, DeviceError> {
        let mut state = self.state();
        let ptr = state.handle() << 20;
        state.allocations.insert(ptr, bytes);
        Ok(DevicePtr(ptr))
    }
    fn free(&self, ptr: DevicePtr) {
        self.state().allocations.remove(&ptr.0);
    }
    fn upload(&self, _: StreamId, _: DevicePtr, _: &[u8]) -> Result<(), DeviceError> {
        Err(broken("upload"))
    }
    fn allocate_host(&self, _: usize) -> Result<HostPtr, DeviceError> {
        Err(broken("allocate_host"))
    }
    fn free_host(&self, _: HostPtr) {}
    unsafe fn upload_pinned(&self, _: StreamId, _: DevicePtr, _: &[u8]) -> Result<(), DeviceError> {
        Err(broken("upload_pinned"))
    }
    fn download(&self, _: StreamId, _: DevicePtr, _: &mut [u8]) -> Result<(), DeviceError> {
        Err(broken("download"))
    }
    fn fill(&self, _: StreamId, target: DevicePtr, value: u8, bytes: u64) -> Result<(), DeviceError> {
        let mut state = self.state();
        if value == 0 && state.allocations.get(&target.0) == Some(&bytes) {
            state.cleared.push((target, bytes));
        }
        Ok(())
    }
    fn load(&self, _: &[u8]) -> Result<(), DeviceError> {
        Err(broken("load"))
    }
    fn function(&self, symbol: &'static str) -> Result<FunctionId, DeviceError> {
        let known = SYMBOLS.iter().position(|known| *known == symbol);
        known.map(|at| FunctionId(at as u64)).ok_or_else(|| DeviceError::UnknownSymbol { symbol: symbol.into() })
    }
    fn create_partition(&self, tpcs: TpcSet) -> Result<PartitionId, DeviceError> {
        let mut state = self.state();
        state.partitions.push(self.topology.sms_of(tpcs).min(self.script.most_granted));
        Ok(PartitionId(state.partitions.len() as u32 - 1))
    }
    fn destroy_partition(&self, _: PartitionId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn partition_sms(&self, partition: PartitionId) -> Result<Sms, DeviceError> {
        Ok(self.state().partitions[partition.0 as usize])
    }
    fn sm_mask(&self, _: TpcSet) -> Result<[u32; 8], DeviceError> {
        Err(broken("sm_mask"))
    }
    fn create_stream(&self, partition: PartitionId, _: Priority) -> Result<StreamId, DeviceError> {
        let mut state = self.state();
        let sms = state.partitions[partition.0 as usize];
        state.streams.push(Stream { sms, us: 0.0, capture: None });
        Ok(StreamId(state.streams.len() as u64 - 1))
    }
    fn destroy_stream(&self, _: StreamId) {}
    fn launch(&self, stream: StreamId, request: &LaunchRequest<'_>) -> Result<(), DeviceError> {
        if self.launches.fetch_add(1, Ordering::Relaxed) >= self.script.fails_at {
            return Err(broken("launch"));
        }
        let mut state = self.state();
        let stream = state.stream(stream);
        let (key, sms) = (request.key, stream.sms);
        let us = self.script.us(key, sms, request.launch.symbol);
        let seen = Seen {
            key,
            sms,
            instance: request.launch.shared_bytes,
            symbol: request.launch.symbol,
            grid: request.launch.grid,
            grant: request.tiles.grant,
            progress: request.tiles.progress,
        };
        match &mut stream.capture {
            Some(capture) => capture.push(seen),
            None => stream.us += us,
        }
        Ok(())
    }
    fn create_event(&self, _: bool) -> Result<EventId, DeviceError> {
        let mut state = self.state();
        let event = state.handle();
        state.events.insert(event, f64::NAN);
        Ok(EventId(event))
    }
    fn destroy_event(&self, event: EventId) {
        self.state().events.remove(&event.0);
    }
    fn record(&self, event: EventId, stream: StreamId) -> Result<(), DeviceError> {
        let mut state = self.state();
        let us = state.stream(stream).us;
        state.events.insert(event.0, us);
        Ok(())
    }
    fn wait(&self, _: StreamId, _: EventId) -> Result<(), DeviceError> {
        Err(broken("wait"))
    }
    fn query(&self, _: EventId) -> Result<bool, DeviceError> {
        Ok(true)
    }
    fn elapsed(&self, start: EventId, end: EventId) -> Result<Duration, DeviceError> {
        let state = self.state();
        let us = state.events[&end.0] - state.events[&start.0];
        if us >= 0.0 { Ok(Duration::from_nanos((us * 1e3).round() as u64)) } else { Err(broken("elapsed")) }
    }
    fn synchronize(&self, _: StreamId) -> Result<(), DeviceError> {
        Ok(())
    }
    fn begin_capture(&self, stream: StreamId) -> Result<(), DeviceError> {
        let mut state = self.state();
        let stream = state.stream(stream);
        if stream.capture.is_some() {
            return Err(broken("begin_capture"));
        }
        stream.capture = Some(Vec::new());
        Ok(())
    }
    fn end_capture(&self, stream: StreamId) -> Result<GraphId, DeviceError> {
        let mut state = self.state();
        let captured = state.stream(stream).capture.take().ok_or_else(|| broken("end_capture"))?;
        let graph = state.handle();
        state.graphs.insert(graph, captured);
        Ok(GraphId(graph))
    }
    fn replay(&self, graph: GraphId, stream: StreamId) -> Result<(), DeviceError> {
        let mut state = self.state();
        let launches = state.graphs[&graph.0].clone();
        let Some(&Seen { key, sms, .. }) = launches.first() else { return Err(broken("replay")) };
        let nth = state.replays.entry((key.fingerprint().0, sms)).or_default();
        let seed = key.fingerprint().0 ^ (u64::from(sms.0) << 48) ^ (*nth << 1);
        *nth += 1;
        let is_outlier = split_mix(seed ^ 0xabcd) < self.script.outliers;
        let usual = 1.0 + self.script.noise * (2.0 * split_mix(seed) - 1.0);
        let factor = if is_outlier { 2.0 + 8.0 * split_mix(seed ^ 0x1234) } else { usual };
        let us: f64 = launches.iter().map(|launch| self.script.us(launch.key, launch.sms, launch.symbol) * factor).sum();
        state.stream(stream).us += us;
        state.replayed.push(launches);
        Ok(())
    }
    fn destroy_graph(&self, graph: GraphId) {
        self.state().graphs.remove(&graph.0);
    }
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn pass_time(&self, _: Duration) {}
}
