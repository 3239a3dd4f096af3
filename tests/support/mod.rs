//! What kernel tests share: a GPU with its kernels loaded, operands on it, launches at any SM count, and comparison with a reference.
//!
//! The fixture panics where a test would fail anyway: no GPU, no kernels, no memory. Outputs start poisoned ([`Gpu::poisoned_f16`] and its like
//! fill with 0xff bytes, a NaN in either float type), so that an element that no thread wrote cannot pass for a right one.
#![allow(dead_code)] // Every test binary compiles this module and uses its own part of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use half::f16;
use smidgen_runtime::device::{Buffer, Device, DevicePtr, Event, LaunchRequest, PartitionId, Priority, Sms, StreamId};
use smidgen_runtime::launch::{Kernel, Launch, LaunchError, TILE_PROGRESS_BYTES, TilesArg};
use smidgen_runtime::partition::TpcSet;

/// Whether the test runs under compute-sanitizer: a launch takes up to a hundred times as long there, and what it looks for shows in few launches of few tiles
/// as in many.
pub fn is_sanitized() -> bool {
    std::env::var_os("SMIDGEN_SANITIZED").is_some()
}

/// `usual` rounds of a test that repeats itself, and fewer under compute-sanitizer.
pub fn rounds(usual: u32) -> u32 {
    if is_sanitized() { usual.min(3) } else { usual }
}

/// The shape, and under compute-sanitizer one that is several tiles and rounds of a ring in each direction at most.
pub fn at_most_under_a_sanitizer(shape: [u32; 3], most: [u32; 3]) -> [u32; 3] {
    if is_sanitized() { std::array::from_fn(|at| shape[at].min(most[at])) } else { shape }
}

/// All of `cases`, and under compute-sanitizer three or four of them.
pub fn cases<T: Copy>(cases: &[T]) -> impl Iterator<Item = T> {
    let stride = if is_sanitized() { cases.len().div_ceil(4).max(1) } else { 1 };
    cases.iter().copied().step_by(stride)
}

/// SM counts at which every elastic kernel must give the same bits. Those beyond the GPU at hand are left out by [`Gpu::sm_counts`].
const SM_COUNTS: [u16; 5] = [2, 8, 34, 66, 132];

/// The first GPU with the project's kernels loaded, the same for all tests of a process: to open it takes a second, and compute-sanitizer instruments every
/// kernel anew for each device that loads it.
pub fn device() -> Arc<dyn Device> {
    static DEVICE: OnceLock<Arc<dyn Device>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| smidgen::cuda::open().expect("a GPU test needs a GPU and kernels in its binary"));
    device.bind_thread().expect("the GPU's context can be made current");
    Arc::clone(device)
}

/// The partition of the device's first `tpcs` TPCs, made at first use and shared by all tests.
fn partition_of_first(tpcs: u16) -> PartitionId {
    static PARTITIONS: Mutex<BTreeMap<u16, PartitionId>> = Mutex::new(BTreeMap::new());
    *PARTITIONS.lock().expect("no test panicked here").entry(tpcs).or_insert_with(|| {
        let device = device();
        let partition = device.create_partition(TpcSet::range(0, tpcs)).expect("a partition");
        let sms = device.topology().sms_of(TpcSet::range(0, tpcs));
        assert_eq!(device.partition_sms(partition).expect("its size"), sms);
        partition
    })
}

/// A GPU with the project's kernels loaded.
pub struct Gpu {
    device: Arc<dyn Device>,
    stream: StreamId,
    /// All streams, this one included: more than the hardware has queues for would wait for each other.
    streams: Mutex<Vec<StreamId>>,
    /// A stream in the partition of each SM count asked for so far.
    partitions: Mutex<HashMap<u16, StreamId>>,
    /// Tiles of all launches are counted here: the fixture lets one launch run at a time.
    progress: Buffer,
    /// The grant of [`Gpu::run_granted`].
    grant: Buffer,
}

