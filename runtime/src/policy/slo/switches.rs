//! The switch budget: which of its tenant's partitions each kernel runs in, when changing between two costs time.
//!
//! Kernels are known in the order in which a request first launches them. Between two neighbours in different partitions the session hops
//! streams, as often as the less launched of the two runs; where both run more than once they are part of a repeated layer, so that the way
//! back is a hop too. This never counts too few hops of a plain chain or of a loop of two partitions, and at most twice too many elsewhere.
//!
//! The cheapest assignment is found by dynamic programming over that list (Viterbi's algorithm): for each kernel and partition the least cost
//! of the request up to there, from the same partition or, one hop dearer, from the cheapest other.

/// The launches at a boundary of two neighbours that hop there, both ways.
fn crossings(before: u32, after: u32) -> f64 {
    let there = before.min(after);
    f64::from(there) * if there > 1 { 2.0 } else { 1.0 }
}

/// For each kernel the partition, so that the sum of costs and hops is least. `costs` has a row for each kernel: what all its launches in a
/// request cost in each partition, in any unit that `hop` has too. Of equal choices the one with fewer hops counts, then the first partition.
pub(super) fn assign(launches: &[u32], costs: &[f64], hop: f64) -> Vec<usize> {
    let partitions = costs.len().checked_div(launches.len()).unwrap_or(0);
    if partitions == 0 {
        return Vec::new();
    }
    let mut best = costs[..partitions].to_vec();
    let mut came_from = vec![0; costs.len()];
    for (kernel, row) in costs.chunks_exact(partitions).enumerate().skip(1) {
        let cheapest = least(&best);
        let from_there = best[cheapest] + hop * crossings(launches[kernel - 1], launches[kernel]);
        for (partition, (best, cost)) in best.iter_mut().zip(row).enumerate() {
            let stays = *best <= from_there;
            came_from[kernel * partitions + partition] = if stays { partition } else { cheapest };
            *best = cost + if stays { *best } else { from_there };
        }
    }
    let mut at = least(&best);
    let mut assigned = vec![at; launches.len()];
    for kernel in (1..launches.len()).rev() {
        at = came_from[kernel * partitions + at];
        assigned[kernel - 1] = at;
    }
    assigned
}

/// Hops of a request whose kernels run in these partitions.
pub(super) fn hops(launches: &[u32], assigned: &[usize]) -> f64 {
    let pairs = launches.windows(2).zip(assigned.windows(2));
    pairs.filter(|(_, at)| at[0] != at[1]).map(|(launches, _)| crossings(launches[0], launches[1])).sum()
}

fn least(costs: &[f64]) -> usize {
    costs.iter().enumerate().fold(0, |least, (at, cost)| if *cost < costs[least] { at } else { least })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_part_only_where_the_gain_pays_for_the_hops() {
        // The second kernel gains 3 in the other partition; going there and back costs twice the hop.
        let costs = [5.0, 9.0, 5.0, 2.0, 5.0, 9.0];
        assert_eq!(assign(&[1, 1, 1], &costs, 1.0), [0, 1, 0]);
        assert_eq!(assign(&[1, 1, 1], &costs, 2.0), [0, 0, 0]);
    }

    #[test]
    fn a_boundary_inside_a_repeated_layer_is_crossed_there_and_back() {
        assert_eq!(hops(&[1, 24, 24, 1], &[0, 0, 1, 1]), 48.0);
        assert_eq!(hops(&[1, 24, 24, 1], &[0, 1, 1, 0]), 2.0);
    }

    fn any_request() -> impl Strategy<Value = (Vec<u32>, Vec<f64>)> {
        (1_usize..6)
            .prop_flat_map(|kernels| (prop::collection::vec(1_u32..30, kernels), prop::collection::vec(0.0_f64..100.0, kernels * 3)))
    }

    proptest! {
        #[test]
        fn no_other_assignment_is_cheaper((launches, costs) in any_request(), hop in 0.0_f64..2.0) {
            let total = |assigned: &[usize]| {
                let runs: f64 = assigned.iter().enumerate().map(|(kernel, at)| costs[kernel * 3 + at]).sum();
                runs + hop * hops(&launches, assigned)
            };
            let found = total(&assign(&launches, &costs, hop));
            for number in 0..3_usize.pow(launches.len() as u32) {
                let other: Vec<usize> = (0..launches.len()).map(|kernel| number / 3_usize.pow(kernel as u32) % 3).collect();
                prop_assert!(found <= total(&other) + 1e-9, "{found} against {} of {other:?}", total(&other));
            }
        }
    }
}
