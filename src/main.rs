//! The `smidgen` command.
//!
//! Every command lives in a file of `cli/` and answers with `Ok` or one error; here the error becomes one line on standard error and exit
//! code 2. Standard output carries results only.

// They panic where nobody reads.
#![warn(clippy::print_stdout)]

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::fmt::time::uptime;

use smidgen::colocate::worker;

mod cli;

/// Run transformer models on one GPU, each kernel on just the SMs it needs.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Embed(cli::embed::EmbedArgs),
    Generate(cli::generate::GenerateArgs),
    Classify(cli::classify::ClassifyArgs),
    Forward(cli::forward::ForwardArgs),
    Profile(cli::profile::ProfileArgs),
    Colocate(cli::colocate::ColocateArgs),
    Demo(cli::colocate::DemoArgs),
    Top(cli::top::TopArgs),
    /// Say what this machine has, what is missing, and what to do about it.
    Doctor,
    /// Serve one phase of `colocate`; started by it.
    #[command(name = worker::SUBCOMMAND, hide = true)]
    Worker,
}

impl Command {
    /// Runs it: the exit code where nothing failed.
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Embed(args) => cli::embed::run(&args),
            Self::Generate(args) => cli::generate::run(&args),
            Self::Classify(args) => cli::classify::run(&args),
            Self::Forward(args) => cli::forward::run(&args),
            Self::Profile(args) => cli::profile::run(args),
            Self::Colocate(args) => cli::colocate::run(args),
            Self::Demo(args) => cli::colocate::demo(args),
            Self::Top(args) => cli::top::run(&args),
            Self::Doctor => return cli::doctor::run(),
            Self::Worker => Ok(worker::serve_coordinator()?),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

/// Whether `smidgen colocate` has started this process, and speaks for it.
fn is_worker() -> bool {
    std::env::args_os().any(|argument| argument == worker::SUBCOMMAND)
}

/// Warnings; with `SMIDGEN_LOG`, what it asks for, each line with the time since the start and each span with how long it took.
fn log_to_stderr() {
    let text = std::env::var_os("SMIDGEN_LOG");
    let asked = text.as_ref().map(|text| EnvFilter::try_new(text.to_string_lossy()));
    if let Some(Err(error)) = &asked
        && !is_worker()
    {
        eprintln!("warning: SMIDGEN_LOG is ignored, because it is no filter ({error}); write it like `debug` or `smidgen=debug,warn`");
    }
    let (asked, filter) = match asked {
        Some(Ok(filter)) => (true, filter),
        _ => (false, EnvFilter::new("warn")),
    };
    // https://no-color.org
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour).with_target(false);
    if asked {
        log.with_timer(uptime()).with_span_events(FmtSpan::CLOSE).init();
    } else {
        log.without_time().init();
    }
}

fn main() -> ExitCode {
    // The driver reads its settings from the environment when it starts, so they must stand there before any other thread does.
    #[cfg(feature = "cuda-13000")]
    {
        let (name, value) = smidgen_runtime::device::cuda::MAX_CONNECTIONS;
        // A worker has been told what suits its phase.
        if std::env::var_os(name).is_none() || !is_worker() {
            // SAFETY: no other thread runs yet.
            unsafe { std::env::set_var(name, value) };
        }
    }
    log_to_stderr();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command.run() {
        Ok(code) => code,
        // Whoever reads our output has seen enough, as in `smidgen embed ... | head`.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::from(2)
        }
    }
}

/// Help as it is; what is wrong with the arguments in one line, like every other error.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Fails only where nobody reads.
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let text = error.render().to_string();
    let problem: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    eprintln!("{}; see `--help`", problem.join(" "));
    ExitCode::from(2)
}

/// An error and its causes in one line. A cause that the message before it quotes already is left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string().replace('\n', " ")) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
