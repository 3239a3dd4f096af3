//! One launch on the simulated GPU: its blocks, where they are, and how much of its work is left.

use std::sync::Arc;

use crate::device::{Fingerprint, Priority};

use super::cost::KernelCost;
use super::sm_set::{MAX_SMS, SmSet};

/// The room on one SM, in parts small enough that the common block counts per SM divide it.
pub(super) const SM_ROOM: u16 = 27_720;

/// What a launch asked for; shared by all replays of a graph node.
#[derive(Debug)]
pub(super) struct KernelSpec {
    pub(super) symbol: &'static str,
    pub(super) key: Fingerprint,
    pub(super) cost: Arc<KernelCost>,
    /// Thread blocks, at least 1.
    pub(super) grid: u32,
    /// Thread blocks that fit on an SM, at least 1.
    pub(super) blocks_per_sm: u32,
    /// At least 1.
    pub(super) tiles: u32,
    pub(super) elastic: bool,
    /// Address of the grant, 0 for none.
    pub(super) grant: u64,
    /// Address of the tile counter, 0 for none.
    pub(super) progress: u64,
    pub(super) joins: u32,
    pub(super) priority: Priority,
    /// Whether its blocks may come before the launch before it on its stream has ended.
    pub(super) overlaps: bool,
}

impl KernelSpec {
    /// The room that one block takes on an SM.
    fn block_room(&self) -> u16 {
        (u32::from(SM_ROOM) / self.blocks_per_sm).max(1) as u16
    }
}

/// Who is told when a launch is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The operation at the head of a stream.
    Stream(usize),
    /// A node of a replay.
    Node { run: usize, node: u32 },
}

/// A launch from the moment its predecessors are done to its end.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) spec: Arc<KernelSpec>,
    pub(super) source: Source,
    /// The stream it was enqueued or captured on.
    pub(super) stream: usize,
    /// Whether a launch that overlaps comes next.
    pub(super) followed: bool,
    /// The number that this next launch will have, once all blocks of this one are placed.
    pub(super) next_seq: Option<u64>,
    /// Number of the launch, by which equal priorities are ordered.
    pub(super) seq: u64,
    pub(super) partition: SmSet,
    /// The SMs that the grant names; none where no grant is polled.
    pub(super) held: Option<SmSet>,
    /// Which process's SMs it is on: always 0 unless time-sliced.
    pub(super) space: usize,
    /// Blocks on each SM.
    pub(super) counts: [u8; MAX_SMS],
    /// Sum of `counts`.
    pub(super) resident: u32,
    /// Blocks that were ever placed.
    pub(super) started: u32,
    /// Part of the work that is not done at `as_of`.
    pub(super) left: f64,
    /// Part of the work done in a nanosecond.
    pub(super) rate: f64,
    pub(super) as_of: u64,
    pub(super) ends_at: u64,
    /// What was left when blocks were last placed or taken away.
    pub(super) left_then: f64,
    /// When its last wave begins, in which not every block has a tile; the end of time where there is no such wave.
    pub(super) tail_at: u64,
    /// In its last wave: by how much its blocks were more before.
    pub(super) tail: Option<f64>,
    /// The launch whose tiles it takes, if it joined one.
    pub(super) owner: Option<usize>,
    pub(super) joiners: Vec<usize>,
    /// Whether its ending blocks make room for a launch that comes before it.
    pub(super) yielding: bool,
    pub(super) ready_at: u64,
    pub(super) started_at: u64,
    /// Every SM it ever had a block on.
    pub(super) touched: SmSet,
}

/// Where a launch comes from and where it may go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) source: Source,
    pub(super) stream: usize,
    pub(super) partition: SmSet,
    pub(super) space: usize,
    /// Whether a launch that overlaps comes next.
    pub(super) followed: bool,
    /// Where it overlaps: the number that was kept for it, and how long its blocks wait on their SMs before they work.
    pub(super) kept: Option<(u64, u64)>,
}

impl Kernel {
    pub(super) fn new(spec: Arc<KernelSpec>, origin: Origin, seq: u64, held: Option<SmSet>, now: u64) -> Self {
        let (seq, waits) = origin.kept.unwrap_or((seq, 0));
        Self {
            spec,
            source: origin.source,
            stream: origin.stream,
            followed: origin.followed,
            next_seq: None,
            seq,
            partition: origin.partition,
            held,
            space: origin.space,
            counts: [0; MAX_SMS],
            resident: 0,
            started: 0,
            left: 1.0,
            rate: 0.0,
            as_of: now + waits,
            ends_at: u64::MAX,
            left_then: 1.0,
            tail_at: u64::MAX,
            tail: None,
            owner: None,
            joiners: Vec::new(),
            yielding: false,
            ready_at: now,
            started_at: now,
            touched: SmSet::EMPTY,
        }
    }

    /// The order in which waiting blocks are placed: priority, then arrival.
    pub(super) fn rank(&self) -> (std::cmp::Reverse<Priority>, u64) {
        (std::cmp::Reverse(self.spec.priority), self.seq)
    }

