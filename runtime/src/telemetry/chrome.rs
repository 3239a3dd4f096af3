//! Timelines as Chrome trace JSON, which <https://ui.perfetto.dev> and `chrome://tracing` open.
//!
//! Each tenant is a process with one track for each partition that it launches into (more where its kernels overlap there), one for its graph replays, one for its
//! requests, and a counter of its SMs. Plans are marks on a process of the runtime's own. Phases stand one after another on one axis. The format is the one of Google's "Trace Event Format"
//! (Nduca and Sinclair); of its kinds of events these occur: `M` (names), `X` (a kernel or a replay, with its duration), `i` (a mark), `C` (a counter),
//! `b` and `e` (a request: those of one tenant may overlap).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::trace::{Happening, TenantTrace, Trace};

/// Time on the axis between two phases.
const GAP_US: f64 = 1_000.0;

/// One timeline among those of a file.
pub struct Phase<'a> {
    /// What it is called; empty where there is but one.
    pub name: &'a str,
    /// The timeline.
    pub trace: &'a Trace,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    display_time_unit: &'a str,
    other_data: Value,
    trace_events: Vec<Entry>,
}

/// One event. Times are in microseconds.
#[derive(Serialize)]
struct Entry {
    ph: &'static str,
    name: String,
    pid: usize,
    tid: u32,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    #[serde(skip_serializing_if = "Value::is_null")]
    args: Value,
}

/// Writes `phases`, one after another, as one file.
///
/// # Errors
/// What `target` says.
#[tracing::instrument(level = "debug", name = "write timeline", skip_all, fields(phases = phases.len()))]
pub fn write(phases: &[Phase<'_>], target: impl io::Write) -> io::Result<()> {
    let simulated = phases.iter().any(|phase| phase.trace.simulated);
    let mut writer = Writer { entries: Vec::new(), pid: 0, shift: 0.0, requests: 0 };
    for phase in phases {
        writer.phase(phase);
    }
    // Names come first, then everything in the order of time.
    writer.entries.sort_by(|one, other| (one.ph != "M").cmp(&(other.ph != "M")).then(one.ts.total_cmp(&other.ts)));
    let other_data = match simulated {
        true => json!({ "source": "smidgen", "times": "SIMULATED: virtual time of the simulated GPU" }),
        false => json!({ "source": "smidgen", "times": "measured" }),
    };
    let file = File { display_time_unit: "ns", other_data, trace_events: writer.entries };
    let mut target = io::BufWriter::new(target);
    serde_json::to_writer(&mut target, &file)?;
    // Dropped, it would keep an error of the last bytes to itself.
    target.flush()
}

struct Writer {
    entries: Vec<Entry>,
    /// Of the process written last.
    pid: usize,
    /// Where the phase begins on the common axis.
    shift: f64,
    /// Requests so far: their numbers tell them apart.
    requests: u64,
}

impl Writer {
    fn phase(&mut self, phase: &Phase<'_>) {
        let trace = phase.trace;
        let begin = span(trace, |at, _| at).fold(f64::INFINITY, f64::min);
        let end = span(trace, |at, took| at + took).fold(0.0, f64::max);
        let before = self.shift;
        // Virtual time starts at 0 in every phase, and a process opens its device when it pleases.
        self.shift = before - if begin.is_finite() { begin } else { 0.0 };
        let mark = match (trace.simulated, phase.name) {
            (true, "") => "SIMULATED ".to_owned(),
            (true, name) => format!("SIMULATED {name}: "),
            (false, "") => String::new(),
            (false, name) => format!("{name}: "),
        };
        self.process(format!("{mark}runtime ({} SMs)", trace.sms));
        self.thread(0, "plans".to_owned());
        for (at, policy) in &trace.plans {
            self.mark(us(*at), 0, format!("plan: {policy}"), json!({}));
        }
        for (tenant, track) in &trace.tenants {
            self.process(format!("{mark}{}", track.name));
            let lanes = trace.lanes.iter().filter(|lane| lane.tenant == *tenant);
            let partitions: BTreeMap<u32, u16> = lanes.map(|lane| (lane.partition, lane.sms.0)).collect();
            let tracks = self.tenant(track, &trace.kernels);
            for ((lane, nth), tid) in tracks.numbers {
                let name = match lane {
                    Track::Replays => "graph replays".to_owned(),
                    Track::Partition(partition) => {
                        let Some(sms) = partitions.get(&partition) else { continue };
                        if partition == 0 { format!("whole GPU ({sms} SMs)") } else { format!("partition {partition} ({sms} SMs)") }
                    }
                };
                self.thread(tid, if nth == 0 { name } else { format!("{name}, beside") });
            }
        }
        self.shift = before + if begin.is_finite() { end - begin + GAP_US } else { 0.0 };
    }

    /// Says which tracks there are.
    fn tenant(&mut self, track: &TenantTrace, kernels: &BTreeMap<u64, String>) -> Tracks {
        let mut tracks = Tracks::default();
        let name = |kernel: u64| kernels.get(&kernel).cloned().unwrap_or_else(|| format!("kernel {kernel:016x}"));
        for event in &track.events {
            let at = us(event.at);
            match event.what {
                Happening::Launch { kernel, partition, sms } => {
                    self.mark(at, tracks.tid(Track::Partition(partition), 0), format!("launch {}", name(kernel.0)), json!({ "sms": sms }));
                }
                Happening::Kernel { kernel, partition, sms, took } => {
                    let (args, tid) = (json!({ "sms": sms }), tracks.place(Track::Partition(partition), event.at, took));
                    self.entries.push(Entry { dur: Some(us(took)), ..self.entry("X", at, tid, name(kernel.0), args) });
                }
                Happening::Hop { from, to } => {
                    self.mark(at, tracks.tid(Track::Partition(to), 0), "hop".to_owned(), json!({ "from partition": from }));
                }
                Happening::Replay { partition } => {
                    self.mark(at, tracks.tid(Track::Partition(partition), 0), "graph replay".to_owned(), json!({}));
                }
                Happening::Replayed { partition, launches, took } => {
                    let args = json!({ "kernels": launches, "launched in partition": partition });
                    let tid = tracks.place(Track::Replays, event.at, took);
                    self.entries.push(Entry { dur: Some(us(took)), ..self.entry("X", at, tid, "graph replay".to_owned(), args) });
                }
                Happening::Request { took, kept, objective } => {
                    self.requests += 1;
                    let number = Some(self.requests);
                    let mut args = json!({ "slo kept": kept, "ms": us(took) / 1e3 });
                    if let Some(objective) = objective {
                        args["slo us"] = json!(us(objective));
                    }
                    for (ph, at, args) in [("b", at, args), ("e", at + us(took), Value::Null)] {
                        let entry = self.entry(ph, at, 0, "request".to_owned(), args);
                        self.entries.push(Entry { cat: Some("requests"), id: number, ..entry });
                    }
                }
                Happening::Grant { owned, held, borrowed } => {
                    // Stacked: what is drawn adds up to what is held.
                    let own = held.0.saturating_sub(borrowed.0);
                    let lent = owned.0.saturating_sub(own);
                    let args = json!({ "own": own, "borrowed": borrowed });
                    let counter = self.entry("C", at, 0, "SMs".to_owned(), args);
                    self.entries.push(counter);
                    let counter = self.entry("C", at, 0, "SMs lent".to_owned(), json!({ "lent": lent }));
                    self.entries.push(counter);
                }
            }
        }
        tracks
    }

    fn process(&mut self, name: String) {
        self.pid += 1;
        for (ph_name, args) in [("process_name", json!({ "name": name })), ("process_sort_index", json!({ "sort_index": self.pid }))] {
            let entry = Entry { ts: 0.0, ..self.entry("M", 0.0, 0, ph_name.to_owned(), args) };
            self.entries.push(entry);
        }
    }

    fn thread(&mut self, tid: u32, name: String) {
        let entry = Entry { ts: 0.0, ..self.entry("M", 0.0, tid, "thread_name".to_owned(), json!({ "name": name })) };
        self.entries.push(entry);
    }

    fn mark(&mut self, at: f64, tid: u32, name: String, args: Value) {
        let entry = self.entry("i", at, tid, name, args);
        self.entries.push(Entry { s: Some("t"), ..entry });
    }

    fn entry(&self, ph: &'static str, at: f64, tid: u32, name: String, args: Value) -> Entry {
        Entry { ph, name, pid: self.pid, tid, ts: self.shift + at, dur: None, cat: None, id: None, s: None, args }
    }
}

/// Where bars stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Track {
    /// Kernels, in the partition with this number.
    Partition(u32),
    /// Replays: a graph's nodes have partitions of their own.
    Replays,
}

