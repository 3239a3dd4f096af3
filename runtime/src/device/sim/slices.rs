//! Time slicing between processes: whose turn it is on the GPU.
//!
//! | state     | whose kernels run | leaves by |
//! |-----------|-------------------|-----------|
//! | idle      | nobody's          | a process has work: its turn, at once the first time, after a switch later |
//! | turn      | the process's     | it has no work and another one has, or its quantum ends while another one has work: a switch |
//! | switching | nobody's          | the switch is over: the next process's turn |

/// A moment that the time slicing wants to be called back for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The quantum that began at this instant is over.
    QuantumOver { since: u64 },
    /// The switch is over.
    Switched,
}

pub(super) struct Slices {
    quantum: u64,
    switch: u64,
    /// The process that had the last turn.
    last: Option<usize>,
    /// The process that a switch leads to.
    next: Option<usize>,
    since: u64,
    /// Whether the end of this quantum will be called.
    armed: bool,
    expired: bool,
}

impl Slices {
    pub(super) fn new(quantum: u64, switch: u64) -> Self {
        Self { quantum: quantum.max(1), switch, last: None, next: None, since: 0, armed: false, expired: false }
    }

    /// Whose kernels run.
    pub(super) fn turn(&self) -> Option<usize> {
        if self.next.is_some() { None } else { self.last }
    }

    pub(super) fn fire(&mut self, turn: Turn, now: u64) {
        match turn {
            Turn::QuantumOver { since } if since == self.since => {
                self.armed = false;
                self.expired = true;
            }
            Turn::QuantumOver { .. } => {}
            Turn::Switched => {
                self.last = self.next.take();
                self.since = now;
                self.armed = false;
                self.expired = false;
            }
        }
    }

    /// Decides whose turn it is, given which of the `spaces` processes have work, and says what to call back for.
    pub(super) fn settle(&mut self, now: u64, spaces: usize, busy: impl Fn(usize) -> bool) -> Option<(u64, Turn)> {
        if self.next.is_some() {
            return None;
        }
        let first = self.last.map_or(0, |last| last + 1);
        let other = (0..spaces).map(|step| (first + step) % spaces).find(|&space| Some(space) != self.last && busy(space));
        let expired = std::mem::take(&mut self.expired);
        let other = other?;
        match self.last {
            None => {
                self.last = Some(other);
                self.since = now;
                None
            }
            Some(last) if expired || !busy(last) => {
                self.next = Some(other);
                Some((now.saturating_add(self.switch), Turn::Switched))
            }
            Some(_) if self.armed => None,
            Some(_) => {
                // A process alone goes on from quantum to quantum; the one that now waits gets the GPU when the present one ends.
                self.since += (now - self.since) / self.quantum * self.quantum;
                self.armed = true;
                Some((self.since.saturating_add(self.quantum), Turn::QuantumOver { since: self.since }))
            }
        }
    }
}
