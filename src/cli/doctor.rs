//! `smidgen doctor`: what this machine has, what is missing, and what to do about it.

use std::fmt::Display;
use std::process::ExitCode;

use smidgen::colocate::mps;
use smidgen::fatbin::{BUILD_HASH, FATBIN};

use super::output::print_line;

/// Prints every finding; exit code 2 if something is missing that a GPU run needs.
pub fn run() -> anyhow::Result<ExitCode> {
    let mut findings = Findings::default();
    match FATBIN {
        Some(image) => findings.good("kernels", format!("built in, {} KB, build {BUILD_HASH}", image.len() / 1024)),
        None => findings.bad("kernels", "not built in: no CUDA compiler was found", "run `cargo xtask toolchain`, then build again"),
    }
    gpu(&mut findings);
    match mps::find() {
        Ok(path) => findings.good("MPS", path.display()),
        Err(_) => findings.note(
            "MPS",
            "`nvidia-cuda-mps-control` is not on the PATH",
            "only the mps- baselines need it; it comes with the NVIDIA driver",
        ),
    }
    let (last, code) = match findings.missing {
        0 => ("everything is there; try `smidgen demo`".to_owned(), ExitCode::SUCCESS),
        missing => (format!("{missing} missing; `--device sim` and `--device cpu` work all the same"), ExitCode::from(2)),
    };
    findings.lines.push(last);
    print_line(findings.lines.join("\n"))?;
    Ok(code)
}

#[cfg(feature = "cuda-13000")]
fn gpu(findings: &mut Findings) {
    use smidgen_runtime::device::cuda;

    let probe = cuda::probe(0);
    // What rests on a missing part is not asked for: it would only repeat the same error.
    let there = findings.result("driver library", probe.library.map(|()| "libcuda found"))
        && findings
            .result("driver", probe.driver_version.map(|version| format!("supports CUDA {}.{}", version / 1000, version % 1000 / 10)))
        && findings.result("GPUs", probe.devices.map(|names| names.join(", ")));
    if !there {
        return;
    }
    findings.result(
        "GPU 0",
        probe.topology.map(|gpu| {
            let gigabytes = gpu.memory_bytes as f64 / 1e9;
            let (major, minor) = gpu.compute_capability;
            format!("{}, {} SMs in {} TPCs, {gigabytes:.0} GB, sm_{major}{minor}, driver {}", gpu.name, gpu.sms, gpu.tpcs(), gpu.driver)
        }),
    );
    let groups = |granularity: cuda::Granularity| {
        format!("{} groups of {} SMs, {} left over", granularity.groups, granularity.sms_per_group, granularity.left_over)
    };
    findings.result("partitions", probe.finest.map(groups));
    findings.result("for clusters", probe.coscheduled.map(groups));
    findings.result("green context", probe.partition.map(|sms| format!("one TPC gives {sms} SMs")));
}

#[cfg(not(feature = "cuda-13000"))]
fn gpu(findings: &mut Findings) {
    findings.bad("GPU", "this binary has no CUDA back end", "build with the feature `cuda-13000`");
}

#[derive(Default)]
struct Findings {
    lines: Vec<String>,
    missing: u32,
    /// The last device error. Every later probe fails for the same reason, which is said once.
    last_error: Option<String>,
}

impl Findings {
    fn good(&mut self, what: &str, finding: impl Display) {
        self.lines.push(format!("  ok       {what:<15} {finding}"));
    }

    fn bad(&mut self, what: &str, finding: impl Display, remedy: &str) {
        self.missing += 1;
        self.lines.push(format!("  MISSING  {what:<15} {finding}\n           {:<15} {remedy}", ""));
    }

    fn note(&mut self, what: &str, finding: impl Display, remedy: &str) {
        self.lines.push(format!("  absent   {what:<15} {finding}\n           {:<15} {remedy}", ""));
    }

    /// A finding, or an error that carries its remedy; whether it is there.
    fn result<T: Display, E: Display>(&mut self, what: &str, result: Result<T, E>) -> bool {
        match &result {
            Ok(finding) => self.good(what, finding),
            Err(error) => {
                let error = error.to_string();
                if self.last_error.as_ref() != Some(&error) {
                    self.missing += 1;
                    self.lines.push(format!("  MISSING  {what:<15} {error}"));
                    self.last_error = Some(error);
                }
            }
        }
        result.is_ok()
    }
}
