//! What a command that takes long shows of itself: a line on standard error that goes when it is done. Where that is no terminal, nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Between two updates of the time that has passed, while nothing else changes.
const TICK: Duration = Duration::from_millis(200);

/// A bar over `length` steps, drawn as `template` says.
pub fn bar(length: u64, template: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(length).with_style(ProgressStyle::with_template(template)?);
    bar.enable_steady_tick(TICK);
    Ok(bar)
}

/// Says what is being done, and for how long, where there are no steps to be counted.
pub fn spinner(what: &str) -> anyhow::Result<ProgressBar> {
    let spinner = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
    spinner.enable_steady_tick(TICK);
    spinner.set_message(what.to_owned());
    Ok(spinner)
}
