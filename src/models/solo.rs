//! One model alone on the GPU: what `embed`, `generate`, `classify` and `forward` need.

use std::sync::Arc;

use half::f16;
use smidgen_runtime::device::{Buffer, Device, DevicePtr};
use smidgen_runtime::launch::{CapturedGraph, LaunchError, Session};
use smidgen_runtime::policy::Exclusive;
use smidgen_runtime::profile::ProfileStore;
use smidgen_runtime::tenant::{Class, TenantSpec};
use smidgen_runtime::{AdmitError, Runtime, RuntimeOptions};

use super::decoder::{LogitRows, sample_params};
use super::{BuildError, Decoder, DecoderBatch, Direct, Encoder, ModelSource, Prompts, Vision};
use crate::config::ModelConfig;
use crate::generate::{Continue, Sampling, warn_of_no_number};
use crate::kernels::pooling::MeanPool;

/// Rows computed at once by [`Solo::forward`] and [`Solo::embed`]: of logits, at 128256 tokens, 2 GB.
const MAX_ROWS: usize = 4096;

/// Images computed at once by [`Solo::classify`].
const MAX_IMAGES: usize = 64;

/// What a model alone is asked to compute: what must fit beside its weights.
#[derive(Debug, Clone, Copy)]
pub enum Work<'a> {
    /// [`Solo::forward`] of these sequences.
    Forward(&'a [Vec<u32>]),
    /// [`Solo::embed`] of these sequences.
    Embed(&'a [Vec<u32>]),
    /// [`Solo::classify`] of as many images.
    Classify(u32),
    /// [`Solo::sequence`] with the same arguments.
    Sequence {
        /// Tokens of the prompt.
        prompt: u32,
        /// Tokens in all.
        capacity: u32,
    },
}

impl Work<'_> {
    /// Device memory that the weights and the largest part of it that is computed at once will take, bytes.
    fn memory_bytes(self, source: &ModelSource) -> Result<u64, SoloError> {
        match (source.config(), self) {
            (ModelConfig::Encoder(config), Self::Forward(sequences) | Self::Embed(sequences)) => {
                source.check_length(extent(sequences).1)?;
                let largest = parts(sequences, rows).map(extent).map(|(rows, _)| rows).max().unwrap_or(0);
                let most_sequences = parts(sequences, rows).map(<[_]>::len).max().unwrap_or(0) as u64;
                // A vector of each sequence, and how many rows it is the mean of.
                let pooled = if matches!(self, Self::Embed(_)) { most_sequences * 4 * (config.hidden as u64 + 1) } else { 0 };
                Ok(Encoder::memory_bytes(config, 1, largest) + 8 * most_sequences + pooled)
            }
            (ModelConfig::Decoder(config), Self::Forward(sequences)) => {
                source.check_length(extent(sequences).1)?;
                let bytes = |part: &[Vec<u32>]| {
                    let (count, (rows, longest)) = (part.len() as u32, extent(part));
                    Decoder::batch_bytes(config, count, longest, rows, LogitRows::All).saturating_add(Prompts::bytes(count, rows))
                };
                let largest = parts(sequences, padded_rows).map(bytes).max().unwrap_or(0);
                Ok(Decoder::weight_bytes(config).saturating_add(largest))
            }
            (ModelConfig::Decoder(config), Self::Sequence { prompt, capacity }) => {
                source.check_length(capacity)?;
                let batch = Decoder::batch_bytes(config, 1, capacity, prompt, LogitRows::Last);
                Ok(Decoder::weight_bytes(config).saturating_add(batch).saturating_add(Prompts::bytes(1, prompt)))
            }
            (ModelConfig::Vision(config), Self::Classify(images)) => Ok(Vision::memory_bytes(config, images.min(MAX_IMAGES as u32))),
            (ModelConfig::Encoder(_), _) => Err(SoloError::IS_ENCODER),
            (ModelConfig::Decoder(_), _) => Err(SoloError::IS_DECODER),
            (ModelConfig::Vision(_), _) => Err(SoloError::IS_VISION),
        }
    }
}

/// A model and the only tenant's session.
pub struct Solo {
    model: Model,
    session: Session,
    /// Keeps the tenant's grant and plan.
    runtime: Runtime,
}

enum Model {
    Encoder(Encoder),
    Decoder(Decoder),
    Vision(Vision),
}

