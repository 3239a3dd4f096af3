//! Continuous batching: a decoder serves a stream of requests, which join and leave between steps.
//!
//! [`Scheduler`] decides what each step computes and who holds which page of the key-value cache; an [`Executor`] computes it, on a GPU
//! ([`models::SlotBatch`](crate::models::SlotBatch)) or on the CPU ([`reference::PagedBatch`](crate::reference::PagedBatch)); [`Batching`] drives
//! both and notes when each token came. A request's tokens are those that it gets alone: nothing in a step depends on the other requests in it, up to the
//! rounding of GPU kernels that are chosen by the number of rows.
//!
//! Two steps are in flight at a time. While the device computes one, the next is already queued behind it, and the host reads the tokens of the one before.
//! The price: a request that arrives waits for the step in flight and the queued one, and a stop token costs one row of the step that was queued before it
//! was read.

mod pages;
mod request;
mod scheduler;

use std::collections::BTreeMap;
use std::time::Duration;

pub use pages::{HeldPages, PagePool};
pub use request::{Output, Request, RequestId, SubmitError};
pub use scheduler::{Decode, Draw, Limits, LimitsError, NewPages, Prefill, Scheduler, StepPlan};

/// Steps issued before the oldest is waited for.
const STEPS_IN_FLIGHT: usize = 2;

/// What computes steps. Steps are computed in the order issued.
pub trait Executor {
    /// What can go wrong.
    type Error;

    /// What it has room for. Every plan it is given must keep to that.
    fn limits(&self) -> Limits;

    /// Issues a step after all others, without waiting for any.
    ///
    /// # Errors
    /// What the device says; no step can be issued then.
    fn issue(&mut self, step: &StepPlan) -> Result<(), Self::Error>;

    /// Whether the oldest step that was not collected is done; true where there is none.
    ///
    /// # Errors
    /// What the device says.
    fn is_done(&mut self) -> Result<bool, Self::Error>;

    /// Waits for the oldest step that was not collected: the tokens it drew, in the order of [`StepPlan::draws`].
    ///
    /// # Errors
    /// What the device says.
    fn collect(&mut self) -> Result<Vec<u32>, Self::Error>;

    /// Hears that steps follow after there was nothing to compute: on a shared GPU, SMs that were lent are wanted back
    /// ([`Session::begin_request`](smidgen_runtime::launch::Session::begin_request)).
    ///
    /// # Errors
    /// What the device says.
    fn begin_request(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Hears that it is being waited for: on a shared GPU, the launch that runs may use SMs that came back since it began
    /// ([`Session::grow`](smidgen_runtime::launch::Session::grow)).
    ///
    /// # Errors
    /// What the device says.
    fn grow(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Hears that every step was collected and none follows for now
    /// ([`Session::end_request`](smidgen_runtime::launch::Session::end_request)).
    ///
    /// # Errors
    /// What the device says.
    fn end_request(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// The time, since some fixed instant.
    fn now(&self) -> Duration;
}

/// When the tokens of one request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// When the request arrived.
    pub arrival: Duration,
    /// When the host had its first token; none if it drew only a stop token.
    pub first: Option<Duration>,
    /// When the host had the last token.
    pub last: Duration,
    /// Tokens, the stop token not counted.
    pub tokens: u32,
}

/// A decoder serving requests.
#[derive(Debug)]
pub struct Batching<E> {
    executor: E,
    scheduler: Scheduler,
    timings: BTreeMap<RequestId, Timing>,
    /// Requests finished, and not yet taken.
    finished: Vec<(RequestId, Timing)>,
}

impl<E: Executor> Batching<E> {
    /// Serves on `executor`.
    ///
    /// # Errors
    /// [`LimitsError`] where nothing can be served within its limits.
    pub fn new(executor: E) -> Result<Self, LimitsError> {
        let scheduler = Scheduler::new(executor.limits())?;
        Ok(Self { executor, scheduler, timings: BTreeMap::new(), finished: Vec::new() })
    }

    /// Queues a request that arrived at `arrival` on the executor's clock.
    ///
    /// # Errors
    /// [`SubmitError`] for one that could not be served even alone.
    pub fn submit(&mut self, request: Request, arrival: Duration) -> Result<RequestId, SubmitError> {
        let id = self.scheduler.submit(request)?;
        self.timings.insert(id, Timing { arrival, first: None, last: arrival, tokens: 0 });
        Ok(id)
    }

    /// Keeps the executor busy, waits for its oldest step, and says what that step brought. Nothing where there is nothing to do.
    ///
    /// # Errors
    /// What the executor says; no request of it can be served then.
    pub fn step(&mut self) -> Result<Vec<Output>, E::Error> {
        self.issue()?;
        if self.scheduler.in_flight() == 0 { Ok(Vec::new()) } else { self.collect() }
    }

    /// Issues steps until two are in flight or nothing is left to compute. Never waits.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn issue(&mut self) -> Result<(), E::Error> {
        self.issue_up_to(STEPS_IN_FLIGHT)
    }

    /// [`issue`](Self::issue) until `steps` are in flight.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn issue_up_to(&mut self, steps: usize) -> Result<(), E::Error> {
        while self.scheduler.in_flight() < steps {
            let Some(plan) = self.scheduler.plan() else { break };
            self.executor.issue(&plan)?;
        }
        Ok(())
    }

    /// What the oldest step brought, if it is done. Never waits.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn try_collect(&mut self) -> Result<Option<Vec<Output>>, E::Error> {
        let ready = self.scheduler.in_flight() > 0 && self.executor.is_done()?;
        if ready { self.collect().map(Some) } else { Ok(None) }
    }

    /// The requests that finished since this was last called, in the order in which they finished.
    pub fn take_finished(&mut self) -> Vec<(RequestId, Timing)> {
        std::mem::take(&mut self.finished)
    }

    /// The requests that have not finished, as far as they have come.
    pub fn unfinished(&self) -> impl Iterator<Item = Timing> {
        self.timings.values().copied()
    }

    /// Whether every request has all its tokens.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// What is planned, for those who look.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// What computes.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    /// [`executor`](Self::executor), to be changed.
    pub fn executor_mut(&mut self) -> &mut E {
        &mut self.executor
    }

    fn collect(&mut self) -> Result<Vec<Output>, E::Error> {
        let tokens = self.executor.collect()?;
        let now = self.executor.now();
        let outputs = self.scheduler.complete(&tokens);
        for output in &outputs {
            match output {
                Output::Token(id, _) => {
                    if let Some(timing) = self.timings.get_mut(id) {
                        timing.first.get_or_insert(now);
                        timing.last = now;
                        timing.tokens += 1;
                    }
                }
                Output::Finished(id, _) => self.finished.extend(self.timings.remove(id).map(|timing| (*id, timing))),
            }
        }
        Ok(outputs)
    }
}

impl Timing {
    /// From arrival to the first token.
    pub fn to_first_token(&self) -> Option<Duration> {
        Some(self.first?.saturating_sub(self.arrival))
    }

    /// Mean time between tokens after the first; none with fewer than two.
    pub fn per_token(&self) -> Option<Duration> {
        let gaps = self.tokens.checked_sub(1).filter(|&gaps| gaps > 0)?;
        Some(self.last.saturating_sub(self.first?) / gaps)
    }

    /// From arrival to the last token.
    pub fn latency(&self) -> Duration {
        self.last.saturating_sub(self.arrival)
    }
}
