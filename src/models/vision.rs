//! ViT on the device: patches of images as tokens behind a class token, layers with a norm before each block, and a classifier where there is one.
//!
//! Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020.

use half::f16;
use smidgen_runtime::device::{Buffer, DevicePtr};
use smidgen_runtime::launch::{LaunchError, Session};
use smidgen_runtime::transfer::After;

use super::encoder::{Linear, NormWeights, feed_forward};
use super::tensors::{Loader, upload_bulk, upload_u32};
use super::{BuildError, BulkCopy};
use crate::config::VisionConfig;
use crate::kernels::attention::{AttentionPrefill, Heads};
use crate::kernels::gemm::{Epilogue, Gemm, Residual};
use crate::kernels::norm::Norm;
use crate::kernels::unfold::UnfoldPatches;
use crate::weights::{LayerParameter as P, Parameter, Weights};

/// A vision model's weights.
pub struct Vision {
    config: VisionConfig,
    /// The epilogue of the first feed-forward projection, whose bias it gets.
    activation: fn(DevicePtr) -> Epilogue,
    /// `[hidden, patch_stride]`, zeros beyond a patch's elements.
    patches: Buffer,
    /// What is added to the projected patches of an image, `[tokens, hidden]` on the host: see [`added_to_patches`].
    added: Vec<f16>,
    layers: Vec<Layer>,
    final_norm: NormWeights,
    classifier: Option<Linear>,
}

struct Layer {
    attention_norm: NormWeights,
    qkv: Buffer,
    qkv_bias: Option<Buffer>,
    attention_output: Linear,
    feed_forward_norm: NormWeights,
    up: Linear,
    down: Linear,
}

/// One batch of images, and room for what the layers pass on.
pub struct VisionBatch {
    images: u32,
    /// Elements of one image.
    image_pixels: usize,
    /// Tokens of all images.
    rows: u32,
    /// `[images, channels, image_size, image_size]`.
    pixels: Buffer,
    /// `[rows, patch_stride]`.
    patches: Buffer,
    /// `[rows, hidden]`: [`Vision::added`] for each image.
    added: Buffer,
    starts: Buffer,
    lengths: Buffer,
    /// The residual stream, `[rows, hidden]`.
    x: Buffer,
    /// `[rows, hidden]`.
    y: Buffer,
    /// `[rows, 3 * hidden]`.
    qkv: Buffer,
    /// `[rows, hidden]`.
    attention: Buffer,
    /// `[rows, intermediate]`.
    inner: Buffer,
    /// `[images, hidden]`, and the logits, `[images, classes]`.
    classified: Option<[Buffer; 2]>,
}

/// Elements from one row of unfolded patches to the next: rows that begin on 16 bytes are several times faster to multiply.
fn patch_stride(config: &VisionConfig) -> usize {
    config.patch_elements().next_multiple_of(8)
}

