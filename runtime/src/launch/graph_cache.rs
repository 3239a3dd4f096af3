//! The graphs that a session keeps: by the work that they do and the layout that they were captured under.
//!
//! A plan comes back more often than not: a neighbour leaves and returns, a policy goes between two drafts. Its graphs are then still here, and a
//! replay under it costs what any replay costs. What is kept is bounded by the number of graphs and of their nodes, and the graph replayed
//! longest ago goes first. Finding a graph is a search among the work of one layout; all else is done where plans change or graphs are captured.
//!
//! Graphs are not updated in place. `cuGraphExecKernelNodeSetParams` takes 0.7 us a node on an H200 and a node cannot move to another partition by
//! it, so a forward pass of 100 nodes would pay 70 us at every change, in both directions, where a graph of its own is captured once.

use std::sync::Arc;

use super::CapturedGraph;
use super::capture::Layout;

/// What an engine calls one piece of work that it captures: the same launches on the same buffers each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(pub u64);

/// What a session keeps at most. A graph of more launches than all may have is kept alone, until the next one comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphLimits {
    /// Graphs.
    pub graphs: usize,
    /// Kernels in all of them, to which the device memory that they take is about proportional.
    pub launches: u64,
}

impl Default for GraphLimits {
    /// 128 graphs of 32768 launches.
    fn default() -> Self {
        Self { graphs: 128, launches: 32_768 }
    }
}

#[derive(Default)]
pub(super) struct GraphCache {
    limits: GraphLimits,
    kept: Vec<Kept>,
    /// Of the layout in force: work, and where its graph is in `kept`. Sorted by work.
    current: Vec<(WorkId, usize)>,
    /// Counts replays and captures.
    clock: u64,
}

struct Kept {
    work: WorkId,
    graph: CapturedGraph,
    /// The clock when it was last replayed, or captured.
    used: u64,
}

impl GraphCache {
    /// The graph of `work` under the layout last followed.
    #[inline]
    pub(super) fn find(&mut self, work: WorkId) -> Option<&CapturedGraph> {
        let at = self.current.binary_search_by_key(&work, |&(work, _)| work).ok()?;
        let kept = self.kept.get_mut(self.current[at].1)?;
        self.clock += 1;
        kept.used = self.clock;
        Some(&kept.graph)
    }

    /// Keeps `graph`, captured under `layout`, which is in force.
    pub(super) fn keep(&mut self, work: WorkId, graph: CapturedGraph, layout: &Arc<Layout>) {
        self.clock += 1;
        self.kept.retain(|kept| kept.work != work || !Arc::ptr_eq(&kept.graph.layout, &graph.layout));
        self.make_room(1, graph.body.launches);
        self.kept.push(Kept { work, graph, used: self.clock });
        self.follow(layout);
    }

    /// Finds graphs of `layout` from here on.
    pub(super) fn follow(&mut self, layout: &Arc<Layout>) {
        let current = self.kept.iter().enumerate().filter(|(_, kept)| Arc::ptr_eq(&kept.graph.layout, layout));
        self.current.clear();
        self.current.extend(current.map(|(at, kept)| (kept.work, at)));
        self.current.sort_unstable();
    }

    /// Gives back the graphs of all layouts but `layout`.
    pub(super) fn keep_only(&mut self, layout: &Arc<Layout>) {
        self.kept.retain(|kept| Arc::ptr_eq(&kept.graph.layout, layout));
        self.follow(layout);
    }

    /// Keeps no more than `limits` from here on.
    pub(super) fn limit(&mut self, limits: GraphLimits, layout: &Arc<Layout>) {
        self.limits = limits;
        self.make_room(0, 0);
        self.follow(layout);
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Gives back graphs until there is room for as many more.
    fn make_room(&mut self, graphs: usize, launches: u64) {
        let mut held = self.kept.iter().map(|kept| kept.graph.body.launches).sum::<u64>();
        while self.kept.len() + graphs > self.limits.graphs || held + launches > self.limits.launches {
            let oldest = self.kept.iter().enumerate().min_by_key(|(_, kept)| kept.used);
            let Some((at, _)) = oldest else { return };
            held -= self.kept.swap_remove(at).graph.body.launches;
        }
    }
}
