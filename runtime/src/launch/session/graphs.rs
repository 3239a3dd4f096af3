//! A session's graphs: launches captured instead of run, replayed, and kept for the plans that place them alike.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;

use super::{PROGRESSES, SeenKernel, Session};
use crate::device::{DeviceError, Graph, GraphId};
use crate::launch::capture::{Capture, GraphBody, GraphKernel};
use crate::launch::{CapturedGraph, GraphLimits, LaunchError, WorkId};
use crate::telemetry::probe::Replayable;

impl Session {
    /// Runs `body` with its launches captured instead of run. Every kernel in it must have been launched before, so that nothing has to be
    /// loaded while capturing.
    ///
    /// # Errors
    /// [`LaunchError::InCapture`] within another capture; what `body` returns, or what the device says of the capture. The session can be used on as if nothing
    /// had been captured, also where `body` panics.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = self.tenant.0))]
    pub fn capture<E: From<LaunchError>>(&mut self, body: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<CapturedGraph, E> {
        self.begin_capture()?;
        let done = catch_unwind(AssertUnwindSafe(|| body(self)));
        // Also after a failure or a panic: a stream that is left capturing takes no work any more.
        let graph = self.finish_capture();
        done.unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok(graph?)
    }

    /// [`capture`](Session::capture) in two halves, for a caller that has no closure to give, such as one in C: from here on launches are
    /// captured, until [`finish_capture`](Session::finish_capture) on the same thread.
    ///
    /// # Errors
    /// As [`launch`](Session::launch); [`LaunchError::InCapture`] where a capture is in progress already; what the device says.
    pub fn begin_capture(&mut self) -> Result<(), LaunchError> {
        self.refuse_in_capture()?;
        self.follow_plan()?;
        let origin = self.current;
        self.device.begin_capture(self.stream())?;
        self.capturing = Some(Capture { origin, thread: thread::current().id() });
        self.captured = [0; PROGRESSES];
        self.captured_long.clear();
        self.follows_launch = false;
        self.launches_before_capture = (self.stats.launches, self.seen.iter().map(|seen| seen.launches).collect());
        Ok(())
    }

    /// Ends the capture in progress, also when it fails.
    ///
    /// # Errors
    /// [`LaunchError::NotCapturing`] without a capture; [`LaunchError::WrongThread`], and the capture goes on, where another thread began it; what the device
    /// says of it.
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = self.tenant.0))]
    pub fn finish_capture(&mut self) -> Result<CapturedGraph, LaunchError> {
        let Capture { origin, thread } = self.capturing.ok_or(LaunchError::NotCapturing)?;
        if thread != thread::current().id() {
            return Err(LaunchError::WrongThread);
        }
        let joined = self.hop(origin);
        let graph = self.end_capture(origin);
        joined?;
        let (before, by_kernel) = std::mem::take(&mut self.launches_before_capture);
        let captured = |(at, seen): (usize, &SeenKernel)| {
            let launches = seen.launches.saturating_sub(by_kernel.get(at).copied().unwrap_or(0));
            (launches > 0).then(|| GraphKernel { kernel: seen.key.fingerprint(), sms: self.resolved[at].sms, launches })
        };
        let kernels = self.seen.iter().enumerate().filter_map(captured).collect();
        let long = std::mem::take(&mut self.captured_long).into();
        let body = GraphBody { launches: self.stats.launches - before, kernels, elastic: self.captured, long };
        Ok(CapturedGraph { session: self.number, graph: graph?, layout: Arc::clone(&self.layout), body: Arc::new(body) })
    }

    pub(super) fn end_capture(&mut self, origin: usize) -> Result<Graph, LaunchError> {
        self.capturing = None;
        self.follows_launch = false;
        self.current = origin;
        Ok(Graph::end_capture(&self.device, self.stream())?)
    }

    /// Whether `graph` was captured under a plan that places this tenant's kernels as the one now in force. If not, capture again: its nodes keep
    /// their old partitions. A plan that changes other tenants, or this one's grant alone, leaves it current.
    ///
    /// # Errors
    /// As [`replay`](Session::replay).
    pub fn is_current(&mut self, graph: &CapturedGraph) -> Result<bool, LaunchError> {
        self.admit(graph)?;
        Ok(Arc::ptr_eq(&graph.layout, &self.layout))
    }

    /// Replays `graph` after everything launched so far, on the partitions of the plan that it was captured under.
    ///
    /// # Errors
    /// [`LaunchError::WrongSession`] if another session captured it; [`LaunchError::InCapture`] while a capture is in progress; [`LaunchError::Dismissed`] once the
    /// tenant is gone; what the device says.
    pub fn replay(&mut self, graph: &CapturedGraph) -> Result<(), LaunchError> {
        self.admit(graph)?;
        self.settle();
        Ok(self.run(graph.graph.id(), Arc::clone(&graph.body))?)
    }

    /// Follows the plan, for a graph of this session's.
    #[inline]
    fn admit(&mut self, graph: &CapturedGraph) -> Result<(), LaunchError> {
        if graph.session != self.number {
            return Err(LaunchError::WrongSession);
        }
        self.refuse_in_capture()?;
        self.follow_plan()
    }

    /// Lends what is due, on the way.
    #[inline]
    pub(super) fn settle(&self) {
        if let Some(requests) = &self.requests {
            requests.settle();
        }
    }

    /// Replays a graph that launches `body`.
    #[inline]
    fn run(&mut self, graph: GraphId, body: Arc<GraphBody>) -> Result<(), DeviceError> {
        let stream = self.stream();
        if self.probe.is_replay_due() {
            let partition = self.lanes[self.current].partition;
            self.probe.replay(&Replayable { device: &*self.device, stream, partition, graph, body: &body })?;
        } else {
            self.device.replay(graph, stream)?;
        }
        let first = self.epochs;
        for (epoch, launches) in self.epochs.iter_mut().zip(body.elastic) {
            *epoch = epoch.wrapping_add(launches);
        }
        self.growth.replayed(body, first, || self.grant.held());
        self.follows_launch = false;
        self.stats.replays += 1;
        self.probe.replayed(&*self.device, self.lanes[self.current].partition, self.stats);
        Ok(())
    }

    /// Replays the kept graph of `work` that was captured under such a plan as is in force, if there is one: whether there is. While the plan
    /// stays, that costs one pointer's comparison and a search among this session's work.
    ///
    /// # Errors
    /// As [`replay`](Session::replay).
    pub fn replay_kept(&mut self, work: WorkId) -> Result<bool, LaunchError> {
        self.refuse_in_capture()?;
        self.follow_plan()?;
        self.settle();
        let Some(graph) = self.graphs.find(work) else { return Ok(false) };
        let (graph, body) = (graph.graph.id(), Arc::clone(&graph.body));
        self.run(graph, body)?;
        Ok(true)
    }

    /// As [`replay_kept`](Session::replay_kept), for a request whose kernels may be timed: where [`replay_or_capture`](Session::replay_or_capture) would launch
    /// `body` in place of the replay, so does this.
    ///
    /// # Errors
    /// As [`replay`](Session::replay); what `body` returns.
    pub fn replay_kept_or_launch<E: From<LaunchError>>(
        &mut self,
        work: WorkId,
        body: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<bool, E> {
        if self.is_to_be_timed(work)? {
            return self.launch_timed(body).map(|()| true);
        }
        Ok(self.replay_kept(work)?)
    }

    /// Captures `body`, as [`capture`](Session::capture) does, and keeps the graph as that of `work` under the plan in force. Plans that come back
    /// find it again, as long as the [limits](Session::limit_graphs) leave room.
    ///
    /// # Errors
    /// As [`capture`](Session::capture).
    pub fn capture_kept<E: From<LaunchError>>(&mut self, work: WorkId, body: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        if self.eager {
            return Ok(());
        }
        let graph = self.capture(body)?;
        self.graphs.keep(work, graph, &self.layout);
        Ok(())
    }

    /// Captures `body` as the graph of `work` if none is kept for the plan in force: whether there was anything to do. For a thread that waits, for its request in
    /// flight or for the next one: after another plan has come into force, no request waits for the capture then. If there is nothing to do, it costs as much as
    /// finding the graph.
    ///
    /// # Errors
    /// As [`capture`](Session::capture).
    pub fn prepare<E: From<LaunchError>>(&mut self, work: WorkId, body: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<bool, E> {
        if self.eager {
            return Ok(false);
        }
        self.follow_plan()?;
        if self.graphs.find(work).is_some() {
            return Ok(false);
        }
        self.capture_kept(work, body).map(|()| true)
    }

    /// Replays the kept graph of `work`; where there is none for the plan in force, captures `body` first. So a graph is instantiated by the first
    /// request under a plan, if nobody [prepared](Session::prepare) it, and not before the plan is in force: only the session's own thread may capture its
    /// launches.
    ///
    /// Where replays of this tenant were found to differ from what the plan expects of them ([`Runtime::correct`](crate::Runtime::correct)), `body` is launched
    /// instead in at most one of 1000 requests, so that its kernels can be timed; never while the tenant's
    /// [requests](crate::telemetry::RequestLog) miss their objective or nearly do. The launches are the same, and so is what they compute.
    ///
    /// # Errors
    /// As [`capture`](Session::capture) and [`replay`](Session::replay).
    pub fn replay_or_capture<E: From<LaunchError>>(
        &mut self,
        work: WorkId,
        body: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.eager {
            self.settle();
            return body(self);
        }
        if self.is_to_be_timed(work)? {
            return self.launch_timed(body);
        }
        if self.replay_kept(work)? {
            return Ok(());
        }
        let graph = self.capture(body)?;
        // Also where another plan has come into force meanwhile: the request follows the plan that it began under.
        self.run(graph.graph.id(), Arc::clone(&graph.body)).map_err(LaunchError::from)?;
        self.graphs.keep(work, graph, &self.layout);
        Ok(())
    }

    /// Launches a request that could be replayed, so that its kernels are timed.
    #[cold]
    fn launch_timed<E: From<LaunchError>>(&mut self, body: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        self.settle();
        let done = catch_unwind(AssertUnwindSafe(|| body(self)));
        // Also after a failure or a panic: what is launched next is no part of the request.
        self.probe.end_timing();
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Whether the kept graph of `work` is one that is not to be replayed now, since its launches are to be timed one by one.
    #[inline]
    fn is_to_be_timed(&mut self, work: WorkId) -> Result<bool, LaunchError> {
        let replays = self.stats.replays;
        if !self.probe.may_time_request(replays) {
            return Ok(false);
        }
        self.refuse_in_capture()?;
        self.follow_plan()?;
        Ok(self.graphs.find(work).is_some() && self.probe.begin_timing(replays))
    }

    /// Bounds what is kept by [`capture_kept`](Session::capture_kept) from here on.
    pub fn limit_graphs(&mut self, limits: GraphLimits) {
        self.graphs.limit(limits, &self.layout);
    }

    /// Graphs kept, of all plans together.
    pub fn kept_graphs(&self) -> usize {
        self.graphs.len()
    }
}
