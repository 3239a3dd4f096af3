//! The rounding error of each kernel against a reference in FP64, on inputs with a realistic spread: normal, normal with outliers, and magnitudes near
//! the end of FP16's range.
//!
//! The reference takes the rounded FP16 inputs and rounds nothing after. With `SMIDGEN_ERRORS` naming a file, the table goes there as JSON: the source of
//! the one in docs/kernels.md. Outputs too large to be computed on the CPU in time are compared on some of their rows.

use std::{env, fs};

use half::f16;
use rayon::prelude::*;
use smidgen::fatbin::BUILD_HASH;
use smidgen_profiler::today;
use smidgen_runtime::launch::Kernel;

use crate::attention::f64s;
use crate::support::{Gpu, Random};
use results::{ErrorProvenance, Errors, KernelError};

mod attention;
mod products;
#[path = "../../../xtask/src/docs/results.rs"]
#[allow(dead_code)] // The forms of other results are in it too.
mod results;
mod rows;

/// Names the file that receives the table.
const FILE: &str = "SMIDGEN_ERRORS";

/// Rows that are compared, spread over the output.
const ROWS: usize = 64;

/// How inputs are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spread {
    /// Normal, standard deviation 1.
    Normal,
    /// The same with one of 256 a hundred times as large, as activations of transformers have.
    Outliers,
    /// Activations up to FP16's largest, 65504, and weights that keep the outputs just below it.
    Large,
}

const SPREADS: [Spread; 3] = [Spread::Normal, Spread::Outliers, Spread::Large];

impl Spread {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Outliers => "normal, 1 of 256 times 100",
            Self::Large => "magnitudes up to 65504",
        }
    }

    /// Times `factor`.
    fn activations(self, random: &mut Random, len: usize, factor: f64) -> Vec<f16> {
        let value = |random: &mut Random| match self {
            Self::Normal => normal(random),
            Self::Outliers if random.between(0, 255) == 0 => 100.0 * normal(random),
            Self::Outliers => normal(random),
            Self::Large => (16_000.0 * normal(random)).clamp(-65_504.0, 65_504.0),
        };
        // Each chunk has a sequence of its own, so that all of them can be drawn at once.
        let first = random.bits();
        let mut values = vec![f16::ZERO; len];
        values.par_chunks_mut(4096).enumerate().for_each(|(at, chunk)| {
            let mut random = Random::new(first.wrapping_add(at as u64));
            chunk.iter_mut().for_each(|drawn| *drawn = f16::from_f64(factor * value(&mut random)));
        });
        values
    }
}

/// Box and Muller, "A note on the generation of random normal deviates", 1958.
fn normal(random: &mut Random) -> f64 {
    let radius = (f64::from(random.unit()) * 0.5 + 0.5).max(1e-9);
    (-2.0 * radius.ln()).sqrt() * (f64::from(random.unit()) * std::f64::consts::PI).cos()
}

/// Rows that are compared of `rows`: the first and last among them.
fn sampled(rows: usize) -> Vec<usize> {
    let count = ROWS.min(rows);
    (0..count).map(|at| if count == 1 { 0 } else { at * (rows - 1) / (count - 1) }).collect()
}

/// Output and reference of one kernel, compared.
fn compare(kernel: &dyn Kernel, spread: Spread, output: &[f64], reference: &[f64]) -> KernelError {
    assert_eq!(output.len(), reference.len(), "{}", kernel.key());
    let mean_square = reference.iter().map(|value| value * value).sum::<f64>() / reference.len() as f64;
    let mut worst = 0.0_f64;
    let mut squares = 0.0;
    for (output, reference) in output.iter().zip(reference) {
        let difference = (output - reference).abs();
        // A NaN or an infinity that the reference lacks is an infinite error; `max` would pass over a NaN.
        let relative = difference / reference.abs().max(mean_square.sqrt());
        worst = if relative.is_finite() { worst.max(relative) } else { f64::INFINITY };
        squares += difference * difference;
    }
    KernelError {
        kernel: kernel.key().to_string(),
        inputs: spread.name().to_owned(),
        elements: output.len() as u64,
        largest: reference.iter().fold(0.0, |largest, value| value.abs().max(largest)),
        rms: (squares / reference.len() as f64 / mean_square).sqrt(),
        max: worst,
    }
}

/// Some rows of a `[rows, width]` output.
fn rows_of(output: &[f16], rows: &[usize], width: usize) -> Vec<f64> {
    rows.iter().flat_map(|row| f64s(&output[row * width..][..width])).collect()
}

/// Turns the pairs of a head. The angle is rounded to FP32 in every implementation: part of the definition, not of the error.
fn rotate(head: &mut [f64], position: u32, frequencies: &[f32]) {
    let half = frequencies.len();
    for (pair, frequency) in frequencies.iter().enumerate() {
        let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
        let (first, second) = (head[pair], head[pair + half]);
        (head[pair], head[pair + half]) = (first * cos - second * sin, second * cos + first * sin);
    }
}

/// FP16's rounding alone is up to 2^-11 = 4.9e-4 of an element, 2.8e-4 in the root mean square at most. Attention rounds its probabilities too, and DeBERTa's
/// the terms of positions before that, of which the probabilities are powers. What is stored in FP32 has the rounding of its sums alone.
fn tolerated(kernel: &str) -> (f64, f64) {
    if kernel.starts_with("attention_disentangled") {
        (5e-3, 5e-2)
    } else if kernel.starts_with("attention") {
        (1e-3, 8e-3)
    } else if kernel.starts_with("gemm_f32") || kernel.starts_with("mean_pool") {
        (5e-6, 5e-5)
    } else {
        (3e-4, 1.5e-3)
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn errors_against_fp64_stay_within_fp16s_rounding_for_every_spread_of_inputs() {
    let gpu = Gpu::open();
    let mut random = Random::new(17);
    let mut kernels = Vec::new();
    for spread in SPREADS {
        kernels.extend(products::errors(&gpu, &mut random, spread));
        kernels.extend(attention::errors(&gpu, &mut random, spread));
        kernels.extend(rows::errors(&gpu, &mut random, spread));
    }
    kernels.sort_by(|one, other| one.kernel.cmp(&other.kernel));
    for error in &kernels {
        println!("{:44} {:28} rms {:.1e} max {:.1e} largest {:.1e}", error.kernel, error.inputs, error.rms, error.max, error.largest);
    }
    if let Some(file) = env::var_os(FILE) {
        let provenance = ErrorProvenance {
            command: env::var("SMIDGEN_COMMAND").unwrap_or_else(|_| env::args().collect::<Vec<_>>().join(" ")),
            commit: env!("SMIDGEN_COMMIT").to_owned(),
            kernel_build: BUILD_HASH.to_owned(),
            machine: gpu.device().topology().name.clone(),
            date: today(),
        };
        let table = serde_json::to_string_pretty(&Errors { provenance, kernels: kernels.clone() }).expect("plain figures") + "\n";
        fs::write(file, table).expect("the file can be written");
    }
    for error in kernels {
        let (rms, max) = tolerated(&error.kernel);
        assert!(error.rms <= rms && error.max <= max, "{error:?}: rms {rms:.0e} and max {max:.0e} are tolerated");
    }
}
