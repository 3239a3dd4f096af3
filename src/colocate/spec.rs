//! What the user asks for: `--tenant NAME=MODEL[,class=latency,slo=5ms,batch=8,seq=128,rate=200/s]`, or with `prompt=128,generate=64` in place of `seq`, and
//! `--policy P,...`.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smidgen_runtime::policy::{self, UnknownAblation};
use smidgen_runtime::tenant::Class;

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
    /// Sequences in one request; images for a vision model.
    pub batch: u32,
    /// Tokens in each sequence: the input's length for an encoder, the context of one decode step for a decoder. Nothing to a vision model, whose
    /// images all have as many tokens.
    pub seq: u32,
    /// Requests per second, arriving at random (Poisson); without it the next request follows the last (closed loop).
    pub rate: Option<f64>,
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
    "--tenant {text}: {problem}; write NAME=MODEL[,class=latency|throughput,slo=5ms,batch=8,seq=128,rate=200/s], with prompt=128,generate=64[,chunk=512] in place of seq for a stream"
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
        batch: 8,
        seq: 128,
        rate: None,
        stream: None,
    };
    let (mut seq, mut prompt, mut generate, mut chunk) = (None, None, None, None);
    for field in fields {
        let (key, value) = field.split_once('=').ok_or_else(|| format!("`{field}` is no key=value"))?;
        match key {
            "class" if value == "latency" => tenant.class = Class::Latency,
            "class" if value == "throughput" => tenant.class = Class::Throughput,
            "class" => return Err(format!("class `{value}` is neither latency nor throughput")),
            "slo" => tenant.slo_ms = Some(milliseconds(value)?),
            "batch" => tenant.batch = count(key, value)?,
            "seq" => seq = Some(count(key, value)?),
            "prompt" => prompt = Some(count(key, value)?),
            "generate" => generate = NonZeroU32::new(count(key, value)?),
            "chunk" => chunk = Some(count(key, value)?),
            "rate" => tenant.rate = Some(rate(value)?),
            _ => return Err(format!("`{key}` is no property of a tenant")),
        }
    }
    match (prompt, generate) {
        (Some(_), Some(_)) if seq.is_some() => return Err("a stream has prompt and generate in place of seq".into()),
        (Some(prompt), Some(generate)) => {
            let chunk = chunk.unwrap_or(DEFAULT_CHUNK.max(tenant.batch));
            if chunk < tenant.batch {
                return Err(format!("chunk `{chunk}` has no token for each of the {} requests of a step", tenant.batch));
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

fn milliseconds(value: &str) -> Result<f64, String> {
    let (number, factor) = match (value.strip_suffix("us"), value.strip_suffix("ms"), value.strip_suffix('s')) {
        (Some(number), _, _) => (number, 1e-3),
        (_, Some(number), _) => (number, 1.0),
        (_, _, Some(number)) => (number, 1e3),
        _ => return Err(format!("slo `{value}` has no unit (us, ms or s)")),
    };
    let milliseconds = number.parse().ok().map(|number: f64| number * factor);
    milliseconds.filter(|ms| SLOS_MS.contains(ms)).ok_or_else(|| format!("slo `{value}` is not between 1us and 3600s"))
}

/// How the tenants share the GPU in one phase of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Sharing {
    /// Each tenant in a process of its own, no MPS: the driver gives each process the GPU in turn.
    TimeSlice,
    /// Each tenant in a process of its own under an MPS daemon with default settings.
    MpsDefault,
    /// All tenants in one process, placed by a policy of the runtime.
    Policy(String),
}

impl Sharing {
    /// Every name that `--policy` takes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ["time-slice", "mps-default"].into_iter().chain(policy::NAMES)
    }

    /// Whether each tenant has a process of its own.
    pub fn is_baseline(&self) -> bool {
        !matches!(self, Self::Policy(_))
    }
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimeSlice => "time-slice",
            Self::MpsDefault => "mps-default",
            Self::Policy(name) => name.as_str(),
        })
    }
}

impl From<Sharing> for String {
    fn from(sharing: Sharing) -> Self {
        sharing.to_string()
    }
}

/// A policy's name that means nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnknownPolicy {
    /// No policy and no baseline is called that.
    #[error("`{name}` is no policy; choose from {}", Sharing::names().collect::<Vec<_>>().join(", "))]
    Name {
        /// The name asked for.
        name: String,
    },
    /// The policy has no such part.
    #[error(transparent)]
    Ablation(#[from] UnknownAblation),
}

impl FromStr for Sharing {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text {
            "time-slice" => Ok(Self::TimeSlice),
            "mps-default" => Ok(Self::MpsDefault),
            _ => match policy::ablations(text) {
                Ok(_) => Ok(Self::Policy(text.into())),
                Err(policy::UnknownPolicy::Name { name }) => Err(UnknownPolicy::Name { name }),
                Err(policy::UnknownPolicy::Ablation(ablation)) => Err(ablation.into()),
            },
        }
    }
}

impl TryFrom<String> for Sharing {
    type Error = UnknownPolicy;

    fn try_from(text: String) -> Result<Self, UnknownPolicy> {
        text.parse()
    }
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
            ("a=b,slo=5", "no unit"),
            ("a=b,rate=-1/s", "rate `-1/s`"),
            ("a=b,class=best", "class `best`"),
            ("a=b,prompt=8", "both prompt and generate"),
            ("a=b,chunk=8", "both prompt and generate"),
            ("a=b,prompt=8,generate=0", "generate `0`"),
            ("a=b,prompt=8,generate=8,seq=8", "in place of seq"),
            ("a=b,prompt=8,generate=8,chunk=7", "chunk `7`"),
            ("a=b,colour=red", "`colour`"),
            ("a=b,rate=inf", "rate `inf`"),
            ("a=b,rate=1e-300/s", "rate `1e-300/s`"),
            ("a=b,slo=1e300s", "slo `1e300s`"),
            ("a=b,slo=nans", "slo `nans`"),
            ("a=b,batch=4294967295", "batch `4294967295`"),
        ] {
            let error = text.parse::<TenantRequest>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn every_policy_name_is_read_back() {
        for name in Sharing::names() {
            assert_eq!(name.parse::<Sharing>().unwrap().to_string(), name);
        }
        // A list of policies is separated by commas, so a policy's ablations are not.
        assert_eq!("slo:no-borrow+no-guard".parse::<Sharing>().unwrap().to_string(), "slo:no-borrow+no-guard");
        assert!("slo:no-borow".parse::<Sharing>().unwrap_err().to_string().contains("there are no-profile, no-borrow,"));
        assert!("fair".parse::<Sharing>().unwrap_err().to_string().contains("krisp-i"));
    }
}
