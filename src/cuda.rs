//! The GPU with our kernels on it.

use std::sync::Arc;

use smidgen_runtime::device::{Device, DeviceError};

use crate::fatbin::FATBIN;

/// Opens the first GPU and loads the kernels built into this binary.
///
/// # Errors
/// [`DeviceError::NoKernels`] if there are none, [`DeviceError::NoGpu`] or [`DeviceError::OldDriver`] if there is nothing to run them on.
#[cfg(feature = "cuda-13000")]
pub fn open() -> Result<Arc<dyn Device>, DeviceError> {
    let fatbin = FATBIN.ok_or(DeviceError::NoKernels)?;
    let device = smidgen_runtime::device::cuda::CudaDevice::open(0)?;
    device.load(fatbin)?;
    Ok(device)
}

/// This build has no CUDA back end.
///
/// # Errors
/// Always: [`DeviceError::NoGpu`], naming the feature that is off.
#[cfg(not(feature = "cuda-13000"))]
pub fn open() -> Result<Arc<dyn Device>, DeviceError> {
    let _ = FATBIN;
    Err(DeviceError::NoGpu("this binary was built without the feature `cuda-13000`".into()))
}
