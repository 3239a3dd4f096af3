//! Virtual time: the agenda of what happens next, and the streams, events and replays that it moves on.
//!
//! Time is in whole nanoseconds and moves only when a caller waits. What happens at one instant happens in a fixed order: kernels end, in the order
//! of their arrival; then the agenda's entries come, in the order in which they were made; then blocks are placed and rates are set.
//!
//! The host has a timeline for each stream, since each tenant launches from a thread of its own: an operation is visible to the GPU its host cost
//! after the one before it on that stream. A stream that waits for an event takes over the later timeline of the two, so that a tenant that hops
//! between streams pays for its launches one after another.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::device::{DevicePtr, PartitionId, StreamId};

use super::agenda::{Agenda, Occasion};
use super::blocks::Blocks;
use super::config::{Sharing, SimConfig};
use super::cost::CostModel;
use super::fault::Faults;
use super::graph::{Capture, GraphDef, GraphRun, NodeWork};
use super::kernel::{Kernel, KernelSpec, Origin, Source};
use super::memory::{Memory, Write};
use super::pcie::{self, Link};
use super::slices::Slices;
use super::sm_set::SmSet;
use super::stream::{EventState, Op, Queued, Stream};
use super::trace::KernelTrace;

/// Nanoseconds of a duration; the largest number where there are too many.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The state of one simulated GPU.
pub(super) struct Engine {
    pub(super) config: SimConfig,
    pub(super) now: u64,
    pub(super) memory: Memory,
    /// Sizes of page-locked host memory by address.
    pub(super) host_memory: BTreeMap<usize, usize>,
    pub(super) faults: Faults,
    pub(super) costs: CostModel,
    /// SMs of each partition, none where it was given back; the first is the whole GPU.
    pub(super) partitions: Vec<Option<SmSet>>,
    pub(super) streams: Vec<Stream>,
    pub(super) events: BTreeMap<u64, EventState>,
    pub(super) next_event: u64,
    pub(super) captures: BTreeMap<usize, Capture>,
    pub(super) graphs: BTreeMap<u64, Arc<GraphDef>>,
    pub(super) next_graph: u64,
    pub(super) functions: Vec<&'static str>,
    /// The process that new streams belong to, and the number of each process's space.
    pub(super) process: u32,
    spaces: BTreeMap<u32, usize>,
    pub(super) trace: Vec<KernelTrace>,
    to_device: Link,
    to_host: Link,
    blocks: Blocks,
    slices: Option<Slices>,
    runs: Vec<Option<GraphRun>>,
    agenda: Agenda,
    /// Streams whose head may be able to go on.
    runnable: VecDeque<usize>,
    /// Whether an event was reached since the flag was last cleared: the only change a caller can see without waiting.
    event_reached: bool,
}

impl Engine {
    pub(super) fn new(config: SimConfig) -> Self {
        let topology = &config.topology;
        let mut blocks = Blocks::new(topology.sms.0, topology.sms_per_tpc);
        let slices = match config.sharing {
            Sharing::Concurrent => None,
            Sharing::TimeSliced { quantum, switch } => Some(Slices::new(nanos(quantum), nanos(switch))),
        };
        if slices.is_some() {
            blocks.give_turn(None);
        }
        let mut whole = SmSet::EMPTY;
        (0..topology.sms.0 as usize).for_each(|sm| whole.insert(sm));
        Self {
            memory: Memory::new(topology.memory_bytes),
            host_memory: BTreeMap::new(),
            faults: Faults::default(),
            to_device: Link::default(),
            to_host: Link::default(),
            costs: CostModel::new(&config),
            partitions: vec![Some(whole)],
            streams: Vec::new(),
            events: BTreeMap::new(),
            next_event: 1,
            captures: BTreeMap::new(),
            graphs: BTreeMap::new(),
            next_graph: 1,
            functions: Vec::new(),
            process: 0,
            spaces: BTreeMap::new(),
            trace: Vec::new(),
            blocks,
            slices,
            runs: Vec::new(),
            agenda: Agenda::default(),
            runnable: VecDeque::new(),
            event_reached: false,
            now: 0,
            config,
        }
    }

    /// The number of a new stream.
    pub(super) fn add_stream(&mut self, partition: u32, sms: SmSet) -> usize {
        let count = self.spaces.len();
        let space = if self.slices.is_some() { *self.spaces.entry(self.process).or_insert(count) } else { 0 };
        self.blocks.add_space(space);
        self.streams.push(Stream::new(partition, sms, space));
        self.streams.len() - 1
    }

