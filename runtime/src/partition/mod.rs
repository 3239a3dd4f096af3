//! Which SMs: sets of TPCs, the ladder of partitions, and KRISP's allocation of SMs to kernels.
//!
//! A [`TpcSet`] names TPCs; the [`Ladder`] turns sets into partitions, off the launch path, and keeps them while there is room; the [`Ledger`](ledger::Ledger) says who owns and
//! who borrows each TPC; [`krisp`] chooses sets from counts of who runs where. Nothing in this room launches anything.

pub mod krisp;
mod ladder;
pub mod ledger;
mod tpc_set;

pub use ladder::{Ladder, LadderError, PARTITION_BYTES, PartitionRef, rungs};
pub use tpc_set::TpcSet;
