//! What the tests of sessions and runtimes share: a simulated H200 that remembers its kernels, and kernels to launch on it.
#![allow(dead_code)] // Every test binary compiles this module and uses its own part of it.

pub mod idle;

use std::sync::Arc;

use smidgen_runtime::device::sim::{KernelTrace, SimConfig, SimDevice};
use smidgen_runtime::device::{Device, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Session, Work};

/// A simulated H200, as itself and as the runtime sees it.
pub struct Gpu {
    pub sim: Arc<SimDevice>,
    pub device: Arc<dyn Device>,
}

impl Gpu {
    pub fn h200() -> Self {
        let sim = SimDevice::new(SimConfig::h200().with_trace());
        let device: Arc<dyn Device> = Arc::clone(&sim) as Arc<dyn Device>;
        Self { sim, device }
    }

    /// The kernels that ended since the last call, once the session's chain is done.
    pub fn trace(&self, session: &Session) -> Vec<KernelTrace> {
        self.device.synchronize(session.stream()).unwrap();
        self.sim.take_trace()
    }

    pub fn free_bytes(&self) -> u64 {
        self.device.free_bytes().unwrap()
    }
}

/// A persistent kernel of 528 tiles, four on each SM of the whole GPU, that reads `bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fake {
    pub name: &'static str,
    pub bytes: u64,
    pub elastic: bool,
}

/// The tiles of every [`Fake`].
const TILES: u32 = 528;

impl Fake {
    pub const fn new(name: &'static str) -> Self {
        Self { name, bytes: 40_000_000, elastic: false }
    }

    pub const fn elastic(self) -> Self {
        Self { elastic: true, ..self }
    }
}

// SAFETY: the simulator reads no parameters.
unsafe impl Kernel for Fake {
    fn key(&self) -> KernelKey {
        KernelKey::new(KernelName::new(self.name), [])
    }

    fn work(&self) -> Work {
        Work { flops: 0, bytes: self.bytes }
    }

    fn configure(&self, sms: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch {
            symbol: self.name,
            grid: Launch::persistent_grid(TILES, sms, 1),
            block: 128,
            shared_bytes: 0,
            blocks_per_sm: 1,
            tiles: TILES,
            elastic: self.elastic,
            programmatic: false,
            params: Params::new(0_u32),
        })
    }
}

/// A kernel that can do no shape.
#[derive(Debug, Clone, Copy)]
pub struct Impossible;

// SAFETY: never launched.
unsafe impl Kernel for Impossible {
    fn key(&self) -> KernelKey {
        KernelKey::new(KernelName::new("impossible"), [])
    }

    fn work(&self) -> Work {
        Work::default()
    }

    fn configure(&self, _: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        Err(LaunchError::Unsupported { kernel: "impossible".into(), reason: "no shape fits".into() })
    }
}
