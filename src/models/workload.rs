//! Requests for serving: what one tenant's request launches, with its buffers.

use smidgen_runtime::launch::{LaunchError, Session};

use super::decoder::LogitRows;
use super::{BuildError, BulkCopy, Decoder, DecoderBatch, Encoder, EncoderBatch, Prompts, Vision, VisionBatch};
use crate::config::{DecoderConfig, EncoderConfig, VisionConfig};
use crate::serve::Workload;
use crate::weights::Weights;

struct EncoderWorkload {
    model: Encoder,
    batch: EncoderBatch,
}

impl Workload for EncoderWorkload {
    fn enqueue(&mut self, session: &mut Session) -> Result<(), LaunchError> {
        self.model.forward(session, &self.batch)
    }
}

struct VisionWorkload {
    model: Vision,
    batch: VisionBatch,
}

impl Workload for VisionWorkload {
    fn enqueue(&mut self, session: &mut Session) -> Result<(), LaunchError> {
        self.model.forward(session, &self.batch)
    }
}

/// A decode step at a fixed context: each request rewrites the same cache position, so that every request is the same work.
struct DecodeWorkload {
    model: Decoder,
    batch: DecoderBatch,
}

impl Workload for DecodeWorkload {
    fn enqueue(&mut self, session: &mut Session) -> Result<(), LaunchError> {
        self.model.step(session, &self.batch)?;
        self.model.sample(session, &self.batch, false)
    }
}

/// A prefill: every request computes the same prompts into the same caches.
struct PrefillWorkload {
    model: Decoder,
    batch: DecoderBatch,
    prompts: Prompts,
}

impl Workload for PrefillWorkload {
    fn enqueue(&mut self, session: &mut Session) -> Result<(), LaunchError> {
        self.model.prefill(session, &self.batch, &self.prompts, LogitRows::Last)?;
        self.model.sample(session, &self.batch, false)
    }
}

/// `batch` sequences of `seq` token ids, mixed so that neighbours differ.
fn sequences(batch: u32, seq: u32, vocab: usize) -> Vec<Vec<u32>> {
    let id = |sequence: u32, at: u32| (u64::from(sequence) * 7919 + u64::from(at) * 104_729) % vocab.max(1) as u64;
    (0..batch).map(|sequence| (0..seq).map(|at| id(sequence, at) as u32).collect()).collect()
}

pub(super) fn encoder(
    config: &EncoderConfig,
    weights: &Weights,
    session: &mut Session,
    bulk: &mut dyn BulkCopy,
    batch: u32,
    seq: u32,
) -> Result<Box<dyn Workload>, BuildError> {
    let model = Encoder::new(config, weights, session, bulk)?;
    let batch = model.batch(session, &sequences(batch, seq, config.vocab))?;
    Ok(Box::new(EncoderWorkload { model, batch }))
}

pub(super) fn decoder(
    config: &DecoderConfig,
    weights: &Weights,
    session: &mut Session,
    bulk: &mut dyn BulkCopy,
    batch: u32,
    seq: u32,
) -> Result<Box<dyn Workload>, BuildError> {
    let model = Decoder::new(config, weights, session, bulk)?;
    let sequences = model.batch(session, batch, seq + 1, batch, LogitRows::Last)?;
    sequences.stand_at(session, &vec![seq; batch as usize])?;
    Ok(Box::new(DecodeWorkload { model, batch: sequences }))
}

pub(super) fn prefill(
    config: &DecoderConfig,
    weights: &Weights,
    session: &mut Session,
    bulk: &mut dyn BulkCopy,
    batch: u32,
    seq: u32,
) -> Result<Box<dyn Workload>, BuildError> {
    let model = Decoder::new(config, weights, session, bulk)?;
    let prompts = Prompts::new(session, &sequences(batch, seq, config.vocab))?;
    let batch = model.batch(session, batch, seq, batch * seq, LogitRows::Last)?;
    Ok(Box::new(PrefillWorkload { model, batch, prompts }))
}

pub(super) fn vision(
    config: &VisionConfig,
    weights: &Weights,
    session: &mut Session,
    bulk: &mut dyn BulkCopy,
    images: u32,
) -> Result<Box<dyn Workload>, BuildError> {
    let model = Vision::new(config, weights, session, bulk)?;
    let batch = model.batch(session, bulk, images)?;
    // Noise from -1 to 1, as normalised pixels are.
    let pixel = |at: usize| (at as u32).wrapping_mul(2_654_435_761) as f32 / 2_147_483_648.0 - 1.0;
    let pixels: Vec<f32> = (0..images as usize * config.pixels()).map(pixel).collect();
    batch.show(session, bulk, &pixels)?;
    Ok(Box::new(VisionWorkload { model, batch }))
}
