//! Tenants in processes of their own, from this same binary.
//!
//! Every measured phase on a GPU runs in fresh processes: one for each tenant in the baselines, one for all of them under a policy of the
//! runtime. So no phase inherits another's contexts, and a crash ends one phase with an error instead of the run.
//!
//! The coordinator and a worker talk in lines: the job goes in as JSON; `ready` comes out when the models are loaded and captured; `go` goes
//! in once all workers are ready; a [`Report`] comes out as JSON, after others of metrics where they are wanted. A worker whose coordinator is gone, however it
//! ended, sees its input end, and ends too.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use smidgen_runtime::tenant::Class;

use super::mps::{MpsDaemon, MpsError};
use super::phase::{self, PhaseDevice, PhaseError};
use super::results::TenantResult;
use super::sharing::{MpsLimits, Sharing};
use super::spec::TenantRequest;
use super::watch::{PhaseWatch, Shown};

/// The hidden subcommand that a worker process runs.
pub const SUBCOMMAND: &str = "worker";

/// The environment variables by which an MPS client tells its priority, 0 being the highest and 1 the next, and the most of the SMs it will use. NVIDIA,
/// "Multi-Process Service", appendix "Environment Variables".
const PRIORITY: &str = "CUDA_MPS_CLIENT_PRIORITY";
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
const PERCENTAGE: &str = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE";

/// How many hardware queues an MPS client asks for, as in `CUDA_DEVICE_MAX_CONNECTIONS`. Clients share what there is: four that ask for 32 each were refused
/// their context, out of memory. A client here has one tenant, whose launches run one after another.
const CONNECTIONS: (&str, &str) = ("CUDA_DEVICE_MAX_CONNECTIONS", "4");

/// What a worker shall do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// How its tenants share the GPU.
    pub sharing: Sharing,
    /// Its tenants.
    pub tenants: Vec<TenantRequest>,
    /// Profiles for policies that place by them.
    pub profiles: Vec<PathBuf>,
    /// Seconds to measure.
    pub seconds: f64,
    /// Device memory for partitions, if it is not for the runtime to say.
    pub partition_bytes: Option<u64>,
    /// Whether a timeline is wanted.
    pub trace: bool,
    /// Whether [`Report::Metrics`] are wanted.
    pub metrics: bool,
}

/// What a worker answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// Metrics as Prometheus text; more reports follow.
    Metrics(String),
    /// The figures, one entry a tenant, and what else the phase showed.
    Done(Vec<TenantResult>, Shown),
    /// One clear sentence.
    Failed(String),
}

/// A phase that workers could not finish.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A worker could not be started or spoken to.
    #[error("cannot talk to the process of tenant {tenant}: {source}")]
    Pipe {
        /// Which tenants it serves.
        tenant: String,
        /// Why.
        source: io::Error,
    },
    /// A worker ended without a report.
    #[error("the process of tenant {tenant} ended without a result ({status}); its own message stands above")]
    Died {
        /// Which tenants it serves.
        tenant: String,
        /// Its exit status.
        status: String,
    },
    /// A worker's own error.
    #[error("{0}")]
    Failed(String),
    /// No MPS.
    #[error(transparent)]
    Mps(#[from] MpsError),
}

/// Runs one phase in worker processes and collects the tenants' figures in the order asked for; also, when their load began.
///
/// # Errors
/// The first worker's error; all others are stopped then.
pub fn run_phase(
    sharing: &Sharing,
    tenants: &[TenantRequest],
    profiles: &[PathBuf],
    seconds: f64,
    watch: &PhaseWatch<'_>,
) -> Result<(Vec<TenantResult>, Shown, Instant), WorkerError> {
    let daemon = sharing.needs_mps().then(MpsDaemon::start).transpose()?;
    let measured = run_workers(sharing, tenants, profiles, seconds, watch, daemon.as_ref());
    // An interrupt ends the workers too; it is the reason then, and not their end.
    daemon.as_ref().map_or(Ok(()), MpsDaemon::check_not_interrupted)?;
    measured
}

