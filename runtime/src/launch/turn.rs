//! Whose turn it is to write a grant, or to tell of one: several threads may find at once that it must change, and none of them may wait for another.

use crate::atomics::{AtomicU32, Ordering};

/// Runs updates one at a time, so that the last one has seen all that happened before anybody asked for one. A thread that asks while another
/// one is at it returns at once, and the other goes round again (combining, as in Hendler, Incze, Shavit and Tzafrir, "Flat Combining and the
/// Synchronization-Parallelism Tradeoff", 2010).
///
/// | state  | asked | leaves by |
/// |--------|-------|-----------|
/// | idle   | 0     | `run`: +1, and this thread updates |
/// | taken  | n > 0 | `run` of another thread: +1; the updating thread after an update: to 0 if it is still n, otherwise it updates again |
#[derive(Debug)]
pub(crate) struct Turn {
    asked: AtomicU32,
}

/// Gives the turn back where an update panics: others would wait for ever for whoever has it.
struct Taken<'a>(&'a AtomicU32);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

impl Turn {
    pub(crate) fn new() -> Self {
        Self { asked: AtomicU32::new(0) }
    }

    /// Has `update` run after this moment, here or by the thread whose turn it is.
    ///
    /// # Errors
    /// What the last update says, to the thread that ran it.
    pub(crate) fn run<E>(&self, mut update: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        let mut asked = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        if asked > 1 {
            return Ok(());
        }
        let taken = Taken(&self.asked);
        loop {
            let updated = update();
            match self.asked.compare_exchange(asked, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    std::mem::forget(taken);
                    return updated;
                }
                Err(more) => asked = more,
            }
        }
    }

    /// Whether a thread is at it.
    pub(super) fn is_taken(&self) -> bool {
        self.asked.load(Ordering::Acquire) > 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_turn_is_over_after_an_update_that_panicked() {
        let turn = Turn::new();
        let panicked = catch_unwind(AssertUnwindSafe(|| turn.run::<()>(|| panic!("in an update"))));
        assert!(panicked.is_err() && !turn.is_taken());
        assert_eq!(turn.run(|| Err(7)), Err(7));
    }
}
