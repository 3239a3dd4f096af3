//! The one interception point: [`Session::launch`].
//!
//! A session is one tenant's chain of launches, used by one thread at a time. Launches of a session run one after another, whichever
//! partitions they go to: when the partition changes, the session *hops*, making the next stream wait for the last one.
//!
//! What a launch goes through is in `launching`. What happens off that path, once each: a kernel key seen for the first time gets an index, and what the kernel
//! chooses for its SM count is noted; a symbol its entry point; a new plan the streams it needs and the placements of all known keys.
//!
//! A plan that places this tenant's kernels as the one before changes nothing here, and one that places them as an earlier one finds the graphs
//! captured then. Where kernels are placed is a *layout*. What only past layouts need (streams, references to partitions) is let go once
//! no graph needs it and the device has passed the point in the chain at which the session left it: looked at whenever the plan changes.

use std::sync::Arc;

use crate::device::{Buffer, Device, Event, FunctionId, PartitionId, Priority, Sms, Stream, StreamId, TILE_PROGRESS_BYTES};
use crate::partition::PartitionRef;
use crate::profile::ProfileStore;
use crate::telemetry::Probe;
use crate::tenant::TenantId;

use super::capture::{Capture, Layout, SessionNumber};
use super::grant::Grant;
use super::graph_cache::GraphCache;
use super::joiner::{Growth, JoiningPlace, Owner};
use super::lending::Requests;
use super::plan::{Plan, PlanCell, PlanReader};
use super::{Choice, Grids, Kernel, KernelKey, LaunchError, TenantPlan, Work};

mod graphs;
mod key_index;
mod launching;
mod layouts;
mod requests;

use key_index::KeyIndex;
use layouts::LeftLayout;

/// Counters that elastic launches use in turn: one may begin to take tiles while the one before it still counts those that it finishes.
pub(in crate::launch) const PROGRESSES: usize = 2;

/// A launch of a kernel that is not ours: a library call that takes a stream. It gets a partition's stream, not a grid.
#[derive(Debug, Clone, Copy)]
pub struct OpaqueKernel {
    /// What the plan places it by.
    pub key: KernelKey,
    /// The least it must do.
    pub work: Work,
}

/// What a session has launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionStats {
    /// Kernels launched eagerly or captured.
    pub launches: u64,
    /// Changes of stream between them: each to another partition, or to another priority.
    pub hops: u64,
    /// Graphs replayed.
    pub replays: u64,
}

/// A kernel as a session has met it.
#[derive(Debug, Clone, Copy)]
pub struct SeenKernel {
    /// Its key.
    pub key: KernelKey,
    /// The least one launch must do.
    pub work: Work,
    /// Launches since [`Session::forget_counts`].
    pub launches: u32,
}

