//! What the runtime makes at start, and that tenants who come, go and change under load find their partitions there.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use smidgen_runtime::device::sim::SimConfig;
use smidgen_runtime::device::{Buffer, Device, PartitionId, Sms, Topology};
use smidgen_runtime::launch::{Kernel, SeenKernel};
use smidgen_runtime::partition::{Ladder, LadderError, PARTITION_BYTES, TpcSet};
use smidgen_runtime::policy::{self, Policy, Slo, StaticEqual, by_name};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::telemetry::RequestLog;
use smidgen_runtime::tenant::{Class, Share, TenantId, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime, RuntimeOptions};

mod support;
#[path = "support/topologies.rs"]
mod topologies;

use support::idle::Idle;
use support::{Fake, Gpu};
use topologies::{any_topology, h200};

const MS: Duration = Duration::from_millis(1);

/// They scale to a few SMs, to half of the GPU, and to all of it.
const KERNELS: [(Fake, f64, u16); 3] =
    [(Fake::new("norm"), 200.0, 16), (Fake::new("attention").elastic(), 600.0, 64), (Fake::new("gemm").elastic(), 1000.0, 132)];

fn request(kernels: &[(Fake, f64, u16)]) -> Vec<SeenKernel> {
    kernels.iter().map(|(kernel, ..)| SeenKernel { key: kernel.key(), work: kernel.work(), launches: 2 }).collect()
}

fn chat(slo: Duration) -> TenantSpec {
    TenantSpec { name: "chat".into(), class: Class::Latency, slo: Some(slo), memory_bytes: 1 << 30 }
}

fn batch() -> TenantSpec {
    TenantSpec { name: "batch".into(), class: Class::Throughput, slo: None, memory_bytes: 1 << 30 }
}

/// A runtime after its start, and how many partitions the device had made when it was last looked.
struct Started {
    gpu: Gpu,
    runtime: Runtime,
    made: Cell<u64>,
}

impl Started {
    fn new(policy: impl Policy + 'static) -> Self {
        let gpu = Gpu::h200();
        let profiles = support::store(&*gpu.device, support::profile(&*gpu.device, &KERNELS));
        let runtime = Runtime::new(Arc::clone(&gpu.device), Box::new(policy), profiles);
        let made = Cell::new(gpu.sim.counts().partitions);
        Self { gpu, runtime, made }
    }

    /// Partitions made since this was last asked.
    fn new_partitions(&self) -> u64 {
        let made = self.gpu.sim.counts().partitions;
        made - self.made.replace(made)
    }

    fn owned(&self) -> Vec<TpcSet> {
        self.runtime.plan().tenants.values().map(|tenant| tenant.owned).collect()
    }

    fn admit(&self, spec: TenantSpec, kernels: &[(Fake, f64, u16)]) -> (TenantId, RequestLog) {
        let id = self.runtime.admit(spec).unwrap();
        assert_eq!(self.new_partitions(), 0, "admit: {:?}", self.owned());
        self.runtime.learn(id, &request(kernels)).unwrap();
        assert_eq!(self.new_partitions(), 0, "learn: {:?}", self.owned());
        (id, self.runtime.request_log(id).unwrap())
    }

    /// Windows in which requests take so much of their objective. How often there was another plan.
    fn windows(&self, windows: u32, spent: f64, logs: &mut [&mut RequestLog]) -> usize {
        let window = |_: &u32| {
            logs.iter_mut().for_each(|log| (0..250).for_each(|_| log.answered(Duration::ZERO, Duration::ZERO, spent)));
            let adapted = self.runtime.adapt().unwrap();
            assert_eq!(self.new_partitions(), 0, "adapt: {:?}", self.owned());
            adapted
        };
        (0..windows).filter(window).count()
    }
}

