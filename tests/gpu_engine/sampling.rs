//! Sampling on the GPU against a plain implementation on the CPU: sort, cut, walk, in f64.

use smidgen::kernels::sampling::{Sample, SampleParams};
use smidgen_runtime::device::{Buffer, DevicePtr};

use crate::support::{Gpu, Random, cases, is_sanitized};

/// How far sums of probabilities may differ between fixed point on the GPU and f64 here.
const TOLERANCE: f64 = 1e-5;

const GREEDY: SampleParams = SampleParams { temperature: 0.0, top_p: 1.0, top_k: 0, draw: 0.5 };

/// One row's candidates as the definition in kernels/sampling/sample.cu orders them.
struct Order {
    /// By falling logit, equal ones by rising id.
    ids: Vec<u32>,
    /// Their probabilities, not yet divided by their sum.
    weights: Vec<f64>,
}

impl Order {
    fn of(logits: &[f32], params: &SampleParams) -> Self {
        let value = |id: u32| if logits[id as usize].is_nan() { f32::NEG_INFINITY } else { logits[id as usize] + 0.0 };
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_unstable_by(|&a, &b| value(b).total_cmp(&value(a)).then(a.cmp(&b)));
        if params.temperature == 0.0 {
            ids.truncate(1);
        } else if params.top_k > 0 {
            ids.truncate(params.top_k as usize);
        }
        let largest = value(ids[0]);
        let weight = |&id: &u32| {
            let below = f64::from(value(id)) - f64::from(largest);
            if value(id) == largest { 1.0 } else { (below / f64::from(params.temperature)).exp() }
        };
        let weights = ids.iter().map(weight).collect();
        Self { ids, weights }
    }

    /// The place, in this order, of the token drawn.
    fn place(&self, top_p: f64, draw: f64) -> usize {
        let sum: f64 = self.weights.iter().sum();
        let kept = if top_p < 1.0 { self.prefix(self.weights.len(), |passed| passed >= top_p * sum) + 1 } else { self.weights.len() };
        let sum: f64 = self.weights[..kept].iter().sum();
        self.prefix(kept, |passed| passed > draw * sum)
    }

    /// The first place before `kept` at which the running sum satisfies `reached`, or the last.
    fn prefix(&self, kept: usize, reached: impl Fn(f64) -> bool) -> usize {
        let mut passed = 0.0;
        for (place, weight) in self.weights[..kept].iter().enumerate() {
            passed += weight;
            if reached(passed) {
                return place;
            }
        }
        kept - 1
    }

    /// Whether `token` is the one that `params` draw, or one for which a sum within [`TOLERANCE`] of `top_p` or of the draw decides.
    fn allows(&self, params: &SampleParams, token: u32) -> bool {
        let (top_p, draw) = (f64::from(params.top_p), f64::from(params.draw));
        let lower = |value: f64| (value - TOLERANCE).max(0.0);
        // A top_p of 1 cuts nothing off, so it must not be lowered.
        let first = self.place(if top_p < 1.0 { lower(top_p) } else { top_p }, lower(draw));
        let last = self.place(if top_p < 1.0 { top_p + TOLERANCE } else { top_p }, draw + TOLERANCE);
        self.ids[first..=last].contains(&token)
    }
}

/// `rows` rows of `vocabulary` logits and how each is drawn from, on the GPU.
pub(crate) struct Batch {
    rows: u32,
    vocabulary: u32,
    logits: Buffer,
    params: Buffer,
    pub(crate) tokens: Buffer,
    pub(crate) arrivals: Buffer,
    scratch: Buffer,
}

impl Batch {
    pub(crate) fn new(gpu: &Gpu, logits: &[Vec<f32>], params: &[SampleParams]) -> Self {
        assert_eq!(logits.len(), params.len());
        let words = |params: &SampleParams| [params.temperature.to_bits(), params.top_p.to_bits(), params.top_k, params.draw.to_bits()];
        let (rows, vocabulary) = (logits.len() as u32, logits[0].len() as u32);
        Self {
            rows,
            vocabulary,
            logits: gpu.upload_f32(&logits.concat()),
            params: gpu.upload_u32(&params.iter().flat_map(words).collect::<Vec<_>>()),
            tokens: gpu.poisoned_u32(logits.len() + 1),
            arrivals: gpu.zeroed(4 * logits.len()),
            scratch: gpu.poisoned(Sample::scratch_bytes(rows, vocabulary) as usize),
        }
    }

