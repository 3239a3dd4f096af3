//! One request at a time, whoever's it is: what the policy `exclusive` means for several tenants.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

/// A queue of servers that want to issue a request. The first may, once nobody's request is in flight.
#[derive(Debug, Default)]
pub struct Turn(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Whose request is in flight.
    in_flight: Option<u64>,
    waiting: VecDeque<u64>,
}

impl Turn {
    /// Server number `server` among those that take turns.
    pub fn seat(self: &Arc<Self>, server: u64) -> Seat {
        Seat { turn: Arc::clone(self), server }
    }
}

/// One server's place among those that take turns. A server that is given up, by an error or a panic, gives it up too, and its turn with it.
#[derive(Debug)]
pub struct Seat {
    turn: Arc<Turn>,
    server: u64,
}

impl Seat {
    /// Queues the server if it is not queued yet; whether it may issue its request now.
    pub fn take(&self) -> bool {
        let mut state = self.turn.0.lock();
        if !state.waiting.contains(&self.server) {
            state.waiting.push_back(self.server);
        }
        let mine = state.in_flight.is_none() && state.waiting.front() == Some(&self.server);
        if mine {
            state.in_flight = Some(self.server);
            state.waiting.pop_front();
        }
        mine
    }

    /// The request that a turn was taken for is done.
    pub fn give_back(&self) {
        let mut state = self.turn.0.lock();
        state.in_flight = state.in_flight.filter(|&server| server != self.server);
    }

    /// The server wants no more turns.
    pub fn leave(&self) {
        self.turn.0.lock().waiting.retain(|&waiting| waiting != self.server);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_round_and_never_overlap() {
        let turn = Arc::new(Turn::default());
        let (first, second) = (turn.seat(0), turn.seat(1));
        assert!(first.take());
        assert!(!second.take(), "somebody's request is in flight");
        second.give_back();
        assert!(!second.take(), "it had no turn to give back");
        first.give_back();
        assert!(!first.take(), "the other one has waited longer");
        assert!(second.take());
        second.give_back();
        second.take();
        first.leave();
        assert!(second.take(), "who left holds nobody up");
    }

    #[test]
    fn a_server_that_is_given_up_in_its_turn_holds_nobody_up() {
        let turn = Arc::new(Turn::default());
        let (first, second, third) = (turn.seat(0), turn.seat(1), turn.seat(2));
        assert!(first.take() && !second.take() && !third.take());
        drop(first);
        drop(second);
        assert!(third.take());
    }
}
