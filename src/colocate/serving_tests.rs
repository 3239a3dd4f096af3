use std::sync::{Arc, Barrier};
use std::time::Duration;

use smidgen_runtime::device::sim::{Fault, SimConfig, SimDevice};
use smidgen_runtime::device::{DeviceError, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Session, Work};
use smidgen_runtime::policy::{DefaultSharing, StaticEqual};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::TenantSpec;
use smidgen_runtime::{Runtime, Tenancy};

use super::{Outcome, Resident, in_virtual_time, on_threads};
use crate::colocate::phase::{PhaseError, TenantServer};
use crate::colocate::spec::TenantRequest;
use crate::colocate::watch::Observer;
use crate::serve::{Served, Server, Turn, Window, Workload};

/// A kernel that reads 40 MB.
#[derive(Debug, Clone, Copy)]
struct Fake(&'static str);

// SAFETY: the simulator reads no parameters.
unsafe impl Kernel for Fake {
    fn key(&self) -> KernelKey {
        KernelKey::new(KernelName::new(self.0), [])
    }

    fn work(&self) -> Work {
        Work { flops: 0, bytes: 40_000_000 }
    }

    fn configure(&self, sms: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch {
            symbol: self.0,
            grid: Launch::persistent_grid(132, sms, 1),
            block: 128,
            shared_bytes: 0,
            blocks_per_sm: 1,
            blocks_per_tile: 1,
            tiles: 132,
            elastic: false,
            programmatic: false,
            begins_by_number: false,
            params: Params::new(0_u32),
        })
    }
}

/// A request of one kernel. After a plan has changed it is captured again, which is when it panics, if it is to.
struct Request {
    kernel: Fake,
    panics: bool,
    enqueued: u32,
    /// Where threads serve, both are there by then: time is virtual, and one could be through before the other has begun.
    both: Option<Arc<Barrier>>,
}

impl Workload for Request {
    fn enqueue(&mut self, session: &mut Session) -> Result<(), LaunchError> {
        self.enqueued += 1;
        if let (2, Some(both)) = (self.enqueued, &self.both) {
            both.wait();
        }
        assert!(!self.panics || self.enqueued < 2, "a bug in a tenant's model");
        session.launch(&self.kernel)
    }
}

const STEADY: &str = "steady";
const FAILING: &str = "failing";

/// Serves a steady tenant beside one that fails as `fault` says, or panics; what became of them, in this order, and the SMs that the steady one has at the
/// end.
fn served(threads: bool, fault: Option<Fault>, takes_turns: bool) -> (Vec<Result<Served, PhaseError>>, Option<Sms>) {
    let device = SimDevice::new(SimConfig::h200());
    let runtime = Runtime::new(Arc::clone(&device) as _, Box::new(DefaultSharing), Arc::new(ProfileStore::default()));
    let requests = [STEADY, FAILING].map(|name| format!("{name}=none").parse::<TenantRequest>().unwrap());
    let (turn, both) = (Arc::new(Turn::default()), Arc::new(Barrier::new(2)));
    let window = Window { from: Duration::ZERO, until: Duration::from_millis(20), end: Duration::from_millis(21) };
    let residents = requests.iter().zip([STEADY, FAILING]).zip(0..).map(|((request, name), number)| {
        let id = runtime.admit(TenantSpec { name: name.into(), class: request.class, slo: None, memory_bytes: 0 }).unwrap();
        let tenancy = Tenancy::new(&runtime, id);
        let mut session = runtime.session(id).unwrap();
        session.launch(&Fake(name)).unwrap();
        let both = threads.then(|| Arc::clone(&both));
        let request_of = Request { kernel: Fake(name), panics: name == FAILING && fault.is_none(), enqueued: 0, both };
        let mut server = Server::new(session, Box::new(request_of), None).unwrap();
        if takes_turns {
            server.take_turns(turn.seat(number));
        }
        server.start(window, None, 0);
        Resident { request, server: TenantServer::Requests(Box::new(server)), tenancy }
    });
    let residents: Vec<_> = residents.collect();
    let steady = residents[0].tenancy.tenant();
    if let Some(fault) = fault {
        device.inject(FAILING, fault);
    }
    // Everybody is placed elsewhere, and captures again.
    runtime.set_policy(Box::new(StaticEqual)).unwrap();
    let mut observer = Observer::new(&runtime, None);
    let serve = if threads { on_threads } else { in_virtual_time };
    let outcomes: Vec<Outcome<'_>> = serve(&runtime, residents, &mut observer);
    let sms = runtime.plan().tenants.get(&steady).map(|plan| plan.default.sms);
    (outcomes.into_iter().map(|outcome| outcome.map(|(served, _)| served)).collect(), sms)
}

#[test]
fn a_tenant_that_panics_is_reported_by_name_and_its_neighbour_is_served_to_the_end_on_all_sms() {
    for (threads, takes_turns) in [(false, false), (true, false), (false, true)] {
        let (outcomes, sms) = served(threads, None, takes_turns);
        let [steady, failed] = &outcomes[..] else { panic!("{} outcomes", outcomes.len()) };
        assert!(matches!(failed, Err(PhaseError::Panic(name)) if name == FAILING), "{:?}", failed.as_ref().err());
        let requests = steady.as_ref().unwrap().latencies.count();
        assert!(requests > 250, "{requests} requests of about 40 us in 20 ms");
        assert_eq!(sms, Some(Sms(132)));
    }
}

#[test]
fn a_launch_that_is_refused_ends_its_tenant_alone() {
    for threads in [false, true] {
        let (outcomes, sms) = served(threads, Some(Fault::Refuse), !threads);
        let [steady, failed] = &outcomes[..] else { panic!("{} outcomes", outcomes.len()) };
        assert!(matches!(failed, Err(PhaseError::Launch { tenant, .. }) if tenant == FAILING), "{:?}", failed.as_ref().err());
        assert!(steady.as_ref().unwrap().latencies.count() > 250);
        assert_eq!(sms, Some(Sms(132)));
    }
}

#[test]
fn a_lost_context_ends_every_tenant_with_an_error_that_says_so() {
    for threads in [false, true] {
        let (outcomes, _) = served(threads, Some(Fault::Crash), false);
        for outcome in &outcomes {
            let Err(PhaseError::Launch { source: LaunchError::Device(error), .. }) = outcome else {
                panic!("{:?}", outcome.as_ref().err())
            };
            assert!(error.is_sticky(), "{error}");
        }
        let told = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Err(PhaseError::Launch { source: LaunchError::Device(DeviceError::Lost { .. }), .. })));
        assert_eq!(told.count(), 1, "one met it, the other is told");
    }
}
