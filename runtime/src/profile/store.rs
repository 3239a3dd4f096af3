//! The profiles in use on one machine, merged for policies to look kernels up in.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::{Device, Fingerprint, KernelKey, Sms, Topology};
use crate::launch::{Choice, Configuration};

use super::{Curve, Energy, KernelProfile, Profile, ProfileError, ProfileWarning};

/// What a profile is held against before it is used.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// The GPU, real or simulated.
    pub topology: &'a Topology,
    /// Whether it is simulated.
    pub simulated: bool,
    /// The hash of the kernels in this binary; empty where it holds none.
    pub kernel_build: &'a str,
}

impl<'a> Machine<'a> {
    /// The machine behind `device`.
    pub fn of(device: &'a dyn Device, kernel_build: &'a str) -> Self {
        Self { topology: device.topology(), simulated: device.is_simulated(), kernel_build }
    }
}

/// The kernels of all profiles that were added, by fingerprint.
#[derive(Debug, Clone, Default)]
pub struct ProfileStore {
    kernels: HashMap<Fingerprint, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    kernel: KernelProfile,
    curve: Arc<Curve>,
    simulated: bool,
    remedy: Arc<Remedy>,
    /// Whether it was said that this build does not know a configuration of the kernel.
    has_warned: Arc<AtomicBool>,
}

/// Where kernels come from, and how they are measured again.
#[derive(Debug)]
struct Remedy {
    path: PathBuf,
    command: String,
}

impl ProfileStore {
    /// Adds the kernels of `profile`, which was read from `path`. Where a kernel was added before, the figures added last count, except that
    /// simulated figures never replace measured ones.
    ///
    /// # Errors
    /// [`ProfileError::GpuMismatch`], [`ProfileError::SmsMismatch`] or [`ProfileError::Simulated`] for a profile that says nothing about
    /// this machine, [`ProfileError::Field`] for one with impossible values. Nothing was added then.
    pub fn add(&mut self, path: &Path, profile: Profile, machine: &Machine<'_>) -> Result<Vec<ProfileWarning>, ProfileError> {
        profile.checked(path)?;
        refuse_mismatch(path, &profile, machine)?;
        let mut warnings = differences(path, &profile, machine);
        let (mut replaced, mut left_out) = (0, 0);
        let simulated = profile.provenance.simulated;
        let remedy = Arc::new(Remedy { path: path.to_owned(), command: profile.provenance.command_again(path) });
        let (power, sms) = (profile.power, profile.provenance.sms);
        for (key, kernel) in profile.kernels {
            // Both were checked above.
            let (Ok(fingerprint), Some(curve)) = (key.parse::<Fingerprint>(), kernel.curve()) else { continue };
            if let Some(known) = self.kernels.get(&fingerprint) {
                if simulated && !known.simulated {
                    left_out += 1;
                    continue;
                }
                replaced += usize::from(known.kernel.points != kernel.points);
            }
            let energy = power.and_then(|power| Energy::of(&kernel, &power, sms)).map(Arc::new);
            let (curve, remedy, has_warned) = (Arc::new(curve.with_energy(energy)), Arc::clone(&remedy), Arc::default());
            self.kernels.insert(fingerprint, Entry { kernel, curve, simulated, remedy, has_warned });
        }
        for (kernels, replaced) in [(replaced, true), (left_out, false)] {
            if kernels > 0 {
                warnings.push(ProfileWarning::Again { path: path.to_owned(), kernels, replaced });
            }
        }
        Ok(warnings)
    }

    /// Latency and, where it was measured, energy by SM count of a kernel; none if it was never profiled.
    pub fn curve(&self, kernel: Fingerprint) -> Option<Arc<Curve>> {
        self.kernels.get(&kernel).map(|entry| Arc::clone(&entry.curve))
    }

    /// All that was measured of a kernel; none if it was never profiled.
    pub fn kernel(&self, kernel: Fingerprint) -> Option<&KernelProfile> {
        self.kernels.get(&kernel).map(|entry| &entry.kernel)
    }

    /// Which of the configurations that a kernel `offers` on `sms` SMs was measured to be quicker than its own choice. None where none was: on this very SM
    /// count, since waves of tiles fill another one otherwise, so that what is quicker on one says nothing of the next. A name that is not on offer counts for
    /// nothing; a warning says so, once for each kernel.
    pub fn choice(&self, kernel: KernelKey, sms: Sms, offers: impl FnOnce() -> Vec<Configuration>) -> Option<Choice> {
        let entry = self.kernels.get(&kernel.fingerprint())?;
        let name = &entry.kernel.points.iter().find(|point| point.sms == sms)?.configuration.as_ref()?.name;
        let found = offers().into_iter().find(|offered| offered.name == name);
        if found.is_none() && !entry.has_warned.swap(true, Ordering::Relaxed) {
            let Remedy { path, command } = &*entry.remedy;
            tracing::warn!(
                "{}: {kernel} was quickest as `{name}` on {sms} SMs, which these kernels do not offer; the kernel's own choice is used: move the file away \
                 and run `{command}`",
                path.display()
            );
        }
        found.map(|found| found.choice)
    }

    /// How many kernels are in the store.
    pub fn len(&self) -> usize {
        self.kernels.len()
    }

    /// Whether no kernel is in the store.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }
}

fn refuse_mismatch(path: &Path, profile: &Profile, machine: &Machine<'_>) -> Result<(), ProfileError> {
    let (provenance, topology) = (&profile.provenance, machine.topology);
    if provenance.simulated && !machine.simulated {
        return Err(ProfileError::Simulated { path: path.to_owned(), command: provenance.command_on_gpu(path) });
    }
    let command = if machine.simulated { provenance.command_on_simulator(path) } else { provenance.command_again(path) };
    let path = path.to_owned();
    if provenance.gpu != topology.name {
        return Err(ProfileError::GpuMismatch { path, found: provenance.gpu.clone(), here: topology.name.clone(), command });
    }
    if provenance.sms != topology.sms {
        return Err(ProfileError::SmsMismatch { path, found: provenance.sms, here: topology.sms, command });
    }
    Ok(())
}

fn differences(path: &Path, profile: &Profile, machine: &Machine<'_>) -> Vec<ProfileWarning> {
    let (provenance, path, command) = (&profile.provenance, path.to_owned(), profile.provenance.command_again(path));
    let mut warnings = Vec::new();
    // The simulator has no driver of its own: it stands in for the machine of the profile.
    let here = &machine.topology.driver;
    if !machine.simulated && !here.is_empty() && provenance.driver != *here {
        warnings.push(ProfileWarning::Driver { path: path.clone(), found: provenance.driver.clone(), here: here.clone() });
    }
    if !machine.kernel_build.is_empty() && provenance.kernel_build != machine.kernel_build {
        let (found, here) = (provenance.kernel_build.clone(), machine.kernel_build.to_owned());
        warnings.push(ProfileWarning::KernelBuild { path, found, here, command });
    }
    warnings
}
