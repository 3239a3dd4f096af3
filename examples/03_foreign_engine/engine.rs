//! The engine as it was before it met the runtime: memory from cudarc, matrix products from cuBLASLt, one kernel of its own in PTX. It computes
//! one feed-forward block, `y = relu(x * up^T + bias) * down^T`, in FP16.
//!
//! What it had to learn are the two `Kernel`-shaped things below it: [`BiasRelu`], which says how it is launched on any number of SMs, and
//! [`Product`], an opaque launch, for which it keeps one cuBLASLt handle and one workspace for each stream it was ever given.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use anyhow::{Context, Result};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr as _};
use half::f16;
use smidgen_runtime::device::{Device, DevicePtr, Event, Sms, StreamId, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, OpaqueKernel, Params, Session, Work};

use crate::cublaslt::{CublasLt, Operands, Product as Algorithm};

/// Rows of `x`, its width, and the width of the layer between.
pub const ROWS: u32 = 1024;
pub const WIDTH: u32 = 768;
pub const HIDDEN: u32 = 3072;

/// `x[m, k] * weights[n, k]^T`: the two products of a block, as `[m, n, k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product(pub [u32; 3]);

pub const UP: Product = Product([ROWS, HIDDEN, WIDTH]);
pub const DOWN: Product = Product([ROWS, WIDTH, HIDDEN]);

impl Product {
    /// What the plan places it by, and the least that it does.
    pub fn kernel(self) -> OpaqueKernel {
        const NAME: KernelName = KernelName::new("cublaslt_product");
        let [m, n, k] = self.0.map(u64::from);
        OpaqueKernel { key: KernelKey::new(NAME, self.0), work: Work { flops: 2 * m * n * k, bytes: 2 * (m * k + n * k + m * n) } }
    }
}

/// `h = relu(h + bias)`, in place: the engine's own kernel, `bias_relu.ptx`.
#[derive(Debug, Clone, Copy)]
pub struct BiasRelu {
    h: DevicePtr,
    bias: DevicePtr,
}

/// The kernel's first parameter, as `bias_relu.ptx` reads it.
#[derive(Clone, Copy)]
#[repr(C)]
struct BiasReluArgs {
    h: u64,
    bias: u64,
    count: u32,
    width: u32,
}

// SAFETY: `bias_relu` takes `BiasReluArgs`, then tiles; the engine keeps its memory until the session is done.
unsafe impl Kernel for BiasRelu {
    fn key(&self) -> KernelKey {
        const NAME: KernelName = KernelName::new("bias_relu");
        KernelKey::new(NAME, [ROWS, HIDDEN])
    }

    fn work(&self) -> Work {
        let elements = u64::from(ROWS * HIDDEN);
        Work { flops: 2 * elements, bytes: 4 * elements }
    }

    /// As many blocks as the SMs hold at once; each thread strides over the rest. It takes a few microseconds, so it is not elastic.
    fn configure(&self, sms: Sms, _gpu: &Topology) -> Result<Launch, LaunchError> {
        const THREADS: u32 = 256;
        const BLOCKS_PER_SM: u32 = 8;
        let count = ROWS * HIDDEN;
        let tiles = count.div_ceil(THREADS);
        Ok(Launch {
            symbol: "bias_relu",
            grid: Launch::persistent_grid(tiles, sms, BLOCKS_PER_SM),
            block: THREADS,
            shared_bytes: 0,
            blocks_per_sm: BLOCKS_PER_SM,
            tiles,
            blocks_per_tile: 1,
            elastic: false,
            programmatic: false,
            begins_by_number: false,
            params: Params::new(BiasReluArgs { h: self.h.0, bias: self.bias.0, count, width: HIDDEN }),
        })
    }
}

/// The engine. Without a GPU it has no memory and no library, and its products are announced to the runtime but not enqueued.
pub struct Engine {
    device: Arc<dyn Device>,
    gpu: Option<Gpu>,
}

