//! Thin functions over the driver's own: one foreign call each, its status as a `Result`, its outputs as return values. They own nothing
//! and decide nothing; the other files of this room do. None may be called before [`super::loader::initialize`] has succeeded, except
//! [`version`].
//!
//! Handles are typed, and come from the driver or, as ids, back through the [`Device`](crate::device::Device) contract, whose callers pass
//! only live ids of that device. The SAFETY lines below rest on that.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use super::loader::NEEDED_DRIVER;
use super::status::{check, describe, error};
use crate::device::{
    DeviceError, DevicePtr, Element, EncodedMaps, EventId, FunctionId, GraphId, Launch, MAX_DIMENSIONS, ParamBytes, Params, StreamId,
    Swizzle, TensorMap, TilesArg,
};

/// Every driver function called in this room, by the name that the library exports.
pub const SYMBOLS: &[&str] = &[
    "cuCtxGetDevResource",
    "cuCtxGetStreamPriorityRange",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDevResourceGenerateDesc",
    "cuDevSmResourceSplitByCount",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetDevResource",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuFuncLoad",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphGetNodes",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGreenCtxCreate",
    "cuGreenCtxDestroy",
    "cuGreenCtxGetDevResource",
    "cuGreenCtxStreamCreate",
    "cuInit",
    "cuKernelGetAttribute",
    "cuKernelGetFunction",
    "cuKernelSetAttribute",
    "cuLaunchKernelEx",
    "cuLibraryEnumerateKernels",
    "cuLibraryGetKernel",
    "cuLibraryGetKernelCount",
    "cuLibraryLoadData",
    "cuLibraryUnload",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuPointerGetAttribute",
    "cuStreamBatchMemOp_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuTensorMapEncodeTiled",
];

/// A handle that the driver gave out. Copying it copies a name, not what it names.
pub struct Handle<T>(*mut T);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Handle<T> {}

// SAFETY: the driver's functions may be called from any thread with handles made on any other. Green contexts are the exception, one thread
// at a time (cuda.h, `CUgreenCtx`); `partition.rs` keeps them behind a lock.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// The handle as the driver knows it.
    pub fn raw(self) -> *mut T {
        self.0
    }

    fn id(self) -> u64 {
        self.0.expose_provenance() as u64
    }

    fn of(id: u64) -> Self {
        Self(ptr::with_exposed_provenance_mut(id as usize))
    }
}

pub type Context = Handle<sys::CUctx_st>;
pub type GreenContext = Handle<sys::CUgreenCtx_st>;
pub type Library = Handle<sys::CUlib_st>;
pub type Stream = Handle<sys::CUstream_st>;
pub type Kernel = Handle<sys::CUkern_st>;
pub type Event = Handle<sys::CUevent_st>;
pub type CapturedGraph = Handle<sys::CUgraph_st>;
pub type ExecutableGraph = Handle<sys::CUgraphExec_st>;

macro_rules! handle_ids {
    ($($handle:ty = $id:ident),*) => {$(
        impl From<$handle> for $id {
            fn from(handle: $handle) -> Self {
                Self(handle.id())
            }
        }
        impl From<$id> for $handle {
            fn from(id: $id) -> Self {
                Self::of(id.0)
            }
        }
    )*};
}
handle_ids!(Stream = StreamId, Kernel = FunctionId, Event = EventId, ExecutableGraph = GraphId);

// ---- driver and devices ----

pub fn version() -> Result<u32, DeviceError> {
    let mut version = 0;
    // SAFETY: `version` is a place for one int; this function may be called before cuInit.
    match unsafe { sys::cuDriverGetVersion(&mut version) } {
        CUresult::CUDA_SUCCESS => Ok(u32::try_from(version).unwrap_or(0)),
        // Not `describe`: nothing is known yet about what else this library exports.
        status => Err(DeviceError::NoGpu(format!("cuDriverGetVersion failed: {status:?}"))),
    }
}

