//! Growing a launch that is under way: a second launch on the same tile counter, a *joiner*, whose blocks go to SMs that came back.
//!
//! Blocks that left an SM do not return to it, so that a kernel of milliseconds would end on the few SMs it once had. The session therefore
//! remembers its last launch that is long enough for a joiner to be worth its cost, about 10 us from the call to its first tile. It does so by value:
//! nothing is allocated.
//!
//! What keeps a joiner safe is told in kernels/elastic.cuh; two things are the host's part:
//! - It must not start before everything that precedes the owner has ended, since the counter may already be in the owner's epoch while kernels
//!   without tiles to count still write the owner's inputs. So an event is recorded before each launch that is remembered, and the joiner waits for it.
//! - Nothing that follows the owner may begin, or free memory, before the joiner has ended. So the session's chain waits for the joiner.
//!
//! Recording that event costs a launch of more than 200 us about half a microsecond of host time and the overlap with the launch before it. Launches
//! in graphs are not remembered: there the next kernel of the graph starts on all SMs that are granted by then.

use std::sync::Arc;

use crate::device::{Device, DeviceError, Event, FunctionId, LaunchRequest, PartitionId, Priority, Sms, Stream, StreamId};
use crate::partition::TpcSet;

use super::{KernelKey, Launch, TilesArg, Work};

/// The most that one SM can do in 200 us, beyond which a launch is taken to be long: 7.5 TFLOP/s (the dense FP16 rate of an H100's data sheet over
/// its SMs) and 120 GB/s (measured on an H200). On slower GPUs launches are longer than this says, never shorter.
const FLOPS_PER_SM: u64 = 1_500_000_000;
const BYTES_PER_SM: u64 = 24_000_000;

/// Whether `work` on so many SMs takes more than 200 us at the least.
pub(super) const fn is_long(work: Work, sms: Sms) -> bool {
    work.flops > sms.0 as u64 * FLOPS_PER_SM || work.bytes > sms.0 as u64 * BYTES_PER_SM
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
    /// Which launch on its tile counter it is.
    pub(super) epoch: u32,
    /// What the grant held when it was launched, or last grown.
    pub(super) held: TpcSet,
}

/// What a session needs to grow its last long launch.
pub(super) struct Growth {
    device: Arc<dyn Device>,
    /// Recorded before the launch that is remembered.
    before: Event,
    /// Recorded after a joiner.
    after: Event,
    last: Option<Owner>,
    /// Where joiners go, by partition and priority.
    streams: Vec<(PartitionId, Priority, Stream)>,
}

impl Growth {
    pub(super) fn new(device: &Arc<dyn Device>) -> Result<Self, DeviceError> {
        let (before, after) = (Event::new(device)?, Event::new(device)?);
        Ok(Self { device: Arc::clone(device), before, after, last: None, streams: Vec::new() })
    }

    /// To be called before a launch on `stream` that will be remembered.
    pub(super) fn prepare(&mut self, stream: StreamId) -> Result<(), DeviceError> {
        self.last = None;
        self.device.record(self.before.id(), stream)
    }

    pub(super) fn remember(&mut self, owner: Owner) {
        self.last = Some(owner);
    }

    /// The launch that is remembered, if `held` has TPCs that it could not use before.
    pub(super) fn growing(&self, held: TpcSet) -> Option<Owner> {
        self.last.filter(|owner| !owner.held.includes(held))
    }

    /// Launches a joiner of `owner` into `partition`, for the TPCs that `held` has beyond the owner's; `stream` holds the end of the chain, and waits
    /// for it.
    pub(super) fn grow(&mut self, owner: Owner, held: TpcSet, partition: PartitionId, stream: StreamId) -> Result<(), DeviceError> {
        let gained = held - owner.held;
        let joining = self.stream(partition, owner.priority)?;
        let launch = Launch { grid: joiner_grid(&owner.launch, self.device.topology().sms_of(gained)), ..owner.launch };
        // 0 says owner: the epoch is counted modulo 2^32 - 1.
        let tiles = TilesArg { joins: 1 + owner.epoch % u32::MAX, ..owner.tiles };
        self.device.wait(joining, self.before.id())?;
        let Owner { function, priority, key, work, .. } = owner;
        self.device.launch(joining, &LaunchRequest { function, launch: &launch, tiles, priority, overlaps: false, key, work })?;
        self.device.record(self.after.id(), joining)?;
        self.device.wait(stream, self.after.id())?;
        self.last = Some(Owner { held: owner.held | held, ..owner });
        Ok(())
    }

    fn stream(&mut self, partition: PartitionId, priority: Priority) -> Result<StreamId, DeviceError> {
        if let Some((.., stream)) = self.streams.iter().find(|(at, with, _)| (*at, *with) == (partition, priority)) {
            return Ok(stream.id());
        }
        let stream = Stream::new(&self.device, partition, priority)?;
        let id = stream.id();
        self.streams.push((partition, priority, stream));
        Ok(id)
    }
}

/// As many blocks as the gained SMs hold, never more than the owner has; even, since blocks of some kernels come in pairs.
const fn joiner_grid(owner: &Launch, gained: Sms) -> u32 {
    let grid = (gained.get() * owner.blocks_per_sm).next_multiple_of(2);
    if grid < owner.grid { grid } else { owner.grid }
}
