//! Statuses, the last error of each thread, and the wall that no panic passes.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use smidgen_runtime::AdmitError;
use smidgen_runtime::device::DeviceError;
use smidgen_runtime::launch::LaunchError;
use smidgen_runtime::partition::LadderError;
use smidgen_runtime::policy::UnknownPolicy;
use smidgen_runtime::profile::ProfileError;

/// How a call ended. smidgen_last_error says more, in words that name the remedy.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::upper_case_acronyms)] // The header writes them so.
pub enum smidgen_status {
    /// It did what was asked. Every other status means that nothing has changed, unless the function says otherwise.
    OK = 0,
    /// A pointer that is needed was null.
    NULL = 1,
    /// An argument has a value that it cannot have.
    ARGUMENT = 2,
    /// Program and library were compiled with headers that do not fit each other, or a struct_size was not set.
    VERSION = 3,
    /// There is no NVIDIA GPU of that number, or no driver, or an old one.
    NO_GPU = 4,
    /// There is no policy of that name.
    UNKNOWN_POLICY = 5,
    /// The tenant was dismissed, or never admitted.
    UNKNOWN_TENANT = 6,
    /// Not enough memory: on the device, or on the host for a download.
    NO_MEMORY = 7,
    /// The tenant's objective is below its latency alone on the whole GPU.
    IMPOSSIBLE_SLO = 8,
    /// A profile cannot be read, or is not of this GPU.
    PROFILE = 9,
    /// A partition cannot be made as the plan asks, or SMs that are asked for are others'. Nothing falls back to the whole GPU.
    PARTITION = 10,
    /// No loaded library has a kernel of that symbol, or none is loaded.
    UNKNOWN_SYMBOL = 11,
    /// The kernel's launch cannot be made: its description is wrong, or its configure callback refused.
    UNSUPPORTED = 12,
    /// The handle is in use: by another thread, or by the call that this callback runs in.
    BUSY = 13,
    /// The call does not suit what the session is doing: ending a capture that was not begun, replaying during one, launching for a paused tenant.
    STATE = 14,
    /// The graph was captured by another session.
    WRONG_SESSION = 15,
    /// The driver refused. The context is alive, and other work goes on.
    DEVICE = 16,
    /// The CUDA context is lost, for every tenant of this process: only a new process can use the GPU again.
    CONTEXT_LOST = 17,
    /// A defect in smidgen. Destroy the handle that the call was made with.
    INTERNAL = 18,
}

/// A status other than OK, and what there is to say about it.
#[derive(Debug)]
pub(crate) struct Failure {
    status: smidgen_status,
    message: String,
}

