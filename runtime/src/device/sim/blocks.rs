//! The thread-block scheduler: which blocks are on which SM.
//!
//! - Blocks wait for room on an SM of their stream's partition, in the order of priority, then arrival. A kernel whose blocks do not all fit
//!   keeps later ones off its partition until they do (Amert et al., "GPU Scheduling on the NVIDIA TX2: Hidden Details Revealed", 2017).
//! - A running block is never preempted. Blocks of a grid that does not fit at once end one after another and make room for whoever comes
//!   first; blocks of a persistent kernel end with the kernel.
//! - Where the tiles do not divide evenly, the blocks that have none in the last wave end a wave early. Without a profile of single tiles, a
//!   wave is taken to be the latency over the number of waves. This is when others slip in between persistent kernels.
//! - A block of an elastic kernel leaves, at its next tile, an SM that its grant does not hold, unless it is the last one. Blocks desynchronise after a few tiles, so
//!   of the blocks that must leave, a quarter goes after each quarter of a tile. The same holds for ending blocks that make room.
//! - A launch that may overlap the end of the one before it on its stream queues from the moment when all blocks of that one are placed: launches of others that
//!   arrive later come after it. Its blocks take the room that blocks of the one before leave in its last wave, and wait there for its end.
//! - Placement is breadth-first: the emptiest SM first, the first SM of every TPC before the second ones.
//!
//! How fast the blocks get their work done is set in [`rates`]. No block is an object, so that an event costs time in proportion to the SMs and
//! to the few kernels that run at once.
//!
//! Left out: the last blocks of an elastic kernel that find no room while it runs are taken as ended with it, and time to poll the grant
//! (0.3 us per kernel measured) is taken as part of the profile.

mod rates;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::device::Priority;
use crate::device::request::progress::TileProgress;

use super::config::SimConfig;
use super::contention::Demand;
use super::cost::CostModel;
use super::kernel::{Kernel, KernelSpec, Origin, SM_ROOM};
use super::memory::Memory;
use super::sm_set::{MAX_SMS, SmSet};

/// Parts of a tile, or of a block, after which blocks that must go have gone.
const QUARTERS: usize = 4;

/// Something the scheduler wants to be called back for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// A quarter of the blocks on SMs that the grant does not hold leaves.
    Leave { kernel: usize, seq: u64, quarter: usize },
    /// A quarter of the blocks of a grid ends and is not replaced unless nobody comes first.
    Yield { kernel: usize, seq: u64, quarter: usize },
}

/// The launches on one tile counter.
#[derive(Debug, Default)]
struct Chain {
    epoch: u32,
    owner: Option<usize>,
}

/// The SMs and every launch that is on them or waits for them.
pub(super) struct Blocks {
    sms: usize,
    /// SMs in the order in which equally empty ones are filled.
    order: Vec<u16>,
    kernels: Vec<Option<Box<Kernel>>>,
    vacant: Vec<usize>,
    /// Launches that may have blocks to place, by rank.
    waiting: Vec<usize>,
    /// Launches with blocks on SMs, in the order of their start; those that joined another one are in its `joiners` instead.
    running: Vec<usize>,
    /// Room taken on each SM, for each process that has the SMs to itself in its turn.
    used: Vec<[u16; MAX_SMS]>,
    /// The process whose turn it is; nobody's during a switch.
    turn: Option<usize>,
    chains: BTreeMap<u64, Chain>,
    /// Launches that ended outside of [`end_due`](Self::end_due): joiners without blocks.
    gone: Vec<usize>,
    dirty: bool,
    next_seq: u64,
    /// To be taken by the engine after each call.
    pub(super) timers: Vec<(u64, Timer)>,
    /// Scratch space of [`refresh`](Self::refresh): the running launches, and what each of them asks for.
    active: Vec<(usize, SmSet)>,
    demands: Vec<Demand>,
}

impl Blocks {
    pub(super) fn new(sms: u16, sms_per_tpc: u16) -> Self {
        let per_tpc = sms_per_tpc.max(1);
        let order = (0..per_tpc).flat_map(|first| (first..sms).step_by(per_tpc as usize)).collect();
        Self {
            sms: sms as usize,
            order,
            kernels: Vec::new(),
            vacant: Vec::new(),
            waiting: Vec::new(),
            running: Vec::new(),
            used: vec![[0; MAX_SMS]],
            turn: Some(0),
            chains: BTreeMap::new(),
            gone: Vec::new(),
            dirty: false,
            next_seq: 0,
            timers: Vec::new(),
            active: Vec::new(),
            demands: Vec::new(),
        }
    }

    /// Room for one more process.
    pub(super) fn add_space(&mut self, space: usize) {
        while self.used.len() <= space {
            self.used.push([0; MAX_SMS]);
        }
    }

