//! The GPU's clock and power while something is measured, and what held the clock back, as `nvidia-smi` reads them, ten times a second unless told otherwise.
//!
//! A GPU at its power limit lowers its clock. Then figures say how much work a joule does, and not how fast a kernel is: whoever compares two runs must know
//! which of them were held back. Nothing is changed here, only read. Without `nvidia-smi` there are no readings.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::power::PowerMeter;

/// How often the clock and the power are read, unless told otherwise.
const PERIOD: Duration = Duration::from_millis(100);

/// What lowers the clock under load, by its bit in `nvidia-smi`'s `clocks_event_reasons.active`. Source: NVML, `nvmlClocksEventReasons`.
const LIMITS: [(u64, &str); 5] =
    [(0x04, "power limit"), (0x08, "hardware slowdown"), (0x20, "temperature"), (0x40, "temperature, by hardware"), (0x80, "power brake")];

/// One line of `nvidia-smi`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    at: Instant,
    clock_mhz: u32,
    power_w: f64,
    reasons: u64,
}

/// What was seen over some time.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Median clock of the SMs.
    pub clock_mhz: u32,
    /// Mean power of the board.
    pub power_w: f64,
    /// Its highest.
    pub most_power_w: f64,
    /// What held the clock back at any time.
    pub held_back_by: Vec<&'static str>,
    /// Share of the readings at which it was.
    pub held_back: f64,
}

/// The running `nvidia-smi` and what it said.
#[derive(Debug)]
pub struct Clocks {
    started: Instant,
    samples: Arc<Mutex<Vec<Sample>>>,
    child: Option<Child>,
}

impl Clocks {
    /// Starts reading, ten times a second.
    pub fn start() -> Self {
        Self::every(PERIOD)
    }

    /// Starts reading, once every `period`, which counts as a millisecond at least.
    pub fn every(period: Duration) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let query = "--query-gpu=clocks.sm,power.draw.instant,clocks_event_reasons.active";
        let child = Command::new("nvidia-smi")
            .args(["--id", &first_visible(), query, "--format=csv,noheader,nounits", "-lms", &period.as_millis().max(1).to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok();
        let child = child.map(|mut child| {
            if let Some(lines) = child.stdout.take() {
                let samples = Arc::clone(&samples);
                thread::spawn(move || {
                    for line in BufReader::new(lines).lines().map_while(Result::ok) {
                        samples.lock().unwrap_or_else(PoisonError::into_inner).extend(parse(&line, Instant::now()));
                    }
                });
            }
            child
        });
        Self { started: Instant::now(), samples, child }
    }

    /// What was seen from `from` to now; none without a sample.
    pub fn since(&self, from: Instant) -> Option<Reading> {
        self.within(from, from.elapsed())
    }

    /// What was seen in the `length` from `from`; none without a sample.
    pub fn within(&self, from: Instant, length: Duration) -> Option<Reading> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let seen: Vec<Sample> = samples.iter().filter(|sample| sample.at >= from && sample.at - from <= length).copied().collect();
        Reading::of(&seen)
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

impl PowerMeter for Clocks {
    fn limit_w(&self) -> Option<f64> {
        let asked = ["--query-gpu=power.limit", "--format=csv,noheader,nounits"];
        let told = Command::new("nvidia-smi").args(["--id", &first_visible()]).args(asked).stderr(Stdio::null()).output().ok()?;
        watts(&String::from_utf8_lossy(&told.stdout))
    }

    fn read(&self, from: Instant, length: Duration) -> Option<Reading> {
        self.within(from, length)
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

impl Reading {
    fn of(samples: &[Sample]) -> Option<Self> {
        let mut clocks: Vec<u32> = samples.iter().map(|sample| sample.clock_mhz).collect();
        clocks.sort_unstable();
        let count = samples.len() as f64;
        let powers = || samples.iter().map(|sample| sample.power_w);
        let any = LIMITS.iter().fold(0, |any, (limit, _)| any | limit);
        Some(Self {
            clock_mhz: *clocks.get(clocks.len() / 2)?,
            power_w: powers().sum::<f64>() / count,
            most_power_w: powers().fold(0.0, f64::max),
            held_back_by: LIMITS
                .iter()
                .filter(|(limit, _)| samples.iter().any(|sample| sample.reasons & limit != 0))
                .map(|(_, name)| *name)
                .collect(),
            held_back: samples.iter().filter(|sample| sample.reasons & any != 0).count() as f64 / count,
        })
    }
}

/// The GPU that is measured, as `nvidia-smi` names it: the first that CUDA may use. Equal GPUs have the same numbers in both.
fn first_visible() -> String {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    visible.split(',').next().map(str::trim).filter(|first| !first.is_empty()).unwrap_or("0").to_owned()
}

/// A power limit; none where the figure is missing, as `[N/A]` is.
fn watts(line: &str) -> Option<f64> {
    line.trim().parse().ok().filter(|watts: &f64| watts.is_finite())
}

/// A line read at `at`; none where a figure is missing, as `[N/A]` is.
fn parse(line: &str, at: Instant) -> Option<Sample> {
    let mut fields = line.split(',').map(str::trim);
    let (clock, power, reasons) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Sample {
        at,
        clock_mhz: clock.parse().ok()?,
        power_w: power.parse().ok()?,
        reasons: u64::from_str_radix(reasons.trim_start_matches("0x"), 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was read every 100 ms, the first line at the start.
    fn clocks(lines: &[&str]) -> Clocks {
        let started = Instant::now();
        let times = (0..).map(|tenths| started + Duration::from_millis(100) * tenths);
        let samples = lines.iter().zip(times).filter_map(|(line, at)| parse(line, at)).collect();
        Clocks { started, samples: Arc::new(Mutex::new(samples)), child: None }
    }

    #[test]
    fn a_reading_tells_what_held_the_clock_back_and_for_how_long() {
        let clocks = clocks(&[
            "1980, 130.25, 0x0000000000000001",
            "1980, 690.00, 0x0000000000000000",
            "1590, 740.00, 0x0000000000000004",
            "1605, 730.00, 0x0000000000000024",
            "1575, 720.00, 0x0000000000000004",
            "1980, 131.00, 0x0000000000000000",
        ]);
        let reading = clocks.within(clocks.started + Duration::from_millis(100), Duration::from_millis(300)).unwrap();
        let held_back_by = vec!["power limit", "temperature"];
        assert_eq!(reading, Reading { clock_mhz: 1605, power_w: 720.0, most_power_w: 740.0, held_back_by, held_back: 0.75 });
    }

    #[test]
    fn a_limit_is_a_number_of_watts_or_there_is_none() {
        assert_eq!(watts("700.00\n"), Some(700.0));
        assert_eq!(["[N/A]\n", "", "No devices were found", "inf"].map(watts), [None; 4]);
    }

    #[test]
    fn an_idle_gpu_is_not_held_back() {
        let clocks = clocks(&["345, 80.50, 0x0000000000000001"]);
        let reading = clocks.since(clocks.started).unwrap();
        assert_eq!((reading.held_back_by.as_slice(), reading.held_back), (&[][..], 0.0));
    }

    #[test]
    fn there_is_no_reading_of_what_nobody_saw_or_the_gpu_does_not_tell() {
        let unread = clocks(&["1980, [N/A], 0x0000000000000000", "No devices were found", ""]);
        assert_eq!(unread.since(unread.started), None);
        let read = clocks(&["1980, 690.00, 0x0000000000000000"]);
        assert_eq!(read.within(read.started + Duration::from_secs(1), Duration::from_secs(1)), None);
    }
}
