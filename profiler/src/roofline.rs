//! What limits a kernel: a roofline (Williams, Waterman and Patterson, CACM 2009) with a third region for kernels near neither roof.

use smidgen_runtime::device::Topology;
use smidgen_runtime::launch::Work;
use smidgen_runtime::profile::{Bound, KernelProfile, PeakSource, Peaks};

/// Below this share of both peaks a kernel is bound by neither: its time goes into launching, filling and draining the GPU, and waiting for
/// dependent results. Kernels that work on all SMs in full waves reach more even when they are far from tuned.
const NEAR_A_ROOF: f64 = 0.2;

/// Peaks by data sheet: FP16 tensor cores without sparsity, FP32 accumulation; DRAM. Sources: NVIDIA's data sheets of the H200, H100 and A100.
const DATASHEETS: [(&str, u16, f64, f64); 4] = [
    ("NVIDIA H200", 132, 989e12, 4.8e12),
    ("NVIDIA H100 80GB HBM3", 132, 989e12, 3.35e12),
    ("NVIDIA A100-SXM4-80GB", 108, 312e12, 2.039e12),
    ("NVIDIA A100-SXM4-40GB", 108, 312e12, 1.555e12),
];

/// The peaks of a whole GPU of known make by its data sheet; none for others, and for slices of one.
pub fn datasheet_peaks(topology: &Topology) -> Option<Peaks> {
    let known = |&&(name, sms, ..): &&(&str, u16, f64, f64)| name == topology.name && sms == topology.sms.0;
    let &(_, _, flops_per_s, bytes_per_s) = DATASHEETS.iter().find(known)?;
    Some(Peaks { flops_per_s, bytes_per_s, source: PeakSource::Datasheet })
}

/// The best rates that any of these kernels reached on the most SMs it was measured on: peaks of last resort.
pub fn reached_peaks<'a>(kernels: impl IntoIterator<Item = &'a KernelProfile>) -> Peaks {
    let mut best = Peaks { flops_per_s: 0.0, bytes_per_s: 0.0, source: PeakSource::Reached };
    for kernel in kernels {
        let Some(us) = whole_gpu_us(kernel) else { continue };
        best.flops_per_s = best.flops_per_s.max(per_second(kernel.work.flops, us));
        best.bytes_per_s = best.bytes_per_s.max(per_second(kernel.work.bytes, us));
    }
    best
}

/// What share of each peak a launch reaches: of the arithmetic's, and of the memory's. Memory may exceed 1 where operands stay in L2.
pub fn shares(work: Work, us: f64, peaks: &Peaks) -> (f64, f64) {
    let share = |rate: f64, peak: f64| if peak > 0.0 { rate / peak } else { 0.0 };
    (share(per_second(work.flops, us), peaks.flops_per_s), share(per_second(work.bytes, us), peaks.bytes_per_s))
}

/// What limits a launch that does `work` in `us` microseconds on the whole GPU.
pub fn bound(work: Work, us: f64, peaks: &Peaks) -> Bound {
    let (compute, memory) = shares(work, us, peaks);
    if compute.max(memory) < NEAR_A_ROOF {
        Bound::Latency
    } else if compute >= memory {
        Bound::Compute
    } else {
        Bound::Memory
    }
}

/// Median latency on the most SMs measured, microseconds.
pub(crate) fn whole_gpu_us(kernel: &KernelProfile) -> Option<f64> {
    kernel.points.last().map(|point| point.median_us)
}

fn per_second(amount: u64, us: f64) -> f64 {
    amount as f64 / us * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEAKS: Peaks = Peaks { flops_per_s: 1e15, bytes_per_s: 5e12, source: PeakSource::Given };

    #[test]
    fn a_kernel_is_bound_by_the_roof_it_is_nearest_to() {
        let gemm = Work { flops: 4_000_000_000, bytes: 10_000_000 };
        assert_eq!(bound(gemm, 8.0, &PEAKS), Bound::Compute);
        let matrix_times_vector = Work { flops: 40_000_000, bytes: 20_000_000 };
        assert_eq!(bound(matrix_times_vector, 8.0, &PEAKS), Bound::Memory);
    }

    #[test]
    fn a_kernel_far_below_both_roofs_is_bound_by_latency() {
        assert_eq!(bound(Work { flops: 3_000_000, bytes: 3_000_000 }, 4.0, &PEAKS), Bound::Latency);
        assert_eq!(bound(Work::default(), 4.0, &PEAKS), Bound::Latency);
    }

    #[test]
    fn without_peaks_nothing_is_near_them() {
        let none = reached_peaks([]);
        assert_eq!(shares(Work { flops: 1, bytes: 1 }, 1.0, &none), (0.0, 0.0));
    }
}
