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
use smidgen_runtime::launch::{Kernel, KernelKey, Session};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Draft, KernelDemand, Krisp, Policy, Slo, StaticEqual, TenantDemand};
use smidgen_runtime::profile::{DriftReport, ProfileStore};
use smidgen_runtime::telemetry::chrome::{self, Phase};
use smidgen_runtime::telemetry::trace::{Event, Happening, Lane, TenantTrace, Trace};
use smidgen_runtime::telemetry::{Recording, metrics as names};
use smidgen_runtime::tenant::{Class, Share, TenantId, TenantSpec};
use smidgen_runtime::{Runtime, RuntimeOptions, Unprofiled};

mod support;

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

#[test]
fn a_device_that_is_thirty_percent_slower_is_reported_once_and_planned_for_once() {
    let (gpu, profiles) = drifted([1.3; 3]);
    let (runtime, _, mut session) = serving(&gpu, Krisp::isolated(), profiles, Recording::default());
    let mut plans = vec![runtime.plan()];
    let mut reports = Vec::new();
    for _ in 0..30 {
        reports.extend(watched(&runtime, &mut session, 1));
        if !Arc::ptr_eq(&plans[plans.len() - 1], &runtime.plan()) {
            plans.push(runtime.plan());
        }
    }
    let kernels: Vec<_> = reports.iter().flat_map(|report| &report.kernels).collect();
    assert_eq!((reports.len(), plans.len()), (1, 2), "{reports:?}");
    assert!(reports[0].replanned);
    assert_eq!(kernels.len(), 3, "{kernels:?}");
    for drift in kernels {
        assert!((drift.ratio - 1.3).abs() < 0.05, "{}: {}", drift.kernel, drift.ratio);
    }
}

/// Writes down the best latency of every kernel that it is asked to plan for.
struct Seen(Arc<Mutex<Vec<f64>>>);

impl Policy for Seen {
    fn name(&self) -> &'static str {
        "seen"
    }

    fn needs_profiles(&self) -> bool {
        true
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let best = |kernel: &KernelDemand| kernel.curve.as_ref().map_or(0.0, |curve| curve.best());
        *self.0.lock().unwrap() = tenants.iter().flat_map(|tenant| &tenant.kernels).map(best).collect();
        StaticEqual.plan(topology, tenants)
    }
}

#[test]
fn the_policy_plans_with_the_corrected_curves_from_then_on() {
    let (gpu, profiles) = drifted([1.0, 1.0, 1.5]);
    let seen = Arc::default();
    let (runtime, id, mut session) = serving(&gpu, Seen(Arc::clone(&seen)), profiles, Recording::default());
    assert_eq!(*seen.lock().unwrap(), [100.0, 60.0, 40.0]);
    let reports = watched(&runtime, &mut session, 30);
    let names: Vec<_> = reports.iter().flat_map(|report| &report.kernels).map(|drift| drift.kernel.name()).collect();
    assert_eq!(names, ["norm"]);
    let now = seen.lock().unwrap().clone();
    assert_eq!(now[..2], [100.0, 60.0]);
    assert!((now[2] / 60.0 - 1.0).abs() < 0.05, "{now:?}");
    session.forget_counts();
    request(&mut session);
    runtime.learn(id, session.seen()).unwrap();
    assert_eq!(*seen.lock().unwrap(), now);
}

/// Leaves everybody out while it is told to refuse.
struct Refusing(Arc<AtomicBool>);

impl Policy for Refusing {
    fn name(&self) -> &'static str {
        "refusing"
    }

    fn needs_profiles(&self) -> bool {
        true
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        if self.0.load(Ordering::Relaxed) { Draft::new() } else { StaticEqual.plan(topology, tenants) }
    }
}

