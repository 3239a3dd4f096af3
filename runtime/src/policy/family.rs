//! Which sets of TPCs plans are going to name, before there is any tenant to plan for.
//!
//! A set is a partition, and a partition is quick to make only while the GPU is idle (docs/decisions/0009). So each policy lists the sets that its plans name most, the
//! most useful first, and the runtime makes as many of them at start as it has room for. The list follows from the topology alone, as plans do from topology and tenants, so
//! that a policy may also prefer, of plans that are about as good, the one whose sets are listed.
//!
//! Policies that divide the GPU in runs, one after the other, name these. On an H200, with 66 TPCs:
//!
//! | kind | sets | named for |
//! |---|---|---|
//! | edges | 130 | two tenants, divided anywhere: TPCs `0..n` for one and `n..66` for the other, and what each kernel of theirs needs of it |
//! | equal parts | 21 more | up to eight tenants of which nothing is known, or who are alike |
//! | halves of a rest | 122 more | the inner one of three tenants, where it and the last are alike, and all but its part: what the last may use while the first lends |
//! | single TPCs | 124 more | the inner one while it has no work, and all but that TPC |
//!
//! Three tenants that divide the GPU anywhere would need 2145 inner runs, 12 GB. Plans that need one of those make it themselves.

use std::collections::HashSet;
use std::ops::Range;

use crate::device::Topology;
use crate::partition::{TpcSet, rungs};

use super::division::{contiguous, equal};

/// Sets in the order in which they are wanted, each once.
#[derive(Debug)]
pub(super) struct Family<'a> {
    topology: &'a Topology,
    sets: Vec<TpcSet>,
    known: HashSet<TpcSet>,
}

impl<'a> Family<'a> {
    pub(super) fn new(topology: &'a Topology) -> Self {
        Self { topology, sets: Vec::new(), known: HashSet::from([TpcSet::EMPTY, topology.all_tpcs()]) }
    }

    pub(super) fn sets(self) -> Vec<TpcSet> {
        self.sets
    }

    fn tpcs(&self) -> u16 {
        self.topology.all_tpcs().len()
    }

    fn add(&mut self, sets: impl IntoIterator<Item = TpcSet>) {
        self.sets.extend(sets.into_iter().filter(|&set| self.known.insert(set)));
    }

    /// All sizes but the whole, rungs of the ladder first: most kernels and many tenants want those.
    fn sizes(&self) -> Vec<u16> {
        let rungs: Vec<u16> = rungs(self.topology).into_iter().map(|rung| self.topology.tpcs_for(rung)).collect();
        let others = (1..self.tpcs()).filter(|size| !rungs.contains(size));
        rungs.iter().copied().chain(others).filter(|&size| size < self.tpcs()).collect()
    }

    /// The parts of tenants who are treated alike.
    #[must_use]
    pub(super) fn equal_parts(mut self, tenants: impl IntoIterator<Item = usize>) -> Self {
        for tenants in tenants {
            self.add(contiguous(self.topology, &equal(self.tpcs(), tenants)));
        }
        self
    }

    /// The first TPCs and the last ones, any number of them.
    #[must_use]
    pub(super) fn edges(mut self) -> Self {
        let end = self.tpcs();
        for size in self.sizes() {
            self.add([TpcSet::range(0, size), TpcSet::range(size, end)]);
        }
        self
    }

    /// Of three tenants, of whom the first has `firsts` TPCs, what the inner one gets if it is like the last, and what is not its part.
    #[must_use]
    pub(super) fn inner_halves(self, firsts: Range<u16>) -> Self {
        let end = self.tpcs();
        self.inner(firsts.map(|first| TpcSet::range(first, first + end.saturating_sub(first) / 2)))
    }

    /// What the inner one gets while it has no work, and what is not its part.
    #[must_use]
    pub(super) fn inner_single_tpcs(self, firsts: Range<u16>) -> Self {
        self.inner(firsts.map(|first| TpcSet::range(first, first + 1)))
    }

    fn inner(mut self, parts: impl Iterator<Item = TpcSet>) -> Self {
        let whole = self.topology.all_tpcs();
        for part in parts.filter(|part| !part.is_empty()) {
            self.add([part, whole - part]);
        }
        self
    }

    /// The later half of the first TPCs, any number of those: two tenants who are treated alike, and the last TPCs are another's.
    #[must_use]
    pub(super) fn halves_of_first(mut self) -> Self {
        for end in self.sizes() {
            self.add([TpcSet::range(end.div_ceil(2), end)]);
        }
        self
    }
}

/// Whether a run begins or ends with the GPU.
pub(super) fn is_edge(topology: &Topology, run: TpcSet) -> bool {
    run.contains(0) || is_last(topology, run)
}

/// So many TPCs of a run: the last ones where only those are an edge, and the first ones otherwise.
pub(super) fn end_of(topology: &Topology, run: TpcSet, tpcs: u16) -> TpcSet {
    let last = is_last(topology, run) && !run.contains(0);
    if last { run - run.first(run.len().saturating_sub(tpcs)) } else { run.first(tpcs) }
}

fn is_last(topology: &Topology, run: TpcSet) -> bool {
    topology.all_tpcs().len().checked_sub(1).is_some_and(|last| run.contains(last))
}
