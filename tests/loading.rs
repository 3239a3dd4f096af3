//! A model that is loaded while others are served: its weights and images cross the link in turn with the others' inputs. On the simulator, whose link carries
//! 55 GB/s and serves copies strictly in the order in which they reach it.

use std::sync::Arc;
use std::time::Duration;

use safetensors::tensor::Dtype;
use serde_json::json;
use smidgen::config::ModelConfig;
use smidgen::models::{BulkCopy, Decoder, Direct, Vision};
use smidgen::weights::Weights;
use smidgen_runtime::Runtime;
use smidgen_runtime::device::sim::{SimConfig, SimDevice};
use smidgen_runtime::device::{Buffer, DevicePtr};
use smidgen_runtime::launch::{LaunchError, Session};
use smidgen_runtime::policy::DefaultSharing;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::transfer::{After, Uploader};

mod tiny_models;

use tiny_models::{Copy, OwnedTensor, fixture};

const MIB: usize = 1 << 20;

/// Bytes of the large model's embedding on the device.
const EMBEDDING: usize = 24 * MIB;

/// What a latency tenant's inputs wait for at most: two chunks of 4 MiB.
const CHUNKS: usize = 8 * MIB;

fn runtime() -> Runtime {
    Runtime::new(SimDevice::new(SimConfig::h200()), Box::new(DefaultSharing), Arc::new(ProfileStore::default()))
}

fn admit(runtime: &Runtime, class: Class) -> TenantId {
    runtime.admit(TenantSpec { name: "a".into(), class, slo: None, memory_bytes: 0 }).unwrap()
}

fn wire(bytes: usize) -> Duration {
    Duration::from_nanos((bytes as f64 / 55.0) as u64)
}

/// A latency tenant that copies 64 KiB of inputs again and again.
struct Inputs {
    session: Session,
    uploader: Uploader,
    target: Buffer,
    bytes: Vec<u8>,
    worst: Duration,
}

impl Inputs {
    fn new(runtime: &Runtime) -> Self {
        let id = admit(runtime, Class::Latency);
        let (session, uploader) = (runtime.session(id).unwrap(), runtime.uploader(id).unwrap());
        let bytes = vec![1; 64 << 10];
        let target = Buffer::new(session.device(), bytes.len() as u64).unwrap();
        Self { session, uploader, target, bytes, worst: Duration::ZERO }
    }

    /// Copies them once, until they are there.
    fn arrive(&mut self) -> Duration {
        let start = self.session.device().now();
        self.uploader.upload(&mut self.session, self.target.ptr(), self.bytes.as_slice(), After::Launches).unwrap();
        self.session.device().synchronize(self.session.stream()).unwrap();
        let took = self.session.device().now() - start;
        self.worst = self.worst.max(took);
        took
    }
}

/// Copies a neighbour's weights, and after each of its parameters a latency tenant's inputs.
struct Beside<'a> {
    bulk: &'a mut dyn BulkCopy,
    inputs: &'a mut Inputs,
}

impl BulkCopy for Beside<'_> {
    fn copy(&mut self, session: &mut Session, target: DevicePtr, bytes: &[u8], after: After) -> Result<(), LaunchError> {
        self.bulk.copy(session, target, bytes, after)?;
        self.inputs.arrive();
        Ok(())
    }
}

/// A Llama whose embedding takes [`EMBEDDING`] bytes in f16.
fn large_model() -> Copy {
    const HIDDEN: usize = 48;
    let vocab = EMBEDDING / 2 / HIDDEN;
    let grown = move |tensor: OwnedTensor| match tensor.name.ends_with("embed_tokens.weight") {
        true => OwnedTensor { dtype: Dtype::F16, shape: vec![vocab, HIDDEN], bytes: vec![0; vocab * HIDDEN * 2], ..tensor },
        false => tensor,
    };
    let model = Copy::of("llama-tied").edit_json("config.json", |config| config["vocab_size"] = json!(vocab));
    model.edit_tensors(|tensors| tensors.into_iter().map(grown).collect())
}

/// How long a latency tenant's inputs take alone, and at most while a neighbour of `class` is loaded, through its uploader or directly.
fn inputs_beside_a_model_that_is_loaded(weights: &Weights, class: Class, direct: bool) -> [Duration; 2] {
    let ModelConfig::Decoder(config) = weights.config() else { panic!("llama is a decoder") };
    let runtime = runtime();
    let mut inputs = Inputs::new(&runtime);
    let alone = inputs.arrive();
    let id = admit(&runtime, class);
    let (mut session, mut uploader) = (runtime.session(id).unwrap(), runtime.uploader(id).unwrap());
    let bulk: &mut dyn BulkCopy = if direct { &mut Direct } else { &mut uploader };
    Decoder::new(config, weights, &mut session, &mut Beside { bulk, inputs: &mut inputs }).unwrap();
    [alone, inputs.worst]
}

#[test]
fn a_latency_tenant_s_inputs_wait_for_two_chunks_of_a_model_that_a_neighbour_loads_at_most() {
    let model = large_model();
    let weights = Weights::open(model.path()).unwrap();
    for class in [Class::Throughput, Class::Latency] {
        let [alone, worst] = inputs_beside_a_model_that_is_loaded(&weights, class, false);
        let most = alone + wire(CHUNKS) + Duration::from_micros(20);
        assert!(worst < most, "{worst:?} beside a {class:?} tenant's weights, {most:?} at most, {alone:?} alone");
    }
    // What the neighbour's uploader is for.
    let [_, worst] = inputs_beside_a_model_that_is_loaded(&weights, Class::Throughput, true);
    assert!(worst > wire(EMBEDDING), "{worst:?} behind weights that were copied outside of the runtime");
}

#[test]
fn a_latency_tenant_s_inputs_wait_for_two_chunks_of_a_neighbour_s_images_at_most() {
    let weights = Weights::open(&fixture("vit")).unwrap();
    let ModelConfig::Vision(config) = weights.config() else { panic!("ViT is a vision model") };
    let runtime = runtime();
    let mut inputs = Inputs::new(&runtime);
    let alone = inputs.arrive();
    let id = admit(&runtime, Class::Throughput);
    let (mut session, mut uploader) = (runtime.session(id).unwrap(), runtime.uploader(id).unwrap());
    let vision = Vision::new(config, &weights, &mut session, &mut uploader).unwrap();
    let images = (EMBEDDING / 2 / config.pixels()) as u32;
    let batch = vision.batch(&mut session, &mut uploader, images).unwrap();
    let pixels = vec![0.5; images as usize * config.pixels()];
    batch.show(&mut session, &mut Beside { bulk: &mut uploader, inputs: &mut inputs }, &pixels).unwrap();
    let most = alone + wire(CHUNKS) + Duration::from_micros(20);
    assert!(inputs.worst < most, "{:?} beside images, {most:?} at most, {alone:?} alone", inputs.worst);
    inputs.worst = Duration::ZERO;
    // A copy takes the link when it begins, which on the session's own stream is when the images before are there.
    session.device().synchronize(session.stream()).unwrap();
    batch.show(&mut session, &mut Beside { bulk: &mut Direct, inputs: &mut inputs }, &pixels).unwrap();
    assert!(inputs.worst > wire(pixels.len() * 2), "{:?} behind images that were copied outside of the runtime", inputs.worst);
}