/// The workers of one phase. All are gone when this returns, so that their daemon can be asked to quit.
fn run_workers(
    sharing: &Sharing,
    tenants: &[TenantRequest],
    profiles: &[PathBuf],
    seconds: f64,
    watch: &PhaseWatch<'_>,
    daemon: Option<&MpsDaemon>,
) -> Result<(Vec<TenantResult>, Shown, Instant), WorkerError> {
    let groups: Vec<&[TenantRequest]> = if sharing.is_baseline() { tenants.chunks(1).collect() } else { vec![tenants] };
    let mut workers = Vec::new();
    let count = tenants.len();
    for (at, group) in groups.into_iter().enumerate() {
        let environment = group.first().and_then(|tenant| client_environment(sharing, tenant.class, at, count));
        // A baseline places nothing, and under a percentage the GPU shows fewer SMs than profiles were measured on.
        let profiles = if sharing.is_baseline() { Vec::new() } else { profiles.to_vec() };
        let (sharing, tenants) = (sharing.clone(), group.to_vec());
        // The processes of a baseline would each have metrics of their own, which do not make one text.
        let metrics = watch.metrics.is_some() && !sharing.is_baseline();
        let job = Job { sharing, tenants, profiles, seconds, partition_bytes: watch.partition_bytes, trace: watch.trace, metrics };
        workers.push(Worker::start(&job, daemon, environment)?);
    }
    for worker in &mut workers {
        worker.wait_until_ready()?;
    }
    daemon.map_or(Ok(()), MpsDaemon::check_in_use)?;
    for worker in &mut workers {
        worker.go()?;
    }
    let begun = Instant::now();
    let (mut results, mut shown) = (Vec::new(), Shown::default());
    for worker in &mut workers {
        let (figures, mut more) = worker.report(watch)?;
        results.extend(figures);
        shown.unprofiled.append(&mut more.unprofiled);
        shown.trace = shown.trace.or(more.trace);
        shown.power = shown.power.or(more.power);
    }
    Ok((results, shown, begun))
}

/// What tells MPS of one of `count` clients, number `at`.
fn client_environment(sharing: &Sharing, class: Class, at: usize, count: usize) -> Option<(&'static str, String)> {
    let Sharing::Mps { limits, .. } = sharing else { return None };
    match limits {
        MpsLimits::Default => None,
        MpsLimits::Priority if class == Class::Latency => Some((PRIORITY, "0".to_owned())),
        MpsLimits::Priority => Some((PRIORITY, "1".to_owned())),
        MpsLimits::Percent(_) => limits.percent(at, count).map(|percent| (PERCENTAGE, percent.to_string())),
    }
}

/// A worker process, stopped when dropped.
struct Worker {
    tenant: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    fn start(job: &Job, daemon: Option<&MpsDaemon>, environment: Option<(&str, String)>) -> Result<Self, WorkerError> {
        let tenant = job.tenants.iter().map(|tenant| format!("`{}`", tenant.name)).collect::<Vec<_>>().join(" and ");
        let pipe = |source| WorkerError::Pipe { tenant: tenant.clone(), source };
        let mut command = Command::new(std::env::current_exe().map_err(pipe)?);
        command.arg(SUBCOMMAND).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        match daemon {
            Some(daemon) => {
                // The daemon took the GPUs that it was shown, and numbers them anew.
                if std::env::var_os(VISIBLE).is_some() {
                    command.env(VISIBLE, "0");
                }
                command.envs(daemon.environment()).env(CONNECTIONS.0, CONNECTIONS.1)
            }
            // No daemon of the machine's own shall serve what is measured without MPS: nobody listens in this folder.
            None => command.env("CUDA_MPS_PIPE_DIRECTORY", std::env::temp_dir().join("no-mps-daemon")),
        };
        // What the user's shell may have set for other programs would make this baseline another one.
        command.env_remove(PRIORITY).env_remove(PERCENTAGE).envs(environment);
        let mut child = command.spawn().map_err(pipe)?;
        let missing = || pipe(io::ErrorKind::BrokenPipe.into());
        let mut stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        let text = serde_json::to_string(job).map_err(|error| pipe(error.into()))?;
        writeln!(stdin, "{text}").map_err(pipe)?;
        Ok(Self { tenant, child, stdin: Some(stdin), stdout })
    }

    fn line(&mut self) -> Result<String, WorkerError> {
        let mut line = String::new();
        let read = self.stdout.read_line(&mut line).map_err(|source| WorkerError::Pipe { tenant: self.tenant.clone(), source })?;
        if read == 0 {
            let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            return Err(WorkerError::Died { tenant: self.tenant.clone(), status });
        }
        Ok(line)
    }

