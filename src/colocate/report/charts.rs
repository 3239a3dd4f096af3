//! The report's three charts. One colour means one policy in all of them; what colour alone would say, a label or a dash pattern says too.

use super::headline::{Comparison, find, tenants};
use super::labels;
use super::scale::{Scale, index, milliseconds, number, positive, tick};
use super::svg::{Anchor, Point, Svg};
use crate::colocate::names;
use crate::colocate::results::{PolicyResult, RunResult, TenantResult};

/// Colours in the style sheet; a twelfth policy takes the first one again, with another dash pattern.
pub(super) const COLOURS: usize = 11;

const NAME_WIDTH: f64 = 132.0;
const PER_CHARACTER: f64 = 6.6;
/// What a title leaves free in the corner at its right, where it says that a scale is logarithmic.
const CORNER: f64 = 54.0;
const RIGHT: f64 = Svg::WIDTH - 8.0;

/// Draws the charts of one run.
pub(super) struct Charts<'a> {
    run: &'a RunResult,
    /// Colour of each policy.
    colours: Vec<usize>,
}

impl<'a> Charts<'a> {
    pub(super) fn new(run: &'a RunResult) -> Self {
        // The two policies that the headline compares have the same colours in every report.
        let compared = Comparison::of(run);
        let is = |policy: &PolicyResult, other: Option<&PolicyResult>| other.is_some_and(|other| other.policy == policy.policy);
        let mut others = 2..;
        let colour = |policy: &PolicyResult| match &compared {
            Some(compared) if is(policy, compared.placed) => 0,
            Some(compared) if is(policy, compared.ordinary) => 1,
            _ => others.next().unwrap_or_default(),
        };
        Self { run, colours: run.policies.iter().map(colour).collect() }
    }

    /// The class that gives a policy's marks their colour.
    pub(super) fn class(&self, policy: usize) -> String {
        format!("policy c{}", self.colours[policy] % COLOURS)
    }

    fn title(&self, text: &str) -> String {
        format!("{}{text}", if self.run.provenance.simulated { "SIMULATED · " } else { "" })
    }

    /// An empty chart of `tenant`, whose title takes no more than `width`: the name is what is cut.
    fn of_tenant(&self, tenant: &TenantResult, what: &str, width: f64) -> Svg {
        let titled = |name: &str| self.title(&format!("{name}: {what}"));
        let room = width - Svg::TITLE_CHARACTER * titled("").chars().count() as f64;
        Svg::titled(&titled(&tenant.name), &titled(&fitting(&tenant.name, room, Svg::TITLE_CHARACTER)))
    }

    /// The policies that `tenant` has figures under, with their place in the run.
    fn under(&self, tenant: &TenantResult) -> impl Iterator<Item = (usize, &'a PolicyResult, &'a TenantResult)> + Clone {
        let name = tenant.name.clone();
        let found = move |(at, policy): (usize, &'a PolicyResult)| find(&policy.tenants, &name).map(|tenant| (at, policy, tenant));
        self.run.policies.iter().enumerate().filter_map(found)
    }

    /// The tenant by itself at the rate at which its requests arrive, where they do.
    fn at_rate(&self, alone: &TenantResult) -> Option<&'a TenantResult> {
        find(&self.run.alone_at_rate, &alone.name)
    }

    /// One tenant's median, 95th and 99th percentile, a row a policy, with what it has by itself as a band behind and its objective as a line.
    pub(super) fn latency(&self, alone: &'a TenantResult) -> String {
        let mut svg = self.of_tenant(alone, "latency, ms", Svg::WIDTH - CORNER);
        let shared: Vec<_> = self.under(alone).map(|(at, policy, tenant)| (self.class(at), &*policy.policy, tenant)).collect();
        // A stream's objective is for its tokens; these are the latencies of whole requests.
        let objective = shared.iter().find_map(|(.., tenant)| tenant.slo_ms.filter(|_| tenant.stream.is_none())).and_then(positive);
        let by_itself = [("alone", Some(alone)), ("alone at its rate", self.at_rate(alone))];
        let by_itself = by_itself.into_iter().filter_map(|(name, tenant)| Some(("alone".to_owned(), name, tenant?)));
        let rows: Vec<_> = by_itself.chain(shared).collect();
        let (first_row, row_height) = (46.0, 30.0);
        let bottom = first_row + row_height * rows.len() as f64 - 8.0;
        let figures = rows.iter().flat_map(|(.., tenant)| [tenant.p50_ms, tenant.p95_ms, tenant.p99_ms]).chain(objective);
        // Room for the figures that stand beside the marks.
        let scale = Scale::fitting(figures, (NAME_WIDTH + 14.0, RIGHT - 46.0));
        let plot = (first_row - 12.0, bottom);
        axis(&mut svg, &scale, 7, plot, tick);
        svg.text("minor", (Svg::WIDTH, 15.0), Anchor::End, if scale.is_log() { "log scale" } else { "" });
        let undisturbed = self.at_rate(alone).unwrap_or(alone);
        if let (Some(p50), Some(p99)) = (positive(undisturbed.p50_ms), positive(undisturbed.p99_ms)) {
            let (left, right) = (scale.at(p50), scale.at(p99));
            svg.group("alone", &format!("alone: p50 {}, p99 {}", milliseconds(p50), milliseconds(p99)), |svg| {
                svg.rect("band", (left, plot.0), right - left, plot.1 - plot.0);
                svg.line("reference", (right, plot.0), (right, plot.1));
            });
        }
        if let Some(objective) = objective {
            svg.group("alone", &format!("objective: {}", milliseconds(objective)), |svg| {
                svg.line("objective", (scale.at(objective), plot.0), (scale.at(objective), plot.1));
                svg.text("minor", (scale.at(objective) + 4.0, plot.0 - 1.0), Anchor::Start, "objective");
            });
        }
        for (at, (class, name, tenant)) in rows.into_iter().enumerate() {
            percentiles(&mut svg, &scale, first_row + row_height * at as f64, &class, name, tenant);
        }
        svg.finish(bottom + 22.0)
    }