impl Failure {
    pub(crate) fn new(status: smidgen_status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        let status = match &error {
            DeviceError::NoGpu(_) | DeviceError::OldDriver { .. } => smidgen_status::NO_GPU,
            DeviceError::OutOfMemory { .. } => smidgen_status::NO_MEMORY,
            DeviceError::NoKernels | DeviceError::UnknownSymbol { .. } => smidgen_status::UNKNOWN_SYMBOL,
            DeviceError::ShortPartition { .. } | DeviceError::BadPartition { .. } | DeviceError::SmNumbers { .. } => {
                smidgen_status::PARTITION
            }
            error if error.is_sticky() => smidgen_status::CONTEXT_LOST,
            _ => smidgen_status::DEVICE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        let status = match error {
            LaunchError::Device(error) => return error.into(),
            LaunchError::Dismissed => smidgen_status::UNKNOWN_TENANT,
            LaunchError::NoStream { .. } => smidgen_status::PARTITION,
            LaunchError::NotCapturing | LaunchError::InCapture | LaunchError::WrongThread | LaunchError::Paused => smidgen_status::STATE,
            LaunchError::WrongSession | LaunchError::WrongTenant => smidgen_status::WRONG_SESSION,
            LaunchError::Unsupported { .. } => smidgen_status::UNSUPPORTED,
        };
        Self::new(status, error.to_string())
    }
}

impl From<LadderError> for Failure {
    fn from(error: LadderError) -> Self {
        match error {
            LadderError::Device(error) => error.into(),
            full => Self::new(smidgen_status::PARTITION, full.to_string()),
        }
    }
}

impl From<AdmitError> for Failure {
    fn from(error: AdmitError) -> Self {
        let status = match error {
            AdmitError::Device(error) => return error.into(),
            AdmitError::Launch(error) => return error.into(),
            AdmitError::Ladder(error) => return error.into(),
            AdmitError::NoMemory { .. } => smidgen_status::NO_MEMORY,
            AdmitError::NoSms { .. } => smidgen_status::PARTITION,
            AdmitError::TooMany | AdmitError::ZeroSlo { .. } | AdmitError::Unplaced { .. } => smidgen_status::ARGUMENT,
            AdmitError::ImpossibleSlo { .. } => smidgen_status::IMPOSSIBLE_SLO,
            AdmitError::Unknown(_) => smidgen_status::UNKNOWN_TENANT,
        };
        Self::new(status, error.to_string())
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        Self::new(smidgen_status::PROFILE, error.to_string())
    }
}

impl From<UnknownPolicy> for Failure {
    fn from(error: UnknownPolicy) -> Self {
        Self::new(smidgen_status::UNKNOWN_POLICY, error.to_string())
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the body of a function of the interface: what it returns, or panics with, becomes a status and this thread's last error.
#[inline]
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> smidgen_status {
    // Nothing that a panic leaves half done is unsound to use on: locks are released, and handles hold values that Rust keeps valid.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => smidgen_status::OK,
        Ok(Err(failure)) => remember(failure),
        Err(panic) => remember(Failure::new(smidgen_status::INTERNAL, panic_message(&*panic))),
    }
}

#[cold]
fn remember(Failure { status, mut message }: Failure) -> smidgen_status {
    message.retain(|character| character != '\0');
    // Without NULs the conversion cannot fail; a thread that ends has no place for messages any more.
    let message = CString::new(message).unwrap_or_default();
    let _ = LAST_ERROR.try_with(|last| last.replace(message));
    status
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("smidgen has a defect: {}; please report it", said.unwrap_or("it panicked"))
}

/// What the last call that failed on this thread has to say: one line of UTF-8. Empty if none has failed. The text belongs to the library
/// and stays until the next call fails on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn smidgen_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The name of a status, such as "SMIDGEN_STATUS_NO_GPU"; "unknown status" for a number that is none.
#[unsafe(no_mangle)]
pub extern "C" fn smidgen_status_name(status: i32) -> *const c_char {
    const NAMES: [&CStr; 19] = [
        c"SMIDGEN_STATUS_OK",
        c"SMIDGEN_STATUS_NULL",
        c"SMIDGEN_STATUS_ARGUMENT",
        c"SMIDGEN_STATUS_VERSION",
        c"SMIDGEN_STATUS_NO_GPU",
        c"SMIDGEN_STATUS_UNKNOWN_POLICY",
        c"SMIDGEN_STATUS_UNKNOWN_TENANT",
        c"SMIDGEN_STATUS_NO_MEMORY",
        c"SMIDGEN_STATUS_IMPOSSIBLE_SLO",
        c"SMIDGEN_STATUS_PROFILE",
        c"SMIDGEN_STATUS_PARTITION",
        c"SMIDGEN_STATUS_UNKNOWN_SYMBOL",
        c"SMIDGEN_STATUS_UNSUPPORTED",
        c"SMIDGEN_STATUS_BUSY",
        c"SMIDGEN_STATUS_STATE",
        c"SMIDGEN_STATUS_WRONG_SESSION",
        c"SMIDGEN_STATUS_DEVICE",
        c"SMIDGEN_STATUS_CONTEXT_LOST",
        c"SMIDGEN_STATUS_INTERNAL",
    ];
    let name = usize::try_from(status).ok().and_then(|status| NAMES.get(status));
    name.copied().unwrap_or(c"unknown status").as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_error() -> String {
        // SAFETY: a text of the library's, which no call on this thread replaces meanwhile.
        unsafe { CStr::from_ptr(smidgen_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status_with_its_message() {
        assert_eq!(guard(|| panic!("tile {} is missing", 7)), smidgen_status::INTERNAL);
        assert!(last_error().contains("tile 7 is missing"), "{}", last_error());
    }

    #[test]
    fn a_message_with_a_nul_is_kept_whole() {
        guard(|| Err(Failure::new(smidgen_status::ARGUMENT, "a\0b")));
        assert_eq!(last_error(), "ab");
    }

    #[test]
    fn each_thread_has_a_last_error_of_its_own() {
        guard(|| Err(Failure::new(smidgen_status::ARGUMENT, "here")));
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().unwrap();
        assert_eq!(last_error(), "here");
    }

    #[test]
    fn a_success_leaves_the_last_error_as_it_was() {
        guard(|| Err(Failure::new(smidgen_status::ARGUMENT, "kept")));
        assert_eq!(guard(|| Ok(())), smidgen_status::OK);
        assert_eq!(last_error(), "kept");
    }

    #[test]
    fn the_names_of_statuses_are_those_of_the_header() {
        let header = include_str!("../../../include/smidgen.h");
        let name = |status| {
            // SAFETY: a constant of the library's.
            unsafe { CStr::from_ptr(smidgen_status_name(status)) }.to_str().unwrap()
        };
        for status in smidgen_status::OK as i32..=smidgen_status::INTERNAL as i32 {
            assert!(header.contains(&format!("  {} = {status},", name(status))), "{status}: {}", name(status));
        }
        assert_eq!([name(-1), name(smidgen_status::INTERNAL as i32 + 1)], ["unknown status"; 2]);
    }
}
