//! What the C interface adds to the launch path: no allocation. Counted on a device that does nothing.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use smidgen_capi::{
    SMIDGEN_LAUNCH_ELASTIC, smidgen_class, smidgen_device, smidgen_graph_destroy, smidgen_kernel, smidgen_key, smidgen_launch,
    smidgen_name_get, smidgen_opaque, smidgen_runtime_admit, smidgen_runtime_create, smidgen_runtime_destroy, smidgen_runtime_options,
    smidgen_session_begin_capture, smidgen_session_create, smidgen_session_destroy, smidgen_session_end_capture, smidgen_session_launch,
    smidgen_session_launch_opaque, smidgen_session_replay, smidgen_status, smidgen_tenant_spec, smidgen_work,
};
use smidgen_runtime::device::Device;

#[path = "../../tests/support/mod.rs"]
mod support;

use support::counting::{Counting, allocations};
use support::idle::Idle;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

unsafe extern "C" fn configure(sms: u32, launch: *mut smidgen_launch, _: *mut std::ffi::c_void) -> i32 {
    // SAFETY: the library passes a launch of its own.
    unsafe { (*launch).grid = sms };
    0
}

#[test]
fn launches_and_replays_allocate_nothing_once_warm() {
    const OK: smidgen_status = smidgen_status::OK;
    let idle = Idle::new();
    let mut device = smidgen_device::from(Arc::clone(&idle) as Arc<dyn Device>);
    let (mut runtime, mut session, mut graph) = (MaybeUninit::uninit(), MaybeUninit::uninit(), MaybeUninit::uninit());
    let (mut tenant, mut name) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let options = smidgen_runtime_options {
        struct_size: size_of::<smidgen_runtime_options>() as u32,
        profile_count: 0,
        policy: c"static-equal".as_ptr(),
        profiles: ptr::null(),
        kernel_build: ptr::null(),
    };
    let spec = smidgen_tenant_spec {
        struct_size: size_of::<smidgen_tenant_spec>() as u32,
        tenant_class: smidgen_class::THROUGHPUT as u32,
        name: c"ours".as_ptr(),
        slo_nanoseconds: 0,
        memory_bytes: 1,
    };
    // SAFETY: everything passed is of the type that is asked for, and outlives the call.
    assert_eq!(unsafe { smidgen_runtime_create(&mut device, &options, Some(&mut runtime)) }, OK);
    // SAFETY: the call before wrote it.
    let mut runtime = unsafe { runtime.assume_init() };
    // SAFETY: as above.
    assert_eq!(unsafe { smidgen_runtime_admit(runtime, &spec, Some(&mut tenant)) }, OK);
    // SAFETY: as above.
    let tenant = unsafe { tenant.assume_init() };
    // SAFETY: as above.
    assert_eq!(unsafe { smidgen_session_create(runtime, tenant, Some(&mut session)) }, OK);
    // SAFETY: as above.
    let mut session = unsafe { session.assume_init() };
    // SAFETY: as above.
    assert_eq!(unsafe { smidgen_name_get(c"gemm".as_ptr(), Some(&mut name)) }, OK);
    // SAFETY: as above.
    let name = unsafe { name.assume_init() };

    let params = [7_u8; 64];
    let kernel = smidgen_kernel {
        struct_size: size_of::<smidgen_kernel>() as u32,
        reserved: 0,
        key: smidgen_key { name, precision: 0, rank: 3, extents: [1024, 768, 768, 0, 0, 0] },
        work: smidgen_work { flops: 1, bytes: 1 },
        configure: Some(configure),
        user: ptr::null_mut(),
        launch: smidgen_launch {
            symbol: name,
            params: params.as_ptr().cast(),
            params_bytes: 64,
            grid: 0,
            block: 128,
            shared_bytes: 0,
            blocks_per_sm: 1,
            tiles: 528,
            flags: SMIDGEN_LAUNCH_ELASTIC,
            reserved: [0; 3],
        },
    };
    let mut opaque = smidgen_opaque { struct_size: size_of::<smidgen_opaque>() as u32, sms: 0, stream: ptr::null_mut() };
    // SAFETY: as above.
    let launch = || assert_eq!(unsafe { smidgen_session_launch(session, &kernel) }, OK);
    assert!(allocations(launch) > 0, "the counter counts");

    // SAFETY: as above.
    assert_eq!(unsafe { smidgen_session_begin_capture(session) }, OK);
    launch();
    // SAFETY: as above.
    assert_eq!(unsafe { smidgen_session_end_capture(session, Some(&mut graph)) }, OK);
    // SAFETY: as above.
    let mut graph = unsafe { graph.assume_init() };
    // SAFETY: a handle that is not destroyed before the last replay.
    let replayed = unsafe { graph.as_ref() };

    let rounds = || {
        for _ in 0..1000 {
            launch();
            // SAFETY: as above.
            assert_eq!(unsafe { smidgen_session_launch_opaque(session, &kernel.key, &kernel.work, &mut opaque) }, OK);
            // SAFETY: as above.
            assert_eq!(unsafe { smidgen_session_replay(session, replayed) }, OK);
        }
    };
    assert_eq!(allocations(rounds), 0);
    assert_eq!(idle.launched(), 1002);
    assert_eq!(opaque.sms, 132);

    // SAFETY: it was handed out above and is used no more.
    assert_eq!(unsafe { smidgen_graph_destroy(Some(&mut graph)) }, OK);
    // SAFETY: as above.
    assert_eq!(unsafe { smidgen_session_destroy(Some(&mut session)) }, OK);
    // SAFETY: it was handed out above and is used no more.
    assert_eq!(unsafe { smidgen_runtime_destroy(Some(&mut runtime)) }, OK);
    // The device was never handed out: it is this function's.
    drop(device);
}
