//! `smidgen colocate` and `smidgen demo`: tenants side by side, under one policy after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use smidgen::colocate::queue::Queue;
use smidgen::colocate::results::{RunProvenance, RunResult};
use smidgen::colocate::sharing::Sharing;
use smidgen::colocate::spec::TenantRequest;
use smidgen::colocate::watch::{Endpoint, Exposition, Watch};
use smidgen::colocate::{Run, Where, mps, profiles, report, table, tenants_file};
use smidgen_profiler::today;
use smidgen_runtime::device::Topology;
use smidgen_runtime::policy::{self, Ablations};
use smidgen_runtime::profile::quoted;
use smidgen_runtime::telemetry::chrome::{self, Phase};

use super::inputs::model_files;
use super::output::{Unfinished, check_writable, print_line};
use super::{profile, progress};

/// Where tenants run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RunDevice {
    /// The GPU of this machine.
    Cuda,
    /// The simulated H200: durations from a measured profile, in virtual time. Every figure says SIMULATED.
    Sim,
}

impl From<RunDevice> for Where {
    fn from(device: RunDevice) -> Self {
        match device {
            RunDevice::Cuda => Self::Cuda,
            RunDevice::Sim => Self::Sim,
        }
    }
}

/// What `--policy` takes, by every name.
fn policy_help() -> String {
    format!(
        "Policies and baselines, in the order they run: {}. mps-percent gives every tenant an equal percentage of the SMs, mps-percent:40/60 given ones. \
         Each mps- baseline runs twice, the second time with kernels that have one thread block for each tile; mps-default:tiles is that form alone. slo:no-borrow+no-bandwidth is slo without two \
         of its parts, of which there are {}",
        Sharing::names().collect::<Vec<_>>().join(", "),
        Ablations::NAMES.join(", ")
    )
}

/// Run tenants side by side on one GPU under several policies, and compare.
#[derive(Debug, Args)]
pub struct ColocateArgs {
    /// A tenant: NAME=MODEL[,class=latency|throughput,slo=5ms,batch=8,seq=128,rate=200/s]; MODEL is a preset or a model directory. With
    /// prompt=128,generate=64[,chunk=512] in place of seq, a decoder serves whole requests by continuous batching; with phase=prefill, a request is
    /// the prefill of prompts of seq tokens in place of a decode step. load=0.3 is a rate of 0.3 times what the tenant does alone, slo=1.5x an
    /// objective of 1.5 times its p99 alone at that load: both are measured first. With slo, class=latency need not be said.
    #[arg(long, required_unless_present = "tenants")]
    tenant: Vec<TenantRequest>,
    /// A TOML file of tenants: tenants = ["NAME=MODEL,...", ...].
    #[arg(long, value_name = "FILE")]
    tenants: Option<PathBuf>,
    /// Policies and baselines.
    #[arg(long, value_delimiter = ',', default_values = ["mps-default", policy::DEFAULT], value_name = "NAME", help = policy_help(), long_help = policy_help())]
    policy: Vec<Sharing>,
    /// Time measured for each policy, such as 10s.
    #[arg(long, default_value = "10s", value_parser = seconds, allow_hyphen_values = true)]
    duration: f64,
    /// Profiles that policies place by, and that the simulator takes durations from. On a GPU, tenants with kernels that are in none of them are
    /// profiled first if a policy needs it; the simulator takes the shipped profile where none is given.
    #[arg(long)]
    profile: Vec<PathBuf>,
    /// Write the result as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the result as one HTML page.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Device memory for partitions, MiB. Three quarters are taken when a policy starts, for those that its plans are likely to name. A 64th of the GPU's memory unless told otherwise.
    #[arg(long, value_name = "MIB")]
    partition_memory: Option<u32>,
    /// GPU or simulator.
    #[arg(long, value_enum, default_value = "cuda")]
    device: RunDevice,
    /// Write the timelines of the policies as a Chrome trace, which https://ui.perfetto.dev opens. Baselines have none.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// While it runs, show metrics for Prometheus and `smidgen top` at http://ADDR/metrics, such as 127.0.0.1:9464.
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// Write the queue of kernels that ran without a profile, by tenant: `smidgen profile --queue FILE` measures what it names.
    #[arg(long, value_name = "FILE")]
    queue: Option<PathBuf>,
    /// Also run the simulator on the same profiles, and print how far it is off.
    #[arg(long)]
    predict: bool,
}

/// The main job on two presets: MPS default against smidgen, with a table, a JSON file and a report.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder for demo.json and demo.html.
    #[arg(long, default_value = "target/demo")]
    out: PathBuf,
    /// Time measured for each policy.
    #[arg(long, default_value = "3s", value_parser = seconds, allow_hyphen_values = true)]
    duration: f64,
    /// GPU or simulator; the GPU where there is one.
    #[arg(long, value_enum)]
    device: Option<RunDevice>,
}

