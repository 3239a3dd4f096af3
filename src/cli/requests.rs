//! `smidgen generate --requests`: the lines of a file, served together by continuous batching.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;
use smidgen::config::DecoderConfig;
use smidgen::generate::Stop;
use smidgen::kernels::attention::PAGE_TOKENS;
use smidgen::models::{ModelSource, SoloBatch};
use smidgen::reference::Reference;
use smidgen::serve::Arrivals;
use smidgen::serve::batching::{Batching, Executor, Limits, Output, Request, RequestId, Timing};
use smidgen::tokenizer::Tokenizer;
use smidgen_runtime::telemetry::Latencies;

use super::generate::{GenerateArgs, encode};
use super::output::to_stdout;
use super::{ComputeDevice, progress};

/// How many requests are served at once, and from how much memory.
#[derive(Debug, Args)]
pub struct ServingArgs {
    /// A file with one prompt a line, served together; prints one JSON line for each, in the file's order.
    #[arg(long, value_name = "FILE")]
    requests: Option<PathBuf>,
    /// The most requests in one step.
    #[arg(long, default_value = "16", conflicts_with = "prompt", value_parser = RangedU64ValueParser::<u32>::new().range(1..=1024))]
    max_batch: u32,
    /// The most tokens in one step: longer prompts are cut into chunks, so that nobody waits long for the next token.
    #[arg(long, default_value = "512", conflicts_with = "prompt", value_parser = RangedU64ValueParser::<u32>::new().range(1..=65536))]
    chunk: u32,
    /// Tokens that the key-value cache holds; default enough for all requests of one step.
    #[arg(long, conflicts_with = "prompt", value_parser = RangedU64ValueParser::<u32>::new().range(1..=1 << 30))]
    cache_tokens: Option<u32>,
    /// Requests per second, arriving at random (Poisson); default all at once.
    #[arg(long, conflicts_with = "prompt", value_parser = rate)]
    rate: Option<f64>,
}

/// One answer.
#[derive(Serialize)]
struct Line<'a> {
    prompt: &'a str,
    text: String,
    tokens: usize,
    /// `end`, `max-tokens` or `full`.
    stop: &'static str,
    /// From the request's arrival to its first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_ms: Option<f64>,
    /// From the request's arrival to its last token.
    latency_ms: f64,
}

/// A request's tokens, and when they came.
#[derive(Clone, Default)]
struct Answer {
    tokens: Vec<u32>,
    stop: Option<Stop>,
    timing: Option<Timing>,
}

pub fn serve(
    args: &GenerateArgs,
    serving: &ServingArgs,
    source: &ModelSource,
    config: &DecoderConfig,
    tokenizer: &Tokenizer,
) -> anyhow::Result<()> {
    let Some(path) = &serving.requests else { bail!("give a prompt, or a file of prompts with --requests") };
    let text = fs::read_to_string(path)
        .with_context(|| format!("{}: cannot be read; give a file of prompts, one a line, in UTF-8", path.display()))?;
    let prompts: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if prompts.is_empty() {
        bail!("{}: has no prompt; write one a line", path.display());
    }
    let stop_tokens: Arc<[u32]> = config.end_of_sequence.as_ref().into();
    let request = |(index, prompt): (usize, &&str)| -> anyhow::Result<Request> {
        Ok(Request {
            prompt: encode(&format!("prompt {}", index + 1), prompt, tokenizer, source)?,
            max_tokens: args.max_tokens,
            sampling: args.sampling(),
            seed: args.seed.wrapping_add(index as u64),
            stop_tokens: Arc::clone(&stop_tokens),
        })
    };
    let requests = prompts.iter().enumerate().map(request).collect::<anyhow::Result<Vec<_>>>()?;
    let limits = limits(serving, &requests, config.max_sequence())?;
    let (answers, elapsed, preemptions) = match ComputeDevice::open(args.device)? {
        None => {
            let Reference::Decoder(decoder) = Reference::load(source.weights())? else { bail!("{}: is an encoder", args.model) };
            run(Batching::new(decoder.paged_batch(limits))?, requests, serving.rate, args.seed)?
        }
        Some(gpu) => run(Batching::new(SoloBatch::load(&gpu, source, limits)?)?, requests, serving.rate, args.seed)?,
    };
    let mut out = io::stdout().lock();
    for (prompt, answer) in prompts.iter().zip(&answers) {
        let line = line(prompt, answer, tokenizer)?;
        to_stdout(serde_json::to_writer(&mut out, &line).map_err(io::Error::from).and_then(|()| writeln!(out)))?;
    }
    eprintln!("{}", summary(&answers, elapsed, preemptions));
    Ok(())
}

