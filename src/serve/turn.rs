//! One request at a time, whoever's it is: what the policy `exclusive` means for several tenants.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// A queue of servers that want to issue a request. The first may, once nobody's request is in flight.
#[derive(Debug, Default)]
pub struct Turn(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    in_flight: bool,
    waiting: VecDeque<u64>,
}

impl Turn {
    /// Queues `server` if it is not queued yet; whether it may issue its request now.
    pub fn take(&self, server: u64) -> bool {
        let mut state = self.0.lock();
        if !state.waiting.contains(&server) {
            state.waiting.push_back(server);
        }
        let mine = !state.in_flight && state.waiting.front() == Some(&server);
        if mine {
            state.in_flight = true;
            state.waiting.pop_front();
        }
        mine
    }

    /// The request that a turn was taken for is done.
    pub fn give_back(&self) {
        self.0.lock().in_flight = false;
    }

    /// `server` wants no more turns.
    pub fn leave(&self, server: u64) {
        self.0.lock().waiting.retain(|&waiting| waiting != server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_round_and_never_overlap() {
        let turn = Turn::default();
        assert!(turn.take(0));
        assert!(!turn.take(1), "somebody's request is in flight");
        turn.give_back();
        assert!(!turn.take(0), "the other one has waited longer");
        assert!(turn.take(1));
        turn.give_back();
        turn.take(1);
        turn.leave(0);
        assert!(turn.take(1), "who left holds nobody up");
    }
}
