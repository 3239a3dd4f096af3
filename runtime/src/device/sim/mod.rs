//! The simulated back end: a GPU as a deterministic discrete-event model in virtual time.
//!
//! It takes the same calls as a real GPU and computes nothing: each launch takes the time that its profile, or a roofline where it was never profiled,
//! says for the SMs that it gets, next to whatever else runs. Anything that plans, launches and measures can so be tested, and tried out, with no GPU.
//!
//! | file | what it models |
//! |---|---|
//! | [`config`](SimConfig) | the GPU: topology, rates, what operations cost |
//! | `engine`, `agenda`, `stream` | virtual time; streams, events and replays |
//! | `graph` | capture |
//! | `blocks`, `kernel` | placement of thread blocks on SMs, partitions, priorities, grants |
//! | `cost` | how long a kernel takes alone |
//! | `contention` | what kernels do to each other through the L2 and the DRAM |
//! | `slices` | processes that take turns |
//! | `memory` | addresses and capacity, and the contents of small writes |
//! | `pcie` | the link that all copies share |
//! | `fault` | launches and kernels that fail because a test said so |
//!
//! Time stands still while the host computes. It passes only in [`synchronize`](Device::synchronize), [`download`](Device::download) and
//! [`pass_time`](Device::pass_time); a caller that simulates several tenants enqueues for all of them, then lets time pass, and looks at its events.
//! Equal calls in an equal order give equal times, to the nanosecond.

mod agenda;
mod blocks;
mod config;
mod contention;
mod cost;
mod engine;
mod fault;
mod graph;
mod kernel;
mod memory;
mod pcie;
mod slices;
mod sm_set;
mod stream;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::partition::TpcSet;

use super::{
    Device, DeviceError, DevicePtr, EventId, FunctionId, GraphId, HostPtr, LaunchRequest, PartitionId, Priority, Sms, StreamId, Topology,
};
use engine::{Engine, nanos};
use graph::{Capture, NodeWork};
use kernel::KernelSpec;
use memory::Write;
use sm_set::{MAX_SMS, SmSet};
use stream::{EventState, Op};

pub use config::{Sharing, SimConfig};
pub use fault::Fault;

pub use trace::KernelTrace;

/// A simulated GPU.
pub struct SimDevice {
    topology: Topology,
    engine: Mutex<Engine>,
}

impl SimDevice {
    /// A GPU as `config` describes it, at time 0, with nothing on it.
    pub fn new(mut config: SimConfig) -> Arc<Self> {
        config.topology.sms.0 = config.topology.sms.0.clamp(1, MAX_SMS as u16);
        config.topology.sms_per_tpc = config.topology.sms_per_tpc.clamp(1, config.topology.sms.0);
        Arc::new(Self { topology: config.topology.clone(), engine: Mutex::new(Engine::new(config)) })
    }

    /// Makes streams created from here on belong to process `process`, of which time slicing lets one run at a time. 0 until first called.
    pub fn set_process(&self, process: u32) {
        self.engine.lock().process = process;
    }

    /// Makes the next launch of the kernel with this entry point go wrong, once: a fault of a later call takes the place of one that has not
    /// happened yet. A replay counts as launches of what it holds, of which only [`Fault::Crash`] can happen.
    pub fn inject(&self, symbol: &'static str, fault: Fault) {
        self.engine.lock().faults.inject(symbol, fault);
    }

    /// What is allocated and not given back.
    pub fn counts(&self) -> SimCounts {
        let engine = self.engine.lock();
        SimCounts {
            memory_bytes: engine.memory.allocated_bytes(),
            allocations: engine.memory.allocations(),
            host_bytes: engine.host_memory.values().map(|&bytes| bytes as u64).sum(),
            partitions: engine.partitions.len() as u64 - 1,
            streams: engine.streams.iter().filter(|stream| !stream.destroyed).count() as u64,
            events: engine.events.values().filter(|event| !event.destroyed).count() as u64,
            graphs: engine.graphs.len() as u64,
            captures: engine.captures.len() as u64,
        }
    }