/// One tenant's chain of launches.
///
/// An engine's own kernels implement [`Kernel`] and go through [`launch`](Session::launch); a library's calls get a stream in the right
/// partition from [`launch_opaque`](Session::launch_opaque). Either may be captured and replayed:
///
/// ```
/// use std::sync::Arc;
///
/// use smidgen_runtime::device::Sms;
/// use smidgen_runtime::device::sim::{SimConfig, SimDevice};
/// use smidgen_runtime::launch::{KernelKey, KernelName, LaunchError, OpaqueKernel, Session, Work, WorkId};
/// use smidgen_runtime::policy::StaticEqual;
/// use smidgen_runtime::profile::ProfileStore;
/// use smidgen_runtime::tenant::{Class, TenantSpec};
/// use smidgen_runtime::{AdmitError, Runtime};
///
/// const GEMM: KernelName = KernelName::new("library_gemm");
///
/// let device = SimDevice::new(SimConfig::h200());
/// let runtime = Runtime::new(device, Box::new(StaticEqual), Arc::new(ProfileStore::default()));
/// let spec = TenantSpec { name: "ours".to_owned(), class: Class::Throughput, slo: None, memory_bytes: 1 << 30 };
/// let tenant = runtime.admit(spec)?;
/// let mut session = runtime.session(tenant)?;
///
/// let gemm = OpaqueKernel { key: KernelKey::new(GEMM, [1024, 768, 768]), work: Work { flops: 1_207_959_552, bytes: 4_325_376 } };
/// let request = |session: &mut Session| -> Result<(), LaunchError> {
///     session.launch_opaque(&gemm, |_stream, sms| {
///         // Here the library is given the stream, and called.
///         assert_eq!(sms, Sms(132));
///     })
/// };
/// request(&mut session)?;
/// runtime.learn(tenant, session.seen())?;
///
/// // Captured by the first call, and again only under a plan that places its kernels otherwise.
/// for _ in 0..3 {
///     session.replay_or_capture(WorkId(0), request)?;
/// }
/// assert_eq!((session.stats().launches, session.stats().replays), (2, 3));
/// # Ok::<(), AdmitError>(())
/// ```
pub struct Session {
    number: SessionNumber,
    device: Arc<dyn Device>,
    tenant: TenantId,
    plans: PlanCell,
    reader: PlanReader,
    /// The plan last seen in force, which places this tenant's kernels as `layout` does.
    followed: Option<Arc<Plan>>,
    /// What `resolved` and `lanes` follow.
    layout: Arc<Layout>,
    /// Followed before, and needed by graphs or by launches that may not have ended.
    left: Vec<LeftLayout>,
    graphs: GraphCache,
    capturing: Option<Capture>,
    /// In all, and by kernel index.
    launches_before_capture: (u64, Vec<u32>),
    lanes: Vec<Lane>,
    current: usize,
    index: KeyIndex,
    seen: Vec<SeenKernel>,
    /// By kernel index.
    resolved: Vec<Resolved>,
    /// Entry points by symbol. Few, so a scan finds them.
    functions: Vec<(&'static str, FunctionId)>,
    grant: Arc<Grant>,
    grids: Grids,
    /// What was measured of configurations.
    profiles: Arc<ProfileStore>,
    /// Whether kept graphs are done without.
    eager: bool,
    /// What it announces to the runtime that made it.
    requests: Option<Requests>,
    progress: Buffer,
    /// Launches enqueued on each tile counter, those of replays included: the epoch of the next one.
    epochs: [u32; PROGRESSES],
    /// The same for the capture in progress.
    captured: [u32; PROGRESSES],
    captured_long: Vec<(usize, Owner)>,
    growth: Growth,
    /// The counter of the next elastic launch.
    next_counter: usize,
    /// Whether the last thing on the current stream is a launch of ours, so that the next may overlap its end.
    follows_launch: bool,
    recording: Option<Vec<Box<dyn Kernel + Send>>>,
    stats: SessionStats,
    probe: Probe,
}

/// A stream inside a partition, with the event by which the next lane waits for it.
struct Lane {
    partition: PartitionId,
    priority: Priority,
    stream: Stream,
    event: Event,
    /// Given back after the stream.
    reference: Option<PartitionRef>,
}

#[derive(Clone, Copy)]
struct Resolved {
    sms: Sms,
    priority: Priority,
    /// Whether only elastic launches may run there.
    borrows: bool,
    /// Whether a launch polls the grant even where it is too short for that by itself.
    polls: bool,
    lane: usize,
    /// None before the first launch there.
    choice: Option<Choice>,
    /// The entry point launched last.
    function: Option<(&'static str, FunctionId)>,
}

impl Session {
    /// A session of `tenant`, which `plans` must hold.
    ///
    /// # Errors
    /// [`LaunchError::Dismissed`] if the plan does not know the tenant; what the device says.
    pub fn new(device: &Arc<dyn Device>, plans: &PlanCell, tenant: TenantId, grant: Arc<Grant>) -> Result<Self, LaunchError> {
        device.bind_thread()?;
        let layout = Layout { plan: TenantPlan::everywhere(device.topology()), partitions: Vec::new() };
        let mut session = Self {
            number: SessionNumber::new(),
            device: Arc::clone(device),
            tenant,
            plans: plans.clone(),
            reader: plans.reader(),
            followed: None,
            layout: Arc::new(layout),
            left: Vec::new(),
            graphs: GraphCache::default(),
            capturing: None,
            launches_before_capture: (0, Vec::new()),
            lanes: Vec::new(),
            current: 0,
            index: KeyIndex::default(),
            seen: Vec::new(),
            resolved: Vec::new(),
            functions: Vec::new(),
            grant,
            grids: Grids::Persistent,
            profiles: Arc::default(),
            eager: false,
            requests: None,
            progress: Buffer::new(device, PROGRESSES as u64 * TILE_PROGRESS_BYTES)?,
            epochs: [0; PROGRESSES],
            captured: [0; PROGRESSES],
            captured_long: Vec::new(),
            growth: Growth::new(device)?,
            next_counter: 0,
            follows_launch: false,
            recording: None,
            stats: SessionStats::default(),
            probe: Probe::default(),
        };
        session.follow_plan()?;
        device.fill(session.stream(), session.progress.ptr(), 0, session.progress.bytes())?;
        Ok(session)
    }

