//! The random numbers behind arrivals, draws of tokens and weights of presets: equal seeds give equal runs, on every machine.
//!
//! Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014: SplitMix64.

/// What the state grows by with each output.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator; its state is the seed at first.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    /// The next output.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mixed(self.0)
    }
}

/// Output `number`, from 0, of a generator with `seed`.
pub(crate) fn output(seed: u64, number: u64) -> u64 {
    mixed(seed.wrapping_add(STEP.wrapping_mul(number.wrapping_add(1))))
}

/// A state's output: its bits, mixed so that each depends on all of them.
pub(crate) fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the paper's reference implementation, seed 1234567.
    #[test]
    fn outputs_are_those_of_the_published_generator() {
        let mut generator = SplitMix64(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| generator.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        assert_eq!(first, [0, 1, 2].map(|number| output(1_234_567, number)));
    }
}
