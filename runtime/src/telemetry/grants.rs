//! What each tenant may use, as the timeline shows it. Whoever changes a grant tells of it, on whichever thread that is: a request that begins does for all who
//! borrowed from its tenant. So one ring has several writers, who take turns; none of them waits, allocates or takes a lock.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::{Device, Sms};
use crate::launch::turn::Turn;

use super::trace::{Event, Happening, Ring};

/// One tenant's grants.
pub(crate) struct GrantLog {
    tracing: Arc<AtomicBool>,
    /// Written by whose turn it is.
    ring: Ring,
    turn: Turn,
}

impl GrantLog {
    /// The last `events` of them at least.
    pub(super) fn new(tracing: &Arc<AtomicBool>, events: usize) -> Self {
        Self { tracing: Arc::clone(tracing), ring: Ring::new(events), turn: Turn::new() }
    }

    /// The tenant's kernels may use other SMs from now on. Called wherever a grant is written or SMs are lent; one load and one branch while nothing is traced.
    /// `sms`: owned, held, borrowed, at the moment of asking. Where threads meet here one of them tells for all, and what it tells last was asked for last.
    pub(crate) fn changed(&self, device: &dyn Device, sms: impl Fn() -> [Sms; 3]) {
        if self.tracing.load(Ordering::Relaxed) {
            let Ok(()) = self.turn.run(|| {
                // The time first: what changes in between is told once more, at a later one.
                let at = device.now();
                let [owned, held, borrowed] = sms();
                self.ring.push(Event { at, what: Happening::Grant { owned, held, borrowed } });
                Ok::<(), Infallible>(())
            });
        }
    }

    /// What was told, oldest first.
    pub(super) fn snapshot(&self) -> Vec<Event> {
        self.ring.snapshot()
    }
}
