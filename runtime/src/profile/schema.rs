//! The profile file: JSON, one object, every sample kept.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::device::{Sms, Work};

use super::Curve;
use super::commands::{self, On};

/// The version of this schema. A file of another version is refused.
pub const SCHEMA_VERSION: u32 = 1;

/// Where and how the samples were taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// GPU name, as the driver gives it.
    pub gpu: String,
    /// SMs of that GPU.
    pub sms: Sms,
    /// Kernel-mode driver version.
    pub driver: String,
    /// Hash of the kernels' sources and compiler.
    pub kernel_build: String,
    /// The models whose requests were measured into this file, as `--model` names them, in the order measured.
    pub models: Vec<String>,
    /// The commands that measured, with ` && ` between them; those that are no `smidgen profile` as they were written.
    pub command: String,
    /// Commit of the sources, empty where unknown.
    pub commit: String,
    /// Day of the measurement, `2026-11-21`.
    pub date: String,
    /// Whether the latencies come from the simulator's own model, and nothing was measured.
    pub simulated: bool,
}

impl Provenance {
    /// The commands that measure the same again: into `path`, or where it was not `smidgen profile` that measured, as they were noted.
    pub fn command_again(&self, path: &Path) -> String {
        commands::again(&self.command, &self.models, path, On::TheSame)
    }

    /// As [`command_again`](Self::command_again), on a GPU also where it was the simulator that measured.
    pub(super) fn command_on_gpu(&self, path: &Path) -> String {
        commands::again(&self.command, &self.models, path, On::Gpu)
    }

    /// As [`command_again`](Self::command_again), on the simulator also where it was a GPU that was measured.
    pub(super) fn command_on_simulator(&self, path: &Path) -> String {
        commands::again(&self.command, &self.models, path, On::Simulator)
    }

    /// Adds the models and the commands of `other` that this lacks, as for one file that both measured into.
    pub fn include(&mut self, other: &Self) {
        for model in &other.models {
            if !self.models.contains(model) {
                self.models.push(model.clone());
            }
        }
        self.command = commands::union(&self.command, &other.command);
    }
}

/// The rates that kernels are held against to say what limits them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peaks {
    /// Floating-point operations a second.
    pub flops_per_s: f64,
    /// Bytes through device memory a second.
    pub bytes_per_s: f64,
    /// Where the two come from.
    pub source: PeakSource,
}

/// Where [`Peaks`] come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeakSource {
    /// Whoever ran the profiler named them.
    Given,
    /// The data sheet of the GPU.
    Datasheet,
    /// They are the best rates that any kernel of this profile reached, so that they say nothing of what the GPU could do.
    Reached,
}

/// What limits a kernel on the whole GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Arithmetic.
    Compute,
    /// Bytes through device memory.
    Memory,
    /// Neither: launch and dependency latency.
    Latency,
}

/// The samples at one SM count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplePoint {
    /// SMs of the partition the kernel ran in.
    pub sms: Sms,
    /// Median of the kept samples, microseconds.
    pub median_us: f64,
    /// Every sample, microseconds, in the order taken.
    pub samples_us: Vec<f64>,
    /// How many of them were left out of the median as outliers.
    pub rejected: u32,
    /// What the kernel was launched as, where that was quicker than its own choice; none where its own choice ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<MeasuredConfiguration>,
    /// What the board drew while the kernel ran at this SM count; none where nobody read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<PowerSample>,
}

/// A configuration that was quicker than the kernel's own choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredConfiguration {
    /// Its name: a [`Configuration`](crate::launch::Configuration)'s.
    pub name: String,
    /// The name of the kernel's own choice.
    pub instead_of: String,
    /// How much longer the kernel's own choice took, as a share of what this one did.
    pub gain: f64,
}

/// The board's power while one kernel ran again and again, long enough for the board to notice. At its power limit the board lowers the clock, so that a launch
/// takes longer here than in the samples of its latency, which are too short for that.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerSample {
    /// Mean power of the whole board, watts: what it draws idle included.
    pub board_w: f64,
    /// Mean time of a launch meanwhile, microseconds.
    pub launch_us: f64,
    /// Median clock of the SMs meanwhile.
    pub clock_mhz: u32,
}

/// What the board draws idle, may draw, and how fast it runs below that.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardPower {
    /// Mean power with nothing to do, watts.
    pub idle_w: f64,
    /// The limit that was in force, watts.
    pub limit_w: f64,
    /// The highest clock at which any kernel of this profile ran while its power was read.
    pub clock_mhz: u32,
}

/// What was measured of one kernel key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelProfile {
    /// The least it must do.
    pub work: Work,
    /// Launches of it in the request that was recorded last; 0 if that request did not launch it.
    pub launches: u32,
    /// Thread blocks that fit on one SM at once.
    pub blocks_per_sm: u32,
    /// What limits it on the whole GPU.
    pub bound: Bound,
    /// The fewest SMs within the profile's tolerance of the whole GPU's latency.
    pub minimum_sms: Sms,
    /// By rising SM count.
    pub points: Vec<SamplePoint>,
}

impl SamplePoint {
    /// How many samples the median is taken of.
    pub fn kept(&self) -> usize {
        self.samples_us.len().saturating_sub(self.rejected as usize)
    }
}

impl PowerSample {
    /// Microjoules of one launch above what an idle board would have drawn, at the clock at which it ran; never negative.
    pub fn above_idle_uj(&self, board: &BoardPower) -> f64 {
        (self.board_w - board.idle_w).max(0.0) * self.launch_us
    }
}

impl KernelProfile {
    /// The curve of the medians; `None` if the points make no curve.
    pub fn curve(&self) -> Option<Curve> {
        Curve::new(self.points.iter().map(|point| (point.sms, point.median_us)).collect())
    }
}

/// A profile file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// Where and how it was measured.
    pub provenance: Provenance,
    /// The tolerance at which minimum SM counts were chosen: 0.02 is 2%.
    pub tolerance: f64,
    /// What [`KernelProfile::bound`] was judged by.
    pub peaks: Peaks,
    /// The board that [`SamplePoint::power`] was read on; none where nobody read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<BoardPower>,
    /// By kernel key, written as `gemm_bias[1024x768x3072]f16`.
    pub kernels: BTreeMap<String, KernelProfile>,
}
