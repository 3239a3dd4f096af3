//! Who shares the GPU: tenants, their class and their objective.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::device::Sms;

/// A tenant's number, never used again after it is dismissed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TenantId(pub u32);

/// What a tenant is served for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Each request counts: it has an objective for its latency.
    Latency,
    /// Only the sum of finished requests counts.
    #[default]
    Throughput,
}

/// How many SMs a tenant is to have, see [`Runtime::resize`](crate::Runtime::resize).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Share {
    /// What the policy gives it.
    #[default]
    Planned,
    /// So many SMs to itself, rounded up to whole TPCs; at least one TPC.
    Sms(Sms),
    /// That part of the GPU's SMs to itself, in percent, rounded as above.
    Percent(u8),
}

/// One model being served, as the engine announces it.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantSpec {
    /// A name for reports and metrics, which tell tenants apart by it.
    pub name: String,
    /// What it is served for.
    pub class: Class,
    /// The latency that requests should keep. Of a throughput tenant it is reported and never planned for.
    pub slo: Option<Duration>,
    /// Device memory it will take through [`Session::device`](crate::launch::Session::device): weights, cache and activations. It is kept for the tenant until it
    /// allocates it there. Memory from an allocator of the engine's own (`cuMemAlloc`, cudarc) is not seen to be the tenant's, and would count twice, as
    /// taken and as kept: allocate it before admission and leave it out here, 0 where there is no other.
    pub memory_bytes: u64,
}
