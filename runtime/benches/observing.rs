//! What being observed costs a launch: host nanoseconds of `Session::launch` on a device that does nothing.
//!
//! Four sessions take turns, so that what disturbs one disturbs all: one that is not observed; one of a runtime that neither traces nor
//! samples; one that samples; one that traces, too. Run it with `cargo bench -p smidgen-runtime --bench observing`.

use std::sync::Arc;
use std::time::Instant;

use smidgen_runtime::device::{Device, Sms};
use smidgen_runtime::launch::grant::Grant;
use smidgen_runtime::launch::{Placement, Plan, PlanCell, Session, TenantPlan, Walls};
use smidgen_runtime::policy::DefaultSharing;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::telemetry::Recording;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::{Runtime, RuntimeOptions};

#[path = "../tests/support/mod.rs"]
mod support;

use support::Fake;
use support::idle::Idle;

const KERNELS: [Fake; 4] = [Fake::new("gemm").elastic(), Fake::new("attention").elastic(), Fake::new("norm"), Fake::new("lookup")];

/// Launches in one sample.
const LAUNCHES: usize = 4_000;
const ROUNDS: usize = 2_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Idle::new() as Arc<dyn Device>;
    let mut plan = Plan::default();
    let grant = device.topology().all_tpcs();
    let whole = TenantPlan { owned: grant, grant, default: Placement::whole(Sms(132)), kernels: [].into(), walls: Walls::default() };
    plan.tenants.insert(TenantId(0), whole);
    let plans = PlanCell::new(plan);
    let unobserved = Session::new(&device, &plans, TenantId(0), Arc::new(Grant::new(&device)?))?;
    let observed = |recording| {
        let runtime = Runtime::with_options(
            Arc::clone(&device),
            Box::new(DefaultSharing),
            Arc::new(ProfileStore::default()),
            RuntimeOptions { recording, ..RuntimeOptions::default() },
        );
        let spec = TenantSpec { name: "seen".into(), class: Class::Throughput, slo: None, memory_bytes: 1 };
        let session = runtime.session(runtime.admit(spec)?)?;
        Ok::<_, Box<dyn std::error::Error>>((session, runtime))
    };
    let (off, _off) = observed(Recording { events: 0, sampling: false })?;
    let (sampling, _sampling) = observed(Recording { events: 0, sampling: true })?;
    let (tracing, _tracing) = observed(Recording { events: 1 << 12, sampling: true })?;
    let mut sessions = [("not observed", unobserved), ("observed, off", off), ("sampling", sampling), ("sampling and tracing", tracing)];
    let mut samples = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        for at in 0..sessions.len() {
            // Nobody is always the first.
            let at = (at + round) % sessions.len();
            let session = &mut sessions[at].1;
            let begun = Instant::now();
            for _ in 0..LAUNCHES / KERNELS.len() {
                KERNELS.iter().try_for_each(|kernel| session.launch(kernel))?;
            }
            samples[at].push(begun.elapsed().as_nanos() as f64 / LAUNCHES as f64);
        }
    }
    println!("host ns per launch, {ROUNDS} samples of {LAUNCHES} launches: 5th percentile, median");
    for ((name, _), samples) in sessions.iter().zip(&mut samples) {
        samples.sort_by(f64::total_cmp);
        println!("{name:<22} {:6.1} {:6.1}", samples[ROUNDS / 20], samples[ROUNDS / 2]);
    }
    Ok(())
}
