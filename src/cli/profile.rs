//! `smidgen profile`: the minimum SM count of every kernel of a model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use smidgen::colocate::profiles;
use smidgen::colocate::queue::{Queue, Queued};
use smidgen::colocate::sharing::Sharing;
use smidgen::colocate::spec::TenantRequest;
use smidgen::fatbin::BUILD_HASH;
use smidgen::models::{DecoderPhase, Direct, ModelSource};
use smidgen::serve::Workload;
use smidgen_profiler::clocks::Clocks;
use smidgen_profiler::{Options, Origin, PowerMeter, Progress, Size, Sweep, SweepError, report, today};
use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::device::{Device, Sms};
use smidgen_runtime::launch::{Kernel, Session};
use smidgen_runtime::partition::{Ladder, PARTITION_BYTES, rungs};
use smidgen_runtime::policy::{self, Exclusive};
use smidgen_runtime::profile::{KernelProfile, Profile, ProfileStore, SamplePoint, quoted};
use smidgen_runtime::tenant::{Class, TenantSpec};
use smidgen_runtime::{Runtime, RuntimeOptions};

use super::colocate::RunDevice;
use super::inputs::model_files;
use super::output::{check_not_read, check_writable, print_line};

/// Partitions that a sweep keeps at a time.
const PARTITIONS: u32 = 64;

/// How often the board's power is read while kernels run for it: more often than the sensor looks, so that none of its figures is missed.
const POWER_PERIOD: Duration = Duration::from_millis(20);

/// Find the fewest SMs on which each kernel of a model keeps its speed.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// A preset or a model directory; several add up in one file.
    #[arg(long, required_unless_present = "queue")]
    model: Vec<String>,
    /// In place of a model, what `smidgen colocate --queue FILE` has queued: the kernels that its tenants ran without a profile, and no others.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "batch", "seq", "phase"])]
    queue: Option<PathBuf>,
    /// The profile to write; one that is there already is gone on with.
    #[arg(short, long)]
    output: PathBuf,
    /// Sequences in one request; images for a vision model.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Tokens in each sequence (an encoder's input, a decoder's context). A vision model does not look at it: its images have as many tokens as
    /// they have, 197 for vit-base-patch16-224.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    seq: u32,
    /// What a request of a decoder is: one decode step, or the prefill of prompts of --seq tokens.
    #[arg(long, default_value = "decode", value_name = "decode|prefill")]
    phase: DecoderPhase,
    /// How much slower than on the whole GPU a kernel may be on its minimum SM count: 0.02 is 2%.
    #[arg(long, default_value_t = 0.02, allow_negative_numbers = true)]
    tolerance: f64,
    /// SM counts to measure, such as 8,16,32; the whole GPU always is. Default: the ladder's rungs.
    #[arg(long, value_delimiter = ',')]
    sms: Vec<u16>,
    /// Tile shapes to try on each SM count, the one that the kernel predicts to be quickest among them; a run uses another one where that was quicker. Each takes
    /// a third of the time again for kernels that have several, as matrix products do. Points that the file has already stay as they are.
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    tiles: u32,
    /// GPU or simulator. A simulated profile says so, and no GPU accepts it.
    #[arg(long, value_enum, default_value = "cuda")]
    device: RunDevice,
    /// Milliseconds for which each kernel runs at each of four SM counts while `nvidia-smi` reads the board's power, so that plans can count joules. At least 150: the
    /// sensor looks ten times a second.
    #[arg(long, default_value_t = 300, value_name = "MS", value_parser = clap::value_parser!(u64).range(150..=60_000))]
    power_window: u64,
    /// Read no power: about 1.2 s less for each kernel.
    #[arg(long, conflicts_with = "power_window")]
    no_energy: bool,
}

