//! The table's lines, by what they run.

pub mod attention;
pub mod gemm;
pub mod models;
pub mod skinny;

use anyhow::Result;
use smidgen::kernels::bandwidth::ReadBandwidth;
use smidgen_runtime::device::Buffer;

use crate::bench::{Bench, Lane, Replay};

/// What one launch of the yardstick reads.
const READ_BYTES: u64 = 2 << 30;

/// The rate at which device memory can be read, the peer of memory-bound work.
pub struct Bandwidth {
    pub replay: Replay,
    _source: Buffer,
    _sink: Buffer,
}

impl Bandwidth {
    pub const NAME: &str = "reading 2 GiB with nothing else to do, on the same SMs";

    pub fn new(bench: &Bench, lane: &mut Lane) -> Result<Self> {
        let source = bench.random(lane, READ_BYTES / 2, 1.0, 77)?;
        let sink = bench.random(lane, 8, 1.0, 78)?;
        let read = ReadBandwidth { source: source.ptr(), bytes: READ_BYTES, sink: sink.ptr() };
        Ok(Self { replay: lane.replay_kernels(&[read])?, _source: source, _sink: sink })
    }

    /// Turns seconds of one launch into GB/s.
    pub const AMOUNT: f64 = READ_BYTES as f64 / 1e9;

    /// Turns seconds of one launch into the milliseconds that reading `bytes` takes.
    pub fn milliseconds_for(bytes: f64) -> f64 {
        bytes / READ_BYTES as f64 * 1e3
    }
}