#[test]
fn curves_that_could_not_be_planned_with_are_by_the_next_change_even_if_it_changes_nothing() {
    let (gpu, profiles) = drifted([1.3; 3]);
    let refuses = Arc::new(AtomicBool::new(false));
    let (runtime, id, mut session) = serving(&gpu, Refusing(Arc::clone(&refuses)), profiles, Recording::default());
    let plan = runtime.plan();
    refuses.store(true, Ordering::Relaxed);
    let fails = (0..30).any(|_| {
        (0..100).for_each(|_| request(&mut session));
        session.device().synchronize(session.stream()).unwrap();
        runtime.correct().is_err()
    });
    assert!(fails && Arc::ptr_eq(&plan, &runtime.plan()));
    refuses.store(false, Ordering::Relaxed);
    runtime.resize(id, Share::Planned).unwrap();
    assert!(!Arc::ptr_eq(&plan, &runtime.plan()));
    let plan = runtime.plan();
    runtime.resize(id, Share::Planned).unwrap();
    assert!(Arc::ptr_eq(&plan, &runtime.plan()), "once is enough");
}

#[test]
fn kernels_within_five_percent_of_their_profile_change_nothing() {
    let (gpu, profiles) = drifted([0.95, 1.0, 1.05]);
    let (runtime, _, mut session) = serving(&gpu, Krisp::isolated(), profiles, Recording::default());
    let plan = runtime.plan();
    assert_eq!(watched(&runtime, &mut session, 30), []);
    assert!(Arc::ptr_eq(&plan, &runtime.plan()));
}

#[test]
fn a_policy_without_profiles_reports_drift_and_keeps_its_plan() {
    let (gpu, profiles) = drifted([1.3; 3]);
    let (runtime, _, mut session) = serving(&gpu, StaticEqual, profiles, Recording::default());
    let plan = runtime.plan();
    let reports = watched(&runtime, &mut session, 30);
    assert_eq!((reports.len(), reports[0].replanned), (1, false));
    assert!(Arc::ptr_eq(&plan, &runtime.plan()));
}

#[test]
fn sms_taken_back_are_no_drift() {
    let (gpu, profiles) = drifted([1.0; 3]);
    let (runtime, id, mut session) = serving(&gpu, StaticEqual, profiles, Recording::default());
    runtime.set_grant(id, TpcSet::range(0, 8)).unwrap();
    assert_eq!(watched(&runtime, &mut session, 30), []);
}

/// Replays a graph of 20 requests `rounds` times 500 times, looking for drift after each round. The reports.
fn watched_replays(runtime: &Runtime, session: &mut Session, rounds: usize) -> Vec<DriftReport> {
    let graph = session.capture(|session| (0..20).try_for_each(|_| KERNELS.iter().try_for_each(|kernel| session.launch(kernel)))).unwrap();
    let mut reports = Vec::new();
    for _ in 0..rounds {
        (0..500).for_each(|_| session.replay(&graph).unwrap());
        session.device().synchronize(session.stream()).unwrap();
        reports.extend(runtime.correct().unwrap());
    }
    reports
}

#[test]
fn replays_that_take_longer_than_the_plan_expects_are_reported_once_and_change_nothing() {
    let (gpu, profiles) = drifted([1.3; 3]);
    let (runtime, id, mut session) = serving(&gpu, Slo::default(), profiles, Recording::default());
    let plan = runtime.plan();
    let reports = watched_replays(&runtime, &mut session, 30);
    let [report] = &reports[..] else { panic!("{reports:?}") };
    assert!(report.kernels.is_empty() && !report.replanned);
    assert_eq!(report.tenants.iter().map(|drift| drift.tenant).collect::<Vec<_>>(), [id]);
    assert!((report.tenants[0].ratio - 1.3).abs() < 0.05, "{}", report.tenants[0].ratio);
    assert!(Arc::ptr_eq(&plan, &runtime.plan()));
}

#[test]
fn replays_as_long_as_planned_and_those_of_which_no_policy_predicts_anything_are_no_drift() {
    let (gpu, profiles) = drifted([1.0; 3]);
    let (runtime, _, mut session) = serving(&gpu, Slo::default(), profiles, Recording::default());
    assert_eq!(watched_replays(&runtime, &mut session, 30), []);
    let (gpu, profiles) = drifted([1.3; 3]);
    let (runtime, _, mut session) = serving(&gpu, StaticEqual, profiles, Recording::default());
    assert_eq!(watched_replays(&runtime, &mut session, 30), []);
}

