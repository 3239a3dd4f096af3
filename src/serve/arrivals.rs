//! When requests arrive: one after the other, or at random times at a rate.

use std::time::Duration;

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
    },
}

impl Arrivals {
    /// Poisson arrivals at `rate` per second from time `start` on, or a closed loop without a rate.
    pub fn new(rate: Option<f64>, seed: u64, start: Duration) -> Self {
        match rate {
            None => Self::ClosedLoop,
            Some(rate) => {
                let mut arrivals = Self::Poisson { rate, state: seed, next: start };
                arrivals.advance();
                arrivals
            }
        }
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
        if let Self::Poisson { rate, state, next } = self {
            *next += Duration::from_secs_f64(-uniform(state).ln() / *rate);
        }
    }
}

/// A number in (0, 1], by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    ((mixed >> 11) + 1) as f64 / (1_u64 << 53) as f64
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
}