    /// Every policy's throughput, each tenant's as a share of what it has alone, one after the other.
    pub(super) fn throughput(&self) -> String {
        let mut svg = Svg::new(&self.title("Throughput, normalised to alone"));
        let alone = tenants(self.run);
        let best = self.run.policies.iter().filter_map(|policy| positive(policy.total_normalised_throughput)).fold(1.0, f64::max);
        let ideal = alone.len().max(1) as f64;
        // With many tenants the ideal is so far off that the bars would shrink to nothing.
        let shown = ideal <= best * 2.5;
        let scale = Scale::linear(if shown { ideal.max(best) } else { best * 1.25 }, (NAME_WIDTH, RIGHT - 34.0));
        let (first_row, row_height) = (54.0, 44.0);
        let bottom = first_row + row_height * self.run.policies.len() as f64 - 14.0;
        axis(&mut svg, &scale, 6, (first_row - 16.0, bottom), tick);
        reference(&mut svg, scale.at(1.0), (first_row - 16.0, bottom), "one GPU’s worth");
        if !shown {
            svg.text("minor", (Svg::WIDTH, first_row - 20.0), Anchor::End, &format!("ideal {} →", tick(ideal)));
        } else if ideal > 1.0 {
            reference(&mut svg, scale.at(ideal), (first_row - 16.0, bottom), &format!("ideal {}", tick(ideal)));
        }
        for (at, policy) in self.run.policies.iter().enumerate() {
            self.stack(&mut svg, &scale, first_row + row_height * at as f64, at, policy);
        }
        svg.finish(bottom + 22.0)
    }

    fn stack(&self, svg: &mut Svg, scale: &Scale, y: f64, at: usize, policy: &PolicyResult) {
        let (height, gap) = (16.0, 1.5);
        svg.text("name", (NAME_WIDTH - 8.0, y + 5.0), Anchor::End, &fitting(&policy.policy, NAME_WIDTH - 8.0, PER_CHARACTER));
        let mut from = 0.0;
        for (order, tenant) in policy.tenants.iter().enumerate() {
            let alone = find(&self.run.alone, &tenant.name).and_then(|alone| positive(alone.throughput));
            let Some(share) = alone.and_then(|alone| positive(tenant.throughput / alone)) else { continue };
            let (left, right) = (scale.at(from), scale.at(from + share));
            let label = format!("{} {}", tenant.name, index(share));
            let title = format!(
                "{}, {}: {} of {} requests/s alone = {}",
                policy.policy,
                tenant.name,
                number(tenant.throughput),
                number(alone.unwrap_or(f64::NAN)),
                index(share)
            );
            svg.group(&self.class(at), &title, |svg| {
                let shade = if order % 2 == 0 { "bar" } else { "bar second" };
                svg.rect(shade, (left, y - height / 2.0), right - left - gap, height);
                let room = right - left - 4.0;
                // Cut to less than three characters a name says nothing; the text beside the chart gives the order.
                if room > 3.5 * PER_CHARACTER {
                    let fits = label.chars().count() as f64 * 6.0 <= room;
                    svg.text(
                        "minor",
                        (left, y + 21.0),
                        Anchor::Start,
                        if fits { label } else { fitting(&tenant.name, room, 6.0) }.as_str(),
                    );
                }
            });
            from += share;
        }
        svg.text("value", (scale.at(from) + 5.0, y + 4.5), Anchor::Start, &index(policy.total_normalised_throughput));
    }

