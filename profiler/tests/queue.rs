//! Kernels that ran without a profile: queued by the runtime, measured from a recorded request, planned with and queued no more.

#[allow(dead_code)] // Of the kernels, not the requests that other tests make of them.
#[path = "support/kernel.rs"]
mod kernel;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use smidgen_profiler::{Options, Origin, profile_queued};
use smidgen_runtime::Runtime;
use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::device::{Device, Sms};
use smidgen_runtime::launch::{KernelKey, Session, Work};
use smidgen_runtime::policy::Krisp;
use smidgen_runtime::profile::{Machine, Profile, ProfileStore};
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};

use kernel::{GEMM, NORM, ScriptedKernel};

/// The kernels of a request.
const KEYS: [fn() -> KernelKey; 2] = [|| KernelKey::new(GEMM, [1024, 768, 3072]), || KernelKey::new(NORM, [1024, 768])];

/// An engine with one tenant, which has served a request.
struct Engine {
    device: Arc<dyn Device>,
    runtime: Runtime,
    tenant: TenantId,
    session: Session,
    kernels: Vec<ScriptedKernel>,
}

impl Engine {
    fn new(profiles: Arc<ProfileStore>) -> Self {
        let device: Arc<dyn Device> = SimDevice::new(SimConfig::h200());
        let runtime = Runtime::new(Arc::clone(&device), Box::new(Krisp::isolated()), profiles);
        let spec = TenantSpec { name: "chat".into(), class: Class::Throughput, slo: None, memory_bytes: 1 << 30 };
        let tenant = runtime.admit(spec).unwrap();
        let session = runtime.session(tenant).unwrap();
        let kernel = |key, instance| ScriptedKernel { key, instance, work: Work { flops: 1 << 32, bytes: 1 << 23 }, configurations: 0 };
        let kernels = (0..3).flat_map(|instance| KEYS.map(|key| kernel(key(), instance))).collect();
        let mut engine = Self { device, runtime, tenant, session, kernels };
        engine.serve();
        engine.runtime.learn(tenant, engine.session.seen()).unwrap();
        engine
    }

    fn serve(&mut self) {
        self.kernels.iter().for_each(|kernel| self.session.launch(kernel).unwrap());
        self.device.synchronize(self.session.stream()).unwrap();
    }

    /// One request, profiled as far as its kernels are queued: the keys in the file then.
    fn profile(&mut self, path: &Path) -> Option<Profile> {
        self.session.start_recording();
        self.serve();
        let recorded = self.session.finish_recording();
        let origin = Origin {
            model: "chat".into(),
            kernel_build: String::new(),
            command: "an engine".into(),
            commit: String::new(),
            date: "2026-11-25".into(),
        };
        let options = Options { rungs: [8, 64].map(Sms).to_vec(), ..Options::default() };
        profile_queued(&self.runtime, recorded, &origin, &options, path, &mut ()).unwrap()
    }

    fn queued(&self) -> BTreeSet<String> {
        let tenants = self.runtime.unprofiled().into_iter();
        tenants.flat_map(|tenant| tenant.kernels).map(|key| key.to_string()).collect()
    }

    fn store(&self, path: &Path) -> Arc<ProfileStore> {
        let mut store = ProfileStore::default();
        store.add(path, Profile::read(path).unwrap(), &Machine::of(&*self.device, "")).unwrap();
        Arc::new(store)
    }
}

fn keys() -> BTreeSet<String> {
    KEYS.iter().map(|key| key().to_string()).collect()
}

#[test]
fn what_is_queued_is_profiled_from_a_recorded_request_planned_with_and_queued_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profile.json");
    let mut engine = Engine::new(Arc::default());
    assert_eq!(engine.queued(), keys());
    assert!(engine.runtime.plan().tenant(engine.tenant).unwrap().kernels.is_empty(), "all of them run on the default placement");

    let profile = engine.profile(&path).expect("there is something to profile");
    assert_eq!(profile.kernels.into_keys().collect::<BTreeSet<_>>(), keys());
    engine.runtime.set_profiles(engine.store(&path)).unwrap();
    assert!(engine.queued().is_empty());
    assert_eq!(engine.runtime.plan().tenant(engine.tenant).unwrap().kernels.len(), keys().len(), "each has a placement of its own");
    assert!(engine.profile(&path).is_none());
}

#[test]
fn only_what_is_queued_is_measured_and_what_the_file_holds_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profile.json");
    let mut whole = Engine::new(Arc::default()).profile(&path).unwrap();
    let known = whole.kernels.pop_first().unwrap();
    whole.kernels = [known.clone()].into();
    whole.write(&path).unwrap();

    let device: Arc<dyn Device> = SimDevice::new(SimConfig::h200());
    let mut store = ProfileStore::default();
    store.add(&path, whole, &Machine::of(&*device, "")).unwrap();
    let mut engine = Engine::new(Arc::new(store));
    assert!(!engine.queued().contains(&known.0) && engine.queued().len() == keys().len() - 1);
    let profile = engine.profile(&path).unwrap();
    assert_eq!(profile.kernels[&known.0].points, known.1.points);
    assert_eq!(profile.kernels.into_keys().collect::<BTreeSet<_>>(), keys());
}
