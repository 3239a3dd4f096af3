//! Sessions: a tenant's chain of launches, and the graphs captured of it.

use std::ffi::c_void;
use std::mem::{MaybeUninit, size_of};
use std::ptr;
use std::sync::Arc;

use ::smidgen_runtime::Runtime;
use ::smidgen_runtime::device::{DevicePtr, Event};
use ::smidgen_runtime::launch::{CapturedGraph, OpaqueKernel, Session};
use ::smidgen_runtime::telemetry::RequestLog;
use ::smidgen_runtime::tenant::TenantId;
use ::smidgen_runtime::transfer::Uploader;
use parking_lot::{Mutex, MutexGuard};

use crate::arguments::{Sized32, bytes, fill, given, hand_out, handle, null, refused, sized, take_back};
use crate::kernel::{Described, smidgen_kernel, smidgen_key, smidgen_work};
use crate::runtime::{smidgen_runtime, smidgen_tenant};
use crate::status::{Failure, guard, smidgen_status};

/// One tenant's chain of launches: they run one after another, whichever partitions they go to. Used by one thread at a time; a second one
/// gets SMIDGEN_STATUS_BUSY.
pub struct smidgen_session {
    chain: Mutex<Chain>,
}

pub(crate) struct Chain {
    pub(crate) session: Session,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) tenant: TenantId,
    /// Through which it tells of its requests.
    pub(crate) log: RequestLog,
    /// Made by the first transfer.
    pub(crate) uploader: Option<Uploader>,
    /// The point of the chain marked last.
    pub(crate) mark: Option<Event>,
}

/// A captured chain of launches. Its nodes keep the partitions and priorities of the plan that it was captured under.
pub struct smidgen_graph {
    graph: CapturedGraph,
}

/// Where foreign work shall be enqueued.
#[repr(C)]
pub struct smidgen_opaque {
    /// sizeof(smidgen_opaque), set by the caller.
    pub struct_size: u32,
    /// SMs of the partition that the stream is in: what a library is told to size its grids for.
    pub sms: u32,
    /// The CUstream (cudaStream_t) that takes the work; on the simulator a number that stands for one.
    pub stream: *mut c_void,
}

// SAFETY: `struct_size` is the first field.
unsafe impl Sized32 for smidgen_opaque {
    const NAME: &'static str = "smidgen_opaque";
}

/// What a session has done so far.
#[repr(C)]
pub struct smidgen_stats {
    /// sizeof(smidgen_stats), set by the caller.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Kernels launched eagerly or captured.
    pub launches: u64,
    /// Changes of stream between them: each to another partition, or to another priority.
    pub hops: u64,
    /// Graphs replayed.
    pub replays: u64,
}

// SAFETY: `struct_size` is the first field.
unsafe impl Sized32 for smidgen_stats {
    const NAME: &'static str = "smidgen_stats";
}

/// Threads may share the handles: this does not compile where they cannot.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<smidgen_session>();
    shared::<smidgen_graph>();
    shared::<smidgen_runtime>();
    shared::<crate::device::smidgen_device>();
};

/// The session's chain, for this call alone.
///
/// # Safety
/// `session` is null or a handle that was not destroyed, and is not during this call.
#[inline]
pub(crate) unsafe fn enter<'a>(session: *mut smidgen_session) -> Result<MutexGuard<'a, Chain>, Failure> {
    // SAFETY: the caller's promise is passed on.
    let session = unsafe { handle(session, "session") }?;
    // Never waits: whoever has it is another thread, or further up on this one's stack.
    session.chain.try_lock().ok_or_else(busy)
}

#[cold]
fn busy() -> Failure {
    let message = "the session is in use by another thread, or by the launch that this callback belongs to; one thread uses it at a time";
    Failure::new(smidgen_status::BUSY, message)
}

/// A session for an admitted tenant. SMIDGEN_STATUS_STATE while the tenant is paused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_create(
    runtime: *mut smidgen_runtime,
    tenant: smidgen_tenant,
    session: Option<&mut MaybeUninit<*mut smidgen_session>>,
) -> smidgen_status {
    guard(|| {
        hand_out(session, "session", || {
            // SAFETY: the caller's promise is passed on.
            let runtime = Arc::clone(&unsafe { handle(runtime, "runtime") }?.runtime);
            let tenant = TenantId(tenant);
            let (session, log) = (runtime.session(tenant)?, runtime.request_log(tenant)?);
            let chain = Chain { session, runtime, tenant, log, uploader: None, mark: None };
            Ok(smidgen_session { chain: Mutex::new(chain) })
        })
    })
}

