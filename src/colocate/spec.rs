//! What the user asks for: `--tenant NAME=MODEL[,class=latency,slo=5ms,batch=8,seq=128,rate=200/s]`, or with `prompt=128,generate=64` in place of `seq`.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smidgen_runtime::tenant::Class;

use crate::models::{DecoderPhase, UnknownPhase};

/// One tenant as asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantRequest {
    /// Name in reports.
    pub name: String,
    /// A preset's name or a model directory.
    pub model: String,
    /// What it is served for.
    pub class: Class,
    /// The latency its requests should keep, milliseconds.
    pub slo_ms: Option<f64>,
    /// The same as a multiple of its 99th percentile alone in a closed loop, which is measured first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo_times_alone: Option<f64>,
    /// Sequences in one request; images for a vision model.
    pub batch: u32,
    /// Tokens in each sequence: the input's length for an encoder and for a prefill, the context of one decode step for a decoder. Nothing to a vision
    /// model, whose images all have as many tokens.
    pub seq: u32,
    /// What one request of a decoder is.
    #[serde(default)]
    pub phase: DecoderPhase,
    /// Requests per second, arriving at random (Poisson); without it the next request follows the last (closed loop).
    pub rate: Option<f64>,
    /// The same as a share of what it can do alone, which is measured first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<f64>,
    /// Whether a decoder serves whole requests by continuous batching, up to `batch` at a time, instead of one decode step a request. The objective is for
    /// the time per output token then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
}

/// The requests of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Tokens of each prompt.
    pub prompt: u32,
    /// Tokens drawn for it.
    pub generate: NonZeroU32,
    /// The most tokens in one step.
    pub chunk: u32,
}

impl TenantRequest {
    /// The objective as a duration.
    pub fn slo(&self) -> Option<Duration> {
        self.slo_ms.map(|ms| Duration::from_secs_f64(ms / 1e3))
    }

    /// Tokens in the cache of the longest sequence before its last decode step: what such a step is profiled at.
    pub fn context(&self) -> u32 {
        self.stream.map_or(self.seq, |stream| (stream.longest() - 1).max(1))
    }
}

impl Stream {
    /// Tokens that the model computes for a request: all but the last drawn.
    pub fn longest(&self) -> u32 {
        self.prompt + self.generate.get() - 1
    }
}

/// A `--tenant` that cannot be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "--tenant {text}: {problem}; write NAME=MODEL[,class=latency|throughput,slo=5ms|1.5x,batch=8,seq=128,phase=decode|prefill,rate=200/s|load=0.3], with prompt=128,generate=64[,chunk=512] in place of seq for a stream"
)]
pub struct TenantRequestError {
    text: String,
    problem: String,
}

impl FromStr for TenantRequest {
    type Err = TenantRequestError;

    fn from_str(text: &str) -> Result<Self, TenantRequestError> {
        parse(text).map_err(|problem| TenantRequestError { text: text.to_owned(), problem })
    }
}

