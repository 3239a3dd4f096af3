//! cuBLASLt as a peer: FP16 products with FP32 sums, by each algorithm that its heuristic proposes. A library call is an opaque launch to a
//! session, which gives it a partition's stream.
//!
//! A handle and a workspace serve one partition only: shared between two, they are a race. Descriptors are small and as many as shapes; they
//! live as long as the process.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use anyhow::{Result, bail};
use cudarc::cublaslt::{result, sys};
use smidgen_runtime::device::{Buffer, Device, DevicePtr, Sms, StreamId};

/// What NVIDIA's documentation recommends on Hopper.
const WORKSPACE_BYTES: u64 = 32 << 20;

/// `CUBLAS_OP_T` of cublas_api.h.
const TRANSPOSED: i32 = 1;

/// How many algorithms the heuristic is asked for.
const ASKED: usize = 8;

/// One partition's handle.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
}

/// `C[m, n] = A[m, k] * B[n, k]^T` by one algorithm.
#[derive(Clone, Copy)]
pub struct Product {
    description: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The operands of a product, FP16 and row-major.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    pub a: DevicePtr,
    pub b: DevicePtr,
    pub c: DevicePtr,
}

impl CublasLt {
    /// A handle in the device's context, which must be current.
    pub fn new(device: &Arc<dyn Device>) -> Result<Self> {
        // SAFETY: loading a library of NVIDIA's runs no code of which more is asked than to initialise itself.
        if !unsafe { sys::is_culib_present() } {
            bail!("libcublasLt is not in LD_LIBRARY_PATH; PyTorch brings one: nvidia/cu13/lib among its packages");
        }
        Ok(Self { handle: result::create_handle()?, workspace: Buffer::new(device, WORKSPACE_BYTES)? })
    }

    /// What the heuristic proposes for `[m, n, k]`, best first: for the whole GPU, then for `sms` SMs.
    pub fn proposals(&self, [m, n, k]: [u32; 3], sms: Sms) -> Result<Vec<Product>> {
        let mut proposals = Vec::new();
        for target in [None, Some(i32::from(sms.0))] {
            let description = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F)?;
            set(description, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
            if let Some(target) = target {
                set(description, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, &target)?;
            }
            // cuBLAS is column-major: it is asked for C^T = B * A^T, and a row-major matrix is its own transpose there.
            let layout = |rows: u32, columns: u32| {
                result::create_matrix_layout(sys::cudaDataType_t::CUDA_R_16F, u64::from(rows), u64::from(columns), i64::from(rows))
            };
            let (a, b, c) = (layout(k, n)?, layout(k, m)?, layout(n, m)?);
            let preference = result::create_matmul_pref()?;
            let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let bytes = WORKSPACE_BYTES;
            // SAFETY: the attribute is a u64, and `bytes` is one.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, ptr::from_ref(&bytes).cast(), size_of::<u64>()) }?;
            let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; ASKED];
            let mut count = 0;
            // SAFETY: all handles and descriptors were made above and never destroyed; `found` has room for as many as are asked for.
            let status = unsafe {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    self.handle,
                    description,
                    a,
                    b,
                    c,
                    c,
                    preference,
                    ASKED as i32,
                    found.as_mut_ptr().cast(),
                    &mut count,
                )
            };
            status.result()?;
            for result in &found[..usize::try_from(count).unwrap_or(0)] {
                // SAFETY: the library wrote the first `count`.
                let algorithm = unsafe { result.assume_init_ref() }.algo;
                proposals.push(Product { description, a, b, c, algorithm });
            }
        }
        Ok(proposals)
    }

    /// Enqueues one product.
    pub fn enqueue(&self, product: &Product, operands: Operands, stream: StreamId) -> Result<()> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let [a, b, c, workspace] = [operands.a, operands.b, operands.c, self.workspace.ptr()]
            .map(|ptr| ptr::with_exposed_provenance_mut::<c_void>(ptr.0 as usize));
        let stream = ptr::with_exposed_provenance_mut(stream.0 as usize);
        // SAFETY: the operands have the shapes that the layouts name, the workspace has the size that the heuristic was told, a stream of this
        // device is a CUstream, and one partition's launches run one after another.
        unsafe {
            result::matmul(
                self.handle,
                product.description,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&zero).cast(),
                b,
                product.a,
                a,
                product.b,
                c,
                product.c,
                c,
                product.c,
                &product.algorithm,
                workspace,
                WORKSPACE_BYTES as usize,
                stream,
            )
        }?;
        Ok(())
    }
}

fn set<T>(description: sys::cublasLtMatmulDesc_t, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
    // SAFETY: each caller passes a value of its attribute's type.
    unsafe { result::set_matmul_desc_attribute(description, attribute, ptr::from_ref(value).cast(), size_of::<T>()) }?;
    Ok(())
}
