//! Serving one decoder tenant a stream of requests by continuous batching.

use std::num::NonZeroUsize;
use std::time::Duration;

use smidgen_runtime::telemetry::{Latencies, RequestLog};

use super::batching::{Batching, Executor, Output, Request, SubmitError, Timing};
use super::{Arrivals, Lending, Seat, Served, Step, Window, spent};
use crate::generate::Sampling;

/// Steps issued before the oldest is waited for, where tenants take turns: the turn is one step then.
const STEPS_IN_A_TURN: usize = 1;

/// The requests of a stream, all of the same size: random prompts, greedily continued to the last token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestShape {
    /// Token ids to choose from, at least 1.
    pub vocab: u32,
    /// Tokens of a prompt.
    pub prompt: u32,
    /// Tokens to draw.
    pub generate: NonZeroUsize,
}

/// What a stream's server measured besides latencies of whole requests.
#[derive(Debug, Clone, Default)]
pub struct TokenLatencies {
    /// From arrival to the first token; at least that long for requests that had none at the window's end and had missed the objective.
    pub first: Latencies,
    /// Mean gap between a request's tokens after the first, with the same lower bound.
    pub per_token: Latencies,
    /// Tokens that came in the measured window, whenever their requests began and ended.
    pub tokens: u64,
}

/// One decoder tenant being served: a state machine that never blocks, as [`Server`](super::Server) is one.
pub struct StreamServer<E> {
    batching: Batching<E>,
    shape: RequestShape,
    /// Requests that are there at any time, where they arrive in a closed loop.
    clients: usize,
    arrivals: Arrivals,
    slo: Option<Duration>,
    window: Window,
    served: Served,
    tokens: TokenLatencies,
    submitted: u64,
    finished: u64,
    seat: Option<Seat>,
    lending: Lending,
    log: RequestLog,
}

/// A stream that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError<E> {
    /// Its requests do not fit.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// What computes its steps.
    #[error(transparent)]
    Executor(E),
}

impl<E: Executor> StreamServer<E> {
    /// A server of requests of one shape. `slo` is for the time per output token.
    pub fn new(batching: Batching<E>, shape: RequestShape, slo: Option<Duration>) -> Self {
        let clients = batching.scheduler().limits().slots as usize;
        let window = Window { from: Duration::ZERO, until: Duration::ZERO, end: Duration::ZERO };
        Self {
            batching,
            shape,
            clients,
            arrivals: Arrivals::ClosedLoop,
            slo,
            window,
            served: Served::default(),
            tokens: TokenLatencies::default(),
            submitted: 0,
            finished: 0,
            seat: None,
            lending: Lending::default(),
            log: RequestLog::default(),
        }
    }

    /// The same server, which writes every request that it answers to `log`.
    #[must_use]
    pub fn observed(self, log: RequestLog) -> Self {
        Self { log, ..self }
    }

    /// The same server, which lends its tenant's SMs while it has nothing to do.
    #[must_use]
    pub fn lending(self) -> Self {
        Self { lending: Lending::Working, ..self }
    }

    /// Lets this server issue steps only in its turn.
    pub fn take_turns(&mut self, seat: Seat) {
        self.seat = Some(seat);
    }

    /// Opens the gate: requests arrive from now on, or, without a rate, as many as there are slots at once, each followed by another when it is finished.
    pub fn start(&mut self, window: Window, rate: Option<f64>, seed: u64) {
        self.arrivals = Arrivals::measured(rate, seed, self.batching.executor().now(), window.from);
        self.window = window;
    }

    /// Queues the requests that have arrived, issues steps, and notes what the oldest brought if it is done. Never waits.
    ///
    /// # Errors
    /// [`StreamError`]; the tenant is lost then, and only this one.
    pub fn step(&mut self) -> Result<Step, StreamError<E::Error>> {
        let now = self.batching.executor().now();
        let ended = now >= self.window.end;
        if !ended {
            self.queue_arrived(now)?;
            self.issue().map_err(StreamError::Executor)?;
        }
        let outputs = self.batching.try_collect().map_err(StreamError::Executor)?;
        let collected = outputs.is_some();
        if let Some(outputs) = outputs {
            self.count_tokens(now, &outputs);
            self.note_finished();
            if self.batching.scheduler().in_flight() == 0 {
                self.seat.iter().for_each(Seat::give_back);
            }
            if !ended {
                // Whoever finished makes room, and in a closed loop somebody follows.
                self.queue_arrived(now)?;
                self.issue().map_err(StreamError::Executor)?;
            }
        }
        if self.batching.scheduler().in_flight() > 0 {
            if !collected {
                self.batching.executor_mut().grow().map_err(StreamError::Executor)?;
            }
            return Ok(Step::Busy);
        }
        if ended {
            self.seat.iter().for_each(Seat::leave);
            self.rest().map_err(StreamError::Executor)?;
            return Ok(Step::Finished);
        }
        if !self.batching.is_idle() {
            // Whoever waits for a turn must look again.
            return Ok(Step::Busy);
        }
        self.rest().map_err(StreamError::Executor)?;
        Ok(Step::IdleUntil(self.arrivals.next(now).min(self.window.end)))
    }

