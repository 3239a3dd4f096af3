//! GPUs as policies know them: by their parts alone.

use proptest::prelude::*;
use smidgen_runtime::device::{CoscheduledGroups, Sms, Topology};

/// A GPU of so many SMs in a TPC, and so many TPCs in each GPC.
pub fn gpu(sms_per_tpc: u16, tpcs_per_gpc: &[u16]) -> Topology {
    let sms = Sms(tpcs_per_gpc.iter().sum::<u16>() * sms_per_tpc);
    Topology {
        name: "test".into(),
        sms,
        sms_per_tpc,
        tpcs_per_gpc: tpcs_per_gpc.to_vec(),
        coscheduled: CoscheduledGroups::filling(8, Sms(sms.0.saturating_sub(12))),
        memory_bytes: 0,
        l2_bytes: 0,
        shared_bytes_per_sm: 0,
        compute_capability: (9, 0),
        driver_version: 13_000,
        driver: String::new(),
    }
}

/// 132 SMs in 66 TPCs and 8 GPCs.
pub fn h200() -> Topology {
    gpu(2, &[9, 9, 8, 8, 8, 8, 8, 8])
}

prop_compose! {
    /// From one TPC to about a hundred; `tpcs_per_gpc` does not always add up, as on a GPU that we know too little of.
    pub fn any_topology()(sms_per_tpc in 1_u16..=4, gpcs in prop::collection::vec(1_u16..=12, 1..=8), unlisted in 0_u16..=3) -> Topology {
        let mut topology = gpu(sms_per_tpc, &gpcs);
        topology.sms.0 += unlisted * sms_per_tpc;
        topology
    }
}
