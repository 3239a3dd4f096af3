//! Driver statuses as errors: their name, their meaning, and whether the context survives them.

use std::ffi::CStr;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use crate::device::DeviceError;

/// The error that `status` of the driver function `call` stands for.
pub fn check(call: &'static str, status: CUresult) -> Result<(), DeviceError> {
    match status {
        CUresult::CUDA_SUCCESS => Ok(()),
        status => Err(error(call, status)),
    }
}

/// `status` of `call` as an error, whatever it is.
#[cold]
pub fn error(call: &'static str, status: CUresult) -> DeviceError {
    if is_of_capture(status) {
        DeviceError::DuringCapture { call, status: describe(status) }
    } else {
        DeviceError::Driver { call, status: describe(status), sticky: is_sticky(status) }
    }
}

/// `CUDA_ERROR_X: what the driver says about it`.
pub fn describe(status: CUresult) -> String {
    let mut text = ptr::null();
    // SAFETY: `text` is a place for one pointer, and the driver may be asked about any status.
    let known = unsafe { sys::cuGetErrorString(status, &mut text) };
    if known != CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("{status:?}");
    }
    // SAFETY: after a success `text` is one of the driver's constant NUL-terminated strings.
    let text = unsafe { CStr::from_ptr(text) };
    format!("{status:?}: {}", text.to_string_lossy())
}

/// Whether every later call in this context will fail too. cuda.h says of these that the process must be restarted to use CUDA again, or that the context
/// cannot be used any more.
pub fn is_sticky(status: CUresult) -> bool {
    matches!(
        status,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTAINED
            | CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED
    )
}

/// Whether it is a capture that stands in the way, and passes with it. CUDA_ERROR_CAPTURED_EVENT does not: such an event marks a point of a graph for good.
fn is_of_capture(status: CUresult) -> bool {
    matches!(
        status,
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
            | CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD
    )
}

/// For destructors, which can only report: warns, unless the context is lost and the same error was already returned to a caller.
pub fn tolerate(result: Result<(), DeviceError>) {
    match result {
        Ok(()) => {}
        Err(error) if error.is_sticky() => tracing::debug!(%error, "not released: the CUDA context is lost"),
        Err(error) => tracing::warn!(%error, "not released"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statuses_that_lose_the_context_are_sticky() {
        use CUresult::*;
        // Numbers as in cuda.h, so that a binding that renames one is noticed.
        let lost = [
            (214, CUDA_ERROR_ECC_UNCORRECTABLE),
            (220, CUDA_ERROR_NVLINK_UNCORRECTABLE),
            (226, CUDA_ERROR_CONTAINED),
            (700, CUDA_ERROR_ILLEGAL_ADDRESS),
            (702, CUDA_ERROR_LAUNCH_TIMEOUT),
            (709, CUDA_ERROR_CONTEXT_IS_DESTROYED),
            (710, CUDA_ERROR_ASSERT),
            (714, CUDA_ERROR_HARDWARE_STACK_ERROR),
            (715, CUDA_ERROR_ILLEGAL_INSTRUCTION),
            (716, CUDA_ERROR_MISALIGNED_ADDRESS),
            (717, CUDA_ERROR_INVALID_ADDRESS_SPACE),
            (718, CUDA_ERROR_INVALID_PC),
            (719, CUDA_ERROR_LAUNCH_FAILED),
            (721, CUDA_ERROR_TENSOR_MEMORY_LEAK),
            (810, CUDA_ERROR_MPS_CLIENT_TERMINATED),
            (911, CUDA_ERROR_EXTERNAL_DEVICE),
        ];
        for (number, status) in lost {
            assert_eq!(status as u32, number, "{status:?}");
            assert!(is_sticky(status), "{status:?}");
        }
        for harmless in [
            CUDA_ERROR_OUT_OF_MEMORY,
            CUDA_ERROR_INVALID_VALUE,
            CUDA_ERROR_INVALID_HANDLE,
            CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
            CUDA_ERROR_INVALID_CLUSTER_SIZE,
            CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            CUDA_ERROR_NOT_READY,
        ] {
            assert!(!is_sticky(harmless), "{harmless:?}");
        }
    }

    #[test]
    fn only_statuses_that_pass_with_a_capture_are_told_as_its() {
        for passes in [CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED] {
            assert!(is_of_capture(passes), "{passes:?}");
        }
        for stays in [CUresult::CUDA_ERROR_CAPTURED_EVENT, CUresult::CUDA_ERROR_INVALID_HANDLE, CUresult::CUDA_ERROR_LAUNCH_FAILED] {
            assert!(!is_of_capture(stays), "{stays:?}");
        }
    }
}