fn parse(text: &str) -> Result<TenantRequest, String> {
    let (name, rest) = text.split_once('=').ok_or("there is no `=`")?;
    let mut fields = rest.split(',');
    let model = fields.next().unwrap_or_default();
    if name.is_empty() || model.is_empty() {
        return Err("the name or the model is empty".into());
    }
    let mut tenant = TenantRequest {
        name: name.into(),
        model: model.into(),
        class: Class::Throughput,
        slo_ms: None,
        slo_times_alone: None,
        batch: 8,
        seq: 128,
        phase: DecoderPhase::Decode,
        rate: None,
        load: None,
        stream: None,
    };
    let (mut class, mut seq, mut prompt, mut generate, mut chunk) = (None, None, None, None, None);
    let mut given = Vec::new();
    for field in fields {
        let (key, value) = field.split_once('=').ok_or_else(|| format!("`{field}` is no key=value"))?;
        if given.contains(&key) {
            return Err(format!("`{key}` is given twice"));
        }
        given.push(key);
        match key {
            "class" if value == "latency" => class = Some(Class::Latency),
            "class" if value == "throughput" => class = Some(Class::Throughput),
            "class" => return Err(format!("class `{value}` is neither latency nor throughput")),
            "slo" => (tenant.slo_ms, tenant.slo_times_alone) = slo(value)?,
            "batch" => tenant.batch = count(key, value)?,
            "seq" => seq = Some(count(key, value)?),
            "prompt" => prompt = Some(count(key, value)?),
            "generate" => generate = NonZeroU32::new(count(key, value)?),
            "chunk" => chunk = Some(count(key, value)?),
            "phase" => tenant.phase = value.parse().map_err(|error: UnknownPhase| error.to_string())?,
            "rate" => tenant.rate = Some(rate(value)?),
            "load" => tenant.load = Some(load(value)?),
            _ => return Err(format!("`{key}` is no property of a tenant")),
        }
    }
    let has_objective = tenant.slo_ms.is_some() || tenant.slo_times_alone.is_some();
    if has_objective && class == Some(Class::Throughput) {
        return Err("a throughput tenant has no objective: leave slo out, or say class=latency".into());
    }
    tenant.class = class.unwrap_or(if has_objective { Class::Latency } else { Class::Throughput });
    if tenant.rate.is_some() && tenant.load.is_some() {
        return Err("rate and load say the same thing: give one of them".into());
    }
    if tenant.phase == DecoderPhase::Prefill && (prompt.is_some() || generate.is_some()) {
        return Err("a stream has both phases: leave phase out".into());
    }
    match (prompt, generate) {
        (Some(_), Some(_)) if seq.is_some() => return Err("a stream has prompt and generate in place of seq".into()),
        (Some(prompt), Some(generate)) => {
            let chunk = chunk.unwrap_or(DEFAULT_CHUNK.max(tenant.batch));
            if chunk < tenant.batch {
                return Err(format!("chunk `{chunk}` has no token for each of the {} requests of a step", tenant.batch));
            }
            if generate.get() == 1 && has_objective {
                return Err("a stream's slo is for the time from one token to the next, and generate=1 has none".into());
            }
            tenant.stream = Some(Stream { prompt, generate, chunk });
        }
        (None, None) if chunk.is_none() => tenant.seq = seq.unwrap_or(tenant.seq),
        _ => return Err("a stream needs both prompt and generate".into()),
    }
    Ok(tenant)
}

/// More than any GPU holds, and little enough that no size computed from a batch and a length overflows.
const MOST: u32 = 1_000_000;

/// Tokens in one step of a stream, where nothing else is asked for.
const DEFAULT_CHUNK: u32 = 512;

/// Requests per second: from one in a quarter of an hour to more than any GPU could start.
const RATES: RangeInclusive<f64> = 1e-3..=1e6;

/// Shares of what a tenant can do alone; beyond 1 its queue would grow without end.
const LOADS: RangeInclusive<f64> = 1e-3..=1.0;

/// Multiples of the latency alone.
const SLO_TIMES: RangeInclusive<f64> = 1.0..=1000.0;

/// Milliseconds: from 1 us to an hour.
const SLOS_MS: RangeInclusive<f64> = 1e-3..=3.6e6;

fn count(key: &str, value: &str) -> Result<u32, String> {
    let number = value.parse().ok().filter(|count| (1..=MOST).contains(count));
    number.ok_or_else(|| format!("{key} `{value}` is no whole number from 1 to {MOST}"))
}

fn rate(value: &str) -> Result<f64, String> {
    let number = value.strip_suffix("/s").unwrap_or(value).parse().ok();
    let wrong = || format!("rate `{value}` is no number from {} to {} per second", RATES.start(), RATES.end());
    number.filter(|rate| RATES.contains(rate)).ok_or_else(wrong)
}

fn load(value: &str) -> Result<f64, String> {
    let number = value.parse().ok().filter(|load| LOADS.contains(load));
    number.ok_or_else(|| format!("load `{value}` is no share from {} to {}", LOADS.start(), LOADS.end()))
}

/// An objective in milliseconds, or as a multiple of the latency alone.
fn slo(value: &str) -> Result<(Option<f64>, Option<f64>), String> {
    let Some(times) = value.strip_suffix('x') else { return Ok((Some(milliseconds(value)?), None)) };
    let times = times.parse().ok().filter(|times| SLO_TIMES.contains(times));
    let wrong = || format!("slo `{value}` is no multiple from {}x to {}x", SLO_TIMES.start(), SLO_TIMES.end());
    Ok((None, Some(times.ok_or_else(wrong)?)))
}

