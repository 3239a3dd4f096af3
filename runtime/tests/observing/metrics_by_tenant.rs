//! Figures by tenant, for whoever collects metrics.

use super::*;

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
        let memory = runtime.tenants()[0].clone();
        assert!(memory.allocated_bytes > 0);
        for (name, bytes) in [
            (names::MEMORY_PROMISED, memory.spec.memory_bytes),
            (names::MEMORY_ALLOCATED, memory.allocated_bytes),
            (names::MEMORY_GRAPHS, memory.graph_bytes),
        ] {
            assert_eq!(*of(name), DebugValue::Gauge((bytes as f64).into()), "{name}");
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