pub fn run(args: ProfileArgs) -> anyhow::Result<()> {
    let models = args.model.iter().flat_map(|model| model_files(model));
    let inputs: Vec<_> = args.queue.iter().cloned().chain(models).collect();
    check_not_read(&args.output, &inputs)?;
    if args.output.exists() {
        // What is there must be one to go on with.
        Profile::read(&args.output)?;
    }
    check_writable(&[&args.output], &[])?;
    let device: Arc<dyn Device> = match args.device {
        RunDevice::Cuda => smidgen::cuda::open()?,
        RunDevice::Sim => SimDevice::new(SimConfig::h200()),
    };
    let (tolerance, configurations) = (args.tolerance, args.tiles);
    let mut options = Options { rungs: rungs(device.topology()), tolerance, configurations, ..Options::default() };
    options.power_window = if args.no_energy { Duration::ZERO } else { Duration::from_millis(args.power_window) };
    if !args.sms.is_empty() {
        options.rungs = args.sms.iter().map(|&sms| Sms(sms)).collect();
    }
    if let Some(queue) = &args.queue {
        return run_queue(&device, &Queue::read(queue)?, &options, &args.output);
    }
    // A name that is none is said before the models ahead of it are measured.
    args.model.iter().try_for_each(|model| ModelSource::find(model).map(drop))?;
    for model in &args.model {
        let recording = record(&device, model, args.phase, args.batch, args.seq)?;
        let profile = sweep(&device, model, &recording, &options, &args.output, super::command_line())?;
        print_line(report::table(&profile).trim_end())?;
    }
    let mark = if device.is_simulated() { "SIMULATED  " } else { "" };
    print_line(format_args!("{mark}wrote {}", args.output.display()))
}

/// Profiles the kernels of a queue.
fn run_queue(device: &Arc<dyn Device>, queue: &Queue, options: &Options, output: &Path) -> anyhow::Result<()> {
    let (mark, option) = if device.is_simulated() { ("SIMULATED  ", "--device sim ") } else { ("", "") };
    if queue.tenants.is_empty() {
        return print_line(format_args!(
            "{mark}nothing is queued: every kernel has a profile, so that nothing was measured and {} was not written",
            output.display()
        ));
    }
    queue.tenants.iter().try_for_each(|queued| ModelSource::find(&queued.tenant.model).map(drop))?;
    let mut is_written = false;
    for Queued { tenant, kernels } in &queue.tenants {
        if tenant.stream.is_some() {
            print_line(format_args!(
                "{mark}{} kernels of tenant {} are left out: no profile is made of a stream's steps yet",
                kernels.len(),
                tenant.name
            ))?;
            continue;
        }
        let mut recording = record(device, &tenant.model, tenant.phase, tenant.batch, tenant.context())?;
        recording.launches.retain(|kernel| kernels.contains(&kernel.key().to_string()));
        let found: BTreeSet<_> = recording.launches.iter().map(|kernel| kernel.key().to_string()).collect();
        if found.len() < kernels.len() {
            let others = kernels.len() - found.len();
            print_line(format_args!(
                "{mark}{others} queued kernels of tenant {} are in no request of this build: run it again to queue what is",
                tenant.name
            ))?;
        }
        if !found.is_empty() {
            // The command that measures these kernels again: the queue will have gone by then.
            let command = command(tenant, option, &quoted(&output.display().to_string()));
            let profile = sweep(device, &tenant.model, &recording, options, output, command)?;
            print_line(report::table(&profile).trim_end())?;
            is_written = true;
        }
    }
    if is_written {
        print_line(format_args!("{mark}wrote {}", output.display()))
    } else {
        print_line(format_args!("{mark}nothing was measured, and {} was not written", output.display()))
    }
}

/// Profiles what a run's policies need and `given` does not hold, into one file for this GPU that the next run finds again.
pub fn make_missing(tenants: &[TenantRequest], policies: &[Sharing], given: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let needed = policies.iter().any(|sharing| match sharing {
        Sharing::Policy(name) => policy::by_name(name).is_ok_and(|policy| policy.needs_profiles()),
        Sharing::TimeSlice | Sharing::Mps { .. } => false,
    });
    if !needed {
        return Ok(Vec::new());
    }
    let device = smidgen::cuda::open()?;
    let (known, _) = profiles::load(given, &*device)?;
    let path =
        PathBuf::from("target/profiles").join(format!("{}-{BUILD_HASH}.json", device.topology().name.replace(' ', "-").to_lowercase()));
    let options = Options { rungs: rungs(device.topology()), ..Options::default() };
    let mut made = None;
    for tenant in tenants {
        let recording = record(&device, &tenant.model, tenant.phase, tenant.batch, tenant.context())?;
        if !recording.launches.iter().all(|kernel| known.kernel(kernel.key().fingerprint()).is_some()) {
            // Not the command of this run: who measures the file again wants the profile, and need not serve anybody.
            let command = command(tenant, "", &quoted(&path.display().to_string()));
            sweep(&device, &tenant.model, &recording, &options, &path, command)?;
            made = Some(path.clone());
        }
    }
    Ok(made.into_iter().collect())
}

