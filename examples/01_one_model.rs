//! One model on one device: DistilBERT with seeded random weights, on the GPU if there is one, else on the simulator.
//!
//! ```sh
//! cargo run --release --example 01_one_model
//! ```
//!
//! Give a Hugging Face model directory instead of the preset to run a real model; `smidgen embed` and `smidgen generate` add the tokenizer.

use std::sync::Arc;

use anyhow::Result;
use smidgen::batch::RaggedBatch;
use smidgen::models::{ModelSource, Solo, Work};
use smidgen_runtime::device::Device;
use smidgen_runtime::device::sim::{SimConfig, SimDevice};

fn main() -> Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "distilbert".to_owned());
    let device = smidgen::cuda::open().unwrap_or_else(|reason| {
        eprintln!("{reason}");
        SimDevice::new(SimConfig::h200()) as Arc<dyn Device>
    });

    // Three sequences of different lengths make one ragged batch: nothing is computed for padding.
    let sequences = [vec![1, 2, 3, 4, 5, 6, 7], vec![8], (9..42).collect()];
    let source = ModelSource::find(&name)?;
    // Checks the ids against the vocabulary; the forward pass relies on it.
    let tokens = RaggedBatch::new(&sequences, source.config())?.ids().len();

    let mut model = Solo::load(&device, &source, [Work::Forward(&sequences)])?;
    // Once before it is timed: kernels are loaded at their first launch.
    model.forward(&sequences)?;
    let start = device.now();
    let output = model.forward(&sequences)?;
    let elapsed = device.now() - start;

    let width = source.config().output_width();
    let name_of_gpu = &device.topology().name;
    let milliseconds = elapsed.as_secs_f64() * 1e3;
    println!("{name} on {name_of_gpu}: {tokens} tokens in {milliseconds:.3} ms, {} rows of {width} out", output.len() / width);
    if device.is_simulated() {
        println!("SIMULATED: the time is virtual, and the rows are zeros");
    } else {
        println!("the first row begins {:?}", &output[..4]);
    }
    Ok(())
}
