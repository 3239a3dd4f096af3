//! What the simulator forecasts from the shipped profile, against what tenants reached on the GPU that the profile was measured on: the run in
//! results/h200/colocate.json, which `smidgen colocate` wrote.

use std::fs;
use std::path::Path;

use smidgen::colocate::results::{RunResult, TenantResult};
use smidgen::colocate::spec::TenantRequest;
use smidgen::colocate::watch::Watch;
use smidgen::colocate::{Run, Where};
use smidgen::models::DecoderPhase;

/// How far a SIMULATED throughput may be from the measured one.
const TOLERANCE: f64 = 0.25;

/// The same for a tenant alone, whose forecast is little more than the sum of its profile.
const TOLERANCE_ALONE: f64 = 0.05;

#[test]
fn forecasts_from_the_shipped_profile_are_within_a_quarter_of_what_was_measured() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let measured: RunResult = serde_json::from_slice(&fs::read(root.join("results/h200/colocate.json")).unwrap()).unwrap();
    assert!(!measured.provenance.simulated, "a forecast is held against measured figures");
    let tenants = measured.alone.iter().map(|tenant| TenantRequest {
        name: tenant.name.clone(),
        model: tenant.model.clone(),
        class: tenant.class,
        slo_ms: None,
        slo_times_alone: None,
        batch: 8,
        seq: 128,
        phase: DecoderPhase::Decode,
        rate: None,
        load: None,
        stream: None,
    });
    let run = Run {
        tenants: tenants.collect(),
        policies: measured.policies.iter().map(|policy| policy.policy.parse().unwrap()).collect(),
        seconds: 0.5,
        profiles: vec![root.join("profiles/h200.json")],
        place: Where::Sim,
        watch: Watch::default(),
    };
    let simulated = run.execute(measured.provenance.clone(), |_| ()).unwrap();
    compare("alone", &simulated.alone, &measured.alone, TOLERANCE_ALONE);
    for (simulated, measured) in simulated.policies.iter().zip(&measured.policies) {
        compare(&measured.policy, &simulated.tenants, &measured.tenants, TOLERANCE);
    }
}

fn compare(phase: &str, simulated: &[TenantResult], measured: &[TenantResult], tolerance: f64) {
    assert_eq!(simulated.len(), measured.len(), "{phase}");
    for (simulated, measured) in simulated.iter().zip(measured) {
        let error = simulated.throughput / measured.throughput - 1.0;
        assert!(
            error.abs() <= tolerance,
            "{phase}, {}: SIMULATED {:.1} requests/s, measured {:.1}: {:+.1}%",
            measured.name,
            simulated.throughput,
            measured.throughput,
            error * 100.0
        );
    }
}
