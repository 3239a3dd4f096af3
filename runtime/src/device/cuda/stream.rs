//! Streams and their priorities.

use std::time::Duration;

use parking_lot::Mutex;

use super::driver::{self, Event, Stream};
use super::status::tolerate;
use crate::device::{DeviceError, PartitionId, Priority, StreamId};

/// The driver's numbers for our three priorities. The lower the number, the sooner blocks are scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriorityLevels {
    least: i32,
    greatest: i32,
}

impl PriorityLevels {
    /// Those of the current context.
    pub fn of_current_context() -> Result<Self, DeviceError> {
        let (least, greatest) = driver::context_priority_range()?;
        Ok(Self { least, greatest })
    }

    /// The number for `priority`. Where the driver has only two levels, normal is the lower one.
    pub fn level(self, priority: Priority) -> i32 {
        match priority {
            Priority::Low => self.least,
            Priority::Normal => self.least + (self.greatest - self.least) / 2,
            Priority::High => self.greatest,
        }
    }
}

/// The streams of a device that were not given back; they are destroyed when dropped.
#[derive(Default)]
pub struct Streams(Mutex<Vec<(PartitionId, Stream)>>);

impl Streams {
    /// Keeps `stream`, which is in `partition`, until it is released, or the device closed.
    pub fn keep(&self, partition: PartitionId, stream: Stream) -> Stream {
        self.0.lock().push((partition, stream));
        stream
    }

    /// How many streams are in `partition`.
    pub fn inside(&self, partition: PartitionId) -> usize {
        self.0.lock().iter().filter(|(inside, _)| *inside == partition).count()
    }

    /// Destroys `stream`; the driver finishes what is enqueued on it first. A stream that is not kept here is left alone.
    pub fn release(&self, stream: Stream) -> Result<(), DeviceError> {
        let mut kept = self.0.lock();
        match kept.iter().position(|&(_, known)| StreamId::from(known) == StreamId::from(stream)) {
            Some(at) => driver::stream_destroy(kept.swap_remove(at).1),
            None => Ok(()),
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for (_, stream) in self.0.get_mut().drain(..) {
            tolerate(driver::stream_destroy(stream));
        }
    }
}

/// Device time from `start` to `end`; zero if they happened the other way round. The driver's resolution is about half a microsecond.
pub fn elapsed(start: Event, end: Event) -> Result<Duration, DeviceError> {
    driver::event_elapsed_ms(start, end).map(from_milliseconds)
}

fn from_milliseconds(milliseconds: f32) -> Duration {
    // The cast turns negative numbers and NaN into zero.
    Duration::from_nanos((f64::from(milliseconds) * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_priority_leaves_room_below_and_above() {
        let levels = PriorityLevels { least: 0, greatest: -5 };
        assert_eq!([Priority::Low, Priority::Normal, Priority::High].map(|priority| levels.level(priority)), [0, -2, -5]);
    }

    #[test]
    fn elapsed_times_keep_fractions_of_a_microsecond_and_are_never_negative() {
        assert_eq!(from_milliseconds(0.001_5), Duration::from_nanos(1500));
        assert_eq!(from_milliseconds(-1.0), Duration::ZERO);
        assert_eq!(from_milliseconds(f32::NAN), Duration::ZERO);
    }
}