pub fn init() -> Result<(), DeviceError> {
    // SAFETY: 0 is the only flag there is; repeated calls do nothing.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => Ok(()),
        // Here the GPU and its driver are fine, and installing them again would not help.
        status @ (CUresult::CUDA_ERROR_MPS_CONNECTION_FAILED
        | CUresult::CUDA_ERROR_MPS_RPC_FAILURE
        | CUresult::CUDA_ERROR_MPS_SERVER_NOT_READY
        | CUresult::CUDA_ERROR_MPS_MAX_CLIENTS_REACHED
        | CUresult::CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED
        | CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED) => Err(error("cuInit", status)),
        status => Err(DeviceError::NoGpu(format!("cuInit failed: {}", describe(status)))),
    }
}

pub fn device_count() -> Result<u32, DeviceError> {
    let mut count = 0;
    // SAFETY: `count` is a place for one int.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(u32::try_from(count).unwrap_or(0))
}

pub fn device(ordinal: u32) -> Result<sys::CUdevice, DeviceError> {
    let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    let mut device = 0;
    // SAFETY: `device` is a place for one handle; the driver refuses ordinals that it does not have.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal) })?;
    Ok(device)
}

pub fn device_name(device: sys::CUdevice) -> Result<String, DeviceError> {
    let mut name = [0_u8; 256];
    // SAFETY: the driver writes at most the 256 bytes it is told of, a NUL among them.
    let status = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast::<c_char>(), name.len() as c_int, device) };
    check("cuDeviceGetName", status)?;
    Ok(CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
}

pub fn device_attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32, DeviceError> {
    let mut value = 0;
    // SAFETY: `value` is a place for one int.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(u32::try_from(value).unwrap_or(0))
}

pub fn device_memory_bytes(device: sys::CUdevice) -> Result<u64, DeviceError> {
    let mut bytes = 0;
    // SAFETY: `bytes` is a place for one size.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut bytes, device) })?;
    Ok(bytes as u64)
}

// ---- contexts ----

pub fn primary_context_retain(device: sys::CUdevice) -> Result<Context, DeviceError> {
    let mut context = ptr::null_mut();
    // SAFETY: `context` is a place for one handle.
    check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
    Ok(Handle(context))
}

pub fn primary_context_release(device: sys::CUdevice) -> Result<(), DeviceError> {
    // SAFETY: the caller gives back its own retain, once.
    check("cuDevicePrimaryCtxRelease", unsafe { sys::cuDevicePrimaryCtxRelease_v2(device) })
}

pub fn context_set_current(context: Context) -> Result<(), DeviceError> {
    // SAFETY: the context is retained by its `PrimaryContext`.
    check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context.0) })
}

/// Waits for the current context and, if that is the primary one, for its green contexts.
pub fn context_synchronize() -> Result<(), DeviceError> {
    // SAFETY: no argument; without a current context the driver returns an error.
    check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
}

/// The least and the greatest stream priority of the current context, as numbers; the greatest is the lowest number.
pub fn context_priority_range() -> Result<(c_int, c_int), DeviceError> {
    let (mut least, mut greatest) = (0, 0);
    // SAFETY: both are places for one int.
    check("cuCtxGetStreamPriorityRange", unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest) })?;
    Ok((least, greatest))
}

// ---- SM resources and green contexts ----

fn empty_resource() -> sys::CUdevResource {
    sys::CUdevResource {
        type_: sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_INVALID,
        _internal_padding: [0; 92],
        __bindgen_anon_1: sys::CUdevResource_st__bindgen_ty_1 { _oversize: [0; 48] },
    }
}

/// The SMs in `resource`; none if it is not a set of SMs.
pub fn resource_sms(resource: &sys::CUdevResource) -> u32 {
    if resource.type_ != sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM {
        return 0;
    }
    // SAFETY: the type says that the driver wrote this member, and any bits are a valid count.
    unsafe { resource.__bindgen_anon_1.sm.smCount }
}

pub fn device_sm_resource(device: sys::CUdevice) -> Result<sys::CUdevResource, DeviceError> {
    let mut resource = empty_resource();
    let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
    // SAFETY: `resource` is a place for one resource.
    check("cuDeviceGetDevResource", unsafe { sys::cuDeviceGetDevResource(device, &mut resource, kind) })?;
    Ok(resource)
}

pub fn context_sms(context: Context) -> Result<u32, DeviceError> {
    let mut resource = empty_resource();
    let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
    // SAFETY: the context is retained, and `resource` is a place for one resource.
    check("cuCtxGetDevResource", unsafe { sys::cuCtxGetDevResource(context.0, &mut resource, kind) })?;
    Ok(resource_sms(&resource))
}

