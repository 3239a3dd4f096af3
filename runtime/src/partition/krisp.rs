//! KRISP's resource-mask generation: which TPCs a kernel gets, given how many it needs and how busy each TPC is.
//!
//! Follows Algorithm 1 of Chow, Jahanshahi and Wong, "KRISP: Enabling Kernel-wise RIght-sizing for Spatial Partitioned GPU Inference
//! Servers", HPCA 2023, in NVIDIA's words: a TPC stands where the paper has a compute unit (it is the smallest part that a partition can
//! hold), a GPC where it has a shader engine. [`SmLoad`] keeps one counter for each TPC, and an allocation goes in three steps:
//!
//! 1. choose GPCs, least loaded first, and each GPC's share of the request, by the [`Distribution`];
//! 2. in each of them take its least loaded TPCs, as many as its share;
//! 3. leave out a TPC that is occupied already once the [`OverlapLimit`] is used up.
//!
//! Two things differ from the paper, where every counter counts running kernels and the whole GPU is open to each of them: a counter rises
//! by a weight that the caller chooses, and a request names the TPCs it may use. Nothing here knows of time, tenants or devices; which
//! numbers a policy feeds in is docs/decisions/0004.

use std::cmp::Reverse;

use crate::device::Topology;

use super::TpcSet;

/// How a request is spread over GPCs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Distribution {
    /// The fewest GPCs that hold the request, and the same number of TPCs in each of them, give or take one. KRISP's choice on an AMD GPU,
    /// which deals thread blocks out equally to shader engines, so that under an uneven spread the smallest share ends last; even shares in
    /// few of them leave the others to the next kernel. Whether it is the best choice on NVIDIA GPUs too is not measured.
    #[default]
    Conserved,
    /// One GPC after the other, each filled before the next is begun.
    Packed,
    /// The same number of TPCs in every GPC, give or take one.
    Distributed,
}

/// How many of the TPCs granted to one request may be occupied already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OverlapLimit(pub u16);

impl OverlapLimit {
    /// Free TPCs only: KRISP-I.
    pub const ISOLATED: Self = Self(0);
    /// Any TPC: KRISP-O.
    pub const UNLIMITED: Self = Self(u16::MAX);
}

/// What one kernel, or one tenant, asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// TPCs needed. 0 counts as 1.
    pub tpcs: u16,
    /// The TPCs to choose from.
    pub within: TpcSet,
    /// How many of those granted may be occupied already.
    pub overlap_limit: OverlapLimit,
    /// How to spread them over GPCs.
    pub distribution: Distribution,
}

/// How busy each TPC is.
///
/// ```
/// # use smidgen_runtime::device::{CoscheduledGroups, Sms, Topology};
/// use smidgen_runtime::partition::{TpcSet, krisp::{Distribution, OverlapLimit, Request, SmLoad}};
///
/// # let gpu = Topology { name: "example".into(), sms: Sms(16), sms_per_tpc: 2, tpcs_per_gpc: vec![4, 4], memory_bytes: 0, l2_bytes: 0,
/// #     coscheduled: CoscheduledGroups { sms_per_group: 8, groups: 2 }, shared_bytes_per_sm: 0, compute_capability: (9, 0), driver_version: 13000, driver: String::new() };
/// // Two GPCs of four TPCs. A kernel that needs three goes to one GPC, so that the other one stays free.
/// let mut load = SmLoad::new(&gpu);
/// let three = Request {
///     tpcs: 3,
///     within: gpu.all_tpcs(),
///     overlap_limit: OverlapLimit::ISOLATED,
///     distribution: Distribution::Conserved,
/// };
/// assert_eq!(load.allocate(three, 1), TpcSet::range(0, 3));
/// assert_eq!(load.allocate(three, 1), TpcSet::range(4, 7));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmLoad {
    gpcs: Vec<TpcSet>,
    /// One per TPC.
    counters: Vec<u32>,
}