    pub(crate) fn kernel(&self) -> Sample {
        Sample {
            rows: self.rows,
            vocabulary: self.vocabulary,
            logits: self.logits.ptr(),
            params: self.params.ptr(),
            tokens: self.tokens.ptr(),
            positions: DevicePtr::NULL,
            lengths: DevicePtr::NULL,
            arrivals: self.arrivals.ptr(),
            scratch: self.scratch.ptr(),
        }
    }

    fn draw(&self, gpu: &Gpu) -> Vec<u32> {
        let bytes = gpu.assert_same_bits_at_every_sm_count(&self.kernel(), &[&self.tokens]);
        let mut tokens: Vec<u32> = bytes[0].as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
        assert_eq!(tokens.pop(), Some(u32::MAX), "the kernel wrote beyond its output");
        assert!(gpu.download_u32(&self.arrivals).iter().all(|&arrivals| arrivals == 0), "the kernel left its counters behind");
        tokens
    }
}

/// Draws once from each row.
fn draw(gpu: &Gpu, logits: &[Vec<f32>], params: &[SampleParams]) -> Vec<u32> {
    Batch::new(gpu, logits, params).draw(gpu)
}

fn assert_allowed(gpu: &Gpu, logits: &[Vec<f32>], params: &[SampleParams]) {
    for (row, token) in draw(gpu, logits, params).into_iter().enumerate() {
        let (logits, params) = (&logits[row], &params[row]);
        assert!(
            Order::of(logits, params).allows(params, token),
            "of {} tokens, {params:?} drew {token}, logit {:?}",
            logits.len(),
            logits.get(token as usize)
        );
    }
}

/// Logits of many shapes: spread, peaked, flat, with ties, masked, far from zero.
fn row(random: &mut Random, vocabulary: usize) -> Vec<f32> {
    let scale = *random.pick(&[0.1, 1.0, 8.0, 50.0]);
    let offset = *random.pick(&[0.0, 0.0, -1000.0, 1e4]);
    let mut logits: Vec<f32> = (0..vocabulary).map(|_| (random.unit() + random.unit() + random.unit()) * scale + offset).collect();
    match random.between(0, 5) {
        0 => logits.iter_mut().for_each(|logit| *logit = (*logit * 2.0 / scale).round() * scale / 2.0),
        1 => logits.fill(offset),
        2 => {
            let masked = random.between(0, vocabulary as u32 - 1) as usize;
            logits[..masked].fill(f32::NEG_INFINITY);
        }
        3 => logits[random.between(0, vocabulary as u32 - 1) as usize] += 10.0 * scale,
        _ => {}
    }
    logits
}

fn params(random: &mut Random, vocabulary: u32) -> SampleParams {
    let below_one = 1.0 - f32::EPSILON / 2.0;
    let uniform = random_draw(random);
    SampleParams {
        temperature: *random.pick(&[0.0, 1e-3, 0.3, 0.7, 1.0, 1.0, 2.0, 100.0]),
        top_p: *random.pick(&[1.0, 1.0, 0.95, 0.9, 0.5, 0.1, 1e-6, below_one]),
        top_k: *random.pick(&[0, 0, 1, 2, 40, 1000, vocabulary, vocabulary + 1]),
        draw: *random.pick(&[0.0, 1e-7, uniform, uniform, uniform, below_one]),
    }
}