    /// From now on only the kernels of `space` make progress.
    pub(super) fn give_turn(&mut self, space: Option<usize>) {
        self.dirty |= self.turn != space;
        self.turn = space;
    }

    /// A launch whose predecessors are done. `false` if it joins tiles that nobody works on, and ends at once.
    pub(super) fn submit(&mut self, spec: Arc<KernelSpec>, origin: Origin, memory: &Memory, now: u64) -> bool {
        let held = (spec.elastic && spec.grant != 0).then(|| self.read_grant(spec.grant, memory));
        let chained = spec.elastic && spec.progress != 0;
        let chain = chained.then(|| self.chains.entry(spec.progress).or_default());
        let owner = match (&chain, spec.joins) {
            (_, 0) => None,
            (Some(Chain { epoch, owner: Some(owner) }), joins) if joins - 1 == *epoch => Some(*owner),
            _ => return false,
        };
        let mut kernel = Box::new(Kernel::new(spec, origin, self.next_seq, held, now));
        kernel.owner = owner;
        self.next_seq += 1;
        let id = self.vacant.pop().unwrap_or(self.kernels.len());
        match owner {
            None => {
                if let Some(chain) = chain {
                    chain.owner = Some(id);
                }
            }
            Some(owner) => {
                if let Some(owner) = self.kernel_mut(owner) {
                    owner.joiners.push(id);
                }
            }
        }
        let rank = kernel.rank();
        let place = self.waiting.partition_point(|&other| self.kernels[other].as_ref().is_some_and(|other| other.rank() < rank));
        self.waiting.insert(place, id);
        match self.kernels.get_mut(id) {
            Some(slot) => *slot = Some(kernel),
            None => self.kernels.push(Some(kernel)),
        }
        self.dirty = true;
        true
    }

    /// When the next launch ends or begins its last wave, as things are.
    pub(super) fn next_change(&self) -> u64 {
        let changes = self.running.iter().filter_map(|&id| self.kernel(id)).map(|kernel| kernel.ends_at.min(kernel.tail_at));
        changes.min().unwrap_or(u64::MAX)
    }

    /// Frees the SMs of launches whose last wave has begun from the blocks that find no tile in it.
    fn begin_tails(&mut self, now: u64) {
        for &id in &self.running {
            let Some(kernel) = self.kernels[id].as_mut().filter(|kernel| kernel.tail_at <= now) else { continue };
            let (before, after) = (kernel.resident, kernel.waves().1);
            let (room, used) = (kernel.block_room(), &mut self.used[kernel.space]);
            let mut leaving = before - after;
            for &sm in self.order.iter().rev() {
                let sm = sm as usize;
                let left = u32::from(kernel.counts[sm]).min(leaving);
                kernel.counts[sm] -= left as u8;
                used[sm] -= room * left as u16;
                leaving -= left;
            }
            kernel.advance(now);
            kernel.resident = after;
            kernel.tail = Some(f64::from(before) / f64::from(after.max(1)));
            kernel.tail_at = u64::MAX;
            self.dirty = true;
        }
    }

    /// Takes out the launches that have ended by `now`, in the order of their arrival.
    pub(super) fn end_due(&mut self, now: u64) -> Vec<Kernel> {
        self.begin_tails(now);
        let mut due: Vec<usize> = std::mem::take(&mut self.gone);
        for &id in &self.running {
            if let Some(kernel) = self.kernel(id).filter(|kernel| kernel.ends_at <= now) {
                due.push(id);
                due.extend(&kernel.joiners);
            }
        }
        let mut ended: Vec<Kernel> = due.into_iter().filter_map(|id| self.remove(id)).collect();
        ended.sort_by_key(|kernel| kernel.seq);
        ended
    }

    fn remove(&mut self, id: usize) -> Option<Kernel> {
        let kernel = *self.kernels.get_mut(id)?.take()?;
        let room = kernel.block_room();
        for (used, &count) in self.used[kernel.space].iter_mut().zip(&kernel.counts) {
            *used -= room * u16::from(count);
        }
        self.running.retain(|&other| other != id);
        self.waiting.retain(|&other| other != id);
        self.vacant.push(id);
        match kernel.owner {
            Some(owner) => {
                if let Some(owner) = self.kernel_mut(owner) {
                    owner.joiners.retain(|&joiner| joiner != id);
                }
            }
            None => {
                if let Some(chain) = self.chains.get_mut(&kernel.spec.progress).filter(|chain| chain.owner == Some(id)) {
                    chain.owner = None;
                    chain.epoch = chain.epoch.wrapping_add(1);
                }
            }
        }
        self.dirty = true;
        Some(kernel)
    }

