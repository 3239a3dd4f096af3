//! Serving one tenant: requests arrive, run as a captured graph, and leave a latency.
//!
//! A [`Server`] is a state machine that never blocks: [`Server::step`] looks whether the request in flight is done and issues the next one.
//! On a GPU each tenant's thread steps its own server; on the simulator one thread steps all of them in virtual time. Latency counts from
//! the *scheduled* arrival, so that queueing shows. A [`StreamServer`] is the same for a decoder whose requests come as a stream ([`batching`]).

mod arrivals;
pub mod batching;
mod stream;
mod turn;

use std::time::Duration;

use smidgen_runtime::device::{DeviceError, Event};
use smidgen_runtime::launch::{LaunchError, Session, WorkId};
use smidgen_runtime::telemetry::{Latencies, RequestLog};

pub use arrivals::Arrivals;
pub use stream::{RequestShape, StreamError, StreamServer, TokenLatencies};
pub use turn::{Seat, Turn};

/// One kind of request of one model, with its buffers on the device.
pub trait Workload: Send {
    /// Launches one request, all of it by [`Session::launch`]. Called to warm up, and to capture a graph.
    ///
    /// # Errors
    /// What the launch says.
    fn enqueue(&mut self, session: &mut Session) -> Result<(), LaunchError>;
}

/// What a server measured.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// Latencies of requests that finished in the measured window, and of those [`waiting`](Self::waiting) at its end that had missed the objective already: at
    /// least as long as they had waited.
    pub latencies: Latencies,
    /// Requests that had arrived by the end of the window and were answered later, or never. Of a stream those that came at a rate and had no token by then:
    /// the others were being served.
    pub waiting: u64,
    /// How many of them kept the objective.
    pub within_slo: u64,
    /// Requests done in the measured window. One that began before it, or ended after it, counts for its part inside: of requests that take a fifth of the window,
    /// whole ones would be off by as much. Those of a stream count by their tokens that came inside.
    pub requests: f64,
    /// Where the requests were a stream: when their tokens came.
    pub stream: Option<TokenLatencies>,
}

/// The part of a run that counts. Load goes on before and after it, so that no tenant is measured beside an idle neighbour.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// First instant that counts, on the device's clock.
    pub from: Duration,
    /// First instant that does not.
    pub until: Duration,
    /// When the load ends.
    pub end: Duration,
}

impl Window {
    /// The part of the time from `began` to `ended` that counts.
    fn share(&self, began: Duration, ended: Duration) -> f64 {
        if ended <= began {
            return f64::from(u8::from((self.from..self.until).contains(&ended)));
        }
        let inside = ended.min(self.until).saturating_sub(began.max(self.from));
        inside.as_secs_f64() / (ended - began).as_secs_f64()
    }
}

/// A server has one kind of request.
const REQUEST: WorkId = WorkId(0);

/// One tenant being served.
pub struct Server {
    session: Session,
    workload: Box<dyn Workload>,
    done: Event,
    in_flight: Option<InFlight>,
    arrivals: Arrivals,
    slo: Option<Duration>,
    window: Window,
    served: Served,
    /// Where only one server may have a request in flight.
    seat: Option<Seat>,
    /// Scheduled arrival of the request that waits for its turn.
    waiting: Option<Duration>,
    lending: Lending,
    log: RequestLog,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    /// Its scheduled arrival.
    scheduled: Duration,
    issued: Duration,
}

/// What a server has announced to the runtime, which lends the SMs of idle tenants: between two announcements nothing is said, so that a server with
/// requests waiting never lends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Lending {
    /// Nothing, ever.
    #[default]
    Never,
    /// That it is at work, or nothing so far.
    Working,
    /// That it has nothing to do.
    Idle,
}

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A request is in flight, or waits for its turn.
    Busy,
    /// Nothing to do before this instant of the device's clock.
    IdleUntil(Duration),
    /// The load has ended and the last request is done.
    Finished,
}