#[test]
fn at_most_one_launch_in_a_hundred_is_timed_and_none_while_capturing() {
    let (gpu, profiles) = drifted([1.0; 3]);
    let recording = Recording { events: 1 << 16, sampling: true };
    let (runtime, id, mut session) = serving(&gpu, StaticEqual, profiles, recording);
    let timed = |runtime: &Runtime| {
        runtime.correct().unwrap();
        let events = &runtime.telemetry().trace().tenants[&id].events;
        events.iter().filter(|event| matches!(event.what, Happening::Kernel { .. })).count() as u64
    };
    for _ in 0..20 {
        (0..100).for_each(|_| request(&mut session));
        session.device().synchronize(session.stream()).unwrap();
        let share = timed(&runtime) as f64 / session.stats().launches as f64;
        assert!(share <= 0.01, "{share}");
    }
    let before = timed(&runtime);
    assert!(before > 0, "none was timed at all");
    let graph = session.capture(|session| (0..100).try_for_each(|_| KERNELS.iter().try_for_each(|kernel| session.launch(kernel)))).unwrap();
    session.replay(&graph).unwrap();
    session.device().synchronize(session.stream()).unwrap();
    assert_eq!(timed(&runtime), before);
}

#[test]
fn a_timed_kernel_stands_on_the_timeline_where_the_device_ran_it() {
    let gpu = Gpu::h200();
    let recording = Recording { events: 1 << 12, sampling: true };
    let (runtime, id, mut session) = serving(&gpu, StaticEqual, Arc::default(), recording);
    watched(&runtime, &mut session, 2);
    let truth = gpu.sim.take_trace();
    let trace = runtime.telemetry().trace();
    let mut found = 0;
    for event in &trace.tenants[&id].events {
        let Happening::Kernel { kernel, took, .. } = event.what else { continue };
        found += 1;
        let ended = event.at + took;
        let near = |run: &&KernelTrace| run.key == kernel && run.started >= event.at && run.ended <= ended;
        let run = truth.iter().find(near).unwrap_or_else(|| panic!("nothing ran from {:?} to {ended:?}", event.at));
        assert!(took - (run.ended - run.started) < Duration::from_micros(2), "{took:?}");
    }
    assert!(found >= 2);
}

#[test]
fn kernels_without_a_profile_are_listed_by_tenant_until_it_is_dismissed() {
    let gpu = Gpu::h200();
    let profiles = support::store(&*gpu.device, support::profile(&*gpu.device, &[(KERNELS[0], 100.0, 64)]));
    let runtime = Runtime::new(Arc::clone(&gpu.device), Box::new(Krisp::isolated()), profiles);
    let id = runtime.admit(tenant("chat")).unwrap();
    let mut session = runtime.session(id).unwrap();
    // What fills in the weights is no part of a request, and nobody profiles it.
    session.launch(&Fake::new("weights")).unwrap();
    session.forget_counts();
    request(&mut session);
    runtime.learn(id, session.seen()).unwrap();
    let mut kernels: Vec<_> = KERNELS[1..].iter().map(Kernel::key).collect();
    let listed = |kernels: &Vec<KernelKey>| [Unprofiled { tenant: id, name: "chat".into(), kernels: kernels.clone() }];
    assert_eq!(runtime.unprofiled(), listed(&kernels));
    // A request of another shape may launch others later.
    let late = Fake::new("late");
    session.launch(&late).unwrap();
    kernels.push(late.key());
    assert_eq!(runtime.unprofiled(), listed(&kernels));
    runtime.dismiss(id).unwrap();
    assert_eq!(runtime.unprofiled(), []);
}

#[test]
fn nothing_is_traced_unless_asked_for() {
    let gpu = Gpu::h200();
    let (runtime, id, mut session) = serving(&gpu, StaticEqual, Arc::default(), Recording::default());
    runtime.telemetry().set_tracing(true);
    request(&mut session);
    runtime.set_grant(id, TpcSet::range(0, 8)).unwrap();
    let trace = runtime.telemetry().trace();
    assert!(trace.tenants.values().all(|tenant| tenant.events.is_empty()) && trace.plans.is_empty(), "{trace:?}");
}

