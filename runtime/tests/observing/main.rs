//! What a runtime shows of itself: a timeline, metrics, kernels without profiles, and profiles that have drifted.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use serde_json::Value;
use smidgen_runtime::device::sim::{KernelTrace, SimConfig, SimDevice};
use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::{CapturedGraph, Kernel, KernelKey, LaunchError, Session, WorkId};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Draft, KernelDemand, Krisp, Policy, Slo, StaticEqual, TenantDemand};
use smidgen_runtime::profile::{DriftReport, ProfileStore};
use smidgen_runtime::telemetry::chrome::{self, Phase};
use smidgen_runtime::telemetry::trace::{Event, Happening, Lane, TenantTrace, Trace};
use smidgen_runtime::telemetry::{Recording, RequestLog, metrics as names};
use smidgen_runtime::tenant::{Class, Share, TenantId, TenantSpec};
use smidgen_runtime::{Runtime, RuntimeOptions, Unprofiled};

mod corrections;
mod metrics_by_tenant;
mod spans;
#[path = "../support/mod.rs"]
mod support;
mod timeline;

use support::{Fake, Gpu};

const KERNELS: [Fake; 3] = [Fake::new("gemm"), Fake::new("attention"), Fake::new("norm")];
const MS: Duration = Duration::from_millis(1);

fn tenant(name: &str) -> TenantSpec {
    TenantSpec { name: name.into(), class: Class::Latency, slo: Some(20 * MS), memory_bytes: 1 << 30 }
}

/// A GPU whose kernels take `slower` times as long, kernel by kernel, as the profiles in the store say.
fn drifted(slower: [f64; 3]) -> (Gpu, Arc<ProfileStore>) {
    let reference = SimDevice::new(SimConfig::h200());
    let figures = |factors: [f64; 3]| [0, 1, 2].map(|at| (KERNELS[at], [100.0, 60.0, 40.0][at] * factors[at], [64, 32, 16][at]));
    let truth = support::profile(&*reference, &figures(slower));
    let gpu = Gpu::new(SimConfig::h200().with_profiles(&[truth]));
    let store = support::store(&*gpu.device, support::profile(&*gpu.device, &figures([1.0; 3])));
    (gpu, store)
}

fn request(session: &mut Session) {
    KERNELS.iter().for_each(|kernel| session.launch(kernel).unwrap());
}

/// One tenant under `policy`, whose kernels are known.
fn serving(gpu: &Gpu, policy: impl Policy + 'static, profiles: Arc<ProfileStore>, recording: Recording) -> (Runtime, TenantId, Session) {
    let runtime = Runtime::with_options(
        Arc::clone(&gpu.device),
        Box::new(policy),
        profiles,
        RuntimeOptions { recording, ..RuntimeOptions::default() },
    );
    let id = runtime.admit(tenant("chat")).unwrap();
    let mut session = runtime.session(id).unwrap();
    request(&mut session);
    runtime.learn(id, session.seen()).unwrap();
    session.device().synchronize(session.stream()).unwrap();
    (runtime, id, session)
}

/// Serves `rounds` of 100 requests each and looks for drift after each round. The reports.
fn watched(runtime: &Runtime, session: &mut Session, rounds: usize) -> Vec<DriftReport> {
    let mut reports = Vec::new();
    for _ in 0..rounds {
        (0..100).for_each(|_| request(session));
        session.device().synchronize(session.stream()).unwrap();
        reports.extend(runtime.correct().unwrap());
    }
    reports
}
