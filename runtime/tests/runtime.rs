//! What a runtime promises while tenants come, go and change: what failed changed nothing, what succeeded is in force, and nothing leaks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use smidgen_runtime::device::sim::SimCounts;
use smidgen_runtime::device::{Buffer, Device, DeviceError, Event, PartitionId, Priority, Sms, Topology};
use smidgen_runtime::launch::{CapturedGraph, LaunchError, Plan, Session, Walls};
use smidgen_runtime::partition::{Ladder, LadderError, PARTITION_BYTES, TpcSet};
use smidgen_runtime::policy::{
    self, DefaultSharing, Draft, DraftPlacement, Exclusive, Krisp, Policy, Slo, StaticEqual, TenantDemand, TenantDraft,
};
use smidgen_runtime::profile::{BoardPower, PowerSample, ProfileStore};
use smidgen_runtime::runtime::MemoryHolder;
use smidgen_runtime::tenant::{Class, Share, TenantId, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime, RuntimeOptions};

mod support;

use support::idle::Idle;
use support::{Fake, Gpu};

const GEMM: Fake = Fake::new("gemm").elastic();
const NORM: Fake = Fake::new("norm");
const LAST: Fake = Fake::new("last");

fn tenant(name: &str, memory_bytes: u64) -> TenantSpec {
    TenantSpec { name: name.into(), class: Class::Throughput, slo: None, memory_bytes }
}

/// Measured figures of the three kernels: `gemm` needs 64 SMs and takes 100 us, the others 8 SMs and 10 us.
fn profiles(device: &dyn Device) -> Arc<ProfileStore> {
    support::store(device, support::profile(device, &[(GEMM, 100.0, 64), (NORM, 10.0, 8), (LAST, 10.0, 8)]))
}

fn runtime(gpu: &Gpu, policy: impl Policy + 'static) -> Runtime {
    Runtime::new(Arc::clone(&gpu.device), Box::new(policy), profiles(&*gpu.device))
}

/// One request: three kernels, of which [`LAST`] tells that it is complete.
fn request(session: &mut Session) -> Result<(), LaunchError> {
    [GEMM, NORM, LAST].iter().try_for_each(|kernel| session.launch(kernel))
}

/// Runs one request and tells the runtime what it launched.
fn learn(runtime: &Runtime, id: TenantId, session: &mut Session) -> Result<(), AdmitError> {
    session.forget_counts();
    request(session)?;
    runtime.learn(id, session.seen())
}

fn same(before: &Arc<Plan>, runtime: &Runtime) -> bool {
    Arc::ptr_eq(before, &runtime.plan())
}

/// Drafts what its function says for every tenant, by how many there are.
struct Scripted(fn(tenants: &[TenantDemand]) -> TpcSet);

impl Policy for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let tpcs = self.0(tenants);
        let default = DraftPlacement { sms: topology.sms_of(tpcs), tpcs, priority: Priority::Normal };
        let draft = TenantDraft { owned: tpcs, grant: tpcs, default, kernels: BTreeMap::new(), walls: Walls::default() };
        tenants.iter().map(|tenant| (tenant.id, draft.clone())).collect()
    }
}

/// Forgets everybody but the first.
struct Forgetful;

impl Policy for Forgetful {
    fn name(&self) -> &'static str {
        "forgetful"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        DefaultSharing.plan(topology, &tenants[..1])
    }
}

#[test]
fn a_draft_that_leaves_a_tenant_out_is_refused_by_name() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, Forgetful);
    let first = runtime.admit(tenant("first", 0)).unwrap();
    let error = runtime.admit(tenant("second", 0)).unwrap_err();
    assert_eq!(error.to_string(), "the policy `forgetful` has no place for tenant `second`; a draft has one entry for each tenant");
    assert!(runtime.plan().tenant(first).is_ok());
}

