//! Which profiles a run uses, and making the ones that are missing.

use std::path::PathBuf;
use std::sync::Arc;

use smidgen_runtime::device::Device;
use smidgen_runtime::profile::{Machine, Profile, ProfileError, ProfileStore, ProfileWarning};

use crate::fatbin::BUILD_HASH;

/// Reads `paths` into one store for `device`, with what is doubtful about them.
///
/// # Errors
/// The first profile that cannot be read or belongs to another GPU, by name.
pub fn load(paths: &[PathBuf], device: &dyn Device) -> Result<(Arc<ProfileStore>, Vec<ProfileWarning>), ProfileError> {
    // The simulator runs no kernels, so it matters only on a GPU by which build they were measured.
    let machine = Machine::of(device, if device.is_simulated() { "" } else { BUILD_HASH });
    let mut store = ProfileStore::default();
    let mut warnings = Vec::new();
    for path in paths {
        warnings.extend(store.add(path, Profile::read(path)?, &machine)?);
    }
    Ok((Arc::new(store), warnings))
}