#[test]
fn the_timeline_can_be_turned_off_and_on() {
    let gpu = Gpu::h200();
    let (runtime, id, mut session) = serving(&gpu, StaticEqual, Arc::default(), Recording { events: 1 << 12, sampling: false });
    let events = |runtime: &Runtime| runtime.telemetry().trace().tenants[&id].events.len();
    let before = events(&runtime);
    runtime.telemetry().set_tracing(false);
    request(&mut session);
    assert_eq!(events(&runtime), before);
    runtime.telemetry().set_tracing(true);
    request(&mut session);
    assert_eq!(events(&runtime), before + KERNELS.len());
}

/// Two tenants that launched, replayed, answered requests and were granted other SMs, and what the timeline of that looks like.
fn chrome_of_two_tenants() -> Value {
    let gpu = Gpu::h200();
    let recording = Recording { events: 1 << 12, sampling: true };
    let runtime = Runtime::with_options(
        Arc::clone(&gpu.device),
        Box::new(StaticEqual),
        Arc::default(),
        RuntimeOptions { recording, ..RuntimeOptions::default() },
    );
    for name in ["chat", "embed"] {
        let id = runtime.admit(tenant(name)).unwrap();
        let (mut session, mut log) = (runtime.session(id).unwrap(), runtime.request_log(id).unwrap());
        (0..100).for_each(|_| request(&mut session));
        let graph = session.capture(|session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel))).unwrap();
        session.replay(&graph).unwrap();
        runtime.set_grant(id, TpcSet::range(0, 8)).unwrap();
        session.device().synchronize(session.stream()).unwrap();
        // The second arrives before the first is answered.
        log.answered(MS, 5 * MS, 0.2);
        log.answered(2 * MS, 30 * MS, 1.4);
        runtime.correct().unwrap();
    }
    let trace = runtime.telemetry().trace();
    let phases = [Phase { name: "one", trace: &trace }, Phase { name: "two", trace: &trace }];
    let mut text = Vec::new();
    chrome::write(&phases, &mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn a_chrome_trace_is_in_the_order_of_time_and_every_event_has_a_named_track() {
    let json = chrome_of_two_tenants();
    let events = json["traceEvents"].as_array().unwrap();
    let (mut processes, mut threads) = (BTreeMap::new(), BTreeMap::new());
    let mut last = 0.0;
    let mut kinds = HashMap::<&str, usize>::new();
    for event in events {
        let (pid, tid) = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        let kind = event["ph"].as_str().unwrap();
        *kinds.entry(kind).or_default() += 1;
        let at = event["ts"].as_f64().unwrap();
        match kind {
            "M" if event["name"] == "process_name" => drop(processes.insert(pid, event["args"]["name"].as_str().unwrap().to_owned())),
            "M" if event["name"] == "thread_name" => {
                let other = threads.insert((pid, tid), event["args"]["name"].as_str().unwrap());
                assert_eq!(other, None, "a track has one name: {event}");
            }
            "M" => (),
            _ => {
                assert!(at >= last, "{event} comes after {last}");
                last = at;
                assert!(processes.contains_key(&pid), "{event}");
                assert!(matches!(kind, "C" | "b" | "e") || threads.contains_key(&(pid, tid)), "{event}");
            }
        }
        if kind == "X" {
            assert!(event["dur"].as_f64().unwrap() > 0.0);
        }
    }
    let names: Vec<_> = processes.values().map(String::as_str).collect();
    let expected = ["one: runtime (132 SMs)", "one: chat", "one: embed", "two: runtime (132 SMs)", "two: chat", "two: embed"];
    assert_eq!(names, expected.map(|name| format!("SIMULATED {name}")));
    for kind in ["X", "i", "C", "b", "e"] {
        assert!(kinds.contains_key(kind), "no `{kind}` in {kinds:?}");
    }
    assert!(threads.values().any(|name| name.starts_with("partition ") && name.ends_with("(66 SMs)")), "{threads:?}");
    assert!(json["otherData"]["times"].as_str().unwrap().contains("SIMULATED"));
}

#[test]
fn every_request_of_a_chrome_trace_begins_and_ends_once() {
    let json = chrome_of_two_tenants();
    let mut open = BTreeMap::new();
    let mut closed = 0;
    for event in json["traceEvents"].as_array().unwrap() {
        let id = (event["pid"].as_u64(), event["id"].as_u64());
        let at = event["ts"].as_f64().unwrap();
        match event["ph"].as_str().unwrap() {
            "b" => assert_eq!(open.insert(id, at), None, "{event}"),
            "e" => {
                let began = open.remove(&id).unwrap_or_else(|| panic!("{event} never began"));
                assert!(at > began);
                closed += 1;
            }
            _ => (),
        }
    }
    assert_eq!((open.len(), closed), (0, 8));
}

#[test]
fn a_request_of_a_chrome_trace_says_by_which_objective_it_was_judged() {
    let gpu = Gpu::h200();
    let (runtime, id, _session) = serving(&gpu, StaticEqual, Arc::default(), Recording { events: 1 << 12, sampling: false });
    let mut log = runtime.request_log(id).unwrap();
    log.answered(MS, 5 * MS, 0.2);
    runtime.set_objective(id, Class::Latency, Some(2 * MS)).unwrap();
    log.answered(6 * MS, 10 * MS, 2.0);
    runtime.set_objective(id, Class::Latency, None).unwrap();
    log.answered(11 * MS, 15 * MS, 0.0);
    let mut text = Vec::new();
    chrome::write(&[Phase { name: "", trace: &runtime.telemetry().trace() }], &mut text).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    let requests = json["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "b");
    let judged: Vec<_> = requests.map(|event| (event["args"]["slo us"].as_f64(), event["args"]["slo kept"].as_bool().unwrap())).collect();
    assert_eq!(judged, [(Some(20_000.0), true), (Some(2000.0), false), (None, true)]);
}

#[test]
fn the_sms_of_a_tenant_are_a_counter_that_follows_its_grant() {
    let json = chrome_of_two_tenants();
    let own = |event: &Value| event["args"]["own"].as_u64();
    let counts: Vec<_> = json["traceEvents"].as_array().unwrap().iter().filter(|event| event["name"] == "SMs").filter_map(own).collect();
    for expected in [132, 66, 16] {
        assert!(counts.contains(&expected), "{expected} is missing: {counts:?}");
    }
}

#[test]
fn metrics_count_by_tenant_what_happened() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let values = || {
        let read = snapshotter.snapshot().into_vec().into_iter().map(|(key, _, _, value)| {
            let tenant = key.key().labels().find(|label| label.key() == "tenant").map_or(String::new(), |label| label.value().to_owned());
            ((key.key().name().to_owned(), tenant), value)
        });
        read.collect::<HashMap<_, _>>()
    };
    metrics::with_local_recorder(&recorder, || {
        let gpu = Gpu::h200();
        let (runtime, id, mut session) = serving(&gpu, StaticEqual, Arc::default(), Recording::default());
        let graph = session.capture(|session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel))).unwrap();
        (0..5).for_each(|_| session.replay(&graph).unwrap());
        let mut log = runtime.request_log(id).unwrap();
        log.answered(MS, 3 * MS, 0.1);
        log.answered(MS, 90 * MS, 4.45);
        runtime.set_grant(id, TpcSet::range(0, 8)).unwrap();
        runtime.publish_metrics();
        let found = values();
        let of = |name: &str| &found[&(name.to_owned(), "chat".to_owned())];
        for (name, expected) in
            [(names::REQUESTS, 2), (names::SLO_MISSES, 1), (names::LAUNCHES, 6), (names::HOPS, session.stats().hops), (names::REPLAYS, 5)]
        {
            assert_eq!(*of(name), DebugValue::Counter(expected), "{name}");
        }
        for (name, expected) in [(names::SMS_OWNED, 132.0), (names::SMS_HELD, 16.0), (names::SMS_BORROWED, 0.0), (names::SLO_SECONDS, 0.02)]
        {
            assert_eq!(*of(name), DebugValue::Gauge(expected.into()), "{name}");
        }
        let DebugValue::Histogram(seconds) = of(names::REQUEST_SECONDS) else { panic!("no histogram") };
        assert_eq!(seconds.iter().map(|seconds| seconds.into_inner()).collect::<Vec<_>>(), [0.002, 0.089]);
        assert_eq!(found[&(names::PLANS.to_owned(), String::new())], DebugValue::Counter(2));

        runtime.dismiss(id).unwrap();
        assert_eq!(values()[&(names::SMS_HELD.to_owned(), "chat".to_owned())], DebugValue::Gauge(0.0.into()));
    });
}

