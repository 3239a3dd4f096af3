//! Rates of the GEMM kernels on the GPU: `cargo bench --bench kernels`.
//!
//! First a table: each shape, each kernel variant that can do it, device time, TFLOP/s or GB/s, and the share of what the GPU's data sheet
//! promises. Then criterion's statistics of the chosen variants. Then another table, of products of 64 rows, on all SMs and on 32: the skinny kernels, the warpgroup ones whose
//! tiles have as many rows, and cuBLASLt if it is in LD_LIBRARY_PATH. A word selects shapes as kernel keys name them: `cargo bench --bench kernels -- 64x`. A launch is one of a graph's, so that the host's launch cost does not
//! count, and operands rotate through more memory than L2 holds, so that weights come from DRAM as they do in a model.
#![cfg(feature = "cuda-13000")]

#[path = "reach/cublaslt.rs"]
mod cublaslt;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use criterion::{Criterion, Throughput};
use smidgen::kernels::gemm::{Epilogue, Gemm, Residual, Skinny, Variant, Warpgroup};
use smidgen_runtime::device::cuda::CudaDevice;
use smidgen_runtime::device::{Buffer, Event, Graph, Sms, StreamId, Topology};
use smidgen_runtime::launch::{Kernel, Launch};

use cublaslt::{CublasLt, Operands as LibraryOperands};
use support::{Gpu, Random};

/// What NVIDIA's data sheets promise: dense FP16 TFLOP/s and GB/s of device memory.
fn data_sheet(gpu: &str) -> Option<(f64, f64)> {
    let known = [("H200", (989.0, 4800.0)), ("H100", (989.0, 3350.0)), ("A100", (312.0, 2039.0))];
    known.into_iter().find(|(name, _)| gpu.contains(name)).map(|(_, peak)| peak)
}

/// Makes an epilogue of a set of operands.
type MakeEpilogue = fn(&Operands) -> Epilogue;

/// Shapes `[m, n, k]` of layers, and the epilogue that follows there.
fn shapes() -> Vec<([u32; 3], MakeEpilogue)> {
    let plain: MakeEpilogue = |_| Epilogue::NONE;
    let bias: MakeEpilogue = |operands| Epilogue::Bias(operands.bias.ptr());
    let gelu: MakeEpilogue = |operands| Epilogue::BiasGelu(operands.bias.ptr());
    let bias_residual: MakeEpilogue = |operands| Epilogue::BiasResidual(operands.bias.ptr(), operands.residual());
    let residual: MakeEpilogue = |operands| Epilogue::Residual(operands.residual());
    let gate: MakeEpilogue = |_| Epilogue::SiluGate;
    let logits: MakeEpilogue = |_| Epilogue::PlainF32 { scale: 1.0 };
    vec![
        ([8192, 14336, 4096], plain),
        ([4096, 4096, 4096], plain),
        // BERT-base, batch 8, sequence 128.
        ([1024, 2304, 768], bias),
        ([1024, 768, 768], bias_residual),
        ([1024, 3072, 768], gelu),
        ([1024, 768, 3072], bias_residual),
        // BERT-large, the same batch.
        ([1024, 3072, 1024], bias),
        ([1024, 4096, 1024], gelu),
        ([1024, 1024, 4096], bias_residual),
        // Llama 3.2 1B: prefill of 1024 tokens, and decoding with batch 8.
        ([1024, 3072, 2048], plain),
        ([1024, 16384, 2048], gate),
        ([1024, 2048, 8192], residual),
        ([8, 2048, 2048], residual),
        ([8, 3072, 2048], plain),
        ([8, 16384, 2048], gate),
        ([8, 2048, 8192], residual),
        ([8, 8192, 8192], plain),
        ([8, 128_256, 2048], logits),
        ([1, 16384, 2048], gate),
        ([32, 16384, 2048], gate),
        ([64, 16384, 2048], gate),
        ([64, 2048, 8192], residual),
    ]
}

/// One set of operands; what they hold does not matter to the time, as long as it is not all zeros (which would save power).
struct Operands {
    a: Buffer,
    b: Buffer,
    c: Buffer,
    bias: Buffer,
    added: Buffer,
    columns: u32,
}

impl Operands {
    fn residual(&self) -> Residual {
        Residual { ptr: self.added.ptr(), stride: self.columns }
    }
}

/// A shape with enough sets of operands to leave nothing in L2 between two launches on the same set.
struct Case {
    products: Vec<Gemm>,
    _operands: Vec<Operands>,
}