impl Vision {
    /// Puts the weights on the device; `bulk` copies them where they are read from a checkpoint.
    ///
    /// # Errors
    /// The first parameter that is missing or misshapen; an activation that there is no kernel for; what the device says.
    pub fn new(config: &VisionConfig, weights: &Weights, session: &mut Session, bulk: &mut dyn BulkCopy) -> Result<Self, BuildError> {
        let activation = feed_forward(config.activation)?;
        let mut loader = Loader::new(weights, session, bulk);
        let projection = weights.f16(Parameter::PatchWeight)?;
        let gap = vec![f16::ZERO; patch_stride(config) - config.patch_elements()];
        let padded: Vec<f16> = projection.chunks_exact(config.patch_elements()).flat_map(|row| row.iter().chain(&gap)).copied().collect();
        let head = |loader: &mut Loader<'_>| {
            let (weight, bias) = (loader.load(Parameter::OutputHead)?, loader.load(Parameter::OutputHeadBias)?);
            Ok::<_, BuildError>(Linear { weight, bias })
        };
        Ok(Self {
            config: config.clone(),
            activation,
            patches: loader.upload(&padded)?,
            added: added_to_patches(weights)?,
            layers: (0..config.layers).map(|index| Layer::load(&mut loader, config, index)).collect::<Result<_, _>>()?,
            final_norm: NormWeights { weight: loader.load(Parameter::FinalNormWeight)?, bias: loader.load(Parameter::FinalNormBias)? },
            classifier: (config.classes > 0).then(|| head(&mut loader)).transpose()?,
        })
    }

    /// Device memory of the weights and one batch of `images`, bytes.
    pub fn memory_bytes(config: &VisionConfig, images: u32) -> u64 {
        let (hidden, inner, stride) = (config.hidden as u64, config.intermediate as u64, patch_stride(config) as u64);
        let layer = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner;
        let weights = stride * hidden + config.layers as u64 * layer + (config.classes as u64 + 1) * hidden;
        let image = config.pixels() as u64 + config.tokens() as u64 * (stride + 7 * hidden + inner) + config.classes as u64 + hidden;
        2 * (weights + u64::from(images) * image)
    }

    /// Room for a batch of `images`, whose pixels are those of a past batch until [`VisionBatch::show`] is called.
    ///
    /// # Errors
    /// What the device says.
    pub fn batch(&self, session: &mut Session, bulk: &mut dyn BulkCopy, images: u32) -> Result<VisionBatch, BuildError> {
        let config = &self.config;
        let tokens = config.tokens() as u32;
        let rows = images * tokens;
        let image: Vec<u8> = self.added.iter().flat_map(|value| value.to_le_bytes()).collect();
        let added = upload_bulk(session, bulk, &image.repeat(images as usize))?;
        let room = |rows: u32, columns: usize| Buffer::new(session.device(), u64::from(rows) * columns as u64 * 2);
        let classified = || Ok::<_, BuildError>([room(images, config.hidden)?, room(images, config.classes)?]);
        Ok(VisionBatch {
            images,
            image_pixels: config.pixels(),
            rows,
            pixels: room(images, config.pixels())?,
            patches: room(rows, patch_stride(config))?,
            added,
            starts: upload_u32(session, &(0..images).map(|image| image * tokens).collect::<Vec<_>>())?,
            lengths: upload_u32(session, &vec![tokens; images as usize])?,
            x: room(rows, config.hidden)?,
            y: room(rows, config.hidden)?,
            qkv: room(rows, 3 * config.hidden)?,
            attention: room(rows, config.hidden)?,
            inner: room(rows, config.intermediate)?,
            classified: self.classifier.is_some().then(classified).transpose()?,
        })
    }

    /// Launches the forward pass; the logits, or the last hidden state where there is no classifier, are then in [`Vision::output`].
    ///
    /// # Errors
    /// What a launch says.
    pub fn forward(&self, session: &mut Session, batch: &VisionBatch) -> Result<(), LaunchError> {
        let config = &self.config;
        let (rows, hidden, inner) = (batch.rows, config.hidden as u32, config.intermediate as u32);
        let (x, y) = (batch.x.ptr(), batch.y.ptr());
        let stride = patch_stride(config) as u32;
        session.launch(&UnfoldPatches {
            images: batch.images,
            channels: config.channels as u32,
            image_size: config.image_size as u32,
            patch_size: config.patch_size as u32,
            stride,
            pixels: batch.pixels.ptr(),
            y: batch.patches.ptr(),
        })?;
        let added = Epilogue::Residual(Residual { ptr: batch.added.ptr(), stride: hidden });
        session.launch(&Gemm::new([rows, hidden, stride], batch.patches.ptr(), self.patches.ptr(), x, added))?;
        let to_x = |bias| Epilogue::BiasResidual(bias, Residual { ptr: x, stride: hidden });
        for layer in &self.layers {
            session.launch(&self.norm(&layer.attention_norm, rows, x, y))?;
            let bias = layer.qkv_bias.as_ref().map_or(Epilogue::NONE, |bias| Epilogue::Bias(bias.ptr()));
            session.launch(&Gemm::new([rows, 3 * hidden, hidden], y, layer.qkv.ptr(), batch.qkv.ptr(), bias))?;
            session.launch(&self.attention(batch))?;
            session.launch(&layer.attention_output.gemm([rows, hidden, hidden], batch.attention.ptr(), x, to_x))?;
            session.launch(&self.norm(&layer.feed_forward_norm, rows, x, y))?;
            session.launch(&layer.up.gemm([rows, inner, hidden], y, batch.inner.ptr(), self.activation))?;
            session.launch(&layer.down.gemm([rows, hidden, inner], batch.inner.ptr(), x, to_x))?;
        }
        let Some((classifier, [class_rows, logits])) = self.classifier.as_ref().zip(batch.classified.as_ref()) else {
            return session.launch(&self.norm(&self.final_norm, rows, x, y));
        };
        // The classifier sees the class tokens alone, which are the first of their images.
        let class_rows = class_rows.ptr();
        session.launch(&Norm { index: batch.starts.ptr(), ..self.norm(&self.final_norm, batch.images, x, class_rows) })?;
        session.launch(&classifier.gemm([batch.images, config.classes as u32, hidden], class_rows, logits.ptr(), Epilogue::Bias))
    }

    /// Where a forward pass leaves its result, fp16, and how many elements it has: `[images, classes]` logits, or the last hidden state, `[images *
    /// tokens, hidden]`.
    pub fn output(&self, batch: &VisionBatch) -> (DevicePtr, usize) {
        match &batch.classified {
            Some([_, logits]) => (logits.ptr(), batch.images as usize * self.config.classes),
            None => (batch.y.ptr(), batch.rows as usize * self.config.hidden),
        }
    }

    fn norm(&self, norm: &NormWeights, rows: u32, x: DevicePtr, y: DevicePtr) -> Norm {
        norm.norm([rows, self.config.hidden as u32], self.config.layer_norm_epsilon, x, y)
    }

    fn attention(&self, batch: &VisionBatch) -> AttentionPrefill {
        let (heads, head_dim) = (self.config.heads as u32, self.config.head_dim() as u32);
        let heads = Heads { heads, kv_heads: heads, head_dim };
        AttentionPrefill {
            heads,
            sequences: batch.images,
            max_length: self.config.tokens() as u32,
            tokens: batch.rows,
            rows: batch.rows,
            causal: false,
            window: 0,
            scale: 1.0 / (head_dim as f32).sqrt(),
            qkv: batch.qkv.ptr(),
            qkv_stride: heads.qkv_width(),
            output: batch.attention.ptr(),
            output_stride: heads.output_width(),
            starts: batch.starts.ptr(),
            lengths: batch.lengths.ptr(),
        }
    }
}

