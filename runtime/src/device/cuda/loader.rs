//! Finds the driver before anything calls it. cudarc loads each symbol at its first use and panics if the library or the symbol is missing,
//! so everything is looked up here first and a machine without a GPU, or with an old driver, gets an error instead.

use std::sync::OnceLock;

use libloading::Library;

use super::driver;
use crate::device::DeviceError;

/// CUDA 13.0, in the encoding of `cuDriverGetVersion`.
pub const NEEDED_DRIVER: u32 = 13000;

/// The names under which cudarc finds the driver, in its order.
const FILE_NAMES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };

/// The driver library, loaded once and kept: its functions stay in use until the process ends.
fn library() -> Result<&'static Library, DeviceError> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let loaded = LIBRARY.get_or_init(|| {
        let mut reasons = Vec::new();
        for &name in FILE_NAMES {
            // SAFETY: the library's initialisers run; those of NVIDIA's driver may run on any thread at any time.
            match unsafe { Library::new(name) } {
                Ok(library) => return Ok(library),
                Err(reason) => reasons.push(reason.to_string()),
            }
        }
        Err(reasons.join("; "))
    });
    loaded.as_ref().map_err(|reasons| DeviceError::NoGpu(format!("the driver library cannot be loaded ({reasons})")))
}

fn require(library: &Library, symbol: &str) -> Result<(), DeviceError> {
    // SAFETY: the address is dropped unused, so its type does not matter.
    match unsafe { library.get::<*const ()>(symbol) } {
        Ok(_) => Ok(()),
        Err(_) => Err(DeviceError::NoGpu(format!("the driver library lacks `{symbol}`; it is broken, or not NVIDIA's"))),
    }
}

/// Whether a driver library is installed.
pub fn find_library() -> Result<(), DeviceError> {
    library().map(drop)
}

/// The CUDA version that the installed driver supports, whether or not it is new enough.
pub fn driver_version() -> Result<u32, DeviceError> {
    require(library()?, "cuDriverGetVersion")?;
    driver::version()
}

/// Starts the driver and returns its version. May be called again at no cost.
///
/// # Errors
/// [`DeviceError::NoGpu`] with the reason, [`DeviceError::OldDriver`], or what MPS says if its daemon refuses this process.
pub fn initialize() -> Result<u32, DeviceError> {
    let found = driver_version()?;
    if found < NEEDED_DRIVER {
        return Err(DeviceError::OldDriver { found, needed: NEEDED_DRIVER });
    }
    let library = library()?;
    driver::SYMBOLS.iter().try_for_each(|symbol| require(library, symbol))?;
    driver::init()?;
    Ok(found)
}
