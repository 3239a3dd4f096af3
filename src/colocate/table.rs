//! The figures as text, for a terminal.

use super::names::{cut, on_one_line};
use super::results::{PhaseClocks, PlannedPower, PolicyResult, RunResult, TenantResult};
use smidgen_runtime::tenant::Class;

const HEAD: [&str; COLUMNS] =
    ["policy", "tenant", "class", "requests/s", "p50 ms", "p95 ms", "p99 ms", "in SLO", "slowdown", "total", "fairness"];
const COLUMNS: usize = 11;

const STREAM_HEAD: [&str; 7] = ["policy", "tenant", "tokens/s", "first token p50 ms", "p99 ms", "per token p50 ms", "p99 ms"];

const CLOCK_HEAD: [&str; 4] = ["phase", "clock held back by", "SM clock MHz", "power W"];

/// Columns of a terminal that a line should fit in.
const TERMINAL: usize = 120;

/// Columns that hold words; the others hold figures and are set flush right.
const WORDS: usize = 3;
const STREAM_WORDS: usize = 2;
const CLOCK_WORDS: usize = 2;

/// Longer names of tenants are cut, so that a line stays within the terminal. Those of policies are known: only shares can make them longer.
const LONGEST_NAME: usize = 16;
const LONGEST_POLICY: usize = 23;
const LONGEST_PHASE: usize = 34;

/// A table of every tenant under every policy, and of the totals; another of the tokens of tenants that serve streams, and one of the GPU's clock and power.
/// Simulated figures say so on every line.
pub fn render(run: &RunResult) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    let mut streams = vec![STREAM_HEAD.map(str::to_owned)];
    rows.extend(run.alone.iter().map(|tenant| row("alone", tenant, None)));
    rows.extend(run.alone_at_rate.iter().map(|tenant| row("alone at its rate", tenant, None)));
    streams.extend(run.phases().filter_map(|(phase, tenant)| stream_row(phase, tenant)));
    for policy in &run.policies {
        for (at, tenant) in policy.tenants.iter().enumerate() {
            rows.push(if at == 0 { row(&policy.policy, tenant, Some(policy)) } else { row("", tenant, None) });
        }
    }
    let mark = if run.provenance.simulated { "SIMULATED  " } else { "" };
    let streams = if streams.len() > 1 { lines(&streams, STREAM_WORDS, mark) } else { Vec::new() };
    let mut clocks = vec![CLOCK_HEAD.map(str::to_owned)];
    clocks.extend(run.clocks.iter().map(clock_row));
    let clocks = if clocks.len() > 1 { lines(&clocks, CLOCK_WORDS, mark) } else { Vec::new() };
    let behind = run.phases().filter_map(|(phase, tenant)| behind(phase, tenant));
    let unheard = run.phases().filter_map(|(phase, tenant)| finished_nothing(phase, tenant));
    let predictions = run.policies.iter().filter_map(power).chain(run.policies.iter().flat_map(predictions));
    let tables = lines(&rows, WORDS, mark).into_iter().chain(streams).chain(clocks);
    tables.chain(behind).chain(unheard).chain(predictions).map(|line| format!("{mark}{line}\n")).collect()
}

/// Rows with their columns aligned, to stand after `mark`; the first `words` columns hold words.
fn lines<const COLUMNS: usize>(rows: &[[String; COLUMNS]], words: usize, mark: &str) -> Vec<String> {
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let widest = mark.len() + widths.iter().sum::<usize>() + 2 * (COLUMNS - 1);
    let gap = if widest <= TERMINAL { "  " } else { " " };
    rows.iter().map(|row| line(row, &widths, words, gap)).collect()
}

fn row(policy: &str, tenant: &TenantResult, totals: Option<&PolicyResult>) -> [String; COLUMNS] {
    let class = match tenant.class {
        Class::Latency => "latency",
        Class::Throughput => "throughput",
    };
    let latency = |ms| positive(ms, 3);
    [
        name(policy, LONGEST_POLICY),
        name(&tenant.name, LONGEST_NAME),
        class.to_owned(),
        figure(tenant.throughput, 1),
        latency(tenant.p50_ms),
        latency(tenant.p95_ms),
        latency(tenant.p99_ms),
        tenant.slo_attainment.map_or_else(|| "-".into(), |share| figure(100.0 * share, 1) + "%"),
        if tenant.slowdown > 0.0 && tenant.p50_ms > 0.0 { figure(tenant.slowdown, 2) + "x" } else { "-".into() },
        totals.map_or_else(String::new, |policy| figure(policy.total_normalised_throughput, 2)),
        totals.map_or_else(String::new, |policy| figure(policy.fairness, 2)),
    ]
}