/// Splits `input` into as many groups of at least `at_least` SMs as it yields, and what is left over.
pub fn sm_resource_split(
    input: &sys::CUdevResource,
    flags: u32,
    at_least: u32,
) -> Result<(Vec<sys::CUdevResource>, sys::CUdevResource), DeviceError> {
    let mut count = 0;
    // SAFETY: without a result array the driver only writes how many groups there would be; the remainder may be null.
    let status = unsafe { sys::cuDevSmResourceSplitByCount(ptr::null_mut(), &mut count, input, ptr::null_mut(), flags, at_least) };
    check("cuDevSmResourceSplitByCount", status)?;
    let mut groups = vec![empty_resource(); count as usize];
    let mut left_over = empty_resource();
    // SAFETY: `groups` has room for the `count` groups that the driver was told of.
    let status = unsafe { sys::cuDevSmResourceSplitByCount(groups.as_mut_ptr(), &mut count, input, &mut left_over, flags, at_least) };
    check("cuDevSmResourceSplitByCount", status)?;
    groups.truncate(count as usize);
    Ok((groups, left_over))
}

/// A green context over the union of `groups`, which all come from one split.
pub fn green_context_create(device: sys::CUdevice, groups: &mut [sys::CUdevResource]) -> Result<GreenContext, DeviceError> {
    let descriptor = resource_descriptor(groups)?;
    let mut context = ptr::null_mut();
    let flags = sys::CUgreenCtxCreate_flags::CU_GREEN_CTX_DEFAULT_STREAM as u32;
    // SAFETY: the descriptor was made just now for this device, and `context` is a place for one handle.
    check("cuGreenCtxCreate", unsafe { sys::cuGreenCtxCreate(&mut context, descriptor, device, flags) })?;
    Ok(Handle(context))
}

fn resource_descriptor(groups: &mut [sys::CUdevResource]) -> Result<sys::CUdevResourceDesc, DeviceError> {
    let mut descriptor = ptr::null_mut();
    // SAFETY: `groups` are as many resources as the driver is told of, and `descriptor` is a place for one handle.
    let status = unsafe { sys::cuDevResourceGenerateDesc(&mut descriptor, groups.as_mut_ptr(), groups.len() as u32) };
    check("cuDevResourceGenerateDesc", status)?;
    Ok(descriptor)
}

pub fn green_context_destroy(context: GreenContext) -> Result<(), DeviceError> {
    // SAFETY: only its owner destroys the context, once, after the streams inside it.
    check("cuGreenCtxDestroy", unsafe { sys::cuGreenCtxDestroy(context.0) })
}

pub fn green_context_sms(context: GreenContext) -> Result<u32, DeviceError> {
    let mut resource = empty_resource();
    let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
    // SAFETY: the context is alive, and `resource` is a place for one resource.
    check("cuGreenCtxGetDevResource", unsafe { sys::cuGreenCtxGetDevResource(context.0, &mut resource, kind) })?;
    Ok(resource_sms(&resource))
}

// ---- memory ----

/// `None` where the memory is used up.
pub fn memory_allocate(bytes: usize) -> Result<Option<DevicePtr>, DeviceError> {
    let mut address = 0;
    // SAFETY: `address` is a place for one device address.
    match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
        status => check("cuMemAlloc", status).map(|()| Some(DevicePtr(address))),
    }
}

pub fn memory_free(ptr: DevicePtr) -> Result<(), DeviceError> {
    // SAFETY: the driver refuses addresses that it did not allocate.
    check("cuMemFree", unsafe { sys::cuMemFree_v2(ptr.0) })
}

pub fn memory_free_bytes() -> Result<u64, DeviceError> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both are places for one size.
    check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
    Ok(free as u64)
}

pub fn host_allocate(bytes: usize) -> Result<*mut u8, DeviceError> {
    let mut address = ptr::null_mut();
    // SAFETY: `address` is a place for one pointer; the flag is one that the driver knows.
    check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut address, bytes, sys::CU_MEMHOSTALLOC_PORTABLE) })?;
    Ok(address.cast())
}