    /// The state, unless the context is lost.
    fn alive(&self, call: &'static str) -> Result<MutexGuard<'_, Engine>, DeviceError> {
        let engine = self.engine.lock();
        engine.faults.check(call)?;
        Ok(engine)
    }

    /// The kernels that ended since the last call, in the order of their end. Empty unless [`SimConfig::trace`] is set.
    pub fn take_trace(&self) -> Vec<KernelTrace> {
        std::mem::take(&mut self.engine.lock().trace)
    }
}

/// What callers hold of a simulated GPU. Two equal counts, before and after, mean that nothing leaked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimCounts {
    /// Bytes of device memory in allocations; partitions take theirs besides.
    pub memory_bytes: u64,
    /// Allocations of device memory.
    pub allocations: u64,
    /// Bytes of page-locked host memory.
    pub host_bytes: u64,
    /// Partitions besides the whole GPU. They live as long as the device.
    pub partitions: u64,
    /// Streams.
    pub streams: u64,
    /// Events.
    pub events: u64,
    /// Instantiated graphs.
    pub graphs: u64,
    /// Captures that were begun and not ended.
    pub captures: u64,
}

/// What a real driver would answer to a call that makes no sense.
fn refused(call: &'static str, status: impl Into<String>) -> DeviceError {
    DeviceError::Driver { call, status: status.into(), sticky: false }
}

fn stream_index(engine: &Engine, stream: StreamId, call: &'static str) -> Result<usize, DeviceError> {
    let index = usize::try_from(stream.0).ok().and_then(|id| id.checked_sub(1));
    let known = index.filter(|&index| engine.streams.get(index).is_some_and(|stream| !stream.destroyed));
    known.ok_or_else(|| refused(call, format!("there is no stream {}", stream.0)))
}

/// The stream, which must not be capturing.
fn running_stream(engine: &Engine, stream: StreamId, call: &'static str) -> Result<usize, DeviceError> {
    let index = stream_index(engine, stream, call)?;
    match engine.streams[index].capture {
        None => Ok(index),
        Some(_) => Err(refused(call, format!("stream {} is capturing a graph", stream.0))),
    }
}

fn event_state<'a>(engine: &'a mut Engine, event: EventId, call: &'static str) -> Result<&'a mut EventState, DeviceError> {
    engine.events.get_mut(&event.0).ok_or_else(|| refused(call, format!("there is no event {}", event.0)))
}

fn check_range(engine: &Engine, address: DevicePtr, bytes: u64, call: &'static str) -> Result<(), DeviceError> {
    if bytes == 0 || engine.memory.holds(address, bytes) {
        return Ok(());
    }
    Err(refused(call, format!("{bytes} bytes at {:#x} are not in one allocation", address.0)))
}

/// Enqueues a write, or captures it.
fn write(engine: &mut Engine, stream: usize, write: Write) {
    let write = Arc::new(write);
    match engine.streams[stream].capture {
        Some(_) => capture_node(engine, stream, NodeWork::Write(write)),
        None => engine.enqueue(stream, Op::Write(write), engine.config.launch_cost),
    }
}

fn capture_node(engine: &mut Engine, stream: usize, work: NodeWork) {
    let Engine { streams, captures, .. } = engine;
    let capture = streams[stream].capture.and_then(|capture| captures.get_mut(&capture));
    if let Some(capture) = capture {
        capture.push(stream, work, |one, other| streams[one].partition == streams[other].partition);
    }
}

impl Device for SimDevice {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn is_simulated(&self) -> bool {
        true
    }

