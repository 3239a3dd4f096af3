//! A profile as a table for the terminal.

use std::fmt::Write;

use smidgen_runtime::device::Sms;
use smidgen_runtime::profile::{Bound, Energy, KernelProfile, MeasuredConfiguration, PeakSource, Profile};

use crate::roofline;

/// One kernel key's line. All shares are of 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<'a> {
    /// The kernel key.
    pub key: &'a str,
    /// Launches in one request.
    pub launches: u32,
    /// Share of the request's time on the whole GPU.
    pub share: f64,
    /// Latency on the whole GPU, microseconds.
    pub whole_us: f64,
    /// The minimum SM count.
    pub minimum_sms: Sms,
    /// Latency there, microseconds.
    pub minimum_us: f64,
    /// What limits it on the whole GPU.
    pub bound: Bound,
    /// Share of the nearer of the two peaks that it reaches on the whole GPU.
    pub of_peak: f64,
    /// Share of its SM-time that the minimum SM count frees.
    pub saved: f64,
    /// Energy of a launch above idle, at the full clock, millijoules: on the whole GPU and on the minimum SM count. None where the board's power was not read.
    pub millijoules: Option<[f64; 2]>,
}

/// The rows of the kernels that the recorded request launched, by falling share of its time.
pub fn rows(profile: &Profile) -> Vec<Row<'_>> {
    let launched = profile.kernels.iter().filter(|(_, kernel)| kernel.launches > 0);
    let mut rows: Vec<Row<'_>> = launched.filter_map(|(key, kernel)| row(profile, key, kernel)).collect();
    let request = request_us(&rows);
    for row in &mut rows {
        row.share = row.total_us() / request;
    }
    rows.sort_by(|a, b| b.share.total_cmp(&a.share).then_with(|| a.key.cmp(b.key)));
    rows
}

fn row<'a>(profile: &Profile, key: &'a str, kernel: &KernelProfile) -> Option<Row<'a>> {
    let whole_us = roofline::whole_gpu_us(kernel)?;
    let minimum_us = kernel.points.iter().find(|point| point.sms == kernel.minimum_sms)?.median_us;
    let (compute, memory) = roofline::shares(kernel.work, whole_us, &profile.peaks);
    let (minimum_sms, whole_sms) = (kernel.minimum_sms, profile.provenance.sms);
    let saved = 1.0 - f64::from(minimum_sms.0) * minimum_us / (f64::from(whole_sms.0) * whole_us);
    let (launches, of_peak) = (kernel.launches, compute.max(memory));
    let energy = profile.power.and_then(|power| Energy::of(kernel, &power, whole_sms));
    let millijoules = energy.map(|energy| [whole_sms, minimum_sms].map(|sms| energy.at(sms) / 1e3));
    Some(Row { key, launches, share: 0.0, whole_us, minimum_sms, minimum_us, bound: kernel.bound, of_peak, saved, millijoules })
}

impl Row<'_> {
    fn total_us(&self) -> f64 {
        f64::from(self.launches) * self.whole_us
    }
}

fn request_us(rows: &[Row<'_>]) -> f64 {
    rows.iter().map(Row::total_us).sum()
}

/// The table. Each line of a simulated profile says so. Energies have their columns where there are any.
pub fn table(profile: &Profile) -> String {
    let rows = rows(profile);
    let has_energy = rows.iter().any(|row| row.millijoules.is_some());
    let mut lines = vec![heading(profile)];
    let width = rows.iter().map(|row| row.key.len()).max().unwrap_or(0).max("kernel".len());
    lines.push(format!(
        "{:width$}  {:>8}  {:>6}  {:>10}  {:>7}  {:>10}  {:<7}  {:>7}  {:>15}",
        "kernel", "launches", "time %", "us, all", "min SMs", "us, min", "bound", "% peak", "SM-time saved %"
    ));
    if has_energy {
        lines[1] += &format!("  {:>9}  {:>9}", "mJ, all", "mJ, min");
    }
    for row in &rows {
        let mut line = format!(
            "{:width$}  {:>8}  {:>6.1}  {:>10.2}  {:>7}  {:>10.2}  {:<7}  {:>7.1}  {:>15.1}",
            row.key,
            row.launches,
            row.share * 100.0,
            row.whole_us,
            row.minimum_sms.0,
            row.minimum_us,
            bound_text(row.bound),
            row.of_peak * 100.0,
            row.saved * 100.0
        );
        if has_energy {
            let [whole, minimum] = row.millijoules.map_or_else(|| ["-", "-"].map(str::to_owned), |mj| mj.map(|mj| format!("{mj:.3}")));
            line += &format!("  {whole:>9}  {minimum:>9}");
        }
        lines.push(line);
    }
    lines.push(total(&rows, profile.provenance.sms));
    lines.extend(overrides(profile, &rows));
    let mark = if profile.provenance.simulated { "SIMULATED  " } else { "" };
    lines.into_iter().fold(String::new(), |mut text, line| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark}{line}");
        text
    })
}

