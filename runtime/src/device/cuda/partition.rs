//! Partitions: green contexts over any set of TPCs.
//!
//! One split of the SMs, made when the device is opened, yields the groups that partitions are joined from: group *i* is TPC *i*, whatever the
//! numbers of its SMs (`sm_map`). Groups of
//! one split may be joined in any combination and may appear in several green contexts; groups of different splits may not be mixed.
//! Clusters larger than a group are refused inside such partitions, because the split gives up the co-scheduling of SMs for its granularity.
//! For foreign kernels that launch such clusters there is a second, coarser split.
//!
//! The driver documents two cases in which a partition's kernels may reach SMs outside it: under MPS with an active-thread percentage, and
//! on compute capability 9.x once a module that uses dynamic parallelism is loaded (cuda.h, "Green Contexts").

use std::collections::BTreeMap;
use std::sync::OnceLock;

use cudarc::driver::sys::{CUdevResource, CUdevSmResourceSplit_flags, CUdevice};
use parking_lot::Mutex;

use super::status::tolerate;
use super::{driver, topology};
use crate::device::{DeviceError, PartitionId, Sms};
use crate::partition::TpcSet;

/// The fewest SMs that a group may have: one TPC.
const SMALLEST_GROUP: u32 = 2;

/// The SMs of a GPU in groups of equal size, and those left over.
pub struct Split {
    groups: Vec<CUdevResource>,
    left_over: Sms,
}

impl Split {
    /// The finest split: SMs are grouped whether or not they can be scheduled together.
    pub fn finest(device: CUdevice) -> Result<Self, DeviceError> {
        let split = Self::new(device, CUdevSmResourceSplit_flags::CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING as u32)?;
        if split.groups.is_empty() {
            return Err(DeviceError::Driver {
                call: "cuDevSmResourceSplitByCount",
                status: "the driver made no group of SMs".to_owned(),
                sticky: false,
            });
        }
        Ok(split)
    }

    /// The finest split whose groups keep large clusters possible.
    pub fn coscheduled(device: CUdevice) -> Result<Self, DeviceError> {
        Self::new(device, 0)
    }

    fn new(device: CUdevice, flags: u32) -> Result<Self, DeviceError> {
        let whole = driver::device_sm_resource(device)?;
        let (groups, left_over) = driver::sm_resource_split(&whole, flags, SMALLEST_GROUP)?;
        Ok(Self { groups, left_over: topology::sms(driver::resource_sms(&left_over)) })
    }

    pub fn groups(&self) -> u16 {
        u16::try_from(self.groups.len()).unwrap_or(u16::MAX)
    }

    pub fn sms_per_group(&self) -> Sms {
        self.groups.first().map_or(Sms(0), |group| topology::sms(driver::resource_sms(group)))
    }

    pub fn left_over(&self) -> Sms {
        self.left_over
    }

    /// The groups that `tpcs` names.
    fn join(&self, tpcs: TpcSet) -> Result<Vec<CUdevResource>, DeviceError> {
        let bad = || DeviceError::BadPartition { asked: tpcs, tpcs: self.groups() };
        let groups: Option<Vec<_>> = tpcs.iter().map(|tpc| self.groups.get(usize::from(tpc)).copied()).collect();
        groups.filter(|groups| !groups.is_empty()).ok_or_else(bad)
    }
}

/// A green context that is destroyed when dropped, which must be after the streams inside it and their kernels.
pub struct GreenContext(driver::GreenContext);

impl GreenContext {
    pub fn create_stream(&self, priority: i32) -> Result<driver::Stream, DeviceError> {
        driver::green_context_stream_create(self.0, priority)
    }

    fn sms(&self) -> Result<Sms, DeviceError> {
        driver::green_context_sms(self.0).map(topology::sms)
    }
}

impl Drop for GreenContext {
    fn drop(&mut self) {
        tolerate(driver::green_context_destroy(self.0));
    }
}

/// The partitions of a device, which live as long as it does unless they are given back.
pub struct Partitions {
    device: CUdevice,
    /// An error here is not one of opening the device: under MPS the driver may refuse to split while everything else works.
    split: Result<Split, DeviceError>,
    /// Made when first asked for.
    coscheduled: OnceLock<Result<Split, DeviceError>>,
    /// The lock also keeps to one thread at a time what cuda.h allows only one thread at a time.
    contexts: Mutex<Contexts>,
}