#[test]
fn a_latency_tenant_and_one_or_two_for_throughput_come_go_and_are_adapted_without_a_new_partition() {
    // Beyond half of the GPU for the latency tenant, at its tightest margin too, not everything is there.
    for (kernels, slo) in [(0..1, 2), (0..1, 5), (0..2, 12), (0..2, 20)] {
        for others in [2..3, 0..3] {
            let started = Started::new(Slo::default());
            let (chat, mut of_chat) = started.admit(chat(slo * MS), &KERNELS[kernels.clone()]);
            let (first, mut of_first) = started.admit(batch(), &KERNELS[others.clone()]);
            assert!(started.windows(40, 1.5, &mut [&mut of_chat, &mut of_first]) > 0);
            for share in [Share::Percent(50), Share::Sms(Sms(20)), Share::Planned] {
                started.runtime.resize(first, share).unwrap();
                assert_eq!(started.new_partitions(), 0, "{share:?}");
            }
            let (second, mut of_second) = started.admit(batch(), &KERNELS[others]);
            started.windows(60, 0.1, &mut [&mut of_chat, &mut of_first, &mut of_second]);
            started.windows(40, 1.5, &mut [&mut of_chat, &mut of_first, &mut of_second]);
            // One of them is without work for a while, then the other.
            assert!(started.windows(20, 0.5, &mut [&mut of_chat, &mut of_first]) > 0);
            assert!(started.windows(20, 0.5, &mut [&mut of_chat, &mut of_second]) > 0);
            for id in [first, second, chat] {
                started.runtime.pause(id).unwrap();
                assert_eq!(started.new_partitions(), 0, "pause");
                started.runtime.resume(id).unwrap();
                assert_eq!(started.new_partitions(), 0, "resume");
            }
            started.runtime.dismiss(first).unwrap();
            started.runtime.set_objective(chat, Class::Latency, Some(3 * slo * MS)).unwrap();
            started.runtime.dismiss(chat).unwrap();
            assert_eq!(started.new_partitions(), 0, "dismiss");
        }
    }
}

#[test]
fn up_to_eight_tenants_on_equal_parts_come_go_and_are_promised_sms_without_a_new_partition() {
    let started = Started::new(StaticEqual);
    let tenants: Vec<_> = (0..8).map(|_| started.admit(batch(), &KERNELS).0).collect();
    for &tenant in &tenants[3..] {
        started.runtime.dismiss(tenant).unwrap();
        assert_eq!(started.new_partitions(), 0, "dismiss");
    }
    for share in [Share::Percent(50), Share::Sms(Sms(20)), Share::Sms(Sms(34)), Share::Planned] {
        started.runtime.resize(tenants[0], share).unwrap();
        assert_eq!(started.new_partitions(), 0, "{share:?}");
    }
}

#[test]
fn what_is_made_at_start_takes_three_quarters_of_the_limit_at_most_and_no_limit_is_too_small() {
    for limit in [0, 1, 2, 3, 4, 10, 64, 1000] {
        let gpu = Gpu::h200();
        let options = RuntimeOptions { partition_bytes: Some(limit * PARTITION_BYTES + 1), ..RuntimeOptions::default() };
        let runtime = Runtime::with_options(Arc::clone(&gpu.device), Box::new(Slo::default()), Arc::new(ProfileStore::default()), options);
        let wanted = Slo::default().family(gpu.device.topology()).len() as u64;
        assert_eq!(gpu.sim.counts().partitions, (limit - limit / 4).min(wanted));
        // Plans have all of the room, whatever was foreseen: that in force, and the next one.
        let admitted = (0..4).take_while(|_| runtime.admit(batch()).is_ok()).count();
        assert_eq!(admitted, [1, 1, 2, 2, 2][..].get(limit as usize).copied().unwrap_or(4), "{limit}");
        let exist = (1..=gpu.sim.counts().partitions).filter(|&number| gpu.device.partition_sms(PartitionId(number as u32)).is_ok());
        assert!(exist.count() as u64 <= limit, "{limit}");
    }
}

#[test]
fn a_policy_that_confines_nobody_makes_nothing_and_another_one_makes_what_it_foresees_while_there_is_no_tenant() {
    for name in ["exclusive", "default-sharing", "krisp-o", "krisp-i"] {
        let gpu = Gpu::h200();
        let partitions = || gpu.sim.counts().partitions;
        let runtime = Runtime::new(Arc::clone(&gpu.device), by_name(name).unwrap(), Arc::new(ProfileStore::default()));
        assert_eq!(partitions(), 0, "{name}");
        let tenant = runtime.admit(batch()).unwrap();
        runtime.set_policy(Box::new(Slo::default())).unwrap();
        assert_eq!(partitions(), 0, "the tenant would be held up");
        runtime.dismiss(tenant).unwrap();
        runtime.set_policy(Box::new(StaticEqual)).unwrap();
        assert_eq!(partitions(), StaticEqual.family(gpu.device.topology()).len() as u64);
    }
}