impl Gpu {
    /// The first GPU.
    pub fn open() -> Self {
        let device = device();
        let stream = device.create_stream(PartitionId::WHOLE, Priority::Normal).expect("a stream");
        let progress = Buffer::new(&device, TILE_PROGRESS_BYTES).expect("device memory");
        let grant = Buffer::new(&device, 32).expect("device memory");
        device.fill(stream, progress.ptr(), 0, progress.bytes()).expect("a fill");
        Self { device, stream, streams: Mutex::new(vec![stream]), partitions: Mutex::default(), progress, grant }
    }

    /// The back end, for what the fixture does not offer.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The stream on the whole GPU that copies and [`Gpu::run_granted`] use.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// SMs of the whole GPU.
    pub fn sms(&self) -> u16 {
        self.device.topology().sms.0
    }

    /// The SM counts at which outputs must have the same bits, as far as this GPU has them, and its own count.
    pub fn sm_counts(&self) -> Vec<u16> {
        let mut counts: Vec<u16> = SM_COUNTS.into_iter().filter(|&count| count < self.sms() && (!is_sanitized() || count == 8)).collect();
        counts.push(self.sms());
        counts
    }

    /// A buffer holding `bytes`.
    pub fn upload(&self, bytes: &[u8]) -> Buffer {
        let buffer = Buffer::new(&self.device, bytes.len() as u64).expect("device memory");
        self.device.upload(self.stream, buffer.ptr(), bytes).expect("an upload");
        self.device.synchronize(self.stream).expect("an upload");
        buffer
    }

