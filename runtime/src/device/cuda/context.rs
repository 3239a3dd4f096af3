//! The primary context: the one that foreign libraries such as cuBLAS share, retained while the device is open and made current on
//! each thread that calls in.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::CUdevice;

use super::driver;
use super::status::tolerate;
use crate::device::DeviceError;

thread_local! {
    /// The serial number of the context that this thread bound last; 0 for none.
    static BOUND: Cell<u64> = const { Cell::new(0) };
}

/// A retain of a device's primary context.
pub struct PrimaryContext {
    device: CUdevice,
    context: driver::Context,
    /// Never reused, unlike the handle: a thread that bound a context since released must bind again even if the handle is the same.
    serial: u64,
}

impl PrimaryContext {
    pub fn retain(device: CUdevice) -> Result<Self, DeviceError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let context = driver::primary_context_retain(device)?;
        Ok(Self { device, context, serial: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    /// Makes the context current on this thread, unless this thread did so last.
    pub fn bind(&self) -> Result<(), DeviceError> {
        if BOUND.get() == self.serial {
            return Ok(());
        }
        driver::context_set_current(self.context)?;
        BOUND.set(self.serial);
        Ok(())
    }

    pub fn device(&self) -> CUdevice {
        self.device
    }

    pub fn handle(&self) -> driver::Context {
        self.context
    }
}

impl Drop for PrimaryContext {
    fn drop(&mut self) {
        tolerate(driver::primary_context_release(self.device));
    }
}
