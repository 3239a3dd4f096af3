//! Faults that a test asks for: what a tenant's bad launch does to itself, and what CUDA cannot keep from its neighbours.

use std::collections::BTreeMap;

use crate::device::DeviceError;

/// What goes wrong with a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The driver refuses the launch, and nothing else happens.
    Refuse,
    /// The kernel runs, reads an address that nobody allocated when it ends, and takes the context with it: every later call of everybody fails.
    Crash,
}

/// Faults to come, and the one that lost the context.
#[derive(Debug, Default)]
pub(super) struct Faults {
    coming: BTreeMap<&'static str, Fault>,
    lost_to: Option<&'static str>,
}

impl Faults {
    pub(super) fn inject(&mut self, symbol: &'static str, fault: Fault) {
        self.coming.insert(symbol, fault);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost_to.is_some()
    }

    /// What every call answers once the context is lost.
    pub(super) fn check(&self, call: &'static str) -> Result<(), DeviceError> {
        match self.lost_to {
            None => Ok(()),
            Some(symbol) => Err(DeviceError::Driver { call, status: format!("an illegal address was read by `{symbol}`"), sticky: true }),
        }
    }

    /// Whether a launch is refused.
    pub(super) fn refuse(&mut self, symbol: &'static str) -> Result<(), DeviceError> {
        if self.coming.get(symbol) != Some(&Fault::Refuse) {
            return Ok(());
        }
        self.coming.remove(symbol);
        Err(super::refused("simLaunch", format!("`{symbol}` was told to fail")))
    }

    pub(super) fn kernel_ended(&mut self, symbol: &'static str) {
        if self.coming.get(symbol) == Some(&Fault::Crash) {
            self.coming.remove(symbol);
            self.lost_to = Some(symbol);
        }
    }
}
