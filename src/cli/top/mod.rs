//! `smidgen top`: the tenants of a running `smidgen colocate --metrics`, live.
//!
//! It reads the metrics endpoint that Prometheus would read, and nothing else, so that it runs anywhere the endpoint can be reached and the
//! run does not know that it is watched.

mod scrape;
mod view;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};

use super::output::print_line;
use scrape::Status;

/// Longest wait for an answer, seconds.
const TIMEOUT: u64 = 3;

/// Watch the tenants of a running `smidgen colocate --metrics ADDR`: SMs, latency, objectives. Without a terminal it prints one table and ends.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Where the run shows its metrics: the ADDR of its `--metrics`.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    connect: String,
    /// Time between two looks, seconds.
    #[arg(long, default_value_t = 1.0, value_parser = interval)]
    interval: f64,
}

pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let status = fetch(&args.connect)?;
    if !io::stdout().is_terminal() {
        return print_line(view::text(&status).trim_end());
    }
    let mut terminal = ratatui::try_init()?;
    let watched = watch(args, &mut terminal, status);
    ratatui::restore();
    watched
}

fn watch(args: &TopArgs, terminal: &mut ratatui::DefaultTerminal, mut status: Status) -> anyhow::Result<()> {
    let interval = Duration::from_secs_f64(args.interval);
    let mut next = Instant::now() + interval;
    loop {
        terminal.draw(|frame| view::draw(frame, &status, &args.connect))?;
        if event::poll(next.saturating_duration_since(Instant::now()))?
            && let Event::Key(key) = event::read()?
        {
            let interrupted = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(());
            }
        }
        if Instant::now() >= next {
            status = fetch(&args.connect)?;
            next = Instant::now() + interval;
        }
    }
}

fn fetch(address: &str) -> anyhow::Result<Status> {
    let url = format!("http://{address}/metrics");
    let answer = minreq::get(&url).with_timeout(TIMEOUT).send().map_err(|error| {
        anyhow!(
            "nothing answers at {address} ({error}); start `smidgen colocate ... --metrics {address}`, or name its address with --connect"
        )
    })?;
    let text = answer.as_str().unwrap_or_default();
    match Status::parse(text) {
        Some(status) if answer.status_code == 200 => Ok(status),
        _ => bail!("what answers at {url} is not smidgen; name the address of `smidgen colocate ... --metrics ADDR` with --connect"),
    }
}

fn interval(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse::<f64>().ok();
    number.filter(|seconds| (0.1..=3600.0).contains(seconds)).ok_or_else(|| "give seconds from 0.1 to 3600, such as 1".to_owned())
}