fn random_draw(random: &mut Random) -> f32 {
    (random.bits() >> 40) as f32 / (1 << 24) as f32
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_token_is_the_one_that_the_definition_names() {
    let gpu = Gpu::open();
    let mut random = Random::new(1);
    for (vocabulary, rows) in
        cases(&[(1, 40), (2, 200), (7, 400), (1000, 400), (1023, 100), (1025, 100), (8193, 60), (32_000, 150), (128_256, 60), (300_001, 5)])
    {
        let rows = if is_sanitized() { rows.min(20) } else { rows };
        let logits: Vec<_> = (0..rows).map(|_| row(&mut random, vocabulary)).collect();
        let params: Vec<_> = (0..rows).map(|_| params(&mut random, vocabulary as u32)).collect();
        assert_allowed(&gpu, &logits, &params);
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn greedy_takes_the_lowest_id_of_the_largest_logits() {
    let gpu = Gpu::open();
    let mut random = Random::new(2);
    for vocabulary in cases(&[1, 7, 1000, 1024, 32_000, 128_256]) {
        let logits: Vec<Vec<f32>> = (0..20)
            .map(|_| {
                let mut logits = random.f32s(vocabulary, 4.0);
                for _ in 0..random.between(1, 5) {
                    logits[random.between(0, vocabulary as u32 - 1) as usize] = 5.0;
                }
                logits
            })
            .collect();
        let expected: Vec<_> = logits.iter().map(|row| row.iter().position(|&logit| logit == 5.0).unwrap_or_default() as u32).collect();
        assert_eq!(draw(&gpu, &logits, &vec![GREEDY; 20]), expected, "of {vocabulary} tokens");
        // Whatever keeps the first token only is greedy too, for any draw.
        for (temperature, top_p, top_k) in [(1.0, 1.0, 1), (50.0, 0.5, 1), (1.0, 1e-9, 0), (1.0, 0.0, 0)] {
            let params: Vec<_> = (0..20).map(|_| SampleParams { temperature, top_p, top_k, draw: random_draw(&mut random) }).collect();
            assert_eq!(draw(&gpu, &logits, &params), expected, "{:?} of {vocabulary} tokens", params[0]);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_tiny_temperature_draws_among_the_largest_and_a_huge_one_among_all() {
    let gpu = Gpu::open();
    let logits = vec![vec![-1.0, 3.0, 2.9, 3.0, 0.0, 3.0, -2.0, -3.0]; 8];
    let draws = [0.0, 0.1, 0.3, 0.35, 0.6, 0.7, 0.9, 0.99];
    let at = |temperature| draws.map(|draw| SampleParams { temperature, draw, ..GREEDY });
    // The inverse of 1e-40 is infinite, and a bin at 1e-44 has no width.
    for temperature in [1e-4, 1e-30, 1e-40, 1e-44] {
        assert_eq!(draw(&gpu, &logits, &at(temperature)), [1, 1, 1, 3, 3, 5, 5, 5], "temperature {temperature}");
    }
    assert_eq!(draw(&gpu, &logits, &at(1e30)), [1, 1, 5, 5, 4, 0, 7, 7]);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn equal_logits_are_drawn_in_the_order_of_their_ids() {
    let gpu = Gpu::open();
    for vocabulary in [7_u32, 1000, 4096, 128_256].into_iter().take(if is_sanitized() { 3 } else { 4 }) {
        let count = if is_sanitized() { 5 } else { 50 };
        let draws: Vec<f32> = (0..count).map(|step| (step as f32 + 0.5) / count as f32).collect();
        for (logit, top_k) in [(0.0, 0), (-0.0, 0), (-700.0, vocabulary / 2), (1e30, 3)] {
            let kept = if top_k == 0 { vocabulary } else { top_k };
            let params: Vec<_> = draws.iter().map(|&draw| SampleParams { temperature: 0.8, top_k, draw, ..GREEDY }).collect();
            let tokens = draw(&gpu, &vec![vec![logit; vocabulary as usize]; draws.len()], &params);
            let expected: Vec<u32> = draws.iter().map(|&draw| (f64::from(draw) * f64::from(kept)) as u32).collect();
            assert_eq!(tokens, expected, "{kept} of {vocabulary} tokens of logit {logit}");
        }
    }
    // Of this logit a bin's upper edge is the logit itself, so that masses are as large as they come.
    let last = SampleParams { temperature: 1.0, draw: 1.0 - f32::EPSILON / 2.0, ..GREEDY };
    assert_eq!(draw(&gpu, &[vec![1.0 / 64.0; 4096]], &[last]), [4095]);
    // Zero has two signs but one value.
    assert_eq!(draw(&gpu, &[vec![-0.0, 0.0, -0.0], vec![-1.0, -0.0, 0.0]], &[GREEDY; 2]), [0, 1]);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_draw_of_one_takes_the_last_token_that_is_kept() {
    let gpu = Gpu::open();
    let logits = vec![vec![1.0, 4.0, 3.0, 2.0, -20.0]; 4];
    let one = SampleParams { temperature: 1.0, draw: 1.0, ..GREEDY };
    let params = [one, SampleParams { top_k: 2, ..one }, SampleParams { top_p: 0.7, ..one }, SampleParams { top_k: 1, ..one }];
    assert_eq!(draw(&gpu, &logits, &params), [4, 2, 2, 1]);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn what_is_no_number_is_the_least_likely_and_stays_in_its_row() {
    let gpu = Gpu::open();
    let mut random = Random::new(3);
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    let sampled = SampleParams { temperature: 1.0, ..GREEDY };
    for params in [GREEDY, sampled, SampleParams { top_k: 2, ..sampled }, SampleParams { top_p: 0.6, ..sampled }] {
        let logits = vec![
            vec![nan, 20.0, 1.0, nan],
            vec![-nan, -infinity, -5.0, -infinity],
            vec![0.0, 3.0, infinity, 2.0],
            vec![0.0, 20.0, -infinity, 1.0],
        ];
        assert_eq!(draw(&gpu, &logits, &[params; 4]), [1, 2, 2, 1], "{params:?}");
    }
    // Rows without any number give some token of the vocabulary, and leave the others alone.
    let rows = 24;
    let logits: Vec<Vec<f32>> = (0..rows)
        .map(|at| match at % 4 {
            0 => vec![nan; 1000],
            1 => vec![-infinity; 1000],
            _ => row(&mut random, 1000),
        })
        .collect();
    let params: Vec<_> = (0..rows).map(|_| params(&mut random, 1000)).collect();
    for (at, token) in draw(&gpu, &logits, &params).into_iter().enumerate() {
        assert!(token < 1000, "row {at} has the token {token}");
        assert!(at % 4 < 2 || Order::of(&logits[at], &params[at]).allows(&params[at], token), "row {at} has the token {token}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let gpu = Gpu::open();
    let draws = if is_sanitized() { 500 } else { 20_000 };
    let mut random = Random::new(4);
    let logits = vec![2.0, 0.0, 1.0, -1.0, 1.0, 0.5];
    let params: Vec<_> = (0..draws).map(|_| SampleParams { temperature: 1.5, draw: random_draw(&mut random), ..GREEDY }).collect();
    let batch = Batch::new(&gpu, &vec![logits.clone(); draws], &params);
    let tokens = batch.draw(&gpu);
    let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) / 1.5).exp()).collect();
    for (id, weight) in weights.iter().enumerate() {
        let expected = weight / weights.iter().sum::<f64>();
        let found = tokens.iter().filter(|&&token| token == id as u32).count() as f64 / draws as f64;
        let within = 5.0 * (expected * (1.0 - expected) / draws as f64).sqrt();
        assert!((found - expected).abs() < within, "token {id} is drawn with frequency {found}, probability {expected}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn positions_and_lengths_gain_one_for_each_row() {
    let gpu = Gpu::open();
    let mut random = Random::new(5);
    for rows in [1_usize, 3, if is_sanitized() { 30 } else { 300 }] {
        let logits: Vec<_> = (0..rows).map(|_| random.f32s(100, 3.0)).collect();
        let batch = Batch::new(&gpu, &logits, &vec![GREEDY; rows]);
        let before: Vec<u32> = (0..rows).map(|_| random.between(0, 4000)).collect();
        let (positions, lengths) = (gpu.upload_u32(&before), gpu.upload_u32(&before));
        let mut expected = before;
        for sms in gpu.sm_counts() {
            gpu.run(&Sample { positions: positions.ptr(), lengths: lengths.ptr(), ..batch.kernel() }, sms);
            expected.iter_mut().for_each(|value| *value += 1);
            assert_eq!((gpu.download_u32(&positions), gpu.download_u32(&lengths)), (expected.clone(), expected.clone()), "{sms} SMs");
        }
        gpu.run(&Sample { lengths: lengths.ptr(), ..batch.kernel() }, gpu.sms());
        assert_eq!(gpu.download_u32(&positions), expected, "positions that were not passed");
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn batches_of_any_size_follow_one_another_in_the_same_scratch() {
    let gpu = Gpu::open();
    let most = if is_sanitized() { 20 } else { 200 };
    let mut random = Random::new(6);
    for vocabulary in [300_u32, 20_000] {
        let logits: Vec<_> = (0..most).map(|_| row(&mut random, vocabulary as usize)).collect();
        let params: Vec<_> = (0..most).map(|_| params(&mut random, vocabulary)).collect();
        let all = Batch::new(&gpu, &logits, &params);
        let expected = all.draw(&gpu);
        for rows in [most, 1, most * 13 / 20, 7, most * 8 / 25, most] {
            gpu.poison(&all.tokens);
            gpu.run(&Sample { rows: rows as u32, ..all.kernel() }, gpu.sms());
            let tokens = gpu.download_u32(&all.tokens);
            // However rows are cut into parts, which their number decides, the tokens are the same.
            assert_eq!(tokens[..rows], expected[..rows], "{rows} rows of {vocabulary} tokens");
            assert!(
                tokens[rows..].iter().all(|&token| token == u32::MAX),
                "{rows} rows of {vocabulary} tokens: the kernel wrote beyond its output"
            );
        }
    }
}