#[test]
fn what_a_session_launches_is_counted_though_it_never_replays_and_outlives_its_tenant() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let mut counted = BTreeMap::<String, u64>::new();
    metrics::with_local_recorder(&recorder, || {
        let (gpu, profiles) = drifted([1.0; 3]);
        let (runtime, id, mut session) = serving(&gpu, Krisp::isolated(), profiles, Recording::default());
        request(&mut session);
        session.end_request().unwrap();
        runtime.publish_metrics();
        // A snapshot takes what was counted since the last one.
        let mut count = || {
            for (key, _, _, value) in snapshotter.snapshot().into_vec() {
                if let DebugValue::Counter(more) = value {
                    *counted.entry(key.key().name().to_owned()).or_default() += more;
                }
            }
            [names::LAUNCHES, names::HOPS].map(|name| counted.get(name).copied().unwrap_or_default())
        };
        let stats = session.stats();
        assert!(stats.hops > 0, "every kernel has a partition of its own");
        assert_eq!(count(), [stats.launches, stats.hops]);
        runtime.dismiss(id).unwrap();
        drop((runtime, session));
        assert_eq!(count(), [stats.launches, stats.hops], "nothing is counted twice");
    });
}

#[test]
fn two_tenants_of_one_name_have_figures_of_their_own_and_none_once_they_are_gone() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let held = || {
        let read = snapshotter.snapshot().into_vec().into_iter().filter(|(key, ..)| key.key().name() == names::SMS_HELD);
        let held = read.map(|(key, _, _, value)| {
            let tenant = key.key().labels().find(|label| label.key() == "tenant").unwrap().value().to_owned();
            let DebugValue::Gauge(sms) = value else { panic!("{value:?} is no gauge") };
            (tenant, sms.into_inner())
        });
        held.collect::<BTreeMap<_, _>>()
    };
    metrics::with_local_recorder(&recorder, || {
        let gpu = Gpu::h200();
        let (runtime, first, _session) = serving(&gpu, StaticEqual, Arc::default(), Recording::default());
        let second = runtime.admit(tenant("chat")).unwrap();
        runtime.admit(TenantSpec { memory_bytes: u64::MAX, ..tenant("refused") }).unwrap_err();
        runtime.set_grant(first, TpcSet::range(0, 8)).unwrap();
        runtime.publish_metrics();
        assert_eq!(held().into_iter().collect::<Vec<_>>(), [("chat".to_owned(), 16.0), ("chat (1)".to_owned(), 66.0)]);
        runtime.dismiss(second).unwrap();
        drop(runtime);
        assert_eq!(held().into_values().collect::<Vec<_>>(), [0.0, 0.0]);
    });
}