fn heading(profile: &Profile) -> String {
    let provenance = &profile.provenance;
    let peaks = match profile.peaks.source {
        PeakSource::Given => "as given",
        PeakSource::Datasheet => "by data sheet",
        PeakSource::Reached => "the best reached here",
    };
    format!(
        "{} on {}, {} SMs, {}; tolerance {}%; peaks {:.0} TFLOP/s and {:.2} TB/s, {peaks}",
        provenance.models.join(", "),
        provenance.gpu,
        provenance.sms,
        provenance.date,
        profile.tolerance * 100.0,
        profile.peaks.flops_per_s / 1e12,
        profile.peaks.bytes_per_s / 1e12
    )
}

/// Where another configuration was quicker than a kernel's own choice.
fn overrides(profile: &Profile, rows: &[Row<'_>]) -> Vec<String> {
    let width = rows.iter().map(|row| row.key.len()).max().unwrap_or(0);
    let points = rows.iter().flat_map(|row| profile.kernels[row.key].points.iter().map(move |point| (row.key, point)));
    let others = points.filter_map(|(key, point)| Some((key, point.sms, point.configuration.as_ref()?)));
    let lines: Vec<String> = others
        .map(|(key, sms, MeasuredConfiguration { name, instead_of, gain })| {
            format!(
                "{key:width$}  on {:>3} SMs: {name}, where the kernel would choose {instead_of}: that takes {:.1}% longer",
                sms.0,
                gain * 100.0
            )
        })
        .collect();
    let heading = "another configuration than the kernel's own choice was quicker:".to_owned();
    if lines.is_empty() { lines } else { [heading].into_iter().chain(lines).collect() }
}

fn total(rows: &[Row<'_>], whole: Sms) -> String {
    let request = request_us(rows);
    if request <= 0.0 {
        return "no kernel of the recorded request is in this profile".into();
    }
    let right_sized: f64 = rows.iter().map(|row| f64::from(row.launches) * row.minimum_us).sum();
    let sm_time: f64 = rows.iter().map(|row| f64::from(row.launches) * f64::from(row.minimum_sms.0) * row.minimum_us).sum();
    let joules = |place: usize| {
        let each = rows.iter().map(|row| Some(f64::from(row.launches) * row.millijoules?[place] / 1e3));
        each.sum::<Option<f64>>()
    };
    let energy =
        joules(0).zip(joules(1)).map(|(whole, minimum)| format!("; {whole:.4} J above idle on all SMs, {minimum:.4} J on their minimum"));
    format!(
        "{} kernels, {:.3} ms in kernels on all SMs, {:.3} ms on their minimum: {:.1} SMs on average, {:.1}% of the SM-time saved{}",
        rows.len(),
        request / 1e3,
        right_sized / 1e3,
        sm_time / right_sized,
        (1.0 - sm_time / (request * f64::from(whole.0))) * 100.0,
        energy.unwrap_or_default()
    )
}

fn bound_text(bound: Bound) -> &'static str {
    match bound {
        Bound::Compute => "compute",
        Bound::Memory => "memory",
        Bound::Latency => "latency",
    }
}
