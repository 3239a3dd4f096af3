//! The PCIe link: one direction of it, which copies take in the order in which they begin, each for as long as its bytes last.
//!
//! A copy of a large block holds up whatever comes after it for all of its bytes. That is the worst case: an H200 serves copies of different streams side by
//! side (docs/decisions/0020-latency-copies-go-at-once.md).

use super::config::SimConfig;
use super::engine::nanos;

/// One direction of the link.
#[derive(Debug, Default)]
pub(super) struct Link {
    free_at: u64,
}

impl Link {
    /// Takes the link for `bytes` from `now` on, after everybody before; when they have arrived, nanoseconds.
    pub(super) fn take(&mut self, now: u64, bytes: u64, config: &SimConfig) -> u64 {
        self.free_at = self.free_at.max(now) + wire_ns(bytes, config);
        self.free_at + nanos(config.copy_latency)
    }
}

/// What a copy takes that waits for nobody, nanoseconds.
pub(super) fn copy_ns(bytes: u64, config: &SimConfig) -> u64 {
    nanos(config.copy_latency) + wire_ns(bytes, config)
}

fn wire_ns(bytes: u64, config: &SimConfig) -> u64 {
    (bytes as f64 / config.copy_bandwidth.max(1e-3)) as u64
}