/// Why a model alone did not run.
#[derive(Debug, thiserror::Error)]
pub enum SoloError {
    /// It could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// It does not fit.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// A command for one kind of model met another.
    #[error("this model is {found}; {remedy}")]
    WrongKind {
        /// What it is.
        found: &'static str,
        /// Which command takes it.
        remedy: &'static str,
    },
    /// A sequence grew beyond the room it was made with.
    #[error("the sequence has {length} tokens and its key-value cache has room for {capacity}; make it with more room")]
    Full {
        /// Tokens it would have.
        length: usize,
        /// Tokens there is room for.
        capacity: u32,
    },
}

impl SoloError {
    pub(super) const IS_ENCODER: Self = Self::WrongKind { found: "an encoder", remedy: "use `smidgen embed`" };
    pub(super) const IS_DECODER: Self = Self::WrongKind { found: "a decoder", remedy: "use `smidgen generate`" };
    pub(super) const IS_VISION: Self = Self::WrongKind { found: "a vision model", remedy: "use `smidgen classify`" };
}

/// A runtime for one tenant alone. It makes no partition and keeps no memory for any: the model may have all of it.
pub(super) fn runtime(device: &Arc<dyn Device>) -> Runtime {
    let options = RuntimeOptions { partition_bytes: Some(0), ..RuntimeOptions::default() };
    Runtime::with_options(Arc::clone(device), Box::new(Exclusive), Arc::new(ProfileStore::default()), options)
}