#[test]
fn the_power_that_a_plan_is_predicted_to_draw_is_told_while_it_is_known_of_all_tenants() {
    let gpu = Gpu::h200();
    let mut profile = support::profile(&*gpu.device, &[(GEMM, 100.0, 64), (NORM, 10.0, 8), (LAST, 10.0, 8)]);
    profile.power = Some(BoardPower { idle_w: 130.0, limit_w: 600.0, clock_mhz: 1980 });
    for point in profile.kernels.values_mut().flat_map(|kernel| &mut kernel.points) {
        point.power = Some(PowerSample { board_w: 430.0, launch_us: point.median_us, clock_mhz: 1980 });
    }
    let profiles = support::store(&*gpu.device, profile);
    let runtime = Runtime::new(Arc::clone(&gpu.device), Box::new(Slo::default()), profiles);
    assert_eq!(runtime.predicted_power(), None);
    let first = runtime.admit(tenant("first", 0)).unwrap();
    assert_eq!(runtime.predicted_power(), None, "its kernels are not known yet");
    let mut session = runtime.session(first).unwrap();
    learn(&runtime, first, &mut session).unwrap();
    let alone = runtime.predicted_power().unwrap();
    // 300 W above idle while it is in a kernel, and nothing in the gaps.
    assert!(alone.limit_w == 600.0 && alone.clock == 1.0 && (425.0..430.0).contains(&alone.board_w), "{alone:?}");
    let second = runtime.admit(tenant("second", 0)).unwrap();
    let mut other = runtime.session(second).unwrap();
    learn(&runtime, second, &mut other).unwrap();
    let pair = runtime.predicted_power().unwrap();
    assert!(pair.board_w == 600.0 && pair.clock < 1.0 && pair.unlimited_w > 600.0, "{pair:?}");
    runtime.resize(first, Share::Sms(Sms(64))).unwrap();
    assert_eq!(runtime.predicted_power(), None, "parts of the GPU are boards of their own");
    runtime.resize(first, Share::Planned).unwrap();
    runtime.pause(second).unwrap();
    assert_eq!(runtime.predicted_power(), Some(alone));
    runtime.set_policy(Box::new(StaticEqual)).unwrap();
    assert_eq!(runtime.predicted_power(), None);
}

#[test]
fn an_objective_of_no_time_is_refused() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let at_once = TenantSpec { slo: Some(Duration::ZERO), class: Class::Latency, ..tenant("at once", 0) };
    assert!(matches!(runtime.admit(at_once), Err(AdmitError::ZeroSlo { .. })));
    let id = runtime.admit(tenant("later", 0)).unwrap();
    assert!(matches!(runtime.set_objective(id, Class::Latency, Some(Duration::ZERO)), Err(AdmitError::ZeroSlo { .. })));
}

/// No device can make a partition of it.
const NOTHING: TpcSet = TpcSet::EMPTY;

#[test]
fn an_admitted_tenant_runs_where_the_policy_puts_it() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let ids = ["a", "b"].map(|name| runtime.admit(tenant(name, 1 << 30)).unwrap());
    let mut sessions = ids.map(|id| runtime.session(id).unwrap());
    for (session, tpcs) in sessions.iter_mut().zip([TpcSet::range(0, 33), TpcSet::range(33, 66)]) {
        request(session).unwrap();
        let trace = gpu.trace(session);
        assert_eq!(trace.len(), 3);
        assert!(trace.iter().all(|kernel| kernel.tpcs == tpcs), "{trace:?}");
    }
    runtime.dismiss(ids[0]).unwrap();
    assert!(matches!(request(&mut sessions[0]), Err(LaunchError::Dismissed)));
    assert!(matches!(runtime.session(ids[0]), Err(AdmitError::Unknown(id)) if id == ids[0]));
    assert!(matches!(runtime.dismiss(ids[0]), Err(AdmitError::Unknown(_))));
    request(&mut sessions[1]).unwrap();
    assert!(gpu.trace(&sessions[1]).iter().all(|kernel| kernel.tpcs.len() == 66), "the SMs of the dismissed tenant went to the other");
}

