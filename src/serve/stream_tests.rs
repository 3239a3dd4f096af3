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
fn requests_of_a_stream_that_cannot_keep_up_count_though_they_were_never_served() {
    // Two slots give 2000 tokens a second; 1000 requests of 10 tokens come.
    let mut servers = [(server(2, 10), Some(1000.0))];
    run(&mut servers);
    let [(server, _)] = servers;
    let served = server.finish();
    assert!((750..1150).contains(&served.waiting), "{} of about 1100 that came by the end had no token", served.waiting);
    let (late, count) = (served.latencies.quantile_ms(0.99), served.latencies.count());
    assert!(count > 750 && served.within_slo as f64 / (count as f64) < 0.25, "{} of {count} kept the objective", served.within_slo);
    // Those that came first, before the window, were served.
    assert!((800.0..1100.0).contains(&late), "the 99th percentile waited {late} ms");
    assert!(served.stream.unwrap().first.quantile_ms(0.99) > 800.0);
}

#[test]
fn requests_under_way_when_the_window_ends_are_neither_waiting_nor_late_while_they_may_be_in_time() {
    // In a closed loop the window ends with all at their prompts for some of these lengths.
    for (generate, rate) in (2..12).map(|generate| (generate, None)).chain([(5, Some(100.0))]) {
        let mut servers = [(server(8, generate), rate)];
        run(&mut servers);
        let [(server, _)] = servers;
        let served = server.finish();
        let most = if rate.is_some() { 2 } else { 0 };
        assert!(served.waiting <= most, "{} of {generate} tokens still waited at {rate:?} a second", served.waiting);
        assert_eq!(served.within_slo, served.latencies.count(), "{generate} tokens at {rate:?} a second");
    }
}

#[test]
fn a_request_whose_gaps_are_too_long_whatever_comes_is_late_before_it_is_finished() {
    let turn = Arc::new(Turn::default());
    // 30 ms from token to token: none of 50 is finished before the load ends.
    let mut servers: Vec<_> = (0..30).map(|_| (server(2, 50), None)).collect();
    for (number, (server, _)) in (0..).zip(&mut servers) {
        server.take_turns(turn.seat(number));
    }
    run(&mut servers);
    for (server, _) in servers {
        let served = server.finish();
        assert_eq!((served.latencies.count(), served.within_slo, served.waiting), (2, 0, 0));
        let per_token = served.stream.unwrap().per_token.quantile_ms(0.5);
        assert!((20.0..30.0).contains(&per_token), "at least 1.07 s for 49 gaps: {per_token} ms");
    }
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