    pub(super) fn block_room(&self) -> u16 {
        self.spec.block_room()
    }

    /// Does the work of the time until `now`.
    pub(super) fn advance(&mut self, now: u64) {
        self.left = (self.left - self.rate * now.saturating_sub(self.as_of) as f64).max(0.0);
        self.as_of = self.as_of.max(now);
    }

    /// Blocks that wait for room. An elastic block stays until the tiles run out; other blocks end one by one as the work is done.
    pub(super) fn pending(&self) -> u32 {
        if self.tail.is_some() {
            0
        } else if self.spec.elastic {
            self.spec.grid - self.started
        } else {
            let unfinished = (f64::from(self.spec.grid) * self.left - 1e-6).ceil() as u32;
            unfinished.saturating_sub(self.resident)
        }
    }

    /// Nanoseconds that a block, or a tile of an elastic one, takes at the present rate with `crew` blocks at work. A kernel that stands still has
    /// no block on an SM that would have to finish anything.
    pub(super) fn turn_ns(&self, crew: u32) -> f64 {
        let turns = self.turns();
        if self.rate > 0.0 { f64::from(crew) / (f64::from(turns) * self.rate) } else { 0.0 }
    }

    /// The part of the kernel's time that one tile takes where every block is placed.
    pub(super) fn tile_part(&self) -> f64 {
        f64::from(self.spec.grid) / f64::from(self.spec.tiles.max(self.spec.grid))
    }

    /// Parts of the work that a block does before it ends or may leave.
    fn turns(&self) -> u32 {
        if self.spec.elastic { self.spec.tiles } else { self.spec.grid }
    }

    /// Says that blocks were placed or taken away just now.
    pub(super) fn crew_changed(&mut self) {
        self.left_then = self.left;
    }

    /// Sets when the last wave begins.
    pub(super) fn expect_tail(&mut self) {
        let (waves, last) = self.waves();
        // A profile was taken with the whole grid placed, and counts the idle SMs of its last wave in. Otherwise, and after a change, tiles in
        // progress count as parts of tiles, which tells little of the last of a few waves.
        let as_profiled = self.left_then == 1.0 && self.resident == self.spec.grid && waves > 1.0;
        let known = as_profiled || waves >= 4.0;
        // Blocks that end early make room for those of the next launch, which wait there for the end of this one.
        let has_tail = known && last < self.resident && self.tail.is_none() && self.joiners.is_empty() && !self.followed;
        let before = (self.left - self.left_then / waves).max(0.0);
        self.tail_at = if has_tail { self.as_of.saturating_add((before / self.rate).ceil() as u64) } else { u64::MAX };
    }

    /// The waves of the tiles that were left when the crew last changed, and how many blocks have a tile in the last wave.
    pub(super) fn waves(&self) -> (f64, u32) {
        let tiles = (self.left_then * f64::from(self.spec.tiles.max(self.spec.grid)) - 1e-6).ceil().max(1.0);
        let crew = f64::from(self.resident.max(1));
        let waves = (tiles / crew).ceil();
        (waves, (tiles - (waves - 1.0) * crew) as u32)
    }

    /// Whether `crew` blocks have taken every tile, so that a block that is sent away has nothing to leave behind.
    pub(super) fn on_last_tiles(&self, crew: u32) -> bool {
        self.tail.is_some() || self.left * f64::from(self.spec.tiles) <= f64::from(crew)
    }

    /// The SMs that its blocks may stay on.
    pub(super) fn reach(&self) -> SmSet {
        let mut reach = self.held.map_or(self.partition, |held| self.partition.intersection(held));
        // The last one stays wherever it is.
        if self.resident == 1
            && let Some(sm) = self.counts.iter().position(|&count| count > 0)
        {
            reach.insert(sm);
        }
        reach
    }

    /// Sends the blocks on `sm` away that the grant does not hold there, but for the last one of an owner: somebody has to finish the tiles. How
    /// many went.
    pub(super) fn send_away(&mut self, sm: usize) -> u32 {
        let unheld = self.unheld_on(sm);
        let last = self.owner.is_none() && unheld > 0 && unheld == self.resident && self.pending() == 0;
        let leaving = unheld - u32::from(last);
        self.counts[sm] -= leaving as u8;
        self.resident -= leaving;
        leaving
    }

    /// Ends the blocks on `sm`. How many there were.
    pub(super) fn end_on(&mut self, sm: usize) -> u32 {
        let ending = u32::from(std::mem::take(&mut self.counts[sm]));
        self.resident -= ending;
        ending
    }

    /// Blocks on `sm`, which the grant does not hold.
    pub(super) fn unheld_on(&self, sm: usize) -> u32 {
        let held = self.tail.is_some() || self.held.is_none_or(|held| held.contains(sm));
        if held { 0 } else { u32::from(self.counts[sm]) }
    }
}
