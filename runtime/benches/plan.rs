//! How long a plan takes to compute: `cargo bench -p smidgen-runtime --bench plan`.
//!
//! Eight tenants of 200 kernels each, with curves at every rung of an H200's ladder: two with an SLO, one latency tenant without, five
//! throughput tenants. Plans are made off the launch path, at admission and when tenants change what they do; the target is 1 ms.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use smidgen_runtime::device::sim::SimConfig;
use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::{Fingerprint, Work};
use smidgen_runtime::partition::rungs;
use smidgen_runtime::policy::{KernelDemand, TenantDemand, by_name};
use smidgen_runtime::profile::{Board, Curve, Energy};
use smidgen_runtime::tenant::{Class, TenantId};

const TENANTS: u32 = 8;
const KERNELS: u64 = 200;

/// Kernels of all kinds: `a + b / n` with every mixture of the two, some of them with a step at the last rung, as tiles make them.
fn kernel(gpu: &Topology, number: u64) -> KernelDemand {
    let (fixed, scaling) = (2.0 + (number % 7) as f64, 40.0 * (1 + number % 31) as f64);
    let step = |sms: Sms| if sms == gpu.sms && number.is_multiple_of(5) { 0.8 } else { 1.0 };
    let points = rungs(gpu).into_iter().map(|sms| (sms, fixed + step(sms) * scaling / f64::from(sms.0))).collect();
    KernelDemand {
        kernel: Fingerprint(number),
        launches: 1 + (number % 3) as u32 * 11,
        work: Work { flops: number % 11 * 1_000_000_000, bytes: (1 + number % 13) * 4_000_000 },
        curve: Curve::new(points).map(Arc::new),
    }
}

fn tenants(gpu: &Topology) -> Vec<TenantDemand> {
    let tenant = |id: u32| TenantDemand {
        id: TenantId(id),
        class: if id < 3 { Class::Latency } else { Class::Throughput },
        slo: (id < 2).then(|| Duration::from_millis(60)),
        rate: (id == 1).then_some(5.0),
        kernels: (0..KERNELS).map(|number| kernel(gpu, number + KERNELS * u64::from(id))).collect(),
    };
    (0..TENANTS).map(tenant).collect()
}

fn plan(criterion: &mut Criterion) {
    let gpu = SimConfig::h200().topology;
    let tenants = tenants(&gpu);
    for name in ["slo", "krisp-i"] {
        let Ok(policy) = by_name(name) else { continue };
        criterion.bench_function(&format!("{name}, 8 tenants x 200 kernels"), |bencher| bencher.iter(|| policy.plan(&gpu, &tenants)));
    }
    let Ok(policy) = by_name("slo") else { return };
    for (limit_w, which) in [(4000.0, "below"), (450.0, "at")] {
        let tenants = drawing(&gpu, tenants.clone(), limit_w);
        let name = format!("slo {which} the power limit, 8 tenants x 200 kernels");
        criterion.bench_function(&name, |bencher| bencher.iter(|| policy.plan(&gpu, &tenants)));
    }
}

/// The tenants with energies: each kernel draws 3 to 8 watts above idle on an SM, on a board with this limit.
fn drawing(gpu: &Topology, mut tenants: Vec<TenantDemand>, limit_w: f64) -> Vec<TenantDemand> {
    let board = Board { sms: gpu.sms, idle_w: 130.0, limit_w };
    for kernel in tenants.iter_mut().flat_map(|tenant| &mut tenant.kernels) {
        let watts = 3.0 + (kernel.kernel.0 % 6) as f64;
        kernel.curve = kernel.curve.take().map(|curve| {
            let points = [16, 32, 64, 132].map(|sms| (Sms(sms), watts * f64::from(sms) * curve.at(Sms(sms))));
            Arc::new(Curve::clone(&curve).with_energy(Energy::new(board, points.to_vec()).map(Arc::new)))
        });
    }
    tenants
}

criterion_group!(benches, plan);
criterion_main!(benches);
