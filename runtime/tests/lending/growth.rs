//! Launches under way that grow onto TPCs that came back: eager ones, and those of replays.

use super::*;

#[test]
fn a_long_launch_grows_onto_tpcs_that_came_back_while_it_ran() {
    let house = House::new();
    let (borrower, mut batch) = house.admit(Class::Throughput);
    let (_, mut latency) = house.idle_owner();
    // The counter is in a later epoch then, also for what a replay adds to it.
    batch.launch(&LONG).unwrap();
    let graph = batch.capture(|session| session.launch(&LONG)).unwrap();
    batch.replay(&graph).unwrap();
    house.wait(&batch);

    let mut timed = |grows: bool| {
        latency.begin_request().unwrap();
        house.pass(REACTION);
        house.gpu.sim.take_trace();
        let start = house.gpu.device.now();
        batch.launch(&LONG).unwrap();
        assert!(!batch.grow().unwrap(), "nothing came back yet");
        house.pass(Duration::from_micros(500));
        latency.end_request().unwrap();
        house.lend();
        assert_eq!(house.has(borrower).granted, ALL);
        assert_eq!(grows && batch.grow().unwrap(), grows);
        assert!(!grows || !batch.grow().unwrap(), "once for each time that TPCs come back");
        house.wait(&batch);
        (house.gpu.device.now() - start, house.gpu.sim.take_trace())
    };
    let (without, trace) = timed(false);
    assert_eq!(trace.iter().map(|kernel| kernel.tpcs).collect::<Vec<_>>(), [ALL - FIRST]);
    let (with, trace) = timed(true);
    assert_eq!(trace.iter().map(|kernel| kernel.tpcs).collect::<Vec<_>>(), [ALL - FIRST, FIRST]);
    // 0.7 ms on 110 SMs, the rest on 132.
    let expected = (without.as_secs_f64() - 0.7e-3) * 110.0 / 132.0 + 0.7e-3;
    assert!((with.as_secs_f64() / expected - 1.0).abs() < 0.02, "{with:?}, {without:?} without");
}

#[test]
fn a_long_launch_grows_onto_what_a_new_plan_gives_its_tenant() {
    let house = House::new();
    house.runtime.set_policy(Box::new(smidgen_runtime::policy::StaticEqual)).unwrap();
    let (_, mut stays) = house.admit(Class::Throughput);
    let (leaves, _session) = house.admit(Class::Throughput);
    stays.launch(&LONG).unwrap();
    house.pass(Duration::from_micros(500));
    house.runtime.dismiss(leaves).unwrap();
    assert!(stays.grow().unwrap());
    let trace = house.gpu.trace(&stays);
    assert_eq!(trace.iter().map(|kernel| kernel.tpcs).collect::<Vec<_>>(), [TpcSet::range(0, 33), TpcSet::range(33, 66)]);
}

/// One tenant, on the TPCs that the test says next.
struct Moving(TpcSet);

impl Policy for Moving {
    fn name(&self) -> &'static str {
        "moving"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let default = DraftPlacement { sms: topology.sms_of(self.0), tpcs: self.0, priority: Priority::Normal };
        let walls = Walls { grid: true, grant: true, partition: true };
        let draft = TenantDraft { owned: self.0, grant: self.0, default, kernels: BTreeMap::new(), walls };
        tenants.iter().map(|tenant| (tenant.id, draft.clone())).collect()
    }
}

#[test]
fn a_partition_that_a_launch_grew_into_makes_room_for_others_later() {
    const LIMIT: u64 = 12;
    let gpu = Gpu::h200();
    let options = RuntimeOptions { partition_bytes: Some(LIMIT * PARTITION_BYTES), ..RuntimeOptions::default() };
    let policy = |at: u16| Box::new(Moving(TpcSet::range(at, at + 10)));
    let runtime = Runtime::with_options(Arc::clone(&gpu.device), policy(0), Arc::new(ProfileStore::default()), options);
    let spec = TenantSpec { name: String::new(), class: Class::Throughput, slo: None, memory_bytes: 0 };
    let mut session = runtime.session(runtime.admit(spec).unwrap()).unwrap();
    for at in 1..50 {
        session.launch(&LONG).unwrap();
        runtime.set_policy(policy(at)).unwrap();
        assert!(session.grow().unwrap());
        assert_eq!(gpu.trace(&session).last().unwrap().tpcs, TpcSet::range(at + 9, at + 10));
    }
}

#[test]
fn a_long_launch_of_a_replay_grows_and_what_the_replay_has_left_behind_does_not() {
    let house = House::new();
    let (borrower, mut batch) = house.admit(Class::Throughput);
    let (_, mut latency) = house.idle_owner();
    let brief = Busy { name: "brief", us: 20, tiles_per_sm: 10 };
    batch.launch(&LONG).unwrap();
    // Two of them on each counter, with another kernel between.
    let pass = |session: &mut Session| -> Result<(), LaunchError> {
        for kernel in [LONG, LONG, brief, LONG, LONG] {
            session.launch(&kernel)?;
        }
        Ok(())
    };
    batch.launch(&brief).unwrap();
    batch.capture_kept(WorkId(1), pass).unwrap();
    batch.replay_or_capture(WorkId(1), pass).unwrap();
    house.wait(&batch);

    house.gpu.sim.take_trace();
    batch.replay_or_capture(WorkId(1), pass).unwrap();
    let mut grown = 0;
    for _ in 0..20 {
        house.pass(Duration::from_micros(150));
        latency.begin_request().unwrap();
        house.pass(REACTION);
        assert!(!batch.grow().unwrap(), "nothing came back yet");
        house.pass(Duration::from_micros(100));
        latency.end_request().unwrap();
        house.lend();
        assert_eq!(house.has(borrower).granted, ALL);
        grown += u32::from(batch.grow().unwrap());
    }
    house.wait(&batch);
    let trace = house.gpu.sim.take_trace();
    let joined = trace.iter().filter(|kernel| kernel.tpcs == FIRST).count() as u32;
    assert!(grown > 4 && joined == grown, "{grown} joiners launched, {joined} ran");
    let owners: Vec<_> = trace.iter().filter(|kernel| kernel.tpcs != FIRST).collect();
    assert_eq!(owners.iter().map(|kernel| kernel.symbol).collect::<Vec<_>>(), ["long", "long", "brief", "long", "long"]);
    assert!(owners.windows(2).all(|pair| pair[0].ended <= pair[1].started));
}

#[test]
fn only_long_launches_grow_and_never_within_a_capture() {
    let house = House::new();
    let (_, mut batch) = house.admit(Class::Throughput);
    let (_, mut latency) = house.idle_owner();
    let brief = Busy { name: "brief", us: 150, tiles_per_sm: 10 };
    for kernel in [brief, LONG] {
        latency.begin_request().unwrap();
        house.pass(REACTION);
        batch.launch(&kernel).unwrap();
        latency.end_request().unwrap();
        house.lend();
        assert_eq!(batch.grow().unwrap(), kernel.name == LONG.name, "{}", kernel.name);
        house.wait(&batch);
    }
    assert!(matches!(batch.capture(|session| session.grow().map(drop)), Err(LaunchError::InCapture)));
}
