//! Matrix multiplication: `C[m, n] = epilogue(A[m, k] * B[n, k]^T)`, FP16 operands, FP32 sums.
//!
//! `A` holds activations, one row per token; `B` is a weight as model files store it, one row per output feature. What a layer does next
//! (bias, activation, residual, gate) is fused as an [`Epilogue`]. One descriptor, [`Gemm`], serves every shape; which kernel does it is decided
//! in [`variant`]: tiles of a size that suits the granted SMs, all of which add in the same order and so give the same bits, or, for at most
//! 64 rows, the skinny kernel, whatever the SM count.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi;

mod variant;

pub use variant::Variant;

/// What is done to a sum before it is rounded and stored. `x` is `scale * sum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `x`.
    None,
    /// `x`, stored as FP32: logits.
    F32,
    /// `x + bias`.
    Bias,
    /// `gelu(x + bias)` with the error function: BERT.
    BiasGelu,
    /// `gelu(x + bias)` in its tanh approximation: GPT-2.
    BiasGeluTanh,
    /// `max(x + bias, 0)`.
    BiasRelu,
    /// `x + residual`.
    Residual,
    /// `x + bias + residual`.
    BiasResidual,
    /// `silu(gate) * up`, where rows `2i` and `2i + 1` of `B` make gate and up of output column `i`: `C` is `[m, n / 2]`.
    SiluGate,
}

impl Epilogue {
    /// Every epilogue.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::F32,
        Self::Bias,
        Self::BiasGelu,
        Self::BiasGeluTanh,
        Self::BiasRelu,
        Self::Residual,
        Self::BiasResidual,
        Self::SiluGate,
    ];

    /// Whether a bias is added.
    pub const fn has_bias(self) -> bool {
        matches!(self, Self::Bias | Self::BiasGelu | Self::BiasGeluTanh | Self::BiasRelu | Self::BiasResidual)
    }

    /// Whether a residual is added.
    pub const fn has_residual(self) -> bool {
        matches!(self, Self::Residual | Self::BiasResidual)
    }

    /// Columns of `C` for a product with `n` columns.
    pub const fn columns(self, n: u32) -> u32 {
        if matches!(self, Self::SiluGate) { n / 2 } else { n }
    }

    /// Bytes of an element of `C`.
    pub const fn element_bytes(self) -> u32 {
        if matches!(self, Self::F32) { 4 } else { 2 }
    }

    /// The value of `GemmEpilogue` in kernels/abi.h.
    const fn code(self) -> abi::GemmEpilogue {
        match self {
            Self::None => abi::GemmEpilogue_GEMM_NONE,
            Self::F32 => abi::GemmEpilogue_GEMM_F32,
            Self::Bias => abi::GemmEpilogue_GEMM_BIAS,
            Self::BiasGelu => abi::GemmEpilogue_GEMM_BIAS_GELU,
            Self::BiasGeluTanh => abi::GemmEpilogue_GEMM_BIAS_GELU_TANH,
            Self::BiasRelu => abi::GemmEpilogue_GEMM_BIAS_RELU,
            Self::Residual => abi::GemmEpilogue_GEMM_RESIDUAL,
            Self::BiasResidual => abi::GemmEpilogue_GEMM_BIAS_RESIDUAL,
            Self::SiluGate => abi::GemmEpilogue_GEMM_SILU_GATE,
        }
    }
}

/// `C[m, n] = epilogue(A[m, k] * B[n, k]^T)`. Strides count elements from one row to the next.
///
/// Any shape and stride works. Rows of `A` and `B` that all begin on 16 bytes (pointers multiples of 16, strides multiples of 8) are several
/// times faster than others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// Rows of `A` and `C`.
    pub m: u32,
    /// Rows of `B`, and columns of `C` (twice those of `C` for [`Epilogue::SiluGate`]).
    pub n: u32,
    /// Columns of `A` and `B`.
    pub k: u32,
    /// `[m, k]`, FP16.
    pub a: DevicePtr,
    /// Stride of `a`.
    pub lda: u32,
    /// `[n, k]`, FP16.
    pub b: DevicePtr,
    /// Stride of `b`.
    pub ldb: u32,
    /// `[m, n]`, FP16; FP32 for [`Epilogue::F32`], `[m, n / 2]` for [`Epilogue::SiluGate`].
    pub c: DevicePtr,
    /// Stride of `c`.
    pub ldc: u32,
    /// What is done to the sums.
    pub epilogue: Epilogue,
    /// `[n]`, FP16, or null.
    pub bias: DevicePtr,
    /// `[m, n]`, FP16, or null. It may be `c` itself.
    pub residual: DevicePtr,
    /// Stride of `residual`.
    pub ld_residual: u32,
    /// Factor of the sums.
    pub scale: f32,
}

