//! How a session follows plans: which streams it needs under a layout, and when it lets go of what only earlier layouts needed.

use std::sync::Arc;

use super::{Lane, Resolved, Session};
use crate::device::{Event, Stream};
use crate::launch::LaunchError;
use crate::launch::capture::Layout;
use crate::launch::plan::Placement;
use crate::partition::PartitionRef;

/// Streams that no layout needs and that are kept all the same: plans come back, and to make a stream in a partition takes hundreds of microseconds while
/// kernels run.
const SPARE_LANES: usize = 4;

/// A layout that is not followed any more.
pub(super) struct LeftLayout {
    pub(super) layout: Arc<Layout>,
    /// Marks the end of the chain at a time when no graph needed the layout; none while one does.
    unused: Option<Event>,
}

impl Session {
    #[inline]
    pub(super) fn follow_plan(&mut self) -> Result<(), LaunchError> {
        // A capture belongs to one plan from its first node to its last.
        if self.capturing.is_some() {
            return Ok(());
        }
        let plan = self.reader.load();
        match &self.followed {
            Some(followed) if Arc::ptr_eq(followed, plan) => Ok(()),
            _ => self.adopt(),
        }
    }

    #[cold]
    #[tracing::instrument(level = "debug", skip_all, fields(tenant = self.tenant.0))]
    fn adopt(&mut self) -> Result<(), LaunchError> {
        let (plan, partitions) = self.plans.in_force();
        let mine = plan.tenant(self.tenant)?;
        if self.followed.is_none() || !mine.places_like(&self.layout.plan) {
            let left = self.left.iter().position(|left| mine.places_like(&left.layout.plan));
            let layout = match left {
                Some(at) => Arc::clone(&self.left[at].layout),
                None => {
                    let used = |partition: &PartitionRef| mine.streams().any(|(used, _)| used == partition.id());
                    Arc::new(Layout { plan: mine.clone(), partitions: partitions.into_iter().filter(used).collect() })
                }
            };
            let is_first = self.lanes.is_empty();
            self.make_lanes(&layout)?;
            // If something fails from here on, the next launch begins anew, whatever the plan is then.
            self.followed = None;
            left.map(|at| self.left.swap_remove(at));
            let before = std::mem::replace(&mut self.layout, layout);
            if !is_first {
                self.left.push(LeftLayout { layout: before, unused: None });
            }
            if self.layout.partitions.iter().any(PartitionRef::is_scarce) {
                self.graphs.keep_only(&self.layout);
            }
            self.graphs.follow(&self.layout);
            self.let_go()?;
        }
        self.followed = Some(plan);
        Ok(())
    }

    /// Makes the streams of `layout` that are not there.
    fn make_lanes(&mut self, layout: &Layout) -> Result<(), LaunchError> {
        for (partition, priority) in layout.plan.streams() {
            if !self.lanes.iter().any(|lane| lane.is_for(partition, priority)) {
                let reference = layout.partitions.iter().find(|reference| reference.id() == partition).cloned();
                let made = tracing::debug_span!("make stream", tenant = self.tenant.0, ?partition).entered();
                let stream = Stream::new(&self.device, partition, priority)?;
                drop(made);
                self.probe.lane(stream.id(), partition);
                self.lanes.push(Lane { partition, priority, stream, event: Event::new(&self.device)?, reference });
            }
        }
        Ok(())
    }

    /// Lets go of layouts that nothing needs any more, then of streams that only they used, but for a few, and finds the placements of all known kernels
    /// among those that stay.
    fn let_go(&mut self) -> Result<(), LaunchError> {
        let stream = self.stream();
        let mut unneeded = Vec::new();
        for (at, left) in self.left.iter_mut().enumerate() {
            let in_graphs = Arc::strong_count(&left.layout) > 1;
            match &left.unused {
                _ if in_graphs => left.unused = None,
                Some(mark) if self.device.query(mark.id())? => unneeded.push(at),
                Some(_) => {}
                None => {
                    let mark = Event::new(&self.device)?;
                    self.device.record(mark.id(), stream)?;
                    left.unused = Some(mark);
                }
            }
        }
        for at in unneeded.into_iter().rev() {
            self.left.swap_remove(at);
        }
        let layouts = || std::iter::once(&self.layout).chain(self.left.iter().map(|left| &left.layout));
        let needed =
            |lane: &Lane| layouts().any(|layout| layout.plan.streams().any(|(partition, priority)| lane.is_for(partition, priority)));
        let mut lanes = std::mem::take(&mut self.lanes);
        let current = lanes.remove(self.current);
        let is_scarce = lanes.iter().any(|lane| lane.reference.as_ref().is_some_and(PartitionRef::is_scarce));
        let spare = if is_scarce { 0 } else { SPARE_LANES };
        let mut too_many = lanes.iter().filter(|lane| !needed(lane)).count().saturating_sub(spare);
        // The oldest come first.
        lanes.retain(|lane| {
            let goes = too_many > 0 && !needed(lane);
            too_many -= usize::from(goes);
            !goes
        });
        // The end of the chain is there, whether or not anything else will be.
        lanes.push(current);
        self.current = lanes.len() - 1;
        self.lanes = lanes;
        let lanes = &self.lanes;
        self.growth.keep_only(|partition| lanes.iter().any(|lane| lane.partition == partition));
        for (resolved, seen) in self.resolved.iter_mut().zip(&self.seen) {
            *resolved = resolve(&self.lanes, self.layout.plan.placement(seen.key.fingerprint()))?;
        }
        Ok(())
    }
}

/// Where a kernel is placed, as long as nothing is known of its launches there.
pub(super) fn resolve(lanes: &[Lane], placement: Placement) -> Result<Resolved, LaunchError> {
    let Placement { sms, partition, priority, borrows } = placement;
    let lane = lanes.iter().position(|lane| lane.is_for(partition, priority)).ok_or(LaunchError::NoStream { partition, priority })?;
    Ok(Resolved { sms, priority, borrows, polls: false, lane, choice: None, function: None })
}