    /// Memory from `address` on was written: grants there may have changed, and counters there start afresh.
    pub(super) fn written(&mut self, address: u64, bytes: u64, memory: &Memory, now: u64) {
        let end = address.saturating_add(bytes);
        let mask_bytes = self.mask_bytes() as u64;
        for id in 0..self.kernels.len() {
            let Some(spec) = self.kernel(id).map(|kernel| Arc::clone(&kernel.spec)) else { continue };
            if spec.elastic && spec.grant != 0 && spec.grant < end && address < spec.grant + mask_bytes {
                let held = self.read_grant(spec.grant, memory);
                self.regrant(id, held, now);
            }
        }
        self.chains.retain(|&progress, chain| chain.owner.is_some() || !(address..end).contains(&progress));
    }

    /// The tile counters in the `bytes` bytes from `address` on, each with where it lies.
    pub(super) fn progress(&self, address: u64, bytes: u64) -> impl Iterator<Item = (u64, TileProgress)> {
        let end = address.saturating_add(bytes);
        self.chains.range(address..end).map(|(&at, chain)| {
            let owner = chain.owner.and_then(|owner| self.kernel(owner)).filter(|owner| owner.started > 0);
            let left = owner.map_or(0, |owner| owner.spec.grid.saturating_sub(owner.resident));
            (at, TileProgress { epoch: chain.epoch, left: left.min(u32::from(u16::MAX)) as u16 })
        })
    }

    fn regrant(&mut self, id: usize, held: SmSet, now: u64) {
        let Some(kernel) = self.kernel_mut(id) else { return };
        kernel.held = Some(held);
        let pace = kernel.owner.unwrap_or(id);
        let leaving = (0..MAX_SMS).any(|sm| kernel.unheld_on(sm) > 0);
        let seq = kernel.seq;
        self.dirty = true;
        let crew = self.members(pace).map(|member| member.resident).sum();
        let Some(pace) = self.kernel_mut(pace) else { return };
        pace.advance(now);
        if leaving && !pace.on_last_tiles(crew) {
            let tile_ns = pace.turn_ns(crew);
            self.in_quarters(tile_ns, now, |quarter| Timer::Leave { kernel: id, seq, quarter });
        }
    }

    fn in_quarters(&mut self, turn_ns: f64, now: u64, timer: impl Fn(usize) -> Timer) {
        for quarter in 0..QUARTERS {
            let after = turn_ns * (quarter + 1) as f64 / QUARTERS as f64;
            self.timers.push((now.saturating_add(after.ceil() as u64), timer(quarter)));
        }
    }

    /// A timer's moment has come.
    pub(super) fn fire(&mut self, timer: Timer, now: u64) {
        let (Timer::Leave { kernel: id, seq, quarter } | Timer::Yield { kernel: id, seq, quarter }) = timer;
        let Some(kernel) = self.kernels.get_mut(id).and_then(Option::as_mut).filter(|kernel| kernel.seq == seq) else { return };
        kernel.advance(now);
        let yields = matches!(timer, Timer::Yield { .. });
        if yields && kernel.pending() == 0 {
            // Its last blocks are running: it makes room by ending.
            kernel.yielding = false;
            return;
        }
        let (room, used) = (kernel.block_room(), &mut self.used[kernel.space]);
        for sm in (quarter..self.sms).step_by(QUARTERS) {
            let leaving = if yields { kernel.end_on(sm) } else { kernel.send_away(sm) };
            used[sm] -= room * leaving as u16;
        }
        kernel.crew_changed();
        if yields && quarter == QUARTERS - 1 {
            kernel.yielding = false;
        }
        if kernel.owner.is_some() && kernel.resident == 0 && kernel.pending() == 0 {
            self.gone.push(id);
        }
        self.dirty = true;
    }

    /// Joiners that lost their last block are waiting to be taken by [`end_due`](Self::end_due).
    pub(super) fn has_gone(&self) -> bool {
        !self.gone.is_empty()
    }

