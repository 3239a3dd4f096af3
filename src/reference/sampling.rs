//! Drawing a token from logits, as defined by [`Sampling`].

use crate::generate::Sampling;

/// The token that `sampling` draws from `logits` with the random number `uniform` in `[0, 1)`; see [`Sampling`] for the algorithm. Sums are
/// f64. A NaN counts as the smallest logit.
pub fn sample(logits: &[f32], sampling: &Sampling, uniform: f32) -> u32 {
    let value = |id: u32| Some(logits[id as usize]).filter(|logit| !logit.is_nan()).unwrap_or(f32::NEG_INFINITY);
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let descending = |a: &u32, b: &u32| value(*b).total_cmp(&value(*a)).then(a.cmp(b));
    if sampling.temperature == 0.0 {
        return ids.into_iter().min_by(descending).unwrap_or(0);
    }
    let kept = sampling.top_k.map_or(ids.len(), |k| k.get().min(ids.len()));
    if kept < ids.len() {
        ids.select_nth_unstable_by(kept, descending);
        ids.truncate(kept);
    }
    ids.sort_unstable_by(descending);
    let Some(&first) = ids.first() else { return 0 };
    let temperature = f64::from(sampling.temperature);
    let largest = f64::from(value(first));
    let mut weights: Vec<f64> = ids.iter().map(|&id| ((f64::from(value(id)) - largest) / temperature).exp()).collect();
    if sampling.top_p < 1.0 {
        let enough = f64::from(sampling.top_p) * weights.iter().sum::<f64>();
        weights.truncate(prefix_reaching(&weights, |sum| sum >= enough) + 1);
    }
    let drawn = f64::from(uniform) * weights.iter().sum::<f64>();
    ids[prefix_reaching(&weights, |sum| sum > drawn)]
}

/// The first index at which the running sum of `weights` satisfies `reached`, or the last index.
fn prefix_reaching(weights: &[f64], reached: impl Fn(f64) -> bool) -> usize {
    let sums = weights.iter().scan(0.0, |sum, weight| {
        *sum += weight;
        Some(*sum)
    });
    sums.into_iter().position(reached).unwrap_or(weights.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    /// Probabilities 0.1, 0.4, 0.4, 0.1 at temperature 1.
    fn logits() -> [f32; 4] {
        [0.1_f32.ln(), 0.4_f32.ln(), 0.4_f32.ln(), 0.1_f32.ln()]
    }

    fn drawn(sampling: Sampling) -> Vec<u32> {
        [0.0, 0.39, 0.41, 0.79, 0.81, 0.89, 0.91, 0.999].map(|uniform| sample(&logits(), &sampling, uniform)).to_vec()
    }

    #[test]
    fn temperature_zero_takes_the_largest_logit_and_the_lower_id_of_equals() {
        assert_eq!(sample(&logits(), &Sampling::GREEDY, 0.999), 1);
        assert_eq!(sample(&[f32::NAN, -2.0], &Sampling::GREEDY, 0.0), 1);
    }

    #[test]
    fn the_uniform_number_walks_the_probabilities_in_descending_order() {
        assert_eq!(drawn(Sampling { temperature: 1.0, ..Sampling::GREEDY }), [1, 1, 2, 2, 0, 0, 3, 3]);
    }

    #[test]
    fn top_k_keeps_the_k_most_probable_and_shares_the_rest_out() {
        let sampling = Sampling { temperature: 1.0, top_k: NonZeroUsize::new(2), top_p: 1.0 };
        assert_eq!(drawn(sampling), [1, 1, 1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_p_after_top_k() {
        assert_eq!(drawn(Sampling { temperature: 1.0, top_k: None, top_p: 0.3 }), [1; 8]);
        // Of the two that top-k keeps, the first has half of the probability: less than 0.6.
        let sampling = Sampling { temperature: 1.0, top_k: NonZeroUsize::new(2), top_p: 0.6 };
        assert_eq!(drawn(sampling), [1, 1, 1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn a_high_temperature_flattens_the_distribution() {
        let mut counts = [0; 4];
        for step in 0..1000 {
            let id = sample(&logits(), &Sampling { temperature: 1e4, ..Sampling::GREEDY }, step as f32 / 1000.0);
            counts[id as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (249..=251).contains(&count)), "{counts:?}");
    }
}
