//! One decoder alone on the GPU, serving requests by continuous batching.

use std::sync::Arc;
use std::time::Duration;

use smidgen_runtime::Runtime;
use smidgen_runtime::device::Device;
use smidgen_runtime::tenant::{Class, TenantSpec};

use super::{BuildError, Decoder, Direct, ModelSource, SlotBatch, SoloError, solo};
use crate::config::ModelConfig;
use crate::serve::batching::{Executor, Limits, StepPlan};

/// A [`SlotBatch`] in the only tenant's session.
pub struct SoloBatch {
    batch: SlotBatch,
    /// Keeps the tenant's grant and plan.
    _runtime: Runtime,
}

impl SoloBatch {
    /// Loads `source` on `device`, checking first that weights and cache fit, and captures its decode steps.
    ///
    /// # Errors
    /// [`SoloError::WrongKind`] for other models than decoders; what is missing, misshapen or too large.
    #[tracing::instrument(level = "debug", name = "load model", skip_all, fields(model = source.name()))]
    pub fn load(device: &Arc<dyn Device>, source: &ModelSource, limits: Limits) -> Result<Self, SoloError> {
        let config = match source.config() {
            ModelConfig::Decoder(config) => config,
            ModelConfig::Encoder(_) => return Err(SoloError::IS_ENCODER),
            ModelConfig::Vision(_) => return Err(SoloError::IS_VISION),
        };
        let runtime = solo::runtime(device);
        let memory_bytes = Decoder::serving_memory_bytes(config, limits);
        let tenant = runtime.admit(TenantSpec { name: source.name().to_owned(), class: Class::Throughput, slo: None, memory_bytes })?;
        let mut session = runtime.session(tenant)?;
        let decoder = Decoder::new(config, source.weights(), &mut session, &mut Direct)?;
        let mut batch = SlotBatch::new(decoder, session, limits)?;
        batch.prepare()?;
        Ok(Self { batch, _runtime: runtime })
    }
}

impl Executor for SoloBatch {
    type Error = BuildError;

    fn limits(&self) -> Limits {
        self.batch.limits()
    }

    fn issue(&mut self, step: &StepPlan) -> Result<(), BuildError> {
        self.batch.issue(step)
    }

    fn is_done(&mut self) -> Result<bool, BuildError> {
        self.batch.is_done()
    }

    fn collect(&mut self) -> Result<Vec<u32>, BuildError> {
        self.batch.collect()
    }

    fn now(&self) -> Duration {
        self.batch.now()
    }
}
