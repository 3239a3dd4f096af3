//! Results as Markdown tables.

use super::results::{Errors, Results, Row, TargetOf};

/// What each line of the table is, as docs/kernels.md's readers should hear it.
const LINES: [&str; 10] = [
    "GEMM, large, whole GPU, against cuBLASLt",
    "GEMM of BERT-base and BERT-large (m = 1024), whole GPU, against cuBLASLt",
    "GEMM in partitions of 8-SM groups, against cuBLASLt in the same partition",
    "Skinny GEMM, against the rate at which memory can be read on the same SMs",
    "Attention prefill, against PyTorch's best back end",
    "Attention decode, against the rate at which memory can be read",
    "BERT-base forward, against PyTorch's fused encoder layers",
    "Llama-3.2-1B decode step, against `torch.compile`",
    "Mistral-7B decode step, against reading its weights",
    "BERT-base's SM-time on few SMs, against all SMs",
];

/// A summary by line, then every figure.
pub fn reach(results: &Results) -> String {
    let provenance = &results.provenance;
    let clock = provenance.clock_mhz.map_or(String::new(), |[least, most]| format!(", SM clock {least} to {most} MHz"));
    let power = provenance.power_w.map_or(String::new(), |watts| format!(", at most {watts} W"));
    let mut text = format!(
        "{}, {} SMs, driver {}, CUDA {}, {}, commit {}, kernels {}{clock}{power}; {:.0}% of the measurements saw a throttle reason, which met both sides alike. Command: `{}`.\n\n",
        provenance.machine,
        provenance.sms,
        provenance.driver,
        provenance.cuda,
        provenance.date,
        provenance.commit,
        provenance.kernel_build,
        100.0 * provenance.throttled,
        provenance.command
    );
    text += "| line | work | reached | mean ratio | worst |\n|---|---|---|---|---|\n";
    for (number, line) in (1..).zip(LINES) {
        let rows: Vec<&Row> = results.rows.iter().filter(|row| row.row == number).collect();
        if rows.is_empty() {
            text += &format!("| {number} | {line} | not measured | | |\n");
            continue;
        }
        let reached = rows.iter().filter(|row| row.reached).count();
        let ratios: Vec<f64> = rows.iter().filter(|row| row.sms > 0).filter_map(|row| row.ratio).collect();
        let (mean, worst) = if ratios.is_empty() {
            ("–".to_owned(), "–".to_owned())
        } else {
            let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
            (format!("{mean:.2}"), format!("{:.2}", ratios.iter().copied().fold(f64::INFINITY, f64::min)))
        };
        text += &format!("| {number} | {line} | {reached} of {} | {mean} | {worst} |\n", rows.len());
    }
    text += "\n<details><summary>Every figure</summary>\n\nThe ratio is above 1 where ours is better; the target is the least ratio, or for a time the most. \
             The peak is the data sheet's, dense FP16 arithmetic of those SMs or the GPU's memory; a forward pass or a decode step counts by the work of all its kernels.\n\n";
    text += "| line | work | SMs | ours | peer | unit | ratio | target | reached | of peak |\n|---|---|---|---|---|---|---|---|---|---|\n";
    for row in &results.rows {
        let target = match row.target_of {
            TargetOf::Ratio => format!("{}", row.target),
            TargetOf::Ours => format!("{} {}", row.target, row.unit.name()),
        };
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {target} | {} | {} |\n",
            row.row,
            row.work,
            if row.sms == 0 { "–".to_owned() } else { row.sms.to_string() },
            row.ours,
            row.peer.map_or("–".to_owned(), |peer| peer.to_string()),
            row.unit.name(),
            row.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            if row.reached { "yes" } else { "**no**" },
            row.percent_of_peak.map_or("–".to_owned(), |percent| format!("{percent:.0}%")),
        );
        for beside in &row.beside {
            text += &format!(
                "| {} | *beside: {}* | | | {} | {} | {:.2} | | | |\n",
                row.row,
                beside.peer_is,
                beside.peer,
                row.unit.name(),
                beside.ratio
            );
        }
    }
    text += "\n</details>\n\nThe peers:\n\n";
    let mut peers: Vec<(u8, &str)> = results.rows.iter().map(|row| (row.row, row.peer_is.as_str())).collect();
    peers.dedup_by_key(|(row, _)| *row);
    for (row, peer) in peers {
        text += &format!("- line {row}: {peer}\n");
    }
    for row in results.rows.iter().filter(|row| row.note.is_some()) {
        text += &format!("- {} at {} SMs: {}\n", row.work, row.sms, row.note.as_deref().unwrap_or_default());
    }
    text
}