impl SmLoad {
    /// An idle GPU. TPCs are taken to be numbered GPC by GPC, which a real one need not do (docs/decisions/0003); those that `tpcs_per_gpc` leaves over form
    /// a last GPC.
    pub fn new(topology: &Topology) -> Self {
        let all = topology.all_tpcs();
        let mut gpcs = Vec::with_capacity(topology.tpcs_per_gpc.len() + 1);
        let mut rest = all;
        for &tpcs in &topology.tpcs_per_gpc {
            let gpc = rest.first(tpcs);
            rest = rest - gpc;
            gpcs.push(gpc);
        }
        gpcs.push(rest);
        gpcs.retain(|gpc| !gpc.is_empty());
        Self { gpcs, counters: vec![0; all.len().into()] }
    }

    /// The counter of one TPC; 0 for a TPC that the GPU lacks.
    pub fn counter(&self, tpc: u16) -> u32 {
        self.counters.get(usize::from(tpc)).copied().unwrap_or(0)
    }

    /// Raises the counters of `tpcs`. A weight of 0 counts as 1, so that whoever occupies a TPC is seen there.
    pub fn occupy(&mut self, tpcs: TpcSet, weight: u32) {
        for tpc in tpcs.iter() {
            if let Some(counter) = self.counters.get_mut(usize::from(tpc)) {
                *counter = counter.saturating_add(weight.max(1));
            }
        }
    }

    /// The TPCs that `request` gets, and their counters raised by `weight`.
    pub fn allocate(&mut self, request: Request, weight: u32) -> TpcSet {
        let tpcs = self.choose(request);
        self.occupy(tpcs, weight);
        tpcs
    }

    /// The TPCs that `request` would get. Equal counters and requests give equal sets.
    ///
    /// Fewer than asked where `within` holds fewer, or where the overlap limit forbids the rest. Never none: a request for which no TPC is
    /// left gets the least loaded one of `within` (of the GPU, if `within` names no TPC of it), limit or not, since a kernel with no SM
    /// would wait for ever.
    pub fn choose(&self, request: Request) -> TpcSet {
        let usable = self.gpcs.iter().fold(TpcSet::EMPTY, |all, &gpc| all | gpc);
        let within = if usable.is_disjoint(request.within) { usable } else { usable & request.within };
        let mut granted = TpcSet::EMPTY;
        let mut overlap_left = request.overlap_limit.0;
        for (tpcs, share) in self.shares(request.tpcs.max(1), within, request.distribution) {
            for tpc in self.least_loaded_first(tpcs).into_iter().take(share.into()) {
                if self.counter(tpc) > 0 {
                    // The later ones of this GPC are occupied too, but another GPC may still have free ones.
                    let Some(left) = overlap_left.checked_sub(1) else { break };
                    overlap_left = left;
                }
                granted = granted.with(tpc);
            }
        }
        if granted.is_empty() { self.least_loaded_first(within).into_iter().take(1).collect() } else { granted }
    }

    fn least_loaded_first(&self, tpcs: TpcSet) -> Vec<u16> {
        let mut order: Vec<u16> = tpcs.iter().collect();
        order.sort_by_key(|&tpc| (self.counter(tpc), tpc));
        order
    }

    /// The usable TPCs of each chosen GPC, least loaded GPC first, and how many of them to take.
    fn shares(&self, needed: u16, within: TpcSet, distribution: Distribution) -> Vec<(TpcSet, u16)> {
        let needed = needed.min(within.len());
        let mut gpcs: Vec<TpcSet> = self.gpcs.iter().copied().filter(|gpc| !gpc.is_disjoint(within)).collect();
        // The load of the whole GPC, not of the part that the request may use: neighbours on the other TPCs are what it would contend with.
        gpcs.sort_by_key(|gpc| gpc.iter().map(|tpc| u64::from(self.counter(tpc))).sum::<u64>());
        let candidates: Vec<TpcSet> = gpcs.into_iter().map(|gpc| gpc & within).collect();
        match distribution {
            Distribution::Packed => fill_in_turn(candidates, needed),
            Distribution::Distributed => spread_evenly(candidates, needed),
            Distribution::Conserved => spread_evenly(fewest_that_hold(candidates, needed), needed),
        }
    }
}

