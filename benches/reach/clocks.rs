//! The GPU's clock, power and throttle reasons during the run, read by `nvidia-smi` ten times a second. It reads; it changes nothing.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Throttle reasons that lower the clock under load: power cap, thermal limits, and the board's slowdown signals. Source: NVML,
/// `nvmlClocksEventReasons`.
const THROTTLES: u64 = 0x4 | 0x8 | 0x20 | 0x40 | 0x80;

/// One line of `nvidia-smi`.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    clock_mhz: u32,
    power_w: f64,
    reasons: u64,
}

/// What was seen during one measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub clock_mhz: u32,
    pub power_w: f64,
    pub throttled: bool,
}

/// The running `nvidia-smi` and what it said.
pub struct Clocks {
    started: Instant,
    samples: Arc<Mutex<Vec<Sample>>>,
    child: Option<Child>,
}

impl Clocks {
    /// Starts reading. Without `nvidia-smi` there are no readings.
    pub fn start() -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let query = "--query-gpu=clocks.sm,power.draw.instant,clocks_event_reasons.active";
        let child = Command::new("nvidia-smi")
            .args(["--id", &first_visible(), query, "--format=csv,noheader,nounits", "-lms", "100"])
            .stdout(Stdio::piped())
            .spawn()
            .ok();
        let child = child.map(|mut child| {
            if let Some(lines) = child.stdout.take() {
                let samples = Arc::clone(&samples);
                thread::spawn(move || {
                    for sample in BufReader::new(lines).lines().map_while(Result::ok).filter_map(|line| parse(&line)) {
                        samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                    }
                });
            }
            child
        });
        Self { started: Instant::now(), samples, child }
    }

    /// The median clock, the highest power and whether anything throttled since `from`.
    pub fn since(&self, from: Instant) -> Option<Reading> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let seen: Vec<&Sample> = samples.iter().filter(|sample| sample.at >= from).collect();
        let mut clocks: Vec<u32> = seen.iter().map(|sample| sample.clock_mhz).collect();
        clocks.sort_unstable();
        Some(Reading {
            clock_mhz: *clocks.get(clocks.len() / 2)?,
            power_w: seen.iter().map(|sample| sample.power_w).fold(0.0, f64::max),
            throttled: seen.iter().any(|sample| sample.reasons & THROTTLES != 0),
        })
    }

    /// Every reading as CSV.
    pub fn csv(&self) -> String {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = samples.iter().map(|sample| {
            let seconds = sample.at.duration_since(self.started).as_secs_f64();
            format!("{seconds:.1},{},{:.0},{:#x}\n", sample.clock_mhz, sample.power_w, sample.reasons)
        });
        "seconds,clock_mhz,power_w,reasons\n".to_owned() + &lines.collect::<String>()
    }
}

impl Drop for Clocks {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The GPU that is measured, as `nvidia-smi` names it: the first that CUDA may use. Equal GPUs have the same numbers in both.
fn first_visible() -> String {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    visible.split(',').next().map(str::trim).filter(|first| !first.is_empty()).unwrap_or("0").to_owned()
}

fn parse(line: &str) -> Option<Sample> {
    let mut fields = line.split(',').map(str::trim);
    let (clock, power, reasons) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Sample {
        at: Instant::now(),
        clock_mhz: clock.parse().ok()?,
        power_w: power.parse().ok()?,
        reasons: u64::from_str_radix(reasons.trim_start_matches("0x"), 16).ok()?,
    })
}
