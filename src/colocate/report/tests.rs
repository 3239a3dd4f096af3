//! The page as a reader meets it: its sentences, its figures, and what it must never contain.

use smidgen_runtime::launch::Walls;
use smidgen_runtime::tenant::Class;

use super::headline::Comparison;
use super::render;
use crate::colocate::results::{PhaseClocks, PolicyResult, Prediction, RunProvenance, RunResult, StreamResult, TenantResult};

fn tenant(name: &str, class: Class, throughput: f64, p50_ms: f64, p99_ms: f64) -> TenantResult {
    TenantResult {
        name: name.into(),
        model: "bert-large".into(),
        class,
        throughput,
        p50_ms,
        p95_ms: (p50_ms + p99_ms) / 2.0,
        p99_ms,
        slowdown: 1.0,
        requests: throughput as u64,
        waiting: 0,
        rate: None,
        slo_ms: None,
        slo_attainment: (class == Class::Latency).then_some(0.975),
        mean_ms: p50_ms,
        quantiles_ms: (0..=100).map(|percent| p50_ms + (p99_ms - p50_ms) * f64::from(percent) / 99.0).collect(),
        walls: Walls { grid: true, grant: true, partition: false },
        sms: 66,
        stream: None,
    }
}

/// A run with made-up figures: `policies` names each policy, its latency tenant's p99 and its throughput tenant's share of what it has alone.
fn run(policies: &[(&str, f64, f64)]) -> RunResult {
    let alone = vec![tenant("chat", Class::Latency, 1000.0, 0.8, 0.9), tenant("bulk", Class::Throughput, 200.0, 5.0, 5.5)];
    let policy = |&(name, p99, share): &(&str, f64, f64)| {
        let chat = tenant("chat", Class::Latency, 500.0, p99 / 2.0, p99);
        let bulk = tenant("bulk", Class::Throughput, 200.0 * share, 5.0 / share, 5.5 / share);
        PolicyResult::new(name.to_owned(), vec![chat, bulk], &alone, &[])
    };
    RunResult {
        policies: policies.iter().map(policy).collect(),
        provenance: RunProvenance {
            command: "smidgen colocate --tenant chat=llama-3.2-1b".into(),
            commit: "0123abc".into(),
            gpu: "NVIDIA H200".into(),
            sms: 132,
            driver: "580.159".into(),
            date: "2026-11-21".into(),
            simulated: false,
            seconds: 10.0,
        },
        alone,
        alone_at_rate: Vec::new(),
        clocks: Vec::new(),
    }
}

fn simulated(mut run: RunResult) -> RunResult {
    run.provenance.simulated = true;
    run
}

fn sentences(run: &RunResult) -> String {
    let comparison = Comparison::of(run).unwrap();
    format!("{}\n{}", comparison.headline(), comparison.verdict().unwrap_or_default())
}

/// What stands between each `<tag` and `</tag>`.
fn elements<'a>(page: &'a str, tag: &str) -> Vec<&'a str> {
    let end = format!("</{tag}>");
    page.split(&format!("<{tag}")).skip(1).map(|rest| rest.split(&end).next().unwrap()).collect()
}

