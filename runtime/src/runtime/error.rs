//! What a runtime refuses, with the figures that say what to do about it.

use std::time::Duration;

use crate::bytes::readable;
use crate::device::{DeviceError, Sms};
use crate::launch::LaunchError;
use crate::partition::{Ladder, LadderError};
use crate::tenant::TenantId;

/// A tenant, or what holds the runtime's partitions, and the device memory that is kept for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryHolder {
    /// The tenant's name.
    pub name: String,
    /// Bytes that it was admitted with.
    pub promised: u64,
    /// Bytes that its sessions hold now.
    pub allocated: u64,
}

impl MemoryHolder {
    /// None where there are to be no partitions.
    pub(super) fn partitions(ladder: &Ladder) -> Option<Self> {
        let (promised, allocated) = ladder.bytes();
        (promised > 0).then(|| Self { name: "the runtime's partitions".to_owned(), promised, allocated })
    }

    /// Bytes that it may still ask for.
    pub(super) fn outstanding(&self) -> u64 {
        self.promised.saturating_sub(self.allocated)
    }
}

/// Why a tenant was not admitted, or a change to it refused.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// It does not fit.
    #[error(
        "tenant `{name}` needs {} of device memory and {} are free{}; use a smaller model, batch or sequence, or fewer tenants",
        readable(*needed),
        readable(*free),
        listed(holders)
    )]
    NoMemory {
        /// The tenant's name.
        name: String,
        /// Bytes it would take.
        needed: u64,
        /// Bytes that are free and promised to nobody.
        free: u64,
        /// Who holds the others.
        holders: Vec<MemoryHolder>,
    },
    /// The SMs asked for are promised to others, or would leave none for tenants without a share.
    #[error(
        "tenant `{name}` cannot have {asked} SMs: {free} are free and {unshared} tenants without a share need SMs too; ask for fewer, or resize another tenant"
    )]
    NoSms {
        /// The tenant's name.
        name: String,
        /// SMs asked for, in whole TPCs.
        asked: Sms,
        /// SMs in nobody's share.
        free: Sms,
        /// Running tenants without a share, which need at least one TPC between them.
        unshared: usize,
    },
    /// The objective cannot be met even alone.
    #[error(
        "tenant `{name}`: its SLO of {:.3} ms is below its isolated latency of {:.3} ms; raise the SLO or use a smaller batch",
        slo.as_secs_f64() * 1e3,
        isolated.as_secs_f64() * 1e3
    )]
    ImpossibleSlo {
        /// The tenant's name.
        name: String,
        /// What was asked for.
        slo: Duration,
        /// The sum of its kernels' latencies, each at the SM count that suits it best, by their profiles.
        isolated: Duration,
    },
    /// An objective of no time.
    #[error("tenant `{name}`: an SLO of 0 cannot be kept; give a time, or none for no objective")]
    ZeroSlo {
        /// The tenant's name.
        name: String,
    },
    /// The policy's draft leaves a tenant out.
    #[error("the policy `{policy}` has no place for tenant `{name}`; a draft has one entry for each tenant")]
    Unplaced {
        /// The policy.
        policy: &'static str,
        /// The tenant's name.
        name: String,
    },
    /// The ledger cannot tell more tenants apart.
    #[error("65535 tenants are admitted already; dismiss one first")]
    TooMany,
    /// No such tenant.
    #[error("no tenant has the number {}; it was dismissed, or never admitted", .0.0)]
    Unknown(TenantId),
    /// A partition of the new plan cannot be made.
    #[error(transparent)]
    Ladder(#[from] LadderError),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The session could not be made.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

fn listed(holders: &[MemoryHolder]) -> String {
    let held = |holder: &MemoryHolder| {
        format!("`{}` was promised {} and holds {}", holder.name, readable(holder.promised), readable(holder.allocated))
    };
    if holders.is_empty() { String::new() } else { format!(" ({})", holders.iter().map(held).collect::<Vec<_>>().join(", ")) }
}
