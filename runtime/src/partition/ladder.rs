//! The ladder: every partition that plans may use, made before the plan that uses it is published and never on the launch path.
//!
//! Those that the policy foresees, the family, are made before there is a tenant; others when a plan first names them. Partitions are kept after a plan has left them, because
//! policies come back to the same sets. Where there is no room for another, those that
//! nothing refers to any more go, least recently asked for first, and the family last. Whoever may still launch into a partition keeps its [`PartitionRef`]: the
//! plan in force, and sessions for what they follow and have captured.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::device::{Device, DeviceError, PartitionId, Sms, Topology};

use super::TpcSet;

/// Device memory that a partition takes, bytes: measured on an H200 with driver 580.
pub const PARTITION_BYTES: u64 = 5_800_000;

/// What the family may take to be made in all: 303 partitions take 0.58 s on an H200 that is idle, and two of them as much as this beside a process at work.
const PATIENCE: Duration = Duration::from_secs(1);

/// The SM counts at which kernels are measured and placed: dense where curves bend, whole TPCs, the last one the whole GPU.
///
/// One, two, four and six TPCs' worth at the bottom, where every further TPC counts; then whole co-scheduled groups up to ten of them, so that a rung fits
/// partitions of either kind; then every second group, and all of them.
pub fn rungs(topology: &Topology) -> Vec<Sms> {
    let (whole, tpc, coscheduled) = (topology.sms, topology.sms_per_tpc.max(1), topology.coscheduled);
    let narrow = [1, 2, 4, 6].map(|tpcs| tpcs * tpc);
    let groups = (1..=10).chain((12..coscheduled.groups).step_by(2)).chain([coscheduled.groups]);
    let wide = groups.filter(|&groups| groups <= coscheduled.groups).map(|groups| groups.saturating_mul(coscheduled.sms_per_group));
    let mut rungs: Vec<Sms> = narrow.into_iter().chain(wide).map(Sms).collect();
    rungs.retain(|&sms| sms < whole && sms.0 > 0 && sms.0.is_multiple_of(tpc));
    rungs.push(whole);
    rungs.sort_unstable();
    rungs.dedup();
    rungs
}

