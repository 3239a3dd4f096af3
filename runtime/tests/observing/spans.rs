//! Spans: what is not on the launch path has one of its own, what is on it has none.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use smidgen_runtime::device::Buffer;
use smidgen_runtime::launch::{LaunchError, WorkId};
use smidgen_runtime::partition::Ladder;
use smidgen_runtime::profile::Profile;
use smidgen_runtime::transfer::After;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

use super::*;

/// Every span as it was opened, by its name and its fields: `pause{tenant=0}`.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<String>>>);

impl Spans {
    fn opened(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Calls what must open `span` before any other.
    fn own<R>(&self, span: &str, call: impl FnOnce() -> R) -> R {
        // A test on another thread that met a span first, just when this subscriber came, may have noted that nobody wants it.
        tracing::callsite::rebuild_interest_cache();
        let before = self.opened().len();
        let result = call();
        assert_eq!(self.opened().get(before).map(String::as_str), Some(span));
        result
    }

    /// Calls what must open none.
    fn none<R>(&self, call: impl FnOnce() -> R) -> R {
        let before = self.opened().len();
        let result = call();
        assert_eq!(self.opened().split_off(before), Vec::<String>::new());
        result
    }

    /// The names of all that were opened.
    fn names(&self) -> BTreeSet<String> {
        self.opened().iter().map(|span| span.split('{').next().unwrap().to_owned()).collect()
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span()
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let name = span.metadata().name();
        assert_eq!(*span.metadata().level(), Level::DEBUG, "{name}");
        let mut fields = Fields(String::new());
        span.record(&mut fields);
        let mut opened = self.0.lock().unwrap();
        opened.push(if fields.0.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", fields.0) });
        Id::from_u64(opened.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Fields as text, with a space between them.
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        write!(self.0, "{space}{}={value:?}", field.name()).unwrap();
    }
}

#[test]
fn what_changes_a_runtime_has_a_span_of_its_own_and_what_serves_a_request_has_none() {
    let spans = Spans::default();
    tracing::subscriber::with_default(spans.clone(), || run_through(&spans));
    let names = spans.names();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "adapt",
            "admit",
            "adopt",
            "capture",
            "correct",
            "create partition",
            "destroy partition",
            "dismiss",
            "expect_rate",
            "finish_capture",
            "learn",
            "limit_transfers",
            "make family",
            "make foreseen partitions",
            "make runtime",
            "make stream",
            "make_plan",
            "pause",
            "put_in_force",
            "read profile",
            "request_log",
            "resize",
            "resume",
            "session",
            "set_grant",
            "set_hysteresis",
            "set_objective",
            "set_policy",
            "set_profiles",
            "uploader",
            "write profile",
            "write timeline",
        ]
    );
}

fn run_through(spans: &Spans) {
    let (gpu, profiles) = drifted([1.3; 3]);
    let runtime = spans.own(r#"make runtime{policy="slo"}"#, || Runtime::new(Arc::clone(&gpu.device), Box::new(Slo::default()), profiles));
    let chat = spans.own(r#"admit{tenant="chat"}"#, || runtime.admit(tenant("chat"))).unwrap();
    let throughput = TenantSpec { class: Class::Throughput, slo: None, ..tenant("embed") };
    let embed = spans.own(r#"admit{tenant="embed"}"#, || runtime.admit(throughput)).unwrap();
    let mut session = spans.own("session{tenant=0}", || runtime.session(chat)).unwrap();
    spans.none(|| request(&mut session));
    for id in [chat, embed] {
        spans.own(&format!("learn{{tenant={} kernels=3}}", id.0), || runtime.learn(id, session.seen())).unwrap();
    }
    serve(spans, &runtime, chat, &mut session);

    // What is lent between requests is not held, and launches on it say nothing of their kernels.
    session.begin_request().unwrap();
    let corrected = (0..30).any(|_| {
        spans.none(|| (0..100).for_each(|_| request(&mut session)));
        session.device().synchronize(session.stream()).unwrap();
        spans.own("correct", || runtime.correct()).unwrap().is_some()
    });
    assert!(corrected, "launches were sampled, and kernels take 1.3 times as long as their profile says");
    spans.own("adapt", || runtime.adapt()).unwrap();
    spans.own("set_objective{tenant=0}", || runtime.set_objective(chat, Class::Latency, Some(10 * MS))).unwrap();
    spans.own("expect_rate{tenant=0}", || runtime.expect_rate(chat, Some(100.0))).unwrap();
    spans.own("resize{tenant=0 share=Percent(50)}", || runtime.resize(chat, Share::Percent(50))).unwrap();
    spans.own("set_grant{tenant=0}", || runtime.set_grant(chat, TpcSet::range(0, 8))).unwrap();
    spans.own("set_hysteresis{hysteresis=1ms}", || runtime.set_hysteresis(MS));
    spans.own("limit_transfers{tenant=0}", || runtime.limit_transfers(chat, None)).unwrap();
    spans.own("pause{tenant=0}", || runtime.pause(chat)).unwrap();
    spans.own("resume{tenant=0}", || runtime.resume(chat)).unwrap();
    spans.own(r#"set_policy{policy="static-equal"}"#, || runtime.set_policy(Box::new(StaticEqual))).unwrap();
    spans.own("set_profiles", || runtime.set_profiles(Arc::default())).unwrap();
    spans.own("dismiss{tenant=1}", || runtime.dismiss(embed)).unwrap();

    let ladder = Ladder::new(Arc::clone(&gpu.device), 1);
    drop(spans.own("create partition{tpcs={0..8}}", || ladder.partition(TpcSet::range(0, 8))).unwrap());
    spans.own("destroy partition{tpcs={0..8}}", || ladder.partition(TpcSet::range(8, 16))).unwrap();
    spans.own("write timeline{phases=0}", || chrome::write(&[], io::sink())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profile.json");
    let profile = support::profile(&*gpu.device, &[(KERNELS[0], 100.0, 64)]);
    spans.own(&format!("write profile{{path={}}}", path.display()), || profile.write(&path)).unwrap();
    spans.own(&format!("read profile{{path={}}}", path.display()), || Profile::read(&path)).unwrap();
}

/// Requests of every kind; launches and replays that are sampled, and requests that take SMs back, are among them.
fn serve(spans: &Spans, runtime: &Runtime, chat: TenantId, session: &mut Session) {
    let launch = |session: &mut Session| KERNELS.iter().try_for_each(|kernel| session.launch(kernel));
    let mut uploader = spans.own("uploader{tenant=0}", || runtime.uploader(chat)).unwrap();
    let mut log = spans.own("request_log{tenant=0}", || runtime.request_log(chat)).unwrap();
    let inputs = Buffer::new(session.device(), 4096).unwrap();
    // The first launch under another plan follows it.
    spans.own("adopt{tenant=0}", || request(session));
    let graph = spans.own("capture{tenant=0}", || session.capture(launch)).unwrap();
    session.capture_kept(WorkId(0), launch).unwrap();
    session.begin_capture().unwrap();
    launch(session).unwrap();
    spans.own("finish_capture{tenant=0}", || session.finish_capture()).unwrap();
    spans.none(|| {
        for _ in 0..1000 {
            session.begin_request().unwrap();
            log.begun();
            uploader.upload(session, inputs.ptr(), [7; 4096].as_slice(), After::Launches).unwrap();
            request(session);
            assert!(session.is_current(&graph).unwrap());
            session.replay(&graph).unwrap();
            assert!(session.replay_kept(WorkId(0)).unwrap());
            session.replay_or_capture::<LaunchError>(WorkId(0), |_| unreachable!("it is kept")).unwrap();
            runtime.settle().unwrap();
            session.end_request().unwrap();
            log.answered(MS, 2 * MS, 0.1);
        }
        session.device().synchronize(session.stream()).unwrap();
    });
}
