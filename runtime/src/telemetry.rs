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
        self.histogram.saturating_record(latency.as_nanos().min(u128::from(u64::MAX)) as u64);
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
