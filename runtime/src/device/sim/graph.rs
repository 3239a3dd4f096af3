//! Capture: what was enqueued becomes a graph of nodes, each with the partition of the stream it was enqueued on.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kernel::KernelSpec;
use super::memory::Write;

/// What a node does.
#[derive(Debug, Clone)]
pub(super) enum NodeWork {
    Kernel(Arc<KernelSpec>),
    Write(Arc<Write>),
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) work: NodeWork,
    /// The stream it was captured on, for its partition and process.
    pub(super) stream: usize,
    pub(super) predecessors: u32,
    pub(super) successors: Vec<u32>,
    /// Whether it follows a node of another partition.
    pub(super) hops: bool,
}

impl Node {
    /// Whether it is a launch that may begin before the one before it has ended.
    pub(super) fn overlaps(&self) -> bool {
        self.predecessors == 1 && !self.hops && matches!(&self.work, NodeWork::Kernel(spec) if spec.overlaps)
    }
}

/// An instantiated graph.
#[derive(Debug, Default)]
pub(super) struct GraphDef {
    pub(super) nodes: Vec<Node>,
}

impl GraphDef {
    /// Whether a launch that overlaps follows a node.
    pub(super) fn is_followed(&self, node: u32) -> bool {
        let overlaps = |successor: &u32| self.nodes.get(*successor as usize).is_some_and(Node::overlaps);
        self.nodes.get(node as usize).is_some_and(|node| node.successors.iter().any(overlaps))
    }

    pub(super) fn roots(&self) -> impl Iterator<Item = u32> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.predecessors == 0).map(|(at, _)| at as u32)
    }
}

/// A replay in progress.
#[derive(Debug)]
pub(super) struct GraphRun {
    pub(super) graph: Arc<GraphDef>,
    /// The stream that it was launched on.
    pub(super) stream: usize,
    /// Predecessors of each node that are not done.
    pub(super) missing: Vec<u32>,
    /// Nodes not done.
    pub(super) left: usize,
}

impl GraphRun {
    pub(super) fn new(graph: Arc<GraphDef>, stream: usize) -> Self {
        let missing = graph.nodes.iter().map(|node| node.predecessors).collect();
        Self { left: graph.nodes.len(), graph, stream, missing }
    }
}

/// A capture in progress.
#[derive(Debug)]
pub(super) struct Capture {
    pub(super) origin: usize,
    graph: GraphDef,
    /// The last nodes of each stream that takes part.
    tails: BTreeMap<usize, Vec<u32>>,
}

impl Capture {
    pub(super) fn new(origin: usize) -> Self {
        Self { origin, graph: GraphDef::default(), tails: BTreeMap::from([(origin, Vec::new())]) }
    }

    /// The streams that take part.
    pub(super) fn streams(&self) -> impl Iterator<Item = usize> {
        self.tails.keys().copied()
    }

    /// Appends a node to `stream`. `same_partition` compares the partitions of two streams.
    pub(super) fn push(&mut self, stream: usize, work: NodeWork, same_partition: impl Fn(usize, usize) -> bool) {
        let node = self.graph.nodes.len() as u32;
        let before = self.tails.insert(stream, vec![node]).unwrap_or_default();
        let mut hops = false;
        for &predecessor in &before {
            if let Some(predecessor) = self.graph.nodes.get_mut(predecessor as usize) {
                predecessor.successors.push(node);
                hops |= !same_partition(predecessor.stream, stream);
            }
        }
        self.graph.nodes.push(Node { work, stream, predecessors: before.len() as u32, successors: Vec::new(), hops });
    }

    /// What an event recorded on `stream` now would mark.
    pub(super) fn mark(&self, stream: usize) -> Vec<u32> {
        self.tails.get(&stream).cloned().unwrap_or_default()
    }

    /// Makes `stream` take part, and go on after `mark`.
    pub(super) fn join(&mut self, stream: usize, mark: &[u32]) {
        let tail = self.tails.entry(stream).or_default();
        tail.extend_from_slice(mark);
        tail.sort_unstable();
        tail.dedup();
    }

    /// The graph, unless some node would not be waited for by the origin stream.
    pub(super) fn finish(self) -> Option<GraphDef> {
        let mut joined = vec![false; self.graph.nodes.len()];
        for &node in self.tails.get(&self.origin).into_iter().flatten() {
            joined[node as usize] = true;
        }
        // Predecessors have lower numbers, so one pass from the last node back sees every successor first.
        for (at, node) in self.graph.nodes.iter().enumerate().rev() {
            joined[at] |= node.successors.iter().any(|&successor| joined[successor as usize]);
        }
        joined.into_iter().all(|joined| joined).then_some(self.graph)
    }
}
