//! Matrix multiplication: `C[m, n] = epilogue(A[m, k] * B[n, k]^T)`, FP16 operands, FP32 sums.
//!
//! `A` holds activations, one row per token; `B` is a weight as model files store it, one row per output feature. What a layer does next
//! (bias, activation, residual, gate) is fused as an [`Epilogue`]. One descriptor, [`Gemm`], serves every shape; which kernel does it is decided
//! in [`Variant`]: tiles of a size that suits the granted SMs, all of which add in the same order and so give the same bits, or, on Hopper for few
//! rows, a skinny kernel, whatever the SM count.

use smidgen_runtime::device::{DevicePtr, Sms, Topology};
use smidgen_runtime::launch::{Choice, Configuration, Kernel, KernelKey, KernelName, Launch, LaunchError, Params, Work};

use super::abi;
use super::choices::print_choice;

#[cfg(test)]
mod epilogue_tests;
mod qkv;
mod skinny;
mod variant;
mod warpgroup;

pub use qkv::QkvProduct;
pub use skinny::Skinny;
pub use variant::Variant;
pub use warpgroup::Warpgroup;

use variant::Quickest;

/// What is done to a sum before it is rounded and stored. Biases are `[n]`, residuals `[m, n]`, both FP16. Like [`Gemm::b`], biases may be read before earlier
/// launches on the stream have ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epilogue {
    /// `scale * sum`.
    Plain {
        /// Factor of every sum.
        scale: f32,
    },
    /// `scale * sum`, stored as FP32: logits.
    PlainF32 {
        /// Factor of every sum.
        scale: f32,
    },
    /// `sum + bias`.
    Bias(DevicePtr),
    /// `gelu(sum + bias)` with the error function: BERT.
    BiasGelu(DevicePtr),
    /// `gelu(sum + bias)` in its tanh approximation: GPT-2.
    BiasGeluTanh(DevicePtr),
    /// `max(sum + bias, 0)`.
    BiasRelu(DevicePtr),
    /// `sum + residual`.
    Residual(Residual),
    /// `sum + bias + residual`.
    BiasResidual(DevicePtr, Residual),
    /// `silu(gate) * up`, where rows `2i` and `2i + 1` of `B` make gate and up of output column `i`: `C` is `[m, n / 2]`.
    SiluGate,
    /// [`SiluGate`](Self::SiluGate) of `sum + bias`: the bias is `[n]`, and gates' and ups' alternate like the rows of `B`.
    BiasSiluGate(DevicePtr),
}

impl Epilogue {
    /// The sum as it is.
    pub const NONE: Self = Self::Plain { scale: 1.0 };

    /// Whether two columns of the product make one of `C`.
    const fn is_gate(self) -> bool {
        matches!(self, Self::SiluGate | Self::BiasSiluGate(_))
    }
}

/// A matrix that is added to the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residual {
    /// `[m, n]`, FP16. It may be `C` itself.
    pub ptr: DevicePtr,
    /// Elements from one row to the next.
    pub stride: u32,
}

/// Rows of `A` are normed before they are multiplied: each counts divided by `sqrt(mean of its squares + epsilon)`. An RMS norm's weight belongs into `B`,
/// whose columns it scales.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowNorm {
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// `C[m, n] = epilogue(A[m, k] * B[n, k]^T)`. Strides count elements from one row to the next.
///
/// Any shape and stride works. Rows of `A` and `B` that all begin on 16 bytes (pointers multiples of 16, strides multiples of 8) are several
/// times faster than others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// Rows of `A` and `C`.
    pub m: u32,
    /// Rows of `B`, and columns of `C` (twice those of `C` for the gates).
    pub n: u32,
    /// Columns of `A` and `B`.
    pub k: u32,
    /// `[m, k]`, FP16.
    pub a: DevicePtr,
    /// Stride of `a`.
    pub lda: u32,
    /// `[n, k]`, FP16: weights. It may be read before earlier launches on the stream have ended, so none of them may write it.
    pub b: DevicePtr,
    /// Stride of `b`.
    pub ldb: u32,
    /// `[m, n]`, FP16, or FP32 for [`Epilogue::PlainF32`].
    pub c: DevicePtr,
    /// Stride of `c`.
    pub ldc: u32,
    /// What is done to rows of `A` first. Only where [`can_norm_rows`](Self::can_norm_rows) says so.
    pub row_norm: Option<RowNorm>,
    /// What is done to the sums.
    pub epilogue: Epilogue,
}

