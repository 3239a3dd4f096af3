//! Continuous batching on the GPU: what each of many requests gets, whoever comes, goes or is preempted meanwhile.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use smidgen::config::{DecoderConfig, ModelConfig};
use smidgen::generate::{Sampling, Stop};
use smidgen::kernels::attention::PAGE_TOKENS;
use smidgen::models::{Decoder, SlotBatch};
use smidgen::presets;
use smidgen::reference::Reference;
use smidgen::serve::batching::{Batching, Limits, Output, Request, RequestId};
use smidgen::weights::Weights;
use smidgen_runtime::Runtime;
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Exclusive, Policy, StaticEqual};
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantSpec};

use crate::support::{Random, cases, device, is_sanitized};
use crate::tenant::OnTheFirst;
use crate::tiny_models::{DECODERS, fixture};

/// How much smaller than the largest logit that of a greedy token may be, of the largest magnitude: see [`assert_greedy`].
const TIE: f64 = 2e-2;

/// A model whose sequences take several pages, and whose GEMM kernels change with the number of rows.
fn model() -> Weights {
    let ModelConfig::Decoder(llama) = presets::LLAMA_3_2_1B else { unreachable!() };
    let config = DecoderConfig { layers: 2, hidden: 512, heads: 8, kv_heads: 2, intermediate: 1024, vocab: 2003, ..llama };
    Weights::random(ModelConfig::Decoder(config), 5)
}

fn request(random: &mut Random, vocab: u32, prompt: u32, max_tokens: u32) -> Request {
    Request {
        prompt: (0..prompt).map(|_| random.between(0, vocab - 1)).collect(),
        max_tokens: NonZeroUsize::new(max_tokens as usize).expect("at least one token"),
        sampling: Sampling::GREEDY,
        seed: u64::from(prompt),
        stop_tokens: [].into(),
    }
}

/// Prompts from one token to several pages, of which some go on over the end of a page. Under a sanitizer five of them: racecheck did not survive so many steps.
fn requests() -> Vec<Request> {
    let mut random = Random::new(3);
    let all = [(5, 3), (64, 9), (200, 30), (17, 90), (65, 40), (1, 70), (63, 2), (130, 1), (3, 3), (128, 66), (90, 20), (2, 5)];
    let (count, most) = if is_sanitized() { (5, 5) } else { (all.len(), 90) };
    all[..count].iter().map(|&(prompt, tokens)| request(&mut random, 2003, prompt, most.min(tokens))).collect()
}

const ROOMY: Limits = Limits { slots: 8, step_tokens: 48, pages: 64, page_tokens: PAGE_TOKENS, max_sequence: 256 };

/// Serves `requests`, number `i` submitted `i * apart` steps after the start, and returns the tokens of each with the number of preemptions.
fn serve(weights: &Weights, policy: impl Policy + 'static, limits: Limits, requests: &[Request], apart: usize) -> (Vec<Vec<u32>>, u64) {
    serve_while(weights, policy, limits, requests, apart, |_, _| ())
}

/// [`serve`], with `before` called before each step with the number of steps so far.
fn serve_while(
    weights: &Weights,
    policy: impl Policy + 'static,
    limits: Limits,
    requests: &[Request],
    apart: usize,
    mut before: impl FnMut(usize, &Runtime),
) -> (Vec<Vec<u32>>, u64) {
    let device = device();
    let runtime = Runtime::new(device, Box::new(policy), Arc::new(ProfileStore::default()));
    let spec = TenantSpec { name: "decoder".to_owned(), class: Class::Throughput, slo: None, memory_bytes: 1 << 30 };
    let tenant = runtime.admit(spec).expect("1 GB of device memory");
    let mut session = runtime.session(tenant).expect("an admitted tenant");
    let mut uploader = runtime.uploader(tenant).expect("an admitted tenant");
    let ModelConfig::Decoder(config) = weights.config() else { panic!("a decoder") };
    let decoder = Decoder::new(config, weights, &mut session, &mut uploader).expect("a small model fits");
    let mut slots = SlotBatch::new(decoder, session, limits).expect("a small cache fits");
    // Also steps that were captured as they came must compute what prepared ones do.
    if apart > 0 {
        slots.prepare().expect("every decode step can be captured");
    }
    let mut batching = Batching::new(slots).expect("limits that serve");
    let mut outputs = vec![Vec::new(); requests.len()];
    let (mut coming, mut step) = (requests.iter().peekable(), 0);
    while coming.peek().is_some() || !batching.is_idle() {
        let due = step / apart.max(1) + 1;
        let submitted = requests.len() - coming.len();
        let count = if apart == 0 { requests.len() } else { due.saturating_sub(submitted) };
        for request in coming.by_ref().take(count) {
            batching.submit(request.clone(), Duration::ZERO).expect("a request that fits");
        }
        before(step, &runtime);
        for output in batching.step().expect("every step runs") {
            match output {
                Output::Token(RequestId(id), token) => outputs[id as usize].push(token),
                Output::Finished(RequestId(id), stop) => {
                    let wanted = requests[id as usize].max_tokens.get();
                    assert_eq!((stop, outputs[id as usize].len()), (Stop::MaxTokens, wanted), "request {id}");
                }
            }
        }
        step += 1;
    }
    (outputs, batching.scheduler().preemptions())
}

