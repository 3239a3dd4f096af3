//! Rows as a person reads them while the run goes on, and the short table at its end.

use crate::results::{Row, TargetOf};

/// One row on one line.
pub fn line(row: &Row) -> String {
    let peer = row.peer.map_or("none".to_owned(), |peer| format!("{peer}"));
    let ratio = row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
    let target = match row.target_of {
        TargetOf::Ratio => format!(">= {}", row.target),
        TargetOf::Ours => format!("ours <= {}", row.target),
    };
    let peak = row.percent_of_peak.map_or(String::new(), |percent| format!(" {percent:.1}% of peak"));
    let clock = row.clock_mhz.map_or(String::new(), |clock| format!(" {clock} MHz"));
    let power = row.power_w.map_or(String::new(), |watts| format!(" {watts:.0} W"));
    let throttled = if row.throttled { " THROTTLED" } else { "" };
    let verdict = if row.reached { "reached" } else { "NOT REACHED" };
    let beside: String =
        row.beside.iter().map(|beside| format!("; {}: {} ratio {:.3}", beside.peer_is, beside.peer, beside.ratio)).collect();
    let note = row.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
    format!(
        "{:2} {:60} {:3} SMs {:>8} peer {peer:>8} {:7} ratio {ratio} ({target}) {verdict};{peak}{clock}{power}{throttled}{beside}{note}",
        row.row,
        row.work,
        row.sms,
        row.ours,
        row.unit.name()
    )
}

/// One line for each line of the table: how many of its figures were reached, the mean ratio and the worst.
pub fn summary(rows: &[Row]) -> String {
    let mut table = " row  reached  mean ratio  worst\n".to_owned();
    for number in 1..=10 {
        let mine: Vec<&Row> = rows.iter().filter(|row| row.row == number).collect();
        if mine.is_empty() {
            continue;
        }
        let ratios: Vec<(f64, &Row)> = mine.iter().filter(|row| row.sms > 0).filter_map(|row| Some((row.ratio?, *row))).collect();
        let mean = (ratios.iter().map(|(ratio, _)| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        let worst = ratios.iter().min_by(|one, other| one.0.total_cmp(&other.0));
        let worst = worst.map_or("no peer".to_owned(), |(ratio, row)| {
            format!("{ratio:.3} {}, {} SMs, {} {}", row.work, row.sms, row.ours, row.unit.name())
        });
        let reached = mine.iter().filter(|row| row.reached).count();
        table += &format!("{number:4} {reached:4}/{:<4} {mean:10.3}  {worst}\n", mine.len());
    }
    table
}