    fn bind_thread(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn free_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.alive("simFreeBytes")?.memory.free_bytes())
    }

    fn allocate(&self, bytes: u64) -> Result<DevicePtr, DeviceError> {
        self.alive("simAllocate")?.memory.allocate(bytes)
    }

    fn free(&self, ptr: DevicePtr) {
        self.engine.lock().free(ptr);
    }

    fn upload(&self, stream: StreamId, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError> {
        const CALL: &str = "simUpload";
        let engine = &mut *self.alive(CALL)?;
        let stream = running_stream(engine, stream, CALL)?;
        check_range(engine, target, source.len() as u64, CALL)?;
        write(engine, stream, Write::copy(target, source));
        Ok(())
    }

    fn download(&self, stream: StreamId, source: DevicePtr, target: &mut [u8]) -> Result<(), DeviceError> {
        const CALL: &str = "simDownload";
        let engine = &mut *self.alive(CALL)?;
        let index = running_stream(engine, stream, CALL)?;
        check_range(engine, source, target.len() as u64, CALL)?;
        engine.enqueue(index, Op::Read { bytes: target.len() as u64 }, engine.config.launch_cost);
        drain(engine, index, CALL)?;
        engine.memory.read(source.0, target);
        engine.read_progress(source.0, target);
        Ok(())
    }

    fn fill(&self, stream: StreamId, target: DevicePtr, value: u8, bytes: u64) -> Result<(), DeviceError> {
        const CALL: &str = "simFill";
        let engine = &mut *self.alive(CALL)?;
        let stream = stream_index(engine, stream, CALL)?;
        check_range(engine, target, bytes, CALL)?;
        write(engine, stream, Write::fill(target, value, bytes));
        Ok(())
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPtr, DeviceError> {
        let mut engine = self.alive("simAllocateHost")?;
        let mut memory = Vec::new();
        let reserved = memory.try_reserve_exact(bytes.max(1));
        reserved.map_err(|_| refused("simAllocateHost", format!("the host has no {bytes} bytes; copy in smaller parts")))?;
        memory.resize(bytes.max(1), 0_u8);
        let memory = Box::leak(memory.into_boxed_slice());
        engine.host_memory.insert(memory.as_ptr().addr(), memory.len());
        Ok(HostPtr(memory.as_mut_ptr()))
    }

    fn free_host(&self, ptr: HostPtr) {
        if let Some(bytes) = self.engine.lock().host_memory.remove(&ptr.0.addr()) {
            let memory = std::ptr::slice_from_raw_parts_mut(ptr.0, bytes);
            // SAFETY: a box of this size was leaked at this address by `allocate_host`, and the map that knew it has forgotten it just now.
            drop(unsafe { Box::from_raw(memory) });
        }
    }

    /// The bytes are read at once, and so nothing can happen to them before the copy is done.
    unsafe fn upload_pinned(&self, stream: StreamId, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError> {
        self.upload(stream, target, source)
    }

    fn load(&self, _fatbin: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn function(&self, symbol: &'static str) -> Result<FunctionId, DeviceError> {
        let functions = &mut self.engine.lock().functions;
        let known = functions.iter().position(|&known| known == symbol);
        let index = known.unwrap_or_else(|| {
            functions.push(symbol);
            functions.len() - 1
        });
        Ok(FunctionId(index as u64 + 1))
    }

    fn create_partition(&self, tpcs: TpcSet) -> Result<PartitionId, DeviceError> {
        if tpcs.is_empty() || !self.topology.all_tpcs().includes(tpcs) {
            return Err(DeviceError::BadPartition { asked: tpcs, tpcs: self.topology.tpcs() });
        }
        let engine = &mut *self.alive("simCreatePartition")?;
        engine.memory.reserve(engine.config.partition_bytes)?;
        engine.partitions.push(Some(SmSet::of_tpcs(tpcs, self.topology.sms_per_tpc)));
        Ok(PartitionId(engine.partitions.len() as u32 - 1))
    }

    fn destroy_partition(&self, partition: PartitionId) -> Result<(), DeviceError> {
        const CALL: &str = "simDestroyPartition";
        let engine = &mut *self.engine.lock();
        if partition == PartitionId::WHOLE || engine.partition(partition).is_none() {
            return Err(no_partition(partition, CALL));
        }
        if let Some(reason) = engine.use_of_partition(partition) {
            return Err(refused(CALL, format!("partition {} is in use: {reason}", partition.0)));
        }
        engine.partitions[partition.0 as usize] = None;
        engine.memory.release(engine.config.partition_bytes);
        Ok(())
    }

    fn partition_sms(&self, partition: PartitionId) -> Result<Sms, DeviceError> {
        let engine = self.engine.lock();
        let sms = engine.partition(partition);
        sms.map(|sms| Sms(sms.len() as u16)).ok_or_else(|| no_partition(partition, "simPartitionSms"))
    }

    /// Here SMs are numbered TPC by TPC.
    fn sm_mask(&self, tpcs: TpcSet) -> Result<[u32; 8], DeviceError> {
        let all = self.topology.all_tpcs();
        if tpcs == all {
            return Ok([u32::MAX; 8]);
        }
        if !all.includes(tpcs) {
            return Err(DeviceError::BadPartition { asked: tpcs, tpcs: self.topology.tpcs() });
        }
        Ok(SmSet::of_tpcs(tpcs, self.topology.sms_per_tpc).to_mask())
    }

    /// Every launch names its own priority, which takes precedence over the stream's, so that the latter is not kept.
    fn create_stream(&self, partition: PartitionId, _priority: Priority) -> Result<StreamId, DeviceError> {
        let engine = &mut *self.alive("simCreateStream")?;
        let sms = engine.partition(partition);
        let sms = sms.ok_or_else(|| no_partition(partition, "simCreateStream"))?;
        Ok(StreamId(engine.add_stream(partition.0, sms) as u64 + 1))
    }

    fn destroy_stream(&self, stream: StreamId) {
        let engine = &mut *self.engine.lock();
        if let Ok(index) = stream_index(engine, stream, "simDestroyStream") {
            engine.streams[index].destroyed = true;
        }
    }

    fn launch(&self, stream: StreamId, request: &LaunchRequest<'_>) -> Result<(), DeviceError> {
        const CALL: &str = "simLaunch";
        let engine = &mut *self.alive(CALL)?;
        let stream = stream_index(engine, stream, CALL)?;
        let launch = request.launch;
        engine.faults.refuse(launch.symbol)?;
        if request.function.0 == 0 || request.function.0 > engine.functions.len() as u64 {
            return Err(refused(CALL, format!("there is no function {}", request.function.0)));
        }
        if launch.grid == 0 || launch.block == 0 || launch.block > 1024 {
            let status = format!("`{}`: a grid of {} blocks of {} threads cannot be launched", launch.symbol, launch.grid, launch.block);
            return Err(refused(CALL, status));
        }
        if launch.blocks_per_sm == 0 || launch.shared_bytes > self.topology.shared_bytes_per_sm {
            let status = format!("`{}`: a block with {} bytes of shared memory does not fit on an SM", launch.symbol, launch.shared_bytes);
            return Err(refused(CALL, status));
        }
        let key = request.key.fingerprint();
        let spec = Arc::new(KernelSpec {
            symbol: launch.symbol,
            key,
            cost: engine.costs.cost(key, request.work),
            grid: launch.grid,
            blocks_per_sm: launch.blocks_per_sm,
            tiles: launch.tiles.max(1),
            elastic: launch.elastic,
            grant: request.tiles.grant.0,
            progress: request.tiles.progress.0,
            joins: request.tiles.joins,
            priority: request.priority,
            overlaps: request.overlaps,
        });
        match engine.streams[stream].capture {
            Some(_) => capture_node(engine, stream, NodeWork::Kernel(spec)),
            None => engine.enqueue(stream, Op::Kernel(spec), engine.config.launch_cost),
        }
        Ok(())
    }

    fn create_event(&self, timed: bool) -> Result<EventId, DeviceError> {
        let engine = &mut *self.alive("simCreateEvent")?;
        let id = engine.next_event;
        engine.next_event += 1;
        engine.events.insert(id, EventState { timed, ..EventState::default() });
        Ok(EventId(id))
    }

    fn destroy_event(&self, event: EventId) {
        self.engine.lock().destroy_event(event.0);
    }

    fn record(&self, event: EventId, stream: StreamId) -> Result<(), DeviceError> {
        const CALL: &str = "simRecord";
        let engine = &mut *self.alive(CALL)?;
        let stream = stream_index(engine, stream, CALL)?;
        let capture = engine.streams[stream].capture;
        let mark = capture.and_then(|id| engine.captures.get(&id).map(|capture| (id, capture.mark(stream))));
        let state = event_state(engine, event, CALL)?;
        if mark.is_some() {
            state.captured = mark;
            return Ok(());
        }
        state.captured = None;
        state.asked += 1;
        let op = Op::Record { event: event.0, mark: state.asked };
        engine.enqueue(stream, op, engine.config.event_cost);
        Ok(())
    }

    fn wait(&self, stream: StreamId, event: EventId) -> Result<(), DeviceError> {
        const CALL: &str = "simWait";
        let engine = &mut *self.alive(CALL)?;
        let stream = stream_index(engine, stream, CALL)?;
        let state = event_state(engine, event, CALL)?;
        let (mark, captured) = (state.asked, state.captured.clone());
        match (captured, engine.streams[stream].capture) {
            (Some((capture, _)), Some(mine)) if capture != mine => Err(refused(CALL, "the event and the stream belong to two captures")),
            (None, Some(_)) => Err(refused(CALL, "a capturing stream cannot wait for an event recorded outside of the capture")),
            (Some((capture, nodes)), _) => {
                let joined = engine.captures.get_mut(&capture).ok_or_else(|| refused(CALL, "the event's capture has ended"))?;
                joined.join(stream, &nodes);
                engine.streams[stream].capture = Some(capture);
                Ok(())
            }
            (None, None) => {
                if mark > 0 {
                    engine.enqueue(stream, Op::Wait { event: event.0, mark }, engine.config.event_cost);
                }
                Ok(())
            }
        }
    }

    fn query(&self, event: EventId) -> Result<bool, DeviceError> {
        const CALL: &str = "simQuery";
        let engine = &mut *self.alive(CALL)?;
        let state = event_state(engine, event, CALL)?;
        match state.captured {
            Some(_) => Err(refused(CALL, "the event was recorded in a capture")),
            None => Ok(state.reached == state.asked),
        }
    }

    fn elapsed(&self, start: EventId, end: EventId) -> Result<Duration, DeviceError> {
        const CALL: &str = "simElapsed";
        let engine = &mut *self.alive(CALL)?;
        let mut reached_at = |event| {
            let state = event_state(engine, event, CALL)?;
            if !state.timed {
                return Err(refused(CALL, format!("event {} keeps no time: make it with `Event::timed`", event.0)));
            }
            let complete = state.captured.is_none() && state.asked > 0 && state.reached == state.asked;
            complete.then_some(state.reached_at).ok_or_else(|| refused(CALL, format!("event {} is not complete", event.0)))
        };
        let (start, end) = (reached_at(start)?, reached_at(end)?);
        Ok(Duration::from_nanos(end.saturating_sub(start)))
    }

    fn synchronize(&self, stream: StreamId) -> Result<(), DeviceError> {
        const CALL: &str = "simSynchronize";
        let engine = &mut *self.alive(CALL)?;
        let stream = running_stream(engine, stream, CALL)?;
        drain(engine, stream, CALL)
    }

    fn begin_capture(&self, stream: StreamId) -> Result<(), DeviceError> {
        const CALL: &str = "simBeginCapture";
        let engine = &mut *self.alive(CALL)?;
        let stream = running_stream(engine, stream, CALL)?;
        let id = engine.next_graph as usize;
        engine.next_graph += 1;
        engine.captures.insert(id, Capture::new(stream));
        engine.streams[stream].capture = Some(id);
        Ok(())
    }

    fn end_capture(&self, stream: StreamId) -> Result<GraphId, DeviceError> {
        const CALL: &str = "simEndCapture";
        let engine = &mut *self.alive(CALL)?;
        let index = stream_index(engine, stream, CALL)?;
        let id = engine.streams[index].capture.filter(|id| engine.captures.get(id).is_some_and(|capture| capture.origin == index));
        let capture = id.and_then(|id| engine.captures.remove(&id));
        let (Some(id), Some(capture)) = (id, capture) else {
            return Err(refused(CALL, format!("no capture began on stream {}", stream.0)));
        };
        for member in capture.streams() {
            engine.streams[member].capture = None;
        }
        let graph = capture.finish().ok_or_else(|| refused(CALL, "a stream that joined the capture was not joined back"))?;
        engine.graphs.insert(id as u64, Arc::new(graph));
        Ok(GraphId(id as u64))
    }

    fn replay(&self, graph: GraphId, stream: StreamId) -> Result<(), DeviceError> {
        const CALL: &str = "simReplay";
        let engine = &mut *self.alive(CALL)?;
        let stream = running_stream(engine, stream, CALL)?;
        let graph = engine.graphs.get(&graph.0).cloned().ok_or_else(|| refused(CALL, format!("there is no graph {}", graph.0)))?;
        engine.enqueue(stream, Op::Replay(graph), engine.config.replay_cost);
        Ok(())
    }

    fn destroy_graph(&self, graph: GraphId) {
        self.engine.lock().graphs.remove(&graph.0);
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.engine.lock().now)
    }

    fn pass_time(&self, until: Duration) {
        self.engine.lock().pass_time(nanos(until));
    }
}

fn no_partition(partition: PartitionId, call: &'static str) -> DeviceError {
    refused(call, format!("there is no partition {}", partition.0))
}

fn drain(engine: &mut Engine, stream: usize, call: &'static str) -> Result<(), DeviceError> {
    let idle = engine.drain(stream);
    engine.faults.check(call)?;
    if idle {
        return Ok(());
    }
    Err(refused(call, "the stream waits for something that will never happen"))
}