/// One line for each kernel and kind of input.
pub fn errors(errors: &Errors) -> String {
    let provenance = &errors.provenance;
    let mut text = format!(
        "{}, {}, commit {}, kernels {}. Command: `{}`.\n\n",
        provenance.machine, provenance.date, provenance.commit, provenance.kernel_build, provenance.command
    );
    text += "| kernel | inputs | elements | largest | rms error | largest error |\n|---|---|---|---|---|---|\n";
    for error in &errors.kernels {
        text += &format!(
            "| `{}` | {} | {} | {:.3e} | {:.1e} | {:.1e} |\n",
            error.kernel, error.inputs, error.elements, error.largest, error.rms, error.max
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::results::Unit;
    use super::*;

    /// One row of line 3 as `reach` writes it, with `ours`, the ratio and the verdict given.
    fn results(ours: f64, ratio: f64, reached: bool) -> Results {
        let text = format!(
            r#"{{
            "provenance": {{
                "command": "./run-reach", "commit": "abc", "kernel_build": "0123", "machine": "NVIDIA H200", "sms": 132, "driver": "580.1", "cuda": "13.0",
                "date": "2026-11-21", "peers": "some", "clock_mhz": [1600, 1980], "power_w": 701.0, "throttled": 0.25
            }},
            "rows": [{{
                "row": 3, "work": "GEMM 1x2x3", "sms": 16, "ours": {ours}, "peer": 50.0, "unit": "TFLOP/s", "ratio": {ratio}, "target": 0.95,
                "target_of": "ratio", "reached": {reached}, "peer_is": "cuBLASLt", "beside": [{{ "peer_is": "its best", "peer": 60.0, "ratio": 0.83 }}],
                "percent_of_peak": 41.0, "spread": 0.01, "clock_mhz": 1980, "power_w": 300.0, "throttled": false, "note": null
            }}],
            "curves": []
        }}"#
        );
        serde_json::from_str(&text).expect("the form of results")
    }

    #[test]
    fn a_row_that_is_not_reached_says_so_and_lines_without_rows_were_not_measured() {
        let text = reach(&results(40.0, 0.8, false));
        assert!(text.contains("| 3 | GEMM 1x2x3 | 16 | 40 | 50 | TFLOP/s | 0.80 | 0.95 | **no** | 41% |"), "{text}");
        assert!(
            text.contains("| 0 of 1 | 0.80 | 0.80 |") && text.contains("| 1 | GEMM, large, whole GPU, against cuBLASLt | not measured |"),
            "{text}"
        );
        assert!(text.contains("*beside: its best*") && text.contains("1600 to 1980 MHz"), "{text}");
    }

    #[test]
    fn a_time_shows_its_share_of_the_peak_like_a_rate_where_it_was_measured() {
        let mut results = results(40.0, 1.25, true);
        let row = &mut results.rows[0];
        (row.row, row.unit, row.percent_of_peak) = (7, Unit::Milliseconds, Some(31.2));
        assert!(reach(&results).contains("| 7 | GEMM 1x2x3 | 16 | 40 | 50 | ms | 1.25 | 0.95 | yes | 31% |"), "{}", reach(&results));
        results.rows[0].percent_of_peak = None;
        assert!(reach(&results).contains("| ms | 1.25 | 0.95 | yes | – |"), "{}", reach(&results));
    }

    #[test]
    fn results_that_contradict_themselves_are_refused() {
        assert_eq!(results(60.0, 1.2, true).check(), Ok(()));
        assert!(results(60.0, 1.2, false).check().unwrap_err().contains("`reached` does not follow"));
        assert!(results(60.0, 1.5, true).check().unwrap_err().contains("`ratio` is not that"));
        assert!(results(-1.0, 1.2, true).check().unwrap_err().contains("no measurement"));
    }
}
