//! Validation of a profile's values, the same for reading and for writing. Types and field names are the parser's business.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use crate::device::{Fingerprint, Sms};
use crate::launch::Configuration;

use super::{BoardPower, KernelProfile, MeasuredConfiguration, PowerSample, Profile, SCHEMA_VERSION, SamplePoint};

/// A field that holds what cannot be.
#[derive(Debug, PartialEq)]
pub(super) struct Flaw {
    /// Where, such as `kernels["gemm[8x8]f16"].points[2].sms`.
    pub(super) field: String,
    /// What is wrong.
    pub(super) reason: String,
}

impl Flaw {
    fn at(field: impl Into<String>, reason: impl Into<String>) -> Result<(), Self> {
        Err(Self { field: field.into(), reason: reason.into() })
    }

    fn below(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), ..self }
    }
}

/// Finds the first flaw.
pub(super) fn check(profile: &Profile) -> Result<(), Flaw> {
    if profile.schema != SCHEMA_VERSION {
        return Flaw::at("schema", format!("{} is not {SCHEMA_VERSION}", profile.schema));
    }
    if profile.provenance.sms.0 == 0 {
        return Flaw::at("provenance.sms", "a GPU has at least 1 SM");
    }
    if profile.provenance.models.is_empty() {
        return Flaw::at("provenance.models", "a profile is of at least one model");
    }
    if !(profile.tolerance > 0.0 && profile.tolerance < 1.0) {
        return Flaw::at("tolerance", format!("{} is not between 0 and 1, both excluded (0.02 is 2%)", profile.tolerance));
    }
    for (field, rate) in [("peaks.flops_per_s", profile.peaks.flops_per_s), ("peaks.bytes_per_s", profile.peaks.bytes_per_s)] {
        if !(rate.is_finite() && rate >= 0.0) {
            return Flaw::at(field, format!("{rate} is no rate"));
        }
    }
    if let Some(power) = &profile.power {
        check_board(power).map_err(|flaw| flaw.below("power"))?;
    }
    let mut seen = HashMap::new();
    for (key, kernel) in &profile.kernels {
        let place = format!("kernels[{key:?}]");
        let fingerprint = match key.parse::<Fingerprint>() {
            Ok(fingerprint) => fingerprint,
            Err(error) => return Flaw::at(place, error.to_string()),
        };
        if let Some(other) = seen.insert(fingerprint, key) {
            return Flaw::at(place, format!("means the same kernel as `{other}`"));
        }
        check_kernel(kernel, profile.provenance.sms).map_err(|flaw| flaw.below(&place))?;
        if profile.power.is_none()
            && let Some(at) = kernel.points.iter().position(|point| point.power.is_some())
        {
            return Flaw::at(format!("{place}.points[{at}].power"), "says nothing without the board's own `power`");
        }
    }
    Ok(())
}

/// Watts of one board: from none to that of a rack.
const WATTS: RangeInclusive<f64> = 0.0..=1e5;

fn check_board(power: &BoardPower) -> Result<(), Flaw> {
    for (field, watts) in [("idle_w", power.idle_w), ("limit_w", power.limit_w)] {
        if !WATTS.contains(&watts) {
            return Flaw::at(field, format!("{watts} is no power: it must be a number from 0 to 1e5"));
        }
    }
    if power.limit_w <= power.idle_w {
        return Flaw::at("limit_w", format!("{} W is not above the {} W of an idle board", power.limit_w, power.idle_w));
    }
    check_clock(power.clock_mhz)
}

fn check_power(power: &PowerSample) -> Result<(), Flaw> {
    if !WATTS.contains(&power.board_w) {
        return Flaw::at("board_w", format!("{} is no power: it must be a number from 0 to 1e5", power.board_w));
    }
    if !LATENCIES_US.contains(&power.launch_us) {
        return Flaw::at("launch_us", format!("{} is no latency: it must be a number from 1e-3 to 1e9", power.launch_us));
    }
    check_clock(power.clock_mhz)
}

fn check_clock(mhz: u32) -> Result<(), Flaw> {
    if mhz == 0 { Flaw::at("clock_mhz", "0 MHz is no clock") } else { Ok(()) }
}

fn check_kernel(kernel: &KernelProfile, whole: Sms) -> Result<(), Flaw> {
    if kernel.blocks_per_sm == 0 {
        return Flaw::at("blocks_per_sm", "at least 1 thread block fits on an SM");
    }
    if kernel.points.is_empty() {
        return Flaw::at("points", "a profiled kernel has at least one point");
    }
    for (at, point) in kernel.points.iter().enumerate() {
        let place = format!("points[{at}]");
        check_point(point, whole).map_err(|flaw| flaw.below(&place))?;
        if at > 0 && kernel.points[at - 1].sms >= point.sms {
            return Flaw::at(
                format!("{place}.sms"),
                format!("{} SMs after {} SMs: counts must rise", point.sms, kernel.points[at - 1].sms),
            );
        }
    }
    if !kernel.points.iter().any(|point| point.sms == kernel.minimum_sms) {
        return Flaw::at("minimum_sms", format!("no point was measured on {} SMs", kernel.minimum_sms));
    }
    Ok(())
}

/// Microseconds: from a clock's tick to a quarter of an hour.
const LATENCIES_US: RangeInclusive<f64> = 1e-3..=1e9;

fn check_point(point: &SamplePoint, whole: Sms) -> Result<(), Flaw> {
    if point.sms.0 == 0 || point.sms > whole {
        return Flaw::at("sms", format!("{} is not between 1 and the {whole} SMs of the GPU", point.sms));
    }
    let is_latency = |us: f64| LATENCIES_US.contains(&us);
    if !is_latency(point.median_us) {
        return Flaw::at("median_us", format!("{} is no latency: it must be a number from 1e-3 to 1e9", point.median_us));
    }
    if let Some(at) = point.samples_us.iter().position(|&us| !is_latency(us)) {
        return Flaw::at(
            format!("samples_us[{at}]"),
            format!("{} is no latency: it must be a number from 1e-3 to 1e9", point.samples_us[at]),
        );
    }
    if point.kept() == 0 {
        return Flaw::at("rejected", format!("{} of {} samples rejected leaves none", point.rejected, point.samples_us.len()));
    }
    point.configuration.as_ref().map_or(Ok(()), |measured| check_configuration(measured).map_err(|flaw| flaw.below("configuration")))?;
    point.power.as_ref().map_or(Ok(()), |power| check_power(power).map_err(|flaw| flaw.below("power")))
}

fn check_configuration(measured: &MeasuredConfiguration) -> Result<(), Flaw> {
    for (field, name) in [("name", &measured.name), ("instead_of", &measured.instead_of)] {
        if !Configuration::is_name(name) {
            return Flaw::at(field, format!("{name:?} is no configuration: it must be 1 to 64 letters, digits and `_.-`"));
        }
    }
    if measured.name == measured.instead_of {
        return Flaw::at("instead_of", format!("`{}` in place of itself is no other choice", measured.name));
    }
    if !(measured.gain > 0.0 && measured.gain.is_finite()) {
        return Flaw::at("gain", format!("{} is no gain: it must be a positive number (0.05 is 5%)", measured.gain));
    }
    Ok(())
}