impl Case {
    fn new(gpu: &Gpu, [m, n, k]: [u32; 3], epilogue: MakeEpilogue) -> Self {
        let mut random = Random::new(7);
        let mut halves = |elements: u32| -> Vec<u8> {
            // A megabyte of random halves, repeated: making them all would take longer than the measurement.
            let pattern: Vec<u8> =
                random.f16s((elements as usize).min(1 << 19), 1.0).iter().flat_map(|value| value.to_le_bytes()).collect();
            pattern.iter().copied().cycle().take(2 * elements as usize).collect()
        };
        let (a, b) = (halves(m * k), halves(n * k));
        let sets = (3 * gpu.device().topology().l2_bytes).div_ceil((a.len() + b.len()) as u64).clamp(1, 32);
        let operands: Vec<Operands> = (0..sets)
            .map(|_| Operands {
                a: gpu.upload(&a),
                b: gpu.upload(&b),
                c: gpu.poisoned(4 * (m * n) as usize),
                bias: gpu.zeroed(2 * n as usize),
                added: gpu.zeroed(2 * (m * n) as usize),
                columns: n,
            })
            .collect();
        let product = |set: &Operands| Gemm::new([m, n, k], set.a.ptr(), set.b.ptr(), set.c.ptr(), epilogue(set));
        Self { products: operands.iter().map(product).collect(), _operands: operands }
    }

    /// The variants worth comparing: the tiled ones, and for few rows the skinny ones that can do it.
    fn variants(&self, gpu: &Topology) -> Vec<Variant> {
        let mut skinny: Vec<Skinny> = Skinny::ALL.into_iter().filter(|skinny| skinny.can_do(&self.products[0], gpu)).collect();
        let rows = skinny.first().map(|skinny| skinny.rows());
        skinny.retain(|skinny| Some(skinny.rows()) == rows);
        skinny.into_iter().map(Variant::Skinny).chain(Variant::TILED).collect()
    }
}

/// A graph of launches, to be replayed between two events.
struct Replay<'a> {
    gpu: &'a Gpu,
    stream: StreamId,
    graph: Graph,
    launches: u32,
    marks: [Event; 2],
}

impl<'a> Replay<'a> {
    /// Captures at least `launches` launches of `case`, configured by `configure`, in a partition of `sms` SMs.
    fn capture(gpu: &'a Gpu, case: &Case, sms: u16, launches: u32, configure: impl Fn(&Gemm, Sms, &Topology) -> Launch) -> Self {
        let stream = gpu.partition(sms);
        let configured: Vec<Launch> = case.products.iter().map(|gemm| configure(gemm, Sms(sms), gpu.device().topology())).collect();
        gpu.device().function(configured[0].symbol).expect("the kernel is in the fatbin");
        Self::capture_each(gpu, case, stream, launches, |gemm, at| gpu.enqueue(gemm, &configured[at], stream, gpu.tiles(&configured[at])))
    }

    /// The same by `enqueue`, which is told which of the products it is.
    fn capture_each(gpu: &'a Gpu, case: &Case, stream: StreamId, launches: u32, enqueue: impl Fn(&Gemm, usize)) -> Self {
        let rounds = launches.div_ceil(case.products.len() as u32);
        gpu.device().begin_capture(stream).expect("a capture");
        for _ in 0..rounds {
            case.products.iter().enumerate().for_each(|(at, gemm)| enqueue(gemm, at));
        }
        let graph = Graph::end_capture(gpu.device(), stream).expect("a graph");
        let marks = [(); 2].map(|()| Event::timed(gpu.device()).expect("an event"));
        Self { gpu, stream, graph, launches: rounds * case.products.len() as u32, marks }
    }

    /// Device time of one launch, averaged over one replay.
    fn time(&self) -> Duration {
        let device = self.gpu.device();
        device.record(self.marks[0].id(), self.stream).expect("a mark");
        device.replay(self.graph.id(), self.stream).expect("a replay");
        device.record(self.marks[1].id(), self.stream).expect("a mark");
        device.synchronize(self.stream).expect("the graph runs");
        device.elapsed(self.marks[0].id(), self.marks[1].id()).expect("two marks") / self.launches
    }

    /// The median of several replays after one that warms up.
    fn median(&self) -> Duration {
        self.time();
        let mut times: Vec<Duration> = (0..7).map(|_| self.time()).collect();
        times.sort();
        times[times.len() / 2]
    }
}

/// About 20 ms a replay at half the data sheet's rates, for clocks to settle.
fn launches_of(gemm: &Gemm) -> u32 {
    (1e13 / gemm.work().flops.max(300 * gemm.work().bytes) as f64).clamp(4.0, 400.0) as u32
}

/// The launch of a product by `variant`.
fn by(variant: Variant) -> impl Fn(&Gemm, Sms, &Topology) -> Launch {
    move |gemm, sms, gpu| gemm.configure_variant(variant, sms, gpu).expect("a variant that fits")
}

/// The launch of the variant that is chosen.
fn chosen(gemm: &Gemm, sms: Sms, gpu: &Topology) -> Launch {
    gemm.configure(sms, gpu).expect("a supported shape")
}

/// Whether a word of the command line selects a shape.
fn selects(word: &str, [m, n, k]: [u32; 3]) -> bool {
    format!("[{m}x{n}x{k}]").contains(word)
}

/// Weights `[n, k]` of a layer and the head of Llama 3.2 1B, and of Mistral 7B.
const WEIGHTS: [[u32; 2]; 10] = [
    [3072, 2048],
    [2048, 2048],
    [16_384, 2048],
    [2048, 8192],
    [128_256, 2048],
    [6144, 4096],
    [4096, 4096],
    [28_672, 4096],
    [4096, 14_336],
    [32_000, 4096],
];