/// The tracks of one tenant. Kernels of one partition may overlap, on streams of several sessions, and bars on one track must not: each partition has
/// as many tracks as it has kernels at a time. So it is with replays.
#[derive(Default)]
struct Tracks {
    /// The number of each partition's first, second, ... track.
    numbers: BTreeMap<(Track, u32), u32>,
    /// When the last bar of each track ends.
    ends: BTreeMap<Track, Vec<Duration>>,
}

impl Tracks {
    /// The number of the `nth` track of its kind. Tracks are numbered as they are met, because Perfetto takes 32 bits, and puts what has more
    /// on another track. Number 0 is the process' own track.
    fn tid(&mut self, track: Track, nth: u32) -> u32 {
        let next = self.numbers.len() as u32 + 1;
        *self.numbers.entry((track, nth)).or_insert(next)
    }

    /// The first track of its kind that is free at `begin`. Bars come in the order in which they begin.
    fn place(&mut self, track: Track, begin: Duration, took: Duration) -> u32 {
        let ends = self.ends.entry(track).or_default();
        let place = ends.iter().position(|&end| end <= begin).unwrap_or(ends.len());
        ends.resize(ends.len().max(place + 1), Duration::ZERO);
        ends[place] = begin.saturating_add(took);
        self.tid(track, place as u32)
    }
}

fn us(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// Of everything in `trace`, what `of` makes of when it began and how long it took, in microseconds.
fn span(trace: &Trace, of: fn(f64, f64) -> f64) -> impl Iterator<Item = f64> + '_ {
    let events = trace.tenants.values().flat_map(|track| &track.events).map(move |event| match event.what {
        Happening::Kernel { took, .. } | Happening::Replayed { took, .. } | Happening::Request { took, .. } => of(us(event.at), us(took)),
        _ => of(us(event.at), 0.0),
    });
    events.chain(trace.plans.iter().map(move |(at, _)| of(us(*at), 0.0)))
}
