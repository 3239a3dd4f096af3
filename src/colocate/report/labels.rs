//! Where to write each curve's name so that it touches neither another curve nor another name.

use super::svg::{Anchor, Point, Svg};

/// A name and where it goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    /// The left or right end of the baseline.
    pub(super) at: Point,
    pub(super) anchor: Anchor,
}

/// Size of a character of a label, drawing units, in the widest font that the style sheet can fall back to.
const CHARACTER: (f64, f64) = (8.0, 12.0);

/// A place beside its own curve for each name: the first free one of several heights and both sides, or the least bad. `left` and `right`
/// bound the plot. Curves without points have no place.
pub(super) fn place(curves: &[Vec<Point>], names: &[String], (left, right): (f64, f64)) -> Vec<Option<Place>> {
    let drawn: Vec<Point> = curves.iter().flat_map(|curve| along(curve)).collect();
    let mut taken: Vec<Area> = Vec::new();
    let mut places = Vec::with_capacity(curves.len());
    for (curve, name) in curves.iter().zip(names) {
        let width = name.chars().count() as f64 * CHARACTER.0;
        // The middle of a curve is where it is steepest and the eye looks first.
        let heights = [50, 62, 38, 74, 26, 86, 14, 92, 56, 44, 68, 32, 80, 20, 8];
        let candidates = heights.into_iter().filter_map(|percent| curve.get(curve.len() * percent / 100)).flat_map(|&(x, y)| {
            let beside = |anchor| match anchor {
                Anchor::End => (Place { at: (x - 7.0, y + 4.0), anchor }, Area { left: x - 7.0 - width, right: x - 7.0, middle: y }),
                _ => (Place { at: (x + 7.0, y + 4.0), anchor }, Area { left: x + 7.0, right: x + 7.0 + width, middle: y }),
            };
            [beside(Anchor::Start), beside(Anchor::End)]
        });
        let best = candidates.min_by_key(|(_, area)| {
            let outside = usize::from(area.left < left || area.right > right || area.left < 0.0 || area.right > Svg::WIDTH);
            let names = taken.iter().filter(|other| area.meets(other)).count();
            1000 * names + 1000 * outside + drawn.iter().filter(|&&point| area.holds(point)).count()
        });
        taken.extend(best.map(|(_, area)| area));
        places.push(best.map(|(place, _)| place));
    }
    places
}

/// A curve's points, and more of them where it runs far between two.
fn along(curve: &[Point]) -> impl Iterator<Item = Point> {
    const STEP: f64 = 5.0;
    curve.windows(2).flat_map(|pair| {
        let (from, to) = (pair[0], pair[1]);
        let steps = ((to.0 - from.0).hypot(to.1 - from.1) / STEP).ceil().max(1.0) as usize;
        let between = move |start: f64, end: f64, at: usize| start + (end - start) * at as f64 / steps as f64;
        (0..=steps).map(move |at| (between(from.0, to.0, at), between(from.1, to.1, at)))
    })
}

/// What a label covers.
#[derive(Debug, Clone, Copy)]
struct Area {
    left: f64,
    right: f64,
    middle: f64,
}

impl Area {
    fn meets(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && (self.middle - other.middle).abs() < CHARACTER.1
    }

    fn holds(&self, (x, y): Point) -> bool {
        (self.left - 3.0..=self.right + 3.0).contains(&x) && (self.middle - y).abs() < CHARACTER.1 / 2.0 + 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_neighbouring_curves_do_not_overlap() {
        let curves: Vec<Vec<Point>> =
            (0..8).map(|at| (0..=100).map(|y| (100.0 + 3.0 * f64::from(at), f64::from(200 - 2 * y))).collect()).collect();
        let names = vec!["model-rightsize".to_owned(); curves.len()];
        let places: Vec<Place> = place(&curves, &names, (0.0, 460.0)).into_iter().flatten().collect();
        assert_eq!(places.len(), curves.len());
        for (at, a) in places.iter().enumerate() {
            for b in &places[..at] {
                assert!(a.anchor != b.anchor || (a.at.1 - b.at.1).abs() >= CHARACTER.1, "{a:?} covers {b:?}");
            }
        }
    }

    #[test]
    fn a_name_does_not_cover_a_stretch_between_two_points() {
        // Up, far to the right, and up again.
        let curve: Vec<Point> = (0..=100).map(|at| (if at <= 50 { 100.0 } else { 300.0 }, f64::from(200 - at))).collect();
        let [Some(Place { at: (x, y), anchor })] = place(&[curve], &["time-slice".to_owned()], (0.0, 460.0))[..] else {
            panic!("no place")
        };
        let beside = if anchor == Anchor::Start { x > 300.0 } else { x < 100.0 };
        assert!(beside || (y - 4.0 - 150.0).abs() > CHARACTER.1 / 2.0, "the name is written over the line, from {x}, {y}");
    }

    #[test]
    fn a_curve_without_points_has_no_place() {
        assert_eq!(place(&[Vec::new()], &["none".to_owned()], (0.0, 460.0)), [None]);
    }
}
