//! Images, from the file to the class: preparation as Hugging Face's image processor does it, the tiny random ViT made by
//! `tests/fixtures/make_tiny_encoders.py` on the CPU, and `smidgen classify` as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;
use serde_json::json;

use smidgen::batch::RaggedBatch;
use smidgen::config::ModelConfig;
use smidgen::images::ImageProcessor;
use smidgen::reference::{Reference, Vision};
use smidgen::weights::Weights;

mod tiny_models;

use tiny_models::{Copy, fixture, read_tensor, relative_error};

/// f32 against f32: only the order of sums differs.
const TOLERANCE: f64 = 1e-4;

/// The fixture's images, one smaller and one larger than the model's.
const IMAGES: [&str; 2] = ["image.png", "wide.png"];

fn processor(dir: &Path) -> ImageProcessor {
    let ModelConfig::Vision(config) = ModelConfig::open(dir).unwrap() else { panic!("{} is no vision model", dir.display()) };
    ImageProcessor::open(dir, &config).unwrap()
}

fn pixels(dir: &Path) -> Vec<f32> {
    IMAGES.iter().flat_map(|image| processor(dir).read(&fixture("vit").join(image)).unwrap()).collect()
}

fn expected(tensor: &str) -> Vec<f32> {
    read_tensor(&fixture("vit").join("expected.safetensors"), tensor).values
}

fn open(dir: &Path) -> Vision {
    match Reference::load(&Weights::open(dir).unwrap()).unwrap() {
        Reference::Vision(vision) => vision,
        _ => panic!("{} is no vision model", dir.display()),
    }
}

/// A wrong filter, or one whose rounding differs, changes a colour by 1/255 of its range of 2 at least.
#[test]
fn images_are_prepared_to_the_byte_as_by_transformers() {
    let bicubic = Copy::of("vit").edit_json("preprocessor_config.json", |config| config["resample"] = json!(3));
    for (dir, tensor) in [(fixture("vit"), "pixel_values"), (bicubic.path().to_owned(), "pixel_values_bicubic")] {
        let (ours, theirs) = (pixels(&dir), expected(tensor));
        assert_eq!(ours.len(), theirs.len());
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{tensor}: {worst}");
    }
}

/// A JPEG file with the Exif segment of a camera that was held on its side: the picture is to be turned right by a quarter.
#[test]
fn a_photograph_is_turned_as_its_file_says() {
    let model = Copy::of("vit");
    let image = image::RgbImage::from_fn(24, 24, |x, y| if x < 12 && y < 12 { image::Rgb([255; 3]) } else { image::Rgb([0; 3]) });
    let mut upright = std::io::Cursor::new(Vec::new());
    image.write_to(&mut upright, image::ImageFormat::Jpeg).unwrap();
    let upright = upright.into_inner();
    // A TIFF header, and a directory of one entry: tag 0x112, a short, of which there is one, 6.
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let length = (exif.len() as u16 + 2).to_be_bytes();
    let turned = [&upright[..2], &[0xff, 0xe1], &length, exif, &upright[2..]].concat();
    let [upright, turned] = [("upright.jpg", upright), ("turned.jpg", turned)].map(|(name, bytes)| {
        std::fs::write(model.file(name), bytes).unwrap();
        processor(model.path()).read(&model.file(name)).unwrap()
    });
    // The light corner goes from the upper left to the upper right.
    let at = |pixels: &[f32], x: usize, y: usize| pixels[y * 24 + x];
    assert!(at(&upright, 4, 4) > 0.9 && at(&upright, 20, 4) < -0.9);
    assert!(at(&turned, 4, 4) < -0.9 && at(&turned, 20, 4) > 0.9);
}

#[test]
fn a_line_of_pixels_that_would_take_all_memory_is_refused_by_its_file() {
    let model = Copy::of("vit");
    let path = model.file("line.png");
    image::GrayImage::new(1, 70_000).save(&path).unwrap();
    let error = processor(model.path()).read(&path).unwrap_err().to_string();
    assert!(error.contains("line.png") && error.contains("too large"), "{error}");
}

#[test]
fn an_image_of_the_models_size_is_not_resampled_and_steps_can_be_left_out() {
    let model = Copy::of("vit").edit_json("preprocessor_config.json", |config| {
        config["do_resize"] = json!(false);
        config["do_rescale"] = json!(false);
        config["do_normalize"] = json!(false);
    });
    let path = model.file("exact.png");
    let image = image::RgbImage::from_fn(24, 24, |x, y| image::Rgb([x as u8, y as u8, (7 * x + 3 * y) as u8]));
    image.save(&path).unwrap();
    let pixels = processor(model.path()).read(&path).unwrap();
    for (x, y, pixel) in image.enumerate_pixels() {
        for (colour, &byte) in pixel.0.iter().enumerate() {
            assert_eq!(pixels[(colour * 24 + y as usize) * 24 + x as usize], f32::from(byte));
        }
    }
    let error = processor(model.path()).read(&fixture("vit").join("image.png")).unwrap_err().to_string();
    assert!(error.contains("23x19") && error.contains("24x24"), "{error}");
}

#[test]
fn vit_computes_what_transformers_computes() {
    let vision = open(&fixture("vit"));
    let pixels = expected("pixel_values");
    for (output, tensor) in [(vision.forward(&pixels), "logits"), (vision.hidden(&pixels), "last_hidden_state")] {
        let error = relative_error(output.values(), &expected(tensor));
        assert!(error < TOLERANCE, "{tensor}: relative error {error}");
    }
}