impl Server {
    /// A server whose workload is captured and ready; the first request arrives in [`Server::start`]'s window.
    ///
    /// # Errors
    /// What the launches say.
    pub fn new(mut session: Session, mut workload: Box<dyn Workload>, slo: Option<Duration>) -> Result<Self, LaunchError> {
        session.capture_kept(REQUEST, |session| workload.enqueue(session))?;
        let done = Event::new(session.device())?;
        let window = Window { from: Duration::ZERO, until: Duration::ZERO, end: Duration::ZERO };
        Ok(Self {
            session,
            workload,
            done,
            in_flight: None,
            arrivals: Arrivals::ClosedLoop,
            slo,
            window,
            served: Served::default(),
            seat: None,
            waiting: None,
            lending: Lending::default(),
            log: RequestLog::default(),
        })
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

    /// Lets this server issue requests only in its turn.
    pub fn take_turns(&mut self, seat: Seat) {
        self.seat = Some(seat);
    }

    /// Opens the gate: requests arrive from now on.
    pub fn start(&mut self, window: Window, rate: Option<f64>, seed: u64) {
        self.arrivals = Arrivals::measured(rate, seed, self.session.device().now(), window.from);
        self.window = window;
    }

    /// Notes a finished request and issues the next one if it has arrived. Never waits.
    ///
    /// # Errors
    /// What the device says; the tenant is lost then, and only this one.
    pub fn step(&mut self) -> Result<Step, LaunchError> {
        if let Some(request) = self.in_flight {
            if !self.session.device().query(self.done.id())? {
                self.session.grow()?;
                self.prepare()?;
                return Ok(Step::Busy);
            }
            self.in_flight = None;
            self.note(request);
            self.seat.iter().for_each(Seat::give_back);
        }
        let now = self.session.device().now();
        let scheduled = self.waiting.unwrap_or_else(|| self.arrivals.next(now));
        if now >= self.window.end || scheduled >= self.window.end {
            self.seat.iter().for_each(Seat::leave);
            self.note_unanswered();
            self.rest()?;
            return Ok(Step::Finished);
        }
        if scheduled > now {
            self.rest()?;
            self.prepare()?;
            return Ok(Step::IdleUntil(scheduled));
        }
        self.waiting = Some(scheduled);
        if self.seat.as_ref().is_none_or(Seat::take) {
            self.waiting = None;
            self.issue()?;
            self.arrivals.advance();
            self.in_flight = Some(InFlight { scheduled, issued: now });
        }
        Ok(Step::Busy)
    }

    /// What was measured.
    pub fn finish(self) -> Served {
        self.served
    }

    /// Nothing is in flight, and nothing waits.
    fn rest(&mut self) -> Result<(), LaunchError> {
        self.log.rests();
        if self.lending == Lending::Working {
            self.lending = Lending::Idle;
            self.session.end_request()?;
        }
        Ok(())
    }

    /// Captures for a plan that has come into force meanwhile, so that no request waits for that.
    fn prepare(&mut self) -> Result<(), LaunchError> {
        match self.session.prepare(REQUEST, |session| self.workload.enqueue(session)) {
            // It may be resumed before the next request comes.
            Err(LaunchError::Paused) => Ok(()),
            prepared => prepared.map(drop),
        }
    }

    fn issue(&mut self) -> Result<(), LaunchError> {
        if self.lending == Lending::Idle {
            self.lending = Lending::Working;
            self.session.begin_request()?;
        }
        self.log.begun();
        self.session.replay_or_capture(REQUEST, |session| self.workload.enqueue(session))?;
        let record = self.session.device().record(self.done.id(), self.session.stream());
        record.map_err(|error: DeviceError| error.into())
    }

    fn note(&mut self, InFlight { scheduled, issued }: InFlight) {
        let now = self.session.device().now();
        let latency = now.saturating_sub(scheduled);
        let spent = spent(latency, self.slo);
        self.log.answered(scheduled, now, spent);
        self.served.requests += self.window.share(issued, now);
        if (self.window.from..self.window.until).contains(&now) {
            self.served.latencies.record(latency);
            self.served.within_slo += u64::from(spent <= 1.0);
        } else if now >= self.window.until {
            self.note_waiting(scheduled);
        }
    }

    /// Once the load has ended: of requests that arrive at a rate more may have come than were served.
    fn note_unanswered(&mut self) {
        while self.arrivals.next(self.window.end) < self.window.until {
            self.note_waiting(self.arrivals.next(self.window.end));
            self.arrivals.advance();
        }
    }

    /// A request that was not answered within the window. Without these, a tenant that cannot keep up would show the few requests that it served.
    fn note_waiting(&mut self, scheduled: Duration) {
        let waited = self.window.until.saturating_sub(scheduled);
        self.served.waiting += u64::from(!waited.is_zero());
        if spent(waited, self.slo) > 1.0 {
            self.served.latencies.record(waited);
        }
    }
}

/// The part of an objective that a request took: above 1 it missed it, and 0 where there is none.
fn spent(took: Duration, slo: Option<Duration>) -> f64 {
    slo.map_or(0.0, |slo| took.as_secs_f64() / slo.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_for_its_part_inside_the_window() {
        let ms = Duration::from_millis;
        let window = Window { from: ms(100), until: ms(200), end: ms(300) };
        for (began, ended, share) in
            [(100, 200, 1.0), (120, 130, 1.0), (50, 150, 0.5), (180, 220, 0.5), (0, 400, 0.25), (0, 90, 0.0), (210, 290, 0.0)]
        {
            assert!((window.share(ms(began), ms(ended)) - share).abs() < 1e-12, "from {began} to {ended}");
        }
        assert_eq!([99, 100, 199, 200].map(|at| window.share(ms(at), ms(at))), [0.0, 1.0, 1.0, 0.0]);
    }
}
