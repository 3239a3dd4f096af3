//! Rotary positions: how fast each pair of elements turns, and the scalings that stretch them over longer sequences.

use super::ConfigError;
use super::fields::Fields;

/// Rotary position embedding. In every head, element `i` of the first half and element `i` of the second half form a pair that is turned
/// by `position * frequency(i)` (the layout of Hugging Face transformers).
///
/// Source: Su et al., "RoFormer", 2021, eq. 15.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub theta: f32,
    /// How the frequencies are stretched for long sequences.
    pub scaling: RopeScaling,
}

/// A change of the rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by `factor` (position interpolation; Chen et al., 2023).
    Linear {
        /// How many times longer sequences become.
        factor: f32,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended (Llama 3.1's `apply_scaling`).
    Llama3 {
        /// How many times longer sequences become.
        factor: f32,
        /// Wavelengths above `original_positions / low_frequency_factor` are stretched in full.
        low_frequency_factor: f32,
        /// Wavelengths below `original_positions / high_frequency_factor` are kept.
        high_frequency_factor: f32,
        /// Positions the model was first trained on.
        original_positions: f32,
    },
}

impl Rope {
    /// Radians per position of each pair, `head_dim / 2` of them, rounded as transformers rounds them (f32 throughout).
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            1.0 / self.theta.powf(exponent)
        });
        plain.map(|frequency| self.scaling.apply(frequency)).collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f32) -> f32 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_positions } => {
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < original_positions / high_frequency_factor {
                    frequency
                } else if wavelength > original_positions / low_frequency_factor {
                    frequency / factor
                } else {
                    let kept = (original_positions / wavelength - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
                    (1.0 - kept) * frequency / factor + kept * frequency
                }
            }
        }
    }
}

/// Reads `rope_theta` and `rope_scaling`, or the `rope_parameters` that transformers 5 writes instead of both.
pub(super) fn parse(fields: &Fields<'_>) -> Result<Rope, ConfigError> {
    let old = fields.object("rope_scaling")?;
    let new = fields.object("rope_parameters")?;
    if let (Some(_), Some(_)) = (old, new)
        && fields.value("rope_scaling") != fields.value("rope_parameters")
    {
        return Err(fields.error("rope_scaling", "differs from `rope_parameters`, which says the same", "remove one of the two"));
    }
    let outer_theta = fields.optional_positive("rope_theta")?;
    let inner_theta = new.map(|new| new.optional_positive("rope_theta")).transpose()?.flatten();
    if let (Some(outer), Some(inner)) = (outer_theta, inner_theta)
        && outer != inner
    {
        let problem = format!("is {outer} but `rope_parameters.rope_theta` is {inner}");
        return Err(fields.error("rope_theta", problem, "remove the wrong one"));
    }
    let scaling = new.or(old).map(|scaling| parse_scaling(&scaling)).transpose()?;
    Ok(Rope { theta: outer_theta.or(inner_theta).unwrap_or(10_000.0) as f32, scaling: scaling.unwrap_or(RopeScaling::None) })
}

fn parse_scaling(fields: &Fields<'_>) -> Result<RopeScaling, ConfigError> {
    let (old, new) = (fields.text("type")?, fields.text("rope_type")?);
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        return Err(fields.error("type", format!("is `{old}` but `rope_type` is `{new}`"), "remove the wrong one"));
    }
    let (scaling, used): (_, &[&str]) = match new.or(old) {
        None | Some("default") => (RopeScaling::None, &[]),
        Some("linear") => (RopeScaling::Linear { factor: fields.positive("factor")? as f32 }, &["factor"]),
        Some("llama3") => {
            let (low, high) = (fields.positive("low_freq_factor")?, fields.positive("high_freq_factor")?);
            if low >= high {
                let problem = format!("is {low}, not below `high_freq_factor` ({high})");
                return Err(fields.error("low_freq_factor", problem, "correct one of the two"));
            }
            let scaling = RopeScaling::Llama3 {
                factor: fields.positive("factor")? as f32,
                low_frequency_factor: low as f32,
                high_frequency_factor: high as f32,
                original_positions: fields.size("original_max_position_embeddings")? as f32,
            };
            (scaling, &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
        }
        Some(other) => {
            return Err(fields.error(
                "rope_type",
                format!("is `{other}`, which this engine does not compute"),
                "use a model with default, linear or llama3 rotary positions",
            ));
        }
    };
    fields.refuse_unknown(&[&["type", "rope_type", "rope_theta"], used].concat())?;
    Ok(scaling)
}
