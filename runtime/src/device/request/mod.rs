//! What a device is asked to launch: a kernel's key and cost, its grid and parameters, and where its tiles are counted.
//!
//! Engines fill these in ([`Kernel`](crate::launch::Kernel)), sessions complete them, back ends carry them out. Nothing here decides anything.

mod encoded_maps;
mod key;
mod launch;
mod params;
pub(crate) mod progress;
mod tensor_map;

pub use encoded_maps::{EncodedMap, EncodedMaps};
pub use key::{Fingerprint, KernelKey, KernelName, ParseKeyError, Precision};
pub use launch::{Grids, Launch, TilesArg, Work};
pub use params::{MAX_PARAM_BYTES, MAX_TENSOR_MAPS, ParamBytes, Params};
pub use progress::TILE_PROGRESS_BYTES;
pub use tensor_map::{Element, MAX_DIMENSIONS, Swizzle, TensorMap};

use super::{FunctionId, Priority};

/// One launch as it leaves the interception point: everything decided, nothing left to look up.
#[derive(Debug)]
pub struct LaunchRequest<'a> {
    /// Entry point, resolved once per session.
    pub function: FunctionId,
    /// Grid, block, shared memory and parameters.
    pub launch: &'a Launch,
    /// Second kernel parameter: where tiles are counted and which SMs may take them.
    pub tiles: TilesArg,
    /// Order among blocks that wait for an SM.
    pub priority: Priority,
    /// Whether the blocks may start before the launch before this one on the stream has ended. Only for [`Launch::programmatic`] kernels.
    pub overlaps: bool,
    /// What is launched; the simulator looks up its duration by it.
    pub key: KernelKey,
    /// What it costs at least.
    pub work: Work,
}
