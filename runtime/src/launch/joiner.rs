//! Growing a launch that is under way: a second launch on the same tile counter, a *joiner*, whose blocks go to SMs that came back.
//!
//! Blocks that left an SM do not return to it, so that a kernel of milliseconds would end on the few SMs it once had. The session therefore
//! remembers launches that are long enough for a joiner to be worth its cost, about 10 us from the call to its first tile: the last one that was made
//! eagerly, by value, so that nothing is allocated; and those of the graph replayed last, as they were captured.
//!
//! What keeps a joiner safe is told in kernels/elastic.cuh; two things are the host's part:
//! - It must not start before everything that precedes the owner has ended, since the counter may already be in the owner's epoch while kernels
//!   without tiles to count still write the owner's inputs. So an event is recorded before each eager launch that is remembered, and the joiner waits
//!   for it; it costs such a launch about half a microsecond of host time and the overlap with the launch before it. In a replay, where no event can
//!   be waited for, the counters are read back: they tell which launch it is, and that blocks have left it, which they do only after everything
//!   before it has ended. Unless blocks have left there is nothing to grow.
//! - No memory may be freed, and nothing launched after it may begin, before the joiner has ended. So the session's chain waits for the joiner. What
//!   follows in the same replay need not: the owner ends only when every tile is finished, and a joiner without one touches nothing.

use std::sync::Arc;

use crate::device::{Device, DeviceError, DevicePtr, Event, FunctionId, LaunchRequest, PartitionId, Priority, Sms, Stream, StreamId};
use crate::partition::{PartitionRef, TpcSet};

use super::capture::GraphBody;
use super::session::PROGRESSES;
use super::{KernelKey, Launch, TilesArg, Work};
use crate::device::request::progress::TileProgress;

/// The most that one SM can do in 200 us, beyond which a launch is taken to be long: 7.5 TFLOP/s (the dense FP16 rate of an H100's data sheet over
/// its SMs) and 120 GB/s (measured on an H200). On slower GPUs launches are longer than this says, never shorter.
const FLOPS_PER_SM: u64 = 1_500_000_000;
const BYTES_PER_SM: u64 = 24_000_000;

/// Whether `work` on so many SMs takes more than 200 us at the least.
pub(super) const fn is_long(work: Work, sms: Sms) -> bool {
    work.flops > sms.0 as u64 * FLOPS_PER_SM || work.bytes > sms.0 as u64 * BYTES_PER_SM
}

/// The same for a launch in a graph, 50 us: being remembered costs it nothing, and on the few SMs that it may be left with it takes many times as long.
pub(super) const fn is_long_in_a_graph(work: Work, sms: Sms) -> bool {
    is_long(Work { flops: work.flops.saturating_mul(4), bytes: work.bytes.saturating_mul(4) }, sms)
}

/// An elastic launch as it was made.
#[derive(Clone, Copy)]
pub(super) struct Owner {
    pub(super) function: FunctionId,
    pub(super) launch: Launch,
    pub(super) tiles: TilesArg,
    pub(super) priority: Priority,
    pub(super) key: KernelKey,
    pub(super) work: Work,
    /// Index of the kernel in its session.
    pub(super) kernel: usize,
    /// Which launch on its tile counter it is; in a graph, counted from the graph's first.
    pub(super) epoch: u32,
    /// What the grant held when it was launched, or last grown.
    pub(super) held: TpcSet,
}

/// A replay, as far as its launches may grow.
struct Replayed {
    graph: Arc<GraphBody>,
    /// The epochs in which its first launches take tiles.
    first: [u32; PROGRESSES],
    /// What its launches under way can use, if no joiner helps.
    held: TpcSet,
}

/// What a session needs to grow its long launches.
pub(super) struct Growth {
    device: Arc<dyn Device>,
    /// Recorded before the launch that is remembered.
    before: Event,
    /// Recorded after a joiner.
    after: Event,
    last: Option<Owner>,
    replayed: Option<Replayed>,
    /// Where counters are read back.
    reading: Option<Stream>,
    /// Where joiners go.
    streams: Vec<JoiningStream>,
}

/// A stream inside a partition where joiners go.
struct JoiningStream {
    stream: Stream,
    priority: Priority,
    /// Its reference is given back after the stream.
    place: JoiningPlace,
}

/// A partition for joiners; of a session of no runtime, without a reference.
#[derive(Clone)]
pub(super) struct JoiningPlace {
    pub(super) partition: PartitionId,
    pub(super) _reference: Option<PartitionRef>,
}

impl Growth {
    pub(super) fn new(device: &Arc<dyn Device>) -> Result<Self, DeviceError> {
        let (before, after) = (Event::new(device)?, Event::new(device)?);
        Ok(Self { device: Arc::clone(device), before, after, last: None, replayed: None, reading: None, streams: Vec::new() })
    }

    /// To be called before a launch on `stream` that will be remembered.
    pub(super) fn prepare(&mut self, stream: StreamId) -> Result<(), DeviceError> {
        (self.last, self.replayed) = (None, None);
        self.device.record(self.before.id(), stream)
    }

