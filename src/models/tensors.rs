//! Parameters on the device: read from a checkpoint, or made there at random.

use half::f16;
use smidgen_runtime::device::{Buffer, DevicePtr};
use smidgen_runtime::launch::Session;
use smidgen_runtime::transfer::After;

use super::{BuildError, BulkCopy};
use crate::kernels::random::{Distribution, RandomWeights};
use crate::weights::{self, Parameter, Role, Weights};

/// Puts a model's parameters on the device of one session.
pub(super) struct Loader<'a> {
    weights: &'a Weights,
    session: &'a mut Session,
    bulk: &'a mut dyn BulkCopy,
}

impl<'a> Loader<'a> {
    pub(super) fn new(weights: &'a Weights, session: &'a mut Session, bulk: &'a mut dyn BulkCopy) -> Self {
        Self { weights, session, bulk }
    }

    /// The parameters on the host.
    pub(super) fn weights(&self) -> &'a Weights {
        self.weights
    }

    /// What the parameters are put on the device by.
    pub(super) fn session(&mut self) -> &mut Session {
        self.session
    }

    /// One parameter.
    pub(super) fn load(&mut self, parameter: Parameter) -> Result<Buffer, BuildError> {
        self.stacked(&[parameter])
    }

    /// Parameters one below the other, as one matrix or vector.
    pub(super) fn stacked(&mut self, parameters: &[Parameter]) -> Result<Buffer, BuildError> {
        self.stacked_with_norm(parameters, None)
    }

    /// The same of matrices, with the weight of the norm before them, if one is given, multiplied into their columns.
    pub(super) fn stacked_with_norm(&mut self, parameters: &[Parameter], norm: Option<Parameter>) -> Result<Buffer, BuildError> {
        if self.weights.as_random().is_some() {
            let elements: u64 = parameters.iter().map(|&parameter| self.elements(parameter)).sum();
            let buffer = Buffer::new(self.session.device(), 2 * elements)?;
            let mut y = buffer.ptr();
            for &parameter in parameters {
                self.random(parameter, y, self.extent(parameter).1)?;
                y = y.offset(2 * self.elements(parameter));
            }
            return Ok(buffer);
        }
        let mut values = Vec::new();
        for &parameter in parameters {
            values.extend(self.values(parameter, norm)?);
        }
        self.upload(&values)
    }

    /// A parameter that is not random, its columns multiplied by the norm's weight. Random norms need no such thing: their weights are 1
    /// ([`weights::RandomWeights`]).
    fn values(&self, parameter: Parameter, norm: Option<Parameter>) -> Result<Vec<f16>, BuildError> {
        Ok(match norm {
            None => self.weights.f16(parameter)?,
            Some(norm) => self.weights.f16_with_scaled_columns(parameter, &self.weights.f32(norm)?)?,
        })
    }

    /// The queries', keys' and values' rows one below the other, of a weight that has them head by head ([`LayerParameter::HeadwiseQkvWeight`]).
    ///
    /// [`LayerParameter::HeadwiseQkvWeight`]: crate::weights::LayerParameter::HeadwiseQkvWeight
    pub(super) fn regrouped_by_head(&mut self, parameter: Parameter, heads: usize) -> Result<Buffer, BuildError> {
        let (rows, columns) = self.extent(parameter);
        let of_one = rows / (3 * heads as u64) * columns;
        // Where the rows of each head's query, key and value are in the parameter, in the order they shall have.
        let sources = (0..3).flat_map(|part| (0..heads as u64).map(move |head| (3 * head + part) * of_one));
        if let Some(random) = self.weights.as_random() {
            let buffer = Buffer::new(self.session.device(), 2 * rows * columns)?;
            let key = random.key(parameter)?;
            for (at, source) in (0..).zip(sources) {
                // Element i is a function of the key plus i.
                let distribution = Distribution::Uniform { key: key.wrapping_add(source), half_width: weights::RandomWeights::HALF_WIDTH };
                let y = buffer.ptr().offset(2 * at * of_one);
                self.session.launch(&RandomWeights { rows: of_one / columns, columns, stride: columns, distribution, y })?;
            }
            return Ok(buffer);
        }
        let values = self.weights.f16(parameter)?;
        let regrouped: Vec<f16> = sources.flat_map(|source| &values[source as usize..(source + of_one) as usize]).copied().collect();
        self.upload(&regrouped)
    }

    /// Two matrices of the same shape row by row in turn, or two vectors element by element: the layout of the gated GEMM epilogues. With the weight
    /// of the norm before them, if one is given, multiplied into the matrices' columns.
    pub(super) fn interleaved(&mut self, even: Parameter, odd: Parameter, norm: Option<Parameter>) -> Result<Buffer, BuildError> {
        let (rows, columns) = self.extent(even);
        if self.weights.as_random().is_some() {
            let buffer = Buffer::new(self.session.device(), 4 * rows * columns)?;
            self.random(even, buffer.ptr(), 2 * columns)?;
            self.random(odd, buffer.ptr().offset(2 * columns), 2 * columns)?;
            return Ok(buffer);
        }
        let (even, odd) = (self.values(even, norm)?, self.values(odd, norm)?);
        let rows = even.chunks_exact(columns as usize).zip(odd.chunks_exact(columns as usize));
        let values: Vec<f16> = rows.flat_map(|(even, odd)| even.iter().chain(odd)).copied().collect();
        self.upload(&values)
    }

    /// Rows and columns of a parameter; a vector is one column.
    fn extent(&self, parameter: Parameter) -> (u64, u64) {
        match parameter.shape(self.weights.config())[..] {
            [rows, columns] => (rows as u64, columns as u64),
            ref vector => (vector.iter().product::<usize>() as u64, 1),
        }
    }

    fn elements(&self, parameter: Parameter) -> u64 {
        let (rows, columns) = self.extent(parameter);
        rows * columns
    }

    fn random(&mut self, parameter: Parameter, y: DevicePtr, stride: u64) -> Result<(), BuildError> {
        let (rows, columns) = self.extent(parameter);
        let distribution = match (parameter.role(), self.weights.as_random()) {
            (Role::Weight, Some(random)) => {
                Distribution::Uniform { key: random.key(parameter)?, half_width: weights::RandomWeights::HALF_WIDTH }
            }
            (Role::NormScale, _) => Distribution::Constant(1.0),
            (Role::Bias | Role::Weight, _) => Distribution::Constant(0.0),
        };
        Ok(self.session.launch(&RandomWeights { rows, columns, stride, distribution, y })?)
    }

    pub(super) fn upload(&mut self, values: &[f16]) -> Result<Buffer, BuildError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.upload_bytes(&bytes)
    }

    /// [`upload`] for floats.
    pub(super) fn upload_f32(&mut self, values: &[f32]) -> Result<Buffer, BuildError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.upload_bytes(&bytes)
    }

    fn upload_bytes(&mut self, bytes: &[u8]) -> Result<Buffer, BuildError> {
        upload_bulk(self.session, self.bulk, bytes)
    }
}

