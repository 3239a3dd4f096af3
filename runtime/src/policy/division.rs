//! How tenants that are kept apart divide the GPU: sizes from their claims, TPC sets from sizes.
//!
//! Whole numbers throughout, so that the same claims give the same sizes everywhere.

use crate::device::Topology;
use crate::partition::TpcSet;

/// What a tenant claims of the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// Sizes are in proportion to weights, in any unit common to all claims. 0 counts as 1.
    pub(super) weight: u64,
    /// TPCs beyond this many go to others first.
    pub(super) enough: u16,
}

/// Sizes that differ by one TPC at most, the larger ones first. At least 1 each, even where that is more than there are.
pub(super) fn equal(tpcs: u16, tenants: usize) -> Vec<u16> {
    let larger = usize::from(tpcs).checked_rem(tenants).unwrap_or(0);
    (0..tenants).map(|at| equal_share(tpcs, tenants) + u16::from(at < larger && usize::from(tpcs) >= tenants)).collect()
}

/// The whole TPCs that everybody can have, at least 1. Below `tpcs`, so the cast is exact.
fn equal_share(tpcs: u16, tenants: usize) -> u16 {
    usize::from(tpcs).checked_div(tenants).unwrap_or(0).max(1) as u16
}

/// One size for each claim: together all of `tpcs`, at least 1 each, even where that is more than there are.
///
/// `None` claims an equal share, rounded down. The rest is divided by highest averages (d'Hondt): one TPC after the other to the claim
/// with the most weight for each TPC that it would then hold. If weights are TPCs and the claims fit, each gets its weight at least.
pub(super) fn proportional(tpcs: u16, claims: &[Option<Claim>]) -> Vec<u16> {
    if claims.iter().all(Option::is_none) || claims.len() >= tpcs.into() {
        return equal(tpcs, claims.len());
    }
    let unknown = equal_share(tpcs, claims.len());
    let mut sizes: Vec<u16> = claims.iter().map(|claim| if claim.is_some() { 1 } else { unknown }).collect();
    for _ in sizes.iter().sum::<u16>()..tpcs {
        if let Some(next) = next_to_grow(claims, &sizes) {
            sizes[next] += 1;
        }
    }
    sizes
}

/// The claim that gets the next TPC; of equal ones the first.
fn next_to_grow(claims: &[Option<Claim>], sizes: &[u16]) -> Option<usize> {
    let mut best: Option<(usize, Claim)> = None;
    for (at, claim) in claims.iter().enumerate() {
        let Some(claim) = *claim else { continue };
        let goes_before = best.is_none_or(|(other, held)| {
            let (wanting, other_wanting) = (sizes[at] < claim.enough, sizes[other] < held.enough);
            // weight / (size + 1), compared without dividing.
            let average = u128::from(claim.weight.max(1)) * (u128::from(sizes[other]) + 1);
            let other_average = u128::from(held.weight.max(1)) * (u128::from(sizes[at]) + 1);
            (wanting, average) > (other_wanting, other_average)
        });
        if goes_before {
            best = Some((at, claim));
        }
    }
    best.map(|(at, _)| at)
}

/// Runs of TPCs of these sizes, one after the other. Past the last TPC they begin again at the first, so that tenants who outnumber
/// the TPCs share them in turn.
pub(super) fn contiguous(topology: &Topology, sizes: &[u16]) -> Vec<TpcSet> {
    let tpcs = topology.all_tpcs().len();
    let mut next = 0;
    sizes
        .iter()
        .map(|&size| {
            let start = u16::checked_rem(next, tpcs).unwrap_or(0);
            next = start + size;
            TpcSet::range(start, next) & topology.all_tpcs()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn claim(weight: u64, enough: u16) -> Option<Claim> {
        Some(Claim { weight, enough })
    }

    #[test]
    fn sizes_follow_weights_and_nobody_gets_none() {
        assert_eq!(proportional(60, &[claim(1, 99), claim(2, 99), claim(3, 99)]), [10, 20, 30]);
        assert_eq!(proportional(10, &[claim(0, 99), claim(1_000_000, 99)]), [1, 9]);
    }

    #[test]
    fn who_has_enough_leaves_the_rest_to_the_others_until_all_have() {
        assert_eq!(proportional(20, &[claim(1, 4), claim(1, 99)]), [4, 16]);
        assert_eq!(proportional(20, &[claim(1, 4), claim(3, 8)]), [5, 15]);
    }

    #[test]
    fn an_unknown_claim_is_an_equal_share() {
        assert_eq!(proportional(66, &[None, claim(1, 99), claim(3, 99)]), [22, 11, 33]);
        assert_eq!(proportional(66, &[None, None, None, None]), [17, 17, 16, 16]);
    }

    #[test]
    fn more_tenants_than_tpcs_get_one_each() {
        assert_eq!(proportional(2, &[claim(9, 9), None, claim(1, 1)]), [1, 1, 1]);
        assert_eq!(equal(2, 3), [1, 1, 1]);
        assert_eq!(equal(5, 0), [0_u16; 0]);
    }
}
