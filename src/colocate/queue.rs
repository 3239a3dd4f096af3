//! The queue of kernels that ran without a profile, as a file: `smidgen colocate --queue` writes it, `smidgen profile --queue` measures what it names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Run;
use super::Where;
use super::spec::TenantRequest;

/// The version of the file's form.
const SCHEMA: u32 = 1;

/// What is queued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    schema: u32,
    /// Whether the tenants ran on the simulator.
    pub simulated: bool,
    /// By tenant; none where every kernel has a profile.
    pub tenants: Vec<Queued>,
}

/// One tenant's part of a queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queued {
    /// The tenant, whose request launches the kernels.
    pub tenant: TenantRequest,
    /// Their keys.
    pub kernels: Vec<String>,
}

/// A queue that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// It cannot be read.
    #[error("{path}: cannot be read ({source}); `smidgen colocate --queue FILE` writes such a file")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why the system refused.
        source: io::Error,
    },
    /// It is no queue.
    #[error("{path}: {problem}; let `smidgen colocate --queue FILE` write it again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Queue {
    /// What `run` has queued.
    pub fn of(run: &Run) -> Self {
        let unprofiled = run.watch.unprofiled.lock();
        let queued = run.tenants.iter().filter_map(|tenant| {
            let kernels = unprofiled.get(&tenant.name)?.clone();
            Some(Queued { tenant: tenant.clone(), kernels })
        });
        Self { schema: SCHEMA, simulated: run.place == Where::Sim, tenants: queued.collect() }
    }

    /// The queue in a file.
    ///
    /// # Errors
    /// [`QueueError`], naming the file.
    pub fn read(path: &Path) -> Result<Self, QueueError> {
        let text = fs::read_to_string(path).map_err(|source| QueueError::Unreadable { path: path.to_owned(), source })?;
        let malformed = |problem| QueueError::Malformed { path: path.to_owned(), problem };
        let queue: Self = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        if queue.schema != SCHEMA {
            return Err(malformed(format!("its schema is {} and not {SCHEMA}", queue.schema)));
        }
        Ok(queue)
    }
}