/// Waits for the chain's end, destroys the session and makes `*session` null. Its graphs can only be destroyed after that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_destroy(session: Option<&mut *mut smidgen_session>) -> smidgen_status {
    guard(|| {
        let session = given(session, "session")?;
        if !session.is_null() {
            // SAFETY: the caller's promise is passed on; what is entered is left again at the end of the line.
            drop(unsafe { enter(*session) }?);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { take_back(Some(session), "session") }.map(drop)
    })
}

/// Launches `kernel` where the plan in force places it: asks for its launch on that many SMs, goes to the partition's stream, and launches
/// with the tenant's priority and grant. Nothing in `kernel` is needed any more when it returns. The first launch of a key and of a symbol
/// takes longer than the next ones, which allocate nothing and wait for no lock.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_launch(session: *mut smidgen_session, kernel: *const smidgen_kernel) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let mut chain = unsafe { enter(session) }?;
        // SAFETY: the caller's promise is passed on.
        let kernel = unsafe { sized(kernel, "kernel") }?;
        // SAFETY: the caller's promise is passed on.
        let described = unsafe { Described::new(kernel) }?;
        match chain.session.launch_dyn(&described) {
            Ok(()) => Ok(()),
            Err(error) => Err(described.failure(error)),
        }
    })
}

/// Says on which stream a library's launch shall be enqueued, and how many SMs it has there. Enqueue it before the next call with this
/// session, and on that stream alone. One handle and one workspace of the library for each stream: shared between partitions they are a race.
/// During a capture the work is captured.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_launch_opaque(
    session: *mut smidgen_session,
    key: *const smidgen_key,
    work: *const smidgen_work,
    opaque: *mut smidgen_opaque,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let mut chain = unsafe { enter(session) }?;
        // SAFETY: the caller's promise is passed on.
        let key = unsafe { handle(key, "key") }?;
        // SAFETY: the caller's promise is passed on.
        let key = unsafe { key.read() }?;
        // SAFETY: the caller's promise is passed on.
        let work = unsafe { handle(work, "work") }?.read();
        let launch = || {
            let (stream, sms) = chain.session.launch_opaque(&OpaqueKernel { key, work }, |stream, sms| (stream, sms))?;
            let stream = ptr::with_exposed_provenance_mut(stream.0 as usize);
            Ok(smidgen_opaque { struct_size: size_of::<smidgen_opaque>() as u32, sms: sms.get(), stream })
        };
        // SAFETY: the caller's promise is passed on.
        unsafe { fill(opaque, "opaque", launch) }
    })
}

/// Tells the runtime what one request of the tenant launches, namely what this session has launched since it was created or its counts
/// were forgotten, and plans again. Makes partitions, so it takes milliseconds. SMIDGEN_STATUS_IMPOSSIBLE_SLO, with figures, if the
/// objective is below what the request takes alone. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_learn(session: *mut smidgen_session) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        chain.session.refuse_in_capture()?;
        Ok(chain.runtime.learn(chain.tenant, chain.session.seen())?)
    })
}

/// Counts what the session launches from zero again, for the next smidgen_session_learn.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_forget_counts(session: *mut smidgen_session) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        unsafe { enter(session) }?.session.forget_counts();
        Ok(())
    })
}

/// The CUstream that holds the end of the chain: copies and events of the engine's own that should follow the launches so far go here. It
/// may be another after the next launch. On the simulator a number that stands for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_stream(
    session: *mut smidgen_session,
    stream: Option<&mut MaybeUninit<*mut c_void>>,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        given(stream, "stream")?.write(ptr::with_exposed_provenance_mut(chain.session.stream().0 as usize));
        Ok(())
    })
}

/// Device memory that counts to the session's tenant, against what it promised in smidgen_tenant_spec: aligned to 256 bytes and not cleared. More than
/// was promised is given while there is some. It stays when the session is destroyed. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_allocate(
    session: *mut smidgen_session,
    size: u64,
    address: Option<&mut MaybeUninit<u64>>,
) -> smidgen_status {
    guard(|| {
        let address = given(address, "address")?;
        address.write(0);
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        chain.session.refuse_in_capture()?;
        address.write(chain.session.device().allocate(size.max(1))?.0);
        Ok(())
    })
}

/// Gives back what smidgen_session_allocate returned to this session or to another one of its tenant, when no launch uses it any more; 0 is passed over.
/// Where the tenant has no session any more, smidgen_device_free gives it back, and it counts to the tenant until that is dismissed. Not
/// during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_free(session: *mut smidgen_session, address: u64) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        chain.session.refuse_in_capture()?;
        if address != 0 {
            chain.session.device().free(DevicePtr(address));
        }
        Ok(())
    })
}

