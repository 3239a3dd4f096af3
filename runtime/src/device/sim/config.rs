//! What the simulated GPU is made of and what its operations cost. Every figure of [`SimConfig::h200`] was measured on one H200, unless
//! its documentation says otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::device::{CoscheduledGroups, Fingerprint, Sms, Topology};
use crate::profile::{Curve, Profile};

/// How streams of several processes share the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Kernels of all streams run side by side, as within one process or under MPS.
    Concurrent,
    /// Kernels of one process at a time run, and the others' stand still: the driver's default without MPS. A stream belongs to the process
    /// that [`SimDevice::set_process`](super::SimDevice::set_process) named before it was created.
    TimeSliced {
        /// How long a process may run while another one waits.
        quantum: Duration,
        /// How long the GPU runs nothing when it goes from one process to another.
        switch: Duration,
    },
}

impl Sharing {
    /// The H200's time slicing: a 0.889 ms request beside endless GEMMs takes 3.37 ms, and the GEMMs keep 66.5% of their rate. The other
    /// 7.5% of the time is two switches, and what is left between two requests is the quantum.
    pub const fn time_sliced() -> Self {
        Self::TimeSliced { quantum: Duration::from_micros(2240), switch: Duration::from_micros(120) }
    }
}

/// The description of a simulated GPU.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// What [`Device::topology`](crate::device::Device::topology) says. SMs beyond 256 are left out.
    pub topology: Topology,
    /// Read bandwidth of the first so many SMs, GB/s: rising SM counts.
    pub read_bandwidth: Vec<(Sms, f64)>,
    /// FP16 tensor-core rate of the whole GPU, FLOP/s, for kernels that were never profiled and for how compute-bound a kernel is.
    pub flops: f64,
    /// Part of its rate that a memory-bound kernel loses next to kernels that keep the tensor cores busy, on whatever SMs.
    pub l2_interference: f64,
    /// Part of its rate that a kernel which does not wait for the DRAM itself would lose next to kernels that use the whole DRAM bandwidth.
    pub dram_interference: f64,
    /// What a kernel that was never profiled takes besides its arithmetic and its bytes.
    pub kernel_floor: Duration,
    /// No kernel takes less.
    pub shortest_kernel: Duration,
    /// From the end of a kernel to the start of one that depends on it.
    pub kernel_gap: Duration,
    /// What is added to [`kernel_gap`](Self::kernel_gap) when the dependency is an event of another stream.
    pub event_gap: Duration,
    /// What is added to [`kernel_gap`](Self::kernel_gap) when two dependent nodes of a graph have different partitions.
    pub hop_gap: Duration,
    /// Host time of one launch, copy or fill.
    pub launch_cost: Duration,
    /// From the host's decision to replay a graph to its first kernel, a thread that polls for the end of the last replay included. Fitted:
    /// Llama-3.2-1B decode steps alone, graphs of 148 kernels, take 1405 us one after another, of which the profile and
    /// [`kernel_gap`](Self::kernel_gap) account for 1375 us.
    pub replay_cost: Duration,
    /// Host time to record an event or to wait for one.
    pub event_cost: Duration,
    /// What a copy takes besides its bytes. Assumed, not measured.
    pub copy_latency: Duration,
    /// Copy rate between host and device, GB/s, each way; copies of more than 4 KiB share it in the order in which they begin. Assumed, not measured:
    /// PCIe 5.0 with 16 lanes carries 63 GB/s before packet headers, and NVIDIA's article on its tool nvbandwidth shows 55.6 for page-locked memory.
    pub copy_bandwidth: f64,
    /// Device memory that a partition takes, bytes.
    pub partition_bytes: u64,
    /// Whether processes share the GPU in space or in time.
    pub sharing: Sharing,
    /// Whether [`SimDevice::take_trace`](super::SimDevice::take_trace) has anything to give.
    pub trace: bool,
    /// Latencies alone on so many SMs, filled by [`with_profiles`](Self::with_profiles).
    pub curves: BTreeMap<Fingerprint, Curve>,
}

impl SimConfig {
    /// One H200. The driver does not say how TPCs are spread over GPCs: two of nine and six of eight is one of the spreads that make 66.
    pub fn h200() -> Self {
        const READ_GB_PER_S: [(u16, f64); 10] = [
            (8, 1000.0),
            (16, 1890.0),
            (24, 2690.0),
            (32, 3250.0),
            (40, 3780.0),
            (48, 4110.0),
            (56, 4280.0),
            (64, 4460.0),
            (80, 4500.0),
            (132, 4640.0),
        ];
        Self {
            topology: Topology {
                name: "NVIDIA H200".to_owned(),
                sms: Sms(132),
                sms_per_tpc: 2,
                tpcs_per_gpc: vec![9, 9, 8, 8, 8, 8, 8, 8],
                coscheduled: CoscheduledGroups { sms_per_group: 8, groups: 15 },
                memory_bytes: 141_000_000_000,
                l2_bytes: 60 << 20,
                shared_bytes_per_sm: 228 << 10,
                compute_capability: (9, 0),
                driver_version: 13_000,
                driver: String::new(),
            },
            read_bandwidth: READ_GB_PER_S.into_iter().map(|(sms, rate)| (Sms(sms), rate)).collect(),
            flops: 640e12,
            l2_interference: 0.30,
            dram_interference: 0.60,
            kernel_floor: Duration::from_micros(2),
            shortest_kernel: Duration::from_nanos(390),
            kernel_gap: Duration::from_nanos(120),
            event_gap: Duration::from_nanos(130),
            hop_gap: Duration::from_nanos(690),
            launch_cost: Duration::from_nanos(4_100),
            replay_cost: Duration::from_micros(30),
            event_cost: Duration::from_nanos(450),
            copy_latency: Duration::from_nanos(1_500),
            copy_bandwidth: 55.0,
            partition_bytes: 5_800_000,
            sharing: Sharing::Concurrent,
            trace: false,
            curves: BTreeMap::new(),
        }
    }

    /// The same GPU on which the kernels of `profiles` take their measured latencies; a later profile wins over an earlier one. Entries that
    /// are no kernel key or make no curve are left out with a warning: the profile store refuses such files before they get here.
    #[must_use]
    pub fn with_profiles(mut self, profiles: &[Profile]) -> Self {
        for (key, kernel) in profiles.iter().flat_map(|profile| &profile.kernels) {
            match (key.parse(), kernel.curve()) {
                (Ok(fingerprint), Some(curve)) => {
                    self.curves.insert(fingerprint, curve);
                }
                _ => tracing::warn!(key, "left out of the simulation: not a kernel key, or its points make no curve"),
            }
        }
        self
    }

    /// The same GPU, shared as `sharing` says.
    #[must_use]
    pub fn with_sharing(self, sharing: Sharing) -> Self {
        Self { sharing, ..self }
    }

    /// The same GPU, which remembers every kernel for [`SimDevice::take_trace`](super::SimDevice::take_trace).
    #[must_use]
    pub fn with_trace(self) -> Self {
        Self { trace: true, ..self }
    }
}