/// A partition that cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LadderError {
    /// As many partitions as may exist are all in use.
    #[error("{}", full(*limit))]
    Full {
        /// How many partitions may exist.
        limit: usize,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

fn full(limit: usize) -> String {
    match limit {
        0 => "there is no room for any partition, which takes about 6 MB of device memory; raise `--partition-memory` (`RuntimeOptions::partition_bytes`) or use `default-sharing`".into(),
        _ => format!(
            "{limit} partitions are in use, by plans and captured graphs, and each takes about 6 MB of device memory; raise `--partition-memory` (`RuntimeOptions::partition_bytes`) or use a coarser policy"
        ),
    }
}

/// A partition that stays as long as this, or a clone of it, is kept.
#[derive(Debug, Clone)]
pub struct PartitionRef(Arc<Referenced>);

#[derive(Debug)]
struct Referenced {
    id: PartitionId,
    /// Shared with the ladder and all its partitions.
    scarce: Arc<AtomicBool>,
}

impl PartitionRef {
    /// The partition's number.
    pub fn id(&self) -> PartitionId {
        self.0.id
    }

    /// Whether more than half of the ladder's room was taken by partitions in use when one was last asked for: who keeps references only to
    /// save work later should let go. The other half is room for the plan in force, the next one, and what sessions cannot let go of yet.
    pub fn is_scarce(&self) -> bool {
        self.0.scarce.load(Ordering::Relaxed)
    }
}

struct Made {
    partition: PartitionRef,
    /// The ladder's clock when it was last asked for. Those that nobody has asked for yet have the times before the first.
    asked: u64,
    /// Whether it was made before anybody asked for it, to be there when somebody does.
    is_family: bool,
}

impl Made {
    /// Whether nothing but the ladder refers to it. New references are made under the ladder's lock or from one that exists, so that it stays so
    /// while the lock is held.
    fn is_unused(&self) -> bool {
        Arc::strong_count(&self.partition.0) == 1
    }
}

#[derive(Default)]
struct State {
    made: HashMap<TpcSet, Made>,
    /// What the device made with another SM count than asked: it would do so again.
    refused: HashMap<TpcSet, DeviceError>,
    clock: u64,
}

impl State {
    fn in_use(&self) -> usize {
        self.made.values().filter(|made| !made.is_unused()).count()
    }

    fn family(&self) -> usize {
        self.made.values().filter(|made| made.is_family).count()
    }
}

/// The partitions made so far, by the TPCs they hold.
pub struct Ladder {
    device: Arc<dyn Device>,
    limit: usize,
    whole: PartitionRef,
    state: Mutex<State>,
}

impl Ladder {
    /// An empty ladder that will hold at most `limit` partitions. The whole GPU is always on it and counts for nothing.
    pub fn new(device: Arc<dyn Device>, limit: usize) -> Self {
        let whole = PartitionRef(Arc::new(Referenced { id: PartitionId::WHOLE, scarce: Arc::default() }));
        Self { device, limit, whole, state: Mutex::default() }
    }

    /// The partition over exactly `tpcs`, made if it is not there. Where the limit is reached, partitions that nothing refers to make room.
    ///
    /// # Errors
    /// [`LadderError::Full`] if as many as the limit are in use; [`DeviceError::ShortPartition`] if the device granted another SM count than asked.
    pub fn partition(&self, tpcs: TpcSet) -> Result<PartitionRef, LadderError> {
        if tpcs == self.device.topology().all_tpcs() {
            return Ok(self.whole.clone());
        }
        let state = &mut *self.state.lock();
        state.clock += 1;
        let in_use = state.in_use();
        self.whole.0.scarce.store(2 * in_use > self.limit, Ordering::Relaxed);
        if let Some(known) = state.made.get_mut(&tpcs) {
            known.asked = state.clock;
            return Ok(known.partition.clone());
        }
        if let Some(error) = state.refused.get(&tpcs) {
            return Err(error.clone().into());
        }
        let partition = self.make(state, tpcs)?;
        state.made.insert(tpcs, Made { partition: partition.clone(), asked: state.clock, is_family: false });
        Ok(partition)
    }

    /// Makes the *family*: partitions that somebody will ask for, the likeliest first, while nobody works whom that would hold up. Three quarters of the limit are for it
    /// and the rest for sets that nobody foresaw, so that those make room for each other first; where that is not enough, unused members of the family do, the least likely
    /// first. What was the family before is no more.
    ///
    /// It ends early where making partitions has taken a second in all, since somebody else is at work on the GPU then, and where the device makes no more, which leaves
    /// the rest to be made when a plan names them. A set of which it made another SM count is left out.
    pub fn make_family(&self, sets: impl IntoIterator<Item = TpcSet>) {
        let whole = self.device.topology().all_tpcs();
        let room = self.limit - self.limit / 4;
        let sets: Vec<TpcSet> = sets.into_iter().filter(|&set| set != whole).take(room).collect();
        let state = &mut *self.state.lock();
        state.made.values_mut().for_each(|made| made.is_family = false);
        if sets.is_empty() {
            return;
        }
        let span = tracing::debug_span!("make family", wanted = sets.len(), made = tracing::field::Empty).entered();
        let begun = self.device.now();
        let wanted = sets.len();
        let first = state.clock + wanted as u64;
        state.clock = first;
        for (asked, tpcs) in (0..=first).rev().zip(sets) {
            if let Some(known) = state.made.get_mut(&tpcs) {
                known.is_family = true;
                continue;
            }
            if state.refused.contains_key(&tpcs) {
                continue;
            }
            if self.device.now().saturating_sub(begun) > PATIENCE {
                tracing::debug!("the GPU is at work: plans will make the other partitions when they name them");
                break;
            }
            match self.make(state, tpcs) {
                Ok(partition) => drop(state.made.insert(tpcs, Made { partition, asked, is_family: true })),
                Err(error @ LadderError::Device(DeviceError::ShortPartition { .. })) => {
                    tracing::debug!("{tpcs:?} is no partition: {error}")
                }
                Err(error) => {
                    let made = state.family();
                    tracing::warn!(
                        "only {made} of {wanted} partitions could be made at start, and launches may have to wait for the others: {error}"
                    );
                    break;
                }
            }
        }
        span.record("made", state.family());
    }

    /// Whether less than half of the room beside the family is taken by partitions in use: beyond that, partitions are made only for plans in force.
    pub fn has_room_to_spare(&self) -> bool {
        let state = self.state.lock();
        let in_use = state.made.values().filter(|made| !made.is_family && !made.is_unused()).count();
        2 * in_use < self.limit.saturating_sub(state.family())
    }

    /// Device memory that its partitions may take, and take.
    pub fn bytes(&self) -> (u64, u64) {
        let of = |partitions: usize| u64::try_from(partitions).map_or(u64::MAX, |partitions| partitions.saturating_mul(PARTITION_BYTES));
        (of(self.limit), of(self.len()))
    }

    /// How many partitions exist besides the whole GPU.
    pub fn len(&self) -> usize {
        self.state.lock().made.len()
    }

    /// Whether only the whole GPU is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Another partition, for which there is room or is made.
    fn make(&self, state: &mut State, tpcs: TpcSet) -> Result<PartitionRef, LadderError> {
        self.make_room(state)?;
        let _span = tracing::debug_span!("create partition", ?tpcs).entered();
        let id = self.create(tpcs).inspect_err(|error| {
            if let DeviceError::ShortPartition { .. } = error {
                state.refused.insert(tpcs, error.clone());
            }
        })?;
        Ok(PartitionRef(Arc::new(Referenced { id, scarce: Arc::clone(&self.whole.0.scarce) })))
    }

    /// A new partition of as many SMs as `tpcs` have.
    fn create(&self, tpcs: TpcSet) -> Result<PartitionId, DeviceError> {
        let id = self.device.create_partition(tpcs)?;
        let asked = self.device.topology().sms_of(tpcs);
        let error = match self.device.partition_sms(id) {
            Ok(granted) if granted == asked => return Ok(id),
            Ok(granted) => DeviceError::ShortPartition { asked, granted },
            Err(error) => error,
        };
        self.device.destroy_partition(id).and(Err(error))
    }

    /// Destroys partitions that nothing refers to until there is room for another. One that the device does not give up is tried again next time.
    fn make_room(&self, state: &mut State) -> Result<(), LadderError> {
        if state.made.len() < self.limit {
            return Ok(());
        }
        let unused = state.made.iter().filter(|(_, made)| made.is_unused());
        let mut unused: Vec<_> = unused.map(|(&tpcs, made)| (made.is_family, made.asked, tpcs, made.partition.id())).collect();
        unused.sort_unstable_by_key(|&(is_family, asked, ..)| (is_family, asked));
        let mut failure = LadderError::Full { limit: self.limit };
        for (.., tpcs, id) in unused {
            let _span = tracing::debug_span!("destroy partition", ?tpcs).entered();
            match self.device.destroy_partition(id) {
                Ok(()) => state.made.remove(&tpcs),
                Err(error) => {
                    failure = error.into();
                    continue;
                }
            };
            if state.made.len() < self.limit {
                return Ok(());
            }
        }
        Err(failure)
    }
}

impl Drop for Ladder {
    /// Sessions may outlive the ladder, and keep what they refer to; the device has the memory of all others for the next one.
    fn drop(&mut self) {
        let unused = self.state.get_mut().made.values().filter(|made| made.is_unused());
        for made in unused {
            if let Err(error) = self.device.destroy_partition(made.partition.id()) {
                tracing::debug!("a partition stays: {error}");
            }
        }
    }
}