/// The command that profiles what `tenant` runs; `device` is an option with a space after it, or nothing.
pub fn command(tenant: &TenantRequest, device: &str, output: &str) -> String {
    let (model, batch, seq) = (quoted(&tenant.model), tenant.batch, tenant.context());
    let phase = match tenant.phase {
        DecoderPhase::Decode => "",
        DecoderPhase::Prefill => " --phase prefill",
    };
    format!("smidgen profile {device}--model {model} --batch {batch} --seq {seq}{phase} -o {output}")
}

/// The launches of one request, and what keeps their buffers.
struct Recording {
    launches: Vec<Box<dyn Kernel + Send>>,
    _workload: Box<dyn Workload>,
    _session: Session,
    _runtime: Runtime,
}

/// Runs one request of `model`.
fn record(device: &Arc<dyn Device>, model: &str, phase: DecoderPhase, batch: u32, seq: u32) -> anyhow::Result<Recording> {
    // The runtime makes no partition; the sweep does, beside what the request keeps in memory.
    let options = RuntimeOptions { partition_bytes: Some(u64::from(PARTITIONS) * PARTITION_BYTES), ..RuntimeOptions::default() };
    let runtime = Runtime::with_options(Arc::clone(device), Box::new(Exclusive), Arc::new(ProfileStore::default()), options);
    let source = ModelSource::find(model)?;
    let memory_bytes = match phase {
        DecoderPhase::Decode => source.memory_bytes(batch, seq),
        DecoderPhase::Prefill => source.prefill_memory_bytes(batch, seq),
    }?;
    let tenant = runtime.admit(TenantSpec { name: model.to_owned(), class: Class::Throughput, slo: None, memory_bytes })?;
    let mut session = runtime.session(tenant)?;
    let mut workload = match phase {
        DecoderPhase::Decode => source.workload(&mut session, &mut Direct, batch, seq),
        DecoderPhase::Prefill => source.prefill(&mut session, &mut Direct, batch, seq),
    }?;
    session.start_recording();
    workload.enqueue(&mut session)?;
    device.synchronize(session.stream())?;
    let launches = session.finish_recording();
    Ok(Recording { launches, _workload: workload, _session: session, _runtime: runtime })
}

/// Sweeps the kernel keys of a recorded request into `path`, and notes `command` there.
fn sweep(
    device: &Arc<dyn Device>,
    model: &str,
    recording: &Recording,
    options: &Options,
    path: &Path,
    command: String,
) -> anyhow::Result<Profile> {
    let ladder = Ladder::new(Arc::clone(device), PARTITIONS as usize);
    let origin = Origin { model: model.to_owned(), kernel_build: BUILD_HASH.to_owned(), command, commit: super::commit(), date: today() };
    let reads_power = !device.is_simulated() && !options.power_window.is_zero();
    let clocks = reads_power.then(|| Clocks::every(POWER_PERIOD));
    let meter = clocks.as_ref().map(|clocks| clocks as &dyn PowerMeter);
    let sweep = Sweep { device, ladder: &ladder, recording: &recording.launches, origin: &origin, options, meter };
    sweep.run_into(path, &mut Bar::new(model)?).map_err(|error| match error {
        SweepError::Option { name: "rungs", reason } => anyhow!("--sms: {reason}"),
        other => other.into(),
    })
}

/// A progress bar over the points of a sweep.
struct Bar(ProgressBar);

impl Bar {
    fn new(model: &str) -> anyhow::Result<Self> {
        let style = ProgressStyle::with_template("profiling {prefix} {bar:32} {pos}/{len} points {msg} {elapsed}<{eta}")?;
        Ok(Self(ProgressBar::no_length().with_style(style).with_prefix(model.to_owned())))
    }
}

impl Progress for Bar {
    fn begin(&mut self, size: Size) {
        self.0.set_length((size.points + size.windows) as u64);
        self.0.set_position(size.finished as u64);
    }

    fn key_begun(&mut self, key: &str) {
        self.0.set_message(key.to_owned());
    }

    fn point_done(&mut self, _key: &str, _point: &SamplePoint) {
        self.0.inc(1);
    }

    fn window_done(&mut self, _key: &str, _sms: Sms) {
        self.0.inc(1);
    }

    fn key_done(&mut self, _key: &str, _kernel: &KernelProfile) {}
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