#[test]
fn a_tenant_really_called_what_a_second_of_one_name_would_be_called_has_figures_of_its_own() {
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || {
        let gpu = Gpu::h200();
        let runtime = Runtime::new(Arc::clone(&gpu.device), Box::new(StaticEqual), Arc::default());
        for name in ["chat (2)", "chat", "chat"] {
            runtime.admit(tenant(name)).unwrap();
        }
        runtime.publish_metrics();
        let read = recorder.snapshotter().snapshot().into_vec();
        let held = read.iter().filter(|(key, ..)| key.key().name() == names::SMS_HELD);
        let mut tenants: Vec<_> = held.map(|(key, ..)| key.key().labels().find(|label| label.key() == "tenant").unwrap().value()).collect();
        tenants.sort_unstable();
        assert_eq!(tenants, ["chat", "chat (2)", "chat (2) (2)"]);
    });
}

#[test]
fn kernels_of_two_sessions_that_overlap_stand_on_two_tracks_that_perfetto_tells_apart() {
    let took = Duration::from_micros(10);
    let kernel = |(us, partition)| {
        let what = Happening::Kernel { kernel: KERNELS[0].key().fingerprint(), partition, sms: Sms(66), took };
        Event { at: Duration::from_micros(us), what }
    };
    let id = TenantId(0);
    let events = [(0, 3), (5, 3), (10, 3), (16, 3), (20, 1), (22, 1)].map(kernel).to_vec();
    let trace = Trace {
        simulated: true,
        sms: Sms(132),
        tenants: BTreeMap::from([(id, TenantTrace { name: "chat".into(), events })]),
        plans: Vec::new(),
        kernels: BTreeMap::new(),
        lanes: [(1, 3), (2, 1)].map(|(stream, partition)| Lane { tenant: id, stream, partition, sms: Sms(66) }).to_vec(),
    };
    let mut text = Vec::new();
    chrome::write(&[Phase { name: "", trace: &trace }], &mut text).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    // Perfetto reads 32 bits of a track's number.
    let number = |event: &Value| u32::try_from(event["tid"].as_u64().unwrap()).unwrap_or_else(|_| panic!("{event}"));
    let named = events.iter().filter(|event| event["name"] == "thread_name" && event["pid"] == 2);
    let tracks: HashMap<_, _> = named.map(|event| (number(event), event["args"]["name"].as_str().unwrap())).collect();
    let bars: Vec<_> = events.iter().filter(|event| event["ph"] == "X").map(|event| tracks[&number(event)]).collect();
    let [one, beside] = ["partition 3 (66 SMs)", "partition 3 (66 SMs), beside"];
    assert_eq!(bars, [one, beside, one, beside, "partition 1 (66 SMs)", "partition 1 (66 SMs), beside"]);
    assert_eq!(tracks.len(), 4);
}

