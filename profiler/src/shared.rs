//! One file, several sweeps at once: each adds what it measured, and takes nothing from the others.
//!
//! A sweep reads the file when it begins and saves it whole after every kernel key. In between, another sweep may have saved too, so a save
//! takes over what is in the file before it replaces it, and no other save comes between the two.

use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use smidgen_runtime::profile::{BoardPower, KernelProfile, Profile, ProfileError};

use crate::knee;

/// The profile in `path`, or none where there is no file.
///
/// # Errors
/// As [`Profile::read`].
pub(crate) fn read(path: &Path) -> Result<Option<Profile>, ProfileError> {
    match Profile::read(path) {
        Err(ProfileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// The right to save into the folder of `path`, made if it is not there, until the file is dropped. It is the folder that is locked: the profile
/// itself is another file after each save, and a file only for the lock would be left behind.
///
/// # Errors
/// [`ProfileError::Write`] with what the system says.
pub(crate) fn lock(path: &Path) -> Result<File, ProfileError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let locked = || {
        fs::create_dir_all(folder)?;
        let folder = File::open(folder)?;
        match folder.lock() {
            // On a file system without locks one sweep at a time is all there can be.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(folder),
            locked => locked.map(|()| folder),
        }
    };
    locked().map_err(|source| ProfileError::Write { path: path.to_owned(), source })
}

/// Adds to `profile` what `there`, of the same conditions, has and it lacks: models and commands, kernel keys, points and their power.
pub(crate) fn take_over(profile: &mut Profile, there: Profile) {
    profile.provenance.include(&there.provenance);
    profile.power = match (profile.power, there.power) {
        (Some(power), Some(there)) => Some(BoardPower { clock_mhz: power.clock_mhz.max(there.clock_mhz), ..power }),
        (power, there) => power.or(there),
    };
    for (key, kernel) in there.kernels {
        match profile.kernels.entry(key) {
            Entry::Vacant(entry) => drop(entry.insert(KernelProfile { launches: 0, ..kernel })),
            Entry::Occupied(mut entry) => add_points(entry.get_mut(), kernel, profile.tolerance),
        }
    }
}

fn add_points(kernel: &mut KernelProfile, there: KernelProfile, tolerance: f64) {
    for point in &mut kernel.points {
        let read = there.points.iter().find(|other| other.sms == point.sms).and_then(|other| other.power);
        point.power = point.power.or(read);
    }
    let known: Vec<_> = kernel.points.iter().map(|point| point.sms).collect();
    kernel.points.extend(there.points.into_iter().filter(|point| !known.contains(&point.sms)));
    if kernel.points.len() > known.len() {
        kernel.points.sort_by_key(|point| point.sms);
        // Points of two valid profiles make a curve.
        kernel.minimum_sms = knee::minimum_sms(&kernel.points, tolerance).unwrap_or(kernel.minimum_sms);
    }
}