    fn wait_until_ready(&mut self) -> Result<(), WorkerError> {
        let line = self.line()?;
        if line.trim() == "ready" { Ok(()) } else { Err(self.failure(&line)) }
    }

    fn go(&mut self) -> Result<(), WorkerError> {
        let sent = self.stdin.as_mut().map_or(Ok(()), |stdin| writeln!(stdin, "go"));
        sent.map_err(|source| WorkerError::Pipe { tenant: self.tenant.clone(), source })
    }

    fn report(&mut self, watch: &PhaseWatch<'_>) -> Result<(Vec<TenantResult>, Shown), WorkerError> {
        loop {
            let line = self.line()?;
            match (serde_json::from_str(&line), watch.metrics) {
                (Ok(Report::Done(results, shown)), _) => return Ok((results, shown)),
                (Ok(Report::Metrics(text)), Some(show)) => show(text),
                _ => return Err(self.failure(&line)),
            }
        }
    }

    fn failure(&self, line: &str) -> WorkerError {
        match serde_json::from_str(line) {
            Ok(Report::Failed(message)) => WorkerError::Failed(message),
            _ => WorkerError::Failed(format!("the process of tenant {} answered `{}`", self.tenant, line.trim())),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stdin = None;
        // A worker that has reported is gone already; either way it must not outlive the phase.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's side: reads its job from standard input and answers on standard output.
///
/// # Errors
/// Only if the coordinator cannot be told; everything else is told to it.
pub fn serve_coordinator() -> io::Result<()> {
    let told = told_by_coordinator();
    let report = match serde_json::from_str::<Job>(&told.recv().unwrap_or_default()) {
        Ok(job) => {
            run_job(&job, told).map_or_else(|error| Report::Failed(error.to_string()), |(results, shown)| Report::Done(results, shown))
        }
        Err(error) => Report::Failed(format!("a worker is started by `smidgen colocate`, with a job on standard input: {error}")),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// The lines of standard input, which end with the coordinator.
fn told_by_coordinator() -> Receiver<String> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    told
}

fn run_job(job: &Job, told: Receiver<String>) -> Result<(Vec<TenantResult>, Shown), Box<dyn Error>> {
    let device = crate::cuda::open()?;
    // The coordinator has warned of what is doubtful.
    let (profiles, _) = super::profiles::load(&job.profiles, &*device)?;
    let gate = || {
        println!("ready");
        io::stdout().flush().map_err(|_| PhaseError::CalledOff)?;
        told.recv().map_err(|_| PhaseError::CalledOff)?;
        thread::spawn(move || {
            while told.recv().is_ok() {}
            // Nobody stops this process, nor reads what it would report. Handlers of an exit would run beside threads that are inside the CUDA driver, whose own
            // handlers wait for those: the process might never end, and keep the GPU.
            signal_hook::low_level::exit(1)
        });
        Ok(())
    };
    let show = |text| match serde_json::to_string(&Report::Metrics(text)) {
        Ok(line) => println!("{line}"),
        Err(error) => tracing::debug!("metrics were not shown: {error}"),
    };
    let watch = PhaseWatch { partition_bytes: job.partition_bytes, trace: job.trace, metrics: job.metrics.then_some(&show) };
    Ok(phase::run(&PhaseDevice::Cuda(device), &job.sharing, &job.tenants, profiles, job.seconds, &watch, gate)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mps_client_is_told_its_priority_or_its_percentage() {
        let told = |name: &str, class, at, count| {
            client_environment(&name.parse().unwrap(), class, at, count).map(|(variable, value)| format!("{variable}={value}"))
        };
        assert_eq!(told("mps-default:tiles", Class::Latency, 0, 2), None);
        assert_eq!(told("time-slice", Class::Latency, 0, 2), None);
        assert_eq!(told("mps-priority", Class::Latency, 1, 2).unwrap(), "CUDA_MPS_CLIENT_PRIORITY=0");
        assert_eq!(told("mps-priority:tiles", Class::Throughput, 0, 2).unwrap(), "CUDA_MPS_CLIENT_PRIORITY=1");
        assert_eq!(told("mps-percent", Class::Throughput, 3, 4).unwrap(), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25");
        assert_eq!(told("mps-percent:40/60", Class::Latency, 1, 2).unwrap(), "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=60");
    }
}
