//! Devices: a GPU, or the simulator, which takes the same calls and computes nothing.

use std::ffi::{c_char, c_void};
use std::mem::{MaybeUninit, size_of};
use std::path::Path;
use std::sync::Arc;

use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::device::{Device, DevicePtr};
use smidgen_runtime::profile::Profile;

use crate::arguments::{Sized32, bytes, fill, given, hand_out, handle, take_back, text, values};
use crate::status::{Failure, guard, smidgen_status};

/// A GPU, real or simulated. May be used by all threads at once.
pub struct smidgen_device {
    pub(crate) device: Arc<dyn Device>,
}

/// For a Rust program that hands a device of its own to C code.
impl From<Arc<dyn Device>> for smidgen_device {
    fn from(device: Arc<dyn Device>) -> Self {
        Self { device }
    }
}

/// What a device is made of.
#[repr(C)]
pub struct smidgen_device_info {
    /// sizeof(smidgen_device_info), set by the caller.
    pub struct_size: u32,
    /// 1 where times are virtual and nothing is computed, else 0. Every figure that comes from such a device must say so.
    pub simulated: u32,
    /// SMs that this process may use.
    pub sms: u32,
    /// SMs of a TPC, the smallest part that a partition can hold.
    pub sms_per_tpc: u32,
    /// Compute capability, the part before the dot.
    pub compute_major: u32,
    /// Compute capability, the part after the dot.
    pub compute_minor: u32,
    /// CUDA version of the driver: 13000 is 13.0.
    pub driver_version: u32,
    /// Bytes of shared memory that one SM offers to resident blocks.
    pub shared_bytes_per_sm: u32,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Bytes of it that are free now.
    pub free_bytes: u64,
    /// The GPU's name, cut off after 63 bytes, NUL-terminated.
    pub name: [c_char; 64],
}

// SAFETY: `struct_size` is the first field.
unsafe impl Sized32 for smidgen_device_info {
    const NAME: &'static str = "smidgen_device_info";
}

/// Opens the GPU with this number among those that the process may see (CUDA_VISIBLE_DEVICES), in its primary context, which the CUDA
/// runtime and its libraries use too. Set CUDA_DEVICE_MAX_CONNECTIONS=32 in the environment before the program starts, or partitions may wait
/// for each other's launches. SMIDGEN_STATUS_NO_GPU where there is none.
#[unsafe(no_mangle)]
pub extern "C" fn smidgen_device_open_cuda(ordinal: u32, device: Option<&mut MaybeUninit<*mut smidgen_device>>) -> smidgen_status {
    guard(|| hand_out(device, "device", || Ok(smidgen_device { device: open_cuda(ordinal)? })))
}

#[cfg(feature = "cuda-13000")]
fn open_cuda(ordinal: u32) -> Result<Arc<dyn Device>, Failure> {
    Ok(smidgen_runtime::device::cuda::CudaDevice::open(ordinal)?)
}

#[cfg(not(feature = "cuda-13000"))]
fn open_cuda(_ordinal: u32) -> Result<Arc<dyn Device>, Failure> {
    let message = "this library was built without CUDA; build smidgen-capi with its feature `cuda-13000`, or open the simulator";
    Err(Failure::new(smidgen_status::NO_GPU, message))
}

/// Opens a simulated H200. It takes every call that a GPU takes; kernels take the time that the `profile_count` profile files say or, where
/// they say nothing, a roofline's; nothing is computed, and what is downloaded is zeros unless it was a small upload. Its streams are
/// numbers, no CUstream: hand them to no library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_device_open_simulator(
    profiles: *const *const c_char,
    profile_count: usize,
    device: Option<&mut MaybeUninit<*mut smidgen_device>>,
) -> smidgen_status {
    guard(|| {
        hand_out(device, "device", || {
            // SAFETY: the caller's promise is passed on.
            let paths = unsafe { values(profiles, profile_count, "profiles") }?;
            let read = |&path: &*const c_char| -> Result<Profile, Failure> {
                // SAFETY: the caller's promise is passed on.
                let path = unsafe { text(path, "profiles") }?;
                Ok(Profile::read(Path::new(path))?)
            };
            let profiles = paths.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            Ok(smidgen_device { device: SimDevice::new(SimConfig::h200().with_profiles(&profiles)) })
        })
    })
}

