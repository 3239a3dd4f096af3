//! The launch path: [`Session::launch`], step by step.
//!
//! What is `#[cold]` here happens once for a kernel key, a symbol or a plan. Everything else is array look-ups.

use std::ptr;

use super::layouts::resolve;
use super::{OpaqueKernel, PROGRESSES, Resolved, SeenKernel, Session};
use crate::device::{DeviceError, DevicePtr, FunctionId, LaunchRequest, Sms, StreamId, TILE_PROGRESS_BYTES};
use crate::launch::joiner::{Owner, is_long, is_long_in_a_graph};
use crate::launch::{Choice, Fingerprint, Grids, Kernel, KernelKey, Launch, LaunchError, TilesArg, Work};
use crate::partition::TpcSet;
use crate::telemetry::probe::Observable;

impl Session {
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
        let at = self.place(key, work)?;
        let choice = match self.resolved[at].choice {
            Some(choice) => choice,
            None => self.choose(at, kernel)?,
        };
        let placement = self.resolved[at];
        let mut configured = kernel.configure_as(choice, placement.sms, self.device.topology());
        // By reference: a launch is over a kilobyte, and `?` would copy it.
        let launch = match &mut configured {
            Ok(launch) => {
                launch.elastic |= placement.polls;
                launch.take_form(self.grids);
                &*launch
            }
            Err(error) => return Err(error.clone()),
        };
        let function = match placement.function {
            Some((symbol, function)) if ptr::eq(symbol, launch.symbol) => function,
            _ => self.function(at, launch.symbol)?,
        };
        self.hop(placement.lane)?;
        if self.may_grow(launch, work, &placement) {
            self.growth.prepare(self.stream())?;
            self.follows_launch = false;
        }
        let tiles = self.tiles(launch, &placement);
        let overlaps = launch.programmatic && self.follows_launch;
        let request = LaunchRequest { function, launch, tiles, priority: placement.priority, overlaps, key, work };
        self.follows_launch = self.enqueue(&request, &placement)?;
        if launch.elastic {
            self.remember_if_long(&request, at, &placement);
            self.count_tiles();
        }
        self.count(at);
        Ok(())
    }

    /// Lets `enqueue` put foreign work on the stream where the plan places `kernel`; it also learns how many SMs that stream has.
    ///
    /// # Errors
    /// As [`launch`](Session::launch); what `enqueue` returns is passed on.
    pub fn launch_opaque<R>(&mut self, kernel: &OpaqueKernel, enqueue: impl FnOnce(StreamId, Sms) -> R) -> Result<R, LaunchError> {
        self.follow_plan()?;
        let at = self.place(kernel.key, kernel.work)?;
        if self.resolved[at].borrows {
            self.keep_home(at)?;
        }
        let placement = self.resolved[at];
        self.hop(placement.lane)?;
        self.follows_launch = false;
        self.count(at);
        Ok(enqueue(self.stream(), placement.sms))
    }

    /// The kernel's index.
    #[inline]
    fn place(&mut self, key: KernelKey, work: Work) -> Result<usize, LaunchError> {
        let fingerprint = key.fingerprint();
        match self.index.find(fingerprint) {
            Some(at) => Ok(at),
            None => self.meet(key, work, fingerprint),
        }
    }

    #[cold]
    fn meet(&mut self, key: KernelKey, work: Work, fingerprint: Fingerprint) -> Result<usize, LaunchError> {
        let resolved = resolve(&self.lanes, self.layout.plan.placement(fingerprint))?;
        let at = self.seen.len();
        self.index.insert(fingerprint, at);
        self.seen.push(SeenKernel { key, work, launches: 0 });
        self.probe.met(key);
        self.resolved.push(resolved);
        Ok(at)
    }

    #[cold]
    fn choose(&mut self, at: usize, kernel: &dyn Kernel) -> Result<Choice, LaunchError> {
        let mut choice = self.choice_on(self.resolved[at].sms, at, kernel);
        if self.resolved[at].borrows {
            self.resolved[at].polls = self.polls_where_it_borrows(at, kernel, choice)?;
            if !self.resolved[at].polls {
                self.keep_home(at)?;
                choice = self.choice_on(self.resolved[at].sms, at, kernel);
            }
        }
        self.resolved[at].choice = Some(choice);
        Ok(choice)
    }

    /// How the kernel with this index is launched on so many SMs: as was measured to be quickest there, or else as it chooses itself.
    fn choice_on(&self, sms: Sms, at: usize, kernel: &dyn Kernel) -> Choice {
        let gpu = self.device.topology();
        let measured = self.profiles.choice(self.seen[at].key, sms, || kernel.configurations(sms, gpu));
        measured.unwrap_or_else(|| kernel.choose(sms, gpu))
    }

    /// Whether a launch polls the grant, or can be made to: one that is too short for it on all of its grant, where the same entry point does poll on the
    /// SMs that its tenant owns or on the fewest there are.
    fn polls_where_it_borrows(&self, at: usize, kernel: &dyn Kernel, choice: Choice) -> Result<bool, LaunchError> {
        let gpu = self.device.topology();
        let mut borrowing = kernel.configure_as(choice, self.resolved[at].sms, gpu)?;
        borrowing.take_form(self.grids);
        if borrowing.elastic || self.grids != Grids::Persistent || borrowing.tiles > Launch::MAX_ELASTIC_TILES {
            return Ok(borrowing.elastic);
        }
        for fewer in [self.layout.plan.default.sms, Sms(gpu.sms_per_tpc)] {
            let longer = kernel.configure_as(self.choice_on(fewer, at, kernel), fewer, gpu)?;
            if longer.elastic && ptr::eq(longer.symbol, borrowing.symbol) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Places the kernel with this index where its tenant's SMs are its own: whoever lent others could not take them back from it.
    #[cold]
    fn keep_home(&mut self, at: usize) -> Result<(), LaunchError> {
        self.resolved[at] = resolve(&self.lanes, self.layout.plan.default)?;
        Ok(())
    }

    /// The entry point called `symbol`, noted as the one that the kernel with this index uses.
    #[cold]
    fn function(&mut self, at: usize, symbol: &'static str) -> Result<FunctionId, DeviceError> {
        let function = match self.functions.iter().find(|known| ptr::eq(known.0, symbol)) {
            Some(known) => known.1,
            None => {
                let function = self.device.function(symbol)?;
                self.functions.push((symbol, function));
                function
            }
        };
        self.resolved[at].function = Some((symbol, function));
        Ok(function)
    }

    #[inline]
    pub(super) fn hop(&mut self, lane: usize) -> Result<(), LaunchError> {
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

    /// Where the launch counts its tiles, and which SMs may take them.
    #[inline]
    fn tiles(&self, launch: &Launch, placement: &Resolved) -> TilesArg {
        let (progress, grant) = if launch.elastic {
            (self.progress.ptr().offset(self.next_counter as u64 * TILE_PROGRESS_BYTES), self.grant.ptr())
        } else {
            (DevicePtr::NULL, DevicePtr::NULL)
        };
        let mut tiles = TilesArg::owner(launch, progress, grant);
        if placement.borrows {
            // Its blocks may begin on SMs that their owner has taken back, and must leave those at once.
            tiles.numbered = 0;
        }
        tiles
    }

    /// Hands the launch to the device, through the probe where that is to see it. Whether the next one may overlap its end.
    #[inline]
    fn enqueue(&mut self, request: &LaunchRequest<'_>, placement: &Resolved) -> Result<bool, LaunchError> {
        if self.probe.is_due() {
            let (stream, partition, capturing) = (self.stream(), self.lanes[placement.lane].partition, self.capturing.is_some());
            let seen = Observable { device: &*self.device, stream, request, partition, sms: placement.sms, capturing };
            let launched = self.probe.launch(&seen)?;
            self.probe.count(self.stats);
            return Ok(launched);
        }
        self.device.launch(self.stream(), request)?;
        Ok(true)
    }

    /// Whether a second launch may join this one when its tenant is granted more SMs.
    #[inline]
    fn may_grow(&self, launch: &Launch, work: Work, placement: &Resolved) -> bool {
        launch.elastic && self.capturing.is_none() && is_long(work, placement.sms)
    }

    /// Keeps what a joiner would need of an elastic launch, or of each replay's.
    #[inline]
    fn remember_if_long(&mut self, request: &LaunchRequest<'_>, at: usize, placement: &Resolved) {
        let &LaunchRequest { function, launch, tiles, priority, key, work, .. } = request;
        let owner = |epoch, held| Owner { function, launch: *launch, tiles, priority, key, work, kernel: at, epoch, held };
        if self.may_grow(launch, work, placement) {
            self.growth.remember(owner(self.epochs[self.next_counter], self.grant.held()));
        } else if self.capturing.is_some() && is_long_in_a_graph(work, placement.sms) {
            self.captured_long.push((self.next_counter, owner(self.captured[self.next_counter], TpcSet::EMPTY)));
        }
    }

    /// Counts a launch on the next tile counter, now or at each replay of what is being captured, and moves on to the other one.
    #[inline]
    fn count_tiles(&mut self) {
        let counts = if self.capturing.is_some() { &mut self.captured } else { &mut self.epochs };
        counts[self.next_counter] = counts[self.next_counter].wrapping_add(1);
        self.next_counter = (self.next_counter + 1) % PROGRESSES;
    }

    /// Counts a launch of the kernel with this index.
    #[inline]
    fn count(&mut self, at: usize) {
        self.seen[at].launches = self.seen[at].launches.saturating_add(1);
        self.stats.launches += 1;
    }
}