impl Solo {
    /// Loads `source` on `device`, checking first that its weights fit beside what each of `works` computes at once. They come one after another.
    ///
    /// # Errors
    /// [`SoloError::Admit`] with figures for what does not fit; [`SoloError::WrongKind`] for work that is another kind of model's; what is missing or
    /// misshapen.
    #[tracing::instrument(level = "debug", name = "load model", skip_all, fields(model = source.name()))]
    pub fn load<'a>(device: &Arc<dyn Device>, source: &ModelSource, works: impl IntoIterator<Item = Work<'a>>) -> Result<Self, SoloError> {
        let runtime = runtime(device);
        let weights = source.memory_bytes(0, 0)?;
        let memory_bytes = works.into_iter().try_fold(weights, |most, work| work.memory_bytes(source).map(|bytes| most.max(bytes)))?;
        let tenant = runtime.admit(TenantSpec { name: source.name().to_owned(), class: Class::Throughput, slo: None, memory_bytes })?;
        let mut session = runtime.session(tenant)?;
        let model = match source.config() {
            ModelConfig::Encoder(config) => Model::Encoder(Encoder::new(config, source.weights(), &mut session, &mut Direct)?),
            ModelConfig::Decoder(config) => Model::Decoder(Decoder::new(config, source.weights(), &mut session, &mut Direct)?),
            ModelConfig::Vision(config) => Model::Vision(Vision::new(config, source.weights(), &mut session, &mut Direct)?),
        };
        Ok(Self { model, session, runtime })
    }

    /// The last hidden state (encoders) or the logits (decoders) of every token, one sequence after another.
    ///
    /// # Errors
    /// [`SoloError::WrongKind`] for a vision model; what the device says.
    pub fn forward(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<f32>, SoloError> {
        let mut output = Vec::new();
        let room = if matches!(self.model, Model::Decoder(_)) { padded_rows } else { rows };
        for part in parts(sequences, room) {
            match &self.model {
                Model::Encoder(encoder) => {
                    let batch = encoder.batch(&self.session, part)?;
                    encoder.forward(&mut self.session, &batch).map_err(BuildError::from)?;
                    output.extend(self.download_halves(batch.output(), batch.rows() as usize * encoder.hidden())?);
                }
                Model::Vision(_) => return Err(self.wrong_kind()),
                Model::Decoder(decoder) => {
                    let (rows, longest) = extent(part);
                    let batch = decoder.batch(&self.session, part.len() as u32, longest, rows, LogitRows::All)?;
                    let prompts = Prompts::new(&self.session, part)?;
                    decoder.prefill(&mut self.session, &batch, &prompts, LogitRows::All).map_err(BuildError::from)?;
                    let floats = self.download(batch.logits(), rows as usize * decoder.vocabulary() * 4)?;
                    output.extend(floats.as_chunks().0.iter().map(|&float| f32::from_le_bytes(float)));
                }
            }
        }
        Ok(output)
    }

    /// One vector for each sequence: the mean of its last hidden states, or the first of them.
    ///
    /// # Errors
    /// [`SoloError::WrongKind`] for other models than encoders; what the device says.
    pub fn embed(&mut self, sequences: &[Vec<u32>], mean: bool, normalise: bool) -> Result<Vec<Vec<f32>>, SoloError> {
        let Model::Encoder(encoder) = &self.model else { return Err(self.wrong_kind()) };
        let mut vectors = Vec::new();
        for part in parts(sequences, rows) {
            let batch = encoder.batch(&self.session, part)?;
            let (rows, width) = (part.len() as u32, encoder.hidden() as u32);
            let pooled = Buffer::new(self.session.device(), u64::from(rows) * u64::from(width) * 4).map_err(BuildError::from)?;
            // The mean of a sequence's first row alone is that row.
            let ones = super::tensors::upload_u32(&self.session, &vec![1; part.len()])?;
            let lengths = if mean { batch.lengths() } else { ones.ptr() };
            encoder.forward(&mut self.session, &batch).map_err(BuildError::from)?;
            let (x, starts, y) = (batch.output(), batch.starts(), pooled.ptr());
            let pool = MeanPool { rows, width, tokens: batch.rows(), x, starts, lengths, normalise, y };
            self.session.launch(&pool).map_err(BuildError::from)?;
            let floats = self.download(pooled.ptr(), rows as usize * width as usize * 4)?;
            let values: Vec<f32> = floats.as_chunks().0.iter().map(|&float| f32::from_le_bytes(float)).collect();
            vectors.extend(values.chunks_exact(width as usize).map(<[f32]>::to_vec));
        }
        Ok(vectors)
    }

    /// Logits of each image, `[classes]`, of images as [`ImageProcessor`](crate::images::ImageProcessor) makes them; of a model without a classifier
    /// the last hidden state, `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`SoloError::WrongKind`] for other models than vision models; what the device says.
    pub fn classify(&mut self, images: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, SoloError> {
        let Model::Vision(vision) = &self.model else { return Err(self.wrong_kind()) };
        let mut output = Vec::new();
        for part in images.chunks(MAX_IMAGES) {
            let batch = vision.batch(&mut self.session, &mut Direct, part.len() as u32)?;
            batch.show(&mut self.session, &mut Direct, &part.concat())?;
            vision.forward(&mut self.session, &batch).map_err(BuildError::from)?;
            let (ptr, elements) = vision.output(&batch);
            let values = self.download_halves(ptr, elements)?;
            output.extend(values.chunks_exact(elements / part.len()).map(<[f32]>::to_vec));
        }
        Ok(output)
    }

    /// A sequence to be continued, whose prompt has up to `prompt` tokens, with room for `capacity` in all.
    ///
    /// # Errors
    /// [`SoloError::WrongKind`] for other models than decoders; what the device says.
    pub fn sequence(self, prompt: u32, capacity: u32) -> Result<DeviceSequence, SoloError> {
        let decoder = match self.model {
            Model::Decoder(decoder) => decoder,
            _ => return Err(self.wrong_kind()),
        };
        let batch = decoder.batch(&self.session, 1, capacity, prompt, LogitRows::Last)?;
        Ok(DeviceSequence { decoder, session: self.session, batch, stage: Stage::Empty, length: 0, capacity, _runtime: self.runtime })
    }

    fn wrong_kind(&self) -> SoloError {
        match self.model {
            Model::Encoder(_) => SoloError::IS_ENCODER,
            Model::Decoder(_) => SoloError::IS_DECODER,
            Model::Vision(_) => SoloError::IS_VISION,
        }
    }

    fn download_halves(&self, source: DevicePtr, elements: usize) -> Result<Vec<f32>, SoloError> {
        let halves = self.download(source, elements * 2)?;
        Ok(halves.as_chunks().0.iter().map(|&half| f16::from_le_bytes(half).to_f32()).collect())
    }

    fn download(&self, source: DevicePtr, bytes: usize) -> Result<Vec<u8>, SoloError> {
        let mut target = vec![0; bytes];
        self.session.device().download(self.session.stream(), source, &mut target).map_err(BuildError::from)?;
        Ok(target)
    }
}

/// One sequence on the GPU, its tokens in the key-value cache.
pub struct DeviceSequence {
    decoder: Decoder,
    session: Session,
    batch: DecoderBatch,
    stage: Stage,
    /// Tokens in the cache.
    length: usize,
    /// Tokens there is room for.
    capacity: u32,
    _runtime: Runtime,
}

/// How the next token comes about.
enum Stage {
    /// There is no token yet: by a prefill of the prompt.
    Empty,
    /// By a first step, run eagerly so that everything is loaded before a capture.
    Prefilled,
    /// By capturing a step and replaying it.
    Stepped,
    /// By replaying the step.
    Captured(CapturedGraph),
}

impl Continue for DeviceSequence {
    type Error = SoloError;

    /// `tokens` is the prompt at first, and the token drawn last from then on: the device has that one already.
    fn next(&mut self, tokens: &[u32], sampling: &Sampling, uniform: f32) -> Result<u32, SoloError> {
        let length = self.length + tokens.len();
        if length > self.capacity as usize {
            return Err(SoloError::Full { length, capacity: self.capacity });
        }
        self.batch.draw_by(&self.session, &[sample_params(sampling, uniform)])?;
        let (decoder, batch, session) = (&self.decoder, &self.batch, &mut self.session);
        let step = |session: &mut Session| {
            decoder.step(session, batch)?;
            decoder.sample(session, batch, true)
        };
        let next = match &self.stage {
            Stage::Empty => {
                let prompts = Prompts::new(session, &[tokens.to_vec()])?;
                decoder.prefill(session, batch, &prompts, LogitRows::Last).map_err(BuildError::from)?;
                batch.stand_at(session, &[tokens.len() as u32])?;
                decoder.sample(session, batch, false).map_err(BuildError::from)?;
                // The prompt's buffers must outlive the launches that read them.
                session.device().synchronize(session.stream()).map_err(BuildError::from)?;
                // Of the first token only: each step would be slower by this, and its logits are no numbers either where these are none.
                let mut logits = vec![0; decoder.vocabulary() * 4];
                let read = session.device().download(session.stream(), batch.logits(), &mut logits);
                warn_of_no_number(&logits.as_chunks().0.iter().map(|&logit| f32::from_le_bytes(logit)).collect::<Vec<_>>());
                read.map(|()| Some(Stage::Prefilled)).map_err(LaunchError::from)
            }
            Stage::Prefilled => step(session).map(|()| Some(Stage::Stepped)),
            Stage::Stepped => session.capture(step).and_then(|graph| session.replay(&graph).map(|()| Some(Stage::Captured(graph)))),
            Stage::Captured(graph) => session.replay(graph).map(|()| None),
        };
        if let Some(stage) = next.map_err(BuildError::from)? {
            self.stage = stage;
        }
        self.length = length;
        Ok(self.batch.tokens(&self.session)?[0])
    }
}

/// Cuts a batch into parts that take at most [`MAX_ROWS`], by what `room` says of a part; what takes more by itself is a part of its own.
fn parts(sequences: &[Vec<u32>], room: fn(&[Vec<u32>]) -> usize) -> impl Iterator<Item = &[Vec<u32>]> {
    let mut rest = sequences;
    std::iter::from_fn(move || {
        let fits = |count: &usize| room(&rest[..*count]) <= MAX_ROWS;
        let count = (1..=rest.len()).take_while(fits).last().unwrap_or(1).min(rest.len());
        let (part, later) = rest.split_at(count);
        rest = later;
        (!part.is_empty()).then_some(part)
    })
}

/// Tokens of all sequences.
fn rows(sequences: &[Vec<u32>]) -> usize {
    sequences.iter().map(Vec::len).sum()
}

/// Tokens of all sequences if all were as long as the longest, for which each sequence of a decoder's batch has pages.
fn padded_rows(sequences: &[Vec<u32>]) -> usize {
    sequences.len() * extent(sequences).1 as usize
}

/// Tokens of all sequences, and of the longest.
fn extent(sequences: &[Vec<u32>]) -> (u32, u32) {
    let lengths = || sequences.iter().map(|sequence| sequence.len() as u32);
    (lengths().sum(), lengths().max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(sequences: &[usize], room: fn(&[Vec<u32>]) -> usize) -> Vec<Vec<usize>> {
        let sequences: Vec<Vec<u32>> = sequences.iter().map(|&length| vec![7; length]).collect();
        parts(&sequences, room).map(|part| part.iter().map(Vec::len).collect()).collect()
    }

    #[test]
    fn parts_are_as_large_as_there_is_room_and_leave_nothing_out() {
        assert_eq!(lengths(&[4000, 96, 1], rows), [vec![4000, 96], vec![1]]);
        assert_eq!(lengths(&[5000, 1, 5000], rows), [[5000], [1], [5000]]);
        assert!(lengths(&[], rows).is_empty());
    }

    #[test]
    fn one_long_sequence_does_not_give_all_short_ones_its_room() {
        let cut = lengths(&[&[1; 3072][..], &[1024]].concat(), padded_rows);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [3072, 1]);
        assert_eq!(lengths(&[1024, 1, 1, 1, 1, 1], padded_rows), [vec![1024, 1, 1, 1], vec![1, 1]]);
    }
}
