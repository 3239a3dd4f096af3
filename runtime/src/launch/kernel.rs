//! What an engine tells the runtime about a kernel: its key, its cost, and its launch at any SM count.

use crate::device::{Sms, Topology};

use super::{KernelKey, Launch, LaunchError, Work};

/// A kernel descriptor: shapes and device pointers, nothing about SMs.
///
/// Most kernels implement [`configure`](Kernel::configure) alone. One that takes long to decide (which of many tile shapes is quickest here) may
/// put the decision into [`choose`](Kernel::choose), which sessions call once for a key and SM count. One whose decision is a prediction may say what else
/// it could have chosen, [`configurations`](Kernel::configurations): the profiler measures which is quicker, and sessions launch by what it found.
///
/// # Safety
/// [`configure`](Kernel::configure) and [`configure_as`](Kernel::configure_as) must return parameters of the type that the named `__global__` function takes as its first argument (its
/// second is a [`TilesArg`](super::TilesArg)), and every pointer in them must stay valid until the launch has completed.
pub unsafe trait Kernel {
    /// What the profiler measures this launch as, and the plan places it by.
    fn key(&self) -> KernelKey;

    /// The least the launch must do, for rooflines and for the simulator where no profile exists.
    fn work(&self) -> Work;

    /// The launch that uses at most `sms` SMs. The arithmetic of the outputs must not depend on `sms`.
    ///
    /// # Errors
    /// [`LaunchError::Unsupported`] for a shape that the kernel cannot do.
    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError>;

    /// What follows from the [`key`](Kernel::key), the SM count and the GPU alone and is worth remembering from one launch to the next. It must
    /// not depend on anything else of the descriptor: launches with the same key share it.
    fn choose(&self, _sms: Sms, _gpu: &Topology) -> Choice {
        Choice::default()
    }

    /// What a profile may have this kernel launched as on `sms` SMs: first what [`choose`](Kernel::choose) returns, then the others, the likeliest to be quick
    /// first. All of them give the same bits. Like a choice, they must follow from the key, the SM count and the GPU alone. None where nothing is to be chosen, or
    /// where the choice serves something that the profiler, which measures a kernel alone, does not see.
    fn configurations(&self, _sms: Sms, _gpu: &Topology) -> Vec<Configuration> {
        Vec::new()
    }

    /// [`configure`](Kernel::configure), given what [`choose`](Kernel::choose) returned, or one of [`configurations`](Kernel::configurations), for a kernel of
    /// the same key, SM count and GPU.
    ///
    /// # Errors
    /// As [`configure`](Kernel::configure).
    fn configure_as(&self, _choice: Choice, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        self.configure(sms, gpu)
    }
}

/// A kernel's own note of a decision, see [`Kernel::choose`]; the bits mean what the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Choice(pub u64);

/// One of several choices that a kernel has, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configuration {
    /// What profiles call it. Another build may offer others, but must not use this name for another one: 1 to 64 letters, digits and `_.-`.
    pub name: &'static str,
    /// What [`Kernel::configure_as`] is given.
    pub choice: Choice,
}

impl Configuration {
    /// Whether a profile may call a configuration so.
    pub fn is_name(name: &str) -> bool {
        (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    }
}
