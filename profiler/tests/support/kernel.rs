//! Kernels that exist by name only, and requests made of them.

use smidgen_runtime::device::{Sms, Topology};
use smidgen_runtime::launch::{Choice, Configuration, Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

/// By configuration; the first is what a kernel chooses itself.
pub const SYMBOLS: [&str; 4] = ["scripted", "scripted_b", "scripted_c", "scripted_d"];
pub const TILES: u32 = 1000;
pub const GEMM: KernelName = KernelName::new("gemm");
pub const NORM: KernelName = KernelName::new("norm");

/// A kernel that exists by name only.
#[derive(Debug, Clone, Copy)]
pub struct ScriptedKernel {
    pub key: KernelKey,
    pub instance: u32,
    pub work: Work,
    /// How many configurations it offers.
    pub configurations: usize,
}

// SAFETY: the devices behind it run nothing, so no parameter is ever read.
unsafe impl Kernel for ScriptedKernel {
    fn key(&self) -> KernelKey {
        self.key
    }
    fn work(&self) -> Work {
        self.work
    }
    fn configurations(&self, _: Sms, _: &Topology) -> Vec<Configuration> {
        (0..).zip(SYMBOLS).take(self.configurations).map(|(at, name)| Configuration { name, choice: Choice(at) }).collect()
    }
    fn configure_as(&self, choice: Choice, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        Ok(Launch { symbol: SYMBOLS[choice.0 as usize], ..self.configure(sms, gpu)? })
    }
    fn configure(&self, sms: Sms, _: &Topology) -> Result<Launch, LaunchError> {
        if self.key.shape().is_empty() {
            return Err(LaunchError::Unsupported { kernel: self.key.to_string(), reason: "it has no extent".into() });
        }
        Ok(Launch {
            symbol: SYMBOLS[0],
            grid: Launch::persistent_grid(TILES, sms, 2),
            block: 128,
            // Kernels are told apart on the device by their shared memory.
            shared_bytes: self.instance,
            blocks_per_sm: 2,
            tiles: TILES,
            blocks_per_tile: 1,
            elastic: true,
            programmatic: false,
            begins_by_number: false,
            params: Params::new(0_u64),
        })
    }
}

/// `layers` launches of a GEMM and of a norm, as a model of so many layers makes them.
pub fn request(layers: u32) -> Vec<Box<dyn Kernel + Send>> {
    let gemm = KernelKey::new(GEMM, [1024, 768, 3072]);
    let norm = KernelKey::new(NORM, [1024, 768]);
    let mut launches: Vec<Box<dyn Kernel + Send>> = Vec::new();
    for instance in 0..layers {
        let work = Work { flops: 4_831_838_208, bytes: 12_582_912 };
        launches.push(Box::new(ScriptedKernel { key: gemm, instance, work, configurations: 4 }));
        let work = Work { flops: 3_145_728, bytes: 6_291_456 };
        launches.push(Box::new(ScriptedKernel { key: norm, instance, work, configurations: 0 }));
    }
    launches
}
