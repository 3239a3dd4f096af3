//! Graphs: what a stream captured, made executable. A node keeps the partition of the stream it was captured on and the priority it was
//! launched with, whatever stream replays the graph.
//!
//! What a graph takes of the device's memory no driver call tells. It is the drop of what is free while the driver instantiates it, for one graph at a time. The driver takes memory in
//! pieces that several graphs share, so one graph may be told to take nothing and the next one a piece; together they come out right.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::driver::{self, ExecutableGraph, Stream};
use super::status::tolerate;
use crate::device::{DeviceError, GraphId};

/// What a node may take at most, and a piece. What is more was allocated by somebody else at the same moment.
const MOST_FOR_A_NODE: u64 = 64 << 10;
const PIECE: u64 = 4 << 20;

/// The graphs of a device, and the device memory that each took.
#[derive(Default)]
pub struct Graphs(Mutex<HashMap<GraphId, u64>>);

impl Graphs {
    /// Ends the capture that this same thread began on `stream`.
    pub fn end_capture(&self, stream: Stream) -> Result<GraphId, DeviceError> {
        let captured = driver::stream_end_capture(stream)?;
        let mut taken = self.0.lock();
        // Only a figure hangs on these.
        let (nodes, before) = (driver::graph_nodes(captured).unwrap_or(0), driver::memory_free_bytes().unwrap_or(0));
        let executable = driver::graph_instantiate(captured);
        tolerate(driver::graph_destroy(captured));
        let graph = GraphId::from(executable?);
        let after = driver::memory_free_bytes().unwrap_or(before);
        taken.insert(graph, drop_for(nodes, before, after));
        Ok(graph)
    }

    /// Device memory that `graph` took.
    pub fn bytes(&self, graph: GraphId) -> u64 {
        self.0.lock().get(&graph).copied().unwrap_or(0)
    }

    /// Destroys `graph`.
    pub fn destroy(&self, graph: GraphId) -> Result<(), DeviceError> {
        self.0.lock().remove(&graph);
        driver::executable_graph_destroy(ExecutableGraph::from(graph))
    }
}

/// Of a drop of free memory, what a graph of so many nodes may have taken.
fn drop_for(nodes: usize, before: u64, after: u64) -> u64 {
    before.saturating_sub(after).min(nodes as u64 * MOST_FOR_A_NODE + PIECE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_is_charged_what_became_of_free_memory_but_no_neighbour_s_gigabyte() {
        let free = 100 << 30;
        assert_eq!(drop_for(100, free, free - (2 << 20)), 2 << 20);
        assert_eq!(drop_for(100, free, free), 0);
        assert_eq!(drop_for(100, free, free + (1 << 30)), 0, "somebody gave memory back");
        assert_eq!(drop_for(100, free, free - (1 << 30)), 100 * MOST_FOR_A_NODE + PIECE);
    }
}
