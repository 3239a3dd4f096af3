//! Image files to the pixels that a vision model takes: decoded, resized, rescaled and normalised as `preprocessor_config.json` says.
//!
//! Resizing is Pillow's, to the bit: a separable filter, widened where the image shrinks, first along rows and then along columns, with weights
//! of 22 fractional bits and 8-bit pixels in between. So an image means the same to a model here as it did where the model was trained, which
//! the smoother resampling of other libraries does not promise.
//!
//! Source: Pillow's `Resample.c`; `ViTImageProcessor` of Hugging Face transformers.

use std::fs;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, RgbImage};
use serde::Deserialize;
use serde_json::Value;

use crate::config::VisionConfig;

/// Pixels of the longer side, at most: those of a JPEG file. A line of pixels in a file of a few kilobytes could otherwise ask for any amount of memory.
const LONGEST_SIDE: u32 = 65_535;

/// What is done to an image before a model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    /// Height and width of the result.
    size: u32,
    /// How images of other sizes get this one; `None` where they are refused.
    filter: Option<Filter>,
    /// Factor of the bytes.
    scale: f32,
    /// Subtracted from the rescaled colours.
    mean: [f32; 3],
    /// Divides what is left.
    deviation: [f32; 3],
}

/// The interpolation of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Bilinear,
    Bicubic,
}