impl Gemm {
    /// A product of matrices without gaps between their rows, with scale 1.
    #[expect(clippy::too_many_arguments, reason = "three extents and three matrices")]
    pub const fn new(m: u32, n: u32, k: u32, a: DevicePtr, b: DevicePtr, c: DevicePtr, epilogue: Epilogue) -> Self {
        let ldc = epilogue.columns(n);
        let (bias, residual) = (DevicePtr::NULL, DevicePtr::NULL);
        Self { m, n, k, a, lda: k, b, ldb: k, c, ldc, epilogue, bias, residual, ld_residual: n, scale: 1.0 }
    }

    /// The same with a bias; epilogues that add none ignore it.
    #[must_use]
    pub const fn with_bias(self, bias: DevicePtr) -> Self {
        Self { bias, ..self }
    }

    /// The same with a residual; epilogues that add none ignore it.
    #[must_use]
    pub const fn with_residual(self, residual: DevicePtr) -> Self {
        Self { residual, ..self }
    }

    /// The same with another factor of the sums.
    #[must_use]
    pub const fn with_scale(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// The launch of one variant, where [`Kernel::configure`] would choose: to measure variants against each other.
    ///
    /// # Errors
    /// [`LaunchError::Unsupported`] for a shape that no variant, or not this one, can do, or if this GPU has too little shared memory for it.
    pub fn configure_as(&self, variant: Variant, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        self.check()?;
        if !variant.can_do(self) {
            return Err(self.unsupported(format!("{variant:?} takes other row counts or alignments")));
        }
        let tiles = u32::try_from(variant.tiles(self)).map_err(|_| self.unsupported("more than 2^32 tiles".to_owned()))?;
        let blocks_per_sm = variant.blocks_per_sm(gpu);
        if blocks_per_sm == 0 {
            let needed = variant.shared_bytes();
            return Err(self.unsupported(format!("{variant:?} needs {needed} bytes of shared memory, and an SM has {}", gpu.shared_bytes_per_sm)));
        }
        Ok(Launch {
            symbol: variant.symbol(self.epilogue),
            grid: Launch::persistent_grid(tiles, sms, blocks_per_sm),
            block: variant.threads(),
            shared_bytes: variant.shared_bytes(),
            blocks_per_sm,
            tiles,
            elastic: true,
            params: Params::new(self.args()),
        })
    }

    /// Whether rows of `A` and `B` can be copied 16 bytes at a time.
    fn is_aligned(&self) -> bool {
        (self.a.0 | self.b.0).is_multiple_of(16) && (self.lda | self.ldb).is_multiple_of(8)
    }

    fn check(&self) -> Result<(), LaunchError> {
        let reason = if self.m == 0 || self.n == 0 || self.k == 0 {
            "m, n and k must be at least 1"
        } else if self.m.max(self.n).max(self.k) > i32::MAX as u32 {
            "m, n and k must be below 2^31"
        } else if self.epilogue == Epilogue::SiluGate && !self.n.is_multiple_of(2) {
            "the SiLU gate needs an even n: gate and up rows alternate"
        } else if self.lda < self.k || self.ldb < self.k || self.ldc < self.epilogue.columns(self.n) {
            "rows overlap: lda and ldb must be at least k, ldc at least the columns of C"
        } else if self.epilogue.has_bias() && self.bias.is_null() {
            "its epilogue adds a bias, and the bias is null"
        } else if self.epilogue.has_residual() && (self.residual.is_null() || self.ld_residual < self.n) {
            "its epilogue adds a residual, and the residual is null or its rows overlap"
        } else {
            return Ok(());
        };
        Err(self.unsupported(reason.to_owned()))
    }

    fn unsupported(&self, reason: String) -> LaunchError {
        LaunchError::Unsupported { kernel: self.key().to_string(), reason }
    }

    fn args(&self) -> abi::GemmArgs {
        let bias = if self.epilogue.has_bias() { self.bias.0 } else { 0 };
        let (residual, ld_residual) = if self.epilogue.has_residual() { (self.residual.0, self.ld_residual) } else { (0, 0) };
        // Four columns of the product make two of C under the gate.
        let c_at_once = self.epilogue.columns(4);
        let vectorised = self.c.0.is_multiple_of(u64::from(c_at_once * self.epilogue.element_bytes()))
            && self.ldc.is_multiple_of(c_at_once)
            && (bias | residual).is_multiple_of(8)
            && ld_residual.is_multiple_of(4);
        abi::GemmArgs {
            a: self.a.0,
            b: self.b.0,
            c: self.c.0,
            bias,
            residual,
            m: self.m,
            n: self.n,
            k: self.k,
            lda: self.lda,
            ldb: self.ldb,
            ldc: self.ldc,
            ld_residual,
            epilogue: self.epilogue.code(),
            scale: self.scale,
            vectorised: u32::from(vectorised),
        }
    }
}

// SAFETY: every symbol of `Variant::symbol` is defined with `GemmArgs` as its first parameter (GEMM_TILED_ENTRY, GEMM_SKINNY_ENTRY and
// gemm_unaligned); that the pointers stay valid is for whoever makes the descriptor to see to.
unsafe impl Kernel for Gemm {
    /// `[m x n x k]`, named by the epilogue.
    fn key(&self) -> KernelKey {
        const NONE: KernelName = KernelName::new("gemm");
        const F32: KernelName = KernelName::new("gemm_f32");
        const BIAS: KernelName = KernelName::new("gemm_bias");
        const BIAS_GELU: KernelName = KernelName::new("gemm_bias_gelu");
        const BIAS_GELU_TANH: KernelName = KernelName::new("gemm_bias_gelu_tanh");
        const BIAS_RELU: KernelName = KernelName::new("gemm_bias_relu");
        const RESIDUAL: KernelName = KernelName::new("gemm_residual");
        const BIAS_RESIDUAL: KernelName = KernelName::new("gemm_bias_residual");
        const SILU_GATE: KernelName = KernelName::new("gemm_silu_gate");
        let name = match self.epilogue {
            Epilogue::None => NONE,
            Epilogue::F32 => F32,
            Epilogue::Bias => BIAS,
            Epilogue::BiasGelu => BIAS_GELU,
            Epilogue::BiasGeluTanh => BIAS_GELU_TANH,
            Epilogue::BiasRelu => BIAS_RELU,
            Epilogue::Residual => RESIDUAL,
            Epilogue::BiasResidual => BIAS_RESIDUAL,
            Epilogue::SiluGate => SILU_GATE,
        };
        KernelKey::new(name, [self.m, self.n, self.k])
    }

