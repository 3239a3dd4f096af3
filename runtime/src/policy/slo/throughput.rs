//! How throughput tenants divide the TPCs that latency tenants leave, and whether their sets overlap.
//!
//! **Division.** The parts maximise the product of the tenants' throughputs, which is the sum of `-ln T(n)`. The sum of normalised
//! throughputs would give all to one of two tenants that scale alike, for a difference within the noise; the minimum would give
//! most to the one that scales worst. The product moves a TPC only where one gains more in percent than the other loses, so nobody starves,
//! and equals get equal parts, except where a step of their curve makes the whole better otherwise. `ln n / 50` is added: measured curves
//! carry noise of about 2%, and where they are flat the even division is taken. The best division is found exactly, by dynamic programming over tenants and TPCs, since curves have steps.
//!
//! **Bandwidth budget.** If the tenants so sized ask for more bytes than the DRAM reads, a price on bytes is added, `- price * traffic / B`, and
//! raised until they fit: TPCs go from tenants that wait for the DRAM to those that compute. Of both divisions that with the better
//! predicted product stands.
//!
//! **Power budget.** If the tenants so sized draw more than the board may, the clock falls for all ([`power`](super::power)), and a price on what each draws is tried, `- price * W_t / W`: TPCs
//! go from tenants that take many joules for a result to those that take few. The price that fits is known to first order; if it helps twice of it is tried too, and half of it if not. Of all divisions that with the best
//! product stands, as it is predicted at the clock that each of them leaves. All TPCs are given out whatever the price: work on more SMs at a lower clock takes less energy.
//!
//! **Overlap.** Instead of the parts `S_t` alone, tenants may use wider windows around them, the same number of times wider for all. A request
//! of `t` on its window of `s` SMs takes
//!
//! ```text
//! R_t = L_t(s) + w_t / s * sum over others o of |S_o and S_t| / |S_t|        w_t = (u_t + s * L_t(s)) / 2
//! ```
//!
//! In the worst case each of the others is met once with all of a request's SM-time, as in the pessimistic bound for closed queueing networks
//! (Lazowska et al., Quantitative System Performance, 1984, chapter 5). How much SM-time a request holds is between `u_t`, the least of any
//! size, and all of `s * L_t(s)`, since blocks of several kernels share an SM in part; `w_t` is the mean. Held against four PyTorch BERT-base
//! encoders on one H200, from their curve alone: the whole GPU for all 1694 requests/s predicted, 1840 measured as streams of one process
//! and 1580 under MPS; windows of 96 SMs 1783 and 1892; disjoint quarters 2150, and 1720 as green contexts, 1968 as MPS quarters.
//! With that error, overlapping must be predicted to be 5% better. Tenants that are idle or unknown keep their part alone, outside everybody's window.

use crate::partition::TpcSet;
use crate::policy::division::equal;

use super::contention::Pressure;
use super::power::{Draw, times};
use super::request::Request;
use super::scene::Scene;

/// What an SM more is worth where curves are flat, in units of relative throughput.
const EVENNESS: f64 = 0.02;
/// How much better overlapping sets must be predicted to be.
const OVERLAP_GAIN: f64 = 1.05;
/// How many times wider than the parts the windows are that are tried; the last stands for everything.
const WIDTHS: [u16; 4] = [2, 3, 4, u16::MAX];
/// Prices at which nobody would take a TPC for its bandwidth, and how finely the price is searched.
const HIGHEST_PRICE: f64 = 8.0;
const PRICE_STEPS: u32 = 6;

/// The part of each of `members` of `tpcs` TPCs; `others` are the sizes of all tenants, 0 for members. At least 1 each: members must be fewer
/// than TPCs, or as many.
pub(super) fn sizes(scene: &Scene<'_>, members: &[usize], others: &[u16], tpcs: u16) -> Vec<u16> {
    let (active, idle) = active_and_idle(scene, members);
    let mut sizes = others.to_vec();
    idle.iter().for_each(|&at| sizes[at] = 1);
    let rest = tpcs - idle.len() as u16;
    let (known, unknown): (Vec<usize>, Vec<usize>) = active.iter().partition(|&&at| scene.tenants[at].request.is_some());
    if known.is_empty() {
        unknown.iter().zip(equal(rest, unknown.len())).for_each(|(&at, size)| sizes[at] = size);
    } else {
        let share = rest / active.len() as u16;
        unknown.iter().for_each(|&at| sizes[at] = share);
        divide_known(scene, &known, &mut sizes, rest - share * unknown.len() as u16);
    }
    members.iter().map(|&at| sizes[at]).collect()
}

