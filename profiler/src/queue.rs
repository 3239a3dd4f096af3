//! The consumer of a runtime's queue: kernels that run without a profile, measured from a request that launches them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use smidgen_runtime::Runtime;
use smidgen_runtime::launch::{Fingerprint, Kernel};
use smidgen_runtime::partition::Ladder;
use smidgen_runtime::profile::Profile;

use crate::{Options, Origin, Progress, Sweep, SweepError};

/// Profiles those of the `recorded` launches whose kernels `runtime` has queued ([`Runtime::unprofiled`]) into the file at `path`, beside what it holds already.
/// None where nothing of it is queued: no file is touched then.
///
/// The launches come from [`Session::finish_recording`](smidgen_runtime::launch::Session::finish_recording) after one whole request. Each is launched thousands of
/// times on the buffers that it names, with nothing else on the GPU: pause the other tenants, and do not rely on what those buffers hold afterwards. The
/// runtime plans with what was measured once it has been given the file ([`Runtime::set_profiles`]), and the queue is shorter by that.
///
/// # Errors
/// As [`Sweep::run_into`].
pub fn profile_queued(
    runtime: &Runtime,
    mut recorded: Vec<Box<dyn Kernel + Send>>,
    origin: &Origin,
    options: &Options,
    path: &Path,
    progress: &mut dyn Progress,
) -> Result<Option<Profile>, SweepError> {
    let tenants = runtime.unprofiled().into_iter();
    let queued: HashSet<Fingerprint> = tenants.flat_map(|tenant| tenant.kernels).map(|key| key.fingerprint()).collect();
    recorded.retain(|kernel| queued.contains(&kernel.key().fingerprint()));
    if recorded.is_empty() {
        return Ok(None);
    }
    let device = runtime.device();
    let ladder = Ladder::new(Arc::clone(device), options.rungs.len());
    // In an engine that runs, the board may be busy with more than these.
    let meter = None;
    Sweep { device, ladder: &ladder, recording: &recorded, origin, options, meter }.run_into(path, progress).map(Some)
}