/// Closes a device and makes `*device` null. Runtimes, sessions and graphs of it go on, and hold the GPU until they are destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_device_close(device: Option<&mut *mut smidgen_device>) -> smidgen_status {
    // SAFETY: the caller's promise is passed on.
    guard(|| unsafe { take_back(device, "device") }.map(drop))
}

/// Says what the device is made of.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_device_describe(device: *mut smidgen_device, info: *mut smidgen_device_info) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let device = &unsafe { handle(device, "device") }?.device;
        let describe = || {
            let topology = device.topology();
            let mut name = [0; 64];
            for (target, byte) in name[..63].iter_mut().zip(topology.name.bytes()) {
                *target = byte as c_char;
            }
            Ok(smidgen_device_info {
                struct_size: size_of::<smidgen_device_info>() as u32,
                simulated: device.is_simulated().into(),
                sms: topology.sms.get(),
                sms_per_tpc: topology.sms_per_tpc.into(),
                compute_major: topology.compute_capability.0.into(),
                compute_minor: topology.compute_capability.1.into(),
                driver_version: topology.driver_version,
                shared_bytes_per_sm: topology.shared_bytes_per_sm,
                memory_bytes: topology.memory_bytes,
                free_bytes: device.free_bytes()?,
                name,
            })
        };
        // SAFETY: the caller's promise is passed on.
        unsafe { fill(info, "info", describe) }
    })
}

/// Makes the device's CUDA context current on the calling thread, for CUDA calls of the engine's own. The library's calls do so themselves.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_device_bind_thread(device: *mut smidgen_device) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let device = unsafe { handle(device, "device") }?;
        Ok(device.device.bind_thread()?)
    })
}

/// Loads `image_bytes` bytes of kernels, a fatbin or PTX text, for sessions to launch by symbol. The simulator takes anything.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_device_load(device: *mut smidgen_device, image: *const c_void, image_bytes: usize) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let device = unsafe { handle(device, "device") }?;
        // SAFETY: the caller's promise is passed on.
        let image = unsafe { bytes(image, image_bytes, "image") }?;
        Ok(device.device.load(image)?)
    })
}

/// Device memory that counts to no tenant, aligned to 256 bytes and not cleared; memory that the engine got from CUDA itself does as well. What a
/// tenant promises comes from smidgen_session_allocate. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_device_allocate(
    device: *mut smidgen_device,
    size: u64,
    address: Option<&mut MaybeUninit<u64>>,
) -> smidgen_status {
    guard(|| {
        let address = given(address, "address")?;
        address.write(0);
        // SAFETY: the caller's promise is passed on.
        let device = unsafe { handle(device, "device") }?;
        address.write(device.device.allocate(size.max(1))?.0);
        Ok(())
    })
}

/// Gives back what smidgen_device_allocate returned, when no launch uses it any more; 0 is passed over.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_device_free(device: *mut smidgen_device, address: u64) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let device = unsafe { handle(device, "device") }?;
        if address != 0 {
            device.device.free(DevicePtr(address));
        }
        Ok(())
    })
}

/// Nanoseconds since the device was opened: real ones on a GPU, virtual ones on the simulator, where time passes only while a call waits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_device_now(device: *mut smidgen_device, nanoseconds: Option<&mut MaybeUninit<u64>>) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let device = unsafe { handle(device, "device") }?;
        given(nanoseconds, "nanoseconds")?.write(device.device.now().as_nanos() as u64);
        Ok(())
    })
}