#[test]
fn unused_members_of_the_family_make_room_after_all_others_and_the_likeliest_of_them_last() {
    let gpu = Gpu::h200();
    let ladder = Ladder::new(Arc::clone(&gpu.device), 8);
    let set = |at: u16| TpcSet::range(at, at + 1);
    ladder.make_family((0..10).map(set));
    assert_eq!(ladder.len(), 6);
    let likeliest = ladder.partition(set(0)).unwrap().id();
    let mut others = Vec::new();
    for at in 20..30 {
        others.push(ladder.partition(set(at)).unwrap().id());
    }
    // Each took the place of the one before the last.
    assert!(others[..8].iter().all(|&other| gpu.device.partition_sms(other).is_err()));
    assert_eq!(ladder.len(), 8);
    // Others that stay in use take the family's places, the last foreseen first.
    let kept: Vec<_> = (30..37).map(|at| ladder.partition(set(at)).unwrap()).collect();
    assert_eq!(ladder.partition(set(0)).unwrap().id(), likeliest);
    assert!(ladder.partition(set(40)).is_ok() && gpu.device.partition_sms(likeliest).is_err());
    drop(kept);
}

#[test]
fn a_set_that_the_device_makes_otherwise_is_left_out_and_refused_to_whoever_asks_for_it() {
    let idle = Idle::new();
    let runtime = Runtime::new(Arc::clone(&idle) as Arc<dyn Device>, Box::new(StaticEqual), Arc::new(ProfileStore::default()));
    let tried = idle.partitions();
    assert!(tried > 100, "one that is refused does not end it");
    runtime.admit(batch()).unwrap();
    assert!(matches!(runtime.admit(batch()), Err(AdmitError::Ladder(LadderError::Device(_)))));
    assert_eq!(idle.partitions(), tried, "the device was asked once");
}

#[test]
fn a_device_without_memory_ends_what_is_made_at_start_and_not_the_runtime() {
    let gpu = Gpu::h200();
    let held = Buffer::new(&gpu.device, gpu.free_bytes() - 10 * PARTITION_BYTES).unwrap();
    let runtime = Runtime::new(Arc::clone(&gpu.device), Box::new(StaticEqual), Arc::new(ProfileStore::default()));
    let made = gpu.sim.counts().partitions;
    assert!((8..=10).contains(&made), "{made}");
    drop(held);
    for _ in 0..8 {
        runtime.admit(batch()).unwrap();
    }
}

#[test]
fn the_h200_has_every_edge_in_its_default_room() {
    let gpu = Gpu::h200();
    let room = gpu.device.topology().memory_bytes / 64 / PARTITION_BYTES;
    let family = Slo::default().family(&h200());
    let made: BTreeSet<TpcSet> = family.into_iter().take((room - room / 4) as usize).collect();
    for size in 1..66 {
        assert!(made.contains(&TpcSet::range(0, size)) && made.contains(&TpcSet::range(size, 66)), "{size}");
    }
}

proptest! {
    #[test]
    fn a_family_names_parts_of_the_gpu_each_once(topology in any_topology(), name in prop::sample::select(&policy::NAMES[..])) {
        let family = by_name(name).unwrap().family(&topology);
        let whole = topology.all_tpcs();
        prop_assert!(family.iter().all(|&set| !set.is_empty() && set != whole && whole.includes(set)), "{family:?}");
        prop_assert_eq!(family.iter().collect::<BTreeSet<_>>().len(), family.len());
    }

    #[test]
    fn the_family_of_any_gpu_stays_within_the_limit(
        tpcs_per_gpc in prop::collection::vec(1_u16..=9, 1..=8),
        memory_gb in 1_u64..300,
        limit in prop::option::of(0_u64..1000),
    ) {
        let sms = Sms(2 * tpcs_per_gpc.iter().sum::<u16>());
        let memory_bytes = memory_gb << 30;
        let topology = Topology { sms, tpcs_per_gpc, memory_bytes, ..SimConfig::h200().topology };
        let gpu = Gpu::new(SimConfig { topology, ..SimConfig::h200() });
        let options = RuntimeOptions { partition_bytes: limit.map(|limit| limit * PARTITION_BYTES), ..RuntimeOptions::default() };
        let _runtime = Runtime::with_options(Arc::clone(&gpu.device), Box::new(Slo::default()), Arc::new(ProfileStore::default()), options);
        let most = limit.map_or((memory_bytes / 64).max(64 * PARTITION_BYTES), |limit| limit * PARTITION_BYTES).min(memory_bytes / 8);
        let most = most / PARTITION_BYTES;
        prop_assert!(gpu.sim.counts().partitions <= most - most / 4);
    }
}