/// Slots and pages for these requests.
fn limits(serving: &ServingArgs, requests: &[Request], max_sequence: usize) -> anyhow::Result<Limits> {
    // The last token drawn is not computed.
    let longest = requests.iter().map(|request| request.prompt.len().saturating_add(request.max_tokens.get() - 1)).max().unwrap_or(1);
    let longest = longest.min(max_sequence);
    let slots = serving.max_batch.min(u32::try_from(requests.len())?);
    let enough = slots.saturating_mul(u32::try_from(longest)?.div_ceil(PAGE_TOKENS));
    let pages = serving.cache_tokens.map_or(enough, |tokens| tokens.div_ceil(PAGE_TOKENS).min(enough));
    if serving.chunk < slots {
        bail!(
            "--chunk {}: each of the {slots} requests of a step needs a token; allow at least as many, or lower --max-batch",
            serving.chunk
        );
    }
    Ok(Limits { slots, step_tokens: serving.chunk, pages, page_tokens: PAGE_TOKENS, max_sequence: longest })
}

/// Serves everything, and returns the answers in order with the time from the first arrival to the last token.
fn run<E>(mut batching: Batching<E>, requests: Vec<Request>, rate: Option<f64>, seed: u64) -> anyhow::Result<(Vec<Answer>, Duration, u64)>
where
    E: Executor,
    E::Error: Error + Send + Sync + 'static,
{
    let bar = progress::bar(requests.len() as u64, "{bar:24} {pos}/{len} requests {msg} {elapsed}")?;
    let mut answers = vec![Answer::default(); requests.len()];
    let start = batching.executor().now();
    let mut arrivals = Arrivals::new(rate, seed, start);
    let mut coming = requests.into_iter().peekable();
    let mut tokens = 0_usize;
    while coming.peek().is_some() || !batching.is_idle() {
        let now = batching.executor().now();
        let due = if rate.is_some() { arrivals.next(now) } else { start };
        if due <= now
            && let Some(request) = coming.next()
        {
            batching.submit(request, due)?;
            arrivals.advance();
            continue;
        }
        if batching.is_idle() {
            thread::sleep(due.saturating_sub(now));
            continue;
        }
        for output in batching.step()? {
            match output {
                Output::Token(RequestId(id), token) => {
                    answers[id as usize].tokens.push(token);
                    tokens += 1;
                }
                Output::Finished(RequestId(id), stop) => answers[id as usize].stop = Some(stop),
            }
        }
        for (RequestId(id), timing) in batching.take_finished() {
            answers[id as usize].timing = Some(timing);
            bar.inc(1);
        }
        let scheduler = batching.scheduler();
        bar.set_message(format!("{tokens} tokens, {} running, {} waiting", scheduler.running(), scheduler.waiting()));
    }
    bar.finish_and_clear();
    let elapsed = batching.executor().now().saturating_sub(start);
    Ok((answers, elapsed, batching.scheduler().preemptions()))
}

fn line<'a>(prompt: &'a str, answer: &Answer, tokenizer: &Tokenizer) -> anyhow::Result<Line<'a>> {
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for &token in &answer.tokens {
        text.push_str(&stream.push(token)?);
    }
    text.push_str(&stream.finish()?);
    let stop = match answer.stop {
        Some(Stop::EndOfSequence) => "end",
        Some(Stop::Full) => "full",
        _ => "max-tokens",
    };
    let first_token_ms = answer.timing.and_then(|timing| timing.to_first_token()).map(milliseconds);
    let latency_ms = answer.timing.map_or(0.0, |timing| milliseconds(timing.latency()));
    Ok(Line { prompt, text, tokens: answer.tokens.len(), stop, first_token_ms, latency_ms })
}

/// What the whole run did.
fn summary(answers: &[Answer], elapsed: Duration, preemptions: u64) -> String {
    let timings = || answers.iter().filter_map(|answer| answer.timing);
    let percentiles = |what: &str, times: &mut dyn Iterator<Item = Duration>| {
        let mut latencies = Latencies::default();
        times.for_each(|time| latencies.record(time));
        let [p50, p95, p99] = [0.50, 0.95, 0.99].map(|quantile| latencies.quantile_ms(quantile));
        format!("{what:<24} {p50:>9.2} {p95:>9.2} {p99:>9.2}")
    };
    let tokens: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
    let seconds = elapsed.as_secs_f64();
    [
        format!(
            "{} requests, {tokens} tokens in {seconds:.2} s: {:.1} tokens/s, {:.2} requests/s, {preemptions} preempted",
            answers.len(),
            tokens as f64 / seconds,
            answers.len() as f64 / seconds
        ),
        format!("{:<24} {:>9} {:>9} {:>9}", "milliseconds", "p50", "p95", "p99"),
        percentiles("time to first token", &mut timings().filter_map(|timing| timing.to_first_token())),
        percentiles("time per output token", &mut timings().filter_map(|timing| timing.per_token())),
        percentiles("latency", &mut timings().map(|timing| timing.latency())),
    ]
    .join("\n")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn rate(text: &str) -> Result<f64, String> {
    let value = text.strip_suffix("/s").unwrap_or(text).parse::<f64>().map_err(|error| error.to_string())?;
    if (1e-3..=1e6).contains(&value) { Ok(value) } else { Err("a rate is from 0.001 to 1000000 requests per second".to_owned()) }
}