impl Gemm {
    /// A product of matrices without gaps between their rows.
    pub const fn new([m, n, k]: [u32; 3], a: DevicePtr, b: DevicePtr, c: DevicePtr, epilogue: Epilogue) -> Self {
        let ldc = if epilogue.is_gate() { n / 2 } else { n };
        Self { m, n, k, a, lda: k, b, ldb: k, c, ldc, row_norm: None, epilogue }
    }

    /// Whether the kernel that does this problem, at any SM count, can norm the rows of `A`: the skinny ones do. Elsewhere a norm of its own costs little
    /// beside the product.
    pub fn can_norm_rows(&self, gpu: &Topology) -> bool {
        Skinny::is_chosen_at_any_sms(self, gpu)
    }

    /// The launch of one variant, where [`Kernel::configure`] would choose: to measure variants against each other.
    ///
    /// # Errors
    /// [`LaunchError::Unsupported`] for a shape that no variant, or not this one, can do, or if this GPU has too little shared memory for it.
    pub fn configure_variant(&self, variant: Variant, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        self.check()?;
        let is_elastic = matches!(variant, Variant::Warpgroup(warpgroup) if warpgroup.is_elastic(self, sms));
        self.launch_of(variant, is_elastic, sms, gpu)
    }

    /// The launch of `variant`, for a problem that [`check`](Self::check) has passed. `is_elastic` matters to warpgroup variants alone.
    fn launch_of(&self, variant: Variant, is_elastic: bool, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        if !variant.can_do(self, gpu) {
            return Err(self.unsupported(format!("{variant:?} takes other row counts or alignments")));
        }
        if self.row_norm.is_some() && !matches!(variant, Variant::Skinny(_)) {
            return Err(self.unsupported(format!("{variant:?} does not norm rows of A: launch a norm before a product without one")));
        }
        let tiles = u32::try_from(variant.tiles(self)).map_err(|_| self.unsupported("more than 2^32 tiles".to_owned()))?;
        let blocks_per_sm = variant.blocks_per_sm(gpu);
        if blocks_per_sm == 0 {
            let needed = variant.shared_bytes();
            return Err(
                self.unsupported(format!("{variant:?} needs {needed} bytes of shared memory, and an SM has {}", gpu.shared_bytes_per_sm))
            );
        }
        if let Variant::Skinny(skinny) = variant {
            return Ok(skinny.launch(self, sms, gpu));
        }
        if let Variant::Warpgroup(warpgroup) = variant {
            return Ok(warpgroup.launch(self, variant.symbol(self.kind()), tiles, is_elastic, sms));
        }
        Ok(Launch {
            symbol: variant.symbol(self.kind()),
            grid: Launch::persistent_grid(tiles, sms, blocks_per_sm),
            block: variant.threads(),
            shared_bytes: variant.shared_bytes(),
            blocks_per_sm,
            tiles,
            blocks_per_tile: 1,
            elastic: true,
            programmatic: true,
            begins_by_number: false,
            params: Params::new(self.args()),
        })
    }

    /// Whether rows of `A` and `B` can be copied 16 bytes at a time.
    fn is_aligned(&self) -> bool {
        (self.a.0 | self.b.0).is_multiple_of(16) && (self.lda | self.ldb).is_multiple_of(8)
    }

    /// A problem of the same key whose rows all begin on 16 bytes.
    fn aligned(&self) -> Self {
        const ALIGNED: Residual = Residual { ptr: DevicePtr::NULL, stride: 0 };
        let epilogue = match self.epilogue {
            Epilogue::Residual(_) => Epilogue::Residual(ALIGNED),
            Epilogue::BiasResidual(bias, _) => Epilogue::BiasResidual(bias, ALIGNED),
            other => other,
        };
        let (ptr, stride) = (DevicePtr::NULL, 0);
        Self { a: ptr, b: ptr, c: ptr, lda: stride, ldb: stride, ldc: stride, epilogue, ..*self }
    }

