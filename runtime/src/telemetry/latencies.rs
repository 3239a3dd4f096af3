//! Latency recorders: exact counts in logarithmic buckets, three significant digits from 1 microsecond to 100 seconds.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies of one tenant's requests.
#[derive(Debug, Clone)]
pub struct Latencies {
    /// Nanoseconds.
    histogram: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        let mut histogram = Histogram::new(3).unwrap_or_else(|_| unreachable!("3 significant digits are within 0..=5"));
        histogram.auto(true);
        Self { histogram }
    }
}

impl Latencies {
    /// Adds one request.
    pub fn record(&mut self, latency: Duration) {
        // An auto-sizing histogram refuses nothing below 2^63 ns.
        let _ = self.histogram.record(latency.as_nanos().min(u128::from(u64::MAX / 2)) as u64);
    }

    /// Requests recorded.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The latency that `quantile` (0 to 1) of the requests stay within, in milliseconds; 0 without requests.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        if self.histogram.is_empty() { 0.0 } else { self.histogram.value_at_quantile(quantile) as f64 / 1e6 }
    }

    /// The mean latency in milliseconds; 0 without requests.
    pub fn mean_ms(&self) -> f64 {
        self.histogram.mean() / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_three_digits_from_microseconds_to_minutes() {
        for unit in [Duration::from_micros(1), Duration::from_millis(1), Duration::from_secs(1)] {
            let mut latencies = Latencies::default();
            for count in 1..=100 {
                latencies.record(unit * count);
            }
            for (quantile, expected) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
                let expected = expected * unit.as_secs_f64() * 1e3;
                let found = latencies.quantile_ms(quantile);
                assert!((found / expected - 1.0).abs() < 1e-3, "{unit:?}: {found} ms instead of {expected} ms");
            }
        }
    }
}
