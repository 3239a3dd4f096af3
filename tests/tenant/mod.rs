//! A tenant of a runtime with a model of its own, whose outputs a test compares to the bit, and a policy that puts it where the test wants it.

use smidgen::config::{DecoderConfig, EncoderConfig, ModelConfig};
use smidgen::models::{BuildError, Decoder, DecoderBatch, Encoder, EncoderBatch, LogitRows, Prompts};
use smidgen::presets;
use smidgen::weights::Weights;
use smidgen_runtime::Runtime;
use smidgen_runtime::device::{DevicePtr, Priority, Topology};
use smidgen_runtime::launch::{CapturedGraph, LaunchError, Session, Walls, WorkId};
use smidgen_runtime::partition::TpcSet;
use smidgen_runtime::policy::{Draft, DraftPlacement, Policy, TenantDemand, TenantDraft};
use smidgen_runtime::tenant::{Class, TenantId, TenantSpec};
use smidgen_runtime::transfer::Uploader;

use crate::support::is_sanitized;

/// Every tenant in one partition of these TPCs, with grids of its size, behind all walls.
pub struct OnTheFirst(pub TpcSet);

impl Policy for OnTheFirst {
    fn name(&self) -> &'static str {
        "on-the-first"
    }

    fn needs_profiles(&self) -> bool {
        false
    }

    fn plan(&self, topology: &Topology, tenants: &[TenantDemand]) -> Draft {
        let default = DraftPlacement { sms: topology.sms_of(self.0), tpcs: self.0, priority: Priority::Normal };
        let walls = Walls { grid: true, grant: true, partition: true };
        let draft = TenantDraft { owned: self.0, grant: self.0, default, kernels: Default::default(), walls };
        tenants.iter().map(|tenant| (tenant.id, draft.clone())).collect()
    }
}

/// As many layers, or one under compute-sanitizer, where two tenants' requests would take a minute.
fn layers(usual: usize) -> usize {
    if is_sanitized() { 1 } else { usual }
}

/// Two layers of the width of Llama 3.2 1B, with an odd vocabulary and biases everywhere.
pub fn decoder() -> Weights {
    let ModelConfig::Decoder(llama) = presets::LLAMA_3_2_1B else { unreachable!() };
    let config = DecoderConfig { layers: layers(2), vocab: 4001, qkv_bias: true, attention_output_bias: true, mlp_bias: true, ..llama };
    Weights::random(ModelConfig::Decoder(config), 3)
}

/// DistilBERT.
pub fn encoder() -> Weights {
    let ModelConfig::Encoder(distilbert) = presets::DISTILBERT else { unreachable!() };
    let config = EncoderConfig { layers: layers(distilbert.layers), ..distilbert };
    Weights::random(ModelConfig::Encoder(config), 4)
}

/// A model, its inputs, and the session that runs it.
pub struct Tenant {
    id: TenantId,
    session: Session,
    model: Model,
}

enum Model {
    Encoder(Box<Encoder>, EncoderBatch),
    /// With the lengths of the prompts.
    Decoder(Box<Decoder>, Box<DecoderBatch>, Prompts, Vec<u32>),
}

impl Tenant {
    /// Admits a tenant and puts its model and the sequences on the device.
    pub fn new(runtime: &Runtime, weights: &Weights, sequences: &[Vec<u32>]) -> Self {
        let name = if matches!(weights.config(), ModelConfig::Encoder(_)) { "encoder" } else { "decoder" };
        let spec = TenantSpec { name: name.to_owned(), class: Class::Throughput, slo: None, memory_bytes: 1 << 30 };
        let id = runtime.admit(spec).expect("1 GB of device memory");
        let mut session = runtime.session(id).expect("an admitted tenant");
        let mut uploader = runtime.uploader(id).expect("an admitted tenant");
        let model = Model::new(weights, sequences, &mut session, &mut uploader).expect("a small model fits");
        Self { id, session, model }
    }

    pub fn id(&self) -> TenantId {
        self.id
    }

