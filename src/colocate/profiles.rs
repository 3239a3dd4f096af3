//! Which profiles a run uses, and making the ones that are missing.

use std::path::PathBuf;
use std::sync::Arc;

use smidgen_runtime::device::Device;
use smidgen_runtime::profile::{Profile, ProfileError, ProfileStore};

use crate::fatbin::BUILD_HASH;

/// Reads `paths` into one store for `device`. What is only doubtful is warned about; what is wrong is refused.
///
/// # Errors
/// The first profile that cannot be read or belongs to another GPU, by name.
pub fn load(paths: &[PathBuf], device: &dyn Device) -> Result<Arc<ProfileStore>, ProfileError> {
    let mut store = ProfileStore::default();
    for path in paths {
        let profile = Profile::read(path)?;
        for warning in store.add(path, &profile, device.topology(), device.is_simulated(), BUILD_HASH)? {
            tracing::warn!("{warning}");
        }
    }
    Ok(Arc::new(store))
}
