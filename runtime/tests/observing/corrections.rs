//! Profiles that have drifted, and kernels that have none: what is reported, and what is planned for.

use super::*;

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

/// Writes down the best latency of every kernel that it is asked to plan for, and predicts that requests take so many times longer than undisturbed.
struct Seen(Arc<Mutex<Vec<f64>>>, f64);

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

    fn slowdowns(&self, _: &Topology, tenants: &[TenantDemand]) -> BTreeMap<TenantId, f64> {
        tenants.iter().map(|tenant| (tenant.id, self.1)).collect()
    }
}

#[test]
fn the_policy_plans_with_the_corrected_curves_from_then_on() {
    let (gpu, profiles) = drifted([1.0, 1.0, 1.5]);
    let seen = Arc::default();
    let (runtime, id, mut session) = serving(&gpu, Seen(Arc::clone(&seen), 1.0), profiles, Recording::default());
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
fn replays_by_hand_that_take_longer_than_the_plan_expects_are_reported_once_and_change_nothing() {
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
fn a_timeline_adds_none_to_the_replays_that_are_held_against_the_plan() {
    let reports = |recording| {
        let (gpu, profiles) = drifted([1.3; 3]);
        let (runtime, _, mut session) = serving(&gpu, Slo::default(), profiles, recording);
        (0..6).map(|_| watched_replays(&runtime, &mut session, 1).len()).collect::<Vec<_>>()
    };
    let untraced = reports(Recording::default());
    assert!(untraced[0] == 0 && untraced.contains(&1), "{untraced:?}");
    assert_eq!(reports(Recording { events: 1 << 12, sampling: true }), untraced);
}

/// What is replayed in place of [`request`].
const REQUEST: WorkId = WorkId(0);

/// Tells of one request, which took `spent` of its objective.
fn answered(log: &mut RequestLog, spent: f64) {
    log.answered(Duration::ZERO, (20 * MS).mul_f64(spent), spent);
}

/// Kernels that were timed and collected so far.
fn timed_kernels(runtime: &Runtime, tenant: TenantId) -> usize {
    let events = &runtime.telemetry().trace().tenants[&tenant].events;
    events.iter().filter(|event| matches!(event.what, Happening::Kernel { .. })).count()
}

fn kept_request(session: &mut Session) {
    session.replay_or_capture::<LaunchError>(REQUEST, |session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel))).unwrap();
}

/// Serves `rounds` of 500 requests each by `serve` and looks for drift after each round. The reports, and how many requests were launched in place of replays.
fn watched_kept(runtime: &Runtime, session: &mut Session, rounds: usize, serve: fn(&mut Session)) -> (Vec<DriftReport>, u64) {
    let (mut reports, before) = (Vec::new(), session.stats().replays);
    for _ in 0..rounds {
        (0..500).for_each(|_| serve(session));
        session.device().synchronize(session.stream()).unwrap();
        reports.extend(runtime.correct().unwrap());
    }
    (reports, 500 * rounds as u64 - (session.stats().replays - before))
}

/// A tenant whose replays have been found to differ, which has not been asked for a request that it could launch.
fn found_to_differ(recording: Recording) -> (Gpu, Runtime, TenantId, Session) {
    let (gpu, profiles) = drifted([1.3; 3]);
    let (runtime, id, mut session) = serving(&gpu, Slo::default(), profiles, recording);
    kept_request(&mut session);
    let (reports, launched) = watched_kept(&runtime, &mut session, 10, |session| assert!(session.replay_kept(REQUEST).unwrap()));
    assert_eq!((reports.len(), launched), (1, 0), "what is replayed without a body can only be replayed");
    (gpu, runtime, id, session)
}