#[test]
fn kernels_that_were_learned_are_placed_by_their_profiles() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, Krisp::isolated());
    let id = runtime.admit(tenant("a", 0)).unwrap();
    let mut session = runtime.session(id).unwrap();
    learn(&runtime, id, &mut session).unwrap();
    gpu.trace(&session);
    request(&mut session).unwrap();
    let sizes: Vec<_> = gpu.trace(&session).iter().map(|kernel| kernel.tpcs.len() * 2).collect();
    assert_eq!(sizes, [64, 8, 8]);
}

#[test]
fn a_tenant_that_does_not_fit_is_refused_with_the_figures_and_changes_nothing() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let first = runtime.admit(tenant("first", 100_000_000_000)).unwrap();
    let (plan, free) = (runtime.plan(), gpu.free_bytes());
    // The first tenant has allocated nothing yet, but its memory is spoken for.
    let error = runtime.admit(tenant("second", 100_000_000_000)).unwrap_err();
    let AdmitError::NoMemory { ref name, needed, free: left, ref holders } = error else { panic!("{error}") };
    assert_eq!(holders[0], MemoryHolder { name: "first".into(), promised: 100_000_000_000, allocated: 0 });
    // A 64th of the GPU, of which those that the policy foresees are made.
    let (partitions, made) = (gpu.device.topology().memory_bytes / 64 / PARTITION_BYTES, gpu.sim.counts().partitions);
    assert_eq!((holders[1].promised, holders[1].allocated), (partitions * PARTITION_BYTES, made * PARTITION_BYTES));
    assert_eq!((name.as_str(), needed, left), ("second", 100_000_000_000, free - 100_000_000_000 - (partitions - made) * PARTITION_BYTES));
    let text = error.to_string();
    let left_gb = format!("{:.2} GB are free", left as f64 / 1e9);
    let expected = [
        "`second`",
        "needs 100.00 GB",
        &left_gb,
        "`first` was promised 100.00 GB and holds nothing",
        "the runtime's partitions",
        "fewer tenants",
    ];
    assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    // What nobody was promised counts too, beside what the first has yet to allocate.
    let held = Buffer::new(&gpu.device, 5_000_000_000).unwrap();
    assert!(
        matches!(runtime.admit(tenant("third", left - 4_000_000_000)), Err(AdmitError::NoMemory { free, .. }) if free == left - 5_000_000_000)
    );
    drop(held);
    assert!(matches!(runtime.admit(tenant("vast", u64::MAX)), Err(AdmitError::NoMemory { .. })));
    assert!(same(&plan, &runtime));
    assert_eq!(gpu.free_bytes(), free);
    runtime.dismiss(first).unwrap();
    runtime.admit(tenant("second", 100_000_000_000)).unwrap();
}

#[test]
fn partitions_take_an_eighth_of_the_gpu_from_tenants_at_most_and_nothing_where_there_are_to_be_none() {
    let gpu = Gpu::h200();
    let free = gpu.free_bytes();
    let (most, none) = (gpu.device.topology().memory_bytes / 8, Vec::<String>::new());
    let listed = vec!["the runtime's partitions".to_owned()];
    let room = |policy: Box<dyn Policy>, partition_bytes| {
        let options = RuntimeOptions { partition_bytes: Some(partition_bytes), ..RuntimeOptions::default() };
        let runtime = Runtime::with_options(Arc::clone(&gpu.device), policy, profiles(&*gpu.device), options);
        let error = runtime.admit(tenant("vast", u64::MAX)).unwrap_err();
        let AdmitError::NoMemory { free, holders, .. } = error else { panic!("{error}") };
        let names: Vec<_> = holders.into_iter().map(|holder| holder.name).collect();
        runtime.admit(tenant("all", free)).unwrap();
        (free, names)
    };
    let (left, names) = room(Box::new(StaticEqual), u64::MAX);
    assert!((free - most..free - most + PARTITION_BYTES).contains(&left), "{left} of {free}");
    assert_eq!(names, listed);
    assert_eq!(room(Box::new(Exclusive), 0), (free, none));
}