/// A buffer holding `bytes`, many of them, which launches from here on wait for.
pub(super) fn upload_bulk(session: &mut Session, bulk: &mut dyn BulkCopy, bytes: &[u8]) -> Result<Buffer, BuildError> {
    let buffer = Buffer::new(session.device(), bytes.len() as u64)?;
    // No launch knows the buffer yet. After launches, each parameter would wait for the one before it to arrive.
    bulk.copy(session, buffer.ptr(), bytes, After::Nothing)?;
    Ok(buffer)
}

/// A buffer holding `bytes`, a few, filled after everything the session launched so far.
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use smidgen_runtime::Runtime;
    use smidgen_runtime::device::sim::{SimConfig, SimDevice};
    use smidgen_runtime::policy::Exclusive;
    use smidgen_runtime::profile::ProfileStore;
    use smidgen_runtime::tenant::{Class, TenantSpec};
    use smidgen_runtime::transfer::TransferConfig;

    use super::*;

    #[test]
    fn every_byte_of_a_parameter_arrives_in_its_place_whatever_the_tenant_s_class() {
        let weights = Weights::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tied")).unwrap();
        let parameter = Parameter::TokenEmbedding;
        let expected: Vec<u8> = weights.f16(parameter).unwrap().iter().flat_map(|value| value.to_le_bytes()).collect();
        let runtime = Runtime::new(SimDevice::new(SimConfig::h200()), Box::new(Exclusive), Arc::new(ProfileStore::default()));
        // The simulator keeps writes of 4 KiB at most, and the last piece is a short one.
        let runtime = runtime.with_transfers(TransferConfig { chunk_bytes: 4000, in_flight: 2 });
        assert!(expected.len() > 3 * 4000 && !expected.len().is_multiple_of(4000));
        for class in [Class::Throughput, Class::Latency] {
            let tenant = runtime.admit(TenantSpec { name: "llama".into(), class, slo: None, memory_bytes: 0 }).unwrap();
            let (mut session, mut uploader) = (runtime.session(tenant).unwrap(), runtime.uploader(tenant).unwrap());
            let buffer = Loader::new(&weights, &mut session, &mut uploader).load(parameter).unwrap();
            let mut read = vec![0; expected.len()];
            session.device().download(session.stream(), buffer.ptr(), &mut read).unwrap();
            assert!(read == expected, "{class:?}");
        }
    }
}