/// The tenants of the demo: those of results/h200/slo-30-encoder.json, at a load that MPS can follow too.
const DEMO_TENANTS: [&str; 2] =
    ["chat=llama-3.2-1b,class=latency,slo=1.5x,batch=8,seq=128,load=0.1", "embed=bert-large,class=throughput,batch=64,seq=128"];
const DEMO_POLICIES: [&str; 3] = ["mps-default", "static-equal", policy::DEFAULT];

pub fn run(args: ColocateArgs) -> anyhow::Result<()> {
    if args.predict && args.device == RunDevice::Sim {
        bail!("--predict sets the simulator beside a GPU's figures; leave it out with --device sim");
    }
    let files =
        Files { json: args.json.as_deref(), html: args.html.as_deref(), trace: args.trace.as_deref(), queue: args.queue.as_deref() };
    let mut tenants = args.tenants.as_deref().map_or(Ok(Vec::new()), tenants_file::read)?;
    tenants.extend(args.tenant);
    let place = args.device.into();
    let mut given = args.profile;
    if place == Where::Sim && given.is_empty() {
        given.push(find_shipped_profile());
    }
    let models = tenants.iter().flat_map(|tenant| model_files(&tenant.model));
    let inputs: Vec<_> = given.iter().cloned().chain(args.tenants).chain(models).collect();
    check_writable(&files.all(), &inputs)?;
    let exposition = args.metrics.is_some().then(Arc::<Exposition>::default);
    let watch = Watch { timelines: args.trace.is_some().then(Arc::default), metrics: exposition.clone(), ..Watch::default() };
    let policies = Sharing::with_both_forms(args.policy);
    let partition_bytes = args.partition_memory.map(|mib| u64::from(mib) << 20);
    let mut run = Run { tenants, policies, seconds: args.duration, profiles: given, partition_bytes, place, watch };
    let topology = run.inspect()?;
    run.check()?;
    let endpoint =
        args.metrics.as_deref().zip(exposition).map(|(address, exposition)| Endpoint::listen(address, exposition)).transpose()?;
    if let Some(endpoint) = &endpoint {
        let mark = if place == Where::Sim { "SIMULATED  " } else { "" };
        eprintln!("{mark}metrics at http://{}/metrics", endpoint.address());
    }
    if place == Where::Cuda {
        run.profiles.extend(profile::make_missing(&run.tenants, &run.policies, &run.profiles)?);
    }
    let mut result = execute(&run, topology)?;
    if args.predict {
        run.predict(&mut result)?;
    }
    files.write(&run, &result)?;
    show(&run, &result, &files)
}

pub fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let device = args.device.unwrap_or_else(|| if smidgen::cuda::open().is_ok() { RunDevice::Cuda } else { RunDevice::Sim });
    let place = Where::from(device);
    let tenants = DEMO_TENANTS.iter().map(|tenant| tenant.parse()).collect::<Result<Vec<TenantRequest>, _>>()?;
    let mut policies = DEMO_POLICIES.iter().map(|policy| policy.parse()).collect::<Result<Vec<Sharing>, _>>()?;
    if let (Where::Cuda, Err(missing)) = (place, mps::find()) {
        print_line(format_args!("without MPS, time slicing in its place: {missing}"))?;
        policies.retain(|policy| !policy.needs_mps());
        policies.insert(0, "time-slice".parse()?);
    }
    let policies = Sharing::with_both_forms(policies);
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}; choose another --out", args.out.display()))?;
    let (json, html) = (args.out.join("demo.json"), args.out.join("demo.html"));
    let files = Files { json: Some(&json), html: Some(&html), trace: None, queue: None };
    check_writable(&files.all(), &[])?;
    let mut run =
        Run { tenants, policies, seconds: args.duration, profiles: Vec::new(), partition_bytes: None, place, watch: Watch::default() };
    let topology = run.inspect()?;
    run.check()?;
    run.profiles = match place {
        Where::Sim => vec![find_shipped_profile()],
        Where::Cuda => profile::make_missing(&run.tenants, &run.policies, &[])?,
    };
    let result = execute(&run, topology)?;
    files.write(&run, &result)?;
    show(&run, &result, &files)
}

