//! Token buckets: a rate that short bursts may exceed by a stated number of bytes (Turner, "New directions in communications", 1986).

use std::num::NonZeroU64;
use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// Lets through at most `burst + rate * w` bytes in any window of `w` seconds.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Bytes per second.
    rate: NonZeroU64,
    /// Bytes that may pass at once after a pause.
    burst: u64,
    /// Bytes that may pass now, times 10^9: a nanosecond adds `rate`.
    level: u128,
    /// When `level` was right.
    at: Duration,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(rate: NonZeroU64, burst: u64, now: Duration) -> Self {
        Self { rate, burst, level: u128::from(burst) * NANOS, at: now }
    }

    /// When `bytes` may pass, `now` at the earliest. More than the burst passes as the burst does: when the bucket is full.
    pub(super) fn passes_at(&self, bytes: u64, now: Duration) -> Duration {
        let missing = (u128::from(bytes.min(self.burst)) * NANOS).saturating_sub(self.level);
        let nanos = missing.div_ceil(u128::from(self.rate.get()));
        let at = self.at.saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        at.max(now)
    }

    /// Takes `bytes`, which [`passes_at`](Self::passes_at) lets pass at `now`.
    pub(super) fn take(&mut self, bytes: u64, now: Duration) {
        let passed = now.saturating_sub(self.at).as_nanos() * u128::from(self.rate.get());
        self.level = (self.level + passed).min(u128::from(self.burst) * NANOS);
        self.at = self.at.max(now);
        self.level = self.level.saturating_sub(u128::from(bytes) * NANOS);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Chunks that pass as early as they may, after pauses of any length.
        #[test]
        fn no_window_of_any_length_holds_more_than_the_burst_and_the_rate(
            rate in 1_u64..100_000_000_000,
            burst in 1_u64..8_000_000,
            chunks in prop::collection::vec((1_u64..8_000_000, 0_u64..1_000_000), 1..40),
        ) {
            let mut bucket = Bucket::new(NonZeroU64::new(rate).unwrap(), burst, Duration::ZERO);
            let (mut now, mut passed) = (Duration::ZERO, Vec::new());
            for (bytes, pause) in chunks {
                let bytes = bytes.min(burst);
                now = bucket.passes_at(bytes, now + Duration::from_nanos(pause));
                bucket.take(bytes, now);
                passed.push((now, bytes));
            }
            for (first, &(from, _)) in passed.iter().enumerate() {
                let mut sum = 0;
                for &(at, bytes) in &passed[first..] {
                    sum += u128::from(bytes);
                    let allowed = u128::from(burst) * NANOS + (at - from).as_nanos() * u128::from(rate);
                    prop_assert!(sum * NANOS <= allowed, "{sum} bytes from {from:?} to {at:?}");
                }
            }
        }

        #[test]
        fn a_sender_that_never_pauses_gets_the_whole_rate(rate in 1_000_000_u64..100_000_000_000, chunk in 1_u64..2_000_000) {
            let mut bucket = Bucket::new(NonZeroU64::new(rate).unwrap(), chunk, Duration::ZERO);
            let (mut now, chunks) = (Duration::ZERO, 100_u64);
            for _ in 0..=chunks {
                now = bucket.passes_at(chunk, now);
                bucket.take(chunk, now);
            }
            // All but the first chunk, which was the burst; each may be late by a part of a nanosecond.
            let ideal = u128::from(chunks * chunk) * NANOS / u128::from(rate);
            prop_assert!(now.as_nanos() >= ideal && now.as_nanos() <= ideal + u128::from(chunks) + 1, "{now:?}, {ideal} ns");
        }
    }
}