/// Where nobody has work, all count as active: there is nobody to get what they would give up.
fn active_and_idle(scene: &Scene<'_>, members: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let everybody_idle = members.iter().all(|&at| scene.tenants[at].idle);
    members.iter().partition(|&&at| everybody_idle || !scene.tenants[at].idle)
}

/// Fills in the sizes of `members`, of all of which something is known.
fn divide_known(scene: &Scene<'_>, members: &[usize], sizes: &mut [u16], tpcs: u16) {
    let most = tpcs + 1 - members.len() as u16;
    let worth: Vec<Vec<f64>> = members.iter().map(|&at| worth(scene, at, most)).collect();
    let traffic = |at: usize, tpcs: u16| scene.pressure(at, tpcs).traffic / scene.contention.read;
    let budget = 1.0 - (0..sizes.len()).filter(|&at| sizes[at] > 0).map(|at| traffic(at, sizes[at])).sum::<f64>();
    let asked = |parts: &[u16]| members.iter().zip(parts).map(|(&at, &part)| traffic(at, part)).sum::<f64>();
    let at_price = |cost: &dyn Fn(usize, u16) -> f64| {
        let priced =
            members.iter().zip(&worth).map(|(&at, worth)| worth.iter().zip(1..).map(|(worth, tpcs)| worth - cost(at, tpcs)).collect());
        best_division(&priced.collect::<Vec<Vec<f64>>>(), tpcs)
    };
    let with = |parts: &[u16]| {
        let mut with = sizes.to_vec();
        members.iter().zip(parts).for_each(|(&at, &part)| with[at] = part);
        with
    };
    let free = best_division(&worth, tpcs);
    let mut best = with(&free);
    let mut price_of_bytes = 0.0;
    if !scene.contention.is_ignored() && asked(&free) > budget {
        let (mut low, mut high) = (0.0, HIGHEST_PRICE);
        for _ in 0..PRICE_STEPS {
            let price = f64::midpoint(low, high);
            if asked(&at_price(&|at, tpcs| price * traffic(at, tpcs))) <= budget { high = price } else { low = price }
        }
        let priced = with(&at_price(&|at, tpcs| high * traffic(at, tpcs)));
        if log_latency(scene, members, &priced) < log_latency(scene, members, &best) {
            (best, price_of_bytes) = (priced, high);
        }
    }
    if let Some((price, watts)) = price_of_joules(scene, members, &best) {
        let drawn = |at: usize, tpcs: u16| {
            let load = scene.tenants[at].request.as_ref().map(|request| request.load(tpcs));
            load.map_or(0.0, |load| scene.draw(at, load, load.us).watts / watts)
        };
        let mut least = log_latency(scene, members, &best);
        let mut is_better = |times: f64| {
            let priced = with(&at_price(&|at, tpcs| price_of_bytes * traffic(at, tpcs) + times * price * drawn(at, tpcs)));
            let cost = log_latency(scene, members, &priced);
            let is_better = cost < least;
            if is_better {
                (least, best) = (cost, priced);
            }
            is_better
        };
        // Twice the price where that was worth it, and half of it where it was not: each costs a search.
        let other = if is_better(1.0) { 2.0 } else { 0.5 };
        is_better(other);
    }
    sizes.copy_from_slice(&best);
}

/// What joules are worth to `members` once tenants of these sizes draw more than they may, and what they draw; none while they do not.
fn price_of_joules(scene: &Scene<'_>, members: &[usize], sizes: &[u16]) -> Option<(f64, f64)> {
    let power = scene.power?;
    let draw: Draw = beside_each_other(scene, sizes).filter_map(|(at, us)| Some(scene.draw(at, scene.load(at, sizes[at])?, us))).sum();
    let memories = members.iter().filter_map(|&at| Some(scene.load(at, sizes[at])?.memory()));
    let price = power.price(draw, memories);
    (price > 0.0).then_some((price, draw.watts))
}

