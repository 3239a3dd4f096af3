//! What `smidgen doctor` asks: each finding on its own, so that the first thing missing does not hide the rest.

use super::partition::Split;
use super::{CudaDevice, loader, topology};
use crate::device::{Device, DeviceError, Sms, Topology};
use crate::partition::TpcSet;

/// How finely the driver divides the SMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granularity {
    /// Groups of equal size.
    pub groups: u16,
    /// SMs in each group.
    pub sms_per_group: Sms,
    /// SMs in no group.
    pub left_over: Sms,
}

impl From<Split> for Granularity {
    fn from(split: Split) -> Self {
        Self { groups: split.groups(), sms_per_group: split.sms_per_group(), left_over: split.left_over() }
    }
}

/// Findings about one GPU and its driver. Each error carries its remedy, and a finding that rests on a failed one repeats its error.
#[derive(Debug)]
pub struct Probe {
    /// Whether the driver library is installed.
    pub library: Result<(), DeviceError>,
    /// The CUDA version that it supports, 13000 for 13.0, even if that is too old for us.
    pub driver_version: Result<u32, DeviceError>,
    /// Names of the visible GPUs, by ordinal.
    pub devices: Result<Vec<String>, DeviceError>,
    /// What the GPU is made of.
    pub topology: Result<Topology, DeviceError>,
    /// Groups that keep large thread-block clusters possible: what foreign libraries need.
    pub coscheduled: Result<Granularity, DeviceError>,
    /// The finest groups there are: what our partitions are made of.
    pub finest: Result<Granularity, DeviceError>,
    /// The SM count of a partition of one TPC, made for this probe.
    pub partition: Result<Sms, DeviceError>,
}

/// Looks at GPU `ordinal`. Nothing that it makes outlives the call.
pub fn probe(ordinal: u32) -> Probe {
    let initialized = loader::initialize();
    let device = initialized.clone().and_then(|_| topology::device(ordinal));
    let finest = device.clone().and_then(Split::finest);
    let coscheduled = device.clone().and_then(Split::coscheduled);
    let read_topology = || topology::read(device.clone()?, initialized.clone()?, finest.as_ref().ok(), coscheduled.as_ref().ok());
    let one_tpc = || {
        let device = CudaDevice::open(ordinal)?;
        device.partition_sms(device.create_partition(TpcSet::range(0, 1))?)
    };
    Probe {
        library: loader::find_library(),
        driver_version: loader::driver_version(),
        devices: initialized.clone().and_then(|_| topology::device_names()),
        topology: read_topology(),
        partition: one_tpc(),
        coscheduled: coscheduled.map(Granularity::from),
        finest: finest.map(Granularity::from),
    }
}