    fn work(&self) -> Work {
        let [m, n, k] = [self.m, self.n, self.k].map(u64::from);
        let c = m * u64::from(self.epilogue.columns(self.n)) * u64::from(self.epilogue.element_bytes());
        let bias = if self.epilogue.has_bias() { 2 * n } else { 0 };
        let residual = if self.epilogue.has_residual() { 2 * m * n } else { 0 };
        Work { flops: 2 * m * n * k, bytes: 2 * (m + n) * k + c + bias + residual }
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        self.check()?;
        let variant = Variant::choose(self, sms, gpu);
        variant::print_choice(self, variant, sms);
        self.configure_as(variant, sms, gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h200() -> Topology {
        Topology {
            name: "H200".to_owned(),
            sms: Sms(132),
            sms_per_tpc: 2,
            tpcs_per_gpc: vec![9; 8],
            memory_bytes: 140 << 30,
            l2_bytes: 50 << 20,
            shared_bytes_per_sm: 228 << 10,
            compute_capability: (9, 0),
            driver_version: 13000,
            driver: String::new(),
        }
    }

    fn gemm([m, n, k]: [u32; 3], epilogue: Epilogue) -> Gemm {
        let gemm = Gemm::new(m, n, k, DevicePtr(256), DevicePtr(512), DevicePtr(1024), epilogue);
        gemm.with_bias(DevicePtr(2048)).with_residual(DevicePtr(4096))
    }

    #[test]
    fn the_key_names_the_epilogue_and_the_shape() {
        assert_eq!(gemm([1024, 3072, 768], Epilogue::BiasGelu).key().to_string(), "gemm_bias_gelu[1024x3072x768]f16");
    }

    #[test]
    fn a_grid_never_exceeds_what_the_granted_sms_hold_at_once() {
        for shape in [[8192, 14336, 4096], [1024, 768, 768], [8, 4096, 4096], [1, 1, 1], [64, 128_256, 2048]] {
            for sms in [1, 2, 8, 66, 132] {
                let launch = gemm(shape, Epilogue::None).configure(Sms(sms), &h200()).expect("a supported shape");
                assert!(launch.grid >= 1 && launch.grid <= u32::from(sms) * launch.blocks_per_sm, "{shape:?} at {sms} SMs: {launch:?}");
                assert!(launch.grid <= launch.tiles);
                assert!(launch.blocks_per_sm * (launch.shared_bytes + 1024) <= h200().shared_bytes_per_sm);
            }
        }
    }

    #[test]
    fn the_kernel_of_a_skinny_or_unaligned_problem_does_not_depend_on_the_sm_count() {
        let odd_stride = Gemm { lda: 771, ..gemm([1024, 768, 768], Epilogue::None) };
        let odd_pointer = Gemm { a: DevicePtr(258), ..gemm([8, 4096, 4096], Epilogue::None) };
        for problem in [gemm([1, 2048, 2048], Epilogue::None), gemm([64, 8192, 2048], Epilogue::None), odd_stride, odd_pointer] {
            let symbols = [1, 2, 33, 66, 132].map(|sms| problem.configure(Sms(sms), &h200()).expect("a supported shape").symbol);
            assert!(symbols.iter().all(|symbol| *symbol == symbols[0]), "{problem:?}: {symbols:?}");
        }
    }

    #[test]
    fn a_gpu_with_little_shared_memory_gets_tiles_that_fit() {
        let small = Topology { shared_bytes_per_sm: 100 << 10, ..h200() };
        for shape in [[8192, 8192, 4096], [8, 4096, 4096], [64, 4096, 4096]] {
            let launch = gemm(shape, Epilogue::None).configure(Sms(40), &small).expect("a tile that fits");
            assert!(launch.shared_bytes + 1024 <= small.shared_bytes_per_sm);
        }
    }

    #[test]
    fn shapes_that_cannot_be_done_say_what_does_not_fit() {
        let plain = gemm([8, 8, 64], Epilogue::None);
        for (problem, reason) in [
            (gemm([8, 7, 64], Epilogue::SiluGate), "even n"),
            (gemm([0, 8, 8], Epilogue::None), "at least 1"),
            (Gemm { lda: 63, ..plain }, "rows overlap"),
            (gemm([8, 8, 64], Epilogue::Bias).with_bias(DevicePtr::NULL), "bias is null"),
            (gemm([8, 8, 64], Epilogue::Residual).with_residual(DevicePtr::NULL), "residual is null"),
        ] {
            let error = problem.configure(Sms(8), &h200()).expect_err("no such kernel");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn work_counts_each_operand_once() {
        let work = |epilogue| gemm([2, 4, 5], epilogue).work().bytes;
        assert_eq!(gemm([2, 4, 5], Epilogue::None).work(), Work { flops: 2 * 2 * 4 * 5, bytes: 2 * (2 * 5 + 4 * 5 + 2 * 4) });
        assert_eq!(work(Epilogue::Bias), work(Epilogue::None) + 2 * 4);
        assert_eq!(work(Epilogue::Residual), work(Epilogue::None) + 2 * 2 * 4);
        assert_eq!(work(Epilogue::F32), work(Epilogue::None) + 2 * 2 * 4);
        assert_eq!(work(Epilogue::SiluGate), work(Epilogue::None) - 2 * 2 * 2);
    }
}
