//! Grants set by hand through the runtime, on the simulator.

use std::sync::Arc;
use std::time::Duration;

use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::device::{Device, DeviceError, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Session, Work};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::DefaultSharing;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime};

/// Arithmetic for about a millisecond on the whole GPU, in tiles enough for every SM.
#[derive(Debug, Clone, Copy)]
struct Busy;

// SAFETY: the simulator runs no device code.
unsafe impl Kernel for Busy {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("busy");
        KernelKey::new(NAME, [])
    }

    fn work(&self) -> Work {
        Work { flops: 640_000_000_000, bytes: 0 }
    }

    fn configure(&self, sms: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        let tiles = 132 * 100;
        let grid = Launch::persistent_grid(tiles, sms, 1);
        Ok(Launch {
            symbol: "busy",
            grid,
            block: 128,
            shared_bytes: 0,
            blocks_per_sm: 1,
            tiles,
            blocks_per_tile: 1,
            elastic: true,
            programmatic: false,
            begins_by_number: false,
            params: Params::new(0_u64),
        })
    }
}

fn admitted() -> (Arc<dyn Device>, Runtime, TenantId) {
    let device: Arc<dyn Device> = SimDevice::new(SimConfig::h200());
    let runtime = Runtime::new(Arc::clone(&device), Box::new(DefaultSharing), Arc::new(ProfileStore::default()));
    let spec = TenantSpec { name: "tenant".to_owned(), class: Class::Throughput, slo: None, memory_bytes: 0 };
    let tenant = runtime.admit(spec).expect("an empty GPU");
    (device, runtime, tenant)
}

fn timed(device: &Arc<dyn Device>, work: impl FnOnce()) -> Duration {
    let start = device.now();
    work();
    device.now() - start
}

#[test]
fn a_grant_set_by_hand_shrinks_eager_launches_and_replays_until_the_next_plan() {
    let (device, runtime, tenant) = admitted();
    let mut session = runtime.session(tenant).expect("an admitted tenant");
    let wait = |session: &Session| device.synchronize(session.stream()).expect("the launches end");
    session.launch(&Busy).expect("a launch");
    wait(&session);
    let graph = session.capture(|session| session.launch(&Busy)).expect("a graph");
    let mut replay = || {
        timed(&device, || {
            session.replay(&graph).expect("a replay");
            wait(&session);
        })
    };
    let whole = replay();
    runtime.set_grant(tenant, TpcSet::range(0, 33)).expect("half of the TPCs");
    let half = replay().as_secs_f64() / whole.as_secs_f64();
    assert!((1.8..2.2).contains(&half), "half of the SMs took {half:.2} times as long");
    runtime.set_policy(Box::new(DefaultSharing)).expect("the same policy again");
    // The larger grant arrives while this one runs, whose blocks on the other SMs have left by then.
    replay();
    let again = replay().as_secs_f64() / whole.as_secs_f64();
    assert!((0.9..1.1).contains(&again), "the whole GPU took {again:.2} times as long after a new plan");
}

#[test]
fn a_grant_to_nobody_or_of_tpcs_that_are_not_there_is_refused() {
    let (_, runtime, tenant) = admitted();
    let beyond = runtime.set_grant(tenant, TpcSet::range(60, 70));
    assert!(matches!(beyond, Err(AdmitError::Device(DeviceError::BadPartition { tpcs: 66, .. }))), "{beyond:?}");
    runtime.dismiss(tenant).expect("it was admitted");
    let nobody = runtime.set_grant(tenant, TpcSet::range(0, 33));
    assert!(matches!(nobody, Err(AdmitError::Unknown(_))), "{nobody:?}");
}
