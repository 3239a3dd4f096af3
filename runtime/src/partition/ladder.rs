//! The ladder: every partition that plans may use, made before the plan that uses it is published and never on the launch path.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, PartitionId, Sms, Topology};

use super::TpcSet;

/// The SM counts at which kernels are measured and placed: dense where curves bend, whole TPCs, the last one the whole GPU.
pub fn rungs(topology: &Topology) -> Vec<Sms> {
    const COUNTS: [u16; 16] = [2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 120];
    let whole = topology.sms;
    let mut rungs: Vec<Sms> = COUNTS.into_iter().filter(|&sms| sms < whole.0 && sms % topology.sms_per_tpc == 0).map(Sms).collect();
    rungs.push(whole);
    rungs
}

/// A partition that cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LadderError {
    /// The limit on partitions is reached.
    #[error("{limit} partitions exist already and each takes about 6 MB of device memory; raise the limit or use a coarser policy")]
    Full {
        /// How many partitions may exist.
        limit: usize,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The partitions made so far, by the TPCs they hold.
pub struct Ladder {
    device: Arc<dyn Device>,
    limit: usize,
    /// With the error where the device granted another SM count than asked: it cannot take such a partition back, and asking again would
    /// only make another.
    made: Mutex<HashMap<TpcSet, Result<PartitionId, DeviceError>>>,
}

impl Ladder {
    /// An empty ladder that will hold at most `limit` partitions. The whole GPU is always on it and counts for nothing.
    pub fn new(device: Arc<dyn Device>, limit: usize) -> Self {
        let whole = HashMap::from([(device.topology().all_tpcs(), Ok(PartitionId::WHOLE))]);
        Self { device, limit, made: Mutex::new(whole) }
    }

    /// The partition over exactly `tpcs`, made if it is not there yet.
    ///
    /// # Errors
    /// [`LadderError::Full`] beyond the limit; [`DeviceError::ShortPartition`] if the device granted another SM count than asked.
    pub fn partition(&self, tpcs: TpcSet) -> Result<PartitionId, LadderError> {
        let mut made = self.made.lock();
        if let Some(known) = made.get(&tpcs) {
            return Ok(known.clone()?);
        }
        if made.len() > self.limit {
            return Err(LadderError::Full { limit: self.limit });
        }
        let _span = tracing::debug_span!("create partition", ?tpcs).entered();
        let partition = self.device.create_partition(tpcs)?;
        let (asked, granted) = (self.device.topology().sms_of(tpcs), self.device.partition_sms(partition)?);
        let made_as_asked = if granted == asked { Ok(partition) } else { Err(DeviceError::ShortPartition { asked, granted }) };
        made.insert(tpcs, made_as_asked.clone());
        Ok(made_as_asked?)
    }

    /// How many partitions exist besides the whole GPU.
    pub fn len(&self) -> usize {
        self.made.lock().len() - 1
    }

    /// Whether only the whole GPU is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
