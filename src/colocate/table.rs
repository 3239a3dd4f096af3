//! The figures as text, for a terminal.

use std::fmt::Write;

use super::results::{RunResult, TenantResult};

/// A table of every tenant under every policy, and of the totals. Simulated figures say so on every line.
pub fn render(run: &RunResult) -> String {
    let mut lines = vec![format!(
        "{:<16} {:<12} {:<10} {:>11} {:>9} {:>9} {:>9} {:>9}  {:>5} {:>8}",
        "policy", "tenant", "class", "requests/s", "p50 ms", "p95 ms", "p99 ms", "slowdown", "total", "fairness"
    )];
    for tenant in &run.alone {
        lines.push(row("alone", tenant));
    }
    for policy in &run.policies {
        for (at, tenant) in policy.tenants.iter().enumerate() {
            let mut line = row(if at == 0 { &policy.policy } else { "" }, tenant);
            if at == 0 {
                // Writing to a String cannot fail.
                let _ = write!(line, "  {:>5.2} {:>8.2}", policy.total_normalised_throughput, policy.fairness);
            }
            lines.push(line);
        }
    }
    for policy in &run.policies {
        for prediction in policy.predicted.iter().flatten() {
            lines.push(format!(
                "SIMULATED prediction, {}, {}: {:.1} requests/s, {:+.1}% against the measured figure",
                policy.policy,
                prediction.name,
                prediction.simulated_throughput,
                prediction.error * 100.0
            ));
        }
    }
    let mark = if run.provenance.simulated { "SIMULATED  " } else { "" };
    lines.iter().map(|line| format!("{mark}{}\n", line.trim_end())).collect()
}

fn row(policy: &str, tenant: &TenantResult) -> String {
    let class = match tenant.class {
        smidgen_runtime::tenant::Class::Latency => "latency",
        smidgen_runtime::tenant::Class::Throughput => "throughput",
    };
    format!(
        "{policy:<16} {:<12} {class:<10} {:>11.1} {:>9.3} {:>9.3} {:>9.3} {:>8.2}x",
        tenant.name, tenant.throughput, tenant.p50_ms, tenant.p95_ms, tenant.p99_ms, tenant.slowdown
    )
}
