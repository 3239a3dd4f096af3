//! The forms of `results/h200/kernels.json` and `errors.json`: written by the benchmark `reach` and by the GPU tests of accuracy, which compile this
//! file too, and read by `cargo xtask docs`, which draws tables and plots from them.

use serde::{Deserialize, Serialize};

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// Where and how the figures were made.
    pub provenance: Provenance,
    /// What is judged.
    pub rows: Vec<Row>,
    /// What is drawn.
    pub curves: Vec<Curve>,
}

impl Results {
    /// What the types alone do not promise.
    ///
    /// # Errors
    /// The first row that contradicts itself.
    pub fn check(&self) -> Result<(), String> {
        self.rows.iter().try_for_each(Row::check)
    }
}

/// Where and how the figures were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The command line.
    pub command: String,
    /// Commit of the sources, empty where unknown.
    pub commit: String,
    /// Hash of the kernels' sources and their compiler.
    pub kernel_build: String,
    /// GPU name.
    pub machine: String,
    /// Its SMs.
    pub sms: u16,
    /// Kernel-mode driver version.
    pub driver: String,
    /// The CUDA version that the driver supports, `13.0`.
    pub cuda: String,
    /// Day of the run, `2026-11-21`.
    pub date: String,
    /// What the peers were.
    pub peers: String,
    /// Lowest and highest SM clock under load, MHz; none where `nvidia-smi` gave no reading.
    pub clock_mhz: Option<[u32; 2]>,
    /// Highest board power, W.
    pub power_w: Option<f64>,
    /// Share of the measurements during which a throttle reason was active.
    pub throttled: f64,
}

/// One figure and its peer's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The line of the table, 1 to 10.
    pub row: u8,
    /// What was run.
    pub work: String,
    /// SMs that both sides had.
    pub sms: u16,
    /// Median of ours.
    pub ours: f64,
    /// Median of the peer's; none where it could not be run.
    pub peer: Option<f64>,
    /// Of both.
    pub unit: Unit,
    /// Above 1 is better than the peer.
    pub ratio: Option<f64>,
    /// What must be reached.
    pub target: f64,
    /// By what.
    pub target_of: TargetOf,
    /// Whether it was.
    pub reached: bool,
    /// What the peer is.
    pub peer_is: String,
    /// Other peers, which the target is not about.
    pub beside: Vec<Beside>,
    /// Share of the data sheet's peak of these SMs (arithmetic) or of the GPU (memory), percent.
    pub percent_of_peak: Option<f64>,
    /// (Largest - smallest) / median of our samples.
    pub spread: f64,
    /// SM clock while both were measured, MHz.
    pub clock_mhz: Option<u32>,
    /// Board power while both were measured, W.
    pub power_w: Option<f64>,
    /// Whether a throttle reason was active meanwhile. The two sides are measured in turn, so it meets both.
    pub throttled: bool,
    /// What a reader should know beside.
    pub note: Option<String>,
}

/// A peer that is not judged against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beside {
    /// What it is.
    pub peer_is: String,
    /// Median of its samples, in the row's unit.
    pub peer: f64,
    /// Above 1 is better than it.
    pub ratio: f64,
}

impl Row {
    /// Whether the target was met, by what was measured.
    pub fn meets_target(&self) -> bool {
        match self.target_of {
            TargetOf::Ratio => self.ratio.is_some_and(|ratio| ratio >= self.target),
            TargetOf::Ours => self.ours <= self.target,
        }
    }

    fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("row {}, {}: {what}", self.row, self.work));
        if !(1..=10).contains(&self.row) {
            return wrong("the table has the lines 1 to 10");
        }
        if !(self.ours.is_finite() && self.ours > 0.0) {
            return wrong("`ours` is no measurement");
        }
        if self.peer.is_some() != self.ratio.is_some() {
            return wrong("a ratio needs a peer");
        }
        // Figures are rounded to four digits before they are written.
        let agrees = |peer: f64, ratio: f64| (self.unit.ratio(self.ours, peer) / ratio - 1.0).abs() < 2e-3;
        if self.peer.zip(self.ratio).is_some_and(|(peer, ratio)| !agrees(peer, ratio)) {
            return wrong("`ratio` is not that of `ours` and `peer`");
        }
        if self.reached != self.meets_target() {
            return wrong("`reached` does not follow from `target`");
        }
        Ok(())
    }
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// 10^12 floating-point operations per second.
    #[serde(rename = "TFLOP/s")]
    Tflops,
    /// 10^9 bytes per second.
    #[serde(rename = "GB/s")]
    Gbytes,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Milliseconds times SMs.
    #[serde(rename = "SM ms")]
    SmMilliseconds,
    /// The ratio itself, of an average over other rows.
    #[serde(rename = "ratio")]
    Ratio,
}

impl Unit {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tflops => "TFLOP/s",
            Self::Gbytes => "GB/s",
            Self::Milliseconds => "ms",
            Self::SmMilliseconds => "SM ms",
            Self::Ratio => "ratio",
        }
    }

    /// By how much `ours` is better than `peer`: a rate is better when higher, a time when lower.
    pub fn ratio(self, ours: f64, peer: f64) -> f64 {
        match self {
            Self::Tflops | Self::Gbytes | Self::Ratio => ours / peer,
            Self::Milliseconds | Self::SmMilliseconds => peer / ours,
        }
    }
}

/// What a target is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetOf {
    /// The ratio must be at least the target.
    Ratio,
    /// Our time must be at most the target.
    Ours,
}

/// Figures against SM count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// What was run.
    pub work: String,
    /// What the peer is.
    pub peer_is: String,
    /// What the stronger peer is.
    pub stronger_is: Option<String>,
    /// Of all.
    pub unit: Unit,
    /// By rising SM count.
    pub points: Vec<Point>,
}

/// One SM count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// SMs.
    pub sms: u16,
    /// Median of ours.
    pub ours: f64,
    /// Median of the peer's.
    pub peer: f64,
    /// The same of a stronger peer, where there is one.
    pub stronger: Option<f64>,
}

/// The form of `errors.json`: each kernel against a reference in FP64.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Errors {
    /// Where they were found.
    pub provenance: ErrorProvenance,
    /// One for each kernel and kind of input.
    pub kernels: Vec<KernelError>,
}

/// Where errors were found. They do not depend on clocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorProvenance {
    /// The command line.
    pub command: String,
    /// Commit of the sources, empty where unknown.
    pub commit: String,
    /// Hash of the kernels' sources and their compiler.
    pub kernel_build: String,
    /// GPU name.
    pub machine: String,
    /// Day of the run.
    pub date: String,
}

/// One kernel's errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelError {
    /// Its key.
    pub kernel: String,
    /// How its inputs were drawn.
    pub inputs: String,
    /// Elements compared.
    pub elements: u64,
    /// The largest magnitude of the reference.
    pub largest: f64,
    /// The Euclidean norm of the difference over that of the reference.
    pub rms: f64,
    /// The largest difference, each over the magnitude of its element or the reference's root mean square, whichever is larger.
    pub max: f64,
}