/// Green contexts by number. A number is not used again: whoever kept one must never find another partition under it.
#[derive(Default)]
struct Contexts {
    kept: BTreeMap<u32, GreenContext>,
    /// The number given out last; the whole GPU is number 0.
    last: u32,
}

impl Contexts {
    fn keep(&mut self, context: GreenContext) -> PartitionId {
        self.last += 1;
        self.kept.insert(self.last, context);
        PartitionId(self.last)
    }
}

impl Partitions {
    pub fn of(device: CUdevice) -> Self {
        Self { device, split: Split::finest(device), coscheduled: OnceLock::new(), contexts: Mutex::default() }
    }

    pub fn split(&self) -> Result<&Split, DeviceError> {
        self.split.as_ref().map_err(Clone::clone)
    }

    /// The split into groups that keep large clusters possible.
    pub fn coscheduled(&self) -> Result<&Split, DeviceError> {
        self.coscheduled.get_or_init(|| Split::coscheduled(self.device)).as_ref().map_err(Clone::clone)
    }

    /// A partition over exactly these TPCs.
    pub fn create(&self, tpcs: TpcSet) -> Result<PartitionId, DeviceError> {
        let mut contexts = self.contexts.lock();
        Ok(contexts.keep(self.create_temporary(tpcs)?.0))
    }

    /// Destroys a partition other than the whole GPU, in which nothing runs and no stream is left.
    pub fn destroy(&self, partition: PartitionId) -> Result<(), DeviceError> {
        let contexts = &mut *self.contexts.lock();
        let context = contexts.kept.get(&partition.0).ok_or_else(|| unknown(partition, "cuGreenCtxDestroy"))?;
        driver::green_context_destroy(context.0)?;
        if let Some(destroyed) = contexts.kept.remove(&partition.0) {
            std::mem::forget(destroyed);
        }
        Ok(())
    }

    /// A partition of exactly `sms` SMs, the first groups of those that keep large clusters possible.
    pub fn create_coscheduled(&self, sms: Sms) -> Result<PartitionId, DeviceError> {
        let mut contexts = self.contexts.lock();
        let split = self.coscheduled()?;
        let granted = Sms(split.sms_per_group().0 * split.groups().min(sms.0 / split.sms_per_group().0.max(1)));
        if sms.0 == 0 || granted != sms {
            return Err(DeviceError::ShortPartition { asked: sms, granted });
        }
        let groups = split.groups[..usize::from(sms.0 / split.sms_per_group().0)].to_vec();
        Ok(contexts.keep(self.create_context(groups)?.0))
    }

    /// A green context over exactly these TPCs that is the caller's own, and how many SMs it has.
    pub fn create_temporary(&self, tpcs: TpcSet) -> Result<(GreenContext, Sms), DeviceError> {
        self.create_context(self.split()?.join(tpcs)?)
    }

    fn create_context(&self, mut groups: Vec<CUdevResource>) -> Result<(GreenContext, Sms), DeviceError> {
        let asked = topology::sms(groups.iter().map(driver::resource_sms).sum());
        let context = GreenContext(driver::green_context_create(self.device, &mut groups)?);
        let granted = context.sms()?;
        if granted != asked {
            return Err(DeviceError::ShortPartition { asked, granted });
        }
        Ok((context, granted))
    }

    /// The SM count of a partition other than the whole GPU, read back from the driver.
    pub fn sms(&self, partition: PartitionId) -> Result<Sms, DeviceError> {
        self.with(partition, "cuGreenCtxGetDevResource", GreenContext::sms)
    }

    /// A stream inside a partition other than the whole GPU.
    pub fn create_stream(&self, partition: PartitionId, priority: i32) -> Result<driver::Stream, DeviceError> {
        self.with(partition, "cuGreenCtxStreamCreate", |context| context.create_stream(priority))
    }

    fn with<T>(
        &self,
        partition: PartitionId,
        call: &'static str,
        run: impl FnOnce(&GreenContext) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let contexts = self.contexts.lock();
        run(contexts.kept.get(&partition.0).ok_or_else(|| unknown(partition, call))?)
    }
}

fn unknown(partition: PartitionId, call: &'static str) -> DeviceError {
    DeviceError::Driver { call, status: format!("this device has no partition {}", partition.0), sticky: false }
}
