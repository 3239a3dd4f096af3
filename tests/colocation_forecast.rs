//! What the simulator forecasts from the shipped profile, against what tenants reached on the GPU that the profile was measured on.

use std::path::Path;

use smidgen::colocate::results::{RunProvenance, TenantResult};
use smidgen::colocate::{Run, Where};

/// Requests per second.
struct Measured {
    phase: &'static str,
    chat: f64,
    embed: f64,
}

/// MEASURED on one H200 for 3 s each, with the kernels that profiles/h200.json was taken of: `chat` decodes Llama-3.2-1B, batch 8 at a context of
/// 128 tokens; `embed` runs BERT-large, batch 8 at 128 tokens; both in closed loop.
const MEASURED: [Measured; 5] = [
    Measured { phase: "alone", chat: 711.7, embed: 290.7 },
    Measured { phase: "time-slice", chat: 292.3, embed: 146.3 },
    Measured { phase: "mps-default", chat: 429.7, embed: 186.3 },
    Measured { phase: "static-equal", chat: 577.7, embed: 139.7 },
    Measured { phase: "krisp-i", chat: 462.0, embed: 165.0 },
];

/// How far a SIMULATED throughput may be from the measured one.
const TOLERANCE: f64 = 0.25;

/// The same for a tenant alone, whose forecast is little more than the sum of its profile.
const TOLERANCE_ALONE: f64 = 0.05;

#[test]
fn forecasts_from_the_shipped_profile_are_within_a_quarter_of_what_was_measured() {
    let policies = MEASURED[1..].iter().map(|measured| measured.phase.parse().unwrap()).collect();
    let run = Run {
        tenants: vec!["chat=llama-3.2-1b,class=latency".parse().unwrap(), "embed=bert-large".parse().unwrap()],
        policies,
        seconds: 0.5,
        profiles: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/h200.json")],
        place: Where::Sim,
    };
    let provenance = RunProvenance {
        command: String::new(),
        commit: String::new(),
        gpu: "simulated H200".to_owned(),
        sms: 132,
        driver: String::new(),
        date: String::new(),
        simulated: true,
        seconds: run.seconds,
    };
    let simulated = run.execute(provenance, |_| ()).unwrap();
    let phases = std::iter::once(&simulated.alone).chain(simulated.policies.iter().map(|policy| &policy.tenants));
    for (measured, tenants) in MEASURED.iter().zip(phases) {
        let tolerance = if measured.phase == "alone" { TOLERANCE_ALONE } else { TOLERANCE };
        for (name, measured_rate) in [("chat", measured.chat), ("embed", measured.embed)] {
            let TenantResult { throughput, .. } = tenants.iter().find(|tenant| tenant.name == name).unwrap();
            let error = throughput / measured_rate - 1.0;
            let phase = measured.phase;
            assert!(
                error.abs() <= tolerance,
                "{phase}, {name}: simulated {throughput:.1}/s, measured {measured_rate}/s, {:+.1}%",
                error * 100.0
            );
        }
    }
}