    /// A buffer holding `values`.
    pub fn upload_f16(&self, values: &[f16]) -> Buffer {
        self.upload(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    /// A buffer holding `values`.
    pub fn upload_f32(&self, values: &[f32]) -> Buffer {
        self.upload(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    /// A buffer holding `values`.
    pub fn upload_u32(&self, values: &[u32]) -> Buffer {
        self.upload(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    /// A buffer of `bytes` bytes, all 0xff.
    pub fn poisoned(&self, bytes: usize) -> Buffer {
        let buffer = Buffer::new(&self.device, bytes as u64).expect("device memory");
        self.poison(&buffer);
        buffer
    }

    /// A buffer of `len` halves, all NaN.
    pub fn poisoned_f16(&self, len: usize) -> Buffer {
        self.poisoned(len * 2)
    }

    /// A buffer of `len` floats, all NaN.
    pub fn poisoned_f32(&self, len: usize) -> Buffer {
        self.poisoned(len * 4)
    }

    /// A buffer of `len` words, all `u32::MAX`.
    pub fn poisoned_u32(&self, len: usize) -> Buffer {
        self.poisoned(len * 4)
    }

    /// A buffer of `bytes` zero bytes.
    pub fn zeroed(&self, bytes: usize) -> Buffer {
        let buffer = Buffer::new(&self.device, bytes as u64).expect("device memory");
        self.fill(&buffer, 0);
        buffer
    }

    /// Makes every byte 0xff again, between two runs that write the same output.
    pub fn poison(&self, buffer: &Buffer) {
        self.fill(buffer, 0xff);
    }

    fn fill(&self, buffer: &Buffer, value: u8) {
        self.device.fill(self.stream, buffer.ptr(), value, buffer.bytes()).expect("a fill");
        self.device.synchronize(self.stream).expect("a fill");
    }

    /// All bytes of a buffer.
    pub fn download(&self, buffer: &Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.bytes() as usize];
        self.device.download(self.stream, buffer.ptr(), &mut bytes).expect("a download");
        bytes
    }

    /// A buffer of halves.
    pub fn download_f16(&self, buffer: &Buffer) -> Vec<f16> {
        self.download(buffer).as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect()
    }

    /// A buffer of floats.
    pub fn download_f32(&self, buffer: &Buffer) -> Vec<f32> {
        self.download(buffer).as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    /// A buffer of words.
    pub fn download_u32(&self, buffer: &Buffer) -> Vec<u32> {
        self.download(buffer).as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
    }

    /// Runs `kernel` in a partition of exactly `sms` SMs (on the whole GPU if that is what it has) and waits for it.
    ///
    /// # Errors
    /// What [`Kernel::configure`] answered. A launch that the device refuses panics.
    pub fn try_run(&self, kernel: &dyn Kernel, sms: u16) -> Result<(), LaunchError> {
        let launch = kernel.configure(Sms(sms), self.device.topology())?;
        let stream = self.partition(sms);
        self.enqueue(kernel, &launch, stream, self.tiles(&launch));
        self.device.synchronize(stream).expect("the kernel runs");
        Ok(())
    }

    /// [`Gpu::try_run`] for a shape that the kernel can do.
    pub fn run(&self, kernel: &dyn Kernel, sms: u16) {
        self.try_run(kernel, sms).expect("a supported shape");
    }

    /// Runs `kernel` on the whole GPU under a grant of its first `sms` SMs, and waits for it.
    pub fn run_granted(&self, kernel: &dyn Kernel, sms: u16) {
        let launch = kernel.configure(self.device.topology().sms, self.device.topology()).expect("a supported shape");
        self.set_grant(self.device.topology().all_tpcs().first(self.device.topology().tpcs_for(Sms(sms))));
        self.enqueue(kernel, &launch, self.stream, TilesArg { grant: self.grant.ptr(), ..self.tiles(&launch) });
        self.device.synchronize(self.stream).expect("the kernel runs");
    }

    /// Device time of the fastest of `repeats` runs of `kernel` in a partition of `sms` SMs.
    pub fn time(&self, kernel: &dyn Kernel, sms: u16, repeats: u32) -> Duration {
        let launch = kernel.configure(Sms(sms), self.device.topology()).expect("a supported shape");
        let stream = self.partition(sms);
        let start = Event::timed(&self.device).expect("an event");
        let end = Event::timed(&self.device).expect("an event");
        let once = || {
            self.device.record(start.id(), stream).expect("a mark");
            self.enqueue(kernel, &launch, stream, self.tiles(&launch));
            self.device.record(end.id(), stream).expect("a mark");
            self.device.synchronize(stream).expect("the kernel runs");
            self.device.elapsed(start.id(), end.id()).expect("two marks")
        };
        once();
        (0..repeats.max(1)).map(|_| once()).min().unwrap_or_default()
    }

    /// Enqueues a configured launch with the tile counter and grant of the caller's choice; does not wait.
    pub fn enqueue(&self, kernel: &dyn Kernel, launch: &Launch, stream: StreamId, tiles: TilesArg) {
        self.enqueue_after(false, kernel, launch, stream, tiles);
    }

    /// The same for a launch whose blocks may start before the launch before it has ended.
    pub fn enqueue_overlapping(&self, kernel: &dyn Kernel, launch: &Launch, stream: StreamId, tiles: TilesArg) {
        assert!(launch.programmatic, "{} does not wait for the launch before it", kernel.key());
        self.enqueue_after(true, kernel, launch, stream, tiles);
    }

    fn enqueue_after(&self, overlaps: bool, kernel: &dyn Kernel, launch: &Launch, stream: StreamId, tiles: TilesArg) {
        let function = self.device.function(launch.symbol).expect("the kernel is in the fatbin");
        let request =
            LaunchRequest { function, launch, tiles, priority: Priority::Normal, overlaps, key: kernel.key(), work: kernel.work() };
        self.device.launch(stream, &request).expect("a launch");
    }

    /// The second parameter of a launch that owns the fixture's tile counter, every SM granted.
    pub fn tiles(&self, launch: &Launch) -> TilesArg {
        TilesArg::owner(launch, self.progress.ptr(), DevicePtr::NULL)
    }

    /// The tile counter's words: taken (low, high: the epoch), finished, departed.
    pub fn progress(&self) -> [u32; 4] {
        let words = self.download_u32(&self.progress);
        words.first_chunk().copied().expect("a TileProgress begins with four words")
    }

    /// The stream in a partition of `sms` SMs, made at first use.
    pub fn partition(&self, sms: u16) -> StreamId {
        if sms >= self.sms() {
            return self.stream;
        }
        *self.partitions.lock().expect("no test panicked here").entry(sms).or_insert_with(|| {
            let partition = partition_of_first(self.device.topology().tpcs_for(Sms(sms)));
            self.create_stream(partition, Priority::Normal)
        })
    }

    /// A stream that goes with the fixture.
    pub fn create_stream(&self, partition: PartitionId, priority: Priority) -> StreamId {
        let stream = self.device.create_stream(partition, priority).expect("a stream");
        self.streams.lock().expect("no test panicked here").push(stream);
        stream
    }

    fn set_grant(&self, tpcs: TpcSet) {
        let words = self.device.sm_mask(tpcs).expect("the SMs of the TPCs");
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.device.upload(self.stream, self.grant.ptr(), &bytes).expect("an upload");
    }

    /// Runs `kernel` at every SM count, in partitions and under grants, and fails where an output's bytes differ from those at the first count.
    /// `outputs` are poisoned before each run. Returns the bytes of each output.
    pub fn assert_same_bits_at_every_sm_count(&self, kernel: &dyn Kernel, outputs: &[&Buffer]) -> Vec<Vec<u8>> {
        let run = |how: &dyn Fn()| -> Vec<Vec<u8>> {
            outputs.iter().for_each(|output| self.poison(output));
            how();
            outputs.iter().map(|output| self.download(output)).collect()
        };
        let counts = self.sm_counts();
        let first = run(&|| self.run(kernel, counts[0]));
        for &sms in &counts {
            assert!(
                first == run(&|| self.run(kernel, sms)),
                "{}: the output at {sms} SMs differs from that at {}",
                kernel.key(),
                counts[0]
            );
            assert!(first == run(&|| self.run_granted(kernel, sms)), "{}: the output under a grant of {sms} SMs differs", kernel.key());
        }
        first
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let streams = self.streams.get_mut().map(std::mem::take).unwrap_or_default();
        streams.into_iter().for_each(|stream| self.device.destroy_stream(stream));
    }
}

/// Seeded random numbers: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016).
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + ((self.bits() >> 32) % u64::from(high - low + 1)) as u32
    }

    /// One of `choices`.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.between(0, choices.len() as u32 - 1) as usize]
    }

    /// A number in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }

    /// `len` halves in [-scale, scale).
    pub fn f16s(&mut self, len: usize, scale: f32) -> Vec<f16> {
        (0..len).map(|_| f16::from_f32(self.unit() * scale)).collect()
    }

    /// `len` floats in [-scale, scale).
    pub fn f32s(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.unit() * scale).collect()
    }
}

/// `|output - reference| / |reference|` in the Euclidean norm; NaN if any element of `output` is.
pub fn relative_error(output: impl IntoIterator<Item = impl Into<f64>>, reference: &[f64]) -> f64 {
    let mut elements = 0;
    let (mut difference, mut norm) = (0.0, 0.0);
    for (output, &reference) in output.into_iter().zip(reference) {
        difference += (output.into() - reference).powi(2);
        norm += reference.powi(2);
        elements += 1;
    }
    assert_eq!(elements, reference.len(), "the output is shorter than the reference");
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// Half of the smallest FP16 number: what rounding alone may do to one that is smaller than FP16's normal numbers.
const HALF_OF_THE_SMALLEST: f64 = 1.0 / (1_u32 << 25) as f64;

/// Fails unless [`relative_error`] is at most `tolerance`, and what rounding to FP16 may do beside that where numbers are tiny; an unwritten (NaN) element fails.
pub fn assert_close(what: impl std::fmt::Display, output: impl IntoIterator<Item = impl Into<f64>>, reference: &[f64], tolerance: f64) {
    let error = relative_error(output, reference);
    let mean_square = reference.iter().map(|value| value * value).sum::<f64>() / reference.len().max(1) as f64;
    let allowed = tolerance + if mean_square > 0.0 { HALF_OF_THE_SMALLEST / mean_square.sqrt() } else { 0.0 };
    assert!(error <= allowed, "{what}: relative error {error:.2e}, tolerated {allowed:.0e}");
}
