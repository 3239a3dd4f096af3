//! What queueing adds to a request's latency where requests arrive at random.
//!
//! Requests of one kind take equally long, so a tenant that serves one at a time is an M/D/1 queue: Poisson arrivals, a constant service time `T`, a load
//! `rho = rate * T`. The tail of its waiting times is exponential,
//!
//! ```text
//! P(W > t) ~ C * exp(-x * t / T)        x > 0: rho * (exp(x) - 1) = x        C = (1 - rho) / (rho * exp(x) - 1)
//! ```
//!
//! (Tijms, A First Course in Stochastic Models, 2003, chapter 9), which at the 99th percentile is right to 0.1 `T` at a load of 0.05 and to 0.02 `T` from 0.2 on. Below, it is too long by up to 0.4 `T`,
//! which is kept: it stands for what plans leave out, such as loans that take time to come back. Simulated, plans by exact waits missed objectives that these keep.

/// The quantile that objectives are about.
const BEYOND: f64 = 0.01;
const BISECTIONS: u32 = 30;
/// The load above which more counts as arriving than can be served: [`BISECTIONS`] are too coarse for the percentile there.
const FULL: f64 = 1.0 - 1e-6;

/// The 99th percentile of waiting and service together, microseconds, of requests that take `us` each and arrive `per_second`; without a rate they come one
/// after another, and none waits. Infinite where more arrive than can be served.
pub(super) fn with_waiting(us: f64, per_second: Option<f64>) -> f64 {
    let load = per_second.map_or(0.0, |rate| rate * us * 1e-6);
    if load <= BEYOND {
        return us;
    }
    if load > FULL {
        return f64::INFINITY;
    }
    let x = decay(load);
    let factor = (1.0 - load) / (load * x.exp() - 1.0);
    us * (1.0 + ((factor / BEYOND).ln() / x).max(0.0))
}

/// The positive root of `load * (exp(x) - 1) = x`, that is of `x = ln(1 + x / load)`.
fn decay(load: f64) -> f64 {
    // The root is above the minimum of the difference, and below twice its square root beyond it.
    let (mut low, mut high) = (-load.ln(), 4.0 - 4.0 * load.ln());
    for _ in 0..BISECTIONS {
        let x = f64::midpoint(low, high);
        if x < (1.0 + x / load).ln() { low = x } else { high = x }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of an M/D/1 queue's requests that wait no longer than `t` service times (Erlang, 1909; the sum alternates and is used for short waits).
    fn within(load: f64, t: f64) -> f64 {
        let mut factorial = 1.0;
        let term = |k: u32| {
            factorial *= f64::from(k.max(1));
            let rest = load * (t - f64::from(k));
            rest.exp() * (-rest).powi(k as i32) / factorial
        };
        (1.0 - load) * (0..=t as u32).map(term).sum::<f64>()
    }

    #[test]
    fn one_request_in_a_hundred_takes_longer() {
        for (load, accuracy) in
            [(0.05, 0.006), (0.1, 0.003), (0.2, 0.002), (0.3, 0.001), (0.4, 0.001), (0.5, 0.001), (0.6, 0.001), (0.7, 0.001), (0.8, 0.001)]
        {
            let waited = with_waiting(1000.0, Some(load * 1e3)) / 1000.0 - 1.0;
            assert!((within(load, waited) - 0.99).abs() < accuracy, "{load}: {waited} service times");
        }
    }

    #[test]
    fn none_waits_for_itself_and_a_queue_that_grows_has_no_percentile() {
        assert_eq!(with_waiting(1000.0, None), 1000.0);
        assert_eq!(with_waiting(1000.0, Some(1.0)), 1000.0);
        assert_eq!(with_waiting(1000.0, Some(1000.0)), f64::INFINITY);
        assert!(with_waiting(1000.0, Some(999.0)) > 1e5);
        for room in [1e-7, 1e-10, 1e-12, 1e-15, f64::EPSILON] {
            assert_eq!(with_waiting(1000.0, Some(1000.0 * (1.0 - room))), f64::INFINITY, "{room}");
        }
    }
}
