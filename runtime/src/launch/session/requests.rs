//! What a session tells and asks between launches: that a request begins or ends, that a long launch may grow, and events of other streams.

use super::Session;
use crate::device::{Event, StreamId};
use crate::launch::LaunchError;
use crate::partition::TpcSet;

impl Session {
    /// Announces that a request begins: a step, a forward pass, whatever is launched next and has somebody waiting for it. TPCs that this tenant
    /// owns and has lent are taken back before this returns, so that borrowers leave them within one tile; it waits neither for them nor for
    /// the copies that tell them.
    ///
    /// Requests may overlap, in one session and over several of the same tenant: TPCs are lent again once the last one has
    /// [ended](Session::end_request). Between a tenant's first `end_request` and its next `begin_request` its kernels run beside borrowers.
    /// A tenant that never calls either lends nothing. A session of no [`Runtime`](crate::Runtime) has nothing to announce to, and both do nothing.
    ///
    /// # Errors
    /// [`LaunchError::Dismissed`] once the tenant is gone, [`LaunchError::Paused`] while it is paused; [`LaunchError::InCapture`] while a capture is in
    /// progress, since a replay would announce nothing; what the device says. The request has not begun then. Where the device refused to tell a borrower,
    /// that one may stay until the next request begins, which tells it first, or fails like this one.
    pub fn begin_request(&mut self) -> Result<(), LaunchError> {
        self.refuse_in_capture()?;
        self.follow_plan()?;
        match &mut self.requests {
            Some(requests) => Ok(requests.begin()?),
            None => Ok(()),
        }
    }

    /// Announces that a request has ended on the device; to be called when its completion was seen. After the last one, and once the
    /// [hysteresis](crate::Runtime::set_hysteresis) has passed, this tenant's TPCs are lent to whom the plan allows.
    ///
    /// Ending more requests than began does no harm: it says that the tenant is idle, which an engine may say at its start. Requests that are
    /// under way when the session is dropped end then.
    ///
    /// # Errors
    /// [`LaunchError::InCapture`] while a capture is in progress.
    pub fn end_request(&mut self) -> Result<(), LaunchError> {
        self.refuse_in_capture()?;
        if let Some(requests) = &mut self.requests {
            requests.end();
        }
        self.probe.count(self.stats);
        Ok(())
    }

    /// Makes the last long launch use TPCs that came back to this tenant since it started, by a second launch that takes tiles from the same counter.
    /// To be called while waiting for work of milliseconds; whether there was anything to do. Long is what takes more than 200 us (by
    /// its least work, at the rates of an H200), or 50 us in a replayed graph. If it has ended meanwhile, the second launch ends at once and does no
    /// harm. While nothing came back, a call costs a few loads; in a replay, what came back costs a copy of 4 KiB, some 15 us. Work of a tenant that was
    /// paused meanwhile ends on what it has.
    ///
    /// # Errors
    /// [`LaunchError::Dismissed`] once the tenant is gone; [`LaunchError::InCapture`] while a capture is in progress; what the device says.
    pub fn grow(&mut self) -> Result<bool, LaunchError> {
        self.refuse_in_capture()?;
        match self.follow_plan() {
            Err(LaunchError::Paused) => return Ok(false),
            followed => followed?,
        }
        let held = self.grant.held();
        let Some(owner) = self.growth.growing(held) else { return self.grow_in_replay(held) };
        // Where the plan places the kernel now: what came back may be no part of the owner's partition.
        let place = self.lanes[self.resolved[owner.kernel].lane].joining_place();
        self.growth.grow(owner, held, &place, self.stream())?;
        self.follows_launch = false;
        Ok(true)
    }

    fn grow_in_replay(&mut self, held: TpcSet) -> Result<bool, LaunchError> {
        let Some(owner) = self.growth.growing_in_replay(held, self.progress.ptr())? else { return Ok(false) };
        let place = self.lanes[self.resolved[owner.kernel].lane].joining_place();
        self.growth.join(owner, held, &place, self.stream())?;
        self.follows_launch = false;
        Ok(true)
    }

    /// Marks the end of the chain in `event`: what is launched so far comes before it.
    ///
    /// # Errors
    /// [`LaunchError::InCapture`] during a capture, [`LaunchError::Paused`] or [`LaunchError::Dismissed`] as for a launch; what the device says.
    pub fn mark(&mut self, event: &Event) -> Result<(), LaunchError> {
        let stream = self.stream_for_copy()?;
        Ok(self.device.record(event.id(), stream)?)
    }

    /// The stream on which a copy comes after what is launched so far and before what is launched from here on. Errors as [`mark`](Session::mark).
    pub(crate) fn stream_for_copy(&mut self) -> Result<StreamId, LaunchError> {
        self.refuse_in_capture()?;
        self.follow_plan()?;
        self.follows_launch = false;
        self.probe.count(self.stats);
        Ok(self.stream())
    }

    /// Makes what is launched from here on wait for `event`, which another stream has recorded.
    ///
    /// # Errors
    /// [`LaunchError::InCapture`] during a capture; what the device says.
    pub fn wait_for(&mut self, event: &Event) -> Result<(), LaunchError> {
        self.refuse_in_capture()?;
        self.device.wait(self.stream(), event.id())?;
        self.follows_launch = false;
        Ok(())
    }
}
