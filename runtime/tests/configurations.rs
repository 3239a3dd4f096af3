//! Profiles that name a configuration: which of its tile shapes a kernel is launched as, and what happens to a name that nobody knows.

use std::sync::{Arc, LazyLock, Mutex};

use smidgen_runtime::Runtime;
use smidgen_runtime::device::Sms;
use smidgen_runtime::launch::{Kernel, LaunchError, Session, WorkId};
use smidgen_runtime::policy::StaticEqual;
use smidgen_runtime::profile::Profile;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

mod support;

use support::{Fake, Gpu, Tiled, quickest_as};

const GEMM: Tiled = Tiled(Fake::new("gemm"));

/// A tenant on a simulated GPU, all of it or so many TPCs.
struct House {
    gpu: Gpu,
    runtime: Runtime,
    session: Session,
    tenant: TenantId,
}

impl House {
    fn new(profile: impl FnOnce(Profile) -> Profile) -> Self {
        LazyLock::force(&WARNINGS);
        let gpu = Gpu::h200();
        let measured = profile(support::profile(&*gpu.device, &[(GEMM.0, 100.0, 64)]));
        let runtime = Runtime::new(Arc::clone(&gpu.device), Box::new(StaticEqual), support::store(&*gpu.device, measured));
        let tenant = admit(&runtime);
        let session = runtime.session(tenant).unwrap();
        Self { gpu, runtime, session, tenant }
    }

    /// What the kernel was launched as, and on how many SMs.
    fn launched(&mut self) -> (&'static str, Sms) {
        self.session.launch(&GEMM).unwrap();
        let trace = self.gpu.trace(&self.session);
        (trace[0].symbol, self.runtime.plan().tenant(self.tenant).unwrap().default.sms)
    }
}

fn admit(runtime: &Runtime) -> TenantId {
    runtime.admit(TenantSpec { name: "tenant".into(), class: Class::Throughput, slo: None, memory_bytes: 1 }).unwrap()
}

#[test]
fn a_kernel_is_launched_as_its_profile_says_and_otherwise_as_it_chooses() {
    assert_eq!(House::new(|profile| quickest_as("narrow", Sms(132), profile)).launched(), ("narrow", Sms(132)));
    assert_eq!(House::new(|profile| profile).launched(), ("wide", Sms(132)));
}

#[test]
fn what_was_quickest_on_one_sm_count_says_nothing_of_another() {
    let mut house = House::new(|profile| quickest_as("narrow", Sms(132), profile));
    assert_eq!(house.launched(), ("narrow", Sms(132)));
    let neighbour = admit(&house.runtime);
    // Between two points of the profile, 64 and 132.
    assert_eq!(house.launched(), ("wide", Sms(66)));
    house.runtime.dismiss(neighbour).unwrap();
    assert_eq!(house.launched(), ("narrow", Sms(132)));
    assert_eq!(House::new(|profile| quickest_as("narrow", Sms(64), profile)).launched(), ("wide", Sms(132)));
}

#[test]
fn a_captured_graph_keeps_the_configuration_of_the_profile() {
    let mut house = House::new(|profile| quickest_as("narrow", Sms(132), profile));
    let request = |session: &mut Session| -> Result<(), LaunchError> { session.launch(&GEMM) };
    for _ in 0..3 {
        house.session.replay_or_capture(WorkId(0), request).unwrap();
    }
    let trace = house.gpu.trace(&house.session);
    assert_eq!(trace.iter().map(|kernel| kernel.symbol).collect::<Vec<_>>(), ["narrow"; 3]);
}

#[test]
fn a_name_that_the_kernel_does_not_offer_counts_for_nothing_and_is_warned_about_once() {
    let mut house = House::new(|profile| {
        let mut profile = quickest_as("from_before", Sms(132), profile);
        profile.provenance.command = "smidgen profile --model test --tiles 4 -o old.json".into();
        profile
    });
    let launched = house.launched();
    house.session = house.runtime.session(house.tenant).unwrap();
    let again = house.launched();
    assert_eq!([launched, again], [("wide", Sms(132)); 2]);
    let name = GEMM.key();
    assert_eq!(
        WARNINGS.naming("from_before"),
        [format!(
            "test.json: {name} was quickest as `from_before` on 132 SMs, which these kernels do not offer; the kernel's own choice is used: move the file away and \
             run `smidgen profile --model test --tiles 4 -o test.json`"
        )]
    );
}

#[test]
fn a_kernel_without_configurations_is_launched_as_ever() {
    let mut house = House::new(|profile| quickest_as("narrow", Sms(132), profile));
    house.session.launch(&GEMM.0).unwrap();
    assert_eq!(house.gpu.trace(&house.session)[0].symbol, "gemm");
}

/// What all tests of this process warn about. It listens before the first of them begins: a place that warns while nobody does may be left out for good.
static WARNINGS: LazyLock<Warnings> = LazyLock::new(|| {
    let warnings = Warnings::default();
    tracing::subscriber::set_global_default(warnings.clone()).unwrap();
    warnings
});

/// The texts of all warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn naming(&self, what: &str) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|text| text.contains(what)).cloned().collect()
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap().push(message.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