pub fn host_free(address: *mut u8) -> Result<(), DeviceError> {
    // SAFETY: only its owner frees the memory, once; the driver refuses addresses that it did not allocate.
    check("cuMemFreeHost", unsafe { sys::cuMemFreeHost(address.cast()) })
}

/// # Safety
/// `source` must not change or go away before the stream has done the copy, unless it is pageable memory that the driver stages.
pub unsafe fn memory_copy_to_device(stream: Stream, target: DevicePtr, source: &[u8]) -> Result<(), DeviceError> {
    // SAFETY: `source` is as long as the driver is told; how long it stays is the caller's promise.
    let status = unsafe { sys::cuMemcpyHtoDAsync_v2(target.0, source.as_ptr().cast::<c_void>(), source.len(), stream.0) };
    check("cuMemcpyHtoDAsync", status)
}

/// # Safety
/// `target` must not be read or go away before the stream has done the copy.
pub unsafe fn memory_copy_to_host(stream: Stream, source: DevicePtr, target: &mut [u8]) -> Result<(), DeviceError> {
    // SAFETY: `target` is as long as the driver is told; how long it stays is the caller's promise.
    let status = unsafe { sys::cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast::<c_void>(), source.0, target.len(), stream.0) };
    check("cuMemcpyDtoHAsync", status)
}

pub fn memory_fill(stream: Stream, target: DevicePtr, value: u8, bytes: usize) -> Result<(), DeviceError> {
    // SAFETY: device memory only; the driver reports addresses that are not mapped.
    check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(target.0, value, bytes, stream.0) })
}

/// Whether the driver knows `host` as page-locked memory, which it copies from without staging.
pub fn memory_is_page_locked(host: *const u8) -> Result<bool, DeviceError> {
    let mut kind = 0_u32;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: this attribute is one unsigned int; the address is only looked up, never followed.
    match unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast::<c_void>(), attribute, host.addr() as sys::CUdeviceptr) } {
        CUresult::CUDA_ERROR_INVALID_VALUE => Ok(false),
        status => check("cuPointerGetAttribute", status).map(|()| true),
    }
}

// ---- libraries ----

/// # Safety
/// `image` must begin a complete fatbin or NUL-terminated PTX. The driver copies it.
pub unsafe fn library_load(image: *const c_void) -> Result<Library, DeviceError> {
    let mut library = ptr::null_mut();
    let (none, no_values) = (ptr::null_mut(), ptr::null_mut());
    let no_library_options = ptr::null_mut();
    // SAFETY: the image is the caller's promise; every option list is empty.
    let status = unsafe { sys::cuLibraryLoadData(&mut library, image, none, no_values, 0, no_library_options, ptr::null_mut(), 0) };
    check("cuLibraryLoadData", status)?;
    Ok(Handle(library))
}

pub fn library_unload(library: Library) -> Result<(), DeviceError> {
    // SAFETY: only its owner unloads the library, once.
    check("cuLibraryUnload", unsafe { sys::cuLibraryUnload(library.0) })
}

/// `None` where the library has no such kernel.
pub fn library_kernel(library: Library, name: &CStr) -> Result<Option<Kernel>, DeviceError> {
    let mut kernel = ptr::null_mut();
    // SAFETY: the library is loaded, `name` ends with a NUL, and `kernel` is a place for one handle.
    match unsafe { sys::cuLibraryGetKernel(&mut kernel, library.0, name.as_ptr()) } {
        CUresult::CUDA_ERROR_NOT_FOUND => Ok(None),
        status => check("cuLibraryGetKernel", status).map(|()| Some(Handle(kernel))),
    }
}

/// Every kernel of the library.
pub fn library_kernels(library: Library) -> Result<Vec<Kernel>, DeviceError> {
    let mut count = 0;
    // SAFETY: the library is loaded, and `count` is a place for one number.
    check("cuLibraryGetKernelCount", unsafe { sys::cuLibraryGetKernelCount(&mut count, library.0) })?;
    let mut kernels = vec![ptr::null_mut(); count as usize];
    // SAFETY: the library is loaded, and `kernels` has room for `count` handles.
    check("cuLibraryEnumerateKernels", unsafe { sys::cuLibraryEnumerateKernels(kernels.as_mut_ptr(), count, library.0) })?;
    Ok(kernels.into_iter().map(Handle).collect())
}

