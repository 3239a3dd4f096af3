//! The polynomials of `epilogue.cuh`, evaluated here as the kernels do, against what they stand for.

use half::f16;

const SOURCE: &str = include_str!("epilogue.cuh");

/// Units in FP16's last place that a result may be off once it is rounded: rounding itself takes 0.5 of them.
const MOST_ULPS: f64 = 0.55;

/// The coefficients and the end of the polynomial of one function, as they stand in the source.
fn polynomial(function: &str) -> (Vec<f32>, f32) {
    let (_, body) = SOURCE.split_once(&format!("float {function}(float x) {{")).expect("the function");
    let (_, body) = body.split_once("LOG2_TAIL[] = {").expect("its coefficients");
    let (coefficients, body) = body.split_once('}').expect("the last coefficient");
    let (_, body) = body.split_once("LOG2_TAIL, ").expect("its end");
    let (end, _) = body.split_once(')').expect("its end");
    let number = |text: &str| text.trim().trim_end_matches('f').parse().expect("a number");
    (coefficients.split(',').map(number).collect(), number(end))
}

/// `less_its_tail` of epilogue.cuh.
fn less_its_tail(x: f32, (coefficients, end): &(Vec<f32>, f32)) -> f32 {
    let a = x.abs().min(*end);
    let exponent = coefficients.iter().fold(0.0_f32, |sum, &coefficient| sum.mul_add(a, coefficient));
    let positive = if x.is_nan() { x } else { x.max(0.0) };
    (-a).mul_add(exponent.exp2(), positive)
}

fn assert_right_for_every_half(function: &str, tail: fn(f64) -> f64) {
    let polynomial = polynomial(function);
    for x in (0..=u16::MAX).map(f16::from_bits).filter(|x| x.is_finite()) {
        let exact = f64::from(x).max(0.0) - f64::from(x).abs() * tail(f64::from(x).abs());
        let result = f64::from(f16::from_f32(less_its_tail(x.to_f32(), &polynomial)));
        let ulp = (exact.abs().log2().floor().max(-14.0) - 10.0).exp2();
        assert!((result - exact).abs() <= MOST_ULPS * ulp, "{function}({x}) is {exact}, not {result}");
    }
    assert!(less_its_tail(f32::NAN, &polynomial).is_nan(), "{function}");
    assert_eq!(
        [f32::INFINITY, f32::NEG_INFINITY].map(|x| f16::from_f32(less_its_tail(x, &polynomial)).to_f32()),
        [f32::INFINITY, 0.0],
        "{function}"
    );
}

#[test]
fn gelu_is_right_to_the_last_place_for_every_half() {
    assert_right_for_every_half("gelu", |a| 0.5 * libm::erfc(a * std::f64::consts::FRAC_1_SQRT_2));
}

#[test]
fn gelu_in_its_tanh_approximation_is_right_to_the_last_place_for_every_half() {
    assert_right_for_every_half("gelu_tanh", |a| {
        1.0 / (1.0 + (2.0 * (2.0 / std::f64::consts::PI).sqrt() * (a + 0.044715 * a * a * a)).exp())
    });
}
