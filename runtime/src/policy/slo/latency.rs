//! How many TPCs each latency tenant owns.
//!
//! With `T(n)` a request's predicted latency on `n` TPCs, the sum of its kernels' latencies times the slowdown beside the others:
//! - with an SLO, the least `n` with `Q(T(n)) <= SLO * margin`, `Q` being [queueing](super::queue) at the tenant's rate; where there is none, best effort: the least `n` on which `T(n)` is within 10% of the
//!   least there is, since the last SMs buy little and the SLO is missed anyway;
//! - without one, the `n` with the least `n * T(n)^3`, the knee chosen by cost: the SM-time `n * T` that a request takes from the others,
//!   times the square of what its user waits. (`T^2` instead would let a decoding tenant wait 30% longer for half of its SMs.) Where there are
//!   throughput tenants, all tenants without an SLO together take at most half of the GPU, or an equal share each if that is more.
//!
//! `T(n)` depends on no other tenant's size, since [neighbours](super::scene::Scene::neighbours) are taken to share the rest equally. So if the
//! least sizes of all SLOs fit on the GPU together, with one TPC left for each other tenant, all SLOs are met; if they do not fit, no
//! division meets them all. Then the smallest are met, which is most of them.

use crate::policy::division::{Claim, proportional};

use super::queue::with_waiting;
use super::scene::Scene;

/// How much slower than it could be a request is planned for if its SLO is out of reach.
const BEST_EFFORT: f64 = 1.1;

/// The TPCs that each tenant owns of those that latency tenants take; 0 for throughput tenants. Tenants must be fewer than TPCs, or as many.
pub(super) fn sizes(scene: &Scene<'_>, needs: &[u16]) -> Vec<u16> {
    let latency = |at: &usize| scene.tenants[*at].is_latency();
    let members: Vec<usize> = (0..scene.tenants.len()).filter(latency).collect();
    let mut sizes = vec![0; scene.tenants.len()];
    members.iter().for_each(|&at| sizes[at] = 1);
    let mut free = scene.tpcs() - scene.count();
    let (mut objectives, wishes): (Vec<usize>, Vec<usize>) = members.iter().partition(|&&at| scene.tenants[at].limit_us.is_some());
    objectives.sort_by_key(|&at| (needs[at], at));
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
    let request_us: Vec<f64> = (1..=most).map(|tpcs| predicted(tpcs).unwrap_or(f64::INFINITY)).collect();
    let rate = scene.tenants[tenant].demand.rate;
    let least_within =
        |limit: f64, rate| (1..=most).zip(&request_us).find(|(_, us)| with_waiting(**us, rate) <= limit).map(|(tpcs, _)| tpcs);
    if let Some(limit) = scene.tenants[tenant].limit_us {
        let best = request_us.iter().copied().fold(f64::INFINITY, f64::min);
        return least_within(limit, rate).or_else(|| least_within(best * BEST_EFFORT, None)).unwrap_or(most);
    }
    let cost = |(tpcs, us): (u16, &f64)| (tpcs, f64::from(tpcs) * us.powi(3));
    let costs = (1..=most).zip(&request_us).map(cost);
    costs.reduce(|best, cost| if cost.1 < best.1 { cost } else { best }).map_or(1, |(tpcs, _)| tpcs)
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

/// Where nobody else could use them, TPCs that nobody needs go to all in proportion, but to nobody who would miss its SLO for it.
fn hand_out_the_rest(scene: &Scene<'_>, sizes: &mut [u16]) {
    let claims: Vec<_> = sizes.iter().map(|&size| Some(Claim { weight: size.into(), enough: u16::MAX })).collect();
    for (at, grown) in proportional(scene.tpcs(), &claims).into_iter().enumerate() {
        let rate = scene.tenants[at].demand.rate;
        let within = |limit| scene.request_us(at, grown).is_none_or(|us| with_waiting(us, rate) <= limit);
        if grown > sizes[at] && scene.tenants[at].limit_us.is_none_or(within) {
            sizes[at] = grown;
        }
    }
}
