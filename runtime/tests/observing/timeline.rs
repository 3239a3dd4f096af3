//! The timeline: which launches are timed, what stands on it, and how Perfetto is told.

use super::*;

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

/// A graph of the kernels.
fn captured(session: &mut Session) -> CapturedGraph {
    session.capture(|session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel))).unwrap()
}

/// The replays on the timeline, with when they began and how long they took.
fn replayed(runtime: &Runtime, id: TenantId) -> Vec<(Duration, u64, Duration)> {
    let events = runtime.telemetry().trace().tenants.remove(&id).unwrap().events.into_iter();
    let replays = events.filter_map(|event| match event.what {
        Happening::Replayed { launches, took, .. } => Some((event.at, launches, took)),
        _ => None,
    });
    replays.collect()
}

#[test]
fn a_replay_stands_on_the_timeline_around_its_kernels_and_hardly_longer() {
    let gpu = Gpu::h200();
    let recording = Recording { events: 1 << 12, sampling: true };
    let (runtime, id, mut session) = serving(&gpu, StaticEqual, Arc::default(), recording);
    let graph = captured(&mut session);
    gpu.sim.take_trace();
    for _ in 0..10 {
        session.replay(&graph).unwrap();
        session.device().synchronize(session.stream()).unwrap();
    }
    let truth = gpu.sim.take_trace();
    runtime.correct().unwrap();
    let replays = replayed(&runtime, id);
    assert_eq!((replays.len(), truth.len()), (10, 30));
    for (&(began, launches, took), kernels) in replays.iter().zip(truth.chunks(3)) {
        let (started, ended) = (kernels[0].started, kernels[2].ended);
        assert_eq!(launches, 3);
        assert!(began <= started && ended <= began + took, "{:?} in {began:?} for {took:?}", started..ended);
        // The host launches the graph in the meantime, since the device has nothing else to do.
        let idle = took - (ended - started);
        assert!(idle < SimConfig::h200().replay_cost + Duration::from_micros(2), "{took:?} for {:?}", ended - started);
    }
}

#[test]
fn replays_of_a_busy_session_have_a_duration_as_far_as_somebody_collects_and_all_are_marked() {
    let gpu = Gpu::h200();
    let recording = Recording { events: 1 << 14, sampling: true };
    let (runtime, id, mut session) = serving(&gpu, StaticEqual, Arc::default(), recording);
    let graph = captured(&mut session);
    for _ in 0..3 {
        (0..300).for_each(|_| session.replay(&graph).unwrap());
        session.device().synchronize(session.stream()).unwrap();
        runtime.correct().unwrap();
    }
    let replays = replayed(&runtime, id);
    assert!((3 * 256..=900).contains(&replays.len()), "{}", replays.len());
    assert!(replays.windows(2).all(|pair| pair[1].0 >= pair[0].0 + pair[0].2), "replays of one stream follow each other");
    let marks =
        runtime.telemetry().trace().tenants[&id].events.iter().filter(|event| matches!(event.what, Happening::Replay { .. })).count();
    assert_eq!(marks, 900);
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
        let graph = captured(&mut session);
        (0..2).for_each(|_| session.replay(&graph).unwrap());
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
fn replays_of_a_chrome_trace_are_bars_on_a_track_of_their_own() {
    let json = chrome_of_two_tenants();
    let events = json["traceEvents"].as_array().unwrap();
    let track = |event: &Value| (event["pid"].as_u64(), event["tid"].as_u64());
    let named = events.iter().filter(|event| event["name"] == "thread_name" && event["args"]["name"] == "graph replays");
    let tracks: Vec<_> = named.map(track).collect();
    assert_eq!(tracks.len(), 4, "one for each tenant of each phase");
    let bars: Vec<_> = events.iter().filter(|event| event["ph"] == "X" && event["name"] == "graph replay").collect();
    assert_eq!(bars.len(), 8);
    for bar in bars {
        assert!(tracks.contains(&track(bar)) && bar["args"]["kernels"] == 3 && bar["dur"].as_f64() > Some(1.0), "{bar}");
    }
    assert!(events.iter().all(|event| event["ph"] != "X" || event["name"] == "graph replay" || !tracks.contains(&track(event))));
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