fn stream_row(policy: &str, tenant: &TenantResult) -> Option<[String; STREAM_HEAD.len()]> {
    let stream = tenant.stream?;
    let [first, _, slow_first] = stream.first_token_ms.map(|ms| positive(ms, 2));
    let [per_token, _, slow_per_token] = stream.per_token_ms.map(|ms| positive(ms, 3));
    Some([
        name(policy, LONGEST_POLICY),
        name(&tenant.name, LONGEST_NAME),
        figure(stream.tokens_per_second, 1),
        first,
        slow_first,
        per_token,
        slow_per_token,
    ])
}

fn clock_row(phase: &PhaseClocks) -> [String; CLOCK_HEAD.len()] {
    [name(&phase.phase, LONGEST_PHASE), phase.limits(), phase.sm_clock_mhz.to_string(), figure(phase.power_w, 0)]
}

/// That a tenant does not keep up with its requests.
fn behind(policy: &str, tenant: &TenantResult) -> Option<String> {
    let (policy, name) = (name(policy, LONGEST_POLICY), name(&tenant.name, LONGEST_NAME));
    tenant
        .falls_behind()
        .then(|| format!("{policy}, {name}: {} requests still waited at the end; latencies are at least these", tenant.waiting))
}

/// That there is nothing to judge a tenant by.
fn finished_nothing(phase: &str, tenant: &TenantResult) -> Option<String> {
    let (phase, name) = (name(phase, LONGEST_POLICY), name(&tenant.name, LONGEST_NAME));
    (tenant.p50_ms <= 0.0).then(|| format!("{phase}, {name}: no request was finished; measure longer with --duration"))
}

/// What its plan is predicted to draw.
fn power(policy: &PolicyResult) -> Option<String> {
    let PlannedPower { board_w, limit_w, clock } = policy.power?;
    let name = name(&policy.policy, LONGEST_POLICY);
    let clock = if clock < 1.0 { format!("which leaves {clock:.2} of the full clock") } else { "at the full clock".to_owned() };
    Some(format!("{name}: predicted to draw {board_w:.0} W of the board's {limit_w:.0} while all have work, {clock}"))
}

