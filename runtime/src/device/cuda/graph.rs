//! Graphs: what a stream captured, made executable. A node keeps the partition of the stream it was captured on and the priority it was
//! launched with, whatever stream replays the graph.

use super::driver::{self, ExecutableGraph, Stream};
use super::status::tolerate;
use crate::device::DeviceError;

/// Ends the capture that this same thread began on `stream`.
pub fn end_capture(stream: Stream) -> Result<ExecutableGraph, DeviceError> {
    let captured = driver::stream_end_capture(stream)?;
    let executable = driver::graph_instantiate(captured);
    tolerate(driver::graph_destroy(captured));
    executable
}
