//! Tenants served side by side, until each has finished or failed.
//!
//! What ends a tenant, an error or a panic, ends it alone: its server is given up, which waits for what it has launched, then it is dismissed, which gives its
//! SMs to the others, and they are served on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use smidgen_runtime::{Runtime, Tenancy};

use super::phase::{PhaseError, TenantServer};
use super::spec::TenantRequest;
use super::watch::Observer;
use crate::serve::{Served, Step};

/// A tenant with what serves it.
pub(super) struct Resident<'a> {
    pub(super) request: &'a TenantRequest,
    // Dropped in this order: who still launches must not be dismissed.
    pub(super) server: TenantServer,
    pub(super) tenancy: Tenancy<&'a Runtime>,
}

/// What was measured of a tenant, which is still admitted then; or why it is not any more.
pub(super) type Outcome<'a> = Result<(Served, Tenancy<&'a Runtime>), PhaseError>;

/// Time between two looks at the tenants' threads.
const TICK: Duration = Duration::from_millis(50);

/// Serves each on a thread of its own, while this one observes.
pub(super) fn on_threads<'a>(runtime: &Runtime, residents: Vec<Resident<'a>>, observer: &mut Observer<'_>) -> Vec<Outcome<'a>> {
    let serve = |mut resident: Resident<'a>| {
        let request = resident.request;
        // The runtime's view of the device: it tells who met the loss of the context.
        runtime.device().bind_thread().map_err(|error| PhaseError::launch(request, error.into()))?;
        loop {
            match resident.server.step(request)? {
                Step::Finished => return Ok(resident.finish()),
                Step::Busy => pass_time(runtime, Duration::MAX),
                Step::IdleUntil(instant) => pass_time(runtime, instant),
            }
        }
    };
    thread::scope(|scope| {
        let start = |resident: Resident<'a>| (resident.request, scope.spawn(move || serve(resident)));
        let threads: Vec<_> = residents.into_iter().map(start).collect();
        while !threads.iter().all(|(_, thread)| thread.is_finished()) {
            observer.poll();
            thread::sleep(TICK);
        }
        observer.look();
        let join =
            |(request, thread): (&TenantRequest, thread::ScopedJoinHandle<'_, _>)| thread.join().unwrap_or_else(|_| panicked(request));
        threads.into_iter().map(join).collect()
    })
}

/// Serves all on this thread, each in its turn, while a simulated device's time passes.
pub(super) fn in_virtual_time<'a>(runtime: &Runtime, residents: Vec<Resident<'a>>, observer: &mut Observer<'_>) -> Vec<Outcome<'a>> {
    let mut residents: Vec<Result<Resident<'a>, PhaseError>> = residents.into_iter().map(Ok).collect();
    loop {
        let mut until = None;
        for slot in &mut residents {
            let Ok(resident) = slot else { continue };
            let request = resident.request;
            // Nobody looks at a server again that panicked.
            let step = catch_unwind(AssertUnwindSafe(|| resident.server.step(request)));
            let next = match step.unwrap_or_else(|_| panicked(request)) {
                Ok(Step::Finished) => continue,
                Ok(Step::Busy) => Duration::MAX,
                Ok(Step::IdleUntil(instant)) => instant,
                Err(error) => {
                    *slot = Err(error);
                    // The others have its SMs from here on, and should look at once.
                    until = Some(Duration::ZERO);
                    continue;
                }
            };
            until = Some(until.map_or(next, |until: Duration| until.min(next)));
        }
        observer.poll();
        match until {
            Some(until) => pass_time(runtime, until),
            None => {
                observer.look();
                return residents.into_iter().map(|slot| slot.map(Resident::finish)).collect();
            }
        }
    }
}

/// Lets time pass until something may have changed: what the device does, or that a tenant has been idle for so long that its SMs are lent.
fn pass_time(runtime: &Runtime, until: Duration) {
    let due = lend(runtime);
    runtime.device().pass_time(due.map_or(until, |due| until.min(due)));
    // Before anybody looks: who was lent SMs may grow.
    lend(runtime);
}

/// Lends what is due, and says when more will be.
fn lend(runtime: &Runtime) -> Option<Duration> {
    runtime.settle().unwrap_or_else(|error| {
        // It is another tenant's grant, and its next launch tells.
        tracing::debug!("a grant was not widened: {error}");
        None
    })
}

fn panicked<T>(request: &TenantRequest) -> Result<T, PhaseError> {
    Err(PhaseError::Panic(request.name.clone()))
}

impl<'a> Resident<'a> {
    fn finish(self) -> (Served, Tenancy<&'a Runtime>) {
        (self.server.finish(), self.tenancy)
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