/// What each size from 1 to `most` TPCs is worth to a tenant. More is never worth less: kernels need not use all they get.
fn worth(scene: &Scene<'_>, tenant: usize, most: u16) -> Vec<f64> {
    let mut best = f64::NEG_INFINITY;
    let value = |tpcs: u16| {
        best = best.max(-scene.request_us(tenant, tpcs).unwrap_or(f64::MAX).ln());
        best + EVENNESS * f64::from(tpcs).ln()
    };
    (1..=most).map(value).collect()
}

/// The sum of the logarithms of all members' predicted latencies with these sizes, each beside the others as they are, at the clock that they leave.
fn log_latency(scene: &Scene<'_>, members: &[usize], sizes: &[u16]) -> f64 {
    let clock = if scene.power.is_some() {
        scene.clock(beside_each_other(scene, sizes).filter_map(|(at, us)| Some(scene.draw(at, scene.load(at, sizes[at])?, us))))
    } else {
        1.0
    };
    let timed = beside_each_other(scene, sizes).filter(|(at, _)| members.contains(at));
    timed.filter_map(|(at, us)| Some(us * times(scene.load(at, sizes[at])?, clock))).map(f64::ln).sum()
}

/// What a request of each known tenant takes with these sizes at the full clock, each beside the others as they are, microseconds.
fn beside_each_other<'a>(scene: &'a Scene<'_>, sizes: &'a [u16]) -> impl Iterator<Item = (usize, f64)> + 'a {
    let all: Pressure = (0..sizes.len()).map(|at| scene.pressure(at, sizes[at])).sum();
    let us = move |at: usize| {
        let load = scene.load(at, sizes[at])?;
        Some((at, load.us * scene.contention.slowdown(load, all.without(scene.pressure(at, sizes[at])))))
    };
    (0..sizes.len()).filter_map(us)
}

/// The sizes, at least 1 each and all of `tpcs` together, with the most worth in sum; of equal ones those with less for later tenants.
/// `worth` has, for each tenant, what 1, 2, ... TPCs are worth.
fn best_division(worth: &[Vec<f64>], tpcs: u16) -> Vec<u16> {
    let tpcs = usize::from(tpcs);
    let mut best = vec![f64::NEG_INFINITY; tpcs + 1];
    best[0] = 0.0;
    let mut chosen = Vec::with_capacity(worth.len());
    for (earlier, (later, worth)) in (0..worth.len()).rev().zip(worth).enumerate() {
        let mut next = vec![f64::NEG_INFINITY; tpcs + 1];
        let mut part = vec![1_u64; tpcs + 1];
        // One TPC at least for each of the others, and for the last one all that are left.
        let (fewest, most) = (if later == 0 { tpcs } else { earlier + 1 }, tpcs.saturating_sub(later));
        for (size, worth) in (1..).zip(worth) {
            let from = fewest.max(earlier + size);
            if from > most {
                break;
            }
            // Without a branch, so that several are done at once.
            let sums = best[from - size..=most - size].iter().map(|best| best + worth);
            for ((next, part), sum) in next[from..=most].iter_mut().zip(&mut part[from..=most]).zip(sums) {
                let is_better = sum > *next;
                *next = if is_better { sum } else { *next };
                *part = if is_better { size as u64 } else { *part };
            }
        }
        best = next;
        chosen.push(part);
    }
    let mut left = tpcs;
    let mut sizes: Vec<u16> = chosen
        .iter()
        .rev()
        .map(|part| {
            let size = part[left] as u16;
            left = left.saturating_sub(size.into());
            size
        })
        .collect();
    sizes.reverse();
    sizes
}

/// What each member may use besides what is lent: its own part, or a wider window where that is predicted to be better for all that overlap together.
/// `parts` are the members' parts, one after the other, and `sizes` those of all tenants.
pub(super) fn windows(scene: &Scene<'_>, members: &[usize], parts: &[TpcSet], sizes: &[u16]) -> Vec<TpcSet> {
    let (active, _) = active_and_idle(scene, members);
    let may_overlap = |at: &usize| active.contains(at) && scene.tenants[*at].request.is_some();
    let numbers: Vec<usize> = (0..members.len()).filter(|&number| may_overlap(&members[number])).collect();
    let (overlapping, kept): (Vec<usize>, Vec<TpcSet>) = numbers.iter().map(|&number| (members[number], parts[number])).unzip();
    let mut windows = parts.to_vec();
    let others = (0..sizes.len()).filter(|at| scene.power.is_some() && !members.contains(at)).filter_map(|at| {
        let load = scene.load(at, sizes[at])?;
        Some(scene.draw(at, load, load.us * scene.contention.slowdown(load, scene.neighbours(at, sizes[at]).pressure)))
    });
    numbers.into_iter().zip(best_windows(scene, &overlapping, kept, others.sum())).for_each(|(number, window)| windows[number] = window);
    windows
}