/// Prints what a run found, the command that profiles what had no profile to be placed or simulated by, and the files that were written.
fn show(run: &Run, result: &RunResult, files: &Files<'_>) -> anyhow::Result<()> {
    let mark = if run.place == Where::Sim { "SIMULATED  " } else { "" };
    print_line(table::render(result).trim_end())?;
    if let Some(built_in) = built_in(run) {
        print_line(format_args!("{mark}{built_in}"))?;
    }
    let given: String = run.profiles.iter().map(|path| format!("--profile {} ", path.display())).collect();
    let device = if run.place == Where::Sim { "--device sim " } else { "" };
    let consequence = match run.place {
        Where::Cuda => "they ran on the policy's default placement",
        Where::Sim => "the simulator estimated their times, and no policy placed them by a profile",
    };
    for (name, kernels) in &*run.watch.unprofiled.lock() {
        let Some(tenant) = run.tenants.iter().find(|tenant| tenant.name == *name) else { continue };
        let unprofiled = format!("{mark}{} kernels of tenant {name} have no profile", kernels.len());
        match tenant.stream {
            // `smidgen profile` measures requests of one shape, and a stream's steps have others.
            Some(_) => print_line(format_args!("{unprofiled}, and of a stream's steps none is made yet: {consequence}"))?,
            None => {
                let command = match files.queue {
                    Some(queue) => format!("smidgen profile {device}--queue {} -o FILE", quoted(&queue.display().to_string())),
                    None => profile::command(tenant, device, "FILE"),
                };
                print_line(format_args!("{unprofiled}: run `{command}`, then this again with `{given}--profile FILE`"))?;
            }
        }
    }
    files.all().iter().try_for_each(|path| print_line(format_args!("{mark}wrote {}", path.display())))
}

/// The shipped profile: in the working directory, beside the binary (as `cargo xtask bundle` lays it out), or else the one that is built in, which has the name of the first.
fn find_shipped_profile() -> PathBuf {
    let here = PathBuf::from(profiles::SHIPPED);
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(profiles::SHIPPED)));
    beside.filter(|beside| !here.is_file() && beside.is_file()).unwrap_or(here)
}

/// Says of profiles that are not there that those built in are used.
fn built_in(run: &Run) -> Option<String> {
    let path = run.profiles.iter().find(|path| profiles::is_built_in(path))?;
    Some(format!("{} is not in this folder: the one built into smidgen is used", path.display()))
}

fn execute(run: &Run, topology: Topology) -> anyhow::Result<RunResult> {
    let provenance = RunProvenance {
        // As a comment, so that it can be typed again.
        command: super::command_line() + &built_in(run).map_or(String::new(), |built_in| format!("  # {built_in}")),
        commit: super::commit(),
        gpu: topology.name,
        sms: topology.sms.0,
        driver: topology.driver,
        date: today(),
        simulated: run.place == Where::Sim,
        seconds: run.seconds,
    };
    let mark = if provenance.simulated { "SIMULATED " } else { "" };
    let bar = progress::bar(run.phases() as u64, "{prefix}{bar:24} {pos}/{len} {msg} {elapsed}")?.with_prefix(mark);
    let mut begun = 0;
    let result = run.execute(provenance, |phase| {
        bar.set_position(begun);
        bar.set_message(phase.to_owned());
        begun += 1;
    });
    bar.finish_and_clear();
    Ok(result?)
}

/// The files that are wanted.
struct Files<'a> {
    json: Option<&'a Path>,
    html: Option<&'a Path>,
    trace: Option<&'a Path>,
    queue: Option<&'a Path>,
}

impl<'a> Files<'a> {
    fn all(&self) -> Vec<&'a Path> {
        [self.json, self.html, self.trace, self.queue].into_iter().flatten().collect()
    }

    fn write(&self, run: &Run, result: &RunResult) -> anyhow::Result<()> {
        let mut outputs = Vec::new();
        if let Some(path) = self.json {
            outputs.push((path, serde_json::to_string_pretty(result)?));
        }
        if let Some(path) = self.html {
            outputs.push((path, report::render(result)));
        }
        if let (Some(path), Some(timelines)) = (self.trace, &run.watch.timelines) {
            let timelines = timelines.lock();
            let phases: Vec<_> = timelines.iter().map(|(name, trace)| Phase { name, trace }).collect();
            let mut text = Vec::new();
            chrome::write(&phases, &mut text)?;
            outputs.push((path, String::from_utf8(text)?));
        }
        if let Some(path) = self.queue {
            outputs.push((path, serde_json::to_string_pretty(&Queue::of(run))?));
        }
        // All are complete before the first appears.
        let mut complete = Vec::new();
        for (path, text) in &outputs {
            let mut file = Unfinished::create(path)?;
            file.write(text.as_bytes())?;
            complete.push(file);
        }
        complete.into_iter().try_for_each(Unfinished::finish)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let (number, per_second) = match (text.strip_suffix("us"), text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _, _) => (number, 1e6),
        (_, Some(number), _) => (number, 1e3),
        (_, _, number) => (number.unwrap_or(text), 1.0),
    };
    let seconds = number.parse().ok().map(|number: f64| number / per_second);
    seconds.filter(|seconds| (0.05..=3600.0).contains(seconds)).ok_or_else(|| "write a time from 50ms to 3600s, such as 10s".into())
}
