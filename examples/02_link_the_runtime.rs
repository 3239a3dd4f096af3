//! A foreign engine links `smidgen-runtime`, and nothing else of smidgen: it describes its kernel, sends every launch through a session, and
//! the runtime decides on how many SMs, and on which, it runs.
//!
//! ```sh
//! cargo run --release --example 02_link_the_runtime
//! ```
//!
//! Runs on the GPU if there is one, else on the simulator, which takes the same calls and computes nothing.

use std::sync::Arc;

use anyhow::{Result, ensure};
use smidgen_runtime::Runtime;
use smidgen_runtime::device::cuda::CudaDevice;
use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::device::{Buffer, Device, DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Precision, Session, Work};
use smidgen_runtime::policy::StaticEqual;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};

/// Elements of each vector: 1 GB in all.
const COUNT: u32 = 1 << 27;

fn main() -> Result<()> {
    let device = open()?;
    let runtime = Runtime::new(Arc::clone(&device), Box::new(StaticEqual), Arc::new(ProfileStore::default()));
    let tenant = admit(&runtime, "ours")?;
    let mut session = runtime.session(tenant)?;

    // Through the session, so that they count as what this tenant was admitted with.
    let (x, y) = (Buffer::new(session.device(), 4 * u64::from(COUNT))?, Buffer::new(session.device(), 4 * u64::from(COUNT))?);
    let one = 1.0_f32.to_le_bytes().repeat(COUNT as usize);
    device.upload(session.stream(), x.ptr(), &one)?;
    device.fill(session.stream(), y.ptr(), 0, y.bytes())?;

    // A request is any chain of launches. Eager at first: kernels are loaded, and the runtime learns what to plan for.
    let request = |session: &mut Session| (0..10).try_for_each(|_| session.launch(&Saxpy { count: COUNT, a: 2.0, x: x.ptr(), y: y.ptr() }));
    request(&mut session)?;
    runtime.learn(tenant, session.seen())?;

    // Then as a graph, captured again whenever the plan has changed: here because a second tenant comes and takes half of the GPU.
    let mut graph = session.capture(request)?;
    let simulated = if device.is_simulated() { " (SIMULATED)" } else { "" };
    for neighbour in [None, Some("neighbour")] {
        neighbour.map(|name| admit(&runtime, name)).transpose()?;
        if !session.is_current(&graph)? {
            graph = session.capture(request)?;
        }
        device.synchronize(session.stream())?;
        let start = device.now();
        session.replay(&graph)?;
        device.synchronize(session.stream())?;
        let placement = runtime.plan().tenant(tenant)?.default;
        let milliseconds = (device.now() - start).as_secs_f64() * 1e3;
        println!("10 launches of saxpy on {:3} SMs: {milliseconds:.3} ms{simulated}", placement.sms.get());
    }

    let mut first = [0; 4];
    device.download(session.stream(), y.ptr(), &mut first)?;
    ensure!(device.is_simulated() || f32::from_le_bytes(first) == 60.0, "30 launches added {} and not 60", f32::from_le_bytes(first));
    Ok(())
}

/// The GPU with the engine's kernels on it, or the simulator.
fn open() -> Result<Arc<dyn Device>> {
    match CudaDevice::open(0) {
        Ok(gpu) => {
            gpu.load(include_bytes!("saxpy.ptx"))?;
            Ok(gpu)
        }
        Err(reason) => {
            eprintln!("{reason}");
            Ok(SimDevice::new(SimConfig::h200()))
        }
    }
}

fn admit(runtime: &Runtime, name: &str) -> Result<TenantId> {
    let spec = TenantSpec { name: name.to_owned(), class: Class::Throughput, slo: None, memory_bytes: 8 * u64::from(COUNT) };
    Ok(runtime.admit(spec)?)
}

/// `y = a * x + y`: what the runtime must know of a kernel. The device code is `saxpy.cu`.
#[derive(Debug, Clone, Copy)]
struct Saxpy {
    count: u32,
    a: f32,
    /// `[count]`, f32.
    x: DevicePtr,
    /// The same.
    y: DevicePtr,
}

/// The kernel's first parameter, as `saxpy.cu` declares it.
#[derive(Clone, Copy)]
#[repr(C)]
struct SaxpyArgs {
    x: u64,
    y: u64,
    count: u32,
    a: f32,
}

impl Saxpy {
    /// Elements in a tile; `saxpy.cu` has the same.
    const TILE: u32 = 4096;
    const BLOCKS_PER_SM: u32 = 8;
}

// SAFETY: `saxpy` takes `SaxpyArgs` and `Tiles`; `main` keeps the vectors until it has waited for the last launch.
unsafe impl Kernel for Saxpy {
    /// What profiles call it.
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("saxpy");
        KernelKey::new(NAME, [self.count]).with_precision(Precision::F32)
    }

    fn work(&self) -> Work {
        Work { flops: 2 * u64::from(self.count), bytes: 12 * u64::from(self.count) }
    }

    /// Persistent: no more blocks than fit on the granted SMs, which take tiles until none is left.
    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        let tiles = self.count.div_ceil(Self::TILE);
        Ok(Launch {
            symbol: "saxpy",
            grid: Launch::persistent_grid(tiles, sms, Self::BLOCKS_PER_SM),
            block: 256,
            shared_bytes: 0,
            blocks_per_sm: Self::BLOCKS_PER_SM,
            tiles,
            blocks_per_tile: 1,
            elastic: true,
            programmatic: false,
            begins_by_number: false,
            params: Params::new(SaxpyArgs { x: self.x.0, y: self.y.0, count: self.count, a: self.a }),
        })
    }
}
