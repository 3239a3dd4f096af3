//! Which profiles a run uses, and making the ones that are missing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use smidgen_runtime::device::Device;
use smidgen_runtime::profile::{Machine, Profile, ProfileError, ProfileStore, ProfileWarning};

use crate::fatbin::BUILD_HASH;

/// Measured on an H200 and shipped, so that the simulator runs where nobody has measured anything.
pub const SHIPPED: &str = "profiles/h200.json";

/// The same, for folders that do not have it.
const BUILT_IN: &str = include_str!("../../profiles/h200.json");

/// Whether [`read`] takes the profile that is built in for `path`: the shipped one's, where there is no such file.
pub fn is_built_in(path: &Path) -> bool {
    path == Path::new(SHIPPED) && !path.exists()
}

/// The profile in a file, or the one that is built in.
///
/// # Errors
/// As [`Profile::read`].
pub fn read(path: &Path) -> Result<Profile, ProfileError> {
    if is_built_in(path) { Profile::parse(path, BUILT_IN.as_bytes()) } else { Profile::read(path) }
}

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
        warnings.extend(store.add(path, read(path)?, &machine)?);
    }
    Ok((Arc::new(store), warnings))
}
