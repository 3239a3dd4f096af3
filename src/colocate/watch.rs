//! What a run shows of itself: the timelines of its phases, kernels that nobody has profiled, and, while it runs, its metrics over HTTP.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use smidgen_runtime::Runtime;
use smidgen_runtime::device::Topology;
use smidgen_runtime::device::sim::{KernelTrace, SimDevice};
use smidgen_runtime::telemetry::trace::{Event, Happening, Trace};

use super::results::PlannedPower;

/// The gauge that tells the phase; its labels are `phase` and `simulated`.
pub const PHASE: &str = "smidgen_phase";

/// Events that each ring of a timeline holds: the last 32768 of every session, 1 MiB.
pub const TRACE_EVENTS: usize = 1 << 15;

/// Time between two looks at the metrics.
const INTERVAL: Duration = Duration::from_millis(250);

/// Time in which tenants and their kernels are judged, on the device's clock: so simulated runs are the same each time.
const WINDOW: Duration = Duration::from_millis(250);

/// The timelines of phases, with their names, as they come in.
pub type Timelines = Arc<Mutex<Vec<(String, Trace)>>>;

/// What a run is asked to show. The default shows nothing.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// The timelines of the phases under a policy, with their names, once they have ended; none where none are wanted.
    pub timelines: Option<Timelines>,
    /// Where metrics are shown.
    pub metrics: Option<Arc<Exposition>>,
    /// Keys of kernels without a profile, by tenant, of phases whose policy places by profiles, and of simulated baselines.
    pub unprofiled: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
}

/// What a phase shows besides its figures.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Shown {
    /// Its timeline, if one was asked for.
    pub trace: Option<Trace>,
    /// Keys of kernels without a profile, by tenant, if its policy places by profiles or it is a simulated baseline.
    pub unprofiled: BTreeMap<String, Vec<String>>,
    /// What the board is predicted to draw, where that is known.
    pub power: Option<PlannedPower>,
}

impl Watch {
    /// The phase begins: its metrics come from now on.
    pub(super) fn begin(&self, phase: &str, simulated: bool) {
        if let Some(metrics) = &self.metrics {
            metrics.begin(phase, simulated);
        }
    }

    /// Keeps what a phase showed.
    pub(super) fn keep(&self, phase: &str, shown: Shown) {
        if let (Some(timelines), Some(trace)) = (&self.timelines, shown.trace) {
            timelines.lock().push((phase.to_owned(), trace));
        }
        let mut unprofiled = self.unprofiled.lock();
        for (tenant, kernels) in shown.unprofiled {
            let known: &mut Vec<String> = unprofiled.entry(tenant).or_default();
            for kernel in kernels {
                if !known.contains(&kernel) {
                    known.push(kernel);
                }
            }
        }
    }
}

/// How one phase is watched, and what its runtime may take for itself.
#[derive(Default)]
pub struct PhaseWatch<'a> {
    /// Device memory for partitions, as in [`RuntimeOptions`](smidgen_runtime::RuntimeOptions).
    pub partition_bytes: Option<u64>,
    /// Whether it keeps a timeline.
    pub trace: bool,
    /// Hears its metrics as Prometheus text, four times a second.
    pub metrics: Option<&'a (dyn Fn(String) + Sync)>,
}

/// Looks after a runtime four times a second while it serves: shows its metrics, lets it correct its profiles and adapt its plan.
pub(super) struct Observer<'a> {
    runtime: &'a Runtime,
    recorder: Option<(&'a PrometheusRecorder, &'a (dyn Fn(String) + Sync))>,
    /// On the simulator, where a timeline is kept.
    pub(super) simulated: Option<SimulatedKernels<'a>>,
    last: Instant,
    next_window: Duration,
}

/// A recorder for a phase's metrics.
pub(super) fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new().build_recorder()
}

impl<'a> Observer<'a> {
    pub(super) fn new(runtime: &'a Runtime, recorder: Option<(&'a PrometheusRecorder, &'a (dyn Fn(String) + Sync))>) -> Self {
        Self { runtime, recorder, simulated: None, last: Instant::now(), next_window: runtime.device().now() + WINDOW }
    }

    /// Looks if it is time to.
    pub(super) fn poll(&mut self) {
        if let Some(kernels) = &mut self.simulated {
            kernels.take();
        }
        let now = self.runtime.device().now();
        if now >= self.next_window {
            self.next_window = now + WINDOW;
            self.correct();
            if let Err(error) = self.runtime.adapt() {
                tracing::warn!("the plan could not follow what tenants were seen to do: {error}");
            }
        }
        if self.last.elapsed() >= INTERVAL {
            self.show();
            self.last = Instant::now();
        }
    }

    /// Looks once more, at the end.
    pub(super) fn look(&self) {
        self.correct();
        self.show();
    }

    fn correct(&self) {
        if let Err(error) = self.runtime.correct() {
            tracing::warn!("kernel times could not be compared with the profiles: {error}");
        }
    }

    fn show(&self) {
        if let Some((recorder, show)) = self.recorder {
            self.runtime.publish_metrics();
            let handle = recorder.handle();
            handle.run_upkeep();
            show(handle.render());
        }
    }