#[test]
fn the_headline_tells_what_changed_between_mps_and_smidgen() {
    insta::assert_snapshot!(sentences(&run(&[("time-slice", 3.0, 0.5), ("mps-default", 43.0, 0.92), ("krisp-i", 1.9, 1.05)])), @r"
    chat’s p99 goes from 43.0 ms under mps-default to 1.90 ms under krisp-i; total normalised throughput 1.42 → 1.55.
    krisp-i is better on both counts: p99 22.6 times lower, 9% more throughput.
    ");
}

#[test]
fn the_headline_admits_it_when_smidgen_is_worse() {
    insta::assert_snapshot!(sentences(&run(&[("krisp-i", 4.0, 0.4), ("mps-default", 2.0, 0.9)])), @r"
    chat’s p99 goes from 2.00 ms under mps-default to 4.00 ms under krisp-i; total normalised throughput 1.40 → 0.90.
    krisp-i is worse than mps-default on both counts: p99 2.00 times higher, 36% less throughput.
    ");
    insta::assert_snapshot!(sentences(&run(&[("krisp-i", 1.5, 0.4), ("mps-default", 2.0, 0.9)])), @r"
    chat’s p99 goes from 2.00 ms under mps-default to 1.50 ms under krisp-i; total normalised throughput 1.40 → 0.90.
    krisp-i trades one for the other: p99 25% lower, 36% less throughput.
    ");
}

#[test]
fn the_headline_does_with_what_was_run() {
    insta::assert_snapshot!(sentences(&run(&[("krisp-o", 1.5, 0.4)])), @"chat’s p99 is 1.50 ms under krisp-o, 0.900 ms alone; total normalised throughput 0.90.");
    insta::assert_snapshot!(sentences(&run(&[("time-slice", 1.5, 0.4)])), @"chat’s p99 is 1.50 ms under time-slice, 0.900 ms alone; total normalised throughput 0.90.");
    insta::assert_snapshot!(sentences(&run(&[])), @"chat’s p99 is 0.900 ms alone; no policy was run.");
    // Either form of the kernels, whichever does better; another baseline does not step in for it.
    let forms = [("mps-priority", 1.0, 1.2), ("mps-default", 43.0, 0.92), ("mps-default:tiles", 3.0, 0.9), ("krisp-i", 1.9, 1.05)];
    insta::assert_snapshot!(sentences(&run(&forms)), @r"
    chat’s p99 goes from 3.00 ms under mps-default:tiles to 1.90 ms under krisp-i; total normalised throughput 1.40 → 1.55.
    krisp-i is better on both counts: p99 37% lower, 11% more throughput.
    ");
    let mut starved = run(&[("mps-default", 43.0, 0.92), ("krisp-i", 1.9, 1.05)]);
    starved.policies[0].tenants[0].p99_ms = 0.0;
    insta::assert_snapshot!(sentences(&starved), @"chat finishes no request under mps-default; its p99 under krisp-i is 1.90 ms; total normalised throughput 1.42 → 1.55.");
}

#[test]
fn the_headline_quotes_the_latency_tenant_that_fares_worst() {
    let mut run = run(&[("mps-default", 2.0, 0.9), ("krisp-i", 1.0, 0.9)]);
    let search = tenant("search", Class::Latency, 10.0, 1.0, 2.0);
    run.alone.insert(0, search.clone());
    for policy in &mut run.policies {
        policy.tenants.insert(0, TenantResult { p99_ms: 9.0, ..search.clone() });
    }
    assert!(sentences(&run).starts_with("search’s p99"));
}

#[test]
fn names_from_outside_cannot_change_the_page() {
    let hostile = "<script>alert('x')</script>\" onload=\"&amp;\u{0}\u{1b}";
    let mut run = run(&[("mps-default", 2.0, 0.9), ("krisp-i", 1.0, 0.9)]);
    let policies = run.policies.iter_mut().flat_map(|policy| {
        policy.policy.push_str(hostile);
        &mut policy.tenants
    });
    for tenant in policies.chain(&mut run.alone) {
        tenant.name.push_str(hostile);
        tenant.model.push_str(hostile);
    }
    for text in [&mut run.provenance.command, &mut run.provenance.gpu, &mut run.provenance.driver, &mut run.provenance.commit] {
        text.push_str(hostile);
    }
    let page = render(&run);
    assert!(!page.contains("<script") && !page.contains("alert('x')") && !page.contains("\" onload"), "{page}");
    assert!(page.contains("&lt;script&gt;") && !page.contains(['\0', '\u{1b}']));
}

#[test]
fn the_page_opens_with_whether_an_objective_was_kept() {
    let mut run = run(&[("mps-default", 43.0, 0.9), ("slo", 1.6, 0.7)]);
    assert!(!render(&run).contains("within its objective"));
    for (policy, kept) in run.policies.iter_mut().zip([Some(0.031), Some(0.994)]) {
        (policy.tenants[0].slo_ms, policy.tenants[0].slo_attainment) = (Some(2.0), kept);
    }
    let page = render(&run);
    assert!(
        page.contains(
            "<span>chat within its objective of 2.00 ms under slo</span><strong>99.4%</strong><span>3.10% under mps-default</span>"
        ),
        "{page}"
    );
    run.policies[0].tenants[0].slo_attainment = None;
    let page = render(&run);
    assert!(
        page.contains("<span>– under mps-default</span>")
            && !page.contains("no SLO</td><td>66</td><td class=\"word\">grid, grant</td></tr>\n<tr><th scope=\"row\" title=\"bulk"),
        "{page}"
    );
}

#[test]
fn a_chart_without_a_finished_request_says_so() {
    let mut run = run(&[("slo", 1.6, 0.7)]);
    assert!(!render(&run).contains("no request was finished"));
    let [alone, shared] = [&mut run.alone[0], &mut run.policies[0].tenants[0]];
    for tenant in [alone, shared] {
        (tenant.p50_ms, tenant.quantiles_ms) = (0.0, vec![0.0; 101]);
    }
    assert_eq!(render(&run).matches("no request was finished").count(), 1);
}

#[test]
fn tokens_of_streams_have_a_table_of_their_own() {
    let mut run = simulated(run(&[("slo", 1.6, 0.7)]));
    assert!(!render(&run).contains("token by token"));
    let stream = StreamResult { tokens_per_second: 1234.0, first_token_ms: [12.0, 20.0, 0.0], per_token_ms: [1.5, 2.5, 3.5] };
    (run.policies[0].tenants[0].stream, run.policies[0].tenants[0].slo_ms) = (Some(stream), Some(20.0));
    let page = render(&run);
    let table = page.split("token by token").nth(1).unwrap().split("</table>").next().unwrap();
    assert!(table.contains("<caption>SIMULATED: "), "{table}");
    run.alone[0].stream = Some(stream);
    assert!(render(&run).contains("chat within its objective of 20.0 ms a token under slo"));
    let row = table.split("<tbody>").nth(1).unwrap();
    let cells: Vec<_> = row.split("<td>").skip(1).map(|cell| cell.split('<').next().unwrap()).collect();
    assert_eq!((cells.len(), &cells[..]), (8, &["1234", "12.0", "20.0", "–", "1.50", "2.50", "3.50", "20.0"][..]), "{row}");
}

#[test]
fn requests_that_arrive_at_a_rate_are_set_against_the_same_rate_alone_and_the_objective() {
    let mut run = run(&[("mps-default", 43.0, 0.92), ("slo", 1.9, 1.05)]);
    let closed_loop = render(&run);
    assert!(!closed_loop.contains("alone at its rate") && !closed_loop.contains(">objective<"));
    run.alone_at_rate = vec![tenant("chat", Class::Latency, 100.0, 0.9, 1.4)];
    run.policies.iter_mut().for_each(|policy| policy.tenants[0].slo_ms = Some(2.1));
    let page = render(&run);
    let charts = elements(&page, "svg");
    let drawn = |word: &str| charts.iter().map(|chart| chart.contains(word)).collect::<Vec<_>>();
    // Latency of chat and of bulk, throughput, requests of chat and of bulk by latency.
    assert_eq!(drawn(">alone at its rate<"), [true, false, false, false, false]);
    assert_eq!(drawn("<title>alone: p50 0.900 ms, p99 1.40 ms</title>"), [true, false, false, true, false]);
    assert_eq!(drawn("<title>objective: 2.10 ms</title>"), [true, false, false, false, false]);
    run.policies.truncate(1);
    let headline = elements(&render(&run), "h1")[0].to_owned();
    assert!(headline.contains("1.40&nbsp;ms alone"), "{headline}");
}

#[test]
fn a_simulated_page_says_so_in_every_chart_and_every_table() {
    let page = render(&simulated(run(&[("mps-default", 43.0, 0.9), ("krisp-i", 1.9, 1.0)])));
    for tag in ["h1", "title", "caption"] {
        let first = elements(&page, tag)[0];
        assert!(first.contains("SIMULATED"), "<{tag}{first}");
    }
    let charts = elements(&page, "svg");
    assert_eq!(charts.len(), 5);
    for chart in charts {
        assert!(elements(chart, "title")[0].contains("SIMULATED"), "the title read out: {chart}");
        assert!(elements(chart, "text")[0].contains("SIMULATED"), "the title shown: {chart}");
    }
    assert!(page.contains("class=\"simulated\"") && !page.contains(">Measured,") && !page.contains("<dt>measured</dt>"));
}

#[test]
fn predictions_stand_apart_from_measured_figures() {
    let mut run = run(&[("krisp-i", 1.9, 1.0)]);
    run.policies[0].predicted = Some(vec![Prediction { name: "chat".into(), simulated_throughput: 612.0, error: 0.224 }]);
    let page = render(&run);
    let tables = elements(&page, "table");
    assert_eq!(tables.len(), 2);
    assert!(!tables[0].contains("612") && !tables[0].contains("SIMULATED"));
    assert!(tables[1].contains("612") && tables[1].contains("+22.4%") && elements(tables[1], "caption")[0].contains("SIMULATED"));
    assert!(!page.contains("class=\"simulated\""));
}

#[test]
fn a_measured_page_without_predictions_never_says_simulated() {
    assert!(!render(&run(&[("krisp-i", 1.9, 1.0)])).contains("SIMULATED"));
}

#[test]
fn no_figure_breaks_the_page() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1.0, 1e-300, f64::MAX] {
        let mut run = run(&[("mps-default", 43.0, 0.9), ("krisp-i", 1.9, 1.0)]);
        run.policies[0].predicted = Some(vec![Prediction { name: "chat".into(), simulated_throughput: odd, error: odd }]);
        run.provenance.seconds = odd;
        for policy in &mut run.policies {
            (policy.total_normalised_throughput, policy.fairness, policy.jain) = (odd, odd, odd);
        }
        for tenants in std::iter::once(&mut run.alone).chain(run.policies.iter_mut().map(|policy| &mut policy.tenants)) {
            tenants[0] = tenant("chat", Class::Latency, odd, odd, odd);
            tenants[0].slo_attainment = Some(odd);
            tenants[1].quantiles_ms.clear();
        }
        let page = render(&run);
        for word in ["NaN", "inf", "Infinity"] {
            assert!(!page.contains(word), "{odd} writes {word}");
        }
        assert_eq!(page.matches("<g ").count(), page.matches("</g>").count());
    }
}

#[test]
fn any_number_of_tenants_and_policies_is_drawn_within_the_frame() {
    for (tenants, policies) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 8), (8, 1), (8, 12)] {
        let names: Vec<String> = (0..tenants).map(|at| format!("tenant with a rather long name, number {at}")).collect();
        let all = |slow: f64| names.iter().map(|name| tenant(name, Class::Latency, 100.0 / slow, slow, 30.0 * slow)).collect::<Vec<_>>();
        let mut run = run(&[]);
        run.alone = all(1.0);
        run.policies = (1..=policies).map(|at| PolicyResult::new(format!("policy-{at}"), all(f64::from(at)), &run.alone, &[])).collect();
        let page = render(&run);
        assert_eq!(elements(&page, "svg").len(), 2 * tenants + usize::from(policies > 0), "{tenants} tenants, {policies} policies");
        for attribute in [" x=\"", " x1=\"", " x2=\"", " cx=\""] {
            for rest in page.split(attribute).skip(1) {
                let x: f64 = rest.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=460.0).contains(&x), "{tenants} tenants, {policies} policies:{attribute}{x}");
            }
        }
    }
}

