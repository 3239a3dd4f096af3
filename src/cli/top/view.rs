//! What `smidgen top` draws: one row a tenant.

use ratatui::Frame;
use ratatui::layout::Constraint;
use ratatui::style::Style;
use ratatui::widgets::{Block, Cell, Row, Table};
use smidgen::colocate::names::on_one_line;

use super::scrape::{Status, TenantStatus};

const HEAD: [&str; COLUMNS] = ["tenant", "requests", "p50 ms", "p99 ms", "SLO ms", "kept", "SMs owned", "held", "borrowed"];
const COLUMNS: usize = 9;

/// One table, to be read by a program or a person later. Simulated figures say so on every line.
pub fn text(status: &Status) -> String {
    let mark = if status.simulated { "SIMULATED  " } else { "" };
    let rows: Vec<_> = std::iter::once(HEAD.map(str::to_owned)).chain(rows(status)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &[String; COLUMNS]| {
        let figures = row.iter().zip(widths).skip(1).map(|(cell, width)| format!("  {cell:>width$}"));
        format!("{mark}{:<width$}{}\n", row[0], figures.collect::<String>(), width = widths[0])
    };
    format!("{mark}{}\n{}", title(status), rows.iter().map(line).collect::<String>())
}

/// The same on a terminal.
pub fn draw(frame: &mut Frame<'_>, status: &Status, address: &str) {
    let missed = |tenant: &TenantStatus| tenant.slo.zip(tenant.p99).is_some_and(|(slo, p99)| p99 > slo);
    let table_rows = rows(status).zip(status.tenants.values()).map(|(row, tenant)| {
        let style = if missed(tenant) { Style::new().red() } else { Style::new() };
        Row::new(row.map(Cell::from)).style(style)
    });
    let widths = std::iter::once(Constraint::Min(12)).chain([10, 10, 10, 8, 7, 10, 6, 9].map(Constraint::Length));
    let mark = if status.simulated { "SIMULATED " } else { "" };
    let block = Block::bordered().title(format!(" smidgen top: {mark}{} ", title(status))).title_bottom(format!(" {address}, q to quit "));
    let table = Table::new(table_rows, widths).header(Row::new(HEAD).style(Style::new().bold())).block(block);
    frame.render_widget(table, frame.area());
}

fn title(status: &Status) -> String {
    let drift = if status.drift_reports > 0.0 { format!(", {} reports of drifted profiles", status.drift_reports) } else { String::new() };
    let nobody = if status.tenants.is_empty() { ", no tenant is served yet" } else { "" };
    format!("{}{drift}{nobody}", on_one_line(&status.phase))
}

fn rows(status: &Status) -> impl Iterator<Item = [String; COLUMNS]> + '_ {
    let milliseconds = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.3}", seconds * 1e3));
    let [first, last] = [status.tenants.keys().next(), status.tenants.keys().next_back()].map(|key| key.map(|(runtime, _)| runtime));
    let several = first != last;
    status.tenants.iter().map(move |((runtime, name), tenant)| {
        // Before the first request there are no latencies, and 0 would be one.
        let latency = |seconds: Option<f64>| milliseconds(seconds.filter(|_| tenant.requests > 0.0));
        let kept = match tenant.slo {
            Some(_) if tenant.requests > 0.0 => format!("{:.1}%", (1.0 - tenant.misses / tenant.requests) * 100.0),
            _ => "-".to_owned(),
        };
        let name = on_one_line(name);
        [
            if several { format!("{name} (runtime {runtime})") } else { name },
            format!("{:.0}", tenant.requests),
            latency(tenant.p50),
            latency(tenant.p99),
            milliseconds(tenant.slo),
            kept,
            format!("{:.0}", tenant.owned),
            format!("{:.0}", tenant.held),
            format!("{:.0}", tenant.borrowed),
        ]
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn status(simulated: bool) -> Status {
        let latency =
            TenantStatus { requests: 200.0, misses: 1.0, slo: Some(0.005), p50: Some(0.002), p99: Some(0.0061), ..TenantStatus::default() };
        let chat = TenantStatus { owned: 48.0, held: 48.0, ..latency };
        let embed = TenantStatus {
            requests: 9.0,
            p50: Some(0.1),
            p99: Some(0.2),
            owned: 84.0,
            held: 132.0,
            borrowed: 48.0,
            ..TenantStatus::default()
        };
        let tenants = BTreeMap::from([("chat", chat), ("embed", embed)].map(|(name, tenant)| (("0".to_owned(), name.to_owned()), tenant)));
        Status { phase: "slo".into(), simulated, tenants, drift_reports: 1.0 }
    }

    #[test]
    fn a_table_has_a_row_for_each_tenant() {
        insta::assert_snapshot!(text(&status(false)), @r"
        slo, 1 reports of drifted profiles
        tenant  requests   p50 ms   p99 ms  SLO ms   kept  SMs owned  held  borrowed
        chat         200    2.000    6.100   5.000  99.5%         48    48         0
        embed          9  100.000  200.000       -      -         84   132        48
        ");
    }

    #[test]
    fn tenants_of_several_runtimes_say_whose_they_are() {
        let mut status = status(false);
        status.tenants.insert(("1".to_owned(), "chat".to_owned()), TenantStatus::default());
        let text = text(&status);
        let names: Vec<_> = text.lines().skip(2).map(|line| line.split("  ").next().unwrap()).collect();
        assert_eq!(names, ["chat (runtime 0)", "embed (runtime 0)", "chat (runtime 1)"]);
    }

    #[test]
    fn a_name_of_several_lines_is_one_row() {
        let mut status = Status { phase: "chat\nbot alone".into(), ..status(true) };
        status.tenants.insert(("0".to_owned(), "chat\nbot\t".to_owned()), TenantStatus::default());
        let text = text(&status);
        assert!(text.starts_with("SIMULATED  chat bot alone"), "{text}");
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.contains("SIMULATED  chat bot  ") && !text.contains('\t'), "{text}");
    }

    #[test]
    fn every_line_of_a_simulated_table_says_so() {
        assert!(text(&status(true)).lines().all(|line| line.starts_with("SIMULATED  ")));
    }

    #[test]
    fn a_terminal_shows_the_same_figures_and_marks_a_missed_objective() {
        let mut terminal = Terminal::new(TestBackend::new(100, 6)).unwrap();
        terminal.draw(|frame| draw(frame, &status(true), "127.0.0.1:9464")).unwrap();
        let buffer = terminal.backend().buffer();
        let lines: Vec<String> = (0..6).map(|y| (0..100).map(|x| buffer[(x, y)].symbol()).collect()).collect();
        for (line, parts) in
            [(0, ["SIMULATED", "slo"]), (2, ["chat", "99.5%"]), (3, ["embed", "132"]), (5, ["127.0.0.1:9464", "q to quit"])]
        {
            assert!(parts.iter().all(|part| lines[line].contains(part)), "{lines:#?}");
        }
        assert_eq!(buffer[(1, 2)].fg, ratatui::style::Color::Red);
        assert_ne!(buffer[(1, 3)].fg, ratatui::style::Color::Red);
    }
}
