//! The one interception point: [`Session::launch`].
//!
//! A session is one tenant's chain of launches, used by one thread at a time. Launches of a session run one after another, whichever
//! partitions they go to: when the partition changes, the session *hops*, making the next stream wait for the last one.
//!
//! What happens off the hot path, once each: a kernel key seen for the first time gets an index; a symbol its entry point; a new plan the
//! streams it needs and the placements of all known keys. Everything else is array look-ups.

use std::sync::Arc;

use crate::device::{
    Buffer, Device, DeviceError, DevicePtr, Event, FunctionId, Graph, LaunchRequest, PartitionId, Priority, Sms, Stream, StreamId,
};
use crate::telemetry::Probe;
use crate::telemetry::probe::Observable;
use crate::tenant::TenantId;

use super::grant::Grant;
use super::plan::{Placement, Plan, PlanCell, PlanReader};
use super::{CapturedGraph, Fingerprint, Grids, Kernel, KernelKey, LaunchError, TilesArg, Work};

/// Bytes of a `TileProgress`, see kernels/abi.h.
const PROGRESS_BYTES: u64 = 16;

/// Counters that elastic launches use in turn: one may begin to take tiles while the one before it still counts those that it finishes.
const PROGRESSES: u64 = 2;

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
/// use smidgen_runtime::launch::{KernelKey, KernelName, LaunchError, OpaqueKernel, Session, Work};
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
/// let graph = session.capture(request)?;
/// assert!(session.is_current(&graph)?);
/// session.replay(&graph)?;
/// assert_eq!((session.stats().launches, session.stats().replays), (2, 1));
/// # Ok::<(), AdmitError>(())
/// ```
pub struct Session {
    device: Arc<dyn Device>,
    tenant: TenantId,
    reader: PlanReader,
    /// The plan that `resolved` and `lanes` follow.
    followed: Option<Arc<Plan>>,
    /// The lane on which the capture in progress began.
    capturing: Option<usize>,
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
    progress: Buffer,
    /// Elastic launches so far, captured ones included.
    elastic_launches: u64,
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
}

#[derive(Clone, Copy)]
struct Resolved {
    sms: Sms,
    priority: Priority,
    lane: usize,
}

impl Session {
    /// A session of `tenant`, which `plans` must hold.
    ///
    /// # Errors
    /// [`LaunchError::Dismissed`] if the plan does not know the tenant; what the device says.
    pub fn new(device: &Arc<dyn Device>, plans: &PlanCell, tenant: TenantId, grant: Arc<Grant>) -> Result<Self, LaunchError> {
        device.bind_thread()?;
        let mut session = Self {
            device: Arc::clone(device),
            tenant,
            reader: plans.reader(),
            followed: None,
            capturing: None,
            lanes: Vec::new(),
            current: 0,
            index: KeyIndex::default(),
            seen: Vec::new(),
            resolved: Vec::new(),
            functions: Vec::new(),
            grant,
            grids: Grids::Persistent,
            progress: Buffer::new(device, PROGRESSES * PROGRESS_BYTES)?,
            elastic_launches: 0,
            follows_launch: false,
            recording: None,
            stats: SessionStats::default(),
            probe: Probe::default(),
        };
        session.follow_plan()?;
        device.fill(session.stream(), session.progress.ptr(), 0, PROGRESSES * PROGRESS_BYTES)?;
        Ok(session)
    }

    /// The same session, recorded through `probe`; [`Runtime::session`](crate::Runtime::session) sees to it.
    #[must_use]
    pub(crate) fn observed(mut self, probe: Probe) -> Self {
        self.lanes.iter().for_each(|lane| probe.lane(lane.stream.id(), lane.partition));
        self.probe = probe;
        self
    }

    /// Launches elastic kernels with `grids` from here on; graphs that were captured keep theirs.
    pub fn set_grids(&mut self, grids: Grids) {
        self.grids = grids;
    }