    /// The SMs of a partition that is there.
    pub(super) fn partition(&self, partition: PartitionId) -> Option<SmSet> {
        self.partitions.get(partition.0 as usize).copied().flatten()
    }

    /// What keeps a partition from being given back.
    pub(super) fn use_of_partition(&self, partition: PartitionId) -> Option<&'static str> {
        let inside = |stream: &Stream| stream.partition == partition.0;
        let has_nodes = |graph: &GraphDef| graph.nodes.iter().any(|node| inside(&self.streams[node.stream]));
        if self.streams.iter().any(|stream| inside(stream) && !stream.destroyed) {
            Some("a stream is left in it")
        } else if self.streams.iter().any(|stream| inside(stream) && !stream.is_idle())
            || self.runs.iter().flatten().any(|run| has_nodes(&run.graph))
        {
            Some("kernels run in it")
        } else if self.graphs.values().any(|graph| has_nodes(graph)) {
            Some("a graph has nodes in it")
        } else {
            None
        }
    }

    /// Appends an operation to a stream, visible `cost` after what the host issued there before.
    pub(super) fn enqueue(&mut self, stream: usize, op: Op, cost: Duration) {
        let now = self.now;
        let Some(state) = self.streams.get_mut(stream) else { return };
        state.host = state.host.max(now).saturating_add(nanos(cost));
        if let Op::Wait { event, .. } = op
            && let Some(event) = self.events.get(&event)
        {
            state.host = state.host.max(event.host.saturating_add(nanos(cost)));
        }
        let queued = Queued { visible: state.host, op };
        if let Op::Record { event, .. } = queued.op
            && let Some(event) = self.events.get_mut(&event)
        {
            event.host = state.host;
            event.outstanding += 1;
        }
        state.queue.push_back(queued);
        if state.queue.len() == 1 && !state.busy {
            self.runnable.push_back(stream);
            self.settle();
        }
    }

    /// Gives back memory; counters that were in it are forgotten.
    pub(super) fn free(&mut self, address: DevicePtr) {
        if let Some(bytes) = self.memory.free(address) {
            self.blocks.written(address.0, bytes, &self.memory, self.now);
        }
    }

    /// Forgets an event as soon as no stream has a mark of it ahead.
    pub(super) fn destroy_event(&mut self, event: u64) {
        if let Some(state) = self.events.get_mut(&event) {
            state.destroyed = true;
            if state.outstanding == 0 {
                self.events.remove(&event);
            }
        }
    }

    /// Moves to the next instant at which something happens and lets it happen, unless it is after `limit` or there is none.
    /// Nothing happens any more once the context is lost.
    pub(super) fn step(&mut self, limit: u64) -> bool {
        if self.faults.is_lost() {
            return false;
        }
        let next_change = if self.blocks.has_gone() { self.now } else { self.blocks.next_change() };
        let next = next_change.min(self.agenda.next_at());
        if next == u64::MAX || next > limit {
            return false;
        }
        self.now = self.now.max(next);
        for kernel in self.blocks.end_due(self.now) {
            self.kernel_ended(&kernel);
        }
        while let Some(occasion) = self.agenda.pop_due(self.now) {
            self.happen(occasion);
        }
        self.settle();
        true
    }

    /// Lets time pass until an event is reached, or until `until`; never past the last thing that can happen where `until` is without end.
    pub(super) fn pass_time(&mut self, until: u64) {
        self.event_reached = false;
        while !self.event_reached {
            if !self.step(until) {
                if until != u64::MAX {
                    self.now = self.now.max(until);
                }
                return;
            }
        }
    }

    /// Lets time pass until `stream` is idle; `false` if that never comes.
    pub(super) fn drain(&mut self, stream: usize) -> bool {
        while self.streams.get(stream).is_some_and(|state| !state.is_idle()) {
            if !self.step(u64::MAX) {
                return false;
            }
        }
        true
    }

    fn happen(&mut self, occasion: Occasion) {
        match occasion {
            Occasion::Visible { stream } => self.runnable.push_back(stream),
            Occasion::Start { stream, spec } => self.submit(spec, Source::Stream(stream), stream, None),
            Occasion::Node { run, node } => self.start_node(run, node, None),
            Occasion::Done { source, write } => {
                if let Some(write) = write {
                    self.memory.apply(&write);
                    let (address, bytes) = write.range();
                    self.blocks.written(address, bytes, &self.memory, self.now);
                }
                self.done(source, None);
            }
            Occasion::Blocks(timer) => self.blocks.fire(timer, self.now),
            Occasion::Slices(turn) => {
                if let Some(slices) = &mut self.slices {
                    slices.fire(turn, self.now);
                }
            }
        }
    }

    /// Moves every stream on as far as it goes at this instant, then places blocks.
    fn settle(&mut self) {
        while let Some(stream) = self.runnable.pop_front() {
            self.advance(stream);
        }
        if let Some(slices) = &mut self.slices {
            let streams = &self.streams;
            let busy = |space| streams.iter().any(|stream| stream.space == space && stream.busy);
            let later = slices.settle(self.now, self.spaces.len(), busy);
            self.blocks.give_turn(slices.turn());
            if let Some((at, turn)) = later {
                self.agenda.push(at, Occasion::Slices(turn));
            }
        }
        self.blocks.settle(&self.costs, &self.config, self.now);
        for (at, timer) in std::mem::take(&mut self.blocks.timers) {
            self.agenda.push(at, Occasion::Blocks(timer));
        }
    }

    /// Starts what is at the head of a stream, unless it must wait.
    fn advance(&mut self, stream: usize) {
        loop {
            let Some(state) = self.streams.get_mut(stream).filter(|state| !state.busy) else { return };
            let Some(head) = state.queue.front() else { return };
            if head.visible > self.now {
                let at = head.visible;
                return self.agenda.push(at, Occasion::Visible { stream });
            }
            if let Op::Wait { event, mark } = head.op
                && let Some(event) = self.events.get_mut(&event).filter(|event| event.reached < mark)
            {
                return event.waiters.push(stream);
            }
            let Some(Queued { op, .. }) = state.queue.pop_front() else { return };
            let start = state.not_before.max(self.now);
            let kept = state.kept_seq.take();
            state.busy = !matches!(op, Op::Record { .. } | Op::Wait { .. });
            match op {
                Op::Record { event, mark } => self.reach(event, mark),
                Op::Wait { .. } => {
                    let gap = nanos(self.config.kernel_gap + self.config.event_gap);
                    state.not_before = state.not_before.max(self.now + gap);
                }
                Op::Kernel(spec) if start == self.now => self.submit(spec, Source::Stream(stream), stream, None),
                Op::Kernel(spec) if spec.overlaps && kept.is_some() => self.submit(spec, Source::Stream(stream), stream, kept),
                Op::Kernel(spec) => self.agenda.push(start, Occasion::Start { stream, spec }),
                Op::Write(write) => {
                    let at = self.write_end(&write);
                    self.agenda.push(at, Occasion::Done { source: Source::Stream(stream), write: Some(write) });
                }
                Op::Read { bytes } => {
                    let at = self.to_host.take(self.now, bytes, &self.config);
                    self.agenda.push(at, Occasion::Done { source: Source::Stream(stream), write: None });
                }
                Op::Replay(graph) => self.start_replay(graph, stream, start),
            }
        }
    }

    /// When a write that begins now is done.
    fn write_end(&mut self, write: &Write) -> u64 {
        let (_, bytes) = write.range();
        if write.crosses_pcie() {
            self.to_device.take(self.now, bytes, &self.config)
        } else {
            self.now + pcie::copy_ns(bytes, &self.config)
        }
    }

    fn start_replay(&mut self, graph: Arc<GraphDef>, stream: usize, start: u64) {
        if graph.nodes.is_empty() {
            return self.agenda.push(start, Occasion::Done { source: Source::Stream(stream), write: None });
        }
        let run = self.runs.iter().position(Option::is_none).unwrap_or(self.runs.len());
        for node in graph.roots() {
            self.agenda.push(start, Occasion::Node { run, node });
        }
        let replay = GraphRun::new(graph, stream);
        match self.runs.get_mut(run) {
            Some(slot) => *slot = Some(replay),
            None => self.runs.push(Some(replay)),
        }
    }

    fn start_node(&mut self, run: usize, node: u32, kept: Option<u64>) {
        let Some(replay) = self.runs.get(run).and_then(Option::as_ref) else { return };
        let Some(definition) = replay.graph.nodes.get(node as usize) else { return };
        let source = Source::Node { run, node };
        match definition.work.clone() {
            NodeWork::Kernel(spec) => {
                let stream = definition.stream;
                self.submit(spec, source, stream, kept);
            }
            NodeWork::Write(write) => {
                let at = self.write_end(&write);
                self.agenda.push(at, Occasion::Done { source, write: Some(write) });
            }
        }
    }

    /// Hands a launch to the block scheduler, with the number that was kept for it where it overlaps the one before.
    fn submit(&mut self, spec: Arc<KernelSpec>, source: Source, stream: usize, kept: Option<u64>) {
        let Some(state) = self.streams.get(stream) else { return };
        let followed = match source {
            Source::Stream(stream) => self.streams.get(stream).is_some_and(|state| state.is_followed(self.now)),
            Source::Node { run, node } => self.runs.get(run).and_then(Option::as_ref).is_some_and(|run| run.graph.is_followed(node)),
        };
        let kept = kept.map(|seq| (seq, nanos(self.config.kernel_gap)));
        let origin = Origin { source, stream, partition: state.sms, space: state.space, followed, kept };
        if !self.blocks.submit(spec, origin, &self.memory, self.now) {
            let at = self.now + nanos(self.config.shortest_kernel);
            self.agenda.push(at, Occasion::Done { source, write: None });
        }
    }

    fn kernel_ended(&mut self, kernel: &Kernel) {
        self.faults.kernel_ended(kernel.spec.symbol);
        if self.config.trace {
            self.trace.push(KernelTrace {
                symbol: kernel.spec.symbol,
                key: kernel.spec.key,
                stream: StreamId(kernel.stream as u64 + 1),
                ready: Duration::from_nanos(kernel.ready_at),
                started: Duration::from_nanos(kernel.started_at),
                ended: Duration::from_nanos(self.now),
                tpcs: kernel.touched.tpcs(self.config.topology.sms_per_tpc),
            });
        }
        self.done(kernel.source, kernel.next_seq);
    }

    /// What `source` stands for is done: its stream, or the nodes after it, go on. `kept` is the number of a launch after it that overlaps it.
    fn done(&mut self, source: Source, kept: Option<u64>) {
        match source {
            Source::Stream(stream) => {
                if let Some(state) = self.streams.get_mut(stream) {
                    state.busy = false;
                    state.not_before = self.now + nanos(self.config.kernel_gap);
                    state.kept_seq = kept;
                    self.runnable.push_back(stream);
                }
            }
            Source::Node { run, node } => {
                let Some(replay) = self.runs.get_mut(run).and_then(Option::as_mut) else { return };
                let graph = Arc::clone(&replay.graph);
                let gap = self.now + nanos(self.config.kernel_gap);
                let hop_gap = gap + nanos(self.config.hop_gap);
                replay.left -= 1;
                let (left, stream) = (replay.left, replay.stream);
                let successors = graph.nodes.get(node as usize).map_or(&[][..], |node| &node.successors);
                let mut ready = Vec::new();
                for &successor in successors {
                    if let Some(missing) = replay.missing.get_mut(successor as usize) {
                        *missing -= 1;
                        if *missing == 0 {
                            ready.push(successor);
                        }
                    }
                }
                for node in ready {
                    let Some(next) = graph.nodes.get(node as usize) else { continue };
                    match kept.filter(|_| next.overlaps()) {
                        Some(seq) => self.start_node(run, node, Some(seq)),
                        None => self.agenda.push(if next.hops { hop_gap } else { gap }, Occasion::Node { run, node }),
                    }
                }
                if left == 0 {
                    self.runs[run] = None;
                    self.done(Source::Stream(stream), None);
                }
            }
        }
    }

    fn reach(&mut self, event: u64, mark: u64) {
        let Some(state) = self.events.get_mut(&event) else { return };
        if mark >= state.reached {
            state.reached = mark;
            state.reached_at = self.now;
        }
        state.outstanding -= 1;
        self.runnable.extend(state.waiters.drain(..));
        self.event_reached = true;
        if state.destroyed && state.outstanding == 0 {
            self.events.remove(&event);
        }
    }

    /// Puts the tile counters that lie in `target`, read from `address` on, in their places there.
    pub(super) fn read_progress(&self, address: u64, target: &mut [u8]) {
        for (at, progress) in self.blocks.progress(address, target.len() as u64) {
            let first = (at - address) as usize;
            let bytes = progress.to_bytes();
            for (target, byte) in target[first..].iter_mut().zip(bytes) {
                *target = byte;
            }
        }
    }
}