/// Loads the kernel's code into the current context now, where the first launch would otherwise do it.
pub fn kernel_load(kernel: Kernel) -> Result<(), DeviceError> {
    let mut function = ptr::null_mut();
    // SAFETY: the kernel's library is loaded, and `function` is a place for one handle.
    check("cuKernelGetFunction", unsafe { sys::cuKernelGetFunction(&mut function, kernel.0) })?;
    // SAFETY: the driver returned this function just now.
    check("cuFuncLoad", unsafe { sys::cuFuncLoad(function) })
}

pub fn kernel_attribute(device: sys::CUdevice, kernel: Kernel, attribute: sys::CUfunction_attribute) -> Result<c_int, DeviceError> {
    let mut value = 0;
    // SAFETY: the kernel's library is loaded, and `value` is a place for one int.
    check("cuKernelGetAttribute", unsafe { sys::cuKernelGetAttribute(&mut value, attribute, kernel.0, device) })?;
    Ok(value)
}

pub fn kernel_set_attribute(
    device: sys::CUdevice,
    kernel: Kernel,
    attribute: sys::CUfunction_attribute,
    value: c_int,
) -> Result<(), DeviceError> {
    // SAFETY: the kernel's library is loaded; the driver refuses values out of range.
    check("cuKernelSetAttribute", unsafe { sys::cuKernelSetAttribute(attribute, value, kernel.0, device) })
}

/// Enqueues `launch` with its two parameters. `priority` is a stream priority number; a launch that `overlaps` may start before the one before it
/// on the stream has ended.
pub fn kernel_launch(
    stream: Stream,
    kernel: Kernel,
    launch: &Launch,
    tiles: &TilesArg,
    priority: c_int,
    overlaps: bool,
) -> Result<(), DeviceError> {
    let attribute = |id, set: fn(&mut sys::CUlaunchAttributeValue, c_int), to| {
        let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
        set(&mut value, to);
        sys::CUlaunchAttribute { id, pad: [0; 4], value }
    };
    let mut attributes = [
        attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PRIORITY, |value, to| value.priority = to, priority),
        attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            |value, to| value.programmaticStreamSerializationAllowed = to,
            1,
        ),
    ];
    let config = sys::CUlaunchConfig {
        gridDimX: launch.grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: launch.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared_bytes,
        hStream: stream.0,
        attrs: attributes.as_mut_ptr(),
        numAttrs: if overlaps { 2 } else { 1 },
    };
    let mut encoded = ParamBytes::uninit();
    let params = match launch.params.plain() {
        Some(plain) => plain,
        None => {
            encode_tensor_maps(&launch.params, &mut encoded)?;
            &encoded
        }
    };
    let mut parameters = [params.as_ptr().cast_mut().cast::<c_void>(), ptr::from_ref(tiles).cast_mut().cast::<c_void>()];
    // A `CUkernel` may stand where a `CUfunction` is asked for; it runs in the stream's context, and so in its partition.
    let function = kernel.0.cast::<sys::CUfunc_st>();
    // SAFETY: whoever implemented `Kernel` vouches that the function takes these two parameters; the driver copies them before it returns.
    check("cuLaunchKernelEx", unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), ptr::null_mut()) })
}

thread_local! {
    /// Of all devices: encoding names no context. By thread, so that launches need no lock.
    static ENCODED_MAPS: RefCell<EncodedMaps> = const { RefCell::new(EncodedMaps::new()) };
}

fn encode_tensor_maps(params: &Params, place: &mut ParamBytes) -> Result<(), DeviceError> {
    let encode = |map: &TensorMap| tensor_map_encode(map).map(|encoded| encoded.opaque);
    let remembered = ENCODED_MAPS.try_with(|maps| params.encode_into(place, &mut maps.borrow_mut(), encode));
    // A thread that is ending has no table any more.
    remembered.unwrap_or_else(|_| params.encode_into(place, &mut EncodedMaps::new(), encode))
}

