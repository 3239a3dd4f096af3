//! Tenants on the GPU under policies that say just who owns what, and operands for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use smidgen::kernels::gemm::{Epilogue, Gemm};
use smidgen::kernels::random::{Distribution, RandomWeights};
use smidgen_runtime::Runtime;
use smidgen_runtime::device::{Buffer, Device, Event, Priority, Topology};
use smidgen_runtime::launch::{Session, Walls};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Draft, DraftPlacement, Policy, TenantDemand, TenantDraft};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};

/// The TPCs of the latency tenant: one SM for each of its kernel's 64 blocks.
pub const RECLAIMED: u16 = 32;

/// Latency tenants own the first TPCs, [`RECLAIMED`] in all; throughput tenants own the rest and borrow those.
pub struct Reclaim;

impl Policy for Reclaim {
    fn name(&self) -> &'static str {
        "reclaim"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let all = topology.all_tpcs();
        let first = all.first(RECLAIMED);
        let draft = |tenant: &TenantDemand| match tenant.class {
            Class::Latency => (tenant.id, over(topology, first, first, Priority::High)),
            Class::Throughput => (tenant.id, over(topology, all - first, all, Priority::Normal)),
        };
        tenants.iter().map(draft).collect()
    }
}

/// Every tenant on the first TPCs of the GPU, as many as the number says when a plan is made.
pub struct Share(pub Arc<AtomicU16>);

impl Policy for Share {
    fn name(&self) -> &'static str {
        "share"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let tpcs = topology.all_tpcs().first(self.0.load(Ordering::Relaxed));
        tenants.iter().map(|tenant| (tenant.id, over(topology, tpcs, tpcs, Priority::Normal))).collect()
    }
}

fn over(topology: &Topology, owned: TpcSet, grant: TpcSet, priority: Priority) -> TenantDraft {
    let default = DraftPlacement { sms: topology.sms_of(grant), tpcs: grant, priority };
    TenantDraft { owned, grant, default, kernels: BTreeMap::new(), walls: Walls { grid: true, grant: true, partition: true } }
}

pub fn runtime(device: &Arc<dyn Device>, policy: impl Policy + 'static) -> Runtime {
    Runtime::new(Arc::clone(device), Box::new(policy), Arc::new(ProfileStore::default()))
}

pub fn admit(runtime: &Runtime, class: Class) -> Result<(TenantId, Session)> {
    let id = runtime.admit(TenantSpec { name: format!("{class:?}"), class, slo: None, memory_bytes: 4 << 30 })?;
    Ok((id, runtime.session(id)?))
}

/// A product of random operands, which live as long as it.
pub struct Product {
    pub gemm: Gemm,
    _operands: [Buffer; 3],
}

impl Product {
    pub fn new(device: &Arc<dyn Device>, session: &mut Session, [m, n, k]: [u32; 3]) -> Result<Self> {
        let mut random = |rows: u32, columns: u32, half_width: f32| -> Result<Buffer> {
            let elements = u64::from(rows) * u64::from(columns);
            let buffer = Buffer::new(device, 2 * elements)?;
            let distribution = Distribution::Uniform { key: elements.wrapping_mul(0x9e37_79b9_7f4a_7c15), half_width };
            session.launch(&RandomWeights { rows: 1, columns: elements, stride: elements, distribution, y: buffer.ptr() })?;
            Ok(buffer)
        };
        let operands = [random(m, k, 1.0)?, random(n, k, 0.05)?, random(m, n, 1.0)?];
        device.synchronize(session.stream())?;
        let [a, b, c] = operands.each_ref().map(Buffer::ptr);
        Ok(Self { gemm: Gemm::new([m, n, k], a, b, c, Epilogue::NONE), _operands: operands })
    }
}

/// Moments of the device, a pair at a time.
pub struct Marks {
    pub from: Event,
    pub to: Event,
}

impl Marks {
    pub fn new(device: &Arc<dyn Device>) -> Result<Self> {
        Ok(Self { from: Event::timed(device)?, to: Event::timed(device)? })
    }

    pub fn micros(&self, device: &dyn Device) -> Result<f64> {
        Ok(micros(device.elapsed(self.from.id(), self.to.id())?))
    }
}

pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Keeps the host busy, since a sleeping one wakes late.
pub fn spin(time: Duration) {
    let from = Instant::now();
    while from.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Numbers that look random, the same in every run: xorshift64 (Marsaglia, "Xorshift RNGs", 2003).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
