//! A simulated H200 and jobs to run on it.

use std::sync::Arc;
use std::time::Duration;

use smidgen_runtime::device::sim::{KernelTrace, SimConfig, SimDevice};
use smidgen_runtime::device::{Buffer, Device, DevicePtr, Event, FunctionId, Graph, LaunchRequest, PartitionId, Priority, Sms, StreamId};
use smidgen_runtime::launch::{KernelKey, KernelName, Launch, Params, TilesArg, Work};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::profile::Curve;

/// A launch, described by what a test wants to vary.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub name: &'static str,
    pub work: Work,
    pub grid: u32,
    pub blocks_per_sm: u32,
    pub tiles: u32,
    pub elastic: bool,
    pub overlaps: bool,
    pub grant: DevicePtr,
    pub progress: DevicePtr,
    pub joins: u32,
    pub priority: Priority,
}

impl Job {
    /// One block on every SM, each with an equal part of the work.
    pub fn new(name: &'static str, flops: u64, bytes: u64) -> Self {
        Self {
            name,
            work: Work { flops, bytes },
            grid: 132,
            blocks_per_sm: 1,
            tiles: 132,
            elastic: false,
            overlaps: false,
            grant: DevicePtr::NULL,
            progress: DevicePtr::NULL,
            joins: 0,
            priority: Priority::Normal,
        }
    }

    pub fn key(&self) -> KernelKey {
        KernelKey::new(KernelName::new(self.name), [])
    }

    pub fn grid(self, grid: u32) -> Self {
        Self { grid, ..self }
    }

    pub fn tiles(self, tiles: u32) -> Self {
        Self { tiles, ..self }
    }

    pub fn priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    /// Blocks that take tiles while `grant` holds their SM.
    pub fn elastic(self, grant: DevicePtr) -> Self {
        Self { elastic: true, grant, ..self }
    }

    /// Blocks that may come before the launch before it has ended.
    pub fn overlapping(self) -> Self {
        Self { overlaps: true, ..self }
    }
}

pub struct Gpu {
    pub sim: Arc<SimDevice>,
    pub device: Arc<dyn Device>,
    function: FunctionId,
}

impl Gpu {
    pub fn new(config: SimConfig) -> Self {
        let sim = SimDevice::new(config.with_trace());
        let device: Arc<dyn Device> = Arc::clone(&sim) as Arc<dyn Device>;
        let function = device.function("test_kernel").unwrap();
        Self { sim, device, function }
    }

    pub fn h200() -> Self {
        Self::new(SimConfig::h200())
    }

    /// An H200 whose only costs are those of the kernels.
    pub fn without_overheads() -> Self {
        Self::new(without_overheads(SimConfig::h200()))
    }

    pub fn stream(&self, partition: PartitionId) -> StreamId {
        self.device.create_stream(partition, Priority::Normal).unwrap()
    }

    /// A stream in a partition of the first `sms` SMs from SM `first` on.
    pub fn stream_on(&self, first: u16, sms: u16) -> StreamId {
        self.stream(self.device.create_partition(TpcSet::range(first / 2, (first + sms) / 2)).unwrap())
    }

    pub fn launch(&self, stream: StreamId, job: Job) {
        let launch = Launch {
            symbol: job.name,
            grid: job.grid,
            block: 256,
            shared_bytes: 0,
            blocks_per_sm: job.blocks_per_sm,
            tiles: job.tiles,
            blocks_per_tile: 1,
            elastic: job.elastic,
            programmatic: job.overlaps,
            begins_by_number: false,
            params: Params::new(0_u32),
        };
        let tiles = TilesArg { progress: job.progress, grant: job.grant, count: job.tiles, joins: job.joins, ..TilesArg::default() };
        let request = LaunchRequest {
            function: self.function,
            launch: &launch,
            tiles,
            priority: job.priority,
            overlaps: job.overlaps,
            key: job.key(),
            work: job.work,
        };
        self.device.launch(stream, &request).unwrap();
    }

    pub fn event(&self) -> Event {
        Event::timed(&self.device).unwrap()
    }

    /// An event that marks the present end of `stream`.
    pub fn mark(&self, stream: StreamId) -> Event {
        let event = self.event();
        self.device.record(event.id(), stream).unwrap();
        event
    }

    pub fn synchronize(&self, stream: StreamId) {
        self.device.synchronize(stream).unwrap();
    }

    /// What `stream` captures while `enqueue` runs.
    pub fn capture(&self, stream: StreamId, enqueue: impl FnOnce()) -> Graph {
        self.device.begin_capture(stream).unwrap();
        enqueue();
        Graph::end_capture(&self.device, stream).unwrap()
    }

    pub fn replay(&self, graph: &Graph, stream: StreamId) {
        self.device.replay(graph.id(), stream).unwrap();
    }

    /// Microseconds that `enqueue` keeps `stream` busy.
    pub fn time_us(&self, stream: StreamId, enqueue: impl FnOnce()) -> f64 {
        self.synchronize(stream);
        let before = self.device.now();
        enqueue();
        self.synchronize(stream);
        micros(self.device.now() - before)
    }

    /// A buffer that holds the grant of `tpcs`.
    pub fn grant(&self, stream: StreamId, tpcs: TpcSet) -> Buffer {
        let buffer = Buffer::new(&self.device, 32).unwrap();
        self.regrant(stream, &buffer, tpcs);
        self.synchronize(stream);
        buffer
    }

    /// Overwrites a grant, in the order of `stream`.
    pub fn regrant(&self, stream: StreamId, grant: &Buffer, tpcs: TpcSet) {
        let mask = self.device.sm_mask(tpcs).unwrap();
        let bytes: Vec<u8> = mask.into_iter().flat_map(u32::to_le_bytes).collect();
        self.device.upload(stream, grant.ptr(), &bytes).unwrap();
    }

    /// The kernels called `name` that ended, in the order of their end. Forgets the others.
    pub fn traced(&self, name: &str) -> Vec<KernelTrace> {
        self.sim.take_trace().into_iter().filter(|kernel| kernel.symbol == name).collect()
    }
}

pub fn without_overheads(config: SimConfig) -> SimConfig {
    SimConfig {
        kernel_floor: Duration::ZERO,
        kernel_gap: Duration::ZERO,
        event_gap: Duration::ZERO,
        hop_gap: Duration::ZERO,
        launch_cost: Duration::ZERO,
        replay_cost: Duration::ZERO,
        event_cost: Duration::ZERO,
        copy_latency: Duration::ZERO,
        ..config
    }
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// Asserts that `found` is within `tolerance` (0.1 is 10%) of `expected`.
#[track_caller]
pub fn assert_near(found: f64, expected: f64, tolerance: f64) {
    assert!((found / expected - 1.0).abs() <= tolerance, "found {found}, expected {expected} within {}%", tolerance * 100.0);
}

/// The same GPU, on which jobs have these latencies in microseconds by SM count.
pub fn with_curves(mut config: SimConfig, kernels: &[(Job, &[(u16, f64)])]) -> SimConfig {
    for (job, points) in kernels {
        let points = points.iter().map(|&(sms, us)| (Sms(sms), us)).collect();
        config.curves.insert(job.key().fingerprint(), Curve::new(points).unwrap());
    }
    config
}