fn milliseconds(value: &str) -> Result<f64, String> {
    let (number, factor) = match (value.strip_suffix("us"), value.strip_suffix("ms"), value.strip_suffix('s')) {
        (Some(number), _, _) => (number, 1e-3),
        (_, Some(number), _) => (number, 1.0),
        (_, _, Some(number)) => (number, 1e3),
        _ => return Err(format!("slo `{value}` has no unit (us, ms or s, or x for a multiple of its p99 alone)")),
    };
    let milliseconds = number.parse().ok().map(|number: f64| number * factor);
    milliseconds.filter(|ms| SLOS_MS.contains(ms)).ok_or_else(|| format!("slo `{value}` is not between 1us and 3600s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_reads_as_documented() {
        let tenant: TenantRequest = "chat=llama-3.2-1b,class=latency,slo=5ms,batch=4,seq=64,rate=200/s".parse().unwrap();
        assert_eq!((tenant.name.as_str(), tenant.model.as_str(), tenant.class), ("chat", "llama-3.2-1b", Class::Latency));
        assert_eq!((tenant.slo_ms, tenant.batch, tenant.seq, tenant.rate), (Some(5.0), 4, 64, Some(200.0)));
        let tenant: TenantRequest = "b=bert-large".parse().unwrap();
        assert_eq!((tenant.class, tenant.batch, tenant.seq, tenant.rate), (Class::Throughput, 8, 128, None));
        assert_eq!((tenant.phase, tenant.load, tenant.slo_times_alone), (DecoderPhase::Decode, None, None));
    }

    #[test]
    fn a_prefill_a_load_and_a_relative_objective_read_as_documented() {
        let tenant: TenantRequest = "a=mistral-7b,batch=1,seq=8192,phase=prefill".parse().unwrap();
        assert_eq!((tenant.phase, tenant.batch, tenant.context()), (DecoderPhase::Prefill, 1, 8192));
        let tenant: TenantRequest = "a=llama-3.2-1b,load=0.3,slo=1.5x".parse().unwrap();
        assert_eq!((tenant.load, tenant.rate, tenant.slo_ms, tenant.slo_times_alone), (Some(0.3), None, None, Some(1.5)));
        assert_eq!(tenant.class, Class::Latency, "who has an objective is there for its latency");
    }

    #[test]
    fn a_stream_reads_as_documented() {
        let tenant: TenantRequest = "chat=llama-3.2-1b,batch=32,prompt=128,generate=64,rate=20/s".parse().unwrap();
        assert_eq!(tenant.stream, Some(Stream { prompt: 128, generate: NonZeroU32::new(64).unwrap(), chunk: 512 }));
        assert_eq!((tenant.batch, tenant.context()), (32, 190));
        let tenant: TenantRequest = "chat=llama-3.2-1b,prompt=1,generate=1,chunk=8".parse().unwrap();
        assert_eq!((tenant.stream.unwrap().chunk, tenant.context()), (8, 1));
    }

    #[test]
    fn a_tenant_that_cannot_be_read_says_which_part() {
        for (text, part) in [
            ("bert", "no `=`"),
            ("a=", "empty"),
            ("a=b,seq=0", "seq `0`"),
            ("a=b,batch=1,batch=2", "`batch` is given twice"),
            ("a=b,slo=5", "no unit"),
            ("a=b,rate=-1/s", "rate `-1/s`"),
            ("a=b,class=best", "class `best`"),
            ("a=b,slo=5ms,class=throughput", "no objective"),
            ("a=b,prompt=8", "both prompt and generate"),
            ("a=b,chunk=8", "both prompt and generate"),
            ("a=b,prompt=8,generate=0", "generate `0`"),
            ("a=b,prompt=8,generate=1,slo=5ms", "generate=1 has none"),
            ("a=b,prompt=8,slo=1.5x,generate=1", "generate=1 has none"),
            ("a=b,prompt=8,generate=8,seq=8", "in place of seq"),
            ("a=b,prompt=8,generate=8,chunk=7", "chunk `7`"),
            ("a=b,colour=red", "`colour`"),
            ("a=b,rate=inf", "rate `inf`"),
            ("a=b,rate=1e-300/s", "rate `1e-300/s`"),
            ("a=b,slo=1e300s", "slo `1e300s`"),
            ("a=b,slo=nans", "slo `nans`"),
            ("a=b,slo=0.9x", "slo `0.9x`"),
            ("a=b,slo=nanx", "slo `nanx`"),
            ("a=b,load=30", "load `30`"),
            ("a=b,load=0", "load `0`"),
            ("a=b,load=0.3,rate=5/s", "one of them"),
            ("a=b,phase=train", "phase `train`"),
            ("a=b,phase=prefill,prompt=8,generate=8", "leave phase out"),
            ("a=b,batch=4294967295", "batch `4294967295`"),
        ] {
            let error = text.parse::<TenantRequest>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(text), "{error}");
        }
    }
}