    /// Places what fits and sets every rate anew, if anything changed.
    pub(super) fn settle(&mut self, costs: &CostModel, config: &SimConfig, now: u64) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        for kernel in self.kernels.iter_mut().flatten() {
            kernel.advance(now);
        }
        self.place_waiting(now);
        self.refresh(costs, config, now);
    }

    fn place_waiting(&mut self, now: u64) {
        let mut kept_off = vec![SmSet::EMPTY; self.used.len()];
        let waiting = std::mem::take(&mut self.waiting);
        let mut still_waiting = Vec::with_capacity(waiting.len());
        for id in waiting {
            let Some(mut kernel) = self.kernels[id].take() else { continue };
            if kernel.pending() > 0 {
                let allowed = kernel.partition.without(kept_off[kernel.space]);
                let was_placed = kernel.started > 0;
                self.place(&mut kernel, allowed);
                if kernel.followed && kernel.next_seq.is_none() && kernel.pending() == 0 {
                    kernel.next_seq = Some(self.next_seq);
                    self.next_seq += 1;
                }
                if !was_placed && kernel.started > 0 {
                    kernel.started_at = now;
                    if kernel.owner.is_none() {
                        self.running.push(id);
                    }
                }
            }
            let (pending, space, partition, rank) = (kernel.pending(), kernel.space, kernel.partition, kernel.rank());
            if kernel.owner.is_some() && kernel.resident == 0 && pending == 0 {
                self.gone.push(id);
            }
            self.kernels[id] = Some(kernel);
            if pending > 0 {
                kept_off[space] = kept_off[space].union(partition);
                still_waiting.push(id);
                self.ask_to_yield(space, partition, rank, now);
            }
        }
        self.waiting = still_waiting;
    }

    /// Makes the kernels that come after `rank` and have blocks left to place hand over the SMs of `partition` as their blocks end.
    fn ask_to_yield(&mut self, space: usize, partition: SmSet, rank: (Reverse<Priority>, u64), now: u64) {
        for at in 0..self.running.len() {
            let id = self.running[at];
            let Some(kernel) = self.kernel_mut(id) else { continue };
            let behind = rank < kernel.rank() && kernel.space == space && kernel.touched.intersects(&partition);
            if behind && !kernel.spec.elastic && !kernel.yielding && kernel.rate > 0.0 && kernel.pending() > 0 {
                kernel.yielding = true;
                let (seq, block_ns) = (kernel.seq, kernel.turn_ns(kernel.resident));
                self.in_quarters(block_ns, now, |quarter| Timer::Yield { kernel: id, seq, quarter });
            }
        }
    }

    /// Places as many waiting blocks as fit on `allowed`, breadth-first.
    fn place(&mut self, kernel: &mut Kernel, allowed: SmSet) {
        let room = kernel.block_room();
        let used = &mut self.used[kernel.space];
        let full = SM_ROOM - room;
        let mut candidates = [0_u16; MAX_SMS];
        let mut count = 0;
        for &sm in &self.order {
            if used[sm as usize] <= full && kernel.counts[sm as usize] < u8::MAX && allowed.contains(sm as usize) {
                candidates[count] = sm;
                count += 1;
            }
        }
        let candidates = &candidates[..count];
        if !candidates.is_empty() {
            kernel.crew_changed();
        }
        let started_before = kernel.started;
        let mut pending = kernel.pending();
        while pending > 0 {
            let open = |used: &[u16; MAX_SMS], kernel: &Kernel, sm: usize| used[sm] <= full && kernel.counts[sm] < u8::MAX;
            let Some(emptiest) = candidates.iter().map(|&sm| sm as usize).filter(|&sm| open(used, kernel, sm)).map(|sm| used[sm]).min()
            else {
                break;
            };
            for &sm in candidates {
                let sm = sm as usize;
                if pending > 0 && used[sm] == emptiest && open(used, kernel, sm) {
                    kernel.started += 1;
                    kernel.counts[sm] += 1;
                    kernel.resident += 1;
                    used[sm] += room;
                    pending -= 1;
                }
            }
        }
        // A tile is done by one block from beginning to end: however much the blocks before them did, the late ones need the time of a tile.
        if kernel.spec.elastic && started_before > 0 && kernel.started > started_before {
            kernel.left = kernel.left.max(kernel.tile_part());
        }
        // Blocks that started on an SM which the grant does not hold leave at once, and those that still wait follow through the same room.
        if kernel.held.is_some() {
            let drained = candidates.iter().any(|&sm| kernel.unheld_on(sm.into()) > 0);
            if drained {
                kernel.started = kernel.spec.grid;
            }
            for &sm in candidates {
                let leaving = kernel.send_away(sm.into());
                used[usize::from(sm)] -= room * leaving as u16;
            }
        }
        for &sm in candidates {
            if kernel.counts[sm as usize] > 0 {
                kernel.touched.insert(sm as usize);
            }
        }
    }

    /// A launch and those that joined it.
    fn members(&self, id: usize) -> impl Iterator<Item = &Kernel> {
        let joiners = self.kernel(id).map_or(&[][..], |kernel| &kernel.joiners);
        std::iter::once(id).chain(joiners.iter().copied()).filter_map(|id| self.kernel(id))
    }

    fn mask_bytes(&self) -> usize {
        self.sms.div_ceil(32) * 4
    }

    fn read_grant(&self, address: u64, memory: &Memory) -> SmSet {
        let mut mask = [0; MAX_SMS / 8];
        let mask = &mut mask[..self.mask_bytes().min(MAX_SMS / 8)];
        memory.read(address, mask);
        SmSet::from_mask(mask)
    }

    fn kernel(&self, id: usize) -> Option<&Kernel> {
        self.kernels.get(id)?.as_deref()
    }

    fn kernel_mut(&mut self, id: usize) -> Option<&mut Kernel> {
        self.kernels.get_mut(id)?.as_deref_mut()
    }
}