#[test]
fn a_tenant_that_only_replays_is_corrected_and_planned_for() {
    let (gpu, profiles) = drifted([1.3; 3]);
    let seen = Arc::default();
    let (runtime, id, mut session) = serving(&gpu, Seen(Arc::clone(&seen), 1.0), profiles, Recording::default());
    answered(&mut runtime.request_log(id).unwrap(), 0.1);
    let plan = runtime.plan();
    let (reports, launched) = watched_kept(&runtime, &mut session, 80, kept_request);
    let [first, corrected, recovered] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((first.tenants.len(), first.kernels.len(), first.replanned), (1, 0, false));
    assert_eq!((corrected.kernels.len(), corrected.replanned), (3, true));
    for drift in &corrected.kernels {
        assert!((drift.ratio - 1.3).abs() < 0.05, "{}: {}", drift.kernel, drift.ratio);
    }
    // Held against the corrected profile, the replays are as long as they should be.
    assert!(recovered.kernels.is_empty() && (recovered.tenants[0].ratio - 1.0).abs() < 0.05, "{recovered:?}");
    assert!(!Arc::ptr_eq(&plan, &runtime.plan()));
    for (curve, us) in seen.lock().unwrap().iter().zip([130.0, 78.0, 52.0]) {
        assert!((curve / us - 1.0_f64).abs() < 0.05, "{curve} for {us}");
    }
    assert!((16..=20).contains(&launched), "{launched} of 40000 were launched");
    assert_eq!(watched_kept(&runtime, &mut session, 10, kept_request), (Vec::new(), 0), "there are enough samples");
}

#[test]
fn what_the_plan_expects_of_neighbours_is_not_corrected_as_well() {
    let (gpu, profiles) = drifted([1.6; 3]);
    let (runtime, id, mut session) = serving(&gpu, Seen(Arc::default(), 1.3), profiles, Recording::default());
    answered(&mut runtime.request_log(id).unwrap(), 0.1);
    let (reports, _) = watched_kept(&runtime, &mut session, 40, kept_request);
    let corrected: Vec<_> = reports.iter().flat_map(|report| &report.kernels).collect();
    assert_eq!(corrected.len(), 3, "{reports:?}");
    for drift in corrected {
        assert!((drift.ratio - 1.6 / 1.3).abs() < 0.05, "{}: {}", drift.kernel, drift.ratio);
    }
}

#[test]
fn a_tenant_launches_what_it_can_replay_only_where_its_profile_does_not_hold() {
    for (slower, expected) in [(1.0, false), (1.3, true)] {
        let (gpu, profiles) = drifted([slower; 3]);
        let (runtime, id, mut session) = serving(&gpu, Slo::default(), profiles, Recording::default());
        answered(&mut runtime.request_log(id).unwrap(), 0.1);
        let (reports, launched) = watched_kept(&runtime, &mut session, 20, kept_request);
        assert_eq!((!reports.is_empty(), launched > 0), (expected, expected), "{launched} launched at {slower} times the profile");
        assert!(launched <= 10, "{launched} of 10000 were launched");
    }
}

#[test]
fn at_most_a_hundredth_of_what_a_tenant_launches_and_replays_is_timed() {
    let (gpu, profiles) = drifted([1.3; 3]);
    let recording = Recording { events: 1 << 16, sampling: true };
    let (runtime, id, mut session) = serving(&gpu, Slo::default(), profiles, recording);
    answered(&mut runtime.request_log(id).unwrap(), 0.1);
    // Graphs of one launch make the fewest of all: between those that are asked for there are hardly more launches than replays.
    let short = |session: &mut Session| {
        session.replay_or_capture::<LaunchError>(WorkId(1), |session| session.launch(&KERNELS[2])).unwrap();
        1
    };
    let long = |session: &mut Session| {
        let body = |session: &mut Session| (0..20).try_for_each(|_| KERNELS.iter().try_for_each(|kernel| session.launch(kernel)));
        session.replay_or_capture::<LaunchError>(REQUEST, body).unwrap();
        3 * 20
    };
    // Long ones alone until the drift is found; from there on short ones but where one is due, and that it is launched.
    let mut rounds = |rounds: usize, serve: &dyn Fn(&mut Session, usize) -> usize| {
        let (replays, timed) = (session.stats().replays, timed_kernels(&runtime, id));
        let mut launches = 0;
        for _ in 0..rounds {
            launches += (0..250).map(|at| serve(&mut session, at)).sum::<usize>();
            session.device().synchronize(session.stream()).unwrap();
            runtime.correct().unwrap();
        }
        (launches, 250 * rounds as u64 - (session.stats().replays - replays), timed_kernels(&runtime, id) - timed)
    };
    assert_eq!(rounds(4, &|session, _| long(session)), (60_000, 0, 0));
    rounds(6, &|session, _| long(session));
    let (launches, launched, timed) = rounds(30, &|session, at| if at % 50 == 0 { long(session) } else { short(session) });
    assert!(launched > 0, "none was launched");
    assert!((8..=launches / 100).contains(&timed), "{timed} of {launches}");
}

