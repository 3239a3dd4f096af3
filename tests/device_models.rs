//! What the models on a device refuse, and that every family's launches are accepted: on the simulator, which computes nothing.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use smidgen::generate::{Continue, Sampling};
use smidgen::models::{BuildError, ModelSource, Solo, SoloError};
use smidgen_runtime::Runtime;
use smidgen_runtime::device::Device;
use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::policy::Exclusive;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantSpec};

mod tiny_models;

use tiny_models::{Copy, DECODERS, ENCODERS, fixture, fixture_ids};

fn device() -> Arc<dyn Device> {
    SimDevice::new(SimConfig::h200())
}

fn source(dir: &Path) -> ModelSource {
    ModelSource::find(dir.to_str().unwrap()).unwrap()
}

#[test]
fn every_family_launches_a_forward_pass_of_the_whole_ragged_batch() {
    for name in DECODERS.into_iter().chain(ENCODERS) {
        let (source, sequences) = (source(&fixture(name)), fixture_ids(name));
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        let output = Solo::load(&device(), &source, sequences.len() as u32, tokens as u32).unwrap().forward(&sequences).unwrap();
        assert_eq!(output.len(), tokens * source.config().output_width(), "{name}");
    }
}

#[test]
fn a_plain_feed_forward_block_with_silu_is_refused_with_the_field_and_the_remedy() {
    for (name, field) in [("bert", "hidden_act"), ("distilbert", "activation"), ("gpt2", "activation_function")] {
        let model = Copy::of(name).edit_json("config.json", |config| config[field] = json!("silu"));
        let Err(error) = Solo::load(&device(), &source(model.path()), 1, 8) else { panic!("{name} with silu was accepted") };
        let message = error.to_string();
        assert!(message.contains("silu") && message.contains("--device cpu"), "{message}");
    }
}

#[test]
fn a_sequence_that_outgrows_its_cache_is_refused_and_may_go_on_below_that() {
    let mut sequence = Solo::load(&device(), &source(&fixture("llama-tied")), 1, 8).unwrap().sequence(4).unwrap();
    let mut next = |tokens: &[u32]| sequence.next(tokens, &Sampling::GREEDY, 0.0);
    next(&[1, 2, 3]).unwrap();
    assert!(matches!(next(&[4, 5]), Err(SoloError::Full { length: 5, capacity: 4 })));
    next(&[4]).unwrap();
    assert!(matches!(next(&[5]), Err(SoloError::Full { length: 5, capacity: 4 })));
}

#[test]
fn a_decode_step_reaches_beyond_the_sliding_window_to_the_last_position() {
    let source = source(&fixture("mistral-window"));
    let runtime = Runtime::new(device(), Box::new(Exclusive), Arc::new(ProfileStore::default()));
    let spec = TenantSpec { name: "mistral".into(), class: Class::Throughput, slo: None, memory_bytes: 0 };
    let mut session = runtime.session(runtime.admit(spec).unwrap()).unwrap();
    source.workload(&mut session, 2, 191).unwrap();
    let Err(error) = source.workload(&mut session, 2, 192) else { panic!("a step beyond the last position was accepted") };
    assert!(matches!(error, BuildError::TooLong { asked: 193, limit: 192, .. }), "{error}");
}