/// The fewest of `candidates` that have `needed` TPCs together; among equally few, those that come first.
fn fewest_that_hold(candidates: Vec<TpcSet>, needed: u16) -> Vec<TpcSet> {
    let largest_together = |sets: &[TpcSet], count: usize| {
        let mut sizes: Vec<u16> = sets.iter().map(|set| set.len()).collect();
        sizes.sort_unstable_by_key(|&size| Reverse(size));
        sizes.iter().take(count).sum::<u16>()
    };
    let count = (1..candidates.len()).find(|&count| largest_together(&candidates, count) >= needed).unwrap_or(candidates.len());
    let mut chosen = Vec::with_capacity(count);
    let mut missing = needed;
    for (at, &candidate) in candidates.iter().enumerate() {
        if chosen.len() == count {
            break;
        }
        // Taken only if the largest of those that follow can still make up the rest.
        let later = count - chosen.len() - 1;
        if candidate.len() + largest_together(&candidates[at + 1..], later) >= missing {
            missing = missing.saturating_sub(candidate.len());
            chosen.push(candidate);
        }
    }
    chosen
}

/// One TPC to each in turn until `needed` are given; who is full is passed over.
fn spread_evenly(gpcs: Vec<TpcSet>, needed: u16) -> Vec<(TpcSet, u16)> {
    let rounds = gpcs.iter().map(|gpc| gpc.len()).max().unwrap_or(0);
    let mut shares: Vec<(TpcSet, u16)> = gpcs.into_iter().map(|gpc| (gpc, 0)).collect();
    let mut missing = needed;
    for round in 0..rounds {
        for (gpc, share) in &mut shares {
            if missing > 0 && round < gpc.len() {
                *share += 1;
                missing -= 1;
            }
        }
    }
    shares
}

