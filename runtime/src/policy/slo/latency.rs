//! How many TPCs each latency tenant owns.
//!
//! With `T(n)` a request's predicted latency on `n` TPCs, the sum of its kernels' latencies times the slowdown beside the others, a lower [clock](super::power) included, and `Q(n)` that latency with
//! its [queueing](super::queue) at the tenant's rate, where one is known:
//! - with an SLO, the least `n` with `Q(n) <= SLO * margin`. Where the SLO is in reach and the margin is not, the least `n` with the least `Q` there is. Where the SLO
//!   itself is out of reach, best effort: the least `n` on which `Q(n)` is within 10% of the least there is, since the last SMs buy little and the SLO is missed
//!   anyway; `T(n)` instead, where more requests arrive than any size serves;
//! - without one, the `n` with the least `n * T(n)^3`, the knee chosen by cost: the SM-time `n * T` that a request takes from the others,
//!   times the square of what its user waits. (`T^2` instead would let a decoding tenant wait 30% longer for half of its SMs.) Sizes on which more requests arrive
//!   than are served count only if there are no others. Where there are throughput tenants, all tenants without an SLO together take at most half of the GPU, or
//!   an equal share each if that is more, whatever their rates.
//!
//! `T(n)` depends on no other tenant's size, since [neighbours](super::scene::Scene::neighbours) are taken to share the rest equally. So if the
//! least sizes of all SLOs fit on the GPU together, with one TPC left for each other tenant, all SLOs are met; if they do not fit, no
//! division meets them all. Then the smallest of those in reach are met, which is most of them, and those out of reach get what is left.

use crate::policy::division::{Claim, proportional};

use super::queue::with_waiting;
use super::scene::{Limit, Scene};

/// How much slower than it could be a request is planned for if its SLO is out of reach.
const BEST_EFFORT: f64 = 1.1;

/// The TPCs that each tenant owns of those that latency tenants take; 0 for throughput tenants. Tenants must be fewer than TPCs, or as many.
pub(super) fn sizes(scene: &Scene<'_>, needs: &[u16]) -> Vec<u16> {
    let latency = |at: &usize| scene.tenants[*at].is_latency();
    let members: Vec<usize> = (0..scene.tenants.len()).filter(latency).collect();
    let mut sizes = vec![0; scene.tenants.len()];
    members.iter().for_each(|&at| sizes[at] = 1);
    let mut free = scene.tpcs() - scene.count();
    let (mut objectives, wishes): (Vec<usize>, Vec<usize>) = members.iter().partition(|&&at| scene.tenants[at].limit.is_some());
    objectives.sort_by_key(|&at| (is_out_of_reach(scene, at, needs[at]), needs[at], at));
    for at in objectives {
        let more = (needs[at] - 1).min(free);
        sizes[at] += more;
        free -= more;
    }
    let only_latency = members.len() == scene.tenants.len();
    let modest = (scene.tpcs() / 2).max(scene.tpcs() / scene.count() * wishes.len() as u16) - wishes.len() as u16;
    free -= grant_wishes(&wishes, needs, if only_latency { free } else { free.min(modest) }, &mut sizes);
    if only_latency && free > 0 {
        hand_out_the_rest(scene, &mut sizes);
    }
    sizes
}

