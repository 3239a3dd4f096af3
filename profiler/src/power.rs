//! What a launch takes in energy: a kernel runs again and again at one SM count while the board's power is read.
//!
//! Energy is power times time. The bursts in which latencies are sampled are too short for a board's sensor, which looks ten times a second, so each kernel runs once more for a window of
//! 300 ms at four SM counts: an eighth of the GPU, a quarter, a half and all of it. In between, power is nearly affine in the SM count. The first third of a window is
//! left to the sensor and to the clock, which falls if the board reaches its limit; of the rest the mean power, the mean time of a launch and the median clock are kept.
//! Before the first window the board's idle power is read, which is no kernel's.
//!
//! Who reads is a [`PowerMeter`]: `nvidia-smi` on a GPU, nobody on the simulator, which knows nothing of power.

use std::thread;
use std::time::{Duration, Instant};

use smidgen_runtime::device::{DeviceError, Sms};
use smidgen_runtime::profile::{BoardPower, KernelProfile, PowerSample};

use crate::clocks::Reading;
use crate::measure::{Bench, Point};

/// The parts of the GPU on which power is read, as divisors of its SM count.
const PARTS: [u16; 4] = [8, 4, 2, 1];

/// The share of a window that is not counted: one in so many.
const SETTLING: u32 = 3;

/// Windows that a meter may be silent before it counts as broken: `nvidia-smi` takes a second to begin.
const PATIENCE: u32 = 20;

/// Reads a board's power, and whatever else a [`Reading`] has.
pub trait PowerMeter {
    /// Watts at which the board lowers its clock; none where nobody tells.
    fn limit_w(&self) -> Option<f64>;

    /// What was seen in the `length` from `from`; none without a sample.
    fn read(&self, from: Instant, length: Duration) -> Option<Reading>;
}

/// A meter that works, and what it says of the board.
pub(crate) struct Windows<'a> {
    meter: &'a dyn PowerMeter,
    window: Duration,
    counts: Vec<Sms>,
    pub(crate) board: BoardPower,
}

impl<'a> Windows<'a> {
    /// Waits until the meter works, and reads the idle board, unless `earlier` says what it draws. None if there is nothing to be read.
    pub(crate) fn open(meter: &'a dyn PowerMeter, window: Duration, rungs: &[Sms], earlier: Option<BoardPower>) -> Option<Self> {
        let limit_w = meter.limit_w()?;
        let idle = (0..PATIENCE).find_map(|_| {
            let from = Instant::now();
            thread::sleep(window);
            meter.read(from + window / SETTLING, window)
        })?;
        let board = match earlier {
            Some(earlier) => BoardPower { limit_w, ..earlier },
            None => BoardPower { idle_w: hundredths(idle.power_w), limit_w, clock_mhz: idle.clock_mhz.max(1) },
        };
        // Nothing can be made of a limit that an idle board is at.
        (board.limit_w > board.idle_w).then_some(Self { meter, window, counts: counts(rungs), board })
    }

    /// The SM counts at which the power of a kernel is yet to be read.
    pub(crate) fn missing(&self, known: Option<&KernelProfile>) -> Vec<Sms> {
        let is_read = |sms: Sms| known.is_some_and(|kernel| kernel.points.iter().any(|point| point.sms == sms && point.power.is_some()));
        self.counts.iter().copied().filter(|&sms| !is_read(sms)).collect()
    }

    /// One window. None if the meter missed it.
    pub(crate) fn read(&mut self, bench: &Bench, point: &Point) -> Result<Option<PowerSample>, DeviceError> {
        let held = bench.hold(point, self.window, SETTLING)?;
        let reading = self.meter.read(held.from, held.length).filter(|reading| reading.clock_mhz > 0 && held.launch_us > 0.0);
        let sample = reading.map(|reading| PowerSample {
            board_w: hundredths(reading.power_w),
            launch_us: held.launch_us,
            clock_mhz: reading.clock_mhz,
        });
        self.board.clock_mhz = sample.map_or(0, |sample| sample.clock_mhz).max(self.board.clock_mhz);
        Ok(sample)
    }
}

/// The rungs nearest to the parts of the GPU, the smaller one of two.
fn counts(rungs: &[Sms]) -> Vec<Sms> {
    let whole = rungs.last().map_or(0, |sms| sms.0);
    let nearest = |part: &u16| rungs.iter().copied().min_by_key(|sms| sms.0.abs_diff(whole / part));
    let mut counts: Vec<Sms> = PARTS.iter().filter_map(nearest).collect();
    counts.dedup();
    counts
}

/// Below what any sensor resolves.
fn hundredths(watts: f64) -> f64 {
    (watts * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_read_on_the_rungs_nearest_to_an_eighth_a_quarter_a_half_and_all() {
        let counts =
            |rungs: &[u16]| counts(&rungs.iter().map(|&sms| Sms(sms)).collect::<Vec<_>>()).iter().map(|sms| sms.0).collect::<Vec<_>>();
        assert_eq!(counts(&[2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 120, 132]), [16, 32, 64, 132]);
        assert_eq!(counts(&[32, 132]), [32, 132]);
        assert_eq!(counts(&[132]), [132]);
    }
}