    /// The share of one tenant's requests that finish within a latency, a curve a policy, and one for what it would have without neighbours.
    pub(super) fn distribution(&self, alone: &'a TenantResult) -> String {
        let mut svg = self.of_tenant(alone, "requests by latency, ms", Svg::WIDTH);
        let undisturbed = ("alone curve".to_owned(), "alone", self.at_rate(alone).unwrap_or(alone));
        let shared = self.under(alone).map(|(at, policy, tenant)| (self.curve_class(at), &*policy.policy, tenant));
        let curves: Vec<_> = std::iter::once(undisturbed).chain(shared).collect();
        let (left, top, bottom) = (40.0, 34.0, 250.0);
        let scale = Scale::log(curves.iter().flat_map(|(.., tenant)| &tenant.quantiles_ms).copied(), (left, RIGHT));
        axis(&mut svg, &scale, 8, (top, bottom), tick);
        let height = |share: f64| bottom - share * (bottom - top);
        for percent in [0.0, 50.0, 90.0, 99.0] {
            let y = height(percent / 100.0);
            svg.line("grid", (left, y), (RIGHT, y));
            // 99 stands so near the top edge that it serves as its label.
            svg.text("tick", (left - 6.0, y + 4.0), Anchor::End, &format!("{percent}%"));
        }
        let points = |tenant: &TenantResult| -> Vec<Point> {
            let last = tenant.quantiles_ms.len().saturating_sub(1).max(1) as f64;
            let measured = tenant.quantiles_ms.iter().enumerate().filter(|(_, latency)| positive(**latency).is_some());
            measured.map(|(at, &latency)| (scale.at(latency), height(at as f64 / last))).collect()
        };
        let drawn: Vec<Vec<Point>> = curves.iter().map(|(.., tenant)| points(tenant)).collect();
        if drawn.iter().all(Vec::is_empty) {
            svg.text("minor", ((left + RIGHT) / 2.0, height(0.25)), Anchor::Middle, "no request was finished");
        }
        for ((class, name, tenant), points) in curves.iter().zip(&drawn) {
            let [p50, p99] = [tenant.p50_ms, tenant.p99_ms].map(milliseconds);
            svg.group(class, &format!("{name}: p50 {p50}, p99 {p99}"), |svg| {
                svg.path("line", points);
                // A wider, invisible line is easier to point at.
                svg.path("target", points);
            });
        }
        let names: Vec<String> = curves.iter().map(|(_, name, _)| fitting(name, 2.0 * NAME_WIDTH, PER_CHARACTER)).collect();
        for ((place, shown), (class, name, _)) in labels::place(&drawn, &names, (left + 2.0, RIGHT)).into_iter().zip(&names).zip(&curves) {
            if let Some(place) = place {
                svg.group(class, name, |svg| svg.text("label", place.at, place.anchor, shown));
            }
        }
        svg.finish(bottom + 22.0)
    }

    fn curve_class(&self, policy: usize) -> String {
        format!("{} curve d{}", self.class(policy), self.colours[policy] / COLOURS + self.colours[policy] % 3)
    }
}

/// `name`, cut so that it takes no more than `width` at `per_character` units a character.
fn fitting(name: &str, width: f64, per_character: f64) -> String {
    names::cut(name, (width / per_character) as usize)
}

fn axis(svg: &mut Svg, scale: &Scale, most: usize, (top, bottom): (f64, f64), label: impl Fn(f64) -> String) {
    for value in scale.ticks(most) {
        let x = scale.at(value);
        svg.line("grid", (x, top), (x, bottom));
        svg.text("tick", (x, bottom + 15.0), Anchor::Middle, &label(value));
    }
}

fn reference(svg: &mut Svg, x: f64, (top, bottom): (f64, f64), label: &str) {
    svg.line("reference", (x, top), (x, bottom));
    svg.text("minor", (x, top - 4.0), Anchor::Middle, label);
}

/// A row of the latency chart: a ring at the median, a tick at the 95th percentile, a disc at the 99th.
fn percentiles(svg: &mut Svg, scale: &Scale, y: f64, class: &str, name: &str, tenant: &TenantResult) {
    let [p50, p95, p99] = [tenant.p50_ms, tenant.p95_ms, tenant.p99_ms].map(milliseconds);
    svg.group(class, &format!("{name}: p50 {p50}, p95 {p95}, p99 {p99}"), |svg| {
        svg.text("name", (NAME_WIDTH - 8.0, y + 4.0), Anchor::End, &fitting(name, NAME_WIDTH - 8.0, PER_CHARACTER));
        let measured = [tenant.p50_ms, tenant.p95_ms, tenant.p99_ms].map(positive);
        let [Some(median), Some(high), Some(highest)] = measured.map(|latency| latency.map(|latency| scale.at(latency))) else {
            svg.text("minor", (NAME_WIDTH + 4.0, y + 4.0), Anchor::Start, "no request finished");
            return;
        };
        svg.line("span", (median, y), (highest, y));
        svg.line("mark", (high, y - 5.0), (high, y + 5.0));
        svg.circle("ring", (median, y), 4.5);
        svg.circle("disc", (highest, y), 4.5);
        svg.text("value", (highest + 9.0, y + 4.0), Anchor::Start, &number(tenant.p99_ms));
    });
}