    /// Launches `kernel` where the current plan places it.
    ///
    /// # Errors
    /// [`LaunchError::Unsupported`] for a shape that the kernel cannot do, [`LaunchError::Dismissed`] once the tenant is gone, or what the
    /// device says.
    pub fn launch<K: Kernel + Clone + Send + 'static>(&mut self, kernel: &K) -> Result<(), LaunchError> {
        self.launch_dyn(kernel)?;
        if let Some(recording) = &mut self.recording {
            recording.push(Box::new(kernel.clone()));
        }
        Ok(())
    }

    /// [`launch`](Session::launch) for a kernel known only by its contract; it is not recorded.
    ///
    /// # Errors
    /// As [`launch`](Session::launch).
    pub fn launch_dyn(&mut self, kernel: &dyn Kernel) -> Result<(), LaunchError> {
        self.follow_plan()?;
        let (key, work) = (kernel.key(), kernel.work());
        let at = self.place(key, work);
        let placement = self.resolved[at];
        let mut launch = kernel.configure(placement.sms, self.device.topology())?;
        if launch.elastic && self.grids == Grids::TilePerBlock {
            launch.give_each_tile_a_block();
        }
        let function = self.function(launch.symbol)?;
        self.hop(placement.lane)?;
        let tiles = TilesArg {
            progress: if launch.elastic { self.next_progress() } else { DevicePtr::NULL },
            grant: if launch.elastic { self.grant.ptr() } else { DevicePtr::NULL },
            count: launch.tiles,
            joins: 0,
        };
        let overlaps = launch.programmatic && self.follows_launch;
        let request = LaunchRequest { function, launch: &launch, tiles, priority: placement.priority, overlaps, key, work };
        self.follows_launch = if self.probe.is_due() {
            let (stream, partition, capturing) = (self.stream(), self.lanes[placement.lane].partition, self.capturing.is_some());
            self.probe.launch(&Observable { device: &*self.device, stream, request, partition, sms: placement.sms, capturing })?
        } else {
            self.device.launch(self.stream(), &request)?;
            true
        };
        self.count(at);
        Ok(())
    }

    /// Lets `enqueue` put foreign work on the stream where the plan places `kernel`; it also learns how many SMs that stream has.
    ///
    /// # Errors
    /// As [`launch`](Session::launch); what `enqueue` returns is passed on.
    pub fn launch_opaque<R>(&mut self, kernel: &OpaqueKernel, enqueue: impl FnOnce(StreamId, Sms) -> R) -> Result<R, LaunchError> {
        self.follow_plan()?;
        let at = self.place(kernel.key, kernel.work);
        let placement = self.resolved[at];
        self.hop(placement.lane)?;
        self.follows_launch = false;
        self.count(at);
        Ok(enqueue(self.stream(), placement.sms))
    }

    /// Runs `body` with its launches captured instead of run. Every kernel in it must have been launched before, so that nothing has to be
    /// loaded while capturing.
    ///
    /// # Errors
    /// What `body` returns, or what the device says of the capture. The session can be used on as if nothing had been captured.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = self.tenant.0))]
    pub fn capture<E: From<LaunchError>>(&mut self, body: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<CapturedGraph, E> {
        self.begin_capture()?;
        let done = body(self);
        // Also after a failure: a stream that is left capturing takes no work any more.
        let graph = self.finish_capture();
        done?;
        Ok(graph?)
    }

    /// [`capture`](Session::capture) in two halves, for a caller that has no closure to give, such as one in C: from here on launches are
    /// captured, until [`finish_capture`](Session::finish_capture).
    ///
    /// # Errors
    /// As [`launch`](Session::launch); what the device says, also where a capture is in progress already.
    pub fn begin_capture(&mut self) -> Result<(), LaunchError> {
        self.follow_plan()?;
        let origin = self.current;
        self.device.begin_capture(self.stream())?;
        self.capturing = Some(origin);
        self.follows_launch = false;
        Ok(())
    }

    /// Ends the capture in progress, also when it fails.
    ///
    /// # Errors
    /// [`LaunchError::NotCapturing`] without a capture; what the device says of it.
    pub fn finish_capture(&mut self) -> Result<CapturedGraph, LaunchError> {
        let origin = self.capturing.ok_or(LaunchError::NotCapturing)?;
        let joined = self.hop(origin);
        let graph = self.end_capture(origin);
        joined?;
        Ok(CapturedGraph { graph: graph?, plan: self.followed.clone() })
    }

    fn end_capture(&mut self, origin: usize) -> Result<Graph, LaunchError> {
        self.capturing = None;
        self.follows_launch = false;
        self.current = origin;
        Ok(Graph::end_capture(&self.device, self.stream())?)
    }

    /// Whether `graph` was captured under the plan now in force. If not, capture again: its nodes keep their old partitions.
    ///
    /// # Errors
    /// As [`launch`](Session::launch).
    pub fn is_current(&mut self, graph: &CapturedGraph) -> Result<bool, LaunchError> {
        self.follow_plan()?;
        Ok(match (&graph.plan, &self.followed) {
            (Some(captured), Some(followed)) => Arc::ptr_eq(captured, followed),
            _ => false,
        })
    }

    /// Replays `graph` after everything launched so far, on the partitions of the plan that it was captured under.
    ///
    /// # Errors
    /// [`LaunchError::Dismissed`] once the tenant is gone; what the device says.
    pub fn replay(&mut self, graph: &CapturedGraph) -> Result<(), LaunchError> {
        self.follow_plan()?;
        self.device.replay(graph.graph.id(), self.stream())?;
        self.follows_launch = false;
        self.stats.replays += 1;
        self.probe.replayed(&*self.device, self.lanes[self.current].partition, self.stats);
        Ok(())
    }

    /// The stream that holds the end of the chain: copies and events that should follow the launches so far go here. It is valid while the
    /// session lives.
    pub fn stream(&self) -> StreamId {
        self.lanes[self.current].stream.id()
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

    /// The kernel's index.
    #[inline]
    fn place(&mut self, key: KernelKey, work: Work) -> usize {
        let fingerprint = key.fingerprint();
        match self.index.find(fingerprint) {
            Some(at) => at,
            None => self.meet(key, work, fingerprint),
        }
    }

    /// Where the next elastic launch counts its tiles.
    #[inline]
    fn next_progress(&mut self) -> DevicePtr {
        let at = self.elastic_launches % PROGRESSES;
        self.elastic_launches += 1;
        self.progress.ptr().offset(at * PROGRESS_BYTES)
    }

    /// Counts a launch of the kernel with this index.
    #[inline]
    fn count(&mut self, at: usize) {
        self.seen[at].launches += 1;
        self.stats.launches += 1;
    }

    #[cold]
    fn meet(&mut self, key: KernelKey, work: Work, fingerprint: Fingerprint) -> usize {
        let at = self.seen.len();
        self.index.insert(fingerprint, at);
        self.seen.push(SeenKernel { key, work, launches: 0 });
        self.probe.met(key);
        let resolved = match self.followed.as_ref().and_then(|plan| plan.tenants.get(&self.tenant)) {
            Some(plan) => resolve(&self.lanes, plan.placement(fingerprint)),
            None => Resolved { sms: self.device.topology().sms, priority: Priority::Normal, lane: self.current },
        };
        self.resolved.push(resolved);
        at
    }

    #[inline]
    fn function(&mut self, symbol: &'static str) -> Result<FunctionId, DeviceError> {
        match self.functions.iter().find(|known| std::ptr::eq(known.0, symbol)) {
            Some(known) => Ok(known.1),
            None => {
                let function = self.device.function(symbol)?;
                self.functions.push((symbol, function));
                Ok(function)
            }
        }
    }

    #[inline]
    fn hop(&mut self, lane: usize) -> Result<(), LaunchError> {
        if lane != self.current {
            let last = &self.lanes[self.current];
            self.device.record(last.event.id(), last.stream.id())?;
            self.device.wait(self.lanes[lane].stream.id(), last.event.id())?;
            self.probe.hopped(&*self.device, last.partition, self.lanes[lane].partition);
            self.current = lane;
            self.follows_launch = false;
            self.stats.hops += 1;
        }
        Ok(())
    }

    #[inline]
    fn follow_plan(&mut self) -> Result<(), LaunchError> {
        // A capture belongs to one plan from its first node to its last.
        if self.capturing.is_some() {
            return Ok(());
        }
        let plan = self.reader.load();
        match &self.followed {
            Some(followed) if Arc::ptr_eq(followed, plan) => Ok(()),
            _ => {
                let plan = Arc::clone(plan);
                self.adopt(plan)
            }
        }
    }

    #[cold]
    fn adopt(&mut self, plan: Arc<Plan>) -> Result<(), LaunchError> {
        let mine = plan.tenants.get(&self.tenant).ok_or(LaunchError::Dismissed)?;
        for (partition, priority) in mine.streams() {
            if !self.lanes.iter().any(|lane| lane.partition == partition && lane.priority == priority) {
                let stream = Stream::new(&self.device, partition, priority)?;
                self.probe.lane(stream.id(), partition);
                self.lanes.push(Lane { partition, priority, stream, event: Event::new(&self.device)? });
            }
        }
        for (resolved, seen) in self.resolved.iter_mut().zip(&self.seen) {
            *resolved = resolve(&self.lanes, mine.placement(seen.key.fingerprint()));
        }
        self.followed = Some(plan);
        Ok(())
    }
}

impl Drop for Session {
    /// Waits for the end of the chain: its launches count their tiles in memory that is given back now, and poll the grant.
    fn drop(&mut self) {
        self.probe.count(self.stats);
        // Only where the body of a capture panicked.
        let ended = self.capturing.map_or(Ok(()), |origin| self.end_capture(origin).map(drop));
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

fn resolve(lanes: &[Lane], placement: Placement) -> Resolved {
    let lane = lanes.iter().position(|lane| lane.partition == placement.partition && lane.priority == placement.priority);
    Resolved { sms: placement.sms, priority: placement.priority, lane: lane.unwrap_or(0) }
}

/// Kernel indices by fingerprint: open addressing with linear probing, at most half full.
#[derive(Default)]
struct KeyIndex {
    /// Fingerprint and index; an index of `u32::MAX` marks a free slot.
    slots: Vec<(Fingerprint, u32)>,
    len: usize,
}

impl KeyIndex {
    const FREE: u32 = u32::MAX;

    #[inline]
    fn find(&self, fingerprint: Fingerprint) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = fingerprint.0 as usize & mask;
        loop {
            let (key, index) = self.slots[at];
            if index == Self::FREE {
                return None;
            }
            if key == fingerprint {
                return Some(index as usize);
            }
            at = (at + 1) & mask;
        }
    }

    fn insert(&mut self, fingerprint: Fingerprint, index: usize) {
        if self.len * 2 >= self.slots.len() {
            let larger = vec![(Fingerprint(0), Self::FREE); (self.slots.len() * 2).max(64)];
            for (key, index) in std::mem::replace(&mut self.slots, larger) {
                if index != Self::FREE {
                    self.put(key, index);
                }
            }
        }
        self.put(fingerprint, index as u32);
        self.len += 1;
    }

    fn put(&mut self, fingerprint: Fingerprint, index: u32) {
        let mask = self.slots.len() - 1;
        let mut at = fingerprint.0 as usize & mask;
        while self.slots[at].1 != Self::FREE {
            at = (at + 1) & mask;
        }
        self.slots[at] = (fingerprint, index);
    }
}