    fn c_columns(&self) -> u32 {
        if self.epilogue.is_gate() { self.n / 2 } else { self.n }
    }

    fn bias(&self) -> Option<DevicePtr> {
        match self.epilogue {
            Epilogue::Bias(bias)
            | Epilogue::BiasGelu(bias)
            | Epilogue::BiasGeluTanh(bias)
            | Epilogue::BiasRelu(bias)
            | Epilogue::BiasResidual(bias, _)
            | Epilogue::BiasSiluGate(bias) => Some(bias),
            Epilogue::Plain { .. } | Epilogue::PlainF32 { .. } | Epilogue::Residual(_) | Epilogue::SiluGate => None,
        }
    }

    fn residual(&self) -> Option<Residual> {
        match self.epilogue {
            Epilogue::Residual(residual) | Epilogue::BiasResidual(_, residual) => Some(residual),
            _ => None,
        }
    }

    fn check(&self) -> Result<(), LaunchError> {
        let reason = if self.m == 0 || self.n == 0 || self.k == 0 {
            "m, n and k must be at least 1"
        } else if self.m.max(self.n).max(self.k) > i32::MAX as u32 {
            "m, n and k must be below 2^31"
        } else if self.epilogue.is_gate() && !self.n.is_multiple_of(2) {
            "the SiLU gate needs an even n: gate and up rows alternate"
        } else if self.lda < self.k || self.ldb < self.k || self.ldc < self.c_columns() {
            "rows overlap: lda and ldb must be at least k, ldc at least the columns of C"
        } else if self.bias().is_some_and(DevicePtr::is_null) || self.residual().is_some_and(|residual| residual.ptr.is_null()) {
            "the bias or residual that its epilogue adds is null"
        } else if self.residual().is_some_and(|residual| residual.stride < self.n) {
            "rows of the residual overlap: its stride must be at least n"
        } else {
            return Ok(());
        };
        Err(self.unsupported(reason.to_owned()))
    }

    fn unsupported(&self, reason: String) -> LaunchError {
        LaunchError::Unsupported { kernel: self.key().to_string(), reason }
    }

    fn kind(&self) -> abi::GemmEpilogue {
        match self.epilogue {
            Epilogue::Plain { .. } => abi::GemmEpilogue_GEMM_PLAIN,
            Epilogue::PlainF32 { .. } => abi::GemmEpilogue_GEMM_PLAIN_F32,
            Epilogue::Bias(_) => abi::GemmEpilogue_GEMM_BIAS,
            Epilogue::BiasGelu(_) => abi::GemmEpilogue_GEMM_BIAS_GELU,
            Epilogue::BiasGeluTanh(_) => abi::GemmEpilogue_GEMM_BIAS_GELU_TANH,
            Epilogue::BiasRelu(_) => abi::GemmEpilogue_GEMM_BIAS_RELU,
            Epilogue::Residual(_) => abi::GemmEpilogue_GEMM_RESIDUAL,
            Epilogue::BiasResidual(..) => abi::GemmEpilogue_GEMM_BIAS_RESIDUAL,
            Epilogue::SiluGate | Epilogue::BiasSiluGate(_) => abi::GemmEpilogue_GEMM_SILU_GATE,
        }
    }

    fn args(&self) -> abi::GemmArgs {
        let (bias, residual) = (self.bias(), self.residual());
        let scale = match self.epilogue {
            Epilogue::Plain { scale } | Epilogue::PlainF32 { scale } => scale,
            _ => 1.0,
        };
        // Four columns of the product make two of C under the gate.
        let (c_alignment, ldc_multiple) = match self.epilogue {
            Epilogue::PlainF32 { .. } => (16, 4),
            Epilogue::SiluGate | Epilogue::BiasSiluGate(_) => (4, 2),
            _ => (8, 4),
        };
        let vectorised = self.c.0.is_multiple_of(c_alignment)
            && self.ldc.is_multiple_of(ldc_multiple)
            && bias.is_none_or(|bias| bias.0.is_multiple_of(8))
            && residual.is_none_or(|residual| residual.ptr.0.is_multiple_of(8) && residual.stride.is_multiple_of(4));
        abi::GemmArgs {
            a: self.a.0,
            b: self.b.0,
            c: self.c.0,
            bias: bias.unwrap_or_default().0,
            residual: residual.map_or(0, |residual| residual.ptr.0),
            m: self.m,
            n: self.n,
            k: self.k,
            lda: self.lda,
            ldb: self.ldb,
            ldc: self.ldc,
            ld_residual: residual.map_or(0, |residual| residual.stride),
            epilogue: self.kind(),
            scale,
            vectorised: u32::from(vectorised),
            constant_b: 1,
        }
    }
}

