//! Prometheus text, as far as `smidgen top` needs it.

use std::collections::BTreeMap;

use smidgen::colocate::watch::PHASE;
use smidgen_runtime::telemetry::metrics as names;

/// What a run shows at one instant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// The phase that is measured.
    pub phase: String,
    /// Whether every figure is simulated.
    pub simulated: bool,
    /// By runtime and name.
    pub tenants: BTreeMap<(String, String), TenantStatus>,
    /// Times that profiles were found to have drifted.
    pub drift_reports: f64,
}

/// One tenant at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TenantStatus {
    /// Requests answered in this phase.
    pub requests: f64,
    /// Those that missed the objective.
    pub misses: f64,
    /// The objective, seconds.
    pub slo: Option<f64>,
    /// Latencies of the last minute, seconds.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    /// SMs by the plan, in use, and in use beyond the plan.
    pub owned: f64,
    pub held: f64,
    pub borrowed: f64,
}

impl Status {
    /// Reads what an endpoint answered; none if it is not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let mut status = Self::default();
        let mut ours = false;
        for (name, labels, value) in text.lines().filter_map(sample) {
            let label = |wanted: &str| labels.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str());
            if name == PHASE {
                ours = true;
                (status.phase, status.simulated) = (label("phase")?.to_owned(), label("simulated") == Some("true"));
            } else if name == names::DRIFT_REPORTS {
                status.drift_reports += value;
            } else if let Some(tenant) = label("tenant") {
                let runtime = label("runtime").unwrap_or_default();
                let tenant = status.tenants.entry((runtime.to_owned(), tenant.to_owned())).or_default();
                match (name, label("quantile")) {
                    (names::REQUESTS, _) => tenant.requests = value,
                    (names::SLO_MISSES, _) => tenant.misses = value,
                    (names::SLO_SECONDS, _) => tenant.slo = Some(value).filter(|seconds| *seconds > 0.0),
                    (names::SMS_OWNED, _) => tenant.owned = value,
                    (names::SMS_HELD, _) => tenant.held = value,
                    (names::SMS_BORROWED, _) => tenant.borrowed = value,
                    (names::REQUEST_SECONDS, Some("0.5")) => tenant.p50 = Some(value),
                    (names::REQUEST_SECONDS, Some("0.99")) => tenant.p99 = Some(value),
                    _ => (),
                }
            }
        }
        ours.then_some(status)
    }
}

type Labels<'a> = Vec<(&'a str, String)>;

/// One line of the format: `name{label="value",...} value`. None for comments, and for what cannot be read.
fn sample(line: &str) -> Option<(&str, Labels<'_>, f64)> {
    let line = line.trim();
    let end = line.find(['{', ' ']).filter(|_| !line.starts_with('#'))?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((label.trim(), value));
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

/// A value up to its closing quotation mark, unescaped, and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_with_their_escapes() {
        let (name, labels, value) = sample(r#"some_name{tenant="a \"b\" \\ c,}",quantile="0.5"} 1.5e-3 1700000000"#).unwrap();
        assert_eq!((name, value), ("some_name", 0.0015));
        assert_eq!(labels, [("tenant", r#"a "b" \ c,}"#.to_owned()), ("quantile", "0.5".to_owned())]);
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        for line in ["", "# HELP a b", "name", "name{", "name{a=\"b} 1", "name{a} 1", "name one", "{} 1 }"] {
            let read = sample(line);
            assert!(read.is_none() || read.is_some_and(|(name, ..)| name.is_empty()), "{line}");
        }
    }

    #[test]
    fn tenants_of_one_name_in_two_runtimes_are_two() {
        let text = "smidgen_phase{phase=\"serving\",simulated=\"false\"} 1\n\
                    smidgen_drift_reports_total{runtime=\"0\"} 1\nsmidgen_drift_reports_total{runtime=\"1\"} 2\n\
                    smidgen_sms_held{tenant=\"chat\",runtime=\"0\"} 16\nsmidgen_sms_held{tenant=\"chat\",runtime=\"1\"} 32\n";
        let status = Status::parse(text).unwrap();
        assert_eq!(status.tenants.values().map(|tenant| tenant.held).collect::<Vec<_>>(), [16.0, 32.0]);
        assert_eq!(status.drift_reports, 3.0);
    }

    #[test]
    fn another_program_s_metrics_are_not_ours() {
        assert_eq!(Status::parse("up 1\nrequests{tenant=\"a\"} 2\n"), None);
    }
}