/// Two logits that FP16 cannot tell apart are common in random models, and GEMM kernels that are chosen by the number of rows round differently, so one
/// request may get either token. The rule: every token's logit, computed by the CPU reference after the very tokens that the GPU had, is the largest, or
/// below it by less than [`TIE`] of the largest magnitude among them.
fn assert_greedy(what: &str, weights: &Weights, requests: &[Request], outputs: &[Vec<u32>]) {
    let Reference::Decoder(reference) = Reference::load(weights).expect("weights") else { panic!("a decoder") };
    for (index, (request, output)) in requests.iter().zip(outputs).enumerate() {
        let mut sequence = reference.start();
        let mut logits = sequence.extend(&request.prompt).expect("a prompt that fits");
        for (at, &token) in output.iter().enumerate() {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let magnitude = logits.iter().fold(0.0_f32, |magnitude, logit| magnitude.max(logit.abs()));
            let short = f64::from(largest - logits[token as usize]) / f64::from(magnitude);
            assert!(short < TIE, "{what}, request {index}: token {at} is {token}, whose logit is {short:.1e} too small");
            logits = sequence.extend(&[token]).expect("a token that fits");
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn every_family_serves_requests_together_as_greedily_as_alone() {
    for name in cases(&DECODERS) {
        let weights = Weights::open(&fixture(name)).expect("a model directory");
        let vocab = weights.config().vocab() as u32;
        let mut random = Random::new(9);
        let requests: Vec<Request> = (1..=if is_sanitized() { 6 } else { 14 })
            .map(|index| request(&mut random, vocab, index * 5 % 17 + 1, index * 7 % 13 + 1))
            .collect();
        let limits = Limits { slots: 5, step_tokens: 9, pages: 5, max_sequence: weights.config().max_sequence(), ..ROOMY };
        for apart in [0, 2] {
            let (outputs, _) = serve(&weights, Exclusive, limits, &requests, apart);
            assert_greedy(&format!("{name}, {apart} steps apart"), &weights, &requests, &outputs);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn long_prompts_in_chunks_and_sequences_of_several_pages_are_greedy_up_to_ties() {
    let (weights, requests) = (model(), requests());
    for apart in [0, 5] {
        let (outputs, _) = serve(&weights, Exclusive, ROOMY, &requests, apart);
        assert_greedy(&format!("{apart} steps apart"), &weights, &requests, &outputs);
    }
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn requests_that_are_preempted_for_want_of_pages_go_on_where_they_were() {
    let weights = model();
    let mut random = Random::new(4);
    // Each grows from one page to three, and four of them fill the cache with two pages each. Under a sanitizer from one page to two.
    let (prompts, tokens, pages) =
        if is_sanitized() { ([60, 61, 64].as_slice(), 70, 3) } else { ([60, 50, 61, 40, 64, 33].as_slice(), 140, 8) };
    let requests: Vec<Request> = prompts.iter().map(|&prompt| request(&mut random, 2003, prompt, tokens - prompt)).collect();
    let limits = Limits { pages, step_tokens: 33, ..ROOMY };
    let (outputs, preemptions) = serve(&weights, Exclusive, limits, &requests, 1);
    assert!(preemptions > 0, "{pages} pages were enough for everybody");
    assert_greedy("preempted", &weights, &requests, &outputs);
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn the_same_stream_of_requests_gives_the_same_tokens_again_and_on_fewer_sms() {
    let (weights, mut requests) = (model(), requests());
    for request in requests.iter_mut().step_by(2) {
        request.sampling = Sampling { temperature: 0.9, top_k: NonZeroUsize::new(50), top_p: 0.95 };
    }
    let (expected, _) = serve(&weights, Exclusive, ROOMY, &requests, 3);
    assert_eq!(serve(&weights, Exclusive, ROOMY, &requests, 3).0, expected);
    assert_eq!(serve(&weights, OnTheFirst(TpcSet::range(0, 8)), ROOMY, &requests, 3).0, expected, "in a partition of 8 TPCs");
}

#[test]
#[ignore = "needs a GPU: cargo xtask test --gpu"]
fn a_plan_that_changes_while_requests_are_served_changes_no_token() {
    let (weights, requests) = (model(), requests());
    let (expected, _) = serve(&weights, Exclusive, ROOMY, &requests, 3);
    let mut guest = None;
    let (outputs, _) = serve_while(&weights, StaticEqual, ROOMY, &requests, 3, |step, runtime| {
        let spec = TenantSpec { name: "guest".to_owned(), class: Class::Throughput, slo: None, memory_bytes: 0 };
        match (step % 20, guest.take()) {
            (10, _) => guest = Some(runtime.admit(spec).expect("a tenant without memory")),
            (19, Some(tenant)) => runtime.dismiss(tenant).expect("a tenant to dismiss"),
            (_, tenant) => guest = tenant,
        }
    });
    assert_eq!(outputs, expected, "beside a tenant that comes and goes");
}