#[test]
fn a_model_saved_without_its_classifier_gives_the_last_hidden_state() {
    let bare = Copy::of("vit").edit_json("config.json", |config| config["architectures"] = json!(["ViTModel"])).edit_tensors(|mut all| {
        all.retain(|tensor| !tensor.name.starts_with("classifier"));
        all.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace("vit.", ""));
        all
    });
    let error = relative_error(open(bare.path()).forward(&expected("pixel_values")).values(), &expected("last_hidden_state"));
    assert!(error < TOLERANCE, "relative error {error}");
}

#[test]
fn a_batch_of_token_ids_is_refused_for_a_vision_model() {
    let config = ModelConfig::open(&fixture("vit")).unwrap();
    let error = RaggedBatch::new(&[[1_u32, 2]], &config).unwrap_err().to_string();
    assert!(error.contains("smidgen classify"), "{error}");
}

fn smidgen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smidgen")).args(args).output().unwrap()
}

fn classify(model: &Path, rest: &[&str]) -> Output {
    smidgen(&[&["classify", "--device", "cpu", "--model", model.to_str().unwrap()], rest].concat())
}

fn image(name: &str) -> String {
    fixture("vit").join(name).to_str().unwrap().to_owned()
}

/// The message of a command that must fail as every command fails.
fn refusal(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(output.stdout, b"");
    let line = stderr.strip_prefix("error: ").and_then(|line| line.strip_suffix('\n')).unwrap_or_else(|| panic!("{stderr}"));
    assert!(!line.contains('\n'), "more than one line: {line}");
    line.to_owned()
}

#[derive(Deserialize)]
struct Line {
    image: PathBuf,
    classes: Vec<Class>,
}

#[derive(Deserialize)]
struct Class {
    class: usize,
    label: String,
    probability: f32,
}

#[test]
fn classify_prints_the_most_probable_labels_of_each_image() {
    let output = classify(&fixture("vit"), &["--json", "--top", "3", &image("image.png"), &image("wide.png")]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Line> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (line, (name, logits)) in lines.iter().zip(IMAGES.iter().zip(expected("logits").chunks_exact(5))) {
        assert!(line.image.ends_with(name));
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        let mut order: Vec<usize> = (0..5).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        assert_eq!(line.classes.iter().map(|class| class.class).collect::<Vec<_>>(), order[..3]);
        for class in &line.classes {
            assert_eq!(class.label, ["cat", "dog", "tree", "house", "sea"][class.class]);
            let probability = logits[class.class].exp() / sum;
            assert!((class.probability - probability).abs() < 1e-3 * probability + 1e-6, "{}", class.label);
        }
    }
    let text = String::from_utf8(classify(&fixture("vit"), &[&image("image.png")]).stdout).unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.lines().next().unwrap().contains(&lines[0].classes[0].label), "{text}");
}

#[test]
fn what_cannot_be_classified_is_refused_by_file_and_remedy() {
    let model = fixture("vit");
    let not_an_image = model.join("config.json");
    for (output, parts) in [
        (classify(&model, &["nothing.png"]), ["nothing.png", "cannot be read"]),
        (classify(&model, &[not_an_image.to_str().unwrap()]), ["config.json", "not a PNG or JPEG"]),
        (classify(&fixture("bert"), &[&image("image.png")]), ["takes text", "smidgen embed"]),
        (smidgen(&["embed", "--device", "cpu", "--model", model.to_str().unwrap(), "a cat"]), ["vision model", "smidgen classify"]),
    ] {
        let line = refusal(&output);
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    let truncated = Copy::of("vit");
    let path = truncated.file("wide.png");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let line = refusal(&classify(&model, &[path.to_str().unwrap()]));
    assert!(line.contains("wide.png") && line.contains("not a PNG or JPEG"), "{line}");
}

#[test]
fn an_image_processor_that_cannot_be_followed_is_refused_by_field() {
    for (field, value, part) in [
        ("resample", json!(1), "bilinear"),
        ("size", json!({"height": 224, "width": 224}), "image_size is 24"),
        ("size", json!({"shortest_edge": 24}), "image_size is 24"),
        ("do_center_crop", json!(true), "only resizing"),
        ("image_std", json!([0.5, 0.0, 0.5]), "not finite"),
        ("image_mean", json!(0.5), "malformed"),
    ] {
        let model = Copy::of("vit").edit_json("preprocessor_config.json", |config| config[field] = value);
        let line = refusal(&classify(model.path(), &[&image("image.png")]));
        assert!(line.contains("preprocessor_config.json") && line.contains(part), "{field}: {line}");
    }
}

#[test]
fn a_vision_configuration_that_cannot_be_run_is_refused_by_field() {
    for (field, value, part) in [
        ("patch_size", json!(7), "does not divide `image_size`"),
        ("num_channels", json!(1), "three colours"),
        ("image_size", json!([24, 24]), "whole number"),
        ("id2label", json!({"0": "cat", "2": "dog"}), "each number from 0"),
        ("rope_theta", json!(100), "unknown to this engine"),
    ] {
        let model = Copy::of("vit").edit_json("config.json", |config| config[field] = value);
        let line = refusal(&classify(model.path(), &[&image("image.png")]));
        assert!(line.contains(&format!("`{field}`")) && line.contains(part), "{field}: {line}");
    }
}