/// What it keeps on a GPU; matrices are FP16, as bits.
struct Gpu {
    stream: Arc<CudaStream>,
    x: CudaSlice<u16>,
    up: CudaSlice<u16>,
    bias: CudaSlice<u16>,
    h: CudaSlice<u16>,
    down: CudaSlice<u16>,
    y: CudaSlice<u16>,
    /// By stream, and so by partition: a handle or a workspace that two partitions share is a race.
    libraries: HashMap<StreamId, Library>,
}

/// cuBLASLt for one partition, and the algorithm that was fastest there for each product.
struct Library {
    cublaslt: CublasLt,
    fastest: HashMap<Product, Algorithm>,
}

impl Engine {
    /// The engine on `device`, whose primary context cudarc works in too.
    pub fn new(device: &Arc<dyn Device>) -> Result<Self> {
        let gpu = match device.is_simulated() {
            true => None,
            false => Some(Gpu::new()?),
        };
        Ok(Self { device: Arc::clone(device), gpu })
    }

    /// Its own kernel, for the profiler and for launches.
    pub fn bias_relu(&self) -> BiasRelu {
        let [h, bias] = self.gpu.as_ref().map_or([DevicePtr::NULL; 2], |gpu| [gpu.address(&gpu.h), gpu.address(&gpu.bias)]);
        BiasRelu { h, bias }
    }

    /// One forward pass: three launches, each where the plan places it.
    pub fn forward(&mut self, session: &mut Session) -> Result<()> {
        self.product(session, UP)?;
        session.launch(&self.bias_relu())?;
        self.product(session, DOWN)
    }

    fn product(&mut self, session: &mut Session, product: Product) -> Result<()> {
        let Self { device, gpu } = self;
        session.launch_opaque(&product.kernel(), |stream, sms| match gpu {
            Some(gpu) => gpu.product(device, stream, sms, product),
            None => Ok(()),
        })?
    }

    /// Microseconds that a product takes on `stream`, with `sms` SMs: `count` samples of 10 launches each. None on the simulator, where cuBLASLt
    /// cannot be called.
    pub fn measure(&mut self, product: Product, stream: StreamId, sms: Sms, count: u32) -> Result<Option<Vec<f64>>> {
        const LAUNCHES: u32 = 10;
        let Self { device, gpu: Some(gpu) } = self else { return Ok(None) };
        let samples = (0..=count).map(|_| {
            timed(device, stream, || (0..LAUNCHES).try_for_each(|_| gpu.product(device, stream, sms, product)))
                .map(|us| us / f64::from(LAUNCHES))
        });
        // The first one chooses the algorithm, and warms the GPU up.
        let samples = samples.collect::<Result<Vec<f64>>>()?.split_off(1);
        // The stream goes, and its number may come back as that of another partition's.
        gpu.libraries.remove(&stream);
        Ok(Some(samples))
    }

    /// Compares some of the result with the same block computed on the CPU: the largest difference over the largest magnitude.
    pub fn error(&self) -> Result<Option<f64>> {
        let Some(gpu) = &self.gpu else { return Ok(None) };
        gpu.stream.context().synchronize()?;
        let y = gpu.stream.clone_dtoh(&gpu.y)?;
        let (mut worst, mut largest) = (0.0_f64, 0.0_f64);
        for row in [0, ROWS - 1] {
            let dot = |len: u32, a: &dyn Fn(u32) -> f64, b: &dyn Fn(u32) -> f64| (0..len).map(|k| a(k) * b(k)).sum::<f64>();
            let x = |k: u32| operand(row * WIDTH + k);
            let hidden: Vec<f64> = (0..HIDDEN).map(|j| (dot(WIDTH, &x, &|k| operand(j * WIDTH + k)) + operand(j)).max(0.0)).collect();
            for column in [0, 1, WIDTH - 1] {
                let expected = dot(HIDDEN, &|j| hidden[j as usize], &|j| operand(column * HIDDEN + j));
                let found = f16::from_bits(y[(row * WIDTH + column) as usize]).to_f64();
                worst = worst.max((found - expected).abs());
                largest = largest.max(expected.abs());
            }
        }
        Ok(Some(worst / largest))
    }
}

