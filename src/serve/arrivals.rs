//! When requests arrive: one after the other, or at random times at a rate.

use std::time::Duration;

use crate::splitmix::SplitMix64;

/// The arrival times of one tenant's requests, the same for equal seeds, so that every policy serves the same trace.
#[derive(Debug, Clone)]
pub enum Arrivals {
    /// The next request arrives when the last is finished.
    ClosedLoop,
    /// Poisson arrivals: exponential gaps with a mean of one over the rate.
    Poisson {
        /// Requests per second.
        rate: f64,
        /// State of the generator.
        state: u64,
        /// When the next one arrives.
        next: Duration,
        /// The state with which the trace begins that is measured, and when; none once it has.
        measured: Option<(u64, Duration)>,
    },
}

/// How long before the window that is measured its trace begins, so that the window does not begin with an empty queue.
const LEAD: Duration = Duration::from_millis(300);

impl Arrivals {
    /// Poisson arrivals at `rate` per second from time `start` on, or a closed loop without a rate.
    pub fn new(rate: Option<f64>, seed: u64, start: Duration) -> Self {
        Self::measured(rate, seed, start, start)
    }

    /// The same, where requests count that arrive from time `from` on: those and the ones shortly before are the same however long the load goes on
    /// before, so that runs that settle first are measured with the very requests of those that need not.
    pub fn measured(rate: Option<f64>, seed: u64, start: Duration, from: Duration) -> Self {
        let Some(rate) = rate else { return Self::ClosedLoop };
        let begin = from.saturating_sub(LEAD).max(start);
        // Another trace until then.
        let mut arrivals = Self::Poisson { rate, state: !seed, next: start, measured: Some((seed, begin)) };
        arrivals.advance();
        arrivals
    }

    /// When the request arrives that is served next, given that the server is free at `now`.
    pub fn next(&self, now: Duration) -> Duration {
        match self {
            Self::ClosedLoop => now,
            Self::Poisson { next, .. } => *next,
        }
    }

    /// Passes on to the request after that.
    pub fn advance(&mut self) {
        let Self::Poisson { rate, state, next, measured } = self else { return };
        *next += gap(state, *rate);
        if let Some((seed, begin)) = measured.take_if(|(_, begin)| *next >= *begin) {
            *state = seed;
            *next = begin + gap(state, *rate);
        }
    }
}

/// The time to the next request.
fn gap(state: &mut u64, rate: f64) -> Duration {
    Duration::from_secs_f64(-uniform(state).ln() / rate)
}

/// A number in (0, 1].
fn uniform(state: &mut u64) -> f64 {
    let mut generator = SplitMix64(*state);
    let output = generator.next();
    *state = generator.0;
    ((output >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_arrivals_come_at_their_rate_and_repeat_for_a_seed() {
        let times = |seed| {
            let mut arrivals = Arrivals::new(Some(100.0), seed, Duration::ZERO);
            let mut times = Vec::new();
            while arrivals.next(Duration::ZERO) < Duration::from_secs(100) {
                times.push(arrivals.next(Duration::ZERO));
                arrivals.advance();
            }
            times
        };
        let first = times(7);
        assert_eq!(first, times(7));
        assert_ne!(first, times(8));
        assert!((9_500..10_500).contains(&first.len()), "{} arrivals in 100 s at 100/s", first.len());
    }

    #[test]
    fn what_is_measured_does_not_depend_on_how_long_the_load_goes_on_before() {
        let measured = |start, from| {
            let mut arrivals = Arrivals::measured(Some(1000.0), 7, Duration::from_secs(start), Duration::from_secs(from));
            let mut times = Vec::new();
            let mut before = 0;
            while times.len() < 1000 {
                match arrivals.next(Duration::ZERO).checked_sub(Duration::from_secs(from)) {
                    Some(time) => times.push(time),
                    None => before += 1,
                }
                arrivals.advance();
            }
            (times, before)
        };
        let ((early, few), (late, many)) = (measured(0, 1), measured(3, 8));
        assert_eq!(early, late);
        assert!((900..1100).contains(&few) && (4800..5200).contains(&many), "{few} and {many} requests before");
    }
}
