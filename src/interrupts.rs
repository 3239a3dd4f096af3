//! Interrupts (SIGINT, SIGTERM, SIGHUP), held back from ending the process while it has something that it must not leave behind: an MPS daemon, half a file.
//! One that the process was told to ignore, as `nohup` does, stays ignored.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::{fs, io};

use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// While one lives, an interrupt is noted and does not end the process. Whoever holds it looks soon whether one came, and ends in order.
#[derive(Debug)]
pub struct Held(());

/// Handlers are installed once: one that is taken away again leaves the signal ignored.
#[derive(Default)]
struct Interrupts {
    installed: bool,
    /// How many [`Held`] live.
    holders: usize,
    /// Whether one came while they did.
    came: Arc<AtomicBool>,
    /// Whether interrupts do what they usually do.
    end_the_process: Arc<AtomicBool>,
}

static INTERRUPTS: LazyLock<Mutex<Interrupts>> = LazyLock::new(Mutex::default);

/// Holds interrupts back.
///
/// # Errors
/// What the system says.
pub fn hold() -> io::Result<Held> {
    let mut interrupts = INTERRUPTS.lock();
    if interrupts.holders == 0 {
        interrupts.came.store(false, Ordering::Relaxed);
        interrupts.end_the_process.store(false, Ordering::Relaxed);
    }
    interrupts.install()?;
    interrupts.holders += 1;
    Ok(Held(()))
}

impl Held {
    /// Whether an interrupt came since the first of those who hold them began.
    pub fn came(&self) -> bool {
        INTERRUPTS.lock().came.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut interrupts = INTERRUPTS.lock();
        interrupts.holders -= 1;
        interrupts.end_the_process.store(interrupts.holders == 0, Ordering::Relaxed);
    }
}

impl Interrupts {
    fn install(&mut self) -> io::Result<()> {
        if self.installed {
            return Ok(());
        }
        let ignored = ignored();
        for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !contains(ignored, signal)) {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&self.end_the_process))?;
            signal_hook::flag::register(signal, Arc::clone(&self.came))?;
        }
        self.installed = true;
        Ok(())
    }
}

/// The signals that this process ignores, as a mask. Where the system does not tell, none: proc(5), "SigIgn".
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Signal 1 is bit 0.
fn contains(mask: u64, signal: c_int) -> bool {
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_noted_while_anybody_holds_it_and_forgotten_by_the_next() {
        // Whoever runs the tests in the background may have them ignore some.
        let ignored = ignored();
        for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !contains(ignored, signal)) {
            let first = hold().unwrap();
            let second = hold().unwrap();
            assert!(!second.came(), "signal {signal}");
            drop(first);
            signal_hook::low_level::raise(signal).unwrap();
            assert!(second.came(), "signal {signal}");
        }
    }
}
