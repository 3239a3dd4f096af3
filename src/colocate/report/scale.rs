//! From figures to places on an axis, and figures as text.

/// The ratio of largest to smallest beyond which an axis is logarithmic.
const LINEAR_RANGE: f64 = 20.0;

/// No axis reaches beyond these: a wilder figure stands at its end.
const AXIS: (f64, f64) = (1e-9, 1e12);

/// An axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    log: bool,
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Scale {
    /// From zero to a little beyond `high`, drawn between `start` and `end`.
    pub(super) fn linear(high: f64, (start, end): (f64, f64)) -> Self {
        let high = positive(high).map_or(1.0, |high| high.clamp(AXIS.0, AXIS.1));
        Self { log: false, low: 0.0, high, start, end }
    }

    /// Just around the positive ones of `values`.
    pub(super) fn log(values: impl IntoIterator<Item = f64>, (start, end): (f64, f64)) -> Self {
        let (low, high) = range(values);
        // A line at the very edge would look cut off, and equal values need a range too.
        Self { log: true, low: low / 1.15, high: high * 1.15, start, end }
    }

    /// Linear from zero, or logarithmic if the values differ by more than a factor of 20.
    pub(super) fn fitting(values: impl IntoIterator<Item = f64> + Clone, pixels: (f64, f64)) -> Self {
        let (low, high) = range(values.clone());
        if high / low > LINEAR_RANGE { Self::log(values, pixels) } else { Self::linear(high, pixels) }
    }

    pub(super) fn is_log(&self) -> bool {
        self.log
    }

    /// Where `value` stands; at an end if it is beyond it.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = if self.log { (value / self.low).ln() / (self.high / self.low).ln() } else { value / self.high };
        // Also true for what is no number at all: it stands at the start.
        let share = if share > 0.0 { share.min(1.0) } else { 0.0 };
        self.start + share * (self.end - self.start)
    }

    /// Round values to label, at most about `most` of them.
    pub(super) fn ticks(&self, most: usize) -> Vec<f64> {
        if self.log { self.log_ticks(most) } else { steps(self.low, self.high, most) }
    }

    fn log_ticks(&self, most: usize) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let all = |digits: &[f64]| -> Vec<f64> {
            let powers = decades.clone().map(|decade| 10f64.powi(decade));
            powers
                .flat_map(|power| digits.iter().map(move |digit| digit * power))
                .filter(|tick| (self.low..=self.high).contains(tick))
                .collect()
        };
        let fits = |ticks: &Vec<f64>| ticks.len() <= most;
        let every = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let finest = [&every[..], &[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]].into_iter().map(all).find(fits);
        if finest.as_ref().is_some_and(|ticks| ticks.len() < 3) {
            // Within a part of a decade a logarithmic axis is nearly linear.
            return steps(self.low, self.high, most);
        }
        finest.unwrap_or_else(|| {
            let ticks = all(&[1.0]);
            let every = ticks.len().div_ceil(most.max(1));
            ticks.into_iter().step_by(every).collect()
        })
    }
}

/// The multiples of a round step from `low` to `high`.
fn steps(low: f64, high: f64, most: usize) -> Vec<f64> {
    let raw = (high - low) / most.max(1) as f64;
    let magnitude = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * magnitude).find(|&step| step >= raw).unwrap_or(raw);
    let first = (low / step).ceil();
    (0..=most).map(|at| (first + at as f64) * step).filter(|&tick| tick <= high * 1.0001).collect()
}

/// `value` if it is a number above zero: what a latency is, if anything was measured.
pub(super) fn positive(value: f64) -> Option<f64> {
    (value.is_finite() && value > 0.0).then_some(value)
}

fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let range = values
        .into_iter()
        .filter_map(positive)
        .map(|value| value.clamp(AXIS.0, AXIS.1))
        .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    if range.1 > 0.0 { range } else { (1.0, 1.0) }
}

/// A share.
pub(super) fn percent(share: f64) -> String {
    format!("{}%", number(100.0 * share))
}

/// Three significant digits, without an exponent where a person would not use one; a dash for what was not measured.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "–".into(),
        0.0 => "0".into(),
        _ if !(1e-4..1e9).contains(&size) => format!("{value:.1e}"),
        _ => {
            let digits = (2.0 - size.log10().floor()).clamp(0.0, 6.0) as usize;
            thousands(&format!("{value:.digits$}"))
        }
    }
}

/// A figure between 0 and a few, for which two digits after the point say enough.
pub(super) fn index(value: f64) -> String {
    if (-1e6..1e6).contains(&value) { format!("{value:.2}") } else { number(value) }
}

/// A latency with its unit; a dash where no request finished.
pub(super) fn milliseconds(value: f64) -> String {
    positive(value).map_or_else(|| "–".into(), |value| format!("{} ms", number(value)))
}

/// An axis label: as few digits as a round value needs.
pub(super) fn tick(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value.abs()) {
        // Rounded first: 3 * 0.1 is not 0.3.
        thousands(&format!("{}", (value * 1e6).round() / 1e6))
    } else {
        format!("{value:.0e}")
    }
}

/// Thin spaces between groups of three digits from five digits on.
fn thousands(digits: &str) -> String {
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    if whole.len() < 5 {
        return digits.to_owned();
    }
    let mut grouped = String::from(sign);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            grouped.push('\u{2009}');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_is_logarithmic_only_beyond_a_factor_of_twenty() {
        assert!(!Scale::fitting([1.0, 20.0], (0.0, 100.0)).is_log());
        assert!(Scale::fitting([1.0, 21.0], (0.0, 100.0)).is_log());
    }

    #[test]
    fn every_value_stands_on_the_axis() {
        for values in [&[1.0, 5.0][..], &[0.01, 500.0], &[1e-300, f64::MAX], &[f64::NAN, 0.0], &[]] {
            let scale = Scale::fitting(values.iter().copied(), (10.0, 90.0));
            assert!(scale.ticks(8).len() <= 9);
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, 1e-300, 1.0, 1e300] {
                let at = scale.at(value);
                assert!((10.0..=90.0).contains(&at), "{value} stands at {at} of {scale:?}");
            }
        }
    }

    #[test]
    fn ticks_are_round_few_and_within_the_axis() {
        assert_eq!(Scale::linear(2.0, (0.0, 1.0)).ticks(5), [0.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(Scale::log([0.6, 60.0], (0.0, 1.0)).ticks(8), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(Scale::log([4.5, 8.0], (0.0, 1.0)).ticks(8), [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        let narrow: Vec<_> = Scale::log([4.5, 4.6], (0.0, 1.0)).ticks(8).into_iter().map(tick).collect();
        assert_eq!(narrow, ["4", "4.2", "4.4", "4.6", "4.8", "5", "5.2"]);
        let many = Scale::log([1e-9, 1e9], (0.0, 1.0)).ticks(6);
        assert!((2..=6).contains(&many.len()), "{many:?}");
    }

    #[test]
    fn figures_read_as_a_person_would_write_them() {
        let written: Vec<_> = [43.04, 1.9, 0.889, 127.6, 1487.2, 65536.0, 0.0, f64::NAN, 2e-7].map(number).into();
        assert_eq!(written, ["43.0", "1.90", "0.889", "128", "1487", "65\u{2009}536", "0", "–", "2.0e-7"]);
        assert_eq!([0.30000000000000004, 10.0, 0.05].map(tick), ["0.3", "10", "0.05"]);
        assert_eq!(milliseconds(0.0), "–");
    }
}