    /// The timeline so far.
    pub(super) fn trace(self) -> Trace {
        let mut trace = self.runtime.telemetry().trace();
        if let Some(kernels) = self.simulated {
            kernels.join(&mut trace, self.runtime.device().topology());
        }
        trace
    }
}

/// The last kernels that the simulator ran, for a timeline.
pub(super) struct SimulatedKernels<'a> {
    device: &'a SimDevice,
    last: VecDeque<KernelTrace>,
}

impl<'a> SimulatedKernels<'a> {
    /// Of what `device` runs from now on.
    pub(super) fn of(device: &'a SimDevice) -> Self {
        Self { device, last: VecDeque::new() }
    }

    fn take(&mut self) {
        self.last.extend(self.device.take_trace());
        self.last.drain(..self.last.len().saturating_sub(TRACE_EVENTS));
    }

    /// Puts them where their streams belong, in place of those of them that were sampled.
    fn join(self, trace: &mut Trace, topology: &Topology) {
        for track in trace.tenants.values_mut() {
            track.events.retain(|event| !matches!(event.what, Happening::Kernel { .. }));
        }
        for KernelTrace { key, stream, started, ended, tpcs, .. } in self.last {
            let Some(lane) = trace.lanes.iter().find(|lane| lane.stream == stream.0) else { continue };
            let what = Happening::Kernel {
                kernel: key,
                partition: lane.partition,
                sms: topology.sms_of(tpcs),
                took: ended.saturating_sub(started),
            };
            if let Some(track) = trace.tenants.get_mut(&lane.tenant) {
                track.events.push(Event { at: started, what });
            }
        }
    }
}

/// The metrics of the phase that runs now, as Prometheus text.
#[derive(Debug, Default)]
pub struct Exposition {
    text: Mutex<Text>,
}

#[derive(Debug, Default)]
struct Text {
    /// The line that names the phase.
    phase: String,
    metrics: String,
}

impl Exposition {
    fn begin(&self, phase: &str, simulated: bool) {
        let escaped = phase.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let line = format!(
            "# HELP {PHASE} The phase of the run that is measured now.\n# TYPE {PHASE} gauge\n{PHASE}{{phase=\"{escaped}\",simulated=\"{simulated}\"}} 1\n"
        );
        *self.text.lock() = Text { phase: line, metrics: String::new() };
    }

    /// Shows `metrics`, Prometheus text, from now on.
    pub fn show(&self, metrics: String) {
        self.text.lock().metrics = metrics;
    }

    /// What a scrape gets now.
    pub fn render(&self) -> String {
        let text = self.text.lock();
        format!("{}{}", text.phase, text.metrics)
    }
}

/// An HTTP listener that answers `/metrics` while it lives.
pub struct Endpoint {
    server: Arc<tiny_http::Server>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

/// An address at which nobody can listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "--metrics {address}: cannot listen there ({reason}); give an address of this machine and a free port, such as 127.0.0.1:9464, or port 0 for any"
)]
pub struct EndpointError {
    address: String,
    reason: String,
}

impl Endpoint {
    /// Listens at `address`, such as `127.0.0.1:9464`.
    ///
    /// # Errors
    /// [`EndpointError`] if that is no address, or is taken.
    pub fn listen(address: &str, exposition: Arc<Exposition>) -> Result<Self, EndpointError> {
        let refused = |reason: String| EndpointError { address: address.to_owned(), reason };
        let resolved = address.to_socket_addrs().map_err(|error| refused(error.to_string()))?.next();
        let resolved = resolved.ok_or_else(|| refused("no such host".to_owned()))?;
        let server = Arc::new(tiny_http::Server::http(resolved).map_err(|error| refused(error.to_string()))?);
        let address = server.server_addr().to_ip().unwrap_or(resolved);
        let answering = Arc::clone(&server);
        let answer = move || {
            for request in answering.incoming_requests() {
                if let Err(error) = respond(request, &exposition) {
                    tracing::debug!("a scrape was not answered: {error}");
                }
            }
        };
        let thread = thread::Builder::new().name("metrics".to_owned()).spawn(answer).map_err(|error| refused(error.to_string()))?;
        Ok(Self { server, address, thread: Some(thread) })
    }

    /// Where it listens: with the port that it was given where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, the run is over all the same.
            let _ = thread.join();
        }
    }
}

fn respond(request: tiny_http::Request, exposition: &Exposition) -> io::Result<()> {
    if request.url().split('?').next() != Some("/metrics") {
        return request.respond(tiny_http::Response::from_string("metrics are at /metrics\n").with_status_code(404));
    }
    let response = tiny_http::Response::from_string(exposition.render());
    // What Prometheus' text format asks for; a constant, so that the conversion cannot fail.
    let header = "Content-Type: text/plain; version=0.0.4; charset=utf-8".parse::<tiny_http::Header>();
    match header {
        Ok(header) => request.respond(response.with_header(header)),
        Err(()) => request.respond(response),
    }
}