/// Products of `rows` rows on `sms` SMs, by whatever kernel has tiles of about as many rows, and by cuBLASLt.
fn compare_skinny(gpu: &Gpu, rows: u32, sms: u16, word: &str) {
    let topology = gpu.device().topology();
    let library = CublasLt::new(gpu.device()).inspect_err(|reason| println!("without cuBLASLt: {reason:#}")).ok();
    for [n, k] in WEIGHTS {
        if !selects(word, [rows, n, k]) {
            continue;
        }
        let case = Case::new(gpu, [rows, n, k], |_| Epilogue::NONE);
        let gemm = &case.products[0];
        let launches = launches_of(gemm) / (u32::from(gpu.sms() / sms)).max(1) + 1;
        let skinny = Skinny::ALL.into_iter().filter(|skinny| skinny.rows() == rows.next_power_of_two() && skinny.can_do(gemm, topology));
        let warpgroup = [Warpgroup::Tile64x128, Warpgroup::Tile64x96, Warpgroup::Tile64x64].map(Variant::Warpgroup);
        for variant in skinny.map(Variant::Skinny).chain(warpgroup) {
            print_row(gpu, gemm, &variant.to_string(), sms, Replay::capture(gpu, &case, sms, launches, by(variant)).median());
        }
        print_row(gpu, gemm, "chosen", sms, Replay::capture(gpu, &case, sms, launches, chosen).median());
        let Some(library) = &library else { continue };
        let stream = gpu.partition(sms);
        let times = library.proposals([rows, n, k], Sms(sms)).expect("proposals").into_iter().filter_map(|product| {
            let enqueue = |gemm: &Gemm| library.enqueue(&product, LibraryOperands { a: gemm.a, b: gemm.b, c: gemm.c }, stream);
            // Some do not run in partitions.
            enqueue(gemm).ok()?;
            gpu.device().synchronize(stream).ok()?;
            let replay = Replay::capture_each(gpu, &case, stream, launches, |gemm, _| enqueue(gemm).expect("an algorithm that ran before"));
            Some(replay.median())
        });
        let times: Vec<Duration> = times.collect();
        if let (Some(first), Some(fastest)) = (times.first(), times.iter().min()) {
            print_row(gpu, gemm, "cuBLASLt, first", sms, *first);
            print_row(gpu, gemm, "cuBLASLt, best", sms, *fastest);
        }
    }
}

fn print_row(gpu: &Gpu, gemm: &Gemm, how: &str, sms: u16, time: Duration) {
    let seconds = time.as_secs_f64();
    let (tflops, gb) = (gemm.work().flops as f64 / seconds / 1e12, gemm.work().bytes as f64 / seconds / 1e9);
    let share = match data_sheet(&gpu.device().topology().name) {
        Some((peak_tflops, peak_gb)) => format!("{:5.1}% of FP16, {:5.1}% of DRAM", 100.0 * tflops / peak_tflops, 100.0 * gb / peak_gb),
        None => String::new(),
    };
    println!("{:40} {how:26} {sms:4} SMs {:10.2} us {tflops:8.1} TFLOP/s {gb:8.0} GB/s  {share}", gemm.key().to_string(), seconds * 1e6);
}

fn main() {
    if let Err(error) = CudaDevice::open(0) {
        println!("skipped: {error}");
        return;
    }
    let gpu = Gpu::open();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .sample_size(10)
        .configure_from_args();
    let word = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    for (shape, epilogue) in shapes() {
        if !selects(&word, shape) {
            continue;
        }
        let case = Case::new(&gpu, shape, epilogue);
        let gemm = &case.products[0];
        let launches = launches_of(gemm);
        for variant in case.variants(gpu.device().topology()) {
            let replay = Replay::capture(&gpu, &case, gpu.sms(), launches, by(variant));
            print_row(&gpu, gemm, &variant.to_string(), gpu.sms(), replay.median());
        }
        for sms in gpu.sm_counts() {
            let replay = Replay::capture(&gpu, &case, sms, launches / (u32::from(gpu.sms() / sms)).max(1) + 1, chosen);
            print_row(&gpu, gemm, "chosen", sms, replay.median());
        }
        let replay = Replay::capture(&gpu, &case, gpu.sms(), launches, chosen);
        let mut group = criterion.benchmark_group("gemm");
        group.throughput(Throughput::Elements(gemm.work().flops));
        group.bench_function(gemm.key().to_string(), |bencher| {
            bencher.iter_custom(|iterations| {
                let replays = iterations.div_ceil(u64::from(replay.launches));
                (0..replays).map(|_| replay.time()).sum::<Duration>() * iterations as u32 / replays as u32
            });
        });
        group.finish();
    }
    criterion.final_summary();
    if gpu.device().topology().compute_capability == (9, 0) {
        for sms in [gpu.sms(), 32] {
            compare_skinny(&gpu, 64, sms, &word);
        }
    }
}