#[test]
fn an_objective_below_the_isolated_latency_is_refused_with_both_figures() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, Krisp::isolated());
    let spec = |slo| TenantSpec { class: Class::Latency, slo: Some(slo), ..tenant("chat", 0) };
    let id = runtime.admit(spec(Duration::from_micros(119))).unwrap();
    let mut session = runtime.session(id).unwrap();
    let plan = runtime.plan();
    let error = learn(&runtime, id, &mut session).unwrap_err();
    assert!(matches!(error, AdmitError::ImpossibleSlo { slo, isolated, .. } if slo.as_micros() == 119 && isolated.as_micros() == 120));
    let text = error.to_string();
    assert!(["`chat`", "0.119 ms", "0.120 ms", "raise the SLO"].iter().all(|part| text.contains(part)), "{text}");
    assert!(same(&plan, &runtime));
    let id = runtime.admit(spec(Duration::from_micros(120))).unwrap();
    let mut session = runtime.session(id).unwrap();
    learn(&runtime, id, &mut session).unwrap();
    // That of a throughput tenant is told, and never planned for.
    let id = runtime.admit(TenantSpec { class: Class::Throughput, ..spec(Duration::from_micros(1)) }).unwrap();
    let mut session = runtime.session(id).unwrap();
    learn(&runtime, id, &mut session).unwrap();
}

#[test]
fn a_policy_whose_partitions_cannot_be_made_leaves_the_old_plan_in_force() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let ids = [(); 2].map(|()| runtime.admit(tenant("a", 0)).unwrap());
    let plan = runtime.plan();
    for impossible in [|_: &[TenantDemand]| NOTHING, |_: &[TenantDemand]| TpcSet::range(60, 70)] {
        let error = runtime.set_policy(Box::new(Scripted(impossible))).unwrap_err();
        assert!(matches!(error, AdmitError::Ladder(LadderError::Device(DeviceError::BadPartition { .. }))), "{error}");
        assert!(same(&plan, &runtime));
    }
    // The old policy goes on planning.
    runtime.dismiss(ids[0]).unwrap();
    assert_eq!(runtime.plan().policy, "static-equal");
    assert_eq!(runtime.plan().tenants[&ids[1]].default.sms, Sms(132));
}

#[test]
fn a_partition_without_memory_is_an_error_and_never_the_whole_gpu() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, DefaultSharing);
    let ids = [(); 2].map(|()| runtime.admit(tenant("a", 0)).unwrap());
    let held = Buffer::new(&gpu.device, gpu.free_bytes() - (1 << 20)).unwrap();
    let plan = runtime.plan();
    let error = runtime.set_policy(Box::new(StaticEqual)).unwrap_err();
    assert!(matches!(error, AdmitError::Ladder(LadderError::Device(DeviceError::OutOfMemory { .. }))), "{error}");
    assert!(same(&plan, &runtime));
    drop(held);
    runtime.set_policy(Box::new(StaticEqual)).unwrap();
    for id in ids {
        let placement = runtime.plan().tenants[&id].default;
        assert_ne!(placement.partition, PartitionId::WHOLE);
        assert_eq!(gpu.device.partition_sms(placement.partition).unwrap(), Sms(66));
    }
}

#[test]
fn a_partition_of_another_size_than_asked_is_an_error_and_is_not_made_again() {
    let idle = Idle::new();
    let ladder = Ladder::new(Arc::clone(&idle) as Arc<dyn Device>, 8);
    for (tpcs, made) in [(4, 1), (5, 2)] {
        for _ in 0..3 {
            let error = ladder.partition(TpcSet::range(0, tpcs)).unwrap_err();
            let short = DeviceError::ShortPartition { asked: Sms(2 * tpcs), granted: Sms(132) };
            assert_eq!(error.to_string(), short.to_string());
        }
        assert_eq!(idle.partitions(), made);
    }
    assert_eq!(ladder.partition(idle.topology().all_tpcs()).unwrap().id(), PartitionId::WHOLE);
}