#[test]
fn no_request_is_launched_in_place_of_a_replay_while_requests_are_late_or_nobody_knows() {
    let (_gpu, runtime, id, mut session) = found_to_differ(Recording::default());
    let mut log = runtime.request_log(id).unwrap();
    assert_eq!(watched_kept(&runtime, &mut session, 4, kept_request).1, 0, "nobody tells of requests");
    for spent in [1.2, 0.95] {
        answered(&mut log, spent);
        assert_eq!(watched_kept(&runtime, &mut session, 4, kept_request).1, 0, "the last one took {spent} of its objective");
    }
    answered(&mut log, 0.5);
    assert_eq!(watched_kept(&runtime, &mut session, 4, kept_request).1, 2);
}

#[test]
fn a_tenant_that_is_asked_to_launch_can_capture_replay_and_fail_as_before() {
    let (_gpu, runtime, id, mut session) = found_to_differ(Recording { events: 1 << 16, sampling: true });
    answered(&mut runtime.request_log(id).unwrap(), 0.1);
    let launch = |session: &mut Session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel));
    let replays = session.stats().replays;

    // A capture under way takes neither replays nor what stands in for them.
    session.begin_capture().unwrap();
    assert!(matches!(session.replay_or_capture(REQUEST, launch), Err(LaunchError::InCapture)));
    launch(&mut session).unwrap();
    let graph = session.finish_capture().unwrap();
    session.replay(&graph).unwrap();
    assert!(!session.prepare(REQUEST, launch).unwrap());
    session.replay_or_capture(WorkId(1), launch).unwrap();
    assert_eq!(session.stats().replays - replays, 2, "what is not kept is captured");

    // The one that is launched may fail, and the next are replayed.
    let failed = session.replay_or_capture(REQUEST, |_| Err(LaunchError::NotCapturing));
    assert!(matches!(failed, Err(LaunchError::NotCapturing)));
    session.device().synchronize(session.stream()).unwrap();
    (0..1000).for_each(|_| kept_request(&mut session));
    assert_eq!(session.stats().replays - replays, 1002);
    kept_request(&mut session);
    assert_eq!(session.stats().replays - replays, 1002, "the next in a thousand is launched");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        (0..1000).for_each(|_| kept_request(&mut session));
        session.replay_or_capture::<LaunchError>(REQUEST, |_| panic!("told to"))
    }));
    assert!(panicked.is_err());
    // Nothing of the request is left: other launches are timed as seldom as ever.
    let timed = |session: &Session| {
        session.device().synchronize(session.stream()).unwrap();
        runtime.correct().unwrap();
        timed_kernels(&runtime, id)
    };
    let before = timed(&session);
    (0..10).for_each(|_| request(&mut session));
    assert!(timed(&session) <= before + 1);
}

#[test]
fn profiles_that_come_while_serving_are_planned_with_and_forget_what_was_seen_against_the_earlier_ones() {
    let (gpu, stale) = drifted([1.3; 3]);
    let seen = Arc::default();
    let (runtime, _, mut session) = serving(&gpu, Seen(Arc::clone(&seen), 1.0), stale, Recording::default());
    assert!(!watched(&runtime, &mut session, 30).is_empty());
    let fresh = [100.0, 60.0, 40.0].map(|us| 1.3 * us);
    let kernels = [0, 1, 2].map(|at| (KERNELS[at], fresh[at], [64, 32, 16][at]));
    let plans = runtime.plan();
    runtime.set_profiles(support::store(&*gpu.device, support::profile(&*gpu.device, &kernels))).unwrap();
    assert!(!Arc::ptr_eq(&plans, &runtime.plan()));
    assert_eq!(*seen.lock().unwrap(), fresh, "no correction of before is left in them");
    assert_eq!(watched(&runtime, &mut session, 30), []);
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