// SAFETY: tiled symbols and gemm_unaligned are defined with `GemmArgs` as their first parameter, warpgroup ones with `WarpgroupGemmArgs`, skinny ones with
// `SkinnyGemmArgs`, and each branch of `launch_of` pairs them so; that the pointers stay valid is for whoever makes the descriptor to see to.
unsafe impl Kernel for Gemm {
    /// `[m x n x k]`, named by the norm of the rows and the epilogue.
    fn key(&self) -> KernelKey {
        /// Without and with a norm of the rows of `A`.
        macro_rules! names {
            ($name:literal) => {
                const { [KernelName::new($name), KernelName::new(concat!("rms_norm_", $name))] }
            };
        }
        let names = match self.epilogue {
            Epilogue::Plain { .. } => names!("gemm"),
            Epilogue::PlainF32 { .. } => names!("gemm_f32"),
            Epilogue::Bias(_) => names!("gemm_bias"),
            Epilogue::BiasGelu(_) => names!("gemm_bias_gelu"),
            Epilogue::BiasGeluTanh(_) => names!("gemm_bias_gelu_tanh"),
            Epilogue::BiasRelu(_) => names!("gemm_bias_relu"),
            Epilogue::Residual(_) => names!("gemm_residual"),
            Epilogue::BiasResidual(..) => names!("gemm_bias_residual"),
            Epilogue::SiluGate => names!("gemm_silu_gate"),
            Epilogue::BiasSiluGate(_) => names!("gemm_bias_silu_gate"),
        };
        let name = names[usize::from(self.row_norm.is_some())];
        KernelKey::new(name, [self.m, self.n, self.k])
    }

    fn work(&self) -> Work {
        let [m, n, k] = [self.m, self.n, self.k].map(u64::from);
        // Saturating, for shapes that `configure` will refuse.
        let area = |rows: u64, columns: u64| rows.saturating_mul(columns);
        let c = area(m, u64::from(self.c_columns()));
        let c_halves = if matches!(self.epilogue, Epilogue::PlainF32 { .. }) { 2 } else { 1 };
        let added = self.bias().map_or(0, |_| n).saturating_add(self.residual().map_or(0, |_| area(m, n)));
        let elements = area(m + n, k).saturating_add(c.saturating_mul(c_halves)).saturating_add(added);
        let squared = self.row_norm.map_or(0, |_| area(m, k));
        let multiply_adds = area(m, n).saturating_mul(k).saturating_add(squared);
        Work { flops: multiply_adds.saturating_mul(2), bytes: elements.saturating_mul(2) }
    }

    fn configure(&self, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        self.configure_as(self.choose(sms, gpu), sms, gpu)
    }

    /// Which shapes are quickest.
    fn choose(&self, sms: Sms, gpu: &Topology) -> Choice {
        Quickest::of(self, sms, gpu).to_choice()
    }

    /// The shapes of the kernel's family, all of which add in the same order.
    fn configurations(&self, sms: Sms, gpu: &Topology) -> Vec<Configuration> {
        Quickest::configurations(self, sms, gpu)
    }