/// The driver's description of a matrix. It is made on the host, in well under a microsecond, and names no context.
fn tensor_map_encode(map: &TensorMap) -> Result<sys::CUtensorMap, DeviceError> {
    use sys::{CUtensorMapDataType as Type, CUtensorMapSwizzle as Layout};
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    let element_type = match map.element {
        Element::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        Element::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    };
    let swizzle = match map.swizzle {
        Swizzle::None => Layout::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes32 => Layout::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::Bytes64 => Layout::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => Layout::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let dense = [1; MAX_DIMENSIONS];
    // SAFETY: the arrays have MAX_DIMENSIONS entries (the strides one less, as the driver reads them), and the driver refuses a greater rank
    // along with all else that it cannot describe; the address is not dereferenced.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            element_type,
            u32::from(map.dimensions).min(MAX_DIMENSIONS as u32),
            map.ptr.0 as *mut c_void,
            map.sizes.as_ptr(),
            map.strides.as_ptr(),
            map.tile.as_ptr(),
            dense.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check("cuTensorMapEncodeTiled", status)?;
    Ok(encoded)
}

// ---- streams ----

const NON_BLOCKING: u32 = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;

pub fn stream_create(priority: c_int) -> Result<Stream, DeviceError> {
    let mut stream = ptr::null_mut();
    // SAFETY: `stream` is a place for one handle.
    check("cuStreamCreateWithPriority", unsafe { sys::cuStreamCreateWithPriority(&mut stream, NON_BLOCKING, priority) })?;
    Ok(Handle(stream))
}

pub fn green_context_stream_create(context: GreenContext, priority: c_int) -> Result<Stream, DeviceError> {
    let mut stream = ptr::null_mut();
    // SAFETY: the context is alive, and `stream` is a place for one handle.
    check("cuGreenCtxStreamCreate", unsafe { sys::cuGreenCtxStreamCreate(&mut stream, context.0, NON_BLOCKING, priority) })?;
    Ok(Handle(stream))
}

pub fn stream_destroy(stream: Stream) -> Result<(), DeviceError> {
    // SAFETY: only its owner destroys the stream, once.
    check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(stream.0) })
}

pub fn stream_synchronize(stream: Stream) -> Result<(), DeviceError> {
    // SAFETY: the stream is alive.
    check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.0) })
}

pub fn stream_wait(stream: Stream, event: Event) -> Result<(), DeviceError> {
    // SAFETY: both are alive; 0 is CU_EVENT_WAIT_DEFAULT.
    check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream.0, event.0, 0) })
}

/// Words that one call writes at most.
pub const WORDS_AT_ONCE: usize = 8;

/// Writes the first [`WORDS_AT_ONCE`] of `words`, one after another.
pub fn stream_write_words(stream: Stream, target: DevicePtr, words: &[u64]) -> Result<(), DeviceError> {
    use sys::CUstreamBatchMemOpType_enum::CU_STREAM_MEM_OP_WRITE_VALUE_64 as WRITE;
    type Write = sys::CUstreamBatchMemOpParams_union_CUstreamMemOpWriteValueParams_st;
    type Value = sys::CUstreamBatchMemOpParams_union_CUstreamMemOpWriteValueParams_st__bindgen_ty_1;
    let mut operations = [sys::CUstreamBatchMemOpParams_v1 { pad: [0; 6] }; WORDS_AT_ONCE];
    let mut count = 0;
    for ((operation, &word), at) in operations.iter_mut().zip(words).zip((0..).step_by(8)) {
        let value = Value { value64: word };
        let address = target.offset(at).0;
        operation.writeValue = Write { operation: WRITE, address, __bindgen_anon_1: value, flags: 0, alias: 0 };
        count += 1;
    }
    // SAFETY: `count` operations of the array are set, each of the kind that it names; the driver checks the addresses.
    check("cuStreamBatchMemOp", unsafe { sys::cuStreamBatchMemOp_v2(stream.0, count, operations.as_mut_ptr(), 0) })
}

// ---- events ----

pub fn event_create(timed: bool) -> Result<Event, DeviceError> {
    use sys::CUevent_flags as Flags;
    let mut event = ptr::null_mut();
    let flags = if timed { Flags::CU_EVENT_DEFAULT } else { Flags::CU_EVENT_DISABLE_TIMING } as u32;
    // SAFETY: `event` is a place for one handle.
    check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
    Ok(Handle(event))
}

