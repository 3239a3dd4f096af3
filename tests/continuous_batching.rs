//! Requests served together by continuous batching on the CPU, held against each served alone.

use std::num::NonZeroUsize;
use std::time::Duration;

use smidgen::config::{DecoderConfig, ModelConfig};
use smidgen::generate::{Generation, Sampling, Stop};
use smidgen::reference::{Decoder, Reference};
use smidgen::serve::batching::{Batching, Limits, Output, Request, RequestId};
use smidgen::weights::Weights;

mod tiny_models;

use tiny_models::{DECODERS, fixture, fixture_ids};

fn model(name: &str) -> (Decoder, DecoderConfig) {
    let weights = Weights::open(&fixture(name)).unwrap();
    let ModelConfig::Decoder(config) = weights.config().clone() else { panic!("{name} is a decoder") };
    let Reference::Decoder(decoder) = Reference::load(&weights).unwrap() else { unreachable!() };
    (decoder, config)
}

/// The tokens that a request got, and why it got no more.
type Answer = (Vec<u32>, Option<Stop>);

/// Requests of many lengths, greedy and sampled, made of the fixture's own token ids.
fn requests(name: &str, config: &DecoderConfig) -> Vec<Request> {
    let ids = fixture_ids(name).concat();
    let request = |index: usize| Request {
        prompt: ids.iter().cycle().skip(index * 5).take(1 + index * 7 % 19).copied().collect(),
        max_tokens: NonZeroUsize::new(1 + index * 5 % 17).unwrap(),
        sampling: if index.is_multiple_of(3) {
            Sampling { temperature: 1.2, top_k: NonZeroUsize::new(40), top_p: 0.9 }
        } else {
            Sampling::GREEDY
        },
        seed: index as u64,
        stop_tokens: config.end_of_sequence.as_ref().into(),
    };
    (0..16).map(request).collect()
}

fn alone(decoder: &Decoder, config: &DecoderConfig, request: &Request) -> Answer {
    let Request { prompt, max_tokens, sampling, seed, .. } = request;
    let mut generation = Generation::new(decoder.start(), config, prompt, max_tokens.get(), *sampling, *seed);
    (generation.by_ref().map(Result::unwrap).collect(), generation.stop())
}

/// Serves the requests, `arrivals[i]` steps after the start, and returns what each got with the number of preemptions.
fn together(decoder: &Decoder, limits: Limits, requests: &[Request], arrivals: &[usize]) -> (Vec<Answer>, u64) {
    let mut batching = Batching::new(decoder.paged_batch(limits)).unwrap();
    let mut outputs = vec![(Vec::new(), None); requests.len()];
    let mut arrivals = arrivals.iter().zip(requests).peekable();
    for step in 0.. {
        while let Some((_, request)) = arrivals.next_if(|(arrival, _)| **arrival <= step) {
            batching.submit(request.clone(), Duration::ZERO).unwrap();
        }
        if batching.is_idle() && arrivals.peek().is_none() {
            break;
        }
        for output in batching.step().unwrap() {
            match output {
                Output::Token(RequestId(id), token) => outputs[id as usize].0.push(token),
                Output::Finished(RequestId(id), stop) => outputs[id as usize].1 = Some(stop),
            }
        }
    }
    for (id, timing) in batching.take_finished() {
        assert_eq!(timing.tokens as usize, outputs[id.0 as usize].0.len());
    }
    (outputs, batching.scheduler().preemptions())
}

#[test]
fn requests_that_come_and_go_get_the_tokens_that_each_gets_alone() {
    for name in DECODERS {
        let (decoder, config) = model(name);
        let requests = requests(name, &config);
        let expected: Vec<_> = requests.iter().map(|request| alone(&decoder, &config, request)).collect();
        let all_at_once = vec![0; requests.len()];
        let one_by_one: Vec<usize> = (0..requests.len()).map(|index| index * 3).collect();
        let roomy = Limits { slots: 8, step_tokens: 16, pages: 100, page_tokens: 4, max_sequence: config.max_sequence() };
        let narrow = Limits { slots: 3, step_tokens: 3, page_tokens: 1, ..roomy };
        let scarce = Limits { slots: 6, step_tokens: 11, pages: 12, page_tokens: 4, ..roomy };
        let mut preemptions = 0;
        for limits in [roomy, narrow, scarce] {
            for arrivals in [&all_at_once, &one_by_one] {
                let (outputs, preempted) = together(&decoder, limits, &requests, arrivals);
                assert_eq!(outputs, expected, "{name}, {limits:?}, arrivals {arrivals:?}");
                preemptions += preempted;
            }
        }
        assert!(preemptions > 0, "{name}: no request was ever computed anew");
    }
}