    /// For messages.
    pub fn name(&self) -> &'static str {
        match self.model {
            Model::Encoder(..) => "encoder",
            Model::Decoder(..) => "decoder",
        }
    }

    /// Lets the calling thread use the tenant.
    pub fn bind_thread(&self) {
        self.session.device().bind_thread().expect("the GPU's context can be made current");
    }

    /// A whole request: an encoder's forward pass, or a decoder's prefill and a step after it. The bytes of the last hidden states, or of the
    /// logits after both.
    pub fn run(&mut self) -> Result<Vec<u8>, BuildError> {
        let Model::Decoder(decoder, batch, prompts, lengths) = &self.model else { return self.run_last_pass() };
        let session = &mut self.session;
        poison(session, batch.logits(), logit_bytes(decoder, lengths))?;
        decoder.prefill(session, batch, prompts, LogitRows::Last)?;
        let mut logits = download(session, batch.logits(), logit_bytes(decoder, lengths))?;
        decoder.sample(session, batch, false)?;
        batch.stand_at(session, lengths)?;
        logits.extend(self.run_last_pass()?);
        Ok(logits)
    }

    /// An encoder's forward pass, or a decoder's step: after the prefill if [`Tenant::run`] was called, else after empty caches.
    pub fn run_last_pass(&mut self) -> Result<Vec<u8>, BuildError> {
        self.poison_output()?;
        self.model.last_pass(&mut self.session)?;
        self.output()
    }

    /// [`Tenant::run_last_pass`] as a graph; it must have run before.
    pub fn capture(&mut self) -> Result<CapturedGraph, LaunchError> {
        let model = &self.model;
        self.session.capture(|session| model.last_pass(session))
    }

    pub fn replay(&mut self, graph: &CapturedGraph) -> Result<Vec<u8>, BuildError> {
        self.poison_output()?;
        self.session.replay(graph)?;
        self.output()
    }

    /// [`Tenant::run_last_pass`] from the graph kept for the plan in force, captured first where there is none. It must have run before.
    pub fn replay_kept(&mut self) -> Result<Vec<u8>, BuildError> {
        self.poison_output()?;
        let model = &self.model;
        self.session.replay_or_capture(WorkId(0), |session| model.last_pass(session))?;
        self.output()
    }

    /// Graphs kept for all plans together.
    pub fn kept_graphs(&self) -> usize {
        self.session.kept_graphs()
    }

    fn poison_output(&self) -> Result<(), BuildError> {
        let (ptr, bytes) = self.model.output();
        poison(&self.session, ptr, bytes)
    }

    fn output(&self) -> Result<Vec<u8>, BuildError> {
        let (ptr, bytes) = self.model.output();
        download(&self.session, ptr, bytes)
    }
}

impl Model {
    fn new(weights: &Weights, sequences: &[Vec<u32>], session: &mut Session, uploader: &mut Uploader) -> Result<Self, BuildError> {
        Ok(match weights.config() {
            ModelConfig::Encoder(config) => {
                let encoder = Encoder::new(config, weights, session, uploader)?;
                let batch = encoder.batch(session, sequences)?;
                Self::Encoder(Box::new(encoder), batch)
            }
            ModelConfig::Decoder(config) => {
                let decoder = Decoder::new(config, weights, session, uploader)?;
                let lengths: Vec<u32> = sequences.iter().map(|sequence| sequence.len() as u32).collect();
                let capacity = lengths.iter().copied().max().unwrap_or(0) + 1;
                let batch = decoder.batch(session, lengths.len() as u32, capacity, lengths.iter().sum(), LogitRows::Last)?;
                let prompts = Prompts::new(session, sequences)?;
                Self::Decoder(Box::new(decoder), Box::new(batch), prompts, lengths)
            }
            ModelConfig::Vision(_) => panic!("a tenant here has token ids"),
        })
    }

    fn last_pass(&self, session: &mut Session) -> Result<(), LaunchError> {
        match self {
            Self::Encoder(encoder, batch) => encoder.forward(session, batch),
            Self::Decoder(decoder, batch, ..) => decoder.step(session, batch),
        }
    }

    fn output(&self) -> (DevicePtr, usize) {
        match self {
            Self::Encoder(encoder, batch) => (batch.output(), batch.rows() as usize * encoder.hidden() * 2),
            Self::Decoder(decoder, batch, _, lengths) => (batch.logits(), logit_bytes(decoder, lengths)),
        }
    }
}

fn logit_bytes(decoder: &Decoder, lengths: &[u32]) -> usize {
    lengths.len() * decoder.vocabulary() * 4
}

/// NaN everywhere, so that an element that no thread wrote cannot pass for a right one.
fn poison(session: &Session, ptr: DevicePtr, bytes: usize) -> Result<(), BuildError> {
    Ok(session.device().fill(session.stream(), ptr, 0xff, bytes as u64)?)
}

fn download(session: &Session, source: DevicePtr, bytes: usize) -> Result<Vec<u8>, BuildError> {
    let mut target = vec![0; bytes];
    session.device().download(session.stream(), source, &mut target)?;
    Ok(target)
}