    /// What was measured.
    pub fn finish(mut self) -> Served {
        let unfinished: Vec<Timing> = self.batching.unfinished().collect();
        unfinished.into_iter().for_each(|timing| self.note_unanswered(timing.arrival, timing.first));
        // More may have come than were queued before the load ended.
        while self.arrivals.next(self.window.end) < self.window.until {
            self.note_unanswered(self.arrivals.next(self.window.end), None);
            self.arrivals.advance();
        }
        Served { stream: Some(self.tokens), ..self.served }
    }

    fn queue_arrived(&mut self, now: Duration) -> Result<(), SubmitError> {
        while match &self.arrivals {
            Arrivals::ClosedLoop => self.submitted - self.finished < self.clients as u64,
            Arrivals::Poisson { next, .. } => *next <= now,
        } {
            let arrival = self.arrivals.next(now);
            self.batching.submit(self.shape.request(self.submitted), arrival)?;
            self.log.begun();
            self.submitted += 1;
            self.arrivals.advance();
        }
        Ok(())
    }

    /// Nothing is in flight, and nothing waits.
    fn rest(&mut self) -> Result<(), E::Error> {
        self.log.rests();
        if self.lending == Lending::Working {
            self.lending = Lending::Idle;
            self.batching.executor_mut().end_request()?;
        }
        Ok(())
    }

    fn issue(&mut self) -> Result<(), E::Error> {
        if self.lending == Lending::Idle && !self.batching.is_idle() {
            self.lending = Lending::Working;
            self.batching.executor_mut().begin_request()?;
        }
        let Some(seat) = &self.seat else { return self.batching.issue() };
        let scheduler = self.batching.scheduler();
        if scheduler.in_flight() > 0 || self.batching.is_idle() || !seat.take() {
            return Ok(());
        }
        self.batching.issue_up_to(STEPS_IN_A_TURN)
    }

    /// Requests count by their tokens, of which all have the same number: those that are cut off by an end of the window for what came within it.
    fn count_tokens(&mut self, now: Duration, outputs: &[Output]) {
        if (self.window.from..self.window.until).contains(&now) {
            let tokens = outputs.iter().filter(|output| matches!(output, Output::Token(..))).count();
            self.tokens.tokens += tokens as u64;
            self.served.requests += tokens as f64 / self.shape.generate.get() as f64;
        }
    }

    fn note_finished(&mut self) {
        for (_, timing) in self.batching.take_finished() {
            self.finished += 1;
            self.log.answered(timing.arrival, timing.last, self.spent(timing));
            if (self.window.from..self.window.until).contains(&timing.last) {
                self.note(timing);
            } else if timing.last >= self.window.until {
                self.note_unanswered(timing.arrival, timing.first);
            }
        }
    }

    fn note(&mut self, timing: Timing) {
        self.served.latencies.record(timing.latency());
        let (first, per_token) = (timing.to_first_token(), timing.per_token());
        first.into_iter().for_each(|time| self.tokens.first.record(time));
        per_token.into_iter().for_each(|time| self.tokens.per_token.record(time));
        self.served.within_slo += u64::from(self.spent(timing) <= 1.0);
    }

    /// A request that was not answered within the window, by what was sure of it at the window's end. Without these, a stream that cannot keep up would
    /// show the few requests that it served.
    fn note_unanswered(&mut self, arrival: Duration, first: Option<Duration>) {
        let Window { until, .. } = self.window;
        let waited = until.saturating_sub(arrival);
        if waited.is_zero() {
            return;
        }
        let tokens = u32::try_from(self.shape.generate.get()).unwrap_or(u32::MAX);
        match first.filter(|&first| first < until) {
            Some(first) => {
                // As if the tokens that lacked had all come then.
                let per_token = (until - first) / (tokens - 1).max(1);
                if spent(per_token, self.slo) > 1.0 {
                    self.served.latencies.record(waited);
                    self.tokens.first.record(first.saturating_sub(arrival));
                    self.tokens.per_token.record(per_token);
                }
            }
            None => {
                // In a closed loop as many as there are slots may all be at their prompts just then.
                self.served.waiting += u64::from(matches!(self.arrivals, Arrivals::Poisson { .. }));
                // The objective is for the tokens after the first; who waits for that one longer than all of them may take has missed it, too.
                if spent(waited / tokens, self.slo) > 1.0 {
                    self.served.latencies.record(waited);
                    self.tokens.first.record(waited);
                }
            }
        }
    }

    fn spent(&self, timing: Timing) -> f64 {
        spent(timing.per_token().unwrap_or_default(), self.slo)
    }
}

impl RequestShape {
    /// Request number `index`: the same for equal indices, so that every policy serves the same requests.
    fn request(&self, index: u64) -> Request {
        let token = |at: u32| ((index.wrapping_mul(7919) + u64::from(at) * 104_729) % u64::from(self.vocab.max(1))) as u32;
        Request {
            prompt: (0..self.prompt).map(token).collect(),
            max_tokens: self.generate,
            sampling: Sampling::GREEDY,
            seed: index,
            stop_tokens: [].into(),
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
