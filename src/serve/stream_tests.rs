//! The server of a stream on an executor whose every step takes a millisecond of a clock of its own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use super::*;
use crate::serve::Turn;
use crate::serve::batching::{Limits, StepPlan};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Steps run one after the other; time passes only where the test lets it.
struct Clockwork {
    limits: Limits,
    now: Duration,
    /// When each step is done, and how many tokens it draws.
    steps: VecDeque<(Duration, usize)>,
}

impl Executor for Clockwork {
    type Error = Infallible;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn issue(&mut self, step: &StepPlan) -> Result<(), Infallible> {
        let start = self.steps.back().map_or(self.now, |&(done, _)| done);
        self.steps.push_back((start + MILLISECOND, step.draws().count()));
        Ok(())
    }

    fn is_done(&mut self) -> Result<bool, Infallible> {
        Ok(self.steps.front().is_none_or(|&(done, _)| done <= self.now))
    }

    fn collect(&mut self) -> Result<Vec<u32>, Infallible> {
        Ok(vec![1; self.steps.pop_front().map_or(0, |(_, tokens)| tokens)])
    }

    fn now(&self) -> Duration {
        self.now
    }
}

fn server(slots: u32, generate: usize) -> StreamServer<Clockwork> {
    let limits = Limits { slots, step_tokens: 64, pages: 100, page_tokens: 4, max_sequence: 64 };
    let clockwork = Clockwork { limits, now: Duration::ZERO, steps: VecDeque::new() };
    let shape = RequestShape { vocab: 50, prompt: 8, generate: NonZeroUsize::new(generate).unwrap() };
    StreamServer::new(Batching::new(clockwork).unwrap(), shape, Some(MILLISECOND))
}

/// Runs all servers on one clock to the end of a window of one second between shoulders of 0.1 s.
fn run(servers: &mut [(StreamServer<Clockwork>, Option<f64>)]) {
    let window = Window { from: 100 * MILLISECOND, until: 1100 * MILLISECOND, end: 1200 * MILLISECOND };
    for (server, rate) in &mut *servers {
        server.start(window, *rate, 7);
    }
    let mut now = Duration::ZERO;
    loop {
        let mut all_finished = true;
        for (server, _) in &mut *servers {
            server.batching.executor_mut().now = now;
            all_finished &= server.step().unwrap() == Step::Finished;
        }
        if all_finished {
            return;
        }
        now += MILLISECOND / 4;
        assert!(now < 2 * window.end, "the servers do not finish");
    }
}

#[test]
fn a_closed_loop_keeps_every_slot_busy() {
    let mut servers = [(server(4, 10), None)];
    run(&mut servers);
    let [(server, _)] = servers;
    let served = server.finish();
    let stream = served.stream.unwrap();
    // A request takes 10 steps; a place that falls free is taken again two steps later at most.
    assert!((4 * 1000 / 12..=4 * 1000 / 10).contains(&served.latencies.count()), "{} requests", served.latencies.count());
    assert!((served.requests - 40.0 / 12.0 * 100.0).abs() < 70.0, "{} requests", served.requests);
    assert!((stream.tokens as f64 - 10.0 * served.requests).abs() < 1e-6, "{} tokens of {} requests", stream.tokens, served.requests);
    assert!((stream.per_token.quantile_ms(0.5) - 1.0).abs() < 0.1, "{} ms a token", stream.per_token.quantile_ms(0.5));
    assert!(served.within_slo > 0);
}

#[test]
fn requests_that_all_begin_at_once_count_for_their_part_of_the_window() {
    let mut servers = [(server(4, 48), None)];
    run(&mut servers);
    let [(server, _)] = servers;
    let served = server.finish();
    // Waves of four: whole ones would be 80 or 84.
    assert!((82.5..84.0).contains(&served.requests), "{} requests of {} ms", served.requests, served.latencies.mean_ms());
}

#[test]
fn poisson_arrivals_are_served_at_their_rate_and_wait_from_their_arrival() {
    let mut servers = [(server(8, 5), Some(100.0))];
    run(&mut servers);
    let [(server, _)] = servers;
    let served = server.finish();
    assert!((70..130).contains(&served.latencies.count()), "{} requests", served.latencies.count());
    let first = served.stream.unwrap().first;
    assert!((1.0..5.0).contains(&first.quantile_ms(0.5)), "{} ms to the first token", first.quantile_ms(0.5));
}

#[test]
fn servers_that_take_turns_have_one_step_in_flight_among_them() {
    let turn = Arc::new(Turn::default());
    let mut servers = [(server(2, 10), None), (server(2, 10), None)];
    for (number, (server, _)) in (0..).zip(&mut servers) {
        server.take_turns(turn.seat(number));
    }
    run(&mut servers);
    for (server, _) in servers {
        let stream = server.finish().stream.unwrap();
        let per_token = stream.per_token.quantile_ms(0.5);
        assert!((2.0..3.0).contains(&per_token), "each has every other step: {per_token} ms a token");
    }
}