#[test]
fn a_dismissal_takes_effect_even_if_the_others_cannot_be_planned_for() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, Scripted(|tenants| if tenants.len() == 1 { NOTHING } else { TpcSet::range(0, 8) }));
    assert!(runtime.admit(tenant("alone", 0)).is_err());
    assert!(runtime.plan().tenants.is_empty());
    runtime.set_policy(Box::new(StaticEqual)).unwrap();
    let ids = [(); 2].map(|()| runtime.admit(tenant("a", 0)).unwrap());
    runtime.set_policy(Box::new(Scripted(|tenants| if tenants.len() == 1 { NOTHING } else { TpcSet::range(0, 8) }))).unwrap();
    let mut sessions = ids.map(|id| runtime.session(id).unwrap());
    // From here on there is one tenant, for which the policy drafts what cannot be made.
    assert!(matches!(runtime.dismiss(ids[0]), Err(AdmitError::Ladder(_))));
    assert!(matches!(request(&mut sessions[0]), Err(LaunchError::Dismissed)));
    request(&mut sessions[1]).unwrap();
    assert!(gpu.trace(&sessions[1]).iter().all(|kernel| kernel.tpcs == TpcSet::range(0, 8)));
}

#[test]
fn kernels_whose_plan_cannot_be_made_are_not_learned() {
    let gpu = Gpu::h200();
    let runtime =
        runtime(&gpu, Scripted(|tenants| if tenants.iter().any(|t| !t.kernels.is_empty()) { NOTHING } else { TpcSet::range(0, 8) }));
    let id = runtime.admit(tenant("a", 0)).unwrap();
    let mut session = runtime.session(id).unwrap();
    let plan = runtime.plan();
    assert!(matches!(learn(&runtime, id, &mut session), Err(AdmitError::Ladder(_))));
    assert!(same(&plan, &runtime));
    runtime.admit(tenant("b", 0)).unwrap();
}

#[test]
fn tenants_come_and_go_on_several_threads() {
    let gpu = Gpu::h200();
    let runtime = runtime(&gpu, StaticEqual);
    let rounds = 50;
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    let id = runtime.admit(tenant("a", 1 << 20)).unwrap();
                    let mut session = runtime.session(id).unwrap();
                    learn(&runtime, id, &mut session).unwrap();
                    runtime.device().synchronize(session.stream()).unwrap();
                    runtime.dismiss(id).unwrap();
                    assert!(matches!(request(&mut session), Err(LaunchError::Dismissed)));
                }
            });
        }
        for round in 0..rounds {
            runtime.set_policy(if round % 2 == 0 { Box::new(DefaultSharing) } else { Box::new(StaticEqual) }).unwrap();
        }
    });
    assert!(runtime.plan().tenants.is_empty());
    let done = gpu.sim.take_trace().iter().filter(|kernel| kernel.symbol == LAST.name).count();
    assert_eq!(done, 3 * rounds);
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

/// A tenant under load: one request in flight, launched or replayed.
struct Loaded {
    id: TenantId,
    session: Session,
    graph: Option<CapturedGraph>,
    done: Event,
    /// Stands for weights.
    _weights: Buffer,
}

impl Loaded {
    /// Issues a request if the last one is done; whether it did.
    fn step(&mut self, replays: bool) -> Result<bool, LaunchError> {
        if !self.session.device().query(self.done.id())? {
            return Ok(false);
        }
        if replays {
            let graph = match self.graph.take() {
                Some(graph) if self.session.is_current(&graph)? => graph,
                _ => self.session.capture(request)?,
            };
            self.session.replay(&graph)?;
            self.graph = Some(graph);
        } else {
            request(&mut self.session)?;
        }
        self.session.device().record(self.done.id(), self.session.stream())?;
        Ok(true)
    }
}