fn fill_in_turn(gpcs: Vec<TpcSet>, needed: u16) -> Vec<(TpcSet, u16)> {
    let mut missing = needed;
    gpcs.into_iter()
        .map(|gpc| {
            let share = gpc.len().min(missing);
            missing -= share;
            (gpc, share)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::{CoscheduledGroups, Sms};

    fn gpu(tpcs_per_gpc: &[u16]) -> Topology {
        Topology {
            name: "test".into(),
            sms: Sms(tpcs_per_gpc.iter().sum::<u16>() * 2),
            sms_per_tpc: 2,
            tpcs_per_gpc: tpcs_per_gpc.to_vec(),
            coscheduled: CoscheduledGroups { sms_per_group: 8, groups: 0 },
            memory_bytes: 0,
            l2_bytes: 0,
            shared_bytes_per_sm: 0,
            compute_capability: (9, 0),
            driver_version: 13_000,
            driver: String::new(),
        }
    }

    fn request(gpu: &Topology, tpcs: u16) -> Request {
        Request { tpcs, within: gpu.all_tpcs(), overlap_limit: OverlapLimit::UNLIMITED, distribution: Distribution::Conserved }
    }

    #[test]
    fn conserved_halves_ten_tpcs_over_two_gpcs_of_eight() {
        let gpu = gpu(&[8, 8, 8, 8]);
        assert_eq!(SmLoad::new(&gpu).choose(request(&gpu, 10)), TpcSet::range(0, 5) | TpcSet::range(8, 13));
    }

    #[test]
    fn packed_fills_the_first_gpc_before_the_second() {
        let gpu = gpu(&[8, 8, 8, 8]);
        let packed = Request { distribution: Distribution::Packed, ..request(&gpu, 10) };
        assert_eq!(SmLoad::new(&gpu).choose(packed), TpcSet::range(0, 10));
    }

    #[test]
    fn distributed_takes_from_every_gpc() {
        let gpu = gpu(&[8, 8, 8, 8]);
        let distributed = Request { distribution: Distribution::Distributed, ..request(&gpu, 10) };
        let chosen = SmLoad::new(&gpu).choose(distributed);
        assert_eq!(chosen, TpcSet::range(0, 3) | TpcSet::range(8, 11) | TpcSet::range(16, 18) | TpcSet::range(24, 26));
    }

    #[test]
    fn the_least_loaded_gpc_and_in_it_the_least_loaded_tpcs_come_first() {
        let gpu = gpu(&[4, 4, 4]);
        let mut load = SmLoad::new(&gpu);
        load.occupy(TpcSet::range(0, 4), 1);
        load.occupy(TpcSet::range(4, 6), 1);
        load.occupy(TpcSet::range(8, 12), 2);
        assert_eq!(load.choose(request(&gpu, 2)), TpcSet::range(6, 8));
    }

    #[test]
    fn conserved_passes_over_a_gpc_too_small_for_the_fewest() {
        // The first GPC is the least loaded one, but with it three GPCs would be needed.
        let gpu = gpu(&[1, 4, 4]);
        let mut load = SmLoad::new(&gpu);
        load.occupy(TpcSet::range(1, 9), 1);
        assert_eq!(load.choose(request(&gpu, 8)), TpcSet::range(1, 9));
    }

    #[test]
    fn an_overlap_limit_shortens_the_grant() {
        let gpu = gpu(&[4, 4]);
        let mut load = SmLoad::new(&gpu);
        load.occupy(TpcSet::range(0, 6), 1);
        let limited = |limit| load.choose(Request { overlap_limit: OverlapLimit(limit), ..request(&gpu, 8) });
        assert_eq!(limited(0), TpcSet::range(6, 8));
        assert_eq!(limited(3).len(), 5);
        assert_eq!(limited(6).len(), 8);
    }

    #[test]
    fn nobody_starves_on_a_full_gpu() {
        let gpu = gpu(&[2, 2]);
        let mut load = SmLoad::new(&gpu);
        load.occupy(gpu.all_tpcs() - TpcSet::range(2, 3), 5);
        load.occupy(TpcSet::range(2, 3), 1);
        let isolated = Request { overlap_limit: OverlapLimit::ISOLATED, ..request(&gpu, 3) };
        assert_eq!(load.choose(isolated), TpcSet::range(2, 3));
    }

    fn any_distribution() -> impl Strategy<Value = Distribution> {
        prop_oneof![Just(Distribution::Conserved), Just(Distribution::Packed), Just(Distribution::Distributed)]
    }

    prop_compose! {
        fn any_gpu()(sizes in prop::collection::vec(0_u16..=12, 1..=8).prop_filter("a TPC at least", |sizes| sizes.iter().sum::<u16>() > 0))
            -> Topology { gpu(&sizes) }
    }

    prop_compose! {
        fn any_request()(tpcs in 0_u16..=130, within in any::<[u64; 2]>(), limit in 0_u16..=100, distribution in any_distribution()) -> Request {
            let within = (0..TpcSet::CAPACITY).filter(|&tpc| within[usize::from(tpc / 64)] >> (tpc % 64) & 1 == 1).collect();
            Request { tpcs, within, overlap_limit: OverlapLimit(limit), distribution }
        }
    }

    proptest! {
        #[test]
        fn a_grant_keeps_to_the_request(gpu in any_gpu(), earlier in prop::collection::vec(any_request(), 0..6), request in any_request()) {
            let mut load = SmLoad::new(&gpu);
            for request in earlier {
                load.allocate(request, 1);
            }
            let granted = load.choose(request);
            prop_assert!(!granted.is_empty());
            prop_assert!(gpu.all_tpcs().includes(granted));
            prop_assert!(granted.len() <= request.tpcs.max(1));
            prop_assert!(request.within.includes(granted) || request.within.is_disjoint(gpu.all_tpcs()));
            let occupied = granted.iter().filter(|&tpc| load.counter(tpc) > 0).count();
            prop_assert!(occupied <= usize::from(request.overlap_limit.0) || granted.len() == 1);
        }

        #[test]
        fn without_a_limit_nobody_gets_less_than_there_is(gpu in any_gpu(), tpcs in 1_u16..=130, distribution in any_distribution()) {
            let mut load = SmLoad::new(&gpu);
            load.occupy(TpcSet::range(0, 3), 1);
            let granted = load.choose(Request { tpcs, distribution, ..request(&gpu, tpcs) });
            prop_assert_eq!(granted.len(), tpcs.min(gpu.all_tpcs().len()));
        }

        #[test]
        fn conserved_uses_no_more_gpcs_than_needed(gpu in any_gpu(), tpcs in 1_u16..=96) {
            let load = SmLoad::new(&gpu);
            let granted = load.choose(request(&gpu, tpcs));
            let used = load.gpcs.iter().filter(|gpc| !gpc.is_disjoint(granted)).count();
            let mut sizes = gpu.tpcs_per_gpc.clone();
            sizes.sort_unstable_by_key(|&size| Reverse(size));
            let largest_fewer: u16 = sizes.iter().take(used - 1).sum();
            prop_assert!(largest_fewer < granted.len());
        }
    }
}
