//! What opening says of drivers that are there, missing or broken.

use std::path::Path;
use std::process::Command;

use smidgen_runtime::device::cuda::{CudaDevice, probe};
use smidgen_runtime::device::{Device, DeviceError, Sms};

use crate::gpu::PTX;

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn kernels_that_are_not_loaded_are_named() {
    let bare = CudaDevice::open(0).unwrap();
    assert!(matches!(bare.function("echo"), Err(DeviceError::NoKernels)));
    assert!(matches!(bare.load(&[]), Err(DeviceError::NoKernels)));
    bare.load(PTX.as_bytes()).unwrap();
    assert_eq!(bare.function("echo").unwrap(), bare.function("echo").unwrap());
    let error = bare.function("no_such_kernel").unwrap_err();
    assert!(matches!(&error, DeviceError::UnknownSymbol { symbol } if symbol == "no_such_kernel"), "{error}");

    // The driver may look into the text only once a kernel is wanted.
    let misled = CudaDevice::open(0).unwrap();
    let error = misled.load(b"not a kernel").and_then(|()| misled.function("echo")).unwrap_err();
    assert!(!error.is_sticky(), "{error}");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_probe_finds_everything_on_a_machine_that_can_run_smidgen() {
    let found = probe(0);
    found.library.unwrap();
    assert!(found.driver_version.unwrap() >= 13000);
    let topology = found.topology.unwrap();
    assert_eq!(found.devices.unwrap()[0], topology.name);
    let finest = found.finest.unwrap();
    assert_eq!((finest.groups, finest.sms_per_group), (topology.tpcs(), Sms(topology.sms_per_tpc)));
    let coscheduled = found.coscheduled.unwrap();
    assert_eq!(coscheduled.groups * coscheduled.sms_per_group.0 + coscheduled.left_over.0, topology.sms.0);
    assert_eq!(found.partition.unwrap(), Sms(topology.sms_per_tpc));
    let error = CudaDevice::open(10_000).map(drop).unwrap_err();
    assert!(matches!(error, DeviceError::NoGpu(_)), "{error}");
}

#[test]
fn without_a_driver_opening_and_probing_say_what_to_install() {
    // Where there is a GPU, the tests above run instead.
    let Err(error) = CudaDevice::open(0) else { return };
    assert!(matches!(error, DeviceError::NoGpu(_) | DeviceError::OldDriver { .. }), "{error}");
    assert!(error.to_string().contains("the NVIDIA driver"), "{error}");
    let found = probe(0);
    for found in [found.devices.err(), found.topology.err(), found.coscheduled.err(), found.finest.err(), found.partition.err()] {
        assert_eq!(found.map(|error| error.to_string()), Some(error.to_string()));
    }
}

#[test]
fn a_driver_that_is_too_old_is_refused_with_both_versions() {
    let Some(report) = open_with_driver("int cuDriverGetVersion(int *version) { *version = 12080; return 0; }") else { return };
    assert!(report.contains("the driver supports CUDA 12.8, smidgen needs 13.0 or newer"), "{report}");
}

#[test]
fn a_driver_that_fails_or_lacks_functions_is_reported_and_not_called() {
    for (source, report) in [
        ("int cuDriverGetVersion(int *version) { return 34; }", "CUDA_ERROR_STUB_LIBRARY"),
        ("int cuDriverGetVersion(int *version) { *version = 13000; return 0; }", "lacks `cuCtxGetDevResource`"),
        ("int nothing;", "lacks `cuDriverGetVersion`"),
    ] {
        let Some(printed) = open_with_driver(source) else { return };
        assert!(printed.contains(report), "{source}: {printed}");
    }
}

/// What a process prints that opens the device with a driver library compiled from `source`; `None` without a C compiler.
fn open_with_driver(source: &str) -> Option<String> {
    let folder = tempfile::tempdir().expect("a folder for the driver");
    if !compile(source, folder.path()) {
        return None;
    }
    let this_test = std::env::current_exe().expect("the path of this test");
    let output = Command::new(this_test)
        .args(["--exact", "driver::child_opens_the_device", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .expect("this test runs again as a child");
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    Some(printed.into_owned())
}

fn compile(source: &str, folder: &Path) -> bool {
    let c = folder.join("driver.c");
    std::fs::write(&c, source).expect("the source is written");
    let compiler = Command::new("cc").args(["-shared", "-fPIC", "-w", "-o"]).arg(folder.join("libcuda.so")).arg(c).status();
    let Ok(status) = compiler else {
        eprintln!("skipped: there is no C compiler to make a driver library with");
        return false;
    };
    assert!(status.success(), "the driver library compiles");
    true
}

/// Run by [`open_with_driver`] in a process of its own, because a process looks for its driver only once.
#[test]
#[ignore = "run by the tests of broken drivers, in a process of its own"]
fn child_opens_the_device() {
    match CudaDevice::open(0) {
        Ok(_) => println!("opened"),
        Err(error) => println!("{error}"),
    }
}