    /// Strides, alignments and the workspace are looked at here: problems of one key may differ in them.
    fn configure_as(&self, choice: Choice, sms: Sms, gpu: &Topology) -> Result<Launch, LaunchError> {
        self.check()?;
        let quickest = Quickest::from_choice(choice);
        let variant = Variant::choose(self, quickest, sms, gpu);
        print_choice(sms, || (self.key(), variant.and_who_chose_it(self, sms, gpu), variant.tiles(self)));
        self.launch_of(variant, quickest.warpgroup_is_elastic, sms, gpu)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::h200;
    use super::*;

    fn gemm(shape: [u32; 3]) -> Gemm {
        Gemm::new(shape, DevicePtr(256), DevicePtr(512), DevicePtr(1024), Epilogue::NONE)
    }

    const NORM: Option<RowNorm> = Some(RowNorm { epsilon: 1e-5 });

    #[test]
    fn the_key_names_the_epilogue_and_the_shape() {
        let gelu = Gemm { epilogue: Epilogue::BiasGelu(DevicePtr(64)), ..gemm([1024, 3072, 768]) };
        assert_eq!(gelu.key().to_string(), "gemm_bias_gelu[1024x3072x768]f16");
        let normed = Gemm { row_norm: NORM, epilogue: Epilogue::SiluGate, ..gemm([8, 16_384, 2048]) };
        assert_eq!(normed.key().to_string(), "rms_norm_gemm_silu_gate[8x16384x2048]f16");
        assert_ne!(normed.key().fingerprint(), Gemm { row_norm: None, ..normed }.key().fingerprint());
    }

    #[test]
    fn rows_are_normed_where_a_skinny_kernel_does_the_problem_and_refused_elsewhere() {
        let ampere = Topology { compute_capability: (8, 0), ..h200() };
        let few = Gemm { row_norm: NORM, ..gemm([64, 6144, 4096]) };
        let unaligned = Gemm { a: DevicePtr(258), ..few };
        let many = Gemm { m: 65, ..few };
        for (problem, gpu, can) in [(few, h200(), true), (unaligned, h200(), false), (many, h200(), false), (few, ampere, false)] {
            assert_eq!(problem.can_norm_rows(&gpu), can, "{problem:?}");
            for sms in [1, 2, 59, 60, 132] {
                match problem.configure(Sms(sms), &gpu) {
                    Ok(launch) => assert!(can && launch.symbol.contains("skinny"), "{launch:?}"),
                    Err(error) => assert!(!can && error.to_string().contains("does not norm rows of A"), "{error}"),
                }
            }
        }
    }

    #[test]
    fn a_grid_never_exceeds_what_the_granted_sms_hold_at_once() {
        for shape in [[8192, 14336, 4096], [1024, 768, 768], [8, 4096, 4096], [1, 1, 1], [20, 2048, 2048], [64, 128_256, 2048]] {
            for sms in [2, 8, 66, 132] {
                let launch = gemm(shape).configure(Sms(sms), &h200()).expect("a supported shape");
                assert!(launch.grid >= 1 && launch.grid <= u32::from(sms) * launch.blocks_per_sm, "{shape:?} at {sms} SMs: {launch:?}");
                // Two blocks may work as one.
                assert!(launch.grid <= 2 * launch.tiles);
                assert!(launch.blocks_per_sm * (launch.shared_bytes + 1024) <= h200().shared_bytes_per_sm);
            }
        }
    }

    #[test]
    fn the_kernel_of_an_unaligned_problem_does_not_depend_on_the_sm_count() {
        let odd_stride = Gemm { lda: 771, ..gemm([1024, 768, 768]) };
        let odd_pointer = Gemm { a: DevicePtr(258), ..gemm([8, 4096, 4096]) };
        for problem in [odd_stride, odd_pointer] {
            let symbols = [1, 2, 33, 66, 132].map(|sms| problem.configure(Sms(sms), &h200()).expect("a supported shape").symbol);
            assert!(symbols.iter().all(|symbol| *symbol == symbols[0]), "{problem:?}: {symbols:?}");
        }
    }

    #[test]
    fn a_launch_from_a_remembered_choice_is_the_one_that_is_chosen_anew() {
        let unlike = Gemm { a: DevicePtr(4096), lda: 8200, epilogue: Epilogue::NONE, ..gemm([1024, 768, 768]) };
        let ampere = Topology { compute_capability: (8, 0), ..h200() };
        for gpu in [h200(), ampere] {
            for shape in [[8192, 14336, 4096], [1024, 768, 768], [1024, 3072, 768], [40, 4096, 4096], [8, 4096, 4096]] {
                for sms in [2, 33, 66, 132] {
                    let (problem, sms) = (gemm(shape), Sms(sms));
                    // The choice may come from a problem that has only the key in common.
                    let other = Gemm { m: problem.m, n: problem.n, k: problem.k, ldc: problem.ldc, a: DevicePtr(258), ..unlike };
                    let [anew, remembered] = [problem.choose(sms, &gpu), other.choose(sms, &gpu)]
                        .map(|choice| problem.configure_as(choice, sms, &gpu).expect("a supported shape"));
                    let facts = |launch: &Launch| (launch.symbol, launch.grid, launch.tiles, launch.elastic, launch.shared_bytes);
                    assert_eq!(facts(&anew), facts(&remembered), "{shape:?}");
                    assert_eq!(facts(&anew), facts(&problem.configure(sms, &gpu).expect("a supported shape")), "{shape:?}");
                }
            }
        }
    }

    #[test]
    fn a_gpu_with_little_shared_memory_gets_tiles_that_fit() {
        let small = Topology { shared_bytes_per_sm: 100 << 10, ..h200() };
        for shape in [[8192, 8192, 4096], [8, 4096, 4096], [64, 4096, 4096]] {
            let launch = gemm(shape).configure(Sms(40), &small).expect("a tile that fits");
            assert!(launch.shared_bytes + 1024 <= small.shared_bytes_per_sm);
        }
    }

    #[test]
    fn shapes_that_cannot_be_done_say_what_does_not_fit() {
        let gate = Gemm { epilogue: Epilogue::SiluGate, ..gemm([8, 7, 64]) };
        let no_bias = Gemm { epilogue: Epilogue::Bias(DevicePtr::NULL), ..gemm([8, 8, 64]) };
        let overlapping = Gemm { lda: 63, ..gemm([8, 8, 64]) };
        let biased_gate = Gemm { epilogue: Epilogue::BiasSiluGate(DevicePtr(64)), ..gate };
        for (problem, reason) in [
            (gate, "even n"),
            (biased_gate, "even n"),
            (gemm([0, 8, 8]), "at least 1"),
            (overlapping, "rows overlap"),
            (no_bias, "is null"),
        ] {
            let error = problem.configure(Sms(8), &h200()).expect_err("no such kernel");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn no_shape_however_absurd_panics() {
        let edges = [0, 1, 63, 64, 65, i32::MAX as u32, u32::MAX];
        for m in edges {
            for n in edges {
                for k in edges {
                    for epilogue in [Epilogue::NONE, Epilogue::SiluGate] {
                        let problem = Gemm { epilogue, ..gemm([m, n, k]) };
                        let _ = (problem.work(), problem.configure(Sms(0), &h200()), problem.configure(Sms(132), &h200()));
                        let _ = (problem.configurations(Sms(0), &h200()), problem.configurations(Sms(132), &h200()));
                    }
                }
            }
        }
    }

    #[test]
    fn work_counts_each_operand_once() {
        let work = Gemm { epilogue: Epilogue::Bias(DevicePtr(64)), ..gemm([2, 3, 5]) }.work();
        assert_eq!(work, Work { flops: 2 * 2 * 3 * 5, bytes: 2 * (2 * 5 + 3 * 5 + 2 * 3 + 3) });
        let normed = Gemm { row_norm: NORM, ..gemm([2, 3, 5]) }.work();
        assert_eq!(normed, Work { flops: 2 * (2 * 3 * 5 + 2 * 5), bytes: 2 * (2 * 5 + 3 * 5 + 2 * 3) });
        let gate = |epilogue| Gemm::new([2, 4, 5], DevicePtr(0), DevicePtr(0), DevicePtr(0), epilogue).work().bytes;
        assert_eq!(gate(Epilogue::SiluGate), 2 * (10 + 20 + 4));
        assert_eq!(gate(Epilogue::BiasSiluGate(DevicePtr(64))), 2 * (10 + 20 + 4 + 4));
    }
}
