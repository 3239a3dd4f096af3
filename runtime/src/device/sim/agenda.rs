//! What happens when: a queue by instant, and by the order of entry within an instant.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::blocks::Timer;
use super::kernel::{KernelSpec, Source};
use super::memory::Write;
use super::slices::Turn;

/// Something that happens at an instant.
#[derive(Debug)]
pub(super) enum Occasion {
    /// The head of a stream became visible.
    Visible {
        stream: usize,
    },
    /// A kernel on a stream may start.
    Start {
        stream: usize,
        spec: Arc<KernelSpec>,
    },
    /// A node's predecessors are done and its gap is over.
    Node {
        run: usize,
        node: u32,
    },
    /// A copy is done, or an operation that does nothing to the SMs.
    Done {
        source: Source,
        write: Option<Arc<Write>>,
    },
    Blocks(Timer),
    Slices(Turn),
}

struct Entry {
    at: u64,
    seq: u64,
    occasion: Occasion,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// The queue.
#[derive(Default)]
pub(super) struct Agenda {
    entries: BinaryHeap<Reverse<Entry>>,
    next_seq: u64,
}

impl Agenda {
    pub(super) fn push(&mut self, at: u64, occasion: Occasion) {
        self.entries.push(Reverse(Entry { at, seq: self.next_seq, occasion }));
        self.next_seq += 1;
    }

    /// The instant of the first entry; the end of time without one.
    pub(super) fn next_at(&self) -> u64 {
        self.entries.peek().map_or(u64::MAX, |Reverse(entry)| entry.at)
    }

    /// The first entry, if its instant has come by `now`.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<Occasion> {
        if self.next_at() > now {
            return None;
        }
        self.entries.pop().map(|Reverse(entry)| entry.occasion)
    }
}