/// Copies `size` host bytes to device memory after the launches so far. The source may be reused when it returns. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_upload(
    session: *mut smidgen_session,
    target: u64,
    source: *const c_void,
    size: usize,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        // SAFETY: the caller's promise is passed on.
        let source = unsafe { bytes(source, size, "source") }?;
        chain.session.refuse_in_capture()?;
        Ok(chain.session.device().upload(chain.session.stream(), DevicePtr(target), source)?)
    })
}

/// Waits for the launches so far and copies `size` bytes of device memory to the host. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_download(
    session: *mut smidgen_session,
    source: u64,
    target: *mut c_void,
    size: usize,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        if target.is_null() && size > 0 {
            return Err(null("target"));
        }
        if size > isize::MAX as usize {
            return Err(refused(format!("`target` cannot have {size} bytes")));
        }
        chain.session.refuse_in_capture()?;
        // The caller's bytes may be uninitialised, so the device fills others and they are copied.
        let mut received = Vec::new();
        if received.try_reserve_exact(size).is_err() {
            return Err(Failure::new(smidgen_status::NO_MEMORY, format!("the host has no {size} bytes to copy to; copy in parts")));
        }
        received.resize(size, 0);
        chain.session.device().download(chain.session.stream(), DevicePtr(source), &mut received)?;
        if size > 0 {
            // SAFETY: the caller vouches for `size` bytes at `target`, and `received` is new.
            unsafe { ptr::copy_nonoverlapping(received.as_ptr(), target.cast(), size) };
        }
        Ok(())
    })
}

/// Sets `size` bytes of device memory to `value` after the launches so far. During a capture that is captured.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_fill(session: *mut smidgen_session, target: u64, value: u8, size: u64) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        Ok(chain.session.device().fill(chain.session.stream(), DevicePtr(target), value, size)?)
    })
}

/// From here on, launches of this session are captured and not run, until smidgen_session_end_capture on the same thread. Launch every
/// kernel once before, so that nothing has to be loaded meanwhile. During the capture this thread must not allocate, nor admit or change tenants.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_begin_capture(session: *mut smidgen_session) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let mut chain = unsafe { enter(session) }?;
        Ok(chain.session.begin_capture()?)
    })
}

/// Ends the capture and hands out its graph; to give a capture up, destroy the graph. Where the graph cannot be made, the capture has ended all the
/// same. It goes on after SMIDGEN_STATUS_NULL, _BUSY and a call from another thread, which did not reach it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_end_capture(
    session: *mut smidgen_session,
    graph: Option<&mut MaybeUninit<*mut smidgen_graph>>,
) -> smidgen_status {
    guard(|| {
        hand_out(graph, "graph", || {
            // SAFETY: the caller's promise is passed on.
            let mut chain = unsafe { enter(session) }?;
            Ok(smidgen_graph { graph: chain.session.finish_capture()? })
        })
    })
}

/// Sets `current` to whether the plan that `graph` was captured under is still in force for this tenant. If it is not, capture again: its
/// nodes keep their old partitions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_is_current(
    session: *mut smidgen_session,
    graph: Option<&smidgen_graph>,
    current: Option<&mut MaybeUninit<bool>>,
) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let mut chain = unsafe { enter(session) }?;
        let graph = given(graph, "graph")?;
        given(current, "current")?.write(chain.session.is_current(&graph.graph)?);
        Ok(())
    })
}

/// Replays a graph of this session after everything launched so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_replay(session: *mut smidgen_session, graph: Option<&smidgen_graph>) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let mut chain = unsafe { enter(session) }?;
        let graph = given(graph, "graph")?;
        Ok(chain.session.replay(&graph.graph)?)
    })
}

/// Destroys a graph and makes `*graph` null. A replay that is under way still finishes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_graph_destroy(graph: Option<&mut *mut smidgen_graph>) -> smidgen_status {
    // SAFETY: the caller's promise is passed on.
    guard(|| unsafe { take_back(graph, "graph") }.map(drop))
}

/// Waits until everything that the session launched is done. Not during a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_synchronize(session: *mut smidgen_session) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        chain.session.refuse_in_capture()?;
        Ok(chain.session.device().synchronize(chain.session.stream())?)
    })
}

/// Says what the session has done so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smidgen_session_stats(session: *mut smidgen_session, stats: *mut smidgen_stats) -> smidgen_status {
    guard(|| {
        // SAFETY: the caller's promise is passed on.
        let chain = unsafe { enter(session) }?;
        let read = || {
            let stats = chain.session.stats();
            let struct_size = size_of::<smidgen_stats>() as u32;
            Ok(smidgen_stats { struct_size, reserved: 0, launches: stats.launches, hops: stats.hops, replays: stats.replays })
        };
        // SAFETY: the caller's promise is passed on.
        unsafe { fill(stats, "stats", read) }
    })
}