/// `preprocessor_config.json`. A flag that is missing is on, as in transformers.
#[derive(Deserialize)]
struct File {
    do_resize: Option<bool>,
    size: Option<Value>,
    resample: Option<i64>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f32>,
    do_normalize: Option<bool>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    do_center_crop: Option<bool>,
    do_pad: Option<bool>,
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json` in the model directory `dir`.
    ///
    /// # Errors
    /// [`ImagesError`] where the file is missing or malformed, asks for a step that is not computed here, or contradicts the model.
    pub fn open(dir: &Path, config: &VisionConfig) -> Result<Self, ImagesError> {
        let path = dir.join("preprocessor_config.json");
        let bytes = fs::read(&path).map_err(|source| ImagesError::Unreadable { path: path.clone(), source })?;
        let file: File =
            serde_json::from_slice(&bytes).map_err(|error| ImagesError::Malformed { path: path.clone(), problem: error.to_string() })?;
        let wrong = |field, problem: String, remedy| ImagesError::Field { path: path.clone(), field, problem, remedy };
        for (field, flag) in [("do_center_crop", file.do_center_crop), ("do_pad", file.do_pad)] {
            if flag == Some(true) {
                return Err(wrong(field, "is true".into(), "only resizing, rescaling and normalising are supported"));
            }
        }
        let mut processor = Self::default_for(config);
        if let Some(size) = &file.size
            && !is_square(size, config.image_size)
        {
            let implied = format!("is {size}, but the model's image_size is {}", config.image_size);
            return Err(wrong("size", implied, "use the files of one model"));
        }
        processor.filter = match (file.do_resize.unwrap_or(true), file.resample.unwrap_or(2)) {
            (false, _) => None,
            (true, 2) => Some(Filter::Bilinear),
            (true, 3) => Some(Filter::Bicubic),
            (true, other) => return Err(wrong("resample", format!("is {other}"), "only 2 (bilinear) and 3 (bicubic) are supported")),
        };
        processor.scale = match file.do_rescale {
            Some(false) => 1.0,
            _ => file.rescale_factor.unwrap_or(processor.scale),
        };
        if file.do_normalize == Some(false) {
            (processor.mean, processor.deviation) = ([0.0; 3], [1.0; 3]);
        } else {
            processor.mean = file.image_mean.unwrap_or(processor.mean);
            processor.deviation = file.image_std.unwrap_or(processor.deviation);
        }
        let numbers = processor.mean.iter().chain(&processor.deviation).chain([&processor.scale]);
        if !numbers.copied().all(f32::is_finite) || processor.deviation.contains(&0.0) {
            let problem = "or another number is 0 or not finite".into();
            return Err(wrong("image_std", problem, "copy the numbers from the model's original file"));
        }
        Ok(processor)
    }

    /// What ViT was trained with: bilinear, colours from -1 to 1. For models without a directory.
    pub fn default_for(config: &VisionConfig) -> Self {
        let size = config.image_size as u32;
        Self { size, filter: Some(Filter::Bilinear), scale: 1.0 / 255.0, mean: [0.5; 3], deviation: [0.5; 3] }
    }

    /// The pixels of a PNG or JPEG file, `[3, size, size]`: red, green and blue, each row by row. Transparency is left out; a photograph is turned as its
    /// Exif orientation says.
    ///
    /// # Errors
    /// [`ImagesError`] where the file cannot be read or is no image, and where its size is wrong and may not be changed.
    pub fn read(&self, path: &Path) -> Result<Vec<f32>, ImagesError> {
        let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
        let reader = reader.map_err(|source| ImagesError::Unreadable { path: path.to_owned(), source })?;
        let undecodable = |problem| match problem {
            ImageError::Limits(_) => ImagesError::TooLarge { path: path.to_owned() },
            problem => ImagesError::NotAnImage { path: path.to_owned(), problem },
        };
        let mut decoder = reader.into_decoder().map_err(undecodable)?;
        let (width, height) = decoder.dimensions();
        if width.max(height) > LONGEST_SIDE {
            return Err(ImagesError::TooLarge { path: path.to_owned() });
        }
        let orientation = decoder.orientation().map_err(undecodable)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(undecodable)?;
        image.apply_orientation(orientation);
        let image = image.into_rgb8();
        self.pixels(&image).ok_or_else(|| {
            let (width, height) = image.dimensions();
            ImagesError::Size { path: path.to_owned(), width, height, size: self.size }
        })
    }

    /// The pixels of an image, as [`ImageProcessor::read`] says; `None` where its size is wrong and may not be changed.
    fn pixels(&self, image: &RgbImage) -> Option<Vec<f32>> {
        let (width, height) = image.dimensions();
        let size = self.size as usize;
        let resized = match self.filter {
            _ if (width, height) == (self.size, self.size) => image.as_raw().clone(),
            Some(filter) if width > 0 && height > 0 => filter.resize(image.as_raw(), [width as usize, height as usize], size),
            _ => return None,
        };
        let normalised = |colour: usize| {
            let (mean, deviation) = (self.mean[colour], self.deviation[colour]);
            resized.iter().skip(colour).step_by(3).map(move |&byte| (f32::from(byte) * self.scale - mean) / deviation)
        };
        Some((0..3).flat_map(normalised).collect())
    }
}

/// Whether `size` says `expected` by `expected`.
fn is_square(size: &Value, expected: usize) -> bool {
    let side = |field| size.get(field).and_then(Value::as_u64) == Some(expected as u64);
    size.as_u64() == Some(expected as u64) || (side("height") && side("width"))
}

/// Fractional bits of a weight: a sum of 8-bit pixels and a bit for its sign fit in 32.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// Which pixels of a line make one pixel of the resized line, and by what weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Filter {
    /// How far the filter reaches, in pixels of the larger image.
    fn reach(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// Keys' cubic with a = -0.5, or the triangle.
    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Self::Bicubic => 0.0,
        }
    }

    /// The taps that make `to` pixels of `from`.
    fn taps(self, from: usize, to: usize) -> Vec<Taps> {
        let scale = from as f64 / to as f64;
        let widening = scale.max(1.0);
        let reach = self.reach() * widening;
        let taps = |pixel: usize| {
            let centre = (pixel as f64 + 0.5) * scale;
            let first = (centre - reach + 0.5).max(0.0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(from);
            let weights: Vec<f64> = (first..end).map(|x| self.at((x as f64 - centre + 0.5) / widening)).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: f64| (weight / sum * f64::from(1 << WEIGHT_BITS)).round() as i32;
            Taps { first, weights: weights.into_iter().map(fixed).collect() }
        };
        (0..to).map(taps).collect()
    }

    /// RGB pixels of `[width, height]` to `size` by `size`.
    fn resize(self, pixels: &[u8], [width, height]: [usize; 2], size: usize) -> Vec<u8> {
        let (columns, rows) = (self.taps(width, size), self.taps(height, size));
        let mut wide = Vec::with_capacity(height * size * 3);
        for row in pixels.chunks_exact(width * 3) {
            for taps in &columns {
                wide.extend([0, 1, 2].map(|colour| taps.sum(|pixel| row[pixel * 3 + colour])));
            }
        }
        let mut resized = Vec::with_capacity(size * size * 3);
        for taps in &rows {
            resized.extend((0..size * 3).map(|element| taps.sum(|row| wide[row * size * 3 + element])));
        }
        resized
    }
}

impl Taps {
    /// The weighted sum of the pixels, rounded and clipped to a byte.
    fn sum(&self, pixel: impl Fn(usize) -> u8) -> u8 {
        let weighted = self.weights.iter().enumerate().map(|(at, &weight)| weight * i32::from(pixel(self.first + at)));
        let sum = (1 << (WEIGHT_BITS - 1)) + weighted.sum::<i32>();
        (sum >> WEIGHT_BITS).clamp(0, 255) as u8
    }
}

/// What can be wrong with an image or with what says how to prepare it.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// A file cannot be read.
    #[error("{path}: cannot be read ({source}); check that the file is there and readable")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why the system refused.
        source: std::io::Error,
    },
    /// The preprocessor's file is not what it should be.
    #[error("{path}: malformed ({problem}); download the file again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        problem: String,
    },
    /// A field asks for what this engine does not compute, or contradicts the model.
    #[error("{path}: field `{field}` {problem}; {remedy}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A file is no image that can be decoded.
    #[error("{path}: not a PNG or JPEG image that can be decoded ({problem}); convert it to one of them")]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        problem: ImageError,
    },
    /// An image would take too much memory.
    #[error("{path}: is too large, by its sides (65535 pixels at most) or by its bytes once decoded (512 MiB at most); make it smaller")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The model's images are not resized, and this one has another size.
    #[error("{path}: is {width}x{height} pixels, but this model takes {size}x{size} and does not resize; resize the image")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// What the model takes.
        size: u32,
    },
}