/// What every matrix holds, by the element's number: multiples of 1/32 between -1/4 and 1/4, without a pattern that a row repeats.
fn operand(element: u32) -> f64 {
    (f64::from(element.wrapping_mul(2_654_435_761) >> 16) % 17.0 - 8.0) / 32.0
}

impl Gpu {
    fn new() -> Result<Self> {
        let context = CudaContext::new(0)?;
        // SAFETY: the session orders all work on this memory, and nothing is freed before `error` has waited for all of it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        let matrix = |rows: u32, columns: u32| {
            let values: Vec<u16> = (0..rows * columns).map(|element| f16::from_f64(operand(element)).to_bits()).collect();
            stream.clone_htod(&values)
        };
        let (x, up, bias, down) = (matrix(ROWS, WIDTH)?, matrix(HIDDEN, WIDTH)?, matrix(1, HIDDEN)?, matrix(WIDTH, HIDDEN)?);
        let (h, y) = (stream.alloc_zeros((ROWS * HIDDEN) as usize)?, stream.alloc_zeros((ROWS * WIDTH) as usize)?);
        // Other streams use it from here on, and know nothing of this one.
        stream.synchronize()?;
        Ok(Self { stream, x, up, bias, h, down, y, libraries: HashMap::new() })
    }

    fn address(&self, memory: &CudaSlice<u16>) -> DevicePtr {
        DevicePtr(memory.device_ptr(&self.stream).0)
    }

    /// Enqueues `product` on `stream`. The first time there it makes a handle and tries the algorithms, which a capture would not allow.
    fn product(&mut self, device: &Arc<dyn Device>, stream: StreamId, sms: Sms, product: Product) -> Result<()> {
        let operands = match product {
            UP => Operands { a: self.address(&self.x), b: self.address(&self.up), c: self.address(&self.h) },
            _ => Operands { a: self.address(&self.h), b: self.address(&self.down), c: self.address(&self.y) },
        };
        let library = match self.libraries.entry(stream) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Library { cublaslt: CublasLt::new(device)?, fastest: HashMap::new() }),
        };
        let algorithm = match library.fastest.entry(product) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => *new.insert(fastest(&library.cublaslt, device, stream, sms, product, operands)?),
        };
        library.cublaslt.enqueue(&algorithm, operands, stream)
    }
}

/// The fastest algorithm on this stream, of those that run there: kernels with large clusters do not in a partition made of single TPCs.
fn fastest(
    library: &CublasLt,
    device: &Arc<dyn Device>,
    stream: StreamId,
    sms: Sms,
    product: Product,
    operands: Operands,
) -> Result<Algorithm> {
    let time = |algorithm: &Algorithm| timed(device, stream, || (0..5).try_for_each(|_| library.enqueue(algorithm, operands, stream)));
    let proposals = library.proposals(product.0, sms)?;
    let timed = proposals.iter().filter_map(|algorithm| Some((time(algorithm).and_then(|_| time(algorithm)).ok()?, algorithm)));
    let fastest = timed.min_by(|one, other| one.0.total_cmp(&other.0));
    fastest.map(|(_, algorithm)| *algorithm).with_context(|| format!("cuBLASLt has no algorithm for {product:?} on {sms} SMs"))
}

/// Microseconds of device time that `work` takes on `stream`.
fn timed(device: &Arc<dyn Device>, stream: StreamId, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (start, end) = (Event::timed(device)?, Event::timed(device)?);
    device.record(start.id(), stream)?;
    work()?;
    device.record(end.id(), stream)?;
    device.synchronize(stream)?;
    Ok(device.elapsed(start.id(), end.id())?.as_secs_f64() * 1e6)
}
