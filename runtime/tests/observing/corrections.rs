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