pub fn event_destroy(event: Event) -> Result<(), DeviceError> {
    // SAFETY: only its owner destroys the event, once.
    check("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(event.0) })
}

pub fn event_record(event: Event, stream: Stream) -> Result<(), DeviceError> {
    // SAFETY: both are alive.
    check("cuEventRecord", unsafe { sys::cuEventRecord(event.0, stream.0) })
}

pub fn event_query(event: Event) -> Result<bool, DeviceError> {
    // SAFETY: the event is alive.
    match unsafe { sys::cuEventQuery(event.0) } {
        CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        status => check("cuEventQuery", status).map(|()| true),
    }
}

pub fn event_elapsed_ms(start: Event, end: Event) -> Result<f32, DeviceError> {
    let mut milliseconds = 0.0;
    // SAFETY: both are alive, and `milliseconds` is a place for one float.
    check("cuEventElapsedTime", unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, start.0, end.0) })?;
    Ok(milliseconds)
}

// ---- capture and graphs ----

pub fn stream_is_capturing(stream: Stream) -> Result<bool, DeviceError> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream is alive, and `status` is a place for one status.
    check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(stream.0, &mut status) })?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

pub fn stream_begin_capture(stream: Stream) -> Result<(), DeviceError> {
    // Thread-local: what other tenants' threads do meanwhile, such as allocating, must not spoil this capture.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream is alive.
    check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream.0, mode) })
}

pub fn stream_end_capture(stream: Stream) -> Result<CapturedGraph, DeviceError> {
    let mut graph = ptr::null_mut();
    // SAFETY: the stream is alive, and `graph` is a place for one handle.
    check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(stream.0, &mut graph) })?;
    Ok(Handle(graph))
}

/// An executable copy of `graph` whose kernels keep the priorities that they were captured with.
pub fn graph_instantiate(graph: CapturedGraph) -> Result<ExecutableGraph, DeviceError> {
    let mut executable = ptr::null_mut();
    let flags = u64::from(sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY.0);
    // SAFETY: the graph was captured and is alive, and `executable` is a place for one handle.
    check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph.0, flags) })?;
    Ok(Handle(executable))
}

/// How many nodes `graph` has.
pub fn graph_nodes(graph: CapturedGraph) -> Result<usize, DeviceError> {
    let mut nodes = 0;
    // SAFETY: the graph was captured and is alive; without a place for nodes the driver writes their number, to a place for one.
    check("cuGraphGetNodes", unsafe { sys::cuGraphGetNodes(graph.0, ptr::null_mut(), &mut nodes) })?;
    Ok(nodes)
}

pub fn graph_destroy(graph: CapturedGraph) -> Result<(), DeviceError> {
    // SAFETY: only its owner destroys the graph, once.
    check("cuGraphDestroy", unsafe { sys::cuGraphDestroy(graph.0) })
}

pub fn graph_launch(graph: ExecutableGraph, stream: Stream) -> Result<(), DeviceError> {
    // SAFETY: both are alive.
    check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0, stream.0) })
}

pub fn executable_graph_destroy(graph: ExecutableGraph) -> Result<(), DeviceError> {
    // SAFETY: only its owner destroys the graph, once; launches in flight finish first.
    check("cuGraphExecDestroy", unsafe { sys::cuGraphExecDestroy(graph.0) })
}

// The structs above are written for the headers of one CUDA version; another feature of cudarc's would lay some of them out differently.
const _: () = assert!(NEEDED_DRIVER == 13000 && size_of::<sys::CUdevResource>() == 144);

#[cfg(test)]
mod tests {
    use super::SYMBOLS;

    #[test]
    fn every_driver_function_called_here_is_looked_up_before_use() {
        let sources = concat!(include_str!("driver.rs"), include_str!("status.rs"), include_str!("loader.rs"));
        let mut called: Vec<&str> = sources
            .split("sys::")
            .skip(1)
            .filter_map(|rest| rest.split_once('(').map(|(name, _)| name))
            .filter(|name| name.starts_with("cu") && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
            .collect();
        called.sort_unstable();
        called.dedup();
        assert_eq!(called, SYMBOLS);
    }
}
