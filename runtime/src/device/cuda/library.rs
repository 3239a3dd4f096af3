//! Loaded kernels: fatbins, and the entry points found in them.

use std::collections::HashMap;
use std::env;
use std::ffi::{CString, c_int};

use cudarc::driver::sys::{CUdevice, CUdevice_attribute, CUfunction_attribute, CUshared_carveout};
use parking_lot::RwLock;

use super::driver::{self, Kernel};
use super::status::tolerate;
use crate::device::{DeviceError, FunctionId};

/// First word of a fatbin (fatbinary_section.h of the CUDA toolkit, `FATBIN_MAGIC` of its contents).
const FATBIN_MAGIC: u32 = 0xba55_ed50;

/// The driver's own variable (CUDA C++ Programming Guide, lazy loading).
const LOADING: &str = "CUDA_MODULE_LOADING";

/// A library that is unloaded when dropped.
struct Library(driver::Library);

impl Library {
    /// The driver reads as far as a fatbin's header or a PTX text's NUL says, so both are checked against the slice first.
    fn load(image: &[u8]) -> Result<Self, DeviceError> {
        if fatbin_bytes(image).is_some_and(|bytes| bytes <= image.len() as u64) {
            // SAFETY: the fatbin ends inside the slice.
            return unsafe { driver::library_load(image.as_ptr().cast()) }.map(Self);
        }
        let text = image.strip_suffix(b"\0").unwrap_or(image);
        match CString::new(text) {
            // SAFETY: the text ends with a NUL. Whether it is PTX is for the driver to say.
            Ok(ptx) if ptx.to_bytes().is_ascii() => unsafe { driver::library_load(ptx.as_ptr().cast()) }.map(Self),
            _ => Err(DeviceError::Driver {
                call: "cuLibraryLoadData",
                status: format!("the {} bytes given are neither a complete fatbin nor PTX; build again", image.len()),
                sticky: false,
            }),
        }
    }
}

impl Library {
    /// Puts the code of all kernels into the context now. The driver may wait for all that runs when it loads one, and then a tenant whose new plan chooses a
    /// kernel that it has not launched before stands still for as long as its neighbours' work takes. Where the environment asks for lazy loading, it
    /// gets it: tools that instrument every loaded kernel start much sooner then.
    fn load_kernels(&self) -> Result<(), DeviceError> {
        if env::var_os(LOADING).is_some_and(|asked| asked == "LAZY") {
            return Ok(());
        }
        driver::library_kernels(self.0)?.into_iter().try_for_each(driver::kernel_load)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        tolerate(driver::library_unload(self.0));
    }
}

/// The length that a fatbin's header states, the header included: magic, version and header length (2 bytes each), body length (8 bytes).
fn fatbin_bytes(image: &[u8]) -> Option<u64> {
    let header: &[u8; 16] = image.first_chunk()?;
    let magic = u32::from_le_bytes(*header.first_chunk()?);
    let header_bytes = u16::from_le_bytes([header[6], header[7]]);
    let body_bytes = u64::from_le_bytes(*header.last_chunk()?);
    (magic == FATBIN_MAGIC).then(|| body_bytes.saturating_add(u64::from(header_bytes)))
}

/// Everything loaded on one device.
pub struct Libraries {
    device: CUdevice,
    loaded: RwLock<Vec<Library>>,
    functions: RwLock<HashMap<&'static str, FunctionId>>,
}

impl Libraries {
    pub fn of(device: CUdevice) -> Self {
        Self { device, loaded: RwLock::default(), functions: RwLock::default() }
    }

    /// Loads a fatbin or PTX. No bytes at all is what a build without a compiler holds.
    #[tracing::instrument(level = "debug", name = "load kernels", skip_all, fields(bytes = image.len()))]
    pub fn load(&self, image: &[u8]) -> Result<(), DeviceError> {
        if image.is_empty() {
            return Err(DeviceError::NoKernels);
        }
        let library = Library::load(image)?;
        library.load_kernels().unwrap_or_else(|error| tracing::warn!("kernels are loaded only when they are first wanted: {error}"));
        self.loaded.write().push(library);
        Ok(())
    }

    /// The entry point called `symbol` in the first library that has it.
    pub fn function(&self, symbol: &'static str) -> Result<FunctionId, DeviceError> {
        if let Some(&function) = self.functions.read().get(symbol) {
            return Ok(function);
        }
        let function = FunctionId::from(self.prepare(self.find(symbol)?)?);
        self.functions.write().insert(symbol, function);
        Ok(function)
    }

    fn find(&self, symbol: &str) -> Result<Kernel, DeviceError> {
        let unknown = || DeviceError::UnknownSymbol { symbol: symbol.to_owned() };
        let loaded = self.loaded.read();
        if loaded.is_empty() {
            return Err(DeviceError::NoKernels);
        }
        let name = CString::new(symbol).map_err(|_| unknown())?;
        for library in loaded.iter() {
            if let Some(kernel) = driver::library_kernel(library.0, &name)? {
                return Ok(kernel);
            }
        }
        Err(unknown())
    }

    /// Does before the first launch what would otherwise happen during it or limit it.
    fn prepare(&self, kernel: Kernel) -> Result<Kernel, DeviceError> {
        let optin = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let per_block = c_int::try_from(driver::device_attribute(self.device, optin)?).unwrap_or(c_int::MAX);
        let fixed = driver::kernel_attribute(self.device, kernel, CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let dynamic = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        driver::kernel_set_attribute(self.device, kernel, dynamic, per_block.saturating_sub(fixed))?;
        // One carveout for all: kernels that want different ones cannot share an SM, which must drain before it is reconfigured.
        let carveout = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        driver::kernel_set_attribute(self.device, kernel, carveout, CUshared_carveout::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as c_int)?;
        // Where that failed when the library was loaded: lazy loading would stall the first launch, and is not possible while a stream is captured.
        driver::kernel_load(kernel)?;
        Ok(kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fatbin(body: &[u8], stated: u64) -> Vec<u8> {
        let mut image = FATBIN_MAGIC.to_le_bytes().to_vec();
        image.extend([1, 0, 16, 0]);
        image.extend(stated.to_le_bytes());
        image.extend(body);
        image
    }

    #[test]
    fn a_fatbin_states_its_own_length() {
        assert_eq!(fatbin_bytes(&fatbin(b"body", 4)), Some(20));
        assert_eq!(fatbin_bytes(&fatbin(b"body", u64::MAX)), Some(u64::MAX));
        assert_eq!(fatbin_bytes(b".version 7.0\n.target sm_80"), None);
        assert_eq!(fatbin_bytes(b"short"), None);
    }

    #[test]
    fn a_truncated_fatbin_never_reaches_the_driver() {
        let error = Library::load(&fatbin(b"body", 5)).err().map(|error| error.to_string());
        assert!(error.as_deref().is_some_and(|error| error.contains("neither a complete fatbin nor PTX")), "{error:?}");
    }

    #[test]
    fn asking_for_a_kernel_before_anything_is_loaded_says_so() {
        let libraries = Libraries::of(0);
        assert!(matches!(libraries.function("gemm"), Err(DeviceError::NoKernels)));
        assert!(matches!(libraries.load(&[]), Err(DeviceError::NoKernels)));
    }
}
