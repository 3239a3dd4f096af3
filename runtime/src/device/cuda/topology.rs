//! What the GPU is made of, read from the driver; the one thing it does not tell, the TPCs of each GPC, is assumed.

use cudarc::driver::sys::{CUdevice, CUdevice_attribute};

use super::driver;
use super::partition::Split;
use crate::device::{CoscheduledGroups, DeviceError, Sms, Topology};

/// TPCs have had two SMs on every GPU since Pascal. Used only where the driver refuses to split the SMs, and so cannot tell.
const USUAL_SMS_PER_TPC: u16 = 2;

/// The device with this number among those that the process may see.
pub fn device(ordinal: u32) -> Result<CUdevice, DeviceError> {
    let count = driver::device_count()?;
    if ordinal >= count {
        return Err(DeviceError::NoGpu(format!("GPU {ordinal} was asked for and {count} are visible")));
    }
    driver::device(ordinal)
}

/// The names of the visible devices, by ordinal.
pub fn device_names() -> Result<Vec<String>, DeviceError> {
    (0..driver::device_count()?).map(|ordinal| driver::device_name(driver::device(ordinal)?)).collect()
}

/// Reads the topology. `split` is the finest division of the SMs and `coscheduled` that into the driver's groups, if it made them.
pub fn read(device: CUdevice, driver_version: u32, split: Option<&Split>, coscheduled: Option<&Split>) -> Result<Topology, DeviceError> {
    let attribute = |attribute| driver::device_attribute(device, attribute);
    let sms = sms(attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?);
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let compute_capability = (saturate(major), saturate(minor));
    let sms_per_tpc = split.map_or(USUAL_SMS_PER_TPC, |split| split.sms_per_group().0);
    Ok(Topology {
        name: driver::device_name(device)?,
        sms,
        sms_per_tpc,
        tpcs_per_gpc: equal_gpcs(sms.0 / sms_per_tpc.max(1), largest_gpc(compute_capability)),
        coscheduled: coscheduled.map_or_else(
            || usual_groups(sms),
            |split| CoscheduledGroups { sms_per_group: split.sms_per_group().0, groups: split.groups() },
        ),
        memory_bytes: driver::device_memory_bytes(device)?,
        l2_bytes: u64::from(attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        shared_bytes_per_sm: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        compute_capability,
        driver_version,
        driver: kernel_mode_driver(),
    })
}

/// Groups of 8 SMs, and 12 SMs or more in none, as on an H200: where the driver refuses to split the SMs, as it may under MPS.
fn usual_groups(sms: Sms) -> CoscheduledGroups {
    CoscheduledGroups::filling(8, Sms(sms.0.saturating_sub(12)))
}

/// The driver's count as ours.
pub fn sms(count: u32) -> Sms {
    Sms(u16::try_from(count).unwrap_or(u16::MAX))
}

fn saturate(value: u32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// TPCs in a GPC with none disabled. Sources: NVIDIA's architecture whitepapers for GA100, GA102 and AD102, GH100, GB100, GB202.
fn largest_gpc(compute_capability: (u8, u8)) -> u16 {
    match compute_capability {
        (8, 0) | (12, _) => 8,
        (8, _) => 6,
        (10, _) => 10,
        _ => 9,
    }
}

/// As few GPCs as can hold `tpcs`, of sizes that differ by one at most, the larger ones first.
fn equal_gpcs(tpcs: u16, largest: u16) -> Vec<u16> {
    let gpcs = tpcs.div_ceil(largest);
    (0..gpcs).map(|gpc| tpcs / gpcs + u16::from(gpc < tpcs % gpcs)).collect()
}

fn kernel_mode_driver() -> String {
    let read = |path| std::fs::read_to_string(path).ok();
    read("/sys/module/nvidia/version")
        .or_else(|| read("/proc/driver/nvidia/version"))
        .and_then(|text| version_in(&text).map(str::to_owned))
        .unwrap_or_default()
}

/// The first word that is numbers between dots, such as 580.159.04.
fn version_in(text: &str) -> Option<&str> {
    text.split_whitespace().find(|word| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpcs_hold_every_tpc_and_differ_by_one_at_most() {
        assert_eq!(equal_gpcs(66, largest_gpc((9, 0))), [9, 9, 8, 8, 8, 8, 8, 8]);
        assert_eq!(equal_gpcs(54, largest_gpc((8, 0))), [8, 8, 8, 8, 8, 7, 7]);
        assert_eq!(equal_gpcs(1, 9), [1]);
        assert_eq!(equal_gpcs(0, 9), [0_u16; 0]);
    }

    #[test]
    fn the_kernel_mode_driver_is_found_in_what_both_of_its_modules_print() {
        assert_eq!(version_in("580.159.04\n"), Some("580.159.04"));
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder)\nGCC version:  gcc 12.2.0";
        assert_eq!(version_in(open), Some("580.159.04"));
        let proprietary = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023";
        assert_eq!(version_in(proprietary), Some("535.54.03"));
        assert_eq!(version_in("no version here."), None);
    }
}