/// The windows of `members`, all active and known, whose parts are `disjoint`, beside what `others` draw.
fn best_windows(scene: &Scene<'_>, members: &[usize], disjoint: Vec<TpcSet>, others: Draw) -> Vec<TpcSet> {
    if members.len() < 2 {
        return disjoint;
    }
    let ring: Vec<u16> = disjoint.iter().flat_map(|part| part.iter()).collect();
    let cost = |windows: &[TpcSet]| log_contended(scene, members, &disjoint, windows, others);
    let mut best = (cost(&disjoint) - OVERLAP_GAIN.ln() * members.len() as f64, None);
    for width in WIDTHS {
        let mut start = 0;
        let window = |part: &TpcSet| {
            let tpcs = ring.iter().cycle().skip(start).take(usize::from(part.len().saturating_mul(width)).min(ring.len()));
            start += usize::from(part.len());
            tpcs.copied().collect()
        };
        let windows: Vec<TpcSet> = disjoint.iter().map(window).collect();
        let cost = cost(&windows);
        if cost < best.0 {
            best = (cost, Some(windows));
        }
    }
    best.1.unwrap_or(disjoint)
}

/// The sum of the logarithms of `R_t`, each beside the others as if they were on disjoint SMs, at the clock that they and the others leave.
fn log_contended(scene: &Scene<'_>, members: &[usize], parts: &[TpcSet], windows: &[TpcSet], others: Draw) -> f64 {
    let contended = |(number, &at): (usize, &usize)| {
        let request = scene.tenants[at].request.as_ref()?;
        let load = request.load(windows[number].len());
        let slowdown = scene.contention.slowdown(load, scene.neighbours(at, parts[number].len()).pressure);
        Some((at, load, load.us * overlap(scene, request, number, windows) * slowdown))
    };
    let contended: Vec<_> = members.iter().enumerate().filter_map(contended).collect();
    let clock = scene.clock(contended.iter().map(|&(at, load, us)| scene.draw(at, load, us)).chain([others]));
    contended.into_iter().map(|(_, load, us)| (us * times(load, clock)).ln()).sum()
}

/// How many times longer than alone on its window the request of the tenant with that `number` takes while the others use theirs: 1 where none overlap.
pub(super) fn overlap(scene: &Scene<'_>, request: &Request<'_>, number: usize, windows: &[TpcSet]) -> f64 {
    let window = windows[number];
    let us = request.load(window.len()).us;
    let others = windows.iter().enumerate().filter(|(other, _)| *other != number);
    let met: f64 = others.map(|(_, other)| f64::from((*other & window).len()) / f64::from(window.len())).sum();
    let held = 0.5 * (request.least_sm_us() / scene.sms(window.len()) + us);
    1.0 + held * met / us
}

/// How many windows of others the one with that `number` takes up, in sum: each counts by the part of it that overlaps.
pub(super) fn rivals(number: usize, windows: &[TpcSet]) -> f64 {
    let others = windows.iter().enumerate().filter(|(other, _)| *other != number);
    others.map(|(_, other)| f64::from((*other & windows[number]).len()) / f64::from(other.len())).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_other_division_is_worth_more(worth in prop::collection::vec(prop::collection::vec(0.0_f64..9.0, 8), 3), tpcs in 3_u16..=8) {
            let total = |sizes: &[u16]| sizes.iter().zip(&worth).map(|(&size, worth)| worth[usize::from(size) - 1]).sum::<f64>();
            let found = best_division(&worth, tpcs);
            prop_assert_eq!(found.iter().sum::<u16>(), tpcs);
            for first in 1..tpcs - 1 {
                for second in 1..tpcs - first {
                    prop_assert!(total(&found) >= total(&[first, second, tpcs - first - second]) - 1e-9);
                }
            }
        }
    }
}
