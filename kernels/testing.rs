//! What the rooms' unit tests share: a GPU to configure launches for, and what every launch must keep.

use smidgen_runtime::device::{CoscheduledGroups, Sms, Topology};
use smidgen_runtime::launch::{Kernel, LaunchError};

/// Threads that an SM holds at once, on every GPU that the kernels are built for but those of compute capability 8.6 to 8.9 (1536).
const THREADS_PER_SM: u32 = 2048;

/// An H200.
pub(super) fn h200() -> Topology {
    Topology {
        name: "H200".to_owned(),
        sms: Sms(132),
        sms_per_tpc: 2,
        tpcs_per_gpc: vec![9; 8],
        coscheduled: CoscheduledGroups { sms_per_group: 8, groups: 15 },
        memory_bytes: 140 << 30,
        l2_bytes: 50 << 20,
        shared_bytes_per_sm: 228 << 10,
        compute_capability: (9, 0),
        driver_version: 13000,
        driver: String::new(),
    }
}

/// Fails unless, at every SM count, `kernel` asks for at least one block, for no more than there are tiles, and for no more than those SMs
/// hold at once; and unless its key and its tiles are the same at all of them.
pub(super) fn assert_stays_within_its_sms(kernel: &dyn Kernel) {
    let gpu = h200();
    let tiles = kernel.configure(gpu.sms, &gpu).expect("a supported shape").tiles;
    for sms in 1..=gpu.sms.0 {
        let launch = kernel.configure(Sms(sms), &gpu).expect("a supported shape");
        let held = u32::from(sms) * launch.blocks_per_sm;
        assert!((1..=launch.tiles.min(held)).contains(&launch.grid), "{}: {launch:?} on {sms} SMs", kernel.key());
        assert!(launch.block * launch.blocks_per_sm <= THREADS_PER_SM, "{}: {launch:?}", kernel.key());
        assert_eq!(launch.tiles, tiles, "{}: the work depends on the SM count", kernel.key());
    }
}

/// Fails unless `kernel` cannot be launched, for a reason that contains `reason`, on few SMs as on many.
pub(super) fn assert_unsupported(kernel: &dyn Kernel, reason: &str) {
    let gpu = h200();
    for sms in [1, 34, 132] {
        match kernel.configure(Sms(sms), &gpu) {
            Err(LaunchError::Unsupported { reason: said, .. }) => assert!(said.contains(reason), "`{said}` should name `{reason}`"),
            other => panic!("{}: {other:?}", kernel.key()),
        }
    }
}
