//! Curves as SVG files that stand alone: ours and the peer's against SM count.

use super::results::Curve;
use scale::{Scale, number, tick};
use svg::{Anchor, Point, Svg, shorten};

#[path = "../../../src/colocate/report/scale.rs"]
#[allow(dead_code)] // The report of a colocation run, whose module this is, uses all of it.
mod scale;
#[path = "../../../src/colocate/report/svg.rs"]
#[allow(dead_code)] // The same.
mod svg;

const LEFT: f64 = 52.0;
const RIGHT: f64 = Svg::WIDTH - 64.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 230.0;

/// The page's own style sheet does not reach an image, so each carries one, for light and dark pages.
const STYLE: &str = "<style>\
:root{--ink:#1d2126;--soft:#5a626c;--rule:#dedbd3;--ours:#0b5fa5;--peer:#b8470c}\
@media(prefers-color-scheme:dark){:root{--ink:#e8e6e1;--soft:#a3abb5;--rule:#343a43;--ours:#6fb3f2;--peer:#f2985f}}\
text{font:12px ui-sans-serif,system-ui,sans-serif;fill:var(--ink)}.title{font-weight:600;font-size:13.5px}\
.tick,.minor{fill:var(--soft);font-size:11px}.grid{stroke:var(--rule)}.curve{fill:none;stroke-width:2.2}\
.ours{stroke:var(--ours)}.peer{stroke:var(--peer);stroke-dasharray:5 3}.stronger{stroke:var(--soft);stroke-dasharray:2 3}.dot.ours{fill:var(--ours)}.dot.peer{fill:var(--peer);stroke-dasharray:none}.dot.stronger{fill:var(--soft);stroke-dasharray:none}\
</style>";

/// What the plot shows, for those who cannot see it too.
pub fn title(curve: &Curve) -> String {
    format!("{}: {} against SMs", curve.work, curve.unit.name())
}

/// The work's name in the characters that file names have everywhere.
pub fn file_name(curve: &Curve) -> String {
    let name: String = curve.work.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{name}.svg")
}

/// The plot of one curve.
pub fn draw(curve: &Curve) -> String {
    let mut svg = Svg::new(&title(curve));
    let most = curve.points.iter().map(|point| f64::from(point.sms)).fold(1.0, f64::max);
    let highest = curve.points.iter().map(|point| point.ours.max(point.peer).max(point.stronger.unwrap_or(0.0))).fold(0.0, f64::max);
    let (across, up) = (Scale::linear(most, (LEFT, RIGHT)), Scale::linear(highest, (BOTTOM, TOP)));
    for value in up.ticks(6) {
        let y = up.at(value);
        svg.line("grid", (LEFT, y), (RIGHT, y));
        svg.text("tick", (LEFT - 6.0, y + 4.0), Anchor::End, &tick(value));
    }
    for point in &curve.points {
        let x = across.at(f64::from(point.sms));
        svg.line("grid", (x, TOP), (x, BOTTOM));
        svg.text("tick", (x, BOTTOM + 15.0), Anchor::Middle, &point.sms.to_string());
    }
    type Figure = fn(&super::results::Point) -> Option<f64>;
    let mut lines: Vec<(&str, &str, Figure)> =
        vec![("ours", "ours", |point| Some(point.ours)), ("peer", &curve.peer_is, |point| Some(point.peer))];
    lines.extend(curve.stronger_is.as_deref().map(|name| ("stronger", name, (|point| point.stronger) as Figure)));
    let mut y = BOTTOM + 34.0;
    for (class, name, figure) in lines {
        let points: Vec<Point> =
            curve.points.iter().filter_map(|point| Some((across.at(f64::from(point.sms)), up.at(figure(point)?)))).collect();
        svg.group("", name, |svg| {
            svg.path(&format!("curve {class}"), &points);
            for &point in &points {
                svg.circle(&format!("dot {class}"), point, 3.0);
            }
        });
        svg.line(&format!("curve {class}"), (LEFT, y - 4.0), (LEFT + 24.0, y - 4.0));
        let last = curve.points.last().and_then(figure).unwrap_or(f64::NAN);
        svg.text("minor", (LEFT + 30.0, y), Anchor::Start, &shorten(name, Svg::WIDTH - LEFT - 60.0, 6.0));
        svg.text("minor", (Svg::WIDTH, y), Anchor::End, &number(last));
        y += 16.0;
    }
    let drawing = svg.finish(y + 4.0);
    drawing.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1).replacen("\n", &format!("\n{STYLE}\n"), 1) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docs::results::{Point, Unit};

    #[test]
    fn a_plot_is_a_whole_svg_document_with_both_curves() {
        let points = [(16, 70.0, 60.0), (132, 600.0, 610.0)].map(|(sms, ours, peer)| Point { sms, ours, peer, stronger: Some(peer + 5.0) });
        let curve = Curve {
            work: "GEMM 1x2x3".into(),
            peer_is: "cuBLASLt <first>".into(),
            stronger_is: Some("its best".into()),
            unit: Unit::Tflops,
            points: points.to_vec(),
        };
        let drawn = draw(&curve);
        assert!(drawn.starts_with("<svg xmlns=") && drawn.ends_with("</svg>\n"), "{drawn}");
        assert_eq!(drawn.matches("<path class=\"curve").count(), 3);
        assert!(drawn.contains("cuBLASLt &lt;first&gt;"));
        assert_eq!(file_name(&curve), "gemm-1x2x3.svg");
    }
}