    pub(super) fn remember(&mut self, owner: Owner) {
        self.last = Some(owner);
    }

    /// A graph was replayed, whose first launch on each counter is number `first`, while the grant held `held`.
    #[inline]
    pub(super) fn replayed(&mut self, graph: Arc<GraphBody>, first: [u32; PROGRESSES], held: impl FnOnce() -> TpcSet) {
        self.last = None;
        self.replayed = if graph.long.is_empty() { None } else { Some(Replayed { graph, first, held: held() }) };
    }

    /// The launch of the last replay that takes tiles now and has lost blocks, if `held` has TPCs that it could not use before. `progress` are the
    /// session's counters, side by side.
    pub(super) fn growing_in_replay(&mut self, held: TpcSet, progress: DevicePtr) -> Result<Option<Owner>, DeviceError> {
        let Some(replayed) = &mut self.replayed else { return Ok(None) };
        let could_use = std::mem::replace(&mut replayed.held, held);
        if could_use.includes(held) {
            return Ok(None);
        }
        if self.reading.is_none() {
            self.reading = Some(Stream::new(&self.device, PartitionId::WHOLE, Priority::High)?);
        }
        let Some(reading) = &self.reading else { return Ok(None) };
        let mut bytes = [0; PROGRESSES * TileProgress::BYTES];
        self.device.download(reading.id(), progress, &mut bytes)?;
        let counters = bytes.as_chunks().0;
        let under_way = replayed.graph.long.iter().find_map(|(counter, owner)| {
            let epoch = replayed.first[*counter].wrapping_add(owner.epoch);
            let now = TileProgress::from_bytes(&counters[*counter]);
            (now.epoch == epoch && now.left > 0).then_some(Owner { epoch, held: could_use, ..*owner })
        });
        Ok(under_way)
    }

    /// The eager launch that is remembered, if `held` has TPCs that it could not use before, or that it was seen without since.
    pub(super) fn growing(&mut self, held: TpcSet) -> Option<Owner> {
        let owner = self.last.as_mut()?;
        let grows = !owner.held.includes(held);
        owner.held = owner.held & held;
        grows.then_some(*owner)
    }

    /// Launches a joiner of the eager launch `owner` into `partition`, for the TPCs that `held` has beyond the owner's; `stream` holds the end of the chain,
    /// and waits for it.
    pub(super) fn grow(&mut self, owner: Owner, held: TpcSet, place: &JoiningPlace, stream: StreamId) -> Result<(), DeviceError> {
        let joining = self.stream(place, owner.priority)?;
        self.device.wait(joining, self.before.id())?;
        self.join(owner, held, place, stream)?;
        self.last = Some(Owner { held, ..owner });
        Ok(())
    }

    /// The same of any launch whose predecessors are known to have ended, or waited for. One launch in 2^32 on a counter gets no joiner: its epoch plus one
    /// is 0, which says owner.
    pub(super) fn join(&mut self, owner: Owner, held: TpcSet, place: &JoiningPlace, stream: StreamId) -> Result<(), DeviceError> {
        let Some(joins) = owner.epoch.checked_add(1) else { return Ok(()) };
        let gained = held - owner.held;
        let joining = self.stream(place, owner.priority)?;
        let launch = Launch { grid: joiner_grid(&owner.launch, self.device.topology().sms_of(gained)), ..owner.launch };
        let tiles = TilesArg { joins, ..owner.tiles };
        let Owner { function, priority, key, work, .. } = owner;
        self.device.launch(joining, &LaunchRequest { function, launch: &launch, tiles, priority, overlaps: false, key, work })?;
        let awaited = self.device.record(self.after.id(), joining).and_then(|()| self.device.wait(stream, self.after.id()));
        // What the chain cannot wait for must have ended before anything follows.
        awaited.or_else(|error| self.device.synchronize(joining).and(Err(error)))
    }

    fn stream(&mut self, place: &JoiningPlace, priority: Priority) -> Result<StreamId, DeviceError> {
        let is_there = |joining: &&JoiningStream| joining.place.partition == place.partition && joining.priority == priority;
        if let Some(joining) = self.streams.iter().find(is_there) {
            return Ok(joining.stream.id());
        }
        let stream = Stream::new(&self.device, place.partition, priority)?;
        let id = stream.id();
        self.streams.push(JoiningStream { stream, priority, place: place.clone() });
        Ok(id)
    }

    /// Lets go of the streams in partitions of which `stays` says no. The chain has passed every joiner on them.
    pub(super) fn keep_only(&mut self, stays: impl Fn(PartitionId) -> bool) {
        self.streams.retain(|joining| stays(joining.place.partition));
    }
}

/// As many blocks as the gained SMs hold, never more than the owner has; even, since blocks of some kernels come in pairs.
const fn joiner_grid(owner: &Launch, gained: Sms) -> u32 {
    let grid = gained.get().saturating_mul(owner.blocks_per_sm);
    if grid < owner.grid { grid.next_multiple_of(2) } else { owner.grid }
}