#[test]
fn long_names_that_differ_at_the_end_can_be_told_apart_and_are_whole_where_they_are_pointed_at() {
    let mut run = simulated(run(&[("mps-default", 43.0, 0.9), ("slo", 1.9, 1.0)]));
    let model = "llama-3.2-1b-instruct-with-a-long-name";
    let named = |tenants: &mut Vec<TenantResult>| {
        for (tenant, phase) in tenants.iter_mut().zip(["decode", "prefill"]) {
            tenant.name = format!("{model}-{phase}");
        }
    };
    named(&mut run.alone);
    run.policies.iter_mut().for_each(|policy| named(&mut policy.tenants));
    let page = render(&run);
    for (chart, phase) in elements(&page, "svg").into_iter().zip(["decode", "prefill", "", "decode", "prefill"]) {
        let shown = elements(chart, "text")[0];
        assert!(phase.is_empty() || shown.contains('…') && shown.contains(&phase[phase.len() - 4..]), "{shown}");
        assert!(phase.is_empty() || elements(chart, "title")[0].contains(&format!("{model}-{phase}")), "{chart}");
    }
    let rows = elements(&page, "th");
    for phase in ["decode", "prefill"] {
        let cut = |row: &&&str| row.contains(&format!("title=\"{model}-{phase}: bert-large\"")) && row.ends_with(&format!("-{phase}"));
        assert_eq!(rows.iter().filter(cut).count(), 3, "{phase}");
    }
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let page = render(&run(&[("mps-default", 43.0, 0.9), ("krisp-i", 1.9, 1.0)]));
    for outside in ["http://", "https://", "src=", "@import", "url(", "<script", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn clock_and_power_stand_where_they_were_read_and_nowhere_else() {
    let mut run = run(&[("mps-default", 43.0, 0.92), ("slo", 1.4, 0.5)]);
    assert!(!render(&run).contains("Clock and power"));
    let clocks = |phase: &str, sm_clock_mhz, held_back_by: &[&str], held_back| PhaseClocks {
        phase: phase.into(),
        sm_clock_mhz,
        power_w: 697.0,
        held_back_by: held_back_by.iter().map(|&limit| limit.to_owned()).collect(),
        held_back,
    };
    run.clocks = vec![clocks("<b>", 1980, &[], 0.0), clocks("slo", 1545, &["power limit"], 0.98)];
    let page = render(&run);
    let rows: Vec<&str> = elements(&page, "tr").into_iter().filter(|row| row.contains("<td>697</td>")).collect();
    assert_eq!(rows.len(), 2, "{page}");
    assert!(rows[0].contains("&lt;b&gt;") && rows[0].contains("<td>1980</td>") && rows[0].contains(">nothing<"), "{}", rows[0]);
    assert!(rows[1].contains("<td>1545</td>") && rows[1].contains("power limit, 98% of the time"), "{}", rows[1]);
}