fn line(row: &[String], widths: &[usize], words: usize, gap: &str) -> String {
    let cells = row.iter().zip(widths).enumerate();
    let cells = cells.map(|(column, (cell, &width))| if column < words { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
    cells.collect::<Vec<_>>().join(gap).trim_end().to_owned()
}

fn predictions(policy: &PolicyResult) -> impl Iterator<Item = String> {
    policy.predicted.iter().flatten().map(|prediction| {
        let error = 100.0 * prediction.error;
        let error = if error.is_finite() { format!("{error:+.1}% against the measured figure") } else { "nothing was measured".into() };
        let (policy, tenant) = (name(&policy.policy, LONGEST_POLICY), name(&prediction.name, LONGEST_NAME));
        format!("SIMULATED prediction, {policy}, {tenant}: {} requests/s, {error}", figure(prediction.simulated_throughput, 1))
    })
}

/// A latency; a dash where there was none to measure.
fn positive(ms: f64, digits: usize) -> String {
    if ms > 0.0 { figure(ms, digits) } else { "-".into() }
}

/// A figure of at most 10 characters; a dash for what is none.
fn figure(value: f64, digits: usize) -> String {
    match value.abs() {
        size if size < 1e4 => format!("{value:.digits$}"),
        size if size < 1e8 => format!("{value:.0}"),
        size if size.is_finite() => format!("{value:.1e}"),
        _ => "-".into(),
    }
}

/// A name on one line, cut if it is long.
fn name(text: &str, longest: usize) -> String {
    on_one_line(&cut(text, longest))
}

#[cfg(test)]
mod tests {
    use smidgen_runtime::launch::Walls;

    use super::*;
    use crate::colocate::results::{Prediction, RunProvenance, StreamResult};

    fn tenant(name: &str, throughput: f64, latency_ms: f64) -> TenantResult {
        TenantResult {
            name: name.into(),
            model: "bert-large".into(),
            class: Class::Throughput,
            throughput,
            p50_ms: latency_ms,
            p95_ms: latency_ms,
            p99_ms: latency_ms,
            slowdown: 1.0,
            requests: 0,
            waiting: 0,
            rate: None,
            slo_ms: None,
            slo_attainment: None,
            mean_ms: latency_ms,
            quantiles_ms: Vec::new(),
            walls: Walls::default(),
            sms: 0,
            stream: None,
        }
    }

    fn run(simulated: bool, names: [&str; 2]) -> RunResult {
        let alone = vec![tenant(names[0], 1000.0, 0.9), tenant(names[1], 200.0, 5.0)];
        let policy = |policy: &str, latency_ms| {
            PolicyResult::new(policy.into(), names.map(|name| tenant(name, 100.0, latency_ms)).to_vec(), &alone, &[])
        };
        RunResult {
            policies: vec![policy("model-rightsize", 43.0), policy("krisp-i", 123_456.789)],
            provenance: RunProvenance {
                command: String::new(),
                commit: String::new(),
                gpu: String::new(),
                sms: 132,
                driver: String::new(),
                date: String::new(),
                simulated,
                seconds: 1.0,
            },
            alone,
            alone_at_rate: Vec::new(),
            clocks: Vec::new(),
        }
    }

    #[test]
    fn columns_line_up_and_fit_the_terminal_whatever_the_names() {
        for names in [["chat", "bulk"], ["a", "a tenant whose name is far longer than any column\n\u{1b}[31m"], ["", "ünïcödé"]] {
            let text = render(&run(true, names));
            let lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
            assert_eq!(lines.len(), 7, "{text}");
            let head = &lines[0];
            for line in &lines {
                assert!(line.len() <= 120, "{} columns:\n{text}", line.len());
                assert!(!line.iter().any(|character| character.is_control()));
                // Figures end where their heading ends.
                for title in ["requests/s", "p50 ms", "p95 ms", "p99 ms", "slowdown"] {
                    let end =
                        head.windows(title.len()).position(|window| window.iter().collect::<String>() == title).unwrap() + title.len();
                    assert!(line[end - 1] != ' ' && line.get(end).is_none_or(|next| *next == ' '), "{title}:\n{text}");
                }
            }
        }
    }

    #[test]
    fn the_share_of_requests_that_kept_their_objective_has_a_column() {
        let mut run = run(false, ["chat", "bulk"]);
        run.policies[0].tenants[0].slo_attainment = Some(0.9942);
        let text = render(&run);
        let kept = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap().split_whitespace().nth(7).unwrap();
        assert!(text.contains("p99 ms  in SLO  slowdown"), "{text}");
        assert_eq!([kept("alone"), kept("model-rightsize")], ["-", "99.4%"], "{text}");
    }

    #[test]
    fn every_line_of_a_simulated_run_says_so() {
        assert!(render(&run(true, ["chat", "bulk"])).lines().all(|line| line.starts_with("SIMULATED  ")));
        assert!(!render(&run(false, ["chat", "bulk"])).contains("SIMULATED"));
    }

    #[test]
    fn predictions_under_a_measured_run_are_marked() {
        let mut run = run(false, ["chat", "a tenant whose name is far longer than any column"]);
        let predict = |name: &str, error| Prediction { name: name.into(), simulated_throughput: 120.0, error };
        run.policies[0].predicted = Some(vec![predict("chat", 0.2), predict(&run.alone[1].name, f64::NAN)]);
        let text = render(&run);
        let marked: Vec<_> = text.lines().filter(|line| line.contains("SIMULATED")).collect();
        assert_eq!(marked[0], "SIMULATED prediction, model-rightsize, chat: 120.0 requests/s, +20.0% against the measured figure");
        assert_eq!(marked[1], "SIMULATED prediction, model-rightsize, a tenant… column: 120.0 requests/s, nothing was measured");
    }

    #[test]
    fn what_a_plan_is_predicted_to_draw_stands_beside_the_limit() {
        let mut run = run(false, ["chat", "bulk"]);
        assert!(!render(&run).contains(" W of "));
        let said = |run: &RunResult| render(run).lines().filter(|line| line.contains(" W of ")).collect::<Vec<_>>().join("\n");
        run.policies[0].power = Some(PlannedPower { board_w: 652.0, limit_w: 700.0, clock: 1.0 });
        assert_eq!(said(&run), "model-rightsize: predicted to draw 652 W of the board's 700 while all have work, at the full clock");
        run.policies[0].power = Some(PlannedPower { board_w: 700.0, limit_w: 700.0, clock: 0.77 });
        run.provenance.simulated = true;
        let limited = "predicted to draw 700 W of the board's 700 while all have work, which leaves 0.77 of the full clock";
        assert_eq!(said(&run), format!("SIMULATED  model-rightsize: {limited}"));
    }

    #[test]
    fn the_tokens_of_streams_have_a_table_of_their_own_that_fits_the_terminal() {
        let mut run = run(true, ["chat", "a tenant whose name is far longer than any column"]);
        let stream =
            StreamResult { tokens_per_second: 12_345.6, first_token_ms: [12.0, 1234.5, 12_345.6], per_token_ms: [1.0, 2.0, 3333.33] };
        run.policies[0].tenants[1].stream = Some(stream);
        let text = render(&run);
        let lines: Vec<_> =
            text.lines().skip_while(|line| !line.contains("tokens/s")).map(|line| line.split_whitespace().collect()).collect();
        let row: &Vec<_> = &lines[1];
        assert_eq!((lines.len(), &row[row.len() - 5..]), (2, &["12346", "12.00", "12346", "1.000", "3333.330"][..]));
        assert!(text.lines().all(|line| line.starts_with("SIMULATED") && line.chars().count() <= 120), "{text}");
    }

    #[test]
    fn clock_and_power_have_a_table_of_their_own_that_says_what_held_the_gpu_back() {
        let mut run = run(false, ["chat", "bulk"]);
        let clocks = |phase: &str, sm_clock_mhz, power_w, limits: &[&str], held_back| PhaseClocks {
            phase: phase.into(),
            sm_clock_mhz,
            power_w,
            held_back_by: limits.iter().map(|&limit| limit.to_owned()).collect(),
            held_back,
        };
        run.clocks = vec![
            clocks("chat alone", 1980, 402.0, &[], 0.0),
            clocks("krisp-i", 1545, 697.0, &["power limit", "temperature"], 0.98),
            clocks("a tenant whose name is far longer than any column alone", 1980, 131.0, &["power limit"], 0.04),
        ];
        let text = render(&run);
        let table: Vec<_> = text.lines().skip_while(|line| !line.starts_with("phase")).collect();
        insta::assert_snapshot!(table.join("\n"), @r"
        phase                               clock held back by                         SM clock MHz  power W
        chat alone                          nothing                                            1980      402
        krisp-i                             power limit, temperature, 98% of the time          1545      697
        a tenant whose na…any column alone  power limit, 4% of the time                        1980      131
        ");
    }

    #[test]
    fn a_tenant_that_finished_nothing_has_dashes_for_latencies() {
        let mut run = run(false, ["chat", "bulk"]);
        run.policies[0].tenants[0] = TenantResult { slowdown: f64::NAN, ..tenant("chat", 0.0, f64::NAN) };
        let text = render(&run);
        let line = text.lines().find(|line| line.starts_with("model-rightsize")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..9], ["0.0", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn a_phase_without_a_finished_request_says_so_and_what_to_do() {
        let mut run = run(false, ["chat", "bulk"]);
        assert!(!render(&run).contains("--duration"));
        run.alone[0] = tenant("chat", 0.0, 0.0);
        let none = StreamResult { tokens_per_second: 0.0, first_token_ms: [0.0; 3], per_token_ms: [0.0; 3] };
        run.policies[0].tenants[0] = TenantResult { stream: Some(none), ..tenant("chat", 0.0, 0.0) };
        let text = render(&run);
        let alone: Vec<_> = text.lines().find(|line| line.starts_with("alone")).unwrap().split_whitespace().skip(3).collect();
        assert_eq!(alone, ["0.0", "-", "-", "-", "-", "-"]);
        let stream: Vec<_> =
            text.lines().skip_while(|line| !line.contains("tokens/s")).nth(1).unwrap().split_whitespace().skip(2).collect();
        assert_eq!(stream, ["0.0", "-", "-", "-", "-"]);
        assert!(text.contains("\nalone, chat: no request was finished; measure longer with --duration\n"), "{text}");
    }
}
