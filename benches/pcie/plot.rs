//! Cumulative distributions as an SVG file that stands alone: the share of inferences that took no longer.

use scale::{Scale, number, tick};
use svg::{Anchor, Point, Svg};

// Its tests are compiled here too, and not run.
#[allow(unused_imports)]
#[path = "../../src/colocate/report/scale.rs"]
#[allow(dead_code)] // The report of a colocation run, whose module this is, uses all of it.
mod scale;
#[path = "../../src/colocate/report/svg.rs"]
#[allow(dead_code)] // The same.
mod svg;

const LEFT: f64 = 44.0;
const RIGHT: f64 = Svg::WIDTH - 12.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 230.0;

/// An image has no style sheet but its own; for light and dark pages.
const STYLE: &str = "<style>\
:root{--ink:#1d2126;--soft:#5a626c;--rule:#dedbd3;--a:#5a626c;--b:#b8470c;--c:#0b5fa5;--d:#2a7d4f}\
@media(prefers-color-scheme:dark){:root{--ink:#e8e6e1;--soft:#a3abb5;--rule:#343a43;--a:#a3abb5;--b:#f2985f;--c:#6fb3f2;--d:#6fcf97}}\
text{font:12px ui-sans-serif,system-ui,sans-serif;fill:var(--ink)}.title{font-weight:600;font-size:13.5px}\
.tick,.minor{fill:var(--soft);font-size:11px}.grid{stroke:var(--rule)}.curve{fill:none;stroke-width:2.2}\
.k0{stroke:var(--a);stroke-dasharray:2 3}.k1{stroke:var(--b);stroke-dasharray:5 3}.k2{stroke:var(--c)}.k3{stroke:var(--d);stroke-dasharray:9 3}\
</style>";

/// The plot: curves by name, each of times in rising order, milliseconds. The last percent is where the ways differ most, so it has its own line.
pub fn cdf(title: &str, curves: &[(&str, &[f64])]) -> String {
    let mut svg = Svg::new(title);
    let across = Scale::log(curves.iter().flat_map(|(_, times)| times.iter().copied()), (LEFT, RIGHT));
    let up = |share: f64| BOTTOM - share * (BOTTOM - TOP);
    for value in across.ticks(8) {
        let x = across.at(value);
        svg.line("grid", (x, TOP), (x, BOTTOM));
        svg.text("tick", (x, BOTTOM + 15.0), Anchor::Middle, &tick(value));
    }
    for percent in [0.0, 50.0, 90.0, 99.0] {
        let y = up(percent / 100.0);
        svg.line("grid", (LEFT, y), (RIGHT, y));
        svg.text("tick", (LEFT - 6.0, y + 4.0), Anchor::End, &format!("{percent}%"));
    }
    let mut y = BOTTOM + 34.0;
    for (at, (name, times)) in curves.iter().enumerate() {
        let class = format!("curve k{}", at % 4);
        let last = times.len().saturating_sub(1).max(1) as f64;
        let points: Vec<Point> = times.iter().enumerate().map(|(at, &time)| (across.at(time), up(at as f64 / last))).collect();
        svg.group("", name, |svg| svg.path(&class, &points));
        svg.line(&class, (LEFT, y - 4.0), (LEFT + 24.0, y - 4.0));
        svg.text("minor", (LEFT + 30.0, y), Anchor::Start, name);
        let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or(f64::NAN);
        svg.text("minor", (RIGHT, y), Anchor::End, &format!("p99 {}", number(p99)));
        y += 16.0;
    }
    let drawing = svg.finish(y + 4.0);
    drawing.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1).replacen("\n", &format!("\n{STYLE}\n"), 1) + "\n"
}
