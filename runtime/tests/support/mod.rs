//! What the tests of sessions and runtimes share: a simulated H200 that remembers its kernels, and kernels to launch on it.
#![allow(dead_code)] // Every test binary compiles this module and uses its own part of it.

pub mod counting;
pub mod idle;

use std::path::Path;
use std::sync::Arc;

use smidgen_runtime::device::sim::{KernelTrace, SimConfig, SimDevice};
use smidgen_runtime::device::{Device, Sms, Topology};
use smidgen_runtime::launch::{Choice, Configuration, Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Session, Work};
use smidgen_runtime::profile::{
    Bound, KernelProfile, Machine, MeasuredConfiguration, PeakSource, Peaks, Profile, ProfileStore, Provenance, SCHEMA_VERSION, SamplePoint,
};

/// A simulated H200, as itself and as the runtime sees it.
pub struct Gpu {
    pub sim: Arc<SimDevice>,
    pub device: Arc<dyn Device>,
}

impl Gpu {
    pub fn h200() -> Self {
        Self::new(SimConfig::h200().with_trace())
    }

    pub fn new(config: SimConfig) -> Self {
        let sim = SimDevice::new(config);
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
            blocks_per_tile: 1,
            elastic: self.elastic,
            programmatic: false,
            begins_by_number: false,
            params: Params::new(0_u32),
        })
    }
}

/// A kernel of two tile shapes, told apart by their symbols. It predicts that the wide one is quicker.
#[derive(Debug, Clone, Copy)]
pub struct Tiled(pub Fake);

impl Tiled {
    /// Symbols, which are the names of its configurations too.
    pub const SHAPES: [&str; 2] = ["wide", "narrow"];
}

// SAFETY: the simulator reads no parameters.
unsafe impl Kernel for Tiled {
    fn key(&self) -> KernelKey {
        self.0.key()
    }

    fn work(&self) -> Work {
        self.0.work()
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        self.configure_as(self.choose(sms, gpu), sms, gpu)
    }

    fn configurations(&self, _: Sms, _: &Topology) -> Vec<Configuration> {
        (0..).zip(Self::SHAPES).map(|(at, name)| Configuration { name, choice: Choice(at) }).collect()
    }

    fn configure_as(&self, Choice(at): Choice, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch { symbol: Self::SHAPES[at as usize], ..self.0.configure(sms, gpu)? })
    }
}

/// `profile`, in which every kernel was quickest as `name` on so many SMs.
pub fn quickest_as(name: &str, sms: Sms, mut profile: Profile) -> Profile {
    let points = profile.kernels.values_mut().flat_map(|kernel| &mut kernel.points);
    for point in points.filter(|point| point.sms == sms) {
        let instead_of = Tiled::SHAPES[0].to_owned();
        point.configuration = Some(MeasuredConfiguration { name: name.to_owned(), instead_of, gain: 0.1 });
    }
    profile
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

/// A profile, as if measured on `device`: kernel, microseconds, and the SMs below which it takes longer in proportion.
pub fn profile(device: &dyn Device, kernels: &[(Fake, f64, u16)]) -> Profile {
    let kernel = |&(kernel, us, minimum): &(Fake, f64, u16)| {
        let point = |sms: u16| {
            let us = us * (f64::from(minimum) / f64::from(sms)).max(1.0);
            SamplePoint { sms: Sms(sms), median_us: us, samples_us: vec![us], rejected: 0, configuration: None, power: None }
        };
        let points = [2, 8, 16, 32, 64, 132].map(point).to_vec();
        let (work, minimum_sms) = (kernel.work(), Sms(minimum));
        let profile = KernelProfile { work, launches: 1, blocks_per_sm: 1, bound: Bound::Memory, minimum_sms, points };
        (kernel.key().to_string(), profile)
    };
    Profile {
        schema: SCHEMA_VERSION,
        provenance: Provenance {
            gpu: device.topology().name.clone(),
            sms: device.topology().sms,
            driver: String::new(),
            kernel_build: String::new(),
            models: vec!["test".into()],
            command: String::new(),
            commit: String::new(),
            date: String::new(),
            simulated: true,
        },
        tolerance: 0.02,
        peaks: Peaks { flops_per_s: 0.0, bytes_per_s: 0.0, source: PeakSource::Given },
        power: None,
        kernels: kernels.iter().map(kernel).collect(),
    }
}

/// A store of that profile alone.
pub fn store(device: &dyn Device, profile: Profile) -> Arc<ProfileStore> {
    let mut store = ProfileStore::default();
    store.add(Path::new("test.json"), profile, &Machine::of(device, "")).unwrap();
    Arc::new(store)
}
