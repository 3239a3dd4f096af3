//! Tenants served side by side, until each has finished or failed.
//!
//! What ends a tenant, an error or a panic, ends it alone: its server is given up, which waits for what it has launched, then it is dismissed, which gives its
//! SMs to the others, and they are served on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use smidgen_runtime::device::Device;
use smidgen_runtime::{Runtime, Tenancy};

use super::phase::{PhaseError, TenantServer};
use super::spec::TenantRequest;
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

/// Serves each on a thread of its own.
pub(super) fn on_threads<'a>(device: &dyn Device, residents: Vec<Resident<'a>>) -> Vec<Outcome<'a>> {
    let serve = |mut resident: Resident<'a>| {
        let request = resident.request;
        device.bind_thread().map_err(|error| PhaseError::launch(request, error.into()))?;
        loop {
            match resident.server.step(request)? {
                Step::Finished => return Ok(resident.finish()),
                Step::Busy => device.pass_time(Duration::MAX),
                Step::IdleUntil(instant) => device.pass_time(instant),
            }
        }
    };
    thread::scope(|scope| {
        let start = |resident: Resident<'a>| (resident.request, scope.spawn(move || serve(resident)));
        let threads: Vec<_> = residents.into_iter().map(start).collect();
        let join =
            |(request, thread): (&TenantRequest, thread::ScopedJoinHandle<'_, _>)| thread.join().unwrap_or_else(|_| panicked(request));
        threads.into_iter().map(join).collect()
    })
}

/// Serves all on this thread, each in its turn, while a simulated device's time passes.
pub(super) fn in_virtual_time<'a>(device: &dyn Device, residents: Vec<Resident<'a>>) -> Vec<Outcome<'a>> {
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
        match until {
            Some(until) => device.pass_time(until),
            None => return residents.into_iter().map(|slot| slot.map(Resident::finish)).collect(),
        }
    }
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
