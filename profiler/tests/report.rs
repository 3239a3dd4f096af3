//! The table that `smidgen profile` prints.

use std::collections::BTreeMap;

use smidgen_profiler::report::{rows, table};
use smidgen_runtime::device::Sms;
use smidgen_runtime::launch::Work;
use smidgen_runtime::profile::{
    BoardPower, Bound, KernelProfile, PeakSource, Peaks, PowerSample, Profile, Provenance, SCHEMA_VERSION, SamplePoint,
};

fn kernel(launches: u32, work: Work, bound: Bound, minimum: u16, points: &[(u16, f64)]) -> KernelProfile {
    let points = points.iter().map(|&(sms, us)| SamplePoint {
        sms: Sms(sms),
        median_us: us,
        samples_us: vec![us; 5],
        rejected: 0,
        configuration: None,
        power: None,
    });
    KernelProfile { work, launches, blocks_per_sm: 1, bound, minimum_sms: Sms(minimum), points: points.collect() }
}

fn profile() -> Profile {
    let gemm = Work { flops: 4_000_000_000, bytes: 12_000_000 };
    let norm = Work { flops: 3_000_000, bytes: 6_000_000 };
    Profile {
        schema: SCHEMA_VERSION,
        provenance: Provenance {
            gpu: "Some GPU".into(),
            sms: Sms(100),
            driver: "1.2.3".into(),
            kernel_build: "beef".into(),
            models: vec!["bert-base".into()],
            command: String::new(),
            commit: String::new(),
            date: "2026-11-21".into(),
            simulated: false,
        },
        tolerance: 0.02,
        peaks: Peaks { flops_per_s: 8e14, bytes_per_s: 4e12, source: PeakSource::Given },
        power: None,
        kernels: BTreeMap::from([
            ("gemm[8x8]f16".into(), kernel(2, gemm, Bound::Compute, 50, &[(50, 10.2), (100, 10.0)])),
            ("norm[8]f16".into(), kernel(5, norm, Bound::Latency, 10, &[(10, 4.0), (100, 4.0)])),
            ("other[1]f16".into(), kernel(0, norm, Bound::Latency, 100, &[(100, 4.0)])),
        ]),
    }
}

#[test]
fn the_table_reads_like_this() {
    let expected = "\
bert-base on Some GPU, 100 SMs, 2026-11-21; tolerance 2%; peaks 800 TFLOP/s and 4.00 TB/s, as given
kernel        launches  time %     us, all  min SMs     us, min  bound     % peak  SM-time saved %
gemm[8x8]f16         2    50.0       10.00       50       10.20  compute     50.0             49.0
norm[8]f16           5    50.0        4.00       10        4.00  latency     37.5             90.0
2 kernels, 0.040 ms in kernels on all SMs, 0.040 ms on their minimum: 30.2 SMs on average, 69.5% of the SM-time saved
";
    assert_eq!(table(&profile()), expected);
}

#[test]
fn energies_have_columns_where_the_board_s_power_was_read() {
    let mut profile = profile();
    profile.power = Some(BoardPower { idle_w: 100.0, limit_w: 700.0, clock_mhz: 2000 });
    let gemm = profile.kernels.get_mut("gemm[8x8]f16").unwrap();
    gemm.points[0].power = Some(PowerSample { board_w: 350.0, launch_us: 20.0, clock_mhz: 2000 });
    // At the power limit: a launch took longer than in short bursts.
    gemm.points[1].power = Some(PowerSample { board_w: 700.0, launch_us: 12.5, clock_mhz: 1600 });
    let expected = "\
bert-base on Some GPU, 100 SMs, 2026-11-21; tolerance 2%; peaks 800 TFLOP/s and 4.00 TB/s, as given
kernel        launches  time %     us, all  min SMs     us, min  bound     % peak  SM-time saved %    mJ, all    mJ, min
gemm[8x8]f16         2    50.0       10.00       50       10.20  compute     50.0             49.0     10.024      5.000
norm[8]f16           5    50.0        4.00       10        4.00  latency     37.5             90.0          -          -
2 kernels, 0.040 ms in kernels on all SMs, 0.040 ms on their minimum: 30.2 SMs on average, 69.5% of the SM-time saved
";
    assert_eq!(table(&profile), expected);
    let norm = profile.kernels.get_mut("norm[8]f16").unwrap();
    norm.points[1].power = Some(PowerSample { board_w: 200.0, launch_us: 4.0, clock_mhz: 2000 });
    let table = table(&profile);
    assert!(table.ends_with("of the SM-time saved; 0.0220 J above idle on all SMs, 0.0120 J on their minimum\n"), "{table}");
}

#[test]
fn shares_are_of_the_recorded_request_alone_and_fall() {
    let mut profile = profile();
    profile.kernels.get_mut("norm[8]f16").unwrap().launches = 15;
    let shares: Vec<(String, f64)> = rows(&profile).iter().map(|row| (row.key.to_owned(), row.share)).collect();
    assert_eq!(shares, [("norm[8]f16".into(), 0.75), ("gemm[8x8]f16".into(), 0.25)]);
}

#[test]
fn every_line_of_a_simulated_profile_says_so() {
    let mut profile = profile();
    profile.provenance.simulated = true;
    let table = table(&profile);
    assert_eq!(table.lines().count(), 5);
    assert!(table.lines().all(|line| line.starts_with("SIMULATED  ")), "{table}");
}

#[test]
fn a_profile_without_kernels_of_the_request_says_that() {
    let mut profile = profile();
    profile.kernels.clear();
    assert!(table(&profile).contains("no kernel of the recorded request is in this profile"));
}