impl VisionBatch {
    /// Puts the images on the device, `[images, channels, image_size, image_size]`.
    ///
    /// # Errors
    /// [`BuildError::Unsupported`] for pixels that are not those of as many images; what the device says.
    pub fn show(&self, session: &mut Session, bulk: &mut dyn BulkCopy, pixels: &[f32]) -> Result<(), BuildError> {
        if pixels.len() != self.images as usize * self.image_pixels {
            return Err(BuildError::Unsupported("the pixels are not those of a batch's images; make them with an `ImageProcessor`"));
        }
        let bytes: Vec<u8> = pixels.iter().flat_map(|&pixel| f16::from_f32(pixel).to_le_bytes()).collect();
        // A forward pass under way may read the images before these.
        Ok(bulk.copy(session, self.pixels.ptr(), &bytes, After::Launches)?)
    }
}

/// What is added to the projected patches of an image, `[tokens, hidden]`: to each patch its position and the projection's bias; to the row before
/// them, which is projected from zeros, its position and the class token.
fn added_to_patches(weights: &Weights) -> Result<Vec<f16>, BuildError> {
    let (class_token, bias) = (weights.f32(Parameter::ClassToken)?, weights.f32(Parameter::PatchBias)?);
    let positions = weights.f32(Parameter::PositionEmbedding)?;
    let rows = positions.chunks_exact(bias.len()).zip(std::iter::once(&class_token).chain(std::iter::repeat(&bias)));
    Ok(rows.flat_map(|(position, added)| position.iter().zip(added).map(|(position, added)| f16::from_f32(position + added))).collect())
}

impl Layer {
    fn load(loader: &mut Loader<'_>, config: &VisionConfig, index: usize) -> Result<Self, BuildError> {
        let at = |parts: &[P]| parts.iter().map(|&part| Parameter::layer(index, part)).collect::<Vec<_>>();
        let linear = |loader: &mut Loader<'_>, weight, bias| Linear::stacked(loader, index, &[(weight, bias)]);
        let norm = |loader: &mut Loader<'_>, weight, bias| {
            Ok::<_, BuildError>(NormWeights { weight: loader.stacked(&at(&[weight]))?, bias: loader.stacked(&at(&[bias]))? })
        };
        Ok(Self {
            attention_norm: norm(loader, P::AttentionNormWeight, P::AttentionNormBias)?,
            qkv: loader.stacked(&at(&[P::QueryWeight, P::KeyWeight, P::ValueWeight]))?,
            qkv_bias: config.qkv_bias.then(|| loader.stacked(&at(&[P::QueryBias, P::KeyBias, P::ValueBias]))).transpose()?,
            attention_output: linear(loader, P::AttentionOutputWeight, P::AttentionOutputBias)?,
            feed_forward_norm: norm(loader, P::FeedForwardNormWeight, P::FeedForwardNormBias)?,
            up: linear(loader, P::UpWeight, P::UpBias)?,
            down: linear(loader, P::DownWeight, P::DownBias)?,
        })
    }
}
