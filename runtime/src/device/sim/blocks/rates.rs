//! How fast each kernel's work gets done on the SMs that its blocks are on.
//!
//! Work is a fluid: a kernel runs at the rate of its latency on the SMs that it has, and [`contention`](super::super::contention) slows it from
//! there. An SM that it shares counts in part, by what the kernels there ask of it together: two that would each keep the tensor cores busy get
//! half of an SM each, one that computes and one that waits for memory leave each other alone. Where blocks are placed late, the kernel ends no
//! earlier than the tiles that they take.

use super::super::config::SimConfig;
use super::super::contention::{Demand, SmLoad, contend};
use super::super::cost::CostModel;
use super::super::sm_set::{MAX_SMS, SmSet};
use super::Blocks;

impl Blocks {
    /// Sets the rate and the end of every running launch.
    pub(super) fn refresh(&mut self, costs: &CostModel, config: &SimConfig, now: u64) {
        let (mut active, mut demands) = (std::mem::take(&mut self.active), std::mem::take(&mut self.demands));
        active.clear();
        demands.clear();
        let gpu_sms = self.sms as f64;
        for &id in &self.running {
            let Some(kernel) = self.kernel(id).filter(|kernel| self.turn == Some(kernel.space) && kernel.resident > 0) else { continue };
            let occupied = self.occupied(id);
            let alone = self.effective_sms(id, f64::from(occupied.len()));
            active.push((id, occupied));
            demands.push(Demand::new(&kernel.spec.cost, alone, costs, gpu_sms));
        }
        self.share_sms(&active, &mut demands, costs);
        contend(&mut demands, costs, config);
        for &id in &self.running {
            if let Some(kernel) = self.kernels[id].as_mut() {
                (kernel.rate, kernel.ends_at, kernel.tail_at) = (0.0, u64::MAX, u64::MAX);
            }
        }
        for (&(id, _), demand) in active.iter().zip(&demands) {
            if let Some(kernel) = self.kernel_mut(id) {
                kernel.rate = demand.rate();
                kernel.expect_tail();
                kernel.ends_at = kernel.as_of.max(now).saturating_add((kernel.left / kernel.rate).ceil() as u64);
            }
        }
        (self.active, self.demands) = (active, demands);
    }

    /// Takes from each kernel the parts of SMs that it loses to others on the same SMs.
    fn share_sms(&self, active: &[(usize, SmSet)], demands: &mut [Demand], costs: &CostModel) {
        let (mut once, mut shared) = (SmSet::EMPTY, SmSet::EMPTY);
        for (_, occupied) in active {
            shared = shared.union(once.intersection(*occupied));
            once = once.union(*occupied);
        }
        if shared == SmSet::EMPTY {
            return;
        }
        let mut load = [SmLoad::default(); MAX_SMS];
        for ((_, occupied), demand) in active.iter().zip(&*demands) {
            let own = demand.load_on_each(occupied.len(), costs);
            occupied.intersection(shared).iter().for_each(|sm| load[sm] += own);
        }
        for ((id, occupied), demand) in active.iter().zip(demands) {
            let crowded = occupied.intersection(shared);
            if let (true, Some(kernel)) = (crowded != SmSet::EMPTY, self.kernel(*id)) {
                let own = demand.load_on_each(occupied.len(), costs);
                let whole = f64::from(occupied.without(shared).len());
                let had = whole + crowded.iter().map(|sm| own.share_of(load[sm])).sum::<f64>();
                *demand = Demand::new(&kernel.spec.cost, self.effective_sms(*id, had), costs, self.sms as f64);
            }
        }
    }

    /// The SMs that a launch and its joiners have blocks on.
    fn occupied(&self, id: usize) -> SmSet {
        let mut occupied = SmSet::EMPTY;
        for member in self.members(id) {
            for (sm, &count) in member.counts[..self.sms].iter().enumerate() {
                if count > 0 {
                    occupied.insert(sm);
                }
            }
        }
        occupied
    }

    /// The SM count at which the curve of a kernel is read that has blocks on `had` SMs, shared ones counted in part.
    ///
    /// A kernel whose blocks are all placed as if alone takes the count that it was launched for: what its grid fills, or, if its grid is as
    /// large as its work, every SM within its reach. Otherwise it takes what it has, and no more than in proportion to the blocks it has: a block
    /// that waits for others' to leave works on no SM.
    fn effective_sms(&self, id: usize, had: f64) -> f64 {
        let (mut reach, mut filled, mut fills, mut all_placed, mut grid, mut tiles) = (SmSet::EMPTY, 0.0, 0.0, true, 0, 1);
        for member in self.members(id) {
            let blocks_per_sm = f64::from(member.spec.blocks_per_sm);
            reach = reach.union(member.reach());
            filled += f64::from(member.resident) / blocks_per_sm;
            fills += f64::from(member.spec.grid) / blocks_per_sm;
            all_placed &= member.pending() == 0;
            grid += member.spec.grid;
            tiles = tiles.max(member.spec.tiles);
        }
        // The curve counts the idle SMs of the last wave in: what is left runs it at the rate of them all.
        let before = self.kernel(id).and_then(|kernel| kernel.tail).unwrap_or(1.0);
        let (had, filled) = (had * before, filled * before);
        let within_reach = f64::from(reach.len().max(1));
        let nominal = if grid < tiles {
            filled.min(within_reach)
        } else if all_placed {
            within_reach
        } else {
            within_reach * (filled / fills.min(within_reach)).min(1.0)
        };
        if had + 1e-9 >= f64::from(grid).min(within_reach) { nominal } else { nominal.min(had) }
    }
}