/// The TPCs that a latency tenant needs. One that nothing is known of needs an equal share.
pub(super) fn need(scene: &Scene<'_>, tenant: usize) -> u16 {
    let others = scene.count() - 1;
    let most = scene.tpcs() - others;
    let predicted = |tpcs| scene.request_us(tenant, tpcs);
    if predicted(1).is_none() {
        return (scene.tpcs() / (others + 1)).max(1);
    }
    let rate = scene.tenants[tenant].demand.rate;
    let request_us: Vec<f64> = (1..=most).map(|tpcs| predicted(tpcs).unwrap_or(f64::INFINITY)).collect();
    let mut waited_us: Vec<f64> = request_us.iter().map(|&us| with_waiting(us, rate)).collect();
    let is_served = waited_us.iter().any(|us| us.is_finite());
    if let Some(Limit { slo_us, planned_us }) = scene.tenants[tenant].limit {
        if !is_served {
            waited_us = request_us;
        }
        let best = waited_us.iter().copied().fold(f64::INFINITY, f64::min);
        let least = if is_served && best <= slo_us { best } else { best * BEST_EFFORT };
        // However loose, no objective is kept by a queue that grows without end.
        let limit = if is_served { planned_us.max(least) } else { least };
        return (1..=most).zip(waited_us).find(|&(_, us)| us <= limit).map_or(most, |(tpcs, _)| tpcs);
    }
    let sizes = (1..=most).zip(request_us).zip(waited_us).filter(|(_, waited)| !is_served || waited.is_finite());
    let costs = sizes.map(|((tpcs, us), _)| (tpcs, f64::from(tpcs) * us.powi(3)));
    costs.reduce(|best, cost| if cost.1 < best.1 { cost } else { best }).map_or(1, |(tpcs, _)| tpcs)
}

/// Whether a tenant with an SLO is predicted to miss it even on the TPCs that it needs.
fn is_out_of_reach(scene: &Scene<'_>, tenant: usize, need: u16) -> bool {
    let kept = |limit: Limit| scene.waited_us(tenant, need).is_none_or(|us| us <= limit.slo_us.max(limit.planned_us));
    !scene.tenants[tenant].limit.is_none_or(kept)
}

/// What tenants without an SLO get of `free`: what they need, or in proportion to that. Returns how many TPCs they took.
fn grant_wishes(wishes: &[usize], needs: &[u16], free: u16, sizes: &mut [u16]) -> u16 {
    let wanted: u32 = wishes.iter().map(|&at| u32::from(needs[at]) - 1).sum();
    let granted: Vec<u16> = if wanted <= u32::from(free) {
        wishes.iter().map(|&at| needs[at]).collect()
    } else {
        let claim = |&at: &usize| Some(Claim { weight: needs[at].into(), enough: needs[at] });
        proportional(free + wishes.len() as u16, &wishes.iter().map(claim).collect::<Vec<_>>())
    };
    for (&at, &tpcs) in wishes.iter().zip(&granted) {
        sizes[at] = tpcs;
    }
    granted.iter().map(|tpcs| tpcs - 1).sum()
}

/// Where nobody else could use them, TPCs that nobody needs go to all in proportion, but to nobody who would miss its SLO for it, or miss it by more. What one
/// refuses is the others', until nobody refuses.
fn hand_out_the_rest(scene: &Scene<'_>, sizes: &mut [u16]) {
    let refuses = |at: usize, size: u16, grown: u16| {
        let within = |limit: f64| scene.waited_us(at, grown).is_none_or(|us| us <= limit.max(scene.waited_us(at, size).unwrap_or(0.0)));
        grown > size && scene.tenants[at].limit.is_some_and(|limit| !within(limit.planned_us))
    };
    let mut takers: Vec<usize> = (0..sizes.len()).collect();
    let mut tpcs = scene.tpcs();
    loop {
        let claims: Vec<_> = takers.iter().map(|&at| Some(Claim { weight: sizes[at].into(), enough: u16::MAX })).collect();
        let grown = proportional(tpcs, &claims);
        let (refused, taken): (Vec<_>, Vec<_>) = takers.iter().copied().zip(grown).partition(|&(at, grown)| refuses(at, sizes[at], grown));
        if refused.is_empty() {
            taken.into_iter().for_each(|(at, grown)| sizes[at] = grown);
            return;
        }
        tpcs -= refused.iter().map(|&(at, _)| sizes[at]).sum::<u16>();
        takers = taken.into_iter().map(|(at, _)| at).collect();
    }
}
