//! Parameters on the device: read from a checkpoint, or made there at random.

use std::sync::Arc;

use half::f16;
use smidgen_runtime::device::{Buffer, Device, DevicePtr};
use smidgen_runtime::launch::Session;

use super::BuildError;
use crate::kernels::random::RandomNormal;
use crate::weights::{Checkpoint, Parameter};

/// Standard deviation of random weights, as BERT and Llama are initialised (`initializer_range`).
const DEVIATION: f32 = 0.02;

/// Hands out a model's parameters in the order in which the model asks for them.
pub struct TensorSource {
    device: Arc<dyn Device>,
    checkpoint: Option<Checkpoint>,
    seed: u64,
}

/// One parameter as the model wants it: which, and the rows and columns it must have. A vector has one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub parameter: Parameter,
    pub rows: usize,
    pub columns: usize,
}

impl TensorSource {
    pub(super) fn new(session: &Session, checkpoint: Option<Checkpoint>, seed: u64) -> Self {
        Self { device: Arc::clone(session.device()), checkpoint, seed }
    }

    /// A weight matrix made of `parts` one below the other. Random: normal with mean 0.
    pub(super) fn matrix(&mut self, session: &mut Session, parts: &[Wanted]) -> Result<Buffer, BuildError> {
        self.stacked(session, parts, 0.0, DEVIATION)
    }

    /// Bias vectors one behind the other. Random: zeros.
    pub(super) fn bias(&mut self, session: &mut Session, parts: &[Wanted]) -> Result<Buffer, BuildError> {
        self.stacked(session, parts, 0.0, 0.0)
    }

    /// A norm's scale. Random: ones.
    pub(super) fn scale(&mut self, session: &mut Session, part: Wanted) -> Result<Buffer, BuildError> {
        self.stacked(session, &[part], 1.0, 0.0)
    }

    /// Two matrices of the same shape, row by row in turn: the layout of the gated GEMM epilogue. Random: normal with mean 0.
    pub(super) fn interleaved(&mut self, session: &mut Session, even: Wanted, odd: Wanted) -> Result<Buffer, BuildError> {
        let Some(checkpoint) = &self.checkpoint else {
            return self.matrix(session, &[even, odd]);
        };
        let (even_values, odd_values) = (read(checkpoint, even)?, read(checkpoint, odd)?);
        let columns = even.columns;
        let rows = even_values.chunks_exact(columns).zip(odd_values.chunks_exact(columns));
        let values: Vec<f16> = rows.flat_map(|(even, odd)| even.iter().chain(odd)).copied().collect();
        self.upload(session, &values)
    }

    fn stacked(&mut self, session: &mut Session, parts: &[Wanted], mean: f32, deviation: f32) -> Result<Buffer, BuildError> {
        if let Some(checkpoint) = &self.checkpoint {
            let mut values = Vec::new();
            for &part in parts {
                values.extend(read(checkpoint, part)?);
            }
            return self.upload(session, &values);
        }
        let count: u64 = parts.iter().map(|part| (part.rows * part.columns) as u64).sum();
        let buffer = Buffer::new(&self.device, count * 2)?;
        self.seed = self.seed.wrapping_add(1);
        session.launch(&RandomNormal { count, seed: self.seed, mean, deviation, y: buffer.ptr() })?;
        Ok(buffer)
    }

    fn upload(&self, session: &Session, values: &[f16]) -> Result<Buffer, BuildError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        upload(session, &bytes)
    }
}

/// A buffer holding `bytes`, filled after everything the session launched so far.
pub(super) fn upload(session: &Session, bytes: &[u8]) -> Result<Buffer, BuildError> {
    let buffer = Buffer::new(session.device(), bytes.len() as u64)?;
    session.device().upload(session.stream(), buffer.ptr(), bytes)?;
    Ok(buffer)
}

/// [`upload`] for words.
pub(super) fn upload_u32(session: &Session, values: &[u32]) -> Result<Buffer, BuildError> {
    upload(session, &bytes_of_u32(values))
}

pub(super) fn bytes_of_u32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The address of an optional buffer, null if there is none.
pub(super) fn ptr(buffer: Option<&Buffer>) -> DevicePtr {
    buffer.map_or(DevicePtr::NULL, Buffer::ptr)
}

fn read(checkpoint: &Checkpoint, wanted: Wanted) -> Result<Vec<f16>, BuildError> {
    let shape: &[usize] = if wanted.rows == 1 { &[wanted.columns] } else { &[wanted.rows, wanted.columns] };
    Ok(checkpoint.parameter_f16(wanted.parameter, shape)?)
}
