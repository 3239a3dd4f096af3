//! `smidgen classify`: what is in an image.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use smidgen::config::{ModelConfig, VisionConfig};
use smidgen::images::ImageProcessor;
use smidgen::models::{ModelSource, Solo, Work};
use smidgen::reference::Reference;

use super::output::to_stdout;
use super::{ComputeDevice, finite, progress};

/// Images in one batch: enough to fill the device, few enough that the first labels come soon.
const BATCH: usize = 64;

/// Say what is in images, with a vision transformer: the most probable classes of each, by their names in the model's config.json.
#[derive(Debug, Args)]
pub struct ClassifyArgs {
    /// A Hugging Face model directory of a ViT with a classifier, or a preset with random weights.
    #[arg(long)]
    model: String,
    /// PNG or JPEG files.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// How many classes to print for each image.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Print one object per line: {"image": ..., "classes": [{"class": ..., "label": ..., "probability": ...}]}.
    #[arg(long)]
    json: bool,
    /// CPU or GPU; the GPU where there is one.
    #[arg(long, value_enum)]
    device: Option<ComputeDevice>,
}

#[derive(Serialize)]
struct Line<'a> {
    image: &'a Path,
    classes: Vec<Class<'a>>,
}

#[derive(Serialize)]
struct Class<'a> {
    class: usize,
    label: std::borrow::Cow<'a, str>,
    probability: f32,
}

pub fn run(args: &ClassifyArgs) -> anyhow::Result<()> {
    let source = ModelSource::find(&args.model)?;
    let ModelConfig::Vision(config) = source.config() else {
        bail!("{}: takes text, not images; use `smidgen embed` or `smidgen generate`, or a model of type vit", args.model);
    };
    if config.classes == 0 {
        bail!("{}: has no classifier; use a model whose config.json names the architecture ViTForImageClassification", args.model);
    }
    let processor = match source.weights().as_random() {
        Some(_) => ImageProcessor::default_for(config),
        None => ImageProcessor::open(Path::new(&args.model), config)?,
    };
    let images = args.images.len().min(BATCH) as u32;
    let bar = progress::bar(args.images.len() as u64, "{bar:24} {pos}/{len} images {msg} {elapsed}")?;
    bar.set_message(format!("loading {}", args.model));
    let mut classifier = match ComputeDevice::open(args.device)? {
        None => Classifier::Cpu(Box::new(Reference::load(source.weights())?)),
        Some(gpu) => Classifier::Gpu(Box::new(Solo::load(&gpu, &source, [Work::Classify(images)])?)),
    };
    bar.set_message("");
    let mut out = io::stdout().lock();
    for paths in args.images.chunks(BATCH) {
        let pixels = paths.iter().map(|path| processor.read(path)).collect::<Result<Vec<_>, _>>()?;
        for (path, logits) in paths.iter().zip(classifier.classify(&pixels)?) {
            let classes = most_probable(config, finite(&args.model, &logits)?, args.top as usize);
            to_stdout(bar.suspend(|| print(&mut out, args, path, &classes)))?;
        }
        bar.inc(paths.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

enum Classifier {
    Cpu(Box<Reference>),
    Gpu(Box<Solo>),
}

impl Classifier {
    /// The logits of each image.
    fn classify(&mut self, pixels: &[Vec<f32>]) -> anyhow::Result<Vec<Vec<f32>>> {
        match self {
            Self::Cpu(reference) => {
                let Reference::Vision(vision) = &**reference else { bail!("takes text, not images") };
                let logits = vision.forward(&pixels.concat());
                Ok((0..logits.rows()).map(|image| logits.row(image).to_vec()).collect())
            }
            Self::Gpu(solo) => Ok(solo.classify(pixels)?),
        }
    }
}

/// The `top` classes with the highest softmax, the highest first; of equals, the lower number first.
fn most_probable<'a>(config: &'a VisionConfig, logits: &[f32], top: usize) -> Vec<Class<'a>> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let class = |class: usize| Class { class, label: config.label(class), probability: (logits[class] - largest).exp() / sum };
    order.into_iter().take(top).map(class).collect()
}

fn print(out: &mut impl Write, args: &ClassifyArgs, image: &Path, classes: &[Class<'_>]) -> io::Result<()> {
    if args.json {
        let classes = classes.iter().map(|class| Class { label: class.label.clone(), ..*class }).collect();
        serde_json::to_writer(&mut *out, &Line { image, classes })?;
        return writeln!(out);
    }
    if args.images.len() > 1 {
        writeln!(out, "{}", image.display())?;
    }
    for class in classes {
        writeln!(out, "{:6.2}%  {}", 100.0 * class.probability, class.label)?;
    }
    Ok(())
}