    /// The same session, recorded through `probe`; [`Runtime::session`](crate::Runtime::session) sees to it.
    #[must_use]
    pub(crate) fn observed(mut self, probe: Probe) -> Self {
        self.lanes.iter().for_each(|lane| probe.lane(lane.stream.id(), lane.partition));
        self.probe = probe;
        self
    }

    /// The same session, launching kernels as `profiles` found them to be quickest.
    #[must_use]
    pub(crate) fn tuned(mut self, profiles: Arc<ProfileStore>) -> Self {
        self.profiles = profiles;
        self
    }

    /// The same session, announcing its requests to the runtime that made it.
    #[must_use]
    pub(crate) fn announcing(mut self, requests: Requests) -> Self {
        self.requests = Some(requests);
        self
    }

    /// Launches elastic kernels with `grids` from here on; graphs that were captured keep theirs.
    pub fn set_grids(&mut self, grids: Grids) {
        self.grids = grids;
        // Whether a kernel may borrow depends on the form.
        for resolved in &mut self.resolved {
            (resolved.choice, resolved.polls) = (None, false);
        }
    }

    /// Makes [`replay_or_capture`](Session::replay_or_capture) launch its body each time from here on, for comparison: nothing is captured to be kept.
    pub fn launch_eagerly(&mut self) {
        self.eager = true;
    }

    /// The stream that holds the end of the chain: copies and events that should follow the launches so far go here. It is valid while the
    /// session lives.
    pub fn stream(&self) -> StreamId {
        self.lanes[self.current].stream.id()
    }

    /// Whose launches they are.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// What was launched so far.
    pub fn stats(&self) -> SessionStats {
        self.stats
    }

    /// Every kernel met so far, in the order first met.
    pub fn seen(&self) -> &[SeenKernel] {
        &self.seen
    }

    /// Counts launches by kernel from zero again.
    pub fn forget_counts(&mut self) {
        for seen in &mut self.seen {
            seen.launches = 0;
        }
    }

    /// Keeps a copy of every launch from here on, for the profiler.
    pub fn start_recording(&mut self) {
        self.recording = Some(Vec::new());
    }

    /// The launches since [`start_recording`](Session::start_recording).
    pub fn finish_recording(&mut self) -> Vec<Box<dyn Kernel + Send>> {
        self.recording.take().unwrap_or_default()
    }

    /// For what acts once, where the launches of a capture act at every replay: copies, events, waiting for the stream.
    ///
    /// # Errors
    /// [`LaunchError::InCapture`] while a capture is in progress.
    #[inline]
    pub fn refuse_in_capture(&self) -> Result<(), LaunchError> {
        if self.capturing.is_some() { Err(LaunchError::InCapture) } else { Ok(()) }
    }
}

impl Lane {
    fn is_for(&self, partition: PartitionId, priority: Priority) -> bool {
        self.partition == partition && self.priority == priority
    }

    fn joining_place(&self) -> JoiningPlace {
        JoiningPlace { partition: self.partition, _reference: self.reference.clone() }
    }
}

impl Drop for Session {
    /// Waits for the end of the chain: its launches count their tiles in memory that is given back now, and poll the grant.
    fn drop(&mut self) {
        self.probe.count(self.stats);
        // Only of a capture in two halves, of which the second was never asked for.
        let ended = self.capturing.map_or(Ok(()), |capture| self.end_capture(capture.origin).map(drop));
        // There is no lane where the session was refused before it had one.
        let idle = match self.lanes.get(self.current) {
            Some(lane) => ended.and_then(|()| Ok(self.device.synchronize(lane.stream.id())?)),
            None => ended,
        };
        if let Err(error) = idle {
            tracing::debug!("a session was given up with launches unfinished: {error}");
        }
    }
}
