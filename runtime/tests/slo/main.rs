//! What the policy `slo` promises: by example on measured curves, then for all topologies and tenants.

mod ablations;
mod examples;
mod models;
mod power;
mod promises;
mod replanning;
#[path = "../support/topologies.rs"]
mod topologies;