#[test]
fn tenants_of_one_name_in_two_runtimes_have_metrics_of_their_own() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        let gpus = [Gpu::h200(), Gpu::h200()];
        let runtimes = gpus.each_ref().map(|gpu| serving(gpu, StaticEqual, Arc::default(), Recording::default()));
        for ((runtime, id, _), tpcs) in runtimes.iter().zip([8, 16]) {
            runtime.set_grant(*id, TpcSet::range(0, tpcs)).unwrap();
        }
        runtimes.iter().for_each(|(runtime, ..)| runtime.publish_metrics());
        let held = snapshotter.snapshot().into_vec().into_iter().filter(|(key, ..)| key.key().name() == names::SMS_HELD);
        let mut held: Vec<_> = held
            .map(|(key, _, _, value)| {
                let labels: BTreeMap<_, _> = key.key().labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
                (labels["tenant"].clone(), labels["runtime"].clone(), value)
            })
            .collect();
        held.sort_by(|one, other| one.1.cmp(&other.1));
        let [one, other] = runtimes.each_ref().map(|(runtime, ..)| runtime.telemetry().number().to_string());
        let mut expected =
            vec![("chat".to_owned(), one, DebugValue::Gauge(16.0.into())), ("chat".to_owned(), other, DebugValue::Gauge(32.0.into()))];
        expected.sort_by(|one, other| one.1.cmp(&other.1));
        assert_eq!(held, expected);
    });
}

#[test]
fn a_kernel_is_sampled_with_the_sms_that_it_was_sized_for() {
    let gpu = Gpu::h200();
    let (runtime, id, mut session) = serving(&gpu, StaticEqual, Arc::default(), Recording { events: 1 << 12, sampling: true });
    let other = runtime.admit(tenant("other")).unwrap();
    watched(&runtime, &mut session, 2);
    let trace = runtime.telemetry().trace();
    let sms = trace.tenants[&id].events.iter().filter_map(|event| match event.what {
        Happening::Kernel { sms, .. } => Some(sms),
        _ => None,
    });
    let sms = sms.collect::<Vec<_>>();
    assert!(!sms.is_empty() && sms.iter().all(|&sms| sms == Sms(66)), "{sms:?}");
    assert!(!trace.tenants.contains_key(&other) || trace.tenants[&other].events.len() <= 2);
}

/// A disk that has no room left.
struct Full;

impl io::Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_timeline_that_could_not_be_written_is_an_error_however_short_it_is() {
    assert_eq!(chrome::write(&[], Full).unwrap_err().kind(), io::ErrorKind::StorageFull);
}