#[test]
fn ten_thousand_admissions_and_dismissals_and_other_changes_under_load_lose_no_request_and_leak_nothing() {
    const ADMISSIONS: u32 = 10_000;
    const MOST_TENANTS: usize = 6;
    let gpu = Gpu::h200();
    let (start, counts) = (gpu.free_bytes(), gpu.sim.counts());
    let runtime = runtime(&gpu, StaticEqual);
    let mut random = Random(20_261_121);
    let mut tenants: Vec<Loaded> = Vec::new();
    let (mut issued, mut completed) = (0, 0);
    let (mut admitted, mut changes, mut refused) = (0, 0, 0);
    while admitted < ADMISSIONS {
        changes += 1;
        let at = random.below(tenants.len().max(1) as u64) as usize;
        let changed = match random.below(12) {
            0..3 if tenants.len() < MOST_TENANTS => runtime.admit(tenant("a", 1 << 30)).map(|id| {
                let (device, session) = (runtime.device(), runtime.session(id).unwrap());
                let (done, weights) = (Event::new(device).unwrap(), Buffer::new(device, 1 << 30).unwrap());
                tenants.push(Loaded { id, session, graph: None, done, _weights: weights });
                admitted += 1;
            }),
            3..6 if !tenants.is_empty() => {
                let mut gone = tenants.swap_remove(at);
                let dismissed = runtime.dismiss(gone.id);
                assert!(matches!(request(&mut gone.session), Err(LaunchError::Dismissed)));
                dismissed
            }
            6 if !tenants.is_empty() => runtime.learn(tenants[at].id, tenants[at].session.seen()),
            7 if !tenants.is_empty() => runtime.pause(tenants[at].id),
            8 if !tenants.is_empty() => runtime.resume(tenants[at].id),
            9 if !tenants.is_empty() => {
                let class = if random.below(2) == 0 { Class::Latency } else { Class::Throughput };
                runtime.set_objective(tenants[at].id, class, Some(Duration::from_millis(1 + random.below(50))))
            }
            10 if !tenants.is_empty() => {
                // Few sizes, so that the ladder has rungs left.
                let shares = [Share::Planned, Share::Planned, Share::Percent(25), Share::Percent(50)];
                runtime.resize(tenants[at].id, shares[random.below(4) as usize])
            }
            _ => runtime.set_policy(policy::by_name(policy::NAMES[random.below(policy::NAMES.len() as u64) as usize]).unwrap()),
        };
        match changed {
            Ok(()) => (),
            Err(AdmitError::Ladder(LadderError::Full { .. }) | AdmitError::NoSms { .. } | AdmitError::ImpossibleSlo { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        let plan = runtime.plan();
        assert_eq!(plan.tenants.len() + plan.paused.len(), tenants.len());
        for tenant in &mut tenants {
            match tenant.step(random.below(2) == 0) {
                Ok(step) => issued += u64::from(step),
                Err(error) => assert!(matches!(error, LaunchError::Paused) && plan.paused.contains(&tenant.id), "{error}"),
            }
        }
        gpu.device.pass_time(gpu.device.now() + Duration::from_micros(random.below(200)));
        completed += last_kernels(&gpu);
    }
    for tenant in tenants {
        runtime.dismiss(tenant.id).unwrap_or_else(|error| assert!(matches!(error, AdmitError::Ladder(_)), "{error}"));
        drop(tenant);
    }
    gpu.device.pass_time(Duration::MAX);
    completed += last_kernels(&gpu);
    assert_eq!(completed, issued);
    assert!(issued > changes / 2, "{issued} requests are no load");
    let partitions = gpu.sim.counts().partitions;
    assert_eq!(gpu.sim.counts(), SimCounts { partitions, ..counts });
    let kept = start - gpu.free_bytes();
    assert_eq!(kept % PARTITION_BYTES, 0, "only partitions remain");
    assert!(kept <= gpu.device.topology().memory_bytes / 64, "{} partitions", kept / PARTITION_BYTES);
    assert!(refused < changes / 4, "{refused} of {changes} changes were refused");
}

/// Requests that ended since the last call.
fn last_kernels(gpu: &Gpu) -> u64 {
    gpu.sim.take_trace().iter().filter(|kernel| kernel.symbol == LAST.name).count() as u64
}
