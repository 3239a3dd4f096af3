//! Weights for machines without weights: random numbers that any device can make by itself, bit for bit the same.

use crate::config::ModelConfig;
use crate::splitmix;

use super::WeightsError;
use super::names::{self, Parameter, Role};

/// Standard deviation of the weights: what the models' own `initializer_range` was.
const STANDARD_DEVIATION: f32 = 0.02;

/// Seeded random weights. Norm scales are 1 and biases 0; element `i` of weight number `p` (its index in [`names::parameters`]) is uniform
/// with standard deviation 0.02, a pure function of `(seed, p, i)`:
///
/// ```text
/// key   = mix(seed + 0x9e3779b97f4a7c15 * (p + 1))                      wrapping, 64 bits
/// bits  = mix(key + i) >> 40                                            the top 24 bits
/// value = (bits as f32 * 2^-23 - 1) * (0.02 * sqrt 3)                   exact but for the last product, rounded to f32
/// mix(x): x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9; x = (x ^ x >> 27) * 0x94d049bb133111eb; x ^ x >> 31
/// ```
///
/// Source of `mix`: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014 (SplitMix64's finalizer).
#[derive(Debug, Clone)]
pub struct RandomWeights {
    config: ModelConfig,
    seed: u64,
}

impl RandomWeights {
    /// The largest magnitude of a weight: a uniform distribution of this half-width has the standard deviation 0.02.
    pub const HALF_WIDTH: f32 = STANDARD_DEVIATION * 1.732_050_8;

    /// The weights of a model of this configuration.
    pub fn new(config: &ModelConfig, seed: u64) -> Self {
        Self { config: config.clone(), seed }
    }

    /// One parameter in row-major f32.
    ///
    /// # Errors
    /// [`WeightsError::Absent`] for a parameter that models of this configuration do not have.
    pub fn f32(&self, parameter: Parameter) -> Result<Vec<f32>, WeightsError> {
        let elements = parameter.shape(&self.config).iter().product::<usize>();
        let key = self.key(parameter)?;
        Ok(match parameter.role() {
            Role::NormScale => vec![1.0; elements],
            Role::Bias => vec![0.0; elements],
            Role::Weight => (0..elements as u64).map(|index| element(key, index)).collect(),
        })
    }

    /// What the elements of one parameter are computed from, for a device that makes them itself.
    ///
    /// # Errors
    /// [`WeightsError::Absent`] for a parameter that models of this configuration do not have.
    pub fn key(&self, parameter: Parameter) -> Result<u64, WeightsError> {
        let index = names::parameters(&self.config).iter().position(|&known| known == parameter);
        let index = index.ok_or(WeightsError::Absent { parameter })? as u64;
        Ok(splitmix::output(self.seed, index))
    }
}

fn element(key: u64, index: u64) -> f32 {
    let bits = (splitmix::mixed(key.wrapping_add(index)) >> 40) as f32;
    (bits * (1.0 / 8_388_608.0) - 1.0) * RandomWeights::HALF_WIDTH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;

    #[test]
    fn random_weights_have_the_standard_deviation_they_promise() {
        let weights = RandomWeights::new(&presets::DISTILBERT, 7);
        let values = weights.f32(Parameter::layer(0, names::LayerParameter::QueryWeight)).unwrap();
        let count = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let deviation = (values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count - mean * mean).sqrt();
        assert!(mean.abs() < 1e-4, "mean {mean}");
        assert!((deviation - 0.02).abs() < 1e-4, "standard deviation {deviation}");
        assert!(values.iter().all(|x| x.abs() <= RandomWeights::HALF_WIDTH));
    }

    #[test]
    fn random_weights_differ_by_seed_and_by_parameter_and_repeat_otherwise() {
        let parameter = |layer| Parameter::layer(layer, names::LayerParameter::KeyWeight);
        let make = |seed, layer| RandomWeights::new(&presets::DISTILBERT, seed).f32(parameter(layer)).unwrap();
        assert_eq!(make(1, 0), make(1, 0));
        assert_ne!(make(1, 0), make(2, 0));
        assert_ne!(make(1, 0), make(1, 1));
    }
}
